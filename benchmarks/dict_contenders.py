"""The dicts: persistcoll's and its peers, each opened as its documentation says, equally durable."""

from __future__ import annotations

import pickle
import random
import shelve
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib import import_module
from itertools import cycle, islice
from typing import Any

from benchmarks.contenders import ITEM, have
from persistcoll import PDict

__all__ = [
    "DISKCACHE",
    "KINDS",
    "OURS",
    "PEERS",
    "PERSIST_QUEUE",
    "SHELVE",
    "SQLITEDICT",
    "Kind",
    "dbm_of_shelve",
    "different",
    "installed",
    "names",
    "some",
]

OURS, PERSIST_QUEUE, DISKCACHE = "ours", "persist-queue PDict", "diskcache.Index"
SQLITEDICT, SHELVE = "sqlitedict", "shelve"
_CHUNK = 10_000
_SEED = 20
# So many that a number comes again at the same place only after a long time; each takes two bytes.
_numbers = cycle(range(10_000, 59_999))

Opened = AbstractContextManager[Any]
"""A context manager that gives a dict."""


@dataclass(frozen=True)
class Kind:
    """One kind of dict.

    :ivar package: the package to install; empty if none is needed.
    :ivar module: the module that the package installs.
    :ivar open: opens the dict at a path with a durability, ``"process"`` or ``"power"``.
    :ivar fill: stores an item for each key at a path, in the fastest way that the dict has.
    :ivar survives: what an assignment that returned survives, if that cannot be chosen.
    """

    package: str
    module: str
    open: Callable[..., Opened]
    fill: Callable[[str, Iterable[str]], None]
    survives: str = "process"


def names(count: int, new: bool = False) -> list[str]:
    """Return so many keys, sorted; the new ones lie between the others."""
    return [f"user:{2 * number + new:08}" for number in range(count)]


def some(keys: list[str], count: int) -> list[str]:
    """Return so many of the keys in random order, always the same ones.

    Each key comes once before one comes again.
    """
    shuffled = random.Random(_SEED).sample(keys, min(count, len(keys)))
    return (shuffled * -(-count // len(shuffled)))[:count]


def different(keys: Iterable[str]) -> list[tuple[str, Any]]:
    """Return each key with an item of 100 bytes that differs from its last one.

    SQLite writes nothing where a row stays as it is.
    """
    return [(key, {**ITEM, "id": next(_numbers)}) for key in keys]


def _chunks(keys: Iterable[str]) -> Iterator[dict[str, Any]]:
    remaining = iter(keys)
    while chunk := dict.fromkeys(islice(remaining, _CHUNK), ITEM):
        yield chunk


def _ours(path: str, durability: Any = "process") -> PDict[str, Any]:
    return PDict(path, durability=durability)


def _fill_ours(path: str, keys: Iterable[str]) -> None:
    with _ours(path) as stored:
        for chunk in _chunks(keys):
            stored.update(chunk)


_SYNCHRONOUS = {"process": "NORMAL", "power": "FULL"}


@contextmanager
def _persist_queue(path: str, durability: str = "process") -> Iterator[Any]:
    """Give persist-queue's dict; its connection syncs each commit, unless a pragma says otherwise."""
    stored = import_module("persistqueue").PDict(path, "dict")
    try:
        stored._conn.execute(f"PRAGMA synchronous={_SYNCHRONOUS[durability]}")
        yield stored
    finally:
        stored.close()


def _fill_persist_queue(path: str, keys: Iterable[str]) -> None:
    """Use its own statement, but in one transaction, because it has no method for several keys."""
    data = pickle.dumps(ITEM)
    with _persist_queue(path) as stored, stored._conn as connection:
        connection.executemany(stored._sql_insert, ((key, data) for key in keys))


_SYNCHRONOUS_NUMBER = {"process": 1, "power": 2}


@contextmanager
def _index(path: str, durability: str = "process") -> Iterator[Any]:
    """Give what ``Index(path)`` makes; its ``synchronous=NORMAL`` survives the death of the process."""
    diskcache = import_module("diskcache")
    synchronous = _SYNCHRONOUS_NUMBER[durability]
    with diskcache.Cache(path, eviction_policy="none", sqlite_synchronous=synchronous) as cache:
        yield diskcache.Index.fromcache(cache)


def _fill_index(path: str, keys: Iterable[str]) -> None:
    with _index(path) as stored:
        for chunk in _chunks(keys):
            with stored.transact():
                stored.update(chunk)


def _sqlitedict(path: str, durability: str = "process", **options: Any) -> Any:
    """Return a dict with a write-ahead log, as all of them have one.

    It never syncs, so a power cut may damage the database.
    """
    options = {"autocommit": True, "journal_mode": "WAL", **options}
    return import_module("sqlitedict").SqliteDict(f"{path}.sqlite", **options)


def _fill_sqlitedict(path: str, keys: Iterable[str]) -> None:
    """Turn off the record of the caller's stack, which it makes for each key, for messages."""
    with _sqlitedict(path, autocommit=False, outer_stack=False) as stored:
        for chunk in _chunks(keys):
            stored.update(chunk)
            stored.commit()


def _shelf(path: str, durability: str = "process") -> Opened:
    return shelve.open(path)


def _fill_shelf(path: str, keys: Iterable[str]) -> None:
    with _shelf(path) as stored:
        for key in keys:
            stored[key] = ITEM


def dbm_of_shelve() -> str:
    """Return the name of the database module that ``shelve`` finds on this machine."""
    for name in ("sqlite3", "gnu", "ndbm"):
        try:
            import_module(f"dbm.{name}")
        except ImportError:
            continue
        return f"dbm.{name}"
    return "dbm.dumb"


PEERS: Mapping[str, Kind] = {
    PERSIST_QUEUE: Kind("persist-queue", "persistqueue", _persist_queue, _fill_persist_queue),
    DISKCACHE: Kind("diskcache", "diskcache", _index, _fill_index),
    SQLITEDICT: Kind("sqlitedict", "sqlitedict", _sqlitedict, _fill_sqlitedict),
    SHELVE: Kind("", "shelve", _shelf, _fill_shelf, "a clean close only"),
}
"""By name, in the order in which the report lists them."""

KINDS: Mapping[str, Kind] = {OURS: Kind("", "persistcoll", _ours, _fill_ours), **PEERS}


def installed() -> tuple[dict[str, Kind], list[str]]:
    """Return persistcoll's dict and the installed peers, and the packages of the others."""
    there = {name: kind for name, kind in KINDS.items() if have(kind.module)}
    return there, [kind.package for name, kind in KINDS.items() if name not in there]
