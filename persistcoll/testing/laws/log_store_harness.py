"""The harness of the laws of log stores: a factory, and functions that read a log."""

from __future__ import annotations

from typing import Protocol

from persistcoll.engine.contracts import LogCursor, LogStore
from persistcoll.engine.records import Record, Retain
from persistcoll.errors import Empty
from persistcoll.testing.children import check
from persistcoll.testing.harness import Capabilities, Law, LawTime, laws_with

__all__ = [
    "LogStoreFactory",
    "LogStoreHarness",
    "LogStoreLaw",
    "contents",
    "id_of",
    "law",
    "numbers",
    "payload_of",
    "rest_of",
]


class LogStoreFactory(Protocol):
    """Opens log stores of one kind. All are empty at first, and no other factory opens them.

    :ivar kept_beyond: how many records beyond the limits of ``retain`` a store may keep.
    """

    kept_beyond: int

    @property
    def capabilities(self) -> Capabilities:
        """What its stores can do."""

    def open(self, name: str, retain: Retain | None = None) -> LogStore:
        """Open the log of this name, which is made if it is missing, even after ``close()``."""

    def advance(self, seconds: float) -> None:
        """Let so many seconds pass on the clock of the producers."""

    def now(self) -> float:
        """Return the time by the clock of the producers."""

    # Where `capabilities.crashes`, it also has
    #   def crashed(self, name: str) -> LogStore
    # which opens a copy, whose changes do not touch the store.


class LogStoreHarness:
    """A factory, and the logs that a law opened, which are closed at the end."""

    def __init__(self, factory: LogStoreFactory, again: int = 0) -> None:
        self.factory = factory
        self.time = LawTime(factory, again)
        self.capabilities = factory.capabilities
        self.opened: list[LogStore] = []

    def open(self, name: str = "a", retain: Retain | None = None) -> LogStore:
        """Open the log ``name``."""
        self.opened.append(self.factory.open(name, retain))
        return self.opened[-1]

    def crash(self) -> LogStore:
        """Open what the log ``"a"`` leaves if the process dies now, after its death was noticed."""
        self.opened.append(getattr(self.factory, "crashed")("a"))  # noqa: B009
        return self.opened[-1]


LogStoreLaw = Law[LogStoreHarness]
law = laws_with(LogStoreHarness)


def id_of(record: Record) -> int:
    """Return the id, as a ``decode``."""
    return record.id


def payload_of(record: Record) -> bytes:
    """Return the payload, as a ``decode``."""
    return record.payload


def numbers(first: int, behind: int) -> list[bytes]:
    """Return the numbers from ``first`` to before ``behind``, as payloads."""
    return [b"%d" % number for number in range(first, behind)]


def contents(store: LogStore) -> list[bytes]:
    """Return all payloads of a log, and check that its bounds agree with them."""
    records = list(store.records())
    bounds = store.bounds()
    ids = [record.id for record in records]
    check(ids == sorted(set(ids)), f"records() gave the ids {ids}")
    check(bounds.records == len(ids), f"{bounds} of {len(ids)} records")
    if ids:
        check(bounds.first == ids[0], f"{bounds}, and the first record is {ids[0]}")
        check(bounds.last >= ids[-1], f"{bounds}, and the last record is {ids[-1]}")
        at = [store.nth(index) for index in range(len(ids) + 2)]
        check(at[:-2] == ids and at[-2:] == [at[-1]] * 2 and at[-1] > ids[-1], f"nth() gave {at}, of {ids}")
        middle = ids[len(ids) // 2]
        after = [record.id for record in store.records(middle)]
        check(after == [id for id in ids if id > middle], f"records({middle}) gave {after}, of {ids}")
    else:
        check(bounds.first > bounds.last, f"{bounds} of an empty log")
    return [record.payload for record in records]


def rest_of(cursor: LogCursor, limit: int = 3) -> list[bytes]:
    """Read a cursor to the end of the log."""
    found: list[bytes] = []
    try:
        while True:
            batch = cursor.read(limit, payload_of)
            check(1 <= len(batch) <= limit, f"read({limit}) gave {len(batch)} records")
            found += batch
    except Empty:
        return found
