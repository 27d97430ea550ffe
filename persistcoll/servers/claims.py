"""Claim and settle records: what one store has claimed, and how a claim ends.

A claim has a number of its own, its *fence*. All that settles a claim names the record and the fence, so it
may be sent twice, and a claim that has ended settles nothing.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

from persistcoll.engine.contracts import Claim, Select
from persistcoll.engine.records import NACKED, ClaimPolicy, Discipline, Record, State
from persistcoll.errors import NotClaimedError, StaleClaimError, StorageError
from persistcoll.servers.driver import Deferred
from persistcoll.servers.handle import PAGE, Handle
from persistcoll.servers.rows import Rows
from persistcoll.servers.schema import Collection
from persistcoll.servers.sessions import Server, Session
from persistcoll.servers.statements import LONGEST_SPAN, NUMBERS
from persistcoll.servers.transactions import OpenTransaction

__all__ = ["ALL", "FINISHED", "ClaimingHandle"]

T = TypeVar("T")

ALL = 1 << 62
"""More rows than there are."""
FINISHED = (State.DONE, State.FAILED, State.DEAD)
"""The states of records whose keys are not active."""
_FINISHED_NUMBERS = {NUMBERS[state] for state in FINISHED}
# How many done rows this store may add before it trims: trimming one costs as much as many.
_TRIM_BATCH = 32
_FENCE_BITS = 61
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


_ACKED = _End(State.DONE)
_RELEASED = _End(State.READY)


class _NothingError(Exception):
    """Raised within a transaction that finds nothing, so that it is rolled back."""


class ClaimingHandle(Handle):
    """A collection whose records are claimed, popped and settled.

    ``_held`` is changed by single atomic calls and read without a lock.
    """

    def __init__(
        self, server: Server, collection: Collection, discipline: Discipline, retry: ClaimPolicy
    ) -> None:
        super().__init__(server, collection, discipline, retry)
        self._rows = Rows(self.store_id, str(server.address), server.max_payload)
        self._held: dict[int, _Held] = {}
        self._fences = itertools.count(secrets.randbits(_FENCE_BITS))
        self._done_since_trim = 0

    # Claiming.

    def _claim(
        self,
        limit: int,
        decode: Callable[[Record], T],
        select: Select | None,
        claims: list[Claim] | None,
        deadline: float | None,
    ) -> list[T]:
        self._check()
        self._holding.release_lost()
        holder = self._holding.ensure()
        unsure: list[int] = []  # the fences of claims that may have been made, and that nobody knows of

        def attempt(promoted: bool) -> list[Any]:
            rows = self._claim_rows(limit, select, promoted, holder, unsure, deadline)
            if not rows:
                unsure.pop()
            return rows

        try:
            rows = self._search(attempt, select)
            values = self._decoded_or_unclaimed(rows, unsure[-1], decode)
            self._note_claims(rows[: len(values)], unsure, claims)
        except Exception:
            self._holding.lose(holder, unsure)
            raise
        except BaseException:
            self._holding.lose(holder, unsure)
            with suppress(Exception):  # otherwise the next claim does it
                self._holding.release_lost()
            raise
        self._holding.lose(holder, unsure)
        if self._original._closed:  # close() sets it before it ends the claims
            self._holding.end()
            self._check()
        return values

    def _claim_rows(
        self,
        limit: int,
        select: Select | None,
        promoted: bool,
        holder: int,
        unsure: list[int],
        deadline: float | None,
    ) -> list[Any]:
        """Claim ready rows, and return them in the order of delivery, with the attempts before.

        :param unsure: the fence of each try is appended; the last one is that of the rows.
        """
        claim_next = self._sql.claim_next
        policy = {"holder": holder, "lease": self._retry.lease}

        def at_once(session: Session, text: str) -> list[Any]:
            unsure.append(next(self._fences))
            return session.run(text, limit=limit, promoted=promoted, fence=unsure[-1], **policy).rows

        def in_steps(session: Session) -> list[Any]:
            unsure.append(next(self._fences))
            rows = self._lock(session, limit, select, promoted)
            if rows:
                session.defer(self._sql.claim, ids=[id for id, *_ in rows], fence=unsure[-1], **policy)
            return rows

        # The one statement makes the commit of its transaction asynchronous, which is not a caller's wish.
        if claim_next is None or select is not None or self._is_joined:
            return self._sessions.transact(in_steps, sync=False, once=False, deadline=deadline)
        rows = self._sessions.repeat(lambda session: at_once(session, claim_next), deadline)
        rows.sort(key=lambda row: row[0], reverse=self._discipline.newest_first)
        if self._discipline.by_priority:
            rows.sort(key=lambda row: row[1])
        return rows

    def _lock(self, session: Session, limit: int, select: Select | None, promoted: bool) -> list[Any]:
        """Lock and return ready rows, in the order of delivery."""
        if select is None:
            return session.run(self._sql.lock_next, limit=limit, promoted=promoted).rows
        text = self._sql.lock_after if select.after else self._sql.lock_by_id
        return session.run(text, id=select.id, promoted=promoted).rows

    def _note_claims(self, rows: list[Any], unsure: list[int], claims: list[Claim] | None) -> None:
        """Remember the claims of these rows, whose fence is the last one of ``unsure``."""
        fence = unsure[-1]
        for id, _, attempts, *_ in rows:
            self._held[id] = fence, attempts + 1
        if claims is not None:
            claims.extend((id, fence) for id, *_ in rows)
        unsure.pop()

    def _decoded_or_unclaimed(self, rows: list[Any], fence: int, decode: Callable[[Record], T]) -> list[T]:
        """Return what ``decode`` returns for the first rows; those after them are not claimed any more."""
        values: list[T] = []
        try:
            self._decode(rows, decode, values)
        except BaseException:
            values.clear()
            raise
        finally:
            ids = [id for id, *_ in rows[len(values) :]]
            if ids:
                self._sessions.repeat(lambda session: session.run(self._sql.unclaim, ids=ids, fence=fence))
        return values

    def _decode(self, rows: list[Any], decode: Callable[[Record], T], values: list[T]) -> None:
        """Append what ``decode`` returns for the rows, up to the first for which it raises.

        :raise Exception: it raised at the first one.
        """
        for row in rows:
            try:
                values.append(decode(self._rows.record(row, 1)))
            except Exception:
                if not values:
                    raise
                return

    def _pop(
        self, limit: int, decode: Callable[[Record], T], select: Select | None, deadline: float | None
    ) -> list[T]:
        self._check()

        def attempt(promoted: bool) -> list[T]:
            try:
                return self._transact(
                    lambda session: self._take(session, limit, decode, select, promoted), deadline=deadline
                )
            except _NothingError:
                return []

        values = self._search(attempt, select)
        if self._retry.keep_done:
            self._trim(len(values))
        return values

    def _take(
        self,
        session: Session,
        limit: int,
        decode: Callable[[Record], T],
        select: Select | None,
        promoted: bool,
    ) -> list[T]:
        """Ack ready rows within a transaction, and return what ``decode`` returns for them.

        :raise _NothingError: there are none.
        """
        rows = self._lock(session, limit, select, promoted)
        values: list[T] = []
        self._decode(rows, decode, values)
        if not values:
            raise _NothingError
        ids = [id for id, *_ in rows[: len(values)]]
        if self._retry.keep_done:
            session.defer(self._sql.finish_ready, ids=ids, state=NUMBERS[State.DONE])
        else:
            session.defer(self._sql.delete, ids=ids)
        return values

    def begin_pop(
        self,
        limit: int,
        decode: Callable[[Record], T],
        begun: list[OpenTransaction],
        deadline: float | None = None,
    ) -> list[T]:
        """Ack up to ``limit`` ready records in a transaction that stays open, and return them decoded.

        Until the caller ends the transaction, no other call gets the records, and counts take them for ready.
        If the process dies, the server rolls the transaction back.

        :param begun: the transaction is appended to this list.
        :raise Empty: no record is ready.
        """
        self._check()

        def attempt(promoted: bool) -> list[T]:
            try:
                return self._server.begin(
                    lambda session: self._take(session, limit, decode, None, promoted),
                    self._number,
                    begun,
                    deadline,
                )
            except _NothingError:
                return []

        return self._search(attempt, None)

    # Settling.

    def _held_claim(self, id: int) -> _Held:
        held = self._held.get(id)
        if held is None:
            raise NotClaimedError(f"item {id} is not claimed by this store", [id])
        return held

    def _settle(self, session: Session, id: int, fence: int, end: _End) -> bool:
        """End a claim, and return whether it was active."""
        ended = self._send_end(session, id, fence, end)
        session.flush()
        return ended.count > 0

    def _settle_each(self, session: Session, ends: Sequence[tuple[Claim, _End]]) -> list[Claim]:
        """End claims, and return those that were active."""
        sent = [(claim, self._send_end(session, *claim, end)) for claim, end in ends]
        session.flush()
        return [claim for claim, ended in sent if ended.count]

    def _send_end(self, session: Session, id: int, fence: int, end: _End) -> Deferred:
        """Have a claim ended by a statement that counts 1 if the claim was active."""
        state, seconds, tells, reason = end
        if state is State.DONE and not self._retry.keep_done:
            return session.defer(self._sql.delete_claim, id=id, fence=fence)
        parameters = {
            "state": NUMBERS[state],
            "frees": state in FINISHED,
            "seconds": seconds,
            "tells": tells,
            "reason": None if reason is None else reason.encode(errors="backslashreplace"),
        }
        return session.defer(self._sql.settle, id=id, fence=fence, **parameters)

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

        def settle(session: Session) -> None:
            claims = [((id, fence), end) for id, (fence, _), end in ends]
            settled = self._settle_each(session, claims)
            if len(settled) < len(claims):
                raise _stale([id for (id, fence), _ in claims if (id, fence) not in settled])

        if len(ends) == 1:
            self._settle_one(*ends[0])
        elif ends:
            self._transact(settle)
            for id, each, _ in ends:
                self._forget(id, each)

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
        return new

    def release(self, claims: Sequence[Claim]) -> int:
        self._check()

        def end(session: Session) -> list[Claim]:
            return self._settle_each(session, [(claim, _RELEASED) for claim in sorted(claims)])

        released = self._transact(end, sync=False) if claims else []
        for id, fence in released:
            held = self._held.get(id)
            if held is not None and held[0] == fence:
                self._forget(id, held)
        return len(released)

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
        self._fences = itertools.count(secrets.randbits(_FENCE_BITS))

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
