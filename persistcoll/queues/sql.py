"""Queues over records: what all of them share, and ``put`` and ``get`` of those without acks by item."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Any, Literal, TypeGuard, overload

from persistcoll.arguments import checked_integer, checked_priority
from persistcoll.container import T, option
from persistcoll.engine.blocking import BlockingQueue
from persistcoll.engine.contracts import QueueStore, RecordStore, Select
from persistcoll.engine.queue_core import QueueCore
from persistcoll.engine.records import FIFO, PRIORITY, UNIQUE, Discipline, Entry, Record, State
from persistcoll.errors import DecodeError
from persistcoll.queues.base import BaseQueue
from persistcoll.serializers import canonical
from persistcoll.serializers.base import decode_error

__all__ = [
    "PlainGets",
    "PlainPuts",
    "PriorityPuts",
    "RecordQueueCore",
    "SQLQueue",
    "UniquePuts",
    "warn_of_auto_commit",
]


_HIGHEST_ID = (1 << 63) - 1
_SET_ASIDE = (
    "clear_acked_data(None, 0, clear_ack_failed=True) removes it, with all that are kept or set aside"
)
_REMOVED_BY = {
    State.DELAYED: "skip() removes it when its delay is over",
    State.CLAIMED: "skip() removes it when its claim has ended and it is ready",
    State.DONE: "clear_acked_data(None, 0) removes it, with all that are kept",
    State.FAILED: _SET_ASIDE,
    State.DEAD: _SET_ASIDE,
}
"""What removes an item that cannot be deserialized and is not ready, by its state."""


class RecordQueueCore(QueueCore):
    """The core of a queue over records.

    :param payload_only: a put alone takes a payload; otherwise an entry, which has a key or a priority.
    """

    store: RecordStore

    def __init__(self, store: RecordStore, maxsize: int, autosave: bool, payload_only: bool) -> None:
        self._payload_only = payload_only
        super().__init__(store, maxsize, autosave)

    def _bind(self, store: QueueStore) -> None:
        super()._bind(store)
        if not self._payload_only:
            self._append = self._append_entry
        self._append_many = self.store.put

    def _count_of(self, entries: Sequence[Entry]) -> int:
        return sum(not entry.delay > 0 for entry in entries)

    def _append_entry(self, entry: Entry, capacity: int, **options: Any) -> int | None:
        return self.store.put((entry,), capacity, **options)[0]


class SQLQueue(BaseQueue[T]):
    """A queue over records, whatever puts, gets and acks them.

    A subclass chooses the discipline and opens the store. Any thread may call any method, and several
    processes may do so at the same time.
    """

    _discipline: Discipline = FIFO
    _kind: str = FIFO.name
    _raw_keys = frozenset(("pqid", "data", "timestamp"))
    _more_raw_keys: frozenset[str] = frozenset()
    _changing = (*BaseQueue._changing, "update", "shrink_disk_usage", "transaction")

    auto_commit: bool = option("auto_commit")
    _joins = False
    """Whether every call is a part of a transaction of the caller."""

    def _attach(self, store: Any) -> None:
        self._store: RecordStore = store
        # A payload is put without an entry if it has neither a key nor a priority.
        self._payload_only = not (self._discipline.unique or self._discipline.by_priority)
        super()._attach(store)

    def _make_core(self, store: RecordStore) -> QueueCore:
        return RecordQueueCore(store, self._options.maxsize, self.auto_commit, self._payload_only)

    def _at(self, connection: Any, block: bool) -> tuple[BlockingQueue, bool]:
        """Return what a call uses, and whether it may wait: not within a transaction of the caller."""
        if connection is None:
            return self._blocking, block and not self._joins
        return BlockingQueue(self._core.joined(connection)), False

    def update(self, item: T | dict[str, Any], id: int | dict[str, Any] | None = None) -> int | None:
        """Store another item in place of one that is ready, delayed or claimed.

        The record keeps its place, its id, its time and its priority. A consumer that has got the old item
        keeps the old one.

        Cost: 1 transaction. At ``"power"`` also 1 sync.

        :param item: the new item; or, without ``id``, what ``get(raw=True)`` returned, with another
            ``"data"``.
        :param id: the id of the item to replace, as ``put`` returned it.
        :return: its id; ``None`` if there is no such item any more.
        :raise ValueError: neither an id nor a raw item was given.
        :raise DuplicateError: a unique queue has an equal item.
        :raise EncodeError: the serializer cannot store the new item; the old one stays.
        """
        if self._is_raw(item) and (id is None or id == item["pqid"]):
            id, item = item["pqid"], item["data"]
        if id is None:
            raise ValueError("update() needs the item's id, or the item as get(raw=True) gave it")
        id = self._checked_id(id)
        payload = self._encode(item)
        key = _key(item) if self._discipline.unique else None
        return id if self._store.update(id, payload, key) else None

    def _decode_raw(self, record: Record) -> tuple[int, dict[str, Any]]:
        id, item = self._decode(record)
        return id, self._raw(record, item)

    def _raw(self, record: Record, item: Any) -> dict[str, Any]:
        return {"pqid": record.id, "data": item, "timestamp": record.time}

    def _is_raw(self, thing: Any) -> TypeGuard[dict[str, Any]]:
        """Tell whether it looks like what ``get(raw=True)`` returns. An item of the user's own may, too."""
        if not isinstance(thing, dict):
            return False
        keys = thing.keys()
        return keys == self._raw_keys or (
            self._raw_keys <= keys and keys - self._raw_keys <= self._more_raw_keys
        )

    def _checked_id(self, id: Any, least: int = 1) -> int:
        if self._is_raw(id):
            id = id["pqid"]
        id = checked_integer("id", id, "a whole number, as put() returns it")
        if not least <= id <= _HIGHEST_ID:
            raise ValueError(f"{id} cannot be the id of an item: they are above 0 and have 64 bits")
        return id  # type: ignore[no-any-return]

    # Removal and inspection.

    def skip(self, id: int | dict[str, Any] | None = None) -> int | None:
        """Remove a ready item without decoding it.

        Cost: 1 transaction. At ``"power"`` also 1 sync.

        :param id: the id of the item, which an error has as its attribute; ``None``: the next item.
        :return: its id; ``None`` if no such item is ready: it was removed, or it is claimed or delayed.
        :raise TypeError: ``id`` is not a whole number.
        :raise ValueError: ``id`` cannot be an id.
        """
        # Damage may have made any number of an id, and the error names that one.
        return super().skip(None if id is None else self._checked_id(id, -_HIGHEST_ID - 1))

    def queue(self) -> list[dict[str, Any]]:
        """Return everything that the database holds of this queue, oldest first. It claims nothing.

        Cost: no write and no sync.

        :return: for each item ``{"id", "data", "timestamp"}``; with its ``"priority"`` where there are any;
            of an ack queue also its ``"status"`` (:class:`AckStatus`), its ``"attempts"``, and as
            ``"reason"`` why its last claim that was not acked ended.
        :raise DecodeError: an item cannot be deserialized; the message says what removes it.
        """
        return [self._as_dict(state, record) for state, record in self._store.scan()]

    def _as_dict(self, state: State, record: Record) -> dict[str, Any]:
        try:
            item = self._decode(record)[1]
        except DecodeError as error:
            if state is State.READY:
                raise
            why = decode_error(self._codec, None, error.__cause__ or error)
            raise DecodeError(
                f"item {record.id}, which is {state.value}, is {why}; it stays stored, {_REMOVED_BY[state]}",
                record.id,
            ) from error
        return {"id": record.id, "data": item, "timestamp": record.time}

    @property
    def total(self) -> int:
        """The same number as :meth:`qsize` returns."""
        return self._core.qsize()

    def shrink_disk_usage(self) -> None:
        """Return the room of removed items to the file system.

        Cost: SQLite rewrites the database, which takes time in proportion to what it holds. Other writers
        wait meanwhile.
        """
        self._store.shrink()

    def _holds(self, item: Any) -> bool:
        return self._store.has_active_key(_key(item))


