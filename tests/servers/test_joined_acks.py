"""Ack queues on servers in a caller's transaction: what is claimed and settled in it, and its rollback."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest

from persistcoll import (
    Empty,
    LockedError,
    NotClaimedError,
    SQLiteAckQueue,
    StaleClaimError,
)
from persistcoll.queues import deliveries
from tests.servers.places import CallerConnection


@pytest.fixture
def caller(caller):
    """Return the driver's own connection."""
    return caller.connection


@pytest.fixture
def queue(open_queue):
    return open_queue("AckQueue")


def counts(queue: Any) -> tuple[int, int, int, int]:
    """Return how many items are ready, claimed, acked and set aside."""
    stats = queue.stats()
    return stats.ready, stats.claimed, stats.done, stats.failed


VERBS = {
    "ack": lambda queue, item, **options: queue.ack(item, **options),
    "ack_by_id": lambda queue, item, **options: queue.ack(id=1, **options),
    "ack_many": lambda queue, item, **options: queue.ack_many([item], **options)[0],
    "ack_many_by_id": lambda queue, item, **options: queue.ack_many(ids=[1], **options)[0],
    "ack_failed": lambda queue, item, **options: queue.ack_failed(item, reason="no", **options),
    "nack": lambda queue, item, **options: queue.nack(item, **options),
    "nack_to_back": lambda queue, item, **options: queue.nack(item, to_back=True, **options),
}
SETTLED = {
    "ack": (0, 0, 1, 0),
    "ack_by_id": (0, 0, 1, 0),
    "ack_many": (0, 0, 1, 0),
    "ack_many_by_id": (0, 0, 1, 0),
    "ack_failed": (0, 0, 0, 1),
    "nack": (1, 0, 0, 0),
    "nack_to_back": (1, 0, 0, 0),
}


@pytest.mark.parametrize("verb", VERBS)
def test_what_settles_an_item_is_a_part_of_the_callers_transaction(queue, open_queue, caller, verb):
    settle, other = VERBS[verb], open_queue("AckQueue", timeout=9.0)
    queue.put("an item")
    item = queue.get()
    for _ in range(2):  # What is rolled back can be settled again, and rolled back again.
        assert settle(queue, item, connection=caller) is not None
        assert counts(queue) == counts(other) == (0, 1, 0, 0)
        assert settle(queue, item, connection=caller) is None  # In this transaction it is settled.
        caller.rollback()
        assert counts(queue) == (0, 1, 0, 0)
    settle(queue, item, connection=caller)
    caller.commit()
    assert counts(queue) == counts(other) == SETTLED[verb]
    assert settle(queue, item, connection=caller) is None
    caller.rollback()
    assert settle(queue, item) is None
    assert counts(queue) == SETTLED[verb]
    with pytest.raises(ValueError, match="too many"):
        [queue.task_done() for _ in range(2)]  # one of them is for this item


@pytest.mark.parametrize("verb", VERBS)
def test_after_a_rollback_an_item_is_settled_without_the_connection(queue, caller, verb):
    queue.put("an item")
    item = queue.get()
    queue.ack(item, connection=caller)
    caller.rollback()
    assert VERBS[verb](queue, item) is not None
    assert counts(queue) == SETTLED[verb]


def test_a_strict_queue_refuses_what_a_transaction_has_settled(open_queue, caller):
    queue = open_queue("AckQueue", strict=True)
    queue.put_many("abc")
    first, second, third = queue.get_many(3)
    queue.ack(first, connection=caller)
    with pytest.raises(NotClaimedError):
        queue.ack_many([second, first], connection=caller)
    caller.commit()
    for connection in caller, None:
        with pytest.raises(NotClaimedError):
            queue.nack(first, connection=connection)
        caller.rollback()
    assert queue.ack_many([second, third]) == [2, 3]


def test_a_batch_is_acked_whole_or_not(open_queue, caller):
    queue, brief = open_queue("AckQueue"), open_queue("AckQueue", name="brief", lease=0.05)
    queue.put_many("abc")
    items = queue.get_many(3)
    queue.ack(items[1], connection=caller)
    assert queue.ack_many(items, connection=caller) == [1, None, 3]
    caller.rollback()
    assert counts(queue) == (0, 3, 0, 0)
    assert queue.ack_many(items, connection=caller) == [1, 2, 3]
    caller.commit()
    assert counts(queue) == (0, 0, 3, 0)

    brief.put_many("ab")
    late, item = brief.get_many(2)
    again = open_queue("AckQueue", name="brief", timeout=9.0).get(timeout=20)
    assert again == late
    with pytest.raises(StaleClaimError):
        brief.ack_many([late, item], connection=caller)
    caller.commit()
    assert brief.stats().done == 0


@pytest.mark.parametrize("raw", [False, True])
def test_an_item_is_got_and_settled_in_one_transaction(queue, caller, raw):
    queue.put_many("abc")
    for end, left in ((caller.rollback, (3, 0, 0, 0)), (caller.commit, (0, 1, 1, 1))):
        first = queue.get(raw=raw, connection=caller)
        second = queue.get_nowait(raw=raw, connection=caller)
        (third,) = queue.get_many(2, connection=caller)
        with pytest.raises(Empty):
            queue.get(connection=caller)
        assert counts(queue) == (3, 0, 0, 0)
        with pytest.raises(Empty):
            queue.get(block=False)  # others skip them
        assert queue.ack(first, connection=caller) == 1
        assert queue.ack_failed(second, connection=caller) == 2
        end()
        assert counts(queue) == left
    assert queue.ack(third) == 3
    with pytest.raises(ValueError, match="too many"):
        queue.task_done()


