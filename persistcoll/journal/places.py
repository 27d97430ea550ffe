"""Where in the journal a record stands that is known by its id or its time, and how many come before it.

Chunks have consecutive numbers, and the ids and the times in their headers never decrease. So the chunk is
found by bisection over the headers, and the place in it by its sparse index. Whatever is looked for, at most
one chunk is read.
"""

from __future__ import annotations

import contextlib
import os
from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar

from persistcoll.disk.calls import OpenFile, storage_error
from persistcoll.errors import CorruptionError, FormatVersionError, StorageError
from persistcoll.journal.chunks import Chunk, LastChunk, chunk_numbers, open_chunk
from persistcoll.journal.cursors import Position
from persistcoll.journal.recovery import JournalLocation
from persistcoll.journal.sparse_index import SparseIndex, read_index, write_index

__all__ = ["Places", "index_path"]

T = TypeVar("T")
_KEPT_HEADERS, _KEPT_INDEXES = 4096, 16


class Places:
    """Finds places in a journal whose chunks are never emptied.

    Thread-safe without a lock: a chunk's header and the index of a finished chunk never change, and what a
    call has read replaces what is kept in one step. So two threads may read the same, and no thread reads
    anything wrong. Every method has the last chunk as a parameter, because the caller decides when to look at
    the journal's end.

    :param can_write: whether to write the indexes into files.
    """

    def __init__(self, location: JournalLocation, can_write: bool = True) -> None:
        self._location = location
        self._can_write = can_write
        self._headers: OrderedDict[int, Chunk] = OrderedDict()
        self._indexes: OrderedDict[int, SparseIndex] = OrderedDict()

    def header(self, number: int, last: LastChunk) -> Chunk | None:
        """Return the header of a chunk, or ``None`` if the chunk is missing or its header is damaged."""
        if number == last.chunk.number:
            return last.chunk
        found = self._headers.get(number)
        if found is None:
            location = self._location
            try:
                file, found = open_chunk(location.disk, location.directory, number, location.store_id)
            except (FileNotFoundError, CorruptionError, FormatVersionError):
                return None
            except OSError as error:
                raise storage_error(error, "reading", location.path(number)) from error
            file.close()
            _keep(self._headers, number, found, _KEPT_HEADERS)
        return found

    def first_chunk(self, last: LastChunk) -> Chunk:
        """Return the first chunk that can be read."""
        for number in chunk_numbers(self._location.directory):
            if number <= last.chunk.number and (found := self.header(number, last)) is not None:
                return found
        return last.chunk

    def _bisect(self, lowest: int, last: LastChunk, is_at_or_before: Callable[[Chunk], bool]) -> Chunk:
        """Return the last chunk of which the function is true; the lowest one if it is true of none."""
        low, high = lowest, last.chunk.number
        found = self.header(low, last)
        while low < high:
            middle = number = (low + high + 1) // 2
            while number <= high and (chunk := self.header(number, last)) is None:
                number += 1  # a chunk whose header cannot be read
            if number <= high and chunk is not None and is_at_or_before(chunk):
                low, found = number, chunk
            else:
                high = middle - 1
        return found or self.first_chunk(last)

    def chunk_of(self, id: int, lowest: int, last: LastChunk) -> Chunk:
        """Return the chunk with the record ``id``, or the last one with an earlier record.

        :param lowest: the number of the first chunk.
        """
        return self._bisect(lowest, last, lambda chunk: chunk.first_id <= id)

    def last_id_in(self, chunk: Chunk, last: LastChunk) -> int:
        """Return the highest id that a record in this chunk may have; below its first id, it has none."""
        if chunk.number == last.chunk.number:
            return last.last_id
        following = self.header(chunk.number + 1, last)
        return following.previous_id if following is not None else chunk.limit_id - 1

    def last_record(self, before: int, lowest: int, last: LastChunk) -> int:
        """Return the id of the last record before the id ``before``; 0 if there is none in the chunks."""
        chunk: Chunk | None = self.chunk_of(before - 1, lowest, last)
        while chunk is not None and chunk.number >= lowest:
            found = min(before - 1, self.last_id_in(chunk, last))
            if found >= chunk.first_id:
                return found
            chunk = self.header(chunk.number - 1, last)
        return 0

    def next_record(self, id: int, lowest: int, last: LastChunk) -> int:
        """Return the id of the record ``id``, or of the first one after it; the next id if there is none."""
        chunk = self.chunk_of(id, lowest, last)
        while self.last_id_in(chunk, last) < max(id, chunk.first_id) and chunk.number < last.chunk.number:
            following = self.header(chunk.number + 1, last)  # the chunk has no such record, or none at all
            if following is None:
                break
            chunk = following
        return max(id, chunk.first_id)

    def ordinal_of(self, id: int, lowest: int, last: LastChunk) -> int:
        """Return how many records the journal has had with an id below ``id``."""
        chunk = self.chunk_of(id, lowest, last)
        in_chunk = max(0, min(id - 1, self.last_id_in(chunk, last)) + 1 - chunk.first_id)
        return chunk.ordinal + in_chunk

    def id_at(self, ordinal: int, lowest: int, last: LastChunk) -> int:
        """Return the id of the record that so many records came before; the next id if there is none."""
        if ordinal >= last.ordinal:
            return last.last_id + 1
        chunk = self._bisect(lowest, last, lambda chunk: chunk.ordinal <= ordinal)
        return chunk.first_id + ordinal - chunk.ordinal

    def place_of(self, id: int, lowest: int, last: LastChunk) -> Position:
        """Return a position at or a little before the record ``id``, or the first one after it."""
        chunk = self.chunk_of(id, lowest, last)
        if id > self.last_id_in(chunk, last):
            if chunk.number == last.chunk.number:
                return chunk.number, last.end
            following = self.header(chunk.number + 1, last)
            if following is not None:
                return following.number, following.data_offset
        return chunk.number, self._index(chunk, last).offset_of(id)

    def place_of_time(self, time: float, lowest: int, last: LastChunk) -> tuple[Position, int]:
        """Return a position at or before the first record of that time or later, and the id there."""
        chunk = self._bisect(lowest, last, lambda chunk: chunk.latest < time)
        offset, id = self._index(chunk, last).offset_of_time(time)
        return (chunk.number, offset), id

    def _index(self, chunk: Chunk, last: LastChunk) -> SparseIndex:
        """Return the index of a chunk, and write it into its file if it has none."""
        location = self._location
        is_last = chunk.number == last.chunk.number
        index = self._indexes.get(chunk.number)
        if index is not None and index.salt == chunk.salt and (not is_last or index.end >= last.end):
            return index
        path = index_path(location, chunk.number)
        try:
            if not is_last and (index := read_index(location.disk, path, chunk)) is not None:
                _keep(self._indexes, chunk.number, index, _KEPT_INDEXES)
                return index
            if index is None or index.salt != chunk.salt:
                index = SparseIndex.begin(chunk)
            with OpenFile(location.disk, location.path(chunk.number), os.O_RDONLY) as file:
                size = last.end if is_last else location.disk.status(file.fd).st_size
                index = index.extended(location.disk, file.fd, size)
        except FileNotFoundError:
            return SparseIndex.begin(chunk)  # it was trimmed in between, as its reader will find out
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            raise storage_error(error, "reading", path) from error
        _keep(self._indexes, chunk.number, index, _KEPT_INDEXES)
        if not is_last and self._can_write:
            with contextlib.suppress(OSError):  # the next process that looks into this chunk makes it
                location.check()
                write_index(location.disk, path, index)
        return index


def index_path(location: JournalLocation, number: int) -> str:
    """Return the path of the index of a chunk."""
    return location.path(number) + ".index"


def _keep(kept: OrderedDict[int, T], number: int, value: T, most: int) -> None:
    kept[number] = value
    while len(kept) > most:
        with contextlib.suppress(KeyError):
            kept.popitem(last=False)
