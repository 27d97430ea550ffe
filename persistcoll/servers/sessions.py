"""The connections of this process to a server, and transactions that happen once although answers are lost.

A call that changes something sends with its transaction a note: its session's number and the number of the
call. If the answer to the commit is lost, another session adds a note of its own under these numbers, and
reads which one is there. If it is its own, the transaction was not committed and never will be, so the call
begins again. It reads with a lock, because a transaction that has locked ends only when the standbys have all
that was committed before: otherwise a failover could undo what was reported as done.
"""

from __future__ import annotations

import random
import secrets
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from persistcoll.engine.forks import register_forkable
from persistcoll.errors import BackendUnavailableError, LockedError, StorageError
from persistcoll.servers.address import MYSQL, POSTGRESQL, Address
from persistcoll.servers.driver import (
    Connection,
    ConnectionLostError,
    Deferred,
    Driver,
    NotCommittedError,
    OwnConnection,
    Result,
    TryAgainError,
    answer_timeout,
)
from persistcoll.servers.statements import SharedStatements, shared_statements
from persistcoll.servers.transactions import Insertion, OpenTransaction, Transaction
from persistcoll.servers.wakes import Wakes

if TYPE_CHECKING:
    from persistcoll.servers.holders import Heartbeat

__all__ = ["SERVERS", "OwnSession", "Server", "Session", "Sessions", "driver_of"]

T = TypeVar("T")

_MOST_IDLE = 8  # connections
_FIRST_PAUSE, _LONGEST_PAUSE = 0.01, 1.0  # seconds between two tries
# Seconds that a call waits for a lock at least, and may begin again. Ordinary writers hold one for a moment,
# so a call that must not wait for a caller's transaction would otherwise fail without one.
_SHORTEST_LOCK_TIMEOUT = 1.0
# A call whose deadline is over begins again as well: its connection may be one that the server has closed.
_LEAST_TRIES = 4
# Seconds between two tries where the nodes of a cluster take the same rows, and all but one begin again.
_LONGEST_CONFLICT_PAUSE = 0.1
_OPS_BETWEEN_SWEEPS = 256
# A session's number begins with the hour, so that the notes of sessions that ended long ago are one range.
_HOUR_BITS = 40
_KEPT_HOURS = 24
_SWEPT_CLIENTS = 16
_EVERY_OP = 1 << 62
# The collection in the note of a call that was not committed. So the question may be asked again, if its own
# answer is lost.
_NEVER_COMMITTED = -1


def driver_of(kind: str) -> Driver:
    """Return the driver for servers of this kind."""
    if kind == POSTGRESQL:
        from persistcoll.servers.postgres.connection import PostgresDriver

        return PostgresDriver()
    assert kind == MYSQL
    from persistcoll.servers.mysql.connection import MySQLDriver

    return MySQLDriver()


class Session:
    """One connection, with the numbers of its calls. One thread uses it at a time.

    :ivar hour: when the session began, by the server's clock: hours since the epoch.
    :ivar client: the session's number, which begins with the hour; no other session has it.
    :ivar op: the number of its last call that has a note.
    :ivar notified: the channels that the present call notifies with its commit.
    :ivar credits: by the number of a collection, how many credits the session has there at most.
    :ivar holds_lock: the session may hold a lock that no rollback frees.
    """

    def __init__(self, connection: Connection, hour: int) -> None:
        self.connection = connection
        self.hour = hour
        self.client = hour << _HOUR_BITS | secrets.randbits(_HOUR_BITS)
        self.op = 0
        self.notified: set[str] = set()
        self.credits: dict[int, int] = {}
        self.holds_lock = False

    def run(self, text: str, **parameters: Any) -> Result:
        """Run one statement with these parameters."""
        return self.connection.run(text, parameters)

    def defer(self, text: str, **parameters: Any) -> Deferred:
        """Run one statement together with the next one, or with the commit."""
        return self.connection.defer(text, parameters)

    def insert_rows(
        self, text: str, rows: Sequence[Mapping[str, Any]], defer: Callable[[], object] = lambda: None
    ) -> list[int]:
        """Insert all these rows now, and return their ids in this order.

        :param text: as for :meth:`~persistcoll.servers.driver.Connection.defer_rows`.
        :param defer: defers statements that run after the insert, in the same trip.
        """
        sent = self.connection.defer_rows(text, rows) if rows else ()
        defer()
        self.flush()
        # An insert gives ids that rise, and returns them in any order.
        return sorted(id for each in sent for (id,) in each.rows)

    def flush(self) -> None:
        """Run now what is deferred."""
        self.connection.flush()

    def call(self, number: int, puts: int) -> dict[str, Any]:
        """Begin a new call, and return the parameters of its note, which is a part of its transaction.

        :param number: the collection.
        :param puts: how many puts the transaction counts.
        """
        self.op += 1
        return {"client": self.client, "op": self.op, "number": number, "puts": puts}

    def note(self, sql: SharedStatements, number: int, puts: int) -> None:
        """Begin a new call, and note it. The parameters are those of :meth:`call`."""
        self.defer(sql.insert_done, **self.call(number, puts))

    def expects_credits(self, number: int, count: int) -> bool:
        """Tell whether the session may have so many credits in that collection, and count them as taken."""
        left = self.credits.get(number, 0) - count
        if left < 0:
            return False
        self.credits[number] = left
        return True


