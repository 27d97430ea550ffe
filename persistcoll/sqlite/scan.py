"""Iterate over the records of a collection without claiming them, page by page."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

from persistcoll.engine.records import Record, State, Stats
from persistcoll.errors import CorruptionError
from persistcoll.sqlite.counters import Counters
from persistcoll.sqlite.driver import Execute
from persistcoll.sqlite.rows import Rows, time_of
from persistcoll.sqlite.statements import RecordStatements

__all__ = ["BEFORE_ALL", "Read", "TableScan", "in_pages"]

_PAGE = 256  # rows that an iteration reads at a time
BEFORE_ALL = -1 << 63
"""An id that is lower than any other."""

T = TypeVar("T")


class Read(Protocol):
    """How a collection reads what is committed."""

    def __call__(self, query: Callable[[Execute, Counters], T], /, snapshot: bool = False) -> T:
        """Return what ``query`` reads; with ``snapshot`` its statements read one snapshot."""


def in_pages(read: Callable[[int], list[Any]], path: str) -> Iterator[Any]:
    """Return rows by their ids, with which they begin, page by page.

    An open read transaction would keep SQLite from copying the log into the database.

    :param read: returns the next rows with higher ids than this one.
    :raise CorruptionError: they do not come in the order of their ids. The same rows might come for ever.
    """
    after = BEFORE_ALL
    while rows := read(after):
        for row in rows:
            id = row[0]
            if id <= after:
                raise CorruptionError(
                    f"reading {path!r} failed: the database is damaged (item {id} is out of order)", path
                )
            yield row
            after = id


class TableScan:
    """The records of one collection, by their ids. Any thread may use it; no field changes."""

    def __init__(self, read: Read, sql: RecordStatements, rows: Rows, path: str) -> None:
        self._read = read
        self._path = path
        self._sql = sql
        self._rows = rows

    def ready(self) -> Iterator[Record]:
        """Return the records that are ready now; those that cease to be ready meanwhile may be left out."""
        last = self._read(lambda _, counters: counters.last_id)

        def page(after: int) -> list[Any]:
            parameters = (after, last, _PAGE)
            return self._read(lambda execute, _: execute(self._sql.select_page, parameters).fetchall())

        return (self._rows.record(row) for row in in_pages(page, self._path))

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
            oldest = execute(self._sql.select_page, (BEFORE_ALL, counters.last_id, 1)).fetchone()
            age = None
            if oldest is not None:
                _, _, _, put_at, *_ = oldest
                age = max(0.0, time.time() - time_of(put_at))
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
