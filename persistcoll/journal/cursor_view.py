"""What other processes can read of the consuming process: its cursor and the consumer lock's file."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from persistcoll.disk.calls import storage_error
from persistcoll.errors import CorruptionError, LockedError
from persistcoll.journal.chunks import chunk_numbers, open_chunk
from persistcoll.journal.consumer_lock import ConsumerLock, ConsumerState
from persistcoll.journal.cursors import Acknowledged, CursorReader, CursorWriter, Position
from persistcoll.journal.recovery import JournalLocation, MissingTail, RecoveredTail

if TYPE_CHECKING:
    from threading import RLock  # a function at run time before Python 3.13

__all__ = ["CursorView", "first_position"]

_TRIES = 100  # a consumer that changes the state all the time must not block snapshot() forever
_log = logging.getLogger("persistcoll")


def first_position(location: JournalLocation) -> tuple[int, Position]:
    """Return the id before the journal's first record, and the position of that record.

    A chunk that is passed over held ``chunksize`` records, as far as is known. They count as missing.

    :raise CorruptionError: the header of the first chunk is damaged, so that the answer is unknown, and the
        policy is not "skip".
    """
    missing = 0
    for number in chunk_numbers(location.directory):
        try:
            file, chunk = open_chunk(location.disk, location.directory, number, location.store_id)
        except CorruptionError:
            if number == 0:
                break
            if location.on_corruption != "skip":
                raise
            _log.warning("the header of %r is damaged; the chunk was passed over", location.path(number))
            missing += location.chunksize
            continue
        file.close()
        return max(0, chunk.first_id - 1 - missing), (number, chunk.data_offset)
    return 0, (0, 0)


def _without_records(location: JournalLocation) -> Iterator[tuple[int, int]]:
    """Yield the runs of ids between the chunks, which have no record because they are acked."""
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

    ``mutex`` protects ``_cursor``, ``_unsure`` and ``_judged``. The properties read one attribute without it,
    because a value that is out of date does no harm there.

    :param mutex: the same lock as that of ``lock``.
    """

    def __init__(self, location: JournalLocation, cursor_path: str, lock: ConsumerLock, mutex: RLock) -> None:
        self._location = location
        self._path = cursor_path
        self._lock = lock
        self._mutex = mutex
        self._unsure = False  # True while _refresh() runs, and after an interrupt of it
        # What _judge() saw last: the set of acked ids, and how many entries were damaged.
        self._judged: tuple[Acknowledged, int] | None = None
        self._cursor = self._new_cursor()

    @property
    def cursor_exists(self) -> bool:
        """Whether there was a cursor at the last refresh."""
        return self._cursor.exists

    def acknowledged(self) -> Acknowledged:
        """Refresh the cursor and return the set of acked ids.

        The caller must not change the set. The next call may change it.
        """
        with self._mutex:
            self._refresh()
            return self._cursor.acknowledged

    @property
    def known(self) -> Acknowledged:
        """The set of acked ids as of the last refresh."""
        return self._cursor.acknowledged

    def snapshot(self) -> tuple[Acknowledged, ConsumerState]:
        """Return a consistent pair: the acked ids, and the state that a living consumer has published.

        After 100 tries the pair may be inconsistent, because the consumer changes the state all the time.
        """
        published = self._lock.published()
        for _ in range(_TRIES):
            acknowledged = self.acknowledged()
            again = self._lock.published()
            if again == published:
                break
            published = again
        return acknowledged, published

    def not_ready(self) -> int:
        """Return how many records are not ready, because they are acked or a living consumer claims them."""
        return max(self.acknowledged().count, self._lock.published().not_ready)

    def change_token(self) -> object:
        """Return an object that differs from an earlier one if the consumer has changed something since."""
        return self._lock.raw_state(), self.acknowledged().count

    def hand_over_cursor(self) -> tuple[CursorReader, bool]:
        """Return a reader that has read the whole cursor, for the process that becomes the consumer.

        The caller closes the reader.

        :return: the reader, and whether the file is valid to its end, so that the consumer can append to it.
        """
        with self._mutex:
            self._cursor.close()
            self._cursor = self._new_cursor()
            can_append = self._refresh() and self._cursor.can_be_written_on()
            acknowledged = self._cursor.acknowledged
            if not can_append and not os.path.exists(self._location.path(acknowledged.position[0])):
                # The last position is damaged, and the one before it names a chunk that was removed.
                last, position = first_position(self._location)
                acknowledged.advance_to(last, position)
            cursor_reader, self._cursor = self._cursor, self._new_cursor()
            return cursor_reader, can_append

    def _new_cursor(self) -> CursorReader:
        return CursorReader(self._location.disk, self._path, self._location.store_id)

    def highest_used_id(self, tail: RecoveredTail | MissingTail, same_boot: bool) -> int:
        """Return the highest acked id.

        New ids are higher, even if a power cut destroyed the acked records: at ``"process"`` an ack may reach
        the device before the record does.
        """
        return self.acknowledged().highest

    def create_cursor(self) -> None:
        """Write the first cursor durably. The caller holds the producer lock."""
        self._write_cursor(())

    def retire_ids(self, first: int, last: int) -> None:
        """Record the ids ``first`` to ``last``, which no record will have, as acked, durably.

        The tail calls it after a power cut. The caller holds the producer lock.
        """
        self._write_cursor(((first, last),))

    def _write_cursor(self, acked: Sequence[tuple[int, int]]) -> None:
        """Write a new cursor, with these runs of ids acked, too.

        There is no consumer when it is called. If a process consumes nevertheless, nothing happens.
        """
        if self._lock.held:
            return
        try:
            self._lock.acquire()
            cursor_reader, _ = self.hand_over_cursor()
            for first, last in acked:
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
        """Read the new entries, and tell whether the cursor exists and states its position."""
        cursor = self._cursor
        if self._unsure:
            cursor.close()  # an interrupt may have lost entries, so read all of them again
        self._unsure = True
        try:
            cursor.refresh()
            if cursor.acknowledged.position[1]:
                self._judge(cursor)
                self._unsure = False
                return True
            # There is no cursor, or its position is damaged: continue at the beginning of the journal.
            reason = f"the cursor of {self._location.directory!r} is damaged" if cursor.exists else ""
        except CorruptionError as error:
            reason = str(error)
        except OSError as error:
            raise storage_error(error, "reading the cursor of", self._location.directory) from error
        if reason:
            # This costs redeliveries and loses no items. The next consumer writes a new cursor.
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
        """Add the ids of emptied chunks if the cursor is damaged, because it may have lost them."""
        acknowledged, damaged = cursor.acknowledged, cursor.damaged
        judged = self._judged
        if judged is not None and judged[0] is acknowledged and judged[1] == damaged:
            return
        if not cursor.can_be_written_on():
            for first, last in _without_records(self._location):
                acknowledged.add_range(first, last)
        self._judged = acknowledged, damaged

    def close(self) -> None:
        """Close the cursor's file."""
        self._cursor.close()
