"""Record stores that break S1 to S10, as any queue store may."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from persistcoll.engine.contracts import Select
from persistcoll.engine.memory.record_store import MemoryRecordState, MemoryRecordStore
from persistcoll.engine.memory.rows import Row
from persistcoll.engine.records import NACKED, Entry, Record, State
from persistcoll.errors import Full, NotClaimedError
from tests.conformance.wrong.registry import breaks

# S1


@breaks("S1")
class StoresWhatFits(MemoryRecordStore):
    def put(self, entries: Sequence[Entry], capacity: int = 0, **options: Any) -> list[int | None]:
        return [id for entry in entries for id in super(StoresWhatFits, self).put([entry], capacity)]


@breaks("S1")
class AcknowledgesThoseBefore(MemoryRecordStore):
    def ack(self, ids: Sequence[int]) -> None:
        for id in ids:
            super().ack([id])


@breaks("S1")
class FailsThoseBefore(MemoryRecordStore):
    def fail(self, ids: Sequence[int], reason: str | None = None) -> None:
        for id in ids:
            super().fail([id], reason)


@breaks("S1")
class NacksThoseBefore(MemoryRecordStore):
    def nack_many(self, ids: Sequence[int], reason: str = NACKED) -> None:
        for id in ids:
            super().nack_many([id], reason)


@breaks("S1")
class RefusedNeedsRoom(MemoryRecordStore):
    def put(self, entries: Sequence[Entry], capacity: int = 0, **options: Any) -> list[int | None]:
        self._promote_due()
        for entry in entries:
            if self._state.of_key(entry.key) is not None:
                super().put([entry._replace(key=None)], capacity)
                self.remove(self._state.last_id)
        return super().put(entries, capacity)


@breaks("S1")
class ReplacesByADuplicate(MemoryRecordStore):
    def update(self, id: int, payload: bytes, key: bytes | None = None) -> bool:
        if key is not None and self.has_active_key(key):
            key = None
        return super().update(id, payload, key)


# S2: what the state loses when its process dies.


class _Forgetful(MemoryRecordStore):
    """A store that loses something when it finds a state that a dead process left."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        state: Any = self._state
        if not hasattr(state, "used"):
            for row in list(state.rows.values()):
                self.forget(state, row)
        state.used = True

    def forget(self, state: MemoryRecordState, row: Row) -> None:
        raise NotImplementedError


@breaks("S2")
class ACrashEndsDelays(_Forgetful):
    def forget(self, state: MemoryRecordState, row: Row) -> None:
        if row.state is State.DELAYED:
            state.move(row, State.READY)


@breaks("S2")
class ACrashForgetsAttempts(_Forgetful):
    def forget(self, state: MemoryRecordState, row: Row) -> None:
        row.attempts = 0


@breaks("S2")
class ACrashForgetsReasons(_Forgetful):
    def forget(self, state: MemoryRecordState, row: Row) -> None:
        row.reason = None


@breaks("S2")
class ACrashForgetsKeys(_Forgetful):
    def forget(self, state: MemoryRecordState, row: Row) -> None:
        row.key = None


@breaks("S2")
class ACrashForgetsWhatFailed(_Forgetful):
    def forget(self, state: MemoryRecordState, row: Row) -> None:
        if row.state is State.FAILED:
            state.remove(row)


@breaks("S2")
class ACrashForgetsPriorities(_Forgetful):
    def forget(self, state: MemoryRecordState, row: Row) -> None:
        row.priority = 0


# S3


@breaks("S3")
class UsesTwice(MemoryRecordStore):
    def _claim(self, rows: list[Row], decode: Callable[[Record], Any], pop: bool, claims: Any) -> list[Any]:
        def twice(record: Record) -> Any:
            decode(record)
            return decode(record)

        return super()._claim(rows, twice, pop, claims)


@breaks("S3")
class ClaimsBeforeUse(MemoryRecordStore):
    def _claim(self, rows: list[Row], decode: Callable[[Record], Any], pop: bool, claims: Any) -> list[Any]:
        return [decode(record) for record in super()._claim(rows, lambda record: record, pop, claims)]


