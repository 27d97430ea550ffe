"""The small values that pass between containers and stores."""

from __future__ import annotations

import enum
import random
from dataclasses import dataclass
from typing import Literal, NamedTuple

from persistcoll.engine.arguments import checked_count, checked_number, checked_seconds

__all__ = [
    "FIFO",
    "HOLDER_CLOSED",
    "HOLDER_DIED",
    "LEASE_RAN_OUT",
    "LIFO",
    "NACKED",
    "PRIORITY",
    "UNIQUE",
    "Backoff",
    "ClaimPolicy",
    "CollectionInfo",
    "Discipline",
    "Durability",
    "Entry",
    "OnCorruption",
    "Record",
    "Registered",
    "Retain",
    "State",
    "Stats",
]

Durability = Literal["power", "process"]
"""What an operation that returned survives: a power cut, or the death of the process."""

OnCorruption = Literal["raise", "stop", "skip"]
"""What a reader does when it meets damage."""


NACKED = "nacked"
LEASE_RAN_OUT = "lease ran out"
HOLDER_DIED = "its worker died"
HOLDER_CLOSED = "its queue was closed"
"""Why a claim ended without an ack, where no consumer has said it."""


class Record(NamedTuple):
    """One stored item, as a store sees it."""

    id: int
    """Ids grow, and none is used twice."""
    payload: bytes
    time: float
    """When it was put: seconds since the epoch."""
    priority: float = 0
    """A store that orders by it claims the lowest first."""
    attempts: int = 0
    """How often it has been claimed, this claim included; counted by record stores."""
    own_mark: int | None = None
    """The number that the seal is bound to, if the store knows no id before it stores the payload."""
    reason: str | None = None
    """Why its last claim that was not acked ended; kept by record stores."""

    @property
    def mark(self) -> int:
        """The number that the payload's seal is bound to: the id, unless the store drew another number."""
        return self.id if self.own_mark is None else self.own_mark


class Entry(NamedTuple):
    """What is put into a record store."""

    payload: bytes
    priority: float = 0
    key: bytes | None = None
    """No other record with this key may be ready, delayed or claimed."""
    delay: float = 0.0
    """The seconds until it is ready. A delayed record needs no room."""


class State(enum.Enum):
    """The states of a record in a record store."""

    READY = "ready"
    """The next claim may deliver it."""
    DELAYED = "delayed"
    """It becomes ready at a later time."""
    BLOCKED = "blocked"
    """An earlier message of its group is not finished. Only messages have this state."""
    CLAIMED = "claimed"
    """A consumer has claimed it and not settled it."""
    DONE = "done"
    """It was acked, and is kept."""
    FAILED = "failed"
    """A consumer that had claimed it gave it up."""
    DEAD = "dead"
    """It was claimed as often as the claim policy allows."""


class Discipline(NamedTuple):
    """In which order a record store delivers, and what it refuses."""

    name: str
    newest_first: bool = False
    by_priority: bool = False
    """The lowest priority comes first; among equal ones, the lowest id."""
    unique: bool = False
    """A record whose key is active is refused."""


FIFO = Discipline("fifo")
LIFO = Discipline("lifo", newest_first=True)
PRIORITY = Discipline("priority", by_priority=True)
UNIQUE = Discipline("unique", unique=True)


@dataclass(frozen=True)
class Backoff:
    """How long an item is delayed before it is delivered again, in seconds: longer each time.

    >>> wait = Backoff(base=1, factor=2, limit=60, jitter=0)
    >>> [wait.delay(attempts) for attempts in (1, 2, 3, 10)]
    [1.0, 2.0, 4.0, 60.0]

    :raise TypeError: one of the values is no number.
    :raise ValueError: a number is negative, or ``jitter`` is above 1.
    """

    base: float = 1.0
    """Seconds after the first attempt."""
    factor: float = 2.0
    """By what the delay grows with each attempt."""
    limit: float = 3600.0
    """The longest delay in seconds, before ``jitter``."""
    jitter: float = 0.1
    """Up to this part of a delay is added or subtracted at random, so that not all end at once."""

    def __post_init__(self) -> None:
        for name in ("base", "factor", "limit", "jitter"):
            number = checked_number(name, getattr(self, name))
            object.__setattr__(self, name, number)
            if not number >= 0:  # Refuses NaN, too.
                raise ValueError(f"{name!r} of a Backoff must not be negative")
        if self.jitter > 1:
            raise ValueError("'jitter' of a Backoff must not be above 1")

    def delay(self, attempts: int) -> float:
        """Return how many seconds to wait after so many attempts. Cost: no write and no sync."""
        if not self.base:  # Otherwise a power that no float holds would make the limit of it.
            return 0.0
        try:
            seconds = min(self.base * self.factor ** max(0, attempts - 1), self.limit)
        except OverflowError:
            seconds = self.limit
        return float(seconds * (1 + random.uniform(-self.jitter, self.jitter)))


