"""Statements on a caller's connection, as a part of the transaction that is open on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from persistcoll.errors import BackendUnavailableError, LockedError
from persistcoll.servers.driver import ConnectionLostError, TryAgainError
from persistcoll.servers.sessions import Server, Session

__all__ = ["JoinedSessions"]

T = TypeVar("T")

_SAVEPOINT = "SAVEPOINT persistcoll"
_RELEASE = "RELEASE SAVEPOINT persistcoll"
_UNDO = "ROLLBACK TO SAVEPOINT persistcoll"


class JoinedSessions:
    """The :class:`~persistcoll.servers.sessions.Sessions` of a store that is joined to a transaction.

    Each piece of work is whole or undone, by a savepoint. Nothing is retried, no setting of the session is
    changed, and the caller ends the transaction.
    """

    def __init__(self, server: Server, connection: Any) -> None:
        self._sql = server.sql
        joined = server.driver.caller_connection(connection)
        ((now,),) = joined.run(self._sql.clock).rows
        self._session = Session(joined, int(now) // 3600)

    def repeat(self, work: Callable[[Session], T], deadline: float | None = None) -> T:
        """See :class:`~persistcoll.servers.sessions.Sessions`."""
        session = self._session
        try:
            session.connection.run(_SAVEPOINT)
            try:
                value = work(session)
            except BaseException:
                session.connection.run(_UNDO)
                raise
            session.connection.run(_RELEASE)
            return value
        except TryAgainError as error:
            raise LockedError(f"roll the transaction back and begin it again: {error}") from error
        except ConnectionLostError as error:
            raise BackendUnavailableError(f"the transaction's connection is lost: {error}") from error

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
