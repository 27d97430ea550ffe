"""``ack_many``: several items in one transaction, all or none; and batches of an ack queue."""

from __future__ import annotations

import copy
import json

import pytest

from persistcoll import (
    ClosedError,
    NotClaimedError,
    SQLiteAckQueue,
    StaleClaimError,
    StorageFullError,
    UniqueAckQ,
)
from persistcoll.queues.deliveries import Deliveries, Delivery
from tests.queues.waits import until, waiting

LEASE = 10.0


@pytest.fixture
def queue(open_queue):
    return open_queue(SQLiteAckQueue)


@pytest.fixture
def leased(open_queue, clock):
    open_queue.clock = clock
    return open_queue(SQLiteAckQueue, lease=LEASE, max_attempts=3)


def counts(queue):
    return queue.qsize(), queue.unack_count(), queue.acked_count(), queue.ack_failed_count()


def test_all_are_acked(open_queue, ack_kind):
    queue = open_queue(ack_kind)
    ids = queue.put_many(["a", "b", "c", "d"])
    items = queue.get_many(3)
    assert queue.ack_many(reversed(items)) == [ids["abcd".index(item)] for item in reversed(items)]
    assert counts(queue) == (1, 0, 3, 0)
    assert queue.ack_many([]) == []
    assert queue.ack_many(ids=()) == []


def test_by_identity_in_the_raw_form_and_by_id(queue):
    queue.put_many([[1], [1], [2], [3], [4], None])
    first, second = queue.get_many(2)
    raws = [queue.get(raw=True) for _ in range(3)]
    assert queue.get() is None
    forms = [second, first, raws[0], json.loads(json.dumps(raws[1])), copy.deepcopy(raws[2]), None]
    assert queue.ack_many(forms) == [2, 1, 3, 4, 5, 6]
    queue.put_many("abc")
    raw = queue.get(raw=True)
    queue.get_many(2)
    assert queue.ack_many(ids=[8, raw, 9]) == [8, 7, 9]
    assert counts(queue) == (0, 0, 9, 0)


def test_what_is_unknown_is_none_and_keeps_no_other_one(queue):
    queue.put_many(["a", "b", "c", "waits"])
    a, b, c = queue.get_many(3)
    queue.nack(c)
    assert queue.ack_many(["never", a, c, ["b"], b, a]) == [None, 1, None, None, 2, None]
    assert queue.ack_many(ids=[1, 3, 4, 99]) == [None] * 4
    assert counts(queue) == (2, 0, 2, 0)


def test_the_same_object_several_times(queue):
    queue.put_many([None, None, None])
    queue.get_many(3)
    assert queue.ack_many([None, None]) == [1, 2]
    assert queue.ack_many([None, None]) == [3, None]


def test_strict_refuses_all_if_one_is_unknown(open_queue):
    queue = open_queue(SQLiteAckQueue, strict=True)
    queue.put_many("abc")
    a, b, c = queue.get_many(3)
    for wrong in ([a, "never", b], [a, a], ["never"]):
        with pytest.raises(NotClaimedError, match="identity"):
            queue.ack_many(wrong)
    with pytest.raises(NotClaimedError, match="item 99") as refusal:
        queue.ack_many(ids=[1, 99])
    assert refusal.value.ids == (99,)
    assert counts(queue) == (0, 3, 0, 0)
    assert queue.ack_many([c, b]) == [3, 2]
    with pytest.raises(NotClaimedError, match="item 3"):
        queue.ack_many(ids=[1, 3])
    assert queue.ack(a) == 1


def test_lost_claims_are_not_searched_for_each_other(leased, clock, monkeypatch):
    comparisons = 0

    def compare(one, other):
        nonlocal comparisons
        comparisons += 1
        return one is other

    monkeypatch.setattr(Delivery, "__eq__", compare)
    monkeypatch.setattr(Delivery, "__hash__", object.__hash__)
    ids = leased.put_many(range(100))
    leased.get_many(100)
    clock.now += LEASE + 1
    with pytest.raises(StaleClaimError) as raised:
        leased.ack_many(ids=ids)
    assert sorted(raised.value.ids) == ids
    assert comparisons < 500  # a search for each one would make thousands


def test_one_lost_claim_and_none_is_acked(leased, clock):
    leased.put_many([["a"], ["b"], ["c"]])
    a, b, c = leased.get_many(3)
    clock.now += LEASE
    again = leased.get()
    leased.put(["d"])
    d = leased.get(id=4)
    for _ in range(2):
        with pytest.raises(StaleClaimError) as refusal:
            leased.ack_many([d, a])
        assert refusal.value.ids == (1,)
    with pytest.raises(StaleClaimError) as refusal:
        leased.ack_many([b, d, a, c])
    assert refusal.value.ids == (1,)  # that of "a" is known to be lost; the others are asked for
    with pytest.raises(StaleClaimError) as refusal:
        leased.ack_many([b, d, c])
    assert refusal.value.ids == (2, 3)
    assert counts(leased) == (2, 2, 0, 0)
    assert leased.ack_many([d, again]) == [4, 1]


def test_items_or_their_ids(queue):
    queue.put("a")
    item = queue.get()
    with pytest.raises(ValueError, match="or their ids"):
        queue.ack_many()
    with pytest.raises(ValueError, match="not both"):
        queue.ack_many([item], ids=[1])
    for wrong, error in (("1", TypeError), (None, TypeError), (0, ValueError), (True, TypeError)):
        with pytest.raises(error):
            queue.ack_many(ids=[1, wrong])
    assert queue.unack_count() == 1
    assert queue.ack_many([item]) == [1]


