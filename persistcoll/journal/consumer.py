"""The taking end of a journal, in the one process that holds the consumer lock.

A taken record stays in the journal until it is acknowledged; the cursor is the only thing that says
so. A chunk is removed when all of it is acknowledged and the cursor that says so is on the device. While an
earlier chunk is still needed, it is emptied instead (see :mod:`~persistcoll.journal.chunks`).
"""

from __future__ import annotations

import bisect
import contextlib
import errno
import itertools
import logging
import os
from collections.abc import Callable, Sequence
from typing import TypeVar

from persistcoll.disk.calls import LINKS, storage_error, sweep
from persistcoll.disk.group_commit import GroupCommit
from persistcoll.engine.contracts import Claim
from persistcoll.engine.records import Record
from persistcoll.errors import CorruptionError, Empty, NotClaimedError, StorageError, StoreReplacedError
from persistcoll.journal.chunks import Chunk, chunk_numbers, empty_chunk, open_chunk
from persistcoll.journal.consumer_lock import ConsumerLock
from persistcoll.journal.cursors import CursorReader, CursorWriter, Position
from persistcoll.journal.frames import BadFrame, Frames
from persistcoll.journal.ground import replaced
from persistcoll.journal.journal import Journal
from persistcoll.journal.reader import Reader
from persistcoll.journal.recovery import JournalLocation

__all__ = ["Consumer"]

T = TypeVar("T")
_log = logging.getLogger("persistcoll")


