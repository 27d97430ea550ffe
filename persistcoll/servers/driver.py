"""What the algorithm asks of a database driver, and how a driver says that a statement failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import isroutine
from typing import TYPE_CHECKING, Any, Protocol

from persistcoll.errors import StoreMissingError

if TYPE_CHECKING:
    from persistcoll.servers.address import Address
    from persistcoll.servers.dialect import Dialect

__all__ = [
    "ABANDONED",
    "Connection",
    "ConnectionLostError",
    "Deferred",
    "Driver",
    "MissingTableError",
    "NotCommittedError",
    "OwnConnection",
    "Result",
    "TryAgainError",
    "answer_timeout",
    "unwrapped",
]

ABANDONED: list[Any] = []
"""What the connections of a parent hold in its forked child: kept, because it must not be collected there."""
_MOST_WRAPPERS = 4
_NO_WRAPPER = object()
_TIMEOUTS_PER_ANSWER, _SHORTEST_ANSWER_TIMEOUT = 6.0, 5.0


class TryAgainError(Exception):
    """The server has rolled the transaction back because of another one; it can begin again."""


class ConnectionLostError(Exception):
    """The connection is lost, and with it the answer to what was sent last."""


class NotCommittedError(ConnectionLostError):
    """The connection is lost, and the server, asked since, has not committed and never will."""


class MissingTableError(StoreMissingError):
    """A statement names a table that is not there."""


@dataclass(frozen=True)
class Result:
    """What a statement did.

    :ivar count: how many rows it has changed, or returned.
    :ivar id: the id that the server gave the row that the statement inserted; otherwise without meaning.
    """

    __slots__ = ("count", "id", "rows")

    rows: list[Any]
    count: int
    id: int


class Deferred:
    """A statement that is sent together with the next one.

    :ivar result: what it did; ``None`` until it was sent.
    """

    __slots__ = ("result",)

    def __init__(self, result: Result | None = None) -> None:
        self.result = result

    @property
    def count(self) -> int:
        """How many rows it has changed. It was sent."""
        assert self.result is not None
        return self.result.count

    @property
    def rows(self) -> list[Any]:
        """The rows that it has returned. It was sent."""
        assert self.result is not None
        return self.result.rows

    @property
    def id(self) -> int:
        """The id of the row that it has inserted. It was sent."""
        assert self.result is not None
        return self.result.id


def answer_timeout(timeout: float) -> float:
    """Return the seconds after which an answer counts as lost, which a network may swallow without a trace.

    :param timeout: those to wait for a connection, and for a lock.
    """
    return max(_SHORTEST_ANSWER_TIMEOUT, _TIMEOUTS_PER_ANSWER * timeout)


def unwrapped(connection: Any, kind: type[Any]) -> Any:
    """Return the connection of this kind that a framework's object wraps, or what is in it in its place.

    A session or a connection of SQLAlchemy, its pool's connection, and a connection of Django wrap one.

    :raise ValueError: it wraps none any more, or not yet.
    """
    for _ in range(_MOST_WRAPPERS):
        if isinstance(connection, kind):
            break
        inner = getattr(connection, "driver_connection", _NO_WRAPPER)
        if inner is _NO_WRAPPER:
            inner = getattr(connection, "connection", _NO_WRAPPER)
        if inner is _NO_WRAPPER:
            break
        if inner is None:
            raise ValueError("no transaction is open on this connection: it is closed")
        if isroutine(inner):  # a connection of sqlite3 can be called, too
            connection = inner()
            continue
        # SQLAlchemy's connection begins a transaction at its first statement. Without that, what is done on
        # the connection in it would be rolled back in its commit().
        in_transaction = getattr(connection, "in_transaction", None)
        if isroutine(in_transaction) and not in_transaction():
            connection.begin()
        connection = inner
    return connection


class Connection(Protocol):
    """One connection, for one thread at a time. Every method may raise the errors of this module.

    It raises persistcoll's errors for everything else, with the driver's error as the cause. Outside of a
    transaction each statement is one.

    :ivar max_payload: the greatest number of bytes of a payload.
    :ivar is_cluster: other servers have the same tables and commit as well. Locks are this server's alone,
        and the commit of a transaction fails that has changed a row which another server has changed. It is
        not known of a caller's connection.
    """

    max_payload: int
    is_cluster: bool

    def run(self, text: str, parameters: Mapping[str, Any] | None = None) -> Result:
        """Run one statement.

        With parameters, be they none, the text names them as ``%(name)s``, and a percent sign is doubled.
        """

    def defer(self, text: str, parameters: Mapping[str, Any]) -> Deferred:
        """Run one statement at the latest when the next one runs, or with the commit; that raises its error.

        On a caller's connection it runs at once.
        """

    def defer_rows(self, text: str, rows: Sequence[Mapping[str, Any]]) -> Sequence[Deferred]:
        """Defer an insert of all these rows, as few statements as the server takes.

        :param rows: one at least.
        :param text: the insert, in the form that the dialect has for several rows.
        :return: the statements. The rows of their results are the ids, unless a row was there already.
        """

    def flush(self) -> None:
        """Run now what is deferred."""


class OwnConnection(Connection, Protocol):
    """A connection of this library's own, which begins and ends its transactions.

    :ivar keeps_session: whether all transactions of the connection have one session of the server, which no
        other client uses meanwhile.
    :ivar is_answered: no answer of the server can still come, because the last trip came to its end.
    """

    keeps_session: bool
    is_answered: bool

    def begin(self, sync: bool, lock_timeout: float | None, idles: bool = False) -> None:
        """Begin a transaction, at the latest when the next statement runs.

        :param sync: whether its commit waits until the transaction is on the device, where a session can
            choose that.
        :param lock_timeout: the seconds to wait for a lock; ``None``: as many as the connection was opened
            with.
        :param idles: whether the client may send nothing for longer than a call takes.
        """

    def commit(self) -> None:
        """Commit the transaction."""

    def rollback(self) -> None:
        """Roll the transaction back."""

    def notifications(self) -> Sequence[str]:
        """Return the channels on which others have notified this connection since, without waiting.

        :raise ConnectionLostError: the connection is lost.
        """

    def is_closed(self) -> bool:
        """Tell whether the server has closed a connection that idles, or sends what nobody has asked for."""

    def close(self) -> None:
        """Close the connection. It never raises."""

    def abandon(self) -> None:
        """Close the descriptor in a forked child, and send nothing: the connection is the parent's."""


class Driver(Protocol):
    """One kind of server."""

    dialect: Dialect

    def connect(self, address: Address, timeout: float, power: bool) -> OwnConnection:
        """Connect, with the settings that the algorithm needs.

        :param timeout: seconds to wait for the connection, and later for a lock; for an answer
            :func:`answer_timeout`.
        :param power: whether what is committed survives a power cut of the server, where a session can choose
            that.
        :raise ConnectionLostError: the server cannot be reached now.
        :raise StorageError: the server refuses, or is too old.
        :raise ImportError: the driver is not installed.
        """

    def address_of(self, connection: Any) -> Address:
        """Return the address to which the caller's connection leads, with its password.

        :raise TypeError: it is no connection of this driver.
        :raise ValueError: the connection does not tell all of it.
        """

    def driver_connection(self, connection: Any) -> Any:
        """Return the driver's connection that the caller gave, or that is in what it gave.

        :raise TypeError: it is no connection of this driver.
        :raise ValueError: there is none in it any more, or not yet.
        """

    def caller_connection(self, connection: Any) -> Connection:
        """Return the caller's connection in the form that the algorithm uses.

        :param connection: what :meth:`driver_connection` returned.
        :raise ValueError: no transaction is open on it, or the open one has failed.
        """
