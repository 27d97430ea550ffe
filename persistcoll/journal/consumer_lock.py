"""The consumer lock: one process claims, and the others can read which process it is and what it has claimed.

The lock's file holds u64 numbers, in this order:

1. the process id of the consumer;
2. how many records are not ready;
3. the id of the first record that the consumer has not read;
4. how many ids follow;
5. the ids of the earlier records that are ready, because their claims were released.

This state is soft: the consumer writes it in place and never syncs it, and other processes believe it only
while the lock is held.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from persistcoll.disk.calls import (
    TRY_SHARED,
    Disk,
    OpenFile,
    read_fully,
    storage_error,
)
from persistcoll.journal.holder_lock import HolderLock

if TYPE_CHECKING:
    from threading import RLock  # a function at run time before Python 3.13

__all__ = ["CONTENT_SIZE", "ConsumerLock", "ConsumerState", "unpack_state"]

_STATE = struct.Struct("<QQQQ")
CONTENT_SIZE = 4096
"""How much of the file is read, in bytes."""
_pack = _STATE.pack
_pack_progress = struct.Struct("<QQ").pack
_PROGRESS = 8  # the offset of the second and third number


class ConsumerState(NamedTuple):
    """What the consumer published last: the numbers of the lock's file."""

    not_ready: int = 0
    next_id: int = 0
    released: tuple[int, ...] = ()

    def has_claimed(self, id: int) -> bool:
        """Tell whether the consumer has claimed the record. The answer says nothing of acked records."""
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


class ConsumerLock(HolderLock):
    """The lock of a queue's consumer, and the numbers in its file.

    Only a thread that holds the store's ``_consuming`` lock calls the methods that write.

    :param mutex: the store's ``_appending`` lock.
    """

    # A process that only tests whether the lock is held has it for about a microsecond.
    _holders_have_pids = False

    def __init__(self, disk: Disk, file: OpenFile, path: str, mutex: RLock) -> None:
        super().__init__(disk, file, path, mutex, f"consumes from {os.path.dirname(path)!r}")

    def publish_progress(self, not_ready: int, next_id: int) -> None:
        """Publish as :meth:`publish` does, while the released ids stay the same. Every ``get`` calls it.

        Cost: one write of 16 bytes.
        """
        try:  # not contextlib.suppress, which costs almost as much as the write
            self._pwrite(self._fd, _pack_progress(not_ready, next_id), _PROGRESS)
        except OSError as error:
            if error.errno is None:  # a signal handler raised it
                raise
            # The state is soft, so a full disk must not stop a consumer.

    def publish(self, not_ready: int, next_id: int, released: Sequence[int] = ()) -> None:
        """Tell other processes which records are not ready.

        :param not_ready: how many ids are acked or claimed.
        :param next_id: the id of the first record that the consumer has not read.
        :param released: the earlier ids that are ready again.
        """
        state = _pack(self._pid, not_ready, next_id, len(released))
        if released:
            state += struct.pack(f"<{len(released)}Q", *released)
        try:
            self._pwrite(self._fd, state, 0)
        except OSError as error:
            if error.errno is None:
                raise

    def published(self) -> ConsumerState:
        """Return what the consumer published last, or an empty state if no consumer lives.

        :raise StorageError: the operating system cannot test the lock.
        """
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
        """Return the file's content, which differs from an earlier one if the consumer published since."""
        return read_fully(self._disk, self._fd, CONTENT_SIZE, 0)

    def close(self, clean: bool = False) -> None:
        """Close the file, which releases the lock, and publish that nothing is claimed any more.

        :param clean: whether the cursor is valid to its end, so that the next consumer may append to it.
        """
        if self.held and clean:
            self._pid = 0
            self.publish(0, 0)
        super().close()
