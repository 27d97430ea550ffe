"""A caller's transaction: a block of operations that take effect all at once, or not at all.

Its thread holds the database's gate and the writer lock from the beginning to the end, and the database's
lock only for each operation. So no other thread waits for that lock longer than one operation takes. A caller
that finds a transaction open waits for its end without any lock, up to its own deadline.
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
# A serializer, a signal handler or a destructor tried to write: it would wait for its own thread, for ever.
REENTRANT = "{!r} cannot be written from within one of its own operations; nothing was done"


class OpenTransaction:
    """The caller's transaction that one database has open in this process, if there is one.

    The database's lock protects all fields except ``gate``. A thread compares ``owner`` with its own identity
    without that lock, because only the owner's thread sets and removes its own identity.

    :ivar gate: a lock that the transaction's thread holds from the beginning to the end. A thread that needs
        both takes it before the database's lock.
    :ivar owner: the identity of that thread.
    :ivar error: why the transaction is to be rolled back; ``None`` if nothing failed.
    :ivar since: when it began, by :func:`~persistcoll.sqlite.clock.steady`.
    """

    def __init__(self) -> None:
        self.gate = threading.Lock()
        self.owner: int | None = None
        self.error: StorageError | None = None
        self.since = 0.0
        # Weak, so that the destructor of a transaction that nobody ended can end it.
        self.reference: weakref.ref[Transaction] | None = None

    def obstacle(self) -> TransactionOpen:
        """Return the exception that says that this transaction is open."""
        return TransactionOpen(os.getpid(), self.since)

    def warn_overdue(self) -> None:
        """Call :meth:`Transaction.warn_overdue` of the open transaction, if there is one."""
        transaction = None if self.reference is None else self.reference()
        if transaction is not None:
            transaction.warn_overdue()

    def wait(self, seconds: float) -> None:
        """Wait for its end, at most so many seconds."""
        gate = self.gate
        held: list[threading.Lock] = []
        try:
            acquire_tracked(gate, min(seconds, threading.TIMEOUT_MAX), held)
        finally:
            if held:
                gate.release()


class Transaction(AbstractContextManager[None]):
    """A caller's transaction in one database.

    Only the thread that entered it uses it; the fields need no lock. An interrupt may come where ``__exit__``
    begins. Then the destructor ends the transaction.
    """

    def __init__(self, database: Database, sync: bool, timeout: float) -> None:
        self._held: list[threading.Lock] = []  # the gate; empty within another transaction of this thread
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
            self._end()  # again, because an interrupt may have ended the first call
            raise
        if self._ticket:
            self._database._wal_sync.commit(self._ticket)
            self._database.check_files()

    def _commit(self) -> None:
        database = self._database
        with database._lock.mutex:
            reference = database._transaction.reference
            if reference is None or reference() is not self:  # the transaction was inherited by a fork
                database._check()
            if database._transaction.error is not None:
                raise database._transaction.error
            # Only here: a driver's error out of the block may be about a database of the caller's own.
            try:
                database._commit()
            except driver.ERRORS as error:
                raise database._failure(error, "writing") from error
            self._committed = True
            self._ticket = database._draw_ticket() if self._sync else 0

    def _end(self) -> None:
        """Roll back what is not committed, and let other callers go on. Idempotent."""
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
        """Warn, once, that this transaction is open for longer than other callers wait for it."""
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
