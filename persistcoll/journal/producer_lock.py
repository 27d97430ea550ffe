"""The producer lock: the process that holds it may append. Its file also holds the tail mark.

In a log the file also says how often the set of cursors has changed.
"""

from __future__ import annotations

import errno
import os
import struct
import threading
from collections.abc import Callable
from functools import partial

from persistcoll.disk.calls import (
    EXCLUSIVE,
    LINKS,
    TRY_EXCLUSIVE,
    UNLOCK,
    Disk,
    OpenFile,
    read_fully,
    storage_error,
)
from persistcoll.engine.forks import REENTRANT, operations_here, register_used
from persistcoll.errors import StorageError
from persistcoll.journal.replaced_files import replaced
from persistcoll.journal.tail_mark import TailMark, read_mark, write_mark

__all__ = ["ProducerLock"]

_CHANGES = struct.Struct("<Q")
_CHANGES_OFFSET = 128  # bytes; the tail mark is before it


class ProducerLock:
    """A lock between processes. The journal that owns it has a mutex of its own between threads.

    Two objects of one process exclude each other as two processes do. A signal handler or a destructor may
    use the second one while its thread holds the lock of the first one, and the kernel would let it wait for
    ever. Therefore each lock tells by :meth:`used_here` which thread may hold it, and :meth:`wait` asks.

    :param file: the lock's file, open for reading and writing. :meth:`close` closes it.
    :param path: the path of that file.
    :ivar fd: the descriptor of that file.
    :ivar path: the path of that file.
    :ivar release: release the lock, or raise ``OSError``. A caller of :meth:`acquire` calls it as the first
        statement of the ``finally`` block that covers the acquisition. The function is written in C, so that
        no interrupt can come between the start of the block and the release.
    :ivar opener: the thread that opens the store, until the store is open.
    :ivar within: tells whether this thread holds the journal's mutex.
    """

    def __init__(self, disk: Disk, file: OpenFile, path: str) -> None:
        self.opener: int | None = threading.get_ident()
        self.within: Callable[[], bool] = _never
        self._disk = disk
        self._file = file
        self.fd = file.fd
        self.path = path
        self._flock = disk.flock
        self.release: Callable[[], None] = partial(disk.flock, file.fd, UNLOCK)
        register_used(self)

    @property
    def is_open(self) -> bool:
        """Whether the lock's file is open."""
        return bool(self._file.held)

    def used_here(self) -> bool:
        """Tell whether this thread may hold the lock."""
        return self.is_open and (self.opener == threading.get_ident() or self.within())

    def acquire(self, on_block: Callable[[], None] | None = None) -> None:
        """Acquire the lock, and wait for it. The kernel queues the waiting processes.

        :param on_block: called before the wait, if another process holds the lock.
        :raise StorageError: the operating system cannot lock the file, or this thread holds the lock through
            another object.
        """
        try:
            try:
                self._flock(self.fd, TRY_EXCLUSIVE)
            except BlockingIOError:
                self.wait(on_block)
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            raise storage_error(error, "locking", self.path) from error

    def wait(self, on_block: Callable[[], None] | None = None) -> None:
        """Acquire the lock, which another object or process has.

        :raise StorageError: it is another object of this thread, which would wait for itself.
        :raise OSError: the operating system cannot lock the file.
        """
        others = [
            other for other in operations_here() if isinstance(other, ProducerLock) and other is not self
        ]
        if any(os.path.sameopenfile(other.fd, self.fd) for other in others):
            raise StorageError(REENTRANT)
        if on_block is not None:
            on_block()
        self._flock(self.fd, EXCLUSIVE)

    def check(self) -> None:
        """Raise ``StoreReplacedError`` if the file was removed: other processes then lock a new file."""
        if not self._disk.status(self.fd)[LINKS]:
            raise replaced(self.path)

    def read_mark(self) -> TailMark | None:
        """Return the mark of the last holder, or ``None`` if there is no valid one."""
        return read_mark(self._disk, self.fd)

    def leave_mark(self, mark: TailMark) -> None:
        """Write the mark for the next holder. The lock is held, and everything before the mark is synced."""
        write_mark(self._disk, self.fd, mark)

    def read_changes(self) -> int:
        """Return how often a cursor of a log was made, rewound or removed. The lock is held."""
        data = read_fully(self._disk, self.fd, _CHANGES.size, _CHANGES_OFFSET)
        return _CHANGES.unpack(data)[0] if len(data) == _CHANGES.size else 0

    def count_change(self) -> None:
        """Note for every process that a cursor is about to be made, rewound or removed. The lock is held.

        :raise OSError: the file cannot be written.
        """
        changes = _CHANGES.pack(self.read_changes() + 1)
        if self._disk.pwrite(self.fd, changes, _CHANGES_OFFSET) != len(changes):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        """Close the file, which releases the lock."""
        self._file.close()


def _never() -> bool:
    return False
