"""The tail of the journal: the last chunk, to which producers append.

The invariant: under the producer lock, after :meth:`Tail.catch_up` with ``repair``, ``end`` is the size of
the last chunk, and everything before ``end`` is valid. So the id of a record is one more than the last id. A
process that is killed within a write leaves nothing that a later record could follow.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Sequence
from typing import Protocol

from persistcoll.disk.calls import LINKS, SIZE, Disk, new_salt, storage_error
from persistcoll.disk.synced_file import SyncedFile
from persistcoll.engine.poison import Poison
from persistcoll.engine.records import Record
from persistcoll.errors import CorruptionError, StorageError
from persistcoll.journal.chunks import Chunk, chunk_numbers, create_chunk, open_chunk
from persistcoll.journal.frames import END, HEADER_SIZE, BadFrame, Frames, Stop, encode
from persistcoll.journal.producer_lock import ProducerLock
from persistcoll.journal.recovery import JournalLocation, MissingTail, RecoveredTail, find_tail
from persistcoll.journal.replaced_files import replaced
from persistcoll.journal.tail_mark import TailMark, is_same_boot, this_boot

__all__ = ["Tail", "UsedIds"]

_now = time.time


class UsedIds(Protocol):
    """Knows which ids were used before a power cut, although their records are lost. New ids are higher."""

    def highest_used_id(self, tail: RecoveredTail | MissingTail, same_boot: bool) -> int:
        """Return the highest id that may have been used, as far as ``tail`` does not tell it; 0: none.

        :param same_boot: whether the machine has run without a restart since the tail mark was written, so
            that no record can be lost.
        """

    def retire_ids(self, first: int, last: int) -> None:
        """Note durably that the ids ``first`` to ``last`` will have no record. The producer lock is held."""


class Tail:
    """The last chunk, as far as this process has read it.

    Not thread-safe: the journal that owns it holds its mutex around every call, and that mutex protects every
    field. The producer lock, which the methods that write require, excludes other processes.

    :param lock: the producer lock. The caller holds it during the construction.
    :param chunksize: the number of records after which a new chunk begins.
    :param used_ids: knows which ids were used before a power cut.
    :ivar fd: the chunk's descriptor, for appending and reading.
    :ivar end: the size up to which the chunk is valid, in bytes.
    :ivar last_id: the id of the last record.
    :ivar salt: the chunk's salt.
    :ivar roll_at_id: the id that begins the next chunk; 0 if the chunk is sealed.
    :ivar limit_id: the id above those that records in this chunk may have.
    :ivar latest: the latest time of a record in the journal, or later. An append sets it before it writes.
    :ivar sealed: whether the chunk ends with an ``END`` frame, so that the next call must be :meth:`catch_up`
        or :meth:`roll`. It is also true while the tail switches to another chunk.
    :ivar file: syncs the chunk.
    :ivar unchecked: how many appends have passed since the last :meth:`check_not_removed`.
    :ivar checked_at: the time of the last :meth:`check_not_removed`, by the wall clock.
    :ivar poison: why the journal refuses every call, if it does.
    """

    def __init__(
        self,
        location: JournalLocation,
        lock: ProducerLock,
        chunksize: int,
        used_ids: UsedIds,
    ) -> None:
        self._location = location
        self._disk: Disk = location.disk
        self._lock = lock
        self._chunksize = chunksize
        self._used_ids = used_ids
        self._boot = this_boot(location.disk)
        self._write = self._disk.write
        self._status = self._disk.status
        self._size = self._disk.size
        self._unsure = False  # True while the tail switches to another chunk, and after an interrupt of that
        self._writing = False  # True while this call writes, so that bytes after `end` are its own to undo
        self.unchecked, self.checked_at = 0, 0.0
        self.poison: Poison = _MarkingPoison(self)
        self.file = SyncedFile(self._disk, location.directory, self.poison)
        self.chunk: Chunk
        self.salt = 0
        self.fd = -1
        self.end = 0
        self.last_id = 0
        self.sealed = False
        self.roll_at_id = self.limit_id = 0
        self.latest = 0.0
        try:
            self._recover()
        except BaseException:
            self.file.close()
            raise

    @property
    def path(self) -> str:
        """The path of the chunk's file."""
        return self._location.path(self.chunk.number)

    def append(self, data: bytes, last_id: int, ends: Sequence[tuple[int, int]] = ()) -> None:
        """Append frames, the last of which has the id ``last_id``. The caller holds the producer lock.

        Cost: one write, and no sync.

        :param ends: the parts of ``data`` that may be stored without the rest: the size of the bytes up to
            the end of each part, and the id of its last record.
        :raise StorageError: nothing was written but whole parts, up to :attr:`last_id`, unless :attr:`poison`
            is set.
        """
        self._writing = True
        try:
            if self._write(self.fd, data) != len(data):
                self._finish_short_write(data)
        except OSError as error:
            raise self.undo_append(error, ends) from error
        self._writing = False
        end = self.end + len(data)
        if self._size(self.fd, 0, os.SEEK_CUR) != end:
            # The lock's file was removed. Another process has made a new one and sealed the chunk before this
            # record, so that no reader will read it.
            raise replaced(self._lock.path)
        self.end = end
        self.last_id = last_id

    def _finish_short_write(self, data: bytes) -> None:
        """Complete a short write. The file's size tells how much is already written."""
        view = memoryview(data)
        while (there := self._status(self.fd).st_size - self.end) < len(data):
            if not self._write(self.fd, view[there:]):
                raise OSError(errno.EIO, "the file system takes no more bytes")

    def undo_append(self, error: OSError, ends: Sequence[tuple[int, int]] = ()) -> StorageError:
        """Truncate what a failed append has left, and return the error to raise.

        The parts that were written as a whole stay, because a reader may have read them already: their ids
        must not be given to other records.
        """
        if isinstance(error, StorageError):
            return error
        path = self.path
        failure = storage_error(error, "appending to", path)
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            try:
                self._location.check()
            except StorageError as gone:  # the directory was removed or replaced
                failure = gone
        try:
            # Truncate only what this call wrote: after a failed read the bytes after `end` belong to other
            # processes.
            if self._writing and (size := self._status(self.fd).st_size) > self.end:
                whole = [(self.end + length, id) for length, id in ends if self.end + length <= size]
                end, last_id = whole[-1] if whole else (self.end, self.last_id)
                self._disk.truncate(self.fd, end)
                self.end, self.last_id = end, last_id
        except OSError as second:
            self.poison.set(storage_error(second, "undoing a failed append to", path))
        self._writing = False
        return failure

    @property
    def records_end(self) -> int:
        """The offset directly after the last record.

        It never lies after ``END``, because a reader that starts there would not notice the ``END``.
        """
        return self.end - (HEADER_SIZE if self.sealed else 0)

    @property
    def ordinal(self) -> int:
        """How many records come before the next one."""
        return self.chunk.ordinal + self.last_id + 1 - self.chunk.first_id

    def roll(self, previous_id: int | None = None, first_id: int | None = None, capacity: int = 0) -> None:
        """Begin the next chunk, unless another process has begun it. The caller holds the producer lock.

        The old chunk is synced first, at either level of durability, so that a power cut can tear only the
        last chunk, and every earlier chunk must be valid. The ``END`` frame is written before the new chunk
        gets its name, so that a process which has only the old chunk open notices the end by its size.

        Cost: two syncs of a file and one of the directory.

        :param previous_id: the highest id that a record may have had; ``None``: the last id.
        :param first_id: the id of the next record; ``None``: the next one after ``previous_id``.
        :param capacity: how many records the next chunk must be able to hold, if more than usual.
        """
        self._location.check()
        number = self.chunk.number
        if not self.sealed:
            end = encode(self.chunk.salt, END, self.last_id + 1, _now(), self.file.durable_end, b"")
            self._writing = True
            if self._write(self.fd, end) != len(end):
                self._finish_short_write(end)
            self._writing = False
            if self._size(self.fd, 0, os.SEEK_CUR) == self.end + len(end):
                self._seal_at(self.end + len(end))
            else:  # END follows a record that another process wrote under a lock whose file was removed
                self.catch_up(repair=True)
        # Open an existing next chunk first, because _create() would replace it.
        elif self._open_next_chunk(locked=True):
            self.catch_up(repair=True)
            return
        # Sync also an END that is already there: its writer may have died before the sync.
        self.sync()
        last = max(self.last_id, previous_id or 0)
        self._create(number + 1, max(last + 1, first_id or 0), last, self.ordinal, capacity)
        self.leave_mark()

    def _seal_at(self, end: int) -> None:
        self.end = end
        self.sealed = True
        self.roll_at_id = 0

    def sync(self) -> None:
        """Sync the chunk, and poison the journal if that fails.

        :raise StorageError: the sync failed.
        """
        try:
            self._disk.sync(self.fd)
        except OSError as error:
            failure = storage_error(error, "syncing", self.path)
            self.poison.set(failure)
            raise failure from error
        self.file.durable_end = self.end

    def _create(self, number: int, first_id: int, previous_id: int, ordinal: int, capacity: int = 0) -> None:
        location = self._location
        chunk = Chunk(
            number,
            location.store_id,
            first_id,
            previous_id,
            _now(),
            new_salt(),
            location.serializer,
            max(2 * self._chunksize, capacity),  # so that a batch may end beyond the chunksize
            ordinal,
            self.latest,
        )
        file = create_chunk(self._disk, location.directory, chunk, location.tempdir)
        self._switch_to(RecoveredTail(file, chunk, chunk.data_offset, first_id - 1, self.latest))
        self.file.durable_end = chunk.data_offset

    def _recover(self) -> None:
        """Find and repair the tail, so that records can be appended. The caller holds the producer lock."""
        mark = self._lock.read_mark()
        tail = find_tail(self._location, mark)
        known = tail.last_id if isinstance(tail, MissingTail) else max(tail.last_id, tail.highest_issued_id)
        same_boot = mark is not None and is_same_boot(mark.boot, self._boot)
        try:
            highest_used_id = self._used_ids.highest_used_id(tail, same_boot)
            if highest_used_id > known:
                self._used_ids.retire_ids(known + 1, highest_used_id)
        except BaseException:
            if isinstance(tail, RecoveredTail):
                tail.file.close()
            raise
        if isinstance(tail, MissingTail):
            self.latest = tail.latest
            self._create(tail.number, max(known, highest_used_id) + 1, known, tail.ordinal)
            self.leave_mark()
            return
        self._switch_to(tail)
        self.file.durable_end = tail.end
        if max(known, highest_used_id) > tail.last_id:
            # The header's previous id tells readers which of the missing ids once had records.
            self.roll(known, max(known, highest_used_id) + 1)
        elif mark is None:
            # The lock's file is new. A process that has the removed one open notices it by the size of its
            # chunk, before it appends to that chunk.
            self.roll()
        elif not (tail.clean and same_boot):
            self.leave_mark()

    def _switch_to(self, tail: RecoveredTail) -> None:
        # An interrupt before the last line leaves `_unsure` set, so that the next call recovers the tail.
        self._unsure = self.sealed = True
        self.fd, self.chunk, self.end = tail.file.fd, tail.chunk, tail.end
        self.salt = tail.chunk.salt
        self.last_id, self.latest = tail.last_id, tail.latest
        self.limit_id = tail.chunk.limit_id
        self.roll_at_id = 0 if tail.sealed else min(tail.chunk.first_id + self._chunksize, self.limit_id)
        self.file.written = tail.last_id
        self.file.switch(tail.file, self._location.path(tail.chunk.number), 0)
        self.file.end = tail.end
        self.sealed = tail.sealed
        self._unsure = False

    def leave_mark(self) -> None:
        """Write a tail mark that everything up to ``end`` is durable. The caller has synced the chunk."""
        chunk = self.chunk
        mark = TailMark(chunk.number, chunk.salt, self.records_end, self.last_id, self.latest, self._boot)
        self._lock.leave_mark(mark)

    def check_not_removed(self) -> None:
        """Raise ``StoreReplacedError`` if no process would find a new record. The producer lock is held.

        At ``"process"`` the journal calls it only once in ``UNSEEN_CALLS`` calls or ``UNSEEN_SECONDS``,
        because it costs 1.3 us, half of a ``put``.
        """
        self._lock.check()
        if not self._status(self.fd)[LINKS]:
            self.catch_up(repair=True)
        self.unchecked = 0
        self.checked_at = _now()

    def catch_up(self, repair: bool = False) -> None:
        """Read what other processes have appended.

        :param repair: whether to truncate an incomplete record. The caller holds the producer lock then, so
            that the writer of such a record must be dead.
        :raise StoreReplacedError: the chunk or the lock's file was removed or replaced.
        :raise CorruptionError: under the lock, a record is damaged.
        """
        # After a KeyboardInterrupt: what an interrupted append wrote is read, and not undone.
        self._writing = False
        self._lock.check()
        if self._unsure:
            self._recover_again(locked=repair)
            return
        while True:
            if self.sealed and not self._open_next_chunk(locked=repair):
                return
            # Before the frames are read: a chunk is finished before it is removed, so that a chunk without a
            # name and without END was not removed by a consumer or a trim.
            status = self._status(self.fd)
            if status[SIZE] < self.end:
                raise replaced(self.path, "cut or overwritten, perhaps by a backup that was restored,")
            frames = Frames(self._disk, self.fd, self.chunk.salt, self.end)
            stop = self._read_new_frames(frames, judge=repair)
            if stop is Stop.END:
                self._seal_at(frames.end)
                continue
            if stop is Stop.MOVED:
                self._recover_again(locked=repair)
                return
            if not status[LINKS]:
                raise replaced(self.path)
            if repair and status[SIZE] > self.end:
                self._disk.truncate(self.fd, self.end)
            return

    def _recover_again(self, locked: bool) -> None:
        if locked:
            self._recover()
            return
        try:
            self._lock.acquire()
            self._recover()
        finally:
            self._lock.release()

    def _read_new_frames(self, frames: Frames, judge: bool) -> Stop:
        last = self.last_id
        found: Record | Stop = Stop.INCOMPLETE
        try:
            while isinstance(found := frames.read(), Record):
                last += 1
                if found.id != last:
                    raise BadFrame(frames.start, f"record {last} is missing")
                if found.time > self.latest:
                    self.latest = found.time
                if not frames.in_batch:
                    self.end, self.last_id = frames.end, last
        except BadFrame as error:
            if judge:  # without the lock it may be a record that another process is writing
                path = self.path
                raise CorruptionError(f"{path!r}: {error}", path, error.offset) from error
        self.file.end = self.end
        self.file.written = self.last_id
        return found if isinstance(found, Stop) else Stop.INCOMPLETE

    def _open_next_chunk(self, locked: bool) -> bool:
        """Switch from a sealed chunk to the next one, and tell whether there is one."""
        location, number = self._location, self.chunk.number + 1
        if locked:
            # The process that created the chunk may have died before the name was durable, and records that
            # are appended to the chunk must be durable.
            self._disk.sync_directory(location.directory)
        flags = os.O_RDWR | os.O_APPEND
        while True:
            try:
                file, chunk = open_chunk(self._disk, location.directory, number, location.store_id, flags)
                break
            except CorruptionError:
                location.check()  # the path may name another store, which is not damaged
                raise
            except FileNotFoundError:
                # The next chunk is not begun yet, or a consumer has removed it while this process slept.
                later = chunk_numbers(location.directory)
                if not later or later[-1] <= self.chunk.number:
                    return False
                number = later[-1]
        self._switch_to(
            RecoveredTail(file, chunk, chunk.data_offset, chunk.first_id - 1, max(self.latest, chunk.latest))
        )
        return True

    def leave_poisoned_mark(self) -> None:
        """Write a tail mark that the chunk's content in the page cache may not be on the device."""
        chunk, end = self.chunk, self.chunk.data_offset
        mark = TailMark(chunk.number, chunk.salt, end, chunk.first_id - 1, chunk.latest, self._boot, True)
        self._lock.leave_mark(mark)


class _MarkingPoison(Poison):
    """A poison that is also written into the tail mark, because other processes see the same page cache."""

    def __init__(self, tail: Tail) -> None:
        super().__init__()
        self._tail = tail

    def set(self, failure: StorageError) -> None:
        if self.failure is None:
            super().set(failure)
            self._tail.leave_poisoned_mark()
