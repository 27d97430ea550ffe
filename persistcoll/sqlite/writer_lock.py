"""The queue in which the writers of all processes wait, and what they must know of the last one.

Every write transaction, every checkpoint and the closing of every connection happen under a ``flock`` on a
file beside the database. SQLite has locks of its own, but a connection that finds them locked sleeps and
tries again. With a ``flock`` the kernel wakes the next process. Measured with 8 processes that sync each
write: 5,200 writes a second and a longest wait of 9 ms with the ``flock``, 2,400 and 630 ms without it. It
also keeps two connections from writing and checkpointing at the same time, by which SQLite before 3.51.3 may
lose pages (https://sqlite.org/wal.html#walresetbug).

The kernel grants a ``flock`` to the first process that asks when it is free, and mostly that is the process
that has just released it. So a writer first locks a second file, the turn file, and keeps it locked until it
has the writer lock. It may then take the writer lock again and again without the turn file, but for four
milliseconds only, which are its turn. Measured with the same 8 processes: a longest wait of 8 to 30 ms with
turns, 50 to 130 ms without them.

A caller's transaction keeps the writer lock for as long as the caller wants, so no other process waits in the
kernel for its end. The transaction writes a note of its process and its beginning into the lock file, and
:meth:`WriterLock.acquire` raises :exc:`TransactionOpen` if it finds a note. A transaction acquires the writer
lock only while it has the turn file locked, and writes its note before it unlocks the turn file. Therefore a
writer that has the turn file locked and finds no note waits for an ordinary writer, whose turn is short.

The lock file holds, after a magic number, three things. The first is the token of the connection that wrote
last: as long as that is a connection's own token, what it remembers of the database is true. The second is
the id of the database, so that a lost database is not taken for a new one. The third is the note of a
transaction. A note begins with the token of its connection, and is valid as long as that is also the token of
the file. So the note of a process that died is not valid any more once another process has written.
"""

from __future__ import annotations

import errno
import os
import secrets
import struct
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from zlib import crc32

from persistcoll.disk.calls import (
    EXCLUSIVE,
    TRY_EXCLUSIVE,
    UNLOCK,
    UNSEEN_CALLS,
    Disk,
    OpenFile,
    open_lasting,
    read_fully,
    storage_error,
)
from persistcoll.errors import LockedError, StorageError, StoreKindError, StoreReplacedError
from persistcoll.sqlite.clock import steady

__all__ = ["NoLock", "TransactionOpen", "WriterLock", "identity_of", "read_identity"]

_MAGIC = b"pcoll db"
_TOKEN_SIZE = 8
_TOKEN_AT = len(_MAGIC)
_IDENTITY = struct.Struct("<16sI")
# Seconds. Each turn begins with a check that the files are still there, which is repeated after each
# UNSEEN_CALLS calls.
_TURN = 0.004
# Nanoseconds: more than the time between two ticks of the clock that stamps files.
_TICK = 50_000_000
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.0001, 0.001
_IDENTITY_AT = _TOKEN_AT + _TOKEN_SIZE
_NOTE = struct.Struct(f"<{_TOKEN_SIZE}sQd")
_NOTE_AT = _IDENTITY_AT + _IDENTITY.size


class TransactionOpen(Exception):
    """A caller's transaction is open.

    :param pid: of the process that has it open.
    :param since: when it began, by :func:`~persistcoll.sqlite.clock.steady`.
    :param is_own: whether that is this process. The numbers do not tell: two containers may share a file.
    """

    def __init__(self, pid: int, since: float, is_own: bool) -> None:
        super().__init__(pid, since)
        self.pid = pid
        self.since = since
        self.is_own = is_own

    def refusal(self, path: str) -> LockedError:
        """Return the error for a call that waits no longer."""
        age = max(0.0, steady() - self.since)
        where = "another thread of this process" if self.is_own else "another process"
        return LockedError(
            f"{path!r}: {where} ({self.pid}) has had a transaction open for {age:.1f} s; nothing was done;"
            " call again when it has ended",
            self.pid,
        )


def identity_of(file: str | int) -> tuple[int, int]:
    """Return the device and the inode of the file at a path, or of an open file."""
    status = os.stat(file)
    return status.st_dev, status.st_ino


def read_identity(disk: Disk, path: str, fd: int | None = None) -> bytes | None:
    """Return the id of the database that belongs to this lock file, or ``None`` if it was never written.

    :param fd: of the lock file, if it is open.
    :raise StoreKindError: the file is another program's.
    """
    size = _IDENTITY_AT + _IDENTITY.size
    try:
        if fd is not None:
            data = read_fully(disk, fd, size, 0)
        else:
            with OpenFile(disk, path, os.O_RDONLY) as file:
                data = read_fully(disk, file.fd, size, 0)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise storage_error(error, "reading", path) from error
    if data[:_TOKEN_AT].strip(b"\0") and data[:_TOKEN_AT] != _MAGIC:
        raise StoreKindError(f"{path!r} is not a lock file of persistcoll", errno.EEXIST)
    if len(data) < size:
        return None
    identity, checksum = _IDENTITY.unpack_from(data, _IDENTITY_AT)
    return bytes(identity) if crc32(identity) == checksum else None


