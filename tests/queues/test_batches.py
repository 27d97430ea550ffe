"""Many items at a time: ``task_done(n)``, ``receive_many`` and ``get_many(linger=)``, in every queue."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from persistcoll import (
    Empty,
    FILOSQLiteAckQueue,
    FILOSQLiteQueue,
    PriorityQueue,
    Queue,
    ShutDown,
    SQLiteAckQueue,
    SQLiteQueue,
    StorageFullError,
    UniqueAckQ,
    UniqueQ,
)
from persistcoll.engine import event_count
from persistcoll.engine.blocking import BlockingQueue
from persistcoll.engine.memory.queue_store import MemoryQueueStore
from persistcoll.engine.queue_core import QueueCore
from persistcoll.testing.children import run_threads
from tests.queues.waits import until, waiting

KINDS: list[type[Any]] = [
    Queue, SQLiteQueue, FILOSQLiteQueue, UniqueQ, PriorityQueue,
    SQLiteAckQueue, FILOSQLiteAckQueue, UniqueAckQ,
]  # fmt: skip
OLDEST_FIRST: list[type[Any]] = [Queue, SQLiteQueue, SQLiteAckQueue]
Opener = Callable[..., Any]


@pytest.fixture
def opened(tmp_path) -> Iterator[Opener]:
    """Open queues whose items ``task_done`` acks, or ``get`` with ``at_once``."""
    queues: list[Any] = []

    def make(kind: type[Any], *, at_once: bool = False, **options: Any) -> Any:
        if not issubclass(kind, SQLiteAckQueue):
            options["autosave" if kind is Queue else "auto_commit"] = at_once
        queues.append(kind(tmp_path / kind.__name__, **{"durability": "process", **options}))
        return queues[-1]

    yield make
    for queue in queues:
        queue.close()


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def queue(request, opened) -> Any:
    return opened(request.param)


@pytest.fixture
def no_polling(monkeypatch):
    """Turn polling off, so that only a wake-up helps."""
    monkeypatch.setattr(event_count, "MIN_POLL_INTERVAL", 30.0)
    for kind in KINDS:
        if kind is not Queue:
            monkeypatch.setattr("persistcoll.sqlite.record_store.SQLiteRecordStore.max_poll_interval", 30.0)
    monkeypatch.setattr("persistcoll.journal.queue_store.JournalQueueStore.max_poll_interval", 30.0)


def pair(record):
    return record.id, record.payload


def left(queue: Any) -> list[Any]:
    """Close the queue, open it again, and return what is ready by then, oldest first."""
    queue.close()
    again = type(queue)(queue.path)
    try:
        return list(again.items())
    finally:
        again.close()


# task_done(n).


@pytest.mark.parametrize("kind", OLDEST_FIRST)
def test_so_many_of_the_oldest_are_done(opened, kind):
    queue = opened(kind)
    queue.put_many(range(10))
    queue.get_many(6)
    queue.task_done(4)
    assert (queue.qsize(), queue.unfinished_tasks) == (4, 6)
    queue.task_done()
    queue.task_done(1)
    queue.get()
    queue.get()
    queue.task_done(2)
    assert left(queue) == [8, 9]


def test_one_too_many_is_an_error_and_none_is_done(queue):
    queue.put_many(range(5))
    queue.get_many(3)
    for _ in range(2):
        with pytest.raises(ValueError, match="too many"):
            queue.task_done(4)
        assert queue.unfinished_tasks == 5
    queue.task_done(2)
    with pytest.raises(ValueError, match="too many"):
        queue.task_done(2)
    queue.task_done(1)
    assert queue.unfinished_tasks == 2
    with pytest.raises(ValueError, match="too many"):
        queue.task_done(1)
    assert len(left(queue)) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_what_get_has_acked_is_counted(opened, kind):
    queue = opened(kind, at_once=True)
    queue.put_many(range(5))
    queue.get_many(4)
    with pytest.raises(ValueError, match="too many"):
        queue.task_done(5)
    queue.task_done(3)
    finish = waiting(queue.join)
    queue.get()
    queue.task_done(2)
    finish()


@pytest.mark.parametrize(
    ("n", "error"), [(0, ValueError), (-1, ValueError), (None, TypeError), (True, TypeError)]
)
def test_a_number_below_one_is_refused(queue, n, error):
    queue.put("a")
    for call in (queue.task_done, queue.get_many, queue.receive_many):
        with pytest.raises(error):
            call(n)
    for call in (queue.get_many, queue.receive_many):
        with pytest.raises(ValueError, match="linger"):
            call(1, linger=-1)
    assert queue.get() == "a"


def test_own_items_come_first_and_then_those_of_other_threads(queue):
    """As with so many calls of ``task_done``."""
    queue.put_many(range(6))
    assert len(waiting(lambda: queue.get_many(3))()) == 3
    queue.get_many(2)
    for count in (6, 100):
        with pytest.raises(ValueError, match="too many"):
            queue.task_done(count)
    own = queue._blocking.consumer.own.claims
    assert len(own) == 2
    queue.task_done(4)
    assert (queue.unfinished_tasks, len(own)) == (2, 0)
    queue.task_done(1)
    queue.get()
    queue.task_done(1)
    queue.join()


def test_threads_that_finish_each_others_items_finish_each_once(opened):
    queue = opened(SQLiteQueue)
    queue.put_many(range(120))
    for _ in range(6):
        waiting(lambda: queue.get_many(20))()
    run_threads(*[lambda: [queue.task_done(3) for _ in range(10)]] * 4)
    queue.join()
    with pytest.raises(ValueError, match="too many"):
        queue.task_done()
    assert left(queue) == []


def test_where_the_disk_is_full_none_is_done(queue, monkeypatch):
    queue.put_many(range(4))
    queue.get_many(4)
    with monkeypatch.context() as patch:

        def fail(*arguments):
            raise StorageFullError("no room")

        patch.setattr(queue._core, "_ack", fail)
        with pytest.raises(StorageFullError):
            queue.task_done(3)
    assert queue.unfinished_tasks == 4
    queue.task_done(4)
    assert left(queue) == []


@pytest.mark.parametrize("kind", [SQLiteQueue, SQLiteAckQueue])
def test_a_rollback_leaves_all_of_them_unfinished_and_in_order(opened, kind):
    queue = opened(kind)
    queue.put_many(range(6))
    queue.get_many(4)
    claims = queue._blocking.consumer.own.claims
    before = [claims[0], len(claims)]

    def block():
        with queue.transaction():
            queue.task_done(3)
            queue.task_done(1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        block()
    assert [claims[0], len(claims)] == before
    queue.task_done(2)
    assert left(queue) == [2, 3, 4, 5]


@pytest.mark.parametrize("at_once", [False, True])
def test_a_commit_counts_all_of_them(opened, at_once):
    queue = opened(SQLiteQueue, at_once=at_once)
    queue.put_many(range(6))
    queue.get_many(4)
    with queue.transaction():
        queue.task_done(3)
        with pytest.raises(ValueError, match="too many"):
            queue.task_done(2)
        queue.task_done(1)
    assert queue.unfinished_tasks == 2
    with pytest.raises(ValueError, match="too many"):
        queue.task_done(1)


# receive_many().


def test_the_end_of_the_block_acks_all(queue):
    queue.put_many(range(10))
    with queue.receive_many(4) as items:
        assert len(items) == 4
        assert queue.unfinished_tasks == 10
        with pytest.raises(ValueError, match="too many"):
            queue.task_done()
    assert (queue.qsize(), queue.unfinished_tasks) == (6, 6)
    with queue.receive_many(100) as more:
        assert len(more) == 6
    assert sorted(items + more) == list(range(10))
    assert left(queue) == []


def test_a_block_that_raises_has_all_of_them_back_in_their_places(queue):
    queue.put_many(range(8))
    queue.get()
    before = list(queue.items())
    with pytest.raises(ZeroDivisionError), queue.receive_many(5) as items:
        raise ZeroDivisionError
    assert list(queue.items()) == before
    with queue.receive_many(5) as again:
        assert again == items
    assert (queue.qsize(), queue.unfinished_tasks) == (2, 3)


def test_without_an_item_it_raises_and_waits_as_get_does(queue):
    for arguments in ((3, False), (3, True, 0.01)):
        with pytest.raises(Empty):
            queue.receive_many(*arguments).__enter__()

    def receive():
        with queue.receive_many(3) as items:
            return items

    finish = waiting(receive)
    until(lambda: queue._core.not_empty.listeners)
    queue.put("a")
    assert finish() == ["a"]
    queue.shutdown()
    with pytest.raises(ShutDown):
        receive()


@pytest.mark.parametrize("kind", KINDS)
def test_items_that_get_would_have_acked_come_back_too(opened, kind):
    queue = opened(kind, at_once=True)
    queue.put_many(range(4))
    with pytest.raises(ZeroDivisionError), queue.receive_many(3):
        raise ZeroDivisionError
    assert queue.qsize() == 4
    with queue.receive_many(4):
        pass
    queue.join()


def test_several_threads_receive_each_item_once(queue):
    queue.put_many(range(60))
    got: list[int] = []

    def receive():
        for _ in range(3):
            with queue.receive_many(5) as items:
                got.extend(items)

    run_threads(*[receive] * 4)
    got += [queue.get() for _ in range(60 - len(got))]
    assert sorted(got) == list(range(60))


def test_what_was_got_in_a_transaction_goes_with_it(opened):
    queue = opened(SQLiteQueue)
    queue.put_many("abc")
    with pytest.raises(ZeroDivisionError), queue.transaction(), queue.receive_many(2):
        raise ZeroDivisionError
    assert list(queue.items()) == ["a", "b", "c"]
    with queue.transaction(), queue.receive_many(2) as items:
        assert items == ["a", "b"]
    assert left(queue) == ["c"]


# get_many(linger=). None of these tests waits for the time that it names, unless it says so.

LONG = 600.0


@pytest.mark.parametrize("receives", [False, True], ids=["get_many", "receive_many"])
@pytest.mark.parametrize("kind", OLDEST_FIRST)
def test_a_steady_trickle_makes_few_and_full_batches(opened, no_polling, kind, receives):
    """5,000 records, one after the other: at 1,000 a second, 10 batches of 500 in 5 seconds."""
    queue, total, batches = opened(kind), 5000, list[list[int]]()

    def consume():
        while sum(map(len, batches)) < total:
            if receives:
                with queue.receive_many(500, linger=LONG) as items:
                    batches.append(items)
            else:
                batches.append(queue.get_many(500, linger=LONG))
                queue.task_done(len(batches[-1]))

    finish = waiting(consume)
    for number in range(total):
        queue.put(number)
    finish()
    assert [len(batch) for batch in batches] == [500] * 10
    assert [item for batch in batches for item in batch] == list(range(total))
    assert left(queue) == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("at_once", [False, True])
def test_the_first_item_is_waited_for_and_then_the_others(opened, no_polling, kind, at_once):
    queue = opened(kind, at_once=at_once)
    finish = waiting(lambda: queue.get_many(3, linger=LONG))
    until(lambda: queue._core.any_put.listeners)
    for number in range(3):
        assert not finish.done()
        queue.put(number)
    assert sorted(finish()) == [0, 1, 2]
    queue.task_done(3)
    queue.join()


def test_when_the_time_is_over_what_is_there_is_the_batch(queue):
    """This one waits."""
    queue.put_many(range(3))
    assert len(queue.get_many(10, linger=0.02)) == 3
    with pytest.raises(Empty):
        queue.get_many(10, timeout=0.01, linger=LONG)
    with pytest.raises(Empty):
        queue.get_many(10, block=False, linger=LONG)
    queue.put("a")
    assert queue.get_many(10, block=False, linger=0.01) == ["a"]


def test_what_is_ready_at_once_is_not_waited_for(queue):
    queue.put_many(range(5))
    assert len(queue.get_many(5, linger=LONG)) == 5
    queue.put_many(range(5, 12))
    assert len(queue.get_many(5, linger=LONG)) == 5


def test_other_consumers_get_items_meanwhile(queue, no_polling):
    """Nothing is claimed before its time, and no wake-up is lost on a thread that waits for more."""
    many = waiting(lambda: queue.get_many(3, linger=LONG))
    until(lambda: queue._core.any_put.listeners)
    one = waiting(queue.get)
    until(lambda: queue._core.not_empty._wakes)
    queue.put("a")
    assert one() == "a"
    for item in "bc":
        queue.put(item)
    assert queue.get_nowait() in "bc"
    assert not many.done()
    for item in "de":
        queue.put(item)
    assert len(many()) == 3


def test_two_that_wait_for_batches_get_one_each(queue, no_polling):
    both = [waiting(lambda: queue.get_many(4, linger=LONG)) for _ in range(2)]
    until(lambda: len(queue._core.any_put._wakes) == 2)
    queue.put_many(range(4))
    until(lambda: any(each.done() for each in both))
    queue.put_many(range(4, 8))
    assert sorted(both[0]() + both[1]()) == list(range(8))


def test_a_full_queue_has_no_more_to_wait_for(opened):
    for kind in KINDS:
        queue = opened(kind, maxsize=3)
        many = waiting(lambda queue=queue: queue.get_many(10, linger=LONG))
        for item in "abc":
            queue.put(item)
        assert sorted(many()) == ["a", "b", "c"]


def test_a_shutdown_ends_the_wait(queue):
    many = waiting(lambda: queue.get_many(3, linger=LONG))
    until(lambda: queue._core.any_put.listeners)
    queue.put("a")
    queue.shutdown()
    assert many() == ["a"]
    with pytest.raises(ShutDown):
        queue.get_many(3, linger=LONG)
    queue.shutdown(immediate=True)
    with pytest.raises(ShutDown):
        queue.get_many(3, False, linger=LONG)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_within_a_transaction_nothing_is_waited_for(opened, kind):
    queue = opened(kind)
    queue.put_many("ab")
    with queue.transaction():
        assert sorted(queue.get_many(3, linger=LONG)) == ["a", "b"]
        with pytest.raises(Empty):
            queue.get_many(3, linger=LONG)


@pytest.mark.parametrize("autosave", [False, True])
def test_another_consumer_that_was_faster(autosave):
    """What was ready is gone when it is to be claimed: the thread waits for the next first item."""
    store = MemoryQueueStore()
    blocking = BlockingQueue(QueueCore(store, 0, autosave))
    name = "pop_many" if autosave else "claim_many"
    original, calls = getattr(store, name), []

    def robbed(*arguments: Any, **options: Any) -> Any:
        calls.append(store.count())
        if len(calls) == 1:
            store.clear()
        return original(*arguments, **options)

    setattr(store, name, robbed)
    store.append_many([b"1", b"2"])
    many = waiting(lambda: blocking.get_many(2, pair, True, None, LONG))
    until(lambda: calls)
    blocking.put_many([b"3", b"4"], False, None)
    assert many() == [b"3", b"4"]
    assert calls == [2, 2]


def test_an_interrupt_while_others_are_waited_for_leaves_all_ready(opened, monkeypatch):
    """Nothing was claimed, so nothing can be lost, not even where ``get`` acks."""
    for at_once in (False, True):
        queue = opened(SQLiteQueue, at_once=at_once)
        queue.put_many("ab") if not at_once else None
        with monkeypatch.context() as patch:

            def interrupt(*arguments: object) -> None:
                raise KeyboardInterrupt

            patch.setattr(event_count.ThreadWaiter, "wait", interrupt)
            with pytest.raises(KeyboardInterrupt):
                queue.get_many(3, linger=LONG)
        assert list(queue.items()) == ["a", "b"]
        queue.close()


def test_lingering_threads_leave_no_listener_behind(queue):
    queue.put("a")
    queue.get_many(2, linger=0.01)
    with pytest.raises(Empty):
        queue.get_many(2, timeout=0.01, linger=0.01)
    core = queue._core
    assert (core.any_put.listeners, core.not_empty.listeners) == (0, 0)
    assert threading.active_count() == 1
