"""The observer that logs: its levels and words, and that nothing of what was put ever comes into a log."""

from __future__ import annotations

import logging
import pickle
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from persistcoll import (
    ClosedError,
    DecodeError,
    DuplicateError,
    Empty,
    EncodeError,
    EventKind,
    MessageEvent,
    MessageQueue,
    NotClaimedError,
    Queue,
    SQLiteAckQueue,
    StaleClaimError,
    UniqueAckQ,
)
from persistcoll.metrics import EventCounter, log_events, prometheus_text
from persistcoll.serializers import signed


def event(kind: EventKind, **fields: Any) -> MessageEvent:
    return MessageEvent(kind, "t", 1.7e9, **fields)


@pytest.mark.parametrize("kind", EventKind)
def test_the_levels(kind, caplog):
    caplog.set_level(logging.DEBUG)
    log_events()(event(kind, id=1, attempts=1))
    (record,) = caplog.records
    assert record.name == "persistcoll.messages"
    warns = kind in (EventKind.NACKED, EventKind.RECLAIMED, EventKind.DEAD)
    ordinary = kind in (EventKind.PUT, EventKind.CLAIMED, EventKind.ACKED, EventKind.RELEASED)
    level = logging.WARNING if warns else logging.DEBUG if ordinary else logging.INFO
    assert record.levelno == level


def test_the_words(caplog):
    caplog.set_level(logging.DEBUG)
    log = log_events(logging.getLogger("mine"))
    log(event(EventKind.PUT, id=7, attempts=0))
    log(event(EventKind.NACKED, id=7, attempts=2, error="ValueError: a\nline"))
    log(event(EventKind.PURGED, count=12))
    assert [record.name for record in caplog.records] == ["mine"] * 3
    assert caplog.messages == [
        "put: message 7 of topic 't'",
        r"nacked: message 7 of topic 't', attempt 2: 'ValueError: a\nline'",
        "purged: 12 messages of topic 't'",
    ]


def test_what_nobody_reads_is_not_formatted(caplog):
    caplog.set_level(logging.WARNING)

    class Unread:
        kind = EventKind.PUT

    log_events()(Unread())  # type: ignore[arg-type]
    assert caplog.records == []


def test_it_can_be_pickled(tmp_path):
    log = pickle.loads(pickle.dumps(log_events()))
    assert log.args == (logging.getLogger("persistcoll.messages"),)


MARKER = "d41d8cd9-secret"


class Quoting:
    """A serializer whose errors quote what they are about."""

    is_broken = False

    def dumps(self, item: Any) -> bytes:
        if not isinstance(item, str):
            raise ValueError(f"cannot serialize {item!r}")
        return item.encode()

    def loads(self, data: bytes) -> Any:
        if self.is_broken:
            raise ValueError(f"cannot deserialize {data!r}")
        return data.decode()


def live(queue: MessageQueue[Any], path: Path, serializer: Quoting) -> None:
    """Do everything to messages in which the marker is the body, a header, the group and in the key."""
    options: dict[str, Any] = {"headers": {"h": MARKER, MARKER: "h"}, "group": MARKER}
    ids = [queue.put(MARKER, key=f"{MARKER} {number}", **options) for number in range(6)]
    assert queue.put(MARKER, key=f"{MARKER} 0") is None
    with pytest.raises(EncodeError):
        queue.put([MARKER])
    queue.get().ack()
    queue.get().nack(delay=0, error="no")
    queue.get().release()
    with suppress(KeyError), queue.get():
        raise KeyError("key")
    queue.get().fail("no")
    queue.put(MARKER, key=f"{MARKER} 1")
    with pytest.raises(DuplicateError):
        queue.redrive(2)
    assert queue.redrive() == 0
    queue.release_key(f"{MARKER} 1")
    assert queue.redrive() == 1
    assert queue.cancel(ids[-1] or 0) is True
    late = queue.get(lease=1e-6)
    with pytest.raises(StaleClaimError):
        late.ack()
    queue.put(MARKER, ttl=1e-6)
    assert queue.stats().expired == 1
    serializer.is_broken = True
    with pytest.raises(Empty):
        queue.get(block=False)
    info = queue.find(3)
    assert info is not None
    with pytest.raises(DecodeError):
        info.body  # noqa: B018 - it raises
    serializer.is_broken = False
    queue.put(MARKER, key=MARKER, topic="damaged", headers={"h": MARKER})
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("UPDATE messages_1 SET crc = crc + 1 WHERE topic = 'damaged'")
    with pytest.raises(Empty):
        queue.get("damaged", block=False)
    prometheus_text(queue)
    queue.purge()
    queue.purge(dead=True)
    queue.put(MARKER, headers={"h": MARKER}, key=MARKER)
    queue.get()