class OwnSession(Session):
    """A session on a connection of this library's own."""

    connection: OwnConnection


class Sessions(Protocol):
    """Where a store runs its statements: on a server's sessions, or on a caller's connection."""

    def repeat(self, work: Callable[[Session], T], deadline: float | None = None) -> T:
        """Return what ``work`` returns; call it again if a connection was lost in it.

        Each statement of ``work`` is a transaction of its own, and may happen twice.
        """

    def transact(
        self,
        work: Callable[[Session], T],
        *,
        number: int = 0,
        puts: Callable[[T], int] | None = None,
        sync: bool = True,
        once: bool = True,
        deadline: float | None = None,
    ) -> T:
        """Run ``work`` in a transaction, and return what it returns after the commit.

        ``work`` is called again if the server rolled the transaction back because of another one, or if the
        connection was lost before the commit. It may note the call by a statement of its own.

        :param number: the collection.
        :param puts: given the value, returns how many puts the transaction counts.
        :param sync: whether the commit waits for the device, where a session can choose that.
        :param once: otherwise ``work`` is called again after a lost answer, whether it was committed or not.
        :param deadline: as that of a store.
        """


class Server:
    """One server as this process uses it: its idle connections, and the holders that send heartbeats.

    ``_mutex`` guards ``_idle`` and ``_all``.

    :param timeout: seconds to wait for a connection, and for a lock of another transaction.
    :param patience: the seconds without a heartbeat after which a holder is dead.
    :param power: whether what is committed survives a power cut of the server, where a session can choose
        that.
    :ivar wakes: how its processes wake each other; ``None``: it passes no notifications on.
    :ivar is_cluster: as that of the last connection.
    """

    def __init__(
        self, address: Address, schema: str | None, timeout: float, patience: float, power: bool
    ) -> None:
        from persistcoll.servers.holders import Heartbeat

        self.address = address
        self.schema = schema
        self.timeout = timeout
        self.patience = patience
        self.power = power
        self.driver = driver_of(address.kind)
        self.sql = shared_statements(self.driver.dialect, schema)
        self.users = 0
        self.is_cluster = False
        self._idle: list[OwnSession] = []
        self._all: set[OwnSession] = set()
        # Re-entrant, because a destructor may end a transaction while its thread holds it.
        self._mutex = threading.RLock()
        self.heartbeat: Heartbeat = Heartbeat(self)
        wakes = self.driver.dialect.wakes(schema)
        self.wakes = None if wakes is None else Wakes(self, wakes)
        register_forkable(self)

    @property
    def max_payload(self) -> int:
        """The greatest number of bytes of a payload."""
        return self.repeat(lambda session: session.connection.max_payload)

    # Connections.

    def acquire(self, deadline: float | None = None) -> OwnSession:
        """Return an idle session, or a new one.

        :raise BackendUnavailableError: the server cannot be reached before the deadline.
        """
        while True:
            with self._mutex:
                session = self._idle.pop() if self._idle else None
            if session is None:
                break
            # Otherwise a put, which is sent with its commit, would not know whether it has happened.
            if not session.connection.is_closed():
                return session
            self._lost(session)
        until = self._until(deadline)
        for pause in _pauses():
            try:
                return self._connect(until)
            except ConnectionLostError as error:
                if time.monotonic() + pause >= until:
                    raise BackendUnavailableError(str(error)) from error
                time.sleep(pause)
        raise AssertionError

    def _until(self, deadline: float | None) -> float:
        """Return the time up to which a call tries: the deadline, or earlier if the timeout is over."""
        until = time.monotonic() + self.timeout
        return until if deadline is None else min(until, deadline)

    def _connect(self, until: float) -> OwnSession:
        connection = self.driver.connect(self.address, self.timeout, self.power)
        try:
            ((now,),) = connection.run(self.sql.clock).rows
            session = OwnSession(connection, int(now) // 3600)
            self.is_cluster = connection.is_cluster
            with self._mutex:
                self._all.add(session)
            return session
        except BaseException:
            connection.close()
            raise

    def release(self, session: OwnSession) -> None:
        """Let others use this session, which has no transaction open."""
        if session.notified and self.wakes is not None:
            self.wakes.has_notified(session.notified)
        session.notified.clear()
        with self._mutex:
            if self.users and len(self._idle) < _MOST_IDLE and session in self._all:
                self._idle.append(session)
                return
        self.discard(session)

    def discard(self, session: OwnSession) -> None:
        """Close this session."""
        with self._mutex:
            self._all.discard(session)
        session.connection.close()

    def _lost(self, session: OwnSession) -> None:
        """Close a session whose connection is lost, and all that are idle, which probably are as well."""
        with self._mutex:
            idle, self._idle = self._idle, []
        for each in (session, *idle):
            self.discard(each)

    def close(self) -> None:
        """Close all idle connections."""
        self.heartbeat.stop()
        if self.wakes is not None:
            self.wakes.close()
        with self._mutex:
            idle, self._idle = self._idle, []
        for session in idle:
            self.discard(session)

    def _after_fork(self) -> None:
        self._mutex = threading.RLock()
        for session in list(self._all):
            session.connection.abandon()
        self._all.clear()
        self._idle.clear()
        self.heartbeat.forget()
        if self.wakes is not None:
            self.wakes.forget()

    # Work.

    def repeat(self, work: Callable[[Session], T], deadline: float | None = None) -> T:
        """See :class:`Sessions`."""
        return self._retried(lambda: self._repeat_once(work, deadline), deadline)

    def _repeat_once(self, work: Callable[[Session], T], deadline: float | None) -> T:
        session = self.acquire(deadline)
        try:
            value = work(session)
            session.flush()
        except ConnectionLostError:
            self._lost(session)
            raise
        except BaseException as error:
            # What is deferred and was not sent must not go with the session's next statement.
            self._roll_back(session, error)
            raise
        self.release(session)
        return value

    def transact(
        self,
        work: Callable[[Session], T],
        *,
        number: int = 0,
        puts: Callable[[T], int] | None = None,
        sync: bool = True,
        once: bool = True,
        deadline: float | None = None,
    ) -> T:
        """See :class:`Sessions`."""
        lock_timeout = None
        if deadline is not None:
            lock_timeout = max(_SHORTEST_LOCK_TIMEOUT, deadline - time.monotonic())
            lock_timeout = lock_timeout if lock_timeout < self.timeout else None

        def attempt() -> T:
            transaction = Transaction(self, once)
            try:
                transaction.begin(deadline, sync, lock_timeout)
                value = transaction.run(work, number, puts)
                transaction.commit()
            except BaseException as error:
                transaction.roll_back(error)
                raise
            return value

        return self._retried(attempt, deadline)

    def insert(
        self,
        texts: Sequence[str],
        parameters: Mapping[str, Any],
        number: int,
        deadline: float | None,
        by_credit: bool = False,
    ) -> int:
        """Insert one row in a transaction, once and in one trip, and return its id.

        :param texts: statements that also note the call, and that wait for no caller's transaction.
        :param number: the collection.
        :param by_credit: whether they take a credit of the session. If it has none, the result is 0.
        """

        def attempt() -> int:
            insertion = Insertion(self, by_credit)
            try:
                return insertion.insert(texts, parameters, number, deadline)
            except BaseException as error:
                insertion.roll_back(error)
                raise

        return self._retried(attempt, deadline)

    def begin(
        self, work: Callable[[Session], T], number: int, begun: list[OpenTransaction], deadline: float | None
    ) -> T:
        """Run ``work`` in a transaction that stays open, and return what it returns.

        It is called again as :meth:`transact` calls it. The caller ends the transaction.

        :param number: the collection.
        :param begun: the transaction is appended to this list before it begins.
        """

        def attempt() -> T:
            transaction = OpenTransaction(self)
            begun.append(transaction)
            try:
                transaction.begin(deadline, True, None, idles=True)
                value = transaction.run(work, number, None)
                transaction.flush()
                transaction.is_idle = True
                return value
            except BaseException as error:
                transaction.roll_back(error)
                begun.pop()
                raise

        return self._retried(attempt, deadline)

    def _finish(self, session: OwnSession, noted: bool) -> None:
        """Release a session after a commit, and now and then remove its notes first."""
        if noted and session.op % _OPS_BETWEEN_SWEEPS == 0:
            try:
                self._sweep(session)
            except BaseException as error:
                self._roll_back(session, error)
                if isinstance(error, (ConnectionLostError, TryAgainError, StorageError)):
                    return  # what is noted stays until the next time
                raise
        self.release(session)

    def _retried(self, attempt: Callable[[], T], deadline: float | None) -> T:
        """Return what ``attempt`` returns; call it again if another transaction or a lost connection ends it.

        :raise LockedError: other transactions came first up to the deadline.
        :raise BackendUnavailableError: the connection was lost again and again up to the deadline.
        """
        until = self._until(deadline)
        last = time.monotonic() + max(_SHORTEST_LOCK_TIMEOUT, self.timeout)
        for tries, pause in enumerate(_pauses(), 1):
            cause: Exception
            failure: StorageError
            longest, least_tries = _LONGEST_PAUSE, _LEAST_TRIES
            try:
                return attempt()
            except TryAgainError as error:
                cause, failure = error, LockedError(f"other transactions always came first: {error}")
                if self.is_cluster:  # Its nodes lock no rows for each other, so these come first often.
                    longest, least_tries = _LONGEST_CONFLICT_PAUSE, sys.maxsize
            except ConnectionLostError as error:
                cause = error
                failure = BackendUnavailableError(f"{self.address} cannot be reached: {error}")
            wait = min(pause, longest * random.uniform(0.5, 1.5))
            following = time.monotonic() + wait
            # To find the outcome of a commit may take longer than all, and then the server can be reached.
            is_late = following >= last and not isinstance(cause, NotCommittedError)
            if following >= until and (tries >= least_tries or is_late):
                raise failure from cause
            time.sleep(wait)
        raise AssertionError

    def _roll_back(self, session: OwnSession, error: BaseException) -> None:
        """Roll the transaction of a session back because of this error, and release or close the session."""
        session.notified.clear()
        # After an interrupt the answer of a statement may still come. Otherwise the session is not closed,
        # because the server frees what it has locked only when it has noticed that.
        is_usable = isinstance(error, Exception) or session.connection.is_answered
        if is_usable and not session.holds_lock:
            try:
                session.connection.rollback()
            except Exception:
                pass
            except BaseException:
                self.discard(session)
                raise
            else:
                self.release(session)
                return
        self.discard(session)

    def _find_note(self, client: int, op: int) -> int | None:
        """Return the id in the note of a call that was committed, or 0 if it has none.

        :return: ``None``: the call was not committed, and never will be.
        """
        until = time.monotonic() + answer_timeout(self.timeout)
        failure: Exception | None = None
        for pause in _pauses():
            try:
                session = self.acquire()
                try:
                    call = {"client": client, "op": op}
                    session.run(self.sql.give_up, number=_NEVER_COMMITTED, **call)
                    ((number, id),) = session.run(self.sql.find_done, **call).rows
                except BaseException:
                    self._lost(session)
                    raise
                self.release(session)
                return None if number == _NEVER_COMMITTED else int(id or 0)
            except (ConnectionLostError, BackendUnavailableError, LockedError, TryAgainError) as error:
                failure = error
            if time.monotonic() + pause >= until:
                break
            time.sleep(pause)
        # Not BackendUnavailableError, by which a caller would believe that nothing happened.
        raise StorageError(
            f"the answer of {self.address} to a commit was lost, and the outcome is unknown: it happened if"
            f" there is a row with client {client} and op {op} in pc_done; since then: {failure}"
        ) from failure

    def _sweep(self, session: OwnSession) -> None:
        """Remove the notes of this session's earlier calls, and of some sessions that ended long ago."""
        old = (session.hour - _KEPT_HOURS) << _HOUR_BITS
        rows = session.run(self.sql.select_old_clients, client=old, limit=_SWEPT_CLIENTS).rows
        for client, op in ((session.client, session.op), *((client, _EVERY_OP) for (client,) in rows)):
            session.connection.begin(False, None)
            self._sweep_client(session, client, op)
            session.connection.commit()

    def _sweep_client(self, session: Session, client: int, op: int) -> None:
        puts: Counter[int] = Counter()
        for number, count in session.run(self.sql.lock_done, client=client, op=op).rows:
            puts[number] += count
        for number in sorted(+puts):
            session.run(self.sql.add_puts, number=number, puts=puts[number])
        session.run(self.sql.delete_done, client=client, op=op)


def _pauses() -> Iterator[float]:
    pause = _FIRST_PAUSE
    while True:
        yield pause * random.uniform(0.5, 1.5)
        pause = min(pause * 2, _LONGEST_PAUSE)


class _Servers:
    """The servers of this process, each shared by all stores on it. ``_mutex`` guards everything."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._servers: dict[Any, Server] = {}
        register_forkable(self)

    def acquire(
        self, address: Address, schema: str | None, timeout: float, patience: float, power: bool
    ) -> Server:
        """Return the server at this address, which counts one user more."""
        key = (address, schema, timeout, patience, power)
        with self._mutex:
            server = self._servers.get(key)
            if server is None:
                server = self._servers[key] = Server(*key)
            server.users += 1
            return server

    def release(self, server: Server) -> None:
        """Count one user less; the last one closes the connections."""
        with self._mutex:
            server.users -= 1
            is_last = server.users == 0
            if is_last:
                self._servers = {key: each for key, each in self._servers.items() if each is not server}
        if is_last:
            server.close()

    def _after_fork(self) -> None:
        self._mutex = threading.Lock()


SERVERS = _Servers()
