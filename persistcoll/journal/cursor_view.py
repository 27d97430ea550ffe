"""What a process that does not consume knows of the one that does: its cursor, and its lock's file."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from persistcoll.disk.calls import storage_error
from persistcoll.errors import CorruptionError, LockedError
from persistcoll.journal.chunks import chunk_numbers, open_chunk
from persistcoll.journal.consumer_lock import ConsumerLock, ConsumerState
from persistcoll.journal.cursors import Acknowledged, CursorReader, CursorWriter, Position
from persistcoll.journal.recovery import JournalLocation

if TYPE_CHECKING:
    from threading import RLock  # a function at run time before Python 3.13

__all__ = ["CursorView", "first_position"]

_TRIES = 100  # a consumer that never rests must not keep others from looking
_log = logging.getLogger("persistcoll")


def first_position(location: JournalLocation) -> tuple[int, Position]:
    """Where the journal begins: the id before its first record, and the place of that record.

    :raise CorruptionError: the first chunk's header is damaged, so that nobody can tell, and the
        policy is not to skip.
    """
    for number in chunk_numbers(location.directory):
        try:
            file, chunk = open_chunk(location.disk, location.directory, number, location.store_id)
        except CorruptionError:
            if number == 0:
                break
            if location.on_corruption != "skip":
                raise
            _log.warning("the header of %r is damaged; the chunk was passed over", location.path(number))
            continue
        file.close()
        return chunk.first_id - 1, (number, chunk.data_offset)
    return 0, (0, 0)


def _without_records(location: JournalLocation) -> Iterator[tuple[int, int]]:
    """The ids that the headers of the chunks pass over, because they are acknowledged."""
    for number in chunk_numbers(location.directory):
        try:
            file, chunk = open_chunk(location.disk, location.directory, number, location.store_id)
        except (FileNotFoundError, CorruptionError):
            continue
        file.close()
        if chunk.previous_id + 1 < chunk.first_id:
            yield chunk.previous_id + 1, chunk.first_id - 1


class CursorView:
    """Follows the cursor that the consuming process writes. Thread-safe.

    :param mutex: the one of ``lock``.
    """

    def __init__(self, location: JournalLocation, cursor_path: str, lock: ConsumerLock, mutex: RLock) -> None:
        self._location = location
        self._path = cursor_path
        self._lock = lock
        self._mutex = mutex
        self._unsure = False  # interrupted while it read on
        self._judged: tuple[Acknowledged, int] | None = None  # that set, and how many entries were damaged
        self._cursor = self._new_cursor()

    @property
    def cursor_exists(self) -> bool:
        """Whether there is a cursor, as of the last look."""
        return self._cursor.exists

    @property
    def acknowledged_at_least(self) -> int:
        """A count that may be out of date, and then is too small."""
        return self._cursor.acknowledged.count

    def acknowledged(self) -> Acknowledged:
        """What has been acknowledged by now. Not to be changed; the next call may change it."""
        with self._mutex:
            self._refresh()
            return self._cursor.acknowledged

    @property
    def known(self) -> Acknowledged:
        """The same as of the last look."""
        return self._cursor.acknowledged

    def snapshot(self) -> tuple[Acknowledged, ConsumerState]:
        """What is acknowledged and what a living consumer holds, of one moment."""
        published = self._lock.published()
        for _ in range(_TRIES):
            acknowledged = self.acknowledged()
            again = self._lock.published()
            if again == published:
                break
            published = again
        return acknowledged, published

    def not_ready(self) -> int:
        """How many records are not ready: acknowledged, or in a living consumer's hands."""
        return max(self.acknowledged().count, self._lock.published().not_ready)

    def change_token(self) -> object:
        """Differs from an earlier one when the consumer has done something since."""
        return self._lock.raw_state(), self.acknowledged().count

    def hand_over_cursor(self) -> tuple[CursorReader, bool]:
        """The cursor, read anew and to its end, for the process that becomes the consumer, and closes it.

        :return: it, and whether it is whole, so that it can be written on.
        """
        with self._mutex:
            self._cursor.close()
            self._cursor = self._new_cursor()
            can_append = self._refresh() and self._cursor.can_be_written_on()
            acknowledged = self._cursor.acknowledged
            if not can_append and not os.path.exists(self._location.path(acknowledged.position[0])):
                # The last position is damaged, and an earlier one leads to a chunk that was consumed.
                last, position = first_position(self._location)
                acknowledged.advance_to(last, position)
            cursor_reader, self._cursor = self._cursor, self._new_cursor()
            return cursor_reader, can_append

    def _new_cursor(self) -> CursorReader:
        return CursorReader(self._location.disk, self._path, self._location.store_id)

    def retire_ids(self, first: int, last: int) -> None:
        """Count ids as acknowledged that will never be given (again). The producer lock is held.

        Only after a power cut, or where there is no cursor yet: there is no consumer then.
        """
        if self._lock.held:
            return
        try:
            self._lock.acquire()
            cursor_reader, _ = self.hand_over_cursor()
            if first <= last:
                cursor_reader.acknowledged.add_range(first, last)
            location = self._location
            cursor = CursorWriter(
                location.disk, self._path, location.store_id, cursor_reader.acknowledged, location.tempdir
            )
            cursor.compact()
            if cursor.file is not None:
                cursor.file.close()
            cursor_reader.close()
        except LockedError:
            return
        finally:
            self._lock.held = False
            self._lock.unlock()

    def _refresh(self) -> bool:
        """Read on; whether the cursor is there and has said where it stands."""
        cursor = self._cursor
        if self._unsure:
            cursor.close()  # read all of it again
        self._unsure = True
        try:
            cursor.refresh()
            if cursor.acknowledged.position[1]:
                self._judge(cursor)
                self._unsure = False
                return True
            # There is none, or its position is damaged: begin at the beginning.
            reason = f"the cursor of {self._location.directory!r} is damaged" if cursor.exists else ""
        except CorruptionError as error:
            reason = str(error)
        except OSError as error:
            raise storage_error(error, "reading the cursor of", self._location.directory) from error
        if reason:
            # Costs redelivery, never items: the next consumer writes a new one.
            _log.warning("%s; what it acknowledged in the chunks that are left is delivered again", reason)
        acknowledged = Acknowledged(*first_position(self._location))
        for first, last in cursor.acknowledged.ranges.items():
            acknowledged.add_range(first, last)
        for first, last in _without_records(self._location):
            acknowledged.add_range(first, last)
        cursor.acknowledged = acknowledged
        self._unsure = False
        return False

    def _judge(self, cursor: CursorReader) -> None:
        """A cursor that is not whole may have lost what made a chunk an emptied one."""
        acknowledged, damaged = cursor.acknowledged, cursor.damaged
        judged = self._judged
        if judged is not None and judged[0] is acknowledged and judged[1] == damaged:
            return
        if not cursor.can_be_written_on():
            for first, last in _without_records(self._location):
                acknowledged.add_range(first, last)
        self._judged = acknowledged, damaged

    def close(self) -> None:
        self._cursor.close()
