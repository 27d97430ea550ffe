"""Where a file queue may not lie; and a refusal leaves no file."""

from __future__ import annotations

import json
import os
import pickle
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from persistcoll import (
    FormatVersionError,
    Log,
    PDict,
    Queue,
    SerializerMismatchError,
    SQLiteAckQueue,
    SQLiteQueue,
    StorageError,
    StoreKindError,
)
from persistcoll.disk.path_checks import is_unwritable
from persistcoll.journal.directory import _checksum
from tests.crash.accounts import quick_disk

KINDS: list[Any] = [Queue, SQLiteAckQueue, PDict]


def ours(kind: type[SQLiteAckQueue[int] | PDict[int, int]]) -> Callable[[Path], None]:
    def make(place: Path) -> None:
        kind(place).close()

    return make


def files(**contents: bytes) -> Callable[[Path], None]:
    def make(place: Path) -> None:
        place.mkdir()
        for name, data in contents.items():
            (place / name.replace("_", ".")).write_bytes(data)

    return make


def diskcache(place: Path) -> None:
    place.mkdir()
    with closing(sqlite3.connect(place / "cache.db")) as connection:
        connection.execute("CREATE TABLE Settings (key)")


FOREIGN = {
    "SQL queue": ours(SQLiteAckQueue),
    "dict": ours(PDict),
    "lock file of a database": files(data_db_lock=b""),
    "diskcache": diskcache,
    "persist-queue": files(
        info=pickle.dumps({"head": [0, 1], "tail": [0, 0], "size": 1}), q00000=b"\x80\x04."
    ),
    "persist-queue, not closed": files(q00000=b"\x80\x04."),
    "queuelib": files(info_json=json.dumps({"chunksize": 100000, "size": 1}).encode(), q00000=b"\0\0\0\1a"),
    "queuelib, not closed": files(q00000=b"\0\0\0\1a"),
    "info": files(info=b"Read me first.\n"),
    "documents": files(readme_txt=b"Read me first.\n"),
}


def tree(place: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in place.iterdir()}


def refused(place: Path, error: type[StorageError | ValueError], **options: object) -> None:
    """Check that opening raises this error and changes nothing in the directory."""
    before = tree(place)
    with pytest.raises(error):
        Queue(place, **options)  # type: ignore[arg-type]
    assert tree(place) == before


@pytest.mark.parametrize("policy", ["raise", "stop", "skip"])
@pytest.mark.parametrize("make", FOREIGN.values(), ids=FOREIGN)
def test_another_stores_directory(make, policy, tmp_path):
    make(tmp_path / "store")
    refused(tmp_path / "store", StoreKindError, on_corruption=policy)


def without_locks(place: Path) -> Path:
    """Return a queue's directory from which a cleaner removed the lock files."""
    with Queue(place, serializer="json") as queue:
        queue.put(1)
    for lock in place.glob("*.lock"):
        lock.unlink()
    return place


def test_another_serializer(tmp_path):
    refused(without_locks(tmp_path / "q"), SerializerMismatchError, serializer="raw")


def test_a_later_version(tmp_path):
    place = without_locks(tmp_path / "q")
    fields = json.loads((place / "info").read_bytes())
    del fields["crc"]
    fields["version"] = 2
    (place / "info").write_text(json.dumps({**fields, "crc": _checksum(fields)}))
    refused(place, FormatVersionError, serializer="json")


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="permission bits say nothing")
def test_what_others_may_write(tmp_path):
    (tmp_path / "q").mkdir()
    (tmp_path / "q").chmod(0o777)
    refused(tmp_path / "q", StorageError, serializer="pickle")


