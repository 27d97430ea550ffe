"""The journal's end as a process that may only read sees it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NoReturn

from persistcoll.disk.calls import SIZE, OpenFile, storage_error
from persistcoll.engine.forks import read_only_error
from persistcoll.engine.poison import Poison
from persistcoll.engine.records import Record
from persistcoll.errors import StorageError
from persistcoll.journal.chunks import Chunk, LastChunk, chunk_numbers, open_chunk
from persistcoll.journal.directory import PRODUCER_LOCK
from persistcoll.journal.frames import BadFrame, Frames, Stop
from persistcoll.journal.recovery import JournalLocation
from persistcoll.journal.tail_mark import TailMark, read_mark

__all__ = ["TailView"]


class TailView:
    """The tail of the journal, followed as far as it is valid, for a process that only reads.

    It replaces a :class:`~persistcoll.journal.journal.Journal`. The lock of its owner protects every field.

    :ivar tail: the number of the last chunk, the end of its valid records, and the last id.
    :ivar mark: the tail mark that :meth:`locate` found.
    """

    # Always true, because closing writes nothing, even if a destructor has closed a file before.
    is_open = True

    def __init__(self, location: JournalLocation) -> None:
        self.location = self._location = location
        self._file: OpenFile | None = None
        self._chunk: Chunk | None = None
        self.tail = (0, 0, 0)
        self.mark: TailMark | None = None
        self.poison = Poison()

    def refresh(self) -> int:
        """Read what other processes have appended, and return the id of the last record."""
        try:
            if self._file is None or self._location.disk.status(self._file.fd)[SIZE] < self.tail[1]:
                self.locate()
            while self._read_on():
                pass
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            raise storage_error(error, "reading", self._location.directory) from error
        return self.tail[2]

    def last_chunk(self) -> LastChunk:
        """Refresh the tail, and return the last chunk."""
        self.refresh()
        _, end, last_id = self.tail
        chunk = self._chunk
        if chunk is None:  # there are no chunks
            store_id, serializer = self._location.store_id, self._location.serializer
            chunk = Chunk(0, store_id, last_id + 1, last_id, 0.0, 0, serializer, 0, last_id, 0.0)
        return LastChunk(chunk, end, last_id)

    def change_token(self) -> object:
        """Return a token that differs from an earlier one if any process has appended since."""
        self.refresh()
        return self.tail

    def exclusively(self, action: Callable[[], object]) -> NoReturn:
        """Refuse: nothing may be changed."""
        raise read_only_error(repr(self._location.directory))

    @property
    def unread(self) -> int:
        """The bytes of the chunk that :meth:`refresh` has not read."""
        file = self._file
        return 0 if file is None else self._location.disk.status(file.fd).st_size - self.tail[1]

    def locate(self) -> None:
        """Begin at the tail mark, or at the start of the last chunk if the mark is not for that chunk."""
        location = self._location
        with OpenFile(location.disk, os.path.join(location.directory, PRODUCER_LOCK), os.O_RDONLY) as file:
            self.mark = mark = read_mark(location.disk, file.fd)
        number = self._last_number(mark)
        if number is None or not self._open_chunk(number):
            self.tail = (0, 0, mark.last_id if mark is not None else 0)
            return
        assert self._chunk is not None
        if mark is not None and (mark.number, mark.salt) == (self._chunk.number, self._chunk.salt):
            self.tail = (mark.number, mark.offset, mark.last_id)

    def _last_number(self, mark: TailMark | None) -> int | None:
        location = self._location
        # Chunks have consecutive numbers, so where the next one is missing, all later ones are.
        if (
            mark is not None
            and os.path.exists(location.path(mark.number))
            and not os.path.exists(location.path(mark.number + 1))
        ):
            return mark.number
        numbers = chunk_numbers(location.directory)
        return numbers[-1] if numbers else None

    def _open_chunk(self, number: int) -> bool:
        """Open that chunk, or the first one after it, and tell whether there is one."""
        location = self._location
        while True:
            try:
                file, chunk = open_chunk(location.disk, location.directory, number, location.store_id)
                break
            except FileNotFoundError:
                # The chunk is not begun yet, or a consumer has removed it.
                later = [other for other in chunk_numbers(location.directory) if other > number]
                if not later:
                    return False
                number = later[0]
        self.close_without_sync()
        self._file, self._chunk = file, chunk
        self.tail = (number, chunk.data_offset, chunk.first_id - 1)
        return True

    def _read_on(self) -> bool:
        """Read to the end of the chunk, and tell whether another file continues it."""
        file, chunk = self._file, self._chunk
        if file is None or chunk is None:
            return False
        number, end, last = self.tail
        frames = Frames(self._location.disk, file.fd, chunk.salt, end)
        found: Record | Stop = Stop.INCOMPLETE
        try:
            while isinstance(found := frames.read(), Record):
                last += 1
                if found.id != last:
                    break
                if not frames.in_batch:
                    self.tail = (number, frames.end, last)
        except BadFrame:
            return False  # a record that another process is writing
        if found is Stop.END:
            return self._open_chunk(number + 1)
        return found is Stop.MOVED and self._reopen()

    def _reopen(self) -> bool:
        """Open the rewritten chunk, which has the same frames, and tell whether it has its name yet."""
        location, old = self._location, self._file
        assert old is not None
        file, chunk = open_chunk(location.disk, location.directory, self.tail[0], location.store_id)
        if os.path.samestat(location.disk.status(file.fd), location.disk.status(old.fd)):
            file.close()
            return False
        self.close_without_sync()
        self._file, self._chunk = file, chunk
        return True

    def close_without_sync(self) -> None:
        """Close the chunk."""
        file, self._file = self._file, None
        if file is not None:
            file.close()

    close = after_fork_in_child = close_without_sync
