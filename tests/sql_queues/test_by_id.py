"""Items by their ids: ``get(id=)``, ``next_in_order``, the raw form, ``update``, ``queue()``."""

from __future__ import annotations

import time
from functools import partial

import pytest

from persistcoll import (
    AckStatus,
    ClosedError,
    Empty,
    FILOSQLiteAckQueue,
    PriorityQueue,
    ShutDown,
    SQLiteAckQueue,
    SQLiteQueue,
    UniqueAckQ,
)
from persistcoll.testing.children import run_threads
from tests.queues.waits import until, waiting
from tests.sql_queues.conftest import ACK, PLAIN, done_with

NO_IDS = [
    (True, TypeError),
    (1.0, TypeError),
    ("1", TypeError),
    (b"1", TypeError),
    ([1], TypeError),
    ({"pqid": 1}, TypeError),
    ({"pqid": 1, "data": 2, "timestamp": 3, "more": 4}, TypeError),
    ({}, TypeError),
    (0, ValueError),
    (-1, ValueError),
    (1 << 63, ValueError),
]


# get(id=).


def test_an_item_is_taken_by_its_id(open_queue, kind):
    queue = open_queue(kind)
    queue.put_many("abc")
    assert queue.get(id=2) == "b"
    with pytest.raises(Empty):
        queue.get(block=False, id=2)
    with pytest.raises(Empty):
        queue.get_nowait(2)
    with pytest.raises(Empty):
        queue.get(timeout=0.01, id=99)
    assert queue.get_nowait(3) == "c"
    assert queue.get_nowait(id=1) == "a"
    assert queue.empty()


@pytest.mark.parametrize(("wrong", "error"), NO_IDS, ids=repr)
def test_what_is_no_id_is_refused(open_queue, kind, wrong, error):
    queue = open_queue(kind)
    queue.put("a")
    calls = [lambda: queue.get(id=wrong), lambda: queue.get_nowait(wrong), lambda: queue.update("b", wrong)]
    if wrong not in (0, -1):  # damage may have made any number of an id, and skip() removes such a row
        calls += [lambda: queue.skip(wrong)]
    if kind in ACK:
        calls += [lambda: queue.get(id=wrong, next_in_order=True)]
        calls += [partial(verb, id=wrong) for verb in (queue.ack, queue.nack, queue.ack_failed)]
    for call in calls:
        with pytest.raises(error, match="id"):
            call()
    assert list(queue.items()) == ["a"]


def test_a_raw_item_stands_for_its_id(open_stored, kind):
    queue = open_stored(kind)
    queue.put_many("ab")
    raw = queue.get(id=2, raw=True)
    queue.close()
    queue = open_stored(kind)
    if kind in ACK:  # it was not acked
        assert queue.get(id=raw) == "b"
    else:
        with pytest.raises(Empty):
            queue.get(block=False, id=raw)


def test_a_thread_that_waits_for_one_item_gets_that_one(open_queue, kind, no_polling):
    queue = open_queue(kind)
    finish = waiting(lambda: queue.get(timeout=20, id=3))
    until(lambda: queue._core.any_put._wakes)
    queue.put_many("ab")
    assert queue.put("c") == 3
    assert finish() == "c"
    assert list(queue.items()) == ["a", "b"]


def test_a_thread_that_waits_for_one_item_takes_no_wake_up_from_others(open_queue, kind, no_polling):
    """The thread that waits for an id waits longest, so a wake-up for one thread would go to it first."""
    queue = open_queue(kind)
    chooser = waiting(lambda: queue.get(timeout=20, id=3))
    until(lambda: queue._core.any_put._wakes)
    others = [waiting(lambda: queue.get(timeout=20)) for _ in range(2)]
    until(lambda: len(queue._core.not_empty._wakes) == 2)
    queue.put("a")
    queue.put("b")
    assert sorted(other() for other in others) == ["a", "b"]
    queue.put("c")
    assert chooser() == "c"


@pytest.mark.parametrize(("end", "error"), [("close", ClosedError), ("shutdown", ShutDown)])
def test_the_end_wakes_a_thread_that_waits_for_one_item(open_queue, no_polling, end, error):
    queue = open_queue(SQLiteQueue)
    finish = waiting(lambda: queue.get(timeout=20, id=3))
    until(lambda: queue._core.any_put._wakes)
    getattr(queue, end)()
    with pytest.raises(error):
        finish()


def test_an_item_of_another_process_is_waited_for(open_stored, kind):
    queue, elsewhere = open_stored(kind), open_stored(kind)
    finish = waiting(lambda: queue.get(timeout=20, id=2))
    until(lambda: queue._core.any_put._wakes)
    elsewhere.put_many("ab")
    assert finish() == "b"


def test_an_item_is_taken_by_its_id_once(open_queue, kind):
    queue = open_queue(kind)
    queue.put_many(range(50))
    got: list[int] = []

    def take() -> None:
        for id in range(1, 51):
            try:
                got.append(queue.get(False, id=id))
            except Empty:
                pass

    run_threads(*[take] * 3)
    assert sorted(got) == list(range(50))


# next_in_order.


def test_the_next_in_order(open_queue, ack_kind):
    queue = open_queue(ack_kind)
    queue.put_many("abcd")
    backwards = ack_kind is FILOSQLiteAckQueue
    order = {1: "d", 2: "a", 3: "b", 4: "c"} if backwards else {1: "b", 2: "c", 3: "d", 4: "a"}
    for id, expected in order.items():
        item = queue.get(id=id, next_in_order=True)
        assert item == expected
        assert queue.nack(item)
    raw = queue.get(id=2, raw=True)
    assert queue.get_nowait(raw, next_in_order=True) == order[2]  # of an item that does not exist
    assert queue.get(id=10**9, next_in_order=True) == ("d" if backwards else "a")
    assert queue.qsize() == 1
    queue.get()
    with pytest.raises(Empty):
        queue.get(False, id=1, next_in_order=True)


