"""The harness of the laws of record stores: a factory, and functions that read a store."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Protocol, cast

from persistcoll.engine.contracts import QueueStore, RecordStore
from persistcoll.engine.records import (
    FIFO,
    HOLDER_CLOSED,
    HOLDER_DIED,
    LIFO,
    PRIORITY,
    UNIQUE,
    Backoff,
    ClaimPolicy,
    Discipline,
    Entry,
    Record,
    State,
)
from persistcoll.testing.children import check
from persistcoll.testing.harness import Capabilities, Law, LawTime, laws_with

__all__ = [
    "DISCIPLINES",
    "Connection",
    "FifoStores",
    "RecordStoreFactory",
    "RecordStoreHarness",
    "RecordStoreLaw",
    "Row",
    "after_the_end",
    "closed_as_died",
    "contents",
    "entries",
    "keyed",
    "order",
    "record_store_law",
    "refuses",
    "standing",
]

Row = tuple[State, Record]

DISCIPLINES = (FIFO, LIFO, PRIORITY, UNIQUE)
PLAIN = ClaimPolicy()


class Connection(Protocol):
    """A caller's connection, with transactions of its own."""

    def begin(self) -> None:
        """Begin a transaction."""

    def commit(self) -> None:
        """Commit the transaction."""

    def rollback(self) -> None:
        """Roll the transaction back."""


class RecordStoreFactory(Protocol):
    """Opens record stores of one kind. All are empty at first, and no other factory opens them."""

    @property
    def capabilities(self) -> Capabilities:
        """What its stores can do."""

    def open(self, name: str, discipline: Discipline, retry: ClaimPolicy) -> RecordStore:
        """Open the store of this name, which is made if it is missing. A name keeps its discipline."""

    def advance(self, seconds: float) -> None:
        """Let so many seconds pass for all of its stores, and for what they leave after a crash.

        Where the clock cannot be set (``capabilities.real_time``), wait.
        """

    # Where `capabilities.crashes`, it also has
    #   def crashed(self, name: str, discipline: Discipline, retry: ClaimPolicy) -> RecordStore
    # which opens a copy, whose changes do not touch the store. Its claims are those of a process that is
    # known to be dead.
    # Where `capabilities.joins`, it also has
    #   def connect(self, name: str) -> Connection
    # which returns a connection whose transactions the store of that name can join.


class FifoStores:
    """Record stores as queue stores, for the laws of a :class:`~persistcoll.testing.StoreFactory`.

    A record store obeys the laws of queue stores wherever no record has a priority or a key.

    :param retry: without ``max_attempts``, which a queue store does not have.
    """

    def __init__(
        self,
        tables: RecordStoreFactory,
        discipline: Discipline = FIFO,
        retry: ClaimPolicy = PLAIN,
    ) -> None:
        self._tables = tables
        self._discipline = discipline
        self._retry = retry
        self.capabilities = tables.capabilities
        self.advance = tables.advance

    def open(self, name: str) -> QueueStore:
        """Open the store of this name."""
        return cast(QueueStore, _Uncounted(self._tables.open(name, self._discipline, self._retry)))

    def crashed(self, name: str) -> QueueStore:
        """Open what a process that died now would leave."""
        return cast(QueueStore, _Uncounted(_crashed(self._tables, name, self._discipline, self._retry)))


class _Uncounted:
    """A store whose records tell neither attempts nor reasons, because those of a queue store never do."""

    def __init__(self, table: RecordStore) -> None:
        self._table = table

    def records(self) -> Iterator[Record]:
        return (record._replace(attempts=0, reason=None) for record in self._table.records())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._table, name)


def _crashed(
    tables: RecordStoreFactory, name: str, discipline: Discipline, retry: ClaimPolicy
) -> RecordStore:
    table: RecordStore = getattr(tables, "crashed")(name, discipline, retry)  # noqa: B009
    return table


class RecordStoreHarness:
    """A factory, and the stores that a law opened, which are closed at the end."""

    def __init__(self, factory: RecordStoreFactory, again: int = 0) -> None:
        self._factory = factory
        self._again = f" {again}" if again else ""
        self.time = LawTime(factory, again)
        self.seconds, self.advance = self.time.seconds, self.time.advance
        self.capabilities = factory.capabilities
        self.opened: list[RecordStore] = []

    def open(
        self, discipline: Discipline = FIFO, retry: ClaimPolicy = PLAIN, name: str | None = None
    ) -> RecordStore:
        """Open the store ``name``, by default the one named as its discipline.

        :param retry: its times are in the law's seconds.
        """
        name = (name or discipline.name) + self._again
        self.opened.append(self._factory.open(name, discipline, self._scaled(retry)))
        return self.opened[-1]

    def _scaled(self, retry: ClaimPolicy) -> ClaimPolicy:
        lease, backoff = retry.lease, retry.backoff
        if lease is not None:
            lease = self.seconds(lease)
        if backoff is not None:
            base, limit = self.seconds(backoff.base), self.seconds(backoff.limit)
            backoff = Backoff(base, backoff.factor, limit, backoff.jitter)
        return retry._replace(lease=lease, backoff=backoff)

    def crash(
        self, discipline: Discipline = FIFO, retry: ClaimPolicy = PLAIN, name: str | None = None
    ) -> RecordStore:
        """Open what the store ``name`` would leave if the process died now."""
        name = (name or discipline.name) + self._again
        self.opened.append(_crashed(self._factory, name, discipline, self._scaled(retry)))
        return self.opened[-1]

    def connect(self, table: RecordStore, discipline: Discipline = FIFO) -> Connection:
        """Connect as a caller whose transactions ``table`` joins."""
        check(
            table.capabilities.joins_transactions,
            "the factory connects, and the store says that it joins nothing",
        )
        connection: Connection = getattr(self._factory, "connect")(discipline.name + self._again)  # noqa: B009
        return connection

    def notice_death(self, table: RecordStore) -> None:
        """Wait until the death of a holder is noticed."""
        self.time.wait(table.capabilities.death_noticed_after)

    def another(
        self, table: RecordStore, discipline: Discipline = FIFO, retry: ClaimPolicy = PLAIN
    ) -> RecordStore:
        """Return another handle of the same store, or ``table`` if only one may be open."""
        return self.open(discipline, retry) if self.capabilities.handles else table


