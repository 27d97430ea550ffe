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
    """The lowest is claimed first, where the store goes by it."""
    attempts: int = 0
    """How often it has been claimed, this time included; counted by record stores."""
    own_mark: int | None = None
    """What the seal is bound to where the store knows no id before it stores the payload."""

    @property
    def mark(self) -> int:
        """The number that the seal of the payload is bound to: the id, unless the store drew another."""
        return self.id if self.own_mark is None else self.own_mark


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
    auto_reclaim: bool = True
    """Whether what dead holders had claimed is given back."""


@dataclass(frozen=True)
class Stats:
    """A queue's numbers at one moment. Counts are of items, sizes in bytes, ages in seconds."""

    ready: int
    """Waiting to be got, those whose delay is over included; what ``qsize()`` says. Of a dict: its pairs."""
    claimed: int = 0
    """Got and not settled, by whichever process."""
    delayed: int = 0
    """Waiting for the end of a delay; not among the ready ones."""
    done: int = 0
    """Acknowledged and still stored, by an ack queue's ``keep_acked``; 0 in files."""
    failed: int = 0
    """Set aside by ``ack_failed`` and still stored; 0 in files."""
    dead: int = 0
    """Set aside because they were got ``max_attempts`` times, and still stored. In files: records that this
    object passed over because they are damaged.
    """
    oldest_age: float | None = None
    """How long ago the ready item with the lowest id was put, by the system's clock; ``None`` without one."""
    puts: int = 0
    """Put since the queue was made, whatever became of them; an item that gets a new id counts once."""
    gets: int = 0
    """Of these, how many nobody will get any more: acknowledged, failed, dead, skipped, cleared, or
    in files passed over as damaged. Not how often ``get`` returned: an item that is given back and got again
    counts once, when it is settled.
    """
    bytes: int = 0
    """What the store's files occupy; several queues may share a database."""
