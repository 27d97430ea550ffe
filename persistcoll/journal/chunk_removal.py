"""Removal of consumed chunks, which is how a file queue frees its space.

The consumer removes a chunk when all of its records are acked and the cursor that says so is on the device.
While an earlier chunk is still needed, the consumer empties the chunk instead (see
:mod:`~persistcoll.journal.chunks`).
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os

from persistcoll.disk.atomic import remove_temp_file
from persistcoll.errors import CorruptionError, StorageError
from persistcoll.journal.chunks import Chunk, chunk_numbers, empty_chunk, open_chunk
from persistcoll.journal.cursor import Cursor
from persistcoll.journal.recovery import JournalLocation

__all__ = ["ConsumedChunks"]

_log = logging.getLogger("persistcoll")


class ConsumedChunks:
    """The chunks that one cursor has passed.

    Not thread-safe: the store that owns it holds its ``_consuming`` lock around every call, and that lock
    protects every field.

    :ivar unfinished: the chunks that were read to their end and still hold a record that is not acked. The
        key is the last id that is not acked. The value is the chunk and the chunk after it.
    :ivar first_chunk: the number of the first chunk that may exist; -1, which no chunk has, after a chunk was
        found that :meth:`remove` must empty. So one comparison with the chunk of the cursor's position tells
        whether :meth:`remove` has anything to do.
    """

    def __init__(self, location: JournalLocation, cursor: Cursor) -> None:
        self._location = location
        self._disk = location.disk
        self._cursor = cursor
        self.first_chunk = cursor.acknowledged.position[0]
        self.unfinished: dict[int, tuple[Chunk, Chunk]] = {}
        # Chunks whose records are all acked, each with the chunk after it: to be emptied or removed.
        self._finished: list[tuple[Chunk, Chunk]] = []

    def begin(self) -> None:
        """Forget which chunks were read, because the reader reads them again."""
        self.unfinished.clear()
        self._finished.clear()

    def chunk_read(self, chunk: Chunk, following: Chunk) -> None:
        """Find out whether all records of a chunk that was read to its end are acked.

        If not, the chunk waits in :attr:`unfinished` under its last id that is not acked, and the ack of
        that id calls this method again. So most acks do not call it.
        """
        acknowledged = self._cursor.acknowledged
        last = following.previous_id
        missing = acknowledged.missing_up_to(last)
        if missing >= chunk.first_id:
            self.unfinished[missing] = chunk, following
            return
        acknowledged.note_position(last, (following.number, following.data_offset))
        if chunk.first_id <= last:  # otherwise the chunk is already an emptied one
            self._finished.append((chunk, following))
            self.first_chunk = -1

    def skip(self, number: int, until: int) -> None:
        """Treat the chunks from ``number`` to the one before ``until`` as read, which no reader reads."""
        chunks: list[Chunk] = []
        for each in range(number, until + 1):
            with contextlib.suppress(FileNotFoundError, CorruptionError):
                file, chunk = open_chunk(self._disk, self._location.directory, each, self._location.store_id)
                file.close()
                chunks.append(chunk)
        for chunk, following in itertools.pairwise(chunks):
            if following.number == chunk.number + 1:
                self.chunk_read(chunk, following)

    def acknowledged(self, first: int, last: int) -> None:
        """Note that the ids ``first`` to ``last`` were acked."""
        unfinished = self.unfinished
        if first != last:
            for id in [id for id in unfinished if first <= id <= last]:
                self.chunk_read(*unfinished.pop(id))
        elif first in unfinished:
            self.chunk_read(*unfinished.pop(first))

    def remove(self) -> None:
        """Make the cursor durable, then remove or empty the chunks whose records are all acked."""
        cursor = self._cursor
        try:
            cursor.compact_and_switch()
        except OSError as error:
            if error.errno is None and not isinstance(error, StorageError):
                raise  # a signal handler raised it
            if cursor.is_poisoned:
                return
            _log.debug("compacting the cursor: %s", error)
            # The disk may have no room for a new cursor file. The old file then states the position, and
            # removing chunks makes room.
            try:
                cursor.state_and_sync()
            except OSError as second:
                if second.errno is None and not isinstance(second, StorageError):
                    raise
                return  # the chunks stay until there is room
        self._unlink_consumed()
        self._empty_finished()

    def remove_if_read_on(self) -> None:
        """Call :meth:`remove` if the reader has moved the position since the cursor stated it."""
        if self._cursor.acknowledged.position[0] != self._cursor.stated_chunk:
            self.remove()

    def _unlink_consumed(self) -> None:
        # Only the chunks before the position that the cursor states durably: the reader may have moved the
        # position in memory since, and after a power cut the cursor would name a chunk that is missing.
        chunk = self._cursor.stated_chunk
        location = self._location
        with contextlib.suppress(OSError):
            location.check()
            for number in chunk_numbers(location.directory):
                if number < chunk:
                    self._disk.unlink(location.path(number))
            self.first_chunk = chunk

    def _empty_finished(self) -> None:
        finished, self._finished = self._finished, []
        for chunk, following in finished:
            if chunk.number < self._cursor.acknowledged.position[0]:
                continue  # removed already
            try:
                self._location.check()
                self._empty(chunk, following.previous_id + 1)
            except OSError as error:
                if error.errno is None and not isinstance(error, StorageError):
                    raise  # a signal handler raised it
                _log.debug("emptying a chunk: %s", error)
                self._finished.append((chunk, following))  # tried again with the next finished chunk

    def _empty(self, chunk: Chunk, next_id: int) -> None:
        location = self._location
        try:
            empty_chunk(self._disk, location.directory, chunk, next_id, location.tempdir)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            # EFBIG is not in the list, because removing a file does not lift a limit of the file size.
            # Removing the chunk makes room for the emptied one. Between the two steps only the cursor says
            # which ids the chunk held.
            self._disk.unlink(location.path(chunk.number))
            empty_chunk(self._disk, location.directory, chunk, next_id, location.tempdir)

    def sweep(self, last_chunk: int) -> None:
        """Remove the files that a consumer left when it died.

        :param last_chunk: the number of the journal's last chunk. The temporary files of that chunk belong to
            the producers and stay.
        """
        location = self._location
        self.remove_if_read_on()  # first, because no chunk may be removed before the cursor states it
        self._unlink_consumed()
        for number in chunk_numbers(location.directory):
            if number < last_chunk:
                name = os.path.basename(location.path(number))
                remove_temp_file(self._disk, location.directory, location.tempdir, name)
        kept = set(chunk_numbers(location.directory))
        for name in os.listdir(location.directory):
            chunk, _, rest = name.partition(".")
            if rest.startswith("torn-") and chunk[1:].isdigit() and int(chunk[1:]) not in kept:
                with contextlib.suppress(OSError):
                    self._disk.unlink(os.path.join(location.directory, name))
