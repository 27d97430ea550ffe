"""Read a database without writing anything: for a user who may only read, or on a read-only file system.

Every read has a connection of its own, which costs 100 to 200 us. So neither a fork nor an interrupt nor the
removal of the database can leave anything in a wrong state, and a process that reads keeps no writer from
removing the log.

SQLite makes a log and its index for each connection to a database that has none, even for a connection that
may only read. So if there is no log, or an empty one, the connection takes the database for immutable, and
the read is repeated if a writer came meanwhile. If there is a log, its last writer may close the database,
and so remove the log, in the microseconds before SQLite opens it. Then SQLite leaves an empty log, which does
no harm and which the next writer removes.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any, NoReturn, TypeVar, cast

from persistcoll.disk.calls import storage_error
from persistcoll.disk.path_checks import refuse_network
from persistcoll.engine.forks import read_only_error
from persistcoll.errors import StorageError
from persistcoll.sqlite import driver, schema
from persistcoll.sqlite.counters import Counters
from persistcoll.sqlite.database_file import LOG, DatabaseFile
from persistcoll.sqlite.driver import Execute
from persistcoll.sqlite.dropped import dropped_error
from persistcoll.sqlite.statements import PairStatements

__all__ = ["ReadOnlyDatabase"]

T = TypeVar("T")
_TRIES = 100
_PAUSE = 0.001  # seconds


class ReadOnlyDatabase:
    """What takes the place of a :class:`~persistcoll.sqlite.database.Database` for a read-only collection.

    Any thread may use it without a lock, because nothing in it changes after the constructor. If a delay or a
    lease has ended, a process that writes has to make the record ready.

    :param read_through: called with the path, a query, and the function that executes the query through a
        connection of its own.
    :param purpose: what the read is for, for messages.
    """

    epoch = 0

    def __init__(
        self, source: DatabaseFile, read_through: Callable[..., Any], purpose: str = "look at"
    ) -> None:
        self.source = source
        self._read_through = read_through
        self._purpose = purpose
        self.path, self.disk = source.path, source.disk
        self.counters_by_number: dict[int, Counters] = {}
        self._status()
        if not source.allow_network_fs:
            refuse_network(os.path.dirname(self.path))

        def identify(execute: Execute) -> None:
            if source.first_table(execute) is None:
                raise source.empty(purpose)
            self.store_id = schema.store_id(execute)
            self.now = schema.clock(execute, may_set=False)

        with source.translated():
            self._read_through(self.path, identify, self._read_alone)

    def find(self, wanted: schema.Registration) -> tuple[int, int]:
        """Return number and version of that collection.

        Raises as :func:`~persistcoll.sqlite.schema.find`.
        """
        found = self.read_snapshot(lambda execute: schema.find(execute, wanted, self.path))
        if found is None:
            raise schema.no_collection(wanted.name, self.path, self._purpose)
        return found

    def _status(self) -> tuple[int, ...]:
        """Return a value that changes with the file; its last element tells whether there is a log."""
        found = self.source.existing(self._purpose)
        if not os.access(self.path, os.R_OK):
            raise storage_error(PermissionError(errno.EACCES, ""), "reading", self.path)
        return found.st_ino, found.st_size, found.st_mtime_ns, self._has_log()

    def _has_log(self) -> bool:
        return self.source.disk_usage((LOG,)) > 0

    def _read_alone(self, query: Callable[[Execute], T]) -> T:
        for attempt in range(_TRIES):
            before = self._status()
            logged = before[-1]
            try:
                connection = driver.connect_read_only(self.path, self.source.timeout, not logged)
                with closing(connection):
                    # Just before SQLite opens the log, because it would make a missing one.
                    if logged and not self._has_log():
                        continue
                    connection.execute(driver.BEGIN_READING)
                    found = query(connection.execute)
            except driver.ERRORS as error:
                # While another process makes the index anew, SQLite says that this connection cannot write.
                passes = "readonly" in str(error) or self._status() != before
                if passes and attempt < _TRIES - 1:
                    time.sleep(_PAUSE)
                    continue
                if logged and "unable to open" in str(error):
                    raise StorageError(
                        f"{self.path!r} has a log, {self.path + LOG!r}, and no index for it, which reading"
                        " cannot make: open it once without read_only=True, which copies the log into the"
                        " database",
                        errno.EROFS,
                    ) from error
                raise
            if logged or self._status() == before:
                return found
        raise StorageError(f"{self.path!r} is opened and closed again and again by others; read it later")

    def read_snapshot(self, query: Callable[[Execute], T]) -> T:
        """Return what ``query`` reads from one snapshot of what is committed."""
        try:
            return cast(T, self._read_through(self.path, query, self._read_alone))
        except driver.ERRORS as error:
            dropped = dropped_error(error, self.path, self)
            raise dropped or driver.translate(error, "reading", self.path) from error

    read = read_snapshot

    def consult(
        self, counters: Counters, query: Callable[[Execute, Counters], T], snapshot: bool = False
    ) -> T:
        """Return what ``query`` reads from one snapshot and from a collection's counters."""

        def run(execute: Execute) -> T:
            current = counters.new()
            current.load(execute)
            if not isinstance(counters.sql, PairStatements):
                current.next_due_at = None
            return query(execute, current)

        return self.read_snapshot(run)

    def fetch_one(self, text: str, parameters: Sequence[Any]) -> Any:
        """Return the first row that this statement finds in what is committed, or ``None``."""
        return self.read_snapshot(lambda execute: execute(text, parameters).fetchone())

    def change_token(self) -> object:
        """Return a value that differs from every earlier one, so that a thread that waits reads again."""
        return object()

    def warn_if_replaced(self) -> None:
        """Do nothing, because nothing was written that could be lost."""

    def _refuse(self, *arguments: object, **options: object) -> NoReturn:
        raise read_only_error(repr(self.path))

    write = transaction = shrink = checkpoint = begin = mark_dirty = executemany = _refuse