@dataclass(frozen=True)
class Retain:
    """Which records a log keeps, at least, when it removes old ones by itself.

    With several limits a record is kept only if it is within each of them. Whatever the limits, a record that
    a consumer has not committed is kept.

    >>> Retain(records=1_000_000, age=7 * 24 * 3600)
    Retain(records=1000000, bytes=None, age=604800.0)

    :param records: keep so many of the newest records.
    :param bytes: keep the newest records that occupy so many bytes.
    :param age: keep the records that are at most so many seconds old, by the system's clock.
    :raise TypeError: a limit is no number.
    :raise ValueError: a limit is negative.
    """

    records: int | None = None
    bytes: int | None = None
    age: float | None = None

    def __post_init__(self) -> None:
        for name in ("records", "bytes"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, checked_count(name, getattr(self, name)))
        if self.age is not None:
            object.__setattr__(self, "age", checked_seconds("age", self.age))


class ClaimPolicy(NamedTuple):
    """How a record store treats claimed records."""

    lease: float | None = None
    """Seconds after which a claim is lost; ``None``: it lasts until its holder ends."""
    max_attempts: int | None = None
    """A record that was claimed this often is dead when its claim ends without an ack; ``None``: never."""
    backoff: Backoff | None = None
    """How long a nacked record is delayed; ``None``: not at all."""
    keep_done: int = 0
    """How many of the newest acked records are kept, at least."""
    auto_reclaim: bool = True
    """Whether records that dead holders had claimed become ready again by themselves."""


@dataclass(frozen=True)
class Stats:
    """A queue's numbers at one moment. Counts are of items, sizes in bytes, ages in seconds."""

    ready: int
    """Ready to be got, those whose delay is over included; what ``qsize()`` returns. Of a dict: its pairs."""
    claimed: int = 0
    """Got and not settled, by any process."""
    delayed: int = 0
    """Waiting for the end of a delay; not among the ready ones."""
    done: int = 0
    """Acked and still stored, because of an ack queue's ``keep_acked``; 0 in files."""
    failed: int = 0
    """Set aside by ``ack_failed`` and still stored; 0 in files."""
    dead: int = 0
    """Set aside because they were got ``max_attempts`` times, and still stored.

    In files: records that this object passed over because they are damaged.
    """
    oldest_age: float | None = None
    """How long ago the ready item with the lowest id was put; ``None`` without one.

    It is by the system's clock, and of messages by the queue's clock, which no setting moves.
    """
    puts: int = 0
    """Put since the queue was made, whatever became of them; an item that gets a new id counts once."""
    gets: int = 0
    """How many of these will never be delivered again.

    They were acked, failed, dead, skipped, cleared, or in files passed over as damaged. It is not the number
    of times that ``get`` returned: an item that was nacked and got again counts once, when it is settled.
    """
    bytes: int = 0
    """What the store's files occupy; several queues may share a database."""
    blocked: int = 0
    """Blocked by an earlier message of their group. Only messages have this state."""
    expired: int = 0
    """Messages that were removed because their ``ttl`` was over."""


class Registered(NamedTuple):
    """A collection as the registry of a database describes it."""

    number: int
    """Its tables are named by it."""
    name: str
    kind: str
    serializer: str
    version: int
    """Of its format."""
    created: float
    """Seconds since the epoch."""


@dataclass(frozen=True)
class CollectionInfo:
    """What a store says of one collection in it. A count is ``None`` where it cannot be told.

    That is where counting would cost more than a look, where the format is a later one, and where what is to
    be counted is damaged. What is due, because a delay or a lease has ended, is counted where the last writer
    left it: as delayed or claimed.
    """

    kind: str
    """``"queue"`` for a :class:`~persistcoll.Queue`, ``"log"`` for a :class:`~persistcoll.Log`; in a
    database ``"fifo"``, ``"lifo"``, ``"unique"``, ``"priority"``, ``"fifo ack"``, ``"lifo ack"``, ``"unique
    ack"``, ``"messages"`` or ``"dict"``."""
    name: str | None
    """In its database; ``None`` for a queue or a log in files, which has a directory of its own."""
    path: str
    """The queue's directory, or the database's file: absolute. On a server its URL, without a password."""
    serializer: str
    """The name of the serializer that it was made with."""
    version: int
    """Of its format."""
    created: float
    """When it was made: seconds since the epoch."""
    chunksize: int | None = None
    """Records in one file of a queue or a log in files, as it was made."""
    unfinished: int | None = None
    """Items that are ready, delayed, blocked or claimed; of a dict its pairs, of a log all of its items."""
    ready: int | None = None
    """Items that are ready; of a dict its pairs, ``None`` while there are expired ones among them."""
    claimed: int | None = None
    """Items that are claimed. Of a queue in files ``None``, and so is ``ready``, while a
    consumer may have some: only a lock would tell whether it lives."""
    delayed: int | None = None
    done: int | None = None
    failed: int | None = None
    dead: int | None = None
    """A queue in files has none of these four states, and says 0."""
    blocked: int | None = None
    """Blocked by an earlier message of their group. All but message queues say 0."""
