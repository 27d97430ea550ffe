"""The taking end of a journal, in the one process that holds the consumer lock.

A taken record stays in the journal until it is acknowledged; the cursor is the only thing that says
so. A chunk is removed when all of it is acknowledged and the cursor that says so is on the device.
"""

from __future__ import annotations

import bisect
import contextlib
import logging
import os
from collections.abc import Callable, Sequence
from typing import TypeVar

from persistcoll.disk import close_quietly, storage_error, sweep
from persistcoll.engine.contracts import Claim
from persistcoll.engine.values import Record
from persistcoll.errors import CorruptionError, Empty, NotClaimedError, StorageError
from persistcoll.group_commit import GroupCommit
from persistcoll.journal.consumer_lock import ConsumerLock
from persistcoll.journal.cursors import CursorReader, CursorWriter, Position
from persistcoll.journal.frames import BadFrame, Frames
from persistcoll.journal.journal import Journal
from persistcoll.journal.reader import Reader
from persistcoll.journal.recovery import Place
from persistcoll.journal.segments import chunk_numbers, open_chunk

__all__ = ["Consumer"]

T = TypeVar("T")
_log = logging.getLogger("persistcoll")


class Consumer:
    """Takes, acknowledges, gives back. Its owner holds a lock around every call but :meth:`commit`.

    :param lock: held.
    :param seen: the cursor as far as it has been read.
    :param whole: it can be written on; else it is written anew.
    :param failed: called when a sync has failed and nothing more must be done here.
    :ivar gone: how many ids are not ready: acknowledged or claimed.
    :ivar dead: how many records were lost to damage that was passed over.
    """

    def __init__(
        self,
        place: Place,
        journal: Journal,
        lock: ConsumerLock,
        cursor_path: str,
        seen: CursorReader,
        whole: bool,
        failed: Callable[[StorageError], None],
    ) -> None:
        self._place = place
        self._disk = place.disk
        self._journal = journal
        self._lock = lock
        self._publish_taken = lock.publish_taken
        self._failed = failed
        self.acknowledged = acknowledged = seen.acknowledged
        self._cursor = CursorWriter(place.disk, cursor_path, place.store_id, acknowledged, place.tempdir)
        self._commit = GroupCommit(place.disk, cursor_path, failed)
        self._writes = 0
        self._broken = False
        self.gone = acknowledged.count
        self.dead = 0
        self.claimed: dict[int, tuple[int, int, int]] = {}  # id to chunk, start, end
        self._returned: list[tuple[int, int, int, int]] = []  # given back: id, chunk, start, end
        self._first_chunk = acknowledged.position[0]
        self._reader: Reader
        try:
            anew = self._begin_cursor(seen, whole)
        except BaseException:
            if self._cursor.fd >= 0:
                close_quietly(place.disk, self._cursor.fd)
            raise
        self._commit.switch(self._cursor.fd, cursor_path, 0)
        try:
            self._read_from(acknowledged.last, acknowledged.position)
        except BaseException:
            self._commit.close()
            raise
        self._publish()
        sweep(self._disk, place.directory, place.tempdir, os.path.basename(cursor_path))
        if anew:
            self._sweep()

    def _begin_cursor(self, seen: CursorReader, whole: bool) -> bool:
        """Have a cursor to write on; whether it was written anew, so that all it says is on the device."""
        if whole:
            self._cursor.resume(seen)
            return False
        # Written anew, because the page cache may show what a failed sync did not put on the device.
        try:
            self._cursor.compact()
        except OSError:
            if not seen.exists:
                raise
            self._cursor.resume(seen)  # a full disk must not keep anybody from draining the queue
            return False
        return True

    def _read_from(self, last_id: int, position: Position) -> None:
        journal = self._journal
        self._reader = Reader(
            self._place, last_id, position, self.acknowledged, lambda: journal.tail, self._lost
        )

    def _lost(self, first: int, last: int, behind: Position) -> None:
        """Damaged records are passed over: count them as acknowledged, lest they block the cursor."""
        self._write(first, last, behind)
        self.gone += last - first + 1
        self.dead += last - first + 1

    # Taking.

    def take(self, use: Callable[[Record], T], acknowledge: bool, claims: list[Claim] | None) -> T:
        if self._returned:
            return self._take_returned(use, acknowledge, claims)
        reader = self._reader
        ahead = reader.ahead
        if (not ahead or ahead[0][0][0] <= self.acknowledged.highest) and reader.current() is None:
            raise Empty
        record, start, end = ahead[0]
        value = use(record)
        id = record[0]
        if acknowledge:
            self._write(id, id, (reader.number, end))
        else:
            self.claimed[id] = claim = reader.number, start, end
            if claims is not None:
                claims.append((id, claim))
        self.gone = gone = self.gone + 1
        if self.claimed:  # else the cursor says it
            self._publish_taken(gone, id + 1)
        ahead.popleft()
        return value

    def take_many(
        self, limit: int, use: Callable[[Record], T], acknowledge: bool, claims: list[Claim] | None
    ) -> list[T]:
        if self._returned:
            return [self._take_returned(use, acknowledge, claims)]
        reader, claimed, ahead = self._reader, self.claimed, self._reader.ahead
        values: list[T] = []
        failure: Exception = Empty()
        first = last = 0
        behind = (0, 0)
        highest = self.acknowledged.highest
        try:
            while len(values) < limit:
                # current() at every item would cost as much as the rest.
                if (not ahead or ahead[0][0][0] <= highest) and reader.current() is None:
                    break
                record, start, stop = ahead[0]
                id = record[0]
                if first and id != last + 1:
                    break
                values.append(use(record))
                last = id
                first = first or id
                behind = reader.number, stop
                if not acknowledge:
                    claimed[id] = reader.number, start, stop
                ahead.popleft()
        except Exception as error:
            failure = error
        except BaseException:  # KeyboardInterrupt: nothing was taken
            self._untake(first, last)
            raise
        if not values:
            raise failure
        if acknowledge:
            self._write_run(first, last, behind)
        elif claims is not None:
            claims += [(id, claimed[id]) for id in range(first, last + 1)]
        self.gone += len(values)
        self._publish()
        return values

    def _write_run(self, first: int, last: int, behind: Position) -> None:
        try:
            self._write(first, last, behind)
        except StorageError:
            self._untake(first, last)
            raise

    def _publish(self) -> None:
        self._lock.publish(self.gone, self._reader.next_id, [entry[0] for entry in self._returned])

    def _untake(self, first: int, last: int) -> None:
        """Have the ids ``first`` to ``last``, which were read but not taken, read again."""
        if first:
            for id in range(first, last + 1):
                self.claimed.pop(id, None)
            self._reader.close()
            self._read_from(first - 1, self.acknowledged.position)

    def _take_returned(self, use: Callable[[Record], T], acknowledge: bool, claims: list[Claim] | None) -> T:
        id, number, start, end = self._returned[0]
        value = use(self._read_at(number, start))
        if acknowledge:
            self._write(id, id, (number, end))
        else:
            self.claimed[id] = claim = number, start, end
            if claims is not None:
                claims.append((id, claim))
        del self._returned[0]
        self.gone += 1
        self._publish()
        return value

    def _read_at(self, number: int, start: int) -> Record:
        path = self._place.path(number)
        try:
            fd, chunk = open_chunk(self._disk, self._place.directory, number, self._place.store_id)
            try:
                record = Frames(self._disk, fd, chunk.salt, start).read()
            finally:
                close_quietly(self._disk, fd)
        except BadFrame as error:
            raise CorruptionError(f"{path!r} is damaged: {error}", path, start) from error
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            raise storage_error(error, "reading", path) from error
        if not isinstance(record, Record):
            raise CorruptionError(f"{path!r} is cut at offset {start}", path, start)
        return record

    def peek(self, use: Callable[[Record], T]) -> T:
        if self._returned:
            _, number, start, _ = self._returned[0]
            return use(self._read_at(number, start))
        entry = self._reader.current()
        if entry is None:
            raise Empty
        return use(entry[0])

    # Acknowledging and giving back.

    def acknowledge(self, ids: Sequence[int]) -> None:
        claimed = self.claimed
        if len(ids) > 1:
            ids = list(dict.fromkeys(ids))
            for id in ids:
                if id not in claimed:
                    raise self._not_claimed(id)
        for id in ids:
            place = claimed.get(id)
            if place is None:
                raise self._not_claimed(id)
            self._write(id, id, (place[0], place[2]))
            del claimed[id]

    def give_back(self, id: int) -> None:
        if id not in self.claimed:
            raise self._not_claimed(id)
        bisect.insort(self._returned, (id, *self.claimed.pop(id)))
        self.gone -= 1
        self._publish()

    def release(self, claims: Sequence[Claim]) -> int:
        # By identity: each claim is a tuple of its own.
        in_force = [id for id, claim in claims if self.claimed.get(id) is claim]
        for id in in_force:
            self.give_back(id)
        return len(in_force)

    def _not_claimed(self, id: int) -> NotClaimedError:
        return NotClaimedError(f"item {id} is not in this consumer's hands")

    def discard(self, id: int | None) -> int | None:
        gone = self._discard_returned(id)
        if gone is None:
            gone = self._discard_unread(id)
        if gone is not None:
            self.gone += 1
            self._publish()
        return gone

    def _discard_returned(self, id: int | None) -> int | None:
        for entry in self._returned:
            if id in (None, entry[0]):
                self._write(entry[0], entry[0], (entry[1], entry[3]))
                self._returned.remove(entry)
                return entry[0]
        return None

    def _discard_unread(self, id: int | None) -> int | None:
        entry = self._reader.current()
        if entry is None:
            return None
        record, _, end = entry
        if id is None or id == record.id:
            self._write(record.id, record.id, (self._reader.number, end))
            self._reader.advance()
            return record.id
        if not record.id < id <= self._journal.refresh() or id in self.acknowledged:
            return None
        self._write(id, id, self.acknowledged.position)  # the reader will pass over it
        return id

    def clear(self) -> int:
        self._journal.refresh()
        number, end, last = self._journal.tail
        cleared = last - self.gone
        for id, chunk, _, behind in self._returned:
            self._write(id, id, (chunk, behind))
        self._returned.clear()
        # Behind what was given back there may be what was acknowledged before it.
        first = max(self._reader.next_id, self.acknowledged.last + 1)
        for known, known_last in sorted(self.acknowledged.ranges.items()):
            if first < known <= last:
                self._write(first, known - 1, self.acknowledged.position)
            first = max(first, known_last + 1)
        if first <= last:
            self._write(first, last, (number, end))
        self._reader.close()
        self._read_from(last, (number, end))
        self.gone += cleared
        self._publish()
        return cleared

    def _write(self, first: int, last: int, behind: Position) -> None:
        """Acknowledge ids in the cursor. :meth:`commit` makes it durable."""
        try:
            self._cursor.write(first, last, behind)
        except OSError as error:
            raise storage_error(error, "acknowledging in", self._cursor.path) from error
        self._writes += 1
        if self.acknowledged.position[0] != self._first_chunk:
            self._drop_consumed()

    def commit(self) -> None:
        """Return when everything acknowledged so far is durable. No lock is held."""
        self._commit.written = ticket = self._writes
        self._commit.commit(ticket)

    # Removing what is consumed.

    def _drop_consumed(self) -> None:
        """Remove the chunks that are acknowledged as a whole, once the cursor on the device says so."""
        try:
            self._compact()
        except OSError as error:
            if self._broken:
                return
            _log.debug("compacting the cursor: %s", error)
            # No room for a new file, perhaps: then the old one has to say it, and removing makes room.
            try:
                self._cursor.state_position()
            except OSError:
                return  # the chunks stay until there is room
            try:
                self._disk.sync(self._cursor.fd)
            except OSError as second:
                self._break(storage_error(second, "syncing", self._cursor.path))
                return
        self._unlink_consumed()

    def _unlink_consumed(self) -> None:
        chunk = self.acknowledged.position[0]
        with contextlib.suppress(OSError):
            for number in chunk_numbers(self._place.directory):
                if number < chunk:
                    self._disk.unlink(self._place.path(number))
            self._first_chunk = chunk

    def _sweep(self) -> None:
        """After a consumer that died: remove what it would have removed."""
        self._unlink_consumed()
        kept = set(chunk_numbers(self._place.directory))
        for name in os.listdir(self._place.directory):
            chunk, _, rest = name.partition(".")
            if rest.startswith("torn-") and chunk[1:].isdigit() and int(chunk[1:]) not in kept:
                with contextlib.suppress(OSError):
                    self._disk.unlink(os.path.join(self._place.directory, name))

    def _compact(self) -> None:
        try:
            self._cursor.compact()
        except OSError as error:
            if os.stat(self._cursor.path).st_ino != os.fstat(self._cursor.fd).st_ino:
                # Renamed, but perhaps not durably, and what is open here is the old file.
                self._break(storage_error(error, "replacing", self._cursor.path))
            raise
        self._commit.written = self._writes
        self._commit.switch(self._cursor.fd, self._cursor.path, 0)

    def _break(self, failure: StorageError) -> None:
        self._broken = True
        self._failed(failure)

    def close(self, failed: bool) -> None:
        """Let go. A clean close makes what was acknowledged durable at either level."""
        self._reader.close()
        try:
            if not failed:
                self._disk.sync(self._cursor.fd)
        except OSError as error:
            raise storage_error(error, "syncing", self._cursor.path) from error
        finally:
            self._commit.close()

    def abandon(self) -> None:
        """In a forked child: the parent's descriptors are closed, nothing is written."""
        with contextlib.suppress(OSError):
            os.close(self._cursor.fd)
        self._reader.close()
