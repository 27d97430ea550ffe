"""Message stores whose delays or ttls begin or end wrongly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from persistcoll.engine.memory.message_rows import MemoryMessageState, MessageRow
from persistcoll.engine.memory.message_store import MemoryMessageStore
from persistcoll.engine.message_records import MessageClaim, MessageEntry
from persistcoll.engine.records import State
from tests.conformance.wrong_messages.registry import breaks

# Q3


class _Delayed(MemoryMessageStore):
    """A store whose delays end at another time."""

    def _move(self, row: MessageRow, state: State, until: float | None = None) -> None:
        if state is State.DELAYED and until is not None:
            until = self.end(until)
        super()._move(row, state, until)

    def _put(self, entry: MessageEntry) -> int | None:
        id = super()._put(entry)
        row = None if id is None else self._state.rows[id]
        if row is not None and row.until is not None:
            row.until = self.end(row.until)
        return id

    def end(self, until: float) -> float:
        raise NotImplementedError


@breaks("Q3")
class DelaysEndEarly(_Delayed):
    def end(self, until: float) -> float:
        return until - 0.5


@breaks("Q3")
class DelaysEndLate(_Delayed):
    def end(self, until: float) -> float:
        return until + 0.1


@breaks("Q3")
class WholeSeconds(_Delayed):
    def end(self, until: float) -> float:
        return float(math.ceil(until))


@breaks("Q3")
class DelaysOfAYearAtMost(_Delayed):
    def end(self, until: float) -> float:
        return until if until < self._state.clock() + 1e8 else self._state.clock()


@breaks("Q3")
class IgnoresTheDelayOfAPut(MemoryMessageStore):
    def _put(self, entry: MessageEntry) -> int | None:
        return super()._put(entry._replace(delay=0.0))


@breaks("Q3")
class IgnoresTheDelayOfANack(MemoryMessageStore):
    def nack(
        self, claims: Sequence[MessageClaim], delay: float | None = None, error: str | None = None
    ) -> None:
        super().nack(claims, None, error)


@breaks("Q3")
class OneDelayForABatch(MemoryMessageStore):
    def put(self, entries: Sequence[MessageEntry], **options: Any) -> list[int | None]:
        return super().put([entry._replace(delay=entries[0].delay) for entry in entries], **options)


@breaks("Q3")
class DelayedAgainAfterEachClaim(MemoryMessageStore):
    def _come_back(self, row: MessageRow, delay: float = 0.0) -> None:
        super()._come_back(row, delay or row.entry.delay)


@breaks("Q3")
class RemembersTheDelayOfANack(MemoryMessageStore):
    def nack(
        self, claims: Sequence[MessageClaim], delay: float | None = None, error: str | None = None
    ) -> None:
        with self._state.lock:
            for row in self._claimed(claims):
                row.entry = row.entry._replace(delay=delay or 0.0)
            super().nack(claims, delay, error)

    def _come_back(self, row: MessageRow, delay: float = 0.0) -> None:
        super()._come_back(row, delay or row.entry.delay)


@breaks("Q3")
class DelayBeginsAtTheHead(MemoryMessageStore):
    def _next_head(self, group: tuple[str, str]) -> None:
        for row in self._state.select(State.BLOCKED):
            if row.group == group:
                row.until = row.entry.delay and self._state.clock() + row.entry.delay
                break
        super()._next_head(group)


@breaks("Q3")
class BlockedBecomesReady(MemoryMessageStore):
    """The end of a delay makes a message ready, blocked or not."""

    def _promote_due(self) -> MemoryMessageState:
        state = super()._promote_due()
        for row in state.select(State.BLOCKED):
            if row.until is not None and row.until <= state.clock():
                self._move(row, State.READY)
        return state


@breaks("Q3")
class KeepsTheTimeOfADelay(MemoryMessageStore):
    def _move(self, row: MessageRow, state: State, until: float | None = None) -> None:
        was_delayed, end = row.state is State.DELAYED, row.until
        super()._move(row, state, until)
        if was_delayed and state is State.READY:
            row.until = end


class _Late(MemoryMessageStore):
    """A store in which one call does not look at what is due."""

    blind = False

    def _promote_due(self) -> MemoryMessageState:
        if self.blind:
            return self._state
        return super()._promote_due()


def _blind(name: str, number: str) -> None:
    def call(self: _Late, *arguments: Any, **options: Any) -> Any:
        with self._state.lock:
            self.blind = True
            try:
                return getattr(MemoryMessageStore, name)(self, *arguments, **options)
            finally:
                self.blind = False

    breaks(number)(type(f"Late {name}()", (_Late,), {name: call}))


_READING = ("claim", "peek", "count", "topics", "stats", "scan", "find", "lock_topic")

for each in (*_READING, "change_token"):
    _blind(each, "Q3")
for each in (*_READING, "has_unfinished", "cancel", "purge"):
    _blind(each, "Q5")


# Q5


class _Expiring(MemoryMessageStore):
    """A store whose ttls end at another time."""

    def _put(self, entry: MessageEntry) -> int | None:
        id = super()._put(entry)
        row = None if id is None else self._state.rows[id]
        if row is not None and row.expires is not None:
            row.expires = self.end(row)
        return id

    def end(self, row: MessageRow) -> float | None:
        raise NotImplementedError


@breaks("Q5")
class NothingExpires(_Expiring):
    def end(self, row: MessageRow) -> float | None:
        return None


@breaks("Q5")
class ExpiresEarly(_Expiring):
    def end(self, row: MessageRow) -> float | None:
        return (row.expires or 0.0) - 0.5


@breaks("Q5")
class ExpiresLate(_Expiring):
    def end(self, row: MessageRow) -> float | None:
        return (row.expires or 0.0) + 0.1


@breaks("Q5")
class TtlBeginsAfterTheDelay(_Expiring):
    def end(self, row: MessageRow) -> float | None:
        return (row.expires or 0.0) + row.entry.delay


class _NotDue(MemoryMessageStore):
    """A store in which messages of some kind stay after their ttl."""

    def _is_due(self, row: MessageRow, now: float) -> bool:
        is_over = row.expires is not None and row.expires <= now
        return super()._is_due(row, now) and not (is_over and self.stays(row))

    def stays(self, row: MessageRow) -> bool:
        raise NotImplementedError


@breaks("Q5")
class DelayedStays(_NotDue):
    def stays(self, row: MessageRow) -> bool:
        return row.state is State.DELAYED


@breaks("Q5")
class BlockedStays(_NotDue):
    def stays(self, row: MessageRow) -> bool:
        return row.state is State.BLOCKED


@breaks("Q5")
class PausedStays(_NotDue):
    def stays(self, row: MessageRow) -> bool:
        return row.entry.topic in self._state.paused


@breaks("Q5")
class DeliveredStays(_NotDue):
    def stays(self, row: MessageRow) -> bool:
        return row.deliveries > 0 and row.state is State.READY


@breaks("Q5")
class ClaimedExpires(MemoryMessageStore):
    def _promote_due(self) -> MemoryMessageState:
        state = super()._promote_due()
        for row in state.select(State.CLAIMED):
            if row.expires is not None and row.expires <= state.clock():
                self._expire(row)
        return state


class _FinishedExpires(MemoryMessageStore):
    """A store in which finished messages of some state expire."""

    state: State

    def _promote_due(self) -> MemoryMessageState:
        state = super()._promote_due()
        for row in state.select(self.state):
            if row.expires is not None and row.expires <= state.clock():
                self._expire(row)
        return state


@breaks("Q5")
class DeadExpires(_FinishedExpires):
    state = State.DEAD


@breaks("Q5")
class DoneExpires(_FinishedExpires):
    state = State.DONE


@breaks("Q5")
class BackAfterItsTtl(MemoryMessageStore):
    """A message that comes back has one more chance."""

    def _come_back(self, row: MessageRow, delay: float = 0.0) -> None:
        if row.expires is not None and row.expires <= self._state.clock():
            row.expires = None
        super()._come_back(row, delay)


@breaks("Q5")
class SpentExpires(MemoryMessageStore):
    """A message without attempts left is removed after its ttl, and not dead."""

    def _finish(self, row: MessageRow, state: State | None = None, window: bool = True) -> None:
        is_over = row.expires is not None and row.expires <= self._state.clock()
        if state is State.DEAD and is_over:
            self._state.expired += 1
        super()._finish(row, None if state is State.DEAD and is_over else state, window)


@breaks("Q5")
class PrefetchedDies(MemoryMessageStore):
    def _lose(self, row: MessageRow, error: str) -> None:
        row.delivered = True
        super()._lose(row, error)


@breaks("Q5")
class DeadFromItsTtl(MemoryMessageStore):
    """What is expired becomes dead, as in brokers with dead-letter queues."""

    def _expire(self, row: MessageRow) -> None:
        self._finish(row, State.DEAD)
        self._state.expired += 1


@breaks("Q5")
class CountsNoneThatComesBack(MemoryMessageStore):
    def _come_back(self, row: MessageRow, delay: float = 0.0) -> None:
        before = self._state.expired
        super()._come_back(row, delay)
        self._state.expired = before


@breaks("Q5")
class CountsNone(MemoryMessageStore):
    def _expire(self, row: MessageRow) -> None:
        self._finish(row)


class _Anew(MemoryMessageStore):
    """A store in which some step begins the ttl anew."""

    def begin(self, row: MessageRow) -> None:
        """Begin the ttl of a message anew."""
        row.expires = None if row.entry.ttl is None else self._state.clock() + row.entry.ttl


@breaks("Q5")
class TtlFromEachReturn(_Anew):
    def _come_back(self, row: MessageRow, delay: float = 0.0) -> None:
        super()._come_back(row, delay)
        self.begin(row)


@breaks("Q5")
class TtlFromTheHead(_Anew):
    def _next_head(self, group: tuple[str, str]) -> None:
        blocked = [row for row in self._state.select(State.BLOCKED) if row.group == group]
        super()._next_head(group)
        for row in blocked[:1]:
            self.begin(row)


@breaks("Q5")
class NoTtlAfterARedrive(MemoryMessageStore):
    def _redrive(self, row: MessageRow) -> bool:
        redriven = super()._redrive(row)
        row.expires = None
        return redriven


@breaks("Q5")
class OldTtlAfterARedrive(MemoryMessageStore):
    def _redrive(self, row: MessageRow) -> bool:
        expires = row.expires
        redriven = super()._redrive(row)
        row.expires = expires
        return redriven


@breaks("Q5")
class LeasesEndWithTheTtl(MemoryMessageStore):
    def extend(self, claims: Sequence[MessageClaim], seconds: float | None) -> float | None:
        with self._state.lock:
            until = super().extend(claims, seconds)
            for row in self._claimed(claims):
                if row.expires is not None and row.until is not None:
                    row.until = min(row.until, row.expires)
            return until


@breaks("Q5")
class OneExpiresForEachCall(MemoryMessageStore):
    def _reclaim(self) -> int:
        self.one = 1
        return super()._reclaim()

    def _is_due(self, row: MessageRow, now: float) -> bool:
        is_over = row.expires is not None and row.expires <= now
        return super()._is_due(row, now) and not (is_over and not self.one)

    def _expire(self, row: MessageRow) -> None:
        self.one = 0
        super()._expire(row)
