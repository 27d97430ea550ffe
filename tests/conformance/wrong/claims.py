"""Record stores that break T3 and T4: their claims end wrongly, or their keys do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from persistcoll.engine.memory.record_store import MemoryRecordState, MemoryRecordStore
from persistcoll.engine.memory.rows import Row
from persistcoll.engine.records import NACKED, Entry, Record, State, Stats
from persistcoll.errors import DuplicateError
from tests.conformance.wrong.moments import time_stands_still
from tests.conformance.wrong.registry import breaks

# T3


class _Otherwise(MemoryRecordStore):
    """A store whose claims end at another time."""

    def _claim(self, rows: list[Row], decode: Callable[[Record], Any], pop: bool, claims: Any) -> list[Any]:
        values = super()._claim(rows, decode, pop, claims)
        for row in rows[: len(values)]:
            if row.state is State.CLAIMED:
                row.until = self.end(row.until)
        return values

    def end(self, until: float | None) -> float | None:
        raise NotImplementedError


@breaks("T3")
class LeasesNeverEnd(_Otherwise):
    def end(self, until: float | None) -> float | None:
        return None


@breaks("T3")
class LeasesEndEarly(_Otherwise):
    def end(self, until: float | None) -> float | None:
        return None if until is None else until - 1.0


@breaks("T3")
class LeasesEndLate(_Otherwise):
    def end(self, until: float | None) -> float | None:
        return None if until is None else until + 0.1


@breaks("T3")
class EveryClaimEnds(_Otherwise):
    def end(self, until: float | None) -> float | None:
        return until or self._state.clock() + 3600.0


@breaks("T3")
class ResumesWhatALivingOneHolds(MemoryRecordStore):
    def reclaim(self) -> int:
        for row in self._state.select(State.CLAIMED):
            row.holder = None
        return super().reclaim()


@breaks("T3")
class ResumesNothing(MemoryRecordStore):
    def reclaim(self) -> int:
        return 0


@breaks("T3")
class ClosingKeeps(MemoryRecordStore):
    def close(self) -> None:
        self._retry = self._retry._replace(auto_reclaim=False)
        super().close()


@breaks("T3")
class DelaysWhatWasLost(MemoryRecordStore):
    def _promote_due(self) -> MemoryRecordState:
        held = [row for row in self._state.select(State.CLAIMED) if row.until is not None]
        state = super()._promote_due()
        for row in held:
            if row.state is State.READY and self._retry.backoff is not None:
                state.move(row, State.DELAYED, state.clock() + 1.0)
        return state


@breaks("T3")
class NeverDelays(MemoryRecordStore):
    def nack(self, id: int, delay: float | None = None, to_back: bool = False, reason: str = NACKED) -> int:
        return super().nack(id, 0.0, to_back, reason=reason)


@breaks("T3")
class BacksOffAlike(MemoryRecordStore):
    def nack(self, id: int, delay: float | None = None, to_back: bool = False, reason: str = NACKED) -> int:
        if delay is None and self._retry.backoff is not None:
            delay = self._retry.backoff.delay(1)
        return super().nack(id, delay, to_back, reason=reason)


@breaks("T3")
class BacksOffAlways(MemoryRecordStore):
    def nack(self, id: int, delay: float | None = None, to_back: bool = False, reason: str = NACKED) -> int:
        return super().nack(id, delay or None, to_back, reason=reason)


@breaks("T3")
class NacksManyAtOnce(MemoryRecordStore):
    def nack_many(self, ids: Sequence[int], reason: str = NACKED) -> None:
        retry, self._retry = self._retry, self._retry._replace(backoff=None)
        try:
            super().nack_many(ids, reason)
        finally:
            self._retry = retry


@breaks("T3")
class PutsAtOnce(MemoryRecordStore):
    def put(self, entries: Sequence[Entry], capacity: int = 0, **options: Any) -> list[int | None]:
        return super().put([entry._replace(delay=0.0) for entry in entries], capacity)


@breaks("T3")
class PutsBehindAllLater(MemoryRecordStore):
    """What was put for later gets its place when its delay is over."""

    def _come_back(self, row: Row, reason: str | None) -> None:
        later = row.state is State.DELAYED and not row.deliveries
        super()._come_back(row, reason)
        if later:
            self._state.remove(row)
            self._state.add(row)


@breaks("T3")
class CountsWithoutTime(MemoryRecordStore):
    def count(self) -> int:
        with time_stands_still(self._state):
            return super().count()


@breaks("T3")
class CountsClaimsWithoutTime(MemoryRecordStore):
    def claimed(self) -> int:
        with time_stands_still(self._state):
            return super().claimed()


@breaks("T3")
class ListsWithoutTime(MemoryRecordStore):
    def records(self) -> Iterator[Record]:
        with time_stands_still(self._state):
            return super().records()


@breaks("T3")
class LooksWithoutTime(MemoryRecordStore):
    def peek(self, decode: Callable[[Record], Any]) -> Any:
        with time_stands_still(self._state):
            return super().peek(decode)


@breaks("T3")
class ClearsWithoutTime(MemoryRecordStore):
    def clear(self) -> int:
        with time_stands_still(self._state):
            return super().clear()


@breaks("T3")
class HoldsWithoutTime(MemoryRecordStore):
    def has_active_key(self, key: bytes) -> bool:
        with time_stands_still(self._state):
            return super().has_active_key(key)


@breaks("T3")
class DiscardsWithoutTime(MemoryRecordStore):
    def remove(self, id: int | None = None) -> int | None:
        with time_stands_still(self._state):
            return super().remove(id)


@breaks("T3")
class ClaimsSomeWithoutTime(MemoryRecordStore):
    def claim_many(self, limit: int, decode: Any, **options: Any) -> list[Any]:
        with time_stands_still(self._state):
            return super().claim_many(limit, decode)


@breaks("T3")
class PopsSomeWithoutTime(MemoryRecordStore):
    def pop_many(self, limit: int, decode: Any, **options: Any) -> list[Any]:
        with time_stands_still(self._state):
            return super().pop_many(limit, decode)


@breaks("T3")
class PurgesWithoutTime(MemoryRecordStore):
    def purge(self, state: State, keep: int = 0, limit: int | None = None) -> int:
        with time_stands_still(self._state):
            return super().purge(state, keep, limit)


@breaks("T3")
class RequeuesWithoutTime(MemoryRecordStore):
    def requeue(self, id: int | None = None) -> int:
        with time_stands_still(self._state):
            return super().requeue(id)


@breaks("T3")
class TellsWithoutTime(MemoryRecordStore):
    def stats(self) -> Stats:
        with time_stands_still(self._state):
            return super().stats()


@breaks("T3")
class WaitsWithoutTime(MemoryRecordStore):
    def change_token(self) -> object:
        with time_stands_still(self._state):
            return super().change_token()


@breaks("S6")
class PutsWithoutTime(MemoryRecordStore):
    def put(self, entries: Sequence[Entry], capacity: int = 0, **options: Any) -> list[int | None]:
        with time_stands_still(self._state):
            return super().put(entries, capacity)


# T4


@breaks("T4")
class FreeWhileClaimed(MemoryRecordStore):
    def _claim(self, rows: list[Row], decode: Callable[[Record], Any], pop: bool, claims: Any) -> list[Any]:
        values = super()._claim(rows, decode, pop, claims)
        for row in rows[: len(values)]:
            row.key = None
        return values


@breaks("T4")
class FreeWhileDelayed(MemoryRecordStore):
    def put(self, entries: Sequence[Entry], capacity: int = 0, **options: Any) -> list[int | None]:
        for row in self._promote_due().select(State.DELAYED):
            row.key = None
        return super().put(entries, capacity)


class _Keeping(MemoryRecordStore):
    """A store whose finished records keep their keys active."""

    state: State

    def put(self, entries: Sequence[Entry], capacity: int = 0, **options: Any) -> list[int | None]:
        keys = [row.key for row in self._promote_due().select(self.state)]
        ids = [None if entry.key in keys and entry.key is not None else 0 for entry in entries]
        new = iter(super().put([entry for entry, id in zip(entries, ids, strict=True) if id == 0], capacity))
        return [id if id is None else next(new) for id in ids]


@breaks("T4")
class TakenWhileDone(_Keeping):
    state = State.DONE


@breaks("T4")
class TakenWhileFailed(_Keeping):
    state = State.FAILED


@breaks("T4")
class TakenWhileDead(_Keeping):
    state = State.DEAD


@breaks("T4")
class EqualsInOneBatch(MemoryRecordStore):
    def put(self, entries: Sequence[Entry], capacity: int = 0, **options: Any) -> list[int | None]:
        known = [entry.key is not None and self.has_active_key(entry.key) for entry in entries]
        fresh = [
            Entry(each.payload, each.priority) for each, old in zip(entries, known, strict=True) if not old
        ]
        ids = iter(
            super().put(fresh, capacity) if self._discipline.unique else super().put(entries, capacity)
        )
        result = [None if old and self._discipline.unique else next(ids) for old in known]
        for id, entry in zip(result, entries, strict=True):
            if id is not None:
                self._state.rows[id].key = entry.key
        return result


@breaks("T4")
class ReplacedWithoutKey(MemoryRecordStore):
    def update(self, id: int, payload: bytes, key: bytes | None = None) -> bool:
        row = self._promote_due().rows.get(id)
        old = None if row is None else row.key
        done = super().update(id, payload, key)
        if row is not None:
            row.key = old
        return done


@breaks("T4")
class AnEmptyKeyIsNone(MemoryRecordStore):
    def put(self, entries: Sequence[Entry], capacity: int = 0, **options: Any) -> list[int | None]:
        return super().put([entry._replace(key=entry.key or None) for entry in entries], capacity)


@breaks("T4")
class EveryTableIsUnique(MemoryRecordStore):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._discipline = self._discipline._replace(unique=True)


@breaks("T4")
class RequeuesActiveKeys(MemoryRecordStore):
    def requeue(self, id: int | None = None) -> int:
        discipline, self._discipline = self._discipline, self._discipline._replace(unique=False)
        try:
            return super().requeue(id)
        finally:
            self._discipline = discipline


@breaks("T4")
class RequeuesNothingActiveSilently(MemoryRecordStore):
    def requeue(self, id: int | None = None) -> int:
        try:
            return super().requeue(id)
        except DuplicateError:
            return 0


@breaks("T4")
class RequeuesTheNewestOfEquals(MemoryRecordStore):
    def _set_aside(self, id: int | None) -> list[Row]:
        return super()._set_aside(id)[::-1]


@breaks("T4")
class RequeuesWhatFailedFirst(MemoryRecordStore):
    """Of equal records one that failed is requeued before one that is dead."""

    def _set_aside(self, id: int | None) -> list[Row]:
        return sorted(super()._set_aside(id), key=lambda row: row.state is State.DEAD)
