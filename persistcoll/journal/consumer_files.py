"""The files of a log's consumers: names of any text, and what their cursors say.

The name of a file is derived from the consumer's name, and the cursor in it holds the name itself. So a name
may be any text, and no name is a path.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from typing import TYPE_CHECKING

from persistcoll.disk.calls import Disk, OpenFile, storage_error
from persistcoll.errors import CorruptionError
from persistcoll.journal.cursors import LARGEST_NAME, CursorReader
from persistcoll.journal.holder_lock import is_poisoned, note_poisoned
from persistcoll.journal.producer_lock import ProducerLock
from persistcoll.journal.recovery import JournalLocation

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ConsumerFiles", "encoded_name"]

_CURSOR = re.compile(r"consumer-([0-9a-f]{32})\.cursor")
_log = logging.getLogger("persistcoll")


def encoded_name(name: str) -> bytes:
    """Return the name as it is stored. Every text has bytes of its own, a lone surrogate included.

    :raise ValueError: the name is longer than a reader of the cursor accepts.
    """
    encoded = name.encode("utf-8", "surrogatepass")
    if len(encoded) > LARGEST_NAME:
        raise ValueError(f"a consumer's name has {LARGEST_NAME} bytes at most, this one has {len(encoded)}")
    return encoded


class ConsumerFiles:
    """The cursors of all consumers, as files. It keeps the positions that it has read.

    Not thread-safe: the store's ``_appending`` lock protects every field, and the store holds it around every
    call.

    A kept position is a lower bound, because a commit only moves forward. A process that rewinds a cursor or
    makes one counts a change first, in the file of the producer lock. Then every process forgets its kept
    positions, so that no trim relies on a position that was taken back.

    :param lock: the producer lock; ``None`` if nothing is trimmed or made.
    """

    def __init__(self, location: JournalLocation, lock: ProducerLock | None) -> None:
        self._location = location
        self._lock = lock
        self._disk: Disk = location.disk
        self._changes = -1
        self._positions: dict[str, int] = {}  # by the path of the cursor; synced

    def path(self, name: bytes) -> str:
        """Return the path of a consumer's cursor; that of its lock ends in ``.lock``."""
        digest = hashlib.sha256(name).hexdigest()[:32]
        return os.path.join(self._location.directory, f"consumer-{digest}.cursor")

    @staticmethod
    def lock_path(path: str) -> str:
        """Return the path of the lock of the consumer with this cursor."""
        return path.removesuffix(".cursor") + ".lock"

    def paths(self) -> list[str]:
        """Return the paths of all cursors."""
        directory = self._location.directory
        return [os.path.join(directory, name) for name in os.listdir(directory) if _CURSOR.fullmatch(name)]

    def read(self, path: str, sync: bool = False) -> tuple[bytes | None, int]:
        """Return the name and the position of a cursor; 0 if it is damaged, so that it needs everything.

        :param sync: make the position durable before it is returned.
        :raise FileNotFoundError: there is no such cursor.
        """
        reader = CursorReader(self._disk, path, self._location.store_id)
        try:
            if not reader.refresh():
                raise FileNotFoundError(path)
            if sync:
                self._sync(reader, path)
            return reader.name, reader.acknowledged.last
        except CorruptionError as error:
            _log.warning("%s; its consumer begins at the start again", error)
            return reader.name, 0
        except FileNotFoundError:
            raise
        except OSError as error:
            raise storage_error(error, "reading", path) from error
        finally:
            reader.close()

    def states(self) -> Iterator[tuple[str, int]]:
        """Yield the name and the position of every consumer whose name can be read."""
        for path in self.paths():
            try:
                name, position = self.read(path)
            except FileNotFoundError:  # another process has forgotten it
                continue
            if name is not None:
                yield name.decode("utf-8", "surrogatepass"), position

    def count_change(self) -> None:
        """Note for every process that a cursor is about to be made, rewound or removed."""
        assert self._lock is not None
        self._lock.count_change()

    # Trimming. The caller holds the producer lock.

    def lowest_position(self, enough: int) -> int:
        """Return the lowest position of all cursors, or ``enough`` if none is lower; what it says is durable.

        Cost: 1 read, and after a change a listing of the directory. A cursor is read and synced if its last
        known position is below ``enough`` and below every position that was read before it.
        """
        assert self._lock is not None
        changes = self._lock.read_changes()
        if changes != self._changes:
            self._positions = dict.fromkeys(self.paths(), 0)
            self._changes = changes
        lowest = enough
        for bound, path in sorted((bound, path) for path, bound in self._positions.items() if bound < enough):
            if bound >= lowest:
                break
            try:
                position = self.read(path, sync=True)[1]
            except FileNotFoundError:  # a user has removed it
                del self._positions[path]
                continue
            if self._is_poisoned(path):  # what was read may not be on the device
                position = bound
            self._positions[path] = position
            lowest = min(lowest, position)
        return lowest

    def _sync(self, reader: CursorReader, path: str) -> None:
        try:
            reader.sync()
        except OSError:
            # The next sync would succeed, because the kernel reports the error once.
            with OpenFile(self._disk, self.lock_path(path), os.O_RDWR) as file:
                note_poisoned(self._disk, file.fd)
            raise

    def _is_poisoned(self, path: str) -> bool:
        try:
            with OpenFile(self._disk, self.lock_path(path), os.O_RDONLY) as file:
                return is_poisoned(self._disk, file.fd)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise storage_error(error, "reading", path) from error
