"""Open a database file, make it if it is missing, and check it before anything in it is used."""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from persistcoll.disk.calls import Disk, OpenFile, storage_error
from persistcoll.disk.path_checks import (
    existing,
    is_unwritable,
    make_directory,
    occupied,
    ownership_of,
    refuse_if_others_may_write,
    refuse_network,
    unwritable,
)
from persistcoll.errors import (
    CorruptionError,
    FormatVersionError,
    StorageError,
    StoreKindError,
    StoreMissingError,
    StoreReplacedError,
)
from persistcoll.sqlite import driver, schema
from persistcoll.sqlite.clock import Clock
from persistcoll.sqlite.driver import Execute
from persistcoll.sqlite.writer_lock import (
    NoLock,
    TransactionOpen,
    WriterLock,
    identity_of,
    read_identity,
)

__all__ = ["INDEX", "LOG", "MEMORY", "DatabaseConnection", "DatabaseFile"]

MEMORY = ":memory:"
# Suffixes of the database's path: of the write-ahead log, and of SQLite's index of it.
LOG = "-wal"
INDEX = "-shm"
LOCK, TURN = ".lock", ".turn"
_FILES = ("", LOG, INDEX, LOCK, TURN)
# What a directory holds, by the names of files that only directories of that kind have.
_FOREIGN_FILES = {
    frozenset({"info", "producer.lock"}): "a file queue",
    frozenset({"info", "q00000"}): "a file queue",
    frozenset({"cache.db"}): "a cache of diskcache",
}
_FOREIGN = "{!r} holds another application's tables ({!r}); choose another file"
_log = logging.getLogger("persistcoll")


class DatabaseConnection(NamedTuple):
    """An open database: SQLite's connection and what belongs to it.

    :ivar log: the write-ahead log, opened to sync it; ``None`` in memory. SQLite has no lock on that file
        that closing it could drop.
    :ivar files: the device and inode of each of the database's files, by their paths.
    """

    connection: driver.WritingConnection
    lock: WriterLock | NoLock
    log: OpenFile | None
    store_id: bytes
    clock: Clock
    files: dict[str, tuple[int, int]]

    def close(self) -> None:
        """Close the connection and the lock's files. Idempotent, also after an interrupt."""
        # Close under the writer lock, because the last connection makes a checkpoint. Without the lock only
        # while another process has a transaction open: then this connection is not the last one.
        lock = self.lock
        try:
            try:
                if not lock.closed:
                    with suppress(TransactionOpen, StoreReplacedError):
                        lock.acquire()
            finally:
                driver.close(self.connection)
        finally:
            try:
                if not lock.closed:
                    lock.release()
            finally:
                lock.close()


