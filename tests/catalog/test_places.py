"""What ``collections()`` says of a path where something else lies, something damaged, or nothing."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from persistcoll import (
    CorruptionError,
    FormatVersionError,
    LockedError,
    PDict,
    Queue,
    SQLiteQueue,
    StorageError,
    StoreKindError,
    StoreMissingError,
    collections,
)
from persistcoll.disk import path_checks
from persistcoll.journal import directory
from persistcoll.journal import inspect as files
from persistcoll.sqlite import inspect as databases
from persistcoll.sqlite import schema
from tests.catalog.kinds import CLASSES, COUNTS, IN_DATABASES
from tests.leaks import open_below
from tests.permissions.kinds import PLAIN, add, die, everything, in_child

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def a_queue(path: Path) -> Path:
    with Queue(path, **PLAIN) as queue:
        queue.put_many("abc")
    return path


def a_database(path: Path) -> Path:
    """With one collection of each kind."""
    for kind in IN_DATABASES:
        with CLASSES[kind](path, name=kind, **PLAIN) as container:
            add(container, *"abc")
    return path / "data.db"


def execute(database: Path, *statements: str) -> None:
    with closing(sqlite3.connect(database)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


# Nothing, or something else. Each is made in a directory that is empty, and returns what is asked for.


def no_such_path(place: Path) -> Path:
    return place / "nothing"


def no_such_parent(place: Path) -> Path:
    return place / "no" / "thing.db"


def below_a_file(place: Path) -> Path:
    (place / "file").write_text("text")
    return place / "file" / "below"


def a_dangling_link(place: Path) -> Path:
    (place / "link").symlink_to("nowhere")
    return place / "link"


def an_empty_directory(place: Path) -> Path:
    (place / "empty").mkdir()
    return place / "empty"


def an_empty_file(place: Path) -> Path:
    (place / "empty.db").touch()
    return place / "empty.db"


def an_empty_database_in_a_directory(place: Path) -> Path:
    (place / "data.db").touch()
    return place


def a_database_without_tables(place: Path) -> Path:
    with closing(sqlite3.connect(place / "bare.db")) as connection:
        connection.execute("VACUUM")
    assert (place / "bare.db").stat().st_size
    return place / "bare.db"


def locks_alone(place: Path) -> Path:
    for name in ("producer.lock", "consumer.lock", "info.tmp"):
        (place / name).touch()
    return place


NOTHING = [
    no_such_path,
    no_such_parent,
    below_a_file,
    a_dangling_link,
    an_empty_directory,
    an_empty_file,
    an_empty_database_in_a_directory,
    a_database_without_tables,
    locks_alone,
]


def other_files(place: Path) -> Path:
    (place / "notes.txt").write_text("text")
    return place


def a_database_of_another_name(place: Path) -> Path:
    """Its own path is told, not that of its directory."""
    with SQLiteQueue(place, db_file_name="mine.db", **PLAIN):
        pass
    assert len(collections(place / "mine.db")) == 1
    return place


def a_text(place: Path) -> Path:
    (place / "text").write_text("some text\n" * 1000)
    return place / "text"


def a_short_text(place: Path) -> Path:
    (place / "text").write_text("xy")  # of one byte SQLite says that it is empty
    return place / "text"


def a_file_of_a_queue(place: Path) -> Path:
    return a_queue(place / "s") / "q00000"


def a_database_of_another_program(place: Path) -> Path:
    with closing(sqlite3.connect(place / "theirs.db")) as connection:
        connection.execute("CREATE TABLE people (name)")
    return place / "theirs.db"


def a_database_of_another_program_in_a_log(place: Path) -> Path:
    def crash() -> None:
        connection = sqlite3.connect(place / "theirs.db")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE people (name)")
        die()

    assert in_child(crash) == -9
    return place / "theirs.db"


def a_database_of_persist_queue(place: Path) -> Path:
    with closing(sqlite3.connect(place / "data.db")) as connection:
        connection.execute("CREATE TABLE ack_queue_default (_id, data, timestamp, status)")
    return place


def files_of_persist_queue(place: Path) -> Path:
    info = {"chunksize": 100, "size": 3, "tail": [0, 0, 0], "head": [0, 3, 30]}
    (place / "info").write_bytes(pickle.dumps(info))
    (place / "q00000").write_bytes(pickle.dumps("item"))
    return place


def a_directory_called_info(place: Path) -> Path:
    (place / "info").mkdir()
    (place / "info" / "dir").touch()
    return place


def a_directory_called_data(place: Path) -> Path:
    (place / "data.db").mkdir()
    return place


def a_device(place: Path) -> Path:
    return Path(os.devnull)


def a_pipe(place: Path) -> Path:
    os.mkfifo(place / "pipe")
    return place / "pipe"


def a_pipe_called_info(place: Path) -> Path:
    os.mkfifo(place / "info")
    return place


def a_pipe_called_data(place: Path) -> Path:
    os.mkfifo(place / "data.db")
    return place


def another_format(place: Path) -> Path:
    """As a later version may keep something else in such a directory."""
    a_queue(place / "s")
    rewrite_info(place / "s", format="persistcoll-heap")
    return place / "s"


OTHERS: dict[Callable[[Path], Path], str] = {
    other_files: "holds other files ('notes.txt')",
    a_database_of_another_name: "holds other files ('mine.db",
    a_text: "is not an SQLite database",
    a_short_text: "is not an SQLite database",
    a_file_of_a_queue: "is not an SQLite database",
    a_database_of_another_program: "holds another application's tables ('people')",
    a_database_of_another_program_in_a_log: "holds another application's tables ('people')",
    a_database_of_persist_queue: "they look like persist-queue's",
    files_of_persist_queue: "is a directory of persist-queue",
    a_directory_called_info: "holds other files ('info')",
    a_directory_called_data: "is a directory, not a database file",
    a_device: "is neither a file nor a directory",
    a_pipe: "is neither a file nor a directory",
    a_pipe_called_info: "holds other files ('info')",
    a_pipe_called_data: "is neither a file nor a directory",
    another_format: "holds a 'persistcoll-heap'",
}


def rewrite_info(path: Path, **changes: Any) -> None:
    fields = json.loads((path / "info").read_text())
    del fields["crc"]
    fields.update(changes)
    (path / "info").write_text(json.dumps({**fields, "crc": directory._checksum(fields)}))


def refused(path: Path, wrong: type[BaseException], top: Path) -> BaseException:
    """The error, which left everything as it was."""
    before = everything(top)
    with pytest.raises(wrong) as caught:
        collections(path)
    assert everything(top) == before
    assert open_below(top) == []
    return caught.value


@pytest.mark.parametrize("lay", NOTHING)
def test_where_nothing_lies(lay, tmp_path):
    path = lay(tmp_path)
    error = refused(path, StoreMissingError, tmp_path)
    assert isinstance(error, FileNotFoundError)
    assert error.errno == errno.ENOENT
    assert str(error).startswith(f"there is nothing to look at: '{path}")


@pytest.mark.parametrize("lay", OTHERS)
def test_something_else(lay, tmp_path):
    path = lay(tmp_path)
    error = refused(path, StoreKindError, tmp_path)
    assert OTHERS[lay] in str(error)
    assert str(path) in str(error)


@pytest.mark.parametrize("lay", [a_database_of_persist_queue, other_files, an_empty_database_in_a_directory])
def test_a_queue_beside_something_else_is_told(lay, tmp_path):
    a_queue(tmp_path)
    lay(tmp_path)
    (info,) = collections(tmp_path).values()
    assert (info.kind, info.ready) == ("queue", 3)


@pytest.mark.parametrize("lay", [files_of_persist_queue, other_files, a_directory_called_info, locks_alone])
def test_a_database_beside_something_else_is_told(lay, tmp_path):
    a_database(tmp_path)
    lay(tmp_path)
    assert [info.kind for info in collections(tmp_path).values()] == IN_DATABASES


def test_a_queue_and_a_database_in_one_directory_are_told(tmp_path):
    a_queue(tmp_path / "q")
    a_database(tmp_path / "d")
    for path in (tmp_path / "q").iterdir():
        path.rename(tmp_path / "d" / path.name)
    found = collections(tmp_path / "d")
    assert [info.kind for info in found.values()] == ["queue", *IN_DATABASES]
    assert list(found) == [None, *IN_DATABASES]
    # Damage is not passed over for what is whole.
    (tmp_path / "d" / "info").write_text("{}")
    refused(tmp_path / "d", CorruptionError, tmp_path)


def test_a_database_without_a_collection(tmp_path):
    with SQLiteQueue(tmp_path / "s.db", **PLAIN):
        pass
    execute(tmp_path / "s.db", "DELETE FROM collections")
    assert collections(tmp_path / "s.db") == {}


# Damaged or of a later version.


@pytest.mark.parametrize(
    "damage",
    [
        lambda info: info.write_text("{}"),
        lambda info: info.write_bytes(info.read_bytes()[:-10]),
        lambda info: info.write_bytes(b"\0" * 200),
        lambda info: os.truncate(info, 0),
        Path.unlink,
    ],
    ids=["other", "cut", "zeros", "empty", "missing"],
)
def test_a_damaged_info(damage, tmp_path):
    a_queue(tmp_path / "s")
    damage(tmp_path / "s" / "info")
    error = refused(tmp_path / "s", CorruptionError, tmp_path)
    assert isinstance(error, CorruptionError)
    assert (error.path, error.offset) == (str(tmp_path / "s" / "info"), 0)


def test_a_huge_info_is_not_read(tmp_path, monkeypatch):
    a_queue(tmp_path / "s")
    os.truncate(tmp_path / "s" / "info", (1 << 20) + 1)
    (tmp_path / "t").mkdir()
    shutil.copy(tmp_path / "s" / "info", tmp_path / "t")
    monkeypatch.setattr(directory, "read_file", None)
    refused(tmp_path / "s", CorruptionError, tmp_path)
    assert "holds other files ('info')" in str(refused(tmp_path / "t", StoreKindError, tmp_path))


def test_a_queue_of_a_later_version(tmp_path):
    a_queue(tmp_path / "s")
    rewrite_info(tmp_path / "s", version=2)
    assert "format version 2" in str(refused(tmp_path / "s", FormatVersionError, tmp_path))


def test_a_database_of_a_later_version(tmp_path):
    database = a_database(tmp_path / "s")
    execute(database, f"PRAGMA user_version={schema.VERSION + 1}")
    for path in (tmp_path / "s", database):
        assert "format version 2" in str(refused(path, FormatVersionError, tmp_path))


def test_a_collection_of_a_later_version_is_told_without_its_counts(tmp_path):
    database = a_database(tmp_path / "s")
    execute(
        database,
        "UPDATE collections SET version = 7 WHERE name = 'lifo'",
        "UPDATE collections SET kind = 'messages' WHERE name = 'dict'",
    )
    found = collections(database)
    assert list(found) == IN_DATABASES
    assert (found["lifo"].kind, found["lifo"].version) == ("lifo", 7)
    assert (found["dict"].kind, found["dict"].version) == ("messages", 1)
    for name, info in found.items():
        assert {getattr(info, count) for count in COUNTS} == ({None} if name in ("lifo", "dict") else {0, 3})


@pytest.mark.parametrize(
    "change",
    [
        "number = 'x'",
        "name = NULL",
        "name = x'00'",
        "kind = NULL",
        "kind = x'07'",
        "serializer = x'80'",
        "version = 'one'",
        "created = NULL",
        "name = CAST(x'ff' AS TEXT)",
    ],
)
def test_a_damaged_registry(change, tmp_path):
    database = a_database(tmp_path / "s")
    if change.startswith("number"):
        # SQLite itself refuses it: only damage would put it there.
        execute(
            database,
            "ALTER TABLE collections RENAME TO old",
            "CREATE TABLE collections AS SELECT * FROM old",
        )
    execute(database, f"UPDATE collections SET {change} WHERE name = 'lifo'")
    error = refused(database, CorruptionError, tmp_path)
    assert isinstance(error, CorruptionError)
    assert error.path == str(database)


def test_a_registry_that_is_missing(tmp_path):
    database = a_database(tmp_path / "s")
    execute(database, "DROP TABLE collections")
    refused(database, CorruptionError, tmp_path)


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM counters WHERE number = 2",
        "UPDATE counters SET absent = 'x' WHERE number = 2",
        "DROP TABLE ready_2",
    ],
)
def test_damaged_counters_cost_the_counts_alone(statement, tmp_path):
    database = a_database(tmp_path / "s")
    execute(database, statement)
    before = everything(tmp_path)
    found = collections(database)
    assert list(found) == IN_DATABASES
    for number, info in enumerate(found.values(), 1):
        assert (info.ready, info.unfinished) == ((None, None) if number == 2 else (3, 3))
    assert everything(tmp_path) == before


def test_a_database_that_is_cut(tmp_path):
    database = a_database(tmp_path / "s")
    os.truncate(database, 3000)
    refused(database, CorruptionError, tmp_path)


def test_a_database_that_was_lost(tmp_path):
    database = a_database(tmp_path / "s")
    os.truncate(database, 0)
    for lose in (lambda: None, database.unlink):
        lose()
        for path in (database, tmp_path / "s"):
            if path.exists():
                assert "it was not" in str(refused(path, CorruptionError, tmp_path))


@pytest.mark.parametrize("name", ["cursor", "producer.lock", "consumer.lock", "q00002"])
def test_a_lost_file_of_a_queue_costs_the_counts_alone(name, tmp_path):
    with Queue(tmp_path / "s", chunksize=2, **PLAIN) as queue:
        add(queue, *"abcde")
    (tmp_path / "s" / name).unlink()
    before = everything(tmp_path)
    (info,) = collections(tmp_path / "s").values()
    assert (info.kind, info.serializer, info.chunksize) == ("queue", "json", 2)
    assert (info.unfinished, info.ready, info.claimed) == (None, None, None)
    assert everything(tmp_path) == before
    assert open_below(tmp_path) == []


@pytest.mark.parametrize("name", ["cursor", "q00002"])
@pytest.mark.parametrize("offset", [0, 40, 70, 90])
def test_a_damaged_file_of_a_queue_is_no_wrong_count(name, offset, tmp_path):
    with Queue(tmp_path / "s", chunksize=2, **PLAIN) as queue:
        add(queue, *"abcde")
        for id in (1, 3, 4):
            queue.skip(id)
    data = bytearray((tmp_path / "s" / name).read_bytes())
    data[offset] ^= 0xFF
    (tmp_path / "s" / name).write_bytes(data)
    (info,) = collections(tmp_path / "s").values()
    assert info.kind == "queue"
    with Queue(tmp_path / "s", on_corruption="skip", **PLAIN) as queue:
        assert info.unfinished in (None, queue.unfinished_tasks)
    assert offset or info.unfinished is None


def test_an_old_tail_mark(tmp_path):
    """A hint that came late, or not at all."""
    with Queue(tmp_path / "s", chunksize=2, **PLAIN) as queue:
        queue.put("a")
    mark = (tmp_path / "s" / "producer.lock").read_bytes()
    with Queue(tmp_path / "s", chunksize=2, **PLAIN) as queue:
        queue.put_many("bcdefg")
    for data in (mark, b"", b"\0" * 100):
        (tmp_path / "s" / "producer.lock").write_bytes(data)
        (info,) = collections(tmp_path / "s").values()
        assert (info.unfinished, info.ready) == (7, 7)


# The argument.


@pytest.mark.parametrize("url", ["redis://ann:secret@host/db", b"sqlite:///s.db", "X-y+z://"])
def test_a_url_of_an_unknown_kind(url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="the URL of a server looks like") as caught:
        collections(url)
    assert "secret" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_path_that_is_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for wrong in ("", ":memory:", b":memory:", "a\0b", "\ud800"):
        with pytest.raises(ValueError, match=r"'target'|:memory:"):
            collections(wrong)
    others: tuple[Any, ...] = (None, 7, ["s"])
    for other in others:
        with pytest.raises(TypeError):
            collections(other)
    assert not list(tmp_path.iterdir())
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(StorageError, match="finding"):
        collections("s")
    monkeypatch.chdir(tmp_path)


def test_a_network_file_system_is_looked_at(tmp_path, monkeypatch):
    """Nothing is locked there, or written, so there is nothing to fear."""
    a_queue(tmp_path / "q")
    a_database(tmp_path / "d")
    monkeypatch.setattr(path_checks, "network_file_system", lambda path: "nfs")
    for kind in ("queue", "dict"):
        with pytest.raises(StorageError, match="network file system"):
            CLASSES[kind](tmp_path / kind[0], read_only=True, **PLAIN)
        assert collections(tmp_path / kind[0])


def test_a_program_that_locks_out_readers(tmp_path):
    """The look waits a moment, and then it says so."""
    database = a_database(tmp_path / "s")
    code = (
        "import sqlite3, sys; connection = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "connection.execute('PRAGMA locking_mode=EXCLUSIVE')\n"
        "connection.execute('UPDATE store SET holders = holders + 1'); print(flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, database], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(LockedError, match="keeps the database locked"):
            collections(database)
        other.communicate("\n")
    assert len(collections(database)) == len(IN_DATABASES)


def test_what_is_removed_meanwhile(tmp_path):
    """Whatever the moment: it is told, or it is missing."""
    a_queue(tmp_path / "q")
    with PDict(tmp_path / "d", **PLAIN):
        pass
    places: list[tuple[Any, str, Path]] = [
        (files, "existing_info", tmp_path / "q"),
        (databases, "to_inspect", tmp_path / "d"),
    ]
    for module, name, path in places:
        original = getattr(module, name)

        def then_remove(*arguments: Any, path: Path = path, original: Any = original) -> Any:
            shutil.rmtree(path)
            return original(*arguments)

        setattr(module, name, then_remove)
        try:
            with pytest.raises(StorageError) as caught:
                collections(path)
            assert caught.value.errno == errno.ENOENT
        finally:
            setattr(module, name, original)
