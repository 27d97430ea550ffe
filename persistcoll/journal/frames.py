"""The frames of records in a chunk file, and the only parser that reads them.

A frame is a header of 32 bytes, little-endian, and the payload::

    crc u32 | magic u16 | kind u16 | length u32 | id u64 | time f64 | synced u32 | payload

``crc`` is the CRC-32 of everything after it, seeded with the random salt in the chunk's header. So an old
block of another chunk, which a power cut may leave in the place of a write, has a wrong checksum. Zeros,
which ext4 may leave in the place of a write, are no frame because they are not the magic number.

``synced`` is the watermark, an offset in the same chunk. When the writer wrote this frame, it knew that
everything before the watermark was on the device. With it recovery distinguishes a torn tail from damage.
Writes that were never synced may reach the device in any order, so after a power cut a valid frame can
follow a hole. But a power cut cannot cause a hole *below* the watermark of a later frame.

The frames of one ``put_many`` follow a frame of kind ``BATCH``, whose payload says how many bytes they
occupy. No reader reads a part of an incomplete batch, and recovery cuts off the whole batch.
"""

from __future__ import annotations

import contextlib
import enum
import re
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple
from zlib import crc32

from persistcoll.disk.calls import Disk, read_fully
from persistcoll.engine.records import Record

__all__ = [
    "BATCH",
    "END",
    "HEADER_SIZE",
    "ITEM",
    "MAX_PAYLOAD",
    "MOVED",
    "BadFrame",
    "FrameHeader",
    "Frames",
    "Stop",
    "encode",
    "encode_batch",
    "read_headers",
    "scan_valid_frames",
]

ITEM, BATCH, END, MOVED = 1, 2, 3, 4
"""The kinds of frames: an item; the start of a batch; the end of a full chunk, which the next chunk
continues; the end of a chunk that was rewritten into a new file of the same name."""

MAX_PAYLOAD = 1 << 30
"""Bytes. With this limit the offsets in a chunk fit into 32 bits."""

_MAGIC = 0x5EC7
# The magic number and a kind: the kind excludes most magic numbers that stand in a payload.
_START = re.compile(re.escape(_MAGIC.to_bytes(2, "little")) + rb"[\x01-\x04]\x00")
_START_SIZE = 4
_BODY = struct.Struct("<HHIQdI")
_HEADER = struct.Struct("<IHHIQdI")
_CRC = struct.Struct("<I")
_BATCH = struct.Struct("<I")
HEADER_SIZE = _HEADER.size
_CRC_SIZE = _CRC.size
_BODY_SIZE = _BODY.size
_WINDOW = 1 << 16
_SPARSE = 1 << 12  # bytes of a payload from which on a window for its header is smaller

_pack_body = _BODY.pack
_unpack = _HEADER.unpack_from
_pack_crc = _CRC.pack
_new = tuple.__new__  # a call of Record takes twice as long


class BadFrame(Exception):
    """The bytes at ``offset`` are not a valid frame."""

    def __init__(self, offset: int, reason: str) -> None:
        super().__init__(f"{reason} at offset {offset}")
        self.offset = offset
        self.reason = reason


class Stop(enum.Enum):
    """The reason why a chunk file has no record at an offset."""

    INCOMPLETE = enum.auto()  # the file ends here, or within a frame or a batch
    END = enum.auto()
    MOVED = enum.auto()


def encode(salt: int, kind: int, id: int, time: float, synced: int, payload: bytes) -> bytes:
    """Return one frame as bytes."""
    if len(payload) > _WINDOW:  # saves a copy of a large payload
        head = _pack_body(_MAGIC, kind, len(payload), id, time, synced)
        return b"".join((_pack_crc(crc32(payload, crc32(head, salt))), head, payload))
    body = _pack_body(_MAGIC, kind, len(payload), id, time, synced) + payload
    return _pack_crc(crc32(body, salt)) + body


def encode_batch(salt: int, first_id: int, time: float, synced: int, payloads: Sequence[bytes]) -> bytes:
    """Return the frames of ``payloads`` after a ``BATCH`` frame, as bytes."""
    parts = [b""]
    append = parts.append
    for id, payload in enumerate(payloads, first_id):
        body = _pack_body(_MAGIC, ITEM, len(payload), id, time, synced) + payload
        append(_pack_crc(crc32(body, salt)))
        append(body)
    size = sum(map(len, parts))
    parts[0] = encode(salt, BATCH, first_id, time, synced, _BATCH.pack(size))
    return b"".join(parts)


