"""Several processes and one queue: each item once, in order, within bounds, and waiting processes wake up."""

from __future__ import annotations

import contextlib
import os
import time

import pytest

from persistcoll import Full, LockedError, Queue
from tests.concurrency.workers import Remote, get_until_told, produce, wait_in

SOON = 0.5
"""Seconds. Milliseconds are promised, but the other process must first be scheduled on a core."""


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "q")


@pytest.fixture
def remote(path):
    """Start a process with the queue open, with these options, and at ``"process"`` by default."""
    started = []

    def start(queue=None, **options):
        started.append(Remote(queue or path, **({} if queue else {"durability": "process", **options})))
        return started[-1]

    yield start
    for each in started:
        each.close()


@pytest.fixture
def queue(path):
    with Queue(path, durability="process") as opened:
        yield opened


def until(fact):
    deadline = time.monotonic() + 30
    while not fact():
        assert time.monotonic() < deadline, "it did not come true"


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"chunksize": 64}], ids=["default", "chunksize-64"])
def test_every_item_once_and_in_order_per_producer(queue, remote, options, request):
    producers, each = 4, 50_000 if request.config.getoption("--stress") else 5_000
    remotes = [remote(**options) for _ in range(producers)]
    for name, other in enumerate(remotes):
        other.start(produce, name, each)
    for other in remotes:
        assert other.told() == "ready"
    for other in remotes:
        other.say()
    got: dict[int, list[int]] = {name: [] for name in range(producers)}
    for count in range(producers * each):
        name, number = queue.get(timeout=60)
        got[name].append(number)
        if count % 2:
            queue.task_done()
            queue.task_done()
    assert got == {name: list(range(each)) for name in range(producers)}
    assert queue.empty()
    queue.join()
    for other in remotes:
        other.result()
        assert other("qsize") == 0
    numbers = queue.stats()
    assert (numbers.puts, numbers.gets, numbers.claimed) == (producers * each, producers * each, 0)


@pytest.mark.slow
def test_maxsize_is_exact_across_processes(queue, remote):
    producers, each, maxsize = 3, 300, 5
    remotes = [remote(maxsize=maxsize) for _ in range(producers)]
    watcher = remote()
    for name, other in enumerate(remotes):
        other.start(produce, name, each)
        other.told()
    for other in remotes:
        other.say()
    seen = []
    for count in range(producers * each):
        seen.append(queue.qsize())
        if count % 10 == 0:
            seen.append(watcher("qsize"))
        queue.get(timeout=60)
        if count % 4 == 3:
            for _ in range(4):
                queue.task_done()
    seen += [other.result() for other in remotes]
    assert max(seen) <= maxsize
    assert min(seen) >= 0
    assert queue.qsize() == 0
    remotes[0]("put_many", list(range(maxsize)), False)
    for other in remotes:
        with pytest.raises(Full):
            other("put", "too much", False)
        assert other("full")
    assert queue.get() == 0  # claimed and not acked: there is room
    remotes[1]("put", "in its place", False)
    with pytest.raises(Full):
        remotes[2]("put", "too much", False)


def test_a_waiting_get_is_woken_by_another_process(queue, remote):
    other = remote()
    for item in ("first", None):
        other.start(wait_in, "get", True, 60)
        assert other.told() == "waits"
        began = time.monotonic()
        queue.put(item)
        got, when = other.result()
        assert got == item
        assert when - began < SOON


def test_a_waiting_put_is_woken_by_a_get_elsewhere(queue, remote):
    other = remote(maxsize=2)
    queue.put_many([1, 2])
    for number in (3, 4):
        other.start(wait_in, "put", number, True, 60)
        assert other.told() == "waits"
        assert other.quiet
        began = time.monotonic()
        queue.get()
        _, when = other.result()
        assert when - began < SOON
    assert list(queue.items()) == [3, 4]


def test_a_producer_joins_what_another_process_works_on(queue, remote):
    producer = remote()
    producer("put_many", [1, 2, 3])
    producer.start(wait_in, "join")
    assert producer.told() == "waits"
    for _ in range(3):
        queue.get()
    queue.task_done()
    queue.task_done()
    assert queue.stats().claimed == 1
    assert producer.quiet
    began = time.monotonic()
    queue.task_done()
    _, when = producer.result()
    assert when - began < SOON


def test_join_elsewhere_while_a_consumer_has_claimed_all(queue, remote):
    """A claimed item is not done, even for a process that cannot see the consumer's claims."""
    queue.put(1)
    queue.get()
    other = remote()
    assert other("qsize") == 0
    other.start(wait_in, "join")
    assert other.told() == "waits"
    queue.task_done()
    other.result()


