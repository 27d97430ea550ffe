"""The reference record store: :class:`MemoryRecordStore`, the simplest store that keeps all laws.

Tests compare the other stores with it, so it shares no algorithm with any of them. It consists of a dict of
rows, one lock, and a search wherever a search is sufficient. The clock is a function, so that a test of
leases and delays need not wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TypeVar, cast

from persistcoll.engine.contracts import Claim, RecordStore, Select, StoreCapabilities
from persistcoll.engine.memory.rows import FINISHED, UNFINISHED, MemoryRecordState, Row
from persistcoll.engine.records import (
    FIFO,
    HOLDER_CLOSED,
    HOLDER_DIED,
    LEASE_RAN_OUT,
    NACKED,
    ClaimPolicy,
    Discipline,
    Entry,
    Record,
    State,
    Stats,
)
from persistcoll.engine.transaction_hooks import TransactionHooks
from persistcoll.errors import ClosedError, DuplicateError, Empty, Full, NotClaimedError, StaleClaimError

__all__ = ["MemoryRecordState", "MemoryRecordStore"]

T = TypeVar("T")


class MemoryRecordStore(RecordStore):
    """A :class:`~persistcoll.engine.contracts.RecordStore` in memory.

    Closing a store releases its claims; without ``retry.auto_reclaim`` the records stay claimed by a dead
    holder. A new store of the same state continues with it. Any thread may call any method. The time of a
    call grows with the number of records.

    The state's lock protects every field.

    >>> now = 0.0
    >>> state = MemoryRecordState(clock=lambda: now)
    >>> table = MemoryRecordStore(retry=ClaimPolicy(lease=60), state=state)
    >>> table.put([Entry(b"first"), Entry(b"second")])
    [1, 2]
    >>> table.claim(lambda record: record.payload)
    b'first'
    >>> now += 60
    >>> [(record.payload, record.attempts, record.reason) for record in table.records()]
    [(b'first', 1, 'lease ran out'), (b'second', 0, None)]
    >>> table.ack([1])
    Traceback (most recent call last):
    persistcoll.errors.StaleClaimError: the claim of item 1 was lost

    :param discipline: the order of the records, and whether their keys are unique.
    :param retry: the lease, the limit of attempts and the retention.
    :param state: the state with the records; a new and empty one by default.
    """

    def __init__(
        self,
        discipline: Discipline = FIFO,
        retry: ClaimPolicy = ClaimPolicy(),  # noqa: B008 - immutable
        state: MemoryRecordState | None = None,
    ) -> None:
        self._discipline = discipline
        self._retry = retry
        self._state = state or MemoryRecordState()
        self._closed = False
        self._holder: object = self
        # The ids of rows that another open transaction has changed, and that this store passes over.
        self._locked: frozenset[int] = frozenset()
        # The claims that this store has not settled: id to delivery. A lost claim stays in the dict, so that
        # the store can raise StaleClaimError for it.
        self._claims: dict[int, int] = {}
        # The last transaction whose rollback restores the claims.
        self._joined: object = None
        if retry.auto_reclaim:
            self.reclaim()

    # The caller of the methods below holds the lock.

    def _promote_due(self) -> MemoryRecordState:
        """End the delays and leases that are due, and return the state. Each call does it once."""
        if self._closed:
            raise ClosedError("this record store in memory is closed")
        state = self._state
        state.refuse_other_task()
        transaction = state.open_transaction()
        if transaction is not None and transaction is not self._joined:
            self._joined = transaction
            transaction.on_rollback(partial(setattr, self, "_claims", dict(self._claims)))
        self._end_what_is_due()
        return state

    def _end_what_is_due(self) -> None:
        state = self._state
        now = state.clock()
        rows = [row for row in state.rows.values() if row.id not in self._locked]
        due = [(row.until, row.id) for row in rows if row.until is not None]
        for until, id in sorted(due):
            if until <= now:
                row = state.rows[id]
                self._come_back(row, LEASE_RAN_OUT if row.state is State.CLAIMED else row.reason)

    def _come_back(self, row: Row, reason: str | None) -> None:
        """Make a row ready, or dead if it is claimed and has no attempts left."""
        limit = self._retry.max_attempts
        dead = row.state is State.CLAIMED and limit is not None and row.attempts >= limit
        row.reason = reason
        self._state.move(row, State.DEAD if dead else State.READY)

    def _ready(self) -> list[Row]:
        """Return the ready rows in the order in which they are claimed."""
        rows = [row for row in self._state.select(State.READY) if row.id not in self._locked]
        if self._discipline.newest_first:
            rows.reverse()
        if self._discipline.by_priority:
            rows.sort(key=lambda row: row.priority)
        return rows

    def _record(self, row: Row, attempt: int = 0) -> Record:
        """Return the record of a row. With ``attempt`` 1 it counts the claim that is being made."""
        attempts = row.attempts + attempt
        return Record(row.id, row.payload, row.time, row.priority, attempts, reason=row.reason)

    def _claimed(self, id: int) -> Row:
        """Return the row of a claim of this store.

        :raise NotClaimedError: this store has not claimed the record, or has settled it.
        :raise StaleClaimError: the claim was lost.
        """
        if id not in self._claims:
            raise NotClaimedError(f"this store has not claimed item {id}", [id])
        row = self._state.rows.get(id)
        if row is None or row.holder != self._holder or row.deliveries != self._claims[id]:
            raise _stale([id])
        return row

    def _settled(self, ids: Sequence[int]) -> list[Row]:
        """Return the rows of claims of this store that it is about to settle, and forget the claims.

        It raises what :meth:`_claimed` raises, for all lost claims together.
        """
        rows: list[Row] = []
        lost: list[int] = []
        for id in dict.fromkeys(ids):
            try:
                rows.append(self._claimed(id))
            except StaleClaimError:
                lost.append(id)
        if lost:
            raise _stale(lost)
        for row in rows:
            del self._claims[row.id]
        return rows

    # Transactions.

    capabilities = StoreCapabilities(transactions=True)

    def transaction(self) -> AbstractContextManager[None]:
        return self._state.transaction(self._promote_due)

    def await_transaction(self) -> None:
        with self._state.lock:
            pass

    def open_transaction(self) -> TransactionHooks | None:
        return self._state.open_transaction()

    # Putting.

    def append(self, payload: bytes, capacity: int = 0, *, deadline: float | None = None) -> int:
        return self.append_many((payload,), capacity)[0]

    def append_many(
        self, payloads: Sequence[bytes], capacity: int = 0, *, deadline: float | None = None
    ) -> Sequence[int]:
        return cast(list[int], self.put([Entry(payload) for payload in payloads], capacity))

    def put(
        self, entries: Sequence[Entry], capacity: int = 0, *, deadline: float | None = None
    ) -> list[int | None]:
        with self._state.lock:
            state = self._promote_due()
            keys: set[bytes] = set()
            accepted: list[bool] = []
            for entry in entries:
                known = entry.key in keys or state.of_key(entry.key) is not None
                accepted.append(not (self._discipline.unique and known))
                keys.update(() if entry.key is None else (entry.key,))
            more = sum(new and not entry.delay > 0 for entry, new in zip(entries, accepted, strict=True))
            if more and 0 < capacity < len(state.select(State.READY)) + more:
                raise Full
            now = state.clock()
            ids: list[int | None] = []
            for entry, new in zip(entries, accepted, strict=True):
                row = Row(0, bytes(entry.payload), now, entry.priority, entry.key)
                if entry.delay > 0:
                    row.state, row.until = State.DELAYED, now + entry.delay
                ids.append(state.add(row) if new else None)
                state.puts += new
            return ids

    # Claiming.

    def claim(
        self,
        decode: Callable[[Record], T],
        select: Select | None = None,
        *,
        claims: list[Claim] | None = None,
        deadline: float | None = None,
    ) -> T:
        with self._state.lock:
            self._promote_due()
            return self._claim(self._selected(select), decode, False, claims)[0]

    def claim_many(
        self,
        limit: int,
        decode: Callable[[Record], T],
        *,
        claims: list[Claim] | None = None,
        deadline: float | None = None,
    ) -> list[T]:
        with self._state.lock:
            self._promote_due()
            return self._claim(self._ready()[:limit], decode, False, claims)

    def pop(
        self, decode: Callable[[Record], T], select: Select | None = None, *, deadline: float | None = None
    ) -> T:
        with self._state.lock:
            self._promote_due()
            return self._claim(self._selected(select), decode, True, None)[0]

    def pop_many(
        self, limit: int, decode: Callable[[Record], T], *, deadline: float | None = None
    ) -> list[T]:
        with self._state.lock:
            self._promote_due()
            return self._claim(self._ready()[:limit], decode, True, None)

    def _selected(self, select: Select | None) -> list[Row]:
        rows = self._ready()
        if select is None:
            return rows[:1]
        if not select.after:
            return [row for row in rows if row.id == select.id]
        newest_first = self._discipline.newest_first
        rows = [row for row in rows if (row.id < select.id if newest_first else row.id > select.id)]
        return sorted(rows, key=lambda row: row.id, reverse=newest_first)[:1]

    def _claim(
        self, rows: list[Row], decode: Callable[[Record], T], pop: bool, claims: list[Claim] | None
    ) -> list[T]:
        values: list[T] = []
        for row in rows:
            try:
                values.append(decode(self._record(row, 1)))
            except Exception:
                if not values:
                    raise
                break
        if not values:
            raise self._state.nothing(row.until for row in self._state.rows.values())
        # Change the rows only now, so that an interrupt of `decode` (KeyboardInterrupt) changes nothing.
        lease = self._retry.lease
        until = None if lease is None else self._state.clock() + lease
        for row in rows[: len(values)]:
            row.attempts += 1
            row.deliveries += 1
            if pop:
                self._done(row)
                continue
            self._state.move(row, State.CLAIMED, until)
            row.holder = self._holder
            self._claims[row.id] = row.deliveries
            if claims is not None:
                claims.append((row.id, row.deliveries))
        return values

    # Settling.

    def ack(self, ids: Sequence[int]) -> None:
        with self._state.lock:
            self._promote_due()
            for row in self._settled(ids):
                self._done(row)

    def _done(self, row: Row) -> None:
        state, keep = self._state, self._retry.keep_done
        state.move(row, State.DONE)
        if not keep:
            state.remove(row)
        else:
            for old in state.select(State.DONE)[:-keep]:
                state.remove(old)

    def fail(self, ids: Sequence[int], reason: str | None = None) -> None:
        with self._state.lock:
            self._promote_due()
            for row in self._settled(ids):
                row.reason = reason
                self._state.move(row, State.FAILED)

    def nack(self, id: int, delay: float | None = None, to_back: bool = False, reason: str = NACKED) -> int:
        with self._state.lock:
            self._promote_due()
            (row,) = self._settled([id])
            self._nack(row, delay, reason)
            if to_back and row.state is not State.DEAD:
                self._state.remove(row)
                self._state.add(row)
            return row.id

    def nack_many(self, ids: Sequence[int], reason: str = NACKED) -> None:
        with self._state.lock:
            self._promote_due()
            for row in self._settled(ids):
                self._nack(row, None, reason)

    def _nack(self, row: Row, delay: float | None, reason: str) -> None:
        self._come_back(row, reason)
        if delay is None:
            backoff = self._retry.backoff
            delay = 0.0 if backoff is None else backoff.delay(row.attempts)
        if delay > 0 and row.state is not State.DEAD:
            self._state.move(row, State.DELAYED, self._state.clock() + delay)

    def release(self, claims: Sequence[Claim]) -> int:
        with self._state.lock:
            state = self._promote_due()
            released = 0
            for id, delivery in claims:
                row = state.rows.get(id)
                if self._claims.get(id) == delivery and row is not None and row.holder == self._holder:
                    del self._claims[id]
                    state.move(row, State.READY)
                    released += 1
            return released

    def reclaim(self) -> int:
        with self._state.lock:
            self._promote_due()
            return self._reclaim()

    def _reclaim(self) -> int:
        claimed = [row for row in self._state.select(State.CLAIMED) if row.id not in self._locked]
        rows = [row for row in claimed if self._is_dead(row.holder)]
        for row in rows:
            self._come_back(row, HOLDER_DIED)
        return len(rows)

    def _is_dead(self, holder: object) -> bool:
        return holder is None

    # Inspection and removal.

    def peek(self, decode: Callable[[Record], T]) -> T:
        with self._state.lock:
            self._promote_due()
            for row in self._ready():
                return decode(self._record(row))
        raise Empty

    def remove(self, id: int | None = None) -> int | None:
        with self._state.lock:
            self._promote_due()
            for row in self._ready():
                if id in (None, row.id):
                    self._state.remove(row)
                    return row.id
        return None

    def clear(self) -> int:
        with self._state.lock:
            self._promote_due()
            rows = self._ready()
            for row in rows:
                self._state.remove(row)
            return len(rows)

    def update(self, id: int, payload: bytes, key: bytes | None = None) -> bool:
        with self._state.lock:
            state = self._promote_due()
            row = state.rows.get(id)
            if row is None or row.state not in UNFINISHED:
                return False
            equal = state.of_key(key)
            if self._discipline.unique and equal is not None and equal is not row:
                raise DuplicateError(f"the key is active for item {equal.id}")
            row.payload, row.key = bytes(payload), key
            state.changes += 1
            return True

    def requeue(self, id: int | None = None) -> int:
        with self._state.lock:
            state = self._promote_due()
            count = 0
            for row in self._set_aside(id):
                if self._discipline.unique and state.of_key(row.key) is not None:
                    if id is not None:
                        raise DuplicateError(f"the key of item {id} is active for another item")
                    continue
                row.attempts = 0
                state.move(row, State.READY)
                count += 1
            return count

    def _set_aside(self, id: int | None) -> list[Row]:
        """Return the failed and the dead rows, or the one of them with this id."""
        rows = [row for row in self._state.select(State.FAILED, State.DEAD) if row.id not in self._locked]
        return [row for row in rows if id in (None, row.id)]

    def purge(self, state: State, keep: int = 0, limit: int | None = None) -> int:
        if state not in FINISHED:
            raise ValueError(f"what is {state.value} cannot be purged")
        with self._state.lock:
            self._promote_due()
            rows = self._state.select(state)
            rows = rows[: max(0, len(rows) - keep)][:limit]
            for row in rows:
                self._state.remove(row)
            return len(rows)

    def shrink(self) -> None:
        with self._state.lock:
            self._promote_due()

    def has_active_key(self, key: bytes) -> bool:
        with self._state.lock:
            self._promote_due()
            return self._state.of_key(key) is not None

    def records(self) -> Iterator[Record]:
        with self._state.lock:
            self._promote_due()
            return iter([self._record(row) for row in self._state.select(State.READY)])

    def scan(self, *states: State) -> Iterator[tuple[State, Record]]:
        with self._state.lock:
            self._promote_due()
            return iter([(row.state, self._record(row)) for row in self._state.select(*(states or State))])

    def count(self) -> int:
        with self._state.lock:
            self._promote_due()
            return len(self._state.select(State.READY))

    def claimed(self) -> int:
        with self._state.lock:
            self._promote_due()
            return len(self._state.select(State.CLAIMED))

    def unfinished(self) -> int:
        with self._state.lock:
            self._promote_due()
            return len(self._state.select(*UNFINISHED))

    def is_empty(self) -> bool:
        with self._state.lock:
            self._promote_due()
            return not self._state.select(State.READY)

    def has_unfinished(self) -> bool:
        with self._state.lock:
            self._promote_due()
            return bool(self._state.select(*UNFINISHED))

    def change_token(self) -> object:
        with self._state.lock:
            return self._promote_due().changes

    def stats(self) -> Stats:
        with self._state.lock:
            state = self._promote_due()
            oldest = min((row.time for row in state.select(State.READY)), default=None)
            counts = {each.value: len(state.select(each)) for each in State}
            unfinished = len(state.select(*UNFINISHED))
            return Stats(
                **counts,
                oldest_age=None if oldest is None else max(0.0, state.clock() - oldest),
                puts=state.puts,
                gets=state.puts - unfinished,
                bytes=sum(len(row.payload) for row in state.rows.values()),
            )

    # Lifecycle.

    def after_fork_in_child(self) -> None:
        # The child's memory is a copy, in which every holder is dead. A thread of the parent that the child
        # does not have may hold the old lock.
        self._state.forked()
        self._claims.clear()
        for row in self._state.rows.values():
            row.holder = None
        if self._retry.auto_reclaim and not self._closed:
            self.reclaim()

    def close(self) -> None:
        with self._state.lock:
            self._end_what_is_due()
            self._closed = True
            for row in [row for row in self._state.select(State.CLAIMED) if row.holder == self._holder]:
                row.holder = None
                if self._retry.auto_reclaim:
                    self._come_back(row, HOLDER_CLOSED)


def _stale(ids: Sequence[int]) -> StaleClaimError:
    which = f"claim of item {ids[0]} was" if len(ids) == 1 else f"claims of items {ids} were"
    return StaleClaimError(f"the {which} lost", ids)
