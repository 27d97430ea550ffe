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

The file holds, behind a magic number: the token of the connection that wrote last, so that what one
remembers of the database is known to be true while the token is one's own; and the database's id, so that a
database that was lost is not taken for a new one.
"""

from __future__ import annotations

import errno
import os
import secrets
import struct
import time
from types import TracebackType
from zlib import crc32

from persistcoll.disk import EXCLUSIVE, TRY_EXCLUSIVE, UNLOCK, Disk, close_quietly, read_fully, storage_error
from persistcoll.errors import StoreKindError

__all__ = ["NoLock", "WriterLock"]

_MAGIC = b"pcoll db"
_TOKEN_SIZE = 8
_TOKEN_AT = len(_MAGIC)
_IDENTITY = struct.Struct("<16sI")
# Seconds.
_TURN = 0.004
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.0001, 0.001
_IDENTITY_AT = _TOKEN_AT + _TOKEN_SIZE


class WriterLock:
    """The lock file of one database, opened by one connection. Used by one thread at a time."""

    def __init__(self, disk: Disk, database: str) -> None:
        self._disk = disk
        self.path = database + ".lock"
        self._turn = 0.0
        try:
            self._fd = disk.open(self.path, os.O_RDWR | os.O_CREAT)
            try:
                self._turn_fd = disk.open(database + ".turn", os.O_RDWR | os.O_CREAT)
            except BaseException:
                close_quietly(disk, self._fd)
                raise
        except OSError as error:
            raise storage_error(error, "opening", self.path) from error
        self._token = secrets.token_bytes(_TOKEN_SIZE)
        self._flock = disk.flock
        self._read = disk.read

    def acquire(self) -> bool:
        """Wait for it; whether nobody else wrote since this connection did."""
        fd, token = self._fd, self._token
        # Whatever goes wrong, an interrupt right behind the call included, the others must not wait for ever.
        try:
            if time.monotonic() < self._turn:
                self._flock(fd, EXCLUSIVE)
            else:
                self._flock(self._turn_fd, EXCLUSIVE)
                try:
                    self._acquire_next()
                finally:
                    self._flock(self._turn_fd, UNLOCK)
                self._turn = time.monotonic() + _TURN
            if self._read(fd, _TOKEN_SIZE, _TOKEN_AT) == token:
                return True
            # Before the first change: who dies behind this has told the others to look.
            self._disk.pwrite(fd, token, _TOKEN_AT)
        except OSError as error:
            self.release()
            raise storage_error(error, "locking", self.path) from error
        except BaseException:
            self.release()
            raise
        return False

    def _acquire_next(self) -> None:
        """Having the turn: wait until who had it before pauses, or its turn is over."""
        # The more often it looked, the more often it would come between two writes of the same turn.
        pause = _SHORTEST_PAUSE
        deadline = time.monotonic() + _TURN
        while (left := deadline - time.monotonic()) > 0:
            try:
                self._flock(self._fd, TRY_EXCLUSIVE)
                return
            except BlockingIOError:
                time.sleep(min(pause, left))
                pause = min(2 * pause, _LONGEST_PAUSE)
        self._flock(self._fd, EXCLUSIVE)

    def release(self) -> None:
        """Let the next one in."""
        self._flock(self._fd, UNLOCK)

    def unchanged(self) -> bool:
        """Without the lock: whether nobody else has begun to write since this connection did."""
        return self._read(self._fd, _TOKEN_SIZE, _TOKEN_AT) == self._token

    def identity(self) -> bytes | None:
        """The id of the database that belongs to this file; ``None`` where it was never written.

        :raise StoreKindError: the file is another program's.
        """
        data = read_fully(self._disk, self._fd, _IDENTITY_AT + _IDENTITY.size, 0)
        if data[:_TOKEN_AT].strip(b"\0") and data[:_TOKEN_AT] != _MAGIC:
            raise StoreKindError(f"{self.path!r} is not a lock file of persistcoll", errno.EEXIST)
        if len(data) < _IDENTITY_AT + _IDENTITY.size:
            return None
        identity, checksum = _IDENTITY.unpack_from(data, _IDENTITY_AT)
        return bytes(identity) if crc32(identity) == checksum else None

    def set_identity(self, identity: bytes) -> None:
        """Write the database's id, durably. The lock is held."""
        disk, fd = self._disk, self._fd
        try:
            disk.pwrite(fd, _MAGIC + self._token + _IDENTITY.pack(identity, crc32(identity)), 0)
            disk.sync(fd)
        except OSError as error:
            raise storage_error(error, "writing", self.path) from error

    def close(self) -> None:
        """Let go of it."""
        close_quietly(self._disk, self._fd)
        close_quietly(self._disk, self._turn_fd)

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class NoLock:
    """In place of a :class:`WriterLock` where no other process can come: in memory."""

    def acquire(self) -> bool:
        """True: nobody else ever wrote."""
        return True

    def release(self) -> None:
        """Nothing."""

    def unchanged(self) -> bool:
        """True: nobody else ever writes."""
        return True

    def close(self) -> None:
        """Nothing."""
