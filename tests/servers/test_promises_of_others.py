"""What other queues on servers promise, and the faults that they were found to have, each as a test of ours.

What the tests of all queues, and those of ``receive()``, say already is not repeated here.
"""

from __future__ import annotations

import time
from typing import Any

import pytest

from persistcoll import Backoff, DuplicateError, Empty, EncodeError, Full, StaleClaimError
from persistcoll.errors import DecodeError
from persistcoll.servers.address import MYSQL
from persistcoll.testing.children import run_threads
from tests.queues.waits import until, waiting
from tests.sql_queues.test_common import Picky

LEASE = 0.3  # seconds


# Items in open transactions.


def test_consumers_with_open_transactions_get_different_items(open_queue):
    queue, other = open_queue(), open_queue(timeout=9.0)
    queue.put_many("ab")
    with queue.receive() as first, other.receive() as second, pytest.raises(Empty):
        queue.get(block=False)
    assert (first, second) == ("a", "b")
    assert queue.empty()


def test_a_look_at_the_size_hides_nothing_from_others(open_queue, caller, place):
    """A count that locks what it counts would."""
    queue = open_queue()
    queue.put_many("abc")
    bound = open_queue(connection=caller.connection, schema=place.schema)
    assert len(bound) == 3
    assert bound.peek() == "a"
    assert bound.stats().ready == 3
    assert queue.get(block=False) == "a"
    caller.rollback()


def test_the_end_of_an_object_is_not_the_end_of_the_callers_transaction(open_queue, caller, place):
    queue = open_queue()
    with open_queue(connection=caller.connection, schema=place.schema) as bound:
        bound.put("a")
    caller.rollback()

    def fail() -> None:
        with open_queue(connection=caller.connection, schema=place.schema) as bound:
            bound.put("b")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    caller.rollback()
    assert queue.empty()


def test_a_callers_connection_keeps_its_settings(open_queue, caller, place):
    queue = open_queue()
    queue.put_many("abc")
    if place.kind == MYSQL:
        names = ("sql_mode", "tx_isolation", "autocommit", "innodb_lock_wait_timeout", "time_zone")
        text = f"SELECT {', '.join(f'@@SESSION.{name}' for name in names)}"
    else:
        names = ("transaction_isolation", "synchronous_commit", "lock_timeout", "search_path", "TimeZone")
        text = f"SELECT {', '.join(f'current_setting({name!r})' for name in names)}"

    def settings() -> Any:
        with caller.connection.cursor() as cursor:
            cursor.execute(text)
            return cursor.fetchone()

    before = settings()
    queue.put("d", connection=caller.connection)
    assert queue.get(block=False, connection=caller.connection) == "a"
    with queue.receive(block=False, connection=caller.connection) as item:
        assert item == "b"
    assert settings() == before
    caller.commit()
    assert queue.get_many(9) == ["c", "d"]


# Waiting.


def test_who_is_not_the_first_waits_for_the_rest_of_the_time(open_queue):
    queue, other = open_queue(), open_queue(timeout=9.0)
    begin = time.monotonic()
    getters = [waiting(lambda queue=queue: queue.get(timeout=1)) for queue in (queue, other)]
    queue.put("x")
    got: list[Any] = []
    for getter in getters:
        try:
            got.append(getter())
        except Empty:
            got.append(time.monotonic() - begin)
    assert got.count("x") == 1
    (late,) = (each for each in got if each != "x")
    assert 1 <= late < 9


# Leases, delays and batches.


def test_a_lease_ends_and_a_late_ack_removes_nothing(open_queue):
    queue, other = open_queue("AckQueue", lease=LEASE), open_queue("AckQueue")
    queue.put("a")
    late = queue.get()
    with pytest.raises(Empty):
        other.get(block=False)
    item = other.get(timeout=20)
    for settle in (queue.ack, queue.nack, queue.ack_failed):
        with pytest.raises(StaleClaimError):
            settle(late)
    assert (other.unack_count(), other.qsize()) == (1, 0)
    assert other.ack(item) == 1


def test_a_lease_begins_with_the_claim_whatever_changes_in_the_row(open_queue):
    queue, other = open_queue("AckQueue", lease=LEASE), open_queue("AckQueue")
    id = queue.put("a")
    queue.get()
    stop = time.monotonic() + 10 * LEASE
    while other.unack_count():
        assert time.monotonic() < stop
        queue.update("b", id)
    assert other.get(block=False) == "b"


