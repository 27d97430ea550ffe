"""The file FIFO: a journal that every process may append to, and the one process that takes from it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import TypeVar

from persistcoll.disk import Disk, close_quietly, storage_error
from persistcoll.engine.contracts import Claim
from persistcoll.engine.lifecycle import refusal
from persistcoll.engine.signals import SLOWEST_POLL
from persistcoll.engine.values import Durability, Record, Stats
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
from persistcoll.journal.cursors import Acknowledged, Position
from persistcoll.journal.directory import (
    CONSUMER_LOCK,
    CURSOR,
    PRODUCER_LOCK,
    Wanted,
    occupied,
    open_info,
    prepare,
)
from persistcoll.journal.journal import Journal
from persistcoll.journal.observer import Observer
from persistcoll.journal.producer_lock import ProducerLock
from persistcoll.journal.reader import Reader
from persistcoll.journal.recovery import Place

__all__ = ["Fifo", "Seal"]

_PATIENCE = 100  # tries

T = TypeVar("T")
Seal = Callable[[bytes, int], bytes]


def _no_seal(store_id: bytes) -> Seal | None:
    return None


class Fifo:
    """A :class:`~persistcoll.engine.contracts.Store` in a directory.

    Appending belongs to every process, taking to the one that took first, until it closes or ends.

    :param seal_for: given the store's id, what to apply to each payload and id before writing.
    :raise LockedError: by any call that takes, while another process consumes.
    """

    slowest_poll = SLOWEST_POLL

    def __init__(
        self,
        path: str,
        wanted: Wanted,
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
        self._mutex = threading.Lock()
        self._trouble: StorageError | ClosedError | None = None
        self._open()

    def _open(self) -> None:
        disk, path = self._disk, self._path
        prepare(disk, path, self._wanted)
        self._consumer: Consumer | None = None
        with ExitStack() as undo:
            producer_fd = self._open_lock(PRODUCER_LOCK, undo)
            self._lock = ConsumerLock(disk, self._open_lock(CONSUMER_LOCK, undo), path)
            producer_lock = ProducerLock(disk, producer_fd, path)
            with producer_lock:
                try:
                    self._open_journal(producer_lock, undo)
                except OSError as error:
                    if isinstance(error, StorageError):
                        raise
                    raise storage_error(error, "opening", path) from error
            undo.pop_all()
        self._append = self._journal.append
        self._forked = False

    def _open_lock(self, name: str, undo: ExitStack) -> int:
        path = os.path.join(self._path, name)
        try:
            fd = self._disk.open(path, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise storage_error(error, "opening", path) from error
        undo.callback(close_quietly, self._disk, fd)
        return fd

    def _open_journal(self, lock: ProducerLock, undo: ExitStack) -> None:
        disk, path, wanted = self._disk, self._path, self._wanted
        info = open_info(disk, path, wanted)
        self.store_id = info.store_id
        self._place = Place(disk, path, info.store_id, info.serializer, wanted.tempdir, wanted.on_corruption)
        self._observer = observer = Observer(self._place, os.path.join(path, CURSOR), self._lock)
        undo.callback(observer.close)
        self._journal = Journal(
            self._place,
            lock,
            chunksize=wanted.chunksize or info.chunksize,
            power=self._power,
            floor=lambda: observer.acknowledged().highest,
            bury=observer.bury,
            seal=self._seal_for(info.store_id),
            failed=self._poison,
        )
        undo.callback(self._journal.drop)
        if not observer.cursor_exists:
            # Now, and not when the first consumer comes: the disk may be full by then.
            observer.bury(1, 0)

    def _poison(self, failure: StorageError) -> None:
        """After a failed sync nothing more is done on these descriptors, by anybody."""
        if self._trouble is None:
            self._trouble = failure
            self._journal.refuse(failure)

    def _check(self) -> None:
        """With the mutex held: refuse, or open anew in a forked child."""
        if self._trouble is not None:
            raise refusal(self._trouble, self._path)
        if self._forked:
            self._open()

    def _consuming(self) -> Consumer:
        """With the mutex held: the consumer, which this process becomes."""
        self._check()
        if self._consumer is None:
            try:
                died = self._lock.acquire()
                seen, whole = self._observer.hand_over()
                path = os.path.join(self._path, CURSOR)
                self._consumer = Consumer(
                    self._place, self._journal, self._lock, path, seen, whole and not died, self._poison
                )
            except OSError as error:
                self._lock.release()
                if isinstance(error, StorageError):
                    raise
                raise storage_error(error, "opening", self._path) from error
        return self._consumer

    # Appending.

    def append(self, payload: bytes, capacity: int = 0, *, deadline: float | None = None) -> int:
        if self._forked:
            self._revive()
        if not capacity:
            return self._append(payload)
        return self._append(payload, lambda last: self._admit(last + 1, capacity))

    def append_many(
        self, payloads: Sequence[bytes], capacity: int = 0, *, deadline: float | None = None
    ) -> range:
        if self._forked or not payloads:
            self._revive()
        if not payloads:
            return range(0)
        if not capacity:
            return self._journal.append_many(payloads)
        more = len(payloads)
        return self._journal.append_many(payloads, lambda last: self._admit(last + more, capacity))

    def _revive(self) -> None:
        with self._mutex:
            self._check()

    def _admit(self, last: int, capacity: int) -> None:
        """Raise ``Full`` unless the id ``last`` is within capacity. The producer lock is held."""
        consumer = self._consumer
        if consumer is not None:
            gone = consumer.gone
        else:
            # What is acknowledged stays so: a count that is out of date errs on the safe side.
            gone = self._observer.acknowledged_at_least
            if last - gone > capacity:
                gone = self._observer.gone()
        if last - gone > capacity:
            raise Full

    # Taking.

    def take(
        self,
        use: Callable[[Record], T],
        acknowledge: bool = False,
        *,
        claims: list[Claim] | None = None,
        deadline: float | None = None,
    ) -> T:
        with self._mutex:
            consumer = self._consumer
            if consumer is None or self._trouble is not None or self._forked:
                consumer = self._consuming()
            value = consumer.take(use, acknowledge, claims)
        if acknowledge and self._power:
            consumer.commit()
        return value

    def take_many(
        self,
        limit: int,
        use: Callable[[Record], T],
        acknowledge: bool = False,
        *,
        claims: list[Claim] | None = None,
        deadline: float | None = None,
    ) -> list[T]:
        with self._mutex:
            consumer = self._consuming()
            values = consumer.take_many(limit, use, acknowledge, claims)
        if acknowledge and self._power:
            consumer.commit()
        return values

    def acknowledge(self, ids: Sequence[int]) -> None:
        with self._mutex:
            consumer = self._consumer
            if consumer is None or self._trouble is not None or self._forked:
                self._check()
                if not ids:
                    return
                consumer = self._holding()
            consumer.acknowledge(ids)
        if self._power:
            consumer.commit()

    def give_back(self, id: int) -> None:
        with self._mutex:
            self._holding().give_back(id)

    def release(self, claims: Sequence[Claim]) -> int:
        with self._mutex:
            self._check()
            return 0 if self._consumer is None else self._consumer.release(claims)

    def _holding(self) -> Consumer:
        self._check()
        if self._consumer is None:
            raise NotClaimedError("this process has taken nothing")
        return self._consumer

    def discard(self, id: int | None = None) -> int | None:
        with self._mutex:
            consumer = self._consuming()
            discarded = consumer.discard(id)
        if self._power:
            consumer.commit()
        return discarded

    def clear(self) -> int:
        with self._mutex:
            consumer = self._consuming()
            cleared = consumer.clear()
        if self._power:
            consumer.commit()
        return cleared

    # Looking.

    def peek(self, use: Callable[[Record], T]) -> T:
        with self._mutex:
            self._check()
            if self._consumer is not None:
                return self._consumer.peek(use)
        for record in self.records():
            return use(record)
        raise Empty

    def records(self) -> Iterator[Record]:
        with self._mutex:
            self._check()
            until = self._journal.refresh()
            held: Callable[[int], bool]
            if self._consumer is not None:
                acknowledged = self._consumer.acknowledged.copy()
                held = frozenset(self._consumer.claimed).__contains__
            else:
                seen, published = self._observer.look()
                acknowledged, held = seen.copy(), published.holds
        for record in self._read(acknowledged, until):
            if not held(record.id):
                yield record

    def _read(self, acknowledged: Acknowledged, until: int) -> Iterator[Record]:
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
                with self._mutex:
                    self._check()
                    now = self._acknowledged()
                    if now.last <= last:
                        raise
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
        with self._mutex:
            self._check()
            return self._count()

    def _count(self) -> int:
        for _ in range(_PATIENCE):
            if self._consumer is not None:
                return self._journal.refresh() - self._consumer.gone
            # Two numbers that other processes change: they are of one moment if the one that was
            # read first is still the same after the other was read.
            gone = self._observer.gone()
            last = self._journal.refresh()
            if self._observer.gone() == gone:
                return last - gone
        return max(0, last - self._observer.gone())

    def claimed(self) -> int:
        with self._mutex:
            self._check()
            if self._consumer is not None:
                return len(self._consumer.claimed)
            acknowledged, published = self._observer.look()
            return max(0, published.gone - acknowledged.count)

    def unfinished(self) -> int:
        with self._mutex:
            self._check()
            return self._journal.refresh() - self._acknowledged().count

    def version(self) -> object:
        with self._mutex:
            self._check()
            if self._consumer is not None:
                return self._journal.version()
            return self._journal.version(), self._observer.version()

    def stats(self) -> Stats:
        ready, claimed = self.count(), self.claimed()
        oldest = next(self.records(), None)
        with self._mutex:
            return Stats(
                ready=ready,
                claimed=claimed,
                dead=self._consumer.dead if self._consumer is not None else 0,
                oldest_age=None if oldest is None else max(0.0, time.time() - oldest.time),
                puts=self._journal.tail[2],
                gets=self._acknowledged().count,
                bytes=occupied(self._path),
            )

    # The end.

    def close(self) -> None:
        with self._mutex:
            if isinstance(self._trouble, ClosedError):
                return
            failed, self._trouble = self._trouble is not None, ClosedError("closed")
            if self._forked:
                return
            with ExitStack() as last:
                last.callback(self._observer.close)
                last.push(lambda kind, error, trace: self._lock.close(clean=not failed and kind is None))
                if self._consumer is not None:
                    last.callback(self._consumer.close, failed)
                self._journal.close()

    def abandon(self) -> None:
        if self._forked or isinstance(self._trouble, ClosedError):
            return  # the numbers of our descriptors are other files' by now
        self._mutex = threading.Lock()
        self._forked = True
        if self._consumer is not None:
            self._consumer.abandon()
        self._observer.close()
        self._journal.abandon()
        self._lock.abandon()
