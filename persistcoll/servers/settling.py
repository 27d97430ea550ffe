"""Settle records: what one store has claimed, and how a claim ends.

A claim has a number of its own, its *fence*. All that settles a claim names the record and the fence, so it
may be sent twice, and a claim that has ended settles nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

from persistcoll.engine.contracts import Awaited, Claim
from persistcoll.engine.records import NACKED, ClaimPolicy, Discipline, State
from persistcoll.errors import NotClaimedError, StaleClaimError, StorageError
from persistcoll.servers.driver import Deferred
from persistcoll.servers.handle import Handle
from persistcoll.servers.schema import Collection
from persistcoll.servers.sessions import Server, Session
from persistcoll.servers.statements import ALL, LONGEST_SPAN, NUMBERS, PAGE

__all__ = ["FINISHED", "SettlingHandle"]

FINISHED = (State.DONE, State.FAILED, State.DEAD)
"""The states of records whose keys are not active."""
_FINISHED_NUMBERS = {NUMBERS[state] for state in FINISHED}
# How many done rows this store may add before it trims: trimming one costs as much as many.
_TRIM_BATCH = 32
_Held = tuple[int, int]
"""The fence of a claim, and the attempts."""


class _End(NamedTuple):
    """How a claim ends."""

    state: State
    seconds: float | None = None
    """After which the state ends."""
    tells: bool = False
    """Whether the record gets ``reason``. Otherwise it keeps its own."""
    reason: str | None = None

    @property
    def awaited(self) -> Awaited:
        """What the end is for a waiter."""
        return Awaited.LEFT if self.state in FINISHED else Awaited.READY


_Ends = Sequence[tuple[Claim, _End]]
_ACKED = _End(State.DONE)
_RELEASED = _End(State.READY)


class _SomeStaleError(Exception):
    """Raised within a transaction that has ended some claims, and others were not active."""


class SettlingHandle(Handle):
    """A collection whose claims are settled.

    ``_held`` is changed by single atomic calls and read without a lock.
    """

    def __init__(
        self, server: Server, collection: Collection, discipline: Discipline, retry: ClaimPolicy
    ) -> None:
        super().__init__(server, collection, discipline, retry)
        self._held: dict[int, _Held] = {}
        self._done_since_trim = 0

    def _held_claim(self, id: int) -> _Held:
        held = self._held.get(id)
        if held is None:
            raise NotClaimedError(f"item {id} is not claimed by this store", [id])
        return held

    def _settle(self, session: Session, id: int, fence: int, end: _End) -> bool:
        """End a claim, and return whether it was active."""
        ended = self._send_end(session, [id], fence, end)
        self._notify(session, end.awaited)
        session.flush()
        return ended.count > 0

    def _settle_many(
        self, ends: _Ends, check: Callable[[list[Claim]], object] | None = None, **options: Any
    ) -> list[Claim]:
        """End claims in a transaction, and return those that were active.

        :param check: called with these within the transaction.
        """

        def run(settle: Callable[[Session, _Ends], list[Claim]], session: Session) -> list[Claim]:
            self._notify(session, *{end.awaited for _, end in ends})
            settled = settle(session, ends)
            if check is not None:
                check(settled)
            return settled

        try:
            return self._transact(partial(run, self._settle_together), **options)
        except _SomeStaleError:
            return self._transact(partial(run, self._settle_each), **options)

    def _settle_together(self, session: Session, ends: _Ends) -> list[Claim]:
        """End claims, those that were made together and end in the same way by one statement.

        :raise _SomeStaleError: not all of them were active.
        """
        ids: dict[tuple[int, _End], list[int]] = defaultdict(list)
        for (id, fence), end in ends:
            ids[fence, end].append(id)
        sent = [(self._send_end(session, some, *how), len(some)) for how, some in ids.items()]
        session.flush()
        if any(ended.count < count for ended, count in sent):
            raise _SomeStaleError
        return [claim for claim, _ in ends]

    def _settle_each(self, session: Session, ends: _Ends) -> list[Claim]:
        """End claims, and return those that were active."""
        sent = [((id, fence), self._send_end(session, [id], fence, end)) for (id, fence), end in ends]
        session.flush()
        return [claim for claim, ended in sent if ended.count]

    def _send_end(self, session: Session, ids: list[int], fence: int, end: _End) -> Deferred:
        """Have the claims of these rows ended by a statement that counts the active ones."""
        sql, is_one = self._sql, len(ids) == 1
        claims: dict[str, Any] = {"fence": fence, **({"id": ids[0]} if is_one else {"ids": ids})}
        state, seconds, tells, reason = end
        if state is State.DONE and not self._retry.keep_done:
            return session.defer(sql.delete_claim if is_one else sql.delete_claims, **claims)
        parameters = {
            "state": NUMBERS[state],
            "frees": state in FINISHED,
            "seconds": seconds,
            "tells": tells,
            "reason": None if reason is None else reason.encode(errors="backslashreplace"),
        }
        return session.defer(sql.settle if is_one else sql.settle_many, **claims, **parameters)

    def _settle_one(self, id: int, held: _Held, end: _End) -> None:
        """End a claim in one statement.

        :raise StaleClaimError: it has ended.
        """
        fence, _ = held
        tries = 0

        def settle(session: Session) -> bool:
            nonlocal tries
            tries += 1
            return self._settle(session, id, fence, end) or (
                tries > 1 and self._was_settled(session, id, fence, end)
            )

        if not self._sessions.repeat(settle):
            raise _stale([id])
        self._forget(id, held)
        if end.state is State.READY:
            self._came_back([id])

    def _was_settled(self, session: Session, id: int, fence: int, end: _End) -> bool:
        """Tell whether a try whose answer was lost has ended the claim, which is not active any more.

        A crash of the server may have undone the claim instead, because its commit is asynchronous.
        """
        if end.state not in FINISHED:
            return True  # In either case the record is ready again.
        found = session.run(self._sql.select_fences, ids=[id]).rows
        return not found or found[0][2] == fence

    def _settle_all(self, ids: Sequence[int], end_of: Callable[[_Held], _End]) -> None:
        """End the claims of these records, all or none.

        :param end_of: how each of them ends.
        :raise StaleClaimError: some have ended; ``ids`` of the error names these.
        """
        self._check()
        held = {id: self._held_claim(id) for id in ids}
        ends = [(id, each, end_of(each)) for id, each in sorted(held.items())]

        def refuse_stale(settled: list[Claim]) -> None:
            if len(settled) < len(ends):
                active = set(settled)
                raise _stale([id for id, (fence, _), _ in ends if (id, fence) not in active])

        if len(ends) == 1:
            self._settle_one(*ends[0])
        elif ends:
            self._settle_many([((id, fence), end) for id, (fence, _), end in ends], refuse_stale)
            for id, each, _ in ends:
                self._forget(id, each)
            back = [id for id, _, end in ends if end.state is State.READY]
            if back:
                self._came_back(back)

    def _forget(self, id: int, held: _Held) -> None:
        """Forget a claim that is settled, unless the caller's transaction may be rolled back."""
        if not self._is_joined:
            self._drop(id, held)

    def _drop(self, id: int, held: _Held) -> None:
        try:
            if self._held[id] == held:  # no call until `del`, so no other thread runs in between
                del self._held[id]
        except KeyError:
            pass

    def forget_ended(self, settled: set[int], made: set[int]) -> set[int]:
        """Forget claims that have ended, and return the ids of their records.

        A claim that is not committed is not seen here.

        :param settled: records whose claims callers' transactions have settled. They have ended unless they
            are seen, because what made them is committed, or was in the transaction that has settled them.
        :param made: records that callers' transactions have only claimed.
        """
        held = {id: self._held.get(id) for id in (*settled, *made)}

        def look(session: Session) -> dict[int, tuple[int, int | None]]:
            rows = session.run(self._sql.select_fences, ids=sorted(held)).rows
            return {id: (state, fence) for id, state, fence in rows}

        found = self._server.repeat(look)
        ended = set()
        for id, each in held.items():
            state, fence = found.get(id, (None, None))
            is_seen = each is not None and state == NUMBERS[State.CLAIMED] and fence == each[0]
            if not is_seen and (id in settled or state is None or state in _FINISHED_NUMBERS):
                ended.add(id)
                if each is not None:
                    self._drop(id, each)
        return ended

    def ack(self, ids: Sequence[int]) -> None:
        self._settle_all(ids, lambda held: _ACKED)
        if self._retry.keep_done:
            self._trim(len(ids))

    def fail(self, ids: Sequence[int], reason: str | None = None) -> None:
        end = _End(State.FAILED, tells=True, reason=reason)
        self._settle_all(ids, lambda held: end)

    def _nacked(self, held: _Held, delay: float | None, reason: str) -> _End:
        """Return how a claim ends that is nacked."""
        _, attempts = held
        most, backoff = self._retry.max_attempts, self._retry.backoff
        if most is not None and attempts >= most:
            return _End(State.DEAD, None, True, reason)
        if delay is None:
            delay = 0.0 if backoff is None else backoff.delay(attempts)
        if delay > 0:
            return _End(State.DELAYED, min(delay, LONGEST_SPAN), True, reason)
        return _End(State.READY, None, True, reason)

    def nack_many(self, ids: Sequence[int], reason: str = NACKED) -> None:
        self._settle_all(ids, lambda held: self._nacked(held, None, reason))

    def nack(self, id: int, delay: float | None = None, to_back: bool = False, reason: str = NACKED) -> int:
        self._check()
        held = self._held_claim(id)
        fence, _ = held
        end = self._nacked(held, delay, reason)
        if not to_back or end.state is State.DEAD:
            self._settle_one(id, held, end)
            return id

        def move(session: Session) -> int:
            if not self._settle(session, id, fence, end):
                raise _stale([id])
            first, *others = self._sql.draw_id
            new = session.run(first).id
            for text in others:
                session.defer(text, id=new)
            session.defer(self._sql.renumber, id=id, new=new)
            return new

        new = self._transact(move)
        self._forget(id, held)
        self._came_back([new])
        return new

    def release(self, claims: Sequence[Claim]) -> int:
        self._check()
        ends = [(claim, _RELEASED) for claim in sorted(claims)]
        released = self._settle_many(ends, sync=False) if claims else []
        for id, fence in released:
            held = self._held.get(id)
            if held is not None and held[0] == fence:
                self._forget(id, held)
        if released:
            self._came_back([id for id, _ in released])
        return len(released)

    # What is finished.

    def _trim(self, count: int) -> None:
        """Remove the oldest done records, now and then."""
        self._done_since_trim += count
        if self._done_since_trim >= _TRIM_BATCH and self._retry.keep_done < ALL:
            self._done_since_trim = 0
            self._purge(State.DONE, self._retry.keep_done, ALL)

    def _purge(self, state: State, keep: int, limit: int) -> int:
        number = NUMBERS[state]

        def purge(session: Session) -> int:
            rows = session.run(self._sql.oldest, state=number, keep=min(keep, ALL)).rows
            total = 0
            while rows and total < limit:
                page = min(PAGE, limit - total)
                found = session.run(self._sql.lock_oldest, state=number, id=rows[0][0], limit=page).rows
                if not found:
                    break
                session.defer(self._sql.delete, ids=[id for (id,) in found])
                total += len(found)
            return total

        return self._transact(purge)

    # Life and death.

    def after_fork_in_child(self) -> None:
        """Be no holder in a forked child."""
        super().after_fork_in_child()
        self._held.clear()

    def close(self) -> None:
        """End the claims of this store. Idempotent.

        Those that a joined store has made it ends in the transaction, which may not be committed yet.
        """
        if self._held and self._is_joined and self._retry.auto_reclaim and not self._original._closed:
            with suppress(StorageError, ValueError, TypeError):  # the connection cannot be used any more
                self._sessions.repeat(self._holding.end_own)
        super().close()
        self._held.clear()


def _stale(ids: Sequence[int]) -> StaleClaimError:
    others = f", nor are {len(ids) - 1} others" if len(ids) > 1 else ""
    return StaleClaimError(
        f"item {ids[0]} is not claimed by this store any more{others}: the lease ran out, or it was released;"
        " it may be delivered again",
        ids,
    )
