"""Failures from outside: an error of persistcoll names the cause, and nothing is lost."""

from __future__ import annotations

import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from persistcoll import (
    FormatVersionError,
    LockedError,
    SQLiteAckQueue,
    SQLiteQueue,
    StorageError,
    StoreKindError,
)
from persistcoll.disk import path_checks
from tests.leaks import open_below
from tests.sql_queues.conftest import ACK, done_with


def data_file(directory: Path) -> Path:
    return directory / "q" / "data.db"


# Another program's lock.


@pytest.fixture
def foreign(tmp_path):
    """Give a function that opens another program's connection and executes statements in it."""
    connections: list[sqlite3.Connection] = []

    def connect(*texts: str) -> sqlite3.Connection:
        connection = sqlite3.connect(data_file(tmp_path), isolation_level=None, timeout=0.1)
        connections.append(connection)
        for text in texts:
            connection.execute(text).fetchall()
        return connection

    yield connect
    for connection in connections:
        connection.close()


def writing(queue: Any) -> dict[str, Callable[[], object]]:
    """Return every call that writes."""
    calls: dict[str, Callable[[], object]] = {
        "put": lambda: queue.put("x"),
        "put_many": lambda: queue.put_many(["x", "y"]),
        "get": queue.get,
        "get by id": lambda: queue.get(id=2),
        "get_many": lambda: queue.get_many(2),
        "receive": lambda: queue.receive().__enter__(),
        "skip": queue.skip,
        "clear": queue.clear,
        "update": lambda: queue.update("x", id=2),
        "shrink_disk_usage": queue.shrink_disk_usage,
    }
    if isinstance(queue, SQLiteAckQueue):
        calls |= {
            "task_done": queue.task_done,
            "ack": lambda: queue.ack(id=1),
            "nack": lambda: queue.nack(id=1),
            "ack_failed": lambda: queue.ack_failed(id=1),
            "resume_unack_tasks": queue.resume_unack_tasks,
            "clear_acked_data": queue.clear_acked_data,
        }
    return calls


def test_another_program_keeps_it_locked(open_file, kind, foreign):
    queue = open_file(kind, timeout=0.02)
    queue.put_many(["a", "b", "c"])
    if kind in ACK:
        queue.get(id=1)
    connection = foreign("BEGIN IMMEDIATE")
    for name, call in writing(queue).items():
        with pytest.raises(LockedError, match="keeps the database locked") as caught:
            print(name, call())  # shown where it did not raise
        assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
    # A read waits for no lock.
    assert queue.qsize() == len(list(queue.items()))
    assert queue.peek() in ("a", "b", "c")
    assert queue.stats().ready == len(queue)
    connection.execute("ROLLBACK")
    if kind in ACK:
        assert queue.ack(id=1) == 1
    before = queue.qsize()
    assert queue.put("d") == 4
    assert len(queue.get_many(9)) == before + 1
    for _ in range(before + 1):
        done_with(queue)


def test_a_queue_that_is_closed_after_an_error_keeps_no_file_open(open_file, kind, foreign, tmp_path):
    """SQLite does not close a connection that has a statement, as a cursor has after an error."""
    queue = open_file(kind, timeout=0.02)
    connection = foreign("BEGIN IMMEDIATE")
    with pytest.raises(LockedError):
        queue.put("a")
    connection.close()
    queue.close()
    assert not open_below(tmp_path)


@pytest.mark.parametrize("timeout", [1e7, 1e300, float("inf")])
def test_a_timeout_of_months_is_not_none(open_file, timeout):
    """SQLite counts milliseconds in 32 bits, so a longer timeout did not wait at all."""
    connection = open_file(SQLiteQueue, timeout=timeout)._store._database._connection
    assert connection.execute("PRAGMA busy_timeout").fetchone()[0] > 1_000_000_000


def test_another_program_keeps_all_others_out(open_file, kind, foreign):
    """Reads and opening wait too."""
    queue = open_file(kind, timeout=0.02)
    queue.put("a")
    queue.close()
    foreign(
        "PRAGMA locking_mode=EXCLUSIVE", "BEGIN EXCLUSIVE", "CREATE TABLE IF NOT EXISTS theirs (x)", "COMMIT"
    )
    with pytest.raises(LockedError, match="another program"):
        open_file(kind, timeout=0.02)


