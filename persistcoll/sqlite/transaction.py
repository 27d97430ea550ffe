"""A caller's transaction in a database: a block of operations that happen all at once, or not at all.

Its thread has the database's gate and the lock for writing all the while, and the mutex only for each
operation. So no other thread waits for the mutex longer than an operation takes, and a caller that finds a
transaction in the way waits for its end without any lock, for as long as it wants to.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING

from persistcoll.engine.forks import acquire_tracked
from persistcoll.engine.process import SAME, follow_fork
from persistcoll.errors import StorageError
from persistcoll.sqlite import driver
from persistcoll.sqlite.clock import steady
from persistcoll.sqlite.reading import REENTRANT
from persistcoll.sqlite.writer_lock import TransactionOpen

if TYPE_CHECKING:
    from persistcoll.sqlite.database import Database

__all__ = ["Transaction"]

_log = logging.getLogger("persistcoll")


class Transaction(AbstractContextManager[None]):
    """A transaction of the caller's in one database.

    An interrupt may come in where ``__exit__`` begins. Then the object ends the transaction when it goes.
    """

    def __init__(self, database: Database, sync: bool, timeout: float) -> None:
        self._held: list[threading.Lock] = []  # the gate, if this is no part of another transaction
        self._database = database
        self._sync = sync
        self._timeout = timeout
        self._overdue = float("inf")
        self._committed = False
        self._ticket = 0

    def __enter__(self) -> None:
        if not SAME[0]:
            follow_fork()
        if self._database._transaction_owner == threading.get_ident():
            return
        try:
            self._begin(time.monotonic() + self._timeout)
        except BaseException:
            self._end()
            raise

    def _begin(self, deadline: float) -> None:
        database = self._database
        me = threading.get_ident()
        if database._mutex_owner == me:
            raise StorageError(REENTRANT.format(database.path))
        left = min(max(0.0, deadline - time.monotonic()), threading.TIMEOUT_MAX)
        if not acquire_tracked(database._gate, left, self._held):
            raise database._obstacle().refusal(database.path)
        while True:
            with database._mutex:
                database._mutex_owner = me
                try:
                    database._check()
                    database._begin(transaction=True)
                    self._overdue = time.monotonic() + self._timeout
                    database._since = steady()
                    database._transaction = weakref.ref(self)  # weak: the object's end is the net
                    database._transaction_owner = me
                    return
                except TransactionOpen:
                    pass
                finally:
                    database._mutex_owner = None
            database._wait_out(deadline)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._held:
            return
        try:
            try:
                if kind is None:
                    self._commit()
            finally:
                self._end()
        except BaseException:
            self._end()  # it may have been interrupted
            raise
        if self._ticket:
            self._database._wal_sync.commit(self._ticket)
            self._database.check_files()

    def _commit(self) -> None:
        database = self._database
        me = threading.get_ident()
        with database._mutex:
            database._mutex_owner = me
            try:
                if database._transaction is None or database._transaction() is not self:  # in a forked child
                    database._check()
                if database._transaction_error is not None:
                    raise database._transaction_error
                # Only here: an error of the driver's out of the block is about a database of the caller's.
                try:
                    database._commit()
                except driver.ERRORS as error:
                    raise database._failure(error, "writing") from error
                self._committed = True
                self._ticket = database._draw_ticket() if self._sync else 0
            finally:
                database._mutex_owner = None

    def _end(self) -> None:
        """Let everybody else go on; what is not committed is rolled back. Idempotent."""
        if not self._held:
            return
        database = self._database
        me = threading.get_ident()
        with database._mutex:
            database._mutex_owner = me
            try:
                if self._held[0] is database._gate and database._opened is not None:
                    self._release(database)
            finally:
                database._mutex_owner = None
        gate = self._held[0]
        del self._held[:]
        gate.release()

    def _release(self, database: Database) -> None:
        self.warn_overdue()
        try:
            if not self._committed:
                database.epoch += 1
                database._dirty.clear()
                if database._connection.in_transaction:
                    database._execute(driver.ROLLBACK)
        finally:
            try:
                database._lock.end_transaction()
            finally:
                database._transaction = database._transaction_owner = database._transaction_error = None

    def warn_overdue(self) -> None:
        """Say once that it keeps others waiting for longer than they are ready to."""
        if time.monotonic() > self._overdue:
            self._overdue = float("inf")
            _log.warning(
                "a transaction in %r is open for longer than %s s; others that write wait for its end",
                self._database.path,
                self._timeout,
            )

    def __del__(self) -> None:
        if self._held and self._database._mutex_owner != threading.get_ident():
            self._end()
