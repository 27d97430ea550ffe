"""The journal: records appended to chunk files by several processes."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Sequence

from persistcoll.disk import EXCLUSIVE, UNLOCK, storage_error
from persistcoll.engine.combining import Combiner, Request
from persistcoll.engine.lifecycle import refusal
from persistcoll.errors import ClosedError, EncodeError, StorageError
from persistcoll.journal.end import JournalEnd
from persistcoll.journal.frames import HEADER_SIZE, ITEM, MAX_PAYLOAD, encode, encode_batch
from persistcoll.journal.producer_lock import ProducerLock
from persistcoll.journal.recovery import Place

__all__ = ["Journal"]

_now = time.time

Admit = Callable[[int], None]


class _Append(Request):
    last = 0

    def __init__(self, payload: bytes, admit: Admit | None, group: Sequence[bytes] | None) -> None:
        self.payload = payload
        self.admit = admit
        self.group = group


class Journal:
    """The appending end. Thread-safe; several processes may have the same journal open.

    :param lock: the producer lock; the caller holds it while constructing.
    :param power: ``append`` returns when the record is on the device, not when it is in the kernel.
    :param seal: applied to payload and id before writing.

    The other parameters are those of :class:`~persistcoll.journal.end.JournalEnd`.
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
        self._directory = place.directory
        self._lock = lock
        self._power = power
        self._seal = seal
        self._mutex = threading.Lock()
        self._size = place.disk.size
        self._flock = place.disk.flock
        self._combiner = Combiner[_Append](self._append_all)
        self._tail = JournalEnd(place, lock, chunksize, floor, bury, failed)

    def drop(self) -> None:
        """Close the chunk: the store could not be opened."""
        self._tail.commit.close()

    @property
    def tail(self) -> tuple[int, int, int]:
        """Number of the last chunk, the end of what is whole in it, the last id, as known here."""
        tail = self._tail
        return tail.chunk.number, tail.end, tail.last_id

    def refresh(self) -> int:
        """Read what other processes have appended; return the id of the last record."""
        with self._mutex:
            self._look()
            return self._tail.last_id

    def version(self) -> tuple[int, int]:
        """Differs from an earlier one when anything was appended since, by whomever."""
        with self._mutex:
            # Not the size alone: that of a chunk which others have finished says nothing of the next.
            self._look()
            return self._tail.chunk.number, self._tail.end

    def _look(self) -> None:
        tail = self._tail
        if tail.trouble is not None:
            raise refusal(tail.trouble, self._directory)
        try:
            if self._size(tail.fd, 0, os.SEEK_END) != tail.end or tail.sealed:
                tail.catch_up()
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            raise storage_error(error, "reading", tail.path) from error

    def append(self, payload: bytes, admit: Admit | None = None, group: Sequence[bytes] | None = None) -> int:
        """Append a record; return its id.

        :param admit: called with the last id, under the producer lock; raises to refuse.
        :param group: records to append in place of ``payload``, all or none, with one write; at
            least one. The last one's id is returned.
        :raise StorageFullError: no room; nothing is stored.
        :raise StorageError: after a failed sync, whether it is stored is unknown.
        """
        if len(payload) > MAX_PAYLOAD:
            raise EncodeError(f"an item of {len(payload)} bytes is too large; {MAX_PAYLOAD} are allowed")
        if self._power:
            request = _Append(payload, admit, group)
            self._combiner.submit(request)
            return request.last
        tail = self._tail
        with self._mutex:
            if tail.trouble is not None:
                raise refusal(tail.trouble, self._directory)
            # The hot path of "process": the bare calls, and nothing that can be left out.
            try:
                self._flock(self._lock.fd, EXCLUSIVE)
                try:
                    if self._size(tail.fd, 0, os.SEEK_END) != tail.end or tail.sealed:
                        tail.catch_up(repair=True)
                    if admit is not None:
                        admit(tail.last_id)
                    if tail.last_id + 1 >= tail.full_at or tail.end >= MAX_PAYLOAD:
                        tail.roll()
                    if group is None and self._seal is None:  # nearly always
                        last = tail.last_id + 1
                        data = encode(tail.salt, ITEM, last, _now(), tail.commit.durable_end, payload)
                    else:
                        data, last = self._encode(payload, group, tail.last_id)
                    tail.append(data, last)
                    return last
                except OSError as error:
                    raise tail.rolled_back(error) from error
                finally:
                    self._flock(self._lock.fd, UNLOCK)
            except OSError as error:
                if isinstance(error, StorageError):
                    raise
                raise self._lock_failed(error) from error

    def append_many(self, payloads: Sequence[bytes], admit: Admit | None = None) -> range:
        """Append at least one record with one write and one sync, all or none; return their ids."""
        size = sum(map(len, payloads)) + HEADER_SIZE * len(payloads)
        if size > MAX_PAYLOAD:
            raise EncodeError(f"a batch of {size} bytes is too large; {MAX_PAYLOAD} are allowed")
        last = self.append(b"", admit, payloads)
        return range(last - len(payloads) + 1, last + 1)

    def _encode(self, payload: bytes, group: Sequence[bytes] | None, last: int) -> tuple[bytes, int]:
        """The frames of what is appended behind the id ``last``, and its own last id."""
        salt, synced, seal = self._tail.salt, self._tail.commit.durable_end, self._seal
        id = last + 1
        if group is None:
            if seal is not None:
                payload = seal(payload, id)
            return encode(salt, ITEM, id, _now(), synced, payload), id
        if seal is not None:
            group = [seal(each, number) for number, each in enumerate(group, id)]
        return encode_batch(salt, id, _now(), synced, group), last + len(group)

    def _append_all(self, requests: Sequence[_Append], waiting: Callable[[], None]) -> None:
        """Append for all who wait, with one write and one sync.

        One write, because every system call lets other threads run first.
        """
        tail = self._tail
        with self._mutex:
            if tail.trouble is not None:
                for request in requests:
                    request.failure = refusal(tail.trouble, self._directory)
                return
            self._lock.acquire_calling(waiting)
            try:
                if self._size(tail.fd, 0, os.SEEK_END) != tail.end or tail.sealed:
                    tail.catch_up(repair=True)
                left = list(requests)
                while left:
                    self._write_some(left)
            except OSError as error:
                failure = tail.rolled_back(error)
                for request in requests:
                    request.failure = request.failure or (None if request.last else failure)
            finally:
                self._release()
        waiting()
        try:
            tail.commit.commit(tail.last_id)
        except StorageError as error:
            for request in requests:
                request.failure = request.failure or error

    def _write_some(self, left: list[_Append]) -> None:
        """Write as many as go into this chunk; take those, and those that are refused, off the list."""
        tail = self._tail
        if tail.last_id + 1 >= tail.full_at or tail.end >= MAX_PAYLOAD:
            tail.roll()
        frames: list[bytes] = []
        written: list[_Append] = []
        last, end = tail.last_id, tail.end
        while left and last + 1 < tail.full_at and end < MAX_PAYLOAD:
            request = left.pop(0)
            try:
                if request.admit is not None:
                    request.admit(last)
                data, last = self._encode(request.payload, request.group, last)
            except Exception as refused:
                request.failure = refused
                continue
            frames.append(data)
            written.append(request)
            request.last = last
            end += len(data)
        if frames:
            try:
                tail.append(b"".join(frames), last)
                tail.commit.end, tail.commit.written = tail.end, last
            except StorageError as error:
                for request in written:
                    request.failure = error

    def _release(self) -> None:
        try:
            self._lock.release()
        except StorageError as failure:
            self._lock_failed(failure)

    def _lock_failed(self, error: OSError) -> StorageError:
        """The lock was not taken or is not let go: nobody can append until this store is closed."""
        failure = storage_error(error, "locking", self._directory)
        self._tail.poison(failure)
        return failure

    def refuse(self, failure: StorageError) -> None:
        """From now on every call raises for ``failure``, which happened elsewhere in the store."""
        self._tail.trouble = self._tail.trouble or failure

    def close(self) -> None:
        """Sync what is not synced (a clean close is durable at either level) and let go."""
        tail = self._tail
        with self._mutex:
            if isinstance(tail.trouble, ClosedError):
                return
            try:
                if tail.trouble is None:
                    self._close_cleanly()
            finally:
                tail.trouble = ClosedError("closed")
                tail.commit.close()
                self._lock.close()

    def _close_cleanly(self) -> None:
        tail = self._tail
        with self._lock:
            if self._size(tail.fd, 0, os.SEEK_END) != tail.end:
                tail.catch_up(repair=True)
            if tail.commit.durable_end < tail.end:
                tail.sync()
                tail.commit.durable = tail.last_id
                tail.leave_mark()
            elif self._power:
                tail.leave_mark()

    def abandon(self) -> None:
        """In a forked child: let go of the parent's descriptors and write nothing.

        Both would otherwise share one open file, and with it one lock.
        """
        self._mutex = threading.Lock()
        with contextlib.suppress(OSError):
            os.close(self._lock.fd)
            os.close(self._tail.fd)
