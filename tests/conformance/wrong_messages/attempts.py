"""Message stores that break Q8 and Q9: they count attempts wrongly, or delay what failed wrongly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from persistcoll.engine.memory.message_rows import MessageRow
from persistcoll.engine.memory.message_store import MemoryMessageStore
from persistcoll.engine.memory.server_message_store import MemoryMessageServerStore
from persistcoll.engine.message_records import HOLDER_CLOSED, LEASE_RAN_OUT, MessageClaim, MessageRecord
from persistcoll.engine.records import Backoff, State
from tests.conformance.wrong_messages.registry import breaks

# Q8


@breaks("Q8")
class CountsFromZero(MemoryMessageStore):
    def _claim(self, row: MessageRow, lease: float | None, prefetch: bool) -> MessageRecord:
        record = super()._claim(row, lease, prefetch)
        return record._replace(attempts=record.attempts - 1)


@breaks("Q8")
class CountsNoDeliveries(MemoryMessageStore):
    def _claim(self, row: MessageRow, lease: float | None, prefetch: bool) -> MessageRecord:
        row.deliveries = row.attempts
        return super()._claim(row, lease, prefetch)


@breaks("Q8")
class NackTakesTheAttemptBack(MemoryMessageStore):
    def nack(
        self, claims: Sequence[MessageClaim], delay: float | None = None, error: str | None = None
    ) -> None:
        for row in self._claimed(claims):
            row.attempts -= 1
        super().nack(claims, delay, error)


@breaks("Q8")
class DelayingTakesTheAttemptBack(MemoryMessageStore):
    def nack(
        self, claims: Sequence[MessageClaim], delay: float | None = None, error: str | None = None
    ) -> None:
        for row in self._claimed(claims):
            row.attempts -= delay is not None
        super().nack(claims, delay, error)


@breaks("Q8")
class TheEndOfALeaseCountsTwice(MemoryMessageStore):
    def _lose(self, row: MessageRow, error: str) -> None:
        row.attempts += error == LEASE_RAN_OUT
        super()._lose(row, error)


@breaks("Q8")
class TheEndOfALeaseTakesTheAttemptBack(MemoryMessageStore):
    def _lose(self, row: MessageRow, error: str) -> None:
        row.delivered = row.delivered and error != LEASE_RAN_OUT
        super()._lose(row, error)


@breaks("Q8")
class ClosingTakesTheAttemptBack(MemoryMessageStore):
    def _lose(self, row: MessageRow, error: str) -> None:
        row.delivered = row.delivered and error == LEASE_RAN_OUT
        super()._lose(row, error)


@breaks("Q8")
class ClosesInThePast(MemoryMessageStore):
    def _lose(self, row: MessageRow, error: str) -> None:
        super()._lose(row, error)
        if error == HOLDER_CLOSED and row.finished is not None:
            row.finished -= 1.0


@breaks("Q8")
class LeasesNeverKill(MemoryMessageStore):
    def _lose(self, row: MessageRow, error: str) -> None:
        row.error = error
        self._come_back(row)


class _ReleasesOtherwise(MemoryMessageStore):
    def release(self, claims: Sequence[MessageClaim]) -> int:
        rows = [row for claim in claims if (row := self._of_claim(claim)) is not None]
        for row in rows:
            self.before(row)
        return super().release(claims)

    def before(self, row: MessageRow) -> None:
        raise NotImplementedError


@breaks("Q8")
class ReleaseKeepsTheAttempt(_ReleasesOtherwise):
    def before(self, row: MessageRow) -> None:
        row.attempts += 1


@breaks("Q8")
class ReleaseTakesTheDeliveryBack(_ReleasesOtherwise):
    def before(self, row: MessageRow) -> None:
        row.deliveries -= 1


@breaks("Q8")
class ReleaseTakesAllBack(_ReleasesOtherwise):
    def before(self, row: MessageRow) -> None:
        row.attempts = 1


@breaks("Q8")
class ReleaseKills(MemoryMessageStore):
    def release(self, claims: Sequence[MessageClaim]) -> int:
        rows = [row for claim in claims if (row := self._of_claim(claim)) is not None]
        for row in rows:
            row.attempts -= 1
            if row.deliveries > 3:
                self._finish(row, State.DEAD)
            else:
                self._come_back(row)
        return len(rows)


@breaks("Q8")
class ReleaseDoesNotExpire(MemoryMessageStore):
    def release(self, claims: Sequence[MessageClaim]) -> int:
        for row in self._claimed(claims):
            row.expires = None
        return super().release(claims)


class _Limits(MemoryMessageStore):
    """A store that reads the limit in another way."""

    def _is_spent(self, row: MessageRow) -> bool:
        own = row.entry.max_attempts
        return self.spent(row, own, self._policy.max_attempts)

    def spent(self, row: MessageRow, own: Any, policy: int | None) -> bool:
        raise NotImplementedError


def _reached(row: MessageRow, most: int | None) -> bool:
    return most is not None and row.attempts >= most


@breaks("Q8")
class TheLimitIsAllowed(_Limits):
    def spent(self, row: MessageRow, own: Any, policy: int | None) -> bool:
        most = policy if own is ... else own
        return most is not None and row.attempts > most


@breaks("Q8")
class TheLimitIsOneNumber(_Limits):
    def spent(self, row: MessageRow, own: Any, policy: int | None) -> bool:
        return row.attempts == (policy if own is ... else own)


@breaks("Q8")
class CountsDeliveries(_Limits):
    def spent(self, row: MessageRow, own: Any, policy: int | None) -> bool:
        most = policy if own is ... else own
        return most is not None and row.deliveries >= most


@breaks("Q8")
class IgnoresTheMessagesLimit(_Limits):
    def spent(self, row: MessageRow, own: Any, policy: int | None) -> bool:
        return _reached(row, policy)


@breaks("Q8")
class IgnoresThePolicysLimit(_Limits):
    def spent(self, row: MessageRow, own: Any, policy: int | None) -> bool:
        return _reached(row, None if own is ... else own)


@breaks("Q8")
class NoLimitIsThePolicys(_Limits):
    def spent(self, row: MessageRow, own: Any, policy: int | None) -> bool:
        return _reached(row, policy if own is ... or own is None else own)


@breaks("Q8")
class TakesTheLowerLimit(_Limits):
    def spent(self, row: MessageRow, own: Any, policy: int | None) -> bool:
        return _reached(row, policy) if own is ... else _reached(row, own) or _reached(row, own and policy)


@breaks("Q8")
class ADelayIsNeverTheLast(MemoryMessageStore):
    def nack(
        self, claims: Sequence[MessageClaim], delay: float | None = None, error: str | None = None
    ) -> None:
        if delay:
            for row in self._claimed(claims):
                self._come_back(row, delay)
        else:
            super().nack(claims, delay, error)


@breaks("Q8")
class KillsTheWholeBatch(MemoryMessageStore):
    def nack(
        self, claims: Sequence[MessageClaim], delay: float | None = None, error: str | None = None
    ) -> None:
        kills = any(self._is_spent(row) for row in self._claimed(claims))
        (self.fail if kills else super().nack)(claims, *((error,) if kills else (delay, error)))


@breaks("Q8")
class FailingKeepsAttempts(MemoryMessageStore):
    def fail(self, claims: Sequence[MessageClaim], error: str | None = None) -> None:
        self.nack(claims, 0.0, error)


@breaks("Q8")
class TheLastAckIsTooLate(MemoryMessageStore):
    def ack(self, claims: Sequence[MessageClaim]) -> None:
        for claim, row in zip(claims, self._claimed(claims), strict=True):
            if self._is_spent(row):
                super().fail([claim])
            else:
                super().ack([claim])


@breaks("Q8")
class DiesWithoutATime(MemoryMessageStore):
    def _finish(self, row: MessageRow, state: State | None = None, window: bool = True) -> None:
        super()._finish(row, state, window)
        row.finished = None


@breaks("Q8")
class RedriveKeepsTheAttempts(MemoryMessageStore):
    def _redrive(self, row: MessageRow) -> bool:
        attempts = row.attempts
        redriven = super()._redrive(row)
        row.attempts = attempts
        return redriven


@breaks("Q8")
class RedriveForgetsTheDeliveries(MemoryMessageStore):
    def _redrive(self, row: MessageRow) -> bool:
        row.deliveries = 0
        return super()._redrive(row)


@breaks("Q8")
class TheOldNeverDie(MemoryMessageStore):
    def _is_spent(self, row: MessageRow) -> bool:
        is_old = row.expires is not None and row.expires <= self._state.clock()
        return not is_old and super()._is_spent(row)


@breaks("Q8")
class TheOldAreKept(MemoryMessageStore):
    def _come_back(self, row: MessageRow, delay: float = 0.0) -> None:
        row.expires = None
        super()._come_back(row, delay)


@breaks("Q8")
class PrefetchedOnesAreDelivered(MemoryMessageStore):
    def _claim(self, row: MessageRow, lease: float | None, prefetch: bool) -> MessageRecord:
        return super()._claim(row, lease, False)


@breaks("Q8")
class PrefetchingIsNoAttempt(MemoryMessageStore):
    def _claim(self, row: MessageRow, lease: float | None, prefetch: bool) -> MessageRecord:
        record = super()._claim(row, lease, prefetch)
        row.attempts -= prefetch
        return record

    def deliver(self, claims: Sequence[MessageClaim]) -> None:
        super().deliver(claims)
        for row in self._claimed(claims):
            row.attempts += 1


@breaks("Q8")
class DeliversNothing(MemoryMessageStore):
    def deliver(self, claims: Sequence[MessageClaim]) -> None:
        self._claimed(claims)


@breaks("Q8")
class DeliversTheFirst(MemoryMessageStore):
    def deliver(self, claims: Sequence[MessageClaim]) -> None:
        self._claimed(claims)
        super().deliver(claims[:1])


@breaks("Q8")
class DeliversBeforeItRefuses(MemoryMessageStore):
    def deliver(self, claims: Sequence[MessageClaim]) -> None:
        for claim in claims:
            super().deliver([claim])


@breaks("Q8")
class AnExtensionForgetsTheDelivery(MemoryMessageStore):
    def extend(self, claims: Sequence[MessageClaim], seconds: float | None) -> float | None:
        for row in self._claimed(claims):
            row.delivered = False
        return super().extend(claims, seconds)


@breaks("Q8")
class AnExtensionDelivers(MemoryMessageStore):
    def extend(self, claims: Sequence[MessageClaim], seconds: float | None) -> float | None:
        for row in self._claimed(claims):
            row.delivered = True
        return super().extend(claims, seconds)


@breaks("Q8")
class DeliveredOnceAndForAll(MemoryMessageStore):
    def _claim(self, row: MessageRow, lease: float | None, prefetch: bool) -> MessageRecord:
        seen: set[int] = self._state.__dict__.setdefault("seen", set())
        return super()._claim(row, lease, prefetch and row.id not in seen)

    def deliver(self, claims: Sequence[MessageClaim]) -> None:
        super().deliver(claims)
        self._state.__dict__.setdefault("seen", set()).update(claim.id for claim in claims)


@breaks("Q8")
class BlamesWhatWasPrefetched(MemoryMessageStore):
    def _lose(self, row: MessageRow, error: str) -> None:
        super()._lose(row, error)
        row.error = error


@breaks("Q8")
class SparesWhatItDoesNotSay(MemoryMessageServerStore):
    def _session(self, *arguments: Any) -> Any:
        session: Any = super()._session(*arguments)
        lose = session._lose

        def lose_delivered(row: MessageRow, error: str) -> None:
            row.attempts -= not row.delivered
            lose(row, error)

        session._lose = lose_delivered
        return session


# Q9


class _NacksOtherwise(MemoryMessageStore):
    """A store that delays nacked messages differently."""

    def nack(
        self, claims: Sequence[MessageClaim], delay: float | None = None, error: str | None = None
    ) -> None:
        super().nack(claims, self.delay(claims, delay), error)

    def delay(self, claims: Sequence[MessageClaim], delay: float | None) -> float | None:
        raise NotImplementedError


@breaks("Q9")
class NeverDelays(_NacksOtherwise):
    def delay(self, claims: Sequence[MessageClaim], delay: float | None) -> float | None:
        return 0.0


@breaks("Q9")
class IgnoresTheGivenDelay(_NacksOtherwise):
    def delay(self, claims: Sequence[MessageClaim], delay: float | None) -> float | None:
        return None


@breaks("Q9")
class NoDelayIsTheBackoff(_NacksOtherwise):
    def delay(self, claims: Sequence[MessageClaim], delay: float | None) -> float | None:
        return delay or None


@breaks("Q9")
class OneDelayForABatch(_NacksOtherwise):
    def delay(self, claims: Sequence[MessageClaim], delay: float | None) -> float | None:
        return self._backoff(self._claimed(claims)[0]) if delay is None else delay


@breaks("Q9")
class LimitsTheGivenDelay(_NacksOtherwise):
    def delay(self, claims: Sequence[MessageClaim], delay: float | None) -> float | None:
        backoff = self._policy.backoff
        return delay if delay is None or backoff is None else min(delay, backoff.limit)


class _BacksOffOtherwise(MemoryMessageStore):
    """A store with another back-off."""

    def _backoff(self, row: MessageRow) -> float:
        own = row.entry.backoff
        backoff = self._policy.backoff if own is ... else own
        return 0.0 if backoff is None else self.delay(row, backoff)

    def delay(self, row: MessageRow, backoff: Backoff) -> float:
        raise NotImplementedError


@breaks("Q9")
class BacksOffAlike(_BacksOffOtherwise):
    def delay(self, row: MessageRow, backoff: Backoff) -> float:
        return backoff.delay(1)


@breaks("Q9")
class BacksOffTooFar(_BacksOffOtherwise):
    def delay(self, row: MessageRow, backoff: Backoff) -> float:
        return backoff.delay(row.attempts + 1)


@breaks("Q9")
class BacksOffByDeliveries(_BacksOffOtherwise):
    def delay(self, row: MessageRow, backoff: Backoff) -> float:
        return backoff.delay(row.deliveries)


@breaks("Q9")
class BacksOffLinearly(_BacksOffOtherwise):
    def delay(self, row: MessageRow, backoff: Backoff) -> float:
        return min(backoff.base * row.attempts, backoff.limit)


@breaks("Q9")
class BacksOffWithoutALimit(_BacksOffOtherwise):
    def delay(self, row: MessageRow, backoff: Backoff) -> float:
        return backoff.base * backoff.factor ** min(row.attempts - 1, 100)


@breaks("Q9")
class TheBackoffOverflows(_BacksOffOtherwise):
    def delay(self, row: MessageRow, backoff: Backoff) -> float:
        seconds: float = min(backoff.base * backoff.factor ** (row.attempts - 1), backoff.limit)
        return seconds + backoff.delay(row.attempts) - backoff.delay(row.attempts)


@breaks("Q9")
class TheBackoffStops(_BacksOffOtherwise):
    def delay(self, row: MessageRow, backoff: Backoff) -> float:
        return backoff.delay(row.attempts) if row.attempts < 64 else 0.0


@breaks("Q9")
class BacksOffWithoutJitter(_BacksOffOtherwise):
    def delay(self, row: MessageRow, backoff: Backoff) -> float:
        return Backoff(backoff.base, backoff.factor, backoff.limit, 0.0).delay(row.attempts)


@breaks("Q9")
class BacksOffWithTooMuchJitter(_BacksOffOtherwise):
    def delay(self, row: MessageRow, backoff: Backoff) -> float:
        exact = Backoff(backoff.base, backoff.factor, backoff.limit, 0.0).delay(row.attempts)
        return exact + 10 * (backoff.delay(row.attempts) - exact)


@breaks("Q9")
class IgnoresTheMessagesBackoff(MemoryMessageStore):
    def _backoff(self, row: MessageRow) -> float:
        return 0.0 if self._policy.backoff is None else self._policy.backoff.delay(row.attempts)


@breaks("Q9")
class NoBackoffIsThePolicys(MemoryMessageStore):
    def _backoff(self, row: MessageRow) -> float:
        own, policy = row.entry.backoff, self._policy.backoff
        return super()._backoff(row) if own is not None or policy is None else policy.delay(row.attempts)


@breaks("Q9")
class ReleaseBacksOff(MemoryMessageStore):
    def release(self, claims: Sequence[MessageClaim]) -> int:
        rows = [row for claim in claims if (row := self._of_claim(claim)) is not None]
        for row in rows:
            self._come_back(row, self._backoff(row))
            row.attempts -= 1
        return len(rows)


@breaks("Q9")
class TheEndOfALeaseBacksOff(MemoryMessageStore):
    def _lose(self, row: MessageRow, error: str) -> None:
        row.error = error
        self._come_back(row, self._backoff(row))


@breaks("Q9")
class NackForgetsTheError(MemoryMessageStore):
    def nack(
        self, claims: Sequence[MessageClaim], delay: float | None = None, error: str | None = None
    ) -> None:
        for row in self._claimed(claims):
            row.error = None
        super().nack(claims, delay, error)


@breaks("Q9")
class NackKeepsTheError(MemoryMessageStore):
    def nack(
        self, claims: Sequence[MessageClaim], delay: float | None = None, error: str | None = None
    ) -> None:
        known = any(row.error for row in self._claimed(claims))
        super().nack(claims, delay, None if known else error)


@breaks("Q9")
class NoTextIsNoError(MemoryMessageStore):
    def nack(
        self, claims: Sequence[MessageClaim], delay: float | None = None, error: str | None = None
    ) -> None:
        super().nack(claims, delay, error or None)


@breaks("Q9")
class ReleaseForgetsTheError(_ReleasesOtherwise):
    def before(self, row: MessageRow) -> None:
        row.error = None


@breaks("Q9")
class FailForgetsTheError(MemoryMessageStore):
    def fail(self, claims: Sequence[MessageClaim], error: str | None = None) -> None:
        for row in self._claimed(claims):
            row.error = None
        super().fail(claims, error)


@breaks("Q9")
class ReleasesToTheBack(_ReleasesOtherwise):
    def before(self, row: MessageRow) -> None:
        row.entry = row.entry._replace(priority=row.entry.priority - 1)


@breaks("Q9")
class ComesBackReversed(MemoryMessageStore):
    """As a buffer of prefetched messages that is put back from its end."""

    def release(self, claims: Sequence[MessageClaim]) -> int:
        returned = super().release(claims)
        for place, claim in enumerate(claims, 1):
            row = self._state.rows[claim.id]
            row.entry = row.entry._replace(priority=row.entry.priority + place / 1000)
        return returned


@breaks("Q9")
class DelaysEndLate(MemoryMessageStore):
    def _is_due(self, row: MessageRow, now: float) -> bool:
        return super()._is_due(row, now - 0.1 * (row.state is State.DELAYED))


@breaks("Q9")
class DelaysEndEarly(MemoryMessageStore):
    def _is_due(self, row: MessageRow, now: float) -> bool:
        return super()._is_due(row, now + 1.0 * (row.state is State.DELAYED))
