"""A container with ``read_only=True`` reads, and writes nothing at all."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from persistcoll import (
    CorruptionError,
    PDict,
    Queue,
    SerializerMismatchError,
    SQLiteAckQueue,
    SQLiteQueue,
    StorageError,
    StoreKindError,
    StoreMissingError,
)
from persistcoll.sqlite import driver
from persistcoll.testing.faults import FaultyDisk
from tests.permissions.kinds import KINDS, PLAIN, add, contents, die, everything, hold, in_child, take

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

QUEUES = [kind for kind in KINDS if kind != "PDict"]


def look(kind: str, path: Path, **options: Any) -> Any:
    return KINDS[kind](path, read_only=True, **{**PLAIN, **options})


def fill(kind: str, path: Path) -> list[str]:
    """Put items, and claim one where the kind knows claims; return the ready ones."""
    with KINDS[kind](path, **PLAIN) as container:
        add(container, *"abcdefg")
        take(container, 2)
    with KINDS[kind](path, **PLAIN) as container:
        return contents(container)


def _look_from_elsewhere(kind: str, path: Path, left: list[str]) -> None:
    """Read in a process that is no fork of this one, because this one closes its files before a fork."""
    code = (
        "import pathlib, sys; from tests.permissions.test_read_only import contents, look\n"
        "with look(sys.argv[1], pathlib.Path(sys.argv[2])) as container: print(contents(container))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, kind, str(path)], capture_output=True, text=True, check=False
    )
    assert (run.stdout, run.stderr) == (f"{left}\n", "")


def _in_child(run: Callable[[], object]) -> None:
    assert in_child(run) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_after_a_clean_close_nothing_is_written(kind, tmp_path):
    left = fill(kind, tmp_path / "s")
    before = everything(tmp_path / "s")
    for _ in range(2):
        with look(kind, tmp_path / "s") as container:
            assert contents(container) == left
            assert contents(container) == left
        assert everything(tmp_path / "s") == before


@pytest.mark.parametrize("kind", KINDS)
def test_beside_an_open_one_nothing_is_written(kind, tmp_path):
    left = fill(kind, tmp_path / "s")
    with KINDS[kind](tmp_path / "s", **PLAIN) as other:
        hold(other)
        left = contents(other)
        before = everything(tmp_path / "s")
        with look(kind, tmp_path / "s") as container:
            assert contents(container) == left
            assert everything(tmp_path / "s") == before
            _look_from_elsewhere(kind, tmp_path / "s", left)
            assert everything(tmp_path / "s") == before
            add(other, *"hijklm")
            assert contents(container) == contents(other)
            take(other, 4)
            assert contents(container) == contents(other)
        left = contents(other)
        with KINDS[kind](tmp_path / "s", **PLAIN) as container:
            assert contents(container) == left
    with look(kind, tmp_path / "s") as container:
        assert len(contents(container)) == len(left) + (kind != "PDict")


@pytest.mark.parametrize("kind", KINDS)
def test_after_a_crash_nothing_is_written(kind, tmp_path):
    left = fill(kind, tmp_path / "s")

    def crash() -> None:
        container = KINDS[kind](tmp_path / "s", **PLAIN)
        add(container, *"hij")
        die()

    assert in_child(crash) == -9
    before = everything(tmp_path / "s")
    for _ in range(2):
        with look(kind, tmp_path / "s") as container:
            assert contents(container) == sorted([*left, *"hij"])
        assert everything(tmp_path / "s") == before
    with KINDS[kind](tmp_path / "s", **PLAIN) as container:
        assert contents(container) == sorted([*left, *"hij"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_looker_sees_what_others_do_later(kind, tmp_path):
    fill(kind, tmp_path / "s")
    with look(kind, tmp_path / "s") as container:

        def change() -> None:
            with KINDS[kind](tmp_path / "s", **PLAIN) as other:
                add(other, *"hijklm")
                take(other, 5)

        for _ in range(3):
            _in_child(change)
            with KINDS[kind](tmp_path / "s", **PLAIN) as other:
                assert contents(container) == contents(other)
                take(other, len(contents(other)))
            assert contents(container) == []
        left = fill(kind, tmp_path / "s")
        assert contents(container) == left


@pytest.mark.parametrize("kind", KINDS)
def test_reading_beside_open_write_and_close(kind, tmp_path):
    fill(kind, tmp_path / "s")
    stop = threading.Event()
    failures: list[BaseException] = []

    def write() -> None:
        try:
            for number in range(20):
                with KINDS[kind](tmp_path / "s", **PLAIN) as other:
                    add(other, f"x{number}", f"y{number}")
                    take(other, 2)
        except BaseException as error:
            failures.append(error)
        finally:
            stop.set()

    writer = threading.Thread(target=write)
    writer.start()
    looks = 0
    with look(kind, tmp_path / "s") as container:
        while not stop.is_set() or not looks:
            assert 5 <= len(container) <= 8
            assert len(list(container.items())) <= 9  # items removed meanwhile may be left out
            looks += 1
        writer.join()
        assert not failures
        assert len(container) == len(list(container.items())) == 5
    assert not any(path.name.endswith(("-wal", "-shm")) for path in (tmp_path / "s").iterdir())


@pytest.mark.parametrize("kind", QUEUES)
def test_what_would_change_something_is_refused(kind, tmp_path):
    fill(kind, tmp_path / "s")
    before = everything(tmp_path / "s")
    with look(kind, tmp_path / "s") as container:
        changing = type(container)._changing
        looking = {
            "auto_commit", "autosave", "close", "empty", "full", "is_shutdown", "items", "join", "maxsize",
            "peek", "qsize", "queue", "shutdown", "size", "stats", "strict", "total", "unfinished_tasks",
            "ack_failed_count", "acked_count", "active_size", "ready_count", "unack_count",
        }  # fmt: skip
        assert {name for name in dir(container) if name[0] != "_"} - {*changing, *looking} <= {
            *vars(container._options), "db_file_name",
        }  # fmt: skip
        for name in changing:
            for arguments in ((), (1,), (object(),)):
                with pytest.raises(StorageError, match="read_only=True") as caught:
                    getattr(container, name)(*arguments)
                assert caught.value.errno == errno.EROFS
        assert len(contents(container)) == 5
    assert everything(tmp_path / "s") == before


@pytest.mark.parametrize("auto_commit", [True, False])
def test_what_would_change_a_dict_is_refused(auto_commit, tmp_path):
    fill("PDict", tmp_path / "s")
    before = everything(tmp_path / "s")
    with look("PDict", tmp_path / "s", auto_commit=auto_commit) as mapping:
        changes: list[Callable[[], object]] = [
            lambda: mapping.__setitem__("a", 1),
            lambda: mapping.__delitem__("a"),
            lambda: mapping.__ior__({"z": 1}),
            mapping.clear,
            lambda: mapping.incr("n"),
            lambda: mapping.pop("a"),
            lambda: mapping.pop("a", None),
            mapping.popitem,
            lambda: mapping.set("a", 1, ttl=3),
            lambda: mapping.set_many({"a": 1}),
            lambda: mapping.setdefault("z", 1),
            lambda: mapping.update(a=1),
            lambda: mapping.edit("a").__enter__(),
            lambda: mapping.transaction().__enter__(),
        ]
        for change in changes:
            with pytest.raises(StorageError, match="read_only=True") as caught:
                change()
            assert caught.value.errno == errno.EROFS
        assert len(contents(mapping)) == 5
    assert everything(tmp_path / "s") == before


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_to_look_at(kind, tmp_path):
    for path in (tmp_path / "nothing", tmp_path / "no" / "thing"):
        with pytest.raises(StoreMissingError, match="nothing to look at") as caught:
            look(kind, path)
        assert isinstance(caught.value, FileNotFoundError)
    assert not list(tmp_path.iterdir())
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreMissingError, match="nothing to look at"):
        look(kind, tmp_path / "empty")
    assert not list((tmp_path / "empty").iterdir())


def test_no_such_name(tmp_path):
    fill("SQLiteQueue", tmp_path / "s")
    for kind in (SQLiteQueue, PDict):
        with pytest.raises(StoreMissingError, match="holds no 'other'"):
            kind(tmp_path / "s", name="other", read_only=True, serializer="json")
    with pytest.raises(StoreKindError):
        PDict(tmp_path / "s", read_only=True, serializer="json")
    (tmp_path / "empty.db").touch()
    with pytest.raises(StoreMissingError, match="is empty"):
        PDict(tmp_path / "empty.db", read_only=True, serializer="json")
    (tmp_path / "strange.db").write_bytes(b"strange" * 1000)
    with pytest.raises(StoreKindError):
        PDict(tmp_path / "strange.db", read_only=True, serializer="json")
    with pytest.raises(StoreKindError, match="directory"):
        PDict(tmp_path, db_file_name="s", read_only=True)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_refusals_as_for_writing(kind, tmp_path):
    fill(kind, tmp_path / "s")
    with pytest.raises(SerializerMismatchError):
        look(kind, tmp_path / "s", serializer="raw")
    if kind != "Queue":
        with pytest.raises(ValueError, match="read_only=True"):
            look(kind, Path(":memory:"))


def test_a_damaged_info(tmp_path):
    fill("Queue", tmp_path / "s")
    (tmp_path / "s" / "info").write_text("{}")
    before = everything(tmp_path / "s")
    with pytest.raises(CorruptionError, match="info"):
        look("Queue", tmp_path / "s", on_corruption="skip")
    assert everything(tmp_path / "s") == before


@pytest.mark.parametrize("kind", KINDS)
def test_a_pickle_looks_only(kind, tmp_path):
    left = fill(kind, tmp_path / "s")
    with look(kind, tmp_path / "s") as container, pickle.loads(pickle.dumps(container)) as other:
        assert contents(other) == left
        with pytest.raises(StorageError, match="read_only=True"):
            add(other, "z")


@pytest.mark.parametrize("kind", KINDS)
def test_in_a_forked_child(kind, tmp_path):
    left = fill(kind, tmp_path / "s")
    with look(kind, tmp_path / "s") as container:

        def look_on() -> None:
            assert contents(container) == left
            container.close()

        _in_child(look_on)
        assert contents(container) == left


@pytest.mark.parametrize("kind", QUEUES)
def test_waiting_for_others_to_finish(kind, tmp_path):
    left = fill(kind, tmp_path / "s")
    with look(kind, tmp_path / "s") as container:
        waiting = threading.Thread(target=container.join)
        waiting.start()
        with KINDS[kind](tmp_path / "s", **PLAIN) as other:
            take(other, len(left))
            waiting.join(30)
        assert not waiting.is_alive()


def test_what_is_due_is_left_to_a_writer(tmp_path):
    with SQLiteAckQueue(tmp_path / "s", lease=0.001, **PLAIN) as queue:
        queue.put("a")
        queue.get()
        with SQLiteAckQueue(tmp_path / "s", read_only=True, **PLAIN) as looking:
            assert (looking.qsize(), looking.unack_count()) == (0, 1)
    with PDict(tmp_path / "d", **PLAIN) as mapping:
        mapping.set("a", 1, ttl=0.001)
        mapping["b"] = True
        with PDict(tmp_path / "d", read_only=True, **PLAIN) as looking:
            while "a" in looking:
                pass
            assert contents_but_stats(looking) == ["b"]


def contents_but_stats(mapping: PDict) -> list[str]:
    assert len(mapping) == 1
    return list(mapping)


def test_a_log_without_its_index(tmp_path):
    def crash() -> None:
        queue = SQLiteQueue(tmp_path / "s", **PLAIN)
        queue.put("a")
        die()

    assert in_child(crash) == -9
    (tmp_path / "s" / "data.db-shm").unlink()
    before = everything(tmp_path / "s")
    with pytest.raises(StorageError, match=r"data.db-wal.*no index.*open it once without read_only=True"):
        look("SQLiteQueue", tmp_path / "s")
    assert everything(tmp_path / "s") == before
    with SQLiteQueue(tmp_path / "s", **PLAIN) as queue:
        assert contents(queue) == ["a"]


def test_an_empty_log_without_its_index(tmp_path):
    """SQLite leaves it so when a reader's and the last writer's end come at the same moment."""
    left = fill("SQLiteQueue", tmp_path / "s")
    (tmp_path / "s" / "data.db-wal").touch()
    before = everything(tmp_path / "s")
    with look("SQLiteQueue", tmp_path / "s") as queue:
        assert contents(queue) == left
    assert everything(tmp_path / "s") == before
    with SQLiteQueue(tmp_path / "s", **PLAIN):
        pass
    assert not (tmp_path / "s" / "data.db-wal").exists()


def test_a_log_that_is_removed_when_a_look_begins(tmp_path, monkeypatch):
    fill("SQLiteQueue", tmp_path / "s")
    code = (
        "import sys; from persistcoll import SQLiteQueue\n"
        "with SQLiteQueue(sys.argv[1], serializer='json') as queue:\n"
        "    queue.put('z'); print(flush=True); input()"
    )
    connect = driver.connect_read_only
    logged = []

    def connect_late(path: str, timeout: float, immutable: bool) -> Any:
        logged.append(not immutable)
        if other.poll() is None:
            other.communicate("\n")  # close it
        return connect(path, timeout, immutable)

    with subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "s"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        monkeypatch.setattr(driver, "connect_read_only", connect_late)
        with look("SQLiteQueue", tmp_path / "s") as queue:
            assert len(contents(queue)) == 6
    assert logged[:2] == [True, False]
    assert not list((tmp_path / "s").glob("*-wal"))


def test_a_look_while_another_process_makes_the_index_of_the_log(tmp_path):
    """SQLite tells a connection that may only read that it cannot write. A moment later it can read."""
    left = fill("SQLiteQueue", tmp_path / "s")
    cannot_write = driver.ERRORS[0]("attempt to write a readonly database")
    failures = [cannot_write] * 3

    def fail_at_first(execute: driver.Execute) -> int:
        if failures:
            raise failures.pop()
        return 7

    with look("SQLiteQueue", tmp_path / "s") as queue:
        database = queue._store._database
        assert database.read_snapshot(fail_at_first) == 7
        failures += [cannot_write] * 150
        with pytest.raises(StorageError):
            database.read_snapshot(fail_at_first)
        assert len(failures) == 50
        assert contents(queue) == left


@pytest.mark.parametrize("immutable", [True, False])
def test_a_connection_for_looking_makes_no_database(immutable, tmp_path):
    with pytest.raises(driver.ERRORS, match="unable to open"):
        driver.connect_read_only(str(tmp_path / "s.db"), 0, immutable).close()
    assert not list(tmp_path.iterdir())


def test_a_directory_that_was_replaced(tmp_path):
    fill("Queue", tmp_path / "s")
    with look("Queue", tmp_path / "s") as queue:
        os.rename(tmp_path / "s", tmp_path / "t")
        with pytest.raises(StorageError, match="replaced"):
            queue.qsize()


def test_a_name_that_a_uri_would_read_otherwise(tmp_path):
    path = tmp_path / "a?mode=rw#b%41 ä.db"
    with SQLiteQueue(path, **PLAIN) as queue:
        queue.put("a")
    with SQLiteQueue(path, read_only=True, **PLAIN) as queue:
        assert contents(queue) == ["a"]


# With the rights to read only.


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "mounted"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(place)], check=True)
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def _remount(place: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(place)], check=True)


@pytest.mark.needs("root", "mount", "umount")
@pytest.mark.parametrize("crashed", [False, True], ids=["closed", "crashed"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_read_only_file_system(kind, crashed, mounted):
    left = fill(kind, mounted / "s")

    def crash() -> None:
        container = KINDS[kind](mounted / "s", **PLAIN)
        add(container, *"hij")
        die()

    if crashed:
        assert in_child(crash) == -9
        left = sorted([*left, *"hij"])
    _remount(mounted, "ro")
    with look(kind, mounted / "s") as container:
        assert contents(container) == left
    for path in (mounted / "s", mounted / "new"):
        with pytest.raises(StorageError, match=r"Read-only file system.*read_only=True") as caught:
            KINDS[kind](path, **PLAIN)
        assert caught.value.errno == errno.EROFS
    with pytest.raises(StoreMissingError):
        look(kind, mounted / "new")
    _remount(mounted, "rw")
    with KINDS[kind](mounted / "s", **PLAIN) as container:
        assert contents(container) == left


@pytest.mark.needs("root", "mount", "umount")
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_system_that_becomes_read_only_while_it_is_open(kind, mounted):
    """The kernel does this to a device that fails. A mount that is open for writing cannot be remounted."""
    fill(kind, mounted / "s")
    with look(kind, mounted / "s") as container:
        _remount(mounted, "ro")
        assert len(contents(container)) == 5


@pytest.mark.needs("root")
@pytest.mark.parametrize("crashed", [False, True], ids=["open", "crashed"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_user_who_may_only_read(kind, crashed, shared_to_read):
    path, ann, bob, group = shared_to_read

    def crash() -> None:
        container = KINDS[kind](path, mode=0o640, **PLAIN)
        add(container, *"abc")
        die()

    def looking() -> None:
        with look(kind, path) as container:
            assert contents(container) == list("abc")

    if crashed:
        assert in_child(crash, ann, group) == -9
        assert in_child(looking, bob, group) == 0
        return
    with KINDS[kind](path, mode=0o640, **PLAIN) as container:
        add(container, *"abc")
        assert in_child(looking, bob, group) == 0
    assert in_child(looking, bob, group) == 0


@pytest.fixture
def shared_to_read() -> Iterator[tuple[Path, int, int, int]]:
    import shutil
    import tempfile

    ann, bob, group = 12001, 12002, 12000
    path = Path(tempfile.mkdtemp())
    os.chown(path, ann, group)
    path.chmod(0o2750)
    yield path, ann, bob, group
    shutil.rmtree(path)


def test_a_queue_of_ones_own_that_is_opened_for_writing_later(tmp_path):
    left = fill("Queue", tmp_path / "s")
    with look("Queue", tmp_path / "s") as looking, Queue(tmp_path / "s", chunksize=2, **PLAIN) as queue:
        assert queue.get() == left[0]
        assert contents(looking) == left[1:]
        assert looking.unfinished_tasks == len(left)


class _Watched:
    """A serializer that calls something the next time that it reads."""

    name = "watched"

    def __init__(self) -> None:
        self.happens: list[Callable[[], object]] = []

    def dumps(self, item: object) -> bytes:
        return str(item).encode()

    def loads(self, data: bytes) -> object:
        while self.happens:
            self.happens.pop()()
        return data.decode()


def test_a_look_is_repeated_if_others_write_and_close_meanwhile(tmp_path):
    watched = _Watched()
    with SQLiteQueue(tmp_path / "s", serializer="json") as queue:
        queue.put("a")
        queue.put("b")
    code = (
        "import sys; from persistcoll import SQLiteQueue\n"
        "with SQLiteQueue(sys.argv[1], serializer='json') as queue: print(queue.get())"
    )
    run = [sys.executable, "-c", code, str(tmp_path / "s")]
    watched.name = "json"
    with SQLiteQueue(tmp_path / "s", serializer=watched, read_only=True) as looking:
        watched.happens.append(lambda: subprocess.run(run, check=True))
        assert looking.peek() == '"b"'
        assert looking.qsize() == 1


def test_writing_goes_on_beside_a_look_after_a_fork(tmp_path):
    """A fork closes the connections of both processes, and they must not be reopened for reading only."""
    watched = _Watched()
    with SQLiteQueue(tmp_path / "s", serializer=watched) as queue:
        queue.put("a")
        with SQLiteQueue(tmp_path / "s", serializer=watched, read_only=True) as looking:
            _in_child(lambda: None)

            def put() -> None:
                thread = threading.Thread(target=queue.put, args=("b",))
                thread.start()
                thread.join()

            watched.happens.append(put)
            assert looking.peek() == "a"
            assert looking.qsize() == queue.qsize() == 2


def test_a_chunk_that_is_written_anew(tmp_path):
    disk = FaultyDisk()
    queue = Queue(tmp_path / "s", serializer="json", _disk=disk)
    queue.put("a")
    with Queue(tmp_path / "s", serializer="json", read_only=True) as looking:
        assert looking.qsize() == 1
        disk.fail("sync", path="q00000")
        with pytest.raises(StorageError):
            queue.put("b")
        queue.close()
        disk.heal()
        with Queue(tmp_path / "s", serializer="json") as queue:
            queue.put("c")
            assert contents(looking) == contents(queue)
            assert "c" in contents(looking)
