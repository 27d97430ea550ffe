"""Message stores that break Q14 and Q18: they lock topics wrongly, or let a consumer wait too long."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from persistcoll.engine.memory.message_rows import MessageRow
from persistcoll.engine.memory.message_store import MemoryMessageStore
from persistcoll.engine.message_records import MessageRecord, TopicClaim
from persistcoll.engine.records import State
from tests.conformance.wrong_messages.registry import breaks

# Q14


@breaks("Q14")
class IgnoresLocks(MemoryMessageStore):
    def _free(self, topic: str) -> int:
        locks, self._state.locks = self._state.locks, {}
        free = super()._free(topic)
        self._state.locks = locks
        return free


@breaks("Q14")
class LocksItselfOut(MemoryMessageStore):
    def _free(self, topic: str) -> int:
        return 0 if topic in self._state.locks else super()._free(topic)


@breaks("Q14")
class LocksAllTopics(MemoryMessageStore):
    def _free(self, topic: str) -> int:
        others = [lock for lock in self._state.locks.values() if lock.holder is not self._holder]
        return 0 if others else super()._free(topic)


@breaks("Q14")
class ALockerGetsNothingElse(MemoryMessageStore):
    def _free(self, topic: str) -> int:
        own = [each for each, lock in self._state.locks.items() if lock.holder is self._holder]
        return 0 if own and topic not in own else super()._free(topic)


@breaks("Q14")
class LocksIgnoreCase(MemoryMessageStore):
    def lock_topic(self, topic: str | None, lease: float | None, **options: Any) -> TopicClaim | None:
        alike = {each.lower() for each in self._promote_due().locks}
        if topic is not None and topic.lower() in alike:
            return None
        return super().lock_topic(topic, lease, **options)


@breaks("Q14")
class LocksAgainForItself(MemoryMessageStore):
    def lock_topic(self, topic: str | None, lease: float | None, **options: Any) -> TopicClaim | None:
        held = self._promote_due().locks.get(topic or "")
        if held is not None and held.holder is self._holder:
            return TopicClaim(topic or "", held.token)
        return super().lock_topic(topic, lease, **options)


@breaks("Q14")
class LocksWhatIsLocked(MemoryMessageStore):
    def lock_topic(self, topic: str | None, lease: float | None, **options: Any) -> TopicClaim | None:
        self._promote_due().locks.pop(topic or "", None)
        return super().lock_topic(topic, lease, **options)


@breaks("Q14")
class LocksOnlyKnownTopics(MemoryMessageStore):
    def lock_topic(self, topic: str | None, lease: float | None, **options: Any) -> TopicClaim | None:
        return super().lock_topic(topic, lease, **options) if topic is None or self.count(topic) else None


@breaks("Q14")
class UnlocksWhoeverAsks(MemoryMessageStore):
    def unlock_topic(self, lock: TopicClaim) -> bool:
        held = self._promote_due().locks.get(lock.topic)
        return held is not None and super().unlock_topic(lock._replace(token=held.token))


@breaks("Q14")
class UnlocksOwnLaterLocks(MemoryMessageStore):
    def unlock_topic(self, lock: TopicClaim) -> bool:
        held = self._promote_due().locks.get(lock.topic)
        is_own = held is not None and held.holder is self._holder
        return super().unlock_topic(lock._replace(token=held.token) if held and is_own else lock)


@breaks("Q14")
class UnlockAlwaysSaysYes(MemoryMessageStore):
    def unlock_topic(self, lock: TopicClaim) -> bool:
        super().unlock_topic(lock)
        return True


@breaks("Q14")
class ExtendsLaterLocks(MemoryMessageStore):
    def extend_lock(self, lock: TopicClaim, seconds: float | None) -> None:
        held = self._promote_due().locks.get(lock.topic)
        super().extend_lock(lock if held is None else lock._replace(token=held.token), seconds)


@breaks("Q14")
class ExtendsEndedLocks(MemoryMessageStore):
    def extend_lock(self, lock: TopicClaim, seconds: float | None) -> None:
        if self._promote_due().locks.get(lock.topic) is not None:
            super().extend_lock(lock, seconds)


@breaks("Q14")
class LockTokensRepeat(MemoryMessageStore):
    def lock_topic(self, topic: str | None, lease: float | None, **options: Any) -> TopicClaim | None:
        self._state.tokens = itertools.count(7)
        return super().lock_topic(topic, lease, **options)


class _LocksEndOtherwise(MemoryMessageStore):
    """A store whose locks end at another time."""

    def lock_topic(self, topic: str | None, lease: float | None, **options: Any) -> TopicClaim | None:
        lock = super().lock_topic(topic, lease, **options)
        if lock is not None:
            held = self._state.locks[lock.topic]
            self._state.locks[lock.topic] = held._replace(until=self.end(held.until))
        return lock

    def end(self, until: float | None) -> float | None:
        raise NotImplementedError


@breaks("Q14")
class LocksNeverEnd(_LocksEndOtherwise):
    def end(self, until: float | None) -> float | None:
        return None


@breaks("Q14")
class LocksEndEarly(_LocksEndOtherwise):
    def end(self, until: float | None) -> float | None:
        return None if until is None else until - 1.0


@breaks("Q14")
class LocksEndLate(_LocksEndOtherwise):
    def end(self, until: float | None) -> float | None:
        return None if until is None else until + 0.1


@breaks("Q14")
class EveryLockEnds(_LocksEndOtherwise):
    def end(self, until: float | None) -> float | None:
        return until or self._state.clock() + 900.0


@breaks("Q14")
class LocksEndLateUnseen(MemoryMessageStore):
    def lock_topic(self, topic: str | None, lease: float | None, **options: Any) -> TopicClaim | None:
        self._reclaim = lambda: 0  # type: ignore[method-assign]
        try:
            return super().lock_topic(topic, lease, **options)
        finally:
            del self._reclaim


class _ExtendsLocksOtherwise(MemoryMessageStore):
    """A store whose extended locks have another end."""

    def extend_lock(self, lock: TopicClaim, seconds: float | None) -> None:
        before = self._state.locks.get(lock.topic)
        super().extend_lock(lock, seconds)
        held = self._state.locks[lock.topic]
        assert before is not None
        self._state.locks[lock.topic] = held._replace(until=self.end(before.until, held.until, seconds))

    def end(self, old: float | None, new: float | None, seconds: float | None) -> float | None:
        raise NotImplementedError


@breaks("Q14")
class ExtendsLocksFromTheOldEnd(_ExtendsLocksOtherwise):
    def end(self, old: float | None, new: float | None, seconds: float | None) -> float | None:
        return new if old is None or seconds is None else old + seconds


@breaks("Q14")
class ExtendsLocksOnlyToLater(_ExtendsLocksOtherwise):
    def end(self, old: float | None, new: float | None, seconds: float | None) -> float | None:
        return new if old is None or new is None else max(old, new)


@breaks("Q14")
class ExtendsNoLock(_ExtendsLocksOtherwise):
    def end(self, old: float | None, new: float | None, seconds: float | None) -> float | None:
        return old


@breaks("Q14")
class ExtendsLocksToNoLeaseNever(_ExtendsLocksOtherwise):
    def end(self, old: float | None, new: float | None, seconds: float | None) -> float | None:
        return old if new is None else new


@breaks("Q14")
class ExtendsNoLockWithoutALease(_ExtendsLocksOtherwise):
    def end(self, old: float | None, new: float | None, seconds: float | None) -> float | None:
        return None if old is None else new


@breaks("Q14")
class ClosingKeepsLocks(MemoryMessageStore):
    def end_own_claims(self) -> None:
        locks = dict(self._state.locks)
        super().end_own_claims()
        self._state.locks = locks

    def _is_dead(self, holder: object) -> bool:
        return holder is None


@breaks("Q14")
class ClosingEndsEveryLock(MemoryMessageStore):
    def end_own_claims(self) -> None:
        super().end_own_claims()
        self._state.locks.clear()


@breaks("Q14")
class TheDeadKeepLocks(MemoryMessageStore):
    def _is_dead(self, holder: object) -> bool:
        return False


@breaks("Q14")
class ReclaimCountsLocks(MemoryMessageStore):
    def reclaim(self) -> int:
        before = len(self._state.locks)
        return super().reclaim() + before - len(self._state.locks)


@breaks("Q14")
class ListsNoLocks(MemoryMessageStore):
    def lock_topic(self, topic: str | None, lease: float | None, **options: Any) -> TopicClaim | None:
        return super().lock_topic(topic, lease)


@breaks("Q14")
class ListsOnlyItsLocks(MemoryMessageStore):
    def lock_topic(self, topic: str | None, lease: float | None, **options: Any) -> TopicClaim | None:
        if options.get("locks"):
            options["locks"].clear()
        return super().lock_topic(topic, lease, **options)


@breaks("Q14")
class ListsLocksOfOthers(MemoryMessageStore):
    def lock_topic(self, topic: str | None, lease: float | None, **options: Any) -> TopicClaim | None:
        lock = super().lock_topic(topic, lease, **options)
        held = self._state.locks.get(topic or "")
        if lock is None and held is not None and options.get("locks") is not None:
            options["locks"].append(TopicClaim(topic or "", held.token))
        return lock


@breaks("Q14")
class ALockEndsClaims(MemoryMessageStore):
    def lock_topic(self, topic: str | None, lease: float | None, **options: Any) -> TopicClaim | None:
        lock = super().lock_topic(topic, lease, **options)
        for row in self._state.select(State.CLAIMED, topic=topic or ""):
            self._come_back(row)
        return lock


@breaks("Q14")
class ALockedHeadHidesTheRest(MemoryMessageStore):
    def _open_rows(self, limit: int, topics: Sequence[str] | None) -> list[MessageRow]:
        rows = self._ready(topics)
        lock = self._state.locks.get(rows[0].entry.topic) if rows else None
        is_foreign = lock is not None and lock.holder is not self._holder
        return [] if is_foreign else super()._open_rows(limit, topics)


@breaks("Q14")
class DoesNotShowWhatIsLocked(MemoryMessageStore):
    def peek(self, topic: str | None = None) -> MessageRecord:
        for row in self._open_rows(1, None if topic is None else [topic]):
            return self._record(row)
        return super().peek(topic)


@breaks("Q14")
class DoesNotPurgeWhatIsLocked(MemoryMessageStore):
    def cancel(self, id: int) -> bool:
        row = self._state.rows.get(id)
        return row is not None and self._free(row.entry.topic) > 0 and super().cancel(id)


class _Fullest(MemoryMessageStore):
    """A store that takes another topic for the fullest one."""

    def _fullest(self) -> str | None:
        closed = self._state.locks.keys() | self._state.paused.keys()
        return self.fullest([row for row in self._ready() if row.entry.topic not in closed])

    def fullest(self, rows: list[MessageRow]) -> str | None:
        raise NotImplementedError


def _most(rows: Iterable[MessageRow], name: Callable[[str], Any] = str) -> str | None:
    counts = Counter(row.entry.topic for row in rows)
    return min(counts, key=lambda topic: (-counts[topic], name(topic)), default=None)


@breaks("Q14")
class TakesTheFirstTopic(_Fullest):
    def fullest(self, rows: list[MessageRow]) -> str | None:
        return min((row.entry.topic for row in rows), default=None)


@breaks("Q14")
class TakesTheOldestOfEquals(_Fullest):
    def fullest(self, rows: list[MessageRow]) -> str | None:
        return _most(rows, lambda topic: 0)


@breaks("Q14")
class TakesTheFirstWhateverItsCase(_Fullest):
    def fullest(self, rows: list[MessageRow]) -> str | None:
        return _most(rows, str.lower)


@breaks("Q14")
class CountsAllUnfinished(_Fullest):
    def fullest(self, rows: list[MessageRow]) -> str | None:
        topics = {row.entry.topic for row in rows}
        return _most(row for row in self._state.rows.values() if row.entry.topic in topics)


@breaks("Q14")
class TakesWhatIsPaused(_Fullest):
    def fullest(self, rows: list[MessageRow]) -> str | None:
        return _most(row for row in self._ready() if row.entry.topic not in self._state.locks)


@breaks("Q14")
class GivesUpIfTheFullestIsLocked(_Fullest):
    def fullest(self, rows: list[MessageRow]) -> str | None:
        return _most(row for row in self._ready() if row.entry.topic not in self._state.paused)


@breaks("Q14")
class PassesOverWhatIsLimited(_Fullest):
    def fullest(self, rows: list[MessageRow]) -> str | None:
        return _most(row for row in rows if row.entry.topic not in self._state.rates)


# Q18


class _SaysOtherwise(MemoryMessageStore):
    """A store that names another time, or none."""

    def _openings(self, topics: Sequence[str] | None) -> Iterable[float | None]:
        return self.times(list(super()._openings(topics)))

    def times(self, times: list[float | None]) -> Iterable[float | None]:
        raise NotImplementedError


@breaks("Q18")
class SaysNothing(_SaysOtherwise):
    def times(self, times: list[float | None]) -> Iterable[float | None]:
        return ()


@breaks("Q18")
class AlwaysSaysSomething(_SaysOtherwise):
    def times(self, times: list[float | None]) -> Iterable[float | None]:
        return (*times, self._state.clock() + 60.0)


@breaks("Q18")
class SaysTheLast(_SaysOtherwise):
    def times(self, times: list[float | None]) -> Iterable[float | None]:
        return [max((each for each in times if each is not None), default=None)]


@breaks("Q18")
class SaysALaterTime(_SaysOtherwise):
    def times(self, times: list[float | None]) -> Iterable[float | None]:
        return [None if each is None else each + 0.1 for each in times]


def _of_rows(name: str, rule: Callable[[MessageRow], float | None]) -> None:
    """Register a store that knows only some of the times of its messages."""

    def openings(self: MemoryMessageStore, topics: Sequence[str] | None) -> Iterable[float | None]:
        after = list(MemoryMessageStore._openings(self, topics))[len(self._state.rows) :]
        return [*map(rule, self._state.rows.values()), *after]

    breaks("Q18")(type(name, (MemoryMessageStore,), {"_openings": openings}))


_of_rows("SaysNoLeases", lambda row: None if row.state is State.CLAIMED else row.due)
_of_rows("SaysNoDelays", lambda row: None if row.state is State.DELAYED else row.due)
_of_rows("SaysNoTimesOfGroups", lambda row: None if row.group is not None else row.due)
_of_rows("SaysNoTtl", lambda row: row.until if row.state in (State.CLAIMED, State.DELAYED) else None)


@breaks("Q18")
class SaysNoRates(MemoryMessageStore):
    def _openings(self, topics: Sequence[str] | None) -> Iterable[float | None]:
        rates, self._state.rates = self._state.rates, {}
        times = list(super()._openings(topics))
        self._state.rates = rates
        return times


@breaks("Q18")
class SaysTheEndOfABurst(MemoryMessageStore):
    def _openings(self, topics: Sequence[str] | None) -> Iterable[float | None]:
        rates = self._state.rates
        self._state.rates = {topic: rate._replace(burst=1) for topic, rate in rates.items()}
        times = list(super()._openings(topics))
        self._state.rates = rates
        return times


@breaks("Q18")
class SaysNoLocks(MemoryMessageStore):
    def _openings(self, topics: Sequence[str] | None) -> Iterable[float | None]:
        locks, self._state.locks = self._state.locks, {}
        times = list(super()._openings(topics))
        self._state.locks = locks
        return times


@breaks("Q18")
class TimeChangesNothing(MemoryMessageStore):
    def change_token(self) -> object:
        return self._state.changes


def _unseen(name: str) -> None:
    """Register a store whose token does not show a change of this kind."""

    def call(self: MemoryMessageStore, *arguments: Any, **options: Any) -> Any:
        before = self._state.changes
        result = getattr(super(kind, self), name)(*arguments, **options)
        self._state.changes = before
        return result

    title = "".join(word.title() for word in name.split("_"))
    kind: type[MemoryMessageStore] = type(f"Unseen{title}", (MemoryMessageStore,), {name: call})
    breaks("Q18")(kind)


for _name in ("put", "claim", "deliver", "ack", "nack", "release", "fail", "extend", "redrive", "cancel"):
    _unseen(_name)
for _name in ("release_key", "set_rate", "pause", "resume", "lock_topic", "extend_lock", "unlock_topic"):
    _unseen(_name)
for _name in ("purge", "close"):
    _unseen(_name)
