"""Every kind of collection as the catalogue names it, and what it has to tell of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from persistcoll import (
    FILOSQLiteAckQueue,
    FILOSQLiteQueue,
    PDict,
    PriorityQueue,
    Queue,
    SQLiteAckQueue,
    SQLiteQueue,
    UniqueAckQ,
    UniqueQ,
)

__all__ = ["CLASSES", "COUNTS", "IN_DATABASES", "told_of"]

CLASSES: dict[str, Callable[..., Any]] = {
    "queue": Queue,
    "fifo": SQLiteQueue,
    "lifo": FILOSQLiteQueue,
    "unique": UniqueQ,
    "priority": PriorityQueue,
    "fifo ack": SQLiteAckQueue,
    "lifo ack": FILOSQLiteAckQueue,
    "unique ack": UniqueAckQ,
    "dict": PDict,
}
IN_DATABASES = [kind for kind in CLASSES if kind != "queue"]
COUNTS = ("unfinished", "ready", "claimed", "delayed", "done", "failed", "dead", "blocked")


def told_of(container: Any) -> dict[str, int]:
    """The counts of the open container."""
    stats = container.stats()
    counts = {name: getattr(stats, name) for name in COUNTS[1:]}
    counts["unfinished"] = stats.ready + stats.claimed + stats.delayed + stats.blocked
    return counts
