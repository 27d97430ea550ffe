"""The queue core alone: it answers at once, and knows consumers, not threads."""

from __future__ import annotations

import gc
import threading
import time

import pytest

from persistcoll import Empty, Full, ShutDown
from persistcoll.engine.blocking import BlockingQueue
from persistcoll.engine.contracts import Select
from persistcoll.engine.event_count import EventCount
from persistcoll.engine.in_flight import ThreadConsumer
from persistcoll.engine.memory.queue_store import MemoryQueueStore
from persistcoll.engine.memory.record_store import MemoryRecordStore
from persistcoll.engine.queue_core import QueueCore
from persistcoll.engine.records import State
from persistcoll.errors import BackendUnavailableError, NotClaimedError, StaleClaimError
from tests.queues.waits import until, waiting


def pair(record):
    return record.id, record.payload


@pytest.fixture
def core():
    return QueueCore(MemoryRecordStore(), 2, False)


def test_it_never_waits(core):
    consumer = core.in_flight.new_consumer()
    with pytest.raises(Empty):
        core.try_get(pair, consumer)
    assert core.try_put_many([b"1", b"2"]) == [1, 2]
    with pytest.raises(Full):
        core.try_put(b"3")
    with pytest.raises(ValueError, match="never fit"):
        core.try_put_many([b"3"] * 3)
    assert [core.try_get(pair, consumer) for _ in range(2)] == [b"1", b"2"]
    core.shutdown(False)
    for call in (lambda: core.try_put(b"3"), lambda: core.try_get(pair, consumer)):
        with pytest.raises(ShutDown):
            call()


def test_claims_belong_to_the_consumer_that_got_them(core):
    """Two consumers in one thread, such as tasks, do not ack each other's items."""
    one, two = core.in_flight.new_consumer(), core.in_flight.new_consumer()
    core.try_put_many([b"1", b"2"])
    assert core.try_get(pair, one) == b"1"
    assert core.try_get(pair, two) == b"2"
    core.task_done(two)
    core.store.release([])
    assert list(one.claims) == [1]
    assert core.unfinished() == 1
    core.task_done(two)  # this consumer has no claim, so the oldest of any consumer counts
    assert core.unfinished() == 0


def test_a_consumer_that_ended_leaves_its_claims_to_no_other_one(core):
    """A new consumer does not inherit them; ``task_done`` still finds them as the oldest."""
    gone = core.in_flight.new_consumer()
    core.try_put_many([b"1", b"2"])
    core.try_get(pair, gone)
    del gone
    gc.collect()
    new = core.in_flight.new_consumer()
    assert not new.claims
    core.try_get(pair, new)
    core.task_done(new)
    assert core.unfinished() == 1
    core.task_done(new)
    with pytest.raises(ValueError, match="too many"):
        core.task_done(new)


def test_each_thread_is_another_consumer_even_if_its_number_was_used_before(core):
    consumers = ThreadConsumer(core.in_flight)
    seen: dict[int, object] = {}

    def run():
        seen[len(seen)] = consumers.own

    for _ in range(5):
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    assert len({id(each) for each in seen.values()}) == 5
    assert consumers.own not in seen.values()


def test_claim_and_ack_are_apart_even_with_autosave():
    """The core releases a claim whose consumer is cancelled, because nothing was removed by then."""
    core = QueueCore(MemoryQueueStore(), 0, True)
    core.try_put(b"1")
    claims: list = []
    token, item = core.try_claim(pair, claims)
    assert (item, core.qsize(), core.unfinished()) == (b"1", 0, 1)
    core.undo(claims, (token,))
    assert (core.qsize(), claims) == (1, [])
    token, item = core.try_claim(pair, claims)
    core.settle((token,), claims, done=True)
    assert (core.qsize(), core.unfinished()) == (0, 0)


@pytest.mark.parametrize("done", [True, False])
def test_several_are_settled_except_the_lost_ones(done):
    store = MemoryRecordStore()
    core = QueueCore(store, 0, False)
    core.try_put_many([b"1", b"2", b"3", b"4"])
    claims: list = []
    pairs = core.try_claim_many(4, pair, claims)
    store._state.move(store._state.rows[2], State.READY)  # lost, as if its lease had ended
    del store._claims[3]  # settled in another way
    tokens = [token for token, _ in pairs]
    if done:
        with pytest.raises(NotClaimedError) as refusal:
            core.settle(tokens, claims, done=True)
        assert refusal.value.ids == (3, 2)
    else:
        with pytest.raises(NotClaimedError):
            core.settle(tokens, claims, done=False)
    assert claims == []
    ready = [record.id for record in store.records()]
    assert (ready, store.claimed()) == (([2], 1) if done else ([1, 2, 4], 1))


def test_a_lost_item_keeps_the_others_from_being_done_only_once(core):
    core.maxsize = 0
    core.try_put_many([b"1", b"2", b"3", b"4"])
    consumer = core.in_flight.new_consumer()
    for _ in range(4):
        core.try_get(pair, consumer)
    core.store._state.move(core.store._state.rows[2], State.READY)
    with pytest.raises(StaleClaimError) as refusal:
        core.task_done(consumer, 3)
    assert refusal.value.ids == (2,)
    assert (list(consumer.claims), core.store.claimed()) == ([1, 3, 4], 3)
    core.task_done(consumer, 3)
    assert (list(consumer.claims), core.unfinished()) == ([], 1)


