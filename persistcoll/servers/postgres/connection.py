"""The driver of PostgreSQL, psycopg 3: the one module that imports it."""

from __future__ import annotations

import os
import selectors
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from persistcoll.errors import StorageError
from persistcoll.servers.address import OPTIONS, POSTGRESQL, Address
from persistcoll.servers.driver import (
    ABANDONED,
    ConnectionLostError,
    Result,
    answer_timeout,
    unwrapped,
)
from persistcoll.servers.pipelining import DirectConnection, PipeliningConnection, Step
from persistcoll.servers.postgres.errors import translate
from persistcoll.servers.postgres.protocol import compiled, encoded, rows_of
from persistcoll.servers.postgres.statements import PostgresDialect

if TYPE_CHECKING:
    from persistcoll.servers.driver import Connection, OwnConnection
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
    "SET LOCAL idle_in_transaction_session_timeout = 0",
    "SET LOCAL tcp_keepalives_idle = 30",
    "SET LOCAL tcp_keepalives_interval = 10",
    "SET LOCAL tcp_keepalives_count = 3",
)


class PostgresDriver:
    """PostgreSQL 13 or later, by psycopg 3."""

    dialect: Dialect = PostgresDialect()

    def connect(self, address: Address, timeout: float, power: bool) -> OwnConnection:
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


class _Connection(DirectConnection):
    """A :class:`~persistcoll.servers.driver.Connection` by cursors of psycopg: a caller's."""

    max_payload = _MAX_PAYLOAD

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._error: type[Exception] = _psycopg().Error

    def run(self, text: str, parameters: Mapping[str, Any] | None = None) -> Result:
        try:
            # Not by `cursor()`, whose class is the caller's choice. Those of Django have no binary results.
            with _psycopg().Cursor(self._connection, row_factory=_tuple_row) as cursor:
                cursor.execute(text, parameters, binary=True)
                rows = cursor.fetchall() if cursor.description else []
                return Result(rows, cursor.rowcount, rows[0][0] if len(rows) == 1 else 0)
        except self._error as error:
            raise self._translated(error) from error

    def _translated(self, error: Exception) -> Exception:
        is_lost = self._connection.closed or self._connection.broken
        return translate(getattr(error, "sqlstate", None), str(error), is_lost, "a statement")


class _OwnConnection(PipeliningConnection, _Connection):
    """A session of this library's own, by libpq: a statement takes half the time that it takes by a cursor.

    A statement that runs a second time is prepared.

    ``_used`` and ``_prepared`` have the names of statements. They belong to the thread that uses the
    connection.

    :param timeout: seconds to wait for an answer.
    """

    def __init__(self, connection: Any, timeout: float) -> None:
        _Connection.__init__(self, connection)
        self._libpq = connection.pgconn
        super().__init__(self._libpq.socket)
        self._timeout = timeout
        self._pipelines = _psycopg().Pipeline.is_supported()
        self._used: set[bytes] = set()
        self._prepared: set[bytes] = set()

    def _send(self, steps: Sequence[Step]) -> list[Result]:
        calls: list[Callable[[], None]] = []
        places: list[int] = []  # of the statements among the calls, of which some prepare one
        prepared: dict[bytes, int] = {}
        for step in steps:
            for name, call in self._calls(step, prepared):
                if name is not None:
                    prepared[name] = len(calls)
                calls.append(call)
            places.append(len(calls) - 1)
        results = self._answers(calls)
        # After a statement that fails, the server prepares none of those that follow.
        self._prepared.update(name for name, place in prepared.items() if _is_good(results[place:]))
        self._check(results)
        return [_result(results[place]) for place in places]

    def _calls(
        self, step: Step, prepared: Mapping[bytes, int]
    ) -> Iterator[tuple[bytes | None, Callable[[], None]]]:
        """Give the calls of libpq that send a statement, and the name of what each one prepares.

        :param prepared: has the names of what the calls before prepare.
        """
        libpq = self._libpq
        if step.parameters is None:
            text = step.text.encode()
            yield None, partial(libpq.send_query_params, text, None, result_format=1)
            return
        name, data, names = compiled(step.text)
        values = [encoded(step.parameters[each]) for each in names]
        arguments = [value for value, _ in values]
        formats = [is_binary for _, is_binary in values]
        if name not in self._prepared and name not in prepared:
            if name not in self._used:
                if len(self._used) < _MOST_PREPARED:
                    self._used.add(name)
                yield None, partial(libpq.send_query_params, data, arguments, None, formats, 1)
                return
            yield name, partial(libpq.send_prepare, name, data)
        yield None, partial(libpq.send_query_prepared, name, arguments, formats, 1)

    def run_script(self, text: str) -> None:
        """Run several statements without parameters, in one trip."""
        self._check(self._answers([lambda: self._libpq.send_query(text.encode())]))

    def _answers(self, calls: Sequence[Callable[[], None]]) -> list[Any]:
        """Make these calls of libpq in one trip, and return the last result of each.

        An interrupt comes while it waits. Then the caller closes the connection, because answers may still
        come.
        """
        libpq = self._libpq
        results: list[Any] = []
        try:
            if len(calls) == 1 or not self._pipelines:
                for call in calls:
                    call()
                    results.append(self._answer())
                    if not _is_good(results[-1:]):
                        break
            else:
                libpq.enter_pipeline_mode()
                for call in calls:
                    call()
                libpq.pipeline_sync()
                results += [self._answer() for _ in calls]
                self._next_result()  # that of the sync
                libpq.exit_pipeline_mode()
        except self._error as error:
            raise self._translated(error) from error
        return results

    def _check(self, results: Sequence[Any]) -> None:
        """Raise the first error among these results."""
        for result in results:
            if result.status not in _GOOD:
                raise self._refused(result)

    def _answer(self) -> Any:
        """Return the last result of one call, or the first that is an error."""
        last = None
        while (result := self._next_result()) is not None:
            if last is None or last.status in _GOOD:
                last = result
        return last

    def _next_result(self) -> Any:
        libpq = self._libpq
        while libpq.flush():  # it sends without blocking as much as the socket takes
            self._wait(selectors.EVENT_READ | selectors.EVENT_WRITE)
        while libpq.is_busy():
            self._wait(selectors.EVENT_READ)
        return libpq.get_result()

    def _wait(self, events: int) -> None:
        """Wait until the connection is ready for one of these events, and read what has come."""
        ready = self._ready(events, self._timeout)
        if not ready:
            raise ConnectionLostError("no answer has come")
        if ready & selectors.EVENT_READ:
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

    def _beginning(self, sync: bool, lock_timeout: float | None, idles: bool) -> Sequence[str]:
        texts = ["BEGIN"]
        if not sync:
            texts.append("SET LOCAL synchronous_commit = off")
        if lock_timeout is not None:
            texts.append(f"SET LOCAL lock_timeout = {max(1, round(lock_timeout * 1000))}")
        return [*texts, *_IDLES] if idles else texts

    def close(self) -> None:
        self._waiter.close()
        self._connection.close()

    def abandon(self) -> None:
        self._waiter.close()
        # The destructor of a connection of psycopg warns that it was not closed.
        ABANDONED.append(self._connection)
        try:
            os.close(self._connection.fileno())
        except (OSError, self._error):
            pass


def _is_good(results: Sequence[Any]) -> bool:
    """Tell whether the first of these results is there, and no error."""
    return bool(results) and results[0].status in _GOOD


def _result(found: Any) -> Result:
    rows = rows_of(found)
    return Result(rows, found.command_tuples or 0, rows[0][0] if len(rows) == 1 else 0)


def _tuple_row(cursor: Any) -> Any:
    return tuple
