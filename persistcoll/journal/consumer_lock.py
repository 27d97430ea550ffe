"""The consumer lock: one process takes, and the others know which, and how much it has taken.

The lock's file holds the process id of the consumer and the number of records that are no longer
ready. That is soft state: written in place, never synced, and believed only while the lock is held.
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
import time

from persistcoll.errors import LockedError
from persistcoll.journal.disk import TRY_EXCLUSIVE, TRY_SHARED, UNLOCK, Disk, read_fully

__all__ = ["ConsumerLock"]

_STATE = struct.Struct("<QQ")
_PATIENCE = 0.1
_pack = _STATE.pack


class ConsumerLock:
    """The lock and the two numbers beside it.

    :param fd: the lock's file, opened for reading and writing; closed by :meth:`close`.
    """

    def __init__(self, disk: Disk, fd: int, path: str) -> None:
        self._disk = disk
        self._fd = fd
        self._path = path
        self._pid = 0
        self._held = False
        self._mutex = threading.Lock()
        self._pwrite = disk.pwrite

    def acquire(self) -> bool:
        """Take the lock.

        :return: whether the last holder died with it (rather than letting go).
        :raise LockedError: another process has it.
        """
        deadline = time.monotonic() + _PATIENCE
        while not self._try():
            # Somebody who only asks whether it is held has it for a microsecond.
            if time.monotonic() > deadline:
                pid = self._state()[0] or None
                raise LockedError(
                    f"process {pid} consumes from {self._path!r}, and one process at a time may", pid
                )
            time.sleep(0.001)
        self._pid = os.getpid()
        return self._state()[0] != 0

    def _try(self) -> bool:
        # Not while another thread asks: it would get a lock of the same open file, and drop ours.
        with self._mutex:
            try:
                self._disk.flock(self._fd, TRY_EXCLUSIVE)
            except BlockingIOError:
                return False
            self._held = True
            return True

    def publish(self, gone: int) -> None:
        """Tell other processes how many records are no longer ready."""
        try:  # not contextlib.suppress, which costs as much as the write
            self._pwrite(self._fd, _pack(self._pid, gone), 0)
        except OSError:
            pass  # soft state: a full disk must not stop a consumer

    def published(self) -> int:
        """What the consumer published last; 0 if there is none."""
        with self._mutex:
            if not self._held:
                try:
                    self._disk.flock(self._fd, TRY_SHARED)
                except BlockingIOError:
                    pass
                else:
                    self._disk.flock(self._fd, UNLOCK)
                    return 0
        return self._state()[1]

    def content(self) -> bytes:
        """Differs from an earlier one when something was published since."""
        return self._disk.read(self._fd, _STATE.size, 0)

    def _state(self) -> tuple[int, int]:
        data = read_fully(self._disk, self._fd, _STATE.size, 0)
        if len(data) < _STATE.size:
            return 0, 0
        pid, gone = _STATE.unpack(data)
        return pid, gone

    def release(self) -> None:
        with self._mutex:
            if self._held:
                self._held = False
                self._disk.flock(self._fd, UNLOCK)

    def close(self, clean: bool) -> None:
        if self._held and clean:
            self._pid = 0
            self.publish(0)
        self._disk.close(self._fd)

    def abandon(self) -> None:
        """In a forked child: the parent's open file, and with it the lock, stays the parent's."""
        self._held = False
        self._mutex = threading.Lock()
        with contextlib.suppress(OSError):
            os.close(self._fd)
