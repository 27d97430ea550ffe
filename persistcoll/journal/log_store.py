"""The store of a log: every process may append, read and trim, and each cursor is open in one object."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing
from weakref import WeakValueDictionary

from persistcoll.disk.atomic import remove_temp_file
from persistcoll.disk.calls import open_lasting
from persistcoll.engine.contracts import MAX_POLL_INTERVAL, CursorState, LogBounds, LogStore
from persistcoll.engine.forks import in_operation
from persistcoll.engine.process import SAME
from persistcoll.engine.records import Durability, Record, Retain
from persistcoll.errors import CorruptionError, StorageError
from persistcoll.journal.consumer_files import ConsumerFiles, encoded_name
from persistcoll.journal.holder_lock import HolderLock
from persistcoll.journal.log_cursor import JournalLogCursor, LogParts
from persistcoll.journal.log_trim import LogTrim
from persistcoll.journal.open import Opening
from persistcoll.journal.places import Places
from persistcoll.journal.reader import ReadableJournal, Reader
from persistcoll.journal.recovery import MissingTail, RecoveredTail
from persistcoll.journal.store import JournalStore

__all__ = ["JournalLogStore"]

_log = logging.getLogger("persistcoll")


class _IdsAfterPowerCuts:
    """Begins a new chunk after a restart of the machine, above every id that the last one could hold.

    So no id is given twice, although no cursor is read. A cursor may be durable beyond a record that a power
    cut has destroyed, because a reader sees a record before it is synced.
    """

    def __init__(self, chunksize: int) -> None:
        self._most_lost = 2 * chunksize  # in a chunk whose header is lost

    def highest_used_id(self, tail: RecoveredTail | MissingTail, same_boot: bool) -> int:
        if isinstance(tail, MissingTail):
            return tail.last_id + self._most_lost if tail.number else 0
        if tail.highest_issued_id:  # a later chunk is missing
            return tail.highest_issued_id + self._most_lost
        return tail.last_id if same_boot or tail.sealed else tail.chunk.limit_id - 1

    def retire_ids(self, first: int, last: int) -> None:
        """Note nothing, because the next chunk's header says which ids have no record."""


