"""The file FIFO: a journal that every process may append to, and the one process that takes from it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack
from typing import TypeVar

from persistcoll.disk.calls import Disk, open_lasting, storage_error
from persistcoll.disk.path_checks import occupied
from persistcoll.engine.contracts import MAX_POLL_INTERVAL, Claim, QueueStore
from persistcoll.engine.forks import (
    note_users,
    owned,
    refusal,
    used_no_more,
    within_an_operation,
)
from persistcoll.engine.process import SAME, follow_fork
from persistcoll.engine.records import Durability, Record, Stats
from persistcoll.errors import (
    ClosedError,
    CorruptionError,
    Empty,
    Full,
    NotClaimedError,
    StorageError,
)
from persistcoll.journal.consumer import Consumer
from persistcoll.journal.consumer_lock import ConsumerLock
from persistcoll.journal.cursor_view import CursorView
from persistcoll.journal.cursors import Acknowledged, Position
from persistcoll.journal.directory import (
    CONSUMER_LOCK,
    CURSOR,
    PRODUCER_LOCK,
    OpenOptions,
    open_info,
    prepare,
)
from persistcoll.journal.ground import refuse_replaced
from persistcoll.journal.journal import REENTRANT, Journal
from persistcoll.journal.producer_lock import ProducerLock
from persistcoll.journal.reader import Reader
from persistcoll.journal.recovery import JournalLocation

__all__ = ["JournalQueueStore", "Seal"]

_PATIENCE = 100  # tries

T = TypeVar("T")
Seal = Callable[[bytes, int], bytes]


def _no_seal(store_id: bytes) -> Seal | None:
    return None


class JournalQueueStore(QueueStore):
    """A :class:`~persistcoll.engine.contracts.QueueStore` in a directory.

    Appending belongs to every process, taking to the one that took first, until it closes or ends.

    :param seal_for: given the store's id, what to apply to each payload and id before writing.
    :raise LockedError: by any call that takes, while another process consumes.
    """

    max_poll_interval = MAX_POLL_INTERVAL

    def __init__(
        self,
        path: str,
        wanted: OpenOptions,
        *,
        durability: Durability = "power",
        disk: Disk | None = None,
        seal_for: Callable[[bytes], Seal | None] = _no_seal,
    ) -> None:
        self._path = path
        self._wanted = wanted
        self._power = durability == "power"
        self._disk = disk or Disk()
        self._seal_for = seal_for
        self._trouble: StorageError | ClosedError | None = None
        self._released = False
        self._forked = False  # opened anew by the next call
        self._make_locks()
        note_users(self)
        with self._taking:
            self._open()

    def _make_locks(self) -> None:
        # Who takes or looks has the first; who appends, or follows another consumer, the second, within the
        # first if at all.
        self._taking, self._appending = threading.RLock(), threading.RLock()
        self._takes, self._appends = owned(self._taking), owned(self._appending)

    def _open(self) -> None:
        try:
            self._prepare()
            self._open_files()
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            raise storage_error(error, "opening", self._path) from error
        self._append = self._journal.append
        self._forked = False

    def _prepare(self) -> None:
        prepare(self._disk, self._path, self._wanted)

    def _open_files(self) -> None:
        disk = self._disk
        self._consumer: Consumer | None = None
        with ExitStack() as undo:
            paths = [os.path.join(self._path, name) for name in (PRODUCER_LOCK, CONSUMER_LOCK)]
            files = [undo.enter_context(open_lasting(disk, path)) for path in paths]
            landmarks = tuple((path, file.fd) for path, file in zip(paths, files, strict=True))
            self._lock = ConsumerLock(disk, files[1], paths[1], self._appending)
            lock = ProducerLock(disk, files[0], paths[0])
            try:
                lock.acquire()
                refuse_replaced(disk, landmarks)
                self._open_journal(lock, landmarks, undo)
            finally:
                lock.release()
            undo.pop_all()

    def _open_journal(
        self, lock: ProducerLock, landmarks: tuple[tuple[str, int], ...], undo: ExitStack
    ) -> None:
        disk, path, wanted = self._disk, self._path, self._wanted
        info = open_info(disk, path, wanted)
        self.store_id = info.store_id
        self._place = JournalLocation(
            disk, path, info.store_id, info.serializer, wanted.tempdir, wanted.on_corruption, landmarks
        )
        self._observer = observer = CursorView(
            self._place, os.path.join(path, CURSOR), self._lock, self._appending
        )
        undo.callback(observer.close)
        self._journal = Journal(
            self._place,
            lock,
            self._appending,
            chunksize=wanted.chunksize or info.chunksize,
            power=self._power,
            floor=lambda: observer.acknowledged().highest,
            bury=observer.bury,
            seal=self._seal_for(info.store_id),
            failed=self._poison,
        )
        undo.callback(self._journal.let_go)
        if not observer.cursor_exists:
            # Now, and not when the first consumer comes: the disk may be full by then.
            observer.bury(1, 0)

    def _poison(self, failure: StorageError) -> None:
        """After a failed sync nothing more is done on these descriptors, by anybody."""
        if self._trouble is None:
            self._trouble = failure
            self._journal.refuse(failure)

    # Arriving. A call may come from a signal handler or a destructor within another one of this thread, and
    # in a process that was forked behind Python's back.

    def used_here(self) -> bool:
        return self._takes() or self._appends()

    def _arrive(self) -> None:
        """Before a lock is waited for: ``StorageError`` if this thread has it."""
        if not SAME[0]:
            self._follow_fork()
        if self._takes() or self._appends():
            raise StorageError(REENTRANT)

    def _follow_fork(self) -> None:
        follow_fork()  # calls `after_fork_in_child`, where a container holds this store
        self.after_fork_in_child()

    def _check(self) -> None:
        """With ``_taking`` held: refuse, or open anew in a forked child."""
        if self._trouble is not None:
            raise refusal(self._trouble, self._path)
        if self._forked:
            self._open()

    def _consuming(self) -> Consumer:
        """With ``_taking`` held: the consumer, which this process becomes."""
        self._check()
        consumer = self._consumer
        if consumer is not None:
            if consumer.unsure:
                self._settle(consumer)
            return consumer
        try:
            try:
                clean = self._lock.acquire()
                self._place.check()
                seen, whole = self._observer.hand_over()
                path = os.path.join(self._path, CURSOR)
                self._consumer = Consumer(
                    self._place,
                    self._journal,
                    self._lock,
                    path,
                    seen,
                    whole and clean,
                    self._poison,
                    self._power,
                )
                return self._consumer
            finally:
                if self._consumer is None:
                    self._lock.held = False
                    self._lock.unlock()
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            raise storage_error(error, "opening", self._path) from error

    def _settle(self, consumer: Consumer) -> None:
        """An operation was interrupted, or failed, before its end."""
        try:
            seen, _ = self._observer.hand_over()
            consumer.begin_anew(seen)
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            self._place.check()
            raise storage_error(error, "reading", self._path) from error

    def _settled(self) -> Consumer | None:
        """With ``_taking`` held: the consumer, if this process is it."""
        self._check()
        if self._consumer is not None and self._consumer.unsure:
            self._settle(self._consumer)
        return self._consumer

    # Appending.

    def append(self, payload: bytes, capacity: int = 0, *, deadline: float | None = None) -> int:
        if self._forked or not SAME[0]:
            self._revive()
        if not capacity:
            return self._append(payload)
        return self._append(payload, self._admission(1, capacity))

    def append_many(
        self, payloads: Sequence[bytes], capacity: int = 0, *, deadline: float | None = None
    ) -> range:
        if self._forked or not SAME[0] or not payloads:
            self._revive()
        if not payloads:
            return range(0)
        if not capacity:
            return self._journal.append_many(payloads)
        return self._journal.append_many(payloads, self._admission(len(payloads), capacity))

    def _revive(self) -> None:
        self._arrive()
        with self._taking:
            self._check()

    def _admission(self, more: int, capacity: int) -> Callable[[int], None]:
        consumer = self._consumer
        if consumer is not None and consumer.unsure and not self.used_here():
            with self._taking:
                self._settled()
        return lambda last: self._admit(last + more, capacity)

    def _admit(self, last: int, capacity: int) -> None:
        """Raise ``Full`` unless the id ``last`` is within capacity. The producer lock is held."""
        consumer = self._consumer
        if consumer is not None:
            gone = consumer.gone
        else:
            # What is acknowledged stays so: a count that is out of date errs on the safe side.
            gone = self._observer.known.count
            if last - gone > capacity:
                gone = self._observer.gone()
        if last - gone > capacity:
            raise Full

    # Taking.

    def take(
        self,
        decode: Callable[[Record], T],
        acknowledge: bool = False,
        *,
        claims: list[Claim] | None = None,
        deadline: float | None = None,
    ) -> T:
        if not SAME[0] or self._takes() or self._appends():
            self._arrive()
        with self._taking:
            consumer = self._consumer
            if consumer is None or consumer.unsure or self._trouble is not None or self._forked:
                consumer = self._consuming()
            value = consumer.take(decode, acknowledge, claims)
        if acknowledge and self._power:
            consumer.commit()
        return value

    def take_many(
        self,
        limit: int,
        decode: Callable[[Record], T],
        acknowledge: bool = False,
        *,
        claims: list[Claim] | None = None,
        deadline: float | None = None,
    ) -> list[T]:
        self._arrive()
        with self._taking:
            consumer = self._consuming()
            values = consumer.take_many(limit, decode, acknowledge, claims)
        if acknowledge and self._power:
            consumer.commit()
        return values

    def ack(self, ids: Sequence[int]) -> None:
        if not SAME[0] or self._takes() or self._appends():
            self._arrive()
        with self._taking:
            consumer = self._consumer
            if consumer is None or consumer.unsure or self._trouble is not None or self._forked:
                self._check()
                if not ids:
                    return
                consumer = self._holding()
            consumer.ack(ids)
        if self._power:
            consumer.commit()

    def nack(self, id: int) -> None:
        self._arrive()
        with self._taking:
            self._holding().nack(id)

    def release(self, claims: Sequence[Claim]) -> int:
        self._arrive()
        with self._taking:
            consumer = self._settled()
            return 0 if consumer is None else consumer.release(claims)

    def _holding(self) -> Consumer:
        consumer = self._settled()
        if consumer is None:
            raise NotClaimedError("this process has taken nothing")
        return consumer

    def remove(self, id: int | None = None) -> int | None:
        self._arrive()
        with self._taking:
            consumer = self._consuming()
            discarded = consumer.remove(id)
        if self._power:
            consumer.commit()
        return discarded

    def clear(self) -> int:
        self._arrive()
        with self._taking:
            consumer = self._consuming()
            cleared = consumer.clear()
        if self._power:
            consumer.commit()
        return cleared

    # Looking. Within another operation of this thread a look says what is known, and reads nothing on: the
    # operation is in the midst of it.

    def _within(self) -> bool:
        if not SAME[0]:
            self._follow_fork()
        return self.used_here()

    def peek(self, decode: Callable[[Record], T]) -> T:
        if not self._within():
            with self._taking:
                consumer = self._settled()
                if consumer is not None:
                    return consumer.peek(decode)
        records = self.records()
        try:
            for record in records:
                return decode(record)
        finally:
            records.close()
        raise Empty

    def records(self) -> Generator[Record, None, None]:
        if self._within():
            until, (acknowledged, held) = self._journal.tail[2], self._known()
        else:
            with self._taking:
                consumer = self._settled()
                until = self._journal.refresh()
                acknowledged, held = self._known() if consumer is not None else self._observed()
        reading = self._read(acknowledged, until)
        try:
            for record in reading:
                if not held(record.id):
                    yield record
        finally:
            reading.close()

    def _known(self) -> tuple[Acknowledged, Callable[[int], bool]]:
        consumer = self._consumer
        if consumer is not None:
            return consumer.acknowledged.copy(), frozenset(consumer.claimed).__contains__
        return self._observer.known.copy(), lambda id: False

    def _observed(self) -> tuple[Acknowledged, Callable[[int], bool]]:
        seen, published = self._observer.look()
        return seen.copy(), published.holds

    def _read(self, acknowledged: Acknowledged, until: int) -> Generator[Record, None, None]:
        last, position = acknowledged.last, acknowledged.position
        reader: Reader | None = None
        while last < until:
            try:
                reader = self._reader(last, position, acknowledged)
                while (entry := reader.current()) is not None and entry[0].id <= until:
                    reader.advance()
                    last = entry[0].id
                    yield entry[0]
                return
            except CorruptionError:
                # A chunk that is gone because it was consumed meanwhile is no damage: go on behind it.
                self._arrive()
                with self._taking:
                    self._settled()
                    now = self._acknowledged()
                    if now.count <= acknowledged.count:
                        raise
                    acknowledged = now.copy()
                    if now.last > last:
                        last, position = now.last, now.position
            finally:
                if reader is not None:
                    reader.close()

    def _reader(self, last: int, position: Position, acknowledged: Acknowledged) -> Reader:
        try:
            return Reader(self._place, last, position, acknowledged, lambda: self._journal.tail)
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            raise storage_error(error, "reading", self._path) from error

    def _acknowledged(self) -> Acknowledged:
        return self._consumer.acknowledged if self._consumer is not None else self._observer.acknowledged()

    def count(self) -> int:
        if self._within():
            consumer = self._consumer
            gone = self._observer.known.count if consumer is None else consumer.gone
            return max(0, self._journal.tail[2] - gone)
        with self._taking:
            consumer = self._settled()
            for _ in range(_PATIENCE):
                if consumer is not None:
                    return self._journal.refresh() - consumer.gone
                # Two numbers that other processes change: they are of one moment if the one that was
                # read first is still the same after the other was read.
                gone = self._observer.gone()
                last = self._journal.refresh()
                if self._observer.gone() == gone:
                    return last - gone
            return max(0, last - self._observer.gone())

    def claimed(self) -> int:
        if self._within():
            return 0 if self._consumer is None else len(self._consumer.claimed)
        with self._taking:
            consumer = self._settled()
            if consumer is not None:
                return len(consumer.claimed)
            acknowledged, published = self._observer.look()
            return max(0, published.gone - acknowledged.count)

    def unfinished(self) -> int:
        if self._within():
            return self.count() + self.claimed()
        with self._taking:
            self._settled()
            return self._journal.refresh() - self._acknowledged().count

    def change_token(self) -> object:
        self._arrive()
        with self._taking:
            if self._settled() is not None:
                return self._journal.change_token()
            return self._journal.change_token(), self._observer.change_token()

    def stats(self) -> Stats:
        ready, claimed = self.count(), self.claimed()
        records = self.records()
        try:
            oldest = next(records, None)
        finally:
            records.close()
        consumer = self._consumer
        return Stats(
            ready=ready,
            claimed=claimed,
            dead=consumer.dead if consumer is not None else 0,
            oldest_age=None if oldest is None else max(0.0, time.time() - oldest.time),
            puts=self._journal.tail[2],
            gets=(self._observer.known if consumer is None else consumer.acknowledged).count,
            bytes=self._occupied(),
        )

    def _occupied(self) -> int:
        try:
            names = os.listdir(self._path)
        except OSError as error:
            raise storage_error(error, "listing", self._path) from error
        return occupied(os.path.join(self._path, name) for name in names)

    # The end.

    def close(self) -> None:
        """From within another operation of this thread nothing is waited for.

        If the operation is one of this store, it ends well, everything after it is refused, and the files
        are closed by the next ``close`` or when nobody holds the store any more. If it is another store's,
        as in a destructor, they are let go as by the death of the process.
        """
        if not SAME[0]:
            self._follow_fork()
        if self._takes() or self._appends():
            self._refuse()
        elif not within_an_operation():
            with self._taking:
                self._close(clean=True)
        elif self._taking.acquire(blocking=False):
            try:
                if self._appending.acquire(blocking=False):
                    try:
                        self._close(clean=False)
                    finally:
                        self._appending.release()
                else:
                    self._refuse()
            finally:
                self._taking.release()
        else:
            self._refuse()

    def _refuse(self) -> None:
        closed = ClosedError("closed")
        self._trouble = self._trouble or closed
        self._journal.refuse(closed)

    def _close(self, clean: bool) -> None:
        clean = clean and self._trouble is None and not self._released and self._is_open()
        self._trouble = ClosedError("closed")
        if self._released or self._forked:
            return
        try:
            if clean:
                try:
                    # First, because it removes no chunk without the producer lock's file.
                    if self._consumer is not None:
                        self._consumer.close()
                finally:
                    self._journal.close()
                self._lock.close(clean=True)
        finally:
            self._let_go()

    def _is_open(self) -> bool:
        """Whether no destructor of a file was called before the one that closes this store."""
        consumer = self._consumer
        return self._lock.is_open and self._journal.is_open and (consumer is None or consumer.is_open)

    def _let_go(self) -> None:
        """Close the files, as the death of the process would."""
        self._journal.let_go()
        if self._consumer is not None:
            self._consumer.let_go()
        self._lock.close()
        self._observer.close()
        self._released = True
        used_no_more(self)

    def after_fork_in_child(self) -> None:
        if self._forked:
            return
        self._forked = True
        self._make_locks()
        if self._released:
            return
        if self._consumer is not None:
            self._consumer.after_fork_in_child()
        self._observer.close()
        self._journal.after_fork_in_child()
        self._lock.close()