def raising(event: MessageEvent) -> None:
    raise ValueError(f"of the observer: {event}")


@pytest.mark.parametrize("observer", [log_events(), EventCounter(log_events()), raising])
@pytest.mark.parametrize("is_signed", [False, True])
def test_nothing_of_a_message_is_ever_logged(observer, is_signed, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    plain = Quoting()
    chosen: Any = signed(plain, b"a key of 16 bytes or more") if is_signed else plain
    path = tmp_path / "m.db"
    with MessageQueue[Any](
        path, events=observer, serializer=chosen, max_attempts=None, backoff=None
    ) as queue:
        live(queue, path, plain)
    with pytest.raises(ClosedError):
        queue.put(MARKER)
    prometheus_text(queue)
    if observer is raising:
        assert {record.levelname for record in caplog.records} == {"ERROR", "WARNING"}
    else:
        told = {message.partition(":")[0] for message in caplog.messages}
        assert told >= {kind.value for kind in EventKind}
    expect_no_marker(caplog)


def expect_no_marker(caplog: pytest.LogCaptureFixture) -> None:
    formatter = logging.Formatter()
    for record in caplog.records:
        assert MARKER not in formatter.format(record)
        assert MARKER not in repr(vars(record))


def use_items(queue: SQLiteAckQueue[Any], serializer: Quoting) -> None:
    """Do everything to items in which the marker is the item, its reason and the text of an exception."""
    ids = queue.put_many([f"{MARKER} {number}" for number in range(5)])
    queue.put(f"{MARKER} later", delay=1e6)
    with pytest.raises(EncodeError):
        queue.put([MARKER])
    queue.ack_failed(queue.get(), reason=MARKER)
    queue.nack(queue.get(), reason=MARKER, delay=1e6)
    with suppress(KeyError), queue.receive_many(2):
        raise KeyError(MARKER)
    assert queue.requeue("all") == 1
    assert queue.requeue(ids[0] or 0) == 0
    queue.ack_many(queue.get_many(2, linger=1e-6))
    queue.put(f"{MARKER} 4")
    serializer.is_broken = True
    with pytest.raises(DecodeError):
        queue.get(block=False)
    serializer.is_broken = False
    with pytest.raises(NotClaimedError):
        queue.ack(MARKER)
    queue.get()


@pytest.mark.parametrize("kind", [SQLiteAckQueue, UniqueAckQ])
def test_nothing_of_an_item_is_ever_logged(kind, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    serializer = Quoting()
    with kind(tmp_path, serializer=serializer, strict=True) as queue:
        use_items(queue, serializer)
        prometheus_text(queue)
        assert {row["reason"] for row in queue.queue()} >= {MARKER, f"KeyError: '{MARKER}'"}
    prometheus_text(queue)
    assert caplog.records
    expect_no_marker(caplog)


def test_what_is_logged_of_damaged_files_has_nothing_of_the_items(tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    with Queue(tmp_path, serializer=Quoting()) as queue:
        queue.put_many([f"{MARKER} {number}" for number in range(5)])
    (chunk,) = (path for path in tmp_path.iterdir() if MARKER.encode() in path.read_bytes())
    data = chunk.read_bytes()
    place = data.index(f"{MARKER} 2".encode())
    chunk.write_bytes(data[:place] + b"\0" + data[place + 1 :])
    with Queue(tmp_path, serializer=Quoting(), on_corruption="skip") as queue:
        assert len(list(queue.items())) == 4
        queue.get_many(9)
    assert caplog.records
    expect_no_marker(caplog)