def test_where_the_disk_is_full_none_is_acked(queue, monkeypatch):
    queue.put_many("abc")
    items = queue.get_many(3)
    with monkeypatch.context() as patch:

        def fail(*arguments):
            raise StorageFullError("no room")

        patch.setattr(queue._store, "ack", fail)
        with pytest.raises(StorageFullError):
            queue.ack_many(items)
    assert counts(queue) == (0, 3, 0, 0)
    assert queue.ack_many(items) == [1, 2, 3]


def test_a_rollback_leaves_them_claimed(open_here):
    queue = open_here(SQLiteAckQueue)
    queue.put_many("abc")
    items = queue.get_many(3)

    def block():
        with queue.transaction():
            assert queue.ack_many(items[:2]) == [1, 2]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        block()
    assert counts(queue) == (0, 3, 0, 0)
    assert queue.ack_many(items) == [1, 2, 3]
    queue.task_done(3)


def test_one_that_another_thread_settles_at_the_same_time_is_none(queue, monkeypatch):
    """The thread has found all of them when the other thread settles one."""
    queue.put_many("abc")
    a, b, c = queue.get_many(3)
    settle = Deliveries.settle
    finish: list[None] = []

    def late(self, deliveries, verb, **options):
        if not finish:
            finish.append(None)
            claim = next(each for each in deliveries if each.item is b)
            waiting(lambda: self.ack([claim]))()
        return settle(self, deliveries, verb, **options)

    monkeypatch.setattr(Deliveries, "settle", late)
    assert queue.ack_many([a, b, c]) == [1, None, 3]
    assert counts(queue) == (0, 0, 3, 0)
    with pytest.raises(ValueError, match="too many"):
        [queue.task_done() for _ in range(4)]


def test_task_done_has_nothing_more_to_do(queue):
    queue.put_many("abcd")
    items = queue.get_many(4)
    queue.ack_many(items[1:3])
    queue.task_done(2)
    assert counts(queue) == (0, 0, 4, 0)
    queue.task_done(2)  # for the two that were acked
    with pytest.raises(ValueError, match="too many"):
        queue.task_done(1)


def test_after_close_it_is_closed(queue):
    queue.put("a")
    item = queue.get()
    queue.close()
    for arguments in ({"items": [item]}, {"ids": [1]}):
        with pytest.raises(ClosedError):
            queue.ack_many(**arguments)


# Batches whose items the consumer settles one by one, or whose claims are lost.


def test_what_the_block_settles_itself_is_left_alone(queue):
    queue.put_many("abcdef")
    with queue.receive_many(5) as (a, b, c, _, _):
        assert (queue.ack(a), queue.nack(b), queue.ack_failed(c, reason="no")) == (1, 2, 3)
    assert counts(queue) == (2, 0, 3, 1)

    def block():
        with queue.receive_many(2) as (b, _):
            assert queue.ack(b) == 2
            raise KeyError("bad")

    with pytest.raises(KeyError):
        block()
    assert counts(queue) == (1, 0, 4, 1)
    assert queue.get(raw=True)["reason"] == "KeyError: 'bad'"


def test_a_batch_whose_lease_ran_out(leased, clock):
    leased.put_many("abc")

    def block():
        with leased.receive_many(3):
            clock.now += LEASE
            assert waiting(leased.get)() == "a"

    with pytest.raises(StaleClaimError) as refusal:
        block()
    assert refusal.value.ids == (1, 2, 3)
    assert counts(leased) == (2, 1, 0, 0)


def test_the_others_of_a_claim_that_ended_are_acked(open_here):
    queue = open_here(UniqueAckQ)
    queue.put_many("abcd")

    def block():
        with queue.receive_many(3) as items:
            assert items == ["a", "b", "c"]
            queue._store.nack(2)  # past the deliveries, which know nothing of it

    with pytest.raises(NotClaimedError) as refusal:
        block()
    assert refusal.value.ids == (2,)
    assert counts(queue) == (2, 0, 2, 0)
    assert [item in queue for item in "abcd"] == [False, True, False, True]


def test_a_batch_that_fails_too_often_is_set_aside(open_queue):
    queue = open_queue(SQLiteAckQueue, max_attempts=2)
    queue.put_many("ab")
    for dead in (0, 2):
        with pytest.raises(ZeroDivisionError), queue.receive_many(2):
            raise ZeroDivisionError("no")
        assert (queue.stats().ready, queue.stats().dead) == (2 - dead, dead)
    assert [row["reason"] for row in queue.queue()] == ["ZeroDivisionError: no"] * 2


def test_a_batch_that_fails_is_delayed(open_queue, clock):
    open_queue.clock = clock
    queue = open_queue(SQLiteAckQueue, backoff=60.0)
    queue.put_many("ab")
    with pytest.raises(ZeroDivisionError), queue.receive_many(2):
        raise ZeroDivisionError
    assert (queue.qsize(), queue.stats().delayed) == (0, 2)
    clock.now += 60
    assert queue.get_many(2) == ["a", "b"]


def test_no_lease_runs_while_others_are_waited_for(open_queue, clock):
    open_queue.clock = clock
    queue = open_queue(SQLiteAckQueue, lease=LEASE)
    queue.put("a")
    many = waiting(lambda: queue.get_many(2, linger=600))
    until(lambda: queue._core.any_put.listeners)
    clock.now += LEASE
    queue.put("b")
    assert many() == ["a", "b"]
    assert [row["attempts"] for row in queue.queue()] == [1, 1]
    clock.now += LEASE - 0.1
    assert queue.ack_many(ids=[1, 2]) == [1, 2]
