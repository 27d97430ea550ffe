"""Cursors: small append-only files that say which records of a journal are acked.

A cursor file is a header and entries of 28 bytes. The header is::

    magic 8s | store uuid 16s | salt u32 | crc u32

The cursor of a log's consumer has another magic number, and the length of the consumer's name (u32) and the
name stand before ``crc``. An entry is::

    crc u32 | kind u32 | chunk u32 | first u64 | second u64

A ``POSITION`` entry says that every id up to ``first`` is acked, and that the next record stands in
``chunk`` at offset ``second`` or later. A ``RANGE`` entry says that the ids ``first`` to ``second`` are
acked, out of order. Every entry is true on its own, and none revokes another. So a torn or damaged entry
costs a redelivery and never loses an item, and the valid entries after it still count. ``crc`` is seeded
with the salt in the header.

Appending an entry is one small write, and one sync at ``"power"``. Replacing the file by rename for each ack
would cost about four times as much. The consumer compacts the file by rename when a chunk is finished. It
reserves the file's blocks in advance, so that an ack needs no room on a full disk.
"""

from __future__ import annotations

import bisect
import contextlib
import errno
import os
import struct
import time
from collections.abc import Sequence
from zlib import crc32

from persistcoll.disk.atomic import write_atomic
from persistcoll.disk.calls import (
    LINKS,
    UNSEEN_CALLS,
    UNSEEN_SECONDS,
    Disk,
    OpenFile,
    new_salt,
    read_fully,
)
from persistcoll.errors import CorruptionError
from persistcoll.journal.replaced_files import replaced

__all__ = ["LARGEST_NAME", "Acknowledged", "CursorReader", "CursorWriter", "Position"]

_MAGIC, _NAMED_MAGIC = b"\x89PCCURS\n", b"\x89PCNAME\n"
_HEADER = struct.Struct("<8s16sI")
_CRC = _LENGTH = struct.Struct("<I")
LARGEST_NAME = 1 << 20  # bytes
_ENTRY = struct.Struct("<IIQQ")
_CHECKED = struct.Struct("<IIIQQ")
_ENTRY_SIZE = _CHECKED.size
_POSITION, _RANGE = 1, 2
_RESERVED = 1 << 16
_EMPTY = bytes(_ENTRY_SIZE)
# Entries that one system call reads. The first read is small, because a waiting process reads every few
# milliseconds and mostly finds nothing new.
_FIRST_LOOK, _WINDOW = 16, 2048

_now = time.monotonic
_pack_entry = _ENTRY.pack
_pack_crc = _CRC.pack


Position = tuple[int, int]
"""A place in the journal: a chunk's number and an offset in bytes. The next frame starts there or later.

It is a plain tuple, because the consumer makes one for every item."""


