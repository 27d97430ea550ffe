"""Message stores that lose dead messages, redrive them wrongly or remove the wrong messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from persistcoll.engine.memory.message_rows import UNFINISHED, ActiveKey, MemoryMessageState, MessageRow
from persistcoll.engine.memory.message_store import MemoryMessageStore
from persistcoll.engine.message_records import MessageClaim
from persistcoll.engine.records import State
from tests.conformance.wrong_messages.registry import breaks

# Q10


class _Dying(MemoryMessageStore):
    """A store that changes what dies."""

    def _finish(self, row: MessageRow, state: State | None = None, window: bool = True) -> None:
        super()._finish(row, state, window)
        if state is State.DEAD and row.id in self._state.rows:
            self.bury(row)

    def bury(self, row: MessageRow) -> None:
        raise NotImplementedError


@breaks("Q10")
class DeadIsRemoved(_Dying):
    def bury(self, row: MessageRow) -> None:
        del self._state.rows[row.id]


@breaks("Q10")
class DeadHasANewId(_Dying):
    def bury(self, row: MessageRow) -> None:
        del self._state.rows[row.id]
        self._state.add(row)


@breaks("Q10")
class DeadHasANewTime(_Dying):
    def bury(self, row: MessageRow) -> None:
        row.time = self._state.clock()


@breaks("Q10")
class DeadWithoutHeaders(_Dying):
    def bury(self, row: MessageRow) -> None:
        row.entry = row.entry._replace(headers=b"")


@breaks("Q10")
class DeadWithoutItsKey(_Dying):
    def bury(self, row: MessageRow) -> None:
        row.entry = row.entry._replace(key=None)


@breaks("Q10")
class DeadInATopicOfItsOwn(_Dying):
    def bury(self, row: MessageRow) -> None:
        row.entry = row.entry._replace(topic=f"{row.entry.topic} dead")


@breaks("Q10")
class DeadWithoutAttempts(_Dying):
    def bury(self, row: MessageRow) -> None:
        row.attempts = 0


@breaks("Q10")
class DeadWithoutAnError(_Dying):
    def bury(self, row: MessageRow) -> None:
        row.error = None


@breaks("Q10")
class DeadWithoutATime(_Dying):
    def bury(self, row: MessageRow) -> None:
        row.finished = None


@breaks("Q10")
class DeadKeepsItsLease(_Dying):
    def bury(self, row: MessageRow) -> None:
        row.until = self._state.clock()


@breaks("Q10")
class FirstErrorStays(MemoryMessageStore):
    def nack(
        self, claims: Sequence[MessageClaim], delay: float | None = None, error: str | None = None
    ) -> None:
        with self._state.lock:
            errors = [(row, row.error) for row in self._claimed(claims)]
            super().nack(claims, delay, error)
            for row, before in errors:
                row.error = before or row.error


@breaks("Q10")
class NoErrorForALease(MemoryMessageStore):
    def _lose(self, row: MessageRow, error: str) -> None:
        before = row.error
        super()._lose(row, error)
        row.error = before


@breaks("Q10")
class NackWithDelayDoesNotKill(MemoryMessageStore):
    delays = False

    def _is_spent(self, row: MessageRow) -> bool:
        return not self.delays and super()._is_spent(row)

    def nack(
        self, claims: Sequence[MessageClaim], delay: float | None = None, error: str | None = None
    ) -> None:
        self.delays = bool(delay)
        super().nack(claims, delay, error)
        self.delays = False


@breaks("Q10")
class DeadLeavesAfterAWhile(MemoryMessageStore):
    def _promote_due(self) -> MemoryMessageState:
        state = super()._promote_due()
        for row in state.select(State.DEAD):
            if row.finished is not None and row.finished + 35.0 < state.clock():
                self._finish(row)
        return state


@breaks("Q10")
class DeadLeavesWithClose(MemoryMessageStore):
    def close(self) -> None:
        if not self._closed:
            self.purge(dead=True)
        super().close()


@breaks("Q10")
class ReclaimRevives(MemoryMessageStore):
    def reclaim(self) -> int:
        with self._state.lock:
            for row in self._state.select(State.DEAD):
                self._redrive(row)
            return super().reclaim()


class _Redriving(MemoryMessageStore):
    """A store that changes what it redrives."""

    def _redrive(self, row: MessageRow) -> bool:
        redriven = super()._redrive(row)
        if redriven:
            self.change(row)
        return redriven

    def change(self, row: MessageRow) -> None:
        raise NotImplementedError


@breaks("Q10")
class RedrivenHasANewId(_Redriving):
    def change(self, row: MessageRow) -> None:
        del self._state.rows[row.id]
        self._state.add(row)


@breaks("Q10")
class RedrivenHasANewTime(_Redriving):
    def change(self, row: MessageRow) -> None:
        row.time = self._state.clock()


@breaks("Q10")
class RedrivenKeepsItsAttempts(MemoryMessageStore):
    def _redrive(self, row: MessageRow) -> bool:
        attempts = row.attempts
        redriven = super()._redrive(row)
        row.attempts = attempts
        return redriven


@breaks("Q10")
class RedrivenForgetsItsDeliveries(_Redriving):
    def change(self, row: MessageRow) -> None:
        row.deliveries = 0


@breaks("Q10")
class RedrivenForgetsItsError(_Redriving):
    def change(self, row: MessageRow) -> None:
        row.error = None


@breaks("Q10")
class RedrivenIsStillFinished(_Redriving):
    def change(self, row: MessageRow) -> None:
        row.finished = self._state.clock()


@breaks("Q10")
class RedrivenIsDelayedAgain(_Redriving):
    def change(self, row: MessageRow) -> None:
        if row.entry.delay and row.state is State.READY:
            self._move(row, State.DELAYED, self._state.clock() + row.entry.delay)


@breaks("Q10")
class RedrivenForOneAttempt(_Redriving):
    def change(self, row: MessageRow) -> None:
        row.attempts = 1


@breaks("Q10")
class RedrivenWithItsOldTtl(MemoryMessageStore):
    def _redrive(self, row: MessageRow) -> bool:
        expires = row.expires
        redriven = super()._redrive(row)
        row.expires = expires
        return redriven


@breaks("Q10")
class RedrivesAnyFinished(MemoryMessageStore):
    def redrive(self, id: int) -> bool:
        with self._state.lock:
            row = self._promote_due().rows.get(id)
            if row is not None and row.state is State.DONE:
                return self._redrive(row)
            return super().redrive(id)


@breaks("Q10")
class RedriveResetsAnyAttempts(MemoryMessageStore):
    def redrive(self, id: int) -> bool:
        with self._state.lock:
            row = self._promote_due().rows.get(id)
            if row is not None and row.state is not State.DEAD:
                row.attempts = 0
            return super().redrive(id)


@breaks("Q10")
class RedrivesWhatIsReady(MemoryMessageStore):
    def redrive(self, id: int) -> bool:
        row = self._state.rows.get(id)
        return super().redrive(id) or (row is not None and row.state is State.READY)


@breaks("Q10")
class RedrivesBesideAnActiveKey(MemoryMessageStore):
    def _redrive(self, row: MessageRow) -> bool:
        keys = self._state.keys
        before = keys.pop(row.entry.key or b"?", None)
        redriven = super()._redrive(row)
        if before is not None:
            keys[row.entry.key or b"?"] = before
        return redriven


@breaks("Q10")
class RedrivesInTheWindowOfAnother(MemoryMessageStore):
    def _redrive(self, row: MessageRow) -> bool:
        active = self._state.keys.get(row.entry.key or b"?")
        if active is not None and not active.unfinished:
            self._state.keys[row.entry.key or b"?"] = ActiveKey(row.id, active.until)
        return super()._redrive(row)


@breaks("Q10")
class SaysFalseWhereTheKeyIsTaken(MemoryMessageStore):
    def redrive(self, id: int) -> bool:
        with self._state.lock:
            row = self._promote_due().rows.get(id)
            return row is not None and row.state is State.DEAD and self._redrive(row)


@breaks("Q10")
class RedriveAllRaises(MemoryMessageStore):
    def redrive_all(self, topic: str | None = None) -> int:
        with self._state.lock:
            rows = self._promote_due().select(State.DEAD, topic=topic)
            return sum(self.redrive(row.id) for row in rows)


@breaks("Q10")
class RedriveAllFromTheNewest(MemoryMessageStore):
    def redrive_all(self, topic: str | None = None) -> int:
        with self._state.lock:
            rows = self._promote_due().select(State.DEAD, topic=topic)
            return sum(self._redrive(row) for row in rows[::-1])


@breaks("Q10")
class RedriveAllOfEveryTopic(MemoryMessageStore):
    def redrive_all(self, topic: str | None = None) -> int:
        return super().redrive_all(None)


@breaks("Q10")
class RedriveAllCountsWhatStays(MemoryMessageStore):
    def redrive_all(self, topic: str | None = None) -> int:
        with self._state.lock:
            count = len(self._promote_due().select(State.DEAD, topic=topic))
            super().redrive_all(topic)
            return count


@breaks("Q10")
class RedriveAllOfTheFirst(MemoryMessageStore):
    def redrive_all(self, topic: str | None = None) -> int:
        with self._state.lock:
            rows = self._promote_due().select(State.DEAD, topic=topic)
            return sum(self._redrive(row) for row in rows[:3])


# Q11


class _Cancelling(MemoryMessageStore):
    """A store that cancels messages of one more state."""

    state: State

    def cancel(self, id: int) -> bool:
        with self._state.lock:
            row = self._promote_due().rows.get(id)
            if row is not None and row.state is self.state:
                self._finish(row)
                return True
            return super().cancel(id)


@breaks("Q11")
class CancelsWhatIsClaimed(_Cancelling):
    state = State.CLAIMED


@breaks("Q11")
class CancelsWhatIsDone(_Cancelling):
    state = State.DONE


class _NotCancelling(MemoryMessageStore):
    """A store that does not cancel messages of some state."""

    state: State

    def cancel(self, id: int) -> bool:
        with self._state.lock:
            row = self._promote_due().rows.get(id)
            return row is not None and row.state is not self.state and super().cancel(id)


@breaks("Q11")
class CancelsNothingReady(_NotCancelling):
    state = State.READY


@breaks("Q11")
class CancelsNothingDelayed(_NotCancelling):
    state = State.DELAYED


@breaks("Q11")
class CancelsNothingBlocked(_NotCancelling):
    state = State.BLOCKED


@breaks("Q11")
class CancelsNothingDead(_NotCancelling):
    state = State.DEAD


@breaks("Q11")
class CancelSaysTrue(MemoryMessageStore):
    def cancel(self, id: int) -> bool:
        super().cancel(id)
        return True


@breaks("Q11")
class CancelledIsDead(MemoryMessageStore):
    def cancel(self, id: int) -> bool:
        with self._state.lock:
            row = self._promote_due().rows.get(id)
            if row is None or row.state not in UNFINISHED or row.state is State.CLAIMED:
                return super().cancel(id)
            self._finish(row, State.DEAD)
            return True


@breaks("Q11")
class CancelFreesTheKeyOfAClaimed(MemoryMessageStore):
    def cancel(self, id: int) -> bool:
        with self._state.lock:
            row = self._promote_due().rows.get(id)
            if row is not None:
                self._state.keys.pop(row.entry.key or b"?", None)
            return super().cancel(id)


@breaks("Q11")
class CancelEndsTheClaim(MemoryMessageStore):
    def cancel(self, id: int) -> bool:
        with self._state.lock:
            row = self._promote_due().rows.get(id)
            if row is not None and row.state is State.CLAIMED:
                row.token = None
            return super().cancel(id)


@breaks("Q11")
class CancelsNothingThatWasClaimed(MemoryMessageStore):
    def cancel(self, id: int) -> bool:
        with self._state.lock:
            row = self._promote_due().rows.get(id)
            is_new = row is not None and (row.deliveries == 0 or row.state is State.DEAD)
            return is_new and super().cancel(id)


class _Purging(MemoryMessageStore):
    """A store that purges messages in other states."""

    states: tuple[State, ...] = (State.READY, State.DELAYED, State.BLOCKED)
    dead_states: tuple[State, ...] = (State.DEAD,)

    def purge(self, topic: str | None = None, *, dead: bool = False, before: float | None = None) -> int:
        with self._state.lock:
            rows = self._promote_due().select(*(self.dead_states if dead else self.states), topic=topic)
            rows = [row for row in rows if before is None or self.is_before(row, before)]
            for row in rows:
                self._finish(row)
            return len(rows)

    def is_before(self, row: MessageRow, before: float) -> bool:
        return row.time < before


@breaks("Q11")
class PurgesWhatIsClaimed(_Purging):
    states = (State.READY, State.DELAYED, State.BLOCKED, State.CLAIMED)


@breaks("Q11")
class PurgesReadyOnly(_Purging):
    states = (State.READY,)


@breaks("Q11")
class PurgesNothingBlocked(_Purging):
    states = (State.READY, State.DELAYED)


@breaks("Q11")
class PurgesDeadToo(_Purging):
    states = (State.READY, State.DELAYED, State.BLOCKED, State.DEAD)


@breaks("Q11")
class PurgesDoneAsDead(_Purging):
    dead_states = (State.DEAD, State.DONE)


@breaks("Q11")
class PurgesAllAsDead(_Purging):
    dead_states = (State.DEAD, State.READY, State.DELAYED, State.BLOCKED)


@breaks("Q11")
class PurgesUpToTheTime(_Purging):
    def is_before(self, row: MessageRow, before: float) -> bool:
        return row.time <= before


@breaks("Q11")
class PurgesByTheTimeOfItsDeath(_Purging):
    def is_before(self, row: MessageRow, before: float) -> bool:
        return (row.finished or row.time) < before


@breaks("Q11")
class PurgesByTheEndOfTheDelay(_Purging):
    def is_before(self, row: MessageRow, before: float) -> bool:
        return (row.until or row.time) < before


@breaks("Q11")
class PurgeIgnoresTheTime(_Purging):
    def is_before(self, row: MessageRow, before: float) -> bool:
        return True


@breaks("Q11")
class PurgeOfTheDeadIgnoresTheTime(_Purging):
    def is_before(self, row: MessageRow, before: float) -> bool:
        return row.state is State.DEAD or row.time < before


@breaks("Q11")
class PurgeIgnoresTheTopic(MemoryMessageStore):
    def purge(self, topic: str | None = None, **options: Any) -> int:
        return super().purge(None, **options)


@breaks("Q11")
class PurgeOfTheDeadIgnoresTheTopic(MemoryMessageStore):
    def purge(self, topic: str | None = None, *, dead: bool = False, before: float | None = None) -> int:
        return super().purge(None if dead else topic, dead=dead, before=before)


@breaks("Q11")
class TellsTheTimeOfAClockThatWasSetForward(MemoryMessageStore):
    def now(self) -> float:
        return super().now() + 3600.0


@breaks("Q11")
class TellsTheTimeOfAClockThatWasSetBack(MemoryMessageStore):
    def now(self) -> float:
        return super().now() - 3600.0


@breaks("Q11")
class PurgePassesOverPausedTopics(MemoryMessageStore):
    def purge(self, topic: str | None = None, **options: Any) -> int:
        return 0 if topic in self._state.paused else super().purge(topic, **options)


@breaks("Q11")
class PurgeCountsReadyOnly(MemoryMessageStore):
    def purge(self, topic: str | None = None, *, dead: bool = False, before: float | None = None) -> int:
        with self._state.lock:
            ready = len(self._promote_due().select(State.READY, topic=topic))
            count = super().purge(topic, dead=dead, before=before)
            return count if dead else min(ready, count)


@breaks("Q11")
class PurgeOfTheDeadFreesKeys(MemoryMessageStore):
    def purge(self, topic: str | None = None, *, dead: bool = False, before: float | None = None) -> int:
        with self._state.lock:
            for row in self._promote_due().select(State.DEAD, topic=topic) if dead else ():
                self._state.keys.pop(row.entry.key or b"?", None)
            return super().purge(topic, dead=dead, before=before)


@breaks("Q11")
class PurgeOfTheDeadMovesGroupsOn(MemoryMessageStore):
    def purge(self, topic: str | None = None, *, dead: bool = False, before: float | None = None) -> int:
        with self._state.lock:
            groups = {row.group for row in self._promote_due().select(State.DEAD, topic=topic) if dead}
            count = super().purge(topic, dead=dead, before=before)
            for group in groups:
                if group is not None:
                    self._next_head(group)
            return count
