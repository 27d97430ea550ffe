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
from persistcoll.engine.poison import Poison
from persistcoll.engine.process import SAME, follow_fork
from persistcoll.errors import ClosedError, StorageError, StoreReplacedError
from persistcoll.sqlite import driver
from persistcoll.sqlite.counters import Counters
from persistcoll.sqlite.database_file import LOG, MEMORY, DatabaseConnection, DatabaseFile
from persistcoll.sqlite.driver import Connection, Execute, leak
from persistcoll.sqlite.owned_lock import OwnedLock, release_all
from persistcoll.sqlite.readers import ReaderPool
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
_CUT_SHORT = "{!r}: an operation within the transaction was interrupted; nothing of the transaction is stored"
_FORKED = "{!r} cannot be used by a process that was forked within a transaction"
UNSEEN = (
    "{!r} was open in the process that this one was forked from, and Python was not told of the fork (os.fork"
    " and multiprocessing tell it): SQLite would take that one's locks for its own. Nothing was done; open"
    " it behind the fork only (uWSGI: lazy-apps)"
)


def _nothing(execute: Execute) -> None:
    """A transaction that changes nothing, and is followed by the sync of what others changed."""


class _Poison(Poison):
    """Takes the readers out of use, too.

    What the device did not take may have left a gap in the log, and after a power cut nothing would be found
    after the gap. So nothing more is written. Opening anew copies what can be read of the log.
    """

    def __init__(self, readers: ReaderPool) -> None:
        super().__init__()
        self._readers = readers

    def set(self, failure: StorageError) -> None:
        if self.failure is None:
            super().set(failure)
            self._readers.invalidate()


