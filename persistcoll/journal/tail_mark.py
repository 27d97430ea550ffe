"""The tail mark: a hint, kept in the producer lock's file, of how far the journal is known to be durable.

It makes opening cost the same at any backlog (no directory is listed, no chunk scanned from its
start), and it lets recovery tell damage from a torn tail: whatever lies before the mark was synced
before the mark was written. It is never needed: a mark that is missing or does not check out only
costs time. It is not synced itself.

It also carries the poison: after a sync has failed, the page cache may show data that is not on the
device. That only matters until the machine restarts, which is exactly how long an unsynced flag in
the page cache is sure to live.
"""

from __future__ import annotations

import struct
from typing import NamedTuple
from zlib import crc32

from persistcoll.disk.calls import Disk, read_fully

__all__ = ["TailMark", "read_mark", "write_mark"]

_BODY = struct.Struct("<4sIIIQQ")
_CRC = struct.Struct("<I")
_MAGIC = b"PCT1"


class TailMark(NamedTuple):
    number: int
    salt: int
    offset: int
    """Everything before it in that chunk, and every chunk before, is on the device."""
    last_id: int
    """The id of the last record before ``offset``."""
    poisoned: bool = False


def read_mark(disk: Disk, fd: int) -> TailMark | None:
    """The mark in the producer lock's file, if there is one that checks out."""
    data = read_fully(disk, fd, _BODY.size + _CRC.size, 0)
    if len(data) < _BODY.size + _CRC.size or data[:4] != _MAGIC:
        return None
    body = data[: _BODY.size]
    if _CRC.unpack(data[_BODY.size :])[0] != crc32(body):
        return None
    _, number, salt, poisoned, offset, last_id = _BODY.unpack(body)
    return TailMark(number, salt, offset, last_id, bool(poisoned))


def write_mark(disk: Disk, fd: int, mark: TailMark) -> None:
    """Leave the mark. The caller has synced what it vouches for, and holds the producer lock."""
    body = _BODY.pack(_MAGIC, mark.number, mark.salt, mark.poisoned, mark.offset, mark.last_id)
    try:
        disk.pwrite(fd, body + _CRC.pack(crc32(body)), 0)
    except OSError:
        pass  # a hint: a full disk must not fail the operation that leaves it
