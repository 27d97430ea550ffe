"""The small values that pass between containers and stores."""

from __future__ import annotations

import enum
import random
from dataclasses import dataclass
from typing import Literal, NamedTuple

from persistcoll.engine.arguments import checked_number

__all__ = [
    "FIFO",
    "LIFO",
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
    "State",
    "Stats",
]

Durability = Literal["power", "process"]
"""What an operation that returned survives: a power cut, or the death of the process."""

OnCorruption = Literal["raise", "stop", "skip"]
"""What reading does when it meets damage."""


class Record(NamedTuple):
    """One stored item, as a store sees it."""

    id: int
    """Ids grow and are never used twice."""
    payload: bytes
    time: float
    """When it was put: seconds since the epoch."""
    priority: float = 0
    """The lowest is taken first, where the store goes by it."""
    attempts: int = 0
    """How often it has been claimed, this time included; counted by tables."""


class Entry(NamedTuple):
    """What is put into a table."""

    payload: bytes
    priority: float = 0
    key: bytes | None = None
    """No other record of this key may be ready, delayed or claimed."""


class State(enum.Enum):
    """Where a record of a table stands."""

    READY = "ready"
    """To be taken by whoever comes first."""
    DELAYED = "delayed"
    """Ready at a later time."""
    CLAIMED = "claimed"
    """In somebody's hands."""
    DONE = "done"
    """Acknowledged, and kept."""
    FAILED = "failed"
    """Given up by who had claimed it."""
    DEAD = "dead"
    """Given up because it was claimed too often."""


class Discipline(NamedTuple):
    """In which order a table is taken from, and what it refuses."""

    name: str
    newest_first: bool = False
    by_priority: bool = False
    """The lowest priority first; among equals, by id."""
    unique: bool = False
    """A record whose key is in force is refused."""


FIFO = Discipline("fifo")
LIFO = Discipline("lifo", newest_first=True)
PRIORITY = Discipline("priority", by_priority=True)
UNIQUE = Discipline("unique", unique=True)


@dataclass(frozen=True)
class Backoff:
    """How long an item waits before it is delivered again, in seconds: longer each time.

    >>> wait = Backoff(base=1, factor=2, limit=60, jitter=0)
    >>> [wait.delay(attempts) for attempts in (1, 2, 3, 10)]
    [1.0, 2.0, 4.0, 60.0]

    :raise TypeError: one of them is no number.
    :raise ValueError: a number is negative, or ``jitter`` above 1.
    """

    base: float = 1.0
    """After the first attempt."""
    factor: float = 2.0
    """By what it grows with each attempt."""
    limit: float = 3600.0
    """The longest."""
    jitter: float = 0.1
    """Up to this part of it is added or taken off by chance, so that not all come back at once."""

    def __post_init__(self) -> None:
        for name in ("base", "factor", "limit", "jitter"):
            number = checked_number(name, getattr(self, name))
            object.__setattr__(self, name, number)
            if not number >= 0:  # NaN too
                raise ValueError(f"{name!r} of a Backoff must not be negative")
        if self.jitter > 1:
            raise ValueError("'jitter' of a Backoff must not be above 1")

    def delay(self, attempts: int) -> float:
        """Seconds to wait after so many attempts."""
        try:
            seconds = min(self.base * self.factor ** max(0, attempts - 1), self.limit)
        except OverflowError:
            seconds = self.limit
        return float(seconds * (1 + random.uniform(-self.jitter, self.jitter)))


class ClaimPolicy(NamedTuple):
    """How a table treats what is claimed."""

    lease: float | None = None
    """Seconds after which a claim is lost; ``None``: it is held until its holder ends."""
    max_attempts: int | None = None
    """A record that was claimed so often and comes back is dead; ``None``: never."""
    backoff: Backoff | None = None
    """How long what comes back is delayed; ``None``: not at all."""
    keep_done: int = 0
    """How many of the newest acknowledged records are kept, at least."""
    resume: bool = True
    """Whether what dead holders had claimed is given back."""


@dataclass(frozen=True)
class Stats:
    """A queue's numbers at one moment. Counts are of items, sizes in bytes, ages in seconds."""

    ready: int
    """Waiting to be taken; what ``qsize()`` says."""
    claimed: int = 0
    """Taken and not yet acknowledged."""
    delayed: int = 0
    done: int = 0
    failed: int = 0
    dead: int = 0
    """They will not be delivered: got too often, or, in files, lost to damage that was skipped."""
    oldest_age: float | None = None
    """Seconds since the oldest waiting item was put; ``None`` where there is none."""
    puts: int = 0
    """Items put since the queue was made."""
    gets: int = 0
    """Items acknowledged, given up, skipped or cleared since the queue was made."""
    bytes: int = 0
    """What the queue's files occupy; several queues may share a database."""


@dataclass(frozen=True)
class CollectionInfo:
    """What a store says of one collection in it. A count is ``None`` where it cannot be told.

    That is where counting would cost more than a look, where the format is a later one, and where what is to
    be counted is damaged. What is due, because a delay or a lease has ended, is counted where the last writer
    left it: as delayed or claimed.
    """

    kind: str
    """``"queue"`` for a :class:`~persistcoll.Queue`; in a database ``"fifo"``, ``"lifo"``, ``"unique"``,
    ``"priority"``, ``"fifo ack"``, ``"lifo ack"``, ``"unique ack"`` or ``"dict"``."""
    name: str | None
    """In its database; ``None`` for a queue in files, which has a directory of its own."""
    path: str
    """The queue's directory, or the database's file: absolute."""
    serializer: str
    """The name of the serializer that it was made with."""
    version: int
    """Of its format."""
    created: float
    """When it was made: seconds since the epoch."""
    chunksize: int | None = None
    """Records in one file of a queue in files, as it was made."""
    unfinished: int | None = None
    """Items that are ready, delayed or claimed; of a dict its pairs."""
    ready: int | None = None
    """Items waiting to be taken; of a dict its pairs, ``None`` while there are expired ones among them."""
    claimed: int | None = None
    """Items taken and not yet acknowledged. Of a queue in files ``None``, and so is ``ready``, while a
    consumer may have some: only a lock would tell whether it lives."""
    delayed: int | None = None
    done: int | None = None
    failed: int | None = None
    dead: int | None = None
    """A queue in files has none of these four states, and says 0."""
