"""The driver of PostgreSQL, psycopg 3: the one module that imports it."""

from __future__ import annotations

import os
import selectors
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from persistcoll.errors import StorageError
from persistcoll.servers.address import OPTIONS, POSTGRESQL, Address
from persistcoll.servers.driver import (
    ABANDONED,
    ConnectionLostError,
    Deferred,
    NotCommittedError,
    Result,
    answer_timeout,
    unwrapped,
)
from persistcoll.servers.pipelining import DirectConnection, PipeliningConnection, Step
from persistcoll.servers.postgres.errors import translate
from persistcoll.servers.postgres.protocol import compiled, encoded, rows_of
from persistcoll.servers.postgres.statements import PostgresDialect

if TYPE_CHECKING:
    from persistcoll.servers.dialect import Dialect
    from persistcoll.servers.driver import Connection, OwnConnection

__all__ = ["RANDOM_PAGE_COST", "PostgresDriver"]

_MISSING = "the driver of PostgreSQL is not installed: pip install 'persistcoll[postgres]'"
_OLDEST = 130000
# Bytes. A message to the server has less than 1 GiB, and an answer with the row as well.
_MAX_PAYLOAD = 1 << 29
# Texts of refusals after which a server takes connections again.
_PASSING = (
    "the database system is",
    "too many",
    "connection slots",
    "terminating connection",
    # Those of PgBouncer.
    "no more connections",
    "server login has been failing",
    "query_wait_timeout",
)
# Milliseconds. A transaction whose client is gone is rolled back, and what it locks is free again.
_IDLE_IN_TRANSACTION = 30_000
# A session may keep the plan of a statement while the table grows. At the server's default of 4.0 the plan
# for an empty table reads all of it, if its rows are wide.
RANDOM_PAGE_COST = 1.1
# How a transaction begins on a session that has no settings of its own. A standby refuses READ WRITE, by this
# code.
_BEGIN_UNSET = "BEGIN ISOLATION LEVEL READ COMMITTED"
_REFUSES_TO_WRITE = "0A000"
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
    """PostgreSQL 13 or later, by psycopg 3.

    ``_last`` is the host to which the last connection was made, of whatever thread.
    """

    dialect: Dialect = PostgresDialect()
    _last: tuple[str, int] | None = None

    def connect(self, address: Address, timeout: float, power: bool) -> OwnConnection:
        psycopg = _psycopg()
        # A host that does not answer would cost each connection its part of the timeout.
        hosts = sorted(address.hosts, key=lambda each: each != self._last)
        settings: dict[str, Any] = {
            "connect_timeout": max(2, round(timeout / len(hosts))),
            "application_name": "persistcoll",
            "keepalives_idle": 30,
            "keepalives_interval": 10,
            "keepalives_count": 3,
            "tcp_user_timeout": 40_000,
            **dict(address.options),
            # That of the texts that are sent, whatever the database and PGCLIENTENCODING say.
            "client_encoding": "UTF8",
            "host": ",".join(host for host, _ in hosts),
            "port": ",".join(str(port) for _, port in hosts),
        }
        if len(hosts) > 1:
            # Otherwise the first host that answers is taken, though it may have become a standby.
            settings.setdefault("target_session_attrs", "read-write")
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
            made.use_settings(_settings(timeout, power))
            self._last = connection.info.host, connection.info.port
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

    def driver_connection(self, connection: Any) -> Any:
        return _of_psycopg(connection)

    def caller_connection(self, connection: Any) -> Connection:
        psycopg = _psycopg()
        status = psycopg.pq.TransactionStatus
        found = connection.info.transaction_status
        if found == status.INERROR:
            raise ValueError("the transaction on this connection has failed: roll it back first")
        if connection.autocommit and found == status.IDLE:
            raise ValueError("no transaction is open on this connection")
        return _Connection(connection)


