"""The connection that a transaction lends: what it does, what it refuses, and what does not stay."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from persistcoll import SQLiteAckQueue, SQLiteQueue, StorageError

pytestmark = pytest.mark.timeout(60)


class _Fails(Exception):
    pass


def rows(path: Path, text: str) -> list[Any]:
    with closing(sqlite3.connect(path / "data.db")) as connection:
        return connection.execute(text).fetchall()


def test_tables_of_the_callers_own_commit_with_it(other, tmp_path):
    with SQLiteQueue(tmp_path, "q") as queue:
        with queue.transaction() as connection:
            assert isinstance(connection, sqlite3.Connection)
            connection.execute("CREATE TABLE page (url TEXT PRIMARY KEY, text TEXT)")
            queue.put("x")
            connection.executemany("INSERT INTO page VALUES (?, ?)", [("a", "1"), ("b", "2")])
            assert connection.execute("SELECT count(*) FROM page").fetchone() == (2,)
        with suppress(_Fails), queue.transaction() as connection:
            connection.execute("DELETE FROM page")
            queue.get()
            raise _Fails
        assert queue.qsize() == 1
    assert rows(tmp_path, "SELECT url FROM page ORDER BY url") == [("a",), ("b",)]


ENDINGS: dict[str, Callable[[Any], object]] = {
    "commit": lambda connection: connection.commit(),
    "rollback": lambda connection: connection.rollback(),
    "executescript": lambda connection: connection.executescript("SELECT 1"),
    "script of a cursor": lambda connection: connection.cursor().executescript("SELECT 1"),
    "with": lambda connection: connection.__enter__(),
    "exit": lambda connection: sqlite3.Connection.__exit__(connection, None, None, None),
    "COMMIT": lambda connection: connection.execute("COMMIT"),
    "END": lambda connection: connection.execute("/* now */ END"),
    "ROLLBACK": lambda connection: connection.execute("ROLLBACK"),
    "isolation_level": lambda connection: setattr(connection, "isolation_level", None),
    "autocommit": lambda connection: setattr(connection, "autocommit", True),
    "close": lambda connection: connection.close(),
    "backup": lambda connection: connection.backup(None),
    "set_authorizer": lambda connection: connection.set_authorizer(None),
    "query_only": lambda connection: connection.execute("PRAGMA query_only = ON"),
    "attach": lambda connection: connection.execute("ATTACH ':memory:' AS another"),
    "user_version": lambda connection: connection.execute("PRAGMA user_version = 7"),
}


@pytest.mark.parametrize("end", ENDINGS.values(), ids=ENDINGS)
@pytest.mark.parametrize("used", [False, True])
def test_nothing_else_ends_it(end, used, other, tmp_path):
    with SQLiteQueue(tmp_path, "q") as queue:
        for fails in (True, False):
            with suppress(_Fails), queue.transaction() as connection:
                queue.put("x")
                if used or end is ENDINGS["exit"]:
                    connection.execute("SELECT 1")
                with pytest.raises(sqlite3.DatabaseError):
                    end(connection)
                queue.put("y")
                if fails:
                    raise _Fails
            assert queue.qsize() == (0 if fails else 2)
        with pytest.raises(sqlite3.ProgrammingError, match="has ended"):
            connection.execute("SELECT 1")
        queue.put("z")
        assert queue.qsize() == 3


def test_savepoints_of_the_callers_own(other, tmp_path):
    with SQLiteQueue(tmp_path, "q") as queue:
        with queue.transaction() as connection:
            connection.execute("CREATE TABLE own (n)")
            queue.put("x")
            connection.execute("SAVEPOINT s")
            connection.execute("INSERT INTO own VALUES (1)")
            connection.execute("ROLLBACK TO s")
            connection.execute("INSERT INTO own VALUES (2)")
            queue.put("y")
            connection.execute("RELEASE s")
        assert queue.qsize() == 2

        def undo_an_operation(then: Callable[[], object]) -> None:
            with queue.transaction() as connection:
                connection.execute("SAVEPOINT s")
                queue.get()
                connection.execute("ROLLBACK TO s")
                then()

        for then in (lambda: None, lambda: queue.put("z"), queue.qsize):
            with pytest.raises(StorageError, match="savepoint"):
                undo_an_operation(then)
            assert (queue.qsize(), queue.unfinished_tasks) == (2, 2)
    assert rows(tmp_path, "SELECT n FROM own") == [(2,)]


def test_an_error_of_the_callers_own_statement(other, tmp_path):
    with SQLiteQueue(tmp_path, "q") as queue:
        with queue.transaction() as connection:
            connection.execute("CREATE TABLE own (n UNIQUE)")
            queue.put("x")
            connection.execute("INSERT INTO own VALUES (1)")
            with pytest.raises(sqlite3.IntegrityError):
                connection.execute("INSERT INTO own VALUES (1)")
        assert queue.qsize() == 1

        def roll_back() -> None:
            with queue.transaction() as connection:
                queue.put("y")
                with pytest.raises(sqlite3.IntegrityError):
                    connection.execute("INSERT OR ROLLBACK INTO own VALUES (1)")
                with pytest.raises(sqlite3.ProgrammingError, match="rolled back"):
                    connection.execute("INSERT INTO own VALUES (2)")
                with pytest.raises(StorageError, match="rolled back"):
                    queue.put("z")

        with pytest.raises(StorageError, match="rolled back"):
            roll_back()
        assert [*queue.items()] == ["x"]
    assert rows(tmp_path, "SELECT n FROM own") == [(1,)]


def test_statements_that_outlive_the_block(other, tmp_path):
    with (
        SQLiteQueue(tmp_path, "q", timeout=1) as queue,
        closing(sqlite3.connect(tmp_path / "data.db")) as another,
    ):
        for _ in range(2):
            with queue.transaction() as connection:
                connection.execute("CREATE TABLE IF NOT EXISTS own (n)")
                connection.executemany("INSERT INTO own VALUES (?)", [(n,) for n in range(1000)])
                cursor = connection.execute("SELECT n FROM own")
                assert cursor.fetchone() == (0,)
                insert = connection.cursor()
                queue.put("x")
            another.execute("INSERT INTO own VALUES (1)")
            another.commit()
            for use in (cursor.fetchone, lambda insert=insert: insert.execute("INSERT INTO own VALUES (2)")):
                with pytest.raises(sqlite3.ProgrammingError):
                    use()
            queue.put("y")
        queue.shrink_disk_usage()
        assert queue.qsize() == 4


def test_what_the_caller_sets_on_the_connection_does_not_stay(other, tmp_path):
    with SQLiteQueue(tmp_path, "q") as queue:
        with queue.transaction() as connection:
            connection.row_factory, connection.text_factory = sqlite3.Row, bytes
            assert connection.execute("SELECT 1 AS one").fetchone()["one"] == 1
            queue.put("x")
            assert connection.execute("SELECT 'text' AS text").fetchone()["text"] == b"text"
        with queue.transaction() as connection:
            assert connection.execute("SELECT 'text'").fetchone() == ("text",)
            connection.text_factory = bytes
            with SQLiteQueue(tmp_path, "q"):
                pass
        with SQLiteQueue(tmp_path, "q"):
            pass
        assert queue.get() == "x"


def test_in_memory(other):
    with SQLiteAckQueue(":memory:") as queue:
        queue.put("x")
        item = queue.get()
        with suppress(_Fails), queue.transaction() as connection:
            connection.execute("CREATE TABLE own (n)")
            queue.ack(item)
            raise _Fails
        assert queue.unack_count() == 1
        assert queue.ack(item) == 1
