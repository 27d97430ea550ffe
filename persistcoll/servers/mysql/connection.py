"""The driver of MySQL and MariaDB, PyMySQL: the one module that imports it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from persistcoll.errors import BackendUnavailableError, EncodeError, LockedError, StorageError
from persistcoll.servers.address import MYSQL, Address
from persistcoll.servers.driver import (
    ABANDONED,
    ConnectionLostError,
    Deferred,
    Result,
    TryAgainError,
    answer_timeout,
    unwrapped,
)
from persistcoll.servers.mysql.errors import translate
from persistcoll.servers.mysql.statements import MySQLDialect
from persistcoll.servers.mysql.texts import around_values, packets, rendered
from persistcoll.servers.pipelining import DirectConnection, PipeliningConnection, Step

if TYPE_CHECKING:
    from persistcoll.servers.dialect import Dialect
    from persistcoll.servers.driver import Connection, OwnConnection

__all__ = ["MySQLDriver"]

_MISSING = "the driver of MySQL is not installed: pip install 'persistcoll[mysql]'"
# SKIP LOCKED.
_OLDEST = {"MySQL": (8, 0, 1), "MariaDB": (10, 6, 0)}
# Bytes of a packet that a statement needs beside the payload.
_STATEMENT = 4096
# Seconds. A transaction whose client is gone is rolled back, and what it locks is free again. MySQL has a
# timeout only for a session, whatever it idles in.
_IDLE_IN_TRANSACTION = 30
# A node of a Galera cluster that is cut off refuses it, as any statement but SHOW and SET.
_IS_READY = "DO 0"
# Before a statement that reads, begins a transaction, updates or deletes, a node waits until it has what all
# others have committed. Otherwise the session after a lost one, on another node, would miss its own claims.
_SYNC_WAIT = 1 | 2
_IDLES = {"idle_transaction_timeout": 0, "wait_timeout": 31_536_000}
_SET_LOCK_TIMEOUT = "SET SESSION innodb_lock_wait_timeout = {}"


class MySQLDriver:
    """MySQL 8.0.1, MariaDB 10.6 or later, by PyMySQL."""

    dialect: Dialect = MySQLDialect()

    def connect(self, address: Address, timeout: float, power: bool) -> OwnConnection:
        pymysql = _pymysql()
        options: dict[str, Any] = dict(address.options)
        for name in ("ssl_verify_cert", "ssl_verify_identity"):
            if name in options:
                options[name] = options[name].lower() in ("1", "true", "yes", "on")
        connect_timeout = int(options.pop("connect_timeout", max(2, round(timeout))))
        settings = {
            "connect_timeout": connect_timeout,
            **options,
            "user": address.user,
            "password": address.password or "",
            "database": address.database,
            "charset": "utf8mb4",
            "autocommit": True,
            # Only the texts of this library are joined, and the driver escapes each value in them.
            "client_flag": pymysql.constants.CLIENT.MULTI_STATEMENTS,
            "read_timeout": connect_timeout,
            "write_timeout": connect_timeout,
            # The sql_mode of the server may change what a backslash, a double quote or a || means.
            "init_command": "SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION'",
        }
        failure = Exception()
        for host, port in address.hosts:
            try:
                return _opened({**settings, "host": host, "port": port}, address, timeout)
            except ConnectionLostError as error:
                failure = error
        raise failure

    def address_of(self, connection: Any) -> Address:
        connection = _of_pymysql(connection)
        # Since PyMySQL 1.2 each connection tries TLS, and only some were told to.
        if getattr(connection, "_ssl_required", connection.ssl):
            raise ValueError(
                "a connection of PyMySQL does not tell its certificates: name the server by a URL beside it"
            )
        password = bytes(connection.password).decode("latin1") or None
        socket = (("unix_socket", connection.unix_socket),) if connection.unix_socket else ()
        user, database = (
            each.decode() if isinstance(each, bytes) else each for each in (connection.user, connection.db)
        )
        return Address(MYSQL, ((connection.host, connection.port),), user, password, database, socket)

    def driver_connection(self, connection: Any) -> Any:
        return _of_pymysql(connection)

    def caller_connection(self, connection: Any) -> Connection:
        if not connection.open:
            raise BackendUnavailableError(
                "the transaction's connection is lost: it is closed, or was not connected yet"
            )
        if connection.get_autocommit() and not _is_in_transaction(connection):
            raise ValueError("no transaction is open on this connection")
        return _Connection(connection)


def _opened(settings: Mapping[str, Any], address: Address, timeout: float) -> _OwnConnection:
    """Return a session on the host that the settings name.

    :raise ConnectionLostError: the host cannot be reached, or is a node of a cluster that is cut off.
    """
    pymysql = _pymysql()
    try:
        connection = pymysql.connect(**settings)
    except pymysql.MySQLError as error:
        number, text = _number_and_text(error)
        raise translate(number, text, f"connecting to {address}") from error
    try:
        made = _OwnConnection(connection)
        made.run(_IS_READY)
        is_mariadb = _checked_product(made, address) == "MariaDB"
        made.idle_timeout = "idle_transaction_timeout" if is_mariadb else "wait_timeout"
        if is_mariadb:  # otherwise it makes a table of a long list, and reads all rows for it
            made.run("SET SESSION in_predicate_conversion_threshold = 0")
        made.is_cluster = made.run("SHOW VARIABLES LIKE 'wsrep_on'").rows == [("wsrep_on", "ON")]
        made.run("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
        made.lock_timeout = _whole_seconds(timeout)
        made.run(
            f"SET SESSION innodb_lock_wait_timeout = {made.lock_timeout},"
            f" SESSION lock_wait_timeout = {made.lock_timeout},"
            f" SESSION {made.idle_timeout} = {_IDLE_IN_TRANSACTION}"
        )
        # Until here the timeouts were those of connecting, because a server may be silent then, too.
        connection._read_timeout = connection._write_timeout = answer_timeout(timeout)
        ((packet, made._id_step),) = made.run("SELECT @@max_allowed_packet, @@auto_increment_increment").rows
        # Escapes make a payload at most twice as long.
        made.max_payload = (int(packet) - _STATEMENT) // 2
        if made.is_cluster:
            made.run(f"SET SESSION wsrep_sync_wait = {_SYNC_WAIT}")
        return made
    except BaseException:
        with suppress(pymysql.MySQLError):
            connection.close()
        raise


def _whole_seconds(timeout: float) -> int:
    """Return a timeout as the server takes it."""
    return max(1, round(timeout))


def _is_in_transaction(connection: Any) -> bool:
    # Not as an attribute of the package: where PyMySQL stands for MySQLdb, as with Django, that may have
    # other modules as attributes.
    from pymysql.constants.SERVER_STATUS import SERVER_STATUS_IN_TRANS

    return bool(connection.server_status & SERVER_STATUS_IN_TRANS)


def _of_pymysql(connection: Any) -> Any:
    """Return the connection of PyMySQL that a caller gave, or that is in what it gave."""
    kind = _pymysql().Connection
    connection = unwrapped(connection, kind)
    if not isinstance(connection, kind):
        raise TypeError(
            f"a transaction is joined on a connection of PyMySQL, not on {type(connection).__module__}."
            f"{type(connection).__name__}"
        )
    return connection


def _pymysql() -> Any:
    try:
        import pymysql
    except ImportError as error:
        raise ImportError(_MISSING, name="pymysql") from error
    return pymysql


def _number_and_text(error: Exception) -> tuple[int | None, str]:
    arguments = error.args
    if len(arguments) > 1 and isinstance(arguments[0], int):
        return arguments[0], f"{arguments[1]} ({arguments[0]})"
    return None, str(error)


def _checked_product(connection: _Connection, address: Address) -> str:
    """Return ``"MySQL"`` or ``"MariaDB"``, which the server is.

    :raise StorageError: the server is too old.
    """
    ((text,),) = connection.run("SELECT version()").rows
    name = "MariaDB" if "mariadb" in text.lower() else "MySQL"
    found = re.search(r"(\d+)\.(\d+)\.(\d+)", text.removeprefix("5.5.5-"))
    version = tuple(map(int, found.groups())) if found else (0,)
    if version < _OLDEST[name]:
        needed = ", ".join(f"{each} {'.'.join(map(str, least))}" for each, least in _OLDEST.items())
        raise StorageError(f"{address} is {name} {text}, and persistcoll needs {needed} or later")
    return name


class _Connection(DirectConnection):
    """A :class:`~persistcoll.servers.driver.Connection` by PyMySQL: a caller's."""

    max_payload = 0
    _id_step = 1  # from one id that the server draws to the next

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._error: type[Exception] = _pymysql().MySQLError
        # Kept, because an object that is closed at the end of the interpreter can import nothing. The class
        # is named, because a caller's connection may have another one.
        self._cursor_class = _pymysql().cursors.Cursor

    def run(self, text: str, parameters: Mapping[str, Any] | None = None) -> Result:
        return self._execute([Step(text, parameters)])[0]

    def defer_rows(self, text: str, rows: Sequence[Mapping[str, Any]]) -> Sequence[Deferred]:
        return [Deferred(self._execute([Step(text, row, rows=1)])[0]) for row in rows]

    def _cursor(self) -> Any:
        return self._connection.cursor(self._cursor_class)

    def _with_ids(self, result: Result, count: int) -> Result:
        """Add the ids of the rows to the result of an insert of so many."""
        # The server draws them at once, because it sees in the statement how many it needs. So they are one
        # range, also while others insert.
        step = self._id_step
        ids = range(result.id, result.id + count * step, step)
        return Result([(id,) for id in ids], result.count, result.id)

    def _execute(self, steps: Sequence[Step]) -> list[Result]:
        """Run statements, as many in each packet as the server may get, and return their results."""
        try:
            for step in steps:
                self._refuse_too_large(step.parameters or {})
            with self._cursor() as cursor:
                results = []
                texts = [
                    step.text if step.parameters is None else rendered(cursor, step.text, step.parameters)
                    for step in steps
                ]
                # A node of MariaDB's Galera rolls a transaction back for another node's also between two
                # statements of a packet, and runs the second one without it, and without an error.
                most = 0 if self.is_cluster else self.max_payload
                for packet, _ in packets(texts, "; ", most):
                    cursor.execute(packet)
                    results.append(_result(cursor))
                    while cursor.nextset():
                        results.append(_result(cursor))
                return [
                    self._with_ids(result, step.rows) if step.rows else result
                    for result, step in zip(results, steps, strict=True)
                ]
        except self._error as error:
            number, message = _number_and_text(error)
            raise translate(number, message, "a statement") from error

    def _refuse_too_large(self, parameters: Mapping[str, Any]) -> None:
        payload = parameters.get("payload", b"")
        if 0 < self.max_payload < len(payload):  # The server would close the connection.
            self._connection.ping(reconnect=False)  # One that it has closed may have had another limit.
            raise EncodeError(
                f"an item of {len(payload)} bytes is too large: the server takes {self.max_payload}, because"
                " its 'max_allowed_packet' is lower than it was"
            )