@pytest.mark.needs("root")
@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="needs /proc")
def test_another_users_files():
    """As another user sees them: no file is made, and none stays open."""
    with tempfile.TemporaryDirectory() as directory:  # only this user can read pytest's own directories
        os.chmod(directory, 0o755)
        places = [Path(directory, name) for name in ("closed", "readable", "missing")]
        for place in places[:2]:
            for kind in KINDS:
                kind(place / kind.__name__, serializer="json").close()
        for path in (places[1], *places[1].rglob("*")):
            path.chmod(0o755)
        before = sorted(Path(directory).rglob("*"))
        child = get_context("fork").Process(target=_as_nobody, args=(places,))
        child.start()
        child.join()
        assert child.exitcode == 0
        assert sorted(Path(directory).rglob("*")) == before


def _as_nobody(places: list[Path]) -> None:
    os.setegid(65534)
    os.seteuid(65534)
    before = len(os.listdir("/proc/self/fd"))
    for place in places:
        for kind in KINDS:
            with pytest.raises(StorageError):
                kind(place / kind.__name__, serializer="json")
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("argument", ["path", "tempdir"])
def test_what_is_no_path(argument, tmp_path):
    def opened(path: object) -> Queue:
        given = {"path": tmp_path / "q", argument: path}
        return Queue(**given)

    for path in ("", b"", str(tmp_path / "a\0b"), os.fsencode(tmp_path) + b"/\0", str(tmp_path / "\ud800")):
        with pytest.raises(ValueError, match=argument):
            opened(path)
    for path in (tmp_path / ("x" * 256), tmp_path.joinpath(*["y" * 200] * 30)):
        with pytest.raises(StorageError):
            opened(path)
    assert os.listdir(tmp_path) in ([], ["q"])


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="bytes are names there only if they are text")
def test_bytes_are_decoded_as_everywhere(tmp_path):
    path = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(path + b"-temporary")
    with Queue(path, tempdir=path + b"-temporary", serializer="json") as queue:  # type: ignore[arg-type]
        assert queue.path == os.fsdecode(path)
        queue.put(1)
    assert os.path.isfile(path + b"/q00000")


def test_more_directories_than_the_stack_has_frames(tmp_path, monkeypatch):
    path = os.path.join(tmp_path, *["a"] * 1100)
    with Queue(path, serializer="json", _disk=quick_disk()) as queue:
        queue.put(1)
    monkeypatch.chdir(tmp_path)
    for _ in range(1100):  # Python before 3.13 removes a tree by recursion.
        os.chdir("a")
    for name in os.listdir():
        os.unlink(name)
    for _ in range(1100):
        os.chdir("..")
        os.rmdir("a")


@pytest.mark.skipif(os.name != "posix", reason="a directory in use cannot be removed")
def test_a_relative_path_in_a_directory_that_is_gone(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    for kind in KINDS:
        with pytest.raises(StorageError, match="finding"):
            kind("store")


@pytest.mark.parametrize("moment", ["before the first answer", "after the first answer"])
def test_a_file_that_another_process_removes_or_makes_meanwhile_is_writable(moment, tmp_path, monkeypatch):
    path = tmp_path / "data.db-wal"
    if moment == "before the first answer":
        path.touch()
    access = os.access

    def answer(*arguments: Any) -> bool:
        if moment == "before the first answer":
            path.unlink()
            return access(*arguments)
        may = access(*arguments)
        path.touch()
        return may

    monkeypatch.setattr(os, "access", answer)
    assert not is_unwritable(str(path))


def test_an_old_file_without_the_right_to_write_is_unwritable(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(time, "time", lambda: 2**40)
    assert is_unwritable(str(tmp_path / "file"))


@pytest.mark.parametrize("url", ["postgresql://user:hidden@db/jobs", "redis://db", "sqlite:///jobs.db"])
@pytest.mark.parametrize("kind", [Queue, Log, SQLiteQueue, SQLiteAckQueue])
def test_a_url_is_no_path(tmp_path, monkeypatch, kind, url):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="'path' is a URL, and this class takes a path") as caught:
        kind(url)
    assert "hidden" not in str(caught.value)
    assert not list(tmp_path.iterdir())
