"""The queues in SQLite databases whose items are gone when they were got, or by ``task_done``."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterable
from typing import Any

from persistcoll.engine.arguments import checked_number
from persistcoll.engine.records import LIFO, PRIORITY, UNIQUE, ClaimPolicy, Durability, Entry, Record, State
from persistcoll.parameters import T
from persistcoll.queues.sql import BaseSQLQueue

__all__ = ["FIFOSQLiteQueue", "FILOSQLiteQueue", "LIFOSQLiteQueue", "PriorityQueue", "SQLiteQueue", "UniqueQ"]


class _CommittingQueue(BaseSQLQueue[T]):
    """What these queues are made with."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        name: str = "default",
        multithreading: bool = True,
        timeout: float = 10.0,
        auto_commit: bool = True,
        serializer: Any = pickle,
        db_file_name: str | None = None,
        *,
        maxsize: int = 0,
        durability: Durability = "power",
        trust_directory: bool = False,
        allow_network_fs: bool = False,
        mode: int | None = None,
        read_only: bool = False,
    ) -> None:
        super().__init__(
            path,
            name=name,
            timeout=timeout,
            auto_commit=bool(auto_commit),
            serializer=serializer,
            db_file_name=db_file_name,
            maxsize=maxsize,
            durability=durability,
            trust_directory=trust_directory,
            allow_network_fs=allow_network_fs,
            mode=mode,
            read_only=read_only,
            retry=ClaimPolicy(),
            maker=_CommittingQueue,
            own={},
        )


class SQLiteQueue(_CommittingQueue[T]):
    """A first-in, first-out queue in an SQLite database.

    Several processes may put and get at the same time, each with any number of threads. No item is ever
    in the hands of two of them.

    >>> from persistcoll import SQLiteQueue
    >>> with SQLiteQueue("jobs") as jobs:
    ...     print(jobs.put("first"), jobs.put("second"))
    ...     print(jobs.get())
    ...     print(jobs.get(raw=True)["pqid"])
    1 2
    first
    2

    :param path: a directory, made if it is missing (the database is ``data.db`` in it); a file that ends in
        ``.db``, ``.sqlite`` or ``.sqlite3``; or ``":memory:"``, for this object alone.
    :param name: queues of several names share a database and do not see each other's items.
    :param multithreading: accepted, and always true.
    :param timeout: seconds to wait while another program keeps the database locked, or while another
        thread or process has a transaction open in it.
    :param auto_commit: ``get`` acknowledges the item at once, and a crash loses what was got and is not
        finished; otherwise ``task_done()`` does, and a crash delivers it again.
    :param serializer: how items become bytes: a name (``"pickle"``, ``"json"``, ``"msgpack"``, ``"cbor"``,
        ``"raw"``), one of :mod:`persistcoll.serializers`, or any object with ``dumps`` and ``loads``.
    :param db_file_name: the database's name in the directory.
    :param maxsize: how many items may wait; 0 means without bound.
    :param durability: what an operation that returned survives: ``"power"`` (a power cut) or
        ``"process"`` (the death of the process; a power cut may undo the newest operations).
    :param trust_directory: use a serializer that executes code (pickle) although others may write to
        the directory.
    :param allow_network_fs: use a network file system.
    :param mode: permission bits of the files that are made, such as ``0o660`` for a group; directories get
        the matching ``x`` bits. Default: those of the store, ``0o600`` for a new one. The umask has no say.
    :param read_only: only look. Nothing is written, made or locked against others, and whatever would change
        something raises :exc:`~persistcoll.StorageError` (``EROFS``).
    :raise StoreMissingError: with ``read_only``: there is nothing to look at.
    :raise StoreKindError: the file is no database of persistcoll, or the name is that of another kind of
        collection.
    :raise SerializerMismatchError: the queue was made with another serializer.
    :raise FormatVersionError: a later version made it.
    :raise CorruptionError: the database is damaged, or was lost.
    :raise LockedError: another program keeps the database locked, or a transaction was open for too long.
    :raise StorageError: it cannot be opened or made; others may write it while the serializer executes code.
    :raise ValueError: a number is negative, or ``db_file_name`` is no plain file name.
    """


FIFOSQLiteQueue = SQLiteQueue