@breaks("S3")
class CountsWhatRaised(MemoryRecordStore):
    def _claim(self, rows: list[Row], decode: Callable[[Record], Any], pop: bool, claims: Any) -> list[Any]:
        def counted(record: Record) -> Any:
            try:
                return decode(record)
            except ValueError:
                self._state.rows[record.id].attempts += 1
                raise

        return super()._claim(rows, counted, pop, claims)


@breaks("S3")
class TellsAttemptsBefore(MemoryRecordStore):
    def _claim(self, rows: list[Row], decode: Callable[[Record], Any], pop: bool, claims: Any) -> list[Any]:
        return super()._claim(
            rows, lambda record: decode(record._replace(attempts=record.attempts - 1)), pop, claims
        )


# S4


@breaks("S4")
class OldestFirst(MemoryRecordStore):
    def _ready(self) -> list[Row]:
        return self._state.select(State.READY)


@breaks("S4")
class HighestFirst(MemoryRecordStore):
    def _ready(self) -> list[Row]:
        rows = super()._ready()
        if self._discipline.by_priority:
            rows.sort(key=lambda row: -row.priority)
        return rows


@breaks("S4")
class NewestFirstAmongEquals(MemoryRecordStore):
    def _ready(self) -> list[Row]:
        rows = super()._ready()
        if self._discipline.by_priority:
            rows.sort(key=lambda row: (row.priority, -row.id))
        return rows


@breaks("S4")
class ListsInTheOrderOfTaking(MemoryRecordStore):
    def records(self) -> Iterator[Record]:
        self._promote_due()
        return iter([self._record(row) for row in self._ready()])


@breaks("S4")
class GivesBackToTheEnd(MemoryRecordStore):
    def nack(self, id: int, delay: float | None = None, to_back: bool = False, reason: str = NACKED) -> int:
        return super().nack(id, delay, True, reason=reason)


@breaks("S4")
class NeverToTheBack(MemoryRecordStore):
    def nack(self, id: int, delay: float | None = None, to_back: bool = False, reason: str = NACKED) -> int:
        return super().nack(id, delay, reason=reason)


class _Moving(MemoryRecordStore):
    def nack(self, id: int, delay: float | None = None, to_back: bool = False, reason: str = NACKED) -> int:
        new = super().nack(id, delay, to_back, reason=reason)
        if new != id:
            self.spoil(self._state.rows[new])
        return new

    def spoil(self, row: Row) -> None:
        raise NotImplementedError


@breaks("S4")
class ToTheBackWithoutAttempts(_Moving):
    def spoil(self, row: Row) -> None:
        row.attempts = 0


@breaks("S4")
class ToTheBackWithoutPriority(_Moving):
    def spoil(self, row: Row) -> None:
        row.priority = 0


@breaks("S4")
class ToTheBackAsIfNew(_Moving):
    def spoil(self, row: Row) -> None:
        row.time += 1


@breaks("T4")
class ToTheBackWithoutKey(_Moving):
    def spoil(self, row: Row) -> None:
        row.key = None


@breaks("S5")
class LooksTheSameAfterARequeue(MemoryRecordStore):
    def requeue(self, id: int | None = None) -> int:
        changes = self._state.changes
        count = super().requeue(id)
        self._state.changes = changes
        return count


@breaks("S4")
class StartsIdsAgain(MemoryRecordStore):
    def clear(self) -> int:
        count = super().clear()
        if not self._state.rows:
            self._state.last_id = 0
        return count


@breaks("S4")
class DiscardsTheOldest(MemoryRecordStore):
    def remove(self, id: int | None = None) -> int | None:
        ids = [record.id for record in self.records()]
        return super().remove(id if id is not None else min(ids, default=0))


@breaks("S4")
class ClaimsTheFirstForAnyId(MemoryRecordStore):
    def _selected(self, select: Select | None) -> list[Row]:
        return super()._selected(select if select is not None and select.after else None)


@breaks("S4")
class FollowsUpwards(MemoryRecordStore):
    def _selected(self, select: Select | None) -> list[Row]:
        if select is None or not select.after:
            return super()._selected(select)
        ids = [row.id for row in self._ready() if row.id > select.id]
        return super()._selected(Select(min(ids, default=0)))


