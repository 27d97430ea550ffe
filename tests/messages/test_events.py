"""The ``events`` of a message queue: which calls tell what, and observers that misbehave."""

from __future__ import annotations

import logging
import pickle
from contextlib import suppress
from typing import Any

import pytest

from persistcoll import (
    DecodeError,
    Empty,
    EventKind,
    MessageEvent,
    MessageQueue,
    OutgoingMessage,
    StaleClaimError,
)
from persistcoll.engine.memory.server import MemoryConnection
from tests.messages.conftest import START


class Seen(list[MessageEvent]):
    """An observer that keeps what it is called with."""

    def __call__(self, event: MessageEvent) -> None:
        self.append(event)

    def kinds(self) -> list[str]:
        """Return the kinds since the last call."""
        kinds = [event.kind.value for event in self]
        self.clear()
        return kinds


@pytest.fixture
def observer() -> Seen:
    return Seen()


@pytest.fixture
def queue(open_queue, observer) -> MessageQueue[Any]:
    queue: MessageQueue[Any] = open_queue(events=observer, backoff=None)
    return queue


def test_an_event_says_what_happened(queue, observer, clock):
    clock.advance(5)
    queue.put("a", topic="t", key="secret", headers={"secret": "secret"}, group="g")
    queue.get().fail("no")
    assert observer == [
        MessageEvent(EventKind.PUT, "t", START + 5, 1, 1, 0, None),
        MessageEvent(EventKind.CLAIMED, "t", START + 5, 1, 1, 1, None),
        MessageEvent(EventKind.DEAD, "t", START + 5, 1, 1, 1, "no"),
    ]
    with pytest.raises(AttributeError):
        observer[0].id = 2
    assert pickle.loads(pickle.dumps(observer[0])) == observer[0]


def test_what_each_call_tells(queue, observer, clock):
    queue.put("a")
    assert queue.put_many(["b", OutgoingMessage("c", key="k"), OutgoingMessage("d", key="k")]) == [2, 3, None]
    assert observer.kinds() == ["put"] * 3
    first, second = queue.get_many(2)
    assert observer.kinds() == ["claimed"] * 2
    queue.ack_many([first])
    second.nack()
    assert observer.kinds() == ["acked", "nacked"]
    queue.get().release()
    assert observer.kinds() == ["claimed", "released"]
    with queue.get():
        pass
    assert observer.kinds() == ["claimed", "acked"]
    with pytest.raises(ValueError, match="no"), queue.get():
        raise ValueError("no")
    assert [event.error for event in observer] == [None, "ValueError: no"]
    assert observer.kinds() == ["claimed", "nacked"]
    with pytest.raises(KeyboardInterrupt), queue.get():
        raise KeyboardInterrupt
    assert observer.kinds() == ["claimed", "released"]
    queue.get()
    clock.advance(60)
    assert queue.recover() == 1
    assert observer.kinds() == ["claimed", "reclaimed"]
    queue.get().fail()
    queue.redrive(3)
    queue.cancel(3)
    queue.put("e", ttl=5)
    clock.advance(5)
    assert queue.qsize() == 0
    queue.put("f")
    queue.purge()
    assert observer.kinds() == [
        "claimed", "dead", "redriven", "cancelled", "put", "expired", "put", "purged",
    ]  # fmt: skip
    queue.limit("t", 5)
    queue.pause("t")
    queue.resume("t")
    with queue.lock_topic("t"):
        pass
    queue.release_key("k")
    queue.checkpoint()
    assert observer.kinds() == []


def test_consuming(queue, observer):
    queue.put_many("abc")
    observer.clear()
    messages = queue.consume(prefetch=3)
    with next(messages):
        pass
    messages.close()
    assert observer.kinds() == ["claimed"] * 3 + ["acked"] + ["released"] * 2


def test_a_body_that_cannot_be_decoded(open_queue, observer):
    broken = open_queue(events=observer, serializer=Broken())
    broken.put("secret")
    observer.clear()
    with pytest.raises(DecodeError):
        broken.peek().body  # noqa: B018 - it raises
    assert broken.qsize() == 1
    with pytest.raises(Empty):
        broken.get(block=False)
    assert [event.kind for event in observer] == [EventKind.CLAIMED, EventKind.NACKED]
    assert "cannot be deserialized" in str(observer[1].error)
    assert "secret" not in str(observer[1])


class Broken:
    """A serializer that reads nothing, and whose error quotes what it was given."""

    @staticmethod
    def dumps(item: Any) -> bytes:
        return str(item).encode()

    @staticmethod
    def loads(data: bytes) -> Any:
        raise ValueError(data)


def test_closing(queue, observer):
    queue.put("a")
    queue.get()
    observer.clear()
    queue.close()
    queue.close()
    assert [(event.kind, event.error) for event in observer] == [
        (EventKind.RECLAIMED, "its queue was closed")
    ]


def test_a_transaction(queue, observer):
    with queue.transaction():
        queue.put("a")
        message = queue.get()
        message.ack()
        assert observer == []
    assert observer.kinds() == ["put", "claimed", "acked"]
    with suppress(ZeroDivisionError), queue.transaction():
        queue.put("b")
        raise ZeroDivisionError
    assert observer.kinds() == []


def test_a_transaction_of_the_callers_own_tells_nothing(monkeypatch, server_queue):
    observer = Seen()
    server_queue._store.observe(observer.extend)
    connection = MemoryConnection(server_queue._store._state)
    connection.begin()
    server_queue.put("a", connection=connection)
    connection.commit()
    assert observer.kinds() == []
    server_queue.get().ack()
    assert observer.kinds() == ["claimed", "acked"]


def test_an_observer_that_raises_is_logged_and_the_queue_goes_on(open_queue, caplog, clock):
    calls = []

    def observer(event: MessageEvent) -> None:
        calls.append(event.kind.value)
        raise ValueError("of the observer")

    queue = open_queue(events=observer)
    assert queue.put_many(["a", "b"]) == [1, 2]
    with queue.transaction():
        queue.get().ack()
    message = queue.get()
    clock.advance(60)
    with pytest.raises(StaleClaimError):
        message.ack()
    assert calls == ["put", "put", "claimed", "acked", "claimed", "reclaimed"]
    records = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(records) == len(calls)
    assert {record.name for record in records} == {"persistcoll"}
    assert records[0].exc_info is not None
    assert repr(observer) in records[0].getMessage()


def test_an_observer_that_uses_the_queue(open_queue):
    queue: MessageQueue[Any]
    seen = []

    def observer(event: MessageEvent) -> None:
        seen.append((event.kind.value, event.topic, queue.stats().puts))
        if event.kind is EventKind.DEAD:
            with queue.transaction():
                queue.put(event.error, topic="reports")
            queue.get("reports").ack()

    queue = open_queue(events=observer)
    queue.put("a")
    queue.get().fail("no")
    assert seen == [
        ("put", "default", 1),
        ("claimed", "default", 1),
        ("dead", "default", 1),
        ("put", "reports", 2),
        ("claimed", "reports", 2),
        ("acked", "reports", 2),
    ]


def test_the_option(open_queue, observer, tmp_path):
    assert open_queue(events=observer).events is observer
    assert open_queue("other").events is None
    with pytest.raises(TypeError, match="'events' must be callable, not str"):
        MessageQueue(tmp_path / "q.db", events="print")  # type: ignore[arg-type]
