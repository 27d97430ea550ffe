"""Recovery: finding the journal's tail after a clean close, a kill, a power cut or damage.

The caller holds the producer lock. An interrupted recovery can be repeated: it truncates a chunk only after
the bytes that it cuts off are in another file, and it rewrites a chunk only by an atomic rename.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from persistcoll.disk.atomic import remove_temp_files, write_atomic
from persistcoll.disk.calls import Disk, OpenFile, write_fully
from persistcoll.engine.records import OnCorruption, Record
from persistcoll.errors import CorruptionError
from persistcoll.journal.chunks import Chunk, chunk_numbers, chunk_path, open_chunk
from persistcoll.journal.frames import HEADER_SIZE, MOVED, BadFrame, Frames, Stop, encode, scan_valid_frames
from persistcoll.journal.replaced_files import refuse_replaced
from persistcoll.journal.tail_mark import TailMark

__all__ = ["JournalLocation", "MissingTail", "RecoveredTail", "find_tail"]

_log = logging.getLogger("persistcoll")
_COPY = 1 << 20
# The files that are written under the producer lock; and a log's indexes and cursors, for which a temporary
# file that is removed costs nothing but the work. A queue's cursor is written under the consumer lock.
_WRITTEN_BY_PRODUCERS = re.compile(
    r"info|trimmed|q\d{5,}(?:\.torn-\d+|\.index)?|consumer-[0-9a-f]{32}\.cursor"
)


@dataclass(frozen=True)
class JournalLocation:
    """Where a journal lies, and with which options it is open. Immutable."""

    disk: Disk
    directory: str
    store_id: bytes
    serializer: str
    tempdir: str | None = None
    on_corruption: OnCorruption = "raise"
    landmarks: tuple[tuple[str, int], ...] = ()
    """Paths and open descriptors of the store's lock files, which are never renamed."""
    chunksize: int = 0
    """How many records a chunk holds at most; 0: unknown."""

    def check(self) -> None:
        """Raise ``StoreReplacedError`` if the directory is not the one that was opened.

        Every function calls it before it creates, renames or removes a file in the directory. Otherwise it
        could change another store.

        Cost: two system calls for each landmark.
        """
        refuse_replaced(self.disk, self.landmarks)

    def path(self, number: int) -> str:
        """Return the path of a chunk."""
        return chunk_path(self.directory, number)


@dataclass
class RecoveredTail:
    """The last chunk, and the offset at which the next record goes."""

    file: OpenFile
    chunk: Chunk
    end: int
    last_id: int
    latest: float
    """The latest time of a record."""
    sealed: bool = False
    """Whether the chunk ends with an ``END`` frame, so that the next record goes into the next chunk."""
    clean: bool = False
    """Whether the file ends at the tail mark, so that everything in it is on the device."""
    highest_issued_id: int = 0
    """The highest id that is known to have been given to a record, if that record is lost."""

    @property
    def ordinal(self) -> int:
        """How many records come before the next one."""
        return self.chunk.ordinal + self.last_id + 1 - self.chunk.first_id


@dataclass(frozen=True)
class MissingTail:
    """The finding that there is no chunk to append to."""

    number: int
    """The number of the chunk to create."""
    last_id: int
    """The highest id that may have been given to a record. New ids are higher."""
    ordinal: int
    """How many records came before, as far as is known."""
    latest: float
    """The latest time of a record, as far as is known."""


def find_tail(location: JournalLocation, mark: TailMark | None) -> RecoveredTail | MissingTail:
    """Find the tail, repair it if a crash has torn it, make it durable and return it.

    Cost: a few system calls if the tail mark is valid. Otherwise it reads the last chunk, lists the
    directory, and syncs both.

    :raise CorruptionError: a chunk has damage that no crash causes, and the policy is "raise".
    """
    tail = _find(location, mark)
    if isinstance(tail, MissingTail):
        remove_temp_files(location.disk, location.directory, location.tempdir, _WRITTEN_BY_PRODUCERS)
        return tail
    try:
        if mark is not None and mark.poisoned:
            tail = _rewrite(location, tail)
        if not tail.clean:
            remove_temp_files(location.disk, location.directory, location.tempdir, _WRITTEN_BY_PRODUCERS)
            # Later records follow the tail, whose writer may have died before the sync.
            location.disk.sync(tail.file.fd)
            location.disk.sync_directory(location.directory)
    except BaseException:
        tail.file.close()
        raise
    return tail


def _find(location: JournalLocation, mark: TailMark | None) -> RecoveredTail | MissingTail:
    number = _last_number(location, mark)
    if number is None:
        if mark is None:
            return MissingTail(0, 0, 0, 0.0)
        return MissingTail(mark.number + 1, mark.last_id, mark.last_id, mark.latest)
    flags = os.O_RDWR | os.O_APPEND
    try:
        file, chunk = open_chunk(location.disk, location.directory, number, location.store_id, flags)
    except CorruptionError:
        if location.on_corruption == "raise":
            raise
        return _set_aside(location, number, mark)
    try:
        tail = _scan(location, file, chunk, mark)
    except BaseException:
        file.close()
        raise
    if mark is not None and mark.number > number:  # later chunks are missing
        tail.highest_issued_id = mark.last_id
    return tail


def _last_number(location: JournalLocation, mark: TailMark | None) -> int | None:
    if mark is not None:
        try:
            unchanged = os.stat(location.path(mark.number)).st_size == mark.offset
            # An unchanged chunk has no END, so no process has created a later chunk. A user may have copied
            # one into the directory.
            if unchanged and not os.path.exists(location.path(mark.number + 1)):
                return mark.number
        except FileNotFoundError:
            pass
    numbers = chunk_numbers(location.directory)
    if mark is not None and location.on_corruption == "raise" and (not numbers or numbers[-1] < mark.number):
        path = location.path(mark.number)
        raise CorruptionError(f"chunk {path!r} is missing", path)
    return numbers[-1] if numbers else None