class Acknowledged:
    """The set of acked ids: all ids up to :attr:`last`, and ranges beyond. Adding a range is O(1).

    Not thread-safe: the reader or writer that owns the set holds a lock around every call.

    :ivar last: every id up to and including this one is in the set.
    :ivar position: the record after ``last`` stands here or later.
    :ivar count: how many ids are in the set.
    :ivar highest: the greatest id in the set.
    """

    __slots__ = (
        "_by_first",
        "_by_last",
        "_firsts",
        "_range_positions",
        "count",
        "highest",
        "last",
        "position",
    )

    def __init__(self, last: int = 0, position: Position | None = None) -> None:
        self.last = self.count = self.highest = last
        self.position = position or (0, 0)
        # Invariant: the ranges beyond `last` neither overlap nor touch. Both dicts hold the same ranges.
        self._by_first: dict[int, int] = {}  # first id to last id
        self._by_last: dict[int, int] = {}  # last id to first id
        # The position after a range, by the range's last id. A range without a known position has none.
        self._range_positions: dict[int, Position] = {}
        self._firsts: list[int] | None = None  # the keys of _by_first, sorted; None after a change

    def add(self, first: int, last: int, end_position: Position | None) -> bool:
        """Add the ids ``first`` to ``last``, none of which may be in the set.

        :param end_position: the position directly after the record ``last``; ``None`` if it is unknown.
        :return: whether :attr:`last` moved.
        """
        self._firsts = None
        self.count += last - first + 1
        if last > self.highest:
            self.highest = last
        if first - 1 in self._by_last:
            self._range_positions.pop(first - 1, None)
            first = self._by_last.pop(first - 1)
        if last + 1 in self._by_first:
            last = self._by_first.pop(last + 1)
            # An earlier position is correct as well, because a reader passes over acked records.
            end_position = self._range_positions.pop(last, end_position)
            del self._by_last[last]
        if first == self.last + 1:
            self._by_first.pop(first, None)
            self.last = last
            if end_position is not None:
                # Never backwards: the position of a skipped item may be in a chunk that was removed.
                self.position = max(self.position, end_position)
            return True
        self._by_first[first] = last
        self._by_last[last] = first
        if end_position is not None:
            self._range_positions[last] = end_position
        return False

    def note_position(self, last: int, end_position: Position) -> None:
        """Note that the record after ``last`` stands at ``end_position`` or later; ``last`` is in the set."""
        if last <= self.last:
            self.position = max(self.position, end_position)
        elif last in self._by_last:
            self._range_positions[last] = end_position

    def advance_to(self, last: int, position: Position) -> None:
        """Add every id up to ``last``, whether some are in the set or not. A reader of a file calls it."""
        if last < self.last:
            return
        self._firsts = None
        if self._by_first:
            for first, end in sorted(self._by_first.items()):
                if first > last + 1:
                    break
                del self._by_first[first], self._by_last[end]
                last = max(last, end)
        self.last, self.position = last, position
        self.highest = max(self.highest, last)
        self.count = last + sum(end - first + 1 for first, end in self._by_first.items())

    def add_range(self, first: int, last: int) -> None:
        """Add the ids ``first`` to ``last``, some of which may be in the set. A reader of a file calls it."""
        for run in self.missing(first, last):
            self.add(*run, None)

    def missing(self, first: int, last: int) -> list[tuple[int, int]]:
        """Return the ids from ``first`` to ``last`` that are not in the set, as runs (first id, last id)."""
        first = max(first, self.last + 1)
        runs: list[tuple[int, int]] = []
        for known, end in sorted(self._by_first.items()):
            if known > last:
                break
            if end >= first:
                if first < known:
                    runs.append((first, known - 1))
                first = end + 1
        if first <= last:
            runs.append((first, last))
        return runs

    def missing_up_to(self, id: int) -> int:
        """Return the greatest id up to ``id`` that is not in the set, or 0 if all are in it."""
        if id <= self.last:
            return 0
        if self.end_of(id) is None:
            return id
        assert self._firsts is not None
        return self._firsts[bisect.bisect_right(self._firsts, id) - 1] - 1

    def __contains__(self, id: int) -> bool:
        return self.end_of(id) is not None

    def end_of(self, id: int) -> int | None:
        """Return the last id of the run that contains ``id``, or ``None`` if ``id`` is not in the set."""
        if id <= self.last:
            return self.last
        if id > self.highest:
            return None
        if self._firsts is None:
            self._firsts = sorted(self._by_first)
        index = bisect.bisect_right(self._firsts, id) - 1
        if index < 0:
            return None
        end = self._by_first[self._firsts[index]]
        return end if id <= end else None

    @property
    def ranges(self) -> dict[int, int]:
        """The ranges beyond :attr:`last`, first id to last id. The caller must not change them."""
        return self._by_first

    def copy(self) -> Acknowledged:
        """Return a copy, which later changes of this set do not reach."""
        other = Acknowledged(self.last, self.position)
        other.count, other.highest = self.count, self.highest
        other._by_first, other._by_last = dict(self._by_first), dict(self._by_last)
        return other


def _header(store_id: bytes, salt: int, name: bytes | None) -> bytes:
    if name is None:
        header = _HEADER.pack(_MAGIC, store_id, salt)
    else:
        header = _HEADER.pack(_NAMED_MAGIC, store_id, salt) + _LENGTH.pack(len(name)) + name
    return header + _CRC.pack(crc32(header))


