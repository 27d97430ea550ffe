"""Chunk files: names and headers, and functions to create, empty, open and list them.

A chunk appears under its name only with a synced header (temporary file, sync, rename, sync of the
directory). So every chunk that exists has a header, and a header with a wrong checksum is damage.

The header holds the id of the store, so that a chunk copied from another queue is refused. It also holds
the chunk's number, the id of its first record, the last id of the chunk before it (so that a reader notices
a missing or cut chunk), the salt of its checksums and the serializer::

    magic 8s | version u16 | name length u16 | number u32 | store uuid 16s
    | first id u64 | previous id u64 | created f64 | salt u32 | serializer name | crc u32

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
    "chunk_numbers",
    "chunk_path",
    "create_chunk",
    "empty_chunk",
    "open_chunk",
]

_MAGIC = b"\x89PCCHNK\n"
_VERSION = 1
_HEADER = struct.Struct("<8sHHI16sQQdI")
_CRC = struct.Struct("<I")
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

    @property
    def data_offset(self) -> int:
        """The offset at which the first frame starts, in bytes."""
        return _HEADER.size + len(self.serializer.encode()) + _CRC.size

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
        )
        return header + name + _CRC.pack(crc32(header + name))


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
    emptied = chunk._replace(first_id=next_id, salt=new_salt())
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
    fixed = read_fully(disk, fd, _HEADER.size, 0)
    if len(fixed) < _HEADER.size or fixed[:8] != _MAGIC:
        raise CorruptionError(f"the header of {path!r} is damaged", path, 0)
    _, version, length, number, store_id, first, previous, created, salt = _HEADER.unpack(fixed)
    rest = read_fully(disk, fd, length + _CRC.size, _HEADER.size)
    name = rest[:length]
    if len(rest) < length + _CRC.size or _CRC.unpack(rest[length:])[0] != crc32(fixed + name):
        raise CorruptionError(f"the header of {path!r} is damaged", path, 0)
    if version != _VERSION:
        raise FormatVersionError(
            f"{path!r} has format version {version}; this release reads version {_VERSION}"
        )
    return Chunk(number, store_id, first, previous, created, salt, name.decode())
