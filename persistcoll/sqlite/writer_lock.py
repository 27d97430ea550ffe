"""The queue in which the writers of all processes wait, and what it says of the last of them.

Every write transaction, every checkpoint and the closing of a connection happen under a ``flock`` on a
file beside the database. SQLite has locks of its own, but whoever finds them taken sleeps and tries
again; here the kernel wakes the next one. Measured with 8 processes that sync each write: 5,200 writes a
second and 9 ms at worst with it, 2,400 and 630 ms without. It also keeps two of our connections from
writing and checkpointing at once, which SQLite before 3.51.3 may lose pages by
(https://sqlite.org/wal.html#walresetbug).

A ``flock`` goes to whoever is there when it is free, and that is mostly who has just released it. So the way
to it leads through a second file's lock, which one at a time keeps until it has the first, and who had its
turn comes again without that for four milliseconds only. Measured with the same 8 processes: 8 to 30 ms at
worst with it, 50 to 130 without.

A caller's transaction keeps the lock for as long as the caller pleases, so no other process waits in the
kernel for its end: the transaction notes its process and its beginning in the file, and
:meth:`WriterLock.acquire` raises :exc:`TransactionOpen` where it finds such a note. A transaction takes the
lock only with the turn, and notes itself before it gives the turn away. Therefore a writer that has the turn
and finds no note waits for an ordinary writer, whose turn is short.

The file holds, behind a magic number: the token of the connection that wrote last, so that what one
remembers of the database is known to be true while the token is one's own; the database's id, so that a
database that was lost is not taken for a new one; and the note of a transaction. The note begins with the
token of its connection, and is true while that is the token of the file: the note of a process that died is
not, once another one has written.
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
# Seconds. A look whether the files are still there begins each turn, and comes again after UNSEEN_CALLS calls
# in it.
_TURN = 0.004
# Nanoseconds: more than the time between two ticks of the kernel's clock.
_TICK = 50_000_000
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.0001, 0.001
_IDENTITY_AT = _TOKEN_AT + _TOKEN_SIZE
_NOTE = struct.Struct(f"<{_TOKEN_SIZE}sQd")
_NOTE_AT = _IDENTITY_AT + _IDENTITY.size


class TransactionOpen(Exception):
    """A transaction is in the way.

    :param pid: of the process that has it open.
    :param since: when it began, by :func:`~persistcoll.sqlite.clock.steady`.
    """

    def __init__(self, pid: int, since: float) -> None:
        super().__init__(pid, since)
        self.pid = pid
        self.since = since

    def refusal(self, path: str) -> LockedError:
        """The error for a call that waits no longer."""
        age = max(0.0, steady() - self.since)
        where = "another thread of this process" if self.pid == os.getpid() else "another process"
        return LockedError(
            f"{path!r}: {where} ({self.pid}) has had a transaction open for {age:.1f} s; nothing was done;"
            " call again when it has ended",
            self.pid,
        )


def identity_of(file: str | int) -> tuple[int, int]:
    """What file that path, or that descriptor, stands for."""
    status = os.stat(file)
    return status.st_dev, status.st_ino


def read_identity(disk: Disk, path: str, fd: int | None = None) -> bytes | None:
    """The id of the database that belongs to this lock file; ``None`` where it was never written.

    :param fd: of the file, where it is open.
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
    """The lock file of one database, opened by one connection. Used by one thread at a time.

    :ivar closed: :meth:`close` has begun.
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
        # As it was when all files in it were found to be the same; None: look at them.
        self._checked_folder: tuple[int, int, int] | None = None
        self._token = secrets.token_bytes(_TOKEN_SIZE)
        self._noted = False
        self.closed = False
        self._flock = disk.flock
        self._read = disk.read
        self.release = partial(disk.flock, self._fd, UNLOCK)
        """Let the next one in. Without a Python function's beginning, where an interrupt could come first."""

    def acquire(self, transaction: bool = False) -> bool:
        """Wait for it; whether nobody else wrote since this connection did.

        :param transaction: keep it for as long as a caller pleases; :meth:`end_transaction` has to follow.
        :raise TransactionOpen: another process does.
        """
        fd, token = self._fd, self._token
        # Whatever goes wrong, an interrupt right behind the call included, the others must not wait for ever.
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
            # Before the first change: who dies behind this has told the others to look.
            self._disk.pwrite(fd, token, _TOKEN_AT)
        except BaseException as error:
            try:
                self.release()
            except OSError:
                pass  # the failure that led here is the one to tell
            if isinstance(error, OSError) and not isinstance(error, StorageError):
                raise storage_error(error, "locking", self.path) from error
            raise
        return False

    def watch(self, files: Mapping[str, tuple[int, int]]) -> None:
        """From now on each of these paths has to stay that file; :meth:`acquire` looks in each turn.

        :param files: all that are to be watched; not changed afterwards, because another thread may look.
        """
        self._files = files
        self._checked_folder = None

    def check(self) -> None:
        """:raise StoreReplacedError: a file is not the one any more that this connection opened."""
        # A directory's time says whether a name in it was removed, made or replaced since: one look in the
        # place of six, twice for each put at "power" (145 us and not 217).
        folder, changed = None, 0
        try:
            status = os.stat(self._folder)
            changed = status.st_mtime_ns
            folder = status.st_dev, status.st_ino, changed
        except OSError:
            pass  # a look at the files says why
        if folder is not None and folder == self._checked_folder:
            return
        for path, identity in self._files.items():
            try:
                if identity_of(path) == identity:
                    continue
                what = "replaced"
            except (FileNotFoundError, NotADirectoryError):
                what = "removed"
            except OSError as error:
                raise storage_error(error, "looking at", path) from error
            raise StoreReplacedError(
                f"{path!r} was {what} while it was open; others would not find what is written now,"
                " or see that this process has items in work",
                path,
            )
        # Times have the kernel's ticks: what comes within the same one leaves no other time.
        is_exact = folder is not None and time.time_ns() - changed > _TICK
        self._checked_folder = folder if is_exact else None

    def _try(self) -> bool:
        try:
            self._flock(self._fd, TRY_EXCLUSIVE)
        except BlockingIOError:
            return False
        return True

    def _acquire_next(self) -> None:
        """Having the turn: wait until who had it before pauses, or its turn is over."""
        # The more often it looked, the more often it would come between two writes of the same turn.
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
        """:meth:`acquire`, waiting so long for another process's transaction.

        :raise LockedError: it did not end.
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
        """Without the lock: the transaction of another process that has it."""
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
        return TransactionOpen(pid, since) if current else None

    def _note(self, transaction: bool) -> None:
        self._noted = True
        note = _NOTE.pack(self._token, os.getpid(), steady()) if transaction else bytes(_NOTE.size)
        self._disk.pwrite(self._fd, note, _NOTE_AT)
        self._noted = transaction

    def end_transaction(self) -> None:
        """Let the next one in. A note that cannot be removed now is removed by the next :meth:`acquire`."""
        try:
            if self._noted:
                with suppress(OSError):
                    self._note(False)
        finally:
            try:
                self.release()
            except OSError as error:
                raise storage_error(error, "unlocking", self.path) from error

    def unchanged(self) -> bool:
        """Without the lock: whether nobody else has begun to write since this connection did."""
        try:
            return self._read(self._fd, _TOKEN_SIZE, _TOKEN_AT) == self._token
        except OSError as error:
            raise storage_error(error, "reading", self.path) from error

    def identity(self) -> bytes | None:
        """The id of the database that belongs to this file; ``None`` where it was never written.

        :raise StoreKindError: the file is another program's.
        """
        return read_identity(self._disk, self.path, self._fd)

    def set_identity(self, identity: bytes) -> None:
        """Write the database's id, durably. The lock is held."""
        disk, fd = self._disk, self._fd
        try:
            disk.pwrite(fd, _MAGIC + self._token + _IDENTITY.pack(identity, crc32(identity)), 0)
            disk.sync(fd)
        except OSError as error:
            raise storage_error(error, "writing", self.path) from error

    def remove(self) -> None:
        """Remove its files, which no database of ours needs. The lock is held."""
        for path in (self.path, self._turn_path):
            with suppress(OSError):
                self._disk.unlink(path)

    def close(self) -> None:
        """Let go of it. Idempotent, also where it was interrupted."""
        self.closed = True
        for file in self._open:
            file.close()


class NoLock:
    """In place of a :class:`WriterLock` where no other process can come: in memory."""

    def acquire(self, transaction: bool = False) -> bool:
        """True: nobody else ever wrote."""
        return True

    def transaction(self) -> None:
        """None: nobody else ever has one."""

    def watch(self, files: Mapping[str, tuple[int, int]]) -> None:
        """Nothing."""

    def check(self) -> None:
        """Nothing."""

    def end_transaction(self) -> None:
        """Nothing."""

    def release(self) -> None:
        """Nothing."""

    def unchanged(self) -> bool:
        """True: nobody else ever writes."""
        return True

    def close(self) -> None:
        """Nothing."""

    closed = False
