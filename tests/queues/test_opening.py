"""``Queue`` on a directory that is not as it should be: it raises, and changes nothing."""

from __future__ import annotations

import json
import os
import pickle
import stat
import subprocess
from pathlib import Path

import pytest

from persistcoll import (
    CorruptionError,
    FormatVersionError,
    Queue,
    SerializerMismatchError,
    StorageError,
    StoreKindError,
)
from persistcoll.disk import calls, path_checks
from persistcoll.disk.calls import Disk
from persistcoll.journal import directory

SHARED_MEMORY = Path("/dev/shm")


def contents(path):
    """Return every file below ``path`` with its content."""
    return {str(file): file.read_bytes() for file in sorted(Path(path).rglob("*")) if file.is_file()}


@pytest.fixture
def refused(tmp_path):
    """Check that opening raises ``error``, and that it changes no file."""

    def check(error, match, path=tmp_path / "q", **options):
        before = contents(tmp_path)
        with pytest.raises(error, match=match) as caught:
            Queue(path, **options)
        assert contents(tmp_path) == before
        return caught.value

    return check


@pytest.fixture
def stored(tmp_path):
    """Give a directory with a queue of three items."""
    with Queue(tmp_path / "q", serializer="json") as queue:
        queue.put_many([1, 2, 3])
    return tmp_path / "q"


def test_a_directory_is_made_with_its_parents(tmp_path):
    with Queue(tmp_path / "a" / "b" / "q") as queue:
        queue.put(1)
    for path in ("a", "a/b", "a/b/q"):
        assert stat.S_IMODE((tmp_path / path).stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "a/b/q").iterdir()} == {0o600}


def test_an_empty_directory_will_do(tmp_path):
    (tmp_path / "q").mkdir()
    with Queue(tmp_path / "q") as queue:
        queue.put(1)


def test_info_is_json_and_says_what_is_there(stored):
    info = json.loads((stored / "info").read_text())
    assert info["format"] == "persistcoll-queue"
    assert (info["version"], info["serializer"], info["chunksize"]) == (
        1,
        "json",
        directory.DEFAULT_CHUNKSIZE,
    )
    assert set(info) == {"format", "version", "uuid", "serializer", "chunksize", "created", "crc"}


