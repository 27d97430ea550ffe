"""``put(delay=)`` of the ack queues."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from persistcoll import Empty, Full, ShutDown, SQLiteAckQueue, UniqueAckQ
from tests.queues.waits import until, waiting
from tests.sql_queues.conftest import NEWEST_FIRST


@pytest.fixture
def queue(open_queue, clock):
    open_queue.clock = clock
    return open_queue(SQLiteAckQueue)


def test_it_is_ready_when_its_time_has_come(open_queue, ack_kind, clock):
    open_queue.clock = clock
    queue = open_queue(ack_kind)
    assert [queue.put("a", delay=60), queue.put("b"), queue.put("c", delay=0.5)] == [1, 2, 3]
    assert (queue.qsize(), queue.stats().delayed, queue.active_size()) == (1, 2, 3)
    assert queue.get() == "b"
    for seconds in (0.4, 0.0):
        clock.now += seconds
        with pytest.raises(Empty):
            queue.get_nowait()
    clock.now += 0.1
    assert queue.get_nowait() == "c"
    clock.now += 59.5
    assert queue.get_nowait() == "a"
    assert queue.put("d") == 4
    assert queue.stats().puts == 4


def test_it_keeps_its_place(open_queue, ack_kind, clock):
    open_queue.clock = clock
    queue = open_queue(ack_kind)
    queue.put("a", delay=10)
    queue.put("b")
    queue.put("c")
    clock.now += 10
    assert queue.get_many(3) == ["c", "b", "a"] if ack_kind in NEWEST_FIRST else ["a", "b", "c"]


def test_several_have_one_delay(queue, clock):
    assert queue.put_many("abc", delay=5) == [1, 2, 3]
    assert queue.put_many("de") == [4, 5]
    assert queue.put_many([], delay=5) == []
    assert queue.qsize() == 2
    clock.now += 5
    assert queue.get_many(9) == ["a", "b", "c", "d", "e"]


def test_until_a_time_of_day(open_queue):
    queue = open_queue(SQLiteAckQueue)
    now = datetime.now(timezone.utc)
    queue.put("over", delay=now - timedelta(days=1))
    queue.put_many(["tomorrow"], delay=now + timedelta(days=1))
    queue.nack(queue.get(), delay=now + timedelta(days=1))
    assert (queue.qsize(), queue.stats().delayed) == (0, 2)


@pytest.mark.parametrize(
    ("delay", "error"),
    [
        (-1, ValueError),
        (float("nan"), ValueError),
        (float("inf"), ValueError),
        (1e11, ValueError),
        (datetime(2030, 1, 1), ValueError),  # noqa: DTZ001 - this is what is refused
        ("1", TypeError),
        (None, TypeError),
        (timedelta(seconds=1), TypeError),
    ],
    ids=repr,
)
def test_what_is_no_delay_is_refused(queue, delay, error):
    for call in (lambda: queue.put("a", delay=delay), lambda: queue.put_many(["a"], delay=delay)):
        with pytest.raises(error):
            call()
    assert queue.active_size() == 0


def test_a_delayed_item_needs_no_room(open_queue, clock):
    open_queue.clock = clock
    queue = open_queue(SQLiteAckQueue, maxsize=2)
    queue.put_many("ab")
    assert queue.put("c", False, delay=10) == 3
    assert queue.put_many("def", False, delay=10) == [4, 5, 6]
    with pytest.raises(Full):
        queue.put("g", False)
    clock.now += 10
    assert queue.qsize() == 6
    queue.get_many(5)
    queue.put("g", False)


def test_an_equal_one_is_refused_meanwhile(open_here):
    queue = open_here(UniqueAckQ)
    assert queue.put({"a": 1, "b": 2}, delay=60) == 1
    assert {"b": 2, "a": 1} in queue
    assert queue.put({"b": 2, "a": 1}) is None
    assert queue.put({"b": 2, "a": 1}, delay=60) is None
    assert queue.put_many([1, 1, 2], delay=60) == [2, None, 3]


def test_after_a_shutdown_it_is_refused(queue):
    queue.shutdown()
    with pytest.raises(ShutDown):
        queue.put("a", delay=1)


def test_a_consumer_that_waits_gets_it_in_time(open_queue):
    """This one waits: no other call happens, and the time alone makes it ready."""
    queue = open_queue(SQLiteAckQueue)
    finish = waiting(lambda: queue.get(timeout=10))
    until(lambda: queue._core.not_empty.listeners)
    queue.put("a", delay=0.05)
    assert finish() == "a"
    queue.put_many("bc", delay=0.05)
    assert queue.get_many(2, timeout=10, linger=10) == ["b", "c"]


def test_it_outlives_the_process(open_stored, clock):
    open_stored.clock = clock
    queue = open_stored(SQLiteAckQueue)
    queue.put("a", delay=60)
    queue.close()
    again = open_stored(SQLiteAckQueue)
    assert (again.qsize(), again.stats().delayed) == (0, 1)
    assert again.put("b") == 2
    clock.now += 60
    assert again.get_many(2) == ["a", "b"]


def test_a_transaction_puts_it_or_not(open_file):
    queue = open_file(SQLiteAckQueue)

    def block():
        with queue.transaction():
            queue.put("a", delay=60)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        block()
    assert queue.stats().delayed == 0
    with queue.transaction():
        queue.put("a", delay=60)
    assert queue.stats().delayed == 1
