"""Use one database file in this process: the connection that writes, and the order in which threads use it.

All containers of a process on one file share it. Threads that write at the same time are combined: one of
them runs the operations of all that wait, in one transaction. The writers of different processes queue for
the file's :class:`~persistcoll.sqlite.writer_lock.WriterLock`.

A write that has to survive a power cut is committed first, without a sync. Then one of the threads that wait
syncs the write-ahead log for all of them, and holds no lock meanwhile: other threads and processes go on
writing. With SQLite's own ``synchronous=FULL`` a writer keeps all others waiting while it syncs: 8 processes
make 0.7 times as many writes as 1 and wait 33 to 49 ms at most, this way 1.1 to 1.3 times and 12 to 19 ms.

This module is long because one lock protects nearly all of it, and the order of the calls under that lock
keeps an operation that an interrupt ends from leaving a wrong state.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable, Sequence
from copy import copy
from functools import partial
from typing import Any, TypeVar

from persistcoll.disk.calls import storage_error
from persistcoll.disk.group_commit import GroupCommit
from persistcoll.engine.combining import Combiner
from persistcoll.engine.forks import (
    FORK_TIMEOUT,
    acquire_tracked,
    fork_was_seen,
    register_quiescent,
    timeout_left,
    unregister_quiescent,
)
from persistcoll.engine.process import SAME, follow_fork
from persistcoll.engine.transaction_hooks import TransactionHooks
from persistcoll.errors import ClosedError, StorageError, StoreReplacedError
from persistcoll.sqlite import driver
from persistcoll.sqlite.counters import Counters
from persistcoll.sqlite.database_file import LOG, MEMORY, DatabaseConnection, DatabaseFile
from persistcoll.sqlite.driver import Connection, Execute, leak
from persistcoll.sqlite.dropped import dropped_error
from persistcoll.sqlite.maintenance import maintain
from persistcoll.sqlite.owned_lock import OwnedLock, release_all
from persistcoll.sqlite.readers import DatabasePoison, ReaderPool
from persistcoll.sqlite.transaction import REENTRANT, OpenTransaction, Transaction
from persistcoll.sqlite.wal_space import WALPreallocator
from persistcoll.sqlite.watcher import ChangeWatcher
from persistcoll.sqlite.write_requests import WriteRequest, run_batch
from persistcoll.sqlite.writer_lock import TransactionOpen, identity_of

__all__ = ["REMEDY", "UNSEEN", "Database"]

T = TypeVar("T")
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.0005, 0.01  # seconds
_logger = logging.getLogger("persistcoll")
REMEDY = "close all that this process has open in that file, and open it again"
_FORKED = "{!r} cannot be used by a process that was forked within a transaction"
UNSEEN = (
    "{!r} was open in the process that this one was forked from, and Python was not told of the fork (os.fork"
    " and multiprocessing tell it): SQLite would take that one's locks for its own. Nothing was done; open"
    " it after the fork only (uWSGI: lazy-apps)"
)


def _nothing(execute: Execute) -> None:
    """Change nothing, in a transaction that is followed by the sync of what others changed."""


class Database:
    """A database that this process has open, for use by any thread.

    ``_lock`` protects the connection that writes and the fields that say what it does: ``_opened`` and what
    :meth:`_use` sets, ``_transaction``, ``_dirty``, ``_committing``, ``_last_change``, ``_whole_changes``,
    ``_wal_needs_space`` and the counters. A thread that needs several locks takes the gate of
    ``_transaction`` first, then the lock of ``_watcher``, then ``_lock``.

    ``epoch``, ``_poison``, ``_is_closing`` and ``_is_writing`` are set under ``_lock`` and also read without
    it, as hints: before a thread acts on one, it reads it again under the lock. Two fields are changed
    without it, too: ``_watched`` loses an entry by one atomic call, and a failed sync or a replaced file sets
    ``_poison``. The registry's lock protects ``users``. Only the thread that forks uses ``_is_quiesced`` and
    ``_held``.

    :ivar counters_by_number: the counters of its collections, by their numbers.
    :ivar users: how many handles use it; the registry counts them.
    :ivar epoch: grows whenever what was remembered of the database's content may be wrong.
    """

    def __init__(self, source: DatabaseFile) -> None:
        self.source = source
        self.path, self.disk = source.path, source.disk
        self.epoch = 0
        self.counters_by_number: dict[int, Counters] = {}
        self.users = 0
        self._is_closing = False
        self._reset()
        self._use(source.open())
        register_quiescent(self)

    def _reset(self) -> None:
        self.epoch += 1
        self._combiner = Combiner[WriteRequest[Any]](partial(run_batch, self))
        self._lock = OwnedLock()
        self._is_writing = False  # a thread writes under the lock; a hint for the other threads
        self._wal_preallocator = WALPreallocator(self.disk)
        self._wal_needs_space = False  # the next commit extends the log first
        self._watcher = ChangeWatcher(self._connect_reader)
        self._readers = ReaderPool(self._connect_reader)
        self._poison = DatabasePoison(self._readers)
        self._wal_sync = GroupCommit(self.disk, self.path + LOG, self._poison)
        self._dirty: dict[Counters, None] = {}
        self._transaction = OpenTransaction()
        self._committing = False
        self._whole_changes = 0  # the changes of the connection up to here may be committed as they are
        self._opened: DatabaseConnection | None = None
        self._watched: dict[str, tuple[int, int]] = {}  # those of every database, and the files of holders
        self._is_quiesced = False
        self._held: list[threading.Lock] = []

    def _use(self, opened: DatabaseConnection) -> None:
        self._opened = opened
        self._connection = opened.connection
        # One cursor for all statements, because a new one for each costs 0.15 us.
        self._new_cursor = opened.connection.own_cursor
        cursor = self._new_cursor()
        self._execute: Execute = cursor.execute
        self.executemany = cursor.executemany
        self._writer_lock = opened.lock
        self._watched.update(opened.files)
        opened.lock.watch(self._watched)
        self.store_id, self.now = opened.store_id, opened.clock
        self._execute(driver.NORMAL)
        self._wal_sync.switch(opened.log, self.path + LOG, 0)
        self._wal_preallocator.use(-1 if opened.log is None else opened.log.fd)
        self.epoch += 1
        self._last_change = opened.connection.total_changes, self.epoch

    def _check(self) -> None:
        """Raise the error of a database that is unusable or closed; connect again after a fork.

        Call it with the lock held.
        """
        failure = self._poison.failure
        if failure is not None:
            message = f"{failure}; {REMEDY}"
            if isinstance(failure, StoreReplacedError):
                raise StoreReplacedError(message, failure.path) from failure
            raise StorageError(message, failure.errno) from failure
        if self._is_closing:  # another thread began after the caller's own check
            raise ClosedError(f"{self.path!r} was closed meanwhile")
        if self._opened is None:
            self._use(self.source.open())

    def _failure(self, error: Exception, doing: str) -> StorageError:
        execute = self._execute if self._lock.is_owned() else None
        dropped = dropped_error(error, self.path, self._readers, execute)
        failure = dropped or driver.translate(error, doing, self.path)
        failure.__cause__ = error
        if failure.errno == errno.EIO:
            self._poison.set(failure)
        return failure

    def watch(self, path: str, fd: int) -> None:
        """Check from now on that ``path`` stays the file that ``fd`` has open. Call it with the lock held."""
        self._watched[path] = identity_of(fd)

    def ignore(self, path: str) -> None:
        """Stop watching ``path``. Idempotent, and may be called again after an interrupt."""
        self._watched.pop(path, None)

    def check_files(self) -> None:
        """Raise ``StoreReplacedError`` if a file was removed or replaced, and refuse every later call.

        Cost: one ``stat`` of the directory, and one of each file if the directory changed.
        """
        opened = self._opened
        if self._poison.failure is None and opened is not None:
            try:
                opened.lock.check()
            except StoreReplacedError as error:
                if self._opened is not opened:  # another thread closed it meanwhile, which removes the log
                    return
                self._poison.set(error)
                raise

    def warn_if_replaced(self) -> None:
        """Log a warning if a file was removed or replaced.

        For a handle that closes and whose writes did not check: destructors close, too, and must not raise.
        """
        try:
            self.check_files()
        except StoreReplacedError as error:
            _logger.warning("%s; what was written last may be in no file", error)

    def write(
        self,
        run: Callable[[Execute], T],
        sync: bool,
        single_change: bool = False,
        after: Callable[[T], Any] | None = None,
        deadline: float | None = None,
        timeout: float | None = None,
    ) -> T:
        """Execute ``run`` in a transaction, commit it, and return what ``run`` returned.

        Others may see the change before it is durable. Within a :meth:`transaction` of this thread ``run``
        becomes a part of it.

        Cost: one transaction, 12 us for a ``put`` alone; with ``sync`` one sync of the log, which concurrent
        callers share.

        :param run, after: as of :class:`~persistcoll.sqlite.write_requests.WriteRequest`.
        :param sync: whether the change is to be on the device when this returns.
        :param single_change: whether ``run`` makes one change at most and executes nothing after it, or calls
            :meth:`begin` first. SQLite makes one change a transaction of its own, which costs 1.2 us less.
        :param deadline: until when to wait for the end of another caller's :meth:`transaction`, by
            ``time.monotonic()``; ``None``: for ``timeout`` seconds.
        :param timeout: seconds; ``None``: what the database was opened with.
        :raise LockedError: that transaction did not end in time.
        :raise ClosedError: another thread closed the database.
        :raise StorageError: nothing is stored, or, after a failed sync, it is unknown what is.
        """
        if not SAME[0]:
            follow_fork()
        if self._lock.is_owned():
            raise StorageError(REENTRANT.format(self.path))
        if self._transaction.owner is not None and self._transaction.owner == threading.get_ident():
            self._transaction.refuse_other_task(self.path)
            return self._write_within(run, sync, after)
        while True:
            # Fast path: no other thread writes. A thread that wants a sync while another thread syncs queues
            # instead: all queued callers share one transaction, which costs a thread 20 us, and one sync.
            if not self._is_writing and not (sync and (self._combiner.has_leader or self._wal_sync.syncing)):
                with self._lock.mutex:
                    self._is_writing = True
                    try:
                        if sync:
                            self.check_files()
                        value = self._write_alone(run, single_change, after)
                        ticket = self._draw_ticket() if sync else 0
                    except TransactionOpen as found:
                        obstacle: BaseException | None = found
                    except StorageError:
                        raise
                    except OSError as error:  # the writer lock cannot be released
                        raise self._poison.unlock_failed(self.path, error) from error
                    else:
                        obstacle = None
                    finally:
                        self._is_writing = False
                if obstacle is None:
                    if sync:
                        self._wal_sync.commit(ticket)
                        self.check_files()
                    return value
            else:
                work = WriteRequest(run, sync, after)
                self._combiner.submit(work)
                obstacle = work.obstacle
                if obstacle is None and work.outcome.committed:
                    if work.cut_short and sync:  # an interrupt ended the thread that was to sync it
                        self.write(_nothing, True)
                    return work.value
                if obstacle is None:
                    continue  # an interrupt of another thread rolled the shared transaction back
            if deadline is None:
                deadline = time.monotonic() + (self.source.timeout if timeout is None else timeout)
            self._wait_out(deadline)

    def _draw_ticket(self) -> int:
        """Return the ticket for the sync of all that is committed. Call it with the lock held.

        It covers what other processes committed, too, because an operation that changed nothing may report
        a change of theirs that is not synced yet. In memory there is nothing to sync.
        """
        seen = self._connection.total_changes, self.epoch
        if seen != self._last_change and self.path != MEMORY:
            self._last_change = seen
            self._wal_sync.written += 1
            self._wal_needs_space = self._wal_preallocator.needs_space()
        return self._wal_sync.written

    def _write_alone(
        self, run: Callable[[Execute], T], single_change: bool, after: Callable[[T], Any] | None
    ) -> T:
        """Do what ``run_batch`` does, for one request. Call it with the lock held.

        It makes fewer calls: 2 us less of the 12 us of a ``put``.
        """
        if self._transaction.owner is not None:
            raise self._transaction.obstacle()
        if self._poison.failure is not None or self._opened is None:
            self._check()
        refusal = None
        self._committing = False
        try:
            try:
                self._begin(single_change)
                self._whole_changes = self._connection.total_changes
                try:
                    value = run(self._execute)
                except Exception as error:
                    if not self.is_refusal(error):
                        raise
                    refusal = error
                self._commit()
                if after is not None and refusal is None:
                    after(value)
            except BaseException as error:
                self.epoch += 1
                if self._roll_back(error) and after is not None and refusal is None:
                    after(value)
                if isinstance(error, driver.ERRORS):
                    raise self._failure(error, "writing") from error
                raise
        finally:
            try:
                if self._connection.in_transaction:  # an interrupt came where _roll_back begins
                    self._execute(driver.ROLLBACK)
            finally:
                self._writer_lock.release()
        if refusal is not None:
            raise refusal
        return value

    def begin(self) -> None:
        """Begin a transaction, within :meth:`write`, because several changes follow."""
        if not self._connection.in_transaction:
            self._execute(driver.BEGIN)

    def keep_changes(self) -> None:
        """Have a refusal that follows keep all changes so far, within :meth:`write`.

        For what ``run`` does before its own work, such as making ready what is due.
        """
        self._whole_changes = self._connection.total_changes

    def is_refusal(self, error: BaseException) -> bool:
        """Tell whether ``run`` raised this before its first change, or directly after :meth:`keep_changes`.

        An error after another change is a signal handler's.
        """
        changed = self._connection.total_changes != self._whole_changes
        return not changed and not isinstance(error, driver.ERRORS)

    def await_transaction(self, timeout: float) -> None:
        """Return when no other caller's transaction is open, or raise ``LockedError`` after the timeout."""
        owner = self._transaction.owner
        if owner is not None and owner == threading.get_ident():
            self._transaction.refuse_other_task(self.path)
        elif owner is not None and not self._lock.is_owned():
            self._wait_out(time.monotonic() + timeout)

    def mark_dirty(self, counters: Counters) -> None:
        """Have ``counters`` written by the commit of this transaction, within :meth:`write`."""
        self._dirty[counters] = None

    def _begin(self, single_change: bool = False, transaction: bool = False) -> None:
        """Take the writer lock, and begin a transaction unless one change needs none.

        Call it within a ``try`` that rolls back and releases the writer lock, because an interrupt may come
        directly after it.
        """
        if self._dirty:  # an interrupt ended the transaction before it was emptied
            self._dirty.clear()
        try:
            if not self._writer_lock.acquire(transaction):
                self.epoch += 1
            if not single_change or self._wal_needs_space:
                self._execute(driver.BEGIN)
        except StoreReplacedError as error:
            self._poison.set(error)
            raise
        except driver.ERRORS as error:
            raise self._failure(error, "writing") from error

    def _commit(self) -> None:
        if self._dirty:
            for counters in self._dirty:
                counters.save(self._execute)
            self._dirty.clear()
        if self._connection.in_transaction:
            if self._wal_needs_space:
                self._wal_needs_space = False
                self._wal_preallocator.extend()
            self._committing = True
            self._execute(driver.COMMIT)

    def _roll_back(self, error: BaseException) -> bool:
        """Roll back because of ``error``, unless the commit is already done; return whether it is.

        Only an interrupt can come after the commit.
        """
        self._dirty.clear()
        if self._connection.in_transaction:
            self._execute(driver.ROLLBACK)
            return False
        # An error of the database has rolled back by itself.
        return self._committing and not isinstance(error, driver.ERRORS)

    def transaction(self, sync: bool, timeout: float | None = None) -> Transaction:
        """Return a context manager that makes one transaction of all that this task does within it.

        Other writers wait meanwhile, except other tasks of this thread, which are refused; readers do not see
        what it has not committed. An error of the database ends the transaction: every later operation within
        the block is refused, and the block's end raises the error.

        :param sync: whether it is to be on the device at the end. It also is if an operation in it is to be.
        :param timeout: seconds to wait for another caller's transaction, and seconds after which this one is
            logged as overdue; ``None``: what the database was opened with.
        """
        return Transaction(self, sync, self.source.timeout if timeout is None else timeout)

    def open_transaction(self) -> TransactionHooks | None:
        """Return the hooks of the transaction that this task has open; ``None`` if it has none open."""
        transaction = self._transaction
        return transaction.hooks if transaction.is_of_this_task() and not transaction.is_ending else None

    def _write_within(self, run: Callable[[Execute], T], sync: bool, after: Callable[[T], Any] | None) -> T:
        with self._lock.mutex:
            if self._poison.failure is not None or self._opened is None:
                self._check()
            self._transaction.sync = self._transaction.sync or sync
            return self._transaction.join(self, run, after)

    def _in_the_way(self) -> TransactionOpen | None:
        with self._lock.mutex:
            if self._transaction.owner is not None:
                return self._transaction.obstacle()
            return None if self._opened is None else self._writer_lock.transaction()

    def _wait_out(self, deadline: float) -> None:
        """Wait, with no lock held, until no other caller's transaction is open."""
        pause = _SHORTEST_PAUSE
        while (found := self._in_the_way()) is not None:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise found.refusal(self.path)
            if self._transaction.owner is not None:
                self._transaction.wait(remaining)
            else:  # nothing wakes this thread when a transaction of another process ends
                time.sleep(min(pause, remaining))
                pause = min(2 * pause, _LONGEST_PAUSE)

    # Reading.

    def consult(
        self, counters: Counters, query: Callable[[Execute, Counters], T], snapshot: bool = False
    ) -> T:
        """Return what ``query`` reads from what is committed and from a collection's counters.

        It waits for no transaction. If another thread's transaction, or an operation of this thread, uses the
        writing connection, a reading connection and a copy of the counters serve ``query`` instead.

        :param snapshot: whether all that ``query`` reads is to belong to one snapshot.
        """
        if not SAME[0]:
            follow_fork()
        if not self._lock.is_owned():
            with self._lock.mutex:
                if self._poison.failure is not None or self._opened is None:
                    self._check()
                if self._transaction.owner is None:
                    return self._consult(counters, query, snapshot)
                if self._transaction.owner == threading.get_ident():
                    self._transaction.refuse_other_task(self.path)
                    return self._transaction.join(
                        self, lambda execute: query(execute, counters.at(self.epoch, execute))
                    )
        return self._consult_separately(counters, query)

    def _consult(self, counters: Counters, query: Callable[[Execute, Counters], T], snapshot: bool) -> T:
        execute = self._execute
        try:
            if not self._writer_lock.unchanged():
                self.epoch += 1
            if not snapshot:
                return query(execute, counters.at(self.epoch, execute))
            try:
                execute(driver.BEGIN_READING)
                # Another process may have written since the lock file was read.
                return query(execute, counters.new().at(self.epoch, execute))
            finally:
                if self._connection.in_transaction:
                    execute(driver.ROLLBACK)
        except driver.ERRORS as error:
            raise self._failure(error, "reading") from error

    def _consult_separately(self, counters: Counters, query: Callable[[Execute, Counters], T]) -> T:
        if self.path != MEMORY:
            return self.read_snapshot(
                lambda execute: query(execute, counters.new().without_due(self.epoch, execute))
            )
        if not self._lock.is_owned():
            self._wait_out(time.monotonic() + self.source.timeout)
            return self.consult(counters, query)
        # In memory there is no other connection, and the common cursor may be in the middle of an answer.
        execute = self._new_cursor().execute
        return query(execute, copy(counters).without_due(self.epoch, execute))

    def read(self, query: Callable[[Execute], T]) -> T:
        """Return what ``query`` reads from what is committed; one statement reads one snapshot."""
        return self.consult(Counters(None), lambda execute, _: query(execute))

    def fetch_one(self, text: str, parameters: Sequence[Any]) -> Any:
        """Return the first row that a statement finds in what is committed, or ``None``.

        It waits for no writer.
        """
        if not SAME[0]:
            follow_fork()
        if self._reads_here():
            return self.read(lambda execute: execute(text, parameters).fetchone())
        try:
            return self._readers.fetch_one(text, parameters)
        except driver.ERRORS as error:
            raise self._failure(error, "reading") from error

    def read_snapshot_without_opening(
        self, query: Callable[[Execute], T], read_alone: Callable[[Callable[[Execute], T]], T]
    ) -> T:
        """Return what ``query`` reads of what is committed; this thread's own transaction does not show.

        A database that a fork has closed stays closed: ``read_alone`` reads.
        """
        if self._opened is None and not self._lock.is_owned():
            with self._lock.mutex:
                if self._poison.failure is not None:
                    self._check()
                if self._opened is None:
                    return read_alone(query)
        try:
            return self._readers.read_snapshot(query)
        except driver.ERRORS as error:
            raise self._failure(error, "reading") from error

    def read_snapshot(self, query: Callable[[Execute], T]) -> T:
        """Return what ``query`` reads from one snapshot of what is committed. It waits for no writer."""
        if not SAME[0]:
            follow_fork()
        if self._reads_here():
            return self.read(query)
        try:
            return self._readers.read_snapshot(query)
        except driver.ERRORS as error:
            raise self._failure(error, "reading") from error

    def _reads_here(self) -> bool:
        """Tell whether this thread must read through the writing connection.

        Within a transaction it must see its own changes, and in memory there is no other connection.
        """
        owner = self._transaction.owner
        if owner is not None and owner == threading.get_ident() and not self._lock.is_owned():
            self._transaction.refuse_other_task(self.path)
            return True
        return self.path == MEMORY

    def _connect_reader(self, add: Callable[[Connection], None]) -> None:
        # A signal handler or a destructor may read within an operation of this thread, which holds the lock.
        if self._opened is None and self._lock.is_owned():
            raise StorageError(REENTRANT.format(self.path))
        with self._lock.mutex:
            self._check()
            connection = driver.connect_reader(self.path, self.source.timeout)
            try:
                self.check_files()  # otherwise the connection may be to another file
            except BaseException:
                connection.close()
                raise
            add(connection)

    def change_token(self) -> object:
        """Return a value that differs from an earlier one if another thread or process has written since."""
        if not SAME[0]:
            follow_fork()
        # Within its own transaction a thread is the only writer, and must not wait for the watcher, whose
        # thread may be waiting for the end of this transaction.
        is_alone = self._lock.is_owned() or self._transaction.owner == threading.get_ident()
        if is_alone or self.path == MEMORY:
            return self.epoch
        # A signal handler within this very call: a new object makes its caller read, and ask again.
        if self._watcher.lock.is_owned():
            return object()
        try:
            return self._watcher.change_token()
        except driver.ERRORS as error:
            raise self._failure(error, "reading") from error

    # Maintenance.

    def shrink(self, timeout: float) -> None:
        """Return unused space to the file system; other writers wait meanwhile.

        Cost: SQLite copies the whole database (``VACUUM``), and copies the log into it.

        :param timeout: seconds to wait for another caller's transaction.
        :raise LockedError: it did not end in time.
        """
        maintain(self, driver.SHRINK, "shrinking", "shrunk", timeout)

    def checkpoint(self, timeout: float) -> None:
        """Copy the log into the database, and empty it. The rest is as of :meth:`shrink`.

        Cost: it grows with the log, and it is two syncs.
        """
        maintain(self, driver.CHECKPOINT, "checkpointing", "checkpointed", timeout)

    # Lifecycle.

    def used_here(self) -> bool:
        """Tell whether this thread is within an operation, as a thread that runs a destructor may be."""
        me = threading.get_ident()
        return (
            me == self._transaction.owner
            or self._lock.is_owned()
            or self._watcher.lock.is_owned()
            or me in self._combiner.active_threads
            or me in self._wal_sync.users
        )

    @property
    def in_transaction(self) -> bool:
        """Whether a thread has a caller's transaction open."""
        return self._transaction.owner is not None

    @property
    def replaced(self) -> StoreReplacedError | None:
        """The error that one of its files was removed or replaced; ``None`` if that was not seen."""
        failure = self._poison.failure
        return failure if isinstance(failure, StoreReplacedError) else None

    @property
    def is_closing(self) -> bool:
        """Whether :meth:`try_close` has begun to close the file."""
        return self._is_closing

    def try_close(self) -> bool:
        """Close the database unless another thread is within an operation; return whether it is closed.

        The caller holds the registry's lock.
        """
        held: list[threading.Lock] = []
        try:
            return self._close_quiesced(held)
        except BaseException as error:
            release_all(held)  # again, because an interrupt may have ended the first call
            if isinstance(error, OSError) and not isinstance(error, StorageError):
                raise storage_error(error, "unlocking", self.path) from error
            raise

    def _close_quiesced(self, held: list[threading.Lock]) -> bool:
        try:
            if not self._quiesce(0.0, held):
                return False
            self._is_closing = True
            self._disconnect()
        finally:
            release_all(held)
        unregister_quiescent(self)
        return True

    def _disconnect(self) -> None:
        """Close all connections and files. Idempotent, and may be called again after an interrupt."""
        if self._opened is None:
            return
        # An interrupt of one step must not skip the others. The next call repeats the interrupted one.
        try:
            try:
                try:
                    driver.end_statement(self._execute)  # SQLite closes no connection within a statement
                    self._watcher.close()
                    for connection in self._readers.close(FORK_TIMEOUT):
                        leak(connection)
                finally:
                    # Before the connection closes: otherwise a thread that waits for a sync would find the
                    # database closed and take its commit for synced.
                    self._wal_sync.finish()
            finally:
                # SQLite removes the log. A thread that checks the files meanwhile must not miss it.
                self._opened.lock.watch({})
                self._opened.close()
        except Exception:
            self._opened = None
            raise
        self._opened = None

    def _quiesce(self, timeout: float, held: list[threading.Lock]) -> bool:
        """Keep other threads out as soon as no operation runs; return whether that succeeded in time.

        :param timeout: seconds for each lock.
        :param held: gets the locks to release with :func:`~persistcoll.sqlite.owned_lock.release_all`.
        """
        quiesced = False
        try:
            quiesced = (
                acquire_tracked(self._transaction.gate, timeout, held)
                and self._watcher.lock.quiesce(timeout, held)
                and self._lock.quiesce(timeout, held)
            )
        finally:
            if not quiesced:
                release_all(held)
        return quiesced

    # SQLite keeps the locks of a process in memory. A forked child has a copy and would take its parent's
    # locks for its own. So no connection is open while a process forks, and both processes connect again.

    def _try_quiesce(self, timeout: float) -> bool:
        self._is_quiesced = self._quiesce(timeout, self._held)
        return self._is_quiesced

    def _before_fork(self) -> None:
        # A thread that forks within its own operation cannot wait for that operation's end.
        if not self._is_quiesced and not self.used_here():
            self._try_quiesce(timeout_left(FORK_TIMEOUT))
        if self._is_quiesced and self.path != MEMORY:
            self._disconnect()

    def _after_fork_in_parent(self) -> None:
        self._is_quiesced = False
        release_all(self._held)

    def _after_fork(self) -> None:
        was_quiesced, opened, watcher = self._is_quiesced, self._opened, self._watcher.connection
        readers = self._readers.connections
        self._wal_sync.after_fork_in_child()
        self._transaction.end()
        self._reset()
        if was_quiesced and self.path == MEMORY and opened is not None:  # the child has a copy
            self._use(opened)
            return
        leak(self._connection)  # also if closing it had failed
        if opened is None:
            return
        # It was not quiesced: a serializer or a thread within its transaction forked, or time ran out.
        for connection in (watcher, *readers):
            leak(connection)
        opened.lock.close()
        self._poison.set(StorageError((_FORKED if fork_was_seen() else UNSEEN).format(self.path)))
