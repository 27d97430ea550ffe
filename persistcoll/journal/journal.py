"""The journal: records appended to chunk files by several processes.

One invariant carries the rest: under the producer lock, ``_end`` is the size of the last chunk and
everything before it is whole. Each append checks it with one ``lseek`` and reads what others have
appended since. So a record's id is always one more than the last, and a process that was killed in
the middle of a write leaves nothing that the next one builds on.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Sequence

from persistcoll.engine.lifecycle import refusal
from persistcoll.engine.values import Record
from persistcoll.errors import ClosedError, CorruptionError, EncodeError, StorageError
from persistcoll.journal.commit import GroupCommit
from persistcoll.journal.disk import Disk, new_salt, storage_error
from persistcoll.journal.frames import (
    END,
    HEADER_SIZE,
    ITEM,
    MAX_PAYLOAD,
    BadFrame,
    Frames,
    Stop,
    encode,
    encode_batch,
)
from persistcoll.journal.mark import TailMark
from persistcoll.journal.producer_lock import ProducerLock
from persistcoll.journal.recovery import NoTail, Place, Tail, find_tail
from persistcoll.journal.segments import Chunk, chunk_numbers, create_chunk, open_chunk

__all__ = ["Journal"]

_now = time.time

Admit = Callable[[int], None]


class Journal:
    """The appending end. Thread-safe; several processes may have the same journal open.

    :param lock: the producer lock; the caller holds it while constructing.
    :param chunksize: records in a chunk before the next one is begun.
    :param power: ``append`` returns when the record is on the device, not when it is in the kernel.
    :param floor: the highest acknowledged id. Ids go on above it even if a power cut took the
        records (at ``"process"`` an acknowledgement may reach the device before the record does).
    :param bury: called with the first and last of the ids that are passed over for that reason: to
        count them as acknowledged, all of them, durably.
    :param seal: applied to payload and id before writing.
    :param failed: called once, when a sync has failed and the journal refuses from then on.
    """

    def __init__(
        self,
        place: Place,
        lock: ProducerLock,
        *,
        chunksize: int,
        power: bool,
        floor: Callable[[], int],
        bury: Callable[[int, int], None],
        seal: Callable[[bytes, int], bytes] | None = None,
        failed: Callable[[StorageError], None] = lambda failure: None,
    ) -> None:
        self._place = place
        self._disk: Disk = place.disk
        self._lock = lock
        self._chunksize = chunksize
        self._power = power
        self._floor = floor
        self._bury = bury
        self._seal = seal
        self._failed = failed
        self._mutex = threading.Lock()
        self._trouble: StorageError | ClosedError | None = None
        self._commit = GroupCommit(self._disk, place.directory, self._poison)
        self._write = self._disk.write
        self._size = self._disk.size
        self._fd = -1
        self._chunk: Chunk
        self._end = 0
        self._last = 0
        self._sealed = False
        self._writing = False  # what lies behind the end is ours to undo
        self._full_at = 0  # the id that begins the next chunk
        try:
            self._locate()
        except BaseException:
            self.drop()
            raise

    def drop(self) -> None:
        """Close the chunk: the store could not be opened."""
        self._commit.close()

    @property
    def tail(self) -> tuple[int, int, int]:
        """Number of the last chunk, the end of what is whole in it, the last id, as known here."""
        return self._chunk.number, self._end, self._last

    def refresh(self) -> int:
        """Read what other processes have appended; return the id of the last record."""
        with self._mutex:
            self._look()
            return self._last

    def version(self) -> tuple[int, int]:
        """Differs from an earlier one when anything was appended since, by whomever."""
        with self._mutex:
            # Not the size alone: that of a chunk which others have finished says nothing of the next.
            self._look()
            return self._chunk.number, self._end

    def _look(self) -> None:
        if self._trouble is not None:
            raise refusal(self._trouble, self._place.directory)
        try:
            if self._size(self._fd, 0, os.SEEK_END) != self._end or self._sealed:
                self._catch_up()
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            raise storage_error(error, "reading", self._place.path(self._chunk.number)) from error

    def append(self, payload: bytes, admit: Admit | None = None) -> int:
        """Append a record; return its id.

        :param admit: called with the last id, under the producer lock; raises to refuse.
        :raise StorageFullError: no room; the record is not stored.
        :raise StorageError: after a failed sync, whether it is stored is unknown.
        """
        if len(payload) > MAX_PAYLOAD:
            raise EncodeError(f"an item of {len(payload)} bytes is too large; {MAX_PAYLOAD} are allowed")
        return self._append(payload, None, admit)

    def append_many(self, payloads: Sequence[bytes], admit: Admit | None = None) -> range:
        """Append at least one record with one write and one sync, all or none; return their ids."""
        size = sum(map(len, payloads)) + HEADER_SIZE * len(payloads)
        if size > MAX_PAYLOAD:
            raise EncodeError(f"a batch of {size} bytes is too large; {MAX_PAYLOAD} are allowed")
        last = self._append(b"", payloads, admit)
        return range(last - len(payloads) + 1, last + 1)

    def _append(self, payload: bytes, batch: Sequence[bytes] | None, admit: Admit | None) -> int:
        """Append ``payload``, or all of ``batch``; return the last id."""
        with self._mutex:
            if self._trouble is not None:
                raise refusal(self._trouble, self._place.directory)
            self._lock.acquire()
            try:
                if self._size(self._fd, 0, os.SEEK_END) != self._end or self._sealed:
                    self._catch_up(repair=True)
                if admit is not None:
                    admit(self._last)
                if self._last + 1 >= self._full_at or self._end >= MAX_PAYLOAD:
                    self._roll()
                last = id = self._last + 1
                salt, synced, seal = self._chunk.salt, self._commit.durable_end, self._seal
                if batch is None:
                    if seal is not None:
                        payload = seal(payload, id)
                    data = encode(salt, ITEM, id, _now(), synced, payload)
                else:
                    last = self._last + len(batch)
                    if seal is not None:
                        batch = [seal(each, number) for number, each in enumerate(batch, id)]
                    data = encode_batch(salt, id, _now(), synced, batch)
                self._writing = True
                if self._write(self._fd, data) != len(data):
                    self._write_again(data)
                self._commit.end = self._end = self._end + len(data)
                self._commit.written = self._last = last
                self._writing = False
            except OSError as error:
                raise self._rolled_back(error) from error
            finally:
                self._release()
        if self._power:
            self._commit.commit(last)
        return last

    def _release(self) -> None:
        try:
            self._lock.release()
        except StorageError as failure:
            self._poison(failure)  # nobody else can append until this store is closed

    def _write_again(self, data: bytes) -> None:
        """Complete a short write. What is there already is known by the size."""
        view = memoryview(data)
        while (there := self._size(self._fd, 0, os.SEEK_END) - self._end) < len(data):
            if not self._write(self._fd, view[there:]):
                raise OSError("the file system takes no more bytes")

    def _rolled_back(self, error: OSError) -> StorageError:
        """Undo what a failed append left; the error to raise for it."""
        if isinstance(error, StorageError):
            return error
        path = self._place.path(self._chunk.number)
        failure = storage_error(error, "appending to", path)
        try:
            # Only what this call wrote: if it failed while reading, what lies behind is others'.
            if self._writing and self._size(self._fd, 0, os.SEEK_END) > self._end:
                self._disk.truncate(self._fd, self._end)
        except OSError as second:
            self._poison(storage_error(second, "undoing a failed append to", path))
        self._writing = False
        return failure

    def _roll(self, previous_id: int | None = None, first_id: int | None = None) -> None:
        """Begin the next chunk, unless another process has.

        The old one is synced first, at either level: then only the last chunk can be torn by a
        power cut, and everything before it must be whole. END comes before the new name, so
        that a process which knows only the old chunk finds out from its size alone.
        """
        number = self._chunk.number
        if not self._sealed:
            end = encode(self._chunk.salt, END, self._last + 1, _now(), self._commit.durable_end, b"")
            self._writing = True
            if self._write(self._fd, end) != len(end):
                self._write_again(end)
            self._seal_at(self._end + len(end))
            self._writing = False
            self._sync_tail()
        # Creating a chunk replaces whatever has its name.
        elif self._follow(locked=True):
            self._catch_up(repair=True)
            return
        last = self._last if previous_id is None else previous_id
        self._create(number + 1, last + 1 if first_id is None else first_id, last)
        self._leave_mark()

    def _seal_at(self, end: int) -> None:
        self._end = end
        self._sealed = True
        self._full_at = 0

    def _sync_tail(self) -> None:
        try:
            self._disk.sync(self._fd)
        except OSError as error:
            failure = storage_error(error, "syncing", self._place.path(self._chunk.number))
            self._poison(failure)
            raise failure from error
        self._commit.durable_end = self._end

    def _create(self, number: int, first_id: int, previous_id: int) -> None:
        place = self._place
        chunk = Chunk(number, place.store_id, first_id, previous_id, _now(), new_salt(), place.serializer)
        fd = create_chunk(self._disk, place.directory, chunk, place.tempdir)
        self._adopt(Tail(fd, chunk, chunk.data_offset, first_id - 1))
        self._commit.durable_end = chunk.data_offset

    def _locate(self) -> None:
        """Find the tail and make it fit for appending. Under the producer lock."""
        tail = find_tail(self._place, self._lock.read_mark())
        known = tail.last_id if isinstance(tail, NoTail) else max(tail.last_id, tail.known_id)
        floor = self._floor()
        if floor > known:
            self._bury(known + 1, floor)
        if isinstance(tail, NoTail):
            self._create(tail.number, max(known, floor) + 1, known)
            self._leave_mark()
            return
        self._adopt(tail)
        self._commit.durable_end = tail.end
        if max(known, floor) > tail.last_id:
            # `previous_id` tells readers which of the missing ids were records once.
            self._roll(known, max(known, floor) + 1)
        elif not tail.clean:
            self._leave_mark()

    def _adopt(self, tail: Tail) -> None:
        self._fd, self._chunk, self._end = tail.fd, tail.chunk, tail.end
        self._last, self._sealed = tail.last_id, tail.sealed
        self._full_at = 0 if tail.sealed else tail.chunk.first_id + self._chunksize
        self._commit.written = tail.last_id
        self._commit.switch(tail.fd, self._place.path(tail.chunk.number), 0)
        self._commit.end = tail.end

    def _leave_mark(self) -> None:
        """Write down that all is durable up to here. The caller has synced."""
        # Never behind END: who starts reading there would not learn that the chunk is finished.
        chunk, end = self._chunk, self._end - (HEADER_SIZE if self._sealed else 0)
        self._lock.leave_mark(TailMark(chunk.number, chunk.salt, end, self._last))

    def _catch_up(self, repair: bool = False) -> None:
        """Read what others have appended since.

        :param repair: the lock is held, so that what is not whole is a dead process's: cut it.
        """
        while True:
            if self._sealed and not self._follow(locked=repair):
                return
            frames = Frames(self._disk, self._fd, self._chunk.salt, self._end)
            stop = self._read_on(frames, judge=repair)
            if stop is Stop.END:
                self._seal_at(frames.end)
                continue
            if stop is Stop.MOVED:
                with contextlib.nullcontext() if repair else self._lock:
                    self._locate()
            elif repair and self._size(self._fd, 0, os.SEEK_END) > self._end:
                self._disk.truncate(self._fd, self._end)
            return

    def _read_on(self, frames: Frames, judge: bool) -> Stop:
        last = self._last
        found: Record | Stop = Stop.INCOMPLETE
        try:
            while isinstance(found := frames.read(), Record):
                last += 1
                if found.id != last:
                    raise BadFrame(frames.start, f"record {last} is missing")
                if not frames.in_batch:
                    self._end, self._last = frames.end, last
        except BadFrame as error:
            if judge:  # without the lock it may be somebody's half-written record
                path = self._place.path(self._chunk.number)
                raise CorruptionError(f"{path!r}: {error}", path, error.offset) from error
        self._commit.end = self._end
        self._commit.written = self._last
        return found if isinstance(found, Stop) else Stop.INCOMPLETE

    def _follow(self, locked: bool) -> bool:
        """Go from a sealed chunk to the next one, if it is there."""
        place, number = self._place, self._chunk.number + 1
        if locked:
            # Whoever made it may have died before its name was durable, and what we put into it
            # has to be.
            self._disk.sync_directory(place.directory)
        flags = os.O_RDWR | os.O_APPEND
        while True:
            try:
                fd, chunk = open_chunk(self._disk, place.directory, number, place.store_id, flags)
                break
            except FileNotFoundError:
                # Not begun yet, or consumed and gone while this process slept.
                later = chunk_numbers(place.directory)
                if not later or later[-1] <= self._chunk.number:
                    return False
                number = later[-1]
        self._adopt(Tail(fd, chunk, chunk.data_offset, chunk.first_id - 1))
        return True

    def _poison(self, failure: StorageError) -> None:
        """No more on this handle: what the page cache shows may not be on the device."""
        if self._trouble is not None:
            return
        self._trouble = failure
        chunk = self._chunk
        self._lock.leave_mark(
            TailMark(chunk.number, chunk.salt, chunk.data_offset, chunk.first_id - 1, poisoned=True)
        )
        self._failed(failure)

    def refuse(self, failure: StorageError) -> None:
        """From now on every call raises for ``failure``, which happened elsewhere in the store."""
        self._trouble = self._trouble or failure

    def close(self) -> None:
        """Sync what is not synced (a clean close is durable at either level) and let go."""
        with self._mutex:
            if isinstance(self._trouble, ClosedError):
                return
            try:
                if self._trouble is None:
                    self._close_cleanly()
            finally:
                self._trouble = ClosedError("closed")
                self._commit.close()
                self._lock.close()

    def _close_cleanly(self) -> None:
        with self._lock:
            if self._size(self._fd, 0, os.SEEK_END) != self._end:
                self._catch_up(repair=True)
            if self._commit.durable_end < self._end:
                self._sync_tail()
                self._commit.durable = self._last
                self._leave_mark()
            elif self._power:
                self._leave_mark()

    def abandon(self) -> None:
        """In a forked child: let go of the parent's descriptors and write nothing.

        Both would otherwise share one open file, and with it one lock.
        """
        self._mutex = threading.Lock()
        with contextlib.suppress(OSError):
            os.close(self._lock.fd)
            os.close(self._fd)
