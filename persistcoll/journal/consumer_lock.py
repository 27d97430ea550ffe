"""The consumer lock: one process takes, and the others know which, and what it has taken.

The lock's file holds, as u64 numbers: the process id of the consumer; how many records are no longer
ready; the id of the first record that it has not read; how many ids follow; the ids of the records
before that one that are ready all the same, because they were given back. That is soft state: written
in place, never synced, and believed only while the lock is held.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from persistcoll.disk.calls import (
    LINKS,
    TRY_EXCLUSIVE,
    TRY_SHARED,
    UNLOCK,
    Disk,
    OpenFile,
    read_fully,
    storage_error,
)
from persistcoll.errors import LockedError
from persistcoll.journal.ground import replaced

if TYPE_CHECKING:
    from threading import RLock  # a function at run time before Python 3.13

__all__ = ["CONTENT_SIZE", "ConsumerLock", "ConsumerState", "unpack_state"]

_STATE = struct.Struct("<QQQQ")
CONTENT_SIZE = 4096
"""How much of the file is read, in bytes."""
_TIMEOUT = 0.1
_pack = _STATE.pack
_pack_progress = struct.Struct("<QQ").pack
_PROGRESS = 8  # the offset of those two


class ConsumerState(NamedTuple):
    """What the consumer last said, if there is one."""

    not_ready: int = 0
    next_id: int = 0
    released: tuple[int, ...] = ()

    def has_claimed(self, id: int) -> bool:
        """Whether the consumer has taken the record, as far as it has not acknowledged it."""
        return id < self.next_id and id not in self.released


_NOTHING = ConsumerState()


def unpack_state(data: bytes) -> tuple[int | None, ConsumerState]:
    """Return what the lock's file holds.

    :return: the process id of its writer, ``None`` if there was never one, and 0 if it has released the lock;
        and the state that it has published.
    """
    if len(data) < _STATE.size:
        return None, _NOTHING
    pid, not_ready, next_id, count = _STATE.unpack_from(data)
    if len(data) < _STATE.size + 8 * count:
        return pid, ConsumerState(not_ready, next_id)
    return pid, ConsumerState(not_ready, next_id, struct.unpack_from(f"<{count}Q", data, _STATE.size))


class ConsumerLock:
    """The lock and the numbers beside it.

    :param file: the lock's file, open for reading and writing; closed by :meth:`close`.
    :param path: its path.
    :ivar held: :meth:`acquire` has returned.
    :ivar unlock: lets go of the lock, or raises ``OSError``; C alone, so that no interrupt comes in before
        it. ``held`` is set to false first.
    :param mutex: not two threads at once ask, because both ask for a lock of the same open file.
    """

    def __init__(self, disk: Disk, file: OpenFile, path: str, mutex: RLock) -> None:
        self._disk = disk
        self._file = file
        self._fd = file.fd
        self._path = path
        self._pid = 0
        self.held = False
        self._mutex = mutex
        self._pwrite = disk.pwrite
        self.unlock: Callable[[], None] = partial(disk.flock, file.fd, UNLOCK)

    @property
    def is_open(self) -> bool:
        """Whether the file is."""
        return bool(self._file.held)

    def acquire(self) -> bool:
        """Take the lock.

        :return: whether the last holder let go of it. Otherwise it died, or holds a removed file.
        :raise LockedError: another process has it.
        """
        deadline = time.monotonic() + _TIMEOUT
        while not self._try():
            # Somebody who only asks whether it is held has it for a microsecond.
            if time.monotonic() > deadline:
                raise self._locked(self._state_pid() or None)
            time.sleep(0.001)
        self._pid = os.getpid()
        return self._state_pid() == 0

    def _locked(self, pid: int | None) -> LockedError:
        directory = os.path.dirname(self._path)
        if pid == os.getpid():
            return LockedError(
                f"this process ({pid}) consumes from {directory!r} already, through another object; close"
                " that one, or use it in all threads",
                pid,
            )
        return LockedError(
            f"process {pid} consumes from {directory!r}, and one process at a time may: until it closes the"
            " queue or ends",
            pid,
        )

    def _try(self) -> bool:
        # Not while another thread asks: it would get a lock of the same open file, and drop ours.
        with self._mutex:
            try:
                self._disk.flock(self._fd, TRY_EXCLUSIVE)
            except BlockingIOError:
                return False
            except OSError as error:
                raise storage_error(error, "locking", self._path) from error
            self.held = True
            return True

    def publish_progress(self, not_ready: int, next_id: int) -> None:
        """The same as :meth:`publish`, where nothing has been given back since: at every ``get``."""
        try:  # not contextlib.suppress, which costs almost as much as the write
            self._pwrite(self._fd, _pack_progress(not_ready, next_id), _PROGRESS)
        except OSError as error:
            if error.errno is None:  # a signal handler's
                raise
            # Soft state: a full disk must not stop a consumer.

    def publish(self, not_ready: int, next_id: int, released: Sequence[int] = ()) -> None:
        """Tell other processes what is no longer ready."""
        state = _pack(self._pid, not_ready, next_id, len(released))
        if released:
            state += struct.pack(f"<{len(released)}Q", *released)
        try:
            self._pwrite(self._fd, state, 0)
        except OSError as error:
            if error.errno is None:
                raise

    def published(self) -> ConsumerState:
        """What the consumer published last; nothing if there is none."""
        with self._mutex:
            if not self.held:
                try:
                    try:
                        self._disk.flock(self._fd, TRY_SHARED)
                        return _NOTHING
                    finally:
                        self.unlock()
                except BlockingIOError:
                    pass
                except OSError as error:
                    raise storage_error(error, "locking", self._path) from error
        return unpack_state(self.raw_state())[1]

    def raw_state(self) -> bytes:
        """Differs from an earlier one when something was published since."""
        return read_fully(self._disk, self._fd, CONTENT_SIZE, 0)

    def _state_pid(self) -> int | None:
        return unpack_state(self.raw_state())[0]

    def check(self) -> None:
        """``StoreReplacedError`` if the file was removed: another process then holds another one."""
        if not self._disk.status(self._fd)[LINKS]:
            raise replaced(self._path)

    def close(self, clean: bool = False) -> None:
        """Close the file.

        :param clean: the cursor is whole: whoever comes next may write on.
        """
        if self.held and clean:
            self._pid = 0
            self.publish(0, 0)
        self._file.close()
