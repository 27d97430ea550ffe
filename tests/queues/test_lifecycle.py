"""The lifecycle of a ``Queue``: items that cannot be read, closing, pickling, forking, many threads."""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import os
import pickle
import threading
import warnings

import pytest

import persistcoll.journal.journal
from persistcoll import (
    ClosedError,
    DecodeError,
    EncodeError,
    Full,
    LockedError,
    Queue,
    SerializerError,
)
from persistcoll.disk.calls import TRY_EXCLUSIVE, TRY_SHARED, Disk, OpenFile
from persistcoll.journal.holder_lock import HolderLock
from persistcoll.testing.children import in_forked_child, run_threads
from tests.queues.waits import someone_waits, until, waiting


class Picky:
    """JSON that cannot read the items in ``broken``."""

    name = "picky"
    executes_code = False

    def __init__(self, *broken):
        self.broken = list(broken)

    def dumps(self, item):
        return json.dumps(item).encode()

    def loads(self, data):
        item = json.loads(data)
        if item in self.broken:
            raise RuntimeError(f"cannot read {item}")
        return item


# Items that cannot be read or written.


def test_a_poison_item_stays_and_can_be_skipped(open_queue):
    serializer = Picky(1)
    queue = open_queue(serializer=serializer)
    queue.put_many(range(3))
    assert queue.get() == 0
    looks = [queue.get, queue.get_nowait, lambda: queue.get_many(2), queue.peek, lambda: list(queue.items())]
    for look in looks:
        with pytest.raises(DecodeError) as caught:
            look()
        assert caught.value.id == 2
        assert isinstance(caught.value.__cause__, RuntimeError)
        assert "cannot read 1" not in str(caught.value)
        assert (queue.qsize(), queue.stats().claimed) == (2, 1)
    with pytest.raises(DecodeError), queue.receive():
        pass
    queue.close()
    queue = open_queue(serializer=serializer)
    assert queue.get() == 0
    with pytest.raises(DecodeError) as caught:
        queue.get()
    assert queue.skip(caught.value.id) == 2
    assert queue.get() == 2
    serializer.broken.clear()
    assert queue.empty()


def test_get_many_stops_before_a_poison_item(open_queue):
    queue = open_queue(serializer=Picky(2))
    queue.put_many(range(4))
    assert queue.get_many(4) == [0, 1]
    with pytest.raises(DecodeError):
        queue.get_many(4)
    assert [record.payload for record in queue._core.store.records()] == [b"2", b"3"]


def test_items_that_cannot_be_serialized_leave_no_trace(either):
    either.put(1)
    for bad in (lambda: None, threading.Lock()):
        with pytest.raises(EncodeError):
            either.put(bad)
        with pytest.raises(EncodeError):
            either.put_many([2, bad])
    assert list(either.items()) == [1]
    assert either.stats().puts == 1


def test_an_item_that_is_too_large(either, monkeypatch):
    monkeypatch.setattr(persistcoll.journal.journal, "MAX_PAYLOAD", 1000)
    either.put(b"x" * 900)
    with pytest.raises(EncodeError, match="too large"):
        either.put(b"x" * 1001)
    with pytest.raises(EncodeError, match="too large"):
        either.put_many([b"x" * 400] * 3)
    assert list(either.items()) == [b"x" * 900]
    either.put_many([b"x" * 400] * 2)
    assert either.qsize() == 3


# Closing.


def test_close_is_idempotent_and_final(open_queue):
    queue = open_queue(autosave=False)
    queue.put_many([1, 2, 3])
    queue.get()
    iterator = queue.items()
    next(iterator)
    queue.close()
    queue.close()
    calls = {
        "put": lambda: queue.put(1),
        "put_nowait": lambda: queue.put_nowait(1),
        "put_many": lambda: queue.put_many([1]),
        "get": queue.get,
        "get_nowait": queue.get_nowait,
        "get_many": lambda: queue.get_many(1),
        "receive": lambda: queue.receive().__enter__(),
        "task_done": queue.task_done,
        "join": queue.join,
        "peek": queue.peek,
        "skip": queue.skip,
        "clear": queue.clear,
        "items": lambda: list(queue.items()),
        "qsize": queue.qsize,
        "size": lambda: queue.size,
        "len": lambda: len(queue),
        "empty": queue.empty,
        "stats": queue.stats,
    }
    for name, call in calls.items():
        with pytest.raises(ClosedError, match="closed"):
            print(name, call())  # shown where it did not raise
    assert "closed" in repr(queue)
    assert list(open_queue().items()) == [1, 2, 3]


