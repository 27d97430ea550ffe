"""Records with states in SQLite: how they are put, claimed, settled and looked at."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar, cast

from persistcoll.engine.contracts import Claim, RecordStore
from persistcoll.engine.forks import acquire_noted
from persistcoll.engine.records import ClaimPolicy, Discipline, Entry, Record, State, Stats
from persistcoll.errors import ClosedError, Empty, Full
from persistcoll.sqlite.claims import Claims
from persistcoll.sqlite.clock import Clock
from persistcoll.sqlite.counters import Counters
from persistcoll.sqlite.database import Database
from persistcoll.sqlite.driver import Execute
from persistcoll.sqlite.rows import Rows, Seal
from persistcoll.sqlite.scan import TableScan
from persistcoll.sqlite.statements import record_statements
from persistcoll.sqlite.unique_keys import UniqueKeys

__all__ = ["SQLiteRecordStore"]

T = TypeVar("T")
_DUE, _UNSURE = object(), object()
_MOST = (1 << 63) - 1  # rows


class SQLiteRecordStore(RecordStore):
    """A :class:`~persistcoll.engine.contracts.RecordStore` in a database file.

    :param number: of the collection in its database.
    :param power: what an operation that returned survives is a power cut. A claim need not: one that is lost
        leaves a ready record.
    :param timeout: seconds to wait for the end of another caller's transaction, where no deadline is given.
    :param users: the database, for as long as this handle counts among its users.
    :param leave: empties that when this handle is closed.
    """

    # Seconds. To ask a database costs 20 to 50 us where nothing is in the processor's caches any more.
    max_poll_interval = 0.01
    _users: list[Database] = []  # noqa: RUF012 - until it is made; never changed

    def __init__(
        self,
        database: Database,
        number: int,
        discipline: Discipline,
        retry: ClaimPolicy,
        *,
        power: bool,
        timeout: float,
        store_id: bytes,
        seal: Seal | None,
        unseal: Seal | None,
        clock: Clock | None,
        users: list[Database],
        leave: Callable[[list[Database]], None],
    ) -> None:
        self.store_id = store_id
        self._database = database
        self._write = database.write
        self._power = power
        self._timeout = timeout
        self._sql = sql = record_statements(number, discipline)
        self._clock = clock
        self._leave = leave
        self._closing = threading.Lock()
        self._keeps = retry.keep_done > 0
        self._found_empty = False
        if number not in database.counters_by_number:
            database.counters_by_number[number] = Counters(sql)
        self._counters = counters = database.counters_by_number[number]
        self._rows = Rows(database, sql, store_id, seal, unseal)
        self._keys = UniqueKeys(discipline.unique, sql)
        self._listing = TableScan(self._look, sql, self._rows)
        self._claims = Claims(
            database,
            number,
            sql,
            counters,
            self._rows,
            self._keys,
            retry=retry,
            now=self._now,
            timeout=timeout,
        )
        self._closed = False
        self._users = users

    def __del__(self) -> None:
        # Its maker was interrupted before it had it, or whoever closed it.
        if self._users:
            self.close()

    def _now(self) -> float:
        # The database's may change: a forked child opens it anew.
        return self._clock() if self._clock is not None else self._database.now()

    def _check(self) -> None:
        if self._closed:
            raise ClosedError(f"the store in {self._database.path!r} is closed")

    def _fresh(self, execute: Execute) -> Counters:
        """Within a transaction: the true numbers, and nothing that is due or expired is left unready."""
        counters = self._counters
        if counters.epoch != self._database.epoch:
            counters.load(execute)
            counters.epoch = self._database.epoch
        if counters.next_due_at is not None and counters.next_due_at <= self._now():
            self._database.begin()
            self._claims.release_due(execute)
        return counters

    def _look(self, look: Callable[[Execute, Counters], T], moment: bool = False) -> T:
        """``look`` at what is committed, in which nothing is due; ``moment``: at one moment."""
        self._check()

        def run(execute: Execute, counters: Counters) -> T | object:
            if counters.next_due_at is not None and counters.next_due_at <= self._now():
                return _DUE
            return look(execute, counters)

        while (result := self._database.consult(self._counters, run, moment)) is _DUE:
            self._write(self._fresh, False, True, None, None, self._timeout)
        return cast(T, result)

    # Putting.

    def append(self, payload: bytes, capacity: int = 0, *, deadline: float | None = None) -> int:
        if self._closed:
            self._check()
        now = time.time()

        def run(execute: Execute) -> int:
            counters = self._fresh(execute)
            if 0 < capacity <= counters.ready:
                raise Full
            id = counters.last_id + 1
            self._rows.append(execute, id, payload, now)
            counters.last_id = id
            counters.ready += 1
            return id

        return self._write(run, self._power, False, None, deadline, self._timeout)

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
        now = time.time()

        def run(execute: Execute) -> list[int | None]:
            counters = self._fresh(execute)
            ids = self._keys.number(execute, entries, counters.last_id + 1)
            more = len(ids) - ids.count(None)
            if more and 0 < capacity < counters.ready + more:
                raise Full
            new = [(id, entry) for id, entry in zip(ids, entries, strict=True) if id is not None]
            self._rows.append_many(self._database.executemany, new, now)
            self._keys.take(execute, ((id, entry.key) for id, entry in new))
            counters.last_id += more
            counters.ready += more
            return ids

        return self._write(run, self._power, True, None, deadline, self._timeout)

    # Taking.

    def take(
        self,
        decode: Callable[[Record], T],
        acknowledge: bool = False,
        id: int | None = None,
        following: bool = False,
        *,
        claims: list[Claim] | None = None,
        deadline: float | None = None,
    ) -> T:
        if self._closed:
            self._check()
        if id is None:
            if self._found_empty:
                self._refuse_empty()
            text, parameters = self._sql.select_ready, (1,)
        else:
            text, parameters = (
                (self._sql.select_ready_after if following else self._sql.select_ready_by_id),
                (id,),
            )

        def run(execute: Execute) -> tuple[T, list[Any]]:
            counters = self._fresh(execute)
            row = execute(text, parameters).fetchone()
            if row is None and self._claims.resume_sometimes(execute):
                row = execute(text, parameters).fetchone()
            if row is None:
                self._rows.check_none_left(counters.ready if id is None else 0)
                self._found_empty = True
                raise Empty
            value = decode(self._rows.record(row, 1))
            if not acknowledge:
                self._claims.claim(execute, (row,))
            elif self._keeps:
                self._claims.ack(execute, (row,))
            else:
                self._remove(execute, counters, (row,))
            return value, row

        def note(taken: tuple[T, Any]) -> None:
            self._claims.note((taken[1],), claims)

        sync = acknowledge and self._power
        return self._write(run, sync, True, None if acknowledge else note, deadline, self._timeout)[0]

    def take_many(
        self,
        limit: int,
        decode: Callable[[Record], T],
        acknowledge: bool = False,
        *,
        claims: list[Claim] | None = None,
        deadline: float | None = None,
    ) -> list[T]:
        self._check()
        if self._found_empty:
            self._refuse_empty()

        limit = min(limit, _MOST)

        def run(execute: Execute) -> tuple[list[T], list[Any]]:
            counters = self._fresh(execute)
            rows = execute(self._sql.select_ready, (limit,)).fetchall()
            if not rows and self._claims.resume_sometimes(execute):
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
                self._found_empty = True
                raise Empty
            del rows[len(values) :]
            if not acknowledge:
                self._claims.claim(execute, rows)
            elif self._keeps:
                self._claims.ack(execute, rows)
            else:
                self._remove(execute, counters, rows)
            return values, rows

        def note(taken: tuple[list[T], list[Any]]) -> None:
            self._claims.note(taken[1], claims)

        sync = acknowledge and self._power
        return self._write(run, sync, True, None if acknowledge else note, deadline, self._timeout)[0]

    def _refuse_empty(self) -> None:
        """Who asks an empty queue again and again makes no transaction each time."""
        self._found_empty = False

        def look(execute: Execute, counters: Counters) -> None:
            if not counters.ready and not self._claims.may_reclaim():
                self._found_empty = True
                raise Empty

        self._look(look)

    def _remove(self, execute: Execute, counters: Counters, rows: Sequence[Any]) -> None:
        """Ready rows go for good."""
        self._rows.remove(execute, rows)
        self._keys.free(execute, (row[2] for row in rows))
        counters.ready -= len(rows)
        counters.finished += len(rows)
        self._database.changed(counters)

    # Settling.

    def ack(self, ids: Sequence[int]) -> None:
        self._finish(ids, State.DONE)

    def fail(self, ids: Sequence[int]) -> None:
        self._finish(ids, State.FAILED)

    def _finish(self, ids: Sequence[int], state: State) -> None:
        self._check()
        if ids:
            self._claims.finish(self._fresh, ids, state, self._power)

    def nack(self, id: int, delay: float | None = None, to_back: bool = False) -> int:
        self._check()
        return self._claims.nack(self._fresh, id, delay, to_back, self._power)

    def release(self, claims: Sequence[Claim]) -> int:
        self._check()
        return self._claims.release(self._fresh, claims) if claims else 0

    def reclaim(self) -> int:
        self._check()

        def run(execute: Execute) -> int:
            self._fresh(execute)
            return self._claims.reclaim(execute)

        return self._write(run, False, timeout=self._timeout)

    # Changing and removing.

    def update(self, id: int, payload: bytes, key: bytes | None = None) -> bool:
        self._check()

        def run(execute: Execute) -> bool:
            self._fresh(execute)
            holder, row = None, execute(self._sql.select_ready_by_id, (id,)).fetchone()
            if row is None:
                holder, row = self._claims.find(execute, id)
            if row is None:
                return False
            store = self._rows.replacing(id, holder, payload, key)  # raises before anything is changed
            self._keys.exchange(execute, id, row[2], key)
            execute(*store)
            return True

        return self._write(run, self._power, timeout=self._timeout)

    def remove(self, id: int | None = None) -> int | None:
        self._check()

        def run(execute: Execute) -> int | None:
            counters = self._fresh(execute)
            text, parameter = (
                (self._sql.select_ready, 1) if id is None else (self._sql.select_ready_by_id, id)
            )
            row = execute(text, (parameter,)).fetchone()
            if row is None:
                self._rows.check_gone(execute(self._sql.select_ready, (1,)).fetchone(), id)
                return None
            self._remove(execute, counters, (row,))
            return cast(int, row[0])

        return self._write(run, self._power, timeout=self._timeout)

    def clear(self) -> int:
        self._check()

        def run(execute: Execute) -> int:
            counters = self._fresh(execute)
            count = counters.ready
            self._keys.free_ready(execute)
            execute(self._sql.delete_all)
            counters.ready = 0
            counters.finished += count
            self._database.changed(counters)
            return count

        return self._write(run, self._power, timeout=self._timeout)

    def purge(self, state: State, keep: int = 0, limit: int | None = None) -> int:
        self._check()
        if state not in self._sql.delete_oldest:
            raise ValueError(f"only what is done, failed or dead can be purged, not what is {state.value}")

        def run(execute: Execute) -> int:
            counters = self._fresh(execute)
            count = max(0, counters.count(state) - keep)
            if limit is not None:
                count = min(count, limit)
            self._claims.trim(execute, state, count)
            return count

        return self._write(run, self._power, timeout=self._timeout)

    def shrink(self) -> None:
        self._check()
        self._database.shrink(self._timeout)

    # Looking.

    def peek(self, decode: Callable[[Record], T]) -> T:
        def look(moment: bool, execute: Execute, counters: Counters) -> T | object:
            row = execute(self._sql.select_ready, (1,)).fetchone()
            if row is not None:
                return decode(self._rows.record(row))
            if counters.ready and not moment:
                return _UNSURE
            self._rows.check_none_left(counters.ready)
            raise Empty

        # The numbers and the head are two reads: only of one moment do they tell of damage.
        value = self._look(partial(look, False))
        return cast(T, self._look(partial(look, True), True) if value is _UNSURE else value)

    def has_active_key(self, key: bytes) -> bool:
        return self._look(lambda execute, _: self._keys.in_force(execute, key))

    def records(self) -> Iterator[Record]:
        return self._listing.ready()

    def scan(self, *states: State) -> Iterator[tuple[State, Record]]:
        return self._listing.in_states(*states)

    def count(self) -> int:
        return self._look(lambda _, counters: counters.ready)

    def claimed(self) -> int:
        return self._look(lambda _, counters: counters.claimed)

    def unfinished(self) -> int:
        return self._look(lambda _, counters: counters.ready + counters.delayed + counters.claimed)

    def change_token(self) -> object:
        self._check()
        # What time brings about is no change of the database: something is due; a holder may have died.
        due = self._counters.next_due_at
        is_due = due is not None and due <= self._now()
        return self._database.change_token(), is_due, self._claims.may_reclaim()

    def stats(self) -> Stats:
        return self._listing.stats(self._database.source.occupied)

    def after_fork_in_child(self) -> None:
        # The database itself follows forks.
        self._claims.after_fork_in_child()

    def close(self) -> None:
        held: list[threading.Lock] = []
        try:
            if acquire_noted(
                self._closing, 0.0, held
            ):  # otherwise another one closes it, or this thread does
                self._close()
        finally:
            if held:
                self._closing.release()

    def _close(self) -> None:
        try:
            if not self._closed:
                self._claims.close(self._fresh)
                if not self._power:  # otherwise each write has looked
                    self._database.warn_if_replaced()
        finally:
            self._closed = True
            self._claims.after_fork_in_child()  # where that was interrupted: a holder found dead is resumed
            self._leave(self._users)
