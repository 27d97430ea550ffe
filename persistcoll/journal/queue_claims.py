"""The claims of the process that consumes a file queue.

A claimed record stays in the journal. Only the cursor says which records are acked.
"""

from __future__ import annotations

import bisect
import logging
import os
from collections.abc import Callable, Sequence
from typing import TypeVar

from persistcoll.disk.atomic import remove_temp_file
from persistcoll.disk.calls import storage_error
from persistcoll.engine.contracts import Claim
from persistcoll.engine.records import Record
from persistcoll.errors import CorruptionError, Empty, NotClaimedError, StorageError
from persistcoll.journal.chunk_removal import ConsumedChunks
from persistcoll.journal.chunks import open_chunk
from persistcoll.journal.consumer_lock import ConsumerLock
from persistcoll.journal.cursor import Cursor
from persistcoll.journal.cursors import CursorReader, Position
from persistcoll.journal.frames import BadFrame, Frames
from persistcoll.journal.reader import ReadableJournal, Reader
from persistcoll.journal.recovery import JournalLocation
from persistcoll.journal.replaced_files import replaced

__all__ = ["QueueClaims"]

T = TypeVar("T")
_log = logging.getLogger("persistcoll")


def _runs(claims: Sequence[Claim]) -> list[tuple[int, int, Position]]:
    """Return the runs of consecutive ids, with the end position of the last record of each."""
    runs: list[tuple[int, int, Position]] = []
    for id, (number, _, end) in claims:
        first = id
        if runs and runs[-1][1] == id - 1:
            first, _, _ = runs.pop()
        runs.append((first, id, (number, end)))
    return runs


