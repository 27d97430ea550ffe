"""A write marked as a single change is one, because SQLite makes a transaction of each statement.

A trace callback is called before each statement. The number of rows that the connection has changed by then
tells which statement changed something.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from persistcoll import FILOSQLiteQueue, PDict, SQLiteAckQueue, SQLiteQueue
from persistcoll.sqlite.database import Database
from persistcoll.sqlite.driver import Execute


class Single:
    """Inspects everything that is written as a single change.

    :ivar seen: of each write, the first words of its statements.
    """

    def __init__(self) -> None:
        self.seen: list[list[str]] = []

    def write(
        self, database: Database, run: Callable[[Execute], Any], sync: bool, *rest: Any, **options: Any
    ) -> Any:
        def traced(execute: Execute) -> Any:
            connection = database._connection
            words: list[str] = []
            changes: list[int] = []

            def note(text: str) -> None:
                words.append(text.split()[0].lower())
                changes.append(connection.total_changes)

            connection.set_trace_callback(note)
            try:
                return run(execute)
            finally:
                connection.set_trace_callback(None)
                self.seen.append(words)
                expect_single(words, [*changes, connection.total_changes])

        return WRITE(database, traced if options.get("single_change") else run, sync, *rest, **options)


WRITE = Database.write


def expect_single(words: list[str], changes: list[int]) -> None:
    """Check that only the last statement changes something, or that the statements are one transaction."""
    if "begin" in words:
        assert changes[words.index("begin")] == changes[0], words
        return
    changing = [number for number in range(len(words)) if changes[number + 1] > changes[number]]
    assert changing in ([], [len(words) - 1]), words


@pytest.fixture
def single(monkeypatch) -> Single:
    single = Single()

    def write(database: Database, *arguments: Any, **options: Any) -> Any:
        return single.write(database, *arguments, **options)

    monkeypatch.setattr(Database, "write", write)
    return single


@contextmanager
def written(single: Single, *words: str) -> Iterator[None]:
    """Check that the block writes one single change, by statements with these first words."""
    single.seen.clear()
    yield
    assert single.seen == [list(words)]


@pytest.mark.parametrize("kind", [SQLiteQueue, FILOSQLiteQueue, SQLiteAckQueue])
def test_a_put(single, kind, tmp_path):
    with kind(tmp_path, durability="process") as queue:
        with written(single, "insert"):
            queue.put("a")
        assert queue.get() == "a"
        with written(single, "insert"):
            queue.put("b")


def test_a_put_when_a_delay_is_over(single, tmp_path):
    with SQLiteAckQueue(tmp_path, durability="process") as queue:
        queue.put("a")
        queue.nack(queue.get(), delay=60)
        queue._store._clock = lambda: queue._store._counters.next_due_at + 1  # type: ignore[attr-defined]
        single.seen.clear()
        queue.put("b")
        ((begin, *_, last),) = single.seen
        assert (begin, last) == ("begin", "insert")
        assert [queue.get(), queue.get()] == ["a", "b"]


def test_an_assignment(single, tmp_path):
    with PDict[str, int](tmp_path, durability="process") as ages:
        assert not ages  # this reads its counters
        with written(single, "update", "insert"):
            ages["ann"] = 1
        with written(single, "insert"):  # the write before added a key
            ages["bob"] = 2
        with written(single, "insert", "update"):
            ages["bob"] = 3
        with written(single, "update"):
            ages["ann"] = 4
        with written(single, "update", "insert"):
            ages.set("cid", 5, ttl=100)
        with written(single, "update"):
            ages.set("ann", 6, ttl=100)
        with written(single, "update", "update"):
            ages["ann"] = 7
        assert ages == {"ann": 7, "bob": 3, "cid": 5}


def test_an_assignment_when_a_pair_has_expired(single, tmp_path):
    with PDict[str, int](tmp_path, durability="process") as ages:
        ages.set("ann", 1, ttl=100)
        ages._store._clock = lambda: ages._store._counters.next_due_at + 1  # type: ignore[attr-defined]
        single.seen.clear()
        ages["bob"] = 2
        ((begin, *_, last),) = single.seen
        assert (begin, last) == ("begin", "insert")
        assert ages == {"bob": 2}


def test_a_second_change_is_seen(single, tmp_path):
    """A test of the test."""

    def twice(execute: Execute) -> None:
        execute("UPDATE counters SET gone = gone")
        execute("UPDATE counters SET gone = gone")

    def first(execute: Execute) -> None:
        execute("UPDATE counters SET gone = gone")
        execute("SELECT 1")

    with SQLiteQueue(tmp_path, durability="process") as queue:
        for run in (twice, first):
            with pytest.raises(AssertionError, match="update"):
                queue._store._database.write(run, False, single_change=True)  # type: ignore[attr-defined]
