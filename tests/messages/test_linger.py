"""``get_many(n, linger=)``: a consumer that waits until a batch of messages is full."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from persistcoll import Empty, MessageQueue, ShutDown
from tests.messages.conftest import START, Clock, store_of
from tests.messages.waits import until_asleep
from tests.queues.waits import until, waiting

LONG = 1000.0
"""Seconds that no test waits."""


def lingering(
    queue: MessageQueue[Any], n: int, topic: Any = None, linger: float = LONG, **options: Any
) -> Any:
    """Start a ``get_many`` in a thread, and return when it has claimed the first and waits for the others."""
    get = waiting(lambda: queue.get_many(n, topic, linger=linger, **options))
    until(lambda: queue._store.stats().claimed and someone_lingers(queue))
    return get


def someone_lingers(queue: MessageQueue[Any]) -> bool:
    events = queue._core._available.items()
    return any(event._wakes for key, event in list(events) if type(key) is object)


def bodies(messages: list[Any]) -> list[Any]:
    return [message.body for message in messages]


def test_it_waits_until_the_batch_is_full(quiet):
    quiet.put("a")
    get = lingering(quiet, 3)
    quiet.put("b")
    assert not get.done()
    quiet.put("c")
    quiet.put("d")
    assert bodies(get()) == ["a", "b", "c"]
    assert store_of(quiet).attempts == 2


def test_it_waits_for_the_first_as_without(quiet):
    get = waiting(lambda: quiet.get_many(2, linger=LONG))
    until_asleep(quiet, 1)
    quiet.put_many(["a", "b"])
    assert bodies(get()) == ["a", "b"]
    with pytest.raises(Empty):
        quiet.get_many(2, block=False, linger=LONG)
    with pytest.raises(Empty):
        quiet.get_many(2, timeout=0.01, linger=LONG)


def test_a_batch_that_is_full_at_once_is_claimed_in_one_transaction(quiet):
    quiet.put_many(range(500))
    assert bodies(quiet.get_many(400, linger=LONG)) == [*range(400)]
    assert store_of(quiet).attempts == 1


def test_at_the_end_of_the_wait_it_returns_what_is_there(queue):
    queue.put("a")
    assert bodies(queue.get_many(5, linger=0.01)) == ["a"]
    queue.put("b")
    get = lingering(queue, 5, linger=1.0)
    queue.put("c")
    assert bodies(get()) == ["b", "c"]


def test_a_thousand_a_second_make_ten_batches_in_five_seconds(tmp_path, monkeypatch):
    """Counted and not timed: 5,000 messages that are put one by one are 10 batches of 500."""
    batches: list[list[Any]] = []
    with MessageQueue[int](tmp_path, durability="process", serializer="json") as queue:
        claim, attempts = queue._store.claim, []

        def counted(*arguments: Any, **options: Any) -> Any:
            attempts.append(arguments)
            return claim(*arguments, **options)

        def get() -> None:
            while sum(map(len, batches)) < 5000:
                got = queue.get_many(500, linger=LONG)
                batches.append(bodies(got))
                queue.ack_many(got)

        monkeypatch.setattr(queue._store, "claim", counted)
        consumer = threading.Thread(target=get)
        consumer.start()
        for number in range(5000):
            queue.put(number)
        consumer.join()
    assert [len(batch) for batch in batches] == [500] * 10
    assert [number for batch in batches for number in batch] == [*range(5000)]
    # Of each batch the first, the rest, and now and then a look that finds nothing.
    assert len(attempts) <= 40


def test_a_put_goes_to_a_waiting_get_and_not_only_to_one_that_lingers(quiet):
    quiet.put("a")
    many = lingering(quiet, 3)
    get = waiting(lambda: quiet.get().body)
    until_asleep(quiet, 1)
    quiet.put("b")
    assert get() == "b"
    quiet.put("c")
    quiet.put("d")
    assert bodies(many()) == ["a", "c", "d"]


def test_the_order_is_that_of_delivery(quiet):
    quiet.put("second")
    get = lingering(quiet, 4)
    quiet.put("first", priority=1)
    quiet.put("third")
    quiet.put("last", priority=-1)
    assert bodies(get()) == ["first", "second", "third", "last"]


def test_only_what_its_topics_deliver_fills_it(quiet):
    quiet.put_many("xyz", topic="other")
    quiet.put_many("xyz", topic="paused")
    quiet.pause("paused")
    quiet.put("a", topic="mine")
    get = lingering(quiet, 3, ["mine", "paused"])
    quiet.put("z", topic="other")
    quiet.put("b", topic="mine")
    assert not get.done()
    quiet.put("c", topic="mine")
    assert bodies(get()) == ["a", "b", "c"]
    assert quiet.qsize() == 7


def test_of_a_group_there_is_one(quiet):
    quiet.put_many("ab", group="g")
    get = lingering(quiet, 2)
    quiet.put("c")
    assert bodies(get()) == ["a", "c"]


@pytest.mark.parametrize("immediate", [False, True])
def test_a_shutdown_ends_the_wait(quiet, immediate):
    quiet.put("a")
    get = lingering(quiet, 3)
    quiet.shutdown(immediate)
    assert bodies(get()) == ["a"]
    with pytest.raises(ShutDown):
        quiet.get_many(3, linger=LONG)


def test_a_lease_of_which_a_tenth_has_passed_begins_again(queue, clock: Clock):
    queue.put("a")
    get = lingering(queue, 2, linger=0.5, lease=1.0)
    clock.advance(0.75)
    first = get()[0]
    assert first.leased_until == START + 1.75
    clock.advance(0.75)
    first.ack()


def test_a_message_whose_lease_is_over_is_claimed_again_or_not_returned(open_queue, clock: Clock):
    queue = open_queue(backoff=None, max_attempts=2)
    queue.put("a")
    get = lingering(queue, 3, linger=0.5, lease=1.0)
    clock.advance(1.0)
    queue.put("b")
    got = get()
    assert [(message.body, message.attempts) for message in got] == [("a", 2), ("b", 1)]
    queue.ack_many(got)
    with open_queue("dies", backoff=None, max_attempts=1) as dies:
        dies.put("a")
        get = lingering(dies, 3, linger=0.5, lease=1.0)
        clock.advance(1.0)
        dies.put("b")
        assert bodies(get()) == ["b"]
        assert dies.stats().dead == 1


def test_in_a_transaction_nothing_is_waited_for(queue):
    queue.put("a")
    with queue.transaction():
        assert bodies(queue.get_many(2, linger=LONG)) == ["a"]


def test_within_a_callers_transaction_nothing_is_waited_for(server_queue):
    from persistcoll.engine.memory.server import MemoryConnection

    server_queue.put("a")
    connection = MemoryConnection(server_queue._store._state)
    connection.begin()
    assert bodies(server_queue.get_many(2, linger=LONG, connection=connection)) == ["a"]
    connection.commit()


def test_what_is_claimed_is_ready_again_if_the_rest_cannot_be_claimed(queue, monkeypatch):
    queue.put("a")
    claim = queue._store.claim

    def claim_first(*arguments: Any, **options: Any) -> Any:
        if queue._store.stats().claimed:
            raise OSError("the disk is gone")
        return claim(*arguments, **options)

    monkeypatch.setattr(queue._store, "claim", claim_first)
    with pytest.raises(OSError, match="the disk is gone"):
        queue.get_many(2, linger=0.01)
    monkeypatch.undo()
    assert (queue.qsize(), queue.get().attempts) == (1, 1)


def test_no_event_count_is_left(queue):
    queue.put("a")
    queue.get_many(2, linger=0.01)
    assert not queue._core._available


@pytest.mark.parametrize("linger", [-1, float("nan"), "1", None, True], ids=repr)
def test_a_linger_that_is_no_time_is_refused(queue, linger):
    queue.put("a")
    with pytest.raises((TypeError, ValueError), match="linger"):
        queue.get_many(2, linger=linger)
    assert queue.qsize() == 1


def test_in_a_database(tmp_path):
    """Two objects, as two processes have them, so that the one that waits has to look."""
    with MessageQueue[int](tmp_path, durability="process") as one, MessageQueue[int](tmp_path) as other:
        one.put_many(range(3), delay=0.05)
        one.put(3)
        assert bodies(other.get_many(4, linger=10)) == [0, 1, 2, 3]

        def put() -> None:
            for number in range(20):
                one.put(number)

        thread = threading.Thread(target=put)
        thread.start()
        batches = [bodies(other.get_many(10, linger=10)) for _ in range(2)]
        thread.join()
        assert batches == [[*range(10)], [*range(10, 20)]]
