"""Reading the journal in order, from any place, with or without the consumer lock."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable
from typing import Protocol

from persistcoll.disk.atomic import write_atomic
from persistcoll.disk.calls import OpenFile, read_fully, storage_error
from persistcoll.engine.poison import Poison
from persistcoll.engine.records import Record
from persistcoll.errors import CorruptionError, StorageError
from persistcoll.journal.chunks import Chunk, chunk_numbers, open_chunk
from persistcoll.journal.cursors import Acknowledged, Position
from persistcoll.journal.frames import BadFrame, Frames, Stop, scan_valid_frames
from persistcoll.journal.recovery import JournalLocation

__all__ = ["ReadableJournal", "Reader"]

_log = logging.getLogger("persistcoll")


class ReadableJournal(Protocol):
    """A journal as far as it is read and followed. What appends is a
    :class:`~persistcoll.journal.journal.Journal`.

    J1: it is a prefix of what was appended, with all appends that returned. J2: nothing appears before what
    was read. A journal does not remember how far a reader has come, so it may have any number of readers.
    """

    poison: Poison

    @property
    def location(self) -> JournalLocation:
        """Where it lies."""

    @property
    def tail(self) -> tuple[int, int, int]:
        """Number of the last chunk, the end of what is whole in it, the last id, as known here. What ends
        before that is damaged.
        """

    @property
    def is_open(self) -> bool:
        """Whether its files are."""

    def refresh(self) -> int:
        """Read what other processes have appended; return the id of the last record."""

    def change_token(self) -> object:
        """Differs from an earlier one when anything was appended since, by whatever process."""

    def close(self) -> None:
        """Make durable what was appended here, at either level, and let go."""

    def let_go(self) -> None:
        """Close the files, as the death of the process would."""

    def after_fork_in_child(self) -> None:
        """In a forked child: let go of the parent's descriptors and write nothing."""


