"""A database's files are removed or replaced while it is open: no lost write is reported as stored."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from persistcoll import (
    CorruptionError,
    MessageQueue,
    PDict,
    SQLiteAckQueue,
    SQLiteQueue,
    StoreReplacedError,
)
from persistcoll.sqlite import writer_lock
from persistcoll.sqlite.database_file import DatabaseConnection

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.skipif(os.name == "nt", reason="open files cannot be removed"),
]

KINDS: list[Any] = [SQLiteQueue, SQLiteAckQueue, PDict, MessageQueue]


def write(store: Any, value: int) -> None:
    if isinstance(store, PDict):
        store[value] = value
    else:
        store.put(value)


def content(store: Any) -> list[int]:
    if isinstance(store, MessageQueue):
        infos = map(store.find, range(1, store.stats().puts + 1))
        return [info.body for info in infos if info is not None]
    return [*store] if isinstance(store, PDict) else [*store.items()]


def remove(place: Path) -> None:
    shutil.rmtree(place)


def rename(place: Path) -> None:
    place.rename(place.with_name("elsewhere"))


def restore(place: Path) -> None:
    """Restore a backup: another file of the same content, without a log."""
    shutil.copy(place / "data.db", place / "copy")
    for path in place.glob("data.db*"):
        path.unlink()
    (place / "copy").rename(place / "data.db")


def clean(name: str) -> Callable[[Path], None]:
    """Remove the lock files, as a cleaner does that takes them for left over."""
    return lambda place: (place / name).unlink()


GONE = {"removed": remove, "renamed": rename}
THERE = {
    "restored": restore,
    **{f"cleaned {end}": clean(f"data.db{end}") for end in (".lock", ".turn")},
}
SHARED = {end: clean(f"data.db{end}") for end in ("-shm", "-wal")}


def write_until(store: Any, deadline: float) -> None:
    while True:
        write(store, 1000)
        assert time.monotonic() < deadline, "it was stored where nothing is found"


def expect_refused(store: Any, durability: str) -> None:
    """Expect the refusal at once at "power"; at "process" when the turn ends, after 4 ms."""
    deadline = time.monotonic() + (0.0 if durability == "power" else 5.0)
    with pytest.raises(StoreReplacedError):
        write_until(store, deadline)
    for _ in range(2):
        with pytest.raises(StoreReplacedError, match="open it again"):
            write(store, 1001)


@pytest.mark.parametrize("durability", ["power", "process"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("action", [*GONE.values(), *THERE.values()], ids=[*GONE, *THERE])
def test_the_old_object_is_refused_and_the_new_one_is_right(kind, action, durability, tmp_path):
    place = tmp_path / "store"
    old = kind(place, durability=durability)
    write(old, 1)
    if action is restore:
        old.close()  # so that everything is in the database file
        old = kind(place, durability=durability)
    action(place)
    expect_refused(old, durability)
    with kind(place, durability=durability) as new:
        if action in GONE.values():
            assert content(new) == []
        for value in range(2, 5):
            write(new, value)
        before = content(new)
        old.close()
        write(new, 5)
        assert content(new) == [*before, 5]
        names = {path.name for path in place.iterdir()}
        assert {"data.db", "data.db-wal", "data.db-shm", "data.db.lock", "data.db.turn"} <= names
    with kind(place, durability=durability) as new:
        assert content(new) == [*before, 5]


@pytest.mark.parametrize("durability", ["power", "process"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("action", SHARED.values(), ids=SHARED)
def test_what_sqlite_shares_within_a_process_needs_closing_first(kind, action, durability, tmp_path):
    place = tmp_path / "store"
    old = kind(place, durability=durability)
    write(old, 1)
    action(place)
    expect_refused(old, durability)
    with pytest.raises(StoreReplacedError, match="close all"):
        kind(place)
    old.close()
    with kind(place, durability=durability) as new:
        before = content(new)
        write(new, 2)
        assert content(new) == [*before, 2]


@pytest.mark.parametrize("kind", KINDS)
def test_closing_tells_of_it_once(kind, tmp_path, caplog):
    store = kind(tmp_path / "store", durability="process")
    write(store, 1)
    remove(tmp_path / "store")
    store.close()
    store.close()
    (record,) = caplog.records
    assert "was removed while it was open" in record.getMessage()


@pytest.mark.parametrize("kind", KINDS)
def test_a_put_looks_at_the_directory_alone_as_long_as_nothing_changes_in_it(kind, tmp_path, monkeypatch):
    """After any change in the directory, or a long quiet time, a put checks every file again."""
    place = tmp_path / "store"
    with kind(place) as store:
        write(store, 1)
        os.utime(place, (1, 1))
        write(store, 2)
        looked: list[Any] = []
        look = os.stat

        def noted(path: Any, *arguments: Any, **options: Any) -> os.stat_result:
            looked.append(path)
            return look(path, *arguments, **options)

        monkeypatch.setattr(os, "stat", noted)
        write(store, 3)
        assert 1 <= len(looked) <= 3
        assert set(looked) == {str(place)}
        monkeypatch.undo()
        (place / "data.db.turn").rename(place / "turn")
        with pytest.raises(StoreReplacedError):
            write(store, 4)


def test_a_holders_file_of_another_store_stays(tmp_path):
    place = tmp_path / "store"
    old = SQLiteAckQueue(place)
    old.put(1)
    old.get()
    remove(place)
    with SQLiteAckQueue(place) as new:
        new.put(2)
        assert new.get() == 2
        old.close()
        assert [path.name for path in place.glob("*.holder-*")] == ["data.db.holder-1"]


@pytest.mark.parametrize("forked", [False, True])
@pytest.mark.parametrize("call", ["put", "ack", "nack"])
def test_a_holder_whose_file_a_cleaner_removed_is_told(call, forked, tmp_path):
    """It is told before it writes, because other processes take it for dead."""
    place = tmp_path / "store"
    with SQLiteAckQueue(place) as old:
        old.put_many([1, 2])
        assert old.get() == 1
        if forked:
            pid = os.fork()
            if not pid:
                os._exit(0)  # the parent connects again
            assert os.waitpid(pid, 0)[1] == 0
            old.put(3)
        next(place.glob("*.holder-*")).unlink()
        with pytest.raises(StoreReplacedError, match="holder"):
            getattr(old, call)(1)
    with SQLiteAckQueue(place) as new:
        assert new.qsize() == (3 if forked else 2)


def test_a_child_does_not_watch_its_parents_holder(tmp_path):
    with SQLiteAckQueue(tmp_path / "store") as queue:
        queue.put_many([1, 2, 3])
        queue.get()
        told, tell = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                os.read(told, 1)
                queue.put(4)
                assert queue.ack(queue.get()) is not None
                os._exit(0)
            finally:
                os._exit(1)
        queue.close()  # removes its holder's file
        os.write(tell, b"!")
        assert os.waitpid(pid, 0)[1] == 0
        os.close(told)
        os.close(tell)


def test_a_refusal_of_a_lost_database_leaves_its_log(tmp_path):
    """The message's advice works: after the database is put back, every item is there."""
    program = (
        "import os, sys, persistcoll\n"
        "queue = persistcoll.SQLiteQueue(sys.argv[1])\n"
        "queue.put_many(range(9))\n"
        "os._exit(0)"  # without closing
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", program, str(tmp_path)], check=True, timeout=60)
    database = tmp_path / "data.db"
    database.rename(tmp_path / "moved")
    with pytest.raises(CorruptionError, match="Put the database back"):
        SQLiteQueue(tmp_path)
    (tmp_path / "moved").rename(database)
    with SQLiteQueue(tmp_path) as queue:
        assert list(queue.items()) == [*range(9)]


def test_a_get_that_is_refused_takes_nothing(tmp_path):
    place = tmp_path / "q"
    with SQLiteQueue(place) as queue:
        queue.put_many(["a", "b"])
        place.rename(tmp_path / "elsewhere")
        with pytest.raises(StoreReplacedError):
            queue.get(block=False)
    with SQLiteQueue(tmp_path / "elsewhere") as queue:
        assert list(queue.items()) == ["a", "b"]


def test_a_holder_that_closes_during_a_check_is_not_missed(tmp_path, monkeypatch):
    looks: list[Any] = []

    def look(path: Any) -> tuple[int, int]:
        if str(path).endswith(".holder-1"):
            looks.append(path)
            claiming.close()
        return identity_of(path)

    identity_of = writer_lock.identity_of
    with SQLiteQueue(tmp_path, name="others") as others, SQLiteAckQueue(tmp_path, name="jobs") as claiming:
        claiming.put(1)
        claiming.get()
        with monkeypatch.context() as patch:
            patch.setattr(writer_lock, "identity_of", look)
            vars(others._store)["_database"].check_files()
        assert looks
        others.put(2)
        assert len(others) == 1


def test_a_check_during_a_fork_does_not_miss_the_log(tmp_path, monkeypatch):
    there: list[bool] = []

    def close_and_check(self: DatabaseConnection) -> None:
        close(self)
        there.append((tmp_path / "data.db-wal").exists())
        vars(queue._store)["_database"].check_files()

    close = DatabaseConnection.close
    with SQLiteQueue(tmp_path) as queue:
        queue.put(1)
        with monkeypatch.context() as patch:
            patch.setattr(DatabaseConnection, "close", close_and_check)
            child = os.fork()
            if child == 0:
                os._exit(0)
            os.waitpid(child, 0)
        assert there == [False]
        queue.put(2)
        assert len(queue) == 2