@dataclass(frozen=True)
class DatabaseFile:
    """Where a database lies, and how it is opened.

    :ivar path: absolute, without symbolic links; or ``":memory:"``.
    :ivar timeout: seconds to wait for another program's lock.
    :ivar mode: the permission bits of a new file. Files beside the database get its mode and its group.
    :ivar create: whether to make it if it is missing.
    """

    path: str
    timeout: float = 10.0
    allow_network_fs: bool = False
    mode: int | None = None
    create: bool = True
    disk: Disk = field(default_factory=Disk, compare=False)

    def check_permissions(self, serializer: str) -> None:
        """Raise ``StorageError`` if other users may write it, because this serializer runs what it reads."""
        if self.path != MEMORY:
            names = (os.path.dirname(self.path), *(self.path + suffix for suffix in ("", LOG, ".lock")))
            refuse_if_others_may_write(names, serializer, self.mode)

    def disk_usage(self, suffixes: tuple[str, ...] = ("", LOG)) -> int:
        """Return the size of the database and its log in bytes, or of the files with these suffixes."""
        return 0 if self.path == MEMORY else occupied(self.path + suffix for suffix in suffixes)

    def open(self) -> DatabaseConnection:
        """Open the database, and make it first if it is missing.

        Cost: several syncs if it is made; otherwise some reads, and a checkpoint of what the log holds.

        :raise StoreMissingError: it is missing, and is not to be made.
        :raise StoreKindError: it is no database, or another application's.
        :raise FormatVersionError: a later version made it.
        :raise CorruptionError: it is damaged, or lost.
        :raise StorageError: it cannot be opened or written.
        """
        if self.path == MEMORY:
            return self._open_in_memory()
        if not self.create:
            self.existing("open")
        folder = os.path.dirname(self.path)
        self._own(self.mode)
        make_directory(self.disk, folder)
        if not self.allow_network_fs:
            refuse_network(folder)
        self._refuse_unwritable()
        self._refuse_foreign_directory(folder)
        is_first = not os.path.exists(self.path + LOCK)
        lock = WriterLock(self.disk, self.path)
        connection = opened = None
        try:
            identity = lock.identity()
            lock.acquire_within(self.timeout)
            identity = identity or lock.identity()
            if identity is not None and not self.disk_usage(("",)):
                raise self._lost()  # otherwise SQLite would remove the log, because the database is empty
            self._make_file()
            with self.translated():
                connection = driver.connect(self.path, self.timeout)
                opened = self._prepare(connection, lock, identity)
            lock.release()
            return opened
        except BaseException as error:
            # Close the connection before the lock file: otherwise it would be closed without the writer lock.
            if connection is not None:
                driver.close(connection)
            if opened is not None and opened.log is not None:
                opened.log.close()
            if is_first and isinstance(error, StoreKindError):
                lock.remove()  # leave nothing beside another program's database
            lock.close()
            if isinstance(error, OSError) and not isinstance(error, StorageError):
                raise storage_error(error, "opening", self.path) from error
            raise

    def _open_in_memory(self) -> DatabaseConnection:
        connection = driver.connect(MEMORY, self.timeout)
        driver.prepare(connection, MEMORY)
        with _transaction(connection):
            schema.create(connection.execute)
            now = schema.clock(connection.execute)
        return DatabaseConnection(connection, NoLock(), None, schema.store_id(connection.execute), now, {})

    def _refuse_unwritable(self) -> None:
        path = self.path
        if os.path.isdir(path):
            raise self._directory()
        for name in (path, path + LOG, path + INDEX):
            if is_unwritable(name):
                raise unwritable(name)

    def _own(self, mode: int | None = None) -> None:
        """Give the database's mode and group to the files that are made beside it."""
        exists = os.path.exists(self.path)
        self.disk.ownership = ownership_of(self.path, None if exists else mode)

    def _refuse_foreign_directory(self, folder: str) -> None:
        if os.path.exists(self.path):
            return
        try:
            names = set(os.listdir(folder))
        except OSError as error:
            raise storage_error(error, "listing", folder) from error
        for found, what in _FOREIGN_FILES.items():
            if found <= names:
                raise StoreKindError(f"{folder!r} is the directory of {what}; choose another one")

    def _make_file(self) -> None:
        """Create the file, if it is missing, with its mode and group, which SQLite would not give it.

        Never open an existing one here: closing any descriptor of a database that this process has open drops
        the locks that SQLite holds on it.
        """
        disk = self.disk
        try:
            OpenFile(disk, self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL).close()
            disk.sync_directory(os.path.dirname(self.path))
            self._own()
        except FileExistsError:
            pass
        except OSError as error:
            raise storage_error(error, "creating", self.path) from error

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Translate errors of the driver, and errors of values that are read from a damaged database."""
        try:
            yield
        except driver.ERRORS as error:
            raise driver.translate(error, "opening", self.path) from error
        except (TypeError, ValueError, OverflowError) as error:
            # A row is missing, or a NULL or a text is where a number was.
            message = f"opening {self.path!r} failed: the database is damaged ({error})"
            raise CorruptionError(message, self.path) from error

    def first_table(self, execute: Execute) -> str | None:
        """Return the name of a table in the database, or ``None`` if it is empty.

        :raise StoreKindError: it is another application's.
        :raise FormatVersionError: a later version made it.
        """
        (application,) = execute("PRAGMA application_id").fetchone()
        (version,) = execute("PRAGMA user_version").fetchone()
        row = execute("SELECT name FROM sqlite_master WHERE type = 'table' LIMIT 1").fetchone()
        if row is None:
            return None
        (table,) = row
        if application != schema.APPLICATION_ID:
            raise StoreKindError(self._foreign(execute, table, application))
        if version > schema.VERSION:
            raise FormatVersionError(
                f"{self.path!r} has format version {version}; this release reads version {schema.VERSION}"
            )
        return str(table)

    def _prepare(self, connection: Any, lock: WriterLock, identity: bytes | None) -> DatabaseConnection:
        execute = connection.execute
        table = self.first_table(execute)
        if table is None and identity is not None:
            raise self._lost()
        driver.prepare(connection, self.path)
        with _transaction(connection):
            if table is None:
                schema.create(execute)
            now = schema.clock(execute)
            store_id = schema.store_id(execute)
        if identity != store_id:
            lock.set_identity(store_id)
        log = self._open_log()
        files = {path: identity_of(path) for path in (self.path + suffix for suffix in _FILES)}
        return DatabaseConnection(connection, lock, log, store_id, now, files)

    def existing(self, purpose: str) -> os.stat_result:
        """Return the status of the file, which has to exist and must not be empty. Makes nothing.

        :param purpose: as of :func:`~persistcoll.disk.path_checks.existing`.
        :raise StoreKindError: it is no file.
        :raise StoreMissingError: it does not exist, or is empty.
        :raise CorruptionError: it does not exist, or is empty, and the lock file says that it did hold a
            database.
        """
        try:
            found = existing(self.path, purpose)
            if stat.S_ISDIR(found.st_mode):
                raise self._directory()
            if not stat.S_ISREG(found.st_mode):  # SQLite would wait for what comes out of a pipe
                raise StoreKindError(f"{self.path!r} is neither a file nor a directory")
            if not found.st_size:
                raise self.empty(purpose)
        except StoreMissingError as error:
            if read_identity(self.disk, self.path + LOCK) is not None:
                raise self._lost() from error
            raise
        return found

    def _directory(self) -> StoreKindError:
        return StoreKindError(f"{self.path!r} is a directory, not a database file", errno.EISDIR)

    def empty(self, purpose: str) -> StoreMissingError:
        """Return the error for a file in which there is nothing."""
        return StoreMissingError(f"there is nothing to {purpose}: {self.path!r} is empty", errno.ENOENT)

    def _lost(self) -> CorruptionError:
        lock = self.path + LOCK
        return CorruptionError(
            f"{self.path!r} is empty, but it was not when {lock!r} was written. Put the database back,"
            " or remove that file as well to begin anew",
            self.path,
        )

    def _foreign(self, execute: Execute, table: str, application: int) -> str:
        names = {
            name for (name,) in execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        }
        if application == 0 and names >= schema.TABLES:
            return (
                f"{self.path!r} is a restored dump of a database of persistcoll: a dump does not hold what"
                f" marks it. Check that it is whole, and run in it: PRAGMA application_id="
                f"{schema.APPLICATION_ID}; PRAGMA user_version={schema.VERSION}"
            )
        return _FOREIGN.format(self.path, table) + _hint(table)

    def _open_log(self) -> OpenFile:
        path = self.path + LOG
        # SQLite gives both files the database's mode, but not its group. Change it by path, because closing
        # a descriptor of the index would drop SQLite's locks on it.
        for name in (path, self.path + INDEX):
            with suppress(OSError):
                if os.stat(name).st_gid != self.disk.ownership.group >= 0:
                    os.chown(name, -1, self.disk.ownership.group, follow_symlinks=False)
        try:
            return OpenFile(self.disk, path, os.O_RDWR)
        except OSError as error:
            raise storage_error(error, "opening", path) from error


def _hint(table: str) -> str:
    # The tables of persist-queue, whose databases have the same default name.
    if table.startswith(("queue_", "ack_", "unique_queue_", "priority_queue_", "dict_")):
        return (
            "; they look like persist-queue's: get the items with persist-queue and put them into a new file"
        )
    return ""


@contextmanager
def _transaction(connection: Any) -> Iterator[None]:
    connection.execute(driver.BEGIN)
    try:
        yield
        connection.execute(driver.COMMIT)
    except BaseException:
        if connection.in_transaction:
            connection.execute(driver.ROLLBACK)
        raise
