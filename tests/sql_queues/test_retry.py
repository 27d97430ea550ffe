"""What becomes of unfinished work: leases, attempts, back-off, dead holders, and late settlements."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from persistcoll import (
    Backoff,
    Empty,
    SQLiteAckQueue,
    SQLiteQueue,
    StaleClaimError,
)
from persistcoll.queues import deliveries
from persistcoll.testing.children import in_forked_child
from tests.queues.waits import someone_waits, until, waiting

LEASE = 10.0


@pytest.fixture
def leased(open_queue, clock):
    open_queue.clock = clock
    return open_queue(SQLiteAckQueue, lease=LEASE)


# Leases and fencing.


def test_a_lease_that_ran_out_makes_ready(leased, clock):
    leased.put_many("ab")
    leased.get()
    clock.now += LEASE - 0.1
    assert leased.qsize() == 1
    clock.now += 0.1
    assert (leased.qsize(), leased.unack_count()) == (2, 0)
    assert leased.get() == "a"


@pytest.mark.parametrize("form", ["item", "raw"])
@pytest.mark.parametrize("verb", ["ack", "nack", "ack_failed"])
def test_a_late_settlement_does_nothing_to_a_later_claim(leased, clock, verb, form):
    """One thread has both claims, and only the object tells them apart."""
    leased.put(["a"])
    late = leased.get(raw=form == "raw")
    clock.now += LEASE
    present = leased.get(raw=form == "raw")
    for _ in range(3):
        with pytest.raises(StaleClaimError):
            getattr(leased, verb)(late)
        assert leased.unack_count() == 1
    assert leased.ack(present) == 1
    assert leased.acked_count() == 1


def test_a_late_task_done_does_nothing_to_a_later_claim(leased, clock):
    leased.put(["a"])
    leased.get()
    clock.now += LEASE
    present = waiting(leased.get)()
    with pytest.raises(StaleClaimError):
        leased.task_done()
    assert leased.unack_count() == 1
    assert leased.ack(present) == 1
    leased.task_done()
    with pytest.raises(ValueError, match="too many"):
        leased.task_done()


def test_a_late_end_of_receive_is_refused(leased, clock):
    leased.put("a")

    def block():
        with leased.receive():
            clock.now += LEASE
            assert waiting(leased.get)() == "a"

    with pytest.raises(StaleClaimError):
        block()
    assert leased.unack_count() == 1


def test_a_block_that_raises_late_raises_its_own_error(leased, clock):
    leased.put("a")

    def block():
        with leased.receive():
            clock.now += LEASE
            raise KeyError("of the block")

    with pytest.raises(KeyError, match="of the block"):
        block()
    assert leased.get() == "a"


def test_a_late_settlement_by_another_object(open_stored, clock):
    open_stored.clock = clock
    one, two = (open_stored(SQLiteAckQueue, lease=LEASE) for _ in range(2))
    one.put(["a"])
    late = one.get()
    clock.now += LEASE
    present = two.get()
    for _ in range(2):
        with pytest.raises(StaleClaimError):
            one.ack(late)
    assert one.ack(id=1) is None
    assert two.ack(present) == 1


def test_the_same_object_is_an_active_claim_first(leased, clock):
    """If the late claim and the active one have the same object, the active one is settled."""
    leased.put_many([None, None])
    leased.get()
    clock.now += LEASE
    assert leased.get_many(2) == [None, None]
    assert [leased.ack(None), leased.ack(None)] == [1, 2]
    with pytest.raises(StaleClaimError):
        leased.ack(None)


def test_late_ones_are_not_remembered_for_ever(leased, clock, monkeypatch):
    monkeypatch.setattr(deliveries, "_MAX_STALE", 3)
    leased.put(["a"])
    late = []
    for _ in range(10):
        late.append(leased.get())
        clock.now += LEASE
    assert leased.get() == ["a"]
    assert [leased.ack(item) for item in late[:7]] == [None] * 7
    for item in late[7:]:
        with pytest.raises(StaleClaimError):
            leased.ack(item)
    leased.task_done()
    with pytest.raises(ValueError, match="too many"):  # they are not in flight either
        leased.task_done()
    assert leased.acked_count() == 1


def test_what_is_due_wakes_waiting_threads(open_queue):
    """No other call happens: the time alone makes it ready."""
    queue = open_queue(SQLiteAckQueue, lease=0.05)
    queue.put("a")
    queue.get()
    assert queue.get(timeout=10) == "a"
    queue.nack(id=1, delay=0.05)
    assert queue.get(timeout=10, id=1) == "a"


def test_two_ends_between_two_looks_of_a_waiting_thread_are_two_changes(leased, clock):
    """The thread looks, does what is due, and by its next look something else is due."""
    leased.put("a")
    leased.get()
    leased.nack(id=1, delay=LEASE + 5)  # the end of the lease is what the counters still expect first
    clock.now += LEASE
    token = leased._store.change_token()
    with pytest.raises(Empty):
        leased.get(block=False)
    clock.now += 5
    assert leased._store.change_token() != token


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"lease": 0}, ValueError),
        ({"lease": -1}, ValueError),
        ({"lease": float("nan")}, ValueError),
        ({"lease": "10"}, TypeError),
        ({"lease": True}, TypeError),
        ({"lease": 10**400}, ValueError),
        ({"backoff": 10**400}, ValueError),
        ({"max_attempts": 0}, ValueError),
        ({"max_attempts": 1.5}, TypeError),
        ({"backoff": -1}, ValueError),
        ({"backoff": "1"}, TypeError),
        ({"backoff": True}, TypeError),
        ({"keep_acked": -1}, ValueError),
        ({"keep_acked": 1.5}, TypeError),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused(open_queue, options, error):
    with pytest.raises(error, match=next(iter(options))):
        open_queue(SQLiteAckQueue, **options)


# Attempts and back-off.


@pytest.mark.parametrize("way", ["nack", "to the back", "lease", "receive", "task_done"])
def test_after_so_many_attempts_it_is_set_aside(open_queue, clock, way):
    open_queue.clock = clock
    queue = open_queue(SQLiteAckQueue, lease=LEASE, max_attempts=3)
    queue.put("a")
    for attempt in range(3):
        assert queue.ack_failed_count() == 0, attempt
        if way == "receive":
            with pytest.raises(KeyError), queue.receive(False):
                raise KeyError
            continue
        item = queue.get_nowait()
        if way == "nack":
            queue.nack(item)
        elif way == "to the back":
            queue.nack(item, to_back=True)
        elif way == "lease":
            clock.now += LEASE
        elif attempt < 2:
            queue.nack(item)
        else:
            queue.task_done()
    with pytest.raises(Empty):
        queue.get_nowait()
    dead = 0 if way == "task_done" else 1
    assert (queue.ack_failed_count(), queue.stats().dead, queue.acked_count()) == (dead, dead, 1 - dead)
    queue.join()
    assert queue.clear_acked_data(keep_latest=0, clear_ack_failed=True) == 1


def test_join_ends_with_the_last_attempt(open_queue, no_polling):
    queue = open_queue(SQLiteAckQueue, max_attempts=1)
    queue.put("a")
    item = queue.get()
    finish = waiting(queue.join)
    until(lambda: someone_waits(queue))
    queue.nack(item)
    finish()


@pytest.mark.parametrize(
    ("backoff", "delays"),
    [
        (None, [0, 0, 0]),
        (0, [0, 0, 0]),
        (5, [5, 5, 5]),
        (2.5, [2.5, 2.5, 2.5]),
        (Backoff(base=1, factor=3, limit=5, jitter=0), [1, 3, 5]),
    ],
    ids=str,
)
@pytest.mark.parametrize("way", ["nack", "receive"])
def test_what_is_released_is_ready(open_queue, clock, backoff, delays, way):
    open_queue.clock = clock
    queue = open_queue(SQLiteAckQueue, backoff=backoff)
    queue.put("a")
    for delay in delays:
        if way == "nack":
            queue.nack(queue.get_nowait())
        else:
            with pytest.raises(KeyError), queue.receive(False):
                raise KeyError
        assert queue.qsize() == (0 if delay else 1)
        clock.now += delay * 0.99
        assert queue.qsize() == (0 if delay else 1)
        clock.now += delay * 0.02
        assert queue.qsize() == 1


def test_a_delay_that_is_said_goes_before_the_back_off(open_queue, clock):
    open_queue.clock = clock
    queue = open_queue(SQLiteAckQueue, backoff=100)
    queue.put("a")
    queue.nack(queue.get(), delay=1)
    clock.now += 1
    queue.nack(queue.get_nowait(), delay=0)
    assert queue.get_nowait() == "a"


# What holders leave.


@pytest.mark.parametrize("kind", [SQLiteAckQueue, SQLiteQueue])
def test_close_releases(open_stored, kind):
    options = {} if kind is SQLiteAckQueue else {"auto_commit": False}
    queue = open_stored(kind, **options)
    queue.put_many("abc")
    queue.get_many(2)
    queue.close()
    assert open_stored(kind, **options).get_many(3) == ["a", "b", "c"]


def test_without_auto_resume_it_waits_to_be_resumed(open_stored):
    queue = open_stored(SQLiteAckQueue, auto_resume=False)
    queue.put_many("ab")
    queue.get()
    queue.close()
    queue = open_stored(SQLiteAckQueue, auto_resume=False)
    assert (queue.qsize(), queue.unack_count()) == (1, 1)
    assert [row["status"] for row in queue.queue()] == ["2", "0"]
    assert queue.ack(id=1) is None  # it has another claim
    assert queue.resume_unack_tasks() == 1
    assert (queue.qsize(), queue.unack_count()) == (2, 0)
    assert queue.resume_unack_tasks() == 0


def test_with_auto_resume_it_is_there_at_once(open_stored):
    queue = open_stored(SQLiteAckQueue, auto_resume=False)
    queue.put_many("ab")
    queue.get()
    queue.close()
    assert open_stored(SQLiteAckQueue).get_many(2) == ["a", "b"]


def test_resuming_wakes_waiting_threads(open_stored, no_polling):
    queue = open_stored(SQLiteAckQueue, auto_resume=False)
    queue.put("a")
    queue.get()
    queue.close()
    queue = open_stored(SQLiteAckQueue, auto_resume=False)
    finish = waiting(lambda: queue.get(timeout=20))
    until(lambda: queue._core.not_empty._wakes)
    queue.resume_unack_tasks()
    assert finish() == "a"


def test_what_a_living_one_has_got_is_never_resumed(open_stored):
    queue = open_stored(SQLiteAckQueue)
    queue.put_many("ab")
    item = queue.get()
    other = open_stored(SQLiteAckQueue)
    assert other.resume_unack_tasks() == queue.resume_unack_tasks() == 0
    assert other.get() == "b"
    with pytest.raises(Empty):
        other.get_nowait()
    assert queue.ack(item) == 1


def killed_with_items(path, options):
    with SQLiteAckQueue(path, durability="process", **options) as queue:
        queue.get_many(2)
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("when", ["before", "while it waits"])
def test_what_a_killed_process_had_got_is_resumed(open_file, when):
    queue = open_file(SQLiteAckQueue)
    queue.put_many("abc")
    with pytest.raises(AssertionError, match="wait status"):
        in_forked_child(lambda: killed_with_items(queue.path, {}))
    if when == "before":
        assert queue.resume_unack_tasks() == 2
    # The killed process told no other one, so a waiting consumer must find it.
    assert sorted(queue.get(timeout=10) for _ in range(3)) == ["a", "b", "c"]


def test_a_killed_process_is_not_resumed_without_auto_resume(open_file):
    queue = open_file(SQLiteAckQueue, auto_resume=False)
    queue.put_many("abc")
    with pytest.raises(AssertionError, match="wait status"):
        in_forked_child(lambda: killed_with_items(queue.path, {"auto_resume": False}))
    assert queue.get() == "c"
    with pytest.raises(Empty):
        queue.get(timeout=0.1)
    finish = waiting(lambda: queue.get(timeout=20))
    until(lambda: someone_waits(queue))
    assert queue.resume_unack_tasks() == 2
    assert finish() == "a"


# Many threads.


def test_many_threads_settle_in_every_way(open_queue, rng):
    """In the end everything that was put is acked, and nothing twice."""
    queue = open_queue(SQLiteAckQueue, max_attempts=50, keep_acked=None)
    total = 200 if open_queue.backing != "model" else 60
    acked = []
    lock = threading.Lock()
    choices = [[rng.random() for _ in range(1000)] for _ in range(4)]

    def work(choices):
        for choice in choices:
            try:
                item = queue.get(timeout=0.5)
            except Empty:
                return
            if choice < 0.2:
                queue.nack(item)
            elif choice < 0.3:
                queue.nack(item, delay=0.001, to_back=True)
            elif choice < 0.6:
                queue.task_done()
                with lock:
                    acked.append(item)
            else:
                assert queue.ack(item) is not None
                with lock:
                    acked.append(item)

    queue.put_many([(number,) for number in range(total)])
    finish = [waiting(lambda mine=mine: work(mine)) for mine in choices]
    for each in finish:
        each.thread.join(30)
        each()
    assert sorted(acked) == [(number,) for number in range(total)]
    assert (queue.acked_count(), queue.active_size()) == (total, 0)
    queue.join()
    assert not queue._deliveries._by_id
    assert not queue._deliveries._by_identity