class PlainPuts(SQLQueue[T]):
    """A queue whose ``put`` takes an item alone: the discipline decides the order of delivery."""

    def _entry(self, item: object, delay: float = 0.0) -> Entry:
        payload = self._encode(item)
        return Entry(payload, key=_key(item) if self._discipline.unique else None, delay=delay)

    def put(
        self, item: T, block: bool = True, timeout: float | None = None, *, connection: Any = None
    ) -> int | None:
        """Store ``item``. It is durable on return, as ``durability`` of the queue says.

        Cost: 1 transaction. At ``"power"`` also 1 sync of the device, which takes most of the time, and which
        threads that write at the same time share; at ``"process"`` none.

        :param block: wait for room while the queue is full.
        :param timeout: seconds to wait at most; ``None`` waits for ever.
        :param connection: a connection of a database server with a transaction of the caller, of which this
            becomes a part; then nothing is waited for. In SQLite :meth:`SQLiteQueue.transaction` does that.
        :return: its id. Ids grow, and none is used twice. A unique queue returns ``None`` and stores nothing
            if an equal item is queued already.
        :raise Full: there was no room.
        :raise ShutDown: :meth:`shutdown` was called.
        :raise EncodeError: the serializer cannot store this item.
        :raise TypeError: a unique queue cannot compare an item of this type.
        :raise StorageFullError: the disk has no room; nothing is stored.
        :raise LockedError: another program keeps the database locked, or a transaction in it is open, for
            longer than ``timeout``; where that is ``None``, for longer than the queue's own ``timeout``.
        :raise StorageError: the storage failed; the message says so if the outcome is unknown.
        :raise ValueError: the timeout is negative; or ``connection`` is given, and the queue joins no
            transactions, or none is open on it.
        """
        entry = self._encode(item) if self._payload_only else self._entry(item)
        blocking, block = self._at(connection, block)
        return blocking.put(entry, block, timeout)  # type: ignore[no-any-return]

    def put_nowait(self, item: T, *, connection: Any = None) -> int | None:
        """Call ``put(item, block=False)``. Cost: that of :meth:`put`."""
        return self.put(item, False, connection=connection)

    def put_many(
        self,
        items: Iterable[T],
        block: bool = True,
        timeout: float | None = None,
        *,
        connection: Any = None,
    ) -> list[int | None]:
        """Store all of ``items``, in order, or none, in one transaction.

        Cost: that of one :meth:`put`, however many items there are.

        :return: for each item what :meth:`put` would return.
        :raise ValueError: there are more items than ``maxsize``, or the timeout is negative.

        It raises the other errors that :meth:`put` raises as well.
        """
        blocking, block = self._at(connection, block)
        return list(blocking.put_many([self._entry(item) for item in items], block, timeout))


