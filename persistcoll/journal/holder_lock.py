"""A lock between processes whose file says which process holds it."""

from __future__ import annotations

import contextlib
import os
import struct
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING
from weakref import WeakSet

from persistcoll.disk.calls import LINKS, TRY_EXCLUSIVE, UNLOCK, Disk, OpenFile, read_fully, storage_error
from persistcoll.errors import LockedError
from persistcoll.journal.replaced_files import replaced

if TYPE_CHECKING:
    from threading import RLock  # a function at run time before Python 3.13

__all__ = ["HolderLock", "is_poisoned", "note_poisoned"]

_PID = _POISONED = struct.Struct("<Q")
_STATE = struct.Struct("<QQ")  # the process id, and 1 if the holder's cursor is poisoned
_PATIENCE = 0.1  # seconds


def note_poisoned(disk: Disk, fd: int) -> None:
    """Note in a lock's file that the page cache may show what the device does not have of the cursor.

    The note is not synced, because the page cache that it warns of ends with it.
    """
    with contextlib.suppress(OSError):
        disk.pwrite(fd, _POISONED.pack(1), _PID.size)


def is_poisoned(disk: Disk, fd: int) -> bool:
    """Tell whether :func:`note_poisoned` was called for this lock's file, and no holder came since."""
    data = read_fully(disk, fd, _STATE.size, 0)
    return len(data) == _STATE.size and bool(_STATE.unpack(data)[1])


_ACQUIRED: WeakSet[HolderLock] = WeakSet()
"""The locks that objects of this process have acquired, and perhaps released again."""


class HolderLock:
    """A lock, and the process id of its holder in its file.

    ``mutex`` protects the state of the file's lock and ``held`` while a thread tries or tests the lock: both
    act on the lock of the same open file, so that the test of one thread would drop the lock that another
    thread acquires.

    :param file: the lock's file, open for reading and writing. :meth:`close` closes it.
    :param path: the path of that file.
    :param mutex: a lock of the owner.
    :param what: what the holder does, for messages: ``"consumes from 'jobs'"``.
    :ivar held: whether this object holds the lock.
    :ivar was_used: whether the lock had a holder before, as :meth:`acquire` has found.
    :ivar unlock: release the lock, or raise ``OSError``. The caller first sets ``held`` to false. The
        function is written in C, so that no interrupt can come before the release.
    """

    # Whether each holder writes its process id into the file. A file without one says that the lock is held
    # for a moment only.
    _holders_have_pids = True

    def __init__(self, disk: Disk, file: OpenFile, path: str, mutex: RLock, what: str) -> None:
        self._disk = disk
        self._file = file
        self._fd = file.fd
        self._path = path
        self._what = what
        self._pid = 0
        self.held = self.was_used = False
        self._mutex = mutex
        self._pwrite = disk.pwrite
        self.unlock: Callable[[], None] = partial(disk.flock, file.fd, UNLOCK)

    @property
    def is_open(self) -> bool:
        """Whether the lock's file is open."""
        return bool(self._file.held)

    def acquire(self) -> bool:
        """Acquire the lock, and tell whether the last holder had closed the lock.

        Otherwise that holder died, or it holds a removed file.

        :raise LockedError: another process, or another object of this process, holds the lock.
        :raise StorageError: the operating system cannot lock the file.
        """
        deadline = time.monotonic() + _PATIENCE
        while not self._try():
            pid = self._state_pid() or None
            if time.monotonic() > deadline or (self._holders_have_pids and pid is not None):
                raise self._locked(pid)
            time.sleep(0.001)
        self._pid = os.getpid()
        _ACQUIRED.add(self)
        last_pid = self._state_pid()
        self.was_used = last_pid is not None
        return last_pid == 0

    def _locked(self, pid: int | None) -> LockedError:
        if self._is_held_here():
            pid = os.getpid()  # the holder may not have written it yet
            return LockedError(
                f"this process ({pid}) {self._what} already, through another object; close that one, or use"
                " it in all threads",
                pid,
            )
        holder = "another process" if pid is None else f"process {pid}"
        return LockedError(
            f"{holder} {self._what}, and one process at a time may, until it closes that or ends", pid
        )

    def _is_held_here(self) -> bool:
        # By the files, because a process in another container may have the number of this one.
        for lock in list(_ACQUIRED):
            with contextlib.suppress(OSError):  # another thread closed it meanwhile
                is_ours = lock.held and lock.is_open and lock._pid == os.getpid()
                if is_ours and os.path.sameopenfile(lock._fd, self._fd):
                    return True
        return False

    def _try(self) -> bool:
        # Otherwise a thread that tests the lock could acquire the lock of the same open file, and drop this
        # one.
        with self._mutex:
            try:
                self._disk.flock(self._fd, TRY_EXCLUSIVE)
            except BlockingIOError:
                return False
            except OSError as error:
                raise storage_error(error, "locking", self._path) from error
            self.held = True
            return True

    def write_pid(self) -> None:
        """Write the holder's process id into the file, and that its cursor is not poisoned.

        A full disk does not stop the holder.
        """
        try:
            self._pwrite(self._fd, _STATE.pack(self._pid, 0), 0)
        except OSError as error:
            if error.errno is None:  # a signal handler raised it
                raise

    def note_poisoned(self) -> None:
        """Note for other processes that a sync of the holder's cursor has failed."""
        note_poisoned(self._disk, self._fd)

    def _state_pid(self) -> int | None:
        """Return the process id in the file: ``None`` if there was never one, 0 after a close."""
        data = read_fully(self._disk, self._fd, _PID.size, 0)
        return _PID.unpack(data)[0] if len(data) == _PID.size else None

    def check(self) -> None:
        """Raise ``StoreReplacedError`` if the file was removed: another process may lock a new file."""
        if not self._disk.status(self._fd)[LINKS]:
            raise replaced(self._path)

    def close(self, clean: bool = False) -> None:
        """Close the file, which releases the lock.

        :param clean: whether the cursor is valid to its end, so that the next holder may append to it.
        """
        if self.held and clean:
            self._pid = 0
            self.write_pid()
        self._file.close()
