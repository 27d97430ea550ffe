"""One database file in this process: the connection that writes, and the order in which callers use it.

All containers of a process on a file share it. Callers on several threads are combined: one of them runs the
work of all who wait in one transaction. Between processes the writers queue for the file's
:class:`~persistcoll.tables.writer_lock.WriterLock`.

What has to survive a power cut is committed first, without a sync, and then the write-ahead log is synced,
outside of all locks: others go on to write meanwhile, in this process and in others, and one of those who
wait syncs for all. At SQLite's own ``synchronous=FULL`` a writer keeps everybody waiting while it syncs.
Measured with 8 processes, beside 1: that way 0.7 times as many writes and 33 to 49 ms at worst, this way 1.1
to 1.3 times as many and 12 to 19 ms.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from persistcoll.engine.combining import Combiner
from persistcoll.engine.lifecycle import FORK_PATIENCE, quiesce_for_forks, quiesce_no_more
from persistcoll.errors import ClosedError, StorageError
from persistcoll.group_commit import GroupCommit
from persistcoll.tables import sqlite
from persistcoll.tables.dialect import Execute
from persistcoll.tables.ledger import Ledger
from persistcoll.tables.log import LogRoom
from persistcoll.tables.readers import Readers
from persistcoll.tables.reading import REENTRANT, Readable
from persistcoll.tables.source import LOG, MEMORY, Opened, Source
from persistcoll.tables.sqlite import SQLite, leak
from persistcoll.tables.watcher import Watcher
from persistcoll.tables.work import Work

__all__ = ["Database"]

T = TypeVar("T")
_REMEDY = "close all that this process has open in that file, and open it again"
_INTERRUPTED = "the thread that did this for another was interrupted; nothing is stored"
_FORKED = "{!r} cannot be used by a process that was forked within a transaction"


class Database(Readable):
    """A database that this process has open. From any thread.

    :ivar ledgers: of its tables, by their numbers.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.path, self.disk = source.path, source.disk
        self.dialect = SQLite()
        self.epoch = 0
        self.ledgers: dict[int, Ledger] = {}
        self._shut = False
        self._reset()
        self._use(source.open(self.dialect))
        quiesce_for_forks(self)

    def _reset(self) -> None:
        self.epoch += 1
        self._combiner = Combiner[Work[Any]](self._perform)
        self._mutex = threading.Lock()
        self._log = GroupCommit(self.disk, self.path + LOG, self._poison)
        self._room = LogRoom(self.disk)
        self._short = False  # the log; to be made longer
        self._watcher = Watcher(self._connect_reader)
        self._readers = Readers(self._connect_reader)
        self._dirty: dict[Ledger, None] = {}
        self._alone: int | None = None  # the thread within transaction()
        self._user: int | None = None  # the thread that has the mutex
        self._trouble: StorageError | None = None
        self._failed: StorageError | None = None
        self._opened: Opened | None = None
        self._at_rest = False
        self._held: list[threading.Lock] = []

    def _use(self, opened: Opened) -> None:
        self._opened = opened
        self._connection = opened.connection
        # One cursor for all: a new one for each statement costs 0.15 us.
        cursor = opened.connection.cursor()
        self._execute: Execute = cursor.execute
        self.executemany = cursor.executemany
        self._lock = opened.lock
        self.store_id, self.now = opened.store_id, opened.clock
        self._execute(sqlite.NORMAL)
        self._log.switch(opened.log, self.path + LOG, 0)
        self._room.use(opened.log)
        self.epoch += 1
        self._seen = opened.connection.total_changes, self.epoch

    def _check(self) -> None:
        """With the mutex held: refuse, or open anew in a forked child."""
        if self._trouble is not None:
            raise StorageError(f"{self._trouble}; {_REMEDY}", self._trouble.errno) from self._trouble
        if self._shut:  # by another thread, when the caller was past its own check
            raise ClosedError(f"{self.path!r} was closed meanwhile")
        if self._opened is None:
            self._use(self.source.open(self.dialect))

    def _failure(self, error: Exception, doing: str) -> StorageError:
        failure = self.dialect.translate(error, doing, self.path)
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

    def write(self, run: Callable[[Execute], T], sync: bool, whole: bool = True) -> T:
        """``run`` in a transaction, which is committed when this returns.

        :param sync: and on the device. Others may see it before it is.
        :param whole: there may be several changes. A single one is a transaction of its own in SQLite: 1.2 us
            less. It is the last thing that ``run`` does, and :meth:`begin` comes before any other.
        """
        if self._alone is not None and self._alone == threading.get_ident():
            return self._within(run)
        # Alone, which is the rule, there is nobody to combine with. Who wants a sync while another one syncs
        # waits, and has one transaction and one sync with all who do: a transaction costs a thread 20 us.
        me = threading.get_ident()
        if self._user is None and not (sync and (self._combiner.leading or self._log.syncing)):
            # No call before the thread is noted: behind one, a destructor or a signal handler may come in.
            with self._mutex:
                self._user = me
                try:
                    value = self._write_alone(run, whole)
                    ticket = self._draw_ticket() if sync else 0
                finally:
                    self._user = None
            if sync:
                self._log.commit(ticket)
            return value
        if self._user == me:
            raise StorageError(REENTRANT.format(self.path))
        work = Work(run, sync)
        self._combiner.submit(work)
        return work.value

    def _draw_ticket(self) -> int:
        """With the mutex held: for the sync of what was committed, if anything was: here, or by others, whose
        unsynced change an operation that changed nothing may tell of. In memory there is nothing to sync.
        """
        seen = self._connection.total_changes, self.epoch
        if seen != self._seen and self.path != MEMORY:
            self._seen = seen
            self._log.written += 1
            self._short = self._room.is_short()
        return self._log.written

    def _write_alone(self, run: Callable[[Execute], T], whole: bool) -> T:
        """With the mutex held. As :meth:`_perform` for one, in fewer calls: 2 us of the 12 of a ``put``."""
        if self._trouble is not None or self._opened is None:
            self._check()
        refusal = None
        try:
            self._begin(whole)
            try:
                value = run(self._execute)
            except Exception as error:
                if isinstance(error, self.dialect.Error):
                    raise
                refusal = error
            self._commit()
        except BaseException as error:
            self._roll_back(error)
            if isinstance(error, self.dialect.Error):
                raise self._failure(error, "writing") from error
            raise
        finally:
            self._lock.release()
        if refusal is not None:
            raise refusal
        return value

    @contextmanager
    def transaction(self, sync: bool) -> Iterator[None]:
        """All that this thread does within is one transaction; others wait meanwhile.

        What fails for the database's reasons ends it: all is refused until the block's end, which raises.
        """
        me = threading.get_ident()
        if self._alone == me:
            yield
            return
        with self._using():
            self._check()
            try:
                self._begin()
                self._alone = me
                yield
                if self._failed is not None:
                    raise self._failed
                # Only here: an error of the driver's out of the block is about a database of the caller's.
                try:
                    self._commit()
                except self.dialect.Error as error:
                    raise self._failure(error, "writing") from error
            except BaseException as error:
                self._roll_back(error)
                raise
            finally:
                self._alone = self._failed = None
                self._lock.release()
            ticket = self._draw_ticket() if sync else 0
        if sync:
            self._log.commit(ticket)

    def changed(self, ledger: Ledger) -> None:
        """Within ``write``: this ledger is to be written, too."""
        self._dirty[ledger] = None

    def _perform(self, batch: Sequence[Work[Any]], waiting: Callable[[], None]) -> None:
        with self._using():
            try:
                self._check()
            except Exception as error:
                for work in batch:
                    work.failure = error
                return
            sync = any(work.sync for work in batch)
            try:
                if not self._transact(batch, None if sync else waiting):
                    return
            finally:
                self._lock.release()
            ticket = self._draw_ticket() if sync else 0
        if sync:
            waiting()
            try:
                self._log.commit(ticket)
            except StorageError as error:
                for work in batch:
                    if work.sync:
                        work.failure = work.failure or error

    def _transact(self, batch: Sequence[Work[Any]], waiting: Callable[[], None] | None) -> bool:
        """Whether it is committed; else all of them know why not."""
        execute = self._execute
        try:
            try:
                self._begin()
            except StorageError as error:
                for work in batch:
                    work.failure = error
                return False
            for work in batch:
                try:
                    work.value = work.run(execute)
                except Exception as error:
                    if isinstance(error, self.dialect.Error):
                        raise
                    work.failure = error
            if waiting is not None:
                waiting()
            self._commit()
            return True
        except BaseException as error:
            committed = self._roll_back(error)
            if isinstance(error, self.dialect.Error):
                for work in batch:
                    work.failure = self._failure(error, "writing")
                return False
            if not committed:
                for work in batch[1:]:
                    work.failure = StorageError(_INTERRUPTED)
            raise

    def begin(self) -> None:
        """Within ``write``: what follows is several changes."""
        if not self._connection.in_transaction:
            self._execute(sqlite.BEGIN)

    def _begin(self, whole: bool = True) -> None:
        """Within a ``try`` that rolls back and lets go of the lock: an interrupt may come right behind."""
        try:
            if not self._lock.acquire():
                self.epoch += 1
            if whole or self._short:
                self._execute(sqlite.BEGIN)
        except self.dialect.Error as error:
            raise self._failure(error, "writing") from error

    def _commit(self) -> None:
        if self._dirty:
            for ledger in self._dirty:
                ledger.save(self._execute)
            self._dirty.clear()
        if self._connection.in_transaction:
            if self._short:
                self._short = False
                self._room.lengthen()
            self._execute(sqlite.COMMIT)

    def _roll_back(self, error: BaseException) -> bool:
        """After this error; whether it is too late: what interrupts may do so right behind the commit."""
        self.epoch += 1
        self._dirty.clear()
        if self._connection.in_transaction:
            self._execute(sqlite.ROLLBACK)
            return False
        # The database's own errors have rolled back by themselves.
        return not isinstance(error, self.dialect.Error)

    def shrink(self) -> None:
        """Give unused room back to the file system; others wait meanwhile."""
        with self._using():
            self._check()
            try:
                self._lock.acquire()
                self.epoch += 1
                for text in sqlite.SHRINK:
                    self._execute(text)
            except self.dialect.Error as error:
                raise self._failure(error, "shrinking") from error
            finally:
                self._lock.release()

    def shut(self) -> bool:
        """Let go of the file, if no other thread is within an operation; whether that was so."""
        held: list[threading.Lock] = []
        try:
            if not self._rest(0.0, held):
                return False
            self._shut = True
            self._disconnect()
        finally:
            self._go_on(held)
            if self._shut:
                quiesce_no_more(self)
        return True

    def _disconnect(self) -> None:
        if self._opened is None:
            return
        self._opened = None
        # An interrupt of one step leaves none of the others out.
        try:
            try:
                self._watcher.close()
                for connection in self._readers.close(FORK_PATIENCE):
                    leak(connection)
            finally:
                # Before others may find it closed, and take what they have committed for synced.
                self._log.finish()
        finally:
            self._close_connection()

    def _close_connection(self) -> None:
        try:
            # Under the lock: the last connection that closes makes a checkpoint.
            try:
                self._lock.acquire()
                self._connection.close()
            finally:
                self._lock.release()
        finally:
            self._lock.close()

    def _after_fork(self) -> None:
        at_rest, opened, watcher = self._at_rest, self._opened, self._watcher.connection
        self._log.abandon()
        self._reset()
        if at_rest and self.path == MEMORY and opened is not None:  # the child has a copy
            self._use(opened)
            return
        leak(self._connection)  # also where closing it failed
        if opened is None:
            return
        # A serializer, or a transaction's own thread, forked in the middle.
        leak(watcher)
        opened.lock.close()
        self._trouble = StorageError(_FORKED.format(self.path))
