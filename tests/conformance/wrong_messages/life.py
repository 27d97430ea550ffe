"""Message stores that break S1 to S10: what any store may do wrong."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from types import EllipsisType
from typing import TYPE_CHECKING, Any

from persistcoll.engine.memory.message_rows import MemoryMessageState, MessageRow
from persistcoll.engine.memory.message_store import MemoryMessageStore
from persistcoll.engine.memory.server_message_store import MemoryMessageServerStore
from persistcoll.engine.message_records import (
    MessageClaim,
    MessageEntry,
    MessagePolicy,
    MessageRecord,
    TopicClaim,
)
from persistcoll.engine.records import State
from persistcoll.errors import DuplicateError, Empty, StaleClaimError
from tests.conformance.wrong_messages.registry import breaks

if TYPE_CHECKING:
    from typing_extensions import Self

# S1


@breaks("S1")
class AcksThoseBefore(MemoryMessageStore):
    def ack(self, claims: Sequence[MessageClaim]) -> None:
        for claim in claims:
            super().ack([claim])


@breaks("S1")
class DeliversThoseBefore(MemoryMessageStore):
    def deliver(self, claims: Sequence[MessageClaim]) -> None:
        for claim in claims:
            super().deliver([claim])


@breaks("S1")
class NotesTheErrorOfAStaleNack(MemoryMessageStore):
    def nack(
        self, claims: Sequence[MessageClaim], delay: float | None = None, error: str | None = None
    ) -> None:
        for claim in claims:
            row = self._promote_due().rows.get(claim.id)
            if row is not None and error is not None:
                row.error = error
        super().nack(claims, delay, error)


@breaks("S1")
class FindsNothingAtTheCostOfTheRate(MemoryMessageStore):
    def claim(
        self, limit: int = 1, topics: Sequence[str] | None = None, **options: Any
    ) -> list[MessageRecord]:
        try:
            return super().claim(limit, topics, **options)
        except Empty:
            for topic in topics or ():
                self._use_rate(topic, 1)
            raise


@breaks("S1")
class ListsAClaimThatItDoesNotMake(MemoryMessageStore):
    def claim(self, *arguments: Any, **options: Any) -> list[MessageRecord]:
        try:
            return super().claim(*arguments, **options)
        except Empty:
            if options.get("claims") is not None:
                options["claims"].append(MessageClaim(0, 0))
            raise


@breaks("S1")
class RefusesARedriveTooLate(MemoryMessageStore):
    def redrive(self, id: int) -> bool:
        try:
            return super().redrive(id)
        except DuplicateError:
            self._state.rows[id].attempts = 0
            raise


@breaks("S1")
class TakesTheKeyOfAnother(MemoryMessageStore):
    def redrive(self, id: int) -> bool:
        try:
            return super().redrive(id)
        except DuplicateError:
            self._state.keys.pop(self._state.rows[id].entry.key or b"", None)
            raise


@breaks("S1")
class ExtendsThePresentLock(MemoryMessageStore):
    def extend_lock(self, lock: TopicClaim, seconds: float | None) -> None:
        try:
            super().extend_lock(lock, seconds)
        except StaleClaimError:
            held = self._state.locks.get(lock.topic)
            if held is not None:
                super().extend_lock(TopicClaim(lock.topic, held.token), seconds)
            raise


@breaks("S1")
class SaysNothingOfTransactions(MemoryMessageStore):
    """Without saying so, the store takes every connection for one that it can join."""

    def joined(self, connection: Any) -> Self:
        return self


@breaks("S1")
class StoresTheSmallOnes(MemoryMessageServerStore):
    def put(self, entries: Sequence[MessageEntry], **options: Any) -> list[int | None]:
        return [id for entry in entries for id in super(StoresTheSmallOnes, self).put([entry], **options)]


@breaks("S1")
class ClaimsBeforeItRefuses(MemoryMessageServerStore):
    """A claim without a lease is refused after the claim."""

    def claim(self, limit: int = 1, *arguments: Any, **options: Any) -> list[MessageRecord]:
        try:
            found: list[MessageRecord] = super().claim(limit, *arguments, **options)
        except ValueError:
            super().claim(limit, *arguments, **{**options, "lease": 600.0})
            raise
        return found


# S2: what the state loses when its process dies.


class _Forgetful(MemoryMessageStore):
    """A store that loses something when it finds a state that a dead process left."""

    def __init__(
        self,
        policy: MessagePolicy = MessagePolicy(),  # noqa: B008 - immutable
        state: MemoryMessageState | None = None,
    ) -> None:
        super().__init__(policy, state)
        found: Any = self._state
        if not hasattr(found, "used"):
            self.forget(found)
        found.used = True

    def forget(self, state: MemoryMessageState) -> None:
        for row in list(state.rows.values()):
            self.forget_of(row)

    def forget_of(self, row: MessageRow) -> None:
        raise NotImplementedError


@breaks("S2")
class ACrashEndsDelays(_Forgetful):
    def forget_of(self, row: MessageRow) -> None:
        if row.state is State.DELAYED:
            self._move(row, State.READY)


@breaks("S2")
class ACrashForgetsAttempts(_Forgetful):
    def forget_of(self, row: MessageRow) -> None:
        row.attempts = 0


@breaks("S2")
class ACrashForgetsErrors(_Forgetful):
    def forget_of(self, row: MessageRow) -> None:
        row.error = None


@breaks("S2")
class ACrashForgetsTheEndOfMessages(_Forgetful):
    def forget_of(self, row: MessageRow) -> None:
        row.expires = None


@breaks("S2")
class ACrashForgetsWhatWasDelivered(_Forgetful):
    def forget_of(self, row: MessageRow) -> None:
        row.delivered = False


@breaks("S2")
class ACrashDeliversWhatWasPrefetched(_Forgetful):
    def forget_of(self, row: MessageRow) -> None:
        row.delivered = True


@breaks("S2")
class ACrashReadiesWhatIsBlocked(_Forgetful):
    def forget_of(self, row: MessageRow) -> None:
        if row.state is State.BLOCKED:
            self._move(row, State.READY)


@breaks("S2")
class ACrashForgetsPauses(_Forgetful):
    def forget(self, state: MemoryMessageState) -> None:
        state.paused.clear()


@breaks("S2")
class ACrashForgetsDeliveries(_Forgetful):
    def forget(self, state: MemoryMessageState) -> None:
        state.rates = {topic: rate._replace(next=0.0) for topic, rate in state.rates.items()}


@breaks("S2")
class ACrashForgetsWindows(_Forgetful):
    def forget(self, state: MemoryMessageState) -> None:
        state.keys = {key: active for key, active in state.keys.items() if active.unfinished}


@breaks("S2")
class ACrashUsesIdsAgain(_Forgetful):
    def forget(self, state: MemoryMessageState) -> None:
        state.last_id = max(state.rows, default=0)


@breaks("S2")
class ACrashUsesTokensAgain(_Forgetful):
    def forget(self, state: MemoryMessageState) -> None:
        state.tokens = itertools.count(1)


@breaks("S2")
class ACrashKeepsLocks(_Forgetful):
    def forget(self, state: MemoryMessageState) -> None:
        state.locks = {topic: lock._replace(holder="nobody") for topic, lock in state.locks.items()}


@breaks("S2")
class HoldsWhatTheDeadHeld(_Forgetful):
    def forget_of(self, row: MessageRow) -> None:
        row.holder = "nobody"


@breaks("S2")
class TakesACrashForADeath(MemoryMessageServerStore):
    """Another process ends the claims that a dead one has left, though their leases are not over."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        state: Any = self._state
        if not hasattr(state, "used"):
            for row in state.select(State.CLAIMED):
                row.state, row.until, row.token = State.READY, None, None
        state.used = True


