"""A caller's transaction: a block of operations that take effect all at once, or not at all.

Its thread holds the database's gate and the writer lock from the beginning to the end, and the database's
lock only for each operation. So no other thread waits for that lock longer than one operation takes. A caller
that finds a transaction open waits for its end without any lock, up to its own deadline.

A transaction belongs to a thread, and to the asyncio task or greenlet that began it. Another task of the same
thread is refused at once: the thread that it would wait in is the one that has to end the transaction.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from persistcoll.engine.forks import acquire_tracked
from persistcoll.engine.process import SAME, follow_fork
from persistcoll.engine.tasks import current_task
from persistcoll.engine.transaction_hooks import OPEN, TransactionHooks
from persistcoll.errors import LockedError, StorageError
from persistcoll.sqlite import driver
from persistcoll.sqlite.clock import steady
from persistcoll.sqlite.driver import Execute
from persistcoll.sqlite.writer_lock import TransactionOpen

if TYPE_CHECKING:
    from persistcoll.sqlite.database import Database

__all__ = ["REENTRANT", "OpenTransaction", "Transaction"]

T = TypeVar("T")
_log = logging.getLogger("persistcoll")
# A serializer, a signal handler or a destructor tried to write: it would wait for its own thread, for ever.
REENTRANT = "{!r} cannot be written from within one of its own operations; nothing was done"
_OTHER_TASK = (
    "{!r}: another task of this thread has had a transaction open for {:.1f} s; nothing was done. A task must"
    " leave the block of its transaction before it awaits anything, because only this thread can end it"
)

_CUT_SHORT = "{!r}: an operation within the transaction was interrupted; nothing of the transaction is stored"
_ROLLED_BACK_BY_CALLER = (
    "{!r}: a statement of the caller's own has rolled back the transaction, or a savepoint that came before"
    " an operation of a collection; nothing of the transaction is stored"
)


class OpenTransaction:
    """The caller's transaction that one database has open in this process, if there is one.

    The database's lock protects all fields except ``gate``. A thread compares ``owner`` with its own identity
    without that lock, because only the owner's thread sets and removes its own identity. The other fields it
    may read if it is the owner.

    :ivar gate: a lock that the transaction's thread holds from the beginning to the end. A thread that needs
        both takes it before the database's lock.
    :ivar owner: the identity of that thread.
    :ivar hooks: what follows the end of the transaction. They are empty if no transaction is open, because
        the hooks of the last one must not follow the end of one that could not begin.
    :ivar error: why the transaction is to be rolled back; ``None`` if nothing failed.
    :ivar abandoned: a transaction that was forgotten within an operation, at whose end it ends.
    :ivar is_ending: the hooks are being called, and none can be added.
    :ivar sync: whether it is to be on the device when it has ended.
    :ivar since: when it began, by :func:`~persistcoll.sqlite.clock.steady`.
    """

    def __init__(self) -> None:
        self.gate = threading.Lock()
        self.owner: int | None = None
        self.error: StorageError | None = None
        self.is_ending = False
        self.sync = False
        self.abandoned: Transaction | None = None
        self.since = 0.0
        self.hooks = TransactionHooks()
        # Weak, so that the destructor of a transaction that nobody ended can end it.
        self.reference: weakref.ref[Transaction] | None = None
        # Weak, because the frames of a forgotten thread or task hold its transaction.
        self._thread: weakref.ref[threading.Thread] | None = None
        self._task: weakref.ref[Any] | None = None

    def begin(self, transaction: Transaction) -> None:
        """Make ``transaction`` the open one, of this thread and task."""
        task = current_task()
        self._task = None if task is None else weakref.ref(task)
        self._thread = weakref.ref(threading.current_thread())
        self.is_ending = False
        self.sync = transaction.sync
        OPEN.append(self.hooks)
        self.since = steady()
        self.reference = weakref.ref(transaction)
        self.owner = threading.get_ident()

    def end(self) -> None:
        """Have no transaction open any more. Idempotent."""
        self.reference = self.owner = self.error = self.abandoned = self._task = None
        with suppress(ValueError):
            OPEN.remove(self.hooks)
        self.hooks = TransactionHooks()

    def is_of_this_task(self) -> bool:
        """Tell whether this thread and this task have it open."""
        if self.owner is None or self.owner != threading.get_ident():
            return False
        # The identity of a thread that has ended is used again.
        if self._thread is None or self._thread() is not threading.current_thread():
            return False
        task = current_task()
        return task is None if self._task is None else task is not None and self._task() is task

    def refuse_other_task(self, path: str) -> None:
        """Raise ``LockedError`` if another task of this thread has it open. The thread is the owner."""
        if not self.is_of_this_task():
            age = max(0.0, steady() - self.since)
            raise LockedError(_OTHER_TASK.format(path, age), os.getpid())

    def join(
        self, database: Database, run: Callable[[Execute], T], after: Callable[[T], Any] | None = None
    ) -> T:
        """Execute ``run`` as an operation of the transaction, then ``after`` with what it returned."""
        if self.error is not None:
            raise self.error
        self.warn_overdue()
        connection = database._connection
        before = connection.total_changes
        database.keep_changes()
        try:
            if not connection.begin_operation():
                self.error = StorageError(_ROLLED_BACK_BY_CALLER.format(database.path))
                raise self.error
            value = run(database._execute)
            if connection.total_changes != before:
                connection.count_operation()
            if after is not None:
                after(value)
            return value
        except driver.ERRORS as error:
            raise self._fail(database, error) from error
        except BaseException as error:
            if self.error is None and connection.total_changes != before:
                if not database.is_refusal(error):
                    self.error = StorageError(_CUT_SHORT.format(database.path))
                else:
                    try:
                        connection.count_operation()
                    except driver.ERRORS as failure:
                        raise self._fail(database, failure) from failure
            raise
        finally:
            connection.end_operation()
            if self.abandoned is not None:
                self.abandoned._finish()

    def _fail(self, database: Database, error: Exception) -> StorageError:
        # SQLite may have rolled back the whole transaction: what follows would be committed without it. Or it
        # rolled back one statement of several: the operation is half done. Neither can go on.
        self.error = database._failure(error, "using")
        return self.error

    def obstacle(self) -> TransactionOpen:
        """Return the exception that says that this transaction is open."""
        return TransactionOpen(os.getpid(), self.since, True)

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


class Transaction(AbstractContextManager[driver.Connection]):
    """A caller's transaction in one database. Its block is given the connection, for the caller's own tables.

    Only the thread that entered it uses it; the fields need no lock. An interrupt may come where ``__exit__``
    begins. Then the destructor ends the transaction.
    """

    _held: list[threading.Lock] = []  # noqa: RUF012 - for the destructor of one that was never made

    def __init__(self, database: Database, sync: bool, timeout: float) -> None:
        self._held: list[threading.Lock] = []  # the gate; empty within another transaction of this thread
        self._database = database
        self.sync = sync
        self._timeout = timeout
        self._overdue = float("inf")
        self._committed = False
        self._undone = self._ended = False
        self._ticket = 0

    def __enter__(self) -> driver.Connection:
        if not SAME[0]:
            follow_fork()
        database = self._database
        if database._transaction.owner == threading.get_ident():
            database._transaction.refuse_other_task(database.path)
            return database._connection
        try:
            self._begin(time.monotonic() + self._timeout)
        except BaseException:
            self._end()
            raise
        return database._connection

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
                    database._committing = False
                    database._check()
                    database._begin(transaction=True)
                    database._connection.lend()
                    self._overdue = time.monotonic() + self._timeout
                    database._transaction.begin(self)
                    return
                except TransactionOpen:
                    pass
                except BaseException:
                    # Before another thread has the lock, because it would find a transaction without an
                    # owner, and begin its own within it.
                    if database._opened is not None:
                        self._roll_back(database)
                    raise
            database._wait_out(deadline)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._held:
            return
        hooks = self._database._transaction.hooks
        try:
            try:
                if kind is None:
                    self._commit()
            finally:
                self._end()
        except BaseException:
            self._end()  # again, because an interrupt may have ended the first call
            raise
        finally:
            if self._ticket:
                self._database._wal_sync.commit(self._ticket)
                self._database.check_files()
        if self._committed:
            hooks.released()

    def _commit(self) -> None:
        database = self._database
        with database._lock.mutex:
            reference = database._transaction.reference
            if reference is None or reference() is not self:  # the transaction was inherited by a fork
                database._check()
            database._transaction.refuse_other_task(database.path)
            database._transaction.join(database, lambda execute: None)
            database._connection.take_back()
            # Only here: a driver's error out of the block may be about a database of the caller's own.
            try:
                database._commit()
            except driver.ERRORS as error:
                # Kept, so that _roll_back() does not take this for an interrupt after the commit.
                database._transaction.error = database._failure(error, "writing")
                raise database._transaction.error from error
            self._committed = True
            self._ticket = database._draw_ticket() if database._transaction.sync else 0

    def _end(self) -> None:
        """Roll back what is not committed, undo it, and let other callers go on. Idempotent."""
        if self._held and self._database._lock.is_owned():
            # The garbage collector came within an operation of this thread, which must come to its end.
            self._database._transaction.abandoned = self
        elif self._held:
            self._finish()

    def _finish(self) -> None:
        database = self._database
        gate = self._held[0]
        # After a fork the gate is another one, and the parent ends the transaction.
        if gate is database._transaction.gate and database._opened is not None and not self._ended:
            try:
                self._undo(database)
            except BaseException:
                self._undo(database)  # again, because an interrupt may have ended the first call
                raise
            finally:
                with database._lock.mutex:
                    self._release(database)
        del self._held[:]
        gate.release()

    def _undo(self, database: Database) -> None:
        """Roll back what is not committed, then call the hooks of either end. Idempotent."""
        if self._undone:
            return
        with database._lock.mutex:
            self._roll_back(database)
        # Without the database's lock, because the hooks take the locks of collections. No other caller can
        # write before the transaction has ended, and find what is not undone yet.
        transaction = database._transaction
        transaction.is_ending = True
        if self._committed:
            transaction.hooks.committed()
        else:
            transaction.hooks.rolled_back()
        self._undone = True

    def _roll_back(self, database: Database) -> None:
        self.warn_overdue()
        database._connection.take_back()
        if self._committed:
            return
        in_transaction = database._connection.in_transaction
        if database._committing and not in_transaction and database._transaction.error is None:
            self._committed = True  # an interrupt came directly after the commit
            self._ticket = database._draw_ticket() if database._transaction.sync else 0
        else:
            database.epoch += 1
            database._dirty.clear()
            if in_transaction:
                database._execute(driver.ROLLBACK)

    def _release(self, database: Database) -> None:
        try:
            database._writer_lock.end_transaction()
        except OSError as error:
            raise database._poison.unlock_failed(database.path, error) from error
        finally:
            database._transaction.end()
            self._ended = True

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
