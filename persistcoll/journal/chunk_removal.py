"""Removing chunks when they are consumed, which is how a queue frees its space.

A chunk is removed when all of it is acknowledged and the cursor that says so is on the device. While an
earlier chunk is still needed, it is emptied instead (see :mod:`~persistcoll.journal.chunks`).
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
    """The chunks that one cursor has passed. Its owner holds a lock around every call.

    :ivar unfinished: the chunks that were read to their end and are not acknowledged as a whole, each with
        the next one, by the last id that is not acknowledged.
    :ivar first_chunk: another one than the cursor's: there are chunks to remove.
    """

    def __init__(self, location: JournalLocation, cursor: Cursor) -> None:
        self._location = location
        self._disk = location.disk
        self._cursor = cursor
        self.first_chunk = cursor.acknowledged.position[0]
        self.unfinished: dict[int, tuple[Chunk, Chunk]] = {}
        self._finished: list[tuple[Chunk, Chunk]] = []  # acknowledged as a whole, each with the next one

    def begin(self) -> None:
        """Forget what was read: it is read again."""
        self.unfinished.clear()
        self._finished.clear()

    def chunk_read(self, chunk: Chunk, following: Chunk) -> None:
        """Notice when the chunk, which was read to its end, is acknowledged as a whole.

        At most once for each of its ids that is acknowledged, and for most of them not at all.
        """
        acknowledged = self._cursor.acknowledged
        last = following.previous_id
        missing = acknowledged.missing_up_to(last)
        if missing >= chunk.first_id:
            self.unfinished[missing] = chunk, following
            return
        acknowledged.note_position(last, (following.number, following.data_offset))
        if chunk.first_id <= last:  # otherwise it is emptied already
            self._finished.append((chunk, following))
            self.first_chunk = -1

    def skip(self, number: int, until: int) -> None:
        """The chunks from ``number`` to the one before ``until`` will not be read."""
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
        """The ids ``first`` to ``last`` were acknowledged."""
        unfinished = self.unfinished
        if first != last:
            for id in [id for id in unfinished if first <= id <= last]:
                self.chunk_read(*unfinished.pop(id))
        elif first in unfinished:
            self.chunk_read(*unfinished.pop(first))

    def remove(self) -> None:
        """Remove or empty the chunks that are acknowledged as a whole, once the durable cursor says so."""
        cursor = self._cursor
        try:
            cursor.compact_and_switch()
        except OSError as error:
            if error.errno is None and not isinstance(error, StorageError):
                raise  # a signal handler's
            if cursor.is_poisoned:
                return
            _log.debug("compacting the cursor: %s", error)
            # No room for a new file, perhaps: then the old one has to say it, and removing makes room.
            try:
                cursor.state_and_sync()
            except OSError as second:
                if second.errno is None and not isinstance(second, StorageError):
                    raise
                return  # the chunks stay until there is room
        self._unlink_consumed()
        self._empty_finished()

    def remove_if_read_on(self) -> None:
        """The same where reading on has moved the position, after the last acknowledgement."""
        if self._cursor.acknowledged.position[0] != self._cursor.stated_chunk:
            self.remove()

    def _unlink_consumed(self) -> None:
        # Not what is known here: reading on may have moved the position since the cursor said where it was.
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
                continue  # removed
            try:
                self._location.check()
                self._empty(chunk, following.previous_id + 1)
            except OSError as error:
                if error.errno is None and not isinstance(error, StorageError):
                    raise  # a signal handler's
                _log.debug("emptying a chunk: %s", error)
                self._finished.append((chunk, following))  # again when the next one is finished

    def _empty(self, chunk: Chunk, next_id: int) -> None:
        location = self._location
        try:
            empty_chunk(self._disk, location.directory, chunk, next_id, location.tempdir)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            # Not for a limit of the file size, which removing a file does not lift. Removing the chunk makes
            # room for what stands for it. In between, the cursor alone says what it held.
            self._disk.unlink(location.path(chunk.number))
            empty_chunk(self._disk, location.directory, chunk, next_id, location.tempdir)

    def sweep(self, last_chunk: int) -> None:
        """After a consumer that died: remove what it would have removed.

        :param last_chunk: the journal's, whose temporary files are the producers'.
        """
        location = self._location
        self.remove_if_read_on()  # the cursor says so first
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
