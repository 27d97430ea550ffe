"""Record stores that break T1 and T2: their records change their state wrongly."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from persistcoll.engine.contracts import Select
from persistcoll.engine.memory.record_store import MemoryRecordState, MemoryRecordStore
from persistcoll.engine.memory.rows import Row
from persistcoll.engine.records import NACKED, Record, State
from persistcoll.engine.transaction_hooks import TransactionHooks
from persistcoll.errors import ClaimError, NotClaimedError, StaleClaimError
from tests.conformance.wrong.moments import without_lock
from tests.conformance.wrong.registry import breaks

# T1


@breaks("T1")
class NeverDead(MemoryRecordStore):
    def _come_back(self, row: Row, reason: str | None) -> None:
        row.reason = reason
        self._state.move(row, State.READY)


@breaks("T1")
class DeadTooLate(MemoryRecordStore):
    def _come_back(self, row: Row, reason: str | None) -> None:
        row.attempts -= 1
        super()._come_back(row, reason)
        row.attempts += 1


@breaks("T1")
class AliveAtTheEndOfALease(MemoryRecordStore):
    def _promote_due(self) -> MemoryRecordState:
        retry, self._retry = self._retry, self._retry._replace(max_attempts=None)
        try:
            return super()._promote_due()
        finally:
            self._retry = retry


@breaks("T1")
class AliveWhenClosed(MemoryRecordStore):
    def close(self) -> None:
        self._retry = self._retry._replace(max_attempts=None)
        super().close()


@breaks("T1")
class AliveAfterACrash(MemoryRecordStore):
    def reclaim(self) -> int:
        retry, self._retry = self._retry, self._retry._replace(max_attempts=None)
        try:
            return super().reclaim()
        finally:
            self._retry = retry


@breaks("T1")
class DeadWithANewId(MemoryRecordStore):
    def nack(self, id: int, delay: float | None = None, to_back: bool = False, reason: str = NACKED) -> int:
        new = super().nack(id, delay, to_back, reason=reason)
        row = self._state.rows[new]
        if row.state is State.DEAD and to_back:
            self._state.remove(row)
            new = self._state.add(row)
        return new


@breaks("T1")
class DiscardsWhatIsClaimed(MemoryRecordStore):
    def remove(self, id: int | None = None) -> int | None:
        row = None if id is None else self._promote_due().rows.get(id)
        if row is not None and row.state is State.CLAIMED:
            self._state.remove(row)
            return id
        return super().remove(id)


@breaks("T1")
class ClearsWhatIsDelayed(MemoryRecordStore):
    def clear(self) -> int:
        for row in self._promote_due().select(State.DELAYED):
            self._state.remove(row)
        return super().clear()


@breaks("T1")
class ClaimsWhatFailed(MemoryRecordStore):
    def _selected(self, select: Select | None) -> list[Row]:
        row = None if select is None else self._state.rows.get(select.id)
        if row is not None and row.state is State.FAILED and select is not None and not select.after:
            return [row]
        return super()._selected(select)


@breaks("T1")
class ReplacesWhatIsDone(MemoryRecordStore):
    def update(self, id: int, payload: bytes, key: bytes | None = None) -> bool:
        row = self._promote_due().rows.get(id)
        return super().update(id, payload, key) or (row is not None and row.state is State.DONE)


@breaks("T1")
class PurgesWhatIsReady(MemoryRecordStore):
    def purge(self, state: State, keep: int = 0, limit: int | None = None) -> int:
        return self.clear() if state is State.READY else super().purge(state, keep, limit)


@breaks("T1")
class PurgesTheNewestFirst(MemoryRecordStore):
    def purge(self, state: State, keep: int = 0, limit: int | None = None) -> int:
        rows = self._promote_due().select(state)
        gone = rows[keep:][::-1][:limit]
        for row in gone:
            self._state.remove(row)
        return len(gone)


@breaks("T1")
class PurgesAll(MemoryRecordStore):
    def purge(self, state: State, keep: int = 0, limit: int | None = None) -> int:
        return super().purge(state, 0, limit)


@breaks("T1")
class PurgesWithoutLimit(MemoryRecordStore):
    def purge(self, state: State, keep: int = 0, limit: int | None = None) -> int:
        return super().purge(state, keep)


@breaks("T1")
class KeepsAllThatIsDone(MemoryRecordStore):
    def _done(self, row: Row) -> None:
        retry, self._retry = self._retry, self._retry._replace(keep_done=10**9)
        super()._done(row)
        self._retry = retry


@breaks("T1")
class KeepsTheOldestThatAreDone(MemoryRecordStore):
    def _done(self, row: Row) -> None:
        keep, self._retry = self._retry.keep_done, self._retry._replace(keep_done=10**9)
        super()._done(row)
        self._retry = self._retry._replace(keep_done=keep)
        for new in self._state.select(State.DONE)[keep:]:
            self._state.remove(new)


@breaks("T1")
class ForgetsWhatIsDoneAsItIsTaken(MemoryRecordStore):
    def _claim(self, rows: list[Row], decode: Callable[[Record], Any], pop: bool, claims: Any) -> list[Any]:
        values = super()._claim(rows, decode, pop, claims)
        for row in rows[: len(values)]:
            if pop:
                self._state.rows.pop(row.id, None)
        return values


@breaks("T1")
class TimeEndsWhatFailed(MemoryRecordStore):
    def _promote_due(self) -> MemoryRecordState:
        state = super()._promote_due()
        for row in state.select(State.FAILED):
            if state.clock() - row.time > 1e5:
                state.remove(row)
        return state


class _Requeuing(MemoryRecordStore):
    """A store that does something else to a record that it requeues."""

    def requeue(self, id: int | None = None) -> int:
        before = {row.id: copy.copy(row) for row in self._promote_due().rows.values()}
        count = super().requeue(id)
        for row in [row for row in self._state.rows.values() if row.state is State.READY]:
            if before[row.id].state is not State.READY:
                self.spoil(row, before[row.id])
        return count

    def spoil(self, row: Row, before: Row) -> None:
        raise NotImplementedError


@breaks("T1")
class RequeuesWithItsAttempts(_Requeuing):
    def spoil(self, row: Row, before: Row) -> None:
        row.attempts = before.attempts


@breaks("T1")
class RequeuesUnderANewId(_Requeuing):
    def spoil(self, row: Row, before: Row) -> None:
        self._state.remove(row)
        self._state.add(row)


@breaks("T1")
class RequeuesWithoutReason(_Requeuing):
    def spoil(self, row: Row, before: Row) -> None:
        row.reason = None


@breaks("T1")
class RequeuesAsPutAgain(_Requeuing):
    def spoil(self, row: Row, before: Row) -> None:
        self._state.puts += 1


@breaks("T1")
class RequeuesNotWhatIsDead(_Requeuing):
    def spoil(self, row: Row, before: Row) -> None:
        if before.state is State.DEAD:
            self._state.rows[row.id] = before


@breaks("T1")
class RequeuesWhatIsDone(MemoryRecordStore):
    def requeue(self, id: int | None = None) -> int:
        row = None if id is None else self._promote_due().rows.get(id)
        if row is not None and row.state is State.DONE:
            self._state.move(row, State.READY)
            return 1
        return super().requeue(id)


@breaks("T1")
class ForgetsTheReasonOfAFailure(MemoryRecordStore):
    def fail(self, ids: Sequence[int], reason: str | None = None) -> None:
        super().fail(ids)


@breaks("T1")
class KeepsAnEarlierReason(MemoryRecordStore):
    def fail(self, ids: Sequence[int], reason: str | None = None) -> None:
        super().fail(ids, reason or self._state.rows[ids[0]].reason)


@breaks("T1")
class TellsTheReasonTooLate(MemoryRecordStore):
    def _record(self, row: Row, attempt: int = 0) -> Record:
        record = super()._record(row, attempt)
        return record._replace(reason=None) if attempt else record


@breaks("T1")
class EveryClaimIsNacked(MemoryRecordStore):
    def _come_back(self, row: Row, reason: str | None) -> None:
        super()._come_back(row, NACKED if reason else None)


@breaks("T1")
class NacksManyWithoutEnd(MemoryRecordStore):
    def nack_many(self, ids: Sequence[int], reason: str = NACKED) -> None:
        retry, self._retry = self._retry, self._retry._replace(max_attempts=None)
        try:
            super().nack_many(ids, reason)
        finally:
            self._retry = retry


# T2


@breaks("T2")
class FencesByAttempts(MemoryRecordStore):
    """A requeue begins the numbers anew that distinguish the claims."""

    def requeue(self, id: int | None = None) -> int:
        count = super().requeue(id)
        for row in self._state.select(State.READY):
            row.deliveries = row.attempts
        return count


@breaks("T2")
class NamesNoLostClaim(MemoryRecordStore):
    def _settled(self, ids: Sequence[int]) -> list[Row]:
        try:
            return super()._settled(ids)
        except StaleClaimError as error:
            raise StaleClaimError(str(error)) from None


@breaks("T2")
class ALeaseIsNotLookedAt(MemoryRecordStore):
    """A late ack succeeds if no other consumer has claimed the record."""

    def _claimed(self, id: int) -> Row:
        row = self._state.rows.get(id)
        late = row is not None and row.state is State.READY and row.deliveries == self._claims.get(id)
        return row if row is not None and late else super()._claimed(id)


@breaks("T2")
class AHolderIsNotLookedAt(MemoryRecordStore):
    """A former holder may settle what another one has claimed since."""

    def _claimed(self, id: int) -> Row:
        row = self._state.rows.get(id)
        other = row is not None and row.state is State.CLAIMED and id in self._claims
        return row if row is not None and other else super()._claimed(id)


@breaks("T2")
class ALostClaimIsNone(MemoryRecordStore):
    def _claimed(self, id: int) -> Row:
        try:
            return super()._claimed(id)
        except StaleClaimError:
            raise NotClaimedError("lost") from None


@breaks("T2")
class WhatWasNeverClaimedIsLost(MemoryRecordStore):
    def _claimed(self, id: int) -> Row:
        try:
            return super()._claimed(id)
        except NotClaimedError:
            if id in self._state.rows:
                raise StaleClaimError("lost") from None
            raise


@breaks("T2")
class AClaimIsLostOnlyOnce(MemoryRecordStore):
    def _claimed(self, id: int) -> Row:
        try:
            return super()._claimed(id)
        except ClaimError:
            self._claims.pop(id, None)
            raise


# T6


@breaks("T6")
class KeepsRowsAfterARollback(MemoryRecordStore):
    def transaction(self) -> AbstractContextManager[None]:
        self._state.restore = lambda before: None  # type: ignore[method-assign]
        return super().transaction()


@breaks("T6")
class ForgetsClaimsAfterARollback(MemoryRecordStore):
    def _promote_due(self) -> MemoryRecordState:
        self._joined = self._state.open_transaction()
        return super()._promote_due()


@breaks("T6")
class LetsOtherTasksIn(MemoryRecordStore):
    def _promote_due(self) -> MemoryRecordState:
        self._state.refuse_other_task = lambda: None  # type: ignore[method-assign]
        return super()._promote_due()


@breaks("T6")
class LetsOtherThreadsWrite(MemoryRecordStore):
    def transaction(self) -> AbstractContextManager[None]:
        self._state.lock = nullcontext()  # type: ignore[assignment]
        return super().transaction()


@breaks("T6")
class LetsOtherThreadsLook(MemoryRecordStore):
    def records(self) -> Iterator[Record]:
        with without_lock(self._state):
            return super().records()


@breaks("T6")
class CallsNoHooks(MemoryRecordStore):
    def open_transaction(self) -> TransactionHooks | None:
        return TransactionHooks()