def test_a_program_that_reads_blocks_no_writer(open_file, kind, foreign):
    queue = open_file(kind, timeout=0.02)
    queue.put_many(["a", "b"])
    connection = foreign("BEGIN", "SELECT * FROM ready_1")
    queue.get()
    done_with(queue)
    queue.put("c")
    queue.skip()
    assert connection.execute("SELECT count(*) FROM ready_1").fetchone() == (2,)
    connection.execute("COMMIT")
    assert queue.qsize() == 1


# The place of the database.


def test_a_network_file_system(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(path_checks, "network_file_system", lambda path: "nfs4")
    with pytest.raises(StorageError, match=r"network file system \(nfs4\)"):
        kind(tmp_path / "q")
    assert not data_file(tmp_path).exists()
    with kind(tmp_path / "q", allow_network_fs=True, durability="process") as queue:
        queue.put(1)


@pytest.fixture
def file_system(tmp_path):
    """Give a file system that can be mounted read-only."""
    place = tmp_path / "q"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,mode=700", "tmpfs", str(place)], check=True)
    yield lambda how: subprocess.run(["mount", "-o", f"remount,{how}", str(place)], check=True)
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.needs("root", "mount")
def test_a_file_system_that_is_read_only(open_file, file_system):
    queue = open_file(SQLiteQueue)
    queue.put_many(["a", "b"])
    queue.close()
    file_system("ro")
    with pytest.raises(StorageError, match=r"Read-only file system.*read_only=True"):
        open_file(SQLiteQueue)
    file_system("rw")
    assert open_file(SQLiteQueue).get_many(9) == ["a", "b"]


@pytest.mark.needs("root", "mount")
def test_a_file_that_is_read_only(open_file, tmp_path):
    queue = open_file(SQLiteQueue)
    queue.put_many(["a", "b"])
    queue.close()
    path = str(data_file(tmp_path))
    subprocess.run(["mount", "--bind", path, path], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", path], check=True)
        with pytest.raises(StorageError, match=r"Read-only file system.*read_only=True"):
            open_file(SQLiteQueue)
    finally:
        subprocess.run(["umount", "-l", path], check=True)
    assert open_file(SQLiteQueue).get_many(9) == ["a", "b"]


def test_a_directory_in_the_databases_place(tmp_path, kind):
    data_file(tmp_path).mkdir(parents=True)
    with pytest.raises(StoreKindError, match="is a directory"):
        kind(tmp_path / "q")


@pytest.mark.parametrize(
    ("place", "error"),
    [
        ("plain", StoreKindError),
        ("plain/below", StorageError),
        ("x" * 300, StorageError),
        ("y" * 300 + ".db", StorageError),
    ],
)
def test_a_path_that_cannot_be(tmp_path, kind, place, error):
    (tmp_path / "plain").write_text("a file")
    with pytest.raises(error):
        kind(tmp_path / place)


def test_another_programs_lock_file(tmp_path, kind):
    (tmp_path / "q").mkdir()
    lock = tmp_path / "q" / "data.db.lock"
    lock.write_text("4711 of another program")
    with pytest.raises(StoreKindError, match="not a lock file of persistcoll"):
        kind(tmp_path / "q")
    assert lock.read_text() == "4711 of another program"


# The content of the database.


def test_a_collection_of_a_later_format(open_file, tmp_path, kind):
    """Only that collection is refused, because a later release may add one beside the others."""
    open_file(kind, name="new").put("a")
    open_file(kind, name="old").put("b")
    open_file.close()
    with closing(sqlite3.connect(data_file(tmp_path))) as connection, connection:
        connection.execute("UPDATE collections SET version = 3 WHERE name = 'new'")
    with pytest.raises(FormatVersionError, match="version 3"):
        open_file(kind, name="new")
    assert open_file(kind, name="old").get() == "b"
