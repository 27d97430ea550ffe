"""Claim and pop records.

A claim that may have been made, and of which nobody knows, is released by its fence.
"""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from persistcoll.engine.contracts import Awaited, Claim, Select
from persistcoll.engine.records import ClaimPolicy, Discipline, Record, State
from persistcoll.errors import StorageError
from persistcoll.servers.rows import Rows
from persistcoll.servers.schema import Collection
from persistcoll.servers.sessions import Server, Session
from persistcoll.servers.settling import SettlingHandle
from persistcoll.servers.statements import NUMBERS
from persistcoll.servers.transactions import OpenTransaction

__all__ = ["ClaimingHandle"]

T = TypeVar("T")

_FENCE_BITS = 61


class _NothingError(Exception):
    """Raised within a transaction that finds nothing, so that it is rolled back."""


class _TooManyError(Exception):
    """Raised within a transaction that has taken more than can be decoded, so that it is rolled back.

    :ivar limit: how many it should take.
    """

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.limit = limit


class ClaimingHandle(SettlingHandle):
    """A collection whose records are claimed, popped and settled."""

    def __init__(
        self, server: Server, collection: Collection, discipline: Discipline, retry: ClaimPolicy
    ) -> None:
        super().__init__(server, collection, discipline, retry)
        self._rows = Rows(self.store_id, str(server.address), server.max_payload)
        self._fences = itertools.count(secrets.randbits(_FENCE_BITS))

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
        policy = {"holder": holder, "lease": self._retry.lease}

        def at_once(session: Session) -> list[Any]:
            unsure.append(next(self._fences))
            self._notify(session, Awaited.LEFT)
            name = "claim_one" if limit == 1 else "claim_next"
            return self._next(session, name, limit, promoted, fence=unsure[-1], **policy)

        def in_steps(session: Session) -> list[Any]:
            unsure.append(next(self._fences))
            rows = self._lock(session, limit, select, promoted)
            if rows:
                session.defer(self._sql.claim, ids=[id for id, *_ in rows], fence=unsure[-1], **policy)
                self._notify(session, Awaited.LEFT)
            return rows

        # The one statement makes the commit of its transaction asynchronous, which is not a caller's wish.
        if self._sql.claim_next is None or select is not None or self._is_joined:
            return self._sessions.transact(in_steps, sync=False, once=False, deadline=deadline)
        return self._sessions.repeat(at_once, deadline)

    def _lock(self, session: Session, limit: int, select: Select | None, promoted: bool) -> list[Any]:
        """Lock and return ready rows, in the order of delivery."""
        if select is None:
            return self._next(session, "lock_next", limit, promoted)
        text = self._sql.lock_after if select.after else self._sql.lock_by_id
        return session.run(text, id=select.id, promoted=promoted).rows

    def _next(self, session: Session, name: str, limit: int, promoted: bool, **parameters: Any) -> list[Any]:
        """Claim or lock the next rows by the statement with that name, and return them in their order."""
        look = self._heads.look(session, self._sql, name, limit=limit, promoted=promoted, **parameters)
        rows = look.result.rows
        if len(rows) > 1:
            rows.sort(key=lambda row: row[0], reverse=self._discipline.newest_first)
            if self._discipline.by_priority:
                rows.sort(key=lambda row: row[1])
        if rows:
            id, place, *_ = rows[0]
            self._heads.claimed(look, place if self._discipline.by_priority else 0.0, id)
            if not promoted:
                self._heads.nothing_due(look)
        return rows

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
                self._sessions.repeat(lambda session: self._unclaim(session, ids, fence))
                self._came_back(ids)
        return values

    def _unclaim(self, session: Session, ids: list[int], fence: int) -> None:
        self._notify(session, Awaited.READY)
        session.run(self._sql.unclaim, ids=ids, fence=fence)

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
        transact = partial(self._transact, deadline=deadline)
        values = self._search(partial(self._taken, transact, limit, decode, select), select)
        if self._retry.keep_done:
            self._trim(len(values))
        return values

    def _taken(
        self,
        transact: Callable[[Callable[[Session], list[T]]], list[T]],
        limit: int,
        decode: Callable[[Record], T],
        select: Select | None,
        promoted: bool,
    ) -> list[T]:
        """Ack ready rows in a transaction, and return what ``decode`` returns for them; for none, nothing.

        :param transact: runs its argument in the transaction.
        """
        while True:
            take = partial(self._take, limit=limit, decode=decode, select=select, promoted=promoted)
            try:
                return transact(take)
            except _NothingError:
                return []
            except _TooManyError as error:
                limit = error.limit

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
        :raise _TooManyError: not all can be decoded.
        """
        keeps = self._retry.keep_done > 0
        at_once = not (self._sql.take_next is None or select or self._is_joined or keeps)
        if at_once:
            name = "take_one" if limit == 1 else "take_next"
            rows = self._next(session, name, limit, promoted, **session.call(self._number, 0))
        else:
            rows = self._lock(session, limit, select, promoted)
        values: list[T] = []
        self._decode(rows, decode, values)
        if not values:
            raise _NothingError
        ids = [id for id, *_ in rows[: len(values)]]
        if keeps:
            session.defer(self._sql.finish_ready, ids=ids, state=NUMBERS[State.DONE])
        elif not at_once:
            session.defer(self._sql.delete, ids=ids)
        elif len(ids) < len(rows):
            raise _TooManyError(len(ids))
        self._notify(session, Awaited.LEFT)
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

        def transact(take: Callable[[Session], list[T]]) -> list[T]:
            return self._server.begin(take, self._number, begun, deadline)

        return self._search(partial(self._taken, transact, limit, decode, None), None)

    def pop_undone(self) -> None:
        """Tell waiters in other processes that a transaction of :meth:`begin_pop` was rolled back."""
        if self._server.wakes is not None:
            with suppress(StorageError):  # then they find it by themselves
                self._server.repeat(lambda session: self._notify(session, Awaited.READY), time.monotonic())

    # Life and death.

    def after_fork_in_child(self) -> None:
        """Be no holder in a forked child, nor use its parent's fences."""
        super().after_fork_in_child()
        self._fences = itertools.count(secrets.randbits(_FENCE_BITS))
