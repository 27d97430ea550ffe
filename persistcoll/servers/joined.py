"""Statements on a caller's connection, as a part of the transaction that is open on it."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, TypeVar

from persistcoll.engine.forks import REENTRANT
from persistcoll.errors import BackendUnavailableError, LockedError, StorageError
from persistcoll.servers.driver import Connection, ConnectionLostError, TryAgainError
from persistcoll.servers.sessions import Server, Session

__all__ = ["JoinedSessions", "undone_alone"]

T = TypeVar("T")

_SAVEPOINT = "SAVEPOINT persistcoll"
_RELEASE = "RELEASE SAVEPOINT persistcoll"
_UNDO = "ROLLBACK TO SAVEPOINT persistcoll"
# Blocks may be within each other, and MySQL forgets a savepoint when another one gets its name.
_blocks = itertools.count()


class _Here(threading.local):
    """What this thread does with callers' connections.

    :ivar busy: by identity, the drivers' connections on which an operation of this thread is under way. A
        signal handler or a destructor that comes in then must send nothing there, through whatever object:
        psycopg would wait for its own thread, and PyMySQL would take the answers for those of other
        statements. The values say nothing. It is a dict, because no interrupt comes between the assignment of
        an item and the ``try`` that follows it, as one may after a call.
    """

    def __init__(self) -> None:
        self.busy: dict[int, None] = {}


_here = _Here()


def _alone_on(connection: Any, operation: Callable[[], T]) -> T:
    """Return what ``operation`` returns, which uses a driver's connection.

    :raise StorageError: this thread is within another operation on it.
    """
    busy = _here.busy
    identity = id(connection)
    if identity in busy:
        raise StorageError(REENTRANT)
    busy[identity] = None
    try:
        return operation()
    finally:
        del busy[identity]


def undone_alone(session: Session, work: Callable[[Session], T]) -> T:
    """Return what ``work`` returns. If it raises, it is undone, and the transaction can go on."""
    session.connection.run(_SAVEPOINT)
    try:
        value = work(session)
    except BaseException:
        _undo(session.connection, _UNDO)
        raise
    session.connection.run(_RELEASE)
    return value


class JoinedSessions:
    """The :class:`~persistcoll.servers.sessions.Sessions` of a store that is joined to a transaction.

    Each piece of work is whole or undone, by a savepoint. Nothing is retried, no setting of the session is
    changed, and the caller ends the transaction.
    """

    def __init__(self, server: Server, connection: Any) -> None:
        self._sql = server.sql
        self._driver = server.driver
        self._connection = connection
        self._session: Session | None = None
        driver_connection = self._driver.driver_connection(connection)
        _alone_on(driver_connection, partial(self._driver.caller_connection, driver_connection))  # refuses it

    def repeat(self, work: Callable[[Session], T], deadline: float | None = None) -> T:
        """See :class:`~persistcoll.servers.sessions.Sessions`."""
        # Each time, because what the caller gave may have another connection in it since.
        driver_connection = self._driver.driver_connection(self._connection)
        return _alone_on(driver_connection, partial(self._repeat, driver_connection, work))

    def _repeat(self, driver_connection: Any, work: Callable[[Session], T]) -> T:
        # Each time, because the caller may have ended the transaction since.
        connection = self._driver.caller_connection(driver_connection)
        with _for_the_caller():
            session = self._session
            if session is None:
                ((now,),) = connection.run(self._sql.clock).rows
                session = self._session = Session(connection, int(now) // 3600)
            session.connection = connection
            return undone_alone(session, work)

    @contextmanager
    def undone_if_it_raises(self) -> Iterator[None]:
        """Roll everything on the connection back that was done in the block, if the block raises."""
        driver_connection = self._driver.driver_connection(self._connection)
        name = f"persistcoll_{next(_blocks)}"
        made: list[Connection] = []

        def begin() -> None:
            made.append(self._driver.caller_connection(driver_connection))
            with _for_the_caller():
                made[0].run(f"SAVEPOINT {name}")

        def end() -> None:
            with _for_the_caller():
                made[0].run(f"RELEASE SAVEPOINT {name}")

        _alone_on(driver_connection, begin)
        try:
            yield
        except BaseException:
            # The collector may end a block that nobody left, within any operation. Then this is refused, so
            # that it is seen that the block is not undone.
            _alone_on(driver_connection, lambda: _undo(made[0], f"ROLLBACK TO SAVEPOINT {name}"))
            raise
        _alone_on(driver_connection, end)

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
        """See :class:`~persistcoll.servers.sessions.Sessions`."""

        def counted(session: Session) -> T:
            value = work(session)
            if puts is not None:
                session.note(self._sql, number, puts(value))
            return value

        return self.repeat(counted)


@contextmanager
def _for_the_caller() -> Iterator[None]:
    """Raise the errors that a caller knows in place of those of :mod:`persistcoll.servers.driver`."""
    try:
        yield
    except TryAgainError as error:
        raise LockedError(f"roll the transaction back and begin it again: {error}") from error
    except ConnectionLostError as error:
        raise BackendUnavailableError(f"the transaction's connection is lost: {error}") from error


def _undo(connection: Connection, text: str) -> None:
    # A transaction that has failed, or whose connection is lost, is rolled back as a whole. After a deadlock
    # MySQL has done that, and knows the savepoint no more.
    with suppress(StorageError, ConnectionLostError, TryAgainError):
        connection.run(text)