class WriterLock:
    """The lock file of one database, opened by one connection.

    It has no lock of its own. Its owner calls it under the lock that protects the connection, except
    :meth:`check`: other threads change the mapping ``_files`` meanwhile by atomic calls, and a wrong
    ``_checked_folder`` only costs another check.

    :ivar closed: whether :meth:`close` has begun.
    """

    def __init__(self, disk: Disk, database: str) -> None:
        self._disk = disk
        self.path = database + ".lock"
        self._turn_path = database + ".turn"
        self._turn = 0.0
        self._unseen = 0
        try:
            file = open_lasting(disk, self.path)
            turn_file = open_lasting(disk, self._turn_path)
        except OSError as error:
            raise storage_error(error, "opening", self.path) from error
        self._fd, self._turn_fd = file.fd, turn_file.fd
        self._open = (file, turn_file)
        self._files: Mapping[str, tuple[int, int]] = {}
        self._folder = os.path.dirname(database)
        # The directory's state when all files were last found to be the same; None: check them.
        self._checked_folder: tuple[int, int, int] | None = None
        self._token = secrets.token_bytes(_TOKEN_SIZE)
        self._noted = False
        self.closed = False
        self._flock = disk.flock
        self._read = disk.read
        self.release = partial(disk.flock, self._fd, UNLOCK)
        """Release the lock. No Python function: an interrupt could come where a function begins."""

    def acquire(self, transaction: bool = False) -> bool:
        """Wait for the lock, and return whether no other connection has written since this one did.

        :param transaction: whether to keep it for a caller's transaction; :meth:`end_transaction` has to
            follow.
        :raise TransactionOpen: another process has a caller's transaction open.
        :raise StoreReplacedError: a file was removed or replaced.
        """
        fd, token = self._fd, self._token
        # Release the lock after any error, also after an interrupt that comes directly after the call that
        # acquires it: otherwise the other processes would wait for ever.
        try:
            if transaction or self._noted or time.monotonic() >= self._turn or not self._try():
                try:
                    self._flock(self._turn_fd, EXCLUSIVE)
                    self._acquire_next()
                    if transaction or self._noted:
                        self._note(transaction)
                finally:
                    self._flock(self._turn_fd, UNLOCK)
                self.check()
                self._turn = time.monotonic() + _TURN
                self._unseen = 0
            self._unseen += 1
            if self._unseen > UNSEEN_CALLS:
                self.check()
                self._unseen = 0
            if self._read(fd, _TOKEN_SIZE, _TOKEN_AT) == token:
                return True
            # Before the first change: if this process dies after it, the others know that they must read.
            self._disk.pwrite(fd, token, _TOKEN_AT)
        except BaseException as error:
            try:
                try:
                    self._flock(self._turn_fd, UNLOCK)
                finally:
                    self.release()
            except OSError:
                pass  # report the first error
            if isinstance(error, OSError) and not isinstance(error, StorageError):
                raise storage_error(error, "locking", self.path) from error
            raise
        return False

    def watch(self, files: Mapping[str, tuple[int, int]]) -> None:
        """Check from now on that each of these paths stays that file, once in each turn.

        :param files: all that are to be checked. The caller takes a file out before it removes that file.
        """
        self._files = files
        self._checked_folder = None

    def check(self) -> None:
        """Raise ``StoreReplacedError`` if a file is not the one any more that this connection opened.

        Cost: one ``stat``; one more for each file if the directory changed.
        """
        # The directory's time tells whether a file in it was made, removed or replaced: one `stat` instead of
        # six, twice for each put at "power" (145 us instead of 217).
        folder, changed = None, 0
        try:
            status = os.stat(self._folder)
            changed = status.st_mtime_ns
            folder = status.st_dev, status.st_ino, changed
        except OSError:
            pass  # the checks of the files raise the error
        if folder is not None and folder == self._checked_folder:
            return
        for path, identity in list(self._files.items()):
            try:
                if identity_of(path) == identity:
                    continue
                what = "replaced"
            except (FileNotFoundError, NotADirectoryError):
                what = "removed"
            except OSError as error:
                raise storage_error(error, "looking at", path) from error
            if self._files.get(path) != identity:  # another thread has taken it out since, and removed it
                continue
            raise StoreReplacedError(
                f"{path!r} was {what} while it was open; others would not find what is written now,"
                " or see that this process has items in flight",
                path,
            )
        # A second change within the same tick of the kernel's clock leaves the same time.
        is_exact = folder is not None and time.time_ns() - changed > _TICK
        self._checked_folder = folder if is_exact else None

    def _try(self) -> bool:
        try:
            self._flock(self._fd, TRY_EXCLUSIVE)
        except BlockingIOError:
            return False
        return True

    def _acquire_next(self) -> None:
        """Acquire the lock, with the turn file locked, when the writer before pauses or its turn is over."""
        # With shorter pauses it would acquire the lock between two writes of the same turn more often.
        pause = _SHORTEST_PAUSE
        deadline = time.monotonic() + _TURN
        while (remaining := deadline - time.monotonic()) > 0:
            if self._try():
                return
            time.sleep(min(pause, remaining))
            pause = min(2 * pause, _LONGEST_PAUSE)
        found = self.transaction()
        if found is not None:
            raise found
        self._flock(self._fd, EXCLUSIVE)

    def acquire_within(self, seconds: float) -> None:
        """Acquire the lock, waiting so many seconds for another process's transaction.

        :raise LockedError: that transaction did not end in time.
        """
        deadline = time.monotonic() + seconds
        while True:
            try:
                self.acquire()
                return
            except TransactionOpen as found:
                if time.monotonic() >= deadline:
                    raise found.refusal(self.path) from None
            time.sleep(_LONGEST_PAUSE)

    def transaction(self) -> TransactionOpen | None:
        """Return the transaction of another process that holds the lock, or ``None``. Needs no lock."""
        try:
            if self._try():
                self.release()
                return None
            data = self._read(self._fd, _NOTE.size, _NOTE_AT)
            if len(data) < _NOTE.size:
                return None
            token, pid, since = _NOTE.unpack(data)
            current = pid and self._read(self._fd, _TOKEN_SIZE, _TOKEN_AT) == token
        except OSError as error:
            raise storage_error(error, "locking", self.path) from error
        return TransactionOpen(pid, since, False) if current else None

    def _note(self, transaction: bool) -> None:
        self._noted = True
        note = _NOTE.pack(self._token, os.getpid(), steady()) if transaction else bytes(_NOTE.size)
        self._disk.pwrite(self._fd, note, _NOTE_AT)
        self._noted = transaction

    def end_transaction(self) -> None:
        """Release the lock. If the note cannot be removed now, the next :meth:`acquire` removes it.

        :raise OSError: the lock was not released.
        """
        try:
            if self._noted:
                with suppress(OSError):
                    self._note(False)
        finally:
            self.release()

    def unchanged(self) -> bool:
        """Tell whether no other connection has begun to write since this one did. Needs no lock."""
        try:
            return self._read(self._fd, _TOKEN_SIZE, _TOKEN_AT) == self._token
        except OSError as error:
            raise storage_error(error, "reading", self.path) from error

    def identity(self) -> bytes | None:
        """Return the id of the database that belongs to this file, or ``None`` if it was never written.

        :raise StoreKindError: the file is another program's.
        """
        return read_identity(self._disk, self.path, self._fd)

    def set_identity(self, identity: bytes) -> None:
        """Write the database's id durably. The lock is held."""
        disk, fd = self._disk, self._fd
        try:
            disk.pwrite(fd, _MAGIC + self._token + _IDENTITY.pack(identity, crc32(identity)), 0)
            disk.sync(fd)
        except OSError as error:
            raise storage_error(error, "writing", self.path) from error

    def remove(self) -> None:
        """Remove the lock's files, because they belong to no database of persistcoll. The lock is held."""
        for path in (self.path, self._turn_path):
            with suppress(OSError):
                self._disk.unlink(path)

    def close(self) -> None:
        """Close the lock's files. Idempotent, and may be called again after an interrupt."""
        self.closed = True
        for file in self._open:
            file.close()


class NoLock:
    """What takes the place of a :class:`WriterLock` in memory, where no other process can come."""

    def acquire(self, transaction: bool = False) -> bool:
        """Return ``True``, because no other connection ever wrote."""
        return True

    def transaction(self) -> None:
        """Return ``None``, because no other process ever has one."""

    def watch(self, files: Mapping[str, tuple[int, int]]) -> None:
        """Do nothing, because there are no files."""

    def check(self) -> None:
        """Do nothing, because there are no files."""

    def end_transaction(self) -> None:
        """Do nothing, because there is no lock."""

    def release(self) -> None:
        """Do nothing, because there is no lock."""

    def unchanged(self) -> bool:
        """Return ``True``, because no other connection ever writes."""
        return True

    def close(self) -> None:
        """Do nothing, because there are no files."""

    closed = False