class JournalLogStore(JournalStore, LogStore):
    """A :class:`~persistcoll.engine.contracts.LogStore` in a directory. Thread-safe.

    ``_consuming`` also protects ``_cursors``, and ``_appending`` what has been trimmed and the positions of
    cursors that were read for it.

    The other parameters are those of :class:`~persistcoll.journal.store.JournalStore`.

    :param retain: which records to keep, at least. The others are trimmed when a chunk is finished.
    """

    max_poll_interval = MAX_POLL_INTERVAL
    _may_write = True

    def __init__(
        self,
        opening: Opening,
        *,
        durability: Durability = "power",
        seal: Callable[[bytes, int], bytes] | None = None,
        retain: Retain | None = None,
    ) -> None:
        self._retain = retain
        # By identity; weak, so that a cursor is freed if an interrupt comes before the caller has it.
        self._cursors: WeakValueDictionary[int, JournalLogCursor] = WeakValueDictionary()
        super().__init__(opening, durability=durability, seal=seal)

    def _use(self, opening: Opening) -> None:
        location = opening.location
        self._journal = journal = self._open_journal(opening)
        places = Places(location, self._may_write)
        consumers = ConsumerFiles(location, opening.producer_lock if self._may_write else None)
        trim = LogTrim(location, places, consumers)
        opening.undo.callback(trim.close)
        self._parts = LogParts(location, journal, places, trim, consumers, self._appending, self._power)
        self._poison = journal.poison
        with self._appending:
            last = journal.last_chunk()
            if self._may_write:
                trim.begin(last)
            else:
                trim.refresh(last)
            self._retained = last.chunk.number

    def _open_journal(self, opening: Opening) -> ReadableJournal:
        return self._open_writable(opening, _IdsAfterPowerCuts(opening.chunksize))

    # Entering a call.

    def used_here(self) -> bool:
        return super().used_here() or any(cursor.used_here() for cursor in self._open_cursors())

    def follow_fork(self) -> None:
        """Do what a fork has left undone that Python's fork handlers have not seen."""
        self._follow_fork()

    def parts(self) -> LogParts:
        """Return the parts, which are opened again in a forked child.

        :raise ClosedError: the log is closed.
        """
        self._check_usable()
        return self._parts

    # Appending.

    def append(self, payload: bytes) -> int:
        if self._poison.unusable_because is not None or self._forked or not SAME[0]:
            self._check_usable()
        id = self._append(payload)
        if self._retain is not None and self._journal.tail[0] != self._retained:
            self._apply_retention()
        return id

    def append_many(self, payloads: Sequence[bytes]) -> range:
        if self._poison.unusable_because is not None or self._forked or not SAME[0] or not payloads:
            self._check_usable()
        if not payloads:
            return range(0)
        ids = self._append_many(payloads)
        if self._retain is not None and self._journal.tail[0] != self._retained:
            self._apply_retention()
        return ids

    def _apply_retention(self) -> None:
        """Trim what is not retained. The append has succeeded, so a failure waits for the next chunk."""
        parts, retain = self._parts, self._retain
        assert retain is not None
        self._retained = self._journal.tail[0]
        try:
            parts.journal.exclusively(lambda: parts.trim.retain(retain, parts.journal.last_chunk()))
        except StorageError as error:
            if self._poison.unusable_because is None:
                _log.warning("nothing was trimmed: %s", error)

    # Reading.

    def bounds(self) -> LogBounds:
        parts = self.parts()
        with self._appending:
            last = parts.look()
            trim = parts.trim
            count = parts.lag_at(0, last)
            end = parts.places.last_record(last.last_id + 1, trim.lowest, last) or trim.trimmed
            first = parts.first_id(last) if count else last.last_id + 1
        return LogBounds(first, end, count)

    def records(self, after: int = 0) -> Generator[Record, None, None]:
        parts = self.parts()
        while True:
            with self._appending:
                last = parts.look()
                after = max(after, parts.trim.trimmed)
                place = parts.places.place_of(after + 1, parts.trim.lowest, last)
            reader: Reader | None = None
            try:
                reader = parts.reader(after, place)
                while True:
                    if self._poison.unusable_because is not None:
                        raise self._poison.unusable_error(self._path)
                    if (entry := reader.current()) is None:
                        return
                    reader.advance()
                    after = entry[0].id
                    yield entry[0]
            except CorruptionError:
                number = place[0] if reader is None else reader.number
                if not parts.was_removed(number) and after >= parts.trim.trimmed:
                    raise
                # The chunk was removed in between: go on after it.
            finally:
                if reader is not None:
                    reader.close()

    def nth(self, index: int) -> int:
        parts = self.parts()
        with self._appending:
            last = parts.look()
            lowest = parts.trim.lowest
            before = parts.places.ordinal_of(parts.trim.trimmed + 1, lowest, last)
            return parts.places.id_at(before + index, lowest, last)

    def find(self, time: float) -> int:
        parts = self.parts()
        with self._appending:
            last = parts.look()
            _, id = parts.places.place_of_time(time, parts.trim.lowest, last)
        highest = last.last_id
        with closing(self.records(id - 1)) as records:
            for record in records:
                if record.time >= time:
                    return record.id
                highest = max(highest, record.id)
        return highest + 1

    # Trimming.

    def trim(self, before: int, force: bool = False) -> int:
        parts = self.parts()
        return parts.journal.exclusively(lambda: parts.trim.trim(before, force, parts.journal.last_chunk()))

    # Cursors.

    def cursor(self, name: str, start: int | None = None) -> JournalLogCursor:
        cursor = JournalLogCursor(self, self.parts(), name, start)
        with self._consuming:
            self._cursors[id(cursor)] = cursor
        if self._poison.unusable_because is not None:  # another thread has closed the log meanwhile
            cursor.close()
            raise self._poison.unusable_error(self._path)
        return cursor

    def _open_cursors(self) -> list[JournalLogCursor]:
        # The list of the references is made in one step, while other threads open and close cursors.
        return [cursor for each in self._cursors.valuerefs() if (cursor := each()) is not None]

    def cursor_closed(self, cursor: JournalLogCursor) -> None:
        """Forget a cursor of this object, because it is closed."""
        self._cursors.pop(id(cursor), None)

    def cursors(self) -> dict[str, CursorState]:
        parts = self.parts()
        with self._appending:
            last = parts.look()
            positions = sorted(parts.consumers.states())
            return {name: CursorState(position, parts.lag_at(position, last)) for name, position in positions}

    def forget(self, name: str) -> bool:
        parts = self.parts()
        return parts.journal.exclusively(lambda: self._forget(parts, name))

    def _forget(self, parts: LogParts, name: str) -> bool:
        location, consumers = parts.location, parts.consumers
        path = consumers.path(encoded_name(name))
        if not os.path.exists(path):
            return False
        lock_path = consumers.lock_path(path)
        what = f"has the consumer {name!r} of {location.directory!r} open"
        file = open_lasting(location.disk, lock_path)
        try:
            HolderLock(location.disk, file, lock_path, self._appending, what).acquire()
            location.check()
            # The lock goes first: a lock without a cursor would mean that the cursor was lost.
            location.disk.unlink(lock_path)
            location.disk.unlink(path)
            remove_temp_file(location.disk, location.directory, location.tempdir, os.path.basename(path))
            consumers.count_change()
            location.disk.sync_directory(location.directory)
        finally:
            file.close()
        return True

    def change_token(self) -> object:
        self._check_usable()
        return self._journal.change_token()

    # Closing.

    def close(self) -> None:
        """Close the log and every cursor that this object has opened. Idempotent.

        A cursor that another thread uses is waited for, without any lock of the log.
        """
        if not SAME[0]:
            self._follow_fork()
        with ExitStack() as steps:  # from the last one to the first one, even if one fails
            steps.callback(super().close)
            if not in_operation():
                for cursor in self._open_cursors():
                    steps.callback(cursor.close)

    def _close_without_sync(self) -> None:
        for cursor in self._open_cursors():
            cursor.close_quickly()
        super()._close_without_sync()
        with self._appending:  # another thread may be reading what was trimmed
            self._parts.trim.close()

    def _abandon(self) -> None:
        for cursor in self._open_cursors():
            cursor.after_fork_in_child()
        self._parts.trim.close()
        super()._abandon()
