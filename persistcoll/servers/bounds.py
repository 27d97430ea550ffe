"""Puts into a queue that takes only so many items, by credits that are granted ahead.

A *credit* is the right of one session to put one row. Unfinished rows and credits together are never more
than the bound under which the credits were granted, so a session with a credit puts without a look at the
others. A credit is taken in the transaction of its put. A session that has none locks the collection and
counts. If room is left, it gets some credits for the next puts. If none is left, it revokes those of all
others, and counts again. If there is none then either, its put counts ready rows, under the lock.

Claimed and delayed rows count as well, because they may become ready while a credit is out. Locks are taken
in one order: the row and its key, the collection, credits. So no session waits for a key while others wait
for its credits or for its lock.

A put in a caller's transaction gets a *reservation* instead: as many credits as it has rows, granted in a
short transaction of another session. The caller's transaction deletes it. A session that revokes leaves those
alone that an open transaction has deleted, so no session waits for a caller.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from persistcoll.errors import Full
from persistcoll.servers.driver import Deferred
from persistcoll.servers.sessions import Server, Session, Sessions
from persistcoll.servers.statements import ALL, RecordStatements

__all__ = ["Bound", "NoCreditError", "Put", "put_of"]

_SHARE = 8
"""The part of the room that one session gets: as many sessions as this find some at the same time."""
_RESERVATION_BITS = 62
_EVERY_NODE = -1 - (1 << _RESERVATION_BITS)
"""In place of a session, in a row that each transaction under the lock inserts and deletes on a cluster."""


class NoCreditError(Exception):
    """Raised within a transaction whose session has no credits any more, so that it is rolled back."""


class Put(NamedTuple):
    """The rows that a put has inserted, and how many ready ones the queue takes."""

    ready: int
    delayed: int
    capacity: int

    @property
    def total(self) -> int:
        """How many rows these are."""
        return self.ready + self.delayed

    @property
    def limit(self) -> int:
        """How far to count rows, to know whether there is room for these."""
        return self.capacity + self.total + 1


class _Room(NamedTuple):
    """What ``RecordStatements.room`` returns."""

    ready: int
    claimed: int
    delayed: int
    due: int
    credits: int
    reserved: int
    least: int | None

    def left(self, capacity: int) -> int:
        """Return how many more credits there may be."""
        bound = capacity if self.least is None else min(capacity, self.least)
        return bound - self.ready - self.claimed - self.delayed - self.credits


class Bound:
    """The bound of one collection, which each call names.

    :param number: the collection's.
    :param promote: makes a page of what is due ready, or dead, and returns how many rows that were.
    :ivar was_full: the last put found no room. It is a hint that any thread reads and sets without a lock.
    """

    def __init__(
        self, server: Server, number: int, sql: RecordStatements, promote: Callable[[Session], int]
    ) -> None:
        self._server = server
        self._shared = server.sql
        self._number = number
        self._sql = sql
        self._promote = promote
        self.was_full = False

    def refuse_full(self, sessions: Sessions, capacity: int, puts: int, unique: bool) -> None:
        """Raise ``Full`` after a read alone, so that polling a full queue locks nothing."""
        self.was_full = False
        # An entry whose key is active needs no room.
        if not unique and puts > capacity - sessions.repeat(lambda session: self._ready(session, capacity)):
            self.was_full = True
            raise Full

    # Puts by a credit.

    def use_credits(self, session: Session, count: int, capacity: int) -> Deferred:
        """Take credits that the session expects to have, by a statement that counts 0 if it has not."""
        return session.defer(self._shared.use_credits, credits=count, capacity=capacity, **self._of(session))

    def settle_credits(self, session: Session, taken: Deferred, count: int, put: Put) -> None:
        """Return what the put did not need of its credits.

        :param count: how many :meth:`use_credits` was to take.
        :raise NoCreditError: it took none, and the put needs some.
        """
        if not taken.count:
            session.credits.pop(self._number, None)
            if put.total:
                raise NoCreditError
        elif put.total < count:
            unused = count - put.total
            session.defer(self._shared.return_credits, credits=unused, **self._of(session))
            session.credits[self._number] += unused

    # Puts under the lock.

    def lock(self, session: Session) -> None:
        """Let no other session get credits, nor put without one, before the end of this transaction.

        The statements that follow see what the transaction before has committed.
        """
        session.defer(self._shared.lock_collection, number=self._number)
        if self._server.is_cluster:
            # The lock is that of one node. The commit fails if another node has changed this row meanwhile.
            row = {"number": self._number, "client": _EVERY_NODE}
            session.defer(self._shared.grant_credits, credits=0, capacity=0, **row)
            session.defer(self._shared.take_reservation, **row)

    def lock_and_count(self, session: Session, put: Put) -> Deferred:
        """Do the same, and count with the statement after it."""
        self.lock(session)
        return session.defer(self._sql.room, limit=put.limit)

    def admit(self, session: Session, put: Put, counted: Deferred | None) -> None:
        """Find room for these rows, which the session sees, under the lock. It gets credits if more is left.

        :param counted: of :meth:`lock_and_count`; ``None``: count again.
        :raise Full: there is no room.
        """
        room = self._count(session, put) if counted is None else _room(counted.rows)
        left = self._find_room(session, put, room)
        count = left // _SHARE
        if count > 0:
            self._grant(session, session.client, count, put.capacity)
            session.credits[self._number] = session.credits.get(self._number, 0) + count

    def _find_room(self, session: Session, put: Put, room: _Room, is_seen: bool = True) -> int:
        """Return how much room is left beside these rows, under the lock; at most 0 if that is not sure.

        :param room: was counted under the lock.
        :param is_seen: whether the session sees the rows, so that they were counted.
        :raise Full: there is none for the ready ones.
        """
        ready, total = (0, 0) if is_seen else (put.ready, put.total)
        is_full = put.ready and not room.due and room.ready + ready > put.capacity
        if room.credits and room.left(put.capacity) < total and not is_full:
            self.revoke(session)
            room = self._count(session, put)
        # Unfinished rows are too many, so ready ones alone are counted, as long as no credits are out.
        while put.ready and room.left(put.capacity) < total:
            taken = ready + room.ready + room.credits
            if taken + room.due <= put.capacity:
                return 0
            if not room.due or not self._promote(session):
                if taken > put.capacity:
                    self.was_full = True
                    raise Full
                return 0
            room = self._count(session, put)
        return room.left(put.capacity) - total

    def revoke(self, session: Session) -> None:
        """Take back all credits, under the lock. It waits for the puts that are taking some."""
        # Under the lock no others get some. The snapshot of a caller's transaction may lack sessions.
        granted = session.defer(self._shared.select_credits, number=self._number)
        free = session.run(self._shared.lock_free_credits, number=self._number).rows
        for (client,) in sorted({*granted.rows, *free}):
            session.defer(self._shared.revoke_credits, number=self._number, client=client)
        session.credits.pop(self._number, None)

    # Puts in a caller's transaction.

    def reserve(self, caller: Session, put: Put, deadline: float | None) -> None:
        """Find room for these rows, which only the caller's transaction sees.

        A transaction of PostgreSQL that is ``REPEATABLE READ`` does not see the reservation. So others may
        revoke it before the transaction ends.

        :raise Full: there is no room.
        """
        is_taken = not put.total
        while not is_taken:
            mine = {"number": self._number, "client": -1 - secrets.randbits(_RESERVATION_BITS)}
            reserve = partial(self._reserve, client=mine["client"], put=put)
            if not self._server.transact(reserve, once=False, deadline=deadline):
                self._refuse_unless_room_is_made(caller, mine, deadline)
                return
            take = partial(self._take_reservation, caller=caller, mine=mine)
            is_taken = self._server.transact(take, once=False, deadline=deadline)

    def _reserve(self, session: Session, client: int, put: Put) -> bool:
        """Reserve room for rows that this session does not see, and tell whether there is any."""
        self.lock(session)
        room = self._count(session, put)
        try:
            self._find_room(session, put, room, is_seen=False)
        except Full:
            self._grant(session, client, 0, put.capacity)
            return False
        self._grant(session, client, put.total, put.capacity)
        return True

    def _take_reservation(self, session: Session, caller: Session, mine: dict[str, Any]) -> bool:
        """Delete a reservation in the caller's transaction, and tell whether it was there.

        Under the lock, so that no other session revokes it meanwhile. A caller that deletes a row that is not
        there locks the gap around it on MySQL, in which others get their credits, and this call its next
        reservation.
        """
        self.lock(session)
        is_there = bool(session.run(self._shared.has_reservation, **mine).rows)
        if is_there:  # The caller may have done it in an earlier try, or its snapshot may not have the row.
            caller.run(self._shared.take_reservation, **mine)
        return is_there

    def _refuse_unless_room_is_made(
        self, caller: Session, mine: dict[str, Any], deadline: float | None
    ) -> None:
        """Raise ``Full`` unless the caller's transaction has got at least as many rows as it puts.

        Others take these for ready until its end.

        :param mine: an empty reservation. A snapshot that does not have it has other rows than the server.
        """

        def waiting(each: Session) -> int:
            return self._ready(each, ALL) + _room(each.run(self._sql.room, limit=0).rows).reserved

        def makes_room(session: Session) -> bool:
            self.lock(session)
            session.flush()
            # Others take rows and return them without the lock. So the server's are counted before and after.
            before, callers, after = (waiting(each) for each in (session, caller, session))
            return callers <= min(before, after)

        is_current = bool(caller.run(self._shared.has_reservation, **mine).rows)
        if not (is_current and self._server.transact(makes_room, once=False, deadline=deadline)):
            self.was_full = True
            raise Full
        self.was_full = False

    # Statements.

    def _of(self, session: Session) -> dict[str, int]:
        return {"number": self._number, "client": session.client}

    def _grant(self, session: Session, client: int, count: int, capacity: int) -> None:
        of_client = {"number": self._number, "client": client}
        session.defer(self._shared.grant_credits, credits=count, capacity=capacity, **of_client)

    def _count(self, session: Session, put: Put) -> _Room:
        return _room(session.run(self._sql.room, limit=put.limit).rows)

    def _ready(self, session: Session, limit: int) -> int:
        ((ready,),) = session.run(self._sql.count_ready, limit=limit).rows
        return int(ready)


def _room(rows: list[Any]) -> _Room:
    # A sum of MySQL's is a Decimal.
    return _Room(*(None if each is None else int(each) for each in rows[0]))  # type: ignore[arg-type]


def put_of(rows: Sequence[dict[str, Any]], ids: Sequence[int | None], capacity: int) -> Put:
    """Return those of these rows that a put has inserted."""
    new = [row["delay"] is None for row, id in zip(rows, ids, strict=True) if id is not None]
    return Put(sum(new), len(new) - sum(new), capacity)