class Frames:
    """Reads the frames of one chunk file in order.

    Not thread-safe: the owner ensures that one thread at a time calls it.

    :ivar start: the offset of the frame last read, in bytes.
    :ivar end: the offset directly after that frame, at which the next frame starts.
    :ivar synced: the watermark of that frame.
    """

    __slots__ = (
        "_at",
        "_base",
        "_batch_end",
        "_buffer",
        "_fd",
        "_read",
        "_salt",
        "_status",
        "end",
        "start",
        "synced",
    )

    def __init__(self, disk: Disk, fd: int, salt: int, offset: int) -> None:
        self._read = disk.read
        self._status = disk.status
        self._fd = fd
        self._salt = salt
        self._buffer = b""
        self._base = offset  # the file offset of the buffer's first byte
        self._at = 0  # the index in the buffer at which the next frame starts
        self._batch_end = 0  # the file offset at which the last batch ends
        self.start = self.end = offset
        self.synced = 0

    def read(self) -> Record | Stop:
        """Return the next record, or the reason why there is none.

        :raise BadFrame: the bytes are not a valid frame.
        """
        at = self._at
        buffer = self._buffer
        if len(buffer) - at < HEADER_SIZE:
            if not self._fill(HEADER_SIZE):
                return Stop.INCOMPLETE
            at, buffer = self._at, self._buffer
        crc, magic, kind, length, id, time, synced = _unpack(buffer, at)
        if magic != _MAGIC or length > MAX_PAYLOAD:
            raise BadFrame(self._base + at, "no record")
        behind = at + HEADER_SIZE + length
        if len(buffer) < behind:
            if not self._fill(HEADER_SIZE + length):
                return Stop.INCOMPLETE
            at, buffer = self._at, self._buffer
            behind = at + HEADER_SIZE + length
        body: bytes | memoryview = (
            buffer[at + _CRC_SIZE : behind]
            if length <= _WINDOW
            else (
                memoryview(buffer)[at + _CRC_SIZE : behind]  # saves a copy of a large payload
            )
        )
        if crc32(body, self._salt) != crc:
            raise BadFrame(self._base + at, "checksum of a record is wrong")
        payload = bytes(body[_BODY_SIZE:])
        if kind != ITEM:
            return self._control(kind, payload, at, behind, synced)
        self.start = self._base + at
        self.end = self._base + behind
        self.synced = synced
        self._at = behind
        return Record(id, payload, time)

    def read_run(self, id: int) -> list[tuple[Record, int, int]]:
        """Return the records from ``id`` on that are complete in the next 64 KiB of the file.

        The run ends before the first frame that :meth:`read` must handle, so it may be empty. A read spends
        most of its time in this loop: without it an item of ``get_many`` takes 2.8 us, with it 1.8 us.

        :return: the records, each with the offsets of its start and its end.
        """
        if len(self._buffer) - self._at < HEADER_SIZE and not self._fill(HEADER_SIZE):
            return []
        run: list[tuple[Record, int, int]] = []
        append = run.append
        at, buffer, base, salt = self._at, self._buffer, self._base, self._salt
        size = len(buffer)
        while size - at >= HEADER_SIZE:
            crc, magic, kind, length, found, time, _ = _unpack(buffer, at)
            behind = at + HEADER_SIZE + length
            if kind != ITEM or found != id or magic != _MAGIC or behind > size:
                break
            body = buffer[at + _CRC_SIZE : behind]
            if crc32(body, salt) != crc:
                break
            append((_new(Record, (id, body[_BODY_SIZE:], time, 0, 0, None, None)), base + at, base + behind))
            id += 1
            at = behind
        self._at = at
        if run:
            _, self.start, self.end = run[-1]
        return run

    def pass_records(self, last: int) -> None:
        """Pass over the records up to the id ``last`` that are complete in what was read of the file.

        It checks what :meth:`read` checks, and ends before the first frame that :meth:`read` must handle.
        """
        at, buffer, salt = self._at, self._buffer, self._salt
        size = len(buffer)
        start = at
        while size - at >= HEADER_SIZE:
            crc, magic, kind, length, found, _, _ = _unpack(buffer, at)
            behind = at + HEADER_SIZE + length
            if kind != ITEM or found > last or magic != _MAGIC or behind > size:
                break
            if crc32(buffer[at + _CRC_SIZE : behind], salt) != crc:
                break
            start, at = at, behind
        if at > self._at:
            self.start, self.end = self._base + start, self._base + at
            self._at = at

    @property
    def in_batch(self) -> bool:
        """Whether records of the same batch follow the record last read."""
        return self.end < self._batch_end

    def _control(self, kind: int, payload: bytes, at: int, behind: int, synced: int) -> Record | Stop:
        start = self._base + at
        if kind == BATCH and len(payload) == _BATCH.size:
            end = self._base + behind + _BATCH.unpack(payload)[0]
            # A reader must not see a part of a batch, so it reads the batch only when the last byte exists.
            if end > self._base + behind and not self._read(self._fd, 1, end - 1):
                return Stop.INCOMPLETE
            self._batch_end = end
            self._at = behind
            return self.read()
        if kind not in (END, MOVED):
            raise BadFrame(start, f"record of unknown kind {kind}")
        self.start = start
        self.end = self._base + behind
        self.synced = synced
        return Stop.END if kind == END else Stop.MOVED

    def _fill(self, need: int) -> bool:
        """Fill the buffer with ``need`` bytes of the next frame, and tell whether the file has them."""
        offset = self._base + self._at
        if need > _WINDOW and self._status(self._fd).st_size < offset + need:
            self._buffer, self._base, self._at = b"", offset, 0
            return False  # otherwise a damaged length could allocate up to a gigabyte
        self._buffer = self._read(self._fd, max(need, _WINDOW), offset)
        self._base = offset
        self._at = 0
        while len(self._buffer) < need:  # after a short read, or at the end of the file
            more = self._read(self._fd, need - len(self._buffer), offset + len(self._buffer))
            if not more:
                # Another frame may replace the unfinished one, so its bytes must not stay in the buffer.
                self._buffer = b""
                return False
            self._buffer += more
        return True


