"""The queues in SQLite databases: the options of each class, and how its store is opened."""

from __future__ import annotations

import os
import pickle
from typing import Any

from persistcoll.container import SQLiteContainer, T
from persistcoll.engine.contracts import RecordStore
from persistcoll.engine.records import (
    LIFO,
    Backoff,
    Discipline,
    Durability,
)
from persistcoll.options import SQLiteAckQueueOptions, SQLiteQueueOptions
from persistcoll.queues.ack import AckQueue
from persistcoll.queues.sql import PlainGets, PlainPuts, PriorityPuts, UniquePuts, warn_of_auto_commit
from persistcoll.serializers import resolve
from persistcoll.serializers.registry import sealed
from persistcoll.sqlite.open import open_record_store

__all__ = [
    "FIFOSQLiteAckQueue",
    "FIFOSQLiteQueue",
    "FILOSQLiteAckQueue",
    "FILOSQLiteQueue",
    "LIFOSQLiteQueue",
    "PriorityQueue",
    "SQLiteAckQueue",
    "SQLiteQueue",
    "UniqueAckQ",
    "UniqueQ",
    "open_store",
]


def open_store(options: SQLiteQueueOptions, kind: str, discipline: Discipline) -> RecordStore:
    """Return the store of a queue in an SQLite database, without anything that waits.

    It raises what the queues raise.

    :param kind: what the database calls it; a queue is opened only as the kind that it was made as.
    """
    serializer = resolve(options.serializer)
    store = open_record_store(
        options.location,
        name=options.name,
        kind=kind,
        discipline=discipline,
        retry=options.claim_policy,
        serializer=serializer.name,
        executes_code=serializer.executes_code,
        durability=options.durability,
    )
    return sealed(store, serializer)


class _PlainSQLiteQueue(SQLiteContainer, PlainGets[T]):
    """How the queues are made whose items ``get`` or ``task_done`` acks."""

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
        create: bool = True,
    ) -> None:
        self._open(SQLiteQueueOptions.of(locals()))

    def _open_store(self, options: SQLiteQueueOptions) -> RecordStore:
        return open_store(options, self._kind, self._discipline)


class SQLiteQueue(PlainPuts[T], _PlainSQLiteQueue[T]):
    """A first-in, first-out queue in an SQLite database.

    Several processes may put and get at the same time, each with any number of threads. An item is claimed by
    at most one of them at a time.

    Cost: opening takes the same time at any backlog. Each method names its own cost.

    >>> from persistcoll import SQLiteQueue
    >>> with SQLiteQueue("jobs") as jobs:
    ...     print(jobs.put("first"), jobs.put("second"))
    ...     print(jobs.get())
    ...     print(jobs.get(raw=True)["pqid"])
    1 2
    first
    2

    :param path: a directory, made if it is missing (the database is ``data.db`` in it); a file that ends in
        ``.db``, ``.sqlite`` or ``.sqlite3``; or ``":memory:"``, a database for this object alone.
    :param name: queues with different names share a database and do not see each other's items.
    :param multithreading: accepted, and always true.
    :param timeout: seconds to wait while another program keeps the database locked, or while another thread
        or process has a transaction open in it.
    :param auto_commit: ``get`` acks the item at once, so a crash loses an item that was got and is not
        finished. Otherwise ``task_done()`` acks it, and a crash delivers it again.
    :param db_file_name: the database's name in the directory.

    ``serializer``, ``maxsize``, ``durability``, ``trust_directory``, ``allow_network_fs``, ``mode``,
    ``read_only`` and ``create`` are those of :class:`Queue`.

    :raise StoreMissingError: nothing lies there, with ``read_only`` or without ``create``.
    :raise StoreKindError: the file is no database of persistcoll, or the name is that of another kind of
        collection.
    :raise SerializerMismatchError: the queue was made with another serializer.
    :raise FormatVersionError: a later version made the database.
    :raise CorruptionError: the database is damaged, or was lost.
    :raise LockedError: another program keeps the database locked, or a transaction was open for too long.
    :raise StorageError: the database cannot be opened or made, or other users may write to it and the
        serializer executes code.
    :raise ValueError: a number is negative, or ``db_file_name`` is no plain file name.
    """


FIFOSQLiteQueue = SQLiteQueue


class FILOSQLiteQueue(SQLiteQueue[T]):
    """A last-in, first-out queue in an SQLite database: a stack.

    In everything else, cost included, it is a :class:`SQLiteQueue`.

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


class UniqueQ(UniquePuts[T], SQLiteQueue[T]):
    """A :class:`SQLiteQueue` that holds no two equal items: ``put`` of a second one stores nothing.

    Items are compared as Python compares them: dicts are equal whatever the order of their keys, and
    ``1 == 1.0 == True``. Items consist of ``None``, bool, int, float, str, bytes, and lists, tuples, dicts,
    sets and frozensets of them; for others ``put`` raises :exc:`TypeError`. An equal item may be put again
    after the first one was acked or removed.

    Cost: that of a :class:`SQLiteQueue`, and one row more for each item in the index of keys.
    ``item in queue`` neither writes nor syncs.

    >>> from persistcoll import UniqueQ
    >>> with UniqueQ("pages") as pages:
    ...     print(pages.put({"url": "/", "depth": 1}), pages.put({"depth": 1, "url": "/"}))
    ...     print(len(pages), {"url": "/", "depth": 1} in pages)
    1 None
    1 True
    """


class PriorityQueue(PriorityPuts[T], _PlainSQLiteQueue[T]):
    """A queue in an SQLite database that delivers the item with the lowest priority first.

    Among equal priorities it delivers the oldest first. Parameters, errors and costs are those of a
    :class:`SQLiteQueue`.

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


