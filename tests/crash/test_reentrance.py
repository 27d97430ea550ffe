"""Calls from within another call of the same thread: from signal handlers and from destructors."""

from __future__ import annotations

import ctypes
import gc
import itertools
import os
import signal
import subprocess
import sys
import threading
import warnings
from typing import Any

import pytest

from persistcoll import ClosedError, Empty, Queue, StorageError
from persistcoll.disk.calls import Disk, OpenFile
from persistcoll.testing.faults import FaultyDisk
from tests.interrupting import handled as within_a_call

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no signals and no fork on Windows")
DURABILITIES = ["process", "power"]


@pytest.fixture(params=DURABILITIES)
def durability(request):
    return request.param


CALLS = {
    "put": lambda queue: queue.put("handler"),
    "put_many": lambda queue: queue.put_many(["handler"]),
    "get": lambda queue: queue.get(block=False),
    "get_many": lambda queue: queue.get_many(2, block=False),
    "task_done": lambda queue: queue.task_done(),
    "skip": lambda queue: queue.skip(),
    "clear": lambda queue: queue.clear(),
    "qsize": lambda queue: queue.qsize(),
    "empty": lambda queue: queue.empty(),
    "peek": lambda queue: queue.peek(),
    "items": lambda queue: list(queue.items()),
    "stats": lambda queue: queue.stats(),
    "unfinished_tasks": lambda queue: queue.unfinished_tasks,
}
LOOKS = ("qsize", "empty", "peek", "items", "stats", "unfinished_tasks")


def handled(path, call: str, outer: str, name: str, durability) -> bool:
    """Make a call from a handler after a system call of another one; tell whether there was one."""
    disk = FaultyDisk()
    with Queue(path, chunksize=3, durability=durability, _disk=disk) as queue:
        for number in range(8):
            queue.put(number)
        queue.get()
        queue.get()
        outcome = []
        store: Any = queue._core.store

        def handler(*arguments):
            before = store._journal.tail[2]
            try:
                CALLS[name](queue)
                outcome.append(True)
            except Empty:
                outcome.append(False)  # the handle is poisoned by then
            except StorageError:
                assert name not in LOOKS
                outcome.append(False)
                assert store._journal.tail[2] == before

        fault = disk.on(call, handler, effect="after")
        queue.put("program") if outer == "put" else CALLS[outer](queue)
        disk.heal()
        assert len(outcome) == fault.fired
        there = list(queue.items())
        stored = sum(outcome) if name in ("put", "put_many") else 0
        assert there.count("handler") == stored or (outer == "clear" and not there)
        with Queue(path) as observer:
            assert (observer.qsize(), list(observer.items())) == (queue.qsize(), there)
        return bool(fault.fired)


@pytest.mark.parametrize("outer", ["put", "get", "task_done", "clear"])
@pytest.mark.parametrize("name", CALLS)
def test_call_from_a_handler_that_comes_after_a_system_call(name, outer, durability, memory_path):
    calls = ("flock", "write", "pwrite", "sync", "read")
    found = [handled(memory_path / call, call, outer, name, durability) for call in calls]
    assert any(found)


@pytest.mark.parametrize("call", ["flock", "write"])
def test_close_from_a_handler(call, durability, memory_path):
    disk = FaultyDisk()
    queue = Queue(memory_path / "q", durability=durability, _disk=disk)
    disk.on(call, lambda *arguments: queue.close(), effect="after")
    queue.put("program")  # succeeds
    with pytest.raises(ClosedError):
        queue.put("later")
    before = len(os.listdir("/proc/self/fd"))
    queue.close()
    assert len(os.listdir("/proc/self/fd")) < before
    with Queue(memory_path / "q") as queue:
        assert list(queue.items()) == ["program"]


def test_destructor_within_an_operation_of_another_queue_on_the_directory(
    durability, memory_path, no_collector
):
    path = memory_path / "q"
    disk = FaultyDisk()
    with Queue(path, durability=durability, _disk=disk) as queue:
        forgotten = Queue(path, durability=durability)
        forgotten.put("forgotten")
        cycle = [forgotten]
        cycle.append(cycle)  # type: ignore[arg-type]
        del forgotten, cycle

        def collect(*arguments):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)
                gc.collect()

        before = len(os.listdir("/proc/self/fd"))
        fault = disk.on("flock", collect, effect="after")
        done = threading.Event()

        def put():
            queue.put("other")
            done.set()

        threading.Thread(target=put, daemon=True).start()
        assert done.wait(20), "the destructor waits for the lock that its thread has"
        assert fault.fired
        assert len(os.listdir("/proc/self/fd")) < before
        assert list(queue.items()) == ["forgotten", "other"]