class FrameHeader(NamedTuple):
    """What the header of an item or of a batch says, without a look at its checksum."""

    id: int
    """The id of the record; of a batch, that of its first record."""
    time: float
    end: int
    """The offset at which the next frame starts; of a batch, the offset at which the batch ends."""


def read_headers(disk: Disk, fd: int, offset: int, end: int) -> Iterator[FrameHeader]:
    """Yield the headers of items and batches from ``offset`` to ``end``, or to the first other bytes.

    The bytes between are not read, except what stands in the same window. So a batch takes as long as an
    item.
    """
    base, buffer, window = offset, b"", _WINDOW
    size = HEADER_SIZE + _BATCH.size
    while offset + size <= end:
        at = offset - base
        if len(buffer) < at + size:
            base, buffer, at = offset, disk.read(fd, window, offset), 0
            if len(buffer) < size:
                return
        _, magic, kind, length, id, time, _ = _unpack(buffer, at)
        behind = offset + HEADER_SIZE + length
        if kind == BATCH and length == _BATCH.size:
            behind += _BATCH.unpack_from(buffer, at + HEADER_SIZE)[0]
        elif kind != ITEM:
            return
        if magic != _MAGIC or behind > end:
            return
        yield _new(FrameHeader, (id, time, behind))
        window = _WINDOW if behind - offset < _SPARSE else _SPARSE
        offset = behind


def scan_valid_frames(
    disk: Disk, fd: int, salt: int, offset: int, last_id: int
) -> Iterator[tuple[int, int, Record, int]]:
    """Yield every valid record from ``offset`` on with an id greater than ``last_id``, and skip damage.

    :return: tuples of the start, the end, the record and the watermark.
    """
    size = disk.status(fd).st_size
    behind = offset  # the end of the record last found
    for candidate in _magic_numbers(disk, fd, offset):
        if candidate < behind:
            continue  # within the payload of that record
        if not _plausible(read_fully(disk, fd, HEADER_SIZE, candidate), candidate, size, last_id):
            continue
        frames = Frames(disk, fd, salt, candidate)
        with contextlib.suppress(BadFrame):
            found = frames.read()
            if isinstance(found, Record):
                yield frames.start, frames.end, found, frames.synced
                behind, last_id = frames.end, found.id


def _plausible(header: bytes, offset: int, size: int, last_id: int) -> bool:
    """Tell whether a header can be valid, because the checksums of all candidates would take too long."""
    if len(header) < HEADER_SIZE:
        return False
    _, magic, kind, length, id, _, synced = _unpack(header, 0)
    return bool(
        magic == _MAGIC
        and ITEM <= kind <= MOVED
        and offset + HEADER_SIZE + length <= size
        and last_id < id <= last_id + 1 + size // HEADER_SIZE
        and synced <= offset
    )


def _magic_numbers(disk: Disk, fd: int, offset: int) -> Iterator[int]:
    """Yield every offset from ``offset`` on at which a frame could start."""
    while len(window := disk.read(fd, _WINDOW, offset + _CRC_SIZE)) >= _START_SIZE:
        for found in _START.finditer(window):
            yield offset + found.start()
        offset += len(window) - _START_SIZE + 1  # a magic number may lie across the border of two windows
