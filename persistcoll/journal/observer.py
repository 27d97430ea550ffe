"""What a process that does not consume knows of the one that does: its cursor, and its lock's file."""

from __future__ import annotations

import logging
import threading

from persistcoll.errors import CorruptionError
from persistcoll.journal.consumer_lock import ConsumerLock
from persistcoll.journal.cursors import Acknowledged, CursorReader, Position
from persistcoll.journal.recovery import Place
from persistcoll.journal.segments import chunk_numbers, open_chunk

__all__ = ["Observer", "beginning"]

_log = logging.getLogger("persistcoll")


def beginning(place: Place) -> tuple[int, Position]:
    """Where the journal begins: the id before its first record, and the place of that record."""
    for number in chunk_numbers(place.directory):
        try:
            fd, chunk = open_chunk(place.disk, place.directory, number, place.store_id)
        except CorruptionError:
            continue
        place.disk.close(fd)
        return chunk.first_id - 1, (number, chunk.data_offset)
    return 0, (0, 0)


class Observer:
    """Follows the cursor that the consuming process writes. Thread-safe."""

    def __init__(self, place: Place, cursor_path: str, lock: ConsumerLock) -> None:
        self._place = place
        self._lock = lock
        self._mutex = threading.Lock()
        self._cursor = CursorReader(place.disk, cursor_path, place.store_id)

    @property
    def acknowledged_at_least(self) -> int:
        """A count that may be out of date, and then is too small."""
        return self._cursor.acknowledged.count

    def acknowledged(self) -> Acknowledged:
        """What has been acknowledged by now. Not to be changed; the next call may change it."""
        with self._mutex:
            self._refresh()
            return self._cursor.acknowledged

    def gone(self) -> int:
        """How many records are not ready: acknowledged, or in a living consumer's hands."""
        return max(self.acknowledged().count, self._lock.published())

    def version(self) -> object:
        """Differs from an earlier one when the consumer has done something since."""
        return self._lock.content(), self.acknowledged().count

    def hand_over(self) -> tuple[CursorReader, bool]:
        """The cursor, read to its end, for the process that becomes the consumer.

        :return: it, and whether it is whole, so that it can be written on.
        """
        with self._mutex:
            whole = self._refresh()
            return self._cursor, whole and self._cursor.exists and not self._cursor.damaged

    def _refresh(self) -> bool:
        cursor = self._cursor
        try:
            cursor.refresh()
            if not cursor.exists and not cursor.acknowledged.count:
                cursor.acknowledged = Acknowledged(*beginning(self._place))
        except CorruptionError as error:
            # Costs redelivery, never items: the next consumer writes a new one.
            _log.warning("%s; what it acknowledged in the chunks that are left is delivered again", error)
            cursor.acknowledged = Acknowledged(*beginning(self._place))
            return False
        return True

    def close(self) -> None:
        self._cursor.close()
