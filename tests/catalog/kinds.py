"""Every kind of collection as the catalogue names it, and what it has to tell of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

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
from persistcoll.sqlite import driver

__all__ = ["CLASSES", "COUNTS", "IN_DATABASES", "told_of", "watch_looks"]

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


def watch_looks(monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], list[int]]:
    """Return what collects the statements of each look into a database, and SQLite's instructions."""
    statements: list[str] = []
    steps: list[int] = []
    connect = driver.connect_read_only

    def watched(path: str, timeout: float, immutable: bool) -> Any:
        connection = connect(path, timeout, immutable)
        connection.set_trace_callback(statements.append)
        connection.set_progress_handler(lambda: steps.append(1), 1)
        return connection

    monkeypatch.setattr(driver, "connect_read_only", watched)
    return statements, steps
