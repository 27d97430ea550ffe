"""Looking into a database: at what the writing connection sees, or beside it, waiting for no writer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from copy import copy
from typing import Any, TypeVar

from persistcoll.engine.poison import Poison
from persistcoll.engine.process import SAME, follow_fork
from persistcoll.errors import StorageError
from persistcoll.sqlite import driver
from persistcoll.sqlite.counters import Counters
from persistcoll.sqlite.database_file import MEMORY, DatabaseConnection, DatabaseFile
from persistcoll.sqlite.driver import Connection, Execute
from persistcoll.sqlite.readers import ReaderPool
from persistcoll.sqlite.rest import Restable
from persistcoll.sqlite.writer_lock import NoLock, WriterLock

__all__ = ["REENTRANT", "Readable"]

T = TypeVar("T")
# By a serializer, a signal handler, or the destructor of a forgotten container: waiting would be for ever.
REENTRANT = "{!r} cannot be written from within one of its own operations; nothing was done"
_CUT_SHORT = "{!r}: an operation within the transaction was interrupted; nothing of the transaction is stored"


class Readable(Restable):
    """The part of a database that looks.

    :ivar epoch: grows whenever what was remembered of the database may not be true any more.
    """

    source: DatabaseFile
    epoch: int
    _connection: Any
    _execute: Execute
    _lock: WriterLock | NoLock
    _opened: DatabaseConnection | None
    _readers: ReaderPool
    _poison: Poison
    _transaction_error: StorageError | None  # what the caller's transaction is to be rolled back for

    def _check(self) -> None:
        raise NotImplementedError

    def check_files(self) -> None:
        raise NotImplementedError

    def _wait_out(self, deadline: float) -> None:
        raise NotImplementedError

    def _warn_overdue(self) -> None:
        raise NotImplementedError

    def _failure(self, error: Exception, doing: str) -> StorageError:
        raise NotImplementedError

    def consult(self, counters: Counters, look: Callable[[Execute, Counters], T], moment: bool = False) -> T:
        """``look`` at what is committed, and at a table's numbers.

        What this thread or a transaction has the writing connection for is looked at beside it, with another
        counters: a look waits for no transaction, and not for its own thread.

        :param moment: all that is read is of one moment.
        """
        if not SAME[0]:
            follow_fork()
        me = threading.get_ident()
        if self._mutex_owner != me:
            with self._mutex:
                self._mutex_owner = me
                try:
                    if self._poison.failure is not None or self._opened is None:
                        self._check()
                    if self._transaction_owner is None:
                        return self._consult(counters, look, moment)
                    if self._transaction_owner == me:
                        return self._join(lambda execute: look(execute, self._load(counters, execute)))
                finally:
                    self._mutex_owner = None
        return self._consult_beside(counters, look)

    def _consult(self, counters: Counters, look: Callable[[Execute, Counters], T], moment: bool) -> T:
        execute = self._execute
        try:
            if not self._lock.unchanged():
                self.epoch += 1
            if not moment:
                return look(execute, self._load(counters, execute))
            try:
                execute(driver.BEGIN_READING)
                # Another process may have written since the look at the lock.
                return look(execute, self._load(Counters(counters.sql), execute))
            finally:
                if self._connection.in_transaction:
                    execute(driver.ROLLBACK)
        except driver.ERRORS as error:
            raise self._failure(error, "reading") from error

    def _consult_beside(self, counters: Counters, look: Callable[[Execute, Counters], T]) -> T:
        if self.path != MEMORY:
            return self.look(lambda execute: look(execute, self._stored(Counters(counters.sql), execute)))
        if self._mutex_owner != threading.get_ident():
            self._wait_out(time.monotonic() + self.source.timeout)
            return self.consult(counters, look)
        # In memory there is no other connection. This one's own cursor may be in the middle of an answer.
        execute = self._connection.execute
        return look(execute, self._stored(copy(counters), execute))

    def _stored(self, counters: Counters, execute: Execute) -> Counters:
        """The counters as it is stored: what is due is left to a caller that can write."""
        if counters.epoch < 0:
            self._load(counters, execute)
        counters.next_due_at = None
        return counters

    def _load(self, counters: Counters, execute: Execute) -> Counters:
        """The counters with the numbers of this moment."""
        if counters.epoch != self.epoch:
            counters.load(execute)
            counters.epoch = self.epoch
        return counters

    def _join(self, run: Callable[[Execute], T]) -> T:
        """With the mutex held: an operation of the thread that has the transaction."""
        if self._transaction_error is not None:
            raise self._transaction_error
        self._warn_overdue()
        before = self._connection.total_changes
        try:
            return run(self._execute)
        except driver.ERRORS as error:
            # SQLite may have rolled back the whole transaction, so that what follows would be done alone; or
            # its last statement only, behind others of the same operation. Neither can go on.
            self._transaction_error = self._failure(error, "using")
            raise self._transaction_error from error
        except BaseException:
            if self._connection.total_changes != before:
                self._transaction_error = StorageError(_CUT_SHORT.format(self.path))
            raise

    def read(self, look: Callable[[Execute], T]) -> T:
        """``look`` at what is committed; it reads with one statement what has to be of one moment."""
        return self.consult(Counters(None), lambda execute, _: look(execute))

    def first(self, text: str, parameters: Sequence[Any]) -> Any:
        """The first row that this statement finds in what is committed, or ``None``. Waits for no writer."""
        if not SAME[0]:
            follow_fork()
        if self._reads_here():
            return self.read(lambda execute: execute(text, parameters).fetchone())
        try:
            return self._readers.first(text, parameters)
        except driver.ERRORS as error:
            raise self._failure(error, "reading") from error

    def look(self, look: Callable[[Execute], T]) -> T:
        """``look`` at what is committed at one moment. Waits for no writer."""
        if not SAME[0]:
            follow_fork()
        if self._reads_here():
            return self.read(look)
        try:
            return self._readers.read(look)
        except driver.ERRORS as error:
            raise self._failure(error, "reading") from error

    def _reads_here(self) -> bool:
        """Through the writing connection: a transaction sees what it did; in memory there is no other one."""
        if self.path == MEMORY:
            return True
        return (
            self._transaction_owner is not None
            and self._transaction_owner == threading.get_ident() != self._mutex_owner
        )

    def _connect_reader(self, add: Callable[[Connection], None]) -> None:
        me = threading.get_ident()
        if self._mutex_owner == me:  # a signal handler or a destructor looks within an operation
            if self._opened is None:
                raise StorageError(REENTRANT.format(self.path))
            self._add_reader(add)
            return
        with self._mutex:
            self._mutex_owner = me
            try:
                self._add_reader(add)
            finally:
                self._mutex_owner = None

    def _add_reader(self, add: Callable[[Connection], None]) -> None:
        self._check()
        connection = driver.connect_reader(self.path, self.source.timeout)
        try:
            self.check_files()  # it is of the same file
        except BaseException:
            connection.close()
            raise
        add(connection)

    def change_token(self) -> object:
        """Differs from an earlier one when somebody else has written since."""
        if not SAME[0]:
            follow_fork()
        # Within its own transaction a thread is alone; the watcher's user may be waiting for the end of it.
        me = threading.get_ident()
        if self.path == MEMORY or me in (self._mutex_owner, self._transaction_owner):
            return self.epoch
        if self._watcher.user == me:  # a signal handler's: it looks, and is asked again
            return object()
        try:
            return self._watcher.change_token()
        except driver.ERRORS as error:
            raise self._failure(error, "reading") from error
