"""The rows of :class:`~persistcoll.engine.memory.message_store.MemoryMessageStore`."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from persistcoll.engine.memory.transactions import TransactionalState
from persistcoll.engine.message_records import MessageClaim, MessageEntry
from persistcoll.engine.records import State

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["UNCLAIMED", "UNFINISHED", "ActiveKey", "MemoryMessageState", "MessageRow", "Rate", "TopicLock"]


UNCLAIMED = (State.READY, State.DELAYED, State.BLOCKED)
UNFINISHED = (*UNCLAIMED, State.CLAIMED)


@dataclass
class MessageRow:
    """A message with its state."""

    id: int
    entry: MessageEntry
    time: float
    state: State
    until: float | None
    """When its delay or its lease ends, by the clock; ``None`` without one."""
    expires: float | None
    attempts: int = 0
    deliveries: int = 0
    error: str | None = None
    token: int | None = None
    """That of its claim."""
    holder: object = None
    """The store that has claimed it; ``None`` if no store has, or if that store is dead."""
    delivered: bool = False
    finished: float | None = None
    """When it became done or dead."""

    @property
    def group(self) -> tuple[str, str] | None:
        """The topic and the group; ``None`` without a group."""
        return None if self.entry.group is None else (self.entry.topic, self.entry.group)

    @property
    def due(self) -> float | None:
        """The time at which something happens to the message by itself."""
        if self.state is State.CLAIMED:
            return self.until
        if self.state not in UNCLAIMED:
            return None
        delay = self.until if self.state is State.DELAYED else None
        return min((each for each in (delay, self.expires) if each is not None), default=None)

    @property
    def claim(self) -> MessageClaim:
        """Its present claim."""
        return MessageClaim(self.id, self.token or 0)


class ActiveKey(NamedTuple):
    """A key, and the message for which it is or was active."""

    id: int
    until: float
    """The end of its window."""
    unfinished: bool = True


class Rate(NamedTuple):
    """How often messages of a topic are delivered.

    It is the generic cell rate algorithm (ITU-T I.371): ``next`` is the time at which the next delivery would
    be if all of them were evenly spaced. A delivery may be ``burst - 1`` intervals early.
    """

    interval: float
    burst: int
    next: float

    def free(self, now: float) -> int:
        """Return how many deliveries are possible now."""
        # A float rounds a time of this century by less than a microsecond.
        unused = (now - self.opens + 1e-6) // self.interval + 1
        return int(max(0.0, min(unused, self.burst)))

    @property
    def opens(self) -> float:
        """The time from which one delivery is possible."""
        return self.next - (self.burst - 1) * self.interval


class TopicLock(NamedTuple):
    """Which store object alone claims from a topic."""

    token: int
    holder: object
    """``None``: it is dead."""
    until: float | None


class MemoryMessageState(TransactionalState):
    """The messages of a ``MemoryMessageStore``. In a copy the holder of each claim and lock is dead."""

    TABLES = ("rows", "keys", "rates", "paused", "locks")
    NUMBERS = ("last_id", "puts", "expired")

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        super().__init__(clock)
        self.rows: dict[int, MessageRow] = {}
        self.keys: dict[bytes, ActiveKey] = {}
        self.rates: dict[str, Rate] = {}
        self.paused: dict[str, bool] = {}
        self.locks: dict[str, TopicLock] = {}
        self.last_id = 0
        self.puts = 0
        self.expired = 0
        self.tokens = itertools.count(1)
        """No rollback changes it, so a claim that was rolled back has a token that no other claim has."""

    def copy(self) -> Self:
        other = super().copy()
        other.kill_holders()
        other.tokens = itertools.count(next(self.tokens))
        return other

    # The caller of the methods below holds the lock.

    def kill_holders(self) -> None:
        """Let the holder of each claim and of each lock be dead."""
        for row in self.rows.values():
            row.holder = None
        self.locks = {topic: lock._replace(holder=None) for topic, lock in self.locks.items()}

    def select(self, *states: State, topic: str | None = None) -> list[MessageRow]:
        """Return the rows in these states, of a topic or of all, in the order of their ids."""
        rows = [row for row in self.rows.values() if row.state in states]
        return sorted((row for row in rows if topic in (None, row.entry.topic)), key=lambda row: row.id)

    def add(self, row: MessageRow) -> int:
        """Store a row after all others and return its new id."""
        self.last_id += 1
        row.id = self.last_id
        self.rows[row.id] = row
        return row.id
