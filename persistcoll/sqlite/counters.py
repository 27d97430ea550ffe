"""The numbers of one table, kept beside the database so that they need not be counted."""

from __future__ import annotations

from types import NoneType
from typing import Any

from persistcoll.engine.records import State
from persistcoll.sqlite.driver import Execute, corruption_error
from persistcoll.sqlite.statements import PairStatements, RecordStatements

__all__ = ["Counters"]


class Counters:
    """How many records of a table are in which state, as of the last look at the database.

    All handles of a process on one table share it. It is true while nobody else has written
    (see ``epoch`` of :class:`~persistcoll.sqlite.database.Database`), and is written in the transaction that
    changes it, except by a ``put``: what is stored is how many ids are *not* ready, and the last id is also
    that of the newest ready record, so a ``put`` need not write it.
    """

    __slots__ = (
        "claimed", "dead", "delayed", "done", "epoch", "failed", "finished", "last_id", "next_due_at",
        "ready", "sql",
    )  # fmt: skip

    def __init__(self, sql: RecordStatements | PairStatements | None) -> None:
        """:param sql: none for what is no table's: then it stays as it is."""
        self.sql = sql
        self.epoch = -1
        self.last_id = self.ready = self.claimed = self.delayed = 0
        self.done = self.failed = self.dead = self.finished = 0
        self.next_due_at: float | None = None
        """When the next delay or lease ends, at the earliest."""

    def load(self, execute: Execute) -> None:
        """Read it, all at one moment."""
        if self.sql is None:
            return
        row: Any = execute(self.sql.load).fetchone()
        if row is None:
            raise corruption_error("the counters of a collection")
        *numbers, highest, next_due_at = row
        if not all(type(number) is int for number in numbers):
            raise corruption_error("the counters of a collection")
        if not isinstance(highest, (int, NoneType)) or not isinstance(next_due_at, (int, float, NoneType)):
            raise corruption_error("an id or a time")
        last_id, absent, self.claimed, self.delayed, *numbers = numbers
        self.done, self.failed, self.dead, self.finished = numbers
        self.next_due_at = next_due_at
        self.last_id = last_id if highest is None else max(last_id, highest)
        self.ready = self.last_id - absent

    def save(self, execute: Execute) -> None:
        """Write it."""
        assert self.sql is not None
        execute(
            self.sql.save,
            (
                self.last_id,
                self.last_id - self.ready,
                self.claimed,
                self.delayed,
                self.done,
                self.failed,
                self.dead,
                self.finished,
            ),
        )

    def add(self, state: State, count: int) -> None:
        """Count ``count`` more in this state."""
        name = state.value
        setattr(self, name, getattr(self, name) + count)

    def count(self, state: State) -> int:
        """How many are in this state."""
        return int(getattr(self, state.value))

    def lower_next_due(self, until: float) -> None:
        """A delay or a lease that ends then was added."""
        if self.next_due_at is None or until < self.next_due_at:
            self.next_due_at = until