class Consumer:
    """Takes, acknowledges, gives back. Its owner holds a lock around every call but :meth:`commit`.

    :param lock: held.
    :param seen: the cursor as far as it has been read.
    :param whole: it can be written on; else it is written anew.
    :param failed: called when a sync has failed and nothing more must be done here.
    :param power: what was acknowledged survives a power cut.
    :ivar gone: how many ids are not ready: acknowledged or claimed.
    :ivar unsure: an operation is under way, or did not come to its end: :meth:`begin_anew` is to be called.
    """

    def __init__(
        self,
        place: JournalLocation,
        journal: Journal,
        lock: ConsumerLock,
        cursor_path: str,
        seen: CursorReader,
        whole: bool,
        failed: Callable[[StorageError], None],
        power: bool,
    ) -> None:
        self._place = place
        self._disk = place.disk
        self._journal = journal
        self._lock = lock
        self._publish_taken = lock.publish_taken
        self._failed = failed
        self._cursor = CursorWriter(
            place.disk,
            cursor_path,
            place.store_id,
            seen.acknowledged,
            place.tempdir,
            look_always=power,
        )
        self._commit = GroupCommit(place.disk, cursor_path, failed)
        self._writes = 0
        self._broken = False
        self._lost: dict[int, int] = {}  # first to last
        self.claimed: dict[int, tuple[int, int, int]] = {}  # id to chunk, start, end
        self._returned: list[tuple[int, int, int, int]] = []  # given back: id, chunk, start, end
        self._first_chunk = seen.acknowledged.position[
            0
        ]  # another one than the cursor's: chunks are finished
        # Chunks that were read to their end, each with the next one: by the last id that is not acknowledged,
        # and those that are acknowledged as a whole.
        self._unfinished: dict[int, tuple[Chunk, Chunk]] = {}
        self._finished: list[tuple[Chunk, Chunk]] = []
        try:
            self._begin(seen, whole)
            sweep(self._disk, place.directory, place.tempdir, os.path.basename(cursor_path))
        except BaseException:
            self._commit.close()
            if self._cursor.file is not None:
                self._cursor.file.close()
            self._close_reader()
            raise

    @property
    def is_open(self) -> bool:
        """Whether the cursor's file is."""
        return self._commit.is_open

    def begin_anew(self, seen: CursorReader) -> None:
        """After an interrupt, which may have come in behind any call: learn all of it again from what is
        certain, which is the cursor's file and what is claimed.

        :raise StoreReplacedError: the cursor is gone, or says less than what was written to it.
        """
        if not seen.exists or seen.acknowledged.count < self.acknowledged.count:
            raise replaced(self._cursor.path)
        self._begin(seen, whole=False)

    def _begin(self, seen: CursorReader, whole: bool) -> None:
        self.unsure = True
        try:
            anew = self._begin_cursor(seen, whole)
        finally:
            seen.close()
        self.acknowledged = acknowledged = self._cursor.acknowledged
        for id in [id for id in self.claimed if id in acknowledged]:
            del self.claimed[id]
        self.gone = acknowledged.count + len(self.claimed)
        self._unfinished.clear()
        self._finished.clear()
        self._read_from(acknowledged.last, acknowledged.position)
        self._pass_over_claimed()
        self._publish()
        if anew:
            self._sweep()
        self.unsure = False

    def _begin_cursor(self, seen: CursorReader, whole: bool) -> bool:
        """Have a cursor to write on; whether it was written anew, so that all it says is on the device."""
        cursor = self._cursor
        cursor.acknowledged = seen.acknowledged
        anew = False
        self._stated = seen.acknowledged.position[0]
        if whole:
            cursor.resume(seen)
        else:
            # Written anew, because the page cache may show what a failed sync did not put on the device.
            try:
                self._place.check()
                cursor.compact()
                anew = True
            except OSError as error:
                if isinstance(error, StorageError) or error.errno is None or not seen.exists:
                    raise
                try:
                    cursor.resume(seen)  # a full disk must not keep anybody from draining the queue
                except StoreReplacedError:  # by what failed
                    raise error from None
                self._sync_cursor()
        self._commit.written = self._writes
        self._switch()
        return anew

    def _switch(self) -> None:
        """Have the cursor's file synced from now on by whoever waits for that."""
        file = self._cursor.file
        assert file is not None
        self._commit.switch(file, self._cursor.path, 0)

    def _pass_over_claimed(self) -> None:
        """Read on behind what is claimed. What stands before that and is neither claimed nor acknowledged
        was given back, or taken by an operation that did not come to its end: it is ready.
        """
        returned: list[tuple[int, int, int, int]] = []
        last = max(self.claimed, default=0)
        reader = self._reader
        while last and (entry := reader.current()) is not None and entry[0].id <= last:
            record, start, end = entry
            if record.id not in self.claimed:
                returned.append((record.id, reader.number, start, end))
            reader.advance()
        self._returned = returned

    def _read_from(self, last_id: int, position: Position) -> None:
        journal = self._journal
        self._close_reader()
        try:
            self._reader: Reader = Reader(
                self._place,
                last_id,
                position,
                self.acknowledged,
                lambda: journal.tail,
                self._pass_over,
                self._chunk_read,
            )
        except StorageError:
            raise
        except OSError as error:
            raise storage_error(error, "reading", self._place.path(position[0])) from error

    def _close_reader(self) -> None:
        reader: Reader | None = self.__dict__.get("_reader")
        if reader is not None:
            reader.close()

    def _pass_over(self, first: int, last: int, behind: Position) -> None:
        """Damaged records are passed over: count them as acknowledged, lest they block the cursor."""
        self._lost[first] = last
        self._write(first, last, behind)
        self.gone += last - first + 1

    @property
    def dead(self) -> int:
        """How many records were lost to damage that was passed over."""
        return sum([last - first + 1 for first, last in self._lost.items()])

    # Taking. Whatever changes more than one thing sets `unsure` before the first and clears it behind the
    # last: an interrupt in between has all of it learned again, so nothing in the middle is repaired.

    def take(self, decode: Callable[[Record], T], acknowledge: bool, claims: list[Claim] | None) -> T:
        if self._returned:
            return self._take_returned(decode, acknowledge, claims)
        reader = self._reader
        ahead = reader.ahead
        if not ahead or ahead[0][0][0] <= self.acknowledged.highest:
            self._read_first()
        record, start, end = ahead[0]
        value = decode(record)
        id = record[0]
        self.unsure = True
        if acknowledge:
            self._write(id, id, (reader.number, end))
        else:
            claim = reader.number, start, end
            if claims is not None:
                claims.append((id, claim))
            self.claimed[id] = claim
        self.gone = gone = self.gone + 1
        if self.claimed:  # otherwise the cursor says it
            self._publish_taken(gone, id + 1)
        ahead.popleft()
        self.unsure = False
        return value

    def _read_first(self) -> None:
        """Have the first ready record read, or raise ``Empty``."""
        self.unsure = True
        try:
            entry = self._reader.current()
        except CorruptionError:
            self.unsure = False  # the reader says it again
            raise
        self.unsure = False
        if entry is None:
            raise Empty

    def take_many(
        self, limit: int, decode: Callable[[Record], T], acknowledge: bool, claims: list[Claim] | None
    ) -> list[T]:
        if self._returned:
            return [self._take_returned(decode, acknowledge, claims)]
        self._read_first()
        reader, ahead = self._reader, self._reader.ahead
        values: list[T] = []
        taken: list[Claim] = []
        last = 0
        behind = (0, 0)
        highest = self.acknowledged.highest
        while len(values) < limit:
            try:
                # current() at every item would cost as much as the rest.
                if not ahead or ahead[0][0][0] <= highest:
                    self.unsure = True
                    if reader.current() is None:
                        break
            except CorruptionError:
                if not taken:
                    raise
                break
            record, start, stop = ahead[0]
            id = record[0]
            if last and id != last + 1:
                break
            try:
                value = decode(record)
            except Exception:
                if not taken:
                    raise
                break
            self.unsure = True
            values.append(value)
            last = id
            behind = reader.number, stop
            taken.append((id, (reader.number, start, stop)))
            ahead.popleft()
        if acknowledge:
            self._write(taken[0][0], last, behind)
        else:
            if claims is not None:
                claims.extend(taken)
            self.claimed.update(taken)
        self.gone += len(taken)
        self._publish()
        self.unsure = False
        return values

    def _publish(self) -> None:
        self._lock.publish(self.gone, self._reader.next_id, [entry[0] for entry in self._returned])

    def _take_returned(
        self, decode: Callable[[Record], T], acknowledge: bool, claims: list[Claim] | None
    ) -> T:
        id, number, start, end = self._returned[0]
        value = decode(self._read_at(number, start))
        self.unsure = True
        if acknowledge:
            self._write(id, id, (number, end))
        else:
            claim = number, start, end
            if claims is not None:
                claims.append((id, claim))
            self.claimed[id] = claim
        del self._returned[0]
        self.gone += 1
        self._publish()
        self.unsure = False
        return value

    def _read_at(self, number: int, start: int) -> Record:
        path = self._place.path(number)
        try:
            file, chunk = open_chunk(self._disk, self._place.directory, number, self._place.store_id)
            with file:
                record = Frames(self._disk, file.fd, chunk.salt, start).read()
        except BadFrame as error:
            raise CorruptionError(f"{path!r} is damaged: {error}", path, start) from error
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            raise storage_error(error, "reading", path) from error
        if not isinstance(record, Record):
            raise CorruptionError(f"{path!r} is cut at offset {start}", path, start)
        return record

    def peek(self, decode: Callable[[Record], T]) -> T:
        if self._returned:
            _, number, start, _ = self._returned[0]
            return decode(self._read_at(number, start))
        ahead = self._reader.ahead
        if not ahead or ahead[0][0][0] <= self.acknowledged.highest:
            self._read_first()
        return decode(ahead[0][0])

    # Acknowledging and giving back.

    def ack(self, ids: Sequence[int]) -> None:
        claimed = self.claimed
        if len(ids) == 1:  # nearly always
            id = ids[0]
            place = claimed.get(id)
            if place is None:
                raise self._not_claimed(id)
            self.unsure = True
            self._write(id, id, (place[0], place[2]))
            del claimed[id]
            self.unsure = False
            return
        runs: list[tuple[int, int, Position]] = []
        for id in dict.fromkeys(ids):
            place = claimed.get(id)
            if place is None:
                raise self._not_claimed(id)
            runs.append((id, id, (place[0], place[2])))
        self.unsure = True
        self._write_all(runs)
        for id, _, _ in runs:
            del claimed[id]
        self.unsure = False

    def nack(self, id: int) -> None:
        if id not in self.claimed:
            raise self._not_claimed(id)
        self.unsure = True
        bisect.insort(self._returned, (id, *self.claimed.pop(id)))
        self.gone -= 1
        self._publish()
        self.unsure = False

    def release(self, claims: Sequence[Claim]) -> int:
        # By identity: each claim is a tuple of its own.
        in_force = [id for id, claim in claims if self.claimed.get(id) is claim]
        for id in in_force:
            self.nack(id)
        return len(in_force)

    def _not_claimed(self, id: int) -> NotClaimedError:
        return NotClaimedError(f"item {id} is not in this consumer's hands")

    def remove(self, id: int | None) -> int | None:
        self.unsure = True
        gone = self._discard_returned(id)
        if gone is None:
            gone = self._discard_unread(id)
        if gone is not None:
            self.gone += 1
            self._publish()
        self.unsure = False
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
        runs = [(id, id, (chunk, behind)) for id, chunk, _, behind in self._returned]
        # Behind what was given back there may be what was acknowledged before it.
        for first, until in self.acknowledged.missing(self._reader.next_id, last):
            runs.append((first, until, (number, end) if until == last else self.acknowledged.position))
        cleared = sum([run[1] - run[0] + 1 for run in runs])
        self.unsure = True
        if self.claimed:  # otherwise the position passes over all chunks but the last
            self._skip_chunks(number)
        if runs:
            self._write_all(runs)
        self._returned.clear()
        self._read_from(last, (number, end))
        self.gone += cleared
        self._publish()
        self.unsure = False
        return cleared

    def _write(self, first: int, last: int, behind: Position) -> None:
        """Acknowledge a run of ids in the cursor. :meth:`commit` makes it durable."""
        try:
            self._cursor.write(first, last, behind)
        except OSError as error:
            raise self._not_written(error) from error
        self._writes += 1
        if self._unfinished:
            self._note_finished(first, last)
        if self.acknowledged.position[0] != self._first_chunk:
            self._drop_finished()

    def _write_all(self, runs: Sequence[tuple[int, int, Position]]) -> None:
        """Acknowledge several runs, all or none."""
        try:
            self._cursor.write_all(runs)
        except OSError as error:
            raise self._not_written(error) from error
        self._writes += 1
        if self._unfinished:
            for first, last, _ in runs:
                self._note_finished(first, last)
        if self.acknowledged.position[0] != self._first_chunk:
            self._drop_finished()

    def _not_written(self, error: OSError) -> StorageError:
        if isinstance(error, StorageError):
            return error
        return storage_error(error, "acknowledging in", self._cursor.path)

    def commit(self) -> None:
        """Return when everything acknowledged so far is durable. No lock is held."""
        self._commit.written = ticket = self._writes
        self._commit.commit(ticket)

    # Removing what is consumed.

    def _chunk_read(self, chunk: Chunk, following: Chunk) -> None:
        """Notice when the chunk, which was read to its end, is acknowledged as a whole.

        At most once for each of its ids that is acknowledged, and for most of them not at all.
        """
        last = following.previous_id
        missing = self.acknowledged.missing_up_to(last)
        if missing >= chunk.first_id:
            self._unfinished[missing] = chunk, following
            return
        self.acknowledged.note_place(last, (following.number, following.data_offset))
        if chunk.first_id <= last:  # otherwise it is emptied already
            self._finished.append((chunk, following))
            self._first_chunk = -1

    def _note_finished(self, first: int, last: int) -> None:
        """The ids ``first`` to ``last`` were acknowledged."""
        unfinished = self._unfinished
        if first != last:
            for id in [id for id in unfinished if first <= id <= last]:
                self._chunk_read(*unfinished.pop(id))
        elif first in unfinished:
            self._chunk_read(*unfinished.pop(first))

    def _skip_chunks(self, until: int) -> None:
        """The chunks from the reader's to the one before ``until`` will not be read."""
        chunks: list[Chunk] = []
        for number in range(self._reader.number, until + 1):
            with contextlib.suppress(FileNotFoundError, CorruptionError):
                file, chunk = open_chunk(self._disk, self._place.directory, number, self._place.store_id)
                file.close()
                chunks.append(chunk)
        for chunk, following in itertools.pairwise(chunks):
            if following.number == chunk.number + 1:
                self._chunk_read(chunk, following)

    def _drop_finished(self) -> None:
        """Remove or empty the chunks that are acknowledged as a whole, once the durable cursor says so."""
        try:
            self._compact()
        except OSError as error:
            if error.errno is None and not isinstance(error, StorageError):
                raise  # a signal handler's
            if self._broken:
                return
            _log.debug("compacting the cursor: %s", error)
            # No room for a new file, perhaps: then the old one has to say it, and removing makes room.
            try:
                stated = self.acknowledged.position[0]
                self._cursor.state_position()
                self._sync_cursor()
                self._stated = stated
            except OSError as second:
                if second.errno is None and not isinstance(second, StorageError):
                    raise
                return  # the chunks stay until there is room
        self._unlink_consumed()
        self._empty_finished()

    def _sync_cursor(self) -> None:
        try:
            self._disk.sync(self._cursor.fd)
        except OSError as error:
            failure = storage_error(error, "syncing", self._cursor.path)
            self._break(failure)
            raise failure from error

    def _unlink_consumed(self) -> None:
        # Not what is known here: reading on may have moved the position since the cursor said where it was.
        chunk = self._stated
        with contextlib.suppress(OSError):
            self._place.check()
            for number in chunk_numbers(self._place.directory):
                if number < chunk:
                    self._disk.unlink(self._place.path(number))
            self._first_chunk = chunk

    def _empty_finished(self) -> None:
        finished, self._finished = self._finished, []
        for chunk, following in finished:
            if chunk.number < self.acknowledged.position[0]:
                continue  # removed
            try:
                self._place.check()
                self._empty(chunk, following.previous_id + 1)
            except OSError as error:
                if error.errno is None and not isinstance(error, StorageError):
                    raise  # a signal handler's
                _log.debug("emptying a chunk: %s", error)
                self._finished.append((chunk, following))  # again when the next one is finished

    def _empty(self, chunk: Chunk, next_id: int) -> None:
        try:
            empty_chunk(self._disk, self._place.directory, chunk, next_id, self._place.tempdir)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            # Not for a limit of the file size, which removing a file does not lift. Removing the chunk makes
            # room for what stands for it. In between, the cursor alone says what it held.
            self._disk.unlink(self._place.path(chunk.number))
            empty_chunk(self._disk, self._place.directory, chunk, next_id, self._place.tempdir)

    def _sweep(self) -> None:
        """After a consumer that died: remove what it would have removed."""
        if self.acknowledged.position[0] != self._stated:
            self._drop_finished()  # reading on has moved the position: the cursor says so first
        self._unlink_consumed()
        for number in chunk_numbers(self._place.directory):
            if number < self._journal.tail[0]:  # temporary files of the last one are the producers'
                name = os.path.basename(self._place.path(number))
                sweep(self._disk, self._place.directory, self._place.tempdir, name)
        kept = set(chunk_numbers(self._place.directory))
        for name in os.listdir(self._place.directory):
            chunk, _, rest = name.partition(".")
            if rest.startswith("torn-") and chunk[1:].isdigit() and int(chunk[1:]) not in kept:
                with contextlib.suppress(OSError):
                    self._disk.unlink(os.path.join(self._place.directory, name))

    def _compact(self) -> None:
        self._place.check()
        stated = self.acknowledged.position[0]
        try:
            self._cursor.compact()
        except OSError as error:
            if error.errno is not None and not self._disk.status(self._cursor.fd)[LINKS]:
                # Renamed, but perhaps not durably, and what is open here is the old file.
                self._break(storage_error(error, "replacing", self._cursor.path))
            raise
        self._stated = stated
        self._commit.written = self._writes
        self._switch()

    def _break(self, failure: StorageError) -> None:
        self._broken = True
        self._failed(failure)

    def close(self) -> None:
        """Let go, having made what was acknowledged durable at either level."""
        try:
            if self.acknowledged.position[0] != self._stated:
                self._drop_finished()  # reading on found the end of a chunk, behind its last acknowledgement
            self._disk.sync(self._cursor.fd)
        except OSError as error:
            raise storage_error(error, "syncing", self._cursor.path) from error
        finally:
            self.let_go()

    def let_go(self) -> None:
        """Close the files, as the death of the process would."""
        self._commit.close()
        self._reader.close()

    def after_fork_in_child(self) -> None:
        """In a forked child: the parent's descriptors are closed, nothing is written."""
        self._commit.after_fork_in_child()
        self._reader.close()
