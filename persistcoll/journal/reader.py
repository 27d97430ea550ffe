"""A reader of the journal, in order and from any position, with or without the consumer lock."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable
from typing import Protocol, TypeVar

from persistcoll.disk.atomic import write_atomic
from persistcoll.disk.calls import OpenFile, read_fully, storage_error
from persistcoll.engine.poison import Poison
from persistcoll.engine.records import Record
from persistcoll.errors import CorruptionError, StorageError
from persistcoll.journal.chunks import Chunk, LastChunk, chunk_numbers, open_chunk
from persistcoll.journal.cursors import Acknowledged, Position
from persistcoll.journal.frames import BadFrame, Frames, Stop, scan_valid_frames
from persistcoll.journal.recovery import JournalLocation

__all__ = ["ReadableJournal", "Reader"]

T = TypeVar("T")
_log = logging.getLogger("persistcoll")


class ReadableJournal(Protocol):
    """The part of a journal that readers use.

    A :class:`~persistcoll.journal.journal.Journal` can be appended to as well. Law J1: the journal is a
    prefix of what was appended, and contains every append that returned. Law J2: no record appears before a
    record that was read. A journal does not store how far a reader has read, so it may have any number of
    readers.
    """

    poison: Poison

    @property
    def location(self) -> JournalLocation:
        """Where the journal lies."""

    @property
    def tail(self) -> tuple[int, int, int]:
        """The number of the last chunk, its valid size in bytes and the last id, as of the last refresh.

        A chunk that ends before this place is damaged.
        """

    def last_chunk(self) -> LastChunk:
        """Refresh the tail, and return the last chunk."""

    def exclusively(self, action: Callable[[], T]) -> T:
        """Call ``action`` and return its result, while no other thread and no other process appends."""

    @property
    def is_open(self) -> bool:
        """Whether the journal's files are open."""

    def refresh(self) -> int:
        """Read what other processes have appended, and return the id of the last record."""

    def change_token(self) -> object:
        """Return a token that differs from an earlier one if any process has appended since."""

    def close(self) -> None:
        """Make the records of this process durable, at either level of durability, and close the files."""

    def close_without_sync(self) -> None:
        """Close the files without a sync, as the death of the process would."""

    def after_fork_in_child(self) -> None:
        """Close the parent's descriptors in a forked child, and write nothing."""


