"""Bare loops over the files of a log and of consumers: what they cost with no log around them.

The loop that reads knows that nobody appends, and that no item is part of a batch. The one that makes the
files of consumers has no lock that it tries, and reads nothing.
"""

from __future__ import annotations

import os
import pickle
import struct
from collections.abc import Mapping
from zlib import crc32

from benchmarks.contenders import BATCH, Marks

__all__ = ["make_consumer_files", "read_files"]

_CHUNK = struct.Struct("<8sHHI16sQQdIQQd")
_CRC = struct.Struct("<I")
_FRAME = struct.Struct("<IHHIQdI")
_SIZE = _FRAME.size
_BODY = _SIZE - _CRC.size
_ITEM = 1
_WINDOW = 1 << 16
_POSITION = struct.Struct("<IIIQQ")
# Bytes of a consumer's files.
_CURSOR, _RESERVED, _PID = 80, 1 << 12, 8


def read_files(path: str, at: str, count: int) -> Mapping[str, float]:
    """Read, check and unpickle all items of a log; then again, and write a position after each batch.

    :param path: the log.
    :param at: a directory for the positions.
    """
    files = sorted(entry.path for entry in os.scandir(path) if entry.name[1:].isdigit())
    numbers = {}
    marks = Marks()
    found = sum(_read_file(file, None) for file in files)
    numbers["read"] = marks.lap(count)
    fd = os.open(os.path.join(at, "positions"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        marks = Marks()
        for file in files:
            _read_file(file, fd)
        numbers["read, positions written"] = marks.lap(count)
    finally:
        os.close(fd)
    if found != count:
        raise AssertionError(f"{found} of {count} items are there")
    return numbers


def _read_file(path: str, positions: int | None) -> int:
    """Return how many items the file has."""
    loads, unpack, read = pickle.loads, _FRAME.unpack_from, os.pread
    fd = os.open(path, os.O_RDONLY)
    try:
        buffer, at, offset, count = read(fd, _WINDOW, 0), 0, 0, 0
        fields = _CHUNK.unpack_from(buffer)
        salt = fields[8]
        at = _CHUNK.size + fields[2] + _CRC.size
        while True:
            if len(buffer) - at < _SIZE:
                offset += at
                buffer, at = read(fd, _WINDOW, offset), 0
                if len(buffer) < _SIZE:
                    return count
            crc, _, kind, length, id, _, _ = unpack(buffer, at)
            behind = at + _SIZE + length
            if len(buffer) < behind:
                offset += at
                buffer, at = read(fd, _WINDOW, offset), 0
                behind = _SIZE + length
            body = buffer[at + _CRC.size : behind]
            if crc32(body, salt) != crc:
                raise ValueError("damaged")
            at = behind
            if kind == _ITEM:
                loads(body[_BODY:])
                count += 1
                if positions is not None and not id % BATCH:
                    os.write(positions, _POSITION.pack(0, 1, 1, id, offset + at))
    finally:
        os.close(fd)


def make_consumer_files(directory: str, name: str, parent: int) -> None:
    """Make the two files of a consumer durably, in the order in which a log makes them.

    :param parent: the descriptor of the directory.
    """
    path = os.path.join(directory, name)
    sync = getattr(os, "fdatasync", os.fsync)
    lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    cursor = os.open(f"{path}.tmp", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(cursor, bytes(_CURSOR))
        sync(cursor)
        os.replace(f"{path}.tmp", f"{path}.cursor")
        os.fsync(parent)
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(cursor, 0, _RESERVED)
        os.write(lock, bytes(_PID))
        sync(cursor)
    finally:
        os.close(cursor)
        os.close(lock)