class UniquePuts(PlainPuts[T]):
    """A queue that holds no two equal items: ``put`` of a second one stores nothing."""

    _discipline = UNIQUE
    _kind = UNIQUE.name

    def __contains__(self, item: object) -> bool:
        """Tell whether an equal item is ready or delayed, or was got and not acked."""
        return self._holds(item)


class PriorityPuts(SQLQueue[T]):
    """A queue whose items have priorities. It delivers the item with the lowest one first."""

    _discipline = PRIORITY
    _kind = PRIORITY.name
    _raw_keys = frozenset(("pqid", "data", "timestamp", "priority"))

    def put(
        self,
        item: T,
        priority: float = 0,
        block: bool = True,
        timeout: float | None = None,
        *,
        connection: Any = None,
    ) -> int:
        """Store ``item`` and return its id. It is durable on return, as ``durability`` says.

        Cost: that of :meth:`SQLiteQueue.put`.

        :param priority: a whole number of 64 bits or a float; the lowest comes first.
        :param block: wait for room while the queue is full.
        :param timeout: seconds to wait at most; ``None`` waits for ever.
        :param connection: as for :meth:`SQLiteQueue.put`.
        :raise Full: there was no room.
        :raise TypeError: ``priority`` is not a number.
        :raise ValueError: ``priority`` is NaN or has more than 64 bits, or the timeout is negative.

        It raises the other errors that :meth:`SQLiteQueue.put` raises as well.
        """
        entry = Entry(self._encode(item), checked_priority(priority))
        blocking, block = self._at(connection, block)
        return blocking.put(entry, block, timeout)  # type: ignore[no-any-return]

    def put_nowait(self, item: T, priority: float = 0, *, connection: Any = None) -> int:
        """Call ``put(item, priority, block=False)``. Cost: that of :meth:`put`."""
        return self.put(item, priority, False, connection=connection)

    def put_many(
        self,
        items: Iterable[T],
        priority: float = 0,
        block: bool = True,
        timeout: float | None = None,
        *,
        connection: Any = None,
    ) -> list[int]:
        """Store all of ``items`` with one priority, in order, or none; return their ids.

        Cost: that of one :meth:`put`, however many items there are.

        :raise ValueError: there are more items than ``maxsize``.

        It raises the other errors that :meth:`put` raises as well.
        """
        priority = checked_priority(priority)
        entries = [Entry(self._encode(item), priority) for item in items]
        blocking, block = self._at(connection, block)
        return list(blocking.put_many(entries, block, timeout))

    def _raw(self, record: Record, item: Any) -> dict[str, Any]:
        return {**super()._raw(record, item), "priority": record.priority}

    def _as_dict(self, state: State, record: Record) -> dict[str, Any]:
        return {**super()._as_dict(state, record), "priority": record.priority}