# S4


@breaks("S4")
class UsesTheLastIdAgain(MemoryMessageStore):
    def _put(self, entry: MessageEntry) -> int | None:
        self._state.last_id = max(self._state.rows, default=0)
        return super()._put(entry)


@breaks("S4")
class ReturnsToTheEnd(MemoryMessageStore):
    def _move(self, row: MessageRow, state: State, until: float | None = None) -> None:
        if row.state is State.CLAIMED and state is State.READY:
            self._state.rows[self._state.last_id + 1] = self._state.rows.pop(row.id)
            self._state.last_id += 1
            row.id = self._state.last_id
        super()._move(row, state, until)


@breaks("S4")
class ReturnsToTheFront(MemoryMessageStore):
    def _ready(self, topics: Sequence[str] | None = None) -> list[MessageRow]:
        return sorted(super()._ready(topics), key=lambda row: -row.deliveries)


@breaks("S4")
class ClaimsTheNewestFirst(MemoryMessageStore):
    def claim(self, *arguments: Any, **options: Any) -> list[MessageRecord]:
        return super().claim(*arguments, **options)[::-1]


@breaks("S4")
class RefusesAtTheCostOfAnOrder(MemoryMessageStore):
    """The entries after one that is refused get their ids in reverse."""

    def put(self, entries: Sequence[MessageEntry], **options: Any) -> list[int | None]:
        ids = super().put(entries, **options)
        return ids if ids[:1] != [None] else [None, *ids[:0:-1]]


