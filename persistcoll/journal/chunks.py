"""Chunk files: names and headers, and functions to create, empty, open and list them.

A chunk appears under its name only with a synced header (temporary file, sync, rename, sync of the
directory). So every chunk that exists has a header, and a header with a wrong checksum is damage.

The header holds the id of the store, so that a chunk copied from another queue is refused. It also holds
the chunk's number, the id of its first record, the last id of the chunk before it (so that a reader notices
a missing or cut chunk), the salt of its checksums and the serializer::

    magic 8s | version u16 | name length u16 | number u32 | store uuid 16s
    | first id u64 | previous id u64 | created f64 | salt u32
    | capacity u64 | ordinal u64 | latest f64 | serializer name | crc u32

The fields of the third line are those of version 2. Headers of version 1 are read as well, and a chunk of
version 1 is continued.

- ``capacity``: how many records the chunk may hold. After a power cut, ids above the last record of the chunk
  may have been given to records that the cut destroyed, but none above this limit.
- ``ordinal``: how many records came before the chunk. With it the records between two ids are counted without
  reading the chunks between them, although ids have gaps.
- ``latest``: the latest time of a record before the chunk. It never decreases from chunk to chunk, although
  the clock may be set back, so that a time can be found by bisection.

Ids between the previous id and the first id are acked and have no record. This gap has two causes:

- A power cut destroyed records that were already acked. Recovery begins a new chunk after their ids.
- The consumer replaced a chunk whose records are all acked, while an earlier chunk is still needed, by an
  *emptied* chunk: a header whose first id is that of the next chunk, and an ``END`` frame. An emptied chunk
  keeps the chain of ids complete, and it says which ids were acked even if the cursor is lost.

A release that does not know emptied chunks takes them for the first cause. Its counts are right unless the
cursor is lost as well; then they are too high by the ids of the gap.
"""

from __future__ import annotations

import os
import re
import struct
import time
from typing import NamedTuple
from zlib import crc32

from persistcoll.disk.atomic import write_atomic
from persistcoll.disk.calls import Disk, OpenFile, new_salt, read_fully
from persistcoll.errors import CorruptionError, FormatVersionError
from persistcoll.journal.frames import END, encode

__all__ = [
    "Chunk",
    "LastChunk",
    "chunk_numbers",
    "chunk_path",
    "create_chunk",
    "empty_chunk",
    "open_chunk",
]

_MAGIC = b"\x89PCCHNK\n"
_VERSION = 2
_HEADER_1 = struct.Struct("<8sHHI16sQQdI")
_HEADER = struct.Struct("<8sHHI16sQQdIQQd")
_PREFIX = struct.Struct("<8sHH")
_CRC = struct.Struct("<I")
_UNLIMITED = 1 << 62
_AT_ONCE = 512  # bytes that the first read of a header asks for, which nearly always is all of it
_NAME = re.compile(r"q(\d{5,})")


class Chunk(NamedTuple):
    """A chunk's header."""

    number: int
    store_id: bytes
    first_id: int
    previous_id: int
    created: float
    salt: int
    serializer: str
    capacity: int
    ordinal: int
    latest: float
    version: int = _VERSION

    @property
    def limit_id(self) -> int:
        """The id above those that records in this chunk may have."""
        return self.first_id + self.capacity

    @property
    def data_offset(self) -> int:
        """The offset at which the first frame starts, in bytes."""
        fixed = _HEADER_1 if self.version == 1 else _HEADER
        return fixed.size + len(self.serializer.encode()) + _CRC.size

    def encode(self) -> bytes:
        """Return the header as bytes."""
        name = self.serializer.encode()
        header = _HEADER.pack(
            _MAGIC,
            _VERSION,
            len(name),
            self.number,
            self.store_id,
            self.first_id,
            self.previous_id,
            self.created,
            self.salt,
            self.capacity,
            self.ordinal,
            self.latest,
        )
        return header + name + _CRC.pack(crc32(header + name))