@pytest.mark.parametrize("path", ["relative", "./relative", Path("relative")])
def test_a_relative_path_stays_where_it_was(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with Queue(path) as queue:
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir("elsewhere")
        queue.put(1)
        assert queue.path == str(tmp_path / "relative")
    assert os.listdir(tmp_path / "elsewhere") == []


def test_a_file_is_no_queue(tmp_path, refused):
    (tmp_path / "q").write_text("a file")
    refused(StoreKindError, "not a directory")


def test_a_broken_link_is_no_queue(tmp_path, refused):
    (tmp_path / "q").symlink_to(tmp_path / "nowhere")
    refused(StoreKindError, "not a directory")


def test_a_directory_of_other_files(tmp_path, refused):
    (tmp_path / "q").mkdir()
    (tmp_path / "q" / "thesis.tex").write_text("years of work")
    refused(StoreKindError, r"other files \('thesis.tex'\)")


class Trap:
    """An object that makes a file where it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_directory_of_persist_queue_is_recognised_and_nothing_is_unpickled(tmp_path, refused, protocol):
    (tmp_path / "q").mkdir()
    info = {"chunksize": 100, "size": 0, "tail": [0, 0, 0], "head": [0, 0], "trap": Trap(tmp_path / "sprung")}
    (tmp_path / "q" / "info").write_bytes(pickle.dumps(info, protocol))
    (tmp_path / "q" / "q00000").write_bytes(b"")
    error = refused(StoreKindError, "persist-queue")
    assert "migrate" in str(error)
    for on_corruption in ("stop", "skip"):
        refused(StoreKindError, "persist-queue", on_corruption=on_corruption)
    assert not (tmp_path / "sprung").exists()
    pickle.loads((tmp_path / "q" / "info").read_bytes())["trap"].close()
    assert (tmp_path / "sprung").exists()  # the trap works


def test_a_directory_of_persist_queue_with_json(tmp_path, refused):
    (tmp_path / "q").mkdir()
    info = {"chunksize": 100, "size": 3, "tail": [0, 0, 0], "head": [0, 3]}
    (tmp_path / "q" / "info").write_text(json.dumps(info))
    refused(StoreKindError, "persist-queue")


def test_another_serializer(stored, refused):
    error = refused(SerializerMismatchError, "serializer 'json'.*opened with 'pickle'")
    assert isinstance(error, ValueError)
    refused(SerializerMismatchError, "opened with 'raw'", serializer="raw")
    with Queue(stored, serializer="json") as queue:
        assert [queue.get() for _ in range(3)] == [1, 2, 3]


def test_another_format_version(tmp_path, refused, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(directory, "VERSION", 2)
        Queue(tmp_path / "q").close()
    refused(FormatVersionError, "format version 2")


def test_another_kind_of_store(tmp_path, refused, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(directory, "_PREFIX", "persistcoll-other-")
        Queue(tmp_path / "q").close()
    refused(StoreKindError, "persistcoll-other")


@pytest.mark.parametrize("change", ["delete", "truncate", "garble", "field"])
def test_info_that_is_damaged_can_be_rebuilt(stored, refused, change):
    info = stored / "info"
    data = info.read_bytes()
    if change == "delete":
        info.unlink()
    else:
        changes = {
            "truncate": data[:20],
            "garble": b"\0" * len(data),
            "field": data.replace(b'"chunksize": 1', b'"chunksize": 2'),
        }
        info.write_bytes(changes[change])
    error = refused(CorruptionError, "info", serializer="json")
    assert error.path == str(info)
    with Queue(stored, serializer="json", on_corruption="skip") as queue:
        assert [queue.get() for _ in range(3)] == [1, 2, 3]


# Other users' rights to write.


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o720, 0o777])
def test_pickle_in_a_directory_that_others_may_write_is_refused(tmp_path, refused, mode):
    (tmp_path / "q").mkdir()
    (tmp_path / "q").chmod(mode)
    error = refused(StorageError, "others may write")
    assert "trust_directory=True" in str(error)
    with Queue(tmp_path / "q", trust_directory=True) as queue:
        queue.put(1)
    refused(StorageError, "others may write")
    (tmp_path / "q").chmod(0o700)
    with Queue(tmp_path / "q") as queue:
        assert queue.get() == 1


def test_json_in_a_directory_that_others_may_write(tmp_path):
    (tmp_path / "q").mkdir()
    (tmp_path / "q").chmod(0o777)
    with Queue(tmp_path / "q", serializer="json") as queue:
        queue.put(1)


def test_reading_by_others_is_no_harm(tmp_path):
    (tmp_path / "q").mkdir()
    (tmp_path / "q").chmod(0o755)
    Queue(tmp_path / "q").close()


@pytest.mark.needs("root")
def test_pickle_in_a_directory_of_another_user(tmp_path, refused):
    Queue(tmp_path / "q").close()
    os.chown(tmp_path / "q", 12345, 12345)
    error = refused(
        StorageError, f"belongs to another user.*owner 12345; this process is user {os.geteuid()}"
    )
    assert "others may write" not in str(error)
    assert "run as that user" in str(error)
    with Queue(tmp_path / "q", trust_directory=True) as queue:
        queue.put(1)


def test_a_link_of_ones_own(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "q").symlink_to(tmp_path / "there")
    with Queue(tmp_path / "q") as queue:
        queue.put(1)
    with Queue(tmp_path / "there") as queue:
        assert queue.get() == 1


@pytest.mark.needs("root")
def test_a_link_that_another_user_made(tmp_path, refused):
    (tmp_path / "there").mkdir()
    (tmp_path / "q").symlink_to(tmp_path / "there")
    os.lchown(tmp_path / "q", 12345, 12345)
    refused(StorageError, "symbolic link that another user made", serializer="json")
    assert os.listdir(tmp_path / "there") == []


def test_a_planted_link_in_the_place_of_a_file(tmp_path):
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "q").mkdir()
    (tmp_path / "q" / "producer.lock").symlink_to(tmp_path / "victim")
    with pytest.raises(StorageError):
        Queue(tmp_path / "q")
    assert (tmp_path / "victim").read_text() == "precious"


# Arguments.


@pytest.mark.parametrize("value", [0, -1])
def test_chunksize_of_nothing(refused, value):
    refused(ValueError, "chunksize", chunksize=value)


@pytest.mark.parametrize("value", [1.5, "10", True])
def test_chunksize_that_is_no_number(refused, value):
    refused(TypeError, "chunksize", chunksize=value)


def test_unknown_words(tmp_path, refused):
    refused(ValueError, "durability", durability="none")
    refused(ValueError, "on_corruption", on_corruption="ignore")
    assert not (tmp_path / "q").exists()


def test_chunksize_is_kept(tmp_path):
    with Queue(tmp_path / "q", chunksize=2, durability="process") as queue:
        queue.put_many([0])
        for number in range(1, 5):
            queue.put(number)
        chunks = len(list((tmp_path / "q").glob("q?????")))
        assert chunks == 3
    with Queue(tmp_path / "q", durability="process") as queue:
        for number in range(5, 9):
            queue.put(number)
        assert len(list((tmp_path / "q").glob("q?????"))) == 5
        assert list(queue.items()) == list(range(9))


def test_consumed_files_go_away(tmp_path):
    with Queue(tmp_path / "q", chunksize=2, autosave=True, durability="process") as queue:
        for number in range(100):
            queue.put(number)
            assert queue.get() == number
            assert len(os.listdir(tmp_path / "q")) <= 7
    names = {"info", "cursor", "producer.lock", "consumer.lock"}
    left = set(os.listdir(tmp_path / "q"))
    assert names <= left
    assert len(left - names) <= 2


class Recording(Disk):
    """A disk that records the directories in which it opened temporary files."""

    def __init__(self):
        super().__init__()
        self.used = set()

    def open(self, path, flags, mode=0o600):
        if path.endswith(".tmp"):
            self.used.add(os.path.dirname(path))
        return super().open(path, flags, mode)


@pytest.mark.parametrize("tempdir", [None, "aside"])
def test_tempdir_is_used_and_left_empty(tmp_path, tempdir):
    (tmp_path / "aside").mkdir()
    expected = str(tmp_path / (tempdir or "q"))
    disk = Recording()
    with Queue(
        tmp_path / "q",
        chunksize=1,
        tempdir=tempdir and expected,
        durability="process",
        autosave=True,
        _disk=disk,
    ) as queue:
        for number in range(5):
            queue.put(number)
        assert queue.get_many(3) == [0, 1, 2]
    assert disk.used == {expected}
    assert os.listdir(tmp_path / "aside") == []
    assert [name for name in os.listdir(tmp_path / "q") if name.endswith(".tmp")] == []


def test_tempdir_on_another_file_system(tmp_path, refused):
    here = tmp_path.stat().st_dev
    others = [each for each in (SHARED_MEMORY, Path.cwd()) if each.is_dir() and each.stat().st_dev != here]
    if not others:
        pytest.skip("there is one file system only")
    refused(ValueError, "not on the file system", tempdir=others[0])


def test_tempdir_that_is_missing(tmp_path, refused):
    refused(OSError, "nowhere", tempdir=tmp_path / "nowhere")


def test_a_network_file_system(tmp_path, monkeypatch):
    monkeypatch.setattr(path_checks, "network_file_system", lambda path: "nfs4")
    with pytest.raises(StorageError, match=r"network file system \(nfs4\)"):
        Queue(tmp_path / "q")
    with Queue(tmp_path / "q", allow_network_fs=True) as queue:
        queue.put(1)
        assert queue.get() == 1
        queue.task_done()


@pytest.mark.skipif(not os.path.exists("/proc/self/mountinfo"), reason="the mount table is Linux's")
def test_the_kind_of_a_file_system_is_read_from_the_mount_table(tmp_path, monkeypatch):
    assert calls.network_file_system(str(tmp_path)) is None
    device = os.stat(tmp_path).st_dev
    with open("/proc/self/mountinfo", encoding="utf-8") as table:
        lines = [line.split(" ") for line in table]
    mine = next(line for line in lines if line[2] == f"{os.major(device)}:{os.minor(device)}")
    kind = mine[mine.index("-") + 1]
    monkeypatch.setattr(calls, "_NETWORK", frozenset({kind}))
    assert calls.network_file_system(str(tmp_path)) == kind


@pytest.mark.needs("root", "mount", "umount")
def test_a_read_only_file_system(tmp_path):
    place = tmp_path / "mounted"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], check=True)
    try:
        with Queue(place / "q", durability="process") as queue:
            queue.put(1)
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        for path in (place / "q", place / "new"):
            with pytest.raises(StorageError):
                Queue(path)
        subprocess.run(["mount", "-o", "remount,rw", str(place)], check=True)
        with Queue(place / "q", durability="process") as queue:
            assert queue.get() == 1
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)
