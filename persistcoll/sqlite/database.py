"""One database file in this process: the connection that writes, and the order in which callers use it.

All containers of a process on a file share it. Callers on several threads are combined: one of them runs the
work of all who wait in one transaction. Between processes the writers queue for the file's
:class:`~persistcoll.sqlite.writer_lock.WriterLock`.

What has to survive a power cut is committed first, without a sync, and then the write-ahead log is synced,
outside of all locks: others go on to write meanwhile, in this process and in others, and one of those who
wait syncs for all. At SQLite's own ``synchronous=FULL`` a writer keeps everybody waiting while it syncs.
Measured with 8 processes, beside 1: that way 0.7 times as many writes and 33 to 49 ms at worst, this way 1.1
to 1.3 times as many and 12 to 19 ms.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from persistcoll.disk.calls import storage_error
from persistcoll.disk.group_commit import GroupCommit
from persistcoll.engine.combining import Combiner
from persistcoll.engine.forks import (
    FORK_PATIENCE,
    acquire_noted,
    fork_was_seen,
    quiesce_for_forks,
    quiesce_no_more,
)
from persistcoll.engine.process import SAME, follow_fork
from persistcoll.errors import ClosedError, StorageError, StoreReplacedError
from persistcoll.sqlite import driver
from persistcoll.sqlite.counters import Counters
from persistcoll.sqlite.database_file import LOG, MEMORY, DatabaseConnection, DatabaseFile
from persistcoll.sqlite.driver import Execute, leak
from persistcoll.sqlite.readers import ReaderPool
from persistcoll.sqlite.reading import REENTRANT, Readable
from persistcoll.sqlite.transaction import Transaction
from persistcoll.sqlite.wal_space import WALPreallocator
from persistcoll.sqlite.watcher import ChangeWatcher
from persistcoll.sqlite.work import Outcome, WriteRequest
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
    " it behind the fork only (uWSGI: lazy-apps)"
)


def _nothing(execute: Execute) -> None:
    """A transaction that changes nothing, and is followed by the sync of what others changed."""


class Database(Readable):
    """A database that this process has open. From any thread.

    :ivar counters_by_number: of its tables, by their numbers.
    :ivar users: how many collections use it, as its owner counts them.
    """

    def __init__(self, source: DatabaseFile) -> None:
        self.source = source
        self.path, self.disk = source.path, source.disk
        self.epoch = 0
        self.counters_by_number: dict[int, Counters] = {}
        self.users = 0
        self._shut = False
        self._reset()
        self._use(source.open())
        quiesce_for_forks(self)

    def _reset(self) -> None:
        self.epoch += 1
        self._combiner = Combiner[WriteRequest[Any]](self._run_batch)
        self._mutex = threading.Lock()
        self._wal_sync = GroupCommit(self.disk, self.path + LOG, self._poison)
        self._wal_preallocator = WALPreallocator(self.disk)
        self._wal_needs_space = False  # the log; to be made longer
        self._watcher = ChangeWatcher(self._connect_reader)
        self._readers = ReaderPool(self._connect_reader)
        self._dirty: dict[Counters, None] = {}
        self._gate = threading.Lock()
        self._transaction: weakref.ref[Transaction] | None = None  # that has the lock for writing
        self._transaction_owner: int | None = None  # the thread within it
        self._since = 0.0  # its beginning, by the steady clock
        self._mutex_owner: int | None = None  # the thread that has the mutex
        self._committing = False
        self._trouble: StorageError | None = None
        self._transaction_error: StorageError | None = None
        self._opened: DatabaseConnection | None = None
        self._watched: dict[str, tuple[int, int]] = {}  # beside the files that every database has
        self._at_rest = False
        self._held: list[threading.Lock] = []

    def _use(self, opened: DatabaseConnection) -> None:
        self._opened = opened
        self._connection = opened.connection
        # One cursor for all: a new one for each statement costs 0.15 us.
        cursor = opened.connection.cursor()
        self._execute: Execute = cursor.execute
        self.executemany = cursor.executemany
        self._lock = opened.lock
        self._watch()
        self.store_id, self.now = opened.store_id, opened.clock
        self._execute(driver.NORMAL)
        self._wal_sync.switch(opened.log, self.path + LOG, 0)
        self._wal_preallocator.use(-1 if opened.log is None else opened.log.fd)
        self.epoch += 1
        self._last_change = opened.connection.total_changes, self.epoch

    def _check(self) -> None:
        """With the mutex held: refuse, or open anew in a forked child."""
        if self._trouble is not None:
            message = f"{self._trouble}; {REMEDY}"
            if isinstance(self._trouble, StoreReplacedError):
                raise StoreReplacedError(message, self._trouble.path) from self._trouble
            raise StorageError(message, self._trouble.errno) from self._trouble
        if self._shut:  # by another thread, when the caller was past its own check
            raise ClosedError(f"{self.path!r} was closed meanwhile")
        if self._opened is None:
            self._use(self.source.open())

    def _failure(self, error: Exception, doing: str) -> StorageError:
        failure = driver.translate(error, doing, self.path)
        failure.__cause__ = error
        if failure.errno == errno.EIO:
            self._poison(failure)
        return failure

    def _poison(self, failure: StorageError) -> None:
        """What the device did not take may have left a gap in the log, behind which nothing would be found
        after a power cut: write no more. Opening anew takes what can be read of it over.
        """
        if self._trouble is None:
            self._trouble = failure
            self._readers.refuse()

    def watch(self, path: str, fd: int) -> None:
        """From now on that path has to stay that file, too. The mutex is held."""
        self._watched[path] = identity_of(fd)
        self._watch()

    def ignore(self, path: str) -> None:
        """As if that had never been watched. Idempotent, also where it was interrupted."""
        self._watched.pop(path, None)
        self._watch()

    def _watch(self) -> None:
        opened = self._opened
        if opened is not None:
            opened.lock.watch({**opened.files, **self._watched})

    def check_files(self) -> None:
        """:raise StoreReplacedError: a file was removed or replaced, as is noticed now."""
        opened = self._opened
        if self._trouble is None and opened is not None:
            try:
                opened.lock.check()
            except StoreReplacedError as error:
                if self._opened is not opened:  # closed meanwhile, which removes the log
                    return
                self._poison(error)
                raise

    def warn_if_replaced(self) -> None:
        """For what nobody is told otherwise: an error would come out of destructors, too."""
        try:
            self.check_files()
        except StoreReplacedError as error:
            _logger.warning("%s; what was written last may be in no file", error)

    def write(
        self,
        run: Callable[[Execute], T],
        sync: bool,
        whole: bool = True,
        after: Callable[[T], Any] | None = None,
        deadline: float | None = None,
        timeout: float | None = None,
    ) -> T:
        """``run`` in a transaction, which is committed when this returns.

        :param sync: and on the device. Others may see it before it is.
        :param whole: there may be several changes. A single one is a transaction of its own in SQLite: 1.2 us
            less. It is the last thing that ``run`` does, and :meth:`begin` comes before any other.
        :param after: as of :class:`~persistcoll.sqlite.work.WriteRequest`.
        :param deadline: until when to wait for the end of another caller's :meth:`transaction`;
            ``None``: ``timeout`` seconds, or what the database was opened with.
        :raise LockedError: it did not end.
        """
        if not SAME[0]:
            follow_fork()
        me = threading.get_ident()
        if self._transaction_owner == me:
            return self._write_within(run, after)
        while True:
            # Alone, which is the rule, there is nobody to combine with. A thread that wants a sync while
            # another one syncs waits, and has one transaction and one sync with all that do: a transaction
            # costs a thread 20 us.
            if self._mutex_owner is None and not (
                sync and (self._combiner.leading or self._wal_sync.syncing)
            ):
                # No call before the thread is noted: behind one, a destructor or a signal handler may come.
                with self._mutex:
                    self._mutex_owner = me
                    try:
                        if sync:
                            self.check_files()
                        value = self._write_alone(run, whole, after)
                        ticket = self._draw_ticket() if sync else 0
                    except TransactionOpen as found:
                        obstacle: BaseException | None = found
                    except StorageError:
                        raise
                    except OSError as error:  # the lock cannot be let go
                        raise storage_error(error, "unlocking", self.path) from error
                    else:
                        obstacle = None
                    finally:
                        self._mutex_owner = None
                if obstacle is None:
                    if sync:
                        self._wal_sync.commit(ticket)
                        self.check_files()
                    return value
            elif self._mutex_owner == me:
                raise StorageError(REENTRANT.format(self.path))
            else:
                work = WriteRequest(run, sync, after)
                self._combiner.submit(work)
                obstacle = work.obstacle
                if obstacle is None and work.outcome.committed:
                    if work.cut_short and sync:  # by who was to sync it
                        self.write(_nothing, True)
                    return work.value
                if obstacle is None:
                    continue  # its transaction was rolled back for another thread's interrupt
            if deadline is None:
                deadline = time.monotonic() + (self.source.timeout if timeout is None else timeout)
            self._wait_out(deadline)

    def _draw_ticket(self) -> int:
        """With the mutex held: for the sync of what was committed, if anything was: here, or by others, whose
        unsynced change an operation that changed nothing may tell of. In memory there is nothing to sync.
        """
        seen = self._connection.total_changes, self.epoch
        if seen != self._last_change and self.path != MEMORY:
            self._last_change = seen
            self._wal_sync.written += 1
            self._wal_needs_space = self._wal_preallocator.is_short()
        return self._wal_sync.written

    def _write_alone(self, run: Callable[[Execute], T], whole: bool, after: Callable[[T], Any] | None) -> T:
        """With the mutex held. As :meth:`_run_batch` for one, in fewer calls: 2 us of the 12 of a ``put``."""
        if self._transaction_owner is not None:
            raise self._obstacle()
        if self._trouble is not None or self._opened is None:
            self._check()
        refusal = None
        self._committing = False
        try:
            try:
                self._begin(whole)
                before = self._connection.total_changes
                try:
                    value = run(self._execute)
                except Exception as error:
                    # A refusal comes before any change. Behind one it is a signal handler's.
                    if isinstance(error, driver.ERRORS) or self._connection.total_changes != before:
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
                if self._connection.in_transaction:  # _roll_back was interrupted where it begins
                    self._execute(driver.ROLLBACK)
            finally:
                self._lock.release()
        if refusal is not None:
            raise refusal
        return value

    def _run_batch(self, batch: Sequence[WriteRequest[Any]], waiting: Callable[[], None]) -> None:
        me = threading.get_ident()
        if self._mutex_owner == me:  # before anything is stored
            for work in batch:
                work.failure = StorageError(REENTRANT.format(self.path))
            return
        with self._mutex:
            self._mutex_owner = me
            try:
                ticket = self._run_batch_alone(batch, waiting)
            except OSError as error:  # the lock cannot be let go
                failure = storage_error(error, "unlocking", self.path)
                for work in batch:
                    work.failure = work.failure or failure
                return
            finally:
                self._mutex_owner = None
        if ticket is not None:
            waiting()
            try:
                self._wal_sync.commit(ticket)
                self.check_files()
            except StorageError as error:
                for work in batch:
                    if work.sync:
                        work.failure = work.failure or error

    def _run_batch_alone(self, batch: Sequence[WriteRequest[Any]], waiting: Callable[[], None]) -> int | None:
        """With the mutex held; the ticket for the sync, if there is to be one."""
        if self._transaction_owner is not None:
            for work in batch:
                work.obstacle = self._obstacle()
            return None
        try:
            self._check()
        except Exception as error:
            for work in batch:
                work.failure = error
            return None
        sync = any(work.sync for work in batch)
        if sync:
            try:
                self.check_files()
            except StorageError as error:
                for work in batch:
                    work.failure = error
                return None
        try:
            committed = self._commit_batch(batch, None if sync else waiting)
        finally:
            try:
                if self._connection.in_transaction:
                    self._execute(driver.ROLLBACK)
            finally:
                self._lock.release()
        return self._draw_ticket() if committed and sync else None

    def _commit_batch(self, batch: Sequence[WriteRequest[Any]], waiting: Callable[[], None] | None) -> bool:
        """Whether it is committed; otherwise all of them know why not."""
        execute = self._execute
        self._committing = False
        outcome = Outcome()
        for work in batch:
            work.outcome = outcome
        try:
            try:
                self._begin()
            except TransactionOpen as found:
                for work in batch:
                    work.obstacle = found
                return False
            except StorageError as error:
                for work in batch:
                    work.failure = error
                return False
            for work in batch:
                before = self._connection.total_changes
                try:
                    work.value = work.run(execute)
                except Exception as error:
                    # As in _write_alone().
                    if isinstance(error, driver.ERRORS) or self._connection.total_changes != before:
                        raise
                    work.failure = error
            if waiting is not None:
                waiting()
            self._commit()
            outcome.committed = True
            self._tell(batch)
            return True
        except BaseException as error:
            self.epoch += 1
            committed = self._roll_back(error)
            if isinstance(error, driver.ERRORS):
                for work in batch:
                    work.failure = self._failure(error, "writing")
                return False
            outcome.committed = committed
            if committed:
                self._tell(batch)
            else:  # the others do it again
                for work in batch:
                    work.failure = None
            raise

    def _tell(self, batch: Sequence[WriteRequest[Any]]) -> None:
        for work in batch:
            if work.after is not None and work.failure is None:
                work.after(work.value)

    def begin(self) -> None:
        """Within ``write``: what follows is several changes."""
        if not self._connection.in_transaction:
            self._execute(driver.BEGIN)

    def _begin(self, whole: bool = True, transaction: bool = False) -> None:
        """Within a ``try`` that rolls back and lets go of the lock: an interrupt may come right behind."""
        if self._dirty:  # where an interrupt left it
            self._dirty.clear()
        try:
            if not self._lock.acquire(transaction):
                self.epoch += 1
            if whole or self._wal_needs_space:
                self._execute(driver.BEGIN)
        except StoreReplacedError as error:
            self._poison(error)
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
                self._wal_preallocator.lengthen()
            self._committing = True
            self._execute(driver.COMMIT)

    def _roll_back(self, error: BaseException) -> bool:
        """After this error; whether it is too late: what interrupts may do so right behind the commit."""
        self._dirty.clear()
        if self._connection.in_transaction:
            self._execute(driver.ROLLBACK)
            return False
        # The database's own errors have rolled back by themselves.
        return self._committing and not isinstance(error, driver.ERRORS)

    def look_without_opening(
        self, look: Callable[[Execute], T], beside: Callable[[Callable[[Execute], T]], T]
    ) -> T:
        """``look`` at what is committed at one moment; a transaction of this thread's own does not show.

        What a fork has closed stays closed: ``beside`` looks, and it is not opened meanwhile.
        """
        me = threading.get_ident()
        if self._opened is None and self._mutex_owner != me:
            with self._mutex:
                self._mutex_owner = me
                try:
                    if self._trouble is not None:
                        self._check()
                    if self._opened is None:
                        return beside(look)
                finally:
                    self._mutex_owner = None
        try:
            return self._readers.read(look)
        except driver.ERRORS as error:
            raise self._failure(error, "reading") from error

    def transaction(self, sync: bool, timeout: float | None = None) -> Transaction:
        """A context manager: all that this thread does within is one transaction; others wait meanwhile.

        What fails for the database's reasons ends it: all is refused until the block's end, which raises.

        :param timeout: seconds to wait for another caller's, and after which this one is logged.
        """
        return Transaction(self, sync, self.source.timeout if timeout is None else timeout)

    def _write_within(self, run: Callable[[Execute], T], after: Callable[[T], Any] | None) -> T:
        me = threading.get_ident()
        if self._mutex_owner == me:
            raise StorageError(REENTRANT.format(self.path))
        with self._mutex:
            self._mutex_owner = me
            try:
                if self._trouble is not None or self._opened is None:
                    self._check()
                value = self._join(run)
                if after is not None:
                    after(value)
                return value
            finally:
                self._mutex_owner = None

    def _obstacle(self) -> TransactionOpen:
        return TransactionOpen(os.getpid(), self._since)

    def _warn_overdue(self) -> None:
        transaction = None if self._transaction is None else self._transaction()
        if transaction is not None:
            transaction.warn_overdue()

    def _in_the_way(self) -> TransactionOpen | None:
        with self._mutex:
            if self._transaction_owner is not None:
                return self._obstacle()
            return None if self._opened is None else self._lock.transaction()

    def _wait_out(self, deadline: float) -> None:
        """Wait, with no lock held, until no other caller's transaction is in the way."""
        pause = _SHORTEST_PAUSE
        while (found := self._in_the_way()) is not None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise found.refusal(self.path)
            if self._transaction_owner is not None:
                self._wait_at_gate(left)
            else:  # the kernel tells nobody of the end of another process's
                time.sleep(min(pause, left))
                pause = min(2 * pause, _LONGEST_PAUSE)

    def _wait_at_gate(self, seconds: float) -> None:
        gate = self._gate
        held: list[threading.Lock] = []
        try:
            acquire_noted(gate, min(seconds, threading.TIMEOUT_MAX), held)
        finally:
            if held:
                gate.release()

    def changed(self, counters: Counters) -> None:
        """Within ``write``: this counters is to be written, too."""
        self._dirty[counters] = None

    def shrink(self, timeout: float | None = None) -> None:
        """Give unused room back to the file system; others wait meanwhile."""
        if not SAME[0]:
            follow_fork()
        me = threading.get_ident()
        if me in (self._mutex_owner, self._transaction_owner):
            raise StorageError(REENTRANT.format(self.path))
        deadline = time.monotonic() + (self.source.timeout if timeout is None else timeout)
        while True:
            with self._mutex:
                self._mutex_owner = me
                try:
                    self._shrink()
                    return
                except TransactionOpen:
                    pass
                except StorageError:
                    raise
                except OSError as error:  # the lock cannot be let go
                    raise storage_error(error, "unlocking", self.path) from error
                finally:
                    self._mutex_owner = None
            self._wait_out(deadline)

    def _shrink(self) -> None:
        if self._transaction_owner is not None:
            raise self._obstacle()
        self._check()
        try:
            self._lock.acquire()
            self.epoch += 1
            for text in driver.SHRINK:
                self._execute(text)
        except driver.ERRORS as error:
            raise self._failure(error, "shrinking") from error
        finally:
            self._lock.release()

    @property
    def replaced(self) -> StoreReplacedError | None:
        """That one of its files was found removed or replaced."""
        return self._trouble if isinstance(self._trouble, StoreReplacedError) else None

    @property
    def is_shut(self) -> bool:
        """Whether :meth:`shut` has begun to let go of the file."""
        return self._shut

    def shut(self) -> bool:
        """Let go of the file, if no other thread is within an operation; whether that was so."""
        held: list[threading.Lock] = []
        try:
            return self._shut_at_rest(held)
        except BaseException as error:
            self._go_on(held)  # that may have been interrupted
            if isinstance(error, OSError) and not isinstance(error, StorageError):
                raise storage_error(error, "unlocking", self.path) from error
            raise

    def _shut_at_rest(self, held: list[threading.Lock]) -> bool:
        try:
            if not self._rest(0.0, held):
                return False
            self._shut = True
            self._disconnect()
        finally:
            self._go_on(held)
        quiesce_no_more(self)
        return True

    def _disconnect(self) -> None:
        """Idempotent, also where it was interrupted."""
        if self._opened is None:
            return
        # An interrupt of one step leaves none of the others out, and that one to the next call.
        try:
            try:
                try:
                    self._watcher.close()
                    for connection in self._readers.close(FORK_PATIENCE):
                        leak(connection)
                finally:
                    # Before others may find it closed, and take what they have committed for synced.
                    self._wal_sync.finish()
            finally:
                self._close_connection()
        except Exception:
            self._opened = None
            raise
        self._opened = None

    def _close_connection(self) -> None:
        # Under the lock: the last connection that closes makes a checkpoint. While another process has a
        # transaction open, this connection is not the last one.
        lock = self._lock
        try:
            try:
                if not lock.closed:
                    with suppress(TransactionOpen, StoreReplacedError):
                        lock.acquire()
            finally:
                self._connection.close()
        finally:
            try:
                if not lock.closed:
                    lock.release()
            finally:
                lock.close()

    def _after_fork(self) -> None:
        at_rest, opened, watcher = self._at_rest, self._opened, self._watcher.connection
        readers = self._readers.connections
        self._wal_sync.abandon()
        self._reset()
        if at_rest and self.path == MEMORY and opened is not None:  # the child has a copy
            self._use(opened)
            return
        leak(self._connection)  # also where closing it failed
        if opened is None:
            return
        # A serializer, or a transaction's own thread, forked in the middle; or nothing had come to rest.
        leak(watcher)
        for connection in readers:
            leak(connection)
        opened.lock.close()
        self._trouble = StorageError((_FORKED if fork_was_seen() else UNSEEN).format(self.path))