class Reader:
    """A place in the journal that moves forward. Not thread-safe: its owner holds a lock.

    :param last_id: the id before the first one to read.
    :param position: where to look for that one: at its record, or before it.
    :param acknowledged: the ids to pass over; looked at live.
    :param on_skip: called with the first and last id of records that are passed over as damaged;
        ``None``: this reader only looks.
    :param on_chunk_read: called with a chunk that was read to its end, and with the header of the next one.
    :ivar number: the chunk of the record that :meth:`current` returns.
    :ivar buffer: what has been read ahead, and is to be taken from its left; all of one chunk.
    """

    def __init__(
        self,
        journal: ReadableJournal,
        last_id: int,
        position: Position,
        acknowledged: Acknowledged,
        on_skip: Callable[[int, int, Position], None] | None = None,
        on_chunk_read: Callable[[Chunk, Chunk], None] = lambda chunk, following: None,
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
        self._chunk_start: int | None = None  # of the chunk that `position` names
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
        if chunk.previous_id <= self._last_id:  # what follows up to the first id is acknowledged and gone
            self._last_id = self._start_id = max(self._last_id, chunk.first_id - 1)

    @property
    def _fd(self) -> int:
        return self._file.fd if self._file is not None else -1

    @property
    def next_id(self) -> int:
        """The id of the first record not advanced over."""
        return self.buffer[0][0].id if self.buffer else self._last_id + 1

    def current(self) -> tuple[Record, int, int] | None:
        """The record here, with the offsets of its start and end in chunk :attr:`number`.

        The same one until :meth:`advance`; ``None`` at the end of the journal.

        :raise CorruptionError: the bytes here are damaged, and the policy is not "skip".
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
        """Go behind the record that :meth:`current` returned."""
        self.buffer.popleft()

    def _read_ahead(self) -> bool:
        """Have at least one record in ``buffer``, all of one chunk, if there is one."""
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
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _next(self) -> Record | None:
        """The next whole record, acknowledged or not."""
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
                    continue  # on the way from the position to the first one wanted
                self._missing(found.id - 1, self._frames.start)
            self._last_id = found.id
            return found

    def _at_chunk_end(self, stop: Stop) -> bool:
        """Go on behind the last record of this file; whether there is anything (yet)."""
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
        """Begin with chunk ``number``, or with the next one there is if it is lost.

        :param after_gap: the chunks before it were removed because all in them is acknowledged.
        """
        location = self._location
        try:
            file, chunk = open_chunk(location.disk, location.directory, number, location.store_id)
        except FileNotFoundError:
            later = [other for other in chunk_numbers(location.directory) if other > number]
            if not later:
                return False  # not begun yet
            if os.path.exists(location.path(number)):
                return self._open_chunk(number)  # begun, and the next one too, between the two looks
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
        on_the_way = self._last_id == self._start_id  # from the position to the first one wanted
        if chunk.first_id <= self._last_id and not on_the_way:
            path = location.path(number)
            self._fail(CorruptionError(f"{path!r} repeats ids of the chunk before", path))
        if chunk.previous_id > self._last_id:
            self._missing(chunk.previous_id, 0)
        # The records between `previous_id` and `first_id` are acknowledged and gone.
        self._last_id = max(self._last_id, chunk.first_id - 1)
        if before is not None and (after_gap or before.number == number - 1):
            self._on_chunk_read(before, chunk)
        return True

    def _is_acknowledged_before(self, number: int) -> bool:
        """Whether chunk ``number`` follows, and all between here and it is acknowledged."""
        location = self._location
        try:
            file, chunk = open_chunk(location.disk, location.directory, number, location.store_id)
        except (FileNotFoundError, CorruptionError):
            return False
        file.close()
        return not self._acknowledged.missing(self._last_id + 1, chunk.previous_id)

    def _reopen(self) -> bool:
        """The chunk was rewritten: go on in the new file, which has the same frames."""
        location = self._location
        file, _ = open_chunk(location.disk, location.directory, self.number, location.store_id)
        if os.path.samestat(location.disk.status(file.fd), location.disk.status(self._fd)):
            file.close()
            return False  # not renamed yet
        self.close()
        self._file = file
        self._frames = Frames(location.disk, file.fd, self._salt, self._frames.start)
        return True

    def _handle_damage(self, offset: int, reason: str) -> bool:
        """Judge bytes that do not check out; whether to go on reading."""
        location, path = self._location, self._location.path(self.number)
        if self._chunk_start is not None and self._last_id == self._start_id:
            # The position may lie behind what a power cut left of the chunk: an acknowledgement can
            # reach the device before the record does. Look for the records themselves.
            self._frames = Frames(location.disk, self._fd, self._salt, self._chunk_start)
            self._chunk_start = None
            return True
        if self._retried != (self.number, offset):
            # Another process may have cut a dead one's half-written record and written over it
            # while we were reading: look again before calling it damage.
            self._retried = self.number, offset
            self._frames = Frames(location.disk, self._fd, self._salt, offset)
            return True
        tail, end, last_id = self._journal.tail
        if self.number == tail and offset >= end:
            return False  # nobody said that anything is whole there
        message = f"{path!r} is damaged at offset {offset}: {reason}"
        self._give_up_unless_skipping(CorruptionError(message, path, offset))
        for start, _, id, _ in scan_valid_frames(location.disk, self._fd, self._salt, offset, self._last_id):
            self._quarantine(path, offset, start)
            self._missing(id - 1, offset)
            self._frames = Frames(location.disk, self._fd, self._salt, start)
            return True
        self._quarantine(path, offset, self._location.disk.status(self._fd).st_size)
        if self.number != tail:
            return self._open_chunk(self.number + 1)
        self._missing(last_id, offset)
        self._frames = Frames(location.disk, self._fd, self._salt, end)
        return True

    def _quarantine(self, path: str, start: int, end: int) -> None:
        if end > start and self._on_skip is not None:
            data = read_fully(self._location.disk, self._fd, end - start, start)
            self._location.check()
            write_atomic(
                self._location.disk, f"{path}.damaged-{start}", (data,), self._location.tempdir
            ).close()

    def _missing(self, last: int, offset: int) -> None:
        """The records up to ``last`` are not there."""
        path = self._location.path(self.number)
        # What is acknowledged is missed by nobody.
        for first, to in self._acknowledged.missing(self._last_id + 1, last):
            reason = f"{path!r}: records {first} to {to} are missing"
            self._give_up_unless_skipping(CorruptionError(reason, path, offset))
            if self._on_skip is not None:
                _log.warning("%s; they were passed over", reason)
                self._on_skip(first, to, (self.number, offset))
        self._last_id = max(self._last_id, last)

    def _give_up_unless_skipping(self, error: CorruptionError) -> None:
        self._location.check()  # what is at that path may be another store, and whole
        if self._location.on_corruption != "skip":
            self._fail(error)

    def _fail(self, error: CorruptionError) -> None:
        self._location.check()
        self._failure = error
        raise error
