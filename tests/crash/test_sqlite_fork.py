"""Forks at bad moments under SQLite queues.

A thread is in a transaction or in a serializer, or items are in flight. Each time both processes continue,
and in the end every item was delivered once and the database is intact.
"""

from __future__ import annotations

import os
import pickle
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from persistcoll import Empty, SQLiteAckQueue, SQLiteQueue, StorageError
from persistcoll.sqlite import database as databases
from persistcoll.testing.children import in_forked_child, run_threads
from tests.queues.waits import someone_waits, until, waiting

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork"),
    # Python 3.12 warns of forks with several threads, which these tests are about.
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    pytest.mark.timeout(60),
]


class Pausing:
    """A serializer that calls something on the way."""

    name = "pausing"
    executes_code = False

    def __init__(self) -> None:
        self.on_load: Callable[[], object] | None = None
        self.on_dump: Callable[[], object] | None = None

    def dumps(self, item: Any) -> bytes:
        if self.on_dump is not None:
            call, self.on_dump = self.on_dump, None
            call()
        return pickle.dumps(item)

    def loads(self, data: bytes) -> Any:
        if self.on_load is not None:
            call, self.on_load = self.on_load, None
            call()
        return pickle.loads(data)


@pytest.fixture(params=[SQLiteQueue, SQLiteAckQueue], ids=lambda kind: kind.__name__)
def kind(request) -> Any:
    return request.param


@pytest.fixture
def serializer() -> Pausing:
    return Pausing()


