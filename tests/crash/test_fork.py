"""Forks at bad moments: while another thread is in a put or a sync, and with the consumer lock held."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable

import pytest

from persistcoll import LockedError, Queue, StoreReplacedError
from persistcoll.testing.faults import FaultyDisk
from tests.crash.accounts import drain, number_of, numbered

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork"),
    # Python 3.12 warns of forks with several threads, which these tests are about.
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]


def fork(child: Callable[[], object]) -> int:
    """Fork a child that makes the call and ends; return its pid."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        signal.alarm(30)  # a deadlock ends the child, and the test fails
        warnings.simplefilter("error")
        child()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def succeeded(pid: int) -> bool:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def opened(path, disk=None, **options) -> Queue:
    return Queue(path, serializer="raw", _disk=disk, **options)


@pytest.mark.parametrize(
    ("call", "durability"), [("write", "power"), ("write", "process"), ("sync", "power")]
)
def test_fork_while_another_thread_is_in_a_put(call, durability, tmp_path):
    """The thread holds its locks in the middle of the put, and the child has no such thread."""
    disk = FaultyDisk()
    with opened(tmp_path / "queue", disk, durability=durability) as queue:
        queue.put(numbered(1))
        inside, go_on = threading.Event(), threading.Event()

        def pause(*arguments: object) -> None:
            inside.set()
            assert go_on.wait(30)

        disk.on(call, pause)
        thread = threading.Thread(target=queue.put, args=(numbered(2),))
        thread.start()
        assert inside.wait(30)

        def child() -> None:
            # A write that hangs holds the producer lock in the parent, so no child could put then.
            assert [number_of(item) for item in queue.items()][:1] == [1] or call == "write"
            if call == "sync":
                queue.put(numbered(3))
                assert queue.qsize() == 3
            queue.close()

        if call == "write":
            # The child's first call waits for the parent's lock, so the parent continues meanwhile.
            pid = fork(child)
            go_on.set()
            assert succeeded(pid)
        else:
            assert succeeded(fork(child))
            go_on.set()
        thread.join(30)
        assert not thread.is_alive()
        queue.put(numbered(4))
        assert sorted(drain(queue)) == ([1, 2, 4] if call == "write" else [1, 2, 3, 4])


def test_fork_while_another_thread_is_in_a_get(tmp_path):
    disk = FaultyDisk()
    with opened(tmp_path / "queue", disk) as queue:
        queue.put_many([numbered(number) for number in range(1, 5)])
        queue.get()
        inside, go_on = threading.Event(), threading.Event()

        def pause(*arguments: object) -> None:
            inside.set()
            assert go_on.wait(30)

        disk.on("sync", pause, path="cursor")
        thread = threading.Thread(target=queue.task_done)
        thread.start()
        # The parent's thread is in task_done for an item of another consumer: any thread may call it.
        assert inside.wait(30)

        def child() -> None:
            queue.put(numbered(5))
            with pytest.raises(LockedError) as locked:
                queue.get(block=False)
            assert locked.value.pid == os.getppid()
            queue.close()

        assert succeeded(fork(child))
        go_on.set()
        thread.join(30)
        assert drain(queue) == [2, 3, 4, 5]


def test_fork_while_another_thread_waits_in_a_get(tmp_path):
    with opened(tmp_path / "queue") as queue:
        queue.put(numbered(1))
        got: list[int] = []
        started = threading.Event()

        def consume() -> None:
            for _ in range(3):
                started.set()
                got.append(number_of(queue.get(timeout=30)))

        thread = threading.Thread(target=consume)
        thread.start()
        assert started.wait(30)

        def child() -> None:
            queue.put_many([numbered(2), numbered(3)])
            queue.close()

        assert succeeded(fork(child))
        thread.join(30)
        assert got == [1, 2, 3]


def test_a_child_that_ends_closes_nothing_of_its_parent(tmp_path):
    with opened(tmp_path / "queue") as queue:
        queue.put_many([numbered(1), numbered(2)])
        queue.get()
        for end in (lambda: None, queue.close, queue.qsize, lambda: queue.put(numbered(3))):
            assert succeeded(fork(end))
        # The parent still has the consumer lock.
        with opened(tmp_path / "queue") as other, pytest.raises(LockedError):
            other.get(block=False)
        queue.task_done()
        assert drain(queue) == [2, 3]


def test_a_child_may_consume_when_its_parent_does_not(tmp_path):
    with opened(tmp_path / "queue") as queue:
        queue.put_many([numbered(1), numbered(2)])

        def child() -> None:
            assert queue.get(block=False) == numbered(1)
            queue.task_done()
            queue.close()

        assert succeeded(fork(child))
        assert drain(queue) == [2]


def test_what_a_parent_claimed_is_not_its_childs_to_acknowledge(tmp_path):
    with opened(tmp_path / "queue") as queue:
        queue.put_many([numbered(1), numbered(2)])
        queue.get()

        def child() -> None:
            with pytest.raises(ValueError, match="too many times"):
                queue.task_done()
            queue.close()

        assert succeeded(fork(child))
        queue.task_done()
        assert drain(queue) == [2]


def test_a_consumer_that_dies_frees_the_lock_though_its_child_lives(tmp_path):
    """The child closed its copies of the parent's descriptors when it began."""
    path = tmp_path / "queue"
    with opened(path) as queue:
        queue.put_many([numbered(1), numbered(2)])
    # Only the child writes into it and keeps it open.
    child_lives, to_child = os.pipe()
    release, hold = os.pipe()

    def consumer() -> None:
        mine = opened(path)
        mine.get()
        mine.task_done()

        def grandchild() -> None:
            os.write(to_child, b"x")
            os.read(release, 1)

        fork(grandchild)
        os.read(child_lives, 1)
        os.kill(os.getpid(), signal.SIGKILL)

    pid = fork(consumer)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    try:
        with opened(path) as queue:
            assert drain(queue) == [2]
    finally:
        os.write(hold, b"x")
        for fd in (child_lives, to_child, release, hold):
            os.close(fd)


def test_many_children_put_at_once(tmp_path):
    with opened(tmp_path / "queue", durability="process", chunksize=7) as queue:
        queue.put(numbered(1))

        def produce(child: int) -> Callable[[], None]:
            def run() -> None:
                for number in range(50):
                    queue.put(numbered(1000 * child + number))
                queue.close()

            return run

        pids = [fork(produce(child)) for child in range(1, 5)]
        ended_well = [succeeded(pid) for pid in pids]  # wait for each of them
        assert all(ended_well)
        delivered = drain(queue)
        assert len(delivered) == 201
        for child in range(1, 5):
            mine = [number for number in delivered if number // 1000 == child]
            assert mine == [1000 * child + number for number in range(50)]


def test_a_child_does_not_take_another_store_at_that_path_for_its_own(tmp_path):
    """Its items would be sealed for the former store, and no consumer could read them."""
    with opened(tmp_path / "queue") as queue:
        queue.put(numbered(1))
        (tmp_path / "queue").rename(tmp_path / "aside")
        opened(tmp_path / "queue").close()

        def child() -> None:
            with pytest.raises(StoreReplacedError):
                queue.put(numbered(2))
            queue.close()

        assert succeeded(fork(child))
