"""Where a database may not lie; and a refusal leaves no file."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from persistcoll import PDict, Queue, SQLiteQueue, StorageError, StoreKindError

ROOT = Path(__file__).parents[2]
KINDS: list[Any] = [SQLiteQueue, PDict]


def file_queue(place: Path) -> None:
    with Queue(place) as queue:
        queue.put(1)


def database_of(name: str, table: str) -> Callable[[Path], None]:
    def make(place: Path) -> None:
        place.mkdir()
        with closing(sqlite3.connect(place / name)) as connection:
            connection.execute(f"CREATE TABLE {table} (a)")

    return make


def no_database(place: Path) -> None:
    place.mkdir()
    (place / "data.db").write_bytes(b"something else" * 100)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "make",
    [
        file_queue,
        database_of("data.db", "queue_default"),
        database_of("cache.db", "Settings"),
        no_database,
    ],
    ids=["file queue", "persist-queue", "diskcache", "no database"],
)
def test_another_stores_directory(kind, make, tmp_path):
    place = tmp_path / "store"
    make(place)
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    with pytest.raises(StoreKindError):
        kind(place)
    assert {path.name: path.read_bytes() for path in place.iterdir()} == before


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_path_or_no_name(kind, tmp_path):
    for path in ("", b"", str(tmp_path / "a\0b"), str(tmp_path / "\ud800")):
        with pytest.raises(ValueError, match=r"path|null"):
            kind(path)
    with pytest.raises(ValueError, match="surrogate"):
        kind(tmp_path / "store", name="\ud800")
    with pytest.raises(StorageError):
        kind(tmp_path.joinpath(*["x" * 200] * 4))  # longer than SQLite accepts
    with kind(os.fsencode(tmp_path / "bytes")) as opened:
        assert opened.path == str(tmp_path / "bytes")


def test_a_dump_that_was_restored_is_told_what_it_lacks(tmp_path):
    with SQLiteQueue(tmp_path / "one.db") as queue:
        queue.put_many(["a", "b"])
    with (
        closing(sqlite3.connect(tmp_path / "one.db")) as one,
        closing(sqlite3.connect(tmp_path / "two.db")) as two,
    ):
        two.executescript("\n".join(one.iterdump()))
    with pytest.raises(StoreKindError, match="restored dump") as found:
        SQLiteQueue(tmp_path / "two.db")
    with closing(sqlite3.connect(tmp_path / "two.db")) as two:
        for pragma in re.findall(r"PRAGMA \w+=\d+", str(found.value)):
            two.execute(pragma)
    with SQLiteQueue(tmp_path / "two.db") as queue:
        assert queue.get_many(5) == ["a", "b"]


SHORT = """
import os, resource, sys
from persistcoll import PDict, PersistcollError, Queue, SQLiteAckQueue, SQLiteQueue
kind, path = eval(sys.argv[1]), sys.argv[2]
def use():
    with kind(path, durability="process") as store:
        if kind is PDict:
            store[1] = 1
            store[1], len(store), store.get_many([1]), list(store), store.clear()
        else:
            store.put(1)
            store.peek(), store.qsize(), store.get()
            store.task_done()
use()
descriptors = lambda: len(os.listdir("/proc/self/fd"))
before, failed = descriptors(), 0
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
for more in range(20):
    resource.setrlimit(resource.RLIMIT_NOFILE, (before - 1 + more, hard))
    try:
        use()
    except PersistcollError:
        failed += 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert descriptors() == before, more
    use()
assert failed > 3
print("right")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("kind", ["Queue", "SQLiteQueue", "SQLiteAckQueue", "PDict"])
def test_too_few_descriptors_at_each_step(kind, tmp_path):
    command = [sys.executable, "-W", "error", "-c", SHORT, kind, str(tmp_path / "store")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)
    assert (done.returncode, done.stdout) == (0, "right\n"), done.stderr
