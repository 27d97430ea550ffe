"""Finding the journal's tail after anything: a clean close, a kill, a power cut, damage.

The caller holds the producer lock. Everything here may be cut short and done again: a chunk is
only ever cut after the bytes behind the cut were kept aside, and rewritten only by an atomic rename.
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
from persistcoll.journal.ground import refuse_replaced
from persistcoll.journal.tail_mark import TailMark

__all__ = ["JournalLocation", "MissingTail", "RecoveredTail", "find_tail"]

_log = logging.getLogger("persistcoll")
_COPY = 1 << 20
# Under the producer lock. The cursor is written under the consumer lock.
_WRITTEN_BY_PRODUCERS = re.compile(r"info|q\d{5,}(?:\.torn-\d+)?")


@dataclass(frozen=True)
class JournalLocation:
    """Where a journal lies and how it is opened."""

    disk: Disk
    directory: str
    store_id: bytes
    serializer: str
    tempdir: str | None = None
    on_corruption: OnCorruption = "raise"
    landmarks: tuple[tuple[str, int], ...] = ()
    """Files of the store that are never renamed: paths and open descriptors."""

    def check(self) -> None:
        """``StoreReplacedError`` if the directory is not the one that was opened.

        To be called before anything in it is made, renamed or removed.
        """
        refuse_replaced(self.disk, self.landmarks)

    def path(self, number: int) -> str:
        return chunk_path(self.directory, number)


@dataclass
class RecoveredTail:
    """The last chunk, and where the next record goes."""

    file: OpenFile
    chunk: Chunk
    end: int
    last_id: int
    sealed: bool = False
    """It ends with an END frame: the next record goes into the next chunk."""
    clean: bool = False
    """Nothing was found behind the mark."""
    highest_issued_id: int = 0
    """An id that is known to have been given, though its record is lost."""


@dataclass(frozen=True)
class MissingTail:
    """There is no chunk to append to; the next one has this number."""

    number: int
    last_id: int
    """No id up to it may be given again."""


def find_tail(location: JournalLocation, mark: TailMark | None) -> RecoveredTail | MissingTail:
    """The tail, repaired where a crash left it torn, and durable.

    :raise CorruptionError: what is there cannot be the work of a crash, and the policy is "raise".
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
            # What follows is built upon it, and whoever wrote it may have died before the sync.
            location.disk.sync(tail.file.fd)
            location.disk.sync_directory(location.directory)
    except BaseException:
        tail.file.close()
        raise
    return tail


def _find(location: JournalLocation, mark: TailMark | None) -> RecoveredTail | MissingTail:
    number = _last_number(location, mark)
    if number is None:
        return MissingTail(mark.number + 1, mark.last_id) if mark is not None else MissingTail(0, 0)
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
    if mark is not None and mark.number > number:  # chunks that are missing
        tail.highest_issued_id = mark.last_id
    return tail


def _last_number(location: JournalLocation, mark: TailMark | None) -> int | None:
    if mark is not None:
        try:
            unchanged = os.stat(location.path(mark.number)).st_size == mark.offset
            # Then there is no later chunk, unless somebody put one there by hand.
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
    """Get a chunk whose header is damaged out of the way: without its salt nothing in it checks out."""
    path = location.path(number)
    # An upper bound of the ids that it may have held, so that none is given twice.
    held = os.path.getsize(path) // HEADER_SIZE
    location.disk.replace(path, f"{path}.damaged")
    location.disk.sync_directory(location.directory)
    _log.warning("the header of %r is damaged; the chunk was moved to %r", path, f"{path}.damaged")
    earlier = _find(location, None)
    if isinstance(earlier, RecoveredTail):
        earlier.file.close()
    last_id = max(earlier.last_id, mark.last_id if mark is not None else 0)
    return MissingTail(number + 1, last_id + held)


def _scan(location: JournalLocation, file: OpenFile, chunk: Chunk, mark: TailMark | None) -> RecoveredTail:
    disk, path = location.disk, location.path(chunk.number)
    tail = RecoveredTail(file, chunk, chunk.data_offset, chunk.first_id - 1)
    size = disk.status(file.fd).st_size
    synced = 0
    if mark is not None and (mark.number, mark.salt) == (chunk.number, chunk.salt):
        synced = mark.offset
        if size >= mark.offset:
            tail.end, tail.last_id = mark.offset, mark.last_id
            tail.clean = size == mark.offset
    bad = _read_on(disk, tail)
    if bad is None and size >= synced:
        return tail
    found = list(scan_valid_frames(disk, file.fd, chunk.salt, tail.end, tail.last_id))
    synced = max([synced, *(knew for _, _, _, knew in found)])
    if synced > tail.end:
        # This place was known to be on the device when a later record, or the mark, was written.
        reason = f"{path!r} is damaged at offset {tail.end}: {bad or 'it is cut short'}"
        if location.on_corruption == "raise":
            raise CorruptionError(reason, path, tail.end)
        _log.warning("%s", reason)
        for _, end, id, _ in found:
            tail.end, tail.last_id = end, max(id, tail.last_id)
        if mark is not None:
            tail.highest_issued_id = mark.last_id
    tail.clean = False
    if tail.end < size:
        _truncate_torn_tail(location, tail, size)
    return tail


def _read_on(disk: Disk, tail: RecoveredTail) -> str | None:
    """Move the tail over all that is valid; say what is wrong behind it, if anything is there."""
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
                if not frames.in_batch:  # a batch counts when its last record does
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
    """Cut a torn tail, keeping its bytes aside."""
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
    """Write the tail's valid records into a new file of the same name.

    For after a failed sync: what the page cache shows may not be on the device, and syncing it
    again would not put it there (the pages count as clean).
    """
    disk, chunk = location.disk, tail.chunk
    path = location.path(chunk.number)
    # Other processes may have the old file open. This sends them to the new one, and comes first:
    # if we die in between, the next recovery finds it, cuts it and rewrites the chunk again.
    try:
        write_fully(disk, tail.file.fd, encode(chunk.salt, MOVED, tail.last_id + 1, 0.0, 0, b""))
        pieces = _pieces(disk, tail.file.fd, 0, tail.end)
        file = write_atomic(disk, path, pieces, location.tempdir, os.O_RDWR | os.O_APPEND)
    except OSError:
        disk.truncate(tail.file.fd, tail.end)
        raise
    tail.file.close()
    return RecoveredTail(file, chunk, tail.end, tail.last_id, tail.sealed)


def _pieces(disk: Disk, fd: int, start: int, end: int) -> Iterator[bytes]:
    while start < end:
        piece = disk.read(fd, min(_COPY, end - start), start)
        if not piece:
            return
        yield piece
        start += len(piece)