class _OwnConnection(PipeliningConnection, _Connection):
    """A session of this library's own.

    :ivar idle_timeout: the server's variable.
    :ivar lock_timeout: the seconds that statements wait for a lock where a transaction has no others.
    """

    idle_timeout = ""
    lock_timeout = 1
    _idles = False
    _has_lock_timeout = False  # the transaction, of its own

    def __init__(self, connection: Any) -> None:
        _Connection.__init__(self, connection)
        super().__init__(connection._sock.fileno())

    def _send(self, steps: Sequence[Step]) -> list[Result]:
        try:
            return self._execute(steps)
        except LockedError as error:
            # A node that waits for what others have committed says the same, if that does not come.
            if self.is_cluster and not _is_in_transaction(self._connection):
                raise TryAgainError(str(error)) from error
            raise

    def defer_rows(self, text: str, rows: Sequence[Mapping[str, Any]]) -> Sequence[Deferred]:
        for row in rows:
            self._refuse_too_large(row)
        if self.is_cluster:
            # A node that joins or leaves changes the step of the ids, also that of sessions that are open.
            return [self._defer(Step(text, row, rows=1)) for row in rows]
        before, values, after = around_values(text)
        with self._cursor() as cursor:
            texts = [rendered(cursor, values, row) for row in rows]
        return [
            self._defer(Step(f"{before}{some}{after}", rows=count))
            for some, count in packets(texts, ", ", self.max_payload)
        ]

    def _beginning(self, sync: bool, lock_timeout: float | None, idles: bool) -> Sequence[str]:
        # No session of MySQL chooses how durable its commits are.
        texts = ["BEGIN"]
        if idles != self._idles:
            self._idles = idles
            seconds = _IDLES[self.idle_timeout] if idles else _IDLE_IN_TRANSACTION
            texts.insert(0, f"SET SESSION {self.idle_timeout} = {seconds}")
        self._has_lock_timeout = lock_timeout is not None
        if lock_timeout is not None:
            texts.insert(0, _SET_LOCK_TIMEOUT.format(_whole_seconds(lock_timeout)))
        return texts

    def _end(self, text: str) -> None:
        if not self._has_lock_timeout:
            super()._end(text)
            return
        # The server has no timeout of one transaction. The next statements of the session may wait longer.
        self._waiting.append(Step(text))
        self.run(_SET_LOCK_TIMEOUT.format(self.lock_timeout))
        self._has_lock_timeout = False

    def is_closed(self) -> bool:
        return not self._connection.open or super().is_closed()

    def close(self) -> None:
        self._waiter.close()
        with suppress(self._error):
            self._connection.close()

    def abandon(self) -> None:
        self._waiter.close()
        # If another thread was reading when the process forked, the lock of the reader is held for ever in
        # the child. So the reader is neither closed nor collected.
        connection = self._connection
        reader, connection._rfile = connection._rfile, None
        channel, connection._sock = connection._sock, None
        ABANDONED.append(reader)
        if channel is not None:
            os.close(channel.detach())


def _result(cursor: Any) -> Result:
    rows = list(cursor.fetchall()) if cursor.description else []
    return Result(rows, cursor.rowcount, cursor.lastrowid or 0)
