"""Iterate over the records of a collection without claiming them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

from persistcoll.engine.records import Record, State, Stats
from persistcoll.sqlite.counters import Counters
from persistcoll.sqlite.driver import Execute
from persistcoll.sqlite.rows import Rows
from persistcoll.sqlite.statements import RecordStatements

__all__ = ["Read", "TableScan"]

_PAGE = 256  # rows that an iteration reads at a time
_BEFORE_ALL = -1 << 63

T = TypeVar("T")


class Read(Protocol):
    """How a collection reads what is committed."""

    def __call__(self, query: Callable[[Execute, Counters], T], /, snapshot: bool = False) -> T:
        """Return what ``query`` reads; with ``snapshot`` its statements read one snapshot."""


class TableScan:
    """The records of one collection, by their ids. Any thread may use it; no field changes."""

    def __init__(self, read: Read, sql: RecordStatements, rows: Rows) -> None:
        self._read = read
        self._sql = sql
        self._rows = rows

    def ready(self) -> Iterator[Record]:
        """Return the records that are ready now; those that cease to be ready meanwhile may be left out."""
        return self._pages(self._read(lambda _, counters: counters.last_id))

    def _pages(self, last: int) -> Iterator[Record]:
        # Page by page: an open read transaction would keep SQLite from copying the log into the database.
        after = _BEFORE_ALL

        def query(execute: Execute, counters: Counters) -> list[Any]:
            return execute(self._sql.select_page, (after, last, _PAGE)).fetchall()

        while rows := self._read(query):
            for row in rows:
                id, *_ = row
                self._rows.check_order(after, id)
                yield self._rows.record(row)
                after = id

    def in_states(self, *states: State) -> Iterator[tuple[State, Record]]:
        """Return the records in these states from one snapshot, by id; without a state all records."""
        listing = self._sql.select_in_state
        wanted = [state for state in states or State if state in listing]

        def query(execute: Execute, counters: Counters) -> list[tuple[State, list[Any]]]:
            return [(state, execute(listing[state]).fetchall()) for state in wanted]

        found = [(state, self._rows.record(row)) for state, rows in self._read(query, True) for row in rows]
        return iter(sorted(found, key=lambda pair: pair[1].id))

    def stats(self, occupied: Callable[[], int]) -> Stats:
        """Return the counters and the age of the oldest record, from one snapshot."""

        def query(execute: Execute, counters: Counters) -> Stats:
            oldest = execute(self._sql.select_page, (_BEFORE_ALL, counters.last_id, 1)).fetchone()
            age = None
            if oldest is not None:
                _, _, _, put_at, *_ = oldest
                age = max(0.0, time.time() - put_at)
            return Stats(
                ready=counters.ready,
                claimed=counters.claimed,
                delayed=counters.delayed,
                done=counters.done,
                failed=counters.failed,
                dead=counters.dead,
                oldest_age=age,
                puts=counters.ready + counters.claimed + counters.delayed + counters.finished,
                gets=counters.finished,
                bytes=occupied(),
            )

        return self._read(query, True)
