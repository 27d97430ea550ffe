"""The rows of :class:`~persistcoll.engine.memory.record_store.MemoryRecordStore`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from persistcoll.engine.records import Record, State

__all__ = ["FINISHED", "IN_FORCE", "MemoryRecordState", "Row"]

IN_FORCE = (State.READY, State.DELAYED, State.CLAIMED)
FINISHED = (State.DONE, State.FAILED, State.DEAD)


@dataclass
class Row:
    """A record, and where it stands."""

    id: int
    payload: bytes
    time: float
    priority: float
    key: bytes | None
    attempts: int = 0
    state: State = State.READY
    until: float | None = None
    """When the delay or the lease ends."""
    holder: object = None
    """Who has claimed it; ``None`` where that one is dead."""

    def record(self, attempts: int | None = None) -> Record:
        """What a table gives away; ``attempts`` in place of its own."""
        counted = self.attempts if attempts is None else attempts
        return Record(self.id, self.payload, self.time, self.priority, counted)


class MemoryRecordState:
    """What a ``MemoryRecordStore`` keeps, also when it is closed.

    Tables of the same state are to each other as tables in several processes are that have opened the
    same file. A copy (:meth:`copy`) is what a process that died at this moment leaves behind.

    :param clock: the seconds since the epoch.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.lock = threading.RLock()  # so that `decode` may copy
        self.clock = clock
        self.rows: dict[int, Row] = {}
        self.last_id = 0
        self.puts = 0
        self.changes = 0

    def copy(self) -> MemoryRecordState:
        """The same rows; whoever had claimed one is dead."""
        with self.lock:
            other = MemoryRecordState(self.clock)
            other.rows = {id: replace(row, holder=None) for id, row in self.rows.items()}
            other.last_id, other.puts = self.last_id, self.puts
            return other

    # With the lock held.

    def select(self, *states: State) -> list[Row]:
        """The rows in these states, by id."""
        rows = [row for row in self.rows.values() if row.state in states]
        return sorted(rows, key=lambda row: row.id)

    def of_key(self, key: bytes | None) -> Row | None:
        """What is in force of this key; nothing is of ``None``."""
        rows = [row for row in self.select(*IN_FORCE) if row.key == key]
        return rows[0] if rows and key is not None else None

    def add(self, row: Row) -> int:
        """Store a row behind all others; return its new id."""
        self.changes += 1
        self.last_id += 1
        row.id = self.last_id
        self.rows[row.id] = row
        return row.id

    def move(self, row: Row, state: State, until: float | None = None) -> None:
        """Put a row into another state, in nobody's hands."""
        self.changes += 1
        row.state, row.until, row.holder = state, until, None

    def remove(self, row: Row) -> None:
        """Remove a row for good."""
        self.changes += 1
        del self.rows[row.id]
