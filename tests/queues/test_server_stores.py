"""Queue cores and their waits over a store as on a server: late ids, lost answers, callers' transactions."""

from __future__ import annotations

import pytest

from persistcoll import Empty
from persistcoll.engine.blocking import BlockingQueue
from persistcoll.engine.memory.server import MemoryConnection
from persistcoll.engine.memory.server_record_store import MemoryServerState, MemoryServerStore
from persistcoll.engine.queue_core import QueueCore
from persistcoll.engine.records import FIFO, ClaimPolicy
from persistcoll.testing.children import run_threads
from tests.queues.waits import until, waiting


def pair(record):
    return record.id, record.payload


@pytest.fixture
def state():
    return MemoryServerState(loss=0.2, seed=7)


def opened(state, autosave=False, maxsize=0, **policy):
    return BlockingQueue(QueueCore(MemoryServerStore(FIFO, ClaimPolicy(**policy), state), maxsize, autosave))


@pytest.mark.parametrize("autosave", [False, True])
def test_every_item_arrives_once_though_answers_are_lost(state, autosave):
    """Two processes, each with two producers and two consumers; a bound makes puts wait too."""
    queues = [opened(state, autosave, 5) for _ in range(2)]
    got: list[bytes] = []

    def produce(number):
        for index in range(20):
            queues[number % 2].put(b"%d %d" % (number, index), True, 60)

    def consume(number):
        while (item := queues[number % 2].get(pair, True, 60)) != b"end":
            got.append(item)
            queues[number % 2].task_done()
        queues[number % 2].task_done()

    def run(number):
        produce(number)
        if number == 0:
            until(lambda: len(got) == 80, 100)
            for _ in range(4):
                queues[0].put(b"end", True, 60)

    run_threads(*[lambda n=n: run(n) for n in range(4)], *[lambda n=n: consume(n) for n in range(4)])
    assert sorted(got) == sorted(b"%d %d" % (number, index) for number in range(4) for index in range(20))
    for queue in queues:
        queue.join()
        assert (queue.core.unfinished(), queue.core.store.stats().puts) == (0, 84)


def test_each_producers_items_arrive_in_its_order(state):
    one, two = opened(state), opened(state)
    for number in range(10):
        one.put(b"one %d" % number, False, None)
        two.put(b"two %d" % number, False, None)
    got = [one.get(pair, False, None) for _ in range(20)]
    for name in (b"one", b"two"):
        assert [item for item in got if item.startswith(name)] == [b"%s %d" % (name, n) for n in range(10)]


def test_a_waiter_is_woken_by_what_another_process_puts(state):
    waiter, other = opened(state), opened(state)
    finish = waiting(lambda: waiter.get(pair, True, 20))
    until(lambda: waiter.core.not_empty.listeners)
    id = other.put(b"1", False, None)
    assert finish() == b"1"
    finish = waiting(waiter.join)
    until(lambda: waiter.core.all_done.listeners)
    waiter.core.store.ack([id])
    finish()


def test_a_waiter_is_woken_by_the_end_of_a_lease_and_by_a_death(state):
    state.patience = 0.05
    waiter, other = opened(state, lease=0.05), opened(state)
    waiter.put(b"1", False, None)
    assert waiter.get(pair, False, None) == b"1"
    assert waiter.get(pair, True, 20) == b"1"
    waiter.task_done()
    waiter.put(b"2", False, None)
    assert other.get(pair, False, None) == b"2"
    finish = waiting(lambda: waiter.get(pair, True, 20))
    until(lambda: waiter.core.not_empty.listeners)
    state.silence(other.core.store._client)
    assert finish() == b"2"


@pytest.mark.parametrize("autosave", [False, True])
@pytest.mark.parametrize("commits", [False, True])
def test_a_joined_core_leaves_no_trace_in_its_core(state, autosave, commits):
    queue, connection = opened(state, autosave), MemoryConnection(state)
    core = queue.core
    for item in (b"1", b"2"):
        queue.put(item, False, None)
    connection.begin()
    joined = core.joined(connection)
    assert joined.try_get(pair, joined.in_flight.new_consumer()) == b"1"
    joined.try_put(b"3")
    assert (joined.qsize(), core.qsize(), core.unfinished()) == (2, 2, 2)
    (connection.commit if commits else connection.rollback)()
    assert core.unfinished() == 2
    with pytest.raises(ValueError, match="too many"):
        queue.task_done()
    left = [queue.get(pair, False, None) for _ in range(2)]
    assert left == ([b"2", b"3"] if commits else [b"1", b"2"])
    for _ in left:
        queue.task_done()
    queue.join()
    with pytest.raises(Empty):
        queue.get(pair, False, None)


def test_a_commit_wakes_waiters_though_the_joined_core_does_not(state):
    queue, connection = opened(state), MemoryConnection(state)
    finish = waiting(lambda: queue.get(pair, True, 20))
    until(lambda: queue.core.not_empty.listeners)
    connection.begin()
    events = queue.core.not_empty._count
    queue.core.joined(connection).try_put(b"1")
    assert queue.core.not_empty._count == events
    assert queue.core.qsize() == 0
    connection.commit()
    assert finish() == b"1"
