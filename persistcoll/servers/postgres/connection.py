"""The driver of PostgreSQL, psycopg 3: the one module that imports it."""

from __future__ import annotations

import os
import selectors
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from persistcoll.errors import StorageError
from persistcoll.servers.address import OPTIONS, POSTGRESQL, Address
from persistcoll.servers.driver import ABANDONED, ConnectionLostError, Result, answer_timeout, unwrapped
from persistcoll.servers.postgres.errors import translate
from persistcoll.servers.postgres.protocol import compiled, encoded, rows_of
from persistcoll.servers.postgres.statements import PostgresDialect

if TYPE_CHECKING:
    from persistcoll.servers.driver import Connection
    from persistcoll.servers.statements import Dialect

__all__ = ["PostgresDriver"]

_MISSING = "the driver of PostgreSQL is not installed: pip install 'persistcoll[postgres]'"
_OLDEST = 130000
# Bytes. A message to the server has less than 1 GiB, and an answer with the row as well.
_MAX_PAYLOAD = 1 << 29
# Texts of refusals after which a server takes connections again.
_PASSING = ("the database system is", "too many", "connection slots", "terminating connection")
# Milliseconds. A transaction whose client is gone is rolled back, and what it locks is free again.
_IDLE_IN_TRANSACTION = 30_000
_MOST_PREPARED = 256  # statements of a session
# The numbers of results: a statement without and with rows, and an empty one.
_GOOD = (0, 1, 2)
# A client may idle as long as its machine answers. One that does not answer for a minute is gone.
_IDLES = (
    "; SET LOCAL idle_in_transaction_session_timeout = 0; SET LOCAL tcp_keepalives_idle = 30"
    "; SET LOCAL tcp_keepalives_interval = 10; SET LOCAL tcp_keepalives_count = 3"
)


class PostgresDriver:
    """PostgreSQL 13 or later, by psycopg 3."""

    dialect: Dialect = PostgresDialect()

    def connect(self, address: Address, timeout: float, power: bool) -> Connection:
        psycopg = _psycopg()
        settings: dict[str, Any] = {
            "connect_timeout": max(2, round(timeout)),
            "application_name": "persistcoll",
            "keepalives_idle": 30,
            "keepalives_interval": 10,
            "keepalives_count": 3,
            "tcp_user_timeout": 40_000,
            **dict(address.options),
            "host": ",".join(host for host, _ in address.hosts),
            "port": ",".join(str(port) for _, port in address.hosts),
        }
        known = {"user": address.user, "password": address.password, "dbname": address.database}
        settings |= {name: value for name, value in known.items() if value is not None}
        doing = f"connecting to {address}"
        try:
            connection = psycopg.connect(**settings, autocommit=True)
        except psycopg.Error as error:
            raise _refusal(error, doing) from error
        try:
            if connection.info.server_version < _OLDEST:
                raise StorageError(
                    f"{address} is PostgreSQL {connection.info.server_version // 10000}, and persistcoll"
                    f" needs PostgreSQL {_OLDEST // 10000} or later"
                )
            made = _OwnConnection(connection, answer_timeout(timeout))
            made.run_script(
                f"SET lock_timeout = {max(1, round(timeout * 1000))};"
                f" SET idle_in_transaction_session_timeout = {_IDLE_IN_TRANSACTION};"
                " SET default_transaction_isolation = 'read committed';"
                " SET default_transaction_read_only = off"
                + ("" if power else "; SET synchronous_commit = off")
            )
            return made
        except BaseException:
            connection.close()
            raise

    def address_of(self, connection: Any) -> Address:
        info = _of_psycopg(connection).info
        options = {
            name: value for name, value in info.get_parameters().items() if name in OPTIONS[POSTGRESQL]
        }
        hosts = ((info.host, info.port),)
        return Address(
            POSTGRESQL, hosts, info.user, info.password or None, info.dbname, tuple(sorted(options.items()))
        )

    def caller_connection(self, connection: Any) -> Connection:
        psycopg = _psycopg()
        connection = _of_psycopg(connection)
        status = psycopg.pq.TransactionStatus
        found = connection.info.transaction_status
        if found == status.INERROR:
            raise ValueError("the transaction on this connection has failed: roll it back first")
        if connection.autocommit and found == status.IDLE:
            raise ValueError("no transaction is open on this connection")
        return _Connection(connection)


def _of_psycopg(connection: Any) -> Any:
    """Return the connection of psycopg that a caller gave, or that is in what it gave."""
    psycopg = _psycopg()
    connection = unwrapped(connection, psycopg.Connection)
    if not isinstance(connection, psycopg.Connection):
        raise TypeError(
            f"a transaction is joined on a connection of psycopg 3, not on {type(connection).__module__}."
            f"{type(connection).__name__}"
        )
    return connection


def _psycopg() -> Any:
    try:
        import psycopg
    except ImportError as error:
        raise ImportError(_MISSING, name="psycopg") from error
    return psycopg


def _refusal(error: Any, doing: str) -> Exception:
    """Return the error to raise for a connection that was not made."""
    # A refusal has no SQLSTATE in psycopg's errors, whose texts are in the language of the server: only a
    # connection that was made and refused has a text that begins so.
    text = str(error)
    if "FATAL" in text and not any(passing in text for passing in _PASSING):
        return StorageError(f"{doing} failed: {text.strip()}")
    return ConnectionLostError(f"{doing} failed: {text.strip()}")


