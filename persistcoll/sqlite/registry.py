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
    """The databases that this process has open, and the number of handles that use each.

    ``_lock`` protects all fields and the ``users`` of every database. A thread that holds it waits for no
    operation of this process, because that operation may be waiting for it. ``_pending_close`` gets entries
    without the lock, by one atomic call.
    """

    def __init__(self) -> None:
        self._lock = OwnedLock()
        self._open: dict[str, Database] = {}
        self._inherited: set[str] = set()  # paths that were open in the parent, after an unseen fork
        self._pending_close: deque[Database] = deque()
        self._held: list[threading.Lock] = []  # held during a fork
        register_quiescent(self)

    def acquire(self, source: DatabaseFile, users: list[Database]) -> Database:
        """Return the database, opened if it is not, and count one more user.

        :param users: gets the database, for :meth:`release`, before an interrupt can come.
        """
        if source.path == MEMORY:  # each handle has a database of its own
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
        """Return what ``query`` reads, through the database if this process has it open.

        Otherwise ``read_alone`` executes it, and no database is opened meanwhile. SQLite shares the index of
        the log between all connections of a process: if the first connection cannot write, no later one
        could.
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
                # The database was inherited by a fork, and this process has fewer rights, so it never writes.
                return read_alone(query)
        finally:
            self.release(users)

    def release(self, users: list[Database]) -> None:
        """Release the database in ``users``, for a handle that used it, and empty the list. Idempotent."""
        try:
            self._release(users)
        except BaseException:  # a signal handler raised: finish what it interrupted
            self._release(users)
            raise

    def _release(self, users: list[Database]) -> None:
        with suppress(IndexError):
            # One call, so that an interrupt finds the database in one of the two lists.
            self._pending_close.extend(iter(users.pop, None))
        self.close_pending()

    def close_pending(self) -> None:
        """Close the databases that no handle uses any more.

        A thread that is within an operation, as one that runs a destructor may be, leaves that to the next
        call of this method. A database in which a caller's transaction is open is left to the call at the
        transaction's end.
        """
        while self._pending_close and not in_operation():
            with self._lock.mutex:
                for _ in range(len(self._pending_close)):
                    self._close_first()
            if all(database.in_transaction for database in list(self._pending_close)):
                return
            time.sleep(_PAUSE)

    def _is_usable(self, database: Database) -> bool:
        """Tell whether an open database can serve a new handle; otherwise its old users keep it."""
        if database.is_closing:  # an interrupt came before the end of its closing
            database.try_close()
            return False
        with suppress(StoreReplacedError):
            database.check_files()
        replaced = database.replaced
        if replaced is not None and (replaced.path or "").endswith((LOG, INDEX)):
            # SQLite shares these two files within a process as long as the database is open, so opening it
            # again would use the replaced ones.
            raise StoreReplacedError(f"{replaced}; {REMEDY}", replaced.path)
        return replaced is None

    def _close_first(self) -> None:
        """Close the first of the pending databases, or make it the last one. Call it with the lock held.

        Without the lock another thread could open the file again meanwhile. Two databases of one process on
        one file would drop each other's locks by closing.
        """
        pending = self._pending_close
        database = pending[0]
        if database.users > 1:
            database.users -= 1
            del pending[0]  # no call since the line above, so an interrupt cannot come between the two
        elif database.try_close():
            if self._open.get(database.path) is database:
                del self._open[database.path]
            del pending[0]
        else:
            pending.rotate(-1)

    def used_here(self) -> bool:
        """Tell whether this thread is opening or closing a database."""
        return self._lock.is_owned()

    # A fork waits until no database is being opened: otherwise the child would inherit it half open.

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
"""The databases of this process."""
