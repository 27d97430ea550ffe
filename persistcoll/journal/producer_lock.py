"""The producer lock: whoever holds it may append. Its file also holds the tail mark."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from persistcoll.disk import EXCLUSIVE, TRY_EXCLUSIVE, UNLOCK, Disk, close_quietly, storage_error
from persistcoll.journal.mark import TailMark, read_mark, write_mark

__all__ = ["ProducerLock"]


class ProducerLock:
    """The lock, between processes. Between threads its owner has another one.

    :param fd: the lock's file, opened for reading and writing; closed by :meth:`close`.
    :ivar fd: the same.
    """

    def __init__(self, disk: Disk, fd: int, directory: str) -> None:
        self._disk = disk
        self.fd = fd
        self._directory = directory
        self._flock = disk.flock

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def acquire(self) -> None:
        """Wait for the lock and take it. The kernel keeps those who wait in line."""
        try:
            self._flock(self.fd, EXCLUSIVE)
        except OSError as error:
            raise storage_error(error, "locking", self._directory) from error

    def acquire_calling(self, waiting: Callable[[], None]) -> None:
        """Take the lock; if that has to wait, call ``waiting`` first."""
        try:
            self._flock(self.fd, TRY_EXCLUSIVE)
        except BlockingIOError:
            waiting()
            self.acquire()
        except OSError as error:
            raise storage_error(error, "locking", self._directory) from error

    def release(self) -> None:
        """Let go of the lock."""
        try:
            self._flock(self.fd, UNLOCK)
        except OSError as error:
            # It is dropped when the file is closed, which the owner does for this.
            raise storage_error(error, "unlocking", self._directory) from error

    def read_mark(self) -> TailMark | None:
        """What the last one left."""
        return read_mark(self._disk, self.fd)

    def leave_mark(self, mark: TailMark) -> None:
        """For the next one. What it vouches for has been synced, and the lock is held."""
        write_mark(self._disk, self.fd, mark)

    def close(self) -> None:
        """Close the file."""
        close_quietly(self._disk, self.fd)