class LastChunk(NamedTuple):
    """The last chunk of a journal, as far as it is valid at one moment."""

    chunk: Chunk
    end: int
    """The offset directly after the last record."""
    last_id: int
    """The id of the last record."""

    @property
    def ordinal(self) -> int:
        """How many records the journal has had."""
        return self.chunk.ordinal + self.last_id + 1 - self.chunk.first_id


def chunk_path(directory: str, number: int) -> str:
    """Return the path of a chunk's file."""
    return os.path.join(directory, f"q{number:05d}")


def chunk_numbers(directory: str) -> list[int]:
    """Return the numbers of all chunks in ``directory``, ascending."""
    matches = map(_NAME.fullmatch, os.listdir(directory))
    return sorted(int(match[1]) for match in matches if match)


def create_chunk(disk: Disk, directory: str, chunk: Chunk, tempdir: str | None = None) -> OpenFile:
    """Create the chunk's file durably, and return it open for appending and reading.

    Cost: one sync of the file and one of the directory.
    """
    path = chunk_path(directory, chunk.number)
    return write_atomic(disk, path, (chunk.encode(),), tempdir, os.O_RDWR | os.O_APPEND)


def empty_chunk(disk: Disk, directory: str, chunk: Chunk, next_id: int, tempdir: str | None = None) -> None:
    """Replace a finished chunk durably by an emptied one.

    The new file has a new salt, so that no tail mark of the old file fits it. A process that has the old file
    open reads that file to its end.

    Cost: one sync of the file and one of the directory.

    :param next_id: the id with which the next chunk begins.
    """
    emptied = chunk._replace(first_id=next_id, salt=new_salt(), version=_VERSION)
    data = emptied.encode() + encode(emptied.salt, END, next_id, time.time(), 0, b"")
    write_atomic(disk, chunk_path(directory, chunk.number), (data,), tempdir).close()


def open_chunk(
    disk: Disk, directory: str, number: int, store_id: bytes | None, flags: int = os.O_RDONLY
) -> tuple[OpenFile, Chunk]:
    """Open a chunk, check its header, and return both.

    :param store_id: the id of the store that the chunk must belong to; ``None`` accepts any.
    :raise FileNotFoundError: no chunk has this number.
    :raise CorruptionError: the header is damaged, or belongs to another store or chunk.
    :raise FormatVersionError: a later release wrote the chunk.
    """
    path = chunk_path(directory, number)
    file = OpenFile(disk, path, flags)
    try:
        chunk = _read_header(disk, file.fd, path)
        if store_id is not None and chunk.store_id != store_id:
            raise CorruptionError(f"{path!r} belongs to another store", path, 0)
        if chunk.number != number:
            raise CorruptionError(f"{path!r} is chunk {chunk.number} under another name", path, 0)
    except BaseException:
        file.close()
        raise
    return file, chunk


def _read_header(disk: Disk, fd: int, path: str) -> Chunk:
    data = read_fully(disk, fd, _AT_ONCE, 0)
    if len(data) < _PREFIX.size or data[:8] != _MAGIC:
        raise CorruptionError(f"the header of {path!r} is damaged", path, 0)
    _, version, length = _PREFIX.unpack_from(data)
    fixed = _HEADER_1 if version == 1 else _HEADER
    size = fixed.size + length
    if len(data) == _AT_ONCE < size + _CRC.size:
        data = read_fully(disk, fd, size + _CRC.size, 0)
    if len(data) < size + _CRC.size or _CRC.unpack_from(data, size)[0] != crc32(data[:size]):
        raise CorruptionError(f"the header of {path!r} is damaged", path, 0)
    if version not in (1, _VERSION):
        raise FormatVersionError(
            f"{path!r} has format version {version}; this release reads versions 1 and {_VERSION}"
        )
    _, _, _, number, store_id, first, previous, created, salt, *more = fixed.unpack_from(data)
    capacity, ordinal, latest = more or (_UNLIMITED, max(0, first - 1), 0.0)
    name = data[fixed.size : size].decode()
    return Chunk(number, store_id, first, previous, created, salt, name, capacity, ordinal, latest, version)
