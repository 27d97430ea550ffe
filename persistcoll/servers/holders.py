"""Holders of claims, and the heartbeats by which the server knows that they live.

A holder is one store that has claimed records. Its process sends a heartbeat at a third of the patience, for
all of its holders at once. A session lock of the server would end with its connection, while the owner lives.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from persistcoll.engine.contracts import Awaited
from persistcoll.engine.records import HOLDER_CLOSED, HOLDER_DIED, ClaimPolicy
from persistcoll.errors import StorageError
from persistcoll.servers.statements import PAGE, RecordStatements

if TYPE_CHECKING:
    from persistcoll.servers.sessions import Server, Session, Sessions

__all__ = ["Heartbeat", "Holder", "Holding", "patience_with", "release_each"]

L = TypeVar("L")

_BEATS = 3
"""Heartbeats in the time after which a holder without them is dead."""
_HOLDER_BITS = 62


def patience_with(session: Session, server: Server) -> float | None:
    """Return the seconds without a heartbeat after which a holder is dead.

    :return: ``None``: no heartbeat is missing, because none could come while the server was down.
    """
    ((*_, uptime),) = session.run(server.sql.uptime).rows
    return server.patience if float(uptime) > server.patience else None


def release_each(lost: deque[L], release: Callable[[L], object]) -> None:
    """Release claims, and remove each one from ``lost`` that is released. Any thread may do so."""
    while lost:
        try:
            claim = lost.popleft()
        except IndexError:  # another thread was faster
            return
        try:
            release(claim)
        except BaseException:
            lost.append(claim)
            raise


class Holder:
    """One store as the server knows it.

    :ivar number: on the server.
    :ivar is_gone: the server does not know it any more, because its heartbeats were missing for too long.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.is_gone = False


class Heartbeat:
    """The thread that sends the heartbeats of this process, alive while there are holders.

    ``_mutex`` guards ``_holders`` and ``_thread``.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self.forget()

    def forget(self) -> None:
        """Begin again in a forked child, whose holders are the parent's."""
        self._mutex = threading.Lock()
        self._stop = threading.Event()
        self._holders: dict[int, Holder] = {}
        self._thread: threading.Thread | None = None

    def new_holder(self, collection: int) -> Holder:
        """Return a new holder of claims in that collection."""
        info = f"pid {os.getpid()} on {socket.gethostname()}"[:255]

        def insert(session: Session) -> int:
            # A number that the server counts may be given out again after a crash: two holders would be one.
            holder = secrets.randbits(_HOLDER_BITS)
            session.run(self._server.sql.insert_holder, holder=holder, number=collection, info=info)
            return holder

        # On the device, because a holder that is not there after a crash would lose later claims.
        holder = Holder(self._server.transact(insert, once=False))
        with self._mutex:
            self._holders[holder.number] = holder
            if self._thread is None:
                self._stop = threading.Event()
                self._thread = threading.Thread(
                    target=self._run, args=(self._stop,), name="persistcoll-heartbeat", daemon=True
                )
                self._thread.start()
        return holder

    def end(self, holder: Holder) -> None:
        """Send no more heartbeats of this holder."""
        with self._mutex:
            self._holders.pop(holder.number, None)

    def stop(self) -> None:
        """End the thread."""
        with self._mutex:
            thread, self._thread = self._thread, None
            self._stop.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self, stop: threading.Event) -> None:
        while not stop.wait(self._server.patience / _BEATS):
            with self._mutex:
                if not self._holders and self._thread is threading.current_thread():
                    self._thread = None
                    return
            # If the server cannot be reached for too long, these holders are taken for dead.
            with suppress(StorageError):
                self.beat()

    def beat(self) -> None:
        """Send the heartbeats now."""
        with self._mutex:
            holders = list(self._holders.values())
        if holders and self._send(holders) < len(holders):
            for holder in holders:
                holder.is_gone = not self._send([holder])

    def _send(self, holders: list[Holder]) -> int:
        """Send heartbeats, and return how many of these holders the server knows."""
        numbers = sorted(holder.number for holder in holders)

        def send(session: Session) -> int:
            session.run(self._server.sql.beat, holders=numbers)
            # Not the count of the first statement: MySQL counts a row only if the time differs.
            ((known,),) = session.run(self._server.sql.count_holders, holders=numbers).rows
            return int(known)

        until = time.monotonic() + self._server.patience / _BEATS
        return self._server.transact(send, sync=False, once=False, deadline=until)


