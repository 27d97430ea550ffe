"""Store records with states in SQLite: put, claim, settle and read them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar, cast

from persistcoll.engine.contracts import Claim, RecordStore, Select, StoreCapabilities
from persistcoll.engine.records import NACKED, ClaimPolicy, Discipline, Entry, Record, State, Stats
from persistcoll.errors import DuplicateError, Empty, Full
from persistcoll.sqlite import schema
from persistcoll.sqlite.claiming import ClaimingHandle
from persistcoll.sqlite.claims import Claims
from persistcoll.sqlite.counters import Counters
from persistcoll.sqlite.driver import Execute
from persistcoll.sqlite.handle import Collection
from persistcoll.sqlite.rows import Rows, Seal
from persistcoll.sqlite.scan import TableScan
from persistcoll.sqlite.statements import RecordStatements, record_statements
from persistcoll.sqlite.unique_keys import UniqueKeys

__all__ = ["SQLiteRecordStore"]

T = TypeVar("T")
_UNSURE = object()
_MOST = (1 << 63) - 1  # rows


class SQLiteRecordStore(ClaimingHandle[RecordStatements, Counters], RecordStore):
    """A :class:`~persistcoll.engine.contracts.RecordStore` in a database file.

    Claims need not survive a power cut, because a record whose claim is lost is ready, so claiming does not
    sync.

    The database's lock protects what the transactions of all handles change. ``_last_claim_was_empty`` is a
    hint that any thread reads and sets without a lock.
    """

    capabilities = StoreCapabilities(transactions=True)
    # Seconds. Asking a database costs 20 to 50 us if the processor's caches hold nothing of it any more.
    max_poll_interval = 0.01

    def __init__(self, collection: Collection, discipline: Discipline, retry: ClaimPolicy) -> None:
        has_reasons = collection.version >= schema.RECORD_VERSION
        sql = record_statements(collection.collection_id, discipline, has_reasons)
        self._closing = threading.Lock()
        self._keeps = retry.keep_done > 0
        self._last_claim_was_empty = False
        self._keys = UniqueKeys(discipline.unique, sql)
        super().__init__(collection, sql)
        self._rows = Rows(self._database, sql, self.store_id)
        self._scan = TableScan(self._read, sql, self._rows, self._database.path)
        self._claims = Claims(self, self._rows, self._keys, retry)
        self._holding = self._claims.holding
        self._users = collection.users

    def seal_with(self, seal: Seal | None, unseal: Seal | None) -> None:
        """Apply ``seal`` to each payload and its id before it is written, from now on; ``unseal`` undoes it.

        They are no parameters of the constructor, because both are made with the collection's id, which is
        known only when the collection is open.
        """
        self._rows.seal, self._rows.unseal = seal, unseal

    def _release_due(self, execute: Execute, counters: Counters) -> None:
        self._claims.release_due(execute)

    # Putting.

    def append(self, payload: bytes, capacity: int = 0, *, deadline: float | None = None) -> int:
        if self._closed:
            self._check()
        now = time.time()

        def run(execute: Execute) -> int:
            counters = self._refresh_counters(execute)
            if 0 < capacity <= counters.ready:
                raise Full
            id = counters.last_id + 1
            self._rows.append(execute, id, payload, now)
            counters.last_id = id
            counters.ready += 1
            return id

        return self._database.write(
            run, self._power, single_change=True, deadline=deadline, timeout=self._timeout
        )

    def append_many(
        self, payloads: Sequence[bytes], capacity: int = 0, *, deadline: float | None = None
    ) -> range:
        ids = self.put([Entry(payload) for payload in payloads], capacity, deadline=deadline)
        return range(cast(int, ids[0]), cast(int, ids[-1]) + 1) if ids else range(0)

    def put(
        self, entries: Sequence[Entry], capacity: int = 0, *, deadline: float | None = None
    ) -> list[int | None]:
        self._check()
        if not entries:
            return []
        put_at = time.time()

        def run(execute: Execute) -> list[int | None]:
            counters = self._refresh_counters(execute)
            ids = self._keys.assign_ids(execute, entries, counters.last_id + 1)
            new = [(id, entry) for id, entry in zip(ids, entries, strict=True) if id is not None]
            delays = [entry.delay for _, entry in new if entry.delay > 0]
            more = len(new) - len(delays)
            if more and 0 < capacity < counters.ready + more:
                raise Full
            now = self._now()
            self._rows.append_many(self._database.executemany, new, put_at, now)
            self._keys.insert(execute, ((id, entry.key) for id, entry in new))
            counters.last_id += len(new)
            counters.ready += more
            if delays:
                counters.delayed += len(delays)
                counters.lower_next_due(now + min(delays))
                self._database.mark_dirty(counters)
            return ids

        return self._database.write(run, self._power, deadline=deadline, timeout=self._timeout)

    # Claiming.

    def claim(
        self,
        decode: Callable[[Record], T],
        select: Select | None = None,
        *,
        claims: list[Claim] | None = None,
        deadline: float | None = None,
    ) -> T:
        return self._claim_or_pop(decode, False, select, claims, deadline)

    def pop(
        self, decode: Callable[[Record], T], select: Select | None = None, *, deadline: float | None = None
    ) -> T:
        return self._claim_or_pop(decode, True, select, None, deadline)

    def _claim_or_pop(
        self,
        decode: Callable[[Record], T],
        acknowledge: bool,
        select: Select | None,
        claims: list[Claim] | None,
        deadline: float | None,
    ) -> T:
        if self._closed:
            self._check()
        if select is None:
            if self._last_claim_was_empty:
                self._refuse_empty()
            text, parameters = self._sql.select_ready, (1,)
        else:
            text, parameters = (
                (self._sql.select_ready_after if select.after else self._sql.select_ready_by_id),
                (select.id,),
            )

        def run(execute: Execute) -> tuple[T, tuple[Any, ...]]:
            counters = self._refresh_counters(execute)
            self._holding.reclaim_while_busy(execute)
            row = execute(text, parameters).fetchone()
            if row is None and self._holding.reclaim_if_due(execute):
                row = execute(text, parameters).fetchone()
            if row is None:
                self._rows.check_none_left(counters.ready if select is None else 0)
                self._last_claim_was_empty = True
                raise Empty
            value = decode(self._rows.record(row, 1))
            if not acknowledge:
                self._claims.claim(execute, (row,))
            elif self._keeps:
                self._claims.ack(execute, (row,))
            else:
                self._remove(execute, counters, (row,))
            return value, (row,)

        sync = acknowledge and self._power
        after = None if acknowledge else self._claims.remembering(claims)
        result: tuple[T, Any] = self._database.write(run, sync, False, after, deadline, self._timeout)
        value, _ = result
        return value

    def claim_many(
        self,
        limit: int,
        decode: Callable[[Record], T],
        *,
        claims: list[Claim] | None = None,
        deadline: float | None = None,
    ) -> list[T]:
        return self._claim_or_pop_many(limit, decode, False, claims, deadline)

    def pop_many(
        self, limit: int, decode: Callable[[Record], T], *, deadline: float | None = None
    ) -> list[T]:
        return self._claim_or_pop_many(limit, decode, True, None, deadline)

    def _claim_or_pop_many(
        self,
        limit: int,
        decode: Callable[[Record], T],
        acknowledge: bool,
        claims: list[Claim] | None,
        deadline: float | None,
    ) -> list[T]:
        self._check()
        if self._last_claim_was_empty:
            self._refuse_empty()

        limit = min(limit, _MOST)

        def run(execute: Execute) -> tuple[list[T], list[Any]]:
            counters = self._refresh_counters(execute)
            self._holding.reclaim_while_busy(execute)
            rows = execute(self._sql.select_ready, (limit,)).fetchall()
            if not rows and self._holding.reclaim_if_due(execute):
                rows = execute(self._sql.select_ready, (limit,)).fetchall()
            values: list[T] = []
            for row in rows:
                try:
                    values.append(decode(self._rows.record(row, 1)))
                except Exception:
                    if not values:
                        raise
                    break
            if not values:
                self._rows.check_none_left(counters.ready if limit > 0 else 0)
                self._last_claim_was_empty = True
                raise Empty
            del rows[len(values) :]
            if not acknowledge:
                self._claims.claim(execute, rows)
            elif self._keeps:
                self._claims.ack(execute, rows)
            else:
                self._remove(execute, counters, rows)
            return values, rows

        sync = acknowledge and self._power
        after = None if acknowledge else self._claims.remembering(claims)
        result: tuple[list[T], Any] = self._database.write(run, sync, False, after, deadline, self._timeout)
        values, _ = result
        return values

    def _refuse_empty(self) -> None:
        """Raise ``Empty`` after a read alone, so that polling an empty queue makes no transactions."""
        self._last_claim_was_empty = False

        def query(execute: Execute, counters: Counters) -> None:
            if not counters.ready and not self._holding.may_reclaim():
                self._last_claim_was_empty = True
                raise Empty

        self._read(query)

    def _remove(self, execute: Execute, counters: Counters, rows: Sequence[Any]) -> None:
        """Delete ready rows for good."""
        self._rows.remove(execute, rows)
        if self._keys.unique:
            self._keys.delete(execute, [key for _, _, key, *_ in rows])
        counters.ready -= len(rows)
        counters.finished += len(rows)
        self._database.mark_dirty(counters)

    # Settling.

    def ack(self, ids: Sequence[int]) -> None:
        if self._closed:
            self._check()
        if ids:
            self._claims.finish(ids, State.DONE, None, self._power)

    def fail(self, ids: Sequence[int], reason: str | None = None) -> None:
        self._check()
        if ids:
            self._claims.finish(ids, State.FAILED, reason, self._power)

    def nack(self, id: int, delay: float | None = None, to_back: bool = False, reason: str = NACKED) -> int:
        self._check()
        (new_id,) = self._claims.nack((id,), delay, to_back, reason, self._power)
        return new_id

    def nack_many(self, ids: Sequence[int], reason: str = NACKED) -> None:
        self._check()
        if ids:
            self._claims.nack(ids, None, False, reason, self._power)

    def release(self, claims: Sequence[Claim]) -> int:
        self._check()
        return self._claims.release(claims) if claims else 0

    def reclaim(self) -> int:
        self._check()

        def run(execute: Execute) -> int:
            self._refresh_counters(execute)
            return self._holding.reclaim(execute)

        return self._database.write(run, False, timeout=self._timeout)

    # Changing and removing.

    def requeue(self, id: int | None = None) -> int:
        self._check()
        between = (-_MOST, _MOST) if id is None else (id, id)

        def run(execute: Execute) -> int:
            counters = self._refresh_counters(execute)
            if self._keys.unique:
                execute(self._sql.requeue_keys, between)
            requeued = 0
            for state, text in self._sql.requeue.items():
                count = execute(text, between).rowcount
                self._rows.check_found(execute(self._sql.delete_requeued[state], between).rowcount, count)
                counters.add(state, -count)
                requeued += count
            if requeued:
                counters.ready += requeued
                counters.finished -= requeued
                self._database.mark_dirty(counters)
            elif id is not None and execute(self._sql.is_set_aside, (id,)).fetchone() is not None:
                raise DuplicateError(f"an item that equals item {id} is queued already")
            return requeued

        return self._write(run)

    def update(self, id: int, payload: bytes, key: bytes | None = None) -> bool:
        self._check()

        def run(execute: Execute) -> bool:
            self._refresh_counters(execute)
            holder, row = None, execute(self._sql.select_ready_by_id, (id,)).fetchone()
            if row is None:
                holder, row = self._claims.find_unready(execute, id)
            if row is None:
                return False
            _, _, old_key, *_ = row
            store = self._rows.replacing(id, holder, payload, key)  # raises before the first change
            self._keys.exchange(execute, id, old_key, key)
            execute(*store)
            return True

        return self._write(run)

    def remove(self, id: int | None = None) -> int | None:
        self._check()

        def run(execute: Execute) -> int | None:
            counters = self._refresh_counters(execute)
            text, parameter = (
                (self._sql.select_ready, 1) if id is None else (self._sql.select_ready_by_id, id)
            )
            row = execute(text, (parameter,)).fetchone()
            if row is None:
                self._rows.check_absent(execute(self._sql.select_ready, (1,)).fetchone(), id)
                return None
            self._remove(execute, counters, (row,))
            removed, *_ = row
            return cast(int, removed)

        return self._write(run)

    def clear(self) -> int:
        self._check()

        def run(execute: Execute) -> int:
            counters = self._refresh_counters(execute)
            count = counters.ready
            self._keys.delete_ready(execute)
            execute(self._sql.delete_all)
            counters.ready = 0
            counters.finished += count
            self._database.mark_dirty(counters)
            return count

        return self._write(run)

    def purge(self, state: State, keep: int = 0, limit: int | None = None) -> int:
        self._check()
        if state not in self._sql.delete_oldest:
            raise ValueError(f"only what is done, failed or dead can be purged, not what is {state.value}")

        def run(execute: Execute) -> int:
            counters = self._refresh_counters(execute)
            count = max(0, counters.count(state) - keep)
            if limit is not None:
                count = min(count, limit)
            self._claims.trim(execute, state, count)
            return count

        return self._write(run)

    # Reading.

    def peek(self, decode: Callable[[Record], T]) -> T:
        def query(snapshot: bool, execute: Execute, counters: Counters) -> T | object:
            row = execute(self._sql.select_ready, (1,)).fetchone()
            if row is not None:
                return decode(self._rows.record(row))
            if counters.ready and not snapshot:
                return _UNSURE
            self._rows.check_none_left(counters.ready)
            raise Empty

        # The counters and the first row are two reads, which show damage only if they are of one snapshot.
        value = self._read(partial(query, False))
        return cast(T, self._read(partial(query, True), True) if value is _UNSURE else value)

    def has_active_key(self, key: bytes) -> bool:
        return self._read(lambda execute, _: self._keys.is_active(execute, key))

    def records(self) -> Iterator[Record]:
        return self._scan.ready()

    def scan(self, *states: State) -> Iterator[tuple[State, Record]]:
        return self._scan.in_states(*states)

    def count(self) -> int:
        return self._read(lambda _, counters: counters.ready)

    def claimed(self) -> int:
        return self._read(lambda _, counters: counters.claimed)

    def unfinished(self) -> int:
        return self._read(lambda _, counters: counters.ready + counters.delayed + counters.claimed)

    def stats(self) -> Stats:
        return self._scan.stats(self._database.source.disk_usage)

    def _forget_claims(self) -> None:
        self._claims.forget_all()