class SQLiteAckQueue(SQLiteContainer, AckQueue[T]):
    """A first-in, first-out queue in an SQLite database whose items are settled one by one.

    :meth:`ack` finishes an item, :meth:`nack` makes it ready again, :meth:`ack_failed` sets it aside. When a
    process dies, the items that it had claimed are delivered again. Several processes may put and get at the
    same time, each with any number of threads. An item is claimed by at most one of them at a time. If a
    ``lease`` ran out, the ``ack`` of the late consumer is refused.

    Cost: that of a :class:`SQLiteQueue`; each method names its own cost.

    >>> from persistcoll import SQLiteAckQueue
    >>> with SQLiteAckQueue("letters") as letters:
    ...     letters.put_many(["to alice", "to bob"])
    ...     letter = letters.get()
    ...     print(letters.nack(letter), letters.ready_count())
    ...     letter = letters.get()
    ...     print(letter, letters.ack(letter), letters.acked_count())
    [1, 2]
    1 2
    to alice 1 1

    An item is found by identity: ``ack`` takes the very object that ``get`` returned. Where the same object
    was got several times, as ``None`` or a small number may be, ``ack`` means the oldest one that this thread
    got. The raw form and the id always mean one item.

    The parameters that :class:`SQLiteQueue` has as well mean the same.

    :param auto_resume: make the items that dead processes had claimed ready again: at opening, and later
        whenever nothing else is ready, and from time to time otherwise. The claims of a living process stay.
    :param auto_commit: accepted, and always true: ``get`` never removes an item.
    :param lease: seconds after which a claim ends although its holder lives, so that the item is ready again;
        ``None``: never.
    :param max_attempts: an item that was got this often is set aside when its claim ends without an ack;
        ``None``: never.
    :param backoff: how long an item is delayed after a ``nack``: a number of seconds, or a
        :class:`~persistcoll.Backoff`, which grows with each attempt; ``None``: not at all. An item whose
        claim ended by a crash or by its lease is not delayed.
    :param keep_acked: how many of the newest acked items stay in the database, at least; 0: none; ``None``:
        all.
    :param strict: ``ack``, ``nack`` and ``ack_failed`` of an item that this object does not hold raise
        :exc:`~persistcoll.NotClaimedError`; otherwise they return ``None``.
    """

    _kind = "fifo ack"

    def __init__(
        self,
        path: str | os.PathLike[str],
        auto_resume: bool = True,
        name: str = "default",
        multithreading: bool = True,
        timeout: float = 10.0,
        auto_commit: bool = True,
        serializer: Any = pickle,
        db_file_name: str | None = None,
        *,
        lease: float | None = None,
        max_attempts: int | None = None,
        backoff: float | Backoff | None = None,
        keep_acked: int | None = 1000,
        strict: bool = False,
        maxsize: int = 0,
        durability: Durability = "power",
        trust_directory: bool = False,
        allow_network_fs: bool = False,
        mode: int | None = None,
        read_only: bool = False,
        create: bool = True,
    ) -> None:
        warn_of_auto_commit(auto_commit)
        self._open(SQLiteAckQueueOptions.of(locals()))

    def _open_store(self, options: SQLiteQueueOptions) -> RecordStore:
        return open_store(options, self._kind, self._discipline)


FIFOSQLiteAckQueue = SQLiteAckQueue


class FILOSQLiteAckQueue(SQLiteAckQueue[T]):
    """A :class:`SQLiteAckQueue` that delivers the newest item first.

    Parameters, errors and costs are those of :class:`SQLiteAckQueue`.
    """

    _discipline = LIFO
    _kind = "lifo ack"


class UniqueAckQ(UniquePuts[T], SQLiteAckQueue[T]):
    """A :class:`SQLiteAckQueue` that holds no two equal items, as :class:`UniqueQ` does.

    An equal item may be put again after the first one was acked or set aside. Costs are those of
    :class:`SQLiteAckQueue` and :class:`UniqueQ`.

    >>> from persistcoll import UniqueAckQ
    >>> with UniqueAckQ("links") as links:
    ...     print(links.put("/"), links.put("/"))
    ...     link = links.get()
    ...     print("/" in links, links.put("/"))  # claimed
    ...     links.ack(link)
    ...     print("/" in links, links.put("/"))
    1 None
    True None
    1
    False 2
    """

    _kind = "unique ack"
