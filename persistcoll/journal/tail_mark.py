"""The tail mark: a hint in the producer lock's file that says how far the journal is known to be durable.

With the mark the time to open a journal does not depend on the backlog, because recovery need not list the
directory or scan the last chunk from its start. The mark also lets recovery distinguish damage from a torn
tail, because everything before the mark was synced before the mark was written. A mark that is missing or
has a wrong checksum only costs time. The mark itself is not synced.

The mark also tells other processes that a journal is poisoned. After a failed sync the page cache may show
data that is not on the device. This is so until the machine restarts, and the flag, which is in the same
page cache, lives exactly as long.
"""

from __future__ import annotations

import hashlib
import struct
import time
from typing import NamedTuple
from zlib import crc32

from persistcoll.disk.calls import Disk, read_fully

__all__ = ["TailMark", "is_same_boot", "read_mark", "this_boot", "write_mark"]

_BODY_1 = struct.Struct("<4sIIIQQ")
_BODY = struct.Struct("<4sIIIQQd16s")
_CRC = struct.Struct("<I")
_MAGIC_1, _MAGIC = b"PCT1", b"PCT2"
_BOOT_TIME = struct.Struct("<8sd")
_NO_ID = b"booted\0\0"
_BOOT_SECONDS = 10.0


class TailMark(NamedTuple):
    """How far a journal is known to be durable."""

    number: int
    """The number of the last chunk."""
    salt: int
    """The salt of that chunk: the mark says nothing about another file of the same number."""
    offset: int
    """Bytes. Everything before this offset in the chunk, and every earlier chunk, is on the device."""
    last_id: int
    """The id of the last record before ``offset``."""
    latest: float
    """The latest time of a record before ``offset``."""
    boot: bytes
    """What tells the boot of the machine in which the mark was written from all others; empty: unknown."""
    poisoned: bool = False
    """Whether a sync of the chunk has failed."""


def this_boot(disk: Disk) -> bytes:
    """Return what a mark that is written now has as ``boot``."""
    boot = disk.boot_id()
    if boot:
        return hashlib.blake2s(boot.encode(), digest_size=16).digest()
    return _BOOT_TIME.pack(_NO_ID, time.time() - time.monotonic())


def is_same_boot(one: bytes, other: bytes) -> bool:
    """Tell whether the machine was not restarted between the two; if that is unknown, ``False``.

    A system that has no id for a boot is known by the time at which it was booted. That time moves if the
    clock is set, and then the boot counts as another one.
    """
    if len(one) == len(other) == _BOOT_TIME.size:
        (kind, time), (other_kind, other_time) = _BOOT_TIME.unpack(one), _BOOT_TIME.unpack(other)
        if kind == other_kind == _NO_ID:
            return bool(abs(time - other_time) < _BOOT_SECONDS)
    return one == other != b""


def read_mark(disk: Disk, fd: int) -> TailMark | None:
    """Return the mark in the producer lock's file, or ``None`` if there is no valid one."""
    data = read_fully(disk, fd, _BODY.size + _CRC.size, 0)
    fields = _BODY_1 if data[:4] == _MAGIC_1 else _BODY
    if len(data) < fields.size + _CRC.size or data[:4] not in (_MAGIC_1, _MAGIC):
        return None
    if _CRC.unpack_from(data, fields.size)[0] != crc32(data[: fields.size]):
        return None
    _, number, salt, poisoned, offset, last_id, *more = fields.unpack_from(data)
    latest, boot = more or (0.0, b"")
    return TailMark(number, salt, offset, last_id, latest, boot, bool(poisoned))


def write_mark(disk: Disk, fd: int, mark: TailMark) -> None:
    """Write the mark. The caller holds the producer lock and has synced everything before the mark."""
    number, salt, offset, last_id, latest, boot, poisoned = mark
    body = _BODY.pack(_MAGIC, number, salt, poisoned, offset, last_id, latest, boot)
    try:
        disk.pwrite(fd, body + _CRC.pack(crc32(body)), 0)
    except OSError:
        pass  # the mark is a hint, so a full disk must not fail the operation that writes it