class _Connection:
    """A :class:`~persistcoll.servers.driver.Connection` by cursors of psycopg: a caller's."""

    max_payload = _MAX_PAYLOAD

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._error: type[Exception] = _psycopg().Error

    def run(self, text: str, parameters: Mapping[str, Any] | None = None) -> Result:
        try:
            with self._connection.cursor(binary=True, row_factory=_tuple_row) as cursor:
                cursor.execute(text, parameters)
                rows = cursor.fetchall() if cursor.description else []
                return Result(rows, cursor.rowcount, rows[0][0] if len(rows) == 1 else 0)
        except self._error as error:
            raise self._translated(error) from error

    def _translated(self, error: Exception) -> Exception:
        is_lost = self._connection.closed or self._connection.broken
        return translate(getattr(error, "sqlstate", None), str(error), is_lost, "a statement")

    def begin(self, sync: bool, lock_timeout: float | None, idles: bool = False) -> None:
        raise AssertionError("the caller begins the transaction")

    def commit(self) -> None:
        raise AssertionError("the caller commits")

    def rollback(self) -> None:
        raise AssertionError("the caller rolls back")

    def close(self) -> None:
        self._connection.close()

    def abandon(self) -> None:
        # The destructor of a connection of psycopg warns that it was not closed.
        ABANDONED.append(self._connection)
        try:
            os.close(self._connection.fileno())
        except (OSError, self._error):
            pass


class _OwnConnection(_Connection):
    """A session of this library's own, by libpq: a statement takes half the time that it takes by a cursor.

    A statement that runs a second time is prepared.

    ``_uses``, ``_waiter`` and ``_events`` belong to the thread that uses the connection.

    :param timeout: seconds to wait for an answer.
    """

    def __init__(self, connection: Any, timeout: float) -> None:
        super().__init__(connection)
        self._timeout = timeout
        self._libpq = connection.pgconn
        self._uses: dict[bytes, int] = {}
        self._waiter = selectors.DefaultSelector()
        self._events = selectors.EVENT_READ
        try:
            self._waiter.register(self._libpq.socket, self._events)
        except BaseException:
            self._waiter.close()
            raise

    def run(self, text: str, parameters: Mapping[str, Any] | None = None) -> Result:
        libpq = self._libpq
        if parameters is None:
            result = self._answer(lambda: libpq.send_query_params(text.encode(), None, result_format=1))
            return _result(result)
        name, data, names = compiled(text)
        values = [encoded(parameters[each]) for each in names]
        arguments = [value for value, _ in values]
        formats = [is_binary for _, is_binary in values]
        uses = self._uses.get(name, 0)
        if uses == 1:
            self._prepare(name, data)
        self._uses[name] = uses + 1

        def send() -> None:
            if uses:
                libpq.send_query_prepared(name, arguments, formats, result_format=1)
            else:
                libpq.send_query_params(data, arguments, param_formats=formats, result_format=1)

        return _result(self._answer(send))

    def _prepare(self, name: bytes, data: bytes) -> None:
        if len(self._uses) > _MOST_PREPARED:
            self.run_script("DEALLOCATE ALL")
            self._uses = {name: 1}
        self._answer(lambda: self._libpq.send_prepare(name, data))

    def run_script(self, text: str) -> None:
        """Run several statements without parameters, in one trip."""
        self._answer(lambda: self._libpq.send_query(text.encode()))

    def _answer(self, send: Callable[[], None]) -> Any:
        """Send something, and return the last result of the answer.

        An interrupt comes while it waits. Then the caller closes the connection, because the answer may still
        come.
        """
        libpq = self._libpq
        results = []
        try:
            send()
            while (
                libpq.flush()
            ):  # the connection does not block, and takes as much as its buffer has room for
                self._wait(selectors.EVENT_READ | selectors.EVENT_WRITE)
            while True:
                while libpq.is_busy():
                    self._wait(selectors.EVENT_READ)
                result = libpq.get_result()
                if result is None:
                    break
                results.append(result)
        except self._error as error:
            raise self._translated(error) from error
        for result in results:
            if result.status not in _GOOD:
                raise self._refused(result)
        return results[-1]

    def _wait(self, events: int) -> None:
        """Wait until the connection is ready for one of these events, and read what has come."""
        if events != self._events:
            self._waiter.modify(self._libpq.socket, events)
            self._events = events
        ready = self._waiter.select(self._timeout)
        if not ready:
            raise ConnectionLostError("no answer has come")
        if any(found & selectors.EVENT_READ for _, found in ready):
            self._libpq.consume_input()

    def _refused(self, result: Any) -> Exception:
        psycopg = _psycopg()
        code = result.error_field(psycopg.pq.DiagnosticField.SQLSTATE)
        code = None if code is None else code.decode()
        message = result.get_error_message()
        is_lost = self._libpq.status != psycopg.pq.ConnStatus.OK
        found = translate(code, message, is_lost, "a statement")
        try:
            found.__cause__ = psycopg.errors.lookup(code or "")(message)
        except KeyError:
            found.__cause__ = psycopg.DatabaseError(message)
        return found

    def begin(self, sync: bool, lock_timeout: float | None, idles: bool = False) -> None:
        text = "BEGIN"
        if not sync:
            text += "; SET LOCAL synchronous_commit = off"
        if lock_timeout is not None:
            text += f"; SET LOCAL lock_timeout = {max(1, round(lock_timeout * 1000))}"
        if idles:
            text += _IDLES
        self.run_script(text)

    def commit(self) -> None:
        self.run_script("COMMIT")

    def rollback(self) -> None:
        self.run_script("ROLLBACK")

    def close(self) -> None:
        self._waiter.close()
        super().close()

    def abandon(self) -> None:
        self._waiter.close()
        super().abandon()


def _result(found: Any) -> Result:
    rows = rows_of(found)
    return Result(rows, found.command_tuples or 0, rows[0][0] if len(rows) == 1 else 0)


def _tuple_row(cursor: Any) -> Any:
    return tuple
