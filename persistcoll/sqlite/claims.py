"""What is claimed: by whom, until when, and what becomes of it.

A claim is fenced by its holder and the number of attempts: one that was lost, and taken again by whomever, is
no claim any more, however late its first holder comes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from persistcoll.engine import contracts
from persistcoll.engine.forks import in_operation
from persistcoll.engine.records import ClaimPolicy, State
from persistcoll.errors import (
    ClosedError,
    LockedError,
    NotClaimedError,
    StaleClaimError,
    StoreReplacedError,
)
from persistcoll.sqlite import schema
from persistcoll.sqlite.database import Database
from persistcoll.sqlite.driver import Execute
from persistcoll.sqlite.handle import Handle
from persistcoll.sqlite.holders import Holder, holder_files, is_dead
from persistcoll.sqlite.rows import Rows
from persistcoll.sqlite.statements import RecordStatements
from persistcoll.sqlite.unique_keys import UniqueKeys

__all__ = ["Claims", "sweep"]

Claim = tuple[int, int, int]
"""Holder, id, attempts."""

_HOLDERS = "SELECT holder FROM holders WHERE collection = ?"
_NEW_HOLDER = "INSERT INTO holders (collection, holder) VALUES (?, ?)"
_IS_HOLDER = "SELECT 1 FROM holders WHERE collection = ? AND holder = ?"
_FORGET_HOLDER = "DELETE FROM holders WHERE collection = ? AND holder = ?"

_PAGE = 256
# Seconds between two looks at whether those who hold something still live.
_LIVENESS_INTERVAL = 1.0
# Done rows beyond those to keep before they are trimmed: it costs as much for one as for many.
_TRIM_BATCH = 64


class Claims:
    """What one handle of a table has claimed, and the moves out of the table of what is held."""

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
        self._holder: Holder | None = None
        self._epoch = -1  # of the database, when it last had this holder
        self._closed = False
        self._attempts: dict[int, int] = {}
        """How often what this handle has claimed was claimed, by id."""
        self._last_liveness_check = -_LIVENESS_INTERVAL

    # Claiming.

    def _ensure_holder(self, execute: Execute) -> int:
        """The number of this handle as a holder, which it becomes.

        Within the transaction that claims: nobody ever looks after what is claimed under a number that was
        given up meanwhile, or that a transaction had which was rolled back.
        """
        holder, epoch = self._holder, self._database.epoch
        known = holder is not None and (
            self._epoch == epoch
            or execute(_IS_HOLDER, (self._collection_id, holder.number)).fetchone() is not None
        )
        if holder is None or not known:
            if holder is not None:
                holder.close_and_unlink()
            holder = self._holder = self._become_holder(execute)
        self._epoch = epoch
        if self._closed:  # behind the assignment: whoever closes looks the other way round
            if not known:
                holder.close_and_unlink()
            raise ClosedError(f"the store in {self._database.path!r} is closed")
        return holder.number

    def _become_holder(self, execute: Execute) -> Holder:
        while True:
            number = schema.next_holder(execute)
            try:
                # The lock before the row: whoever sees the row finds the lock taken while this process lives.
                holder = Holder(self._database, number)
            except BlockingIOError:  # by one whose transaction was rolled back, and the number with it
                continue
            try:
                execute(_NEW_HOLDER, (self._collection_id, number))
            except BaseException:
                holder.close_and_unlink()
                raise
            return holder

    def claim(self, execute: Execute, rows: Sequence[Any]) -> int:
        """These ready rows are this handle's: any one, or several that are next. Its number as a holder."""
        holder = self._ensure_holder(execute)
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

    def remember_claims(
        self, claims: list[contracts.Claim] | None, result: tuple[object, Sequence[Any]]
    ) -> None:
        """The claim of the rows in ``taken`` was committed. Idempotent."""
        _, rows = result
        for id, _, _, _, attempts, _, _ in rows:
            claim = id, attempts + 1
            self._attempts[id] = attempts + 1
            if claims is not None and claim not in claims:
                claims.append(claim)

    def _claim_of(self, id: int) -> Claim:
        attempts = self._attempts.get(id)
        if attempts is None or self._holder is None:
            raise NotClaimedError(f"item {id} is not in the hands of this store")
        return self._holder.number, id, attempts

    # Settling.

    def finish(self, ids: Sequence[int], state: State, sync: bool) -> None:
        """They are done or failed; all of them or none."""
        claims = [*map(self._claim_of, dict.fromkeys(ids))]

        def run(execute: Execute) -> list[Claim]:
            self._refresh_counters(execute)
            if len(claims) > 1 or self._keys.unique:
                self._refuse_stale(execute, claims)
            for claim in claims:
                self._settle(execute, claim, state)
            return claims

        self._database.write(run, sync, after=self._forget, timeout=self._timeout)

    def _forget(self, claims: Sequence[Claim]) -> None:
        """They are settled. Idempotent. Another thread may have claimed the same record anew by now."""
        known = self._attempts
        for _, id, attempts in claims:
            try:
                if known[id] == attempts:  # nothing is called in between, so no other thread comes in
                    del known[id]
            except KeyError:  # they were all given back
                pass

    def _refuse_stale(self, execute: Execute, claims: Sequence[Claim]) -> None:
        for claim in claims:
            if execute(self._sql.claim_exists, claim).fetchone() is None:
                raise self._stale(claim)

    def _stale(self, claim: Claim) -> StaleClaimError:
        _, id, _ = claim
        return StaleClaimError(
            f"item {id} is not in the hands of this store any more: its lease ran out, or it was given"
            " back; it may be delivered again"
        )

    def ack(self, execute: Execute, rows: Sequence[Any]) -> None:
        """Ready rows become done; they are claimed for that."""
        holder = self.claim(execute, rows)
        for id, _, _, _, attempts, _, _ in rows:
            self._settle(execute, (holder, id, attempts + 1), State.DONE)

    def _settle(self, execute: Execute, claim: Claim, state: State) -> None:
        """A held row becomes done, failed or dead, or is gone."""
        holder, id, _ = claim
        sql, counters, keep = self._sql, self._counters, self._retry.keep_done
        if self._keys.unique:
            _, _, key, *_ = execute(sql.select_claimed, (holder, id)).fetchone()
            self._keys.delete(execute, (key,))
        text = sql.delete_claim
        if state is State.FAILED:
            text = sql.finish_failed
        elif state is State.DEAD:
            text = sql.finish_dead
        elif keep:
            text = sql.finish_done
        if not execute(text, claim).rowcount:
            raise self._stale(claim)
        if state is State.FAILED:
            counters.failed += 1
        elif state is State.DEAD:
            counters.dead += 1
        elif keep:
            counters.done += 1
        counters.claimed -= 1
        counters.finished += 1
        self._database.mark_dirty(counters)
        if state is State.DONE and keep and counters.done > keep + _TRIM_BATCH:
            self.trim(execute, state, counters.done - keep)

    def trim(self, execute: Execute, state: State, count: int) -> None:
        """The ``count`` oldest rows of that state are gone."""
        if count:
            execute(self._sql.delete_oldest[state], (count,))
            self._counters.add(state, -count)
            self._database.mark_dirty(self._counters)

    def nack(self, id: int, delay: float | None, to_back: bool, sync: bool) -> int:
        """Ready again, now or later; or dead."""
        claim = self._claim_of(id)
        _, _, attempts = claim
        if delay is None:
            delay = 0.0 if self._retry.backoff is None else self._retry.backoff.delay(attempts)

        def run(execute: Execute) -> int:
            self._refresh_counters(execute)
            self._refuse_stale(execute, (claim,))
            if self._attempts_exhausted(attempts):
                self._settle(execute, claim, State.DEAD)
                return id
            until = self._now() + delay if delay > 0 else None
            move = self._send_to_back if to_back else self._return
            return move(execute, claim, until)

        return self._database.write(run, sync, after=lambda _: self._forget((claim,)), timeout=self._timeout)

    def release(self, claims: Sequence[contracts.Claim]) -> int:
        """Ready again, at once; those that are in force."""
        active = [self._claim_of(id) for id, attempts in claims if self._attempts.get(id) == attempts]

        def run(execute: Execute) -> int:
            self._refresh_counters(execute)
            held = [
                claim for claim in active if execute(self._sql.claim_exists, claim).fetchone() is not None
            ]
            for claim in held:
                self._return(execute, claim, None)
            return len(held)

        return self._database.write(run, False, after=lambda _: self._forget(active), timeout=self._timeout)

    def _attempts_exhausted(self, attempts: int) -> bool:
        limit = self._retry.max_attempts
        return limit is not None and attempts >= limit

    def _return(self, execute: Execute, claim: Claim, until: float | None) -> int:
        """To its place, now or then."""
        holder, id, _ = claim
        if until is None:
            self._release(execute, claim)
        else:
            execute(self._sql.delay_claim, (until, holder, id))
        self._count_returned(until)
        return id

    def _release(self, execute: Execute, claim: Claim) -> None:
        holder, id, _ = claim
        self._rows.check_found(execute(self._sql.release, (holder, id)).rowcount, 1)
        self._rows.check_found(execute(self._sql.delete_claim, claim).rowcount, 1)

    def _send_to_back(self, execute: Execute, claim: Claim, until: float | None) -> int:
        """Behind all others, under a new id, now or then."""
        holder, id, _ = claim
        held = execute(self._sql.select_claimed, (holder, id)).fetchone()
        _, _, key, *_ = held
        new_id = self._counters.last_id + 1
        row = self._rows.renumbered(held, new_id)
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

    # What time and death bring.

    def release_due(self, execute: Execute) -> None:
        """Delays that are over and leases that ran out: ready again, or dead."""
        now = self._now()
        while claims := execute(self._sql.select_due, (now, _PAGE)).fetchall():
            for claim in claims:
                holder, _, _ = claim
                if holder:
                    self._return_or_dead_letter(execute, claim)
                else:
                    self._release(execute, claim)
                    self._counters.delayed -= 1
                    self._counters.ready += 1
        (due,) = execute(self._sql.select_next_due).fetchone()
        if due is not None and not (isinstance(due, (int, float)) and due > now):
            raise self._rows.damaged_database("what is due is not found")
        self._counters.next_due_at = due

    def _return_or_dead_letter(self, execute: Execute, claim: Claim) -> None:
        _, _, attempts = claim
        if self._attempts_exhausted(attempts):
            self._rows.check_found(execute(self._sql.claim_exists, claim).fetchone() is not None, 1)
            self._settle(execute, claim, State.DEAD)
        else:
            self._return(execute, claim, None)

    def reclaim(self, execute: Execute) -> int:
        """What dead holders had claimed: ready again, or dead; how many there were."""
        count = 0
        database = self._database
        own = None if self._holder is None else self._holder.number
        for (number,) in execute(_HOLDERS, (self._collection_id,)).fetchall():
            if number != own and is_dead(database.disk, database.path, number):
                count += self._return_all(execute, number)
        return count

    def _return_all(self, execute: Execute, number: int) -> int:
        claims = [(number, *claim) for claim in execute(self._sql.select_of_holder, (number,)).fetchall()]
        for claim in claims:
            self._return_or_dead_letter(execute, claim)
        execute(_FORGET_HOLDER, (self._collection_id, number))
        return len(claims)

    def may_reclaim(self) -> bool:
        """Whether something is held, and it is time to see if its holders live."""
        if not self._retry.auto_reclaim or not self._counters.claimed:
            return False
        return time.monotonic() - self._last_liveness_check >= _LIVENESS_INTERVAL

    def reclaim_if_due(self, execute: Execute) -> bool:
        """:meth:`resume`, if it is time for it; whether anything came of it."""
        if not self.may_reclaim():
            return False
        self._last_liveness_check = time.monotonic()
        return self.reclaim(execute) > 0

    def find_unready(self, execute: Execute, id: int) -> tuple[int | None, Any]:
        """Who holds the record of this id (0: nobody, it is delayed), and its row."""
        for number in (0, *(number for (number,) in execute(_HOLDERS, (self._collection_id,)).fetchall())):
            row = execute(self._sql.select_claimed, (number, id)).fetchone()
            if row is not None:
                return number, row
        return None, None

    # The end.

    def close(self) -> None:
        """Give back what is claimed, or leave it to whoever resumes what the dead had claimed."""
        self._closed = True  # from now on nobody claims
        self._attempts.clear()
        holder = self._holder
        if holder is None:
            return

        def run(execute: Execute) -> None:
            self._refresh_counters(execute)
            self._return_all(execute, holder.number)

        if not self._retry.auto_reclaim or in_operation():
            holder.close()  # whoever finds it dead gives it back
            return
        try:
            self._database.write(run, False, timeout=self._timeout)
        except (LockedError, StoreReplacedError):
            holder.close()  # whoever finds it dead does this, if there is anybody
        except BaseException:
            holder.close()
            raise
        holder.close_and_unlink()

    def after_fork_in_child(self) -> None:
        """In a forked child: the claims are the parent's."""
        if self._holder is not None:
            self._holder.close()
        self._holder = None
        self._attempts.clear()


def sweep(execute: Execute, database: Database) -> None:
    """Remove the files of holders that died before anybody could know of them. Within a transaction."""
    found = holder_files(database.path)
    if found:
        known = {number for (number,) in execute("SELECT holder FROM holders").fetchall()}
        for number in set(found) - known:
            is_dead(database.disk, database.path, number)
