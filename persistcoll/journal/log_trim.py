"""Trimming: which records of a log are removed, and when.

The cursor ``trimmed`` says up to which id every record is trimmed. It is written before a chunk is removed,
so that a chunk which is missing before its position is no damage.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import time

from persistcoll.disk.calls import storage_error
from persistcoll.engine.records import Retain
from persistcoll.errors import CorruptionError, StoreReplacedError
from persistcoll.journal.chunks import LastChunk
from persistcoll.journal.consumer_files import ConsumerFiles
from persistcoll.journal.cursors import Acknowledged, CursorReader, CursorWriter, Position
from persistcoll.journal.directory import TRIMMED
from persistcoll.journal.places import Places
from persistcoll.journal.recovery import JournalLocation

__all__ = ["LogTrim"]

_CHUNK_FILE = re.compile(r"q(\d{5,})(?:\.index|\.torn-\d+)?")
_log = logging.getLogger("persistcoll")
_now = time.time


class LogTrim:
    """What has been trimmed, and how more is.

    The store's ``_appending`` lock protects every field, and the store holds it around every call. A thread
    may read an attribute without it, because a value that is out of date does no harm there.

    :ivar trimmed: every record up to this id is trimmed; it is the id of the last one that was.
    :ivar position: a position at or before the first record that is left.
    """

    def __init__(self, location: JournalLocation, places: Places, consumers: ConsumerFiles) -> None:
        self._location = location
        self._places = places
        self._consumers = consumers
        self._path = os.path.join(location.directory, TRIMMED)
        self._reader = CursorReader(location.disk, self._path, location.store_id)
        self.trimmed = 0
        self.position: Position = (0, 0)

    @property
    def exists(self) -> bool:
        """Whether the last refresh has found the cursor."""
        return self._reader.exists

    @property
    def lowest(self) -> int:
        """The number of the first chunk."""
        return self.position[0]

    def refresh(self, last: LastChunk) -> None:
        """Read what other processes have trimmed.

        Cost: 2 system calls if nothing was.
        """
        reader = self._reader
        reason = f"{self._path!r} is missing"
        try:
            reader.refresh()
            if reader.exists and reader.acknowledged.position[1]:
                self.trimmed, self.position = reader.acknowledged.last, reader.acknowledged.position
                return
        except CorruptionError as error:
            reason = str(error)
        except OSError as error:
            raise storage_error(error, "reading", self._path) from error
        first = self._places.first_chunk(last)
        if first.number:
            _log.warning("%s; every record that is still in a chunk counts as not trimmed", reason)
        self.trimmed, self.position = first.previous_id, (first.number, first.data_offset)

    def begin(self, last: LastChunk) -> None:
        """Write the cursor if there is none, and remove the chunks that a process left which died.

        The producer lock is held.
        """
        self.refresh(last)
        if not self.exists:
            self._write(self.trimmed, self.position)
        if self.lowest and os.path.exists(self._location.path(self.lowest - 1)):
            self._remove_chunks()

    def trim(self, before: int, force: bool, last: LastChunk) -> int:
        """Trim the records below the id ``before`` that no cursor needs, and return how many these were.

        The producer lock is held.

        :param force: trim also what cursors need.
        """
        self.refresh(last)
        lowest, places = self.lowest, self._places
        before = min(before, last.last_id + 1)
        if before - 1 > self.trimmed and not force:
            before = self._consumers.lowest_position(before - 1) + 1
        if before - 1 <= self.trimmed:
            return 0
        trimmed = places.last_record(before, lowest, last)
        if trimmed <= self.trimmed:
            return 0
        removed = places.ordinal_of(trimmed + 1, lowest, last)
        removed -= places.ordinal_of(self.trimmed + 1, lowest, last)
        position = places.place_of(trimmed + 1, lowest, last)
        self._write(trimmed, position)
        if position[0] > lowest:
            self._remove_chunks()
        return removed

    def retain(self, retain: Retain, last: LastChunk) -> int:
        """Trim the chunks of which every record is beyond one of the limits. The producer lock is held."""
        self.refresh(last)
        number = self.lowest
        first_by_size = self._first_by_size(retain.bytes, number, last)
        oldest = _now() - retain.age if retain.age is not None else None
        first = self._places.header(number, last)
        while number < last.chunk.number:
            following = self._places.header(number + 1, last)
            if following is None:
                break
            if not (
                following.number <= first_by_size
                or (oldest is not None and following.latest < oldest)
                or (retain.records is not None and last.ordinal - following.ordinal >= retain.records)
            ):
                break
            number, first = following.number, following
        if first is None or number == self.lowest:
            return 0
        return self.trim(first.first_id, False, last)

    def _first_by_size(self, limit: int | None, lowest: int, last: LastChunk) -> int:
        """Return the number of the first chunk that the limit of bytes keeps."""
        if limit is None:
            return lowest
        number, size = last.chunk.number + 1, 0
        while number > lowest and (size < limit or number > last.chunk.number):
            number -= 1
            with contextlib.suppress(FileNotFoundError):
                size += os.stat(self._location.path(number)).st_size
        return number

    def _write(self, trimmed: int, position: Position) -> None:
        location = self._location
        location.check()
        acknowledged = Acknowledged(trimmed, position)
        writer = CursorWriter(
            location.disk, self._path, location.store_id, acknowledged, location.tempdir, reserved=0
        )
        try:
            try:
                writer.compact()
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not self.exists:
                    raise
                # A full disk must not prevent a trim, which makes room. The old file's block has room for an
                # entry more.
                try:
                    writer.resume(self._reader)
                except StoreReplacedError:  # the failed compact() replaced the file
                    raise error from None
                writer.write(writer.acknowledged.last + 1, trimmed, position)
                location.disk.sync(writer.fd)
        finally:
            if writer.file is not None:
                writer.file.close()
        self.trimmed, self.position = trimmed, position

    def _remove_chunks(self) -> None:
        """Remove the chunks before the position, and what belongs to them.

        The last of these chunks is removed last, because :meth:`begin` takes it for a sign of others.
        """
        location = self._location
        with contextlib.suppress(OSError):  # the next trim removes them
            found = map(_CHUNK_FILE.fullmatch, os.listdir(location.directory))
            left = [(int(match[1]), match[0]) for match in found if match and int(match[1]) < self.lowest]
            for _, name in sorted(left, key=lambda each: (each[0], "." not in each[1])):
                location.disk.unlink(os.path.join(location.directory, name))

    def close(self) -> None:
        """Close the cursor's file."""
        self._reader.close()