def test_close_wakes_waiting_threads(open_queue):
    queue = open_queue(maxsize=1)
    queue.put(1)
    finish = [waiting(lambda: queue.put(2)), waiting(queue.join)]
    until(lambda: queue._core.not_full.listeners and queue._core.all_done.listeners)
    queue.close()
    for each in finish:
        with pytest.raises(ClosedError):
            each()
    queue = open_queue(name="another")
    each = waiting(queue.get)
    until(lambda: someone_waits(queue))
    queue.close()
    with pytest.raises(ClosedError):
        each()


def test_as_a_context_manager(tmp_path):
    with Queue(tmp_path / "q") as queue:
        queue.put(1)
    with pytest.raises(ClosedError):
        queue.put(2)
    with pytest.raises(RuntimeError), Queue(tmp_path / "q") as again:
        raise RuntimeError
    with pytest.raises(ClosedError):
        again.qsize()


def forget(last):
    last.clear()
    gc.collect()


def test_a_queue_that_was_not_closed_warns(tmp_path):
    queue = Queue(tmp_path / "q", durability="process")
    queue.put(1)
    last = [queue]
    del queue
    with pytest.warns(ResourceWarning, match="unclosed <Queue .*q'>"):
        forget(last)
    with Queue(tmp_path / "q") as again:
        assert again.get() == 1


def test_a_queue_that_could_not_be_opened_does_not_warn(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="not a directory"):
        Queue(tmp_path / "file")
    gc.collect()


# Other processes and objects.


def test_pickled_by_location(open_queue):
    queue = open_queue(maxsize=7, chunksize=3, autosave=True, serializer="json")
    queue.put({"a": 1})
    data = pickle.dumps(queue)
    assert len(data) < 1000
    with pickle.loads(data) as again:
        assert type(again) is Queue
        assert (again.path, again.maxsize, again.autosave) == (queue.path, 7, True)
        again.put({"b": 2})
        assert again.get() == {"a": 1}
        assert again.get() == {"b": 2}
    assert queue.empty()


def test_a_second_consumer_is_told_which_process_is_the_first(open_queue):
    first, second = open_queue(), open_queue()
    first.put_many([1, 2])
    second.put(3)
    assert first.get() == 1
    taking = [second.get, second.get_nowait, lambda: second.get_many(1), second.skip, second.clear]
    for call in taking:
        with pytest.raises(LockedError, match=str(os.getpid())) as caught:
            call()
        assert caught.value.pid == os.getpid()
    second.put(4)
    assert (second.qsize(), second.peek(), list(second.items())) == (3, 2, [2, 3, 4])
    first.task_done()
    first.close()
    assert [second.get() for _ in range(3)] == [2, 3, 4]


def test_a_process_of_the_same_number_in_another_container_is_another_process(open_queue, tmp_path):
    def child():
        # As the process of that number in another process namespace has left it.
        with open(tmp_path / "q" / "consumer.lock", "r+b") as file:
            file.write(os.getpid().to_bytes(8, "little"))
        with open_queue() as queue, pytest.raises(LockedError, match=f"^process {os.getpid()} ") as caught:
            queue.get(block=False)
        assert caught.value.pid == os.getpid()

    with open_queue() as queue:
        queue.put_many([1, 2])
        assert queue.get() == 1
        in_forked_child(child)
    with open_queue() as queue, open_queue() as other:
        assert queue.get() == 1
        with pytest.raises(LockedError, match=r"^this process .* already, through another object"):
            other.get(block=False)


def test_a_closed_lock_whose_descriptor_is_used_again_holds_nothing(tmp_path):
    def lock() -> HolderLock:
        file = OpenFile(Disk(), str(tmp_path / "lock"), os.O_RDWR | os.O_CREAT)
        return HolderLock(Disk(), file, str(tmp_path / "lock"), threading.RLock(), "consumes")

    first = lock()
    first.acquire()
    first.write_pid()
    first.close(clean=False)
    second = lock()
    assert second._fd == first._fd
    with open(tmp_path / "lock", "r+b") as file:  # as another process does
        Disk().flock(file.fileno(), TRY_EXCLUSIVE)
        with pytest.raises(LockedError, match=r"^process \d+ consumes"):
            second.acquire()
    second.close()


def test_a_forked_child_puts_and_does_not_get(open_queue):
    queue = open_queue(maxsize=10)
    queue.put_many(range(3))
    assert queue.get() == 0

    def child():
        queue.put("of the child")
        with pytest.raises(LockedError) as caught:
            queue.get(block=False)
        assert caught.value.pid == os.getppid()
        with pytest.raises(ValueError, match="too many"):
            queue.task_done()
        assert list(queue.items()) == [1, 2, "of the child"]
        queue.close()

    in_forked_child(child)
    with open_queue() as other, pytest.raises(LockedError):
        other.get(block=False)  # the child's end released no lock
    queue.task_done()
    assert [queue.get(timeout=10) for _ in range(3)] == [1, 2, "of the child"]


