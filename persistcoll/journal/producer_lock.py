"""The producer lock: whoever holds it may append. Its file also holds the tail mark."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from persistcoll.disk.calls import EXCLUSIVE, LINKS, TRY_EXCLUSIVE, UNLOCK, Disk, OpenFile, storage_error
from persistcoll.journal.ground import replaced
from persistcoll.journal.tail_mark import TailMark, read_mark, write_mark

__all__ = ["ProducerLock"]


class ProducerLock:
    """The lock, between processes. Between threads its owner has another one.

    :param file: the lock's file, open for reading and writing; closed by :meth:`close`.
    :param path: its path.
    :ivar fd: its descriptor.
    :ivar path: its path.
    :ivar release: lets go of the lock, or raises ``OSError``. It goes first into a ``finally`` that covers
        the taking: because it is C alone, no interrupt comes in between the two.
    """

    def __init__(self, disk: Disk, file: OpenFile, path: str) -> None:
        self._disk = disk
        self._file = file
        self.fd = file.fd
        self.path = path
        self._flock = disk.flock
        self.release: Callable[[], None] = partial(disk.flock, file.fd, UNLOCK)

    @property
    def is_open(self) -> bool:
        """Whether the file is."""
        return bool(self._file.held)

    def acquire(self, on_block: Callable[[], None] | None = None) -> None:
        """Take the lock, waiting for it; the kernel keeps the waiting processes in line.

        :param on_block: called first if there is anything to wait for.
        """
        try:
            if on_block is not None:
                try:
                    self._flock(self.fd, TRY_EXCLUSIVE)
                    return
                except BlockingIOError:
                    on_block()
            self._flock(self.fd, EXCLUSIVE)
        except OSError as error:
            raise storage_error(error, "locking", self.path) from error

    def check(self) -> None:
        """``StoreReplacedError`` if the file was removed: other processes then lock another one."""
        if not self._disk.status(self.fd)[LINKS]:
            raise replaced(self.path)

    def read_mark(self) -> TailMark | None:
        """What the last one left."""
        return read_mark(self._disk, self.fd)

    def leave_mark(self, mark: TailMark) -> None:
        """For the next one. What it vouches for has been synced, and the lock is held."""
        write_mark(self._disk, self.fd, mark)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
