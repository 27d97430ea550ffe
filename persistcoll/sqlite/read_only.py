"""Looking at a database without writing anything: for a user who may only read, on a read-only file system.

Every look has a connection of its own, which costs 100 to 200 us. So there is nothing that a fork, an
interrupt or the removal of the database could leave in a wrong state, and a process that looks keeps no
writer from removing the log.

SQLite makes a log, and an index for it, for each connection to a database that has none, also for one that
may only read. So where there is no log, or nothing in it, the connection takes the file for immutable, and
the look is repeated if a writer came meanwhile. Where there is a log, its last writer may close, and so
remove it, in the microseconds before SQLite looks for it. Then SQLite leaves an empty one, which harms
nothing and which the next writer removes.
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
from persistcoll.sqlite.statements import RecordStatements

__all__ = ["ReadOnlyDatabase"]

T = TypeVar("T")
_TRIES = 100
_PAUSE = 0.001  # seconds


class ReadOnlyDatabase:
    """In the place of a :class:`~persistcoll.sqlite.database.Database` for a collection that only looks.

    From any thread. What is due, because a delay or a lease has ended, is left to a process that writes.

    :param purpose: what the look is for, for messages.
    :param look_through: called with the path, a look and what looks by a connection of its own.
    """

    epoch = 0

    def __init__(
        self, source: DatabaseFile, look_through: Callable[..., Any], purpose: str = "look at"
    ) -> None:
        self.source = source
        self._look_through = look_through
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
            self._look_through(self.path, identify, self._look)

    def find(self, wanted: schema.Registration) -> int:
        """The number of that collection. Raises as :func:`~persistcoll.sqlite.schema.find`."""
        number = self.look(lambda execute: schema.find(execute, wanted, self.path))
        if number is None:
            raise schema.no_collection(wanted.name, self.path, self._purpose)
        return number

    def _status(self) -> tuple[int, ...]:
        """Differs from an earlier one when the file has changed since; at last, whether there is a log."""
        found = self.source.existing(self._purpose)
        if not os.access(self.path, os.R_OK):
            raise storage_error(PermissionError(errno.EACCES, ""), "reading", self.path)
        return found.st_ino, found.st_size, found.st_mtime_ns, self._has_log()

    def _has_log(self) -> bool:
        return self.source.occupied((LOG,)) > 0

    def _look(self, look: Callable[[Execute], T]) -> T:
        for tried in range(_TRIES):
            before = self._status()
            logged = before[-1]
            try:
                connection = driver.connect_read_only(self.path, self.source.timeout, not logged)
                with closing(connection):
                    if logged and not self._has_log():  # as late as can be: SQLite would make one
                        continue
                    connection.execute(driver.BEGIN_READING)
                    found = look(connection.execute)
            except driver.ERRORS as error:
                if tried < _TRIES - 1 and self._status() != before:
                    time.sleep(_PAUSE)
                    continue
                if logged and "unable to open" in str(error):
                    raise StorageError(
                        f"{self.path!r} has a log, {self.path + LOG!r}, and no index for it, which cannot be"
                        " made by looking: open it once without read_only=True, which takes over what the"
                        " log holds",
                        errno.EROFS,
                    ) from error
                raise
            if logged or self._status() == before:
                return found
        raise StorageError(f"{self.path!r} is opened and closed again and again by others; look later")

    def look(self, look: Callable[[Execute], T]) -> T:
        """``look`` at what is committed at one moment."""
        try:
            return cast(T, self._look_through(self.path, look, self._look))
        except driver.ERRORS as error:
            raise driver.translate(error, "reading", self.path) from error

    read = look

    def consult(self, counters: Counters, look: Callable[[Execute, Counters], T], moment: bool = False) -> T:
        """``look`` at what is committed at one moment, and at a table's numbers."""

        def run(execute: Execute) -> T:
            present = Counters(counters.sql)
            present.load(execute)
            if isinstance(counters.sql, RecordStatements):
                present.next_due_at = None
            return look(execute, present)

        return self.look(run)

    def first(self, text: str, parameters: Sequence[Any]) -> Any:
        """The first row that this statement finds in what is committed, or ``None``."""
        return self.look(lambda execute: execute(text, parameters).fetchone())

    def version(self) -> object:
        """Differs from every earlier one: whoever waits looks again."""
        return object()

    def warn_if_replaced(self) -> None:
        """Nothing: nothing was written that could be lost."""

    def _refuse(self, *arguments: object, **options: object) -> NoReturn:
        raise read_only_error(repr(self.path))

    write = transaction = shrink = begin = changed = executemany = _refuse
