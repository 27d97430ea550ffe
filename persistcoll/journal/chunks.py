"""Chunk files: their names, their headers, how one comes into being, how all are found.

A chunk appears under its name only with a synced header (temporary file, sync, rename, sync of the
directory), so a chunk that exists has a header, and a header that does not check out is damage.

The header names the store (a chunk copied from another queue is refused), the chunk's number, the
id of its first record, the last id of the chunk before it (so that a missing or cut chunk is
noticed), the salt of its checksums and the serializer::

    magic 8s | version u16 | name length u16 | number u32 | store uuid 16s
    | first id u64 | previous id u64 | created f64 | salt u32 | serializer name | crc u32

Ids between the previous id and the first one are acknowledged and have no record. There are such in two
cases. Recovery begins a chunk behind ids whose records a power cut took after they were acknowledged. And
the consumer replaces a chunk whose records are all acknowledged, while an earlier chunk is still needed, by
an *emptied* one: a header whose first id is that of the next chunk, and the ``END`` frame. The emptied chunk
keeps the chain of ids whole and says what was acknowledged even when the cursor is lost. A release from
before emptied chunks reads them as the first case. Only if it has lost the cursor as well, its count is too
high by those ids.
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
        """Where the first frame starts."""
        return _HEADER.size + len(self.serializer.encode()) + _CRC.size

    def encode(self) -> bytes:
        """The header's bytes."""
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
    """The chunk's file."""
    return os.path.join(directory, f"q{number:05d}")


def chunk_numbers(directory: str) -> list[int]:
    """The numbers of all chunks there, ascending."""
    matches = map(_NAME.fullmatch, os.listdir(directory))
    return sorted(int(match[1]) for match in matches if match)


def create_chunk(disk: Disk, directory: str, chunk: Chunk, tempdir: str | None = None) -> OpenFile:
    """Make the file, durably, and return it, open for appending and reading."""
    path = chunk_path(directory, chunk.number)
    return write_atomic(disk, path, (chunk.encode(),), tempdir, os.O_RDWR | os.O_APPEND)


def empty_chunk(disk: Disk, directory: str, chunk: Chunk, next_id: int, tempdir: str | None = None) -> None:
    """Replace a finished chunk by one without records, durably; the next chunk begins with ``next_id``.

    Its salt is a new one, so that no tail mark of the old file fits it. Whoever has the old file open reads
    on in that.
    """
    emptied = chunk._replace(first_id=next_id, salt=new_salt())
    data = emptied.encode() + encode(emptied.salt, END, next_id, time.time(), 0, b"")
    write_atomic(disk, chunk_path(directory, chunk.number), (data,), tempdir).close()


def open_chunk(
    disk: Disk, directory: str, number: int, store_id: bytes | None, flags: int = os.O_RDONLY
) -> tuple[OpenFile, Chunk]:
    """The open file and the checked header.

    :param store_id: the store that the chunk has to belong to; ``None`` accepts any.
    :raise FileNotFoundError: there is no such chunk.
    :raise CorruptionError: the header is damaged, or belongs to another store or chunk.
    :raise FormatVersionError: a later version wrote it.
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
