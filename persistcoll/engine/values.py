"""The small values that pass between containers and stores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

__all__ = ["Durability", "OnCorruption", "Record", "Stats"]

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
    """Set aside: they will not be delivered (here: lost to damage that was skipped)."""
    oldest_age: float | None = None
    """Seconds since the oldest waiting item was put; ``None`` where there is none."""
    puts: int = 0
    """Items put since the queue was made."""
    gets: int = 0
    """Items acknowledged (or skipped, or cleared) since the queue was made."""
    bytes: int = 0
    """What the queue occupies."""