@breaks("S4")
class AsksAgainUnderAnotherNumber(MemoryMessageServerStore):
    """An operation whose answer was lost happens twice."""

    def _attempt(
        self, name: str, arguments: Any, options: Any, operation: int, early: Any
    ) -> tuple[bool, Any]:
        return super()._attempt(name, arguments, options, next(self._operations), early)


@breaks("S4")
class DrawsIdsThatOthersDraw(MemoryMessageServerStore):
    def _draw_last(self) -> int:
        self._drawn = getattr(self, "_drawn", 0) + 1
        return self._drawn


# S5


@breaks("S5")
class LooksBeforeItLocks(MemoryMessageStore):
    def claim(
        self,
        limit: int = 1,
        topics: Sequence[str] | None = None,
        *,
        lease: float | EllipsisType | None = ...,
        prefetch: bool = False,
        claims: list[MessageClaim] | None = None,
        deadline: float | None = None,
    ) -> list[MessageRecord]:
        with self._state.lock:
            self._promote_due()
            rows = self._open_rows(limit, topics)
        time.sleep(0.001)
        with self._state.lock:
            rows = [row for row in rows if row.id in self._state.rows]
            if not rows:
                raise Empty
            return [self._claim(row, self._lease(row, lease), prefetch) for row in rows]


@breaks("S5")
class HasOneClaimForAMessage(MemoryMessageStore):
    def _claim(self, row: MessageRow, lease: float | None, prefetch: bool) -> MessageRecord:
        self._state.tokens = itertools.count(1)
        return super()._claim(row, lease, prefetch)


@breaks("S5")
class TakesLivingHoldersForDead(MemoryMessageStore):
    def reclaim(self) -> int:
        self._state.kill_holders()
        return super().reclaim()


@breaks("S5")
class EndsTheClaimsOfAllWhenItCloses(MemoryMessageStore):
    def close(self) -> None:
        if not self._closed:
            self._state.kill_holders()
        super().close()


# S8


@breaks("S8")
class KeepsItsClaims(MemoryMessageStore):
    def close(self) -> None:
        self._closed = True

    def _is_dead(self, holder: object) -> bool:
        return holder is None


class _ChangesWhenItCloses(MemoryMessageStore):
    def end_own_claims(self) -> None:
        held = [row for row in self._state.select(State.CLAIMED) if row.holder == self._holder]
        self.before(held)
        super().end_own_claims()
        self.after(held)

    def before(self, held: list[MessageRow]) -> None:
        pass

    def after(self, held: list[MessageRow]) -> None:
        pass


@breaks("S8")
class ClosingTakesBackAttempts(_ChangesWhenItCloses):
    def after(self, held: list[MessageRow]) -> None:
        for row in held:
            row.attempts = 0


@breaks("S8")
class ClosingGivesNoReason(_ChangesWhenItCloses):
    def after(self, held: list[MessageRow]) -> None:
        for row in held:
            row.error = None


@breaks("S8")
class ClosingCountsWhatWasPrefetched(_ChangesWhenItCloses):
    def before(self, held: list[MessageRow]) -> None:
        for row in held:
            row.delivered = True


@breaks("S8")
class ClosingKillsNothing(_ChangesWhenItCloses):
    def before(self, held: list[MessageRow]) -> None:
        for row in held:
            row.entry = row.entry._replace(max_attempts=None)