def _set_aside(location: JournalLocation, number: int, mark: TailMark | None) -> MissingTail:
    """Rename a chunk whose header is damaged, because without its salt no frame of it can be verified."""
    path = location.path(number)
    # An upper bound for the number of records in the chunk, so that no id is given twice. A power cut may
    # have destroyed some that are not in the file any more.
    held = max(os.path.getsize(path) // HEADER_SIZE, 2 * location.chunksize)
    location.disk.replace(path, f"{path}.damaged")
    location.disk.sync_directory(location.directory)
    _log.warning("the header of %r is damaged; the chunk was moved to %r", path, f"{path}.damaged")
    earlier = _find(location, None)
    ordinal = earlier.ordinal
    if isinstance(earlier, RecoveredTail):
        earlier.file.close()
    last_id = max(earlier.last_id, mark.last_id if mark is not None else 0)
    return MissingTail(number + 1, last_id + held, ordinal, earlier.latest)


def _scan(location: JournalLocation, file: OpenFile, chunk: Chunk, mark: TailMark | None) -> RecoveredTail:
    disk, path = location.disk, location.path(chunk.number)
    tail = RecoveredTail(file, chunk, chunk.data_offset, chunk.first_id - 1, chunk.latest)
    size = disk.status(file.fd).st_size
    synced = 0
    if mark is not None and (mark.number, mark.salt) == (chunk.number, chunk.salt):
        synced = mark.offset
        if size >= mark.offset:
            tail.end, tail.last_id, tail.latest = mark.offset, mark.last_id, mark.latest
            tail.clean = size == mark.offset
    bad = _read_on(disk, tail)
    if bad is None and size >= synced:
        return tail
    found = list(scan_valid_frames(disk, file.fd, chunk.salt, tail.end, tail.last_id))
    synced = max([synced, *(knew for _, _, _, knew in found)])
    if synced > tail.end:
        # The offset `tail.end` was on the device when a later record or the tail mark was written, so that no
        # power cut can have damaged it.
        reason = f"{path!r} is damaged at offset {tail.end}: {bad or 'it is cut short'}"
        if location.on_corruption == "raise":
            raise CorruptionError(reason, path, tail.end)
        _log.warning("%s", reason)
        for _, end, record, _ in found:
            tail.end, tail.last_id = end, max(record.id, tail.last_id)
            tail.latest = max(tail.latest, record.time)
        if mark is not None:
            tail.highest_issued_id = mark.last_id
    tail.clean = False
    if tail.end < size:
        _truncate_torn_tail(location, tail, size)
    return tail


def _read_on(disk: Disk, tail: RecoveredTail) -> str | None:
    """Move the tail to the end of the valid frames; return what is wrong with the bytes after it, if any."""
    frames = Frames(disk, tail.file.fd, tail.chunk.salt, tail.end)
    last_id = tail.last_id
    reason = "a record is cut short"
    try:
        while True:
            found = frames.read()
            if isinstance(found, Record):
                if found.id != last_id + 1:
                    reason = f"record {last_id + 1} is missing"
                    break
                last_id = found.id
                tail.latest = max(tail.latest, found.time)
                if not frames.in_batch:  # the tail includes a batch only when its last record is valid
                    tail.end, tail.last_id = frames.end, last_id
                continue
            if found is Stop.END:
                tail.sealed = True
                tail.end = frames.end
            break
    except BadFrame as error:
        reason = error.reason
    return None if tail.end == disk.status(tail.file.fd).st_size else reason


def _truncate_torn_tail(location: JournalLocation, tail: RecoveredTail, size: int) -> None:
    """Truncate a torn tail, after its bytes are saved in another file."""
    disk, path = location.disk, location.path(tail.chunk.number)
    aside = f"{path}.torn-{tail.end}"
    write_atomic(disk, aside, _pieces(disk, tail.file.fd, tail.end, size), location.tempdir).close()
    disk.truncate(tail.file.fd, tail.end)
    disk.sync(tail.file.fd)
    _log.warning(
        "%r: %d bytes at the end are not whole and were never acknowledged; they were moved to %r",
        path,
        size - tail.end,
        aside,
    )


def _rewrite(location: JournalLocation, tail: RecoveredTail) -> RecoveredTail:
    """Write the tail's valid records into a new file of the same name, after a failed sync.

    The page cache may show data that is not on the device. A second sync of the same file would not write
    them, because the kernel takes the pages for clean.
    """
    disk, chunk = location.disk, tail.chunk
    path = location.path(chunk.number)
    # Other processes may have the old file open. The MOVED frame sends them to the new file, and it is
    # written first: if this process dies before the rename, the next recovery truncates the frame and
    # rewrites the chunk again.
    try:
        write_fully(disk, tail.file.fd, encode(chunk.salt, MOVED, tail.last_id + 1, 0.0, 0, b""))
        pieces = _pieces(disk, tail.file.fd, 0, tail.end)
        file = write_atomic(disk, path, pieces, location.tempdir, os.O_RDWR | os.O_APPEND)
    except OSError:
        disk.truncate(tail.file.fd, tail.end)
        raise
    tail.file.close()
    return RecoveredTail(file, chunk, tail.end, tail.last_id, tail.latest, tail.sealed)


def _pieces(disk: Disk, fd: int, start: int, end: int) -> Iterator[bytes]:
    while start < end:
        piece = disk.read(fd, min(_COPY, end - start), start)
        if not piece:
            return
        yield piece
        start += len(piece)
