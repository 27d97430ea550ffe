"""What every layout can do, and how its database is opened."""

from __future__ import annotations

import os
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from enum import IntEnum
from typing import Any, ClassVar, NamedTuple, TypeVar

S = TypeVar("S", bound="Store")

__all__ = [
    "DATABASE", "PAGE", "TOPICS", "Claim", "Layout", "Message", "Note", "State", "Store", "opened",
]  # fmt: skip

DATABASE = "data.db"

PAGE = 1024
TOPICS = 10

# SQLite numbers the rows of a fill by itself, because a million parameters would take longer.
_NUMBERS = "WITH RECURSIVE n(i) AS (VALUES(:first) UNION ALL SELECT i + 1 FROM n WHERE i < :last)"


class State(IntEnum):
    """The states of a message, numbered as the columns of the layouts have them."""

    READY = 0
    CLAIMED = 1
    DELAYED = 2
    BLOCKED = 3
    DONE = 4
    DEAD = 6


class Message(NamedTuple):
    """What a producer puts."""

    topic: int
    body: bytes
    place: float = 0
    """The negative priority, so that every order is ascending."""
    due: float | None = None
    group: str | None = None
    key: bytes | None = None
    expires: float | None = None


class Note(NamedTuple):
    """What a layout stores beside the body and never changes."""

    id: int
    topic: int
    place: float
    time: float
    expires: float | None
    key: bytes | None
    grp: str | None
    crc: int


class Claim(NamedTuple):
    """A message in flight. ``id`` and ``deliveries`` are the fence; the rest says where its rows are."""

    id: int
    topic: int
    place: float
    deliveries: int
    attempts: int
    holder: int
    until: float
    key: bytes | None
    group: str | None
    body: bytes