def put_by(queue):
    queue.put("handler")


def put_by_a_new_one(queue):
    with Queue(queue.path) as third:
        third.put("handler")


OUTER = {
    "put": lambda queue, path: queue.put("program"),
    "open": lambda queue, path: Queue(path, chunksize=3).close(),
    "close": lambda queue, path: queue.close(),
}


@pytest.mark.timeout(60)
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize("put", [put_by, put_by_a_new_one])
@pytest.mark.parametrize("outer", OUTER)
def test_a_handler_uses_another_object_on_the_directory(outer, put, durability, memory_path, steps):
    """The lock between processes is one between the objects of a process, too."""
    numbers = itertools.count()
    outcome: list[bool] = []

    def prepare():
        path = memory_path / str(next(numbers))
        return [Queue(path, chunksize=3, durability=durability) for _ in range(2)]

    def handler(queues):
        assert queues[1].qsize() == len(list(queues[1].items()))
        try:
            put(queues[1])
            outcome.append(True)
        except StorageError:
            outcome.append(False)

    for (queue, other), where in within_a_call(
        prepare, lambda queues: OUTER[outer](queues[0], queues[0].path), handler, **steps
    ):
        stored = ["handler"] if outcome and outcome.pop() else []
        expected = stored + (["program"] if outer == "put" else [])
        assert sorted(other.items()) == expected, where
        other.put("goes on")
        queue.close()
        other.close()


@pytest.mark.timeout(60)
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_destructor_while_its_thread_opens_the_directory(memory_path, no_collector, steps):
    numbers = itertools.count()
    last = []

    def prepare():
        last.append(memory_path / str(next(numbers)))
        forgotten = Queue(last[-1], durability="process")
        forgotten.put("forgotten")
        return [forgotten]

    def open_another(forgotten):
        with Queue(last[-1], durability="process") as queue:
            assert queue.get() == "forgotten"

    assert sum(1 for _ in within_a_call(prepare, open_another, list.clear, **steps))


def test_a_file_is_closed_once_however_it_is_closed_within_its_closing(memory_path):
    path = str(memory_path / "file")
    before = len(os.listdir("/proc/self/fd"))

    def make() -> OpenFile:
        return OpenFile(Disk(), path, os.O_RDWR | os.O_CREAT)

    count = 0
    for file, _ in within_a_call(make, OpenFile.close, OpenFile.close):
        count += 1
        assert not file.held
        assert len(os.listdir("/proc/self/fd")) == before
    assert count > 2


def test_signals_while_a_program_works(durability, memory_path):
    """A handler that puts and reads runs every few hundred microseconds: what returned is stored once."""
    with Queue(memory_path / "q", chunksize=50, durability=durability) as queue:
        stored: list = []
        numbers = itertools.count()

        def handler(number, frame):
            queue.qsize()
            item = "handler", next(numbers)
            try:
                queue.put(item)
                stored.append(item)
            except StorageError:
                pass

        previous = signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0003)
        got = []
        try:
            for number in range(300):
                queue.put(number)
                if number % 2:
                    got.append(queue.get())
                    queue.task_done()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)
        assert stored
        found = got + queue.get_many(10_000)
        assert sorted(item for item in found if not isinstance(item, int)) == sorted(stored)
        assert [item for item in found if isinstance(item, int)] == list(range(300))


FORK = """
import ctypes, os, sys
from persistcoll import Queue
queue = Queue(sys.argv[1], durability=sys.argv[2])
queue.put_many(["one", "two"])
assert queue.get() == "one"
pid = ctypes.CDLL(None).fork()
if not pid:
    try:
        queue.put("child")
        assert queue.qsize() == 2
        try:
            queue.get(block=False)
        except OSError as error:
            assert error.pid == os.getppid()
        os._exit(0)
    finally:
        os._exit(1)
assert os.waitpid(pid, 0)[1] == 0
queue.task_done()
assert queue.get_many(3) == ["two", "child"]
queue.close()
"""


@pytest.mark.skipif(not hasattr(ctypes, "CDLL") or sys.platform != "linux", reason="needs the C library")
def test_fork_that_python_does_not_see(durability, memory_path):
    subprocess.run([sys.executable, "-c", FORK, str(memory_path / "q"), durability], check=True, timeout=60)
    with Queue(memory_path / "q") as queue:
        assert list(queue.items()) == ["two", "child"]
