"""The journal: records that several processes append to chunk files."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from persistcoll.disk.calls import (
    LINKS,
    SIZE,
    TRY_EXCLUSIVE,
    UNLOCK,
    UNSEEN_CALLS,
    UNSEEN_SECONDS,
    storage_error,
)
from persistcoll.engine.combining import Combiner, Request
from persistcoll.engine.forks import REENTRANT, owned
from persistcoll.errors import EncodeError, StorageError, StoreReplacedError
from persistcoll.journal.chunks import LastChunk
from persistcoll.journal.frames import HEADER_SIZE, ITEM, MAX_PAYLOAD, encode, encode_batch
from persistcoll.journal.producer_lock import ProducerLock
from persistcoll.journal.recovery import JournalLocation
from persistcoll.journal.tail import Tail, UsedIds

if TYPE_CHECKING:
    from threading import RLock  # a function at run time before Python 3.13

__all__ = ["Journal"]

_CUT_SHORT = "the thread that wrote this for another was interrupted; whether it is stored is unknown"
_now = time.time

CheckCapacity = Callable[[int], None]
T = TypeVar("T")


class _Write:
    """One write of the records of several requests.

    The requests share this object. So one assignment changes the state of all of them, and an interrupt
    cannot separate them.
    """

    begun = ended = False


class _Append(Request):
    last = 0
    write = _Write()

    def __init__(self, payload: bytes | tuple[bytes, ...], check_capacity: CheckCapacity | None) -> None:
        self.payload = payload
        self.check_capacity = check_capacity


class Journal:
    """A journal that can be appended to. Thread-safe, and several processes may have it open.

    ``mutex`` protects the tail. The journal holds it within each operation, except while the operation waits
    for a sync. The producer lock, which the journal acquires after ``mutex``, excludes other processes.

    :param lock: the producer lock. The caller holds it during the construction.
    :param mutex: the store's ``_appending`` lock.
    :param sync: whether ``append`` returns when the record is on the device. Otherwise it returns when the
        kernel has the record.
    :param seal: called with the payload and the id of each record; returns the payload to write.

    The other parameters are those of :class:`~persistcoll.journal.tail.Tail`.

    :ivar poison: why the journal refuses every call, if it does.
    """

    def __init__(
        self,
        location: JournalLocation,
        lock: ProducerLock,
        mutex: RLock,
        *,
        chunksize: int,
        sync: bool,
        used_ids: UsedIds,
        seal: Callable[[bytes, int], bytes] | None = None,
    ) -> None:
        self.location = location
        self._directory = location.directory
        self._lock = lock
        self._sync = sync
        self._seal = seal
        self._mutex = mutex
        self._within = lock.within = owned(mutex)
        self._status = location.disk.status
        self._size = location.disk.size
        self._flock = location.disk.flock
        self._combiner = Combiner[_Append](self._append_all)
        self._tail = Tail(location, lock, chunksize, used_ids)
        self.poison = self._tail.poison

    @property
    def is_open(self) -> bool:
        """Whether the journal's files are open."""
        return self._lock.is_open and self._tail.file.is_open

    @property
    def tail(self) -> tuple[int, int, int]:
        """The number of the last chunk, its valid size in bytes and the last id, as of the last refresh."""
        tail = self._tail
        return tail.chunk.number, tail.end, tail.last_id

    def last_chunk(self) -> LastChunk:
        """Refresh the tail, and return the last chunk."""
        with self._mutex:
            self._catch_up_if_grown()
            return LastChunk(self._tail.chunk, self._tail.records_end, self._tail.last_id)

    def refresh(self) -> int:
        """Read what other processes have appended, and return the id of the last record.

        Cost: one system call if nothing was appended.
        """
        with self._mutex:
            self._catch_up_if_grown()
            return self._tail.last_id

    def change_token(self) -> tuple[int, int]:
        """Return a token that differs from an earlier one if any process has appended since."""
        with self._mutex:
            # The size alone is no token, because a sealed chunk keeps its size while the next one grows.
            self._catch_up_if_grown()
            return self._tail.chunk.number, self._tail.end

    def _catch_up_if_grown(self) -> None:
        tail = self._tail
        if self.poison.unusable_because is not None:
            raise self.poison.unusable_error(self._directory)
        try:
            if tail.sealed or (status := self._status(tail.fd))[SIZE] != tail.end or not status[LINKS]:
                tail.catch_up()
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            raise storage_error(error, "reading", tail.path) from error

    def append(self, payload: bytes | tuple[bytes, ...], check_capacity: CheckCapacity | None = None) -> int:
        """Append a record and return its id.

        Cost: one write and, with ``sync``, one sync that concurrent callers share.

        :param payload: the payload of the record. A tuple holds the payloads of at least one record, which
            are appended all or none with one write; the id of the last one is returned.
        :param check_capacity: called with the journal's last id, under the producer lock. It raises to refuse
            the append.
        :raise StorageFullError: the disk is full, and nothing is stored.
        :raise StorageError: the write or the sync failed. After a failed sync it is unknown whether the
            record is stored.
        """
        if len(payload) > MAX_PAYLOAD:
            raise EncodeError(f"an item of {len(payload)} bytes is too large; {MAX_PAYLOAD} are allowed")
        if self._within():
            raise StorageError(REENTRANT)
        if self._sync:
            while True:
                request = _Append(payload, check_capacity)
                self._combiner.submit(request)
                if not request.cut_short or self._is_durable(request):
                    return request.last
        tail = self._tail
        with self._mutex:
            if self.poison.unusable_because is not None:
                raise self.poison.unusable_error(self._directory)
            # The hot path of "process": the bare system calls, without any call that can be avoided.
            try:
                try:
                    try:
                        self._flock(self._lock.fd, TRY_EXCLUSIVE)
                    except BlockingIOError:
                        self._lock.wait()
                    if self._size(tail.fd, 0, os.SEEK_END) != tail.end or tail.sealed:
                        tail.catch_up(repair=True)
                    now = _now()
                    tail.unchecked += 1
                    if tail.unchecked > UNSEEN_CALLS or not 0 <= now - tail.checked_at < UNSEEN_SECONDS:
                        tail.check_not_removed()
                    if check_capacity is not None:
                        check_capacity(tail.last_id)
                    if tail.last_id + 1 >= tail.roll_at_id or tail.end >= MAX_PAYLOAD:
                        tail.roll()
                    if now > tail.latest:
                        tail.latest = now
                    if self._seal is None and not isinstance(payload, tuple):  # nearly always
                        last = tail.last_id + 1
                        data = encode(tail.salt, ITEM, last, now, tail.file.durable_end, payload)
                    else:
                        if not self._has_room(payload, tail.last_id):
                            tail.roll(capacity=len(payload))
                        data, last = self._encode(payload, tail.last_id, now)
                    tail.append(data, last)
                    return last
                except OSError as error:
                    raise tail.undo_append(error) from error
                finally:
                    # No call before this one: an interrupt after it would leave the lock held, and no process
                    # could append.
                    self._flock(self._lock.fd, UNLOCK)
            except OSError as error:
                if isinstance(error, StorageError):
                    raise
                raise self._unlock_failed(error) from error

    def _is_durable(self, request: _Append) -> bool:
        """Make a request of an interrupted writer durable; return ``False`` if it was not written.

        :raise StorageError: it is unknown whether the request was written.
        """
        if not request.write.begun:
            return False
        if not request.write.ended:
            raise StorageError(_CUT_SHORT)
        self._tail.file.sync(request.last)
        return True

    def append_many(self, payloads: Sequence[bytes], check_capacity: CheckCapacity | None = None) -> range:
        """Append at least one record, all or none, with one write and one sync, and return their ids."""
        size = sum(map(len, payloads)) + HEADER_SIZE * len(payloads)
        if size > MAX_PAYLOAD:
            raise EncodeError(f"a batch of {size} bytes is too large; {MAX_PAYLOAD} are allowed")
        last = self.append(tuple(payloads), check_capacity)
        return range(last - len(payloads) + 1, last + 1)

    def _has_room(self, payload: bytes | tuple[bytes, ...], last: int) -> bool:
        """Tell whether the chunk may hold all records of a batch after the id ``last``."""
        return not isinstance(payload, tuple) or last + len(payload) < self._tail.limit_id

    def _encode(self, payload: bytes | tuple[bytes, ...], last: int, now: float) -> tuple[bytes, int]:
        """Return the frames of the records that follow the id ``last``, and the id of the last of them."""
        salt, synced, seal = self._tail.salt, self._tail.file.durable_end, self._seal
        id = last + 1
        if not isinstance(payload, tuple):
            if seal is not None:
                payload = seal(payload, id)
            return encode(salt, ITEM, id, now, synced, payload), id
        if seal is not None:
            payload = tuple([seal(each, number) for number, each in enumerate(payload, id)])
        return encode_batch(salt, id, now, synced, payload), last + len(payload)

    def _append_all(self, requests: Sequence[_Append], on_block: Callable[[], None]) -> None:
        """Append the records of all waiting threads with one write and one sync.

        It is one write, because each system call releases the interpreter lock, and another thread may run
        first.
        """
        tail = self._tail
        with self._mutex:
            if self.poison.unusable_because is not None:
                for request in requests:
                    request.failure = self.poison.unusable_error(self._directory)
                return
            try:
                self._append_locked(requests, on_block)
            except OSError as error:
                failure = error if isinstance(error, StorageError) else self._unlock_failed(error)
                for request in requests:
                    request.failure = request.failure or (None if request.last else failure)
        on_block()
        try:
            tail.file.sync(tail.last_id)
        except StorageError as error:
            for request in requests:
                request.failure = request.failure or error

    def _append_locked(self, requests: Sequence[_Append], on_block: Callable[[], None]) -> None:
        tail = self._tail
        try:
            self._acquire(on_block)
            left = list(requests)
            while left:
                self._write_some(left)
        except OSError as error:
            raise tail.undo_append(error) from error
        finally:
            self._lock.release()

    def _acquire(self, on_block: Callable[[], None] | None = None) -> None:
        """Acquire the producer lock, and read what other processes have appended.

        The caller holds the mutex, and releases the lock in a ``finally`` block that covers this call.
        """
        tail = self._tail
        self._lock.acquire(on_block)
        if self._size(tail.fd, 0, os.SEEK_END) != tail.end or tail.sealed:
            tail.catch_up(repair=True)
        tail.check_not_removed()

    def _write_some(self, left: list[_Append]) -> None:
        """Write as many requests as the chunk takes. Remove these and the refused ones from ``left``."""
        tail = self._tail
        if tail.last_id + 1 >= tail.roll_at_id or tail.end >= MAX_PAYLOAD:
            tail.roll()
        if not self._has_room(left[0].payload, tail.last_id):
            tail.roll(capacity=len(left[0].payload))
        frames: list[bytes] = []
        ends: list[tuple[int, int]] = []
        written: list[_Append] = []
        last, end = tail.last_id, tail.end
        now = _now()
        tail.latest = max(tail.latest, now)
        while left and last + 1 < tail.roll_at_id and end < MAX_PAYLOAD:
            if not self._has_room(left[0].payload, last):
                break
            request = left.pop(0)
            try:
                if request.check_capacity is not None:
                    request.check_capacity(last)
                data, last = self._encode(request.payload, last, now)
            except Exception as refused:
                request.failure = refused
                continue
            frames.append(data)
            written.append(request)
            request.last = last
            end += len(data)
            ends.append((end - tail.end, last))
        if frames:
            write = _Write()
            for request in written:
                request.write = write
            try:
                write.begun = True
                tail.append(b"".join(frames), last, ends)
                write.ended = True
            except StorageError as error:
                for request in written:
                    if request.last > tail.last_id:
                        request.failure = error
            tail.file.end, tail.file.written = tail.end, tail.last_id

    def exclusively(self, action: Callable[[], T]) -> T:
        """Call ``action`` and return its result, while no other thread and no other process appends.

        :raise StorageError: the journal is poisoned, or the lock cannot be acquired.
        """
        with self._mutex:
            if self.poison.unusable_because is not None:
                raise self.poison.unusable_error(self._directory)
            try:
                try:
                    self._acquire()
                    return action()
                except OSError as error:
                    if isinstance(error, StorageError):
                        raise
                    raise storage_error(error, "writing", self._directory) from error
                finally:
                    self._lock.release()
            except OSError as error:
                if isinstance(error, StorageError):
                    raise
                raise self._unlock_failed(error) from error

    def _unlock_failed(self, error: OSError) -> StorageError:
        """Poison the journal and return the error: the producer lock was not released.

        No other process can append until this store is closed. What was written under the lock is stored.
        """
        failure = storage_error(error, "unlocking", self._directory, unknown=True)
        self.poison.set(failure)
        return failure

    def close(self) -> None:
        """Sync the unsynced records, at either level of durability, and close the files.

        :raise StorageError: the sync failed. The files are closed all the same.
        """
        with self._mutex:
            try:
                if self.poison.failure is None and self.is_open:
                    self._close_cleanly()
            except StoreReplacedError:
                pass  # the records were durable, and a user has removed or replaced the directory since
            except OSError as error:
                if isinstance(error, StorageError):
                    raise
                raise storage_error(error, "closing", self._directory) from error
            finally:
                self.close_without_sync()

    def _close_cleanly(self) -> None:
        tail = self._tail
        try:
            self._lock.acquire()
            if tail.sealed or (status := self._status(tail.fd))[SIZE] != tail.end or not status[LINKS]:
                tail.catch_up(repair=True)
            if tail.file.durable_end < tail.end:
                tail.sync()
                tail.file.durable = tail.last_id
                tail.leave_mark()
            elif self._sync:
                tail.leave_mark()
        except OSError as error:
            raise tail.undo_append(error) from error
        finally:
            self._lock.release()

    def close_without_sync(self) -> None:
        """Close the files without a sync, as the death of the process would."""
        self.poison.close()
        self._tail.file.close()
        self._lock.close()

    def after_fork_in_child(self) -> None:
        """Close the parent's descriptors in a forked child, and write nothing.

        Otherwise parent and child would share one open file, and so one lock.
        """
        self._tail.file.after_fork_in_child()
        self._lock.close()
