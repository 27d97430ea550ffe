"""Containers that are never closed: the garbage collector closes them, at any place and in any thread.

A signal handler that drops the last reference does so too. Whatever the thread does then, neither it nor
another thread may wait forever.
"""

from __future__ import annotations

import dis
import gc
import os
import pickle
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import persistcoll
from persistcoll import PDict, Queue, SQLiteQueue
from persistcoll.engine import forks
from persistcoll.sqlite import driver, registry
from persistcoll.sqlite.database import Database
from persistcoll.testing.children import in_forked_child, run_threads
from tests.queues.waits import WatchedLock, until, waiting

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.usefixtures("no_collector"),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

# After these an interpreter runs pending work: a signal handler, and from 3.12 on the garbage collector.
BEHIND = {"RESUME", "JUMP_BACKWARD", "JUMP_ABSOLUTE"}
# Modules that hold a lock which closing needs.
FILES = {
    "database.py",
    "database_file.py",
    "write_requests.py",
    "group_commit.py",
    "synced_file.py",
    "transaction.py",
    "owned_lock.py",
    "watcher.py",
    "open.py",
    "registry.py",
    "handle.py",
    "forks.py",
}


class Loading:
    """A serializer that calls something when it reads, in the queue's transaction."""

    name = "loading"
    executes_code = False
    dumps = staticmethod(pickle.dumps)

    def __init__(self, call: Callable[[], object]) -> None:
        self.call = call

    def loads(self, data: bytes) -> Any:
        self.call()
        return pickle.loads(data)


def claiming(path: Path) -> SQLiteQueue:
    """Return a queue that has claimed an item, which closing releases."""
    queue = SQLiteQueue(path, name="forgotten", durability="process", auto_commit=False)
    queue.put("mine")
    assert queue.get() == "mine"
    return queue


def forget(path: Path) -> None:
    """Let :func:`gc.collect` close a queue that has claimed an item."""
    cycle: list[object] = [claiming(path)]
    cycle.append(cycle)


def expect_given_back(path: Path) -> None:
    with SQLiteQueue(path, name="forgotten", durability="process") as again:
        assert again.get(timeout=10) == "mine"


# At any place.


def at_point(
    number: int, act: Callable[[], object], call: Callable[[], object], files: Collection[str] = FILES
) -> bool:
    """Run ``call()``, with ``act()`` at the place of this number; return whether there are so many.

    A place is one in these files where a signal handler or the collector may run.
    """
    package = os.path.dirname(persistcoll.__file__)
    before = sys.gettrace()
    last: dict[int, tuple[str, int]] = {}  # of each frame: the instruction, and the offset of the next one
    count = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        name = frame.f_code.co_filename
        if not (name.startswith(package) and os.path.basename(name) in files):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            previous, behind = last.get(id(frame), ("", 0))
            last[id(frame)] = instruction(frame)
            # Python 3.13 leaves out some events; then this offset is further on, where nothing can run.
            if (previous.startswith("CALL") and behind == frame.f_lasti) or previous in BEHIND:
                count += 1
                if count == number:
                    sys.settrace(before)
                    act()
                    return None
        return trace if count < number else None

    # Python 3.12 reports instructions only where a frame has set this before.
    sys._getframe().f_trace_opcodes = True
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count >= number


def instruction(frame: FrameType) -> tuple[str, int]:
    """Return the instruction's name, and the offset of the next one."""
    code, behind = frame.f_code.co_code, frame.f_lasti + 2
    while behind < len(code) and dis.opname[code[behind]] == "CACHE":
        behind += 2
    return dis.opname[code[frame.f_lasti]], behind


CALLS: dict[str, Callable[[Path, SQLiteQueue, PDict[str, int]], object]] = {
    "put": lambda path, queue, ages: queue.put(1),
    "get": lambda path, queue, ages: queue.get(),
    "count": lambda path, queue, ages: len(queue),
    "wait": lambda path, queue, ages: queue._store.change_token(),
    "look up": lambda path, queue, ages: ages["ann"],
    "go through": lambda path, queue, ages: list(ages),
    "transaction": lambda path, queue, ages: change(ages),
    "open": lambda path, queue, ages: SQLiteQueue(path / "third", durability="process").close(),
    "open another": lambda path, queue, ages: SQLiteQueue(path / "q", name="third").close(),
    "close": lambda path, queue, ages: close(queue, ages),
}


def close(queue: SQLiteQueue, ages: PDict[str, int]) -> None:
    queue.get()
    queue.close()
    ages.close()


