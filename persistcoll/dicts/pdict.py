"""The dict in a database: its options, and what it has beyond ``dict``'s methods."""

from __future__ import annotations

import numbers
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from persistcoll.arguments import checked_ttl
from persistcoll.container import DatabaseContainer, K, V
from persistcoll.dicts.base import MISSING, BaseDict
from persistcoll.engine.records import Durability, Stats
from persistcoll.options import ServerDictOptions, SQLiteOptions, database_options
from persistcoll.serializers import resolve
from persistcoll.serializers.dict_keys import format_key, str_range
from persistcoll.sqlite.open import open_pair_store
from persistcoll.sqlite.pair_store import SQLitePairStore

if TYPE_CHECKING:
    from persistcoll.dicts.base import Pairs
    from persistcoll.engine.contracts import PairStore

__all__ = ["PDict", "open_store"]


def open_store(options: SQLiteOptions) -> SQLitePairStore:
    """Return the store of a dict in an SQLite database.

    It raises what :class:`PDict` raises.
    """
    serializer = resolve(options.serializer)
    return open_pair_store(
        options.location,
        name=options.name,
        serializer=serializer.name,
        executes_code=serializer.executes_code,
        durability=options.durability,
        show=format_key,
    )


class PDict(DatabaseContainer, BaseDict[K, V]):
    """A :class:`dict` in a database: what is assigned is stored when the assignment returns.

    It has every method of a dict. Keys stay in the order in which they were added. Any number of threads and
    processes may use it at the same time. The database is a file of SQLite, or on a server of PostgreSQL or
    MySQL, which processes on several machines share.

    Cost: a method that writes costs 1 transaction, and at ``"power"`` also 1 sync of the device, which
    threads that write at the same time share. A method that reads neither writes nor syncs. Opening takes the
    same time for any number of pairs.

    >>> from persistcoll import PDict
    >>> with PDict("ages") as ages:
    ...     ages["ann"] = 41
    ...     ages.update(bob=17, cid=28)
    >>> with PDict("ages") as ages:  # another day, or another process
    ...     print(ages["bob"], len(ages), list(ages))
    17 3 ['ann', 'bob', 'cid']

    Keys are str, bytes, int, float, bool, ``None``, and tuples of them. Equal keys are one key, as in a dict
    (``1``, ``1.0`` and ``True``). Values are whatever the serializer takes. ``d[key]`` returns a copy of the
    stored value: assign it again after a change, or use :meth:`edit`.

    On a server a call is a few round trips, ``len()`` counts rows, a key has at most 2,000 bytes, and a value
    must fit into a packet of MySQL. A :meth:`transaction` there is one of this dict alone, and its block is
    given ``None``. Other writers wait for its end, ``timeout`` seconds at most.

    :param path: where the database is: the directory or the file of one in SQLite, as for
        :class:`SQLiteQueue`; or the URL of one on a server, as for :class:`PostgresQueue` and
        :class:`MySQLQueue`.
    :param auto_commit: each change is stored at once. Otherwise changes are buffered in memory, where this
        object alone sees them, until :meth:`task_done` or the end of a ``with`` block stores all of them or
        none. ``close()`` before that drops them. If another writer changes the same keys meanwhile, the last
        commit wins.

    :param password: of the server's user, if the URL has none. It is never shown, and a pickle of the dict
        has none: where it is unpickled, the password is ``PERSISTCOLL_PASSWORD``.
    :param schema: where the tables are, on PostgreSQL; ``None``: where the server looks first.
    :param connection: a connection to the server. Each call is then a part of the transaction that the caller
        has open on it, and the caller commits; see :class:`PostgresQueue`. Until then a
        :meth:`transaction` of another caller waits.

    The other parameters are those of :class:`SQLiteQueue`, and so are the exceptions that opening raises.
    What is said there of items holds for values. On a server ``serializer``, ``durability``, ``timeout`` and
    ``create`` are those of :class:`PostgresQueue`; the others apply to files.

    Methods that take a key raise :exc:`TypeError` for a key of another type, and
    :exc:`~persistcoll.EncodeError` (a :exc:`ValueError`) for NaN and for a key that is too large. Methods
    that read a value raise :exc:`~persistcoll.DecodeError` and :exc:`~persistcoll.CorruptionError`. Methods
    that write raise :exc:`~persistcoll.EncodeError`, :exc:`~persistcoll.StorageFullError` and other
    :exc:`~persistcoll.StorageError`. All of them raise :exc:`~persistcoll.ClosedError`. A change that raised
    did not happen, unless the message says that its outcome is unknown.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        name: str = "default",
        multithreading: bool = True,
        *,
        serializer: Any = pickle,
        auto_commit: bool = True,
        durability: Durability = "power",
        db_file_name: str | None = None,
        timeout: float = 10.0,
        trust_directory: bool = False,
        allow_network_fs: bool = False,
        mode: int | None = None,
        read_only: bool = False,
        create: bool = True,
        password: str | None = None,
        schema: str | None = None,
        connection: Any = None,
    ) -> None:
        self._open(database_options(locals(), SQLiteOptions, ServerDictOptions, "a dict"))

    def _open_store(self, options: SQLiteOptions | ServerDictOptions) -> PairStore:
        if isinstance(options, SQLiteOptions):
            return open_store(options)
        from persistcoll.servers.open import open_pair_store

        store = open_pair_store(
            options.address,
            name=options.name,
            serializer=resolve(options.serializer).name,
            durability=options.durability,
            schema=options.schema,
            create=options.create,
            timeout=options.timeout,
            format_key=format_key,
        )
        return cast("PairStore", self._joined(store, options.connection))

    @classmethod
    def _wanted(cls, name: str, serializer: str) -> Any:
        from persistcoll.servers.open import wanted_pairs

        return wanted_pairs(name, serializer)

    @property
    def auto_commit(self) -> bool:
        """Whether each change is stored at once."""
        return self._buffer is None

    # One key.

    def set(self, key: K, value: V, ttl: float | None = None) -> None:
        """Set ``d[key] = value``, with ``ttl`` for so many seconds.

        After ``ttl`` seconds the key has expired and is not there any more. An assignment without a ``ttl``
        makes it live for ever; :meth:`incr`, :meth:`edit` and :meth:`setdefault` leave its expiry as it is.
        Time is that of the machine since it was booted, so setting the clock makes nothing expire early. On a
        server it is the server's clock.

        Cost: 1 transaction. At ``"power"`` also 1 sync of the device, which threads that write at the same
        time share; at ``"process"`` none.

        :param ttl: seconds; ``None``: the key never expires.
        :raise ValueError: ``ttl`` is not above 0.
        """
        self._store.set_many((self._encode_item(key, value),), checked_ttl(ttl))

    def incr(self, key: K, by: Any = 1) -> Any:
        """Add ``by`` to a number, which is 0 if it is not there, and return the sum.

        No two callers undo each other's addition.

        Cost: that of :meth:`set`.

        :raise TypeError: ``by`` or the value is no number.
        """
        if not isinstance(by, numbers.Number):
            raise TypeError(f"'by' must be a number, not {type(by).__name__}")
        stored, name = self._encode_key(key)

        def add(present: bytes | None) -> tuple[bytes, Any]:
            value = 0 if present is None else self._decode(key, stored, present)
            if not isinstance(value, numbers.Number):
                raise TypeError(f"incr() needs a number, and the value is of type {type(value).__name__}")
            new: Any = value + by  # type: ignore[operator]
            return self._encode(stored, new), new

        return self._store.change(stored, name, add)

    @contextmanager
    def edit(self, key: K, default: V = MISSING) -> Iterator[V]:
        """Return a context manager that gives a value to change in place, and stores it at the end.

        The block is a :meth:`transaction`. Other writers wait for its end, so it should be short. If the
        block raises, nothing is stored.

        Cost: that of :meth:`set`.

        >>> from persistcoll import PDict
        >>> with PDict("people") as people:
        ...     people["ann"] = {"visits": 1}
        ...     with people.edit("ann") as ann:
        ...         ann["visits"] += 1
        ...     people["ann"]
        {'visits': 2}

        :param default: what to begin with if the key is not there.
        :raise KeyError: the key is not there, and there is no default.
        """
        stored, name = self._encode_key(key)
        with self._store.transaction():
            data = self._store.get(stored)
            if data is None and default is MISSING:
                raise KeyError(key)
            value: V = default if data is None else self._decode(key, stored, data)
            yield value
            new = self._encode(stored, value)
            self._store.change(stored, name, lambda present: (new, None))

    # Many.

    def set_many(self, items: Pairs[K, V], ttl: float | None = None) -> None:
        """Call :meth:`update` with a mapping or an iterable of pairs, and a ``ttl`` as :meth:`set`.

        Cost: that of one :meth:`set`, however many pairs there are.
        """
        expires = checked_ttl(ttl)
        self._store_all(self._encode_items(items), expires)

    def scan(
        self, prefix: str = "", *, start: str | None = None, stop: str | None = None, reverse: bool = False
    ) -> Iterator[tuple[str, V]]:
        """Return an iterator over the pairs whose keys are in a range of str.

        The keys begin with ``prefix``, are at least ``start`` and below ``stop``, and come in the order in
        which Python sorts them. Other threads and processes may write meanwhile: no key comes twice, and each
        key that is there all the while comes.

        Cost: no write and no sync. Pairs outside of the range are not read.

        >>> from persistcoll import PDict
        >>> with PDict("stock") as stock:
        ...     stock.update({"nut/6": 10, "bolt/8": 20, "bolt/10": 30, 7: "no str"})
        ...     print(list(stock.scan("bolt/")))
        ...     print([key for key, _ in stock.scan(start="bolt/5", reverse=True)])
        [('bolt/10', 30), ('bolt/8', 20)]
        ['nut/6', 'bolt/8']

        :raise TypeError: ``prefix``, ``start`` or ``stop`` is no str.
        """
        ends: tuple[tuple[str, object], ...] = (("prefix", prefix), ("start", start), ("stop", stop))
        for name, value in ends:
            if not isinstance(value, str) and (value is not None or name == "prefix"):
                raise TypeError(f"{name!r} must be a str, not {type(value).__name__}")
        low, high = str_range(prefix, start, stop)
        return map(self._decode_item, self._store.scan(low, high, reverse))

    def stats(self) -> Stats:
        """Return how many pairs there are as ``ready``, and what the file occupies as ``bytes``.

        Cost: no write and no sync. On a server it counts rows.
        """
        return self._store.stats()
