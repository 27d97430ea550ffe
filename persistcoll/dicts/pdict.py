"""``PDict``, a dict in an SQLite database."""

from __future__ import annotations

import numbers
import os
import pickle
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from persistcoll.arguments import checked_ttl
from persistcoll.container import K, SQLiteContainer, V
from persistcoll.dicts.base import MISSING, BaseDict
from persistcoll.engine.records import Durability, Stats
from persistcoll.options import SQLiteOptions
from persistcoll.serializers import resolve
from persistcoll.serializers.dict_keys import format_key, str_range
from persistcoll.sqlite.open import open_mapping
from persistcoll.sqlite.pair_store import SQLitePairStore

if TYPE_CHECKING:
    from persistcoll.dicts.base import Pairs

__all__ = ["PDict", "open_store"]


def open_store(options: SQLiteOptions) -> SQLitePairStore:
    """The store of a dict in an SQLite database. Raises as :class:`PDict`."""
    serializer = resolve(options.serializer)
    return open_mapping(
        options.location,
        name=options.name,
        serializer=serializer.name,
        executes_code=serializer.executes_code,
        durability=options.durability,
        show=format_key,
    )


class PDict(SQLiteContainer, BaseDict[K, V]):
    """A :class:`dict` in an SQLite database: what is assigned is stored when the assignment returns.

    Everything that a dict does it does, keys stay in the order in which they came, and any number of
    threads and processes may use it at the same time.

    >>> from persistcoll import PDict
    >>> with PDict("ages") as ages:
    ...     ages["ann"] = 41
    ...     ages.update(bob=17, cid=28)
    >>> with PDict("ages") as ages:  # another day, or another process
    ...     print(ages["bob"], len(ages), list(ages))
    17 3 ['ann', 'bob', 'cid']

    Keys are str, bytes, int, float, bool, ``None``, and tuples of them; equal ones are one key as in a
    dict (``1``, ``1.0`` and ``True``). Values are whatever the serializer takes; what is looked up is a copy:
    assign it back after changing it, or use :meth:`edit`.

    :param auto_commit: each change is stored at once. Otherwise changes gather in memory, where this object
        alone sees them, until :meth:`task_done` or the end of a ``with`` block stores them, all or
        none; ``close()`` without that drops them. If others change the same keys meanwhile, the last to
        commit wins.

    The other parameters are those of :class:`SQLiteQueue`, and so are the exceptions of opening one; what is
    said of items there is true of values.

    Methods that take a key raise :exc:`TypeError` for one of another type and
    :exc:`~persistcoll.EncodeError` (a :exc:`ValueError`) for NaN and for one of more than 64 KiB; those that
    read a value :exc:`~persistcoll.DecodeError` and :exc:`~persistcoll.CorruptionError`; those that write
    :exc:`~persistcoll.EncodeError`, :exc:`~persistcoll.StorageFullError` and other
    :exc:`~persistcoll.StorageError`; all of them :exc:`~persistcoll.ClosedError`. A change that raised
    happened not at all, or the message says that it is not known.
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
    ) -> None:
        self._open(SQLiteOptions.of(locals()))

    def _open_store(self, options: SQLiteOptions) -> SQLitePairStore:
        return open_store(options)

    @property
    def auto_commit(self) -> bool:
        """Whether a change is stored at once."""
        return self._buffer is None

    # One key.

    def set(self, key: K, value: V, ttl: float | None = None) -> None:
        """``d[key] = value``, for ``ttl`` seconds: after that the key is gone. ``None``: for ever.

        Assigning again without a ``ttl`` lets it live for ever; :meth:`incr`, :meth:`edit` and
        :meth:`setdefault` leave its end as it is. Time is that of the machine since it was
        booted: setting the clock ends nothing early.

        Cost: 1 transaction. At ``"power"`` also 1 sync of the device, which threads that write at the same
        time share; at ``"process"`` none. All methods that write cost this, and those that read neither.

        :raise ValueError: ``ttl`` is not above 0.
        """
        self._store.set_many((self._encode_item(key, value),), checked_ttl(ttl))

    def incr(self, key: K, by: Any = 1) -> Any:
        """Add ``by`` to a number, which is 0 if it is not there, and return the sum. No two callers undo
        each other's.

        :raise TypeError: one of the two is no number.
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
        """A context manager that gives the value of ``key`` to be changed in place, and stores it at the end.

        The block is a :meth:`transaction`: others that write wait for its end, so let it be short; if it
        raises, nothing happened.

        >>> from persistcoll import PDict
        >>> with PDict("people") as people:
        ...     people["ann"] = {"visits": 1}
        ...     with people.edit("ann") as ann:
        ...         ann["visits"] += 1
        ...     people["ann"]
        {'visits': 2}

        :param default: what to begin with if the key is not there.
        :raise KeyError: it is not there, and there is no default.
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
        """:meth:`update` with a mapping or an iterable of pairs, and :meth:`set`'s ``ttl``."""
        expires = checked_ttl(ttl)
        self._store_all(self._encode_items(items), expires)

    def scan(
        self, prefix: str = "", *, start: str | None = None, stop: str | None = None, reverse: bool = False
    ) -> Iterator[tuple[str, V]]:
        """The pairs whose keys are a str, begin with ``prefix``, and are from ``start`` up to, not including,
        ``stop``; in the order in which Python sorts the keys.

        What lies outside is not read. Others may write meanwhile: no key comes twice, and each one that is
        there all the while comes.

        >>> from persistcoll import PDict
        >>> with PDict("stock") as stock:
        ...     stock.update({"nut/6": 10, "bolt/8": 20, "bolt/10": 30, 7: "no str"})
        ...     print(list(stock.scan("bolt/")))
        ...     print([key for key, _ in stock.scan(start="bolt/5", reverse=True)])
        [('bolt/10', 30), ('bolt/8', 20)]
        ['nut/6', 'bolt/8']
        """
        ends: tuple[tuple[str, object], ...] = (("prefix", prefix), ("start", start), ("stop", stop))
        for name, value in ends:
            if not isinstance(value, str) and (value is not None or name == "prefix"):
                raise TypeError(f"{name!r} must be a str, not {type(value).__name__}")
        low, high = str_range(prefix, start, stop)
        return map(self._decode_item, self._store.scan(low, high, reverse))

    def transaction(self) -> AbstractContextManager[None]:
        """A context manager: what this thread does within, it alone sees, and happens all at once at the end.

        If the block raises, nothing of it happened. Others' changes wait meanwhile, in all threads and
        processes, so let it be short. One within another is part of it. It takes in whatever this thread does
        to other collections in the same file. Without ``auto_commit`` it is about what is gathered, and
        :meth:`task_done` commits.

        >>> from persistcoll import PDict
        >>> with PDict("accounts") as accounts:
        ...     accounts.update(ann=10, bob=0)
        ...     with accounts.transaction():
        ...         accounts["ann"] -= 3
        ...         accounts["bob"] += 3
        ...     dict(accounts)
        {'ann': 7, 'bob': 3}
        """
        return self._store.transaction()

    def stats(self) -> Stats:
        """``ready``: how many pairs; ``bytes``: what the file occupies."""
        return self._store.stats()
