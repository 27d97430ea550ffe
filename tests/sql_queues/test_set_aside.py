"""What is set aside: why, and how it is tried again."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from persistcoll import AckStatus, DuplicateError, Empty, SQLiteAckQueue, StaleClaimError, UniqueAckQ
from persistcoll.testing.children import in_forked_child, run_threads
from tests.queues.waits import until, waiting
from tests.sql_queues.conftest import NEWEST_FIRST

LEASE = 10.0


@pytest.fixture
def queue(open_queue):
    return open_queue(SQLiteAckQueue)


def rows(queue):
    """Return status, attempts and reason of each item."""
    return {row["data"]: (row["status"], row["attempts"], row["reason"]) for row in queue.queue()}


ASIDE, READY, NEW, UNACK = AckStatus.ack_failed, AckStatus.ready, AckStatus.inited, AckStatus.unack


# Reasons.


def test_the_reason_that_the_consumer_gives(queue):
    queue.put_many(
        ["failed", "failed without", "nacked", "nacked without", "later", "behind", "acked", "new"]
    )
    for item in queue.get_many(7):
        if item == "failed":
            queue.ack_failed(item, reason="no such address")
        elif item == "failed without":
            queue.ack_failed(item)
        elif item == "nacked":
            queue.nack(item, reason="busy")
        elif item == "nacked without":
            queue.nack(item)
        elif item == "later":
            queue.nack(item, delay=1000, reason="tomorrow")
        elif item == "behind":
            queue.nack(item, to_back=True, reason="not yet")
        else:
            queue.ack(item)
    assert rows(queue) == {
        "failed": (ASIDE, 1, "no such address"),
        "failed without": (ASIDE, 1, None),
        "nacked": (READY, 1, "busy"),
        "nacked without": (READY, 1, "nacked"),
        "later": (READY, 1, "tomorrow"),
        "behind": (READY, 1, "not yet"),
        "acked": (AckStatus.acked, 1, None),
        "new": (NEW, 0, None),
    }


def test_the_next_consumer_is_told(queue):
    queue.put("a")
    raw = queue.get(raw=True)
    assert (raw["attempts"], raw["status"], raw["reason"]) == (1, UNACK, None)
    queue.nack(raw, reason="busy")
    raw = queue.get(raw=True)
    assert (raw["attempts"], raw["status"], raw["reason"]) == (2, UNACK, "busy")
    queue.ack_failed(raw, reason="gone")
    queue.requeue(raw)
    raw = queue.get(raw=True)
    assert (raw["attempts"], raw["status"], raw["reason"]) == (1, UNACK, "gone")


def test_what_the_queue_sets_aside_itself_has_a_reason(open_stored, clock, tmp_path):
    open_stored.clock = clock
    queue = open_stored(SQLiteAckQueue, lease=LEASE, max_attempts=1)
    queue.put_many(["nacked", "nacked with", "raised", "lease", "closed"])
    items = queue.get_many(2)
    queue.nack(items[0])
    queue.nack(items[1], reason="busy")
    with pytest.raises(KeyError), queue.receive():
        raise KeyError("bad")
    assert queue.get() == "lease"
    clock.now += LEASE
    other = open_stored(SQLiteAckQueue, max_attempts=1)
    assert other.get() == "closed"
    other.close()
    assert rows(queue) == {
        "nacked": (ASIDE, 1, "nacked"),
        "nacked with": (ASIDE, 1, "busy"),
        "raised": (ASIDE, 1, "KeyError: 'bad'"),
        "lease": (ASIDE, 1, "lease ran out"),
        "closed": (ASIDE, 1, "its queue was closed"),
    }


def test_a_worker_that_died_is_a_reason(open_file):
    queue = open_file(SQLiteAckQueue, max_attempts=2)
    queue.put("kills")

    def die():
        worker = open_file(SQLiteAckQueue, max_attempts=2)
        worker.get()
        os.kill(os.getpid(), signal.SIGKILL)

    for status in (READY, ASIDE):
        with pytest.raises(AssertionError):
            in_forked_child(die)
        queue.resume_unack_tasks()
        assert rows(queue)["kills"][::2] == (status, "its worker died")
    assert queue.stats().dead == 1


@pytest.mark.parametrize("reason", [1, b"bytes", ["list"], ValueError("no")], ids=repr)
def test_a_reason_is_a_text(queue, reason):
    queue.put("a")
    item = queue.get()
    for verb in (queue.ack_failed, queue.nack):
        with pytest.raises(TypeError, match="reason"):
            verb(item, reason=reason)
    assert queue.ack(item) == 1


@pytest.mark.parametrize(
    "reason", ["", "a\0b", "\udcff", "x" * 1_000_000, "ü" * 20_000], ids=lambda text: text[:3]
)
def test_every_text_can_be_kept_and_none_is_endless(open_stored, reason):
    queue = open_stored(SQLiteAckQueue)
    queue.put("a")
    queue.ack_failed(queue.get(), reason=reason)
    queue.close()
    kept = rows(open_stored(SQLiteAckQueue))["a"][2]
    assert kept[:1] == reason[:1].replace("\udcff", "\\")
    assert len(kept) <= 10_000
    assert (kept == "x" * 10_000) == (len(reason) == 1_000_000)


def test_a_reason_is_that_of_this_attempt(queue):
    """None is left from an attempt before."""
    queue.put("a")
    queue.nack(queue.get(), reason="busy")
    queue.ack_failed(queue.get())
    assert rows(queue) == {"a": (ASIDE, 2, None)}


# requeue().


def test_one_is_ready_again_in_its_place(open_queue, ack_kind):
    queue = open_queue(ack_kind, max_attempts=1)
    ids = queue.put_many("abcd")
    for item in queue.get_many(4):
        queue.ack_failed(item, reason="no")
    stats = queue.stats()
    assert queue.requeue(ids[2]) == 1
    assert queue.requeue(ids[0]) == 1
    assert queue.requeue(ids[0]) == 0
    assert (queue.qsize(), queue.ack_failed_count()) == (2, 2)
    told = queue.stats()
    assert (told.puts, told.gets, told.failed) == (stats.puts, stats.gets - 2, stats.failed - 2)
    assert rows(queue)["a"] == (NEW, 0, "no")
    order = ["c", "a"] if ack_kind in NEWEST_FIRST else ["a", "c"]
    assert queue.get_many(5) == order
    assert queue.put("e") == 5


def test_all_are_ready_again(open_stored):
    queue = open_stored(SQLiteAckQueue, max_attempts=2, keep_acked=None)
    queue.put_many(["failed", "dead", "acked", "claimed", "delayed", "new"])
    failed, dead, acked, _, delayed = queue.get_many(5)
    queue.ack_failed(failed)
    queue.nack(dead)
    queue.nack(queue.get())
    queue.ack(acked)
    queue.nack(delayed, delay=1000)
    before = rows(queue)
    assert queue.requeue("all") == 2
    assert queue.requeue("all") == 0
    assert rows(queue) == before | {"failed": (NEW, 0, None), "dead": (NEW, 0, "nacked")}
    assert queue.get_many(9) == ["failed", "dead", "new"]
    again = open_stored(SQLiteAckQueue, max_attempts=2)
    assert (again.stats().failed, again.stats().dead, again.unack_count()) == (0, 0, 4)


def test_attempts_begin_anew(open_queue):
    queue = open_queue(SQLiteAckQueue, max_attempts=2)
    queue.put("a")
    for _ in range(2):
        for dead in (0, 1):
            queue.nack(queue.get())
            assert queue.stats().dead == dead
        assert queue.requeue("all") == 1


def test_only_what_is_set_aside(queue):
    queue.put_many(["acked", "claimed", "ready"])
    queue.ack(queue.get())
    raw = queue.get(raw=True)
    before = rows(queue)
    for id in (1, raw, 2, 3, 99, (1 << 63) - 1):
        assert queue.requeue(id) == 0
    assert rows(queue) == before
    for wrong, error in (
        ("ALL", TypeError),
        (None, TypeError),
        (0, ValueError),
        (1 << 63, ValueError),
        (True, TypeError),
        (1.0, TypeError),
        ([1], TypeError),
    ):
        with pytest.raises(error):
            queue.requeue(wrong)


def test_an_equal_item_keeps_one_aside(open_here):
    queue = open_here(UniqueAckQ, max_attempts=1)
    for settle in (queue.ack_failed, queue.nack, queue.ack_failed):
        queue.put({"url": "/"})
        settle(queue.get())
    queue.put_many([{"url": "/"}, "other"])
    for state in ("ready", "claimed"):
        for id in (1, 2, 3):
            with pytest.raises(DuplicateError, match=f"item {id}"):
                queue.requeue(id)
        assert queue.requeue("all") == 0, state
        if state == "ready":
            item = queue.get()
    queue.ack(item)
    assert queue.requeue("all") == 1
    assert [row["id"] for row in queue.queue() if row["status"] == NEW] == [1, 5]
    assert {"url": "/"} in queue
    assert queue.put({"url": "/"}) is None
    assert queue.requeue("all") == 0
    queue.ack(queue.get())
    assert queue.requeue(3) == 1
    with pytest.raises(DuplicateError):
        queue.requeue(2)


def test_waiting_consumers_are_woken(queue, no_polling):
    queue.put_many("ab")
    for item in queue.get_many(2):
        queue.ack_failed(item)
    both = [waiting(queue.get) for _ in range(2)]
    until(lambda: len(queue._core.not_empty._wakes) == 2)
    assert queue.requeue("all") == 2
    assert sorted(finish() for finish in both) == ["a", "b"]


def test_join_waits_for_what_was_requeued(queue):
    queue.put("a")
    queue.ack_failed(queue.get())
    queue.join()
    queue.requeue("all")
    finish = waiting(queue.join)
    until(lambda: queue._core.all_done.listeners)
    queue.ack(queue.get())
    finish()


def test_a_full_queue_takes_it(open_queue):
    queue = open_queue(SQLiteAckQueue, maxsize=1)
    queue.put("a")
    queue.ack_failed(queue.get())
    queue.put("b")
    assert queue.requeue("all") == 1
    assert (queue.qsize(), queue.full()) == (2, True)


def test_a_rollback_leaves_it_aside(open_here):
    queue = open_here(UniqueAckQ)
    queue.put("a")
    queue.ack_failed(queue.get(), reason="no")

    def block():
        with queue.transaction():
            assert queue.requeue("all") == 1
            assert queue.get() == "a"
            queue.nack(id=1, reason="in a transaction")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        block()
    assert rows(queue) == {"a": (ASIDE, 1, "no")}
    assert "a" not in queue
    with queue.transaction():
        queue.requeue(1)
        assert "a" in queue
    assert rows(queue) == {"a": (NEW, 0, "no")}


def test_a_late_consumer_settles_nothing_of_a_later_attempt(open_queue, clock):
    """Both attempts have the same number, because a requeue begins the count anew."""
    open_queue.clock = clock
    queue = open_queue(SQLiteAckQueue, lease=LEASE, max_attempts=1)
    queue.put(["a"])
    late = queue.get()
    clock.now += LEASE
    assert queue.requeue("all") == 1
    present = waiting(queue.get)()
    with pytest.raises(StaleClaimError):
        queue.task_done()
    for verb in (queue.ack, queue.nack, queue.ack_failed):
        with pytest.raises(StaleClaimError):
            verb(late)
    assert queue.unack_count() == 1
    assert queue.ack(present) == 1


@pytest.mark.parametrize("kind", [SQLiteAckQueue, UniqueAckQ])
def test_some_requeue_while_others_set_aside(open_stored, kind):
    """Each item is done once, whatever the threads do at the same time."""
    total, workers = 40, 3
    opened = [open_stored(kind, keep_acked=None) for _ in range(workers + 1)]
    opened[-1].put_many(range(total))
    done: list[int] = []
    over = threading.Event()

    def work(queue):
        while not over.is_set():
            try:
                raw = queue.get(timeout=0.01, raw=True)
            except Empty:
                continue
            if raw["reason"] is None:
                queue.ack_failed(raw, reason="the first time")
            elif raw["reason"] == "the first time":
                queue.nack(raw, reason="the second time")
            else:
                done.append(raw["data"])
                queue.ack(raw)

    requeued = []

    def again(queue):
        while len(done) < total:
            requeued.append(queue.requeue("all"))
        over.set()

    run_threads(*[lambda queue=queue: work(queue) for queue in opened[:-1]], lambda: again(opened[-1]))
    assert sorted(done) == list(range(total))
    assert sum(requeued) == total
    stats = opened[-1].stats()
    assert (stats.ready, stats.claimed, stats.failed, stats.done) == (0, 0, 0, total)
    assert (stats.puts, stats.gets) == (total, total)
