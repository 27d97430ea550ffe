"""An exception out of a signal handler, anywhere in the code that waits and counts: counts stay exact."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from persistcoll import Empty, Full
from persistcoll.engine.blocking import BlockingQueue
from persistcoll.engine.memory.queue_store import MemoryQueueStore
from persistcoll.engine.memory.record_store import MemoryRecordStore
from persistcoll.engine.queue_core import QueueCore
from persistcoll.engine.records import Entry
from persistcoll.queues.base import BaseQueue
from persistcoll.queues.deliveries import AckQueueCore, Deliveries, Delivery
from tests.interrupting import interruptions
from tests.queues.waits import until, waiting

# The store is the model, a lock around dicts, so the tests do not interrupt its calls.
FILES = {
    "base.py",
    "blocking.py",
    "core.py",
    "queue_core.py",
    "in_flight.py",
    "event_count.py",
    "deliveries.py",
}


def pair(record):
    return record.id, record.payload


def over_a_store(autosave: bool) -> BlockingQueue:
    return BlockingQueue(QueueCore(MemoryQueueStore(), 0, autosave))


def with_deliveries() -> BlockingQueue:
    table = MemoryRecordStore()
    return BlockingQueue(AckQueueCore(table, 0, True, Deliveries(table)))


def deliver(record):
    delivery = Delivery(record, record.payload, None)
    return delivery, delivery


def put_many(blocking: BlockingQueue, *payloads: bytes) -> None:
    deliveries = isinstance(blocking.core, AckQueueCore)
    blocking.put_many([Entry(each) if deliveries else each for each in payloads], False, None)


KINDS: dict[str, tuple[Callable[[], BlockingQueue], Callable[[Any], Any]]] = {
    "task_done": (lambda: over_a_store(False), pair),
    "autosave": (lambda: over_a_store(True), pair),
    "deliveries": (with_deliveries, deliver),
}


def receive(blocking, decode, done, many=False):
    queue: Any = SimpleNamespace(_blocking=blocking, _core=blocking.core, _decode_claimed=decode)
    queue._claim = partial(BaseQueue._claim, queue)
    queue._receive = partial(BaseQueue._receive, queue)
    received = BaseQueue.receive_many(queue, 2, False) if many else BaseQueue.receive(queue, False)
    with suppress(ValueError), received:
        if not done:
            raise ValueError


CALLS: dict[str, Callable[[BlockingQueue, Any], object]] = {
    "put": lambda blocking, decode: blocking.put(b"new", False, None),
    "put_many": lambda blocking, decode: put_many(blocking, b"new", b"new"),
    "get": lambda blocking, decode: blocking.get(decode, True, None),
    "get, with a timeout": lambda blocking, decode: blocking.get(decode, True, 5),
    "get_many": lambda blocking, decode: blocking.get_many(2, decode, False, None),
    "get_many, that lingers": lambda blocking, decode: blocking.get_many(2, decode, True, None, 5),
    "receive": lambda blocking, decode: receive(blocking, decode, True),
    "receive, and it raises": lambda blocking, decode: receive(blocking, decode, False),
    "receive_many": lambda blocking, decode: receive(blocking, decode, True, many=True),
    "receive_many, and it raises": lambda blocking, decode: receive(blocking, decode, False, many=True),
    "task_done": lambda blocking, decode: blocking.task_done(),
    "task_done of two": lambda blocking, decode: blocking.task_done(2),
}


def state(blocking):
    """Return the ready records, and how many are unfinished."""
    return [record.payload for record in blocking.core.store.records()], blocking.core.unfinished()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CALLS)
def test_a_call(name, kind):
    """The call happens wholly or not at all, and afterwards everything can be finished once."""
    make, decode = KINDS[kind]

    def prepare():
        blocking = make()
        put_many(blocking, b"1", b"2", b"3", b"4")
        blocking.get_many(2, decode, False, None)  # records 1 and 2 are claimed
        return blocking

    def run(blocking):
        CALLS[name](blocking, decode)

    before = state(prepare())
    run(undisturbed := prepare())
    after = state(undisturbed)
    count = 0
    for blocking, where in interruptions(prepare, run, files=FILES):
        count += 1
        ready, unfinished = found = state(blocking)
        # With autosave a removed record is finished, though the caller did not get it.
        lost = kind == "autosave" and (ready, unfinished + len(before[0]) - len(ready)) == (
            after[0],
            after[1],
        )
        assert found in (before, after) or lost, where
        got = []
        with suppress(Empty):
            while True:
                got.append(blocking.get(decode, False, None))
        assert [each.item if isinstance(each, Delivery) else each for each in got] == ready, where
        for _ in range(unfinished):
            blocking.task_done()
        blocking.join()
        with pytest.raises(ValueError, match="too many"):
            blocking.task_done()
    assert count > 2


@pytest.mark.parametrize("event", ["not_empty", "not_full", "all_done"])
def test_a_waker_that_is_interrupted_leaves_no_thread_asleep(event, no_polling):
    """Each waiting thread continues, though the thread that wakes them is interrupted."""
    number = 0

    def prepare():
        signal = getattr(QueueCore(MemoryQueueStore(), 0, False), event)
        ended = []

        def wait():
            with signal.listen() as listener:
                listener.prepare()
                listener.wait(None, None, None)
            ended.append(threading.get_ident())

        waits = [waiting(wait) for _ in range(3)]
        until(lambda: len(signal._wakes) == 3)
        return signal, waits

    for (signal, waits), where in interruptions(prepare, lambda made: made[0].notify(1)):
        number += 1
        if "call  in notify" in where:  # before any step: as if it had not been called
            signal.notify(1)
        until(lambda waits=waits: any(wait.done() for wait in waits))
        signal.notify(None)
        for wait in waits:
            wait()
        assert not signal._wakes
    assert number > 3


@pytest.fixture
def no_polling(monkeypatch):
    """Turn polling off, so that only a wake-up helps."""
    from persistcoll.engine import event_count

    monkeypatch.setattr(event_count, "MIN_POLL_INTERVAL", 30.0)
    monkeypatch.setattr(MemoryQueueStore, "max_poll_interval", 30.0)


@pytest.mark.parametrize("call", ["get", "put", "join"])
def test_a_wait_that_is_interrupted_leaves_no_listener(call):
    def prepare():
        blocking = BlockingQueue(QueueCore(MemoryQueueStore(), 1, False))
        if call != "get":
            blocking.put(b"1", False, None)
        return blocking

    def run(blocking):
        if call == "get":
            with suppress(Empty):
                blocking.get(pair, True, 0)
        elif call == "put":
            with suppress(Full):
                blocking.put(b"2", True, 0)
        else:
            blocking.core.store.has_unfinished = lambda: False
            blocking.join()

    for blocking, where in interruptions(prepare, run, files=FILES):
        core = blocking.core
        for signal in (core.not_empty, core.any_put, core.not_full, core.all_done):
            assert not signal.listeners, where
            assert not signal._wakes, where
            assert not signal._has_poller, where
