"""What every queue class does with items: put, get, receive, task_done, join, shutdown, inspection."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from persistcoll import (
    DecodeError,
    Empty,
    EncodeError,
    Full,
    PriorityQueue,
    ShutDown,
    SQLiteAckQueue,
    SQLiteQueue,
    Stats,
    StorageFullError,
    UniqueAckQ,
    UniqueQ,
)
from persistcoll.queues.server import PlainServerQueue
from tests.queues.waits import someone_waits, until, waiting
from tests.sql_queues.conftest import NEWEST_FIRST, done_with

# The items are unequal, for the unique queues.
ITEMS: list[Any] = [None, 0, "", b"", [], 1.5, "text", {"a": [1, None]}, ("a", 1), float("inf"), {"pqid": 1}]


def in_order(kind, items):
    return items[::-1] if issubclass(kind, NEWEST_FIRST) else list(items)


# Put and get.


def test_items_come_back_as_they_were_and_in_order(open_queue, kind):
    queue = open_queue(kind)
    assert [queue.put(item) for item in ITEMS] == list(range(1, len(ITEMS) + 1))
    assert queue.qsize() == len(queue) == queue.size == queue.total == len(ITEMS)
    assert list(queue.items()) == ITEMS
    got = [queue.get() for _ in ITEMS]
    assert got == in_order(kind, ITEMS)
    assert [type(item) for item in got] == [type(item) for item in in_order(kind, ITEMS)]
    assert queue.empty()
    assert not queue.full()
    with pytest.raises(Empty):
        queue.get_nowait()


def test_none_and_zero_can_be_waited_for(open_queue, kind):
    queue = open_queue(kind)
    for item in (None, 0, ""):
        finish = waiting(lambda: queue.get(timeout=10))
        until(lambda: someone_waits(queue))
        queue.put(item)
        assert finish() == item


def test_ids_grow_and_are_not_used_twice(open_stored, kind):
    queue = open_stored(kind)
    assert queue.put("a") == 1
    queue.get()
    done_with(queue)
    assert queue.put_nowait("b") == 2
    assert queue.skip() == 2
    queue.close()
    queue = open_stored(kind)
    assert queue.put_many(["c", "d"]) == [3, 4]
    assert queue.clear() == 2
    assert queue.put("e") == 5


def test_put_many_puts_all_or_none(open_queue, kind):
    queue = open_queue(kind, maxsize=3)
    assert queue.put_many([]) == []
    assert queue.put_many(iter("a")) == [1]
    with pytest.raises(Full):
        queue.put_many(["b", "c", "d"], block=False)
    with pytest.raises(Full):
        queue.put_many(["b", "c", "d"], timeout=0.01)
    with pytest.raises(EncodeError):
        queue.put_many(["b", EncodeErrorAtOnce() if not_unique(kind) else {"b": EncodeErrorAtOnce()}])
    with pytest.raises(ValueError, match="never fit"):
        queue.put_many("bcde")
    assert list(queue.items()) == ["a"]
    assert queue.put_many("bc") == [open_queue.id(2), open_queue.id(3)]


class EncodeErrorAtOnce:
    """An object that cannot be pickled."""

    def __reduce__(self):
        raise RuntimeError("not this")


def not_unique(kind):
    return not issubclass(kind, (UniqueQ, UniqueAckQ))


def test_get_many_gives_what_is_there(open_queue, kind):
    queue = open_queue(kind)
    queue.put_many(range(5))
    expected = in_order(kind, list(range(5)))
    assert queue.get_many(3) == expected[:3]
    assert queue.get_many(1 << 100) == expected[3:]
    with pytest.raises(Empty):
        queue.get_many(1, block=False)
    with pytest.raises(Empty):
        queue.get_many(1, timeout=0.01)
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="at least 1"):
            queue.get_many(wrong)
    for _ in range(5):
        queue.task_done()
    with pytest.raises(ValueError, match="too many"):
        queue.task_done()


def test_maxsize_counts_what_waits(open_stored, kind):
    queue, other = open_stored(kind, maxsize=2), open_stored(kind, maxsize=2)
    queue.put("a")
    other.put("b")
    assert queue.full()
    assert other.full()
    for full in (queue, other):
        with pytest.raises(Full):
            full.put_nowait("c")
        with pytest.raises(Full):
            full.put("c", timeout=0.01)
    finish = waiting(lambda: queue.put("c", timeout=10))
    until(lambda: someone_waits(queue))
    other.get()
    assert finish() == open_stored.id(3)
    queue.maxsize = 0
    assert queue.put("d") == open_stored.id(4)
    assert not queue.full()


# Acks.


@pytest.mark.parametrize("kind", [SQLiteQueue, PriorityQueue, *NEWEST_FIRST[:1], UniqueQ])
def test_with_auto_commit_get_removes(open_stored, kind):
    queue = open_stored(kind)
    queue.put_many("ab")
    queue.get()
    assert queue.queue() == [queue.queue()[0]]
    assert queue.unfinished_tasks == 2
    queue.task_done()
    assert queue.unfinished_tasks == 1
    queue.close()
    assert len(open_stored(kind)) == 1


@pytest.mark.parametrize("kind", [SQLiteQueue, PriorityQueue, *NEWEST_FIRST[:1], UniqueQ])
def test_without_auto_commit_only_what_was_delivered_is_removed(open_stored, kind):
    queue = open_stored(kind, auto_commit=False)
    assert queue.auto_commit is False
    queue.put_many("abc")
    first, second = in_order(kind, list("abc"))[:2]
    assert [queue.get(), queue.get()] == [first, second]
    assert queue.put("d") == 4  # newer than the item got, also where the newest comes first
    queue.task_done()
    assert len(queue) == 2
    assert [row["data"] for row in queue.queue()] == sorted({*"abcd"} - {first})
    queue.close()
    queue = open_stored(kind, auto_commit=False)
    assert list(queue.items()) == sorted({*"abcd"} - {first})
    queue.get_many(10)
    for _ in range(3):
        queue.task_done()
    with pytest.raises(ValueError, match="too many"):
        queue.task_done()
    queue.close()
    assert open_stored(kind, auto_commit=False).empty()


def test_receive_acknowledges_at_the_end(open_queue, kind):
    queue = open_queue(kind)
    queue.put("a")
    with queue.receive() as item:
        assert item == "a"
        # Counts see nothing of a transaction that is open.
        counts = (1, 0) if isinstance(queue, PlainServerQueue) else (0, 1)
        assert (queue.qsize(), queue.stats().claimed) == counts
        assert queue.unfinished_tasks == 1
        with pytest.raises(Empty):
            queue.get(block=False)
    assert queue.unfinished_tasks == queue.stats().claimed == 0
    with pytest.raises(ValueError, match="too many"):
        queue.task_done()
    queue.join()


def test_receive_releases_when_the_block_raises(open_queue, kind):
    queue = open_queue(kind)
    queue.put_many("ab")
    with pytest.raises(RuntimeError, match="of the block"), queue.receive():
        raise RuntimeError("of the block")
    assert queue.get_many(2) == in_order(kind, ["a", "b"])
    queue.put("c")
    waiter = waiting(lambda: queue.get(timeout=10))
    waiter()
    with pytest.raises(Empty), queue.receive(False):
        pass


@pytest.mark.parametrize("raises", [False, True], ids=["ends well", "raises"])
def test_an_end_of_receive_that_cannot_be_stored_releases_later(open_file, kind, raises, monkeypatch):
    """After a full disk, for example, no consumer has the item, and the next get returns it first."""
    queue = open_file(kind)
    queue.put_many("ab")
    first = queue.peek()

    def fail(*arguments):
        raise StorageFullError("no room")

    def block():
        with queue.receive() as item:
            assert item == first
            for verb in ("finish", "nack", "release"):
                monkeypatch.setattr(queue._store._claims, verb, fail)
            if raises:
                raise RuntimeError("of the block")

    with pytest.raises(StorageFullError):
        block()
    with pytest.raises(StorageFullError):  # there is still no space
        queue.get(block=False)
    monkeypatch.undo()
    assert (queue.stats().ready, queue.stats().claimed) == (1, 1)
    assert queue.get(block=False) == first
    done_with(queue)
    assert (queue.stats().ready, queue.stats().claimed) == (1, 0)


def test_what_is_released_wakes_waiting_threads(open_queue, kind, no_polling):
    queue = open_queue(kind)
    queue.put("a")
    finish = []

    def block():
        with queue.receive():
            finish.append(waiting(lambda: queue.get(timeout=20)))
            until(lambda: queue._core.not_empty._wakes)
            raise RuntimeError("of the block")

    with pytest.raises(RuntimeError, match="of the block"):
        block()
    assert finish[0]() == "a"


def test_join_waits_for_the_last_one(open_queue, kind):
    queue = open_queue(kind)
    queue.join()
    queue.put_many("ab")
    finish = waiting(queue.join)
    until(lambda: someone_waits(queue))
    queue.get_many(2)
    queue.task_done()
    assert not finish.done()
    queue.task_done()
    finish()


def test_any_thread_may_call_task_done(open_queue, kind):
    queue = open_queue(kind)
    queue.put_many("ab")
    queue.get_many(2)
    for _ in range(2):
        waiting(queue.task_done)()
    assert queue.unfinished_tasks == 0
    with pytest.raises(ValueError, match="too many"):
        waiting(queue.task_done)()


@pytest.mark.parametrize("immediate", [False, True])
def test_shutdown_has_the_standard_librarys_meaning(open_queue, kind, immediate):
    queue = open_queue(kind)
    queue.put_many("ab")
    queue.shutdown(immediate)
    assert queue.is_shutdown
    for put in (lambda: queue.put("c"), lambda: queue.put_nowait("c"), lambda: queue.put_many("c")):
        with pytest.raises(ShutDown):
            put()
    if not immediate:
        queue.get_many(2)
    for get in (queue.get, queue.get_nowait, lambda: queue.get_many(1), lambda: queue.get(id=1)):
        with pytest.raises(ShutDown):
            get()
    assert queue.stats().puts == 2


# Inspection and removal.


def test_looking_takes_nothing(open_queue, kind):
    queue = open_queue(kind)
    with pytest.raises(Empty):
        queue.peek()
    assert queue.queue() == list(queue.items()) == []
    queue.put_many("abc")
    assert queue.peek() == in_order(kind, list("abc"))[0]
    assert list(queue.items()) == list("abc")
    assert [row["data"] for row in queue.queue()] == list("abc")
    assert [row["id"] for row in queue.queue()] == [1, 2, 3]
    assert len(queue) == 3


def test_skip_and_clear_remove(open_queue, kind):
    queue = open_queue(kind)
    assert queue.skip() is None
    assert queue.clear() == 0
    queue.put_many("abcd")
    assert queue.skip(2) == 2
    assert queue.skip(2) is None
    assert queue.skip() == in_order(kind, [1, 3, 4])[0]
    assert queue.clear() == 2
    assert queue.empty()
    assert queue.put("b") == 5  # a unique item is free again


def test_stats_count(open_queue, kind):
    queue = open_queue(kind)
    queue.put_many("abc")
    queue.get()
    stats = queue.stats()
    assert dataclasses.replace(stats, oldest_age=None, bytes=0, claimed=0, gets=0) == Stats(ready=2, puts=3)
    assert stats.oldest_age is not None
    assert stats.oldest_age >= 0
    assert stats.claimed + stats.gets == 1


def test_what_cannot_be_read_stays_and_is_named(open_queue, kind):
    queue = open_queue(kind, serializer=Picky())
    queue.put_many(["poison", "good"] if not issubclass(kind, NEWEST_FIRST) else ["good", "poison"])
    for get in (queue.get, lambda: queue.get(raw=True), queue.peek, lambda: queue.get_many(2)):
        with pytest.raises(DecodeError) as caught:
            get()
    id = caught.value.id
    assert id is not None
    assert len(queue) == 2
    with pytest.raises(DecodeError):
        queue.queue()
    assert queue.skip(id) == id
    assert queue.get() == "good"


class Picky:
    """A serializer that cannot read what it wrote, if that is poison."""

    name = "picky"
    executes_code = False

    @staticmethod
    def dumps(obj):
        return obj.encode()

    @staticmethod
    def loads(data):
        if data == b"poison":
            raise ValueError("not this")
        return data.decode()


def test_shrinking_gives_room_back(open_file, kind):
    queue = open_file(kind, keep_acked=0) if issubclass(kind, SQLiteAckQueue) else open_file(kind)
    queue.put_many([f"{number} " * 1000 for number in range(300)])
    for _ in queue.get_many(300):
        queue.task_done()
    before = queue.stats().bytes
    queue.shrink_disk_usage()
    assert queue.stats().bytes < before / 2
    assert queue.put("still here") == 301
    assert queue.get() == "still here"


# Wrong arguments.


@pytest.mark.parametrize("timeout", [-1, -0.001, float("-inf"), float("nan")])
def test_a_timeout_below_zero_is_refused(open_queue, kind, timeout):
    queue = open_queue(kind)
    calls = [
        lambda: queue.put(1, timeout=timeout),
        lambda: queue.put_many([1], timeout=timeout),
        lambda: queue.get(timeout=timeout),
        lambda: queue.get(timeout=timeout, id=1),
        lambda: queue.get_many(1, timeout=timeout),
        lambda: queue.receive(timeout=timeout).__enter__(),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="timeout"):
            call()
    assert queue.qsize() == 0


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"maxsize": -1}, ValueError),
        ({"maxsize": 1.5}, TypeError),
        ({"maxsize": True}, TypeError),
        ({"timeout": -1}, ValueError),
        ({"timeout": float("nan")}, ValueError),
        ({"timeout": "10"}, TypeError),
        ({"timeout": None}, TypeError),
        ({"timeout": 10**400}, ValueError),
        ({"durability": "fast"}, ValueError),
        ({"durability": None}, ValueError),
        ({"name": 5}, TypeError),
        ({"name": None}, TypeError),
        ({"name": b"bytes"}, TypeError),
        ({"name": "\ud800"}, ValueError),
        ({"db_file_name": "../elsewhere.db"}, ValueError),
        ({"db_file_name": ""}, ValueError),
        ({"db_file_name": "data.db-wal"}, ValueError),
        ({"db_file_name": "data.db.holder-1"}, ValueError),
        ({"serializer": 3}, TypeError),
        ({"serializer": "yaml"}, ValueError),
    ],
    ids=str,
)
def test_a_wrong_argument_is_refused(open_file, kind, options, error):
    with pytest.raises(error):
        open_file(kind, **options)


def test_the_arguments_can_be_read(open_file, kind, tmp_path):
    queue = open_file(kind, name="n", multithreading=False, timeout=5, db_file_name="x.db", maxsize=7)
    assert queue.path == str(tmp_path / "q")
    assert (queue.name, queue.timeout, queue.db_file_name, queue.maxsize) == ("n", 5, "x.db", 7)
    assert queue.multithreading is True
    assert queue.auto_commit is True
    assert (tmp_path / "q" / "x.db").is_file()
    assert repr(queue) == f"<{kind.__name__} 'n' in {str(tmp_path / 'q' / 'x.db')!r}, 0 ready>"
