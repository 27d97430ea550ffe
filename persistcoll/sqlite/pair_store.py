"""Store pairs of keys and values in SQLite, find them, and iterate over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar
from zlib import crc32

from persistcoll.engine.contracts import Pair, PairStore
from persistcoll.engine.records import Stats
from persistcoll.sqlite import driver
from persistcoll.sqlite.counters import Counters
from persistcoll.sqlite.driver import Execute, end_statement
from persistcoll.sqlite.handle import Collection, Handle
from persistcoll.sqlite.pairs import (
    PagedScan,
    PairRows,
    after_key,
    after_serial,
    before_key,
    before_serial,
    checksum,
)
from persistcoll.sqlite.statements import PairStatements, pair_statements

__all__ = ["SQLitePairStore"]

T = TypeVar("T")

_PAGE = 256  # pairs that an iteration reads at a time
_PAGE_BYTES = 1 << 22  # a page ends earlier when its values have this many bytes
_BEFORE_ALL = -1


class SQLitePairStore(Handle[PairStatements], PairStore):
    """A :class:`~persistcoll.engine.contracts.PairStore` in a :class:`~persistcoll.sqlite.database.Database`.

    In its counters ``ready`` is the number of pairs, ``last_id`` the highest serial, and ``next_due_at`` the
    next expiry. The database's lock protects the counters and ``_adding``.

    :param format_key: formats a key for messages.
    """

    def __init__(self, collection: Collection, format_key: Callable[[bytes], str]) -> None:
        self._adding = False  # whether the last key that was set was a new one
        super().__init__(collection, pair_statements(collection.collection_id))
        self._rows = PairRows(self._database.path, format_key, self._now)
        self._users = collection.users

    def _release_due(self, execute: Execute, counters: Counters) -> None:
        counters.ready -= execute(self._sql.purge, (self._now(),)).rowcount
        (counters.next_due_at,) = execute(self._sql.select_next_expiry).fetchone()

    # One key.

    def get(self, key: bytes) -> bytes | None:
        if self._closed:
            self._check()
        row = self._database.fetch_one(self._sql.select_value, (key,))
        if row is None:
            return None
        value, crc, expires_at = row
        if expires_at is not None:
            return self._rows.verify_unexpired(key, value, crc, expires_at)
        if type(value) is not bytes or crc32(value, crc32(key)) != crc:
            self._rows.verify(key, value, crc, None)
        return value  # type: ignore[no-any-return]

    def contains(self, key: bytes) -> bool:
        self._check()
        row = self._database.fetch_one(self._sql.select_value, (key,))
        if row is None:
            return False
        _, _, expires_at = row
        return not self._rows.has_expired(expires_at) or self._rows.verify_unexpired(key, *row) is not None

    def change(self, key: bytes, name: bytes, change: Callable[[bytes | None], tuple[bytes | None, T]]) -> T:
        self._check()

        def run(execute: Execute) -> T:
            counters = self._refresh_counters(execute)
            row = execute(self._sql.select_value, (key,)).fetchone()
            present = expires_at = None
            if row is not None:
                present = self._rows.verify(key, *row)
                _, _, expires_at = row
            value, result = change(present)
            if value is None:
                if present is not None:
                    self._remove(execute, counters, key)
            elif present is None:
                crc = checksum(key, value, None)
                self._insert(execute, counters, self._sql.insert, key, name, None, crc, value)
            elif value is not present:
                execute(self._sql.update, (expires_at, checksum(key, value, expires_at), value, key))
            return result

        return self._write(run)

    def remove(self, key: bytes) -> bool:
        self._check()

        def run(execute: Execute) -> bool:
            return self._remove(execute, self._refresh_counters(execute), key)

        return self._write(run)

    def _insert(
        self,
        execute: Execute,
        counters: Counters,
        text: str,
        key: bytes,
        name: bytes,
        expires_at: float | None,
        crc: int,
        value: bytes,
    ) -> bool:
        """Insert a pair with one of the two statements that insert; return whether it did."""
        if not execute(text, (counters.last_id + 1, key, name, expires_at, crc, value)).rowcount:
            return False
        counters.last_id += 1
        counters.ready += 1
        if expires_at is not None:
            counters.lower_next_due(expires_at)
        return True

    def _remove(self, execute: Execute, counters: Counters, key: bytes) -> bool:
        there = execute(self._sql.delete, (key,)).rowcount > 0
        if there:
            counters.ready -= 1
            self._database.mark_dirty(counters)
        return there

    # Several keys.

    def get_many(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        self._check()

        def query(execute: Execute) -> list[Any]:
            return [(key, execute(self._sql.select_value, (key,)).fetchone()) for key in keys]

        found = (
            (key, row and self._rows.verify_unexpired(key, *row))
            for key, row in self._database.read_snapshot(query)
        )
        return {key: value for key, value in found if value is not None}

    def set_many(self, items: Sequence[tuple[bytes, bytes, bytes]], expires: float | None = None) -> None:
        if self._closed:
            self._check()
        if len(items) == 1:
            ((key, name, value),) = items
            if expires is None:

                def run(execute: Execute) -> None:
                    self._set(execute, key, name, value)

            else:

                def run(execute: Execute) -> None:
                    self._set_until(execute, key, name, value, expires)

            self._database.write(run, self._power, single_change=True, timeout=self._timeout)
        elif items:
            self._write(lambda execute: self._set_all(execute, items, expires))

    def _set(self, execute: Execute, key: bytes, name: bytes, value: bytes) -> None:
        counters = self._refresh_counters(execute)
        crc = crc32(value, crc32(key))  # as checksum() of a pair that never expires, in one call less
        # Heuristic: after an insert, try INSERT first. A wrong guess costs one statement more.
        if self._adding:
            if self._insert(execute, counters, self._sql.insert_if_absent, key, name, None, crc, value):
                return
            self._adding = False
        if execute(self._sql.update_unexpiring, (crc, value, key)).rowcount:
            return
        # If no pair expires, the statement above would have found the key.
        if counters.next_due_at is None or not execute(self._sql.update, (None, crc, value, key)).rowcount:
            self._insert(execute, counters, self._sql.insert, key, name, None, crc, value)
            self._adding = True

    def _set_until(self, execute: Execute, key: bytes, name: bytes, value: bytes, expires: float) -> None:
        counters = self._refresh_counters(execute)
        expires_at = self._now() + expires
        crc = checksum(key, value, expires_at)
        if execute(self._sql.update, (expires_at, crc, value, key)).rowcount:
            counters.lower_next_due(expires_at)
        else:
            self._insert(execute, counters, self._sql.insert, key, name, expires_at, crc, value)

    def _set_all(
        self, execute: Execute, items: Sequence[tuple[bytes, bytes, bytes]], expires: float | None
    ) -> None:
        counters = self._refresh_counters(execute)
        expires_at = None if expires is None else self._now() + expires
        last = counters.last_id
        self._database.executemany(
            self._sql.upsert,
            [
                (serial, key, name, expires_at, checksum(key, value, expires_at), value)
                for serial, (key, name, value) in enumerate(items, last + 1)
            ],
        )
        count, highest = execute(self._sql.count_inserted, (last,)).fetchone()
        if count:
            counters.ready += count
            counters.last_id = highest
            if highest - last != count:
                self._database.mark_dirty(counters)
        if expires_at is not None:
            counters.lower_next_due(expires_at)

    def pop(self, decode: Callable[[Pair], T], last: bool = True) -> T:
        self._check()

        def run(execute: Execute) -> T:
            counters = self._refresh_counters(execute)
            row = execute(self._sql.select_end[last]).fetchone()
            if row is None:
                raise KeyError("the mapping is empty")
            result = decode(self._rows.pair(row, True))
            _, key, *_ = row
            if not self._remove(execute, counters, key):
                # Every later pop would return the same pair.
                raise driver.corruption_error("a pair is not where its key says")
            return result

        return self._write(run)

    def clear(self) -> int:
        self._check()

        def run(execute: Execute) -> int:
            counters = self._refresh_counters(execute)
            count = counters.ready
            execute(self._sql.delete_all)
            counters.ready, counters.next_due_at = 0, None
            self._database.mark_dirty(counters)
            return count

        return self._write(run)

    def count(self) -> int:
        self._check()

        def query(execute: Execute, counters: Counters) -> int:
            if counters.next_due_at is None or counters.next_due_at > (now := self._now()):
                return counters.ready
            (count,) = execute(self._sql.count_unexpired, (now,)).fetchone()
            return int(count)

        return self._database.consult(self._counters, query)

    # Iteration, page by page: an open read transaction would keep SQLite from copying the log into the
    # database.

    def pairs(self, reverse: bool = False, values: bool = True) -> Iterator[Pair]:
        self._check()
        end_serial = self._database.consult(self._counters, lambda _, counters: counters.last_id) + 1
        page = self._sql.select_page[reverse, values]
        next_range = before_serial if reverse else after_serial
        return PagedScan(self._read_page, self._rows, page, (_BEFORE_ALL, end_serial), next_range, values)

    def scan(self, start: bytes, stop: bytes, reverse: bool = False, values: bool = True) -> Iterator[Pair]:
        self._check()
        page = self._sql.select_range[reverse, values]
        next_range = before_key if reverse else after_key
        return PagedScan(self._read_page, self._rows, page, (start, stop), next_range, values)

    def _read_page(self, text: str, low: Any, high: Any) -> list[Any]:
        self._check()

        def query(execute: Execute) -> list[Any]:
            rows = []
            size = 0
            answer = execute(text, (low, high, _PAGE))
            while (row := answer.fetchone()) is not None:
                rows.append(row)
                *_, value = row
                if type(value) is bytes:  # otherwise it was not read, or is damaged
                    size += len(value)
                if size > _PAGE_BYTES:
                    end_statement(execute)
                    break
            return rows

        return self._database.read_snapshot(query)

    # Lifecycle.

    def change_token(self) -> object:
        self._check()
        return self._database.change_token()

    def stats(self) -> Stats:
        return Stats(ready=self.count(), bytes=self._database.source.disk_usage())

    def after_fork_in_child(self) -> None:
        # The database follows forks by itself.
        pass