class Store(ABC):
    """What is measured. Every method runs within a transaction of the caller."""

    name: ClassVar[str]
    tables: ClassVar[Sequence[str]]
    """The statements that make the tables and indexes."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.execute: Callable[..., sqlite3.Cursor] = connection.cursor().execute
        self.executemany: Callable[..., sqlite3.Cursor] = connection.cursor().executemany
        self.cursor = connection.cursor
        self.last_id = 0
        self._later: dict[str, list[Sequence[Any]]] = {}

    def create(self) -> None:
        """Make the tables of an empty queue."""
        for text in self.tables:
            self.execute(text)

    def later(self, text: str, row: Sequence[Any]) -> None:
        """Have :meth:`flush` execute a statement, together with the others of the same text."""
        self._later.setdefault(text, []).append(row)

    def flush(self) -> int:
        """Execute what :meth:`later` was given, and return how many rows that has changed."""
        changed = 0
        for text, rows in self._later.items():
            one = len(rows) == 1
            changed += (self.execute(text, rows[0]) if one else self.executemany(text, rows)).rowcount
        self._later.clear()
        return changed

    @abstractmethod
    def put(self, messages: Iterable[Message], now: float) -> list[int | None]:
        """Store messages; return the id of each, or ``None`` where its key is active."""

    @abstractmethod
    def claim(self, topics: Sequence[int] | None, n: int, holder: int, until: float) -> list[Claim]:
        """Claim the first ``n`` ready messages of these topics, or of any; in the order of delivery."""

    @abstractmethod
    def ack(self, claims: Sequence[Claim], keep: bool = False) -> None:
        """Finish claimed messages; ``keep`` them as done, or remove them."""

    @abstractmethod
    def fill(self, state: State, first: int, last: int, body: bytes) -> None:
        """Store messages with these ids in a state, by as few statements as possible."""

    def _fill(self, text: str, first: int, last: int, body: bytes, **values: Any) -> None:
        """Run an INSERT whose SELECT reads ``n(i)``."""
        values.update(first=first, last=last, body=body)
        self.execute(text.replace("SELECT", f"{_NUMBERS} SELECT", 1), values)
        self.last_id = max(self.last_id, last)


class Layout(Store):
    """Tables and statements of a queue of messages.

    A topic is a number here: ``topics`` has its name, and a process remembers the few names that it uses.
    """

    common: ClassVar[Sequence[str]] = (
        "CREATE TABLE topics (number INTEGER PRIMARY KEY, name TEXT UNIQUE)",
        "CREATE TABLE keys (key BLOB PRIMARY KEY, id INTEGER, until REAL) WITHOUT ROWID",
        "CREATE TABLE groups (topic INTEGER, grp TEXT, n INTEGER, PRIMARY KEY (topic, grp)) WITHOUT ROWID",
    )

    def create(self) -> None:
        for text in self.common:
            self.execute(text)
        super().create()
        self.executemany("INSERT INTO topics VALUES (?, ?)", [(n, f"topic {n}") for n in range(TOPICS)])

    # What a producer and a consumer do.

    def put(self, messages: Iterable[Message], now: float) -> list[int | None]:
        ids: list[int | None] = []
        for message in messages:
            id = self.last_id + 1
            if message.key is not None and not self._take_key(message.key, id):
                ids.append(None)
                continue
            state = State.READY if message.due is None else State.DELAYED
            if message.group is not None and self._count_group(message.topic, message.group, 1) > 1:
                state = State.BLOCKED
            self.last_id = id
            topic, body, place, due, group, key, expires = message
            self.insert(Note(id, topic, place, now, expires, key, group, id), body, state, due)
            ids.append(id)
        self.after_puts()
        return ids

    def ack(self, claims: Sequence[Claim], keep: bool = False) -> None:
        self.settle(claims, State.DONE if keep else None)
        self._after_finish(claims)

    def fail(self, claims: Sequence[Claim]) -> None:
        """Make claimed messages dead. They stay stored."""
        self.settle(claims, State.DEAD)
        self._after_finish(claims)

    @abstractmethod
    def nack(self, claim: Claim, due: float | None) -> None:
        """Make a claimed message ready in its old place, at once or at a time."""

    @abstractmethod
    def promote(self, now: float) -> int:
        """Make ready what is delayed, and what is claimed under a lease, until now; return how many."""

    @abstractmethod
    def reclaim(self, holder: int) -> int:
        """Make ready what a dead holder had claimed; return how many."""

    @abstractmethod
    def trim(self, n: int) -> None:
        """Remove the ``n`` oldest done messages."""

    @abstractmethod
    def counts(self) -> dict[int, int]:
        """Return how many messages of each topic are ready: read from the database, and from nothing else."""

    # What the layouts do differently.

    @abstractmethod
    def insert(self, note: Note, body: bytes, state: State, due: float | None) -> None:
        """Store one new message."""

    @abstractmethod
    def settle(self, claims: Sequence[Claim], state: State | None) -> None:
        """End claims: into a final state, or by removal."""

    @abstractmethod
    def unblock(self, topic: int, group: str) -> None:
        """Make the next message of a group ready."""

    @abstractmethod
    def after_puts(self) -> None:
        """Store what the puts of a transaction have changed together, and :meth:`flush`."""

    # Keys and groups, which all layouts treat alike.

    def _take_key(self, key: bytes, id: int) -> bool:
        return self.execute("INSERT OR IGNORE INTO keys VALUES (?, ?, NULL)", (key, id)).rowcount > 0

    def _count_group(self, topic: int, group: str, change: int) -> int:
        ((n,),) = self.execute(
            "INSERT INTO groups VALUES (?, ?, ?) ON CONFLICT (topic, grp) DO UPDATE SET n = n + excluded.n"
            " RETURNING n",
            (topic, group, change),
        ).fetchall()
        return int(n)

    def _after_finish(self, claims: Sequence[Claim]) -> None:
        for claim in claims:
            if claim.key is not None:
                self.execute("DELETE FROM keys WHERE key = ?", (claim.key,))
            if claim.group is None:
                continue
            if self._count_group(claim.topic, claim.group, -1):
                self.unblock(claim.topic, claim.group)
            else:
                self.execute("DELETE FROM groups WHERE topic = ? AND grp = ?", (claim.topic, claim.group))


@contextmanager
def opened(make: Callable[[sqlite3.Connection], S], directory: str) -> Iterator[S]:
    """Give a new layout in a database with the settings of persistcoll's driver."""
    path = os.path.join(directory, DATABASE)
    with closing(sqlite3.connect(path, isolation_level=None, cached_statements=512)) as connection:
        for pragma in (
            "trusted_schema=OFF",
            "cell_size_check=ON",
            f"page_size={PAGE}",
            "journal_mode=WAL",
            # As in the package: the caller syncs the log on a descriptor of its own.
            "synchronous=NORMAL",
            "wal_autocheckpoint=4096",
            f"journal_size_limit={16 * 4096 * PAGE}",
            "temp_store=MEMORY",
            "secure_delete=OFF",
        ):
            connection.execute(f"PRAGMA {pragma}").fetchall()
        layout = make(connection)
        layout.execute("BEGIN IMMEDIATE")
        layout.create()
        layout.execute("COMMIT")
        yield layout
