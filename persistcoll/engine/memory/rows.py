"""The rows of :class:`~persistcoll.engine.memory.record_store.MemoryRecordStore`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from persistcoll.engine.memory.transactions import TransactionalState
from persistcoll.engine.records import State

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["FINISHED", "UNFINISHED", "MemoryRecordState", "Row"]


UNFINISHED = (State.READY, State.DELAYED, State.CLAIMED)
FINISHED = (State.DONE, State.FAILED, State.DEAD)


@dataclass
class Row:
    """A record with its state."""

    id: int
    payload: bytes
    time: float
    priority: float
    key: bytes | None
    attempts: int = 0
    deliveries: int = 0
    """How often the record was claimed. A requeue leaves it, so that it distinguishes each claim."""
    reason: str | None = None
    state: State = State.READY
    until: float | None = None
    """The time at which the delay or the lease ends, in seconds by the clock; ``None``: there is none."""
    holder: object = None
    """The store that has claimed the record; ``None`` if no store has, or if that store is dead."""


class MemoryRecordState(TransactionalState):
    """The records of a ``MemoryRecordStore``. In a copy the holder of each claim is dead."""

    NUMBERS = ("last_id", "puts")

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        super().__init__(clock)
        self.rows: dict[int, Row] = {}
        self.last_id = 0
        self.puts = 0

    def copy(self) -> Self:
        other = super().copy()
        for row in other.rows.values():
            row.holder = None
        return other

    # The caller of the methods below holds the lock.

    def select(self, *states: State) -> list[Row]:
        """Return the rows in these states, in the order of their ids."""
        rows = [row for row in self.rows.values() if row.state in states]
        return sorted(rows, key=lambda row: row.id)

    def of_key(self, key: bytes | None) -> Row | None:
        """Return the row for which ``key`` is active, or ``None``. The key ``None`` is never active."""
        rows = [row for row in self.select(*UNFINISHED) if row.key == key]
        return rows[0] if rows and key is not None else None

    def add(self, row: Row) -> int:
        """Store a row after all others and return its new id."""
        self.changes += 1
        self.last_id += 1
        row.id = self.last_id
        self.rows[row.id] = row
        return row.id

    def move(self, row: Row, state: State, until: float | None = None) -> None:
        """Put a row into another state, without a holder."""
        self.changes += 1
        row.state, row.until, row.holder = state, until, None

    def remove(self, row: Row) -> None:
        """Remove a row for good."""
        self.changes += 1
        del self.rows[row.id]
