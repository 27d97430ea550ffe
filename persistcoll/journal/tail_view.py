"""What a process that may only read sees of the journal's end."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from persistcoll.disk.calls import SIZE, OpenFile, storage_error
from persistcoll.engine.records import Record
from persistcoll.errors import StorageError
from persistcoll.journal.chunks import Chunk, chunk_numbers, open_chunk
from persistcoll.journal.directory import PRODUCER_LOCK
from persistcoll.journal.frames import BadFrame, Frames, Stop
from persistcoll.journal.recovery import JournalLocation
from persistcoll.journal.tail_mark import TailMark, read_mark

__all__ = ["TailView"]


class TailView:
    """The end of the journal, followed as far as it is whole. Takes the place of a
    :class:`~persistcoll.journal.journal.Journal`.

    Its owner holds a lock.

    :ivar tail: number of the last chunk, the end of what is whole in it, and the last id.
    :ivar mark: the tail mark that :meth:`locate` found.
    """

    append: Callable[..., Any]
    is_open = True  # closing it writes nothing, whatever a destructor has closed before

    def __init__(self, place: JournalLocation) -> None:
        self._place = place
        self._file: OpenFile | None = None
        self._chunk: Chunk | None = None
        self.tail = (0, 0, 0)
        self.mark: TailMark | None = None
        self.append = self.refuse

    def refresh(self) -> int:
        """Read on; the id of the last record."""
        try:
            if self._file is None or self._place.disk.status(self._file.fd)[SIZE] < self.tail[1]:
                self.locate()
            while self._read_on():
                pass
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            raise storage_error(error, "reading", self._place.directory) from error
        return self.tail[2]

    def version(self) -> object:
        """Differs from an earlier one when anything was appended since."""
        self.refresh()
        return self.tail

    @property
    def unread(self) -> int:
        """How many bytes of the chunk :meth:`refresh` has not read."""
        file = self._file
        return 0 if file is None else self._place.disk.status(file.fd).st_size - self.tail[1]

    def locate(self) -> None:
        """Begin where the mark says that all is whole, or with the last chunk."""
        place = self._place
        with OpenFile(place.disk, os.path.join(place.directory, PRODUCER_LOCK), os.O_RDONLY) as file:
            self.mark = mark = read_mark(place.disk, file.fd)
        number = self._last_number(mark)
        if number is None or not self._enter(number):
            self.tail = (0, 0, mark.last_id if mark is not None else 0)
            return
        assert self._chunk is not None
        if mark is not None and (mark.number, mark.salt) == (self._chunk.number, self._chunk.salt):
            self.tail = (mark.number, mark.offset, mark.last_id)

    def _last_number(self, mark: TailMark | None) -> int | None:
        place = self._place
        # Chunks have one number after the other: where the next one is missing, all later ones are.
        if (
            mark is not None
            and os.path.exists(place.path(mark.number))
            and not os.path.exists(place.path(mark.number + 1))
        ):
            return mark.number
        numbers = chunk_numbers(place.directory)
        return numbers[-1] if numbers else None

    def _enter(self, number: int) -> bool:
        """Go to the beginning of that chunk, or of the first one behind it; whether there is one."""
        place = self._place
        while True:
            try:
                file, chunk = open_chunk(place.disk, place.directory, number, place.store_id)
                break
            except FileNotFoundError:
                # Not begun yet, or consumed and gone.
                later = [other for other in chunk_numbers(place.directory) if other > number]
                if not later:
                    return False
                number = later[0]
        self.let_go()
        self._file, self._chunk = file, chunk
        self.tail = (number, chunk.data_offset, chunk.first_id - 1)
        return True

    def _read_on(self) -> bool:
        """Read to the end of the chunk; whether another file follows."""
        file, chunk = self._file, self._chunk
        if file is None or chunk is None:
            return False
        number, end, last = self.tail
        frames = Frames(self._place.disk, file.fd, chunk.salt, end)
        found: Record | Stop = Stop.INCOMPLETE
        try:
            while isinstance(found := frames.read(), Record):
                last += 1
                if found.id != last:
                    break
                if not frames.in_batch:
                    self.tail = (number, frames.end, last)
        except BadFrame:
            return False  # somebody's half-written record
        if found is Stop.END:
            return self._enter(number + 1)
        return found is Stop.MOVED and self._reopen()

    def _reopen(self) -> bool:
        """The chunk was rewritten, with the same frames; whether it has its name by now."""
        place, old = self._place, self._file
        assert old is not None
        file, chunk = open_chunk(place.disk, place.directory, self.tail[0], place.store_id)
        if os.path.samestat(place.disk.status(file.fd), place.disk.status(old.fd)):
            file.close()
            return False
        self.let_go()
        self._file, self._chunk = file, chunk
        return True

    def refuse(self, failure: BaseException) -> None:
        """Nothing is written here anyway."""

    def let_go(self) -> None:
        """Close the chunk."""
        file, self._file = self._file, None
        if file is not None:
            file.close()

    close = abandon = let_go
