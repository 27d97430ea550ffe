"""Messages that say what to do next, each tried by doing it; and ``strict``, which replaces None by one."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import re
from typing import Any

import pytest

from persistcoll import (
    DecodeError,
    Empty,
    LockedError,
    NotClaimedError,
    Queue,
    SQLiteAckQueue,
    SQLiteQueue,
    StaleClaimError,
)
from tests.sql_queues.conftest import ACK

VERBS = ["ack", "nack", "ack_failed"]


# The option strict.


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("kind", ACK)
def test_strict_raises_where_none_was_returned(kind, verb, open_queue):
    lax, queue = open_queue(kind, "lax"), open_queue(kind, "strict", strict=True)
    assert (lax.strict, queue.strict) == (False, True)
    for one in (lax, queue):
        one.put_many(["a", "b"])
        item = one.get()
        raw = one.get(raw=True)
        assert getattr(one, verb)(item) is not None
        assert getattr(one, verb)(raw) is not None
    settle, say_none = getattr(queue, verb), getattr(lax, verb)
    nothing: dict[str, Any]
    for nothing in (
        {"item": "never got"},
        {"item": raw},
        {"item": dict(raw)},
        {"id": 1},
        {"id": 77},
        {"id": raw},
    ):
        assert say_none(**nothing) is None
        with pytest.raises(NotClaimedError, match=r"is not claimed by .*'.+' in .*; ") as caught:
            settle(**nothing)
        assert "never got" not in str(caught.value)
    for wrong, error in (({}, ValueError), ({"item": "a", "id": 1}, ValueError), ({"id": "1"}, TypeError)):
        with pytest.raises(error):
            settle(**wrong)


def test_what_strict_says_is_what_helps(open_queue):
    queue = open_queue(SQLiteAckQueue, strict=True)
    queue.put_many([["a"], ["b"]])
    item = queue.get()
    with pytest.raises(
        NotClaimedError, match=r"^that item .* give the object that get\(\) returned"
    ) as by_item:
        queue.ack(["a"])
    assert "['a']" not in str(by_item.value)
    assert queue.ack(item) == 1
    with pytest.raises(NotClaimedError, match=r"^item 2 .* skip\(\) removes an item that is ready"):
        queue.ack(id=2)
    assert queue.skip(2) == 2


def test_strict_is_no_matter_of_the_store_and_goes_with_a_pickle(open_file):
    queue = open_file(SQLiteAckQueue, strict=True)
    with pickle.loads(pickle.dumps(queue)) as other:
        assert other.strict is True
    with SQLiteAckQueue(queue.path) as lax:
        assert lax.strict is False
    with pytest.raises(AttributeError):
        queue.strict = False


def test_task_done_and_receive_are_as_ever_with_strict(open_queue):
    queue = open_queue(SQLiteAckQueue, strict=True)
    queue.put_many("abc")
    item = queue.get()
    queue.ack(item)
    queue.task_done()  # for an item that was settled already: nothing happens
    with queue.receive() as item:
        queue.ack(item)
    queue.get()
    queue.task_done()
    assert queue.unfinished_tasks == 0


# An item that cannot be read.


class Failing:
    """JSON that cannot be read while the test says so."""

    name = "json"
    executes_code = False
    fails = False

    def dumps(self, item: Any) -> bytes:
        return str(item).encode()

    def loads(self, data: bytes) -> Any:
        if self.fails:
            raise KeyError(data)
        return data.decode()


def said(call: Any) -> DecodeError:
    with pytest.raises(DecodeError) as caught:
        call()
    assert "secret" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    ("kind", "options"), [(SQLiteAckQueue, {}), (SQLiteQueue, {"auto_commit": False}), (SQLiteQueue, {})]
)
def test_what_waits_is_skipped_as_the_message_says(kind, options, open_queue):
    serializer = Failing()
    queue = open_queue(kind, serializer=serializer, **options)
    queue.put_many(["secret", "next"])
    serializer.fails = True
    for call in (queue.get, queue.queue, lambda: list(queue.items()), lambda: queue.get(id=1)):
        error = said(call)
        assert str(error).endswith("it stays stored, skip(1) removes it")
        assert error.id == 1
    assert queue.skip(error.id) == 1
    serializer.fails = False
    assert queue.get() == "next"


def test_what_does_not_wait_is_removed_as_the_message_says(open_queue):
    serializer = Failing()
    queue = open_queue(SQLiteAckQueue, serializer=serializer)
    (id,) = queue.put_many(["secret"])

    def look() -> str:
        serializer.fails = True
        error = said(queue.queue)
        assert error.id == id
        assert queue.skip(error.id) is None or "skip(" in str(error)
        serializer.fails = False
        return str(error)

    item = queue.get()
    assert re.search(rf"^item {id}, which is claimed, .*skip\(\) removes it when its claim has ended", look())
    queue.nack(item, delay=1000)
    assert re.search(rf"^item {id}, which is delayed, .*when its delay is over", look())


@pytest.mark.parametrize(
    ("verb", "state", "remedy"),
    [
        ("ack", "done", lambda q: q.clear_acked_data(None, 0)),
        ("ack_failed", "failed", lambda q: q.clear_acked_data(None, 0, clear_ack_failed=True)),
    ],
)
def test_what_is_kept_is_removed_as_the_message_says(verb, state, remedy, open_queue):
    serializer = Failing()
    queue = open_queue(SQLiteAckQueue, serializer=serializer)
    queue.put("secret")
    getattr(queue, verb)(queue.get())
    serializer.fails = True
    error = said(queue.queue)
    assert f"item 1, which is {state}, is bytes that cannot be deserialized" in str(error)
    assert "clear_acked_data(" in str(error)
    assert queue.skip(error.id) is None
    assert remedy(queue) == 1
    assert queue.queue() == []


# A second object.


@pytest.mark.parametrize(
    "call",
    [
        lambda q: q.get(block=False),
        lambda q: q.get(timeout=0.01),
        lambda q: q.get_nowait(),
        lambda q: q.get_many(2, block=False),
        lambda q: q.receive(block=False).__enter__(),
        lambda q: q.get(block=False, id=1),
        lambda q: q.get(block=False, id=1, next_in_order=True),
    ],
)
def test_an_empty_queue_says_what_is_in_work(call, open_file):
    first, second = open_file(SQLiteAckQueue), open_file(SQLiteAckQueue)
    with pytest.raises(Empty) as caught:
        call(second)
    assert caught.value.args == ()
    first.put("a")
    first.get()
    with pytest.raises(Empty, match=r"and 1 claimed .*close\(\) there makes them ready"):
        call(second)
    first.close()
    assert second.get(block=False) == "a"


def test_a_lock_of_this_very_process_says_so(tmp_path):
    with Queue(tmp_path / "q") as first, Queue(tmp_path / "q") as second:
        first.put_many("ab")
        first.get()
        with pytest.raises(
            LockedError, match=r"^this process \(\d+\) consumes .* through another object; close"
        ) as caught:
            second.get()
        assert caught.value.pid == os.getpid()
        first.close()
        assert second.get() == "a"


def consume(path: Any, holds: Any, end: Any) -> None:
    with Queue(path) as queue:
        queue.get()
        holds.set()
        assert end.wait(30)


def test_a_lock_of_another_process_names_it(tmp_path):
    context = multiprocessing.get_context("spawn")
    holds, end = context.Event(), context.Event()
    with Queue(tmp_path / "q") as queue:
        queue.put("a")
        process = context.Process(target=consume, args=(tmp_path / "q", holds, end))
        process.start()
        try:
            assert holds.wait(30)
            with pytest.raises(LockedError, match=f"^process {process.pid} consumes .* until it") as caught:
                queue.get()
            assert caught.value.pid == process.pid
        finally:
            end.set()
            process.join()
        process.close()
        assert queue.get() == "a"
    del holds, end
    gc.collect()  # their semaphores are closed when they are collected


def test_a_late_settlement_says_what_would_prevent_it(open_stored, clock):
    open_stored.clock = clock
    queue = open_stored(SQLiteAckQueue, lease=10)
    queue.put(["a"])
    item = queue.get()
    clock.now += 11
    assert queue.get(raw=True)["data"] == ["a"]
    with pytest.raises(StaleClaimError, match="a longer lease= prevents that"):
        queue.ack(item)
