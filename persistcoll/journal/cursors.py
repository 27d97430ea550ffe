"""Cursors: what a consumer has acknowledged, in a small append-only file.

The file is a header and entries of 28 bytes::

    crc u32 | kind u32 | chunk u32 | first u64 | second u64

A ``POSITION`` says that every id up to ``first`` is acknowledged, and that the next record stands in
``chunk`` at offset ``second`` or later. A ``RANGE`` says that the ids ``first`` to ``second`` are
acknowledged, out of order. Every entry is a fact of its own and none takes back another, so an
entry that a power cut tore or an accident damaged costs one redelivery and never an item, and the
valid ones behind it still count. ``crc`` is seeded with the salt in the header.

Appending an entry is one small write (and one sync at ``"power"``); replacing a file by rename for
each acknowledgement would cost about four times that. The file is compacted, by rename, when a chunk is
finished. Its blocks are reserved ahead, so that acknowledging needs no room on a full disk.
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
from persistcoll.journal.ground import replaced

__all__ = ["Acknowledged", "CursorReader", "CursorWriter", "Position"]

_MAGIC = b"\x89PCCURS\n"
_HEADER = struct.Struct("<8s16sI")
_CRC = struct.Struct("<I")
_HEADER_SIZE = _HEADER.size + _CRC.size
_ENTRY = struct.Struct("<IIQQ")
_CHECKED = struct.Struct("<IIIQQ")
_ENTRY_SIZE = _CHECKED.size
_POSITION, _RANGE = 1, 2
_RESERVED = 1 << 16
_EMPTY = bytes(_ENTRY_SIZE)
# Entries read at once: a look that finds nothing new, which is what a waiter does every few
# milliseconds, must cost next to nothing.
_FIRST_LOOK, _WINDOW = 16, 2048

_now = time.monotonic
_pack_entry = _ENTRY.pack
_pack_crc = _CRC.pack


Position = tuple[int, int]
"""A place in the journal: a chunk's number and an offset in it. The next frame starts there or later.
A plain tuple, because one is made for every item that is taken."""


class Acknowledged:
    """A set of ids: all up to :attr:`last`, and ranges beyond. Adding is O(1).

    :ivar last: every id up to and including it is in the set.
    :ivar position: where the record after ``last`` is to be looked for.
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
        # Ranges beyond `last`, none touching another: first to last, and last to first.
        self._by_first: dict[int, int] = {}
        self._by_last: dict[int, int] = {}
        self._range_positions: dict[int, Position] = {}  # by a range's last id, where it is known
        self._firsts: list[int] | None = None  # sorted, while no range has changed

    def add(self, first: int, last: int, end_position: Position | None) -> bool:
        """Add the ids ``first`` to ``last``, none of which is in the set.

        :param end_position: the place behind the record ``last``, where it is known.
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
            # A place further back will do: what is acknowledged there is passed over.
            end_position = self._range_positions.pop(last, end_position)
            del self._by_last[last]
        if first == self.last + 1:
            self._by_first.pop(first, None)
            self.last = last
            if end_position is not None:
                # Never backwards: the place noted for a skipped item may be in a chunk that is gone.
                self.position = max(self.position, end_position)
            return True
        self._by_first[first] = last
        self._by_last[last] = first
        if end_position is not None:
            self._range_positions[last] = end_position
        return False

    def note_position(self, last: int, end_position: Position) -> None:
        """The record after ``last``, which is in the set, stands at ``end_position`` or later."""
        if last <= self.last:
            self.position = max(self.position, end_position)
        elif last in self._by_last:
            self._range_positions[last] = end_position

    def advance_to(self, last: int, position: Position) -> None:
        """Every id up to ``last`` is in the set, wherever it came from (loading)."""
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
        """Add ids of which some may be in the set already (loading)."""
        for run in self.missing(first, last):
            self.add(*run, None)

    def missing(self, first: int, last: int) -> list[tuple[int, int]]:
        """The ids from ``first`` to ``last`` that are not in the set, as runs of a first and a last one."""
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
        """The greatest id up to ``id`` that is not in the set; 0 if all are."""
        if id <= self.last:
            return 0
        if self.end_of(id) is None:
            return id
        assert self._firsts is not None
        return self._firsts[bisect.bisect_right(self._firsts, id) - 1] - 1

    def __contains__(self, id: int) -> bool:
        return self.end_of(id) is not None

    def end_of(self, id: int) -> int | None:
        """The last id of the run that ``id`` is in; ``None`` if it is not in the set."""
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
        """The ranges beyond :attr:`last`, first id to last id; not to be changed."""
        return self._by_first

    def copy(self) -> Acknowledged:
        """The set of this moment."""
        other = Acknowledged(self.last, self.position)
        other.count, other.highest = self.count, self.highest
        other._by_first, other._by_last = dict(self._by_first), dict(self._by_last)
        return other


def _entry(salt: int, kind: int, chunk: int, first: int, second: int) -> bytes:
    body = _pack_entry(kind, chunk, first, second)
    return _pack_crc(crc32(body, salt)) + body


class CursorReader:
    """Follows a cursor file that this or another process writes.

    :ivar acknowledged: what it says, as of the last :meth:`refresh`.
    :ivar damaged: how many entries did not check out.
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

    @property
    def exists(self) -> bool:
        return self._file is not None

    @property
    def offset(self) -> int:
        """Behind the last entry that is anything but zeros."""
        return self._offset

    @property
    def salt(self) -> int:
        return self._salt

    def refresh(self) -> bool:
        """Read what is new; say whether there was anything.

        :raise CorruptionError: the file's header is damaged or is another store's; the
            cursor then counts as missing.
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
        try:
            header = self._read_header(file)
            self._inode = self._disk.status(file.fd).st_ino
        except BaseException:
            file.close()
            raise
        self._file = file
        self._salt = _HEADER.unpack(header)[2]
        self._offset = _HEADER_SIZE
        self.acknowledged = Acknowledged()
        self.damaged = 0

    def _read_header(self, file: OpenFile) -> bytes:
        data = read_fully(self._disk, file.fd, _HEADER_SIZE, 0)
        header = data[: _HEADER.size]
        if (
            len(data) < _HEADER_SIZE
            or header[:8] != _MAGIC
            or _CRC.unpack(data[_HEADER.size :])[0] != crc32(header)
            or _HEADER.unpack(header)[1] != self._store_id
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
        """Read entries up to the first that is empty; return how many there are."""
        damaged = count = 0
        for at in range(0, len(data) - _ENTRY_SIZE + 1, _ENTRY_SIZE):
            entry = data[at : at + _ENTRY_SIZE]
            if self._read_entry(entry):
                # Only a valid entry moves the offset: what does not check out at the end may be
                # being written right now.
                count = at // _ENTRY_SIZE + 1
                self.damaged += damaged
                damaged = 0
            elif entry != _EMPTY:
                damaged += 1
            else:
                # Reserved, or torn: a power cut may leave a hole with valid entries behind it.
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
        """Whether that is the file that is read here."""
        return self._file is not None and os.path.samestat(
            self._disk.status(file.fd), self._disk.status(self._file.fd)
        )

    def can_be_written_on(self) -> bool:
        """Whether nothing but reserved zeros follows what was read, and all of that was valid.

        What a power cut left behind a hole must not come to light later, when the hole is filled:
        its ids may have been given to other records since.
        """
        if self._file is None or self.damaged:
            return False
        fd = self._file.fd
        rest = read_fully(self._disk, fd, self._disk.status(fd).st_size - self._offset, self._offset)
        return not rest.strip(b"\0")

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()


class CursorWriter:
    """Appends to a cursor file, as its only writer, and compacts it. Its owner holds a lock.

    :param acknowledged: what has been acknowledged so far; kept up to date.
    :param check_always: notice a removal of the file at each call. A look costs 0.6 us, a third of an
        acknowledgement at "process".
    """

    def __init__(
        self,
        disk: Disk,
        path: str,
        store_id: bytes,
        acknowledged: Acknowledged,
        tempdir: str | None,
        check_always: bool = True,
    ) -> None:
        self._look_always = check_always
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
        """Go on behind what ``reader`` has read, and wipe out whatever is left there.

        :raise OSError: the file was renamed since, perhaps not durably.
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
        """Acknowledge the ids ``first`` to ``last``; the record ``last`` ends at ``end_position``.

        :raise OSError: nothing was acknowledged.
        :raise StoreReplacedError: likewise; the file was removed or replaced.
        """
        self._unchecked += 1
        if self._unchecked > UNSEEN_CALLS or self._look_always or _now() >= self._checks_at:
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
            # The gap is closed: from here one position stands for all those ranges.
            with contextlib.suppress(OSError):  # it says nothing new
                self.state_position()

    def write_all(self, runs: Sequence[tuple[int, int, Position]]) -> None:
        """Acknowledge several runs of ids, all or none, as with :meth:`write`."""
        if len(runs) == 1:
            self.write(*runs[0])
            return
        self._check_not_removed()
        entries = b"".join([_entry(self._salt, _RANGE, 0, first, last) for first, last, _ in runs])
        self._append(entries)
        moved = [self.acknowledged.add(*run) for run in runs]
        if any(moved):
            with contextlib.suppress(OSError):  # it says nothing new
                self.state_position()

    def _check_not_removed(self) -> None:
        """``StoreReplacedError`` if the file was removed: what is written to it is nowhere."""
        if not self._status(self.fd)[LINKS]:
            raise replaced(self.path)
        self._unchecked, self._checks_at = 0, _now() + UNSEEN_SECONDS

    def state_position(self) -> None:
        """Write down where the acknowledged ids end without a gap, which ranges alone do not say."""
        chunk, offset = self.acknowledged.position
        self._append(_entry(self._salt, _POSITION, chunk, self.acknowledged.last, offset))

    def _append(self, entries: bytes) -> None:
        # At a tracked offset and not with O_APPEND, because the reserved blocks lie behind.
        try:
            if self._pwrite(self.fd, entries, self.offset) != len(entries):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            self._wipe(len(entries))
            raise
        self.offset += len(entries)

    def _wipe(self, size: int) -> None:
        """Whatever a write that failed has left is not to be read."""
        with contextlib.suppress(OSError):
            size = min(size, self._status(self.fd).st_size - self.offset)
            if size > 0:
                self._pwrite(self.fd, bytes(size), self.offset)

    def compact(self) -> None:
        """Replace the file by one that says the same in few entries, durably.

        The old file's descriptor is its owner's to close: somebody may be syncing it.
        """
        fresh_salt = new_salt()
        acknowledged = self.acknowledged
        header = _HEADER.pack(_MAGIC, self._store_id, fresh_salt)
        chunk, offset = acknowledged.position
        entries = [_entry(fresh_salt, _POSITION, chunk, acknowledged.last, offset)]
        entries += [_entry(fresh_salt, _RANGE, 0, first, last) for first, last in acknowledged.ranges.items()]
        data = header + _CRC.pack(crc32(header)) + b"".join(entries)
        self.file = write_atomic(self._disk, self.path, (data,), self._tempdir, os.O_RDWR)
        self.fd = self.file.fd
        self._salt = fresh_salt
        self.offset = len(data)
        with contextlib.suppress(OSError):  # on a full disk entries may need room later
            self._disk.reserve(self.fd, max(_RESERVED, 2 * self.offset))