def change(ages: PDict[str, int]) -> None:
    with ages.transaction():
        ages["ann"] = 42


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_a_destructor_may_come_in_anywhere(tmp_path, name):
    call = CALLS[name]
    number, more = 0, True
    while more:
        number += 1
        for place in ("q", "other") if number % 4 == 1 else ("q",):
            with (
                SQLiteQueue(tmp_path / "q", durability="process", auto_commit=False) as queue,
                PDict[str, int](tmp_path / "q", "ages", durability="process") as ages,
            ):
                queue.put(1)
                ages["ann"] = 41
                last = [claiming(tmp_path / place)]
                more = at_point(number, last.clear, partial(call, tmp_path, queue, ages))
                last.clear()
            expect_given_back(tmp_path / place)
    assert number > 3


# In a thread for which another one waits.


def test_while_another_thread_closes_the_queue(tmp_path, monkeypatch):
    """The close waits for this thread's operation, and meanwhile no database can be opened or closed."""
    shutting = threading.Event()
    shut = Database.try_close

    def shut_seen(self: Database) -> object:
        shutting.set()
        return shut(self)

    def load() -> None:
        threading.Thread(target=queue.close, daemon=True).start()
        assert shutting.wait(10)
        gc.collect()

    monkeypatch.setattr(Database, "try_close", shut_seen)
    queue = SQLiteQueue(tmp_path / "q", serializer=Loading(load), durability="process", auto_commit=True)
    queue.put(1)
    forget(tmp_path / "other")
    assert waiting(queue.get)() == 1
    expect_given_back(tmp_path / "other")


def test_of_a_database_whose_user_waits_for_this_one(tmp_path):
    inside = threading.Event()

    def write_both() -> None:
        with ages.transaction():
            ages["ann"] = 41
            inside.set()
            queue.put(2)

    def load() -> None:
        if not started:
            started.append(waiting(write_both))
            assert inside.wait(10)
            until(lambda: database._combiner.has_leader)
            gc.collect()

    started: list[Any] = []
    queue = SQLiteQueue(tmp_path / "q", serializer=Loading(load), durability="process", auto_commit=True)
    database: Any = queue._store._database  # type: ignore[attr-defined]
    with queue, PDict[str, int](tmp_path / "ages", durability="process") as ages:
        queue.put(1)
        forget(tmp_path / "ages")
        assert waiting(queue.get)() == 1
        started[0]()
        assert queue.get() == 2
        expect_given_back(tmp_path / "ages")


def test_of_the_thread_that_works_for_others(tmp_path, monkeypatch):
    """The leader does not have the connection yet, so a thread that waits for it waits for its own thread."""
    inside, go_on = threading.Event(), threading.Event()

    class Pausing:
        name = "pausing"
        executes_code = False
        dumps = staticmethod(str.encode)

        def loads(self, data: bytes) -> str:
            inside.set()
            assert go_on.wait(10)
            return data.decode()

    def perform(*arguments: Any) -> None:
        gc.collect()
        go_on.set()
        combined(*arguments)

    with SQLiteQueue(tmp_path, "slow", serializer=Pausing(), durability="process") as queue:
        queue.put("a")
        forget(tmp_path)
        table: Any = queue._store
        combiner = table._database._combiner
        combined = combiner._execute_batch
        monkeypatch.setattr(combiner, "_execute_batch", perform)
        finish = waiting(queue.get)
        assert inside.wait(10)
        waiting(lambda: queue.put("b"))()
        assert finish() == "a"
    expect_given_back(tmp_path)


def test_the_watcher_waits_for_no_transaction(tmp_path):
    queue = SQLiteQueue(tmp_path, durability="process")
    with queue, PDict[str, int](tmp_path, "ages", durability="process") as ages, ages.transaction():
        waiting(queue._store.change_token)()
        with pytest.raises(persistcoll.Empty):
            queue.get(timeout=0.01)


def test_it_is_closed_where_a_warning_is_an_error(tmp_path, monkeypatch):
    errors: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", errors.append)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        forget(tmp_path / "q")
        ages = [PDict[str, int](tmp_path / "ages", durability="process")]
        ages.clear()
        gc.collect()
    assert [error.exc_type for error in errors] == [ResourceWarning] * 2
    expect_given_back(tmp_path / "q")


# While the process forks.

AROUND_A_FORK = """
import faulthandler, gc, os, sys, warnings
faulthandler.dump_traceback_later(20, exit=True)
moment, path = sys.argv[1:]
os.register_at_fork(**{moment: gc.collect})  # before ours: so it runs while all is at rest
from pathlib import Path
from persistcoll import SQLiteQueue
from tests.concurrency.test_finalizers import forget

warnings.simplefilter("ignore")
gc.disable()
with SQLiteQueue(path, durability="process") as queue:
    forget(Path(path))
    forget(Path(path, "other"))
    faulthandler.cancel_dump_traceback_later()
    pid = os.fork()
    faulthandler.dump_traceback_later(20, exit=True)
    queue.put(os.getpid())
    if not pid:
        os._exit(0)
    assert os.waitpid(pid, 0) == (pid, 0)
    assert {queue.get(timeout=5), queue.get(timeout=5)} == {pid, os.getpid()}
gc.collect()
"""


