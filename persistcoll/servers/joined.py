"""Statements on a caller's connection, as a part of the transaction that is open on it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

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
        self._driver.caller_connection(connection)  # refuses it

    def repeat(self, work: Callable[[Session], T], deadline: float | None = None) -> T:
        """See :class:`~persistcoll.servers.sessions.Sessions`."""
        # Each time, because the caller may have ended the transaction since.
        connection = self._driver.caller_connection(self._connection)
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
        connection = self._driver.caller_connection(self._connection)
        name = f"persistcoll_{next(_blocks)}"
        with _for_the_caller():
            connection.run(f"SAVEPOINT {name}")
        try:
            yield
        except BaseException:
            _undo(connection, f"ROLLBACK TO SAVEPOINT {name}")
            raise
        with _for_the_caller():
            connection.run(f"RELEASE SAVEPOINT {name}")

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
