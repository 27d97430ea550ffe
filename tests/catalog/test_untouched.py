"""``collections()`` makes, changes and locks nothing, whatever else goes on in that place."""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from persistcoll import PDict, Queue, SQLiteAckQueue, SQLiteQueue, StorageError, StoreKindError, collections
from persistcoll.disk.calls import Disk
from persistcoll.journal import inspect as files
from persistcoll.journal.tail_view import TailView
from persistcoll.sqlite import driver, registry, schema
from persistcoll.sqlite import inspect as databases
from tests.catalog.kinds import CLASSES, IN_DATABASES
from tests.leaks import open_below
from tests.permissions.kinds import PLAIN, add, die, everything, hold, in_child

pytestmark = [
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    pytest.mark.timeout(120),
]

ANN, BOB, GROUP = 12001, 12002, 12000


def ready(path: Path) -> list[int | None]:
    return [info.ready for info in collections(path).values()]


def unfinished(path: Path) -> list[int | None]:
    return [info.unfinished for info in collections(path).values()]


def a_crash(kind: str, path: Path, **options: Any) -> Callable[[], None]:
    def crash() -> None:
        container = CLASSES[kind](path, **PLAIN, **options)
        add(container, *"abc")
        die()

    return crash


@contextmanager
def elsewhere(code: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A process, no fork of this one, that runs this code, up to where it prints a line."""
    with subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
            process.communicate("\n", timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0


OPENED = """
import sys
from tests.catalog.kinds import CLASSES
from tests.permissions.kinds import PLAIN, add
with CLASSES[sys.argv[1]](sys.argv[2], **PLAIN) as container:
    add(container, *"abc")
    print("ready", flush=True)
    input()
"""


# Nothing is changed.


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("how", ["closed", "open", "open elsewhere", "crashed", "open after a crash"])
def test_nothing_is_changed(kind, how, tmp_path):
    path = tmp_path / "s"
    with ExitStack() as stack:
        if "crash" in how:
            assert in_child(a_crash(kind, path)) == -9
        elif how == "closed":
            with CLASSES[kind](path, **PLAIN) as container:
                add(container, *"abc")
        if how == "open elsewhere":
            stack.enter_context(elsewhere(OPENED, kind, path))
        elif how.startswith("open"):
            container = stack.enter_context(CLASSES[kind](path, **PLAIN))
            if how == "open":
                add(container, *"abc")
            # A read of its own by a process that has a database open notes in the index how far it reads.
            assert ready(path) == [3]
        opened = open_below(tmp_path)
        before = everything(tmp_path)
        for _ in range(3):
            assert ready(path) == [3]
            assert everything(tmp_path) == before
        if how in ("closed", "open elsewhere", "crashed"):
            assert open_below(tmp_path) == opened == []


@pytest.mark.needs("root")
@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("how", ["closed", "crashed", "open"])
@pytest.mark.parametrize("user", [ANN, BOB], ids=["owner", "reader"])
def test_with_the_rights_to_read_only(kind, how, user, shared):
    path = shared / "s"

    def fill() -> None:
        with CLASSES[kind](path, mode=0o640, **PLAIN) as container:
            add(container, *"abc")

    def look() -> None:
        before = everything(shared)
        assert not os.access(path, os.W_OK) or user == ANN
        for _ in range(2):
            assert ready(path) == [3]
            assert everything(shared) == before

    def close_to_writing() -> None:
        for directory in (path, shared):
            directory.chmod(0o550)

    if how == "open":

        def open_and_look() -> None:
            with CLASSES[kind](path, mode=0o640, **PLAIN) as container:
                add(container, *"abc")
                print("ready", flush=True)
                sys.stdin.readline()

        with in_a_child(open_and_look, ANN):
            assert in_child(look, user, GROUP) == 0
    else:
        assert in_child(a_crash(kind, path, mode=0o640) if how == "crashed" else fill, ANN, GROUP) in (0, -9)
        close_to_writing()
        assert in_child(look, user, GROUP) == 0


@contextmanager
def in_a_child(run: Callable[[], object], user: int) -> Iterator[None]:
    """As that user, from where it prints a line to the end of this block."""
    come, go = os.pipe(), os.pipe()

    def child() -> None:
        os.dup2(go[0], 0)
        os.dup2(come[1], 1)
        for fd in (*come, *go):
            os.close(fd)
        sys.stdin, sys.stdout = os.fdopen(0), os.fdopen(1, "w")
        run()

    waiting = threading.Thread(target=lambda: ended.append(in_child(child, user, GROUP)))
    ended: list[int] = []
    waiting.start()
    try:
        assert os.read(come[0], 100) == b"ready\n"
        yield
    finally:
        os.write(go[1], b"\n")
        waiting.join()
        for fd in (*come, *go):
            os.close(fd)
    assert ended == [0]


@pytest.fixture
def shared() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp())
    os.chown(path, ANN, GROUP)
    path.chmod(0o2750)
    yield path
    shutil.rmtree(path)


@pytest.mark.needs("root")
@pytest.mark.parametrize("kind", ["queue", "dict"])
def test_without_the_right_to_read(kind, shared):
    path = shared / "s"

    def fill() -> None:
        with CLASSES[kind](path, **PLAIN) as container:
            add(container, *"abc")

    def look() -> None:
        with pytest.raises(StorageError, match="Permission denied"):
            collections(path)

    assert in_child(fill, ANN, GROUP) == 0
    path.chmod(0o750)  # what is in it is its owner's alone
    assert in_child(look, BOB, GROUP) == 0
    path.chmod(0o700)
    assert in_child(look, BOB, GROUP) == 0


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "mounted"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(place)], check=True)
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.needs("root", "mount", "umount")
@pytest.mark.parametrize("how", ["closed", "crashed"])
@pytest.mark.parametrize("kind", CLASSES)
def test_on_a_read_only_file_system(kind, how, mounted):
    if how == "crashed":
        assert in_child(a_crash(kind, mounted / "s")) == -9
    else:
        with CLASSES[kind](mounted / "s", **PLAIN) as container:
            add(container, *"abc")
    subprocess.run(["mount", "-o", "remount,ro", str(mounted)], check=True)
    before = everything(mounted)
    assert ready(mounted / "s") == [3]
    assert everything(mounted) == before


@pytest.mark.parametrize("writable", [True, False])
def test_a_log_without_its_index(writable, shared):
    """As in a copy that left it out. Only SQLite can read the log, and it would make the index."""
    path = shared / "s"
    assert in_child(a_crash("dict", path)) == -9
    (path / "data.db-shm").unlink()
    if not writable:
        path.chmod(0o555)
    if os.geteuid() == 0:
        for file in (path, *path.iterdir()):
            os.chown(file, ANN, GROUP)

    def look() -> None:
        before = everything(shared)
        for target in (path, path / "data.db"):
            with pytest.raises(StorageError, match=r"data.db-wal.*no index.*open it once"):
                collections(target)
        assert everything(shared) == before

    assert in_child(look, *((ANN, GROUP) if os.geteuid() == 0 else ())) == 0
    path.chmod(0o755)
    (path / "data.db-wal").unlink()  # the copy left this out as well: what it held is not missed
    with pytest.raises(StorageError):
        collections(path)


# No lock is held, and none is waited for.


@pytest.mark.parametrize("kind", CLASSES)
def test_locks_of_others_are_not_waited_for(kind, tmp_path):
    """All that there are, exclusively: as processes have them that hang."""
    path = tmp_path / "s"
    with CLASSES[kind](path, **PLAIN) as container:
        add(container, *"abc")
    with ExitStack() as stack:
        locks = [file for file in path.iterdir() if file.name.endswith((".lock", ".turn"))]
        assert len(locks) == 2
        for lock in locks:
            file = stack.enter_context(lock.open("rb"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert ready(path) == [3]


@pytest.mark.parametrize("kind", IN_DATABASES)
def test_a_transaction_of_another_process_is_not_waited_for(kind, tmp_path):
    path = tmp_path / "s"
    with CLASSES[kind](path, **PLAIN) as container:
        add(container, *"abc")
    code = """
import sys
from persistcoll import PDict
with PDict(sys.argv[1], name="other", serializer="json") as other, other.transaction():
    other["a"] = 1
    print("ready", flush=True)
    input()
"""
    with elsewhere(code, path):
        assert ready(path) == [3, 0]
    assert ready(path) == [3, 1]
    with CLASSES[kind](path, **PLAIN):  # this process has it open, too
        with elsewhere(code.replace('"a"', '"b"'), path):
            assert ready(path) == [3, 1]
        assert ready(path) == [3, 2]


def test_a_look_into_files_takes_no_lock(tmp_path, monkeypatch):
    class Lockless(Disk):
        def __init__(self) -> None:
            super().__init__()
            for name in ("flock", "write", "pwrite", "truncate", "unlink", "replace", "mkdir", "sync"):
                setattr(self, name, None)

    monkeypatch.setattr(files, "Disk", Lockless)
    with Queue(tmp_path / "s", chunksize=2, **PLAIN) as queue:
        add(queue, *"abcde")
        hold(queue)
        assert unfinished(tmp_path / "s") == [5]
    assert ready(tmp_path / "s") == [5]


WRITER = """
import sys
from tests.catalog.kinds import CLASSES
from tests.permissions.kinds import PLAIN
options = {} if sys.argv[1] == "queue" else {"timeout": 0}
with CLASSES[sys.argv[1]](sys.argv[2], **options, **PLAIN) as container:
    if sys.argv[1] == "dict":
        container["d"] = 1
        container.popitem()
    else:
        container.put_nowait("d")
        item = container.get_nowait()
        (container.ack if hasattr(container, "ack") else lambda item: container.task_done())(item)
"""


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("how", ["closed", "open", "crashed"])
def test_a_writer_without_patience_is_not_kept_waiting(kind, how, tmp_path, monkeypatch):
    """It opens, puts, takes and closes in the midst of the look."""
    path = tmp_path / "s"
    if how == "crashed":
        assert in_child(a_crash(kind, path)) == -9
    else:
        with CLASSES[kind](path, **PLAIN) as container:
            add(container, *"abc")
    runs: list[int] = []

    def write() -> None:
        if not runs:
            run = subprocess.run([sys.executable, "-c", WRITER, kind, path], check=False)
            runs.append(run.returncode)

    refresh, registered = TailView.refresh, schema.collections

    def slow_refresh(self: TailView) -> int:
        last = refresh(self)
        write()
        return last

    def slow_registered(execute: Any, path: str) -> Any:
        found = registered(execute, path)
        write()
        return found

    monkeypatch.setattr(TailView, "refresh", slow_refresh)
    monkeypatch.setattr(schema, "collections", slow_registered)
    with ExitStack() as stack:
        if how == "open":
            stack.enter_context(CLASSES[kind](path, **PLAIN))
        assert unfinished(path) == [3]
        assert runs == [0]
        assert unfinished(path) == [3]


# Others write meanwhile.

TOGETHER = """
import sys
from tests.catalog.kinds import CLASSES
from tests.permissions.kinds import PLAIN
kind, path = sys.argv[1:]
print("ready", flush=True)
for number in range(60):
    with CLASSES[kind](path, **PLAIN) as container:
        for turn in range(10):
            if kind == "dict":
                container.update({f"a{turn}": 1, f"b{turn}": 2})
                with container.transaction():
                    container.popitem(), container.popitem()
            else:
                container.put_many(["a", "b"])
                container.get_many(2)
input()
"""


@pytest.mark.parametrize("kind", ["queue", "fifo", "priority", "dict"])
def test_beside_a_process_that_opens_writes_and_closes(kind, tmp_path):
    """Two come and two go at a time, so there is never an odd number."""
    path = tmp_path / "s"
    options = {"autosave": True} if kind == "queue" else {}
    with CLASSES[kind](path, **options, **PLAIN) as container:
        add(container, "x", "y")
    code = TOGETHER if kind != "queue" else TOGETHER.replace("**PLAIN", "autosave=True, **PLAIN")
    seen = set()
    with elsewhere(code, kind, path):
        for _ in range(400):
            (info,) = collections(path).values()
            assert info.kind == kind
            seen.add(info.unfinished)
    assert seen <= ({2, 4} if kind != "queue" else {2, 3, 4})
    assert 2 in seen


# In this process.


def test_within_a_transaction_of_its_own_what_is_committed_is_told(tmp_path):
    with (
        PDict(tmp_path / "s", name="dict", **PLAIN) as mapping,
        SQLiteAckQueue(tmp_path / "s", name="queue", **PLAIN) as queue,
    ):
        mapping["a"] = 1
        queue.put_many("abc")
        before = collections(tmp_path / "s")
        with mapping.transaction():
            mapping["b"] = 2
            queue.put("d")
            queue.ack(queue.get())
            assert collections(tmp_path / "s") == before
            told: list[Any] = []
            thread = threading.Thread(target=lambda: told.append(collections(tmp_path / "s")))
            thread.start()
            thread.join()
            assert told == [before]
        after = collections(tmp_path / "s")
        assert (after["dict"].ready, after["queue"].ready, after["queue"].done) == (2, 3, 1)


def test_readers_of_this_process_go_on(tmp_path):
    with SQLiteQueue(tmp_path / "s", **PLAIN) as queue:
        queue.put_many("abc")
        items = queue.items()
        assert next(items) == "a"
        assert ready(tmp_path / "s") == [3]
        assert [*items] == ["b", "c"]
        queue.put("d")
        assert ready(tmp_path / "s") == [4]
    with PDict(tmp_path / "s", name="d", **PLAIN) as mapping:
        mapping.update(dict.fromkeys("abc", 1))
        keys = iter(mapping)
        assert next(keys) == "a"
        with mapping.transaction():
            mapping["d"] = 1
            assert ready(tmp_path / "s") == [4, 3]
        assert [*keys] == ["b", "c"]


def test_a_database_that_is_closed_meanwhile(tmp_path, monkeypatch):
    """The last user goes while the look goes on: the look has it open until its end."""
    queue = SQLiteQueue(tmp_path / "s", **PLAIN)
    queue.put("a")
    registered = schema.collections

    def close_first(execute: Any, path: str) -> Any:
        queue.close()
        return registered(execute, path)

    monkeypatch.setattr(schema, "collections", close_first)
    assert ready(tmp_path / "s") == [1]
    assert open_below(tmp_path) == []
    assert not list((tmp_path / "s").glob("*-wal"))


def test_a_database_that_was_replaced(tmp_path):
    """What lies there now is told, and the object that is open goes on to say that its files are gone."""
    with SQLiteQueue(tmp_path / "new", name="new", **PLAIN) as new:
        new.put_many("ab")
    with SQLiteQueue(tmp_path / "s", **PLAIN) as queue:
        queue.put("a")
        os.rename(tmp_path / "s", tmp_path / "old")
        os.rename(tmp_path / "new", tmp_path / "s")
        (info,) = collections(tmp_path / "s").values()
        assert (info.name, info.ready) == ("new", 2)
        with pytest.raises(StorageError, match=r"replaced|removed"):
            queue.put("b")


@pytest.mark.parametrize("kind", ["queue", "dict"])
def test_from_a_signal_handler_in_the_midst_of_an_operation(kind, tmp_path):
    told: list[Any] = []

    def look(*arguments: object) -> None:
        try:
            told.append(unfinished(tmp_path / "s"))
        except StorageError as error:
            told.append(error)
        signal.setitimer(signal.ITIMER_REAL, 0.0002)  # again, but not while this one looks

    former = signal.signal(signal.SIGALRM, look)
    try:
        with CLASSES[kind](tmp_path / "s", **PLAIN) as container:
            signal.setitimer(signal.ITIMER_REAL, 0.0002)
            for number in range(300):
                add(container, str(number))
            signal.setitimer(signal.ITIMER_REAL, 0)
            assert unfinished(tmp_path / "s") == [300]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
    assert told
    for found in told:
        assert isinstance(found, StorageError) or (len(found) == 1 and 0 <= found[0] <= 300)


# Forks: what they closed stays closed.


def test_after_a_fork_a_look_opens_nothing(tmp_path):
    path = tmp_path / "s"
    with PDict(path, **PLAIN) as mapping, SQLiteQueue(path, name="q", **PLAIN) as queue:
        mapping["a"] = 1
        queue.put_many("ab")

        def look() -> None:
            before = everything(tmp_path)
            assert ready(path) == [1, 2]
            assert everything(tmp_path) == before
            assert open_below(tmp_path) == []
            mapping["b"] = 2
            assert ready(path) == [2, 2]

        assert in_child(look) == 0
        assert open_below(tmp_path) == []  # the fork closed them here, too
        before = everything(tmp_path)
        assert ready(path) == [2, 2]
        assert everything(tmp_path) == before
        assert open_below(tmp_path) == []
        queue.put("c")
        assert ready(path) == [2, 3]


def test_after_a_fork_nobody_opens_it_during_a_look(tmp_path, monkeypatch):
    """A connection that was opened beside one for reading only could not write."""
    registered = schema.collections
    with SQLiteQueue(tmp_path / "s", **PLAIN) as queue:
        queue.put("a")
        assert in_child(lambda: None) == 0
        put = threading.Thread(target=queue.put, args=("b",))
        another: list[Any] = []
        make = threading.Thread(target=lambda: another.append(PDict(tmp_path / "s", name="d", **PLAIN)))

        def wait_for_them(execute: Any, path: str) -> Any:
            for thread in (put, make):
                if not thread.ident:
                    thread.start()
                    thread.join(0.2)
            return registered(execute, path)

        with monkeypatch.context() as patch:
            patch.setattr(schema, "collections", wait_for_them)
            patch.setattr(driver, "connect_reader", None)  # not through the database's own
            (info,) = collections(tmp_path / "s").values()
        assert info.ready == 1
        put.join()
        make.join()
        another[0]["k"] = 1
        another[0].close()
        assert ready(tmp_path / "s") == [2, 1]


def test_in_a_child_that_was_forked_within_a_transaction(tmp_path):
    """SQLite would take the parent's locks for the child's own, so the child is refused."""
    with PDict(tmp_path / "s", **PLAIN) as mapping:
        mapping["a"] = 1

        def look() -> None:
            with pytest.raises(StorageError, match="forked within a transaction"):
                collections(tmp_path / "s")

        with mapping.transaction():
            mapping["b"] = 2
            assert in_child(look) == 0
        assert ready(tmp_path / "s") == [2]


def test_in_a_child_of_whose_fork_python_was_not_told(tmp_path):
    with PDict(tmp_path / "s", **PLAIN) as mapping, Queue(tmp_path / "q", **PLAIN) as queue:
        mapping["a"] = 1
        queue.put("a")
        pid = ctypes.CDLL(None).fork()
        if pid == 0:
            code = 1
            try:
                assert ready(tmp_path / "q") == [1]
                with pytest.raises(StorageError, match="Python was not told of the fork"):
                    collections(tmp_path / "s")
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        mapping["b"] = 2
        assert ready(tmp_path / "s") == [2]


# SQLite's own locks, which closing any descriptor of the file would drop.


@pytest.mark.parametrize("ours", [True, False])
def test_locks_that_this_process_has_through_sqlite_stay(ours, tmp_path):
    """Those of a connection that persistcoll knows nothing of."""
    database = tmp_path / "s.db"
    if ours:
        with PDict(database, **PLAIN) as mapping:
            mapping["a"] = 1
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        if not ours:
            connection.execute("CREATE TABLE people (name)")
        connection.execute("BEGIN EXCLUSIVE")
        if ours:
            assert ready(database) == [1]
        else:
            with pytest.raises(StoreKindError, match="another application's"):
                collections(database)
        code = (
            "import sqlite3, sys\n"
            "connection = sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None)\n"
            "try: connection.execute('BEGIN IMMEDIATE')\n"
            "except sqlite3.OperationalError as error: print(error)"
        )
        run = subprocess.run([sys.executable, "-c", code, database], stdout=subprocess.PIPE, text=True)
        assert run.stdout == "database is locked\n"


def test_a_look_opens_no_database_file_but_through_sqlite(tmp_path, monkeypatch):
    """An audit hook would see each: closing what it opened drops the locks of the whole process."""
    opened: list[str] = []
    active: list[int] = []

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if active and event == "open":
            opened.append(str(arguments[0]))

    sys.addaudithook(hook)
    with PDict(tmp_path / "s", **PLAIN) as mapping:
        mapping["a"] = 1
        active.append(1)
        assert ready(tmp_path / "s") == [1]
        active.clear()
    active.append(1)
    assert ready(tmp_path / "s") == [1]
    active.clear()
    assert not [path for path in opened if Path(path).name.startswith("data.db") and "lock" not in path]


def test_the_registry_lets_go_of_what_a_failed_look_had(tmp_path, monkeypatch):
    with PDict(tmp_path / "s", **PLAIN) as mapping:
        mapping["a"] = 1
        for wrong in (KeyboardInterrupt, ZeroDivisionError, StorageError("it failed")):

            def fail(execute: Any, path: str, wrong: Any = wrong) -> Any:
                raise wrong

            with monkeypatch.context() as patch:
                patch.setattr(schema, "collections", fail)
                with pytest.raises(type(wrong) if isinstance(wrong, Exception) else wrong):
                    collections(tmp_path / "s")
            assert ready(tmp_path / "s") == [1]
    assert open_below(tmp_path) == []
    assert not registry.DATABASES._open
    assert databases.inspect(str(tmp_path / "s" / "data.db"))[0].ready == 1


def test_threads_look_and_write_at_once(tmp_path):
    """In one process, on both kinds of store, opened and closed all the while."""
    failures: list[BaseException] = []
    done = threading.Event()

    def write(kind: str) -> None:
        try:
            for number in range(40):
                with CLASSES[kind](tmp_path / kind, **PLAIN) as container:
                    add(container, f"a{number}")
        except BaseException as error:
            failures.append(error)

    def look(kind: str) -> None:
        last = 0
        try:
            while not done.is_set():
                if not (tmp_path / kind).exists():
                    continue
                try:
                    (count,) = unfinished(tmp_path / kind)
                except (StorageError, ValueError):
                    assert not last  # it is being made
                    continue
                assert count is None or count >= last
                last = count or last
        except BaseException as error:
            failures.append(error)

    for kind in ("queue", "dict"):
        with CLASSES[kind](tmp_path / kind, **PLAIN):
            pass
    writers = [threading.Thread(target=write, args=(kind,)) for kind in ("queue", "dict")]
    lookers = [threading.Thread(target=look, args=(kind,)) for kind in ("queue", "dict") * 2]
    for thread in (*writers, *lookers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    for thread in lookers:
        thread.join()
    assert not failures
    assert ready(tmp_path / "queue") == ready(tmp_path / "dict") == [40]
