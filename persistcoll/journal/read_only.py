"""Looking at a file queue without writing anything: for a user who may only read, on a read-only file system.

Every file is opened for reading. The only lock is the shared one by which every process asks for an instant
whether a consumer lives.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, NoReturn, cast

from persistcoll.disk.calls import SIZE, OpenFile, storage_error
from persistcoll.disk.path_checks import refuse_if_others_may_write, refuse_network
from persistcoll.engine.contracts import Claim
from persistcoll.engine.forks import read_only_error
from persistcoll.engine.records import Record
from persistcoll.errors import StorageError, StoreKindError, StoreMissingError
from persistcoll.journal.chunks import Chunk, chunk_numbers, open_chunk
from persistcoll.journal.consumer import Consumer
from persistcoll.journal.consumer_lock import ConsumerLock
from persistcoll.journal.cursor_view import CursorView
from persistcoll.journal.directory import CONSUMER_LOCK, CURSOR, INFO, PRODUCER_LOCK, look_at_info
from persistcoll.journal.frames import BadFrame, Frames, Stop
from persistcoll.journal.journal import Journal
from persistcoll.journal.queue_store import JournalQueueStore
from persistcoll.journal.recovery import JournalLocation
from persistcoll.journal.tail_mark import read_mark

__all__ = ["ReadOnlyQueueStore"]


class ReadOnlyQueueStore(JournalQueueStore):
    """A :class:`JournalQueueStore` that writes nothing: what would change something is a ``StorageError``."""

    def _prepare(self) -> None:
        path, wanted = self._path, self._wanted
        if not os.path.lexists(path):
            raise StoreMissingError(f"there is nothing to look at: {path!r} does not exist")
        if not os.path.isdir(path):
            raise StoreKindError(f"{path!r} is not a directory")
        if not wanted.allow_network_fs:
            refuse_network(path)
        if wanted.executes_code and not wanted.trust_directory:
            refuse_if_others_may_write((path, os.path.join(path, INFO)), wanted.serializer)

    def _open_files(self) -> None:
        disk, path = self._disk, self._path
        self._consumer = None
        info = look_at_info(disk, path, self._wanted)
        self.store_id = info.store_id
        with ExitStack() as undo:
            lock_path = os.path.join(path, CONSUMER_LOCK)
            file = undo.enter_context(OpenFile(disk, lock_path, os.O_RDONLY))
            self._lock = ConsumerLock(disk, file, lock_path, self._appending)
            self._place = JournalLocation(
                disk,
                path,
                info.store_id,
                info.serializer,
                on_corruption=self._wanted.on_corruption,
                landmarks=((lock_path, file.fd),),
            )
            self._observer = CursorView(self._place, os.path.join(path, CURSOR), self._lock, self._appending)
            undo.callback(self._observer.close)
            journal = _Tail(self._place)
            undo.callback(journal.let_go)
            journal.refresh()
            self._observer.acknowledged()
            self._journal = cast(Journal, journal)
            undo.pop_all()

    def _check(self) -> None:
        super()._check()
        self._place.check()

    def append(self, payload: bytes, capacity: int = 0, *, deadline: float | None = None) -> NoReturn:
        raise read_only_error(repr(self._path))

    def append_many(
        self, payloads: Sequence[bytes], capacity: int = 0, *, deadline: float | None = None
    ) -> NoReturn:
        raise read_only_error(repr(self._path))

    def ack(self, ids: Sequence[int]) -> NoReturn:
        raise read_only_error(repr(self._path))

    def release(self, claims: Sequence[Claim]) -> NoReturn:
        raise read_only_error(repr(self._path))

    def _consuming(self) -> Consumer:
        raise read_only_error(repr(self._path))

    _holding = _consuming


class _Tail:
    """The end of the journal, followed as far as it is whole. Takes the place of a :class:`Journal`.

    Its owner holds a lock.
    """

    append: Callable[..., Any]
    is_open = True  # closing it writes nothing, whatever a destructor has closed before

    def __init__(self, place: JournalLocation) -> None:
        self._place = place
        self._file: OpenFile | None = None
        self._chunk: Chunk | None = None
        self.tail = (0, 0, 0)
        self.append = self.refuse

    def refresh(self) -> int:
        """Read on; the id of the last record."""
        try:
            if self._file is None or self._place.disk.status(self._file.fd)[SIZE] < self.tail[1]:
                self._locate()
            while self._read_on():
                pass
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            raise storage_error(error, "reading", self._place.directory) from error
        return self.tail[2]

    def change_token(self) -> object:
        """Differs from an earlier one when anything was appended since."""
        self.refresh()
        return self.tail

    def _locate(self) -> None:
        """Begin where the mark says that all is whole, or with the last chunk."""
        place = self._place
        with OpenFile(place.disk, os.path.join(place.directory, PRODUCER_LOCK), os.O_RDONLY) as file:
            mark = read_mark(place.disk, file.fd)
        numbers = chunk_numbers(place.directory)
        if not numbers or not self._enter(numbers[-1]):
            self.tail = (0, 0, mark.last_id if mark is not None else 0)
            return
        assert self._chunk is not None
        if mark is not None and (mark.number, mark.salt) == (self._chunk.number, self._chunk.salt):
            self.tail = (mark.number, mark.offset, mark.last_id)

    def _enter(self, number: int) -> bool:
        """Go to the beginning of that chunk, or of the first one behind it; whether there is one."""
        place = self._place
        while True:
            try:
                file, chunk = open_chunk(place.disk, place.directory, number, place.store_id)
                break
            except FileNotFoundError:
                # Not begun yet, or consumed and gone.
                later = [other for other in chunk_numbers(place.directory) if other > number]
                if not later:
                    return False
                number = later[0]
        self.let_go()
        self._file, self._chunk = file, chunk
        self.tail = (number, chunk.data_offset, chunk.first_id - 1)
        return True

    def _read_on(self) -> bool:
        """Read to the end of the chunk; whether another file follows."""
        file, chunk = self._file, self._chunk
        if file is None or chunk is None:
            return False
        number, end, last = self.tail
        frames = Frames(self._place.disk, file.fd, chunk.salt, end)
        found: Record | Stop = Stop.INCOMPLETE
        try:
            while isinstance(found := frames.read(), Record):
                last += 1
                if found.id != last:
                    break
                if not frames.in_batch:
                    self.tail = (number, frames.end, last)
        except BadFrame:
            return False  # somebody's half-written record
        if found is Stop.END:
            return self._enter(number + 1)
        return found is Stop.MOVED and self._reopen()

    def _reopen(self) -> bool:
        """The chunk was rewritten, with the same frames; whether it has its name by now."""
        place, old = self._place, self._file
        assert old is not None
        file, chunk = open_chunk(place.disk, place.directory, self.tail[0], place.store_id)
        if os.path.samestat(place.disk.status(file.fd), place.disk.status(old.fd)):
            file.close()
            return False
        self.let_go()
        self._file, self._chunk = file, chunk
        return True

    def refuse(self, failure: BaseException) -> None:
        """Nothing is written here anyway."""

    def let_go(self) -> None:
        """Close the chunk."""
        file, self._file = self._file, None
        if file is not None:
            file.close()

    close = after_fork_in_child = let_go