@breaks("S4")
class FollowsWithItself(MemoryRecordStore):
    def _selected(self, select: Select | None) -> list[Row]:
        if select is not None and select.id in [row.id for row in self._ready()]:
            return super()._selected(Select(select.id))
        return super()._selected(select)


@breaks("S4")
class FollowsRound(MemoryRecordStore):
    def _selected(self, select: Select | None) -> list[Row]:
        rows = super()._selected(select)
        return rows or super()._selected(None) if select is not None and select.after else rows


# S5 and S6


@breaks("S5")
class ClaimsNothing(MemoryRecordStore):
    def claim(self, decode: Any, select: Select | None = None, **options: Any) -> Any:
        return self.peek(decode)


@breaks("S5")
class SettlesAnotherOnes(MemoryRecordStore):
    def _claimed(self, id: int) -> Row:
        row = self._state.rows.get(id)
        if row is None or row.state is not State.CLAIMED:
            raise NotClaimedError(f"item {id}")
        self._claims[id] = row.deliveries
        return row


@breaks("S5")
class LooksTheSame(MemoryRecordStore):
    def change_token(self) -> object:
        return super().change_token() if self._closed else 0


@breaks("S6")
class Unbounded(MemoryRecordStore):
    def put(self, entries: Sequence[Entry], capacity: int = 0, **options: Any) -> list[int | None]:
        return super().put(entries)


@breaks("S6")
class OneTooMany(MemoryRecordStore):
    def put(self, entries: Sequence[Entry], capacity: int = 0, **options: Any) -> list[int | None]:
        return super().put(entries, capacity + 1 if capacity else 0)


@breaks("S6")
class DelayedNeedsRoom(MemoryRecordStore):
    def put(self, entries: Sequence[Entry], capacity: int = 0, **options: Any) -> list[int | None]:
        delayed = len(self._state.select(State.DELAYED))
        return super().put(entries, max(1, capacity - delayed) if capacity else 0)


@breaks("S6")
class WhatIsPutForLaterNeedsRoom(MemoryRecordStore):
    def put(self, entries: Sequence[Entry], capacity: int = 0, **options: Any) -> list[int | None]:
        if any(entry.delay > 0 for entry in entries) and 0 < capacity <= self.count():
            raise Full
        return super().put(entries, capacity)


# S8 to S10


@breaks("S8")
class ClosingEndsDelays(MemoryRecordStore):
    def close(self) -> None:
        if not self._closed:
            for row in self._state.select(State.DELAYED):
                self._state.move(row, State.READY)
        super().close()


@breaks("S8")
class ClosingForgetsAttempts(MemoryRecordStore):
    def close(self) -> None:
        super().close()
        for row in self._state.rows.values():
            row.attempts = 0


@breaks("S8")
class ClosingForgetsWhatIsDone(MemoryRecordStore):
    def close(self) -> None:
        super().close()
        for row in self._state.select(State.DONE):
            self._state.remove(row)


@breaks("S8")
class ClosingGivesBack(MemoryRecordStore):
    def close(self) -> None:
        self._retry = self._retry._replace(auto_reclaim=True)
        super().close()


@breaks("S9")
class HoldsWhenClosed(MemoryRecordStore):
    def has_active_key(self, key: bytes) -> bool:
        return not self._closed and super().has_active_key(key)


@breaks("S9")
class FailsNothingWhenClosed(MemoryRecordStore):
    def fail(self, ids: Sequence[int], reason: str | None = None) -> None:
        if ids:
            super().fail(ids, reason)


@breaks("S9")
class NacksNothingWhenClosed(MemoryRecordStore):
    def nack_many(self, ids: Sequence[int], reason: str = NACKED) -> None:
        if ids:
            super().nack_many(ids, reason)


@breaks("S9")
class RequeuesWhenClosed(MemoryRecordStore):
    def requeue(self, id: int | None = None) -> int:
        return 0 if self._closed else super().requeue(id)


@breaks("S9")
class PurgesWhenClosed(MemoryRecordStore):
    def purge(self, state: State, keep: int = 0, limit: int | None = None) -> int:
        return 0 if self._closed else super().purge(state, keep, limit)


@breaks("S10")
class TheChildKeepsClaims(MemoryRecordStore):
    def after_fork_in_child(self) -> None:
        return None