RecordStoreLaw = Law[RecordStoreHarness]
record_store_law = laws_with(RecordStoreHarness)


def contents(table: RecordStore) -> list[Row]:
    """Return all rows of a store, and check that every other way to read them agrees."""
    rows = list(table.scan())
    ids = [record.id for _, record in rows]
    check(ids == sorted(set(ids)), f"scan() are not in the order of their ids: {ids}")
    number = {state: [record for each, record in rows if each is state] for state in State}
    for state in State:
        alone = [record for _, record in table.scan(state)]
        check(alone == number[state], f"scan({state}) are {alone}, not {number[state]}")
    ready = list(table.records())
    check(ready == number[State.READY], f"records() are {ready}, not {number[State.READY]}")
    counts = table.count(), table.claimed(), table.unfinished()
    size = {state: len(records) for state, records in number.items()}
    unfinished = size[State.READY] + size[State.DELAYED] + size[State.CLAIMED]
    wanted = size[State.READY], size[State.CLAIMED], unfinished
    check(counts == wanted, f"ready, claimed, unfinished: {counts}, of rows {wanted}")
    says = not table.is_empty(), table.has_unfinished()
    check(says == (counts[0] > 0, counts[2] > 0), f"not empty, unfinished: {says}, of {counts}")
    told = table.stats()
    found = {state: getattr(told, state.value) for state in State}
    check(found == size, f"stats() are {told}, the rows {size}")
    check((told.oldest_age is None) == (not ready), f"of {len(ready)} ready records: {told}")
    return rows


def standing(table: RecordStore) -> dict[bytes, tuple[State, int]]:
    """Return by payload the state of each record, and how often it was claimed."""
    return {record.payload: (state, record.attempts) for state, record in contents(table)}


def order(records: list[Record], discipline: Discipline) -> list[Record]:
    """Return ready records in the order in which they must be claimed."""
    ordered = sorted(records, key=lambda record: record.id, reverse=discipline.newest_first)
    return sorted(ordered, key=lambda record: record.priority) if discipline.by_priority else ordered


def after_the_end(rows: list[Row], retry: ClaimPolicy) -> list[Row]:
    """Return these rows as they are after the holders of their claims died."""

    def moved(state: State, record: Record) -> Row:
        if state is not State.CLAIMED or not retry.auto_reclaim:
            return state, record
        dead = retry.max_attempts is not None and record.attempts >= retry.max_attempts
        return State.DEAD if dead else State.READY, record._replace(reason=HOLDER_DIED)

    return [moved(state, record) for state, record in rows]


def closed_as_died(rows: list[Row]) -> list[Row]:
    """Return these rows as they are if the holders that have closed had died instead."""

    def dead(record: Record) -> Record:
        return record._replace(reason=HOLDER_DIED) if record.reason == HOLDER_CLOSED else record

    return [(state, dead(record)) for state, record in rows]


def entries(*payloads: str) -> list[Entry]:
    """Return entries of these payloads, without keys, with the priorities 2, 1, 0, 2, 1, 0 and so on."""
    return [Entry(payload.encode(), 2 - index % 3) for index, payload in enumerate(payloads)]


def keyed(*payloads: str) -> list[Entry]:
    """Return entries of these payloads, each with its payload as the key."""
    return [Entry(payload.encode(), key=payload.encode()) for payload in payloads]


@contextlib.contextmanager
def refuses(error: type[BaseException], what: str, *tables: RecordStore) -> Iterator[None]:
    """Check that the block raises ``error``, and changes nothing."""
    before = [contents(table) for table in tables]
    try:
        yield
    except error as raised:
        check(type(raised) is error, f"{what} raised {raised!r}, not {error.__name__}")
    else:
        raise AssertionError(f"{what} did not raise {error.__name__}")
    after = [contents(table) for table in tables]
    check(after == before, f"{what} raised {error.__name__} and changed {before} to {after}")