class Reader:
    """A position in the journal that only moves forward.

    Not thread-safe: the store's ``_consuming`` lock protects the reader of the consumer, and each iteration
    over records has a reader of its own.

    :param last_id: the id before the first id to read.
    :param position: a position at or before the record of the first id to read.
    :param acknowledged: the ids to pass over. The reader sees later changes of the set.
    :param on_skip: called with the first id, the last id and the position of records that are skipped as
        damaged. With ``None`` the reader changes nothing.
    :param on_chunk_read: called with the header of a chunk that was read to its end, and the header of the
        next one. ``None``: the records stay in the chunk.
    :ivar number: the number of the chunk with the record that :meth:`current` returns.
    :ivar buffer: records of this chunk that are read ahead, each with the offsets of its start and its end.
        The consumer removes them from the left.
    """

    def __init__(
        self,
        journal: ReadableJournal,
        last_id: int,
        position: Position,
        acknowledged: Acknowledged,
        on_skip: Callable[[int, int, Position], None] | None = None,
        on_chunk_read: Callable[[Chunk, Chunk], None] | None = None,
    ) -> None:
        self._journal = journal
        self._location = location = journal.location
        self._acknowledged = acknowledged
        self._on_skip = on_skip
        self._on_chunk_read = on_chunk_read
        self._last_id = self._start_id = last_id
        self.buffer: deque[tuple[Record, int, int]] = deque()
        self._failure: CorruptionError | None = None
        self._retried = (-1, -1)
        self._file: OpenFile | None = None
        self._chunk: Chunk | None = None
        self.number = position[0]
        self._salt = 0
        # The offset of the first frame of the chunk that `position` names; None after one search from there.
        self._chunk_start: int | None = None
        self._frames = Frames(location.disk, -1, 0, 0)
        self._begin(position)

    def _begin(self, position: Position) -> None:
        location = self._location
        number, offset = position
        try:
            file, chunk = open_chunk(location.disk, location.directory, number, location.store_id)
        except (FileNotFoundError, CorruptionError) as error:
            path = location.path(number)
            missing = CorruptionError(f"chunk {path!r} is missing", path)
            self._give_up_unless_skipping(error if isinstance(error, CorruptionError) else missing)
            later = [other for other in chunk_numbers(location.directory) if other > number]
            self._open_chunk(later[0])
            return
        self._file, self._chunk, self.number, self._salt = file, chunk, chunk.number, chunk.salt
        self._frames = Frames(location.disk, file.fd, chunk.salt, max(offset, chunk.data_offset))
        self._chunk_start = chunk.data_offset
        if chunk.previous_id <= self._last_id:  # the ids up to the first id are acked and have no record
            self._last_id = self._start_id = max(self._last_id, chunk.first_id - 1)

    @property
    def _fd(self) -> int:
        return self._file.fd if self._file is not None else -1

    @property
    def next_id(self) -> int:
        """The id of the first record after those that :meth:`advance` has passed."""
        return self.buffer[0][0].id if self.buffer else self._last_id + 1

    def current(self) -> tuple[Record, int, int] | None:
        """Return the next record, with the offsets of its start and end in chunk :attr:`number`.

        It returns the same record until :meth:`advance`, and ``None`` at the end of the journal.

        Cost: no system call while :attr:`buffer` holds records.

        :raise CorruptionError: the record is damaged, and the policy is not "skip".
        """
        buffer = self.buffer
        while True:
            if not buffer and not self._read_ahead():
                return None
            entry = buffer[0]
            id = entry[0].id
            if id > self._acknowledged.highest or (run := self._acknowledged.end_of(id)) is None:
                return entry
            while buffer and buffer[0][0].id <= run:
                buffer.popleft()

    def advance(self) -> None:
        """Move past the record that :meth:`current` returned."""
        self.buffer.popleft()

    def _read_ahead(self) -> bool:
        """Fill the empty ``buffer`` with records of one chunk, and tell whether there is one."""
        if self._failure is not None:
            raise self._failure
        try:
            run = self._frames.read_run(self._last_id + 1)
            if run:
                self._last_id = run[-1][0].id
                self.buffer.extend(run)
                return True
            record = self._next()
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            raise storage_error(error, "reading", self._location.path(self.number)) from error
        if record is None:
            return False
        self.buffer.append((record, self._frames.start, self._frames.end))
        return True

    def close(self) -> None:
        """Close the chunk's file."""
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _next(self) -> Record | None:
        """Return the next valid record, whether it is acked or not."""
        while True:
            try:
                found = self._frames.read()
            except BadFrame as error:
                if self._handle_damage(error.offset, error.reason):
                    continue
                return None
            if not isinstance(found, Record):
                if self._at_chunk_end(found):
                    continue
                return None
            if found.id != self._last_id + 1:
                if found.id <= self._start_id:
                    # This record stands between the position and the first id to read.
                    self._frames.pass_records(self._start_id)
                    continue
                self._missing(found.id - 1, self._frames.start)
            self._last_id = found.id
            return found

    def _at_chunk_end(self, stop: Stop) -> bool:
        """Continue after the last record of this file, and tell whether to read on."""
        number, at = self.number, self._frames.end
        if stop is Stop.END:
            return self._open_chunk(number + 1)
        if stop is Stop.MOVED:
            return self._reopen()
        tail, end, _ = self._journal.tail
        if number < tail or (number == tail and at < end):
            return self._handle_damage(at, "the chunk ends early")
        return False

    def _open_chunk(self, number: int, after_gap: bool = False) -> bool:
        """Open chunk ``number``, or the next existing one, and tell whether there is one.

        :param after_gap: whether the chunks before it were removed because all of their records are acked.
        """
        location = self._location
        try:
            file, chunk = open_chunk(location.disk, location.directory, number, location.store_id)
        except FileNotFoundError:
            later = [other for other in chunk_numbers(location.directory) if other > number]
            if not later:
                return False  # the chunk is not begun yet
            if os.path.exists(location.path(number)):
                # A producer has begun this chunk and the next one between the two calls above.
                return self._open_chunk(number)
            consumed = self._is_acknowledged_before(later[0])
            if not consumed:
                path = location.path(number)
                self._give_up_unless_skipping(CorruptionError(f"chunk {path!r} is missing", path))
            return self._open_chunk(later[0], after_gap=consumed)
        except CorruptionError as error:
            self._give_up_unless_skipping(error)
            return self._open_chunk(number + 1)
        self.close()
        before = self._chunk
        self._chunk_start = None
        self._file, self._chunk, self.number, self._salt = file, chunk, number, chunk.salt
        self._frames = Frames(location.disk, file.fd, chunk.salt, chunk.data_offset)
        on_the_way = self._last_id == self._start_id  # no record was returned yet
        if chunk.first_id <= self._last_id and not on_the_way:
            path = location.path(number)
            self._fail(CorruptionError(f"{path!r} repeats ids of the chunk before", path))
        if chunk.previous_id > self._last_id:
            self._missing(chunk.previous_id, 0)
        # The ids between `previous_id` and `first_id` are acked and have no record.
        self._last_id = max(self._last_id, chunk.first_id - 1)
        consumes = self._on_chunk_read
        if consumes is not None and before is not None and (after_gap or before.number == number - 1):
            consumes(before, chunk)
        return True

    def _is_acknowledged_before(self, number: int) -> bool:
        """Tell whether all records between the reader and chunk ``number`` are acked."""
        location = self._location
        try:
            file, chunk = open_chunk(location.disk, location.directory, number, location.store_id)
        except (FileNotFoundError, CorruptionError):
            return False
        file.close()
        return not self._acknowledged.missing(self._last_id + 1, chunk.previous_id)

    def _reopen(self) -> bool:
        """Continue in the rewritten chunk, which has the same frames, and tell whether it exists yet."""
        location = self._location
        file, _ = open_chunk(location.disk, location.directory, self.number, location.store_id)
        if os.path.samestat(location.disk.status(file.fd), location.disk.status(self._fd)):
            file.close()
            return False  # the new file is not renamed yet
        self.close()
        self._file = file
        self._frames = Frames(location.disk, file.fd, self._salt, self._frames.start)
        return True

    def _handle_damage(self, offset: int, reason: str) -> bool:
        """Decide about bytes that are not a valid frame, and tell whether to read on."""
        location, path = self._location, self._location.path(self.number)
        if self._chunk_start is not None and self._last_id == self._start_id:
            # The position may be beyond what a power cut left of the chunk, because an ack can reach the
            # device before the record does. So read the chunk from its start.
            self._frames = Frames(location.disk, self._fd, self._salt, self._chunk_start)
            self._chunk_start = None
            return True
        if self._retried != (self.number, offset):
            # Another process may have truncated the incomplete record of a dead process and overwritten it
            # during this read. So read once more before it counts as damage.
            self._retried = self.number, offset
            self._frames = Frames(location.disk, self._fd, self._salt, offset)
            return True
        if self.number > self._journal.tail[0]:
            self._journal.refresh()  # other processes have begun chunks since
        tail, end, last_id = self._journal.tail
        if self.number == tail and offset >= end:
            return False  # this is beyond the valid size, where another process may be writing
        message = f"{path!r} is damaged at offset {offset}: {reason}"
        self._give_up_unless_skipping(CorruptionError(message, path, offset))
        for start, _, record, _ in scan_valid_frames(
            location.disk, self._fd, self._salt, offset, self._last_id
        ):
            self._quarantine(path, offset, start)
            self._missing(record.id - 1, offset)
            self._frames = Frames(location.disk, self._fd, self._salt, start)
            return True
        self._quarantine(path, offset, self._location.disk.status(self._fd).st_size)
        if self.number != tail:
            return self._open_chunk(self.number + 1)
        self._missing(last_id, offset)
        self._frames = Frames(location.disk, self._fd, self._salt, end)
        return True

    def _quarantine(self, path: str, start: int, end: int) -> None:
        # A reader that does not consume the chunk leaves the bytes where they are.
        if end > start and self._on_skip is not None and self._on_chunk_read is not None:
            data = read_fully(self._location.disk, self._fd, end - start, start)
            self._location.check()
            write_atomic(
                self._location.disk, f"{path}.damaged-{start}", (data,), self._location.tempdir
            ).close()

    def _missing(self, last: int, offset: int) -> None:
        """Treat the records up to ``last`` as missing: skip them, or raise ``CorruptionError``."""
        path = self._location.path(self.number)
        # A missing record that is acked is no loss.
        for first, to in self._acknowledged.missing(self._last_id + 1, last):
            reason = f"{path!r}: records {first} to {to} are missing"
            self._give_up_unless_skipping(CorruptionError(reason, path, offset))
            if self._on_skip is not None:
                _log.warning("%s; they were passed over", reason)
                self._on_skip(first, to, (self.number, offset))
        self._last_id = max(self._last_id, last)

    def _give_up_unless_skipping(self, error: CorruptionError) -> None:
        self._location.check()  # the path may name another store, which is not damaged
        if self._location.on_corruption != "skip":
            self._fail(error)

    def _fail(self, error: CorruptionError) -> None:
        self._location.check()
        self._failure = error
        raise error
