"""Message stores that break Q6 and Q7: their claims end wrongly, or something is left of them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

from persistcoll.engine.memory.message_rows import MessageRow
from persistcoll.engine.memory.message_store import MemoryMessageStore
from persistcoll.engine.memory.server_message_store import MemoryMessageServerStore
from persistcoll.engine.message_records import MessageClaim, MessageRecord
from persistcoll.engine.records import State
from persistcoll.errors import StaleClaimError
from tests.conformance.wrong_messages.registry import breaks

# Q6


class _Otherwise(MemoryMessageStore):
    """A store whose claims end at another time."""

    def _claim(self, row: MessageRow, lease: float | None, prefetch: bool) -> MessageRecord:
        record = super()._claim(row, lease, prefetch)
        row.until = self.end(row.until)
        return record._replace(until=row.until)

    def end(self, until: float | None) -> float | None:
        raise NotImplementedError


@breaks("Q6")
class LeasesNeverEnd(_Otherwise):
    def end(self, until: float | None) -> float | None:
        return None


@breaks("Q6")
class LeasesEndEarly(_Otherwise):
    def end(self, until: float | None) -> float | None:
        return None if until is None else until - 1.0


@breaks("Q6")
class LeasesEndLate(_Otherwise):
    def end(self, until: float | None) -> float | None:
        return None if until is None else until + 0.1


@breaks("Q6")
class EveryClaimEnds(_Otherwise):
    def end(self, until: float | None) -> float | None:
        return until or self._state.clock() + 3600.0


@breaks("Q6")
class LeasesEndLateUnseen(MemoryMessageStore):
    def _is_due(self, row: MessageRow, now: float) -> bool:
        return super()._is_due(row, now - 0.1 * (row.state is State.CLAIMED))


@breaks("Q6")
class LeasesEndEarlyUnseen(MemoryMessageStore):
    def _is_due(self, row: MessageRow, now: float) -> bool:
        return super()._is_due(row, now + 1.0 * (row.state is State.CLAIMED))


@breaks("Q6")
class IgnoresTheMessagesLease(MemoryMessageStore):
    def _lease(self, row: MessageRow, lease: Any) -> float | None:
        return self._policy.lease if lease is ... else lease


@breaks("Q6")
class IgnoresTheCallsLease(MemoryMessageStore):
    def _lease(self, row: MessageRow, lease: Any) -> float | None:
        return super()._lease(row, ... if lease is not None else None)


@breaks("Q6")
class NoLeaseIsThePolicys(MemoryMessageStore):
    def _lease(self, row: MessageRow, lease: Any) -> float | None:
        found = super()._lease(row, lease)
        return self._policy.lease if found is None else found


@breaks("Q6")
class NoLeaseOfACallIsTheMessages(MemoryMessageStore):
    def _lease(self, row: MessageRow, lease: Any) -> float | None:
        return super()._lease(row, ... if lease is None else lease)


@breaks("Q6")
class PrefersTheMessagesLease(MemoryMessageStore):
    def _lease(self, row: MessageRow, lease: Any) -> float | None:
        return super()._lease(row, lease if row.entry.lease is ... else row.entry.lease)


@breaks("Q6")
class TakesTheShorterLease(MemoryMessageStore):
    def _lease(self, row: MessageRow, lease: Any) -> float | None:
        found, other = super()._lease(row, lease), super()._lease(row, ...)
        return found if found is None or other is None else min(found, other)


@breaks("Q6")
class OneLeaseForABatch(MemoryMessageStore):
    def claim(self, limit: int = 1, *arguments: Any, **options: Any) -> list[MessageRecord]:
        records = super().claim(limit, *arguments, **options)
        for record in records:
            self._state.rows[record.id].until = records[0].until
        return [record._replace(until=records[0].until) for record in records]


@breaks("Q6")
class DoesNotSayItsLease(MemoryMessageStore):
    def _claim(self, row: MessageRow, lease: float | None, prefetch: bool) -> MessageRecord:
        return super()._claim(row, lease, prefetch)._replace(lease=self._policy.lease)


class _ExtendsOtherwise(MemoryMessageStore):
    """A store whose extensions have another end."""

    def extend(self, claims: Sequence[MessageClaim], seconds: float | None) -> float | None:
        rows = [self._state.rows.get(claim.id) for claim in claims]
        before = [None if row is None else row.until for row in rows]
        until = super().extend(claims, seconds)
        for row, old in zip(rows, before, strict=True):
            if row is not None and row.state is State.CLAIMED:
                row.until = until = self.end(old, row.until, seconds)
        return until

    def end(self, old: float | None, new: float | None, seconds: float | None) -> float | None:
        raise NotImplementedError


@breaks("Q6")
class ExtendsFromTheOldEnd(_ExtendsOtherwise):
    def end(self, old: float | None, new: float | None, seconds: float | None) -> float | None:
        return new if old is None or seconds is None else old + seconds


@breaks("Q6")
class ExtendsOnlyToLater(_ExtendsOtherwise):
    def end(self, old: float | None, new: float | None, seconds: float | None) -> float | None:
        return new if old is None or new is None else max(old, new)


@breaks("Q6")
class ExtendsNothing(_ExtendsOtherwise):
    def end(self, old: float | None, new: float | None, seconds: float | None) -> float | None:
        return old


@breaks("Q6")
class ExtendsToNoLeaseNever(_ExtendsOtherwise):
    def end(self, old: float | None, new: float | None, seconds: float | None) -> float | None:
        return old if new is None else new


@breaks("Q6")
class ExtendsNoneWithoutALease(_ExtendsOtherwise):
    def end(self, old: float | None, new: float | None, seconds: float | None) -> float | None:
        return None if old is None else new


@breaks("Q6")
class ExtendsTheFirst(MemoryMessageStore):
    def extend(self, claims: Sequence[MessageClaim], seconds: float | None) -> float | None:
        return super().extend(claims[:1], seconds)


@breaks("Q6")
class ExtensionSaysItsSeconds(MemoryMessageStore):
    def extend(self, claims: Sequence[MessageClaim], seconds: float | None) -> float | None:
        super().extend(claims, seconds)
        return seconds


@breaks("Q6")
class ForgetsWhyAClaimEnded(MemoryMessageStore):
    def _lose(self, row: MessageRow, error: str) -> None:
        super()._lose(row, error)
        row.error = None


@breaks("Q6")
class ClosingEndsEveryClaim(MemoryMessageStore):
    def end_own_claims(self) -> None:
        for row in self._state.select(State.CLAIMED):
            self._lose(row, "closed")


@breaks("Q6")
class ClosingKeepsClaims(MemoryMessageStore):
    def end_own_claims(self) -> None:
        return

    def _is_dead(self, holder: object) -> bool:
        return holder is None


@breaks("Q6")
class TheDeadKeepClaims(MemoryMessageStore):
    def _is_dead(self, holder: object) -> bool:
        return False


@breaks("Q6")
class ReclaimsFromTheLiving(MemoryMessageStore):
    def reclaim(self) -> int:
        for row in self._state.select(State.CLAIMED):
            row.holder = None
        return super().reclaim()


@breaks("Q6")
class ReclaimCountsNothing(MemoryMessageStore):
    def reclaim(self) -> int:
        return 0 * super().reclaim()


@breaks("Q6")
class ReclaimSaysWhether(MemoryMessageStore):
    def reclaim(self) -> int:
        return min(1, super().reclaim())


@breaks("Q6")
class ClaimsWithoutALease(MemoryMessageServerStore):
    def _session(self, *arguments: Any) -> Any:
        session: Any = super()._session(*arguments)
        session.capabilities = dataclasses.replace(self.capabilities, death_noticed_after=0.0)
        return session


def _without_time(name: str) -> None:
    """Register a store of which one call does not see what has become due."""

    def call(self: MemoryMessageStore, *arguments: Any, **options: Any) -> Any:
        self._reclaim = lambda: 0  # type: ignore[method-assign]
        try:
            return getattr(super(kind, self), name)(*arguments, **options)
        finally:
            del self._reclaim

    title = "".join(word.title() for word in name.split("_"))
    kind: type[MemoryMessageStore] = type(f"{title}WithoutTime", (MemoryMessageStore,), {name: call})
    breaks("Q6")(kind)


for _name in ("count", "has_unfinished", "stats", "topics", "peek", "find", "scan", "claim", "put"):
    _without_time(_name)
for _name in ("ack", "nack", "fail", "release", "extend", "deliver", "cancel", "purge", "reclaim"):
    _without_time(_name)
for _name in ("redrive", "redrive_all", "release_key", "lock_topic"):
    _without_time(_name)

# Q7


@breaks("Q7")
class SettlesByIdAlone(MemoryMessageStore):
    def _of_claim(self, claim: MessageClaim) -> MessageRow | None:
        row = self._state.rows.get(claim.id)
        return row if row is not None and row.state is State.CLAIMED else None


@breaks("Q7")
class SettlesByHolder(MemoryMessageStore):
    def _of_claim(self, claim: MessageClaim) -> MessageRow | None:
        row = self._state.rows.get(claim.id)
        is_own = row is not None and row.holder is self._holder
        return row if is_own else super()._of_claim(claim)


@breaks("Q7")
class OnlyTheHolderSettles(MemoryMessageStore):
    def _of_claim(self, claim: MessageClaim) -> MessageRow | None:
        row = super()._of_claim(claim)
        return row if row is not None and row.holder is self._holder else None


@breaks("Q7")
class KeepsAnEndedClaim(MemoryMessageStore):
    def _of_claim(self, claim: MessageClaim) -> MessageRow | None:
        row = self._state.rows.get(claim.id)
        ready = row is not None and row.state is State.READY and row.deliveries > 0
        return row if ready else super()._of_claim(claim)


@breaks("Q7")
class TokensAreDeliveries(MemoryMessageStore):
    def _claim(self, row: MessageRow, lease: float | None, prefetch: bool) -> MessageRecord:
        self._state.tokens = itertools.count(row.deliveries + 1)
        return super()._claim(row, lease, prefetch)


@breaks("Q7")
class TokensAreAttempts(MemoryMessageStore):
    def _claim(self, row: MessageRow, lease: float | None, prefetch: bool) -> MessageRecord:
        self._state.tokens = itertools.count(row.attempts + 1)
        return super()._claim(row, lease, prefetch)


class _NamesOthers(MemoryMessageStore):
    """A store whose error names other claims."""

    def _claimed(self, claims: Sequence[MessageClaim]) -> list[MessageRow]:
        try:
            return super()._claimed(claims)
        except StaleClaimError as error:
            raise StaleClaimError(str(error), self.named(error.ids, claims)) from None

    def named(self, ids: Sequence[int], claims: Sequence[MessageClaim]) -> Sequence[int]:
        raise NotImplementedError


@breaks("Q7")
class NamesTheFirst(_NamesOthers):
    def named(self, ids: Sequence[int], claims: Sequence[MessageClaim]) -> Sequence[int]:
        return ids[:1]


@breaks("Q7")
class NamesNone(_NamesOthers):
    def named(self, ids: Sequence[int], claims: Sequence[MessageClaim]) -> Sequence[int]:
        return ()


@breaks("Q7")
class NamesAll(_NamesOthers):
    def named(self, ids: Sequence[int], claims: Sequence[MessageClaim]) -> Sequence[int]:
        return [claim.id for claim in claims]


def _one_by_one(name: str) -> None:
    """Register a store that settles the claims before a stale one."""

    def call(
        self: MemoryMessageStore, claims: Sequence[MessageClaim], *arguments: Any, **options: Any
    ) -> Any:
        result = None
        for claim in claims:
            result = getattr(super(kind, self), name)([claim], *arguments, **options)
        return result

    kind: type[MemoryMessageStore] = type(f"{name.title()}sOneByOne", (MemoryMessageStore,), {name: call})
    breaks("Q7")(kind)


def _forgiving(name: str) -> None:
    """Register a store that passes over stale claims."""

    def call(
        self: MemoryMessageStore, claims: Sequence[MessageClaim], *arguments: Any, **options: Any
    ) -> Any:
        claims = [claim for claim in claims if self._of_claim(claim) is not None]
        return getattr(super(kind, self), name)(claims, *arguments, **options)

    kind: type[MemoryMessageStore] = type(f"Forgiving{name.title()}", (MemoryMessageStore,), {name: call})
    breaks("Q7")(kind)


for _name in ("ack", "nack", "fail", "extend", "deliver"):
    _forgiving(_name)
for _name in ("ack", "nack", "fail", "extend"):
    _one_by_one(_name)


@breaks("Q7")
class ReleaseCountsAll(MemoryMessageStore):
    def release(self, claims: Sequence[MessageClaim]) -> int:
        super().release(claims)
        return len(claims)


@breaks("Q7")
class ReleaseRefuses(MemoryMessageStore):
    def release(self, claims: Sequence[MessageClaim]) -> int:
        self._claimed(claims)
        return super().release(claims)


@breaks("Q7")
class ReleaseOfALaterClaim(MemoryMessageStore):
    def release(self, claims: Sequence[MessageClaim]) -> int:
        rows = [self._state.rows.get(claim.id) for claim in claims]
        live = sum(self._of_claim(claim) is not None for claim in claims)
        super().release([row.claim for row in rows if row is not None])
        return live


@breaks("Q7")
class ListsNoClaims(MemoryMessageStore):
    def claim(self, *arguments: Any, claims: Any = None, **options: Any) -> list[MessageRecord]:
        return super().claim(*arguments, **options)


@breaks("Q7")
class ListsOnlyItsClaims(MemoryMessageStore):
    def claim(self, *arguments: Any, claims: Any = None, **options: Any) -> list[MessageRecord]:
        if claims is not None:
            claims.clear()
        return super().claim(*arguments, claims=claims, **options)