def test_a_forked_child_gets_where_no_process_consumes(open_queue):
    queue = open_queue()
    queue.put_many(range(3))

    def child():
        assert queue.get() == 0
        queue.task_done()
        assert queue.get() == 1  # the process dies with it

    in_forked_child(child)
    assert [queue.get(), queue.get()] == [1, 2]


def test_a_forked_child_leaves_others_descriptors_alone(open_queue):
    closed = open_queue(name="closed")
    closed.put(1)
    closed.get()
    closed.close()
    pipes = [os.pipe() for _ in range(6)]  # they get the numbers that the queue's files had

    def child():
        for reading, writing in pipes:
            os.write(writing, b"x")
            assert os.read(reading, 1) == b"x"
        with pytest.raises(ClosedError):
            closed.put(2)

    try:
        in_forked_child(child)
    finally:
        for descriptor in itertools.chain(*pipes):
            os.close(descriptor)


def test_a_grandchild_leaves_others_descriptors_alone(open_queue):
    queue = open_queue()
    queue.put(1)
    queue.get()

    def child():
        # No call on the queue here, because its files' numbers are free.
        pipes = [os.pipe() for _ in range(6)]

        def grandchild():
            for reading, writing in pipes:
                os.write(writing, b"x")
                assert os.read(reading, 1) == b"x"
            queue.put(2)

        in_forked_child(grandchild)
        queue.put(3)

    in_forked_child(child)
    queue.task_done()
    assert list(queue.items()) == [2, 3]


def test_a_child_forked_while_others_are_in_a_call(open_queue):
    queue = open_queue()
    stop = threading.Event()
    putting = waiting(lambda: [queue.put(number) for number in range(100_000) if not stop.is_set()])
    getter = waiting(lambda: [stop.is_set() or queue.get(timeout=10) for _ in range(100_000)])
    try:
        for number in range(10):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: fork() and threads
                in_forked_child(lambda: queue.put(("child", number)))  # noqa: B023
    finally:
        stop.set()
        queue.put(None)
        putting()
        getter()


def test_many_threads_share_a_queue(open_queue):
    queue = open_queue(maxsize=8)
    producers, each = 4, 100
    got = []

    def produce(name):
        for number in range(each):
            queue.put((name, number), timeout=60)

    def consume():
        while (item := queue.get(timeout=60)) is not None:
            got.append(item)
            queue.task_done()
        queue.task_done()

    def produce_all():
        run_threads(*[lambda name=name: produce(name) for name in range(producers)])
        for _ in range(2):
            queue.put(None, timeout=60)

    run_threads(consume, consume, produce_all)
    assert sorted(got) == [(name, number) for name in range(producers) for number in range(each)]
    assert queue.empty()
    queue.join()


def test_the_parameters_have_the_names_and_order_of_persist_queue(tmp_path):
    with Queue(str(tmp_path / "q"), 5, 100, str(tmp_path), pickle, True) as queue:
        assert (queue.maxsize, queue.autosave) == (5, True)
    with Queue(path=tmp_path / "q", maxsize=0, chunksize=100, tempdir=None, serializer=pickle) as queue:
        queue.put(item=1, block=True, timeout=None)
        assert queue.get(block=True, timeout=None) == 1


@pytest.mark.parametrize("name", ["pickle", "json", "msgpack", "cbor"])
def test_every_serializer(open_queue, name):
    with open_queue(serializer=name) as queue:
        queue.put({"a": [1, None, "b"]})
    with open_queue(serializer=name) as queue:
        assert queue.get() == {"a": [1, None, "b"]}
    with pytest.raises(SerializerError):
        open_queue(serializer="raw")


class Lingering(Disk):
    """A disk that keeps a shared lock until ``meanwhile`` is done or has to wait for the lock."""

    def __init__(self):
        super().__init__()
        flock, self.asked, self.done = self.flock, threading.Event(), threading.Event()

        def linger(descriptor, operation):
            flock(descriptor, operation)
            if operation == TRY_SHARED:
                self.asked.set()
                self.done.wait(0.3)

        self.flock = linger


def test_the_lock_is_not_lost_while_others_of_the_process_put(open_queue):
    """A put asks whether a process consumes, just when this process begins to consume."""
    disk = Lingering()
    queue = open_queue(maxsize=1, _disk=disk)
    queue.put(0)
    disk.asked.clear()

    def put():
        with contextlib.suppress(Full):
            queue.put(1, block=False)

    def get():
        assert disk.asked.wait(10)
        assert queue.get() == 0
        disk.done.set()

    run_threads(put, get)
    with open_queue() as other, pytest.raises(LockedError):
        other.get(block=False)
