"""The databases that this process has open, each of them once."""

from __future__ import annotations

import errno
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from persistcoll.engine.forks import FORK_TIMEOUT, fork_was_seen, in_operation, register_quiescent
from persistcoll.engine.process import SAME, follow_fork
from persistcoll.errors import StorageError, StoreReplacedError
from persistcoll.sqlite.database import REMEDY, UNSEEN, Database
from persistcoll.sqlite.database_file import INDEX, LOG, MEMORY, DatabaseFile
from persistcoll.sqlite.driver import Execute
from persistcoll.sqlite.owned_lock import OwnedLock, release_all

__all__ = ["DATABASES", "Registry"]

T = TypeVar("T")
_PAUSE = 0.0005  # seconds
_OPENING = "nothing can be opened while this thread opens or closes something else"


class Registry:
    """The databases that this process has open, and by how many collections each."""

    def __init__(self) -> None:
        # It protects all fields. A thread that has it waits for no operation of this process, because that
        # may be waiting for it.
        self._lock = OwnedLock()
        self._open: dict[str, Database] = {}
        self._inherited: set[str] = set()  # open in the process that this one was forked from, unseen
        self._pending_close: deque[Database] = deque()
        self._held: list[threading.Lock] = []  # for a fork
        register_quiescent(self)

    def acquire(self, source: DatabaseFile, users: list[Database]) -> Database:
        """The database, noted in ``users`` for :meth:`release` before anything can be interrupted."""
        if source.path == MEMORY:  # each one its own
            users.append(Database(source))
            return users[0]
        if not SAME[0]:
            follow_fork()
        if source.path in self._inherited:
            raise StorageError(UNSEEN.format(source.path))
        if self._lock.is_owned():
            raise StorageError(_OPENING)
        with self._lock.mutex:
            database = self._open.get(source.path)
            if database is not None and not self._is_usable(database):
                database = None
            if database is None:
                database = self._open[source.path] = Database(source)
            database.users += 1
            users.append(database)
        self.close_pending()
        return database

    def read_snapshot(
        self, path: str, query: Callable[[Execute], T], read_alone: Callable[[Callable[[Execute], T]], T]
    ) -> T:
        """``look`` through the database that this process has open there; otherwise ``beside`` does it, and
        nothing is opened meanwhile: SQLite shares the index of the log between all connections of a
        process, which could not write if the first one could not.
        """
        if not SAME[0]:
            follow_fork()
        if path in self._inherited:
            raise StorageError(UNSEEN.format(path))
        if self._lock.is_owned():
            raise StorageError(_OPENING)
        users: list[Database] = []
        try:
            with self._lock.mutex:
                database = self._open.get(path)
                if database is None or not self._is_usable(database):
                    return read_alone(query)
                database.users += 1
                users.append(database)
            try:
                return database.read_snapshot(query)
            except StorageError as error:
                if error.errno not in (errno.EACCES, errno.EROFS):
                    raise
                # Inherited by a fork, and this process has fewer rights: nobody here will ever write.
                return read_alone(query)
        finally:
            self.release(users)

    def release(self, users: list[Database]) -> None:
        """By a handle that used what is in the list, which is empty then. Idempotent."""
        try:
            self._release(users)
        except BaseException:  # out of a signal handler: what it cut short is done all the same
            self._release(users)
            raise

    def _release(self, users: list[Database]) -> None:
        with suppress(IndexError):
            self._pending_close.extend(iter(users.pop, None))  # one call: either still there or already here
        self.close_pending()

    def close_pending(self) -> None:
        """Shut those that nobody uses any more.

        By a thread that is within an operation, as the garbage collector may be, it is left to whoever calls
        this next; one in a caller's transaction is left to who calls this at its end.
        """
        while self._pending_close and not in_operation():
            with self._lock.mutex:
                for _ in range(len(self._pending_close)):
                    self._close_first()
            if all(database.in_transaction for database in list(self._pending_close)):
                return
            time.sleep(_PAUSE)

    def _is_usable(self, database: Database) -> bool:
        """Whether it can be opened once more: otherwise a new one is, and that one is left to its users."""
        if database.is_closing:  # not to its end, because that was interrupted
            database.try_close()
            return False
        with suppress(StoreReplacedError):
            database.check_files()
        replaced = database.replaced
        if replaced is not None and (replaced.path or "").endswith((LOG, INDEX)):
            # SQLite itself shares these within a process, for as long as the same database is open.
            raise StoreReplacedError(f"{replaced}; {REMEDY}", replaced.path)
        return replaced is None

    def _close_first(self) -> None:
        """Of those left. Under the mutex: two databases of one process on a file would close each other's
        locks.
        """
        pending = self._pending_close
        database = pending[0]
        if database.users > 1:
            database.users -= 1
            del pending[0]  # nothing was called in between, behind which an interrupt could come
        elif database.try_close():
            if self._open.get(database.path) is database:
                del self._open[database.path]
            del pending[0]
        else:
            pending.rotate(-1)

    def used_here(self) -> bool:
        """Whether this thread is opening or shutting one."""
        return self._lock.is_owned()

    # A database that is being opened while the process forks would be inherited half open.

    def _before_fork(self) -> None:
        self._lock.quiesce(FORK_TIMEOUT, self._held)

    def _after_fork_in_parent(self) -> None:
        release_all(self._held)

    def _after_fork(self) -> None:
        self._lock = OwnedLock()
        self._held = []
        if not fork_was_seen():
            self._inherited.update(self._open)


DATABASES = Registry()
"""Those of this process."""