@needs_fork
@pytest.mark.parametrize("moment", ["before", "after_in_parent", "after_in_child"])
def test_while_the_process_forks(tmp_path, moment):
    command = [sys.executable, "-c", AROUND_A_FORK, moment, str(tmp_path)]
    root = Path(__file__).parents[2]
    subprocess.run(command, check=True, timeout=50, cwd=root, env={**os.environ, "PYTHONPATH": str(root)})
    expect_given_back(tmp_path)
    expect_given_back(tmp_path / "other")


@needs_fork
def test_the_collector_is_off_while_the_process_forks():
    """After the fork its state is as before, in both processes."""

    class Seen:
        used_here = staticmethod(lambda: False)

        def __init__(self) -> None:
            self.enabled: list[bool] = []
            forks.register_quiescent(self)

        def _note(self) -> None:
            self.enabled.append(gc.isenabled())

        _before_fork = _after_fork_in_parent = _after_fork = _note

    seen = Seen()

    def expect(enabled: bool) -> None:
        assert gc.isenabled() is enabled
        assert seen.enabled[-2:] == [False, False]

    for enabled in (True, False):
        (gc.enable if enabled else gc.disable)()
        in_forked_child(lambda: expect(enabled))  # noqa: B023
        expect(enabled)
        gc.disable()


@needs_fork
def test_two_threads_fork_at_the_same_time(tmp_path, monkeypatch):
    """Each thread releases what it has quiesced itself, however long the other one needs."""
    log: list[tuple[str, int]] = []

    class Slow:
        used_here = staticmethod(lambda: False)

        def _before_fork(self) -> None:
            log.append(("before", threading.get_ident()))
            pause = threading.Event()
            for _ in range(20):
                if len(log) == 1:  # The other thread may fork now.
                    pause.wait(0.01)

        def _after_fork_in_parent(self) -> None:
            log.append(("after", threading.get_ident()))

        def _after_fork(self) -> None:
            pass

    slow = Slow()
    forks.register_quiescent(slow)
    monkeypatch.setattr(registry, "FORK_TIMEOUT", 0.01)
    run_threads(*[lambda: in_forked_child(lambda: None)] * 2, timeout=20)
    assert [what for what, _ in log] == ["before", "after"] * 2
    assert log[0][1] == log[1][1] != log[2][1] == log[3][1]
    waiting(lambda: SQLiteQueue(tmp_path, durability="process").close())()


@needs_fork
def test_something_is_opened_within_a_transaction_for_which_a_fork_waits(tmp_path):
    inside, forking = threading.Event(), threading.Event()

    def transact() -> None:
        with ages.transaction():
            ages["ann"] = 41
            inside.set()
            assert forking.wait(10)
            assert gate.waited_for.wait(10)
            with PDict[str, int](tmp_path / "other", durability="process") as other:
                other["bob"] = 17

    def child() -> None:
        ages["cid"] = ages["ann"] + 1

    with PDict[str, int](tmp_path / "ages", durability="process") as ages:
        database: Any = ages._store._database  # type: ignore[attr-defined]
        gate = database._transaction.gate = WatchedLock()
        finish = waiting(transact)
        assert inside.wait(10)
        forking.set()
        in_forked_child(child)
        finish()
        assert ages.copy() == {"ann": 41, "cid": 42}


@needs_fork
def test_what_cannot_be_quiesced_for_a_fork_does_not_stop(tmp_path, monkeypatch):
    errors: list[Any] = []

    def fail() -> bool:
        raise OSError("no lock today")

    with (
        SQLiteQueue(tmp_path / "one", durability="process") as one,
        SQLiteQueue(tmp_path / "two", durability="process") as two,
    ):
        one.put(1)
        two.put(2)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "unraisablehook", errors.append)
            database: Any = one._store._database  # type: ignore[attr-defined]
            lock, connection = database._writer_lock, database._connection
            patch.setattr(lock, "acquire", fail)
            in_forked_child(lambda: two.put(3))
        assert [str(error.exc_value) for error in errors] == ["no lock today"]
        driver.close(connection)
        assert waiting(one.get)() == 1
        assert [two.get(), two.get()] == [2, 3]


@pytest.mark.long
def test_a_forgotten_file_queue_touches_no_other_file(tmp_path, monkeypatch):
    """The collector runs the destructors of a cycle in any order: that of a file, then that of its queue."""
    reported: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda report: reported.append(report.exc_value))
    with Queue(tmp_path / "q", durability="process", chunksize=4) as queue:
        for number in range(60):
            cycle: list[Any] = []
            for _ in range(3):
                other = Queue(tmp_path / "q", durability="process", chunksize=4)
                other.put(number)
                store: Any = other._core.store
                cycle += [store._lock._file, store._journal._lock._file, other]
            cycle.append(cycle)
            del cycle, other, store
            gc.collect()
            queue.put(number)
        assert queue.qsize() == 240
    assert not reported
