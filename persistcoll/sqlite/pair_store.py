"""Pairs of keys and values in SQLite: how they are stored, found and gone through."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar
from zlib import crc32

from persistcoll.engine.contracts import Pair, PairStore
from persistcoll.engine.records import Stats
from persistcoll.errors import ClosedError
from persistcoll.sqlite import driver
from persistcoll.sqlite.clock import Clock
from persistcoll.sqlite.counters import Counters
from persistcoll.sqlite.database import Database
from persistcoll.sqlite.driver import Execute, end_statement
from persistcoll.sqlite.pairs import (
    PagedScan,
    PairRows,
    before_key,
    before_serial,
    behind_key,
    behind_serial,
    checksum,
)
from persistcoll.sqlite.statements import pair_statements

__all__ = ["SQLitePairStore"]

T = TypeVar("T")

_PAGE = 256  # pairs read at a time, by who goes through them all
_PAGE_BYTES = 1 << 22  # or fewer, when their values are this much
_BEFORE_ALL = -1


class SQLitePairStore(PairStore):
    """A :class:`~persistcoll.engine.contracts.PairStore` in a :class:`~persistcoll.sqlite.database.Database`.

    :param number: of the collection in its database.
    :param power: what an operation that returned survives is a power cut.
    :param timeout: seconds to wait for the end of another caller's transaction.
    :param show: a key, for messages.
    :param users: the database, for as long as this handle counts among its users.
    :param leave: empties that when this handle is closed.
    :param rested: called behind each transaction.
    """

    _users: list[Database] = []  # noqa: RUF012 - until it is made; never changed

    def __init__(
        self,
        database: Database,
        number: int,
        *,
        power: bool,
        timeout: float,
        store_id: bytes,
        clock: Clock | None,
        show: Callable[[bytes], str],
        users: list[Database],
        leave: Callable[[list[Database]], None],
        rested: Callable[[], None],
    ) -> None:
        self.store_id = store_id
        self._database = database
        self._write = database.write
        self._first = database.first
        self._power = power
        self._timeout = timeout
        self._sql = sql = pair_statements(number)
        self._value = sql.select_value
        self._rows = PairRows(database.path, show, self._now)
        self._clock = clock
        self._leave = leave
        self._rested = rested
        self._adding = False  # the last key that was set was a new one
        if number not in database.counters_by_number:
            database.counters_by_number[number] = Counters(sql)
        # `ready` counts the pairs, `last_id` is the highest serial, `due` the next expiry.
        self._counters = database.counters_by_number[number]
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
        """Within a transaction: the true numbers, and what has expired is gone."""
        counters = self._counters
        if counters.epoch != self._database.epoch:
            counters.load(execute)
            counters.epoch = self._database.epoch
        if counters.next_due_at is not None:
            now = self._now()
            if counters.next_due_at <= now:
                self._database.begin()
                counters.ready -= execute(self._sql.purge, (now,)).rowcount
                counters.next_due_at = execute(self._sql.select_next_expiry).fetchone()[0]
                self._database.changed(counters)
        return counters

    # One key.

    def get(self, key: bytes) -> bytes | None:
        if self._closed:
            self._check()
        row = self._first(self._value, (key,))
        if row is None:
            return None
        value, crc, end = row
        if end is not None:
            return self._rows.living(key, value, crc, end)
        if type(value) is not bytes or crc32(value, crc32(key)) != crc:
            self._rows.sound(key, value, crc, None)
        return value  # type: ignore[no-any-return]

    def contains(self, key: bytes) -> bool:
        self._check()
        row = self._first(self._value, (key,))
        if row is None or not self._rows.has_ended(row[2]):
            return row is not None
        return self._rows.living(key, *row) is not None

    def change(self, key: bytes, name: bytes, change: Callable[[bytes | None], tuple[bytes | None, T]]) -> T:
        self._check()

        def run(execute: Execute) -> T:
            counters = self._fresh(execute)
            row = execute(self._value, (key,)).fetchone()
            present, end = (None, None) if row is None else (self._rows.sound(key, *row), row[2])
            value, result = change(present)
            if value is None:
                if present is not None:
                    self._remove(execute, counters, key)
            elif present is None:
                crc = checksum(key, value, None)
                self._insert(execute, counters, self._sql.insert, key, name, None, crc, value)
            elif value is not present:
                execute(self._sql.update, (end, checksum(key, value, end), value, key))
            return result

        return self._write(run, self._power, timeout=self._timeout)

    def remove(self, key: bytes) -> bool:
        self._check()

        def run(execute: Execute) -> bool:
            return self._remove(execute, self._fresh(execute), key)

        return self._write(run, self._power, timeout=self._timeout)

    def _insert(
        self,
        execute: Execute,
        counters: Counters,
        text: str,
        key: bytes,
        name: bytes,
        end: float | None,
        crc: int,
        value: bytes,
    ) -> bool:
        """By one of the two statements that insert; whether it did."""
        if not execute(text, (counters.last_id + 1, key, name, end, crc, value)).rowcount:
            return False
        counters.last_id += 1
        counters.ready += 1
        counters.lower_next_due(end)
        return True

    def _remove(self, execute: Execute, counters: Counters, key: bytes) -> bool:
        there = execute(self._sql.delete, (key,)).rowcount > 0
        if there:
            counters.ready -= 1
            self._database.changed(counters)
        return there

    # Several.

    def get_many(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        self._check()

        def look(execute: Execute) -> list[Any]:
            return [(key, execute(self._value, (key,)).fetchone()) for key in keys]

        found = ((key, row and self._rows.living(key, *row)) for key, row in self._database.look(look))
        return {key: value for key, value in found if value is not None}

    def set_many(self, items: Sequence[tuple[bytes, bytes, bytes]], expires: float | None = None) -> None:
        if self._closed:
            self._check()
        if len(items) == 1:
            ((key, name, value),) = items
            if expires is None:
                self._write(
                    lambda execute: self._set(execute, key, name, value),
                    self._power,
                    False,
                    None,
                    None,
                    self._timeout,
                )
            else:
                self._write(
                    lambda execute: self._set_until(execute, key, name, value, expires),
                    self._power,
                    False,
                    None,
                    None,
                    self._timeout,
                )
        elif items:
            self._write(
                lambda execute: self._set_all(execute, items, expires), self._power, timeout=self._timeout
            )

    def _set(self, execute: Execute, key: bytes, name: bytes, value: bytes) -> None:
        counters = self._fresh(execute)
        crc = crc32(value, crc32(key))  # as checksum() without an end, in a call less
        # What is tried first is a guess, and costs nothing but time: who added a key adds another one.
        if self._adding:
            if self._insert(execute, counters, self._sql.insert_if_absent, key, name, None, crc, value):
                return
            self._adding = False
        if execute(self._sql.update_unexpiring, (crc, value, key)).rowcount:
            return
        # Where nothing expires, it is not there.
        if counters.next_due_at is None or not execute(self._sql.update, (None, crc, value, key)).rowcount:
            self._insert(execute, counters, self._sql.insert, key, name, None, crc, value)
            self._adding = True

    def _set_until(self, execute: Execute, key: bytes, name: bytes, value: bytes, expires: float) -> None:
        counters = self._fresh(execute)
        end = self._now() + expires
        crc = checksum(key, value, end)
        if execute(self._sql.update, (end, crc, value, key)).rowcount:
            counters.lower_next_due(end)
        else:
            self._insert(execute, counters, self._sql.insert, key, name, end, crc, value)

    def _set_all(
        self, execute: Execute, items: Sequence[tuple[bytes, bytes, bytes]], expires: float | None
    ) -> None:
        counters = self._fresh(execute)
        end = None if expires is None else self._now() + expires
        last = counters.last_id
        self._database.executemany(
            self._sql.upsert,
            [
                (serial, key, name, end, checksum(key, value, end), value)
                for serial, (key, name, value) in enumerate(items, last + 1)
            ],
        )
        count, highest = execute(self._sql.count_inserted, (last,)).fetchone()
        if count:
            counters.ready += count
            counters.last_id = highest
            if highest - last != count:
                self._database.changed(counters)
        counters.lower_next_due(end)

    def pop(self, decode: Callable[[Pair], T], last: bool = True) -> T:
        self._check()

        def run(execute: Execute) -> T:
            counters = self._fresh(execute)
            row = execute(self._sql.select_end[last]).fetchone()
            if row is None:
                raise KeyError("the mapping is empty")
            result = decode(self._rows.pair(row, True))
            if not self._remove(execute, counters, row[1]):
                # It would be given again and again.
                raise driver.corruption_error("a pair is not where its key says")
            return result

        return self._write(run, self._power, timeout=self._timeout)

    def clear(self) -> int:
        self._check()

        def run(execute: Execute) -> int:
            counters = self._fresh(execute)
            count = counters.ready
            execute(self._sql.delete_all)
            counters.ready, counters.next_due_at = 0, None
            self._database.changed(counters)
            return count

        return self._write(run, self._power, timeout=self._timeout)

    def count(self) -> int:
        self._check()

        def look(execute: Execute, counters: Counters) -> int:
            if counters.next_due_at is None or counters.next_due_at > (now := self._now()):
                return counters.ready
            return int(execute(self._sql.count_unexpired, (now,)).fetchone()[0])

        return self._database.consult(self._counters, look)

    # Iteration, page by page: a read transaction that stayed open would keep the log from being taken over
    # into the database.

    def pairs(self, reverse: bool = False, values: bool = True) -> Iterator[Pair]:
        self._check()
        behind = self._database.consult(self._counters, lambda _, counters: counters.last_id) + 1
        page = self._sql.select_page[reverse, values]
        narrow = before_serial if reverse else behind_serial
        return PagedScan(self._read_page, self._rows, page, (_BEFORE_ALL, behind), narrow, values)

    def scan(self, start: bytes, stop: bytes, reverse: bool = False, values: bool = True) -> Iterator[Pair]:
        self._check()
        page = self._sql.select_range[reverse, values]
        narrow = before_key if reverse else behind_key
        return PagedScan(self._read_page, self._rows, page, (start, stop), narrow, values)

    def _read_page(self, text: str, low: Any, high: Any) -> list[Any]:
        self._check()

        def look(execute: Execute) -> list[Any]:
            rows = []
            size = 0
            answer = execute(text, (low, high, _PAGE))
            while (row := answer.fetchone()) is not None:
                rows.append(row)
                if type(row[5]) is bytes:  # not where it is left out, or damaged
                    size += len(row[5])
                if size > _PAGE_BYTES:
                    end_statement(execute)
                    break
            return rows

        return self._database.look(look)

    # Transactions, the end.

    @contextmanager
    def transaction(self) -> Iterator[None]:
        self._check()
        try:
            with self._database.transaction(self._power, self._timeout):
                yield
        finally:
            self._rested()

    def change_token(self) -> object:
        self._check()
        return self._database.change_token()

    def stats(self) -> Stats:
        return Stats(ready=self.count(), bytes=self._database.source.occupied())

    def after_fork_in_child(self) -> None:
        # The database itself follows forks.
        pass

    def close(self) -> None:
        try:
            if not self._closed:
                self._closed = True
                if not self._power:  # otherwise each write has looked
                    self._database.warn_if_replaced()
        finally:
            self._leave(self._users)
