"""A transaction on a session: its begin, its note, its commit, and a lost answer to that."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from persistcoll.errors import BackendUnavailableError, LockedError, StorageError
from persistcoll.servers.driver import ConnectionLostError, NotCommittedError, TryAgainError

if TYPE_CHECKING:
    from persistcoll.servers.sessions import OwnSession, Server, Session

__all__ = ["Insertion", "OpenTransaction", "Transaction"]

T = TypeVar("T")


class Transaction:
    """A transaction on a session of its own. One thread at a time uses it.

    :param is_noted: whether it happens once although an answer is lost.
    """

    def __init__(self, server: Server, is_noted: bool) -> None:
        self._server = server
        self._is_noted = is_noted
        self._session: OwnSession | None = None

    def begin(
        self, deadline: float | None, sync: bool, lock_timeout: float | None, idles: bool = False
    ) -> None:
        """Begin, as :meth:`~persistcoll.servers.driver.Connection.begin` does."""
        self._session = self._server.acquire(deadline)
        # Another node may not have yet what this one commits after the connection is lost. There only the
        # question for a note keeps the commit from coming after all.
        self._is_noted = self._is_noted or self._session.connection.is_cluster
        self._session.connection.begin(sync, lock_timeout, idles)

    def run(self, work: Callable[[Session], T], number: int, puts: Callable[[T], int] | None) -> T:
        """Return what ``work`` returns, and note the call in the collection of this number.

        ``work`` may have done that by a statement of its own.
        """
        session = self._session
        assert session is not None
        last = session.op
        value = work(session)
        if self._is_noted and session.op == last:
            session.note(self._server.sql, number, 0 if puts is None else puts(value))
        return value

    def flush(self) -> None:
        """Run now what waits for the commit."""
        assert self._session is not None
        self._session.flush()

    def commit(self) -> int:
        """Commit the transaction.

        :return: the id in the note, if the answer was lost and the note has one; otherwise 0.
        :raise ConnectionLostError: the connection is lost, and the transaction was not committed; if it was
            noted, the error is a ``NotCommittedError``.
        """
        server, session = self._server, self._session
        assert session is not None
        call = session.client, session.op
        try:
            self._send_commit(session)
        except ConnectionLostError as error:
            self._session = None
            server._lost(session)
            if not self._is_noted or isinstance(error, NotCommittedError):
                raise
            noted = server._find_note(*call)
            if noted is None:
                raise NotCommittedError(str(error)) from error
            return noted
        except TryAgainError as error:
            # A node that is cut off while another one's transaction ends this one says the same. Then the
            # others may have committed it.
            if not session.connection.is_cluster:
                raise
            self.roll_back(error)
            noted = server._find_note(*call)
            if noted is None:
                raise
            return noted
        self._session = None
        server._finish(session, self._is_noted)
        return 0

    def _send_commit(self, session: OwnSession) -> None:
        session.connection.commit()

    def roll_back(self, error: BaseException) -> None:
        """Roll back because of this error. It does nothing after the end."""
        session, self._session = self._session, None
        if session is not None:
            if isinstance(error, ConnectionLostError):
                self._server._lost(session)
            else:
                self._server._roll_back(session, error)


class Insertion(Transaction):
    """Statements that insert one row and note it, and that are a transaction of their own.

    :param by_credit: whether they take a credit of the session, and do nothing if it has none.
    """

    def __init__(self, server: Server, by_credit: bool) -> None:
        super().__init__(server, True)
        self._by_credit = by_credit

    def insert(
        self, texts: Sequence[str], parameters: Mapping[str, Any], number: int, deadline: float | None
    ) -> int:
        """Run the statements, and return the id of the row, or 0 if the session has no credit."""
        self._session = session = self._server.acquire(deadline)
        if self._by_credit and not session.expects_credits(number, 1):
            self._session = None
            self._server.release(session)
            return 0
        parameters = {**parameters, **session.call(number, 1)}
        sent = [session.defer(text, **parameters) for text in texts]
        id = self.commit() or next((each.id for each in sent if each.id), 0)
        if not id:
            session.credits.pop(number, None)  # another session has revoked them
        return id

    def _send_commit(self, session: OwnSession) -> None:
        session.flush()


class OpenTransaction(Transaction):
    """A transaction that stays open while the caller of a store does something.

    :ivar is_idle: no statement is running, so none may still be answered.
    """

    def __init__(self, server: Server) -> None:
        super().__init__(server, True)
        self.is_idle = False

    def end(self) -> None:
        """Commit the transaction.

        :raise BackendUnavailableError: the connection is lost, so nothing of the transaction happened.
        :raise LockedError: another transaction came first, so nothing of this one happened.
        :raise StorageError: it belongs to the process from which this one was forked; or the outcome is
            unknown, which the message says.
        """
        self.is_idle = False
        address = self._server.address
        if self._session not in self._server._all:
            self._session = None
            raise StorageError(f"the transaction in {address} belongs to the process that began it")
        try:
            self.commit()
        except ConnectionLostError as error:
            raise BackendUnavailableError(
                f"the connection to {address} was lost before the commit, so nothing of the transaction"
                f" happened: {error}"
            ) from error
        except TryAgainError as error:
            self.roll_back(error)
            raise LockedError(
                f"another transaction in {address} came first, so nothing of this one happened: {error}"
            ) from error

    def roll_back(self, error: BaseException) -> None:
        if self._session in self._server._all:
            super().roll_back(Exception() if self.is_idle else error)
        self._session = None
