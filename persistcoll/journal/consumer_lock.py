"""The consumer lock: one process takes, and the others know which, and how much it has taken.

The lock's file holds the process id of the consumer and the number of records that are no longer
ready. That is soft state: written in place, never synced, and believed only while the lock is held.
"""

from __future__ import annotations

import contextlib
import os
import struct
import time

from persistcoll.errors import LockedError
from persistcoll.journal.disk import TRY_EXCLUSIVE, TRY_SHARED, UNLOCK, Disk

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
        self._pwrite = disk.pwrite

    def acquire(self) -> bool:
        """Take the lock.

        :return: whether the last holder died with it (rather than letting go).
        :raise LockedError: another process has it.
        """
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                self._disk.flock(self._fd, TRY_EXCLUSIVE)
                break
            except BlockingIOError:
                # Somebody who only asks whether it is held has it for a microsecond.
                if time.monotonic() > deadline:
                    pid = self._state()[0] or None
                    raise LockedError(
                        f"process {pid} consumes from {self._path!r}, and one process at a time may", pid
                    ) from None
                time.sleep(0.001)
        died = self._state()[0] != 0
        self._pid = os.getpid()
        self._held = True
        return died

    def publish(self, gone: int) -> None:
        """Tell other processes how many records are no longer ready."""
        try:  # not contextlib.suppress, which costs as much as the write
            self._pwrite(self._fd, _pack(self._pid, gone), 0)
        except OSError:
            pass  # soft state: a full disk must not stop a consumer

    def published(self) -> int:
        """What a live consumer in another process published last, else 0."""
        try:
            self._disk.flock(self._fd, TRY_SHARED)
        except BlockingIOError:
            return self._state()[1]
        self._disk.flock(self._fd, UNLOCK)
        return 0

    def content(self) -> bytes:
        """Differs from an earlier one when something was published since."""
        return self._disk.read(self._fd, _STATE.size, 0)

    def _state(self) -> tuple[int, int]:
        data = self.content()
        if len(data) < _STATE.size:
            return 0, 0
        pid, gone = _STATE.unpack(data)
        return pid, gone

    def release(self) -> None:
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
        with contextlib.suppress(OSError):
            os.close(self._fd)