def _entry(salt: int, kind: int, chunk: int, first: int, second: int) -> bytes:
    body = _pack_entry(kind, chunk, first, second)
    return _pack_crc(crc32(body, salt)) + body


class CursorReader:
    """Follows a cursor file that this process or another one writes.

    Not thread-safe: the owner holds a lock around every call, and that lock protects every field.

    :ivar acknowledged: the ids that the file says are acked, as of the last :meth:`refresh`.
    :ivar damaged: how many entries have a wrong checksum.
    :ivar name: the name of the consumer whose cursor it is; ``None`` in a cursor without a name.
    """

    def __init__(self, disk: Disk, path: str, store_id: bytes) -> None:
        self._disk = disk
        self._path = path
        self._store_id = store_id
        self._file: OpenFile | None = None
        self._inode = 0
        self._salt = 0
        self._offset = 0
        self.acknowledged = Acknowledged()
        self.damaged = 0
        self.name: bytes | None = None

    @property
    def exists(self) -> bool:
        """Whether the last :meth:`refresh` found a cursor file."""
        return self._file is not None

    @property
    def offset(self) -> int:
        """The offset directly after the last valid entry, in bytes."""
        return self._offset

    @property
    def salt(self) -> int:
        """The salt in the header, with which the checksums of the entries are seeded."""
        return self._salt

    def refresh(self) -> bool:
        """Read the new entries, and tell whether there were any.

        Cost: two system calls if nothing is new.

        :raise CorruptionError: the file's header is damaged or belongs to another store. The cursor then
            counts as missing.
        """
        try:
            inode = os.stat(self._path).st_ino
        except FileNotFoundError:
            return False
        if self._file is not None and inode == self._inode:
            return self._read_entries()
        self.close()
        self._open()
        self._read_entries()
        return True

    def _open(self) -> None:
        file = OpenFile(self._disk, self._path, os.O_RDONLY)
        self.name = None
        try:
            header = self._read_header(file)
            self._inode = self._disk.status(file.fd).st_ino
        except BaseException:
            file.close()
            raise
        self._salt = _HEADER.unpack_from(header)[2]
        self._offset = len(header)
        self.acknowledged = Acknowledged()
        self.damaged = 0
        # Last, so that after an interrupt the next call opens the file again.
        self._file = file

    def _read_header(self, file: OpenFile) -> bytes:
        size = _HEADER.size
        header = read_fully(self._disk, file.fd, size + _LENGTH.size, 0)
        if header[:8] == _NAMED_MAGIC and len(header) == size + _LENGTH.size:
            length = min(_LENGTH.unpack_from(header, size)[0], LARGEST_NAME)
            header = read_fully(self._disk, file.fd, size + _LENGTH.size + length + _CRC.size, 0)
            self.name = header[size + _LENGTH.size : -_CRC.size]
        if (
            len(header) < size + _CRC.size
            or _header(self._store_id, _HEADER.unpack_from(header)[2], self.name) != header
        ):
            raise CorruptionError(f"the header of the cursor {self._path!r} is damaged", self._path, 0)
        return header

    def _read_entries(self) -> bool:
        changed = False
        entries = _FIRST_LOOK
        assert self._file is not None
        while True:
            data = self._disk.read(self._file.fd, entries * _ENTRY_SIZE, self._offset)
            valid = self._read_window(data)
            changed = changed or bool(valid)
            if valid < entries:
                return changed
            entries = _WINDOW

    def _read_window(self, data: bytes) -> int:
        """Read the entries in ``data`` up to the last valid one, and return how many these are."""
        damaged = count = 0
        for at in range(0, len(data) - _ENTRY_SIZE + 1, _ENTRY_SIZE):
            entry = data[at : at + _ENTRY_SIZE]
            if self._read_entry(entry):
                # Only a valid entry moves the offset, because another process may be writing the invalid
                # entry at the end right now.
                count = at // _ENTRY_SIZE + 1
                self.damaged += damaged
                damaged = 0
            elif entry != _EMPTY:
                damaged += 1
            else:
                # An entry of zeros is reserved space, or a hole that a power cut left before valid entries.
                at_most = data.rstrip(b"\0")
                if len(at_most) <= at:
                    break
                damaged += 1
        self._offset += count * _ENTRY_SIZE
        return count

    def _read_entry(self, data: bytes) -> bool:
        crc, kind, chunk, first, second = _CHECKED.unpack(data)
        if crc32(data[4:], self._salt) != crc:
            return False
        if kind == _POSITION:
            self.acknowledged.advance_to(first, (chunk, second))
        elif kind == _RANGE and first <= second:
            self.acknowledged.add_range(first, second)
        return True

    def reads(self, file: OpenFile) -> bool:
        """Tell whether ``file`` is the file that this reader has open."""
        return self._file is not None and os.path.samestat(
            self._disk.status(file.fd), self._disk.status(self._file.fd)
        )

    def sync(self) -> None:
        """Make the entries durable that were read.

        :raise OSError: the sync failed.
        """
        if self._file is not None:
            self._disk.sync(self._file.fd)

    def can_be_written_on(self) -> bool:
        """Tell whether all entries were valid and only reserved zeros follow them.

        Otherwise an entry that a power cut left after a hole could become readable when later entries fill
        the hole, although other records have been given its ids since.
        """
        if self._file is None or self.damaged:
            return False
        fd = self._file.fd
        rest = read_fully(self._disk, fd, self._disk.status(fd).st_size - self._offset, self._offset)
        return not rest.strip(b"\0")

    def close(self) -> None:
        """Close the file. The next :meth:`refresh` reads all of it again."""
        file, self._file = self._file, None
        if file is not None:
            file.close()


