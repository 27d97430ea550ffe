"""A named cursor of a log: its lock, its durable position, and a reader of the journal."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from persistcoll.disk.atomic import remove_temp_file
from persistcoll.disk.calls import LINKS, open_lasting, storage_error
from persistcoll.engine.contracts import LogCursor
from persistcoll.engine.forks import REENTRANT, in_operation, owned
from persistcoll.engine.poison import Poison
from persistcoll.engine.process import SAME
from persistcoll.engine.records import Record
from persistcoll.errors import ClosedError, CorruptionError, Empty, StorageError, TrimmedError, trimmed
from persistcoll.journal.chunks import LastChunk
from persistcoll.journal.consumer_files import ConsumerFiles, encoded_name
from persistcoll.journal.cursor import Cursor
from persistcoll.journal.cursors import Acknowledged, CursorReader, Position
from persistcoll.journal.holder_lock import HolderLock
from persistcoll.journal.log_trim import LogTrim
from persistcoll.journal.places import Places
from persistcoll.journal.reader import ReadableJournal, Reader
from persistcoll.journal.recovery import JournalLocation

if TYPE_CHECKING:
    from threading import RLock  # a function at run time before Python 3.13

    from persistcoll.journal.log_store import JournalLogStore

__all__ = ["JournalLogCursor", "LogParts"]

T = TypeVar("T")
# Bytes of a cursor's file. A log may have thousands of cursors, so each reserves little until it is used
# much. At the greater size it is compacted, which needs two syncs, once in 2,300 commits.
_FIRST_RESERVED, _MOST_RESERVED = 1 << 12, 1 << 16
_KEPT_PLACES = 1024
_log = logging.getLogger("persistcoll")


@dataclass(frozen=True)
class LogParts:
    """The parts of an open log that its cursors use. Immutable."""

    location: JournalLocation
    journal: ReadableJournal
    places: Places
    trim: LogTrim
    consumers: ConsumerFiles
    appending: RLock
    """The store's ``_appending`` lock."""
    power: bool

    def look(self) -> LastChunk:
        """Read what other processes have appended and trimmed. The caller holds ``appending``."""
        last = self.journal.last_chunk()
        self.trim.refresh(last)
        if self.trim.trimmed > last.last_id or self.trim.lowest > last.chunk.number:
            last = self.journal.last_chunk()  # others have appended and trimmed between the two calls
        return last

    def was_removed(self, number: int) -> bool:
        """Tell whether another process has trimmed this chunk, so that a reader must look for its place."""
        with self.appending:
            self.look()
            return number < self.trim.lowest

    def reader(self, last_read: int, place: Position) -> Reader:
        """Return a reader that begins after the record ``last_read``.

        :param place: a place before the next record.
        """
        try:
            return Reader(self.journal, last_read, place, Acknowledged(last_read, place), _skipped)
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            raise storage_error(error, "reading", self.location.path(place[0])) from error

    def first_id(self, last: LastChunk) -> int:
        """Return the id of the first record that is not trimmed, or that of the next one to be appended."""
        return self.places.next_record(self.trim.trimmed + 1, self.trim.lowest, last)

    def place_before(self, id: int | None, last: LastChunk) -> tuple[int, Position]:
        """Return the position before the record ``id``, and its place in the journal.

        :param id: ``None``: the first record that is not trimmed.
        :raise TrimmedError: the record was trimmed.
        :raise ValueError: ``id`` is above the id that the next record will have.
        """
        trim = self.trim
        if id is None:
            return trim.trimmed, trim.position
        if id <= trim.trimmed:
            raise trimmed(id, self.first_id(last))
        if id > last.last_id + 1:
            raise ValueError(f"the log ends at {last.last_id}, before {id}")
        return id - 1, self.places.place_of(id, trim.lowest, last)

    def lag_at(self, position: int, last: LastChunk) -> int:
        """Return how many records that are not trimmed come after a position."""
        id = max(position, self.trim.trimmed) + 1
        return last.ordinal - self.places.ordinal_of(id, self.trim.lowest, last)