def test_numbers_elsewhere_while_a_consumer_holds_items(queue, remote):
    other = remote()
    queue.put_many(range(6))

    def look():
        numbers = other("stats")
        return (other("qsize"), numbers.ready, numbers.claimed, numbers.gets, other("items"))

    assert look() == (6, 6, 0, 0, [0, 1, 2, 3, 4, 5])
    assert queue.get_many(3) == [0, 1, 2]
    assert look() == (3, 3, 3, 0, [3, 4, 5])
    assert other("peek") == 3
    queue.task_done()
    assert look() == (3, 3, 2, 1, [3, 4, 5])
    with queue.receive() as item:
        assert item == 3
        assert look() == (2, 2, 3, 1, [4, 5])
    assert look() == (2, 2, 2, 2, [4, 5])
    queue.task_done()
    queue.task_done()
    assert look() == (2, 2, 0, 4, [4, 5])
    queue.clear()
    assert look() == (0, 0, 0, 6, [])
    other("put", 6)
    assert look() == (1, 1, 0, 6, [6])


def test_items_elsewhere_are_exact_after_an_item_was_released(queue, remote):
    """The first of several claimed items returns to its place; the later ones stay claimed."""
    other = remote()
    queue.put_many(range(4))
    with contextlib.suppress(RuntimeError), queue.receive() as item:
        assert item == 0
        assert queue.get_many(2) == [1, 2]
        raise RuntimeError
    assert list(queue.items()) == [0, 3]
    assert (other("qsize"), other("items"), other("peek")) == (2, [0, 3], 0)


def test_a_second_consumer_is_told_the_first_ones_pid(queue, remote):
    other = remote()
    queue.put_many([1, 2, 3])
    assert other("get") == 1
    with pytest.raises(LockedError, match=str(other.pid)) as caught:
        queue.get()
    assert caught.value.pid == other.pid
    with pytest.raises(LockedError):
        queue.get(block=False)
    queue.put(4)
    other("task_done")
    other.close()
    assert [queue.get() for _ in range(3)] == [2, 3, 4]


def test_an_error_arrives_whole_from_another_process(queue, remote):
    other = remote()
    queue.put(1)
    queue.get()
    with pytest.raises(LockedError) as caught:
        other("get")
    assert caught.value.pid == os.getpid()


@pytest.mark.parametrize("chunksize", [None, 2])
def test_after_a_killed_consumer_another_gets_what_it_held_in_order(queue, remote, chunksize):
    queue.put_many(range(5))
    for item in range(5, 10):
        queue.put(item)
    dying = remote(chunksize=chunksize)
    dying.start(get_until_told, 3, 4)
    assert dying.told() == ([0, 1, 2], [3, 4, 5, 6])
    with pytest.raises(LockedError):
        queue.get()
    dying.kill()
    assert queue.qsize() == 7
    assert queue.stats().claimed == 0
    assert list(queue.items()) == [3, 4, 5, 6, 7, 8, 9]
    assert [queue.get() for _ in range(7)] == [3, 4, 5, 6, 7, 8, 9]
    for _ in range(7):
        queue.task_done()
    assert queue.stats().gets == 10


def test_a_producer_killed_while_it_waits_leaves_what_it_put(queue, remote):
    """The killed producer blocks no process, whatever it had locked."""
    queue.maxsize = 3
    for turn in range(3):
        dying = remote(maxsize=3)
        dying.start(produce, turn, 1000)
        dying.told()
        dying.say()
        until(queue.full)
        dying.kill()
        assert queue.qsize() == 3
        assert queue.get_many(5) == [(turn, 0), (turn, 1), (turn, 2)]
        for _ in range(3):
            queue.task_done()
    queue.put(1, timeout=10)
    assert queue.get(timeout=10) == 1


def test_a_queue_is_sent_to_a_process(path, remote):
    with Queue(path, maxsize=3, serializer="json", durability="process") as queue:
        other = remote(queue)
        assert other("maxsize") == 3
        other("put_many", [1, 2, 3])
        with pytest.raises(Full):
            other("put", 4, False)
        assert [queue.get() for _ in range(3)] == [1, 2, 3]


def test_consumers_take_turns(path, remote):
    """After a consumer closes, the next one goes on at the same place."""
    with Queue(path, durability="process", chunksize=3) as queue:
        queue.put_many(range(20))
    for turn in range(5):
        other = remote()
        assert [other("get"), other("get")] == [turn * 3, turn * 3 + 1]
        other("task_done")
        other("task_done")
        assert other("skip") == turn * 3 + 3
        other.close()
    with Queue(path) as queue:
        assert [queue.get() for _ in range(5)] == [15, 16, 17, 18, 19]