class CursorWriter:
    """Appends to a cursor file as its only writer, and compacts the file.

    Not thread-safe: the owner holds a lock around every call, and that lock protects every field. The
    consumer lock ensures that no other process writes.

    :param acknowledged: the ids acked so far. Each call adds to the set.
    :param name: the name of the consumer whose cursor it is, which a new file gets.
    :param reserved: how many bytes a new file reserves at least; ``None``: enough for 2,000 entries.
    :param check_always: whether each call checks that the file was not removed. The check costs 0.6 us, a
        third of an ack at ``"process"``.
    """

    def __init__(
        self,
        disk: Disk,
        path: str,
        store_id: bytes,
        acknowledged: Acknowledged,
        tempdir: str | None,
        check_always: bool = True,
        name: bytes | None = None,
        reserved: int | None = None,
    ) -> None:
        self._name = name
        self.reserved = _RESERVED if reserved is None else reserved
        self._check_always = check_always
        self._unchecked, self._checks_at = 0, 0.0
        self._disk = disk
        self.path = path
        self._store_id = store_id
        self._tempdir = tempdir
        self._salt = 0
        self.acknowledged = acknowledged
        self.file: OpenFile | None = None
        self.fd = -1
        self.offset = 0
        self._pwrite = disk.pwrite
        self._status = disk.status

    def resume(self, reader: CursorReader) -> None:
        """Continue directly after the entries that ``reader`` has read, and zero what follows them.

        :raise StoreReplacedError: ``reader`` has another file open than the one under this path.
        """
        file = OpenFile(self._disk, self.path, os.O_RDWR)
        try:
            if not reader.reads(file):
                raise replaced(self.path)
            if not reader.can_be_written_on():
                rest = self._disk.status(file.fd).st_size - reader.offset
                self._disk.pwrite(file.fd, bytes(rest), reader.offset)
        except BaseException:
            file.close()
            raise
        self.acknowledged, self.offset, self._salt = reader.acknowledged, reader.offset, reader.salt
        self.file, self.fd = file, file.fd

    def write(self, first: int, last: int, end_position: Position) -> None:
        """Ack the ids ``first`` to ``last``. The record ``last`` ends at ``end_position``.

        Cost: one write of 28 bytes, and no sync.

        :raise OSError: the write failed, and nothing was acked.
        :raise StoreReplacedError: the file was removed or replaced, and nothing was acked.
        """
        self._unchecked += 1
        if self._unchecked > UNSEEN_CALLS or self._check_always or _now() >= self._checks_at:
            self._check_not_removed()
        acknowledged = self.acknowledged
        if first == acknowledged.last + 1 and not acknowledged._by_first:  # nearly always
            body = _pack_entry(_POSITION, end_position[0], last, end_position[1])
            entry = _pack_crc(crc32(body, self._salt)) + body
            try:
                if self._pwrite(self.fd, entry, self.offset) != _ENTRY_SIZE:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                self._wipe(_ENTRY_SIZE)
                raise
            self.offset += _ENTRY_SIZE
            acknowledged.last = acknowledged.highest = last
            acknowledged.count += last - first + 1
            acknowledged.position = end_position
            return
        self._append(_entry(self._salt, _RANGE, 0, first, last))
        if acknowledged.add(first, last, end_position) and acknowledged.last != last:
            # The ranges close a gap, so that one position says the same as all of them.
            with contextlib.suppress(OSError):  # the ranges already say it, so a failure loses nothing
                self.state_position()

    def write_all(self, runs: Sequence[tuple[int, int, Position]]) -> None:
        """Ack several runs of ids, all or none, as :meth:`write` does."""
        if len(runs) == 1:
            self.write(*runs[0])
            return
        self._check_not_removed()
        entries = b"".join([_entry(self._salt, _RANGE, 0, first, last) for first, last, _ in runs])
        self._append(entries)
        moved = [self.acknowledged.add(*run) for run in runs]
        if any(moved):
            with contextlib.suppress(OSError):  # the ranges already say it, so a failure loses nothing
                self.state_position()

    def _check_not_removed(self) -> None:
        """Raise ``StoreReplacedError`` if the file was removed, because no process would find the entries."""
        if not self._status(self.fd)[LINKS]:
            raise replaced(self.path)
        self._unchecked, self._checks_at = 0, _now() + UNSEEN_SECONDS

    def state_position(self) -> None:
        """Append the position up to which all ids are acked, which ranges alone do not say."""
        chunk, offset = self.acknowledged.position
        self._append(_entry(self._salt, _POSITION, chunk, self.acknowledged.last, offset))

    def _append(self, entries: bytes) -> None:
        # The write goes to a tracked offset and not to the end of the file, where the reserved blocks end.
        try:
            if self._pwrite(self.fd, entries, self.offset) != len(entries):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            self._wipe(len(entries))
            raise
        self.offset += len(entries)

    def _wipe(self, size: int) -> None:
        """Zero what a failed write has left, so that no reader reads it."""
        with contextlib.suppress(OSError):
            size = min(size, self._status(self.fd).st_size - self.offset)
            if size > 0:
                self._pwrite(self.fd, bytes(size), self.offset)

    def compact(self) -> None:
        """Replace the file durably by one with few entries and the same meaning.

        The old file stays open, because another thread may be syncing it. The owner closes it.

        Cost: one sync of the file and one of the directory.
        """
        fresh_salt = new_salt()
        acknowledged = self.acknowledged
        chunk, offset = acknowledged.position
        entries = [_entry(fresh_salt, _POSITION, chunk, acknowledged.last, offset)]
        entries += [_entry(fresh_salt, _RANGE, 0, first, last) for first, last in acknowledged.ranges.items()]
        data = _header(self._store_id, fresh_salt, self._name) + b"".join(entries)
        self.file = write_atomic(self._disk, self.path, (data,), self._tempdir, os.O_RDWR)
        self.fd = self.file.fd
        self._salt = fresh_salt
        self.offset = len(data)
        if self.reserved:
            with contextlib.suppress(OSError):  # best effort: without reserved blocks entries need room later
                self._disk.reserve(self.fd, max(self.reserved, 2 * self.offset))