def test_the_next_in_order_can_be_waited_for(open_queue, ack_kind, no_polling):
    queue = open_queue(ack_kind)
    finish = waiting(lambda: queue.get(timeout=20, id=5, next_in_order=True))
    until(lambda: queue._core.any_put._wakes)
    queue.put("a")
    assert finish() == "a"


def test_the_next_in_order_needs_an_id(open_queue, ack_kind):
    queue = open_queue(ack_kind)
    queue.put("a")
    with pytest.raises(ValueError, match="next_in_order"):
        queue.get(next_in_order=True)
    for wrong in (1, "yes", None):
        with pytest.raises(ValueError, match="next_in_order"):
            queue.get(id=1, next_in_order=wrong)
    assert queue.get() == "a"


# The raw form.


def test_the_raw_form_says_what_is_known_of_an_item(open_queue, kind):
    queue = open_queue(kind)
    before = time.time()
    queue.put({"pqid": "mine"})
    raw = queue.get(raw=True)
    timestamp = raw.pop("timestamp")
    assert before <= timestamp <= time.time()
    more = {"attempts": 1, "status": AckStatus.unack, "reason": None} if kind in ACK else {}
    more = {"priority": 0} if kind is PriorityQueue else more
    assert raw == {"pqid": 1, "data": {"pqid": "mine"}, **more}
    done_with(queue)
    queue.put("b")
    assert queue.get_nowait(raw=True)["data"] == "b"


# update().


def test_a_waiting_item_is_replaced_in_its_place(open_queue, kind):
    queue = open_queue(kind)
    queue.put_many("abc")
    assert queue.update("B", 2) == 2
    assert queue.update(item={"pqid": "mine"}, id=3) == 3
    assert list(queue.items()) == ["a", "B", {"pqid": "mine"}]
    assert queue.update("x", id=99) is None
    with pytest.raises(ValueError, match="id"):
        queue.update("x")
    with pytest.raises(ValueError, match="id"):
        queue.update({"pqid": 1})


@pytest.mark.parametrize("kind", PLAIN, ids=lambda kind: kind.__name__)
def test_a_claimed_item_is_replaced_for_the_next_consumer(open_stored, kind):
    queue = open_stored(kind, auto_commit=False)
    queue.put("a")
    raw = queue.get(raw=True)
    assert queue.update({**raw, "data": "b"}) == 1
    queue.close()
    queue = open_stored(kind)
    assert queue.get() == "b"
    assert queue.update({**raw, "data": "c"}) is None


def test_an_item_in_work_is_replaced_with_acknowledgements(open_queue, ack_kind):
    queue = open_queue(ack_kind)
    queue.put("a")
    raw = queue.get(raw=True)
    raw["data"] = "b"
    assert queue.update(raw) == 1
    assert queue.update({**raw, "data": "c"}, id=1) == 1
    assert queue.nack(raw) == 1
    item = queue.get()
    assert item == "c"
    assert queue.ack(item) == 1
    assert queue.update("d", id=1) is None


def test_an_item_that_looks_raw_is_an_item(open_queue):
    queue = open_queue(SQLiteQueue)
    queue.put_many("ab")
    mine = {"pqid": 1, "data": "mine", "timestamp": 0.0}
    assert queue.update(mine, id=2) == 2
    assert list(queue.items()) == ["a", mine]


def test_replacing_keeps_priority_and_time(open_queue):
    queue = open_queue(PriorityQueue)
    queue.put("a", 5)
    queue.put("b", 3)
    before = queue.queue()[0]
    queue.update("A", 1)
    assert queue.queue()[0] == {**before, "data": "A"}
    assert [queue.get(), queue.get()] == ["b", "A"]


# queue().


def test_the_rows_of_each_kind(open_queue, kind):
    queue = open_queue(kind)
    queue.put_many("ab")
    rows = queue.queue()
    assert [(row.pop("id"), row.pop("data")) for row in rows] == [(1, "a"), (2, "b")]
    assert all(isinstance(row.pop("timestamp"), float) for row in rows)
    more = {"attempts": 0, "status": AckStatus.inited, "reason": None} if kind in ACK else {}
    assert rows[0] == ({"priority": 0} if kind is PriorityQueue else more)


@pytest.mark.parametrize("kind", [SQLiteAckQueue, UniqueAckQ])
def test_the_status_of_each_row(open_queue, kind):
    queue = open_queue(kind, max_attempts=2)
    queue.put_many(["acked", "failed", "dead", "in work", "nacked", "delayed", "new"])
    acked, failed, dead, in_work, nacked, delayed = queue.get_many(6)
    queue.ack(acked)
    queue.ack_failed(failed)
    queue.nack(dead)
    assert queue.get() == "dead"
    assert queue.nack(id=3) == 3
    queue.nack(nacked)
    queue.nack(delayed, delay=1000)
    assert {row["data"]: row["status"] for row in queue.queue()} == {
        "acked": "5",
        "failed": "9",
        "dead": "9",
        in_work: "2",
        "nacked": "1",
        "delayed": "1",
        "new": "0",
    }
    assert [row["id"] for row in queue.queue()] == list(range(1, 8))