class Database:
    """A database that this process has open. From any thread.

    The lock protects the connection that writes and all fields that say what it does: ``_opened`` and what
    :meth:`_use` sets, ``_dirty``, ``_committing``, ``_last_change``, ``_wal_needs_space``, ``_watched`` and
    the counters. ``epoch``, ``_poison``, ``_is_closing`` and ``_is_writing`` are read without it, as hints:
    a thread that acts upon one looks again under the lock. ``_is_quiesced`` and ``_held`` belong to the
    thread that forks.

    It is one long class because all of it is done under this lock, in an order of calls that interrupts make
    matter.

    :ivar counters_by_number: of its tables, by their numbers.
    :ivar users: how many collections use it, as its owner counts them.
    :ivar epoch: grows whenever what was remembered of the database may not be true any more.
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
        self._is_writing = False  # some thread has the lock to write; a hint to those that have not
        self._wal_preallocator = WALPreallocator(self.disk)
        self._wal_needs_space = False  # the log; to be made longer
        self._watcher = ChangeWatcher(self._connect_reader)
        self._readers = ReaderPool(self._connect_reader)
        self._poison = _Poison(self._readers)
        self._wal_sync = GroupCommit(self.disk, self.path + LOG, self._poison)
        self._dirty: dict[Counters, None] = {}
        self._transaction = OpenTransaction()
        self._committing = False
        self._opened: DatabaseConnection | None = None
        self._watched: dict[str, tuple[int, int]] = {}  # beside the files that every database has
        self._is_quiesced = False
        self._held: list[threading.Lock] = []

    def _use(self, opened: DatabaseConnection) -> None:
        self._opened = opened
        self._connection = opened.connection
        # One cursor for all: a new one for each statement costs 0.15 us.
        cursor = opened.connection.cursor()
        self._execute: Execute = cursor.execute
        self.executemany = cursor.executemany
        self._writer_lock = opened.lock
        self._watch()
        self.store_id, self.now = opened.store_id, opened.clock
        self._execute(driver.NORMAL)
        self._wal_sync.switch(opened.log, self.path + LOG, 0)
        self._wal_preallocator.use(-1 if opened.log is None else opened.log.fd)
        self.epoch += 1
        self._last_change = opened.connection.total_changes, self.epoch

    def _check(self) -> None:
        """With the mutex held: refuse, or open anew in a forked child."""
        failure = self._poison.failure
        if failure is not None:
            message = f"{failure}; {REMEDY}"
            if isinstance(failure, StoreReplacedError):
                raise StoreReplacedError(message, failure.path) from failure
            raise StorageError(message, failure.errno) from failure
        if self._is_closing:  # by another thread, when the caller was past its own check
            raise ClosedError(f"{self.path!r} was closed meanwhile")
        if self._opened is None:
            self._use(self.source.open())

    def _failure(self, error: Exception, doing: str) -> StorageError:
        failure = driver.translate(error, doing, self.path)
        failure.__cause__ = error
        if failure.errno == errno.EIO:
            self._poison.set(failure)
        return failure

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
        if self._poison.failure is None and opened is not None:
            try:
                opened.lock.check()
            except StoreReplacedError as error:
                if self._opened is not opened:  # closed meanwhile, which removes the log
                    return
                self._poison.set(error)
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
        single_change: bool = False,
        after: Callable[[T], Any] | None = None,
        deadline: float | None = None,
        timeout: float | None = None,
    ) -> T:
        """``run`` in a transaction, which is committed when this returns.

        :param sync: and on the device. Others may see it before it is.
        :param single_change: ``run`` makes one change at most and executes nothing after it, or calls
            :meth:`begin` first. One change is a transaction of its own in SQLite: 1.2 us less.
        :param after: as of :class:`~persistcoll.sqlite.write_requests.WriteRequest`.
        :param deadline: until when to wait for the end of another caller's :meth:`transaction`;
            ``None``: ``timeout`` seconds, or what the database was opened with.
        :raise LockedError: it did not end.
        """
        if not SAME[0]:
            follow_fork()
        if self._lock.is_owned():
            raise StorageError(REENTRANT.format(self.path))
        if self._transaction.owner is not None and self._transaction.owner == threading.get_ident():
            return self._write_within(run, after)
        while True:
            # Alone, which is the rule, there is nobody to combine with. A thread that wants a sync while
            # another one syncs waits, and has one transaction and one sync with all that do: a transaction
            # costs a thread 20 us.
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
                    except OSError as error:  # the lock cannot be let go
                        raise storage_error(error, "unlocking", self.path) from error
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
            self._wal_needs_space = self._wal_preallocator.needs_space()
        return self._wal_sync.written

    def _write_alone(
        self, run: Callable[[Execute], T], single_change: bool, after: Callable[[T], Any] | None
    ) -> T:
        """With the mutex held. As ``run_batch`` for one, in fewer calls: 2 us of the 12 of a ``put``."""
        if self._transaction.owner is not None:
            raise self._transaction.obstacle()
        if self._poison.failure is not None or self._opened is None:
            self._check()
        refusal = None
        self._committing = False
        try:
            try:
                self._begin(single_change)
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
                self._writer_lock.release()
        if refusal is not None:
            raise refusal
        return value

    def begin(self) -> None:
        """Within ``write``: what follows is several changes."""
        if not self._connection.in_transaction:
            self._execute(driver.BEGIN)

    def mark_dirty(self, counters: Counters) -> None:
        """Within ``write``: this counters is to be written, too."""
        self._dirty[counters] = None

    def _begin(self, single_change: bool = False, transaction: bool = False) -> None:
        """Within a ``try`` that rolls back and lets go of the lock: an interrupt may come right behind."""
        if self._dirty:  # where an interrupt left it
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
        """After this error; whether it is too late: what interrupts may do so right behind the commit."""
        self._dirty.clear()
        if self._connection.in_transaction:
            self._execute(driver.ROLLBACK)
            return False
        # The database's own errors have rolled back by themselves.
        return self._committing and not isinstance(error, driver.ERRORS)

    def transaction(self, sync: bool, timeout: float | None = None) -> Transaction:
        """A context manager: all that this thread does within is one transaction; others wait meanwhile.

        What fails for the database's reasons ends it: all is refused until the block's end, which raises.

        :param timeout: seconds to wait for another caller's, and after which this one is logged.
        """
        return Transaction(self, sync, self.source.timeout if timeout is None else timeout)

    def _write_within(self, run: Callable[[Execute], T], after: Callable[[T], Any] | None) -> T:
        with self._lock.mutex:
            if self._poison.failure is not None or self._opened is None:
                self._check()
            value = self._join(run)
            if after is not None:
                after(value)
            return value

    def _in_the_way(self) -> TransactionOpen | None:
        with self._lock.mutex:
            if self._transaction.owner is not None:
                return self._transaction.obstacle()
            return None if self._opened is None else self._writer_lock.transaction()

    def _wait_out(self, deadline: float) -> None:
        """Wait, with no lock held, until no other caller's transaction is in the way."""
        pause = _SHORTEST_PAUSE
        while (found := self._in_the_way()) is not None:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise found.refusal(self.path)
            if self._transaction.owner is not None:
                self._transaction.wait(remaining)
            else:  # the kernel tells nobody of the end of another process's
                time.sleep(min(pause, remaining))
                pause = min(2 * pause, _LONGEST_PAUSE)

    # Reading.

    def consult(
        self, counters: Counters, query: Callable[[Execute, Counters], T], snapshot: bool = False
    ) -> T:
        """``look`` at what is committed, and at a table's numbers.

        What this thread or a transaction has the writing connection for is looked at beside it, with another
        counters: a look waits for no transaction, and not for its own thread.

        :param snapshot: all that is read is of one moment.
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
                    return self._join(lambda execute: query(execute, self._load(counters, execute)))
        return self._consult_separately(counters, query)

    def _consult(self, counters: Counters, query: Callable[[Execute, Counters], T], snapshot: bool) -> T:
        execute = self._execute
        try:
            if not self._writer_lock.unchanged():
                self.epoch += 1
            if not snapshot:
                return query(execute, self._load(counters, execute))
            try:
                execute(driver.BEGIN_READING)
                # Another process may have written since the look at the lock.
                return query(execute, self._load(Counters(counters.sql), execute))
            finally:
                if self._connection.in_transaction:
                    execute(driver.ROLLBACK)
        except driver.ERRORS as error:
            raise self._failure(error, "reading") from error

    def _consult_separately(self, counters: Counters, query: Callable[[Execute, Counters], T]) -> T:
        if self.path != MEMORY:
            return self.read_snapshot(
                lambda execute: query(execute, self._without_due(Counters(counters.sql), execute))
            )
        if not self._lock.is_owned():
            self._wait_out(time.monotonic() + self.source.timeout)
            return self.consult(counters, query)
        # In memory there is no other connection. This one's own cursor may be in the middle of an answer.
        execute = self._connection.execute
        return query(execute, self._without_due(copy(counters), execute))

    def _without_due(self, counters: Counters, execute: Execute) -> Counters:
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
        if self._transaction.error is not None:
            raise self._transaction.error
        self._transaction.warn_overdue()
        before = self._connection.total_changes
        try:
            return run(self._execute)
        except driver.ERRORS as error:
            # SQLite may have rolled back the whole transaction, so that what follows would be done alone; or
            # its last statement only, behind others of the same operation. Neither can go on.
            self._transaction.error = self._failure(error, "using")
            raise self._transaction.error from error
        except BaseException:
            if self._connection.total_changes != before:
                self._transaction.error = StorageError(_CUT_SHORT.format(self.path))
            raise

    def read(self, query: Callable[[Execute], T]) -> T:
        """``look`` at what is committed; it reads with one statement what has to be of one moment."""
        return self.consult(Counters(None), lambda execute, _: query(execute))

    def fetch_one(self, text: str, parameters: Sequence[Any]) -> Any:
        """The first row that this statement finds in what is committed, or ``None``. Waits for no writer."""
        if not SAME[0]:
            follow_fork()
        if self._reads_here():
            return self.read(lambda execute: execute(text, parameters).fetchone())
        try:
            return self._readers.fetch_one(text, parameters)
        except driver.ERRORS as error:
            raise self._failure(error, "reading") from error

    def read_snapshot(self, query: Callable[[Execute], T]) -> T:
        """``look`` at what is committed at one moment. Waits for no writer."""
        if not SAME[0]:
            follow_fork()
        if self._reads_here():
            return self.read(query)
        try:
            return self._readers.read_snapshot(query)
        except driver.ERRORS as error:
            raise self._failure(error, "reading") from error

    def _reads_here(self) -> bool:
        """Through the writing connection: a transaction sees what it did; in memory there is no other one."""
        if self.path == MEMORY:
            return True
        return (
            self._transaction.owner is not None
            and self._transaction.owner == threading.get_ident()
            and not self._lock.is_owned()
        )

    def _connect_reader(self, add: Callable[[Connection], None]) -> None:
        # A signal handler or a destructor may look within an operation of this thread, which has the mutex.
        if self._opened is None and self._lock.is_owned():
            raise StorageError(REENTRANT.format(self.path))
        with self._lock.mutex:
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
        is_alone = self._lock.is_owned() or self._transaction.owner == threading.get_ident()
        if is_alone or self.path == MEMORY:
            return self.epoch
        if self._watcher.lock.is_owned():  # a signal handler's: it looks, and is asked again
            return object()
        try:
            return self._watcher.change_token()
        except driver.ERRORS as error:
            raise self._failure(error, "reading") from error

    def shrink(self, timeout: float | None = None) -> None:
        """Give unused room back to the file system; others wait meanwhile."""
        if not SAME[0]:
            follow_fork()
        if self._lock.is_owned() or self._transaction.owner == threading.get_ident():
            raise StorageError(REENTRANT.format(self.path))
        deadline = time.monotonic() + (self.source.timeout if timeout is None else timeout)
        while True:
            with self._lock.mutex:
                try:
                    self._shrink()
                    return
                except TransactionOpen:
                    pass
                except StorageError:
                    raise
                except OSError as error:  # the lock cannot be let go
                    raise storage_error(error, "unlocking", self.path) from error
            self._wait_out(deadline)

    def _shrink(self) -> None:
        if self._transaction.owner is not None:
            raise self._transaction.obstacle()
        self._check()
        try:
            self._writer_lock.acquire()
            self.epoch += 1
            for text in driver.SHRINK:
                self._execute(text)
        except driver.ERRORS as error:
            raise self._failure(error, "shrinking") from error
        finally:
            self._writer_lock.release()

    # Lifecycle.

    def used_here(self) -> bool:
        """Whether this thread is within an operation, as a destructor's may be."""
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
        """Whether some thread is within a caller's transaction."""
        return self._transaction.owner is not None

    @property
    def replaced(self) -> StoreReplacedError | None:
        """That one of its files was found removed or replaced."""
        failure = self._poison.failure
        return failure if isinstance(failure, StoreReplacedError) else None

    @property
    def is_closing(self) -> bool:
        """Whether :meth:`try_close` has begun to let go of the file."""
        return self._is_closing

    def try_close(self) -> bool:
        """Let go of the file, if no other thread is within an operation; whether that was so."""
        held: list[threading.Lock] = []
        try:
            return self._close_quiesced(held)
        except BaseException as error:
            release_all(held)  # that may have been interrupted
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
        """Idempotent, also where it was interrupted."""
        if self._opened is None:
            return
        # An interrupt of one step leaves none of the others out, and that one to the next call.
        try:
            try:
                try:
                    self._watcher.close()
                    for connection in self._readers.close(FORK_TIMEOUT):
                        leak(connection)
                finally:
                    # Before others may find it closed, and take what they have committed for synced.
                    self._wal_sync.finish()
            finally:
                self._opened.close()
        except Exception:
            self._opened = None
            raise
        self._opened = None

    def _quiesce(self, timeout: float, held: list[threading.Lock]) -> bool:
        """Let nobody use it, once nobody does; whether that came about within so many seconds.

        :param held: for :func:`~persistcoll.sqlite.owned_lock.release_all`.
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

    # SQLite keeps a process's locks in memory, of which a forked child gets a copy: it would take its
    # parent's for its own. So nothing is connected while a process forks; both connect anew.

    def _try_quiesce(self, timeout: float) -> bool:
        self._is_quiesced = self._quiesce(timeout, self._held)
        return self._is_quiesced

    def _before_fork(self) -> None:
        # For a thread that forks within its own operation nobody waits: it does not come to rest.
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
        self._reset()
        if was_quiesced and self.path == MEMORY and opened is not None:  # the child has a copy
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
        self._poison.set(StorageError((_FORKED if fork_was_seen() else UNSEEN).format(self.path)))
