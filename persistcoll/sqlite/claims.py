"""What is claimed: by which holder, until when, and what becomes of it.

A claim is identified by its holder and the number of attempts. After it was lost and the record was claimed
again, the old claim can settle nothing, however late its holder tries.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from persistcoll.engine import contracts
from persistcoll.engine.records import HOLDER_CLOSED, HOLDER_DIED, LEASE_RAN_OUT, ClaimPolicy, State
from persistcoll.engine.transaction_hooks import OPEN
from persistcoll.errors import (
    NotClaimedError,
    StaleClaimError,
)
from persistcoll.sqlite.driver import Execute
from persistcoll.sqlite.handle import Handle
from persistcoll.sqlite.holding import HOLDERS, Holding
from persistcoll.sqlite.rows import Rows
from persistcoll.sqlite.statements import RecordStatements
from persistcoll.sqlite.unique_keys import UniqueKeys

__all__ = ["Claims"]

Claim = tuple[int, int, int]
"""Holder, id, attempts."""
_Held = tuple[int, int]
"""Attempts, and a number that no other claim of the record has.

After a rollback, and after a requeue, the same record may be claimed again in the same attempt, and a thread
that held the earlier claim must not settle the new one.
"""

_PAGE = 256
# How many done rows are kept above the limit before they are trimmed: trimming one costs as much as many.
_TRIM_BATCH = 64


class Claims:
    """What one handle has claimed, and the statements that settle it.

    ``_held`` is changed by single atomic calls and read without a lock.

    :ivar holding: the holder that the handle is.
    """

    def __init__(
        self, handle: Handle[RecordStatements], rows: Rows, keys: UniqueKeys, retry: ClaimPolicy
    ) -> None:
        self._database = handle._database
        self._timeout = handle._timeout
        self._collection_id = handle._collection_id
        self._sql = handle._sql
        self._counters = handle._counters
        self._now = handle._now
        self._refresh_counters = handle._refresh_counters
        self._rows = rows
        self._keys = keys
        self._retry = retry
        self.holding = Holding(handle, self._return_all, retry.auto_reclaim)
        self._held: dict[int, _Held] = {}
        """What this handle has claimed, by id."""
        self._serials = itertools.count()

    # Claiming.

    def claim(self, execute: Execute, rows: Sequence[Any]) -> int:
        """Claim ready rows for this handle, and return its number as a holder.

        :param rows: any one, or the first several in the order of delivery.
        """
        holder = self.holding.ensure(execute)
        lease = self._retry.lease
        until = None if lease is None else self._now() + lease
        if len(rows) == 1:
            ((id, *_),) = rows
            execute(self._sql.claim, (holder, until, id))
        else:
            execute(self._sql.claim_first, (holder, until, len(rows)))
        self._rows.remove(execute, rows)
        counters = self._counters
        counters.ready -= len(rows)
        counters.claimed += len(rows)
        if until is not None:
            counters.lower_next_due(until)
        self._database.mark_dirty(counters)
        return holder

    def remembering(
        self, claims: list[contracts.Claim] | None
    ) -> Callable[[tuple[object, Sequence[Any]]], None]:
        """Return a function that remembers the rows of a result, whose claim was committed. Idempotent.

        :param claims: the claims are appended to this list.
        """
        serial = next(self._serials)

        def remember(result: tuple[object, Sequence[Any]]) -> None:
            _, rows = result
            if OPEN:
                self._restore_on_rollback([id for id, *_ in rows])
            noted = set(claims or ())
            for id, _, _, _, attempts, *_ in rows:
                held = self._held[id] = attempts + 1, serial
                if claims is not None and (id, held) not in noted:
                    claims.append((id, held))

        return remember

    def _held_claims(self, ids: Sequence[int]) -> dict[int, _Held]:
        held: dict[int, _Held] = {}
        for id in ids:
            claim = self._held.get(id)
            if claim is None:
                raise NotClaimedError(f"item {id} is not claimed by this store", [id])
            held[id] = claim
        return held

    def _claim_of(self, id: int, held: _Held) -> Claim:
        """Return the claim that was this one before the transaction began. Call it within the transaction.

        :raise NotClaimedError: it has ended since, in another thread.
        """
        holder = self.holding.number
        if self._held.get(id) != held or holder is None:
            raise NotClaimedError(f"item {id} is not claimed by this store any more", [id])
        attempts, _ = held
        return holder, id, attempts

    # Settling.

    def finish(self, ids: Sequence[int], state: State, reason: str | None, sync: bool) -> None:
        """Make the records of these claims done or failed; all of them or none."""
        held = self._held_claims(ids)

        def run(execute: Execute) -> dict[int, _Held]:
            self._refresh_counters(execute)
            claims: list[Claim] = []
            for id, known in held.items():
                claims.append(self._claim_of(id, known))
            if len(claims) > 1 or self._keys.unique:
                self._refuse_stale(execute, claims)
            for claim in claims:
                self._settle(execute, claim, state, reason)
            return held

        self._database.write(run, sync, after=self._forget, timeout=self._timeout)

    def _forget(self, settled: dict[int, _Held]) -> None:
        """Forget these claims, which are settled. Idempotent.

        Another thread may have claimed the same record again by now; that claim stays.
        """
        if OPEN:
            self._restore_on_rollback(settled)
        known = self._held
        for id, held in settled.items():
            try:
                if known[id] == held:  # no call until `del`, so no other thread runs in between
                    del known[id]
            except KeyError:  # close() has released all claims
                pass

    def _restore_on_rollback(self, ids: Iterable[int]) -> None:
        """Have this handle remember of these records what it does now, if a transaction is rolled back."""
        transaction = self._database.open_transaction()
        if transaction is not None:
            transaction.on_rollback(partial(self._restore, {id: self._held.get(id) for id in ids}))

    def _restore(self, held: dict[int, _Held | None]) -> None:
        for id, before in held.items():
            if before is None:
                self._held.pop(id, None)
            else:
                self._held[id] = before

    def _refuse_stale(self, execute: Execute, claims: Sequence[Claim]) -> None:
        lost = [claim for claim in claims if execute(self._sql.claim_exists, claim).fetchone() is None]
        if lost:
            raise self._stale(*lost)

    def _stale(self, *claims: Claim) -> StaleClaimError:
        ids = [id for _, id, _ in claims]
        others = f", nor are {len(ids) - 1} others" if len(ids) > 1 else ""
        return StaleClaimError(
            f"item {ids[0]} is not claimed by this store any more{others}: the lease ran out, or it was"
            " released; it may be delivered again",
            ids,
        )

    def ack(self, execute: Execute, rows: Sequence[Any]) -> None:
        """Make ready rows done, by claiming them first."""
        holder = self.claim(execute, rows)
        for id, _, _, _, attempts, *_ in rows:
            self._settle(execute, (holder, id, attempts + 1), State.DONE)

    def _settle(self, execute: Execute, claim: Claim, state: State, reason: str | None = None) -> None:
        """Make a claimed record done, failed or dead, or delete it if it is done and none are kept."""
        holder, id, _ = claim
        sql, counters, keep = self._sql, self._counters, self._retry.keep_done
        if self._keys.unique:
            _, _, key, *_ = execute(sql.select_claimed, (holder, id)).fetchone()
            self._keys.delete(execute, (key,))
        if state is not State.DONE:
            found = execute(sql.set_aside[state], (reason, *claim)).rowcount
        else:
            found = execute(sql.finish_done if keep else sql.delete_claim, claim).rowcount
        if not found:
            raise self._stale(claim)
        if state is not State.DONE or keep:
            counters.add(state, 1)
        counters.claimed -= 1
        counters.finished += 1
        self._database.mark_dirty(counters)
        if state is State.DONE and keep and counters.done > keep + _TRIM_BATCH:
            self.trim(execute, state, counters.done - keep)

    def trim(self, execute: Execute, state: State, count: int) -> None:
        """Delete the ``count`` oldest rows in that state."""
        if count:
            execute(self._sql.delete_oldest[state], (count,))
            self._counters.add(state, -count)
            self._database.mark_dirty(self._counters)

    def nack(
        self, ids: Sequence[int], delay: float | None, to_back: bool, reason: str, sync: bool
    ) -> list[int]:
        """Make claimed records ready, now or after ``delay`` seconds, or dead; return their new ids."""
        held = self._held_claims(ids)

        def run(execute: Execute) -> list[int]:
            self._refresh_counters(execute)
            claims = [self._claim_of(id, known) for id, known in held.items()]
            self._refuse_stale(execute, claims)
            return [self._nack(execute, claim, delay, to_back, reason) for claim in claims]

        return self._database.write(run, sync, after=lambda _: self._forget(held), timeout=self._timeout)

    def _nack(self, execute: Execute, claim: Claim, delay: float | None, to_back: bool, reason: str) -> int:
        _, id, attempts = claim
        if self._attempts_exhausted(attempts):
            self._settle(execute, claim, State.DEAD, reason)
            return id
        if delay is None:
            delay = 0.0 if self._retry.backoff is None else self._retry.backoff.delay(attempts)
        until = self._now() + delay if delay > 0 else None
        move = self._send_to_back if to_back else self._return
        return move(execute, claim, until, reason)

    def release(self, claims: Sequence[contracts.Claim]) -> int:
        """Make the records of these claims ready at once; return how many of the claims were still active."""

        def run(execute: Execute) -> dict[int, _Held]:
            self._refresh_counters(execute)
            active: dict[int, _Held] = {}
            for id, held in claims:
                if self._held.get(id) == held:
                    claim = self._claim_of(id, held)
                    if execute(self._sql.claim_exists, claim).fetchone() is not None:
                        self._return(execute, claim, None, None)
                        active[id] = held
                    else:
                        lost[id] = held
            return active

        lost: dict[int, _Held] = {}
        released = self._database.write(
            run, False, after=lambda active: self._forget({**active, **lost}), timeout=self._timeout
        )
        return len(released)

    def _attempts_exhausted(self, attempts: int) -> bool:
        limit = self._retry.max_attempts
        return limit is not None and attempts >= limit

    def _return(self, execute: Execute, claim: Claim, until: float | None, reason: str | None) -> int:
        """Make a claimed record ready in its old place, now or at ``until``; return its id."""
        holder, id, _ = claim
        if until is None:
            self._release(execute, claim, reason)
        else:
            execute(self._sql.delay_claim, (until, reason, holder, id))
        self._count_returned(until)
        return id

    def _release(self, execute: Execute, claim: Claim, reason: str | None) -> None:
        """Make a claimed or delayed record ready; without a reason it keeps its own."""
        holder, id, _ = claim
        self._rows.check_found(execute(self._sql.release, (reason, holder, id)).rowcount, 1)
        self._rows.check_found(execute(self._sql.delete_claim, claim).rowcount, 1)

    def _send_to_back(self, execute: Execute, claim: Claim, until: float | None, reason: str) -> int:
        """Make a claimed record the last one, under a new id, now or at ``until``; return that id."""
        holder, id, _ = claim
        held = execute(self._sql.select_claimed, (holder, id)).fetchone()
        _, _, key, *_ = held
        new_id = self._counters.last_id + 1
        row = self._rows.renumbered(held, new_id, reason)
        self._counters.last_id = new_id
        execute(self._sql.delete_claim, claim)
        self._keys.delete(execute, (key,))
        self._keys.insert(execute, ((new_id, key),))
        if until is None:
            execute(self._sql.insert_ready, row)
        else:
            execute(self._sql.insert_delayed, (until, *row))
        self._count_returned(until)
        return new_id

    def _count_returned(self, until: float | None) -> None:
        counters = self._counters
        counters.claimed -= 1
        if until is None:
            counters.ready += 1
        else:
            counters.delayed += 1
            counters.lower_next_due(until)
        self._database.mark_dirty(counters)

    # Delays and leases that end, and holders that die.

    def release_due(self, execute: Execute) -> None:
        """Make ready, or dead, what is delayed or leased until now or earlier."""
        now = self._now()
        while claims := execute(self._sql.select_due, (now, _PAGE)).fetchall():
            for claim in claims:
                holder, _, _ = claim
                if holder:
                    self._return_or_dead_letter(execute, claim, LEASE_RAN_OUT)
                else:
                    self._release(execute, claim, None)
                    self._counters.delayed -= 1
                    self._counters.ready += 1
        (due,) = execute(self._sql.select_next_due).fetchone()
        if due is not None and not (isinstance(due, (int, float)) and due > now):
            raise self._rows.damaged_database("what is due is not found")
        self._counters.next_due_at = due

    def _return_or_dead_letter(self, execute: Execute, claim: Claim, reason: str) -> None:
        _, _, attempts = claim
        if self._attempts_exhausted(attempts):
            self._rows.check_found(execute(self._sql.claim_exists, claim).fetchone() is not None, 1)
            self._settle(execute, claim, State.DEAD, reason)
        else:
            self._return(execute, claim, None, reason)

    def find_unready(self, execute: Execute, id: int) -> tuple[int | None, Any]:
        """Return the number of the holder of a record (0 if it is delayed) and its row, or two ``None``."""
        for number in (0, *(number for (number,) in execute(HOLDERS, (self._collection_id,)).fetchall())):
            row = execute(self._sql.select_claimed, (number, id)).fetchone()
            if row is not None:
                return number, row
        return None, None

    def _return_all(self, execute: Execute, number: int, closes: bool) -> int:
        claims = [(number, *claim) for claim in execute(self._sql.select_of_holder, (number,)).fetchall()]
        for claim in claims:
            self._return_or_dead_letter(execute, claim, HOLDER_CLOSED if closes else HOLDER_DIED)
        return len(claims)

    def forget_all(self) -> None:
        """Forget every claim, because all of them end or are the parent's."""
        self._held.clear()