class Holding:
    """One store as a holder of claims, and what it knows of the other holders of its collection.

    ``_mutex`` guards ``_holder``. Each step on ``_lost`` is atomic.

    :param number: the collection's.
    :param came_back: called with the ids of records that this store makes ready, or dead; without ids if they
        are not known.
    :param notify: notifies waiters in other processes.
    """

    def __init__(
        self,
        server: Server,
        number: int,
        sql: RecordStatements,
        retry: ClaimPolicy,
        came_back: Callable[[list[int]], None],
        notify: Callable[..., None],
    ) -> None:
        self._server = server
        self._number = number
        self._sql = sql
        self._retry = retry
        self._came_back = came_back
        self._notify = notify
        self._last_check = time.monotonic()
        self.forget()

    def forget(self) -> None:
        """Be no holder, because this process is a forked child."""
        self._mutex = threading.Lock()
        self._holder: Holder | None = None
        # Holder and fence of claims of which it is not known whether they were made.
        self._lost: deque[tuple[int, int]] = deque()

    def ensure(self) -> int:
        """Return the number of this store as a holder, after making it one if it is none."""
        with self._mutex:
            holder = self._holder
            if holder is None or holder.is_gone:
                if holder is not None:
                    self._server.heartbeat.end(holder)
                holder = self._holder = self._server.heartbeat.new_holder(self._number)
            return holder.number

    # Claims of which it is not known whether they were made.

    def lose(self, holder: int, fences: list[int]) -> None:
        """Note claims whose answers were lost. They are released before the next claim."""
        self._lost.extend((holder, fence) for fence in fences)

    def release_lost(self) -> None:
        """Release what claims have claimed whose answers were lost."""

        def release(lost: tuple[int, int]) -> None:
            holder, fence = lost

            def run(session: Session) -> None:
                self._notify(session, Awaited.READY)
                session.run(self._sql.release_fence, holder=holder, fence=fence)

            self._server.repeat(run)
            self._came_back([])

        release_each(self._lost, release)

    # The other holders.

    def may_reclaim(self) -> bool:
        """Tell whether it is time to check whether the other holders live."""
        passed = time.monotonic() - self._last_check
        return self._retry.auto_reclaim and passed >= self._server.patience / _BEATS

    def liveness_check_due(self) -> float | None:
        """Return when the holders were checked last, if :meth:`may_reclaim`; otherwise ``None``."""
        return self._last_check if self.may_reclaim() else None

    def reclaim(self, sessions: Sessions, thorough: bool) -> int:
        """End the claims of dead holders; return how many claims these were.

        :param thorough: whether to search for claims of holders that are not there any more, which reads
            every claim. There is one if a process that stood still for longer than the patience went on
            between the end of its holder and the notice of that.
        """
        self._last_check = time.monotonic()
        server = self._server
        own = self._holder
        patience = sessions.repeat(partial(patience_with, server=server))

        def end(session: Session) -> int:
            dead = session.run(server.sql.select_dead, number=self._number, patience=patience).rows
            others = [number for (number,) in dead if own is None or number != own.number]
            count = sum(self._end_claims(session, number, HOLDER_DIED) for number in others)
            if thorough:
                count += self._all_come_back(session, HOLDER_DIED, self._sql.lock_ownerless)
            return count

        return sessions.transact(end, sync=False)

    def _end_claims(self, session: Session, holder: int, reason: str) -> int:
        """End the claims of a holder, and forget the holder; return how many claims these were.

        What another transaction has locked stays, and the holder with it.
        """
        count = self._all_come_back(session, reason, self._sql.lock_held, holder=holder)
        if not session.run(self._sql.has_claims, holder=holder).rows:
            session.defer(self._sql.forget_holder, holder=holder)
        return count

    def end_own(self, session: Session) -> None:
        """End the claims of this store that the session sees."""
        if self._holder is not None:
            self._all_come_back(session, HOLDER_CLOSED, self._sql.lock_held, holder=self._holder.number)

    def _all_come_back(self, session: Session, reason: str, lock: str, **where: Any) -> int:
        total = 0
        while count := self.come_back(session, reason, lock, **where):
            total += count
        return total

    def come_back(self, session: Session, reason: str, lock: str, **where: Any) -> int:
        """Make a page of the records that ``lock`` locks ready, or dead; return how many these are.

        :param reason: why their claims end, if their leases are not over.
        """
        ids = [id for (id,) in session.run(lock, limit=PAGE, **where).rows]
        if ids:
            why = reason.encode()
            session.defer(self._sql.come_back, ids=ids, most=self._retry.max_attempts, reason=why)
            self._came_back(ids)
            self._notify(session, Awaited.READY, Awaited.LEFT)
        return len(ids)

    # The end.

    def end(self) -> None:
        """End this store's claims, and be no holder. It may be called again."""
        holder = self._holder
        if holder is None:
            return
        self._server.heartbeat.end(holder)

        def end(session: Session) -> None:
            session.run(self._server.sql.close_holder, holder=holder.number)
            if self._retry.auto_reclaim:
                self._end_claims(session, holder.number, HOLDER_CLOSED)

        with suppress(StorageError):  # then it is found dead, because its heartbeats have ended
            self._server.transact(end, sync=False, once=False)
