"""Queues whose items stay stored until each one is settled: acked, nacked or set aside."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, overload

from persistcoll.arguments import checked_count, checked_seconds
from persistcoll.container import T, option
from persistcoll.engine.contracts import Claim, QueueStore, RecordStore, Select
from persistcoll.engine.in_flight import ClaimList, Consumer, IndexedClaimList
from persistcoll.engine.records import Backoff, Record, State
from persistcoll.engine.transaction_hooks import OPEN
from persistcoll.errors import ClaimError, ClosedError, Empty, NotClaimedError, StaleClaimError
from persistcoll.queues.deliveries import Deliveries, Delivery
from persistcoll.queues.sql import PlainPuts, RecordQueueCore, SQLQueue

__all__ = ["AckQueue", "AckQueueCore", "AckStatus"]


class _Unset:
    """Stands for an item that was not given, because ``None`` may be an item."""

    def __repr__(self) -> str:
        return "<no item>"


_UNSET: Any = _Unset()


class AckStatus:
    """The values that ``"status"`` may have in what :meth:`SQLiteAckQueue.queue` returns."""

    inited = "0"
    """The item is ready and was never got."""
    ready = "1"
    """The item is ready or delayed, and was got before."""
    unack = "2"
    """A consumer has got the item and not settled it."""
    acked = "5"
    """The item was acked, and is kept."""
    ack_failed = "9"
    """The item is set aside: by ``ack_failed``, or because it was got ``max_attempts`` times."""


_STATUS = {
    State.READY: AckStatus.ready,
    State.DELAYED: AckStatus.ready,
    State.CLAIMED: AckStatus.unack,
    State.DONE: AckStatus.acked,
    State.FAILED: AckStatus.ack_failed,
    State.DEAD: AckStatus.ack_failed,
}


class AckQueueCore(RecordQueueCore):
    """The core of a queue whose claims are :class:`~persistcoll.queues.deliveries.Delivery` objects.

    The :class:`~persistcoll.queues.deliveries.Deliveries` guard themselves.
    """

    _hands_over_as_is = False

    def __init__(self, store: RecordStore, maxsize: int, payload_only: bool, deliveries: Deliveries) -> None:
        self._deliveries = deliveries
        super().__init__(store, maxsize, False, payload_only)

    def _bind(self, store: QueueStore) -> None:
        super()._bind(store)
        self._ack = self._deliveries.ack

    def _nack(self, token: Delivery) -> None:
        self._deliveries.nack(token)

    def _new_claim_list(self) -> ClaimList:
        return IndexedClaimList()

    def _hand_over(self, items: list[Delivery], consumer: Consumer) -> list[Any]:
        for forgotten in self._deliveries.add(items, consumer):
            self.in_flight.forget(forgotten)
        return [each.item if each.raw is None else each.raw for each in items]

    def _take_back(self, token: Delivery) -> None:
        self._deliveries.forget(token)


class AckQueue(PlainPuts[T]):
    """A queue over records whose items are settled one by one.

    A consumer's claim on an item is a :class:`~persistcoll.queues.deliveries.Delivery`.
    """

    _changing = (
        *SQLQueue._changing, "ack", "ack_failed", "nack", "resume_unack_tasks", "clear_acked_data",
    )  # fmt: skip

    auto_resume: bool = option("auto_resume")
    lease: float | None = option("lease")
    max_attempts: int | None = option("max_attempts")
    backoff: Backoff | None = option("backoff")
    keep_acked: int | None = option("keep_acked")
    strict: bool = option("strict")
    _core: AckQueueCore

    def _make_core(self, store: RecordStore) -> AckQueueCore:
        self._deliveries = Deliveries(store)
        return AckQueueCore(store, self._options.maxsize, self._payload_only, self._deliveries)

    # Getting.

    @overload
    def get(
        self,
        block: bool = True,
        timeout: float | None = None,
        id: int | dict[str, Any] | None = None,
        next_in_order: bool = False,
        raw: Literal[False] = False,
    ) -> T: ...
    @overload
    def get(
        self,
        block: bool = True,
        timeout: float | None = None,
        id: int | dict[str, Any] | None = None,
        next_in_order: bool = False,
        raw: bool = False,
    ) -> Any: ...
    def get(
        self,
        block: bool = True,
        timeout: float | None = None,
        id: int | dict[str, Any] | None = None,
        next_in_order: bool = False,
        raw: bool = False,
    ) -> Any:
        """Return the next item, and claim it. It stays stored until it is settled.

        Cost: 1 transaction and no sync, because a claim that is lost leaves a ready item.

        :param block: wait for an item while none is ready.
        :param timeout: seconds to wait at most; ``None`` waits for ever.
        :param id: get the item with this id, and wait for that one; also what ``get(raw=True)`` returned, for
            its id.
        :param next_in_order: get the item after the one with that ``id``, which need not exist any more.
            After the last item comes the first one.
        :param raw: return ``{"pqid": its id, "data": the item, "timestamp": when it was put}``; the time is
            in seconds since the epoch.
        :raise ValueError: the timeout is negative, ``id`` cannot be an id, or ``next_in_order`` was given
            without an ``id``.

        It raises the other errors that :meth:`SQLiteQueue.get` raises as well.
        """
        if not isinstance(next_in_order, bool):
            raise ValueError("'next_in_order' must be True or False")
        select = None
        if id is not None:
            select = Select(self._checked_id(id), next_in_order)
        elif next_in_order:
            raise ValueError("'next_in_order' needs the 'id' that comes before")
        try:
            return self._blocking.get(self._deliver_raw if raw else self._deliver, block, timeout, select)
        except Empty:
            raise self._nothing_waits() from None

    @overload
    def get_nowait(
        self,
        id: int | dict[str, Any] | None = None,
        raw: Literal[False] = False,
        next_in_order: bool = False,
    ) -> T: ...
    @overload
    def get_nowait(
        self, id: int | dict[str, Any] | None = None, raw: bool = False, next_in_order: bool = False
    ) -> Any: ...
    def get_nowait(
        self, id: int | dict[str, Any] | None = None, raw: bool = False, next_in_order: bool = False
    ) -> Any:
        """Call ``get(block=False)``."""
        return self.get(False, None, id, next_in_order, raw)

    def get_many(self, n: int, block: bool = True, timeout: float | None = None) -> list[T]:
        """Return 1 to ``n`` items, in order. Only the first one is waited for.

        Cost: that of one :meth:`get`, however many items there are.

        :raise ValueError: ``n`` is below 1, or the timeout is negative.

        It raises the other errors that :meth:`get` raises as well.
        """
        n = checked_count("n", n, 1)
        try:
            return self._blocking.get_many(n, self._deliver, block, timeout)
        except Empty:
            raise self._nothing_waits() from None

    def _claim(self, block: bool, timeout: float | None, claims: list[Claim]) -> tuple[Delivery, Any]:
        try:
            return self._blocking.claim(self._deliver, block, timeout, claims)
        except Empty:
            raise self._nothing_waits() from None

    def _nothing_waits(self) -> Empty:
        """Return an ``Empty`` whose message counts the claimed items.

        A program that left another object open, which claimed the items, would otherwise wait for them
        without learning why.
        """
        held = self._store.claimed()
        if not held:
            return Empty()
        return Empty(
            f"nothing is ready in {self!r}, and {held} claimed (unack_count()) by this object, or by another"
            " one that is open, here or in another process; nack() or close() there makes them ready"
        )

    def _deliver(self, record: Record) -> tuple[Delivery, Delivery]:
        delivery = Delivery(record, self._decode(record)[1], None)
        self._deliveries.invalidate_previous(record.id)
        return delivery, delivery

    def _deliver_raw(self, record: Record) -> tuple[Delivery, Delivery]:
        delivery, _ = self._deliver(record)
        delivery.raw = self._raw(record, delivery.item)
        return delivery, delivery

    # Settling.

    def ack(self, item: T | dict[str, Any] = _UNSET, id: int | dict[str, Any] | None = None) -> int | None:
        """Ack an item: its work is done, and it is never delivered again.

        Cost: 1 transaction. At ``"power"`` also 1 sync, which threads that write at the same time share; at
        ``"process"`` none.

        :param item: the object that ``get`` returned; or what ``get(raw=True)`` returned, or a copy of that.
        :param id: the item's id, in place of the item.
        :return: its id; ``None`` if this object has not delivered the item, or the item was settled before.
        :raise NotClaimedError: with ``strict``, in place of returning ``None``.
        :raise StaleClaimError: the claim was lost because its lease ran out; another consumer may have the
            item.
        :raise ValueError: both the item and its id were given, or neither. An item that is ``None`` counts as
            not given if there is an id.
        :raise TypeError: ``id`` is not a whole number.
        """
        return self._settle(item, id, self._ack, 0)

    def ack_failed(
        self, item: T | dict[str, Any] = _UNSET, id: int | dict[str, Any] | None = None
    ) -> int | None:
        """Set an item aside for good.

        It is never delivered again, and stays stored until :meth:`clear_acked_data` removes it. Parameters,
        result and errors are those of :meth:`ack`.

        Cost: that of :meth:`ack`.
        """
        return self._settle(item, id, self._fail, 0)

    def nack(
        self,
        item: T | dict[str, Any] = _UNSET,
        id: int | dict[str, Any] | None = None,
        *,
        delay: float | None = None,
        to_back: bool = False,
    ) -> int | None:
        """End the claim on an item, so that the item is delivered again.

        An item that was got ``max_attempts`` times is set aside instead. The other parameters, the result and
        the errors are those of :meth:`ack`.

        Cost: that of :meth:`ack`.

        :param delay: seconds until it is ready again; ``None``: as the queue's ``backoff`` says.
        :param to_back: treat it as if it had been put just now, so that it gets a new id. It is delivered
            after all others where the oldest item comes first, and before all others where the newest does.
            Otherwise it keeps its place.
        :return: its id, or the new one if it got one.
        """
        if delay is not None:
            delay = checked_seconds("delay", delay)
        return self._settle(item, id, partial(self._store.nack, delay=delay, to_back=to_back), 1)

    def _ack(self, id: int) -> int:
        self._store.ack((id,))
        return id

    def _fail(self, id: int) -> int:
        self._store.fail((id,))
        return id

    def _settle(self, item: Any, id: Any, verb: Callable[[int], int], ready: int) -> int | None:
        found: list[Delivery] = []
        if OPEN:
            self._store.await_transaction()
        try:
            self._find(item, id, found)
            if not found:
                self._refuse_not_held(id)
                return None
            result = self._deliveries.settle(found[0], verb)
            self._blocking.settled_elsewhere(found[0], ready)
            return result
        except ClaimError as error:
            if not found:
                raise
            self._core.forget_claim(found[0], self._blocking.consumer.own)
            if isinstance(error, StaleClaimError):
                raise
            self._refuse_not_held(found[0].id)  # Another thread settled it at the same time.
            return None
        except BaseException:  # Perhaps out of a signal handler.
            if found:
                self._deliveries.put_back(found[0])
            raise

    def _refuse_not_held(self, id: Any) -> None:
        if not self.strict:
            return
        which = "that item" if id is None else f"item {self._checked_id(id)}"
        remedy = (
            "it is found by identity: give the object that get() returned, its raw form, or its id"
            if id is None
            else "skip() removes an item that is ready"
        )
        raise NotClaimedError(
            f"{which} is not claimed by {self!r}: it was settled already, its claim was lost, or another"
            f" object claimed it; {remedy}"
        )

    def _find(self, item: Any, id: Any, found: list[Delivery]) -> None:
        if self._closed:
            raise ClosedError(f"{self!r} is closed")
        if id is not None:
            if item is not _UNSET and item is not None:
                raise ValueError("give the item or its id, not both")
            self._deliveries.pop_id(self._checked_id(id), found)
            return
        if item is _UNSET:
            raise ValueError("give the item, or its id")
        self._deliveries.pop_item(item, self._blocking.consumer.own, found)
        if not found and self._is_raw(item) and isinstance(item["pqid"], int):
            self._deliveries.pop_id(item["pqid"], found, item["timestamp"])

    def resume_unack_tasks(self) -> int:
        """Make items ready again that dead consumers had claimed.

        These are the items of processes that died, and those of queues made with ``auto_resume=False`` and
        closed since. The claims of a living process stay.

        Cost: 1 transaction and no sync.

        :return: how many items became ready.
        """
        count = self._store.reclaim()
        self._core.settled(count)
        return count

    # Inspection and removal.

    def unack_count(self) -> int:
        """Return how many items are claimed and not settled, by any process.

        Cost: no write and no sync. The other counts cost the same.
        """
        return self._store.claimed()

    def acked_count(self) -> int:
        """Return how many acked items are kept."""
        return self._store.stats().done

    def ready_count(self) -> int:
        """Return how many items are ready; the same as :meth:`qsize` before any :meth:`shutdown`."""
        return self._store.count()

    def ack_failed_count(self) -> int:
        """Return how many items are set aside: by :meth:`ack_failed`, or after ``max_attempts``."""
        stats = self._store.stats()
        return stats.failed + stats.dead

    def active_size(self) -> int:
        """Return how many items are not finished: ready, delayed or claimed."""
        return self._store.unfinished()

    def _as_dict(self, state: State, record: Record) -> dict[str, Any]:
        status = _STATUS[state]
        if state is State.READY and not record.attempts:
            status = AckStatus.inited
        return {**super()._as_dict(state, record), "status": status}

    def clear_acked_data(
        self, max_delete: int | None = 1000, keep_latest: int | None = 1000, clear_ack_failed: bool = False
    ) -> int:
        """Remove acked items that are kept, the oldest first.

        Cost: 1 transaction for each kind of item. At ``"power"`` also 1 sync each.

        :param max_delete: how many to remove at most; 0 or ``None``: any number.
        :param keep_latest: how many of the newest stay; 0 or ``None``: none.
        :param clear_ack_failed: remove items that are set aside as well, except the newest ``keep_latest`` of
            each kind (failed, dead).
        :return: how many were removed.
        """
        limit, keep = checked_count("max_delete", max_delete), checked_count("keep_latest", keep_latest)
        removed = 0
        for state in (State.DONE, State.FAILED, State.DEAD) if clear_ack_failed else (State.DONE,):
            if limit and removed >= limit:
                break
            removed += self._store.purge(state, keep, limit - removed if limit else None)
        return removed

    # Lifecycle.

    def close(self) -> None:
        """Close the database. Idempotent.

        Items that this object claimed and did not settle become ready; with ``auto_resume=False`` they stay
        claimed until :meth:`resume_unack_tasks` is called.
        """
        super().close()
        self._deliveries.clear()

    def _after_fork(self) -> None:
        super()._after_fork()
        self._deliveries.clear()