def test_a_lost_item_is_none_to_nack():
    store = MemoryRecordStore()
    core = QueueCore(store, 0, False)
    core.try_put_many([b"1", b"2"])
    claims: list = []
    core.try_claim_many(2, pair, claims)
    for row in store._state.rows.values():
        store._state.move(row, State.READY)
    core.settle([1, 2], claims, done=False)
    assert (claims, store.count()) == ([], 2)


def test_a_store_that_does_not_say_what_is_lost(core, monkeypatch):
    """All of it counts as lost, so that no call goes on for ever."""
    core.try_put_many([b"1", b"2"])
    claims: list = []
    core.try_claim_many(2, pair, claims)

    def fail(ids):
        raise StaleClaimError("lost")

    monkeypatch.setattr(core, "_ack", fail)
    with pytest.raises(StaleClaimError):
        core.settle([1, 2], claims, done=True)
    assert claims == []


def test_many_claims_are_delivered_or_undone_together(core):
    consumer = core.in_flight.new_consumer()
    core.try_put_many([b"1", b"2"])
    claims: list = []
    pairs = core.try_claim_many(5, pair, claims)
    core.undo(claims, [token for token, _ in pairs])
    pairs = core.try_claim_many(5, pair, claims)
    assert core.deliver([token for token, _ in pairs], [item for _, item in pairs], consumer) == [b"1", b"2"]
    assert list(consumer.claims) == [1, 2]


def test_which_item_to_claim(core):
    consumer = core.in_flight.new_consumer()
    core.maxsize = 0
    core.try_put_many([b"1", b"2", b"3"])
    assert core.try_get(pair, consumer, Select(2)) == b"2"
    with pytest.raises(Empty):
        core.try_get(pair, consumer, Select(2))
    assert core.try_get(pair, consumer, Select(1, after=True)) == b"3"
    assert core.try_get(pair, consumer, Select(3, after=True)) == b"1"  # the first one after the last
    core.autosave = True
    core.try_put(b"4")
    assert core.try_get(pair, consumer, Select(4)) == b"4"


def test_whether_there_is_anything_is_asked_without_counting(core, monkeypatch):
    def count(self):
        raise AssertionError("it was counted")

    monkeypatch.setattr(MemoryRecordStore, "count", count)
    monkeypatch.setattr(MemoryRecordStore, "unfinished", count)
    assert (core.is_empty(), core.has_unfinished()) == (True, False)
    core.try_put_many([b"1"])
    assert (core.is_empty(), core.has_unfinished()) == (False, True)
    finish = waiting(BlockingQueue(core).join)
    consumer = core.in_flight.new_consumer()
    core.try_get(pair, consumer)
    assert (core.is_empty(), core.has_unfinished()) == (True, True)
    core.task_done(consumer)
    finish()


class Later(MemoryQueueStore):
    """A store in which nothing is ready until a certain time."""

    max_poll_interval = 60.0
    next_at = 0.0

    def claim(self, *arguments, **options):
        if time.monotonic() < self.next_at:
            error = Empty()
            error.next_at = self.next_at  # type: ignore[attr-defined]
            raise error
        return super().claim(*arguments, **options)


def test_a_wait_looks_again_when_the_store_says_so(monkeypatch):
    from persistcoll.engine import event_count

    monkeypatch.setattr(event_count, "MIN_POLL_INTERVAL", 30.0)
    store = Later()
    blocking = BlockingQueue(QueueCore(store, 0, False))
    blocking.put(b"1", False, None)
    store.next_at = time.monotonic() + 0.05
    assert blocking.get(pair, True, 20) == b"1"
    assert time.monotonic() >= store.next_at
    blocking.put(b"2", False, None)
    store.next_at = time.monotonic() + 1000
    with pytest.raises(Empty):
        blocking.get(pair, True, 0.01)


class Unreachable(MemoryQueueStore):
    """A store whose changes cannot be read for a while."""

    failures = 3

    def change_token(self):
        if self.failures > 0:
            self.failures -= 1
            raise BackendUnavailableError("no connection")
        return super().change_token()


def test_a_wait_outlasts_a_store_that_cannot_be_reached():
    store = Unreachable()
    blocking = BlockingQueue(QueueCore(store, 0, False))
    finish = waiting(lambda: blocking.get(pair, True, 20))
    until(lambda: not store.failures)
    store.append(b"1")  # as another process does: no wake-up comes
    assert finish() == b"1"


def test_a_waiter_is_woken_by_a_function_and_takes_it_back():
    """Tasks sleep without a lock."""
    event = EventCount()
    waiter = event.listen()
    woken: list[int] = []

    def wake():
        woken.append(1)

    with waiter:
        waiter.prepare()
        assert waiter.arm(wake, cross_process=True)
        assert waiter.next_interval() is not None  # it polls
        other = event.listen()
        with other:
            other.prepare()
            assert other.arm(wake, cross_process=True)
            assert other.next_interval() is None  # another waiter does
            assert other.disarm(wake) is False
        event.notify()
        assert woken == [1]
        assert waiter.disarm(wake) is True
        assert not waiter.arm(wake, cross_process=True)  # an event happened since the ticket
        waiter.pass_on(False)
    assert not event.listeners
    assert not event._has_poller