def _skipped(first: int, last: int, place: Position) -> None:
    """Do nothing about records that a reader skips as damaged: it has logged them, and they stay."""


class _NotedPoison(Poison):
    """A poison that is also noted in the lock's file, because a trim in any process reads the cursor.

    After a failed sync the page cache may show commits that the device does not have.
    """

    # Weak, because the journal knows the poison for as long as it is open.
    lock: Callable[[], HolderLock | None] = staticmethod(lambda: None)

    def set(self, failure: StorageError) -> None:
        super().set(failure)
        lock = self.lock()
        if lock is not None:
            lock.note_poisoned()


class JournalLogCursor(LogCursor):
    """A :class:`~persistcoll.engine.contracts.LogCursor` of a log in files. Thread-safe.

    ``_mutex`` protects every field. A thread that also needs the store's ``_consuming`` lock acquires that
    one first, and ``_appending`` last. No thread holds ``_mutex`` while it waits for a sync of its commit.

    Two flags say what an interrupt or an error may have left half done, and the next operation then begins
    anew: ``_reading`` is false while there is no reader at the reading place, and ``_writing`` is true while
    the cursor's file changes. An operation first sets the flag, and resets it after the last change.

    :ivar used_here: tells whether this thread is within an operation of this cursor.
    :param store: the log.
    :param start: the id of the first record to read, if the cursor is new; ``None``: the first one of the
        log.
    """

    def __init__(self, store: JournalLogStore, parts: LogParts, name: str, start: int | None) -> None:
        self._store = store
        self._name = name
        self._encoded = encoded_name(name)
        self._closed = self._released = self._forked = False
        self._reader: Reader | None = None
        self.seeks = 0
        self._make_lock()
        self._open(parts, start)

    def _make_lock(self) -> None:
        self._mutex = threading.RLock()
        self.used_here: Callable[[], bool] = owned(self._mutex)

    @property
    def name(self) -> str:
        return self._name

    # Opening.

    def _open(self, parts: LogParts, start: int | None) -> None:
        """Acquire the lock and open the cursor's file, which is made if it is missing.

        :raise LockedError: another object has the cursor open.
        """
        self._parts = parts
        self._appends = owned(parts.appending)
        self._path = path = parts.consumers.path(self._encoded)
        self._poison = _NotedPoison(parts.journal.poison)
        try:
            self._lock, was_closed = self._acquire()
            try:
                # No process trims meanwhile, so that no trim passes the position of a new cursor.
                self._cursor = parts.journal.exclusively(lambda: self._begin(start, was_closed))
                self._lock.write_pid()
                self._poison.lock = weakref.ref(self._lock)
            except BaseException:
                self._lock.close()
                raise
        except BaseException as error:
            parts.journal.poison.drop(self._poison)
            if isinstance(error, OSError) and not isinstance(error, StorageError):
                raise storage_error(error, "opening", path) from error
            raise

    def _acquire(self) -> tuple[HolderLock, bool]:
        """Return the acquired lock, and whether its last holder had closed it."""
        location = self._parts.location
        path = self._parts.consumers.lock_path(self._path)
        what = f"has the consumer {self._name!r} of {location.directory!r} open"
        while True:
            file = open_lasting(location.disk, path)
            lock = HolderLock(location.disk, file, path, self._mutex, what)
            try:
                was_closed = lock.acquire()
                if location.disk.status(file.fd)[LINKS]:
                    return lock, was_closed
            except BaseException:
                lock.close()
                raise
            lock.close()  # another process has forgotten the consumer between the two steps

    def _begin(self, start: int | None, was_closed: bool) -> Cursor:
        """Open the cursor's file, and return the cursor.

        This process holds the cursor's lock and the producer lock.
        """
        parts, location = self._parts, self._parts.location
        last = parts.look()
        remove_temp_file(location.disk, location.directory, location.tempdir, os.path.basename(self._path))
        reader = CursorReader(location.disk, self._path, location.store_id)
        try:
            damage = self._damage(reader)
            if damage is not None:
                if damage:
                    _log.warning("%s; the consumer %r begins at the first record", damage, self._name)
                acknowledged = Acknowledged(*parts.place_before(None if damage else start, last))
                parts.consumers.count_change()
                reader.acknowledged = acknowledged
            can_append = damage is None and was_closed and reader.can_be_written_on()
            cursor = Cursor(
                location,
                self._path,
                reader.acknowledged,
                self._poison,
                parts.power,
                name=self._encoded,
                reserved=_FIRST_RESERVED,
            )
            try:
                cursor.begin(reader, can_append)
            except BaseException:
                if cursor.file is not None:
                    cursor.file.close()
                raise
        except BaseException:
            if not os.path.exists(self._path):  # nobody has ever opened it
                location.disk.unlink(parts.consumers.lock_path(self._path))
            raise
        finally:
            reader.close()
        self._compact_at = _FIRST_RESERVED
        self._writing = False
        self._go_to(cursor.acknowledged.last, cursor.acknowledged.position, self.seeks)
        return cursor

    def _damage(self, reader: CursorReader) -> str | None:
        """Read the cursor's file, and return why it states no position; empty if the cursor is new."""
        try:
            if reader.refresh():
                if reader.acknowledged.position[1] and reader.name == self._encoded:
                    return None
                return f"the cursor {self._path!r} is damaged"
        except CorruptionError as error:
            return str(error)
        return f"the cursor {self._path!r} is lost" if self._lock.was_used else ""

    def _go_to(self, last_read: int, place: Position, seeks: int) -> None:
        """Set the reading place directly after the record ``last_read``, which stands before ``place``."""
        ends: deque[tuple[int, Position]] = deque(maxlen=_KEPT_PLACES)
        # No call between these, so that no interrupt separates the place from the number of seeks.
        self._reading = False
        self._last_read, self._place = last_read, place
        # The places directly after records that were read: the id, and the place. A commit states the place.
        self._ends = ends
        self.seeks = seeks

    # Entering a call.

    def _arrive(self) -> None:
        """Raise ``StorageError`` if this thread holds the lock, and open the cursor in a forked child."""
        if not SAME[0]:
            self._store.follow_fork()
        if self.used_here() or self._appends():
            raise StorageError(REENTRANT)
        if self._forked and not self._closed:
            parts = self._store.parts()
            with self._mutex:
                if self._forked:
                    self._open(parts, None)
                    self._forked = False

    def _check(self) -> Cursor:
        """Return the cursor's file, begun anew if necessary. The caller holds ``_mutex``."""
        if self._closed:
            raise ClosedError(f"the consumer {self._name!r} is closed")
        if self._poison.unusable_because is not None:
            raise self._poison.unusable_error(self._path)
        cursor = self._cursor
        if self._writing:
            location = self._parts.location
            reader = CursorReader(location.disk, self._path, location.store_id)
            try:
                if self._damage(reader) is not None:
                    location.check()
                    raise CorruptionError(f"the cursor {self._path!r} is damaged", self._path)
                cursor.begin(reader, can_append=False)
            except OSError as error:
                if isinstance(error, StorageError):
                    raise
                raise storage_error(error, "reading", self._path) from error
            finally:
                reader.close()
            self._writing = False
        return cursor

    # Reading.

    def read(self, limit: int, decode: Callable[[Record], T], *, ids: list[int] | None = None) -> list[T]:
        if not SAME[0] or self._forked or self.used_here() or self._appends():
            self._arrive()
        values: list[T] = []
        with self._mutex:
            if not self._reading or self._closed or self._poison.unusable_because is not None:
                self._check()
                self._begin_reader()
            while len(values) < limit and self._fill(bool(values)):
                if not self._read_run(limit, decode, values, ids):
                    break
        return values

    def _read_run(
        self, limit: int, decode: Callable[[Record], T], values: list[T], ids: list[int] | None
    ) -> bool:
        """Read what is buffered, up to the limit, and tell whether ``decode`` has raised nothing."""
        reader = self._reader
        assert reader is not None
        buffer = reader.buffer
        before = len(values)
        failed = False
        for entry in islice(buffer, limit - before):
            try:
                values.append(decode(entry[0]))
            except Exception:
                if not values:
                    raise
                failed = True
                break
        count = len(values) - before
        if count:
            first = buffer[0][0].id
            place = reader.number, buffer[count - 1][2]
            read = range(first, first + count)  # what is buffered at once has no gaps
            last = read[-1]
            self._reading = False
            # No call between these two, so that an interrupt cannot separate them.
            self._last_read = last
            if ids is not None:
                ids.extend(read)
            self._place = place
            self._ends.append((last, place))
            if count == len(buffer):
                buffer.clear()
            else:
                for _ in read:
                    buffer.popleft()
            self._reading = True
        return not failed

    def _fill(self, has_values: bool) -> bool:
        """Read ahead if nothing is buffered, and tell whether something is.

        :param has_values: whether the caller has records already, so that an error must not lose them.
        :raise Empty: the reading place is at the end.
        """
        reader = self._reader
        assert reader is not None
        if reader.buffer and self._last_read >= self._parts.trim.trimmed:
            return True
        self._reading = False
        try:
            self._refuse_trimmed()
            try:
                entry = reader.current()
            except CorruptionError:
                self._refuse_trimmed()  # the chunk was removed in between
                raise
        except (CorruptionError, TrimmedError):
            if has_values:
                return False
            raise
        self._reading = True
        if entry is None and not has_values:
            raise Empty
        return entry is not None

    def _refuse_trimmed(self) -> LastChunk:
        """Raise ``TrimmedError`` if the next record is trimmed, and return the last chunk."""
        parts = self._parts
        with parts.appending:
            last = parts.look()
            if self._last_read < parts.trim.trimmed:
                raise trimmed(self._last_read + 1, parts.first_id(last))
        return last

    def _begin_reader(self) -> None:
        parts, place = self._parts, self._place
        if self._reader is not None:
            self._reader.close()
        while True:
            last = self._refuse_trimmed()
            if place[0] < parts.trim.lowest:  # a place before a record may be in an earlier chunk
                place = parts.places.place_of(self._last_read + 1, parts.trim.lowest, last)
            try:
                self._reader = parts.reader(self._last_read, place)
                break
            except CorruptionError:
                if not parts.was_removed(place[0]):
                    raise
        self._reading = True

    # Committing and seeking.

    @property
    def position(self) -> int:
        self._arrive()
        with self._mutex:
            return self._check().acknowledged.last

    def lag(self) -> int:
        position, parts = self.position, self._parts
        with parts.appending:
            return parts.lag_at(position, parts.look())

    def commit(self, id: int, seeks: int | None = None) -> None:
        if not SAME[0] or self._forked or self.used_here() or self._appends():
            self._arrive()
        with self._mutex:
            cursor = self._check()
            if seeks is not None and seeks != self.seeks:
                return
            if id > cursor.acknowledged.last:
                self._write(cursor, id, self._place_after(id))
        if self._parts.power:
            cursor.commit()

    def _place_after(self, id: int) -> Position:
        """Return a place at or before the one directly after the record ``id``."""
        if id == self._last_read:
            return self._place
        if id > self._last_read:
            parts = self._parts
            with parts.appending:
                last = parts.look()
                if id > last.last_id:
                    raise ValueError(f"the log ends at {last.last_id}, before {id}")
                if id < parts.trim.trimmed:  # the next record was trimmed, which only a read tells
                    return parts.trim.position
                return parts.places.place_of(id + 1, parts.trim.lowest, last)
        place = self._cursor.acknowledged.position
        ends = self._ends
        while ends and ends[0][0] <= id:
            place = ends[0][1]
            ends.popleft()
        return place

    def _write(self, cursor: Cursor, id: int, place: Position) -> None:
        self._writing = True
        try:
            cursor.write(cursor.acknowledged.last + 1, id, place)
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            raise storage_error(error, "committing in", self._path) from error
        if cursor.offset >= self._compact_at:
            self._compact(cursor)
        self._writing = False

    def _compact(self, cursor: Cursor) -> None:
        cursor.reserved = min(2 * cursor.reserved, _MOST_RESERVED)
        self._compact_at = cursor.offset + _FIRST_RESERVED
        self._lock.check()
        try:
            cursor.compact_and_switch()
        except OSError as error:
            if error.errno is None and not isinstance(error, StorageError):
                raise
            if cursor.is_poisoned:
                raise storage_error(error, "replacing", self._path) from error
            _log.debug("compacting a cursor: %s", error)  # the old file says the same
        else:
            self._compact_at = cursor.reserved

    def seek(self, id: int | None) -> None:
        self._arrive()
        with self._mutex:
            cursor = self._check()
            self._parts.journal.exclusively(lambda: self._seek(cursor, id))
        if self._parts.power:
            cursor.commit()

    def _seek(self, cursor: Cursor, id: int | None) -> None:
        parts = self._parts
        self._lock.check()
        position, place = parts.place_before(id, parts.look())
        if position > cursor.acknowledged.last:
            self._write(cursor, position, place)
        elif position < cursor.acknowledged.last:
            self._writing = True
            parts.consumers.count_change()
            cursor.rewind(position, place)
            self._writing = False
        self._go_to(position, place, self.seeks + 1)

    # Closing.

    def close(self) -> None:
        """Let others open the cursor, and commit nothing. Idempotent.

        Within an operation of this cursor the call only marks it as closed, and the next one closes the
        files. Within an operation of something else, as in a destructor, the files are closed without a
        sync.
        """
        if not SAME[0]:
            self._store.follow_fork()
        if self.used_here():
            self._closed = True
        elif not in_operation():
            with self._mutex:
                self._close(clean=True)
        elif self._mutex.acquire(blocking=False):
            try:
                self._close(clean=False)
            finally:
                self._mutex.release()
        else:
            self._closed = True

    def _close(self, clean: bool) -> None:
        self._closed = True
        if self._released or self._forked:
            return
        cursor = self._cursor
        clean = clean and self._poison.unusable_because is None and not self._writing and cursor.is_open
        try:
            if clean:
                cursor.close()
                self._lock.close(clean=True)
        finally:
            self.close_without_sync()

    def close_quickly(self) -> None:
        """Close the files without a sync, or only mark the cursor as closed if another thread uses it."""
        if self._mutex.acquire(blocking=False):
            try:
                self.close_without_sync()
            finally:
                self._mutex.release()
        else:
            self._closed = True

    def close_without_sync(self) -> None:
        """Close the files without a sync, as the death of the process would."""
        self._closed = True
        self._parts.journal.poison.drop(self._poison)
        self._cursor.close_without_sync()
        if self._reader is not None:
            self._reader.close()
        self._lock.close()
        # Last, so that after an interrupt the next close closes what is left.
        self._store.cursor_closed(self)
        self._released = True

    def after_fork_in_child(self) -> None:
        """Close the parent's descriptors in a forked child, and write nothing."""
        self._make_lock()
        if self._forked or self._released:
            return
        self._forked = True
        self.seeks += 1
        self._cursor.after_fork_in_child()
        if self._reader is not None:
            self._reader.close()
        self._lock.close()
