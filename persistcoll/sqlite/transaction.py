"""A caller's transaction in a database: a block of operations that happen all at once, or not at all.

Its thread has the database's gate and the lock for writing all the while, and the mutex only for each
operation. So no other thread waits for the mutex longer than an operation takes, and a caller that finds a
transaction in the way waits for its end without any lock, for as long as it wants to.
"""

from __future__ import annotations

import logging
import os
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
from persistcoll.sqlite.writer_lock import TransactionOpen

if TYPE_CHECKING:
    from persistcoll.sqlite.database import Database

__all__ = ["REENTRANT", "OpenTransaction", "Transaction"]

_log = logging.getLogger("persistcoll")
# By a serializer, a signal handler, or the destructor of a forgotten container: waiting would be for ever.
REENTRANT = "{!r} cannot be written from within one of its own operations; nothing was done"


class OpenTransaction:
    """The caller's transaction that one database has open in this process, if there is one.

    The database's lock protects all fields. A thread compares ``owner`` with its own identity without the
    lock, because nobody else sets or removes that.

    :ivar gate: what the transaction's thread has from its beginning to its end, taken before the lock.
    :ivar owner: that thread, which has the lock for each operation only.
    :ivar error: what the transaction is to be rolled back for.
    :ivar since: its beginning, by :func:`~persistcoll.sqlite.clock.steady`.
    """

    def __init__(self) -> None:
        self.gate = threading.Lock()
        self.owner: int | None = None
        self.error: StorageError | None = None
        self.since = 0.0
        self.reference: weakref.ref[Transaction] | None = None  # weak: its destructor ends what nobody ended

    def obstacle(self) -> TransactionOpen:
        """What says that it is in the way."""
        return TransactionOpen(os.getpid(), self.since)

    def warn_overdue(self) -> None:
        """:meth:`Transaction.warn_overdue`, if there is one."""
        transaction = None if self.reference is None else self.reference()
        if transaction is not None:
            transaction.warn_overdue()

    def wait(self, seconds: float) -> None:
        """Wait for its end, so long at most."""
        gate = self.gate
        held: list[threading.Lock] = []
        try:
            acquire_tracked(gate, min(seconds, threading.TIMEOUT_MAX), held)
        finally:
            if held:
                gate.release()


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
        if self._database._transaction.owner == threading.get_ident():
            return
        try:
            self._begin(time.monotonic() + self._timeout)
        except BaseException:
            self._end()
            raise

    def _begin(self, deadline: float) -> None:
        database = self._database
        if database._lock.is_owned():
            raise StorageError(REENTRANT.format(database.path))
        remaining = min(max(0.0, deadline - time.monotonic()), threading.TIMEOUT_MAX)
        if not acquire_tracked(database._transaction.gate, remaining, self._held):
            raise database._transaction.obstacle().refusal(database.path)
        while True:
            with database._lock.mutex:
                try:
                    database._check()
                    database._begin(transaction=True)
                    self._overdue = time.monotonic() + self._timeout
                    database._transaction.since = steady()
                    database._transaction.reference = weakref.ref(self)
                    database._transaction.owner = threading.get_ident()
                    return
                except TransactionOpen:
                    pass
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
        with database._lock.mutex:
            reference = database._transaction.reference
            if reference is None or reference() is not self:  # in a forked child
                database._check()
            if database._transaction.error is not None:
                raise database._transaction.error
            # Only here: an error of the driver's out of the block is about a database of the caller's.
            try:
                database._commit()
            except driver.ERRORS as error:
                raise database._failure(error, "writing") from error
            self._committed = True
            self._ticket = database._draw_ticket() if self._sync else 0

    def _end(self) -> None:
        """Let everybody else go on; what is not committed is rolled back. Idempotent."""
        if not self._held:
            return
        database = self._database
        with database._lock.mutex:
            if self._held[0] is database._transaction.gate and database._opened is not None:
                self._release(database)
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
                database._writer_lock.end_transaction()
            finally:
                ended = database._transaction
                ended.reference = ended.owner = ended.error = None

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
        if self._held and not self._database._lock.is_owned():
            self._end()
