"""The store of a file queue: every process may append to its journal, and one process consumes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

from persistcoll.disk.calls import storage_error
from persistcoll.disk.path_checks import occupied
from persistcoll.engine.contracts import MAX_POLL_INTERVAL, Claim, QueueStore, Select
from persistcoll.engine.poison import Poison
from persistcoll.engine.process import SAME
from persistcoll.engine.records import Record, Stats
from persistcoll.errors import CorruptionError, Empty, Full, NotClaimedError, StorageError
from persistcoll.journal.chunk_removal import ConsumedChunks
from persistcoll.journal.consumer_lock import ConsumerLock
from persistcoll.journal.cursor import Cursor
from persistcoll.journal.cursor_view import CursorView
from persistcoll.journal.cursors import Acknowledged, Position
from persistcoll.journal.directory import CONSUMER_LOCK, CURSOR
from persistcoll.journal.open import Opening
from persistcoll.journal.queue_claims import QueueClaims
from persistcoll.journal.reader import Reader
from persistcoll.journal.store import JournalStore

__all__ = ["JournalQueueStore"]

_TRIES = 100
_NO_SELECT = "a file queue delivers its items in order, and none by its id"

T = TypeVar("T")


class JournalQueueStore(JournalStore, QueueStore):
    """A :class:`~persistcoll.engine.contracts.QueueStore` in a directory. Thread-safe.

    Every process may append. The process that first claims a record is the consumer until it closes the store
    or ends. In any other process the calls that claim, pop or remove raise ``LockedError``.

    ``_consuming`` protects the consumer with its claims and its cursor. A thread that claims or inspects
    holds it. ``_appending`` also protects the view of another process's cursor, and the test of the consumer
    lock.

    No thread holds either lock while it waits for a sync of its acks or of a record that it appends.

    The parameters are those of :class:`~persistcoll.journal.store.JournalStore`.
    """

    max_poll_interval = MAX_POLL_INTERVAL

    def _use(self, opening: Opening) -> None:
        self._consumer: QueueClaims | None = None
        self._location = location = opening.location
        lock_path = os.path.join(self._path, CONSUMER_LOCK)
        lock_file = opening.lock_files[CONSUMER_LOCK]
        self._lock = ConsumerLock(self._disk, lock_file, lock_path, self._appending)
        cursor_path = os.path.join(self._path, CURSOR)
        self._cursor_view = cursor_view = CursorView(location, cursor_path, self._lock, self._appending)
        opening.undo.callback(cursor_view.close)
        self._open_journal(opening)
        # The poison of the cursor, a child of the journal's: after a failed sync of either file the store
        # refuses every call.
        self._poison = Poison(self._journal.poison)

    def _open_journal(self, opening: Opening) -> None:
        cursor_view = self._cursor_view
        self._journal = self._open_writable(opening, cursor_view)
        if not cursor_view.cursor_exists:
            # Create the cursor now: when the first consumer comes, the disk may be full.
            cursor_view.create_cursor()

    def _become_consumer(self) -> QueueClaims:
        """Make this process the consumer, and return its claims. The caller holds ``_consuming``.

        :raise LockedError: another process, or another object of this process, consumes.
        """
        self._check()
        consumer = self._consumer
        if consumer is not None:
            if consumer.unsure:
                self._settle(consumer)
            return consumer
        try:
            try:
                clean = self._lock.acquire()
                self._location.check()
                cursor_reader, can_append = self._cursor_view.hand_over_cursor()
                path = os.path.join(self._path, CURSOR)
                cursor = Cursor(self._location, path, cursor_reader.acknowledged, self._poison, self._power)
                chunks = ConsumedChunks(self._location, cursor)
                self._consumer = QueueClaims(
                    self._location,
                    self._journal,
                    self._lock,
                    cursor,
                    chunks,
                    cursor_reader,
                    can_append and clean,
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

    def _settle(self, consumer: QueueClaims) -> None:
        """Rebuild the consumer's state after an operation that was interrupted or failed."""
        try:
            cursor_reader, _ = self._cursor_view.hand_over_cursor()
            consumer.begin_anew(cursor_reader)
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            self._location.check()
            raise storage_error(error, "reading", self._path) from error

    def _settled(self) -> QueueClaims | None:
        """Return the claims if this process is the consumer, otherwise ``None``.

        The caller holds ``_consuming``.
        """
        self._check()
        if self._consumer is not None and self._consumer.unsure:
            self._settle(self._consumer)
        return self._consumer

    # Appending.

    def append(self, payload: bytes, capacity: int = 0, *, deadline: float | None = None) -> int:
        if self._poison.unusable_because is not None or self._forked or not SAME[0]:
            self._check_usable()
        if not capacity:
            return self._append(payload)
        return self._append(payload, self._capacity_check(1, capacity))

    def append_many(
        self, payloads: Sequence[bytes], capacity: int = 0, *, deadline: float | None = None
    ) -> range:
        if self._poison.unusable_because is not None or self._forked or not SAME[0] or not payloads:
            self._check_usable()
        if not payloads:
            return range(0)
        if not capacity:
            return self._append_many(payloads)
        return self._append_many(payloads, self._capacity_check(len(payloads), capacity))

    def _capacity_check(self, more: int, capacity: int) -> Callable[[int], None]:
        consumer = self._consumer
        if consumer is not None and consumer.unsure and not self.used_here():
            with self._consuming:
                self._settled()
        return lambda last: self._check_capacity(last + more, capacity)

    def _check_capacity(self, last: int, capacity: int) -> None:
        """Raise ``Full`` unless the id ``last`` is within capacity. The producer lock is held."""
        consumer = self._consumer
        if consumer is not None:
            not_ready = consumer.not_ready
        else:
            # An acked record stays acked, so that a count that is out of date is too small. It can refuse an
            # append without need, never allow one too many; so it is refreshed before the refusal.
            not_ready = self._cursor_view.known.count
            if last - not_ready > capacity:
                not_ready = self._cursor_view.not_ready()
        if last - not_ready > capacity:
            raise Full

    # Claiming.

    def claim(
        self,
        decode: Callable[[Record], T],
        select: Select | None = None,
        *,
        claims: list[Claim] | None = None,
        deadline: float | None = None,
    ) -> T:
        if select is not None:
            raise ValueError(_NO_SELECT)
        return self._claim_or_pop(decode, False, claims)

    def pop(
        self, decode: Callable[[Record], T], select: Select | None = None, *, deadline: float | None = None
    ) -> T:
        if select is not None:
            raise ValueError(_NO_SELECT)
        return self._claim_or_pop(decode, True, None)

    def _claim_or_pop(
        self, decode: Callable[[Record], T], acknowledge: bool, claims: list[Claim] | None
    ) -> T:
        if not SAME[0] or self._is_consuming() or self._appends():
            self._arrive()
        with self._consuming:
            consumer = self._consumer
            if (
                consumer is None
                or consumer.unsure
                or self._poison.unusable_because is not None
                or self._forked
            ):
                consumer = self._become_consumer()
            value = consumer.claim_or_pop(decode, acknowledge, claims)
        if acknowledge and self._power:
            consumer.commit()
        return value

    def claim_many(
        self,
        limit: int,
        decode: Callable[[Record], T],
        *,
        claims: list[Claim] | None = None,
        deadline: float | None = None,
    ) -> list[T]:
        return self._claim_or_pop_many(limit, decode, False, claims)

    def pop_many(
        self, limit: int, decode: Callable[[Record], T], *, deadline: float | None = None
    ) -> list[T]:
        return self._claim_or_pop_many(limit, decode, True, None)

    def _claim_or_pop_many(
        self, limit: int, decode: Callable[[Record], T], acknowledge: bool, claims: list[Claim] | None
    ) -> list[T]:
        self._arrive()
        with self._consuming:
            consumer = self._become_consumer()
            values = consumer.claim_or_pop_many(limit, decode, acknowledge, claims)
        if acknowledge and self._power:
            consumer.commit()
        return values

    def ack(self, ids: Sequence[int]) -> None:
        if not SAME[0] or self._is_consuming() or self._appends():
            self._arrive()
        with self._consuming:
            consumer = self._consumer
            if (
                consumer is None
                or consumer.unsure
                or self._poison.unusable_because is not None
                or self._forked
            ):
                self._check()
                if not ids:
                    return
                consumer = self._require_consumer()
            consumer.ack(ids)
        if self._power:
            consumer.commit()

    def nack(self, id: int) -> None:
        self.nack_many((id,))

    def nack_many(self, ids: Sequence[int]) -> None:
        self._arrive()
        with self._consuming:
            self._check()
            if ids:
                self._require_consumer().nack(ids)

    def release(self, claims: Sequence[Claim]) -> int:
        self._arrive()
        with self._consuming:
            consumer = self._settled()
            return 0 if consumer is None else consumer.release(claims)

    def _require_consumer(self) -> QueueClaims:
        consumer = self._settled()
        if consumer is None:
            raise NotClaimedError("this process has claimed nothing")
        return consumer

    def remove(self, id: int | None = None) -> int | None:
        self._arrive()
        with self._consuming:
            consumer = self._become_consumer()
            discarded = consumer.remove(id)
        if self._power:
            consumer.commit()
        return discarded

    def clear(self) -> int:
        self._arrive()
        with self._consuming:
            consumer = self._become_consumer()
            cleared = consumer.clear()
        if self._power:
            consumer.commit()
        return cleared

    # Inspection. Within another operation of this thread a method answers from the state in memory and reads
    # no file, because the operation may be changing that state.

    def _within(self) -> bool:
        """Tell whether this thread is within an operation of this store, and follow a fork first."""
        if not SAME[0]:
            self._follow_fork()
        return self.used_here()

    def peek(self, decode: Callable[[Record], T]) -> T:
        if not self._within():
            with self._consuming:
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
            last_id, (acknowledged, held) = self._journal.tail[2], self._known_here()
        else:
            with self._consuming:
                consumer = self._settled()
                last_id = self._journal.refresh()
                acknowledged, held = self._known_here() if consumer is not None else self._observed()
        reading = self._read(acknowledged, last_id)
        try:
            for record in reading:
                if not held(record.id):
                    yield record
        finally:
            reading.close()

    def _known_here(self) -> tuple[Acknowledged, Callable[[int], bool]]:
        consumer = self._consumer
        if consumer is not None:
            return consumer.acknowledged.copy(), frozenset(consumer.claimed).__contains__
        return self._cursor_view.known.copy(), lambda id: False

    def _observed(self) -> tuple[Acknowledged, Callable[[int], bool]]:
        cursor_reader, published = self._cursor_view.snapshot()
        return cursor_reader.copy(), published.has_claimed

    def _read(self, acknowledged: Acknowledged, last_id: int) -> Generator[Record, None, None]:
        last, position = acknowledged.last, acknowledged.position
        reader: Reader | None = None
        while last < last_id:
            try:
                reader = self._reader(last, position, acknowledged)
                while (entry := reader.current()) is not None and entry[0].id <= last_id:
                    reader.advance()
                    last = entry[0].id
                    yield entry[0]
                return
            except CorruptionError:
                # If other records were acked meanwhile, the consumer may have removed the chunk, which is no
                # damage. Continue after the acked records.
                self._arrive()
                with self._consuming:
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
            return Reader(self._journal, last, position, acknowledged)
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            raise storage_error(error, "reading", self._path) from error

    def _acknowledged(self) -> Acknowledged:
        return self._consumer.acknowledged if self._consumer is not None else self._cursor_view.acknowledged()

    def count(self) -> int:
        if self._within():
            consumer = self._consumer
            not_ready = self._cursor_view.known.count if consumer is None else consumer.not_ready
            return max(0, self._journal.tail[2] - not_ready)
        with self._consuming:
            consumer = self._settled()
            for _ in range(_TRIES):
                if consumer is not None:
                    return self._journal.refresh() - consumer.not_ready
                # Other processes change both numbers. They are consistent if the first one is still the same
                # after the second one was read.
                not_ready = self._cursor_view.not_ready()
                last = self._journal.refresh()
                if self._cursor_view.not_ready() == not_ready:
                    return last - not_ready
            return max(0, last - self._cursor_view.not_ready())

    def claimed(self) -> int:
        if self._within():
            return 0 if self._consumer is None else len(self._consumer.claimed)
        with self._consuming:
            consumer = self._settled()
            if consumer is not None:
                return len(consumer.claimed)
            acknowledged, published = self._cursor_view.snapshot()
            return max(0, published.not_ready - acknowledged.count)

    def unfinished(self) -> int:
        if self._within():
            return self.count() + self.claimed()
        with self._consuming:
            self._settled()
            return self._journal.refresh() - self._acknowledged().count

    def change_token(self) -> object:
        self._arrive()
        with self._consuming:
            if self._settled() is not None:
                return self._journal.change_token()
            return self._journal.change_token(), self._cursor_view.change_token()

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
            dead=consumer.skipped_corrupt if consumer is not None else 0,
            oldest_age=None if oldest is None else max(0.0, time.time() - oldest.time),
            puts=self._journal.tail[2],
            gets=(self._cursor_view.known if consumer is None else consumer.acknowledged).count,
            bytes=self._occupied(),
        )

    def _occupied(self) -> int:
        try:
            names = os.listdir(self._path)
        except OSError as error:
            raise storage_error(error, "listing", self._path) from error
        return occupied(os.path.join(self._path, name) for name in names)

    # Closing.

    def _is_open(self) -> bool:
        consumer = self._consumer
        return self._lock.is_open and super()._is_open() and (consumer is None or consumer.is_open)

    def _close_cleanly(self) -> None:
        try:
            # The consumer closes first, because it needs the producer lock's file to remove chunks.
            if self._consumer is not None:
                self._consumer.close()
        finally:
            super()._close_cleanly()
        self._lock.close(clean=True)

    def _close_without_sync(self) -> None:
        super()._close_without_sync()
        if self._consumer is not None:
            self._consumer.close_without_sync()
        self._lock.close()
        self._cursor_view.close()

    def _abandon(self) -> None:
        if self._consumer is not None:
            self._consumer.after_fork_in_child()
        self._cursor_view.close()
        super()._abandon()
        self._lock.close()
