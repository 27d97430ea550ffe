"""Looking into a database: at what the writing connection sees, or beside it, waiting for no writer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

from persistcoll.errors import StorageError
from persistcoll.tables import sqlite
from persistcoll.tables.dialect import Connection, Execute
from persistcoll.tables.readers import Readers
from persistcoll.tables.rest import Restable
from persistcoll.tables.source import MEMORY, Opened, Source
from persistcoll.tables.sqlite import SQLite
from persistcoll.tables.writer_lock import NoLock, WriterLock

__all__ = ["REENTRANT", "Readable"]

T = TypeVar("T")
# By a serializer, a signal handler, or the destructor of a forgotten container: waiting would be for ever.
REENTRANT = "{!r} cannot be used from within one of its own operations"


class Readable(Restable):
    """The part of a database that looks.

    :ivar epoch: grows whenever what was remembered of the database may not be true any more.
    """

    source: Source
    dialect: SQLite
    epoch: int
    _connection: Any
    _execute: Execute
    _lock: WriterLock | NoLock
    _opened: Opened | None
    _readers: Readers
    _trouble: StorageError | None
    _failed: StorageError | None  # what the caller's transaction is to be rolled back for

    def _check(self) -> None:
        raise NotImplementedError

    def _failure(self, error: Exception, doing: str) -> StorageError:
        raise NotImplementedError

    @contextmanager
    def _using(self) -> Iterator[None]:
        """The connection is this thread's."""
        me = threading.get_ident()
        if self._user == me:
            raise StorageError(REENTRANT.format(self.path))
        with self._mutex:
            self._user = me
            try:
                yield
            finally:
                self._user = None

    def _within(self, run: Callable[[Execute], T]) -> T:
        if self._failed is not None:
            raise self._failed
        try:
            return run(self._execute)
        except self.dialect.Error as error:
            # SQLite may have rolled back the whole transaction, so that what follows would be done alone; or
            # its last statement only, behind others of the same operation. Neither can go on.
            self._failed = self._failure(error, "using")
            raise self._failed from error

    def read(self, look: Callable[[Execute], T]) -> T:
        """``look`` at what is committed; it reads with one statement what has to be of one moment."""
        if self._alone is not None and self._alone == threading.get_ident():
            return self._within(look)
        # As _using() does it: a microsecond less for each qsize().
        me = threading.get_ident()
        if self._user == me:
            raise StorageError(REENTRANT.format(self.path))
        with self._mutex:
            self._user = me
            try:
                if self._trouble is not None or self._opened is None:
                    self._check()
                if not self._lock.unchanged():
                    self.epoch += 1
                return look(self._execute)
            except self.dialect.Error as error:
                raise self._failure(error, "reading") from error
            finally:
                self._user = None

    def first(self, text: str, parameters: Sequence[Any]) -> Any:
        """The first row that this statement finds in what is committed, or ``None``. Waits for no writer."""
        if self.path == MEMORY or (self._alone is not None and self._alone == threading.get_ident()):
            return self.read(lambda execute: execute(text, parameters).fetchone())
        try:
            return self._readers.first(text, parameters)
        except self.dialect.Error as error:
            raise self._failure(error, "reading") from error

    def look(self, look: Callable[[Execute], T]) -> T:
        """``look`` at what is committed at one moment. Waits for no writer."""
        if self.path == MEMORY or (self._alone is not None and self._alone == threading.get_ident()):
            return self.read(look)
        try:
            return self._readers.read(look)
        except self.dialect.Error as error:
            raise self._failure(error, "reading") from error

    def _connect_reader(self, add: Callable[[Connection], None]) -> None:
        with self._using():
            self._check()
            add(self.dialect.connect_reader(self.path, self.source.timeout))

    def moment(self) -> AbstractContextManager[None]:
        """Within ``read``: what several statements read is of one moment."""
        return sqlite.moment(self._connection)

    def version(self) -> object:
        """Differs from an earlier one when somebody else has written since."""
        # Within its own transaction a thread is alone; the watcher's user may be waiting for the end of it.
        if self.path == MEMORY or self._user == threading.get_ident():
            return self.epoch
        if self.used_here():
            raise StorageError(REENTRANT.format(self.path))
        try:
            return self._watcher.version()
        except self.dialect.Error as error:
            raise self._failure(error, "reading") from error
