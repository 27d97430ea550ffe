"""Sparse indexes: where in a chunk a record stands, without reading the frames before it.

An index has an entry for about every 64 KiB of a chunk. An entry is the id of a record, the offset of its
frame, and the latest time of a record before it, which never decreases.

The index of a finished chunk lies in a file beside it, ``q00012.index``, little-endian::

    magic 8s | salt u32 | count u32 | entries | crc u32
    entry: id u64 | offset u32 | latest f64

The first process that looks for a record in the chunk writes the file. It is not synced: an index that is
missing or damaged, or whose salt is another chunk's, is made anew from the chunk. Whatever an index says, the
frame at that offset has a checksum and an id of its own.
"""

from __future__ import annotations

import bisect
import os
import struct
from typing import NamedTuple
from zlib import crc32

from persistcoll.disk.atomic import write_atomic
from persistcoll.disk.calls import Disk, OpenFile, read_fully
from persistcoll.journal.chunks import Chunk
from persistcoll.journal.frames import read_headers

__all__ = ["SparseIndex", "read_index", "write_index"]

_MAGIC = b"\x89PCINDX\n"
_HEADER = struct.Struct("<8sII")
_ENTRY = struct.Struct("<QId")
_CRC = struct.Struct("<I")
_EVERY = 1 << 16  # bytes of the chunk


class _Entry(NamedTuple):
    id: int
    offset: int
    latest: float


class SparseIndex(NamedTuple):
    """The index of a chunk, as far as it has been read. Immutable."""

    salt: int
    """The salt of the chunk: the index says nothing about another file of the same number."""
    entries: tuple[_Entry, ...]
    end: int
    """The offset at which the next frame starts that the index does not cover."""
    next_id: int
    """No record from that frame on has a lower id."""
    latest: float
    """The latest time of a record before that frame."""

    @classmethod
    def begin(cls, chunk: Chunk) -> SparseIndex:
        """Return the index of a chunk of which nothing has been read."""
        offset = chunk.data_offset
        entry = _Entry(chunk.first_id, offset, chunk.latest)
        return cls(chunk.salt, (entry,), offset, chunk.first_id, chunk.latest)

    def extended(self, disk: Disk, fd: int, end: int) -> SparseIndex:
        """Return the index with the frames up to the offset ``end``, where a frame ends.

        Only the headers of the frames are read, and of a batch only that of the batch: an entry within it
        would be of no use, because a reader that begins there would not know that it is in a batch.
        """
        entries = list(self.entries)
        at, id, latest = self.end, self.next_id, self.latest
        next_at = entries[-1].offset + _EVERY
        for found, time, behind in read_headers(disk, fd, at, end):
            if found < id:
                break
            if at >= next_at:
                entries.append(_Entry(found, at, latest))
                next_at = at + _EVERY
            at, id = behind, found + 1
            if time > latest:
                latest = time
        return SparseIndex(self.salt, tuple(entries), at, id, latest)

    def offset_of(self, id: int) -> int:
        """Return an offset at or before the frame of the record ``id``."""
        index = bisect.bisect_right(self.entries, id, key=lambda entry: entry.id) - 1
        return self.entries[max(index, 0)].offset

    def offset_of_time(self, time: float) -> tuple[int, int]:
        """Return an offset at or before the first record of ``time`` or later, and the id there.

        If the chunk has no such record, the offset is that of the last entry.
        """
        index = bisect.bisect_left(self.entries, time, key=lambda entry: entry.latest) - 1
        entry = self.entries[max(index, 0)]
        return entry.offset, entry.id


def read_index(disk: Disk, path: str, chunk: Chunk) -> SparseIndex | None:
    """Return the index in a file, or ``None`` if there is no valid one for this chunk."""
    try:
        with OpenFile(disk, path, os.O_RDONLY) as file:
            data = read_fully(disk, file.fd, os.fstat(file.fd).st_size, 0)
    except FileNotFoundError:
        return None
    size = len(data) - _CRC.size
    if size < _HEADER.size or _CRC.unpack_from(data, size)[0] != crc32(data[:size]):
        return None
    magic, salt, count = _HEADER.unpack_from(data)
    body = data[_HEADER.size : size]
    if magic != _MAGIC or salt != chunk.salt or len(body) != count * _ENTRY.size or not count:
        return None
    entries = tuple(_Entry(*fields) for fields in _ENTRY.iter_unpack(body))
    last = entries[-1]
    return SparseIndex(salt, entries, last.offset, last.id, last.latest)


def write_index(disk: Disk, path: str, index: SparseIndex) -> None:
    """Write the index of a finished chunk into a file, without a sync."""
    data = _HEADER.pack(_MAGIC, index.salt, len(index.entries))
    data += b"".join([_ENTRY.pack(*entry) for entry in index.entries])
    write_atomic(disk, path, (data, _CRC.pack(crc32(data))), durable=False).close()