def _settings(timeout: float, power: bool) -> dict[str, str]:
    """Return what each transaction of a connection has set, whatever the server's own defaults are."""
    settings = {
        "lock_timeout": f"{max(1, round(timeout * 1000))}",
        "idle_in_transaction_session_timeout": f"{_IDLE_IN_TRANSACTION}",
        "random_page_cost": f"{RANDOM_PAGE_COST}",
        # Otherwise a NULL in the text of an array is a word.
        "array_nulls": "on",
    }
    return settings if power else {**settings, "synchronous_commit": "off"}


def _set(settings: Mapping[str, str], is_local: bool) -> str:
    """Return a list of expressions that set this, for the transaction or for the session."""
    return ", ".join(f"set_config('{name}', '{value}', {is_local})" for name, value in settings.items())


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
                with self._answered():
                    cursor.execute(*_with_safe_lists(text, parameters), binary=True)
                rows = cursor.fetchall() if cursor.description else []
                return Result(rows, cursor.rowcount, rows[0][0] if len(rows) == 1 else 0)
        except self._error as error:
            raise self._translated(error) from error

    def _answered(self) -> AbstractContextManager[Any]:
        """Return a context manager at whose end the answer to its statement is there."""
        # In a caller's pipeline it comes with a sync, which the end of an inner one sends.
        in_pipeline = self._connection.pgconn.pipeline_status
        return self._connection.pipeline() if in_pipeline else nullcontext()

    def defer_rows(self, text: str, rows: Sequence[Mapping[str, Any]]) -> Sequence[Deferred]:
        names = compiled(text).parameters
        return [self.defer(text, {name: [row[name] for row in rows] for name in names})]

    def _translated(self, error: Exception) -> Exception:
        is_lost = self._connection.closed or self._connection.broken
        return translate(getattr(error, "sqlstate", None), str(error), is_lost, "a statement")