@pytest.fixture
def queue(kind, serializer, tmp_path):
    options = {} if kind is SQLiteAckQueue else {"auto_commit": False}
    with kind(tmp_path / "q", serializer=serializer, durability="process", **options) as opened:
        yield opened
    with closing(sqlite3.connect(tmp_path / "q" / "data.db")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def take_all(queue: Any) -> list[Any]:
    """Get and ack all ready items."""
    taken = []
    while True:
        try:
            taken.append(queue.get_nowait())
        except Empty:
            return taken
        queue.task_done()


class Paused:
    """A thread that stays in the middle of a transaction until :meth:`release`."""

    def __init__(self, queue: Any, serializer: Pausing) -> None:
        self.release = threading.Event()
        inside = threading.Event()

        def pause() -> None:
            inside.set()
            assert self.release.wait(30)

        serializer.on_load = pause
        self.got: list[Any] = []
        self.thread = threading.Thread(target=lambda: self.got.append(queue.get()))
        self.thread.start()
        assert inside.wait(30)

    def end(self) -> Any:
        self.release.set()
        self.thread.join(30)
        return self.got[0]


def test_a_fork_waits_for_the_transaction_of_another_thread(queue, serializer, monkeypatch):
    queue.put_many(["a", "b", "c"])
    paused = Paused(queue, serializer)
    database = queue._store._database
    rest = database._before_fork

    def before_fork() -> None:
        paused.release.set()
        rest()

    monkeypatch.setattr(database, "_before_fork", before_fork)

    def child() -> None:
        assert queue.get_nowait() == "b"
        queue.task_done()
        queue.put("of the child")

    in_forked_child(child)
    assert paused.end() == "a"
    queue.task_done()
    assert take_all(queue) == ["c", "of the child"]
    assert queue.unfinished_tasks == 0


def test_a_fork_that_waits_in_vain(queue, serializer, monkeypatch):
    """The thread stays in the middle of its transaction: the child can do nothing, and does no harm."""
    monkeypatch.setattr(databases, "FORK_TIMEOUT", 0.05)
    queue.put_many(["a", "b"])
    paused = Paused(queue, serializer)

    def child() -> None:
        for call in (
            lambda: queue.put("c"),
            queue.get_nowait,
            queue.qsize,
            queue.peek,
            lambda: [*queue.items()],
        ):
            with pytest.raises(StorageError, match="forked within a transaction"):
                call()
        queue.close()

    in_forked_child(child)
    assert paused.end() == "a"
    queue.task_done()
    in_forked_child(lambda: queue.put("c"))  # another database, quiesced
    assert take_all(queue) == ["b", "c"]


@pytest.mark.timeout(15)
@pytest.mark.parametrize("end", ["ends", "closes"])
def test_a_fork_from_within_a_deserialization(queue, serializer, monkeypatch, end):
    """The fork happens in the transaction of the forking thread, so it does not wait for it."""
    monkeypatch.setattr(databases, "FORK_TIMEOUT", 1000)
    queue.put_many(["a", "b"])

    def child() -> None:
        with pytest.raises(StorageError):
            queue.put("of the child")
        with pytest.raises(StorageError):
            queue.get_nowait()
        if end == "closes":
            queue.close()

    serializer.on_load = lambda: in_forked_child(child)
    assert queue.get() == "a"
    queue.task_done()
    queue.put("c")
    assert take_all(queue) == ["b", "c"]


def test_a_fork_from_within_a_serialization(queue, serializer):
    """The fork happens before any transaction, so the child may do everything."""
    queue.put("a")

    def child() -> None:
        queue.put("of the child")
        assert queue.get_nowait() == "a"
        queue.task_done()

    serializer.on_dump = lambda: in_forked_child(child)
    queue.put("b")
    assert take_all(queue) == ["of the child", "b"]


def test_a_child_that_puts_wakes_a_thread_of_its_parent_that_waits(queue):
    finish = waiting(lambda: queue.get(timeout=20))
    until(lambda: someone_waits(queue))
    in_forked_child(lambda: queue.put("of the child"))
    assert finish() == "of the child"


def test_what_the_parent_claimed_is_not_the_childs(queue, kind):
    queue.put_many(["a", "b"])
    raw = queue.get(raw=True)

    def child() -> None:
        with pytest.raises(ValueError, match="too many"):
            queue.task_done()
        if kind is SQLiteAckQueue:
            for verb in (queue.ack, queue.nack, queue.ack_failed):
                assert verb(raw) is None
                assert verb(id=1) is None
            assert queue.resume_unack_tasks() == 0
            assert queue.unack_count() == 1
        assert queue.get_nowait() == "b"
        queue.close()  # releases what this process claimed, nothing else

    in_forked_child(child)
    assert queue.stats().claimed == 1
    if kind is SQLiteAckQueue:
        assert queue.ack(raw) == 1
    else:
        queue.task_done()
    assert take_all(queue) == ["b"]


def test_a_block_that_a_child_leaves_settles_nothing(queue):
    """The parent is in a ``receive()`` block, and the fork happens in it."""
    queue.put("a")
    ended: list[str] = []

    def block() -> None:
        with queue.receive() as item:
            pid = os.fork()
            ended.append(item)
            if pid:
                assert os.waitpid(pid, 0)[1] == 0
                assert queue.stats().claimed == 1

    parent = os.getpid()
    status = 1
    try:
        block()
        status = 0
    except LookupError:  # the child is told that it has no claim
        status = 0
    finally:
        if os.getpid() != parent:
            os._exit(status)
    assert ended == ["a"]
    assert (queue.qsize(), queue.unfinished_tasks) == (0, 0)


def test_a_parent_that_dies_leaves_its_items_though_its_child_lives(queue, kind):
    """The child closed its copy of the lock file that shows other processes whether the holder lives."""
    queue.put_many(["a", "b"])
    alive, says_alive = os.pipe()
    hold, close_without_sync = os.pipe()
    options = {} if kind is SQLiteAckQueue else {"auto_commit": False}

    def parent() -> None:
        mine = kind(queue.path, serializer=Pausing(), durability="process", **options)
        mine.get()
        if os.fork() == 0:
            os.close(close_without_sync)
            os.write(says_alive, b"x")
            os.read(hold, 1)  # until the test ends
            os._exit(0)
        os.read(alive, 1)
        os.kill(os.getpid(), signal.SIGKILL)

    try:
        pid = os.fork()
        if pid == 0:
            try:
                parent()
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        # "b" comes first: only a consumer that finds no ready record reclaims from dead holders.
        assert sorted(queue.get(timeout=20) for _ in range(2)) == ["a", "b"]
    finally:
        for fd in (close_without_sync, alive, says_alive, hold):
            os.close(fd)


def test_many_forks_beside_busy_threads(queue, rng):
    """Threads put and get all the time, and each child does too."""
    stop = threading.Event()
    got: list[Any] = []
    lock = threading.Lock()
    children, each = 12, 5

    def produce() -> int:
        number = 0
        while not stop.is_set():
            queue.put(("parent", number))
            number += 1
        return number

    def consume() -> None:
        while True:
            try:
                item = queue.get(timeout=0.05)
            except Empty:
                if stop.is_set() and not queue.unfinished_tasks:
                    return
                continue
            queue.task_done()
            with lock:
                got.append(item)

    def forks() -> None:
        try:
            for number in range(children):

                def child(number: int = number) -> None:
                    for count in range(each):
                        queue.put((number, count))
                    taken = queue.get(timeout=10)
                    queue.put(taken)  # twice now, and then once
                    queue.task_done()

                in_forked_child(child)
        finally:
            stop.set()

    produced: list[int] = []
    run_threads(lambda: produced.append(produce()), consume, consume, forks, timeout=50)
    expected: list[Any] = [("parent", number) for number in range(produced[0])]
    expected += [(number, count) for number in range(children) for count in range(each)]
    assert sorted(got, key=repr) == sorted(expected, key=repr)


UNSEEN = """
import ctypes, os, sys
from persistcoll import MessageQueue, PDict, SQLiteAckQueue, SQLiteQueue, StorageError

path, kind, hook = sys.argv[1:]
store = eval(kind)(path, durability="process")
def write(number):
    if kind == "PDict":
        store[number] = number
    else:
        store.put(number)
def calls():
    yield lambda: write(-1)
    yield lambda: eval(kind)(path)
    if kind == "PDict":
        yield from (lambda: store[0], lambda: len(store), lambda: list(store), store.transaction().__enter__)
    else:
        yield from (lambda: store.get(block=False), store.qsize, store.peek, store.stats)
        yield lambda: store.get(timeout=1)
for number in range(10):
    write(number)
if kind == "PDict":
    store[0], len(store), store.get_many([1])  # there are reading connections
else:
    store.peek()
pid = ctypes.CDLL(None).fork()
if pid == 0:
    status = 0
    if hook == "late hook":
        ctypes.pythonapi.PyOS_AfterFork_Child()
    for number, call in enumerate(calls()):
        try:
            call()
            status = 100 + number
        except StorageError as error:
            if "not told of the fork" not in str(error):
                print(number, repr(error), flush=True)
                status = 50 + number
    store.close()
    with eval(kind)(path + ".another", durability="process") as another:
        another.update({1: 1}) if kind == "PDict" else another.put(1)
    os._exit(status)
for number in range(10, 60):
    write(number)
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
assert status == 0, status
store.close()
with eval(kind)(path) as store:
    if kind == "MessageQueue":
        found = [message.body for message in store.get_many(100)]
    else:
        found = list(store if kind == "PDict" else store.items())
    assert found == [*range(60)]
print("right")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="calls the C library's fork")
@pytest.mark.parametrize(
    "hook",
    [
        "no hook",
        # Python 3.13 itself ends such a child, because its import lock is held by no thread of the child.
        pytest.param("late hook", marks=pytest.mark.skipif(sys.version_info >= (3, 13), reason="ends it")),
    ],
)
@pytest.mark.parametrize("kind", ["SQLiteQueue", "SQLiteAckQueue", "PDict", "MessageQueue"])
def test_a_fork_that_python_is_not_told_of(kind, hook, tmp_path):
    """The child is refused with the reason, the parent continues, and nothing is damaged."""
    command = [sys.executable, "-c", UNSEEN, str(tmp_path / "store"), kind, hook]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "right\n"
    with closing(sqlite3.connect(tmp_path / "store" / "data.db")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
