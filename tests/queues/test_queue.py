"""What every queue does with items, on ``Queue``: put, get, receive, task_done, shutdown, inspection."""

from __future__ import annotations

import contextlib
import dataclasses
import queue as standard
from typing import Any

import pytest

from persistcoll import (
    Empty,
    EncodeError,
    Full,
    Queue,
    ShutDown,
    Stats,
)
from tests.queues.waits import someone_waits, until, waiting

ITEMS: list[Any] = [None, 0, "", False, b"", [], 1.5, "text", {"a": [1, None]}, ("a", 1), float("inf")]


# Put and get.


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


# Several at once.


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


# A maximal size.


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
    queue.get()  # not acked
    queue.put(3, block=False)
    with pytest.raises(Full):
        queue.put(4, block=False)
    with contextlib.suppress(RuntimeError), queue.receive() as item:
        assert item == 2
        queue.put(4, block=False)
        raise RuntimeError
    assert list(queue.items()) == [2, 3, 4]  # released items may exceed it, and no put succeeds meanwhile
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


# Receive.


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
def test_receive_releases_when_the_block_raises(either, error):
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


def test_what_receive_releases_wakes_a_waiting_get(open_queue):
    queue = open_queue()
    queue.put(1)
    with contextlib.suppress(RuntimeError), queue.receive():
        finish = waiting(lambda: queue.get(timeout=10))
        until(lambda: someone_waits(queue))
        raise RuntimeError
    assert finish() == 1


# task_done and join.


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
    queue.task_done()  # this thread's own
    assert [record.id for record in [*queue._core.store.records()]] == [4]
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


# Shutdown.


def test_shutdown_wakes_everyone(open_queue):
    queue = open_queue(maxsize=1)
    getters = [waiting(queue.get) for _ in range(3)]
    until(lambda: queue._core.not_empty.listeners == 3)
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
    until(lambda: queue._core.not_full.listeners and queue._core.all_done.listeners)
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


# Inspection and removal.


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
    assert queue.skip(2) is None  # it is in flight
    assert list(queue.items()) == ["c", "e"]
    queue.task_done()
    queue.close()
    again = open_queue()
    assert [again.get(), again.get()] == ["c", "e"]
    assert again.empty()


def test_clear_leaves_what_is_in_flight(open_queue):
    queue = open_queue()
    assert queue.clear() == 0
    queue.put_many(range(5))
    queue.get()
    assert queue.clear() == 4
    assert (queue.qsize(), queue.stats().claimed) == (0, 1)
    queue.put(5)
    queue.close()
    assert list(open_queue().items()) == [0, 5]


def test_clear_counts_what_was_cleared_before_once(open_queue):
    """After a released item there is one that is acked already."""
    queue = open_queue()
    queue.put_many("ab")
    queue.get()
    queue.clear()
    queue.close()
    queue = open_queue()
    with contextlib.suppress(KeyError), queue.receive():
        raise KeyError
    assert queue.clear() == 1
    stats = queue.stats()
    assert (stats.ready, stats.puts, stats.gets) == (0, 2, 2)


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