@breaks("S8")
class ClosingLeavesGroupsBlocked(_ChangesWhenItCloses):
    def before(self, held: list[MessageRow]) -> None:
        self._next_head = lambda group: None  # type: ignore[method-assign]


@breaks("S8")
class ClosingKeepsWhatIsOver(_ChangesWhenItCloses):
    """A message that comes back after its ttl is ready for a moment, and expires uncounted."""

    def before(self, held: list[MessageRow]) -> None:
        for row in held:
            row.expires = None


@breaks("S8")
class ClosingKeepsItsLocks(_ChangesWhenItCloses):
    def before(self, held: list[MessageRow]) -> None:
        locks = self._state.locks
        self._state.locks = {topic: lock._replace(holder="nobody") for topic, lock in locks.items()}


@breaks("S8")
class ClosingEndsTheLocksOfOthers(_ChangesWhenItCloses):
    def before(self, held: list[MessageRow]) -> None:
        self._state.locks.clear()


@breaks("S8")
class ClosingResumes(_ChangesWhenItCloses):
    def before(self, held: list[MessageRow]) -> None:
        self._state.paused.clear()


@breaks("S8")
class ClosingLiftsRates(_ChangesWhenItCloses):
    def before(self, held: list[MessageRow]) -> None:
        self._state.rates.clear()


@breaks("S8")
class OpeningUsesTokensAgain(MemoryMessageStore):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._state.tokens = itertools.count(1)

    def _of_claim(self, claim: MessageClaim) -> MessageRow | None:
        row = self._state.rows.get(claim.id)
        return row if row is not None and row.state is State.CLAIMED else None


# S9


@breaks("S9")
class CountsWhenItIsClosed(MemoryMessageStore):
    def is_empty(self, topic: str | None = None) -> bool:
        return not self._state.select(State.READY, topic=topic)


@breaks("S9")
class PutsNothingWhenItIsClosed(MemoryMessageStore):
    def put(self, entries: Sequence[MessageEntry], **options: Any) -> list[int | None]:
        return super().put(entries, **options) if entries else []


@breaks("S9")
class AcksNothingWhenItIsClosed(MemoryMessageStore):
    def ack(self, claims: Sequence[MessageClaim]) -> None:
        if claims:
            super().ack(claims)


@breaks("S9")
class PausesWhenItIsClosed(MemoryMessageStore):
    def pause(self, topic: str) -> None:
        self._state.paused[topic] = True
        super().pause(topic)


@breaks("S9")
class ChecksNothingAtACheckpoint(MemoryMessageStore):
    def checkpoint(self) -> None:
        pass


@breaks("S9")
class BeginsTransactionsWhenItIsClosed(MemoryMessageStore):
    def transaction(self) -> AbstractContextManager[None]:
        return self._state.transaction(lambda: None)


@breaks("S9")
class ClosesOnce(MemoryMessageStore):
    closes = 0

    def close(self) -> None:
        self.closes += 1
        if self.closes == 2:
            self._promote_due()
        super().close()


# S10


@breaks("S10")
class TheChildHoldsWhatTheParentHolds(MemoryMessageStore):
    def after_fork_in_child(self) -> None:
        self._state.forked()


@breaks("S10")
class TheChildHasTheLocksOfTheParent(MemoryMessageStore):
    def after_fork_in_child(self) -> None:
        locks = self._state.locks
        super().after_fork_in_child()
        self._state.locks = {topic: lock._replace(holder="nobody") for topic, lock in locks.items()}


@breaks("S10")
class ClosesInTheChild(MemoryMessageStore):
    def after_fork_in_child(self) -> None:
        super().after_fork_in_child()
        self._closed = True


@breaks("S10")
class TheChildEndsTheClaimsOfTheParent(MemoryMessageServerStore):
    def after_fork_in_child(self) -> None:
        self._call("end_own_claims", (), {})
        super().after_fork_in_child()


@breaks("S10")
class TheChildIsTheParent(MemoryMessageServerStore):
    """The child claims from a topic that its parent has locked."""

    def after_fork_in_child(self) -> None:
        self._state.lock = threading.RLock()