def test_a_delay_ends_at_its_time_whatever_the_time_zone(open_queue, caller, place):
    queue = open_queue("AckQueue")
    with caller.connection.cursor() as cursor:
        cursor.execute("SET time_zone = '+09:00'" if place.kind == MYSQL else "SET TIME ZONE 'Asia/Tokyo'")
    begin = time.time()
    queue.put("later", delay=LEASE, connection=caller.connection)
    caller.commit()
    assert queue.get(timeout=20) == "later"
    assert LEASE * 0.99 <= time.time() - begin < 10
    (row,) = queue.queue()
    assert abs(row["timestamp"] - begin) < 10


def test_a_nack_delays_longer_each_time(open_queue):
    queue = open_queue("AckQueue", backoff=Backoff(base=0.1, jitter=0))
    queue.put("a")
    times = []
    for _ in range(3):
        item = queue.get(timeout=20)
        times.append(time.monotonic())
        queue.nack(item)
        with pytest.raises(Empty):
            queue.get(block=False)
    assert times[1] - times[0] >= 0.09
    assert times[2] - times[1] >= 0.18


def test_a_batch_has_what_there_is(open_queue):
    queue = open_queue("AckQueue")
    with pytest.raises(Empty):
        queue.get_many(2, block=False)
    queue.put("a")
    assert queue.get_many(2) == ["a"]
    queue.put_many("bc")
    assert queue.get_many(2) == ["b", "c"]
    queue.put_many("def")
    assert queue.get_many(2) == ["d", "e"]
    assert (queue.qsize(), queue.unack_count()) == (1, 5)


def test_a_batch_with_one_bad_item_stores_none(open_queue):
    queue = open_queue("AckQueue", serializer="json")
    with pytest.raises(EncodeError):
        queue.put_many(["a", object(), "b"])
    raw = open_queue("AckQueue", name="raw", serializer="raw")
    raw._store._rows._max_payload = 10
    with pytest.raises(EncodeError, match="too large"):
        raw.put_many([b"a", b"b" * 11])
    assert (queue.active_size(), raw.active_size()) == (0, 0)


def test_an_item_may_be_put_again_when_it_is_done_and_not_before(open_queue):
    queue = open_queue("UniqueQueue", auto_commit=False)
    assert queue.put("a") is not None
    assert queue.get() == "a"
    assert queue.put("a") is None
    queue.task_done()
    assert queue.put("a") is not None


def test_queues_do_not_count_each_others_items(open_queue):
    queues = {name: open_queue("AckQueue", name=name) for name in "abc"}
    for number, queue in enumerate(queues.values()):
        queue.put_many(range(number))
    item = queues["c"].get()
    assert [queue.qsize() for queue in queues.values()] == [0, 1, 1]
    queues["c"].nack(item)
    assert [queue.qsize() for queue in queues.values()] == [0, 1, 2]


# One object for many threads, and what an error leaves.


def test_one_object_is_for_any_number_of_threads(open_queue):
    queue = open_queue("AckQueue", keep_acked=None)

    def work() -> None:
        for number in range(15):
            queue.put(number)
            queue.ack(id=queue.get(raw=True)["pqid"])

    run_threads(*[work] * 6)
    assert (queue.acked_count(), queue.active_size()) == (90, 0)


def is_in_transaction(place, session: Any) -> bool:
    connection = session.connection._connection
    if place.kind == MYSQL:
        return bool(connection.server_status & 1)
    return bool(connection.info.transaction_status)


def test_an_error_leaves_no_transaction_open(place, open_queue):
    """It would hold its locks, and keep the server from cleaning up, until the next call."""
    queue = open_queue("UniqueQueue", maxsize=1, serializer=Picky())
    queue.put("poison")
    with pytest.raises(Full):
        queue.put("b", block=False)
    with pytest.raises(DecodeError):
        queue.get()
    with pytest.raises(DecodeError), queue.receive():
        pass
    acks = open_queue("AckQueue", name="acks", lease=LEASE / 10)
    acks.put_many("ab")
    items = acks.get_many(2)
    until(lambda: acks.qsize() == 2)
    with pytest.raises(StaleClaimError):
        acks.ack_many(items)
    unique = open_queue("UniqueQueue", name="unique")
    ids = unique.put_many("ab")
    with pytest.raises(DuplicateError):
        unique.update("b", ids[0])
    server = queue._store._server
    assert server is unique._store._server
    assert server._idle
    assert server._all == set(server._idle)
    assert not any(is_in_transaction(place, session) for session in server._idle)
