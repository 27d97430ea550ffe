"""Delivering items that stay until each one is settled: acknowledged, given back or set aside."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, overload

from persistcoll.engine.arguments import checked_count, checked_seconds
from persistcoll.engine.contracts import Claim, QueueStore, RecordStore, Select
from persistcoll.engine.in_flight import ClaimList, Consumer, IndexedClaimList
from persistcoll.engine.records import Record
from persistcoll.errors import ClaimError, ClosedError, Empty, NotClaimedError, StaleClaimError
from persistcoll.parameters import T
from persistcoll.queues.deliveries import Deliveries, Delivery
from persistcoll.queues.sql import BaseSQLQueue, RecordQueueCore

__all__ = ["AckQueueCore", "BaseAckQueue"]


class _NoItem:
    """Where no item was given: ``None`` is one."""

    def __repr__(self) -> str:
        return "<no item>"


_NO_ITEM: Any = _NoItem()


class AckQueueCore(RecordQueueCore):
    """The core of a queue whose claims are :class:`~persistcoll.queues.deliveries.Delivery` objects."""

    _hands_over_as_is = False

    def __init__(self, store: RecordStore, maxsize: int, bare: bool, deliveries: Deliveries) -> None:
        self._deliveries = deliveries
        super().__init__(store, maxsize, False, bare)

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


class BaseAckQueue(BaseSQLQueue[T]):
    """A queue in a table whose items are settled one by one.

    What stands for an item in a thread's hand is its :class:`~persistcoll.queues.deliveries.Delivery`.
    """

    _changing = (
        *BaseSQLQueue._changing, "ack", "ack_failed", "nack", "resume_unack_tasks", "clear_acked_data",
    )  # fmt: skip

    _core: AckQueueCore

    def _make_core(self, table: RecordStore, maxsize: int, auto_commit: bool) -> AckQueueCore:
        self._deliveries = Deliveries(table)
        return AckQueueCore(table, maxsize, self._bare, self._deliveries)

    @property
    def auto_commit(self) -> bool:
        """True."""
        return True

    @property
    def strict(self) -> bool:
        """Whether settling what is not held raises."""
        return bool(self._arguments()["strict"])

    # Getting.

    @overload  # type: ignore[override]
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
        """Take the next item. It stays stored until it is settled.

        Cost: 1 transaction and no sync, because a claim that is lost leaves an item that waits.

        :param block: wait for an item while there is none.
        :param timeout: seconds to wait at most; ``None`` waits for ever.
        :param id: take the item with this id, and wait for that one; or what ``get(raw=True)`` gave, for
            its id.
        :param next_in_order: take the one that comes after that ``id``, whether that is still there or not;
            behind the last one, the first.
        :param raw: return ``{"pqid": its id, "data": the item, "timestamp": when it was put}``, in seconds
            since the epoch.
        :raise ValueError: the timeout is negative, or ``id`` cannot be one, or it is missing for
            ``next_in_order``.

        It raises the others that :meth:`SQLiteQueue.get` does as well.
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
        """``get(block=False)``."""
        return self.get(False, None, id, next_in_order, raw)

    def get_many(self, n: int, block: bool = True, timeout: float | None = None) -> list[T]:
        """Take 1 to ``n`` items, in order, waiting only for the first. Raises as :meth:`get`.

        Cost: that of one :meth:`get`.
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
        """Says what is in work: a program that left another object open would wait for ever at this one."""
        held = self._table.claimed()
        if not held:
            return Empty()
        return Empty(
            f"nothing waits in {self!r}, and {held} in work (unack_count()): delivered by this object, or by"
            " another one that is open, here or in another process; nack() or close() there gives back"
        )

    def _deliver(self, record: Record) -> tuple[Delivery, Delivery]:
        delivery = Delivery(record, self._decode(record)[1], None)
        self._deliveries.expect(record.id)
        return delivery, delivery

    def _deliver_raw(self, record: Record) -> tuple[Delivery, Delivery]:
        delivery, _ = self._deliver(record)
        delivery.raw = self._raw(record, delivery.item)
        return delivery, delivery

    # Settling.

    def ack(self, item: T | dict[str, Any] = _NO_ITEM, id: int | dict[str, Any] | None = None) -> int | None:
        """Acknowledge an item: it is done.

        Cost: 1 transaction. At ``"power"`` also 1 sync, which threads that write at the same time share; at
        ``"process"`` none.

        :param item: the object that ``get`` returned, or a raw one, which may be a copy.
        :param id: the item's id, instead.
        :return: its id; ``None`` if this object has not delivered it, or it was settled already.
        :raise NotClaimedError: with ``strict``, in the place of ``None``.
        :raise StaleClaimError: the claim was lost, as its lease ran out; somebody else may have the item.
        :raise ValueError: both or neither were given. ``None`` beside an id is not given.
        :raise TypeError: ``id`` is no id.
        """
        return self._settle(item, id, self._ack, 0)

    def ack_failed(
        self, item: T | dict[str, Any] = _NO_ITEM, id: int | dict[str, Any] | None = None
    ) -> int | None:
        """Set an item aside for good: it is not delivered again, and stays stored until
        :meth:`clear_acked_data`. As :meth:`ack` otherwise.
        """
        return self._settle(item, id, self._fail, 0)

    def nack(
        self,
        item: T | dict[str, Any] = _NO_ITEM,
        id: int | dict[str, Any] | None = None,
        *,
        delay: float | None = None,
        to_back: bool = False,
    ) -> int | None:
        """Give an item back: it is delivered again. As :meth:`ack` otherwise.

        One that was got ``max_attempts`` times is set aside instead.

        :param delay: seconds until then; ``None``: as the queue's ``backoff`` says.
        :param to_back: as if it had been put just now, instead of in its place: behind all others where the
            oldest comes first, before them where the newest does. It gets a new id.
        :return: its id, the new one where it got one.
        """
        if delay is not None:
            delay = checked_seconds("delay", delay)
        return self._settle(item, id, partial(self._table.nack, delay=delay, to_back=to_back), 1)

    def _ack(self, id: int) -> int:
        self._table.ack((id,))
        return id

    def _fail(self, id: int) -> int:
        self._table.fail((id,))
        return id

    def _settle(self, item: Any, id: Any, verb: Callable[[int], int], ready: int) -> int | None:
        found: list[Delivery] = []
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
            self._core.in_flight.forget(found[0])
            if isinstance(error, StaleClaimError):
                raise
            self._refuse_not_held(found[0].id)  # another thread settled it at the same time
            return None
        except BaseException:  # out of a signal handler, perhaps
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
            else "skip() removes what waits"
        )
        raise NotClaimedError(
            f"{which} is not in the hands of {self!r}: it was settled already or given back, or another"
            f" object got it; {remedy}"
        )

    def _find(self, item: Any, id: Any, found: list[Delivery]) -> None:
        if self._closed:
            raise ClosedError(f"{self!r} is closed")
        if id is not None:
            if item is not _NO_ITEM and item is not None:
                raise ValueError("give the item or its id, not both")
            self._deliveries.pop_id(self._checked_id(id), found)
            return
        if item is _NO_ITEM:
            raise ValueError("give the item, or its id")
        self._deliveries.pop_item(item, self._blocking.consumer.own, found)
        if not found and self._is_raw(item) and isinstance(item["pqid"], int):
            self._deliveries.pop_id(item["pqid"], found, item["timestamp"])

    # Life and death.

    def close(self) -> None:
        """Let go of the database. What was got and not settled is ready again; with ``auto_resume=False``
        it is left for :meth:`resume_unack_tasks`. Idempotent.
        """
        super().close()
        self._deliveries.clear()

    def _after_fork(self) -> None:
        super()._after_fork()
        self._deliveries.clear()
