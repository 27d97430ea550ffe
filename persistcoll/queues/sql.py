"""What every queue in a database has in common, whatever it does with items."""

from __future__ import annotations

import os
from collections.abc import Iterable
from hashlib import blake2b
from typing import Any, Literal, TypeGuard, overload

from persistcoll.engine.arguments import (
    checked_choice,
    checked_count,
    checked_integer,
    checked_mode,
    checked_seconds,
)
from persistcoll.engine.contracts import QueueStore, RecordStore, Select
from persistcoll.engine.queue_core import QueueCore
from persistcoll.engine.records import (
    FIFO,
    Backoff,
    ClaimPolicy,
    Discipline,
    Durability,
    Entry,
    Record,
    State,
)
from persistcoll.errors import DecodeError
from persistcoll.parameters import T
from persistcoll.queues.base import BaseQueue
from persistcoll.reopening import Reopening
from persistcoll.serializers import canonical, codec, locate, resolve
from persistcoll.serializers.base import Seal, decode_error
from persistcoll.sqlite.open import DatabaseLocation, open_table

__all__ = ["BaseSQLQueue", "RecordQueueCore", "checked_backoff"]

_HIGHEST_ID = (1 << 63) - 1
_SET_ASIDE = (
    "clear_acked_data(None, 0, clear_ack_failed=True) removes it, with all that are kept or set aside"
)
_REMOVED_BY = {
    State.DELAYED: "skip() removes it when its delay is over",
    State.CLAIMED: "skip() removes it when its holder has given it back",
    State.DONE: "clear_acked_data(None, 0) removes it, with all that are kept",
    State.FAILED: _SET_ASIDE,
    State.DEAD: _SET_ASIDE,
}
"""What removes an item that cannot be deserialized, and does not wait."""


def checked_backoff(value: Any) -> Backoff | None:
    """A number of seconds as a back-off that never grows. Raises as :func:`checked_seconds`."""
    if value is None or isinstance(value, Backoff):
        return value
    seconds = checked_seconds("backoff", value)
    return Backoff(base=seconds, factor=1, limit=seconds, jitter=0)


class RecordQueueCore(QueueCore):
    """The core of a queue over records.

    :param bare: what is put is payloads; otherwise entries, with a key or a priority.
    """

    store: RecordStore

    def __init__(self, store: RecordStore, maxsize: int, autosave: bool, bare: bool) -> None:
        self._bare = bare
        super().__init__(store, maxsize, autosave)

    def _bind(self, store: QueueStore) -> None:
        super()._bind(store)
        if not self._bare:
            self._append = self._append_entry
            self._append_many = self.store.put

    def _append_entry(self, entry: Entry, capacity: int, **options: Any) -> int | None:
        return self.store.put((entry,), capacity, **options)[0]