class QueueClaims:
    """Claims, acks and releases the records of a journal for the consuming process.

    The store's ``_consuming`` lock protects every field. The store holds it around every call except
    ``commit``.

    The invariant: while ``unsure`` is false, every id before the reader's next id is acked, in ``claimed`` or
    in ``_released``. A method that changes more than one field sets ``unsure`` before the first change and
    clears it after the last one. After an interrupt between the two, the store calls :meth:`begin_anew`, so
    that no method has to repair a half-made change.

    :param lock: the consumer lock, which this process holds.
    :param cursor: the cursor. The constructor begins it.
    :param chunks: removes the consumed chunks.
    :param cursor_reader: a reader that has read the cursor. The constructor closes it.
    :param can_append: whether the cursor file can be appended to. Otherwise a new file replaces it.
    :ivar not_ready: how many ids are acked or claimed.
    :ivar unsure: whether an operation is running or was interrupted. The next operation must call
        :meth:`begin_anew` first.
    :ivar claimed: the claims by id: the number of the chunk, and the offsets of the record's start and end.
    :ivar commit: returns when everything acked so far is durable. The caller holds no lock.
    """

    def __init__(
        self,
        location: JournalLocation,
        journal: ReadableJournal,
        lock: ConsumerLock,
        cursor: Cursor,
        chunks: ConsumedChunks,
        cursor_reader: CursorReader,
        can_append: bool,
    ) -> None:
        self._location = location
        self._disk = location.disk
        self._journal = journal
        self._lock = lock
        self._publish_progress = lock.publish_progress
        self._cursor = cursor
        self._chunks = chunks
        self.commit = cursor.commit
        self._corrupt_ranges: dict[int, int] = {}  # first to last
        self.claimed: dict[int, tuple[int, int, int]] = {}  # id to chunk, start, end
        # Records before the reader that are ready again, by id: id, chunk, start, end.
        self._released: list[tuple[int, int, int, int]] = []
        try:
            self._begin(cursor_reader, can_append)
            remove_temp_file(self._disk, location.directory, location.tempdir, os.path.basename(cursor.path))
        except BaseException:
            cursor.close_without_sync()
            if cursor.file is not None:  # the cursor opened it, and close_without_sync() does not know it yet
                cursor.file.close()
            self._close_reader()
            raise

    @property
    def is_open(self) -> bool:
        """Whether the cursor's file is open."""
        return self._cursor.is_open

    def begin_anew(self, cursor_reader: CursorReader) -> None:
        """Rebuild the state after an interrupt, from the cursor's file and the claims.

        The interrupt may have come after any call, and only these two are certain.

        :raise StoreReplacedError: the cursor was removed, or says less than this process has written to it.
        """
        if not cursor_reader.exists or cursor_reader.acknowledged.count < self.acknowledged.count:
            raise replaced(self._cursor.path)
        self._begin(cursor_reader, can_append=False)

    def _begin(self, cursor_reader: CursorReader, can_append: bool) -> None:
        self.unsure = True
        try:
            anew = self._cursor.begin(cursor_reader, can_append)
        finally:
            cursor_reader.close()
        self.acknowledged = acknowledged = self._cursor.acknowledged
        for id in [id for id in self.claimed if id in acknowledged]:
            del self.claimed[id]
        self.not_ready = acknowledged.count + len(self.claimed)
        self._chunks.begin()
        self._read_from(acknowledged.last, acknowledged.position)
        self._read_past_claimed()
        self._publish()
        if anew:
            self._chunks.sweep(self._journal.tail[0])
        self.unsure = False

    def _read_past_claimed(self) -> None:
        """Move the reader past the last claimed record.

        An earlier record that is neither claimed nor acked is ready, because its claim was released or the
        operation that claimed it was interrupted.
        """
        released: list[tuple[int, int, int, int]] = []
        last = max(self.claimed, default=0)
        reader = self._reader
        while last and (entry := reader.current()) is not None and entry[0].id <= last:
            record, start, end = entry
            if record.id not in self.claimed:
                released.append((record.id, reader.number, start, end))
            reader.advance()
        self._released = released

    def _read_from(self, last_id: int, position: Position) -> None:
        self._close_reader()
        try:
            self._reader: Reader = Reader(
                self._journal,
                last_id,
                position,
                self.acknowledged,
                self._skip_corrupt,
                self._chunks.chunk_read,
            )
        except StorageError:
            raise
        except OSError as error:
            raise storage_error(error, "reading", self._location.path(position[0])) from error

    def _close_reader(self) -> None:
        reader: Reader | None = self.__dict__.get("_reader")
        if reader is not None:
            reader.close()

    def _skip_corrupt(self, first: int, last: int, end_position: Position) -> None:
        """Ack damaged records that the reader skips, because otherwise they would block the cursor."""
        self._corrupt_ranges[first] = last
        self._write(first, last, end_position)
        self.not_ready += last - first + 1

    @property
    def skipped_corrupt(self) -> int:
        """How many damaged records the reader has skipped."""
        return sum([last - first + 1 for first, last in self._corrupt_ranges.items()])

    # Claiming.

    def claim_or_pop(self, decode: Callable[[Record], T], acknowledge: bool, claims: list[Claim] | None) -> T:
        """Claim the first ready record, or pop it with ``acknowledge``, and return ``decode`` of it.

        :param claims: the claim is appended to this list.
        :raise Empty: no record is ready.
        """
        if self._released:
            return self.claim_or_pop_many(1, decode, acknowledge, claims)[0]
        reader = self._reader
        buffer = reader.buffer
        if not buffer or buffer[0][0][0] <= self.acknowledged.highest:
            self._read_first()
        record, start, end = buffer[0]
        value = decode(record)
        id = record[0]
        self.unsure = True
        if acknowledge:
            self._write(id, id, (reader.number, end))
        else:
            claim = reader.number, start, end
            if claims is not None:
                claims.append((id, claim))
            self.claimed[id] = claim
        self.not_ready = not_ready = self.not_ready + 1
        if self.claimed:  # otherwise other processes read the same from the cursor
            self._publish_progress(not_ready, id + 1)
        buffer.popleft()
        self.unsure = False
        return value

    def _read_first(self) -> None:
        """Make the first ready record the first one in the reader's buffer, or raise ``Empty``."""
        self.unsure = True
        try:
            entry = self._reader.current()
        except CorruptionError:
            self.unsure = False  # nothing has changed, and the reader raises the same error again
            raise
        self.unsure = False
        if entry is None:
            raise Empty

    def claim_or_pop_many(
        self, limit: int, decode: Callable[[Record], T], acknowledge: bool, claims: list[Claim] | None
    ) -> list[T]:
        """Do as :meth:`claim_or_pop` with up to ``limit`` ready records.

        The first ones are those that were released. If ``decode`` raises at a later record than the first,
        that record stays ready.
        """
        released = self._released[:limit]
        values: list[T] = []
        new: list[Claim] = []
        for id, number, start, end in released:
            try:
                values.append(decode(self._read_at(number, start)))
            except Exception:
                if not new:
                    raise
                break
            new.append((id, (number, start, end)))
        count = len(new)
        if count == len(released) < limit:
            self._decode_unread(limit, decode, values, new)
        self.unsure = True
        if acknowledge:
            self._write_all(_runs(new))
        else:
            if claims is not None:
                claims.extend(new)
            self.claimed.update(new)
        del self._released[:count]
        self.not_ready += len(new)
        self._publish()
        self.unsure = False
        return values

    def _decode_unread(
        self, limit: int, decode: Callable[[Record], T], values: list[T], new: list[Claim]
    ) -> None:
        """Add records that the reader has not passed yet, and have the reader pass them."""
        if not new:
            self._read_first()
        reader, buffer = self._reader, self._reader.buffer
        highest = self.acknowledged.highest
        while len(values) < limit:
            try:
                # A call of current() for every item would double the cost of this loop.
                if not buffer or buffer[0][0][0] <= highest:
                    self.unsure = True
                    if reader.current() is None:
                        return
            except CorruptionError:
                if not new:
                    raise
                return
            record, start, end = buffer[0]
            try:
                value = decode(record)
            except Exception:
                if not new:
                    raise
                return
            self.unsure = True
            values.append(value)
            new.append((record[0], (reader.number, start, end)))
            buffer.popleft()

    def _publish(self) -> None:
        self._lock.publish(self.not_ready, self._reader.next_id, [entry[0] for entry in self._released])

    def _read_at(self, number: int, start: int) -> Record:
        path = self._location.path(number)
        try:
            file, chunk = open_chunk(self._disk, self._location.directory, number, self._location.store_id)
            with file:
                record = Frames(self._disk, file.fd, chunk.salt, start).read()
        except BadFrame as error:
            raise CorruptionError(f"{path!r} is damaged: {error}", path, start) from error
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            raise storage_error(error, "reading", path) from error
        if not isinstance(record, Record):
            raise CorruptionError(f"{path!r} is cut at offset {start}", path, start)
        return record

    def peek(self, decode: Callable[[Record], T]) -> T:
        """Return ``decode`` of the first ready record, which stays ready.

        :raise Empty: no record is ready.
        """
        if self._released:
            _, number, start, _ = self._released[0]
            return decode(self._read_at(number, start))
        buffer = self._reader.buffer
        if not buffer or buffer[0][0][0] <= self.acknowledged.highest:
            self._read_first()
        return decode(buffer[0][0])

    # Settling.

    def ack(self, ids: Sequence[int]) -> None:
        """Ack claimed records, all or none.

        :raise NotClaimedError: this process has not claimed one of them.
        """
        claimed = self.claimed
        if len(ids) == 1:  # nearly always
            id = ids[0]
            claim = claimed.get(id)
            if claim is None:
                raise self._not_claimed(id)
            self.unsure = True
            self._write(id, id, (claim[0], claim[2]))
            del claimed[id]
            self.unsure = False
            return
        settled: list[Claim] = []
        for id in dict.fromkeys(ids):
            claim = claimed.get(id)
            if claim is None:
                raise self._not_claimed(id)
            settled.append((id, claim))
        self.unsure = True
        self._write_all(_runs(settled))
        for id, _ in settled:
            del claimed[id]
        self.unsure = False

    def nack(self, ids: Sequence[int]) -> None:
        """Make claimed records ready again, in their places, all or none.

        :raise NotClaimedError: this process has not claimed one of them.
        """
        different = dict.fromkeys(ids)
        for id in different:
            if id not in self.claimed:
                raise self._not_claimed(id)
        self.unsure = True
        # One call, so that an interrupt finds all of the claims or none.
        positions = list(map(self.claimed.pop, different))
        for id, position in zip(different, positions, strict=True):
            bisect.insort(self._released, (id, *position))
        self.not_ready -= len(different)
        self._publish()
        self.unsure = False

    def release(self, claims: Sequence[Claim]) -> int:
        """Release the claims that are still active, and return how many these were."""
        # Compare by identity: a later claim of the same record is an equal tuple, but another object.
        active = [id for id, claim in claims if self.claimed.get(id) is claim]
        if active:
            self.nack(active)
        return len(active)

    def _not_claimed(self, id: int) -> NotClaimedError:
        return NotClaimedError(f"this process has not claimed item {id}", [id])

    def remove(self, id: int | None) -> int | None:
        """Ack a ready record without claiming it, the first one if ``id`` is ``None``.

        :return: its id, or ``None`` if there is no such ready record.
        """
        self.unsure = True
        discarded = self._discard_released(id)
        if discarded is None:
            discarded = self._discard_unread(id)
        if discarded is not None:
            self.not_ready += 1
            self._publish()
        self.unsure = False
        return discarded

    def _discard_released(self, id: int | None) -> int | None:
        for entry in self._released:
            if id in (None, entry[0]):
                self._write(entry[0], entry[0], (entry[1], entry[3]))
                self._released.remove(entry)
                return entry[0]
        return None

    def _discard_unread(self, id: int | None) -> int | None:
        entry = self._reader.current()
        if entry is None:
            return None
        record, _, end = entry
        if id is None or id == record.id:
            self._write(record.id, record.id, (self._reader.number, end))
            self._reader.advance()
            return record.id
        if not record.id < id <= self._journal.refresh() or id in self.acknowledged:
            return None
        self._write(id, id, self.acknowledged.position)  # the reader passes over an acked record
        return id

    def clear(self) -> int:
        """Ack every ready record, and return how many there were."""
        self._journal.refresh()
        number, end, last = self._journal.tail
        runs = [(id, id, (chunk, end_position)) for id, chunk, _, end_position in self._released]
        # Records that are not read yet may be acked already, so only the missing ids are cleared.
        for first, until in self.acknowledged.missing(self._reader.next_id, last):
            runs.append((first, until, (number, end) if until == last else self.acknowledged.position))
        cleared = sum([run[1] - run[0] + 1 for run in runs])
        self.unsure = True
        if self.claimed:  # otherwise the cursor moves to the last chunk, and the earlier ones are removed
            self._chunks.skip(self._reader.number, number)
        if runs:
            self._write_all(runs)
        self._released.clear()
        self._read_from(last, (number, end))
        self.not_ready += cleared
        self._publish()
        self.unsure = False
        return cleared

    def _write(self, first: int, last: int, end_position: Position) -> None:
        """Ack a run of ids in the cursor, and remove consumed chunks. ``commit`` makes the ack durable."""
        try:
            self._cursor.write(first, last, end_position)
        except OSError as error:
            raise self._not_written(error) from error
        chunks = self._chunks
        if chunks.unfinished:
            chunks.acknowledged(first, last)
        if self.acknowledged.position[0] != chunks.first_chunk:
            chunks.remove()

    def _write_all(self, runs: Sequence[tuple[int, int, Position]]) -> None:
        """Ack several runs of ids, all or none, as :meth:`_write` does."""
        try:
            self._cursor.write_all(runs)
        except OSError as error:
            raise self._not_written(error) from error
        chunks = self._chunks
        if chunks.unfinished:
            for first, last, _ in runs:
                chunks.acknowledged(first, last)
        if self.acknowledged.position[0] != chunks.first_chunk:
            chunks.remove()

    def _not_written(self, error: OSError) -> StorageError:
        if isinstance(error, StorageError):
            return error
        return storage_error(error, "acknowledging in", self._cursor.path)

    def close(self) -> None:
        """Make the acks durable, at either level of durability, and close the files."""
        try:
            self._chunks.remove_if_read_on()
            self._cursor.close()
        finally:
            self.close_without_sync()

    def close_without_sync(self) -> None:
        """Close the files without a sync, as the death of the process would."""
        self._cursor.close_without_sync()
        self._reader.close()

    def after_fork_in_child(self) -> None:
        """Close the parent's descriptors in a forked child, and write nothing."""
        self._cursor.after_fork_in_child()
        self._reader.close()