def test_a_claim_that_is_rolled_back_settles_nothing(queue, open_queue, caller):
    queue.put("an item")
    item = queue.get(connection=caller)
    caller.rollback()
    with pytest.raises(StaleClaimError):
        queue.ack(item)
    other = open_queue("AckQueue", timeout=9.0)
    other.ack(other.get(block=False))
    assert counts(queue) == (0, 0, 1, 0)


def test_the_constructor_takes_the_connection(queue, open_queue, caller):
    bound = open_queue("AckQueue", connection=caller)
    bound.put_many("abcd")
    item = bound.get()
    bound.ack(item)
    assert counts(bound) == (3, 0, 1, 0)
    assert counts(queue) == (0, 0, 0, 0)
    caller.commit()
    assert counts(queue) == (3, 0, 1, 0)

    def fail() -> None:
        with bound.receive() as item:
            assert item == "b"
            queue.put("never", connection=caller)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with bound.receive() as item:
        assert item == "b"
    assert bound.get() == "c"
    assert bound.get() == "d"
    with pytest.raises(Empty):
        bound.get()
    bound.task_done()
    bound.close()  # what it claimed and did not settle is ready again
    caller.commit()
    assert counts(queue) == (1, 0, 3, 0)
    assert queue.get(block=False) == "d"


@pytest.mark.parametrize("many", [False, True])
def test_a_block_is_a_part_of_the_callers_transaction(queue, caller, many):
    queue.put_many("abc")

    def receive(fails: bool = False) -> None:
        block = queue.receive_many(2, connection=caller) if many else queue.receive(connection=caller)
        with block as got:
            assert got == (["a", "b"] if many else "a")
            queue.put("never" if fails else "then", connection=caller)
            if fails:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        receive(True)
    receive()
    assert counts(queue) == (3, 0, 0, 0)
    caller.rollback()
    assert counts(queue) == (3, 0, 0, 0)
    receive()
    caller.commit()
    assert counts(queue) == ((2, 0, 2, 0) if many else (3, 0, 1, 0))
    assert queue.get_many(9)[-1] == "then"
    assert {each["attempts"] for each in queue.queue()} == {1}
    queue.clear()
    with pytest.raises(Empty), queue.receive(connection=caller):
        pass


def test_the_end_of_receive_and_task_done_know_what_was_settled_in_a_transaction(queue, caller):
    queue.put_many("abcd")
    with queue.receive() as item:
        queue.ack(item, connection=caller)
        caller.commit()
    with queue.receive() as item:
        queue.ack(item, connection=caller)
        caller.rollback()  # so the end of the block acks it

    def fail() -> None:
        with queue.receive() as item:
            queue.ack(item, connection=caller)
            caller.rollback()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert counts(queue) == (2, 0, 2, 0)
    queue.ack(queue.get(), connection=caller)
    caller.commit()
    queue.task_done()
    with pytest.raises(ValueError, match="too many"):
        queue.task_done()


def test_another_call_waits_for_the_transaction_that_has_settled_an_item(open_queue, caller):
    queue = open_queue("AckQueue", timeout=1.0)
    queue.put("an item")
    item = queue.get()
    queue.ack(item, connection=caller)
    with pytest.raises(LockedError):
        queue.nack(item)
    caller.rollback()
    assert queue.nack(item) == 1


class Item:
    """A thing that may be referenced weakly."""


def test_what_transactions_have_settled_is_forgotten(queue, caller, monkeypatch):
    monkeypatch.setattr(deliveries, "_MANY_WITHIN", 8)
    queue._deliveries.clear()  # which takes the number
    references = []
    for number in range(40):
        queue.put(Item())
        within = number % 3 == 0
        item = queue.get(connection=caller if within else None)
        references.append(weakref.ref(item))
        queue.ack(item, connection=caller)
        del item
        caller.rollback() if within and number % 2 else caller.commit()
        if within and number % 2:
            queue.ack(queue.get())
    gc.collect()
    assert sum(each() is not None for each in references) <= 9
    assert len(queue._store._held) <= 9
    assert counts(queue) == (0, 0, 40, 0)


def test_what_a_transaction_may_yet_commit_or_roll_back_is_not_forgotten(queue, caller, place, monkeypatch):
    monkeypatch.setattr(deliveries, "_MANY_WITHIN", 1)
    queue._deliveries.clear()
    queue.put_many("abcde")
    first = queue.get()
    another = CallerConnection(place).connection
    try:
        second = queue.get(connection=another)
        for _ in range(3):
            queue.ack(first, connection=caller)
            third = queue.get()
            queue.ack(third, connection=another)
            queue.nack(third, connection=another)  # it is settled in that transaction
            caller.rollback()
        another.commit()
    finally:
        another.close()
    assert queue.ack_many([first, second]) == [1, 2]


def test_the_claim_of_a_closed_queue_comes_back_when_it_is_opened(open_queue, caller):
    queue = open_queue("AckQueue")
    queue.put("an item")
    queue.get(connection=caller)
    queue.close()
    caller.commit()
    assert open_queue("AckQueue", timeout=9.0).get(block=False) == "an item"


def test_a_queue_in_a_file_joins_no_transactions(caller, tmp_path):
    with SQLiteAckQueue(tmp_path / "data.db") as queue:
        queue.put("an item")
        item = queue.get()
        for call in (
            lambda: queue.get(connection=caller),
            lambda: queue.get_many(2, connection=caller),
            lambda: queue.ack(item, connection=caller),
            lambda: queue.ack_many([item], connection=caller),
            lambda: queue.nack(item, connection=caller),
            lambda: queue.ack_failed(item, connection=caller),
        ):
            with pytest.raises(ValueError, match="joins no transactions"):
                call()
        assert queue.ack(item) == 1