class FILOSQLiteQueue(SQLiteQueue[T]):
    """A last-in, first-out queue in an SQLite database: a stack. Else it is a :class:`SQLiteQueue`.

    >>> from persistcoll import FILOSQLiteQueue
    >>> with FILOSQLiteQueue("undo") as undo:
    ...     undo.put_many(["write", "paint", "move"])
    ...     print(undo.get(), undo.get())
    [1, 2, 3]
    move paint
    """

    _discipline = LIFO
    _kind = LIFO.name


LIFOSQLiteQueue = FILOSQLiteQueue


class UniqueQ(SQLiteQueue[T]):
    """A :class:`SQLiteQueue` that holds no two equal items: ``put`` of a second one stores nothing.

    Items are equal as in Python: dicts whatever the order of their keys, ``1 == 1.0 == True``. They are made
    of ``None``, bool, int, float, str, bytes, and lists, tuples, dicts, sets and frozensets of them; with
    others ``put`` raises :exc:`TypeError`. An item may be put again when it is gone: once it was
    acknowledged.

    >>> from persistcoll import UniqueQ
    >>> with UniqueQ("pages") as pages:
    ...     print(pages.put({"url": "/", "depth": 1}), pages.put({"depth": 1, "url": "/"}))
    ...     print(len(pages), {"url": "/", "depth": 1} in pages)
    1 None
    1 True
    """

    _discipline = UNIQUE
    _kind = UNIQUE.name

    def __contains__(self, item: object) -> bool:
        """Whether an equal item waits, or was got and not acknowledged."""
        return self._holds(item)


class PriorityQueue(_CommittingQueue[T]):
    """A queue in an SQLite database that gives the item with the lowest priority first.

    Among equal priorities the oldest comes first. It is made as a :class:`SQLiteQueue` is.

    >>> from persistcoll import PriorityQueue
    >>> with PriorityQueue("mails") as mails:
    ...     mails.put("newsletter", priority=10)
    ...     mails.put("new password", priority=1)
    ...     print(mails.get())
    ...     print(mails.get(raw=True)["priority"])
    1
    2
    new password
    10
    """

    _discipline = PRIORITY
    _kind = PRIORITY.name
    _raw_keys = frozenset(("pqid", "data", "timestamp", "priority"))

    def put(  # type: ignore[override]
        self, item: T, priority: float = 0, block: bool = True, timeout: float | None = None
    ) -> int:
        """Store ``item``. When this returns, it is durable. Returns its id.

        Cost: that of :meth:`SQLiteQueue.put`.

        :param priority: a whole number of 64 bits or a float; the lowest comes first.
        :param block: wait for room while the queue is full.
        :param timeout: seconds to wait at most; ``None`` waits for ever.
        :raise Full: there was no room.
        :raise TypeError: ``priority`` is not a number.
        :raise ValueError: ``priority`` is NaN or has more than 64 bits, or the timeout is negative.

        It raises the others that :meth:`SQLiteQueue.put` does as well.
        """
        entry = Entry(self._encode(item), _checked_priority(priority))
        return self._blocking.put(entry, block, timeout)  # type: ignore[no-any-return]

    def put_nowait(self, item: T, priority: float = 0) -> int:  # type: ignore[override]
        """``put(item, priority, block=False)``."""
        return self.put(item, priority, False)

    def put_many(  # type: ignore[override]
        self, items: Iterable[T], priority: float = 0, block: bool = True, timeout: float | None = None
    ) -> list[int]:
        """Store all of ``items`` with one priority, in order, or none; return their ids.

        Cost: that of one :meth:`put`, however many they are.

        Raises as :meth:`put`; ``ValueError`` too if they are more than ``maxsize``.
        """
        priority = _checked_priority(priority)
        entries = [Entry(self._encode(item), priority) for item in items]
        return list(self._blocking.put_many(entries, block, timeout))

    def _raw(self, record: Record, item: Any) -> dict[str, Any]:
        return {**super()._raw(record, item), "priority": record.priority}

    def _row(self, state: State, record: Record) -> dict[str, Any]:
        return {**super()._row(state, record), "priority": record.priority}


def _checked_priority(value: Any) -> float:
    value = checked_number("priority", value)
    if value != value:
        raise ValueError("'priority' must not be NaN: nothing is before or behind it")
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        raise ValueError("'priority' must be a whole number of 64 bits, or a float")
    return value  # type: ignore[no-any-return]
