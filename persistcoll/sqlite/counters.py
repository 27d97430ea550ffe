"""Count the records of one collection, so that no operation has to count rows."""

from __future__ import annotations

from types import NoneType
from typing import Any

from persistcoll.engine.records import State
from persistcoll.sqlite.driver import Execute, corruption_error
from persistcoll.sqlite.message_statements import MessageStatements
from persistcoll.sqlite.statements import PairStatements, RecordStatements

__all__ = ["Counters"]


class Counters:
    """How many records of a collection are in which state, as of the last read or write of the database.

    All handles of a process on one collection share the counters, and the database's lock protects them. They
    are true as long as no other process has written (see ``epoch`` of
    :class:`~persistcoll.sqlite.database.Database`).

    The transaction that changes them also stores them, except a ``put``. The database stores the last id and
    how many ids up to it are *not* ready. A ``put`` leaves the second number as it is, and :meth:`load` finds
    the last id also at the newest ready record, so a ``put`` stores neither.

    :param sql: the collection's statements; ``None``: there is no collection, and :meth:`load` does nothing.
    :ivar next_due_at: when the next delay or lease ends, at the earliest.
    """

    __slots__ = (
        "claimed", "dead", "delayed", "done", "epoch", "failed", "finished", "last_id", "next_due_at",
        "ready", "sql",
    )  # fmt: skip

    def __init__(self, sql: RecordStatements | PairStatements | MessageStatements | None) -> None:
        self.sql = sql
        self.epoch = -1
        self.last_id = self.ready = self.claimed = self.delayed = 0
        self.done = self.failed = self.dead = self.finished = 0
        self.next_due_at: float | None = None

    def new(self) -> Counters:
        """Return counters of the same collection that are not loaded."""
        return Counters(self.sql)

    def has_held(self) -> bool:
        """Tell whether a holder may hold something."""
        return self.claimed > 0

    def load(self, execute: Execute) -> None:
        """Read the counters with one statement, and so from one snapshot."""
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

    def at(self, epoch: int, execute: Execute) -> Counters:
        """Return these counters, read again unless they are of that epoch of the database."""
        if self.epoch != epoch:
            self.load(execute)
            self.epoch = epoch
        return self

    def without_due(self, epoch: int, execute: Execute) -> Counters:
        """Return these counters as if nothing were due, because only a writer can change what is due."""
        if self.epoch < 0:
            self.at(epoch, execute)
        self.next_due_at = None
        return self

    def save(self, execute: Execute) -> None:
        """Write the counters, within a transaction."""
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
        """Count ``count`` more records in this state."""
        name = state.value
        setattr(self, name, getattr(self, name) + count)

    def count(self, state: State) -> int:
        """Return how many records are in this state."""
        return int(getattr(self, state.value))

    def lower_next_due(self, until: float) -> None:
        """Note that a delay or a lease ends at ``until``."""
        if self.next_due_at is None or until < self.next_due_at:
            self.next_due_at = until