class BaseSQLQueue(BaseQueue[T]):
    """A queue in a table of an SQLite database.

    The classes pick a discipline, and say how items are acknowledged. Every method may be called from any
    thread, and from several processes at the same time.
    """

    _discipline: Discipline = FIFO
    _kind: str = FIFO.name
    _raw_keys = frozenset(("pqid", "data", "timestamp"))
    _changing = (*BaseQueue._changing, "update", "shrink_disk_usage")

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        name: str,
        timeout: float,
        auto_commit: bool,
        serializer: Any,
        db_file_name: str | None,
        maxsize: int,
        durability: Durability,
        trust_directory: bool,
        allow_network_fs: bool,
        mode: int | None,
        read_only: bool,
        retry: ClaimPolicy,
        maker: type[BaseSQLQueue[Any]],
        own: dict[str, Any],
    ) -> None:
        """:param maker: the class whose constructor calls this one, and can be called to make it again.
        :param own: arguments that only that class knows.
        """
        given = frozenset(vars(self))
        checked_choice("durability", durability, "power", "process")
        maxsize = checked_count("maxsize", maxsize)
        timeout = checked_seconds("timeout", timeout)
        mode = checked_mode(mode)
        place = DatabaseLocation(
            path, db_file_name, timeout, trust_directory, allow_network_fs, mode, bool(read_only)
        )
        serializer = resolve(serializer)
        located = locate(serializer)

        def seal_for(store_id: bytes) -> Seal | None:
            return codec(serializer, store_id).seal

        def unseal_for(store_id: bytes) -> Seal | None:
            return codec(serializer, store_id).unseal

        # What is put is its payload, without a key or a priority.
        self._bare = not (self._discipline.unique or self._discipline.by_priority)
        self._in_memory = place.file == ":memory:"
        self.path = os.fsdecode(path) if self._in_memory else os.path.abspath(os.fsdecode(path))
        self.name = name
        self.timeout = timeout
        self.db_file_name = os.path.basename(place.file)
        self.multithreading = True
        arguments = {
            "path": self.path,
            "name": name,
            "timeout": timeout,
            "auto_commit": auto_commit,
            "serializer": located,
            "db_file_name": db_file_name,
            "durability": durability,
            "trust_directory": trust_directory,
            "allow_network_fs": allow_network_fs,
            "mode": mode,
            "read_only": place.read_only,
            **own,
        }
        table = open_table(
            place,
            name=name,
            kind=self._kind,
            discipline=self._discipline,
            retry=retry,
            serializer=serializer.name,
            executes_code=serializer.executes_code,
            durability=durability,
            seal_for=seal_for,
            unseal_for=unseal_for,
        )
        try:
            self._table: RecordStore = table
            super().__init__(
                self._make_core(table, maxsize, auto_commit),
                codec(serializer, table.store_id),
                description=f"{type(self).__name__} {name!r} in {place.file!r}",
                read_only=place.read_only,
                reopening=Reopening(maker, arguments, given),
            )
        except BaseException:  # nobody will close it
            table.close()
            raise

    def _make_core(self, table: RecordStore, maxsize: int, auto_commit: bool) -> QueueCore:
        return RecordQueueCore(table, maxsize, auto_commit, self._bare)

    @property
    def auto_commit(self) -> bool:
        """Whether ``get`` acknowledges."""
        return self._core.autosave

    # Putting.

    def _entry(self, item: object) -> bytes | Entry:
        payload = self._encode(item)
        if self._discipline.unique:
            return Entry(payload, key=_key(item))
        return Entry(payload) if self._discipline.by_priority else payload

    def put(self, item: T, block: bool = True, timeout: float | None = None) -> int | None:  # type: ignore[override]
        """Store ``item``. When this returns, it is durable, as ``durability`` of the queue says.

        Cost: 1 transaction. At ``"power"`` also 1 sync of the device, which takes most of the time, and which
        threads that write at the same time share; at ``"process"`` none.

        :param block: wait for room while the queue is full.
        :param timeout: seconds to wait at most; ``None`` waits for ever.
        :return: its id. Ids grow, and none is used twice. ``None`` if it was not stored, because an equal
            item is queued already: by the unique queues only.
        :raise Full: there was no room.
        :raise ShutDown: after :meth:`shutdown`.
        :raise EncodeError: the serializer cannot store this item.
        :raise TypeError: a unique queue cannot compare such an item.
        :raise StorageFullError: the disk has no room; nothing is stored.
        :raise LockedError: another program keeps the database locked, or a transaction in it is open for
            longer than ``timeout``, or the queue's own where that is ``None``.
        :raise StorageError: the storage failed; the message says if the outcome is unknown.
        :raise ValueError: the timeout is negative.
        """
        entry = self._encode(item) if self._bare else self._entry(item)
        return self._blocking.put(entry, block, timeout)  # type: ignore[no-any-return]

    def put_nowait(self, item: T) -> int | None:  # type: ignore[override]
        """``put(item, block=False)``."""
        return self.put(item, False)

    def put_many(  # type: ignore[override]
        self, items: Iterable[T], block: bool = True, timeout: float | None = None
    ) -> list[int | None]:
        """Store all of ``items``, in order, or none, in one transaction; return what ``put`` would for each.

        Cost: that of one :meth:`put`, however many they are.

        Raises as :meth:`put`; ``ValueError`` too if they are more than ``maxsize``.
        """
        return list(self._blocking.put_many([self._entry(item) for item in items], block, timeout))

    def update(self, item: T | dict[str, Any], id: int | dict[str, Any] | None = None) -> int | None:
        """Store another item in the place of one that waits or is in work.

        It keeps its place, its id, its time and its priority. Whoever has got it already has the old one.

        :param item: the new item; or, without ``id``, what ``get(raw=True)`` gave, with another ``"data"``.
        :param id: of the item to replace, as ``put`` returned it.
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
        return id if self._table.update(id, payload, key) else None

    # Getting.

    @overload
    def get(
        self,
        block: bool = True,
        timeout: float | None = None,
        id: int | dict[str, Any] | None = None,
        raw: Literal[False] = False,
    ) -> T: ...
    @overload
    def get(
        self,
        block: bool = True,
        timeout: float | None = None,
        id: int | dict[str, Any] | None = None,
        raw: bool = False,
    ) -> Any: ...
    def get(
        self,
        block: bool = True,
        timeout: float | None = None,
        id: int | dict[str, Any] | None = None,
        raw: bool = False,
    ) -> Any:
        """Take the next item.

        It stays stored until it is acknowledged: here and now with ``auto_commit``, else by
        :meth:`task_done`.

        Cost: 1 transaction. With ``auto_commit`` at ``"power"`` also 1 sync, which threads that write at the
        same time share; otherwise none.

        :param block: wait for an item while there is none.
        :param timeout: seconds to wait at most; ``None`` waits for ever.
        :param id: take the item with this id, and wait for that one; or what ``get(raw=True)`` gave, for
            its id.
        :param raw: return ``{"pqid": its id, "data": the item, "timestamp": when it was put}``, in seconds
            since the epoch.
        :raise Empty: there was none.
        :raise ShutDown: after :meth:`shutdown`, when there is no item left.
        :raise DecodeError: the item cannot be deserialized; it stays, ``skip(error.id)`` removes it.
        :raise CorruptionError: it is damaged; likewise.
        :raise LockedError: another program keeps the database locked, or a transaction in it is open for
            longer than ``timeout``, or the queue's own where that is ``None``.
        :raise TypeError: ``id`` is no id.
        :raise ValueError: the timeout is negative, or ``id`` cannot be one.
        """
        decode = self._decode_raw if raw else self._decode
        select = None if id is None else Select(self._checked_id(id))
        return self._blocking.get(decode, block, timeout, select)

    @overload
    def get_nowait(self, id: int | dict[str, Any] | None = None, raw: Literal[False] = False) -> T: ...
    @overload
    def get_nowait(self, id: int | dict[str, Any] | None = None, raw: bool = False) -> Any: ...
    def get_nowait(self, id: int | dict[str, Any] | None = None, raw: bool = False) -> Any:
        """``get(block=False)``."""
        return self.get(False, None, id, raw)

    def _decode_raw(self, record: Record) -> tuple[int, dict[str, Any]]:
        id, item = self._decode(record)
        return id, self._raw(record, item)

    def _raw(self, record: Record, item: Any) -> dict[str, Any]:
        return {"pqid": record.id, "data": item, "timestamp": record.time}

    def _is_raw(self, thing: Any) -> TypeGuard[dict[str, Any]]:
        """Whether it looks like what ``get(raw=True)`` gives; an item of the user's own may, too."""
        return isinstance(thing, dict) and thing.keys() == self._raw_keys

    def _checked_id(self, id: Any) -> int:
        if self._is_raw(id):
            id = id["pqid"]
        id = checked_integer("id", id, "a whole number, as put() returns it")
        if not 0 < id <= _HIGHEST_ID:
            raise ValueError(f"{id} cannot be the id of an item: they are above 0 and have 64 bits")
        return id  # type: ignore[no-any-return]

    # Removing and looking.

    def skip(self, id: int | dict[str, Any] | None = None) -> int | None:
        """Remove an item unseen: the one with this id (of an error), else the next one.

        :return: its id; ``None`` if no such item waits: it is gone, in somebody's hands, or delayed.
        :raise TypeError: ``id`` is no id.
        :raise ValueError: ``id`` cannot be one.
        """
        return super().skip(None if id is None else self._checked_id(id))

    def queue(self) -> list[dict[str, Any]]:
        """Everything that the database holds of this queue, oldest first, without taking it.

        :return: for each item ``{"id", "data", "timestamp"}``.
        :raise DecodeError: an item cannot be deserialized; the message says what removes it.
        """
        return [self._row(state, record) for state, record in self._table.scan()]

    def _row(self, state: State, record: Record) -> dict[str, Any]:
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
        """The same as :meth:`qsize`."""
        return self._core.qsize()

    def shrink_disk_usage(self) -> None:
        """Give the room of removed items back to the file system.

        The database is rewritten, which takes time in proportion to what it holds; others wait meanwhile.
        """
        self._table.shrink()

    def _holds(self, item: Any) -> bool:
        return self._table.has_active_key(_key(item))


def _key(item: Any) -> bytes:
    """What equal items have in common."""
    return blake2b(canonical(item), digest_size=32).digest()
