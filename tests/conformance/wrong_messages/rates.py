"""Message stores that break Q12: they exceed a rate, or deliver less than it allows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from persistcoll.engine.memory.message_rows import MessageRow, Rate
from persistcoll.engine.memory.message_store import MemoryMessageStore
from persistcoll.engine.message_records import MessageClaim, MessageRecord
from persistcoll.engine.records import State
from tests.conformance.wrong_messages.registry import breaks


@breaks("Q12")
class IgnoresRates(MemoryMessageStore):
    def _use_rate(self, topic: str, count: int) -> None:
        return


@breaks("Q12")
class UsesOneForABatch(MemoryMessageStore):
    def _use_rate(self, topic: str, count: int) -> None:
        super()._use_rate(topic, 1)


@breaks("Q12")
class UsesWhatIsAskedFor(MemoryMessageStore):
    def claim(self, limit: int = 1, *arguments: Any, **options: Any) -> list[MessageRecord]:
        records = super().claim(limit, *arguments, **options)
        for topic, count in Counter(record.topic for record in records).items():
            self._use_rate(topic, limit - count)
        return records


@breaks("Q12")
class UsesWhatItDoesNotFind(MemoryMessageStore):
    def claim(
        self, limit: int = 1, topics: Sequence[str] | None = None, **options: Any
    ) -> list[MessageRecord]:
        for topic in topics or ():
            if not self._ready(topics):
                self._use_rate(topic, limit)
        return super().claim(limit, topics, **options)


@breaks("Q12")
class UsesWhatIsPaused(MemoryMessageStore):
    def claim(
        self, limit: int = 1, topics: Sequence[str] | None = None, **options: Any
    ) -> list[MessageRecord]:
        for topic in self._state.paused:
            self._use_rate(topic, limit)
        return super().claim(limit, topics, **options)


@breaks("Q12")
class BatchesExceedTheRate(MemoryMessageStore):
    def _free(self, topic: str) -> int:
        return len(self._state.rows) if super()._free(topic) else 0


@breaks("Q12")
class EachObjectHasItsRate(MemoryMessageStore):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._own: dict[str, Rate] = {}

    def _with_own(self, call: Callable[..., Any], *arguments: Any) -> Any:
        shared = self._state.rates
        same = {topic: rate for topic, rate in self._own.items() if topic in shared}
        self._state.rates = shared | same
        try:
            return call(*arguments)
        finally:
            self._own, self._state.rates = self._state.rates, shared

    def _free(self, topic: str) -> int:
        free: int = self._with_own(super()._free, topic)
        return free

    def _use_rate(self, topic: str, count: int) -> None:
        self._with_own(super()._use_rate, topic, count)


class _RatesOtherwise(MemoryMessageStore):
    """A store that counts what a rate allows in another way."""

    def _free(self, topic: str) -> int:
        rate = self._state.rates.get(topic)
        free = super()._free(topic)
        return free if rate is None or topic in self._state.paused else self.free(rate, free)

    def free(self, rate: Rate, free: int) -> int:
        raise NotImplementedError


@breaks("Q12")
class SavesUpForEver(_RatesOtherwise):
    def free(self, rate: Rate, free: int) -> int:
        return int(max(0.0, rate.burst + (self._state.clock() - rate.next) / rate.interval))


@breaks("Q12")
class AllowsOneMore(_RatesOtherwise):
    def free(self, rate: Rate, free: int) -> int:
        return free + (free == rate.burst)


@breaks("Q12")
class HasNoBursts(_RatesOtherwise):
    def free(self, rate: Rate, free: int) -> int:
        return min(1, free)


@breaks("Q12")
class AllowsABurstOrNothing(_RatesOtherwise):
    def free(self, rate: Rate, free: int) -> int:
        return free if free == rate.burst else 0


@breaks("Q12")
class AllowsDeliveriesEarly(_RatesOtherwise):
    def free(self, rate: Rate, free: int) -> int:
        return rate.free(self._state.clock() + 0.3 * rate.interval)


@breaks("Q12")
class AllowsDeliveriesLate(_RatesOtherwise):
    def free(self, rate: Rate, free: int) -> int:
        return rate.free(self._state.clock() - 0.01 * rate.interval)


@breaks("Q12")
class SpacesFromTheLastOne(MemoryMessageStore):
    """A burst is possible again an interval after each delivery."""

    def _use_rate(self, topic: str, count: int) -> None:
        rate = self._state.rates.get(topic)
        if rate is not None:
            self._state.rates[topic] = rate._replace(next=self._state.clock() + count * rate.interval)


@breaks("Q12")
class CountsInFixedWindows(MemoryMessageStore):
    """A window of ``burst`` intervals has ``burst`` deliveries, wherever in it they are."""

    def _free(self, topic: str) -> int:
        rate = self._state.rates.get(topic)
        free = super()._free(topic)
        if rate is None or topic in self._state.paused:
            return free
        return rate.burst - self._used(topic, rate)[1]

    def _used(self, topic: str, rate: Rate) -> tuple[int, int]:
        windows: dict[str, tuple[int, int]] = self._state.__dict__.setdefault("windows", {})
        window = int(self._state.clock() / (rate.burst * rate.interval))
        number, count = windows.get(topic, (window, 0))
        return window, count if number == window else 0

    def _use_rate(self, topic: str, count: int) -> None:
        rate = self._state.rates.get(topic)
        if rate is not None:
            window, used = self._used(topic, rate)
            self._state.__dict__["windows"][topic] = window, used + count


class _Returns(MemoryMessageStore):
    """A store in which the end of a claim makes another delivery possible."""

    def return_slots(self, claims: Sequence[MessageClaim]) -> None:
        for claim in claims:
            row = self._of_claim(claim)
            if row is not None:
                self._use_rate(row.entry.topic, -1)


@breaks("Q12")
class ReleaseGivesBack(_Returns):
    def release(self, claims: Sequence[MessageClaim]) -> int:
        self.return_slots(claims)
        return super().release(claims)


@breaks("Q12")
class NackGivesBack(_Returns):
    def nack(
        self, claims: Sequence[MessageClaim], delay: float | None = None, error: str | None = None
    ) -> None:
        self.return_slots(claims)
        super().nack(claims, delay, error)


@breaks("Q12")
class AckGivesBack(_Returns):
    def ack(self, claims: Sequence[MessageClaim]) -> None:
        self.return_slots(claims)
        super().ack(claims)


@breaks("Q12")
class ALostClaimGivesBack(MemoryMessageStore):
    def _lose(self, row: MessageRow, error: str) -> None:
        super()._lose(row, error)
        self._use_rate(row.entry.topic, -1)


@breaks("Q12")
class RedeliveriesAreFree(MemoryMessageStore):
    def _free(self, topic: str) -> int:
        again = [row for row in self._state.select(State.READY, topic=topic) if row.deliveries]
        return super()._free(topic) or (0 if topic in self._state.paused else len(again))


@breaks("Q12")
class PrefetchingIsFree(MemoryMessageStore):
    def claim(self, *arguments: Any, prefetch: bool = False, **options: Any) -> list[MessageRecord]:
        rates = dict(self._state.rates)
        if prefetch:
            self._state.rates.clear()
        try:
            return super().claim(*arguments, prefetch=prefetch, **options)
        finally:
            self._state.rates |= rates if prefetch else {}


class _SetsOtherwise(MemoryMessageStore):
    """A store that begins a rate otherwise."""

    def set_rate(self, topic: str, interval: float | None, burst: int = 1) -> None:
        old = self._state.rates.get(topic)
        super().set_rate(topic, interval, burst)
        new = self._state.rates.get(topic)
        if old is not None and new is not None:
            self._state.rates[topic] = new._replace(next=self.next(old, new, self._state.clock()))

    def next(self, old: Rate, new: Rate, now: float) -> float:
        raise NotImplementedError


@breaks("Q12")
class EachCallBegins(_SetsOtherwise):
    def next(self, old: Rate, new: Rate, now: float) -> float:
        return now


@breaks("Q12")
class EachCallDelays(_SetsOtherwise):
    def next(self, old: Rate, new: Rate, now: float) -> float:
        return now + new.burst * new.interval


@breaks("Q12")
class AChangeBegins(_SetsOtherwise):
    def next(self, old: Rate, new: Rate, now: float) -> float:
        return new.next if old[:2] == new[:2] else now


@breaks("Q12")
class AChangeKeepsTheNext(_SetsOtherwise):
    def next(self, old: Rate, new: Rate, now: float) -> float:
        return old.next


@breaks("Q12")
class KeepsTheFirstRate(MemoryMessageStore):
    def set_rate(self, topic: str, interval: float | None, burst: int = 1) -> None:
        if interval is None or topic not in self._state.rates:
            super().set_rate(topic, interval, burst)


@breaks("Q12")
class ARateIsForEver(MemoryMessageStore):
    def set_rate(self, topic: str, interval: float | None, burst: int = 1) -> None:
        if interval is not None:
            super().set_rate(topic, interval, burst)


@breaks("Q12")
class LowersNoBurst(MemoryMessageStore):
    def set_rate(self, topic: str, interval: float | None, burst: int = 1) -> None:
        old = self._state.rates.get(topic)
        super().set_rate(topic, interval, burst if old is None else max(burst, old.burst))


@breaks("Q12")
class ForgetsRatesWhenItCloses(MemoryMessageStore):
    def close(self) -> None:
        super().close()
        self._state.rates.clear()


@breaks("Q12")
class ALimitedHeadHidesTheRest(MemoryMessageStore):
    def _open_rows(self, limit: int, topics: Sequence[str] | None) -> list[MessageRow]:
        rows = self._ready(topics)
        if rows and rows[0].entry.topic in self._state.rates and not self._free(rows[0].entry.topic):
            return []
        return super()._open_rows(limit, topics)


@breaks("Q12")
class LooksNoFurtherThanItsLimit(MemoryMessageStore):
    """It looks at so many of the first ready messages, and passes over those that it may not deliver."""

    def _open_rows(self, limit: int, topics: Sequence[str] | None) -> list[MessageRow]:
        first = self._ready(topics)[:limit]
        return [row for row in super()._open_rows(limit, topics) if row in first]


@breaks("Q12")
class DoesNotShowWhatIsLimited(MemoryMessageStore):
    def count(self, topic: str | None = None) -> int:
        count = super().count(topic)
        return count if topic is None or topic not in self._state.rates else min(count, self._free(topic))


@breaks("Q12")
class KeepsTheNextTimeWhenTheBurstGrows(MemoryMessageStore):
    """A delivery becomes possible earlier by each growth of the burst."""

    def set_rate(self, topic: str, interval: float | None, burst: int = 1) -> None:
        before = self._state.rates.get(topic)
        super().set_rate(topic, interval, burst)
        if before is not None and interval is not None:
            rate = self._state.rates[topic]
            until = self._now + burst * interval
            self._state.rates[topic] = rate._replace(next=min(before.next, until))
