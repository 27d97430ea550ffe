"""What every queue does, on ``Queue``: API by API, each as a user meets it."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import itertools
import json
import os
import pickle
import queue as standard
import threading
import time
import warnings
from typing import Any

import pytest

import persistcoll.journal.journal
from persistcoll import (
    ClosedError,
    DecodeError,
    Empty,
    EncodeError,
    Full,
    LockedError,
    Queue,
    SerializerError,
    ShutDown,
    Stats,
)
from persistcoll.testing.children import in_forked_child, together

ITEMS: list[Any] = [None, 0, "", False, b"", [], 1.5, "text", {"a": [1, None]}, ("a", 1), float("inf")]


@pytest.fixture(params=[False, True], ids=["task_done", "autosave"])
def either(request, open_queue):
    return open_queue(autosave=request.param)


class Picky:
    """JSON, but what is in ``broken`` cannot be read."""

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


def waiting(call):
    """Start ``call`` in a thread, and return once it waits: a function that gives its result."""
    result: standard.SimpleQueue = standard.SimpleQueue()

    def run():
        try:
            result.put((call(), None))
        except BaseException as error:
            result.put((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def finish():
        value, error = result.get(timeout=10)
        thread.join(10)
        if error is not None:
            raise error
        return value

    finish.thread = thread  # type: ignore[attr-defined]
    finish.done = lambda: not result.empty()  # type: ignore[attr-defined]
    return finish


def until(fact, seconds=10.0):
    """Wait for ``fact()``."""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not fact():
        assert time.monotonic() < deadline, "it did not come true"
        pause.wait(0.001)


def someone_waits(queue):
    blocking = queue._blocking
    return any(signal.listeners for signal in (blocking._items, blocking._space, blocking._idle))


# put and get


def test_items_come_back_as_they_were_and_in_order(either):
    for item in ITEMS:
        assert either.put(item) is None
    assert either.qsize() == len(either) == either.size == len(ITEMS)
    assert list(either.items()) == ITEMS
    got = [either.get() for _ in ITEMS]
    assert got == ITEMS
    assert [type(item) for item in got] == [type(item) for item in ITEMS]
    assert either.empty()


def test_none_and_zero_can_be_waited_for(either):
    for item in (None, 0, ""):
        finish = waiting(lambda: either.get(timeout=10))
        until(lambda: someone_waits(either))
        either.put(item)
        assert finish() == item


def test_nowait_answers_at_once(either):
    with pytest.raises(Empty):
        either.get_nowait()
    with pytest.raises(Empty):
        either.get(False)
    with pytest.raises(Empty):
        either.get(block=False, timeout=60)
    either.maxsize = 1
    either.put_nowait(1)
    with pytest.raises(Full):
        either.put_nowait(2)
    with pytest.raises(Full):
        either.put(2, False)
    with pytest.raises(Full):
        either.put_many([2], block=False)
    assert list(either.items()) == [1]


@pytest.mark.parametrize("timeout", [-1, -0.001, float("-inf"), float("nan")])
def test_a_timeout_below_zero_is_refused(queue, timeout):
    calls = [
        lambda: queue.put(1, timeout=timeout),
        lambda: queue.put_many([1], timeout=timeout),
        lambda: queue.get(timeout=timeout),
        lambda: queue.get_many(1, timeout=timeout),
        lambda: queue.receive(timeout=timeout).__enter__(),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="timeout"):
            call()
    assert queue.qsize() == 0


@pytest.mark.parametrize("timeout", ["1", b"1", [], object(), 1j])
def test_a_timeout_that_is_no_number_is_refused(queue, timeout):
    for call in (lambda: queue.put(1, timeout=timeout), lambda: queue.get(timeout=timeout)):
        with pytest.raises(TypeError, match="timeout"):
            call()
    assert queue.qsize() == 0


def test_a_timeout_of_no_time_and_of_all_time(queue):
    with pytest.raises(Empty):
        queue.get(timeout=0)
    queue.put(1)
    assert queue.get(timeout=0) == 1
    finish = waiting(lambda: queue.get(timeout=float("inf")))
    until(lambda: someone_waits(queue))
    queue.put(2)
    assert finish() == 2


# several at once


def test_put_many_puts_all_in_order(either):
    either.put_many(iter(range(5)))
    either.put_many([])
    either.put_many(str(number) for number in range(2))
    assert [either.get() for _ in range(7)] == [0, 1, 2, 3, 4, "0", "1"]


def test_put_many_puts_all_or_none(open_queue):
    queue = open_queue(maxsize=3)
    queue.put(0)
    with pytest.raises(Full):
        queue.put_many([1, 2, 3][:3], block=False)
    with pytest.raises(Full):
        queue.put_many([1, 2, 3], timeout=0.01)
    with pytest.raises(EncodeError):
        queue.put_many([1, lambda: None])
    with pytest.raises(RuntimeError, match="of the caller"):
        queue.put_many(_one_and_an_error())
    assert list(queue.items()) == [0]
    queue.put_many([1, 2], block=False)
    assert list(queue.items()) == [0, 1, 2]
    with pytest.raises(ValueError, match="never fit"):
        queue.put_many(range(4))


def _one_and_an_error():
    yield 1
    raise RuntimeError("of the caller")


def test_put_many_waits_until_all_fit(open_queue):
    queue = open_queue(maxsize=3, autosave=True)
    queue.put_many([1, 2])
    finish = waiting(lambda: queue.put_many([3, 4, 5]))
    until(lambda: someone_waits(queue))
    assert queue.get() == 1
    assert list(queue.items()) == [2]
    assert queue.get() == 2
    finish()
    assert list(queue.items()) == [3, 4, 5]


def test_get_many_gets_one_to_n(either):
    either.put_many(range(5))
    assert either.get_many(2) == [0, 1]
    assert either.get_many(10) == [2, 3, 4]
    with pytest.raises(Empty):
        either.get_many(1, block=False)
    with pytest.raises(Empty):
        either.get_many(1, timeout=0.001)
    finish = waiting(lambda: either.get_many(3, timeout=10))
    until(lambda: someone_waits(either))
    either.put(5)
    assert finish() == [5]


@pytest.mark.parametrize(
    ("n", "error"), [(0, ValueError), (-1, ValueError), (1.0, TypeError), ("1", TypeError)]
)
def test_get_many_of_no_number(queue, n, error):
    queue.put(1)
    with pytest.raises(error):
        queue.get_many(n, block=False)
    assert queue.qsize() == 1


# maxsize


def test_maxsize_is_exact_and_can_be_set(open_queue):
    queue = open_queue(maxsize=2)
    assert queue.maxsize == 2
    queue.put(1)
    assert not queue.full()
    queue.put(2)
    assert queue.full()
    queue.maxsize = 3
    assert not queue.full()
    queue.put(3, block=False)
    with pytest.raises(Full):
        queue.put(4, timeout=0.001)
    queue.maxsize = 1
    assert queue.full()
    queue.maxsize = 0
    assert not queue.full()
    queue.put_many(range(100), block=False)
    assert queue.qsize() == 103


def test_what_is_taken_makes_room(open_queue):
    queue = open_queue(maxsize=2)
    queue.put_many([1, 2])
    queue.get()  # not acknowledged
    queue.put(3, block=False)
    with pytest.raises(Full):
        queue.put(4, block=False)
    with contextlib.suppress(RuntimeError), queue.receive() as item:
        assert item == 2
        queue.put(4, block=False)
        raise RuntimeError
    assert list(queue.items()) == [2, 3, 4]  # what was given back may exceed it; nothing is put meanwhile
    assert queue.full()
    queue.skip()
    with pytest.raises(Full):
        queue.put(5, block=False)


@pytest.mark.parametrize(("maxsize", "error"), [(-1, ValueError), (1.5, TypeError), ("1", TypeError)])
def test_maxsize_that_is_no_size(queue, tmp_path, maxsize, error):
    with pytest.raises(error, match="maxsize"):
        Queue(tmp_path / "new", maxsize)
    assert not (tmp_path / "new").exists()
    with pytest.raises(error, match="maxsize"):
        queue.maxsize = maxsize
    assert queue.maxsize == 0


@pytest.mark.parametrize("remove", ["get", "skip", "clear", "receive"])
def test_room_wakes_a_waiting_put(open_queue, remove):
    queue = open_queue(maxsize=1)
    queue.put(1)
    finish = waiting(lambda: queue.put(2, timeout=10))
    until(lambda: someone_waits(queue))
    if remove == "receive":
        with queue.receive() as item:
            assert item == 1
    else:
        getattr(queue, remove)()
    finish()
    assert list(queue.items()) == [2]


# receive


def test_receive_acknowledges_at_the_end(open_queue):
    queue = open_queue()
    queue.put_many([1, 2])
    with queue.receive() as item:
        assert item == 1
        assert (queue.qsize(), queue.stats().claimed, queue.stats().gets) == (1, 1, 0)
    assert (queue.qsize(), queue.stats().claimed, queue.stats().gets) == (1, 0, 1)
    with pytest.raises(ValueError, match="too many"):
        queue.task_done()
    queue.close()
    assert list(open_queue().items()) == [2]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_receive_gives_back_when_the_block_raises(either, error):
    either.put_many([1, 2, 3])

    def fail():
        with either.receive() as item:
            assert item == 1
            with either.receive() as second:
                assert second == 2
            raise error

    with pytest.raises(error):
        fail()
    assert list(either.items()) == [1, 3]
    assert either.stats().claimed == 0
    assert either.get() == 1


def test_receive_waits_as_get_does(either):
    with pytest.raises(Empty), either.receive(block=False):
        pass
    with pytest.raises(Empty), either.receive(timeout=0.001):
        pass

    def receive():
        with either.receive(timeout=10) as item:
            return item

    finish = waiting(receive)
    until(lambda: someone_waits(either))
    either.put(1)
    assert finish() == 1


def test_what_receive_gives_back_wakes_a_waiting_get(open_queue):
    queue = open_queue()
    queue.put(1)
    with contextlib.suppress(RuntimeError), queue.receive():
        finish = waiting(lambda: queue.get(timeout=10))
        until(lambda: someone_waits(queue))
        raise RuntimeError
    assert finish() == 1


# task_done and join


def test_task_done_too_often(either):
    with pytest.raises(ValueError, match="too many"):
        either.task_done()
    either.put(1)
    with pytest.raises(ValueError, match="too many"):
        either.task_done()
    either.get()
    either.task_done()
    with pytest.raises(ValueError, match="too many"):
        either.task_done()


def test_task_done_is_for_what_this_thread_got(open_queue):
    queue = open_queue()
    queue.put_many(range(6))
    assert queue.get_many(2) == [0, 1]
    got = waiting(lambda: (queue.get(), queue.get(), queue.task_done(), queue.task_done()))()
    assert got[:2] == (2, 3)
    assert queue.stats().claimed == 2
    queue.close()
    again = open_queue()
    assert list(again.items()) == [0, 1, 4, 5]


def test_task_done_falls_back_to_the_oldest(open_queue):
    queue = open_queue()
    queue.put_many(range(4))
    assert waiting(queue.get)() == 0
    assert waiting(queue.get)() == 1
    assert queue.get() == 2
    queue.task_done()  # mine
    assert [record.id for record in [*queue._blocking.store.records()]] == [4]
    queue.task_done()  # of the thread that ended first
    assert queue.stats().claimed == 1
    queue.close()
    assert list(open_queue().items()) == [1, 3]


def test_unacknowledged_items_come_again(open_queue):
    queue = open_queue()
    queue.put_many(range(4))
    assert [queue.get() for _ in range(3)] == [0, 1, 2]
    queue.task_done()
    queue.close()
    again = open_queue()
    assert [again.get() for _ in range(3)] == [1, 2, 3]


def test_autosave_acknowledges_at_get(open_queue):
    queue = open_queue(autosave=True)
    assert queue.autosave
    queue.put_many(range(4))
    assert [queue.get(), *queue.get_many(2)] == [0, 1, 2]
    queue.close()
    assert list(open_queue().items()) == [3]


def test_join_waits_for_the_last_task(either):
    either.join()
    either.put_many([1, 2])
    finish = waiting(either.join)
    until(lambda: someone_waits(either))
    either.get_many(2)
    either.task_done()
    assert not finish.done()
    either.task_done()
    finish()


def test_join_does_not_wait_for_what_was_removed(either):
    either.put_many([1, 2, 3])
    finish = waiting(either.join)
    until(lambda: someone_waits(either))
    either.skip()
    either.clear()
    finish()
    either.put(4)
    finish = waiting(either.join)
    until(lambda: someone_waits(either))
    with either.receive():
        pass
    finish()


# shutdown


def test_shutdown_wakes_everyone(open_queue):
    queue = open_queue(maxsize=1)
    getters = [waiting(queue.get) for _ in range(3)]
    until(lambda: queue._blocking._items.listeners == 3)
    queue.shutdown()
    for finish in getters:
        with pytest.raises(ShutDown):
            finish()
    assert queue.is_shutdown


def test_shutdown_wakes_a_waiting_put_and_deletes_nothing(open_queue):
    queue = open_queue(maxsize=1)
    queue.put(1)
    finish = waiting(lambda: queue.put(2))
    join = waiting(queue.join)
    until(lambda: queue._blocking._space.listeners and queue._blocking._idle.listeners)
    queue.shutdown(immediate=True)
    with pytest.raises(ShutDown):
        finish()
    join()
    assert (queue.qsize(), queue.empty(), queue.full()) == (0, True, False)
    for call in (queue.get, queue.get_nowait, lambda: queue.put(1), lambda: queue.get_many(1)):
        with pytest.raises(ShutDown):
            call()
    queue.close()
    again = open_queue()
    assert not again.is_shutdown
    assert again.get() == 1


def test_shutdown_is_the_standard_librarys_where_there_is_one():
    assert ShutDown is getattr(standard, "ShutDown", ShutDown)


# looking and removing


def test_peek_does_not_take(either):
    with pytest.raises(Empty):
        either.peek()
    either.put_many([None, 2])
    assert (either.peek(), either.peek(), either.qsize()) == (None, None, 2)
    either.get()
    assert either.peek() == 2
    with contextlib.suppress(RuntimeError), either.receive():
        with pytest.raises(Empty):
            either.peek()
        raise RuntimeError
    assert either.peek() == 2


def test_skip_removes_the_next_item_or_a_certain_one(open_queue):
    queue = open_queue()
    assert queue.skip() is None
    assert queue.skip(1) is None
    queue.put_many("abcde")
    assert queue.skip() == 1
    assert queue.skip(4) == 4
    assert queue.skip(4) is None
    assert queue.skip(1) is None
    assert queue.skip(99) is None
    assert queue.get() == "b"
    assert queue.skip(2) is None  # in a hand
    assert list(queue.items()) == ["c", "e"]
    queue.task_done()
    queue.close()
    again = open_queue()
    assert [again.get(), again.get()] == ["c", "e"]
    assert again.empty()


def test_clear_leaves_what_is_in_hands(open_queue):
    queue = open_queue()
    assert queue.clear() == 0
    queue.put_many(range(5))
    queue.get()
    assert queue.clear() == 4
    assert (queue.qsize(), queue.stats().claimed) == (0, 1)
    queue.put(5)
    queue.close()
    assert list(open_queue().items()) == [0, 5]


def test_items_takes_nothing_and_can_be_left(either):
    either.put_many(range(5))
    iterator = either.items()
    assert [next(iterator), next(iterator)] == [0, 1]
    del iterator
    assert list(either.items()) == list(range(5))
    either.get()
    assert list(either.items()) == [1, 2, 3, 4]


def test_a_queue_is_true_even_if_empty(queue):
    assert queue
    assert len(queue) == 0


def test_stats(open_queue):
    queue = open_queue()
    before = queue.stats()
    assert dataclasses.is_dataclass(before)
    assert isinstance(before, Stats)
    assert (before.ready, before.claimed, before.oldest_age, before.puts, before.gets) == (0, 0, None, 0, 0)
    queue.put_many(["x" * 1000] * 5)
    queue.get_many(2)
    queue.task_done()
    numbers = queue.stats()
    assert (numbers.ready, numbers.claimed, numbers.puts, numbers.gets) == (3, 1, 5, 1)
    assert (numbers.delayed, numbers.done, numbers.failed, numbers.dead) == (0, 0, 0, 0)
    assert numbers.bytes >= before.bytes + 5000
    assert numbers.oldest_age is not None
    assert 0 <= numbers.oldest_age < 60


# what cannot be read or written


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
    assert [record.payload for record in queue._blocking.store.records()] == [b"2", b"3"]


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


# closing


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


def test_close_wakes_who_waits(open_queue):
    queue = open_queue(maxsize=1)
    queue.put(1)
    finish = [waiting(lambda: queue.put(2)), waiting(queue.join)]
    until(lambda: queue._blocking._space.listeners and queue._blocking._idle.listeners)
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


# other processes and objects


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


def test_a_second_consumer_is_told_who_is_the_first(open_queue):
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
        other.get(block=False)  # the child took no lock away
    queue.task_done()
    assert [queue.get(timeout=10) for _ in range(3)] == [1, 2, "of the child"]


def test_a_forked_child_gets_where_nobody_does(open_queue):
    queue = open_queue()
    queue.put_many(range(3))

    def child():
        assert queue.get() == 0
        queue.task_done()
        assert queue.get() == 1  # and dies with it

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
        # Not one call on the queue here: its files' numbers are free.
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
        together(*[lambda name=name: produce(name) for name in range(producers)])
        for _ in range(2):
            queue.put(None, timeout=60)

    together(consume, consume, produce_all)
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