class PlainGets(SQLQueue[T]):
    """A queue whose items are acked by ``get`` itself or by ``task_done``."""

    @overload
    def get(
        self,
        block: bool = True,
        timeout: float | None = None,
        id: int | dict[str, Any] | None = None,
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
        raw: bool = False,
        *,
        connection: Any = None,
    ) -> Any: ...
    def get(
        self,
        block: bool = True,
        timeout: float | None = None,
        id: int | dict[str, Any] | None = None,
        raw: bool = False,
        *,
        connection: Any = None,
    ) -> Any:
        """Return the next item, and claim it.

        The item stays stored until it is acked: here with ``auto_commit``, otherwise by :meth:`task_done`.

        Cost: 1 transaction. With ``auto_commit`` at ``"power"`` also 1 sync, which threads that write at the
        same time share; otherwise none.

        :param block: wait for an item while none is ready.
        :param timeout: seconds to wait at most; ``None`` waits for ever.
        :param id: get the item with this id, and wait for that one; also what ``get(raw=True)`` returned, for
            its id.
        :param raw: return ``{"pqid": its id, "data": the item, "timestamp": when it was put}``; the time is
            in seconds since the epoch.
        :param connection: as for :meth:`put`; ``get`` acks the item, which is gone if the caller commits.
        :raise Empty: no such item was ready.
        :raise ShutDown: :meth:`shutdown` was called, and no item is left.
        :raise DecodeError: the item cannot be deserialized. It stays stored; ``skip(error.id)`` removes it.
        :raise CorruptionError: the item is damaged. It stays stored; ``skip(error.id)`` removes it.
        :raise LockedError: another program keeps the database locked, or a transaction in it is open, for
            longer than ``timeout``; where that is ``None``, for longer than the queue's own ``timeout``.
        :raise TypeError: ``id`` is not a whole number.
        :raise ValueError: the timeout is negative, or ``id`` cannot be an id; or ``connection`` is given, and
            the queue joins no transactions, or none is open on it.
        """
        decode = self._decode_raw if raw else self._decode
        select = None if id is None else Select(self._checked_id(id))
        blocking, block = self._at(connection, block)
        return blocking.get(decode, block, timeout, select)

    @overload
    def get_nowait(
        self,
        id: int | dict[str, Any] | None = None,
        raw: Literal[False] = False,
        *,
        connection: Any = None,
    ) -> T: ...
    @overload
    def get_nowait(
        self, id: int | dict[str, Any] | None = None, raw: bool = False, *, connection: Any = None
    ) -> Any: ...
    def get_nowait(
        self, id: int | dict[str, Any] | None = None, raw: bool = False, *, connection: Any = None
    ) -> Any:
        """Call ``get(block=False)``. Cost: that of :meth:`get`."""
        return self.get(False, None, id, raw, connection=connection)


def warn_of_auto_commit(auto_commit: bool) -> None:
    """Warn the caller of a constructor that it gave ``auto_commit=False``, which changes nothing."""
    if not auto_commit:
        warnings.warn("an ack queue has no use for auto_commit=False", stacklevel=3)


def _key(item: Any) -> bytes:
    """Return a hash that equal items have in common."""
    return blake2b(canonical(item), digest_size=32).digest()
