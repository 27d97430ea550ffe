"""Queues whose items stay stored until each one is settled: acked, nacked or set aside."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Literal, TypeVar, overload

from persistcoll.arguments import (
    checked_count,
    checked_delay,
    checked_number_of,
    checked_seconds,
    checked_text,
)
from persistcoll.container import T, option
from persistcoll.engine.contracts import Claim, RecordStore, Select
from persistcoll.engine.queue_core import Decode
from persistcoll.engine.records import NACKED, Backoff, Record, State
from persistcoll.engine.transaction_hooks import OPEN
from persistcoll.errors import ClaimError, ClosedError, Empty, NotClaimedError, StaleClaimError
from persistcoll.queues.ack_status import AckStatus, status_of
from persistcoll.queues.deliveries import AckQueueCore, Deliveries, Delivery, lost_of
from persistcoll.queues.sql import PlainPuts, SQLQueue

__all__ = ["AckQueue"]

R = TypeVar("R")
_Verb = Callable[[RecordStore, list[int]], list[int] | None]
"""Settles the claims of these records, and returns their ids if they may be new."""


class _Unset:
    """Stands for an item that was not given, because ``None`` may be an item."""

    def __repr__(self) -> str:
        return "<no item>"


_UNSET: Any = _Unset()


class AckQueue(PlainPuts[T]):
    """A queue over records whose items are settled one by one.

    A consumer's claim on an item is a :class:`~persistcoll.queues.deliveries.Delivery`.
    """

    _changing = (
        *SQLQueue._changing, "ack", "ack_many", "ack_failed", "nack", "requeue", "resume_unack_tasks",
        "clear_acked_data",
    )  # fmt: skip
    _more_raw_keys = frozenset(("attempts", "status", "reason"))

    auto_resume: bool = option("auto_resume")
    lease: float | None = option("lease")
    max_attempts: int | None = option("max_attempts")
    backoff: Backoff | None = option("backoff")
    keep_acked: int | None = option("keep_acked")
    strict: bool = option("strict")
    _core: AckQueueCore

    def _make_core(self, store: RecordStore) -> AckQueueCore:
        self._deliveries = Deliveries(store, self._joins)
        return AckQueueCore(store, self._options.maxsize, self._payload_only, self._deliveries)

    # Putting.

    def put(
        self,
        item: T,
        block: bool = True,
        timeout: float | None = None,
        *,
        delay: float | datetime = 0,
        connection: Any = None,
    ) -> int | None:
        """Store ``item``. It is durable on return, as ``durability`` of the queue says.

        The other parameters, the result and the errors are those of :meth:`SQLiteQueue.put`.

        Cost: that of :meth:`SQLiteQueue.put`.

        :param delay: seconds until the item is ready, or a ``datetime`` with a time zone from which on it is.
            A delayed item needs no room, and keeps its place among the others.
        :raise ValueError: ``delay`` is negative, NaN, above 10**10 seconds, or a ``datetime`` without a time
            zone.
        """
        if delay == 0:  # Nearly always.
            return super().put(item, block, timeout, connection=connection)
        entry = self._entry(item, checked_delay(delay))
        blocking, block = self._at(connection, block)
        return blocking.put_many([entry], block, timeout)[0]  # type: ignore[no-any-return]

    def put_many(
        self,
        items: Iterable[T],
        block: bool = True,
        timeout: float | None = None,
        *,
        delay: float | datetime = 0,
        connection: Any = None,
    ) -> list[int | None]:
        """Store all of ``items``, in order, or none, in one transaction.

        Cost: that of one :meth:`put`, however many items there are.

        :param delay: that of each of them, as :meth:`put` takes it.
        :return: for each item what :meth:`put` would return.
        :raise ValueError: there are more items than ``maxsize``.

        It raises the other errors that :meth:`put` raises as well.
        """
        seconds = checked_delay(delay)
        entries = [self._entry(item, seconds) for item in items]
        blocking, block = self._at(connection, block)
        return list(blocking.put_many(entries, block, timeout))

    # Getting.

    @overload
    def get(
        self,
        block: bool = True,
        timeout: float | None = None,
        id: int | dict[str, Any] | None = None,
        next_in_order: bool = False,
        raw: Literal[False] = False,
        *,
        connection: Any = None,
    ) -> T: ...
    @overload
    def get(
        self,
        block: bool = True,
        timeout: float | None = None,
        id: int | dict[str, Any] | None = None,
        next_in_order: bool = False,
        raw: bool = False,
        *,
        connection: Any = None,
    ) -> Any: ...
    def get(
        self,
        block: bool = True,
        timeout: float | None = None,
        id: int | dict[str, Any] | None = None,
        next_in_order: bool = False,
        raw: bool = False,
        *,
        connection: Any = None,
    ) -> Any:
        """Return the next item, and claim it. It stays stored until it is settled.

        Cost: 1 transaction and no sync, because a claim that is lost leaves a ready item.

        :param block: wait for an item while none is ready.
        :param timeout: seconds to wait at most; ``None`` waits for ever.
        :param id: get the item with this id, and wait for that one; also what ``get(raw=True)`` returned, for
            its id.
        :param next_in_order: get the item after the one with that ``id``, which need not exist any more.
            After the last item comes the first one.
        :param raw: return ``{"pqid": its id, "data": the item, "timestamp": when it was put, "attempts": how
            often it was got, "status": AckStatus.unack, "reason": why it was not acked before}``; the time is
            in seconds since the epoch.
        :param connection: as for :meth:`put`. The claim is made if the caller commits; until then others skip
            the item. To settle it in the same transaction, pass the connection to :meth:`ack`, too. No
            :meth:`task_done` counts it.
        :raise ValueError: the timeout is negative, ``id`` cannot be an id, or ``next_in_order`` was given
            without an ``id``; or ``connection`` is given, and the queue joins no transactions, or none is
            open on it.

        It raises the other errors that :meth:`SQLiteQueue.get` raises as well.
        """
        if not isinstance(next_in_order, bool):
            raise ValueError("'next_in_order' must be True or False")
        select = None
        if id is not None:
            select = Select(self._checked_id(id), next_in_order)
        elif next_in_order:
            raise ValueError("'next_in_order' needs the 'id' that comes before")
        blocking, block = self._at(connection, block)
        try:
            return blocking.get(self._deliver_raw if raw else self._deliver, block, timeout, select)
        except Empty:
            raise self._nothing_waits() from None

    @overload
    def get_nowait(
        self,
        id: int | dict[str, Any] | None = None,
        raw: Literal[False] = False,
        next_in_order: bool = False,
        *,
        connection: Any = None,
    ) -> T: ...
    @overload
    def get_nowait(
        self,
        id: int | dict[str, Any] | None = None,
        raw: bool = False,
        next_in_order: bool = False,
        *,
        connection: Any = None,
    ) -> Any: ...
    def get_nowait(
        self,
        id: int | dict[str, Any] | None = None,
        raw: bool = False,
        next_in_order: bool = False,
        *,
        connection: Any = None,
    ) -> Any:
        """Call ``get(block=False)``. Cost: that of :meth:`get`."""
        return self.get(False, None, id, next_in_order, raw, connection=connection)

    @property
    def _decode_claimed(self) -> Decode[Any]:
        return self._deliver

    def get_many(
        self,
        n: int,
        block: bool = True,
        timeout: float | None = None,
        *,
        linger: float = 0.0,
        connection: Any = None,
    ) -> list[T]:
        """Return 1 to ``n`` items, in order. Only the first one is waited for, unless ``linger`` says more.

        Cost: that of one :meth:`get`, however many items there are.

        :param linger: seconds to wait, when the first item is ready, until ``n`` of them are. All are claimed
            at the end of this wait, so no lease runs before; meanwhile another consumer may get them.
        :param connection: as for :meth:`get`.
        :raise ValueError: ``n`` is below 1, or a time is negative.

        It raises the other errors that :meth:`get` raises as well.
        """
        n, linger = checked_number_of("n", n), checked_seconds("linger", linger)
        blocking, block = self._at(connection, block)
        try:
            return blocking.get_many(n, self._deliver, block, timeout, linger if block else 0.0)
        except Empty:
            raise self._nothing_waits() from None

    def _claim(
        self, claim: Callable[[list[Claim]], tuple[Sequence[Any], R]], claims: list[Claim]
    ) -> tuple[Sequence[Any], R]:
        try:
            return claim(claims)
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
            f"nothing is ready in {self._description}, and {held} claimed (unack_count()) by this object, or"
            " by another one that is open, here or in another process; nack() or close() there makes them"
            " ready"
        )

    def _deliver(self, record: Record) -> tuple[Delivery, Delivery]:
        delivery = Delivery(record, self._decode(record)[1], None)
        self._deliveries.invalidate_previous(record.id)
        return delivery, delivery

    def _deliver_raw(self, record: Record) -> tuple[Delivery, Delivery]:
        delivery, _ = self._deliver(record)
        delivery.raw = self._raw(record, delivery.item)
        return delivery, delivery

    def _raw(self, record: Record, item: Any) -> dict[str, Any]:
        return {
            **super()._raw(record, item),
            "attempts": record.attempts,
            "status": AckStatus.unack,
            "reason": record.reason,
        }

    # Settling.

    def ack(
        self,
        item: T | dict[str, Any] = _UNSET,
        id: int | dict[str, Any] | None = None,
        *,
        connection: Any = None,
    ) -> int | None:
        """Ack an item: its work is done, and it is never delivered again.

        Cost: 1 transaction. At ``"power"`` also 1 sync, which threads that write at the same time share; at
        ``"process"`` none.

        :param item: the object that ``get`` returned; or what ``get(raw=True)`` returned, or a copy of that.
        :param id: the item's id, in place of the item.
        :param connection: a connection of a database server with a transaction of the caller, of which this
            becomes a part: if the caller rolls it back, the item is claimed as before, and can be settled
            again. Until the transaction ends, a call that settles the item without the connection waits for
            it. In SQLite :meth:`SQLiteQueue.transaction` does that.
        :return: its id; ``None`` if this object has not delivered the item, or the item was settled before.
        :raise NotClaimedError: with ``strict``, in place of returning ``None``.
        :raise StaleClaimError: the claim was lost because its lease ran out; another consumer may have the
            item.
        :raise ValueError: both the item and its id were given, or neither. An item that is ``None`` counts as
            not given if there is an id; or ``connection`` is given, and the queue joins no transactions, or
            none is open on it.
        :raise TypeError: ``id`` is not a whole number.
        """
        return self._settle(((item, id),), lambda store, ids: store.ack(ids), 0, connection)[0]

    def ack_many(
        self,
        items: Iterable[T | dict[str, Any]] = _UNSET,
        *,
        ids: Iterable[int | dict[str, Any]] | None = None,
        connection: Any = None,
    ) -> list[int | None]:
        """Ack several items in one transaction: all of them, or none.

        Cost: that of one :meth:`ack`, however many items there are.

        :param items: the items, each as :meth:`ack` takes it.
        :param ids: their ids, in place of the items.
        :param connection: as for :meth:`ack`.
        :return: for each of them what :meth:`ack` would return; so an item that is unknown, or that is named
            a second time, is a ``None`` and keeps none of the others from being acked.
        :raise NotClaimedError: with ``strict``, if one of them is unknown; then none is acked.
        :raise StaleClaimError: claims were lost, and ``ids`` of the error names them; then none is acked.
        :raise ValueError: both the items and their ids were given, or neither.
        :raise TypeError: an id is not a whole number.
        """
        if ids is None and items is _UNSET:
            raise ValueError("give the items, or their ids")
        if ids is not None and items is not _UNSET:
            raise ValueError("give the items or their ids, not both")
        by_id = [(_UNSET, self._checked_id(id)) for id in ids or ()]
        wanted = by_id if ids is not None else [(item, None) for item in items]
        return self._settle(wanted, lambda store, ids: store.ack(ids), 0, connection)

    def ack_failed(
        self,
        item: T | dict[str, Any] = _UNSET,
        id: int | dict[str, Any] | None = None,
        *,
        reason: str | None = None,
        connection: Any = None,
    ) -> int | None:
        """Set an item aside.

        It is not delivered again, and stays stored until :meth:`clear_acked_data` removes it or
        :meth:`requeue` makes it ready again. The other parameters, the result and the errors are those of
        :meth:`ack`.

        Cost: that of :meth:`ack`.

        :param reason: why, for :meth:`queue` and the raw form; of a longer text the first 10,000 characters.
        """
        reason = checked_text("reason", reason)
        return self._settle(((item, id),), lambda store, ids: store.fail(ids, reason), 0, connection)[0]

    def nack(
        self,
        item: T | dict[str, Any] = _UNSET,
        id: int | dict[str, Any] | None = None,
        *,
        delay: float | datetime | None = None,
        to_back: bool = False,
        reason: str | None = None,
        connection: Any = None,
    ) -> int | None:
        """End the claim on an item, so that the item is delivered again.

        An item that was got ``max_attempts`` times is set aside instead. The other parameters, the result and
        the errors are those of :meth:`ack`.

        Cost: that of :meth:`ack`.

        :param delay: seconds until it is ready again, or a ``datetime`` with a time zone from which on it is;
            ``None``: as the queue's ``backoff`` says.
        :param to_back: treat it as if it had been put just now, so that it gets a new id. It is delivered
            after all others where the oldest item comes first, and before all others where the newest does.
            Otherwise it keeps its place.
        :param reason: why, as :meth:`ack_failed` takes it; ``None``: ``"nacked"``.
        :return: its id, or the new one if it got one.
        """
        seconds = None if delay is None else checked_delay(delay)
        reason = checked_text("reason", reason) or NACKED

        def nack(store: RecordStore, ids: list[int]) -> list[int]:
            return [store.nack(id, seconds, to_back, reason) for id in ids]

        return self._settle(((item, id),), nack, 1, connection)[0]

    def _settle(
        self, wanted: Sequence[tuple[Any, Any]], verb: _Verb, ready: int, connection: Any
    ) -> list[int | None]:
        """Settle items, all or none, and return for each what the verb returns, or ``None``.

        :param wanted: each item, or its id.
        :param ready: how many of them become ready by that.
        """
        if OPEN:
            self._store.await_transaction()
        store = self._store if connection is None else self._store.joined(connection)
        settle = partial(
            self._deliveries.settle, verb=lambda ids: verb(store, ids) or ids, within=connection is not None
        )
        before: list[Delivery] = []
        try:
            while (results := self._try_to_settle(wanted, settle, ready, before)) is None:
                pass
        finally:
            self._deliveries.put_all_back(before)
        return results

    def _try_to_settle(
        self,
        wanted: Sequence[tuple[Any, Any]],
        settle: Callable[[list[Delivery]], list[int]],
        ready: int,
        before: list[Delivery],
    ) -> list[int | None] | None:
        """Do what :meth:`_settle` does; return ``None`` if one of them was settled before.

        That one is not found again.

        :param before: gets those that a transaction of the caller has settled, which may be rolled back.
        """
        found: list[Delivery] = []
        try:
            held = [self._find(item, id, found) for item, id in wanted]
            if self.strict and not all(held):
                raise self._not_held(wanted[held.index(False)][1])
        except BaseException:
            self._deliveries.put_all_back(found)
            raise
        if not found:
            return [None] * len(held)
        try:
            settled = iter(settle(found))
            results = [next(settled) if each else None for each in held]
            for delivery in found:
                self._blocking.settled_elsewhere(delivery, ready)
            return results
        except ClaimError as error:
            lost = lost_of(found, error)
            before.extend(delivery for delivery in lost if delivery.settled_within)
            for delivery in lost:
                self._core.forget_claim(delivery, self._blocking.consumer.own)
            if isinstance(error, StaleClaimError):
                raise
            return None
        except BaseException:  # Perhaps out of a signal handler.
            self._deliveries.put_all_back(found)
            raise

    def _not_held(self, id: Any) -> NotClaimedError:
        which = "that item" if id is None else f"item {self._checked_id(id)}"
        remedy = (
            "it is found by identity: give the object that get() returned, its raw form, or its id"
            if id is None
            else "skip() removes an item that is ready"
        )
        return NotClaimedError(
            f"{which} is not claimed by {self._description}: it was settled already, its claim was lost, or"
            f" another object claimed it; {remedy}",
            () if id is None else (self._checked_id(id),),
        )

    def _find(self, item: Any, id: Any, found: list[Delivery]) -> bool:
        """Find the delivery of an item, append it to ``found``, and tell whether there is one."""
        if self._closed:
            raise ClosedError(f"{self._description} is closed")
        before = len(found)
        if id is not None:
            if item is not _UNSET and item is not None:
                raise ValueError("give the item or its id, not both")
            self._deliveries.pop_id(self._checked_id(id), found)
        elif item is _UNSET:
            raise ValueError("give the item, or its id")
        else:
            self._deliveries.pop_item(item, self._blocking.consumer.own, found)
            if len(found) == before and self._is_raw(item) and isinstance(item["pqid"], int):
                self._deliveries.pop_id(item["pqid"], found, item["timestamp"])
        return len(found) > before

    def requeue(self, id: int | dict[str, Any] | Literal["all"]) -> int:
        """Make items ready again that were set aside: under their ids, in their places, with no attempts.

        An item keeps the reason for which it was set aside. It needs no room. A unique queue leaves an item
        aside while an equal one is ready, delayed or claimed; of equal ones it makes the oldest ready.

        Cost: 1 transaction, which takes longer with more items, and which other writers wait for. At
        ``"power"`` also 1 sync.

        :param id: the id of an item, as ``put`` returned it, or its raw form; or ``"all"``.
        :return: how many items became ready.
        :raise DuplicateError: a unique queue has an equal item, and only this one was to be requeued.
        :raise TypeError: ``id`` is neither a whole number nor ``"all"``.
        :raise ValueError: ``id`` cannot be an id.
        """
        count = self._store.requeue(None if id == "all" else self._checked_id(id))
        self._core.notify_getters(count)
        return count

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
        """Return how many items are claimed and not settled, by any process. Cost: no write and no sync."""
        return self._store.claimed()

    def acked_count(self) -> int:
        """Return how many acked items are kept. Cost: no write and no sync."""
        return self._store.stats().done

    def ready_count(self) -> int:
        """Return how many items are ready, after :meth:`shutdown` too. Cost: no write and no sync."""
        return self._store.count()

    def ack_failed_count(self) -> int:
        """Return how many items are set aside, failed or dead. Cost: no write and no sync."""
        stats = self._store.stats()
        return stats.failed + stats.dead

    def active_size(self) -> int:
        """Return how many items are not finished: ready, delayed or claimed. Cost: no write and no sync."""
        return self._store.unfinished()

    def _as_dict(self, state: State, record: Record) -> dict[str, Any]:
        return {
            **super()._as_dict(state, record),
            "status": status_of(state, record),
            "attempts": record.attempts,
            "reason": record.reason,
        }

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

        Cost: that of :meth:`SQLiteQueue.close`.
        """
        super().close()
        self._deliveries.clear()

    def _after_fork(self) -> None:
        super()._after_fork()
        self._deliveries.clear()
