"""The producer lock: the process that holds it may append. Its file also holds the tail mark.

In a log the file also says how often the set of cursors has changed.
"""

from __future__ import annotations

import errno
import os
import struct
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
from persistcoll.journal.replaced_files import replaced
from persistcoll.journal.tail_mark import TailMark, read_mark, write_mark

__all__ = ["ProducerLock"]

_CHANGES = struct.Struct("<Q")
_CHANGES_OFFSET = 128  # bytes; the tail mark is before it


class ProducerLock:
    """A lock between processes. The journal that owns it has a mutex of its own between threads.

    :param file: the lock's file, open for reading and writing. :meth:`close` closes it.
    :param path: the path of that file.
    :ivar fd: the descriptor of that file.
    :ivar path: the path of that file.
    :ivar release: release the lock, or raise ``OSError``. A caller of :meth:`acquire` calls it as the first
        statement of the ``finally`` block that covers the acquisition. The function is written in C, so that
        no interrupt can come between the start of the block and the release.
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
        """Whether the lock's file is open."""
        return bool(self._file.held)

    def acquire(self, on_block: Callable[[], None] | None = None) -> None:
        """Acquire the lock, and wait for it. The kernel queues the waiting processes.

        :param on_block: called before the wait, if another process holds the lock.
        :raise StorageError: the operating system cannot lock the file.
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