class _OwnConnection(PipeliningConnection, _Connection):
    """A session of this library's own, by libpq: a statement takes half the time that it takes by a cursor.

    A statement that runs a second time is prepared.

    A pooler may give each transaction another session of the server, which other clients use before and
    after. Then nothing that outlasts a transaction is set or prepared there, and each transaction begins with
    all settings. A statement of its own becomes a transaction for that, in the same trip.

    ``_used`` and ``_prepared`` have the names of statements, and ``_is_open`` is set between the begin and
    the end of a transaction. They belong to the thread that uses the connection.

    :param timeout: seconds to wait for an answer.
    """

    _begin: Sequence[str] = ("BEGIN",)

    def __init__(self, connection: Any, timeout: float) -> None:
        _Connection.__init__(self, connection)
        self._libpq = connection.pgconn
        super().__init__(self._libpq.socket)
        self._timeout = timeout
        self._pipelines = _psycopg().Pipeline.is_supported()
        self._used: set[bytes] = set()
        self._prepared: set[bytes] = set()
        self._is_open = False

    def use_settings(self, settings: Mapping[str, str]) -> None:
        """Set this for the session, or for each transaction if the session is not the connection's own."""
        # A pooler makes up the process that it names to its clients, because it passes on a cancellation to
        # the one that runs their statement then.
        is_own = f"pg_backend_pid() = {self._libpq.backend_pid}"
        defaults = {
            "default_transaction_isolation": "read committed",
            "default_transaction_read_only": "off",
        }
        in_session = _set({**settings, **defaults}, False)
        ((self.keeps_session, _, is_standby),) = self.run(
            f"SELECT {is_own}, CASE WHEN {is_own} THEN concat({in_session}) END, pg_is_in_recovery()"
        ).rows
        if not self.keeps_session:
            begin = _BEGIN_UNSET if is_standby else f"{_BEGIN_UNSET} READ WRITE"
            self._begin = (begin, f"SELECT {_set(settings, True)}")

    def begin(self, sync: bool, lock_timeout: float | None, idles: bool = False) -> None:
        super().begin(sync, lock_timeout, idles)
        self._is_open = True

    def commit(self) -> None:
        super().commit()
        self._is_open = False

    def rollback(self) -> None:
        if self._is_open or self.keeps_session:
            super().rollback()
        else:
            self._waiting.clear()
        self._is_open = False

    def _send(self, steps: Sequence[Step]) -> list[Result]:
        if self.keeps_session or self._is_open:
            return self._send_in_order(steps)
        before = [Step(text) for text in self._begin]
        try:
            results = self._send_in_order([*before, *steps, Step("COMMIT")])
        except ConnectionLostError:
            raise
        except Exception:
            self._send_in_order([Step("ROLLBACK")])
            raise
        return results[len(before) : -1]

    def _send_in_order(self, steps: Sequence[Step]) -> list[Result]:
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
        if steps[0].text == self._begin[0]:
            self._check_begin(results[0])
        self._check(results)
        return [_result(results[place]) for place in places]

    def _check_begin(self, result: Any) -> None:
        """Raise an error if the server behind a pooler has become a standby since the connection was made."""
        if result.status not in _GOOD and _code_of(result) == _REFUSES_TO_WRITE:
            raise NotCommittedError(f"a transaction has not begun: {result.get_error_message().strip()}")

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
                if self.keeps_session and len(self._used) < _MOST_PREPARED:
                    self._used.add(name)
                yield None, partial(libpq.send_query_params, data, arguments, None, formats, 1)
                return
            yield name, partial(libpq.send_prepare, name, data)
        yield None, partial(libpq.send_query_prepared, name, arguments, formats, 1)

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

    def notifications(self) -> Sequence[str]:
        libpq = self._libpq
        channels: list[str] = []
        try:
            libpq.consume_input()
            while (found := libpq.notifies()) is not None:
                channels.append(found.relname.decode())
        except self._error as error:
            raise self._translated(error) from error
        return channels

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
        code = _code_of(result)
        message = result.get_error_message()
        is_lost = self._libpq.status != psycopg.pq.ConnStatus.OK
        found = translate(code, message, is_lost, "a statement")
        try:
            found.__cause__ = psycopg.errors.lookup(code or "")(message)
        except KeyError:
            found.__cause__ = psycopg.DatabaseError(message)
        return found

    def _beginning(self, sync: bool, lock_timeout: float | None, idles: bool) -> Sequence[str]:
        texts = list(self._begin)
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


def _code_of(result: Any) -> str | None:
    code = result.error_field(_psycopg().pq.DiagnosticField.SQLSTATE)
    return None if code is None else code.decode()


def _is_good(results: Sequence[Any]) -> bool:
    """Tell whether the first of these results is there, and no error."""
    return bool(results) and results[0].status in _GOOD


def _result(found: Any) -> Result:
    rows = rows_of(found)
    return Result(rows, found.command_tuples or 0, rows[0][0] if len(rows) == 1 else 0)


def _with_safe_lists(text: str, parameters: Mapping[str, Any] | None) -> tuple[str, Mapping[str, Any] | None]:
    """Return a statement whose lists mean the same in every session: those with bytes or nulls are binary.

    In the text of a list psycopg doubles backslashes where standard_conforming_strings is off, and the server
    takes them as they are: it would store other bytes. Where array_nulls is off, a NULL in it is a word.
    """
    counts: dict[str, int] = {}
    for name, value in (parameters or {}).items():
        if not isinstance(value, list) or not value:
            continue
        if all(each is None for each in value):
            # psycopg sends that as a text in any case, because the type is unknown to it.
            counts[name] = len(value)
            text = text.replace(f"%({name})s", f"array_fill(NULL::text, ARRAY[%({name})s::int])")
        elif any(each is None or isinstance(each, bytes) for each in value):
            text = text.replace(f"%({name})s", f"%({name})b")
    return text, {**parameters, **counts} if parameters and counts else parameters


def _tuple_row(cursor: Any) -> Any:
    return tuple
