"""Which arguments of a message queue are refused, and with which error."""

from __future__ import annotations

import enum
import math
from datetime import datetime, timedelta, timezone
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies

from persistcoll import Backoff, MessageQueue, OutgoingMessage
from persistcoll.engine.message_records import MessageEntry, MessageRecord
from persistcoll.engine.records import State
from persistcoll.messages.fields import entry_of, headers_of, key_of, text_of
from tests.messages.conftest import START

NAIVE = datetime(2030, 1, 1)  # noqa: DTZ001
NAN, INFINITE = float("nan"), float("inf")
WRONG: dict[str, list[tuple[Any, type[Exception]]]] = {
    "topic": [
        (True, TypeError), (None, TypeError), (7, TypeError), (b"t", TypeError), ("t" * 256, ValueError),
        ("\u00e9" * 128, ValueError), ("\ud800", ValueError),
    ],
    "group": [(True, TypeError), (b"g", TypeError), ("g" * 256, ValueError), ("\udfff", ValueError)],
    "priority": [
        (NAN, ValueError), (INFINITE, ValueError), (-INFINITE, ValueError), ((1 << 53) + 1, ValueError),
        (10**400, ValueError), ("1", TypeError), (None, TypeError), (True, TypeError),
    ],
    "delay": [
        (-1, ValueError), (NAN, ValueError), (INFINITE, ValueError), (1e11, ValueError), (NAIVE, ValueError),
        ("1", TypeError), (None, TypeError), (False, TypeError), (10**400, ValueError),
        (datetime(9999, 1, 1, tzinfo=timezone.utc), ValueError),
    ],
    "key": [(7, TypeError), (True, TypeError), (["k"], TypeError)],
    "key_window": [
        (-1, ValueError), (NAN, ValueError), (INFINITE, ValueError), (1e11, ValueError), ("1", TypeError),
    ],
    "lease": [
        (0, ValueError), (-1, ValueError), (NAN, ValueError), (INFINITE, ValueError), (1e11, ValueError),
        ("1", TypeError), (True, TypeError),
    ],
    "max_attempts": [
        (0, ValueError), (-1, ValueError), (1 << 63, ValueError), (1.5, TypeError), (True, TypeError),
    ],
    "backoff": [
        (-1, ValueError), (NAN, ValueError), (INFINITE, ValueError), ("1", TypeError), (True, TypeError),
        (1e11, ValueError), (Backoff(limit=INFINITE), ValueError), (Backoff(limit=1e11), ValueError),
        (Backoff(base=0, factor=INFINITE), ValueError),
    ],
    "ttl": [
        (0, ValueError), (-1, ValueError), (NAN, ValueError), (INFINITE, ValueError), (1e11, ValueError),
        ("1", TypeError),
    ],
    "headers": [
        ([("a", "b")], TypeError), ({"a": 1}, TypeError), ({1: "a"}, TypeError), ("a", TypeError),
    ],
}  # fmt: skip
EACH = [
    pytest.param(name, value, error, id=f"{name}-{number}")
    for name, values in WRONG.items()
    for number, (value, error) in enumerate(values)
]


@pytest.mark.parametrize(("name", "value", "error"), EACH)
def test_a_wrong_option_of_a_put(queue, name, value, error):
    for put in (
        lambda: queue.put("x", **{name: value}),
        lambda: queue.put_many(["x"], **{name: value}),
        lambda: queue.put_many([], **{name: value}),
        lambda: queue.put_many(["y", OutgoingMessage("x", **{name: value})]),
    ):
        with pytest.raises(error, match=name) as caught:
            put()
        assert type(caught.value) is error
    assert queue.stats().puts == 0


def test_options_that_contradict_each_other(queue):
    for delay in (10, 11):
        with pytest.raises(ValueError, match="would never be delivered"):
            queue.put("x", ttl=10, delay=delay)
    assert queue.put("x", ttl=10, delay=9) == 1


def test_options_that_do_not_exist(queue):
    with pytest.raises(TypeError, match="colour"):
        queue.put_many([], colour="red")
    with pytest.raises(TypeError, match="put_many"):
        queue.put(OutgoingMessage("x"))


class Topic(str, enum.Enum):
    """An enumeration whose members are names."""

    MAILS = "mails"


def test_the_longest_and_the_oddest_that_are_accepted(queue):
    for topic in ("", "t" * 255, "\u00e9" * 127, "\0", Topic.MAILS):
        id = queue.put("x", topic=topic)
        info = queue.find(id)
        assert type(info.topic) is str
        assert info.topic == topic
        assert queue.get(topic).id == id
    for priority in (-1e300, 0, 1 << 53, 0.5):
        assert queue.find(queue.put("x", priority=priority)).priority == priority


def test_a_delay_until_a_time(queue, monkeypatch):
    monkeypatch.setattr("persistcoll.arguments.time.time", lambda: START)
    now = datetime.fromtimestamp(START, timezone.utc)
    there = timezone(timedelta(hours=5))
    assert queue.find(queue.put("x", delay=now + timedelta(seconds=30))).due_at == START + 30
    assert (
        queue.find(queue.put("x", delay=(now + timedelta(seconds=30)).astimezone(there))).due_at == START + 30
    )
    assert queue.find(queue.put("x", delay=now - timedelta(days=1))).state is State.READY


@pytest.mark.parametrize(
    ("topic", "error"),
    [
        (True, TypeError), (7, TypeError), (b"t", TypeError), (bytearray(b"t"), TypeError), ([1], TypeError),
        ([None], TypeError), ([True], TypeError), ([], ValueError), (["\ud800"], ValueError),
        ("t" * 256, ValueError),
    ],
)  # fmt: skip
def test_wrong_topics_of_a_consumer(queue, topic, error):
    for call in (queue.get, queue.consume, lambda topic: queue.get_many(2, topic)):
        with pytest.raises(error):
            call(topic)
    with pytest.raises((TypeError, ValueError)):
        queue.qsize(topic)


@pytest.mark.parametrize(
    "topics",
    ["b", ["b"], ("a", "b"), {"b", "c"}, iter(["c", "b"]), {"b": 1}],
    ids=["name", "list", "tuple", "set", "iterator", "dict"],
)
def test_topics_of_a_consumer(queue, topics):
    queue.put("x", topic="x")
    id = queue.put("y", topic="b")
    assert queue.get(topics, False).id == id


def named(value: Any) -> str:
    return str(value.__name__).strip("<>")


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda q: q.get(timeout=-1), ValueError),
        (lambda q: q.get(timeout=NAN), ValueError),
        (lambda q: q.get(block=False, timeout=-1), ValueError),
        (lambda q: q.get(timeout="1"), TypeError),
        (lambda q: q.get(lease=0), ValueError),
        (lambda q: q.get(lease=-1), ValueError),
        (lambda q: q.get(lease=INFINITE), ValueError),
        (lambda q: q.get(lease=1e11), ValueError),
        (lambda q: q.get(lease="1"), TypeError),
        (lambda q: q.get(lease=True), TypeError),
        (lambda q: q.get_many(0), ValueError),
        (lambda q: q.get_many(-1), ValueError),
        (lambda q: q.get_many(None), TypeError),
        (lambda q: q.get_many(1.0), TypeError),
        (lambda q: q.get_many(True), TypeError),
        (lambda q: q.consume(prefetch=0), ValueError),
        (lambda q: q.consume(prefetch=None), TypeError),
        (lambda q: q.consume(lease=NAN), ValueError),
        (lambda q: q.find(0), ValueError),
        (lambda q: q.find(-1), ValueError),
        (lambda q: q.find(1 << 63), ValueError),
        (lambda q: q.find("1"), TypeError),
        (lambda q: q.find(None), TypeError),
        (lambda q: q.cancel(0), ValueError),
        (lambda q: q.cancel(True), TypeError),
        (lambda q: q.redrive(0), ValueError),
        (lambda q: q.redrive(1, topic="t"), ValueError),
        (lambda q: q.redrive(topic=7), TypeError),
        (lambda q: q.purge(before=NAIVE), ValueError),
        (lambda q: q.purge(before=NAN), ValueError),
        (lambda q: q.purge(before=10**400), ValueError),
        (lambda q: q.purge(before="today"), TypeError),
        (lambda q: q.purge(True), TypeError),
        (lambda q: q.release_key(7), TypeError),
        (lambda q: q.release_key(None), TypeError),
        (lambda q: q.dead_letters(7), TypeError),
        (lambda q: q.peek(7), TypeError),
        (lambda q: q.empty(7), TypeError),
        (lambda q: q.stats(7), TypeError),
        (lambda q: q.limit("t", 0), ValueError),
        (lambda q: q.limit("t", -1), ValueError),
        (lambda q: q.limit("t", NAN), ValueError),
        (lambda q: q.limit("t", INFINITE), ValueError),
        (lambda q: q.limit("t", 10**400), ValueError),
        (lambda q: q.limit("t", True), TypeError),
        (lambda q: q.limit("t", "1"), TypeError),
        (lambda q: q.limit("t", 1, 0), ValueError),
        (lambda q: q.limit("t", 1, NAN), ValueError),
        (lambda q: q.limit("t", None, -1), ValueError),
        (lambda q: q.limit("t", 1, 1e11), ValueError),
        (lambda q: q.limit("t", 1e-300), ValueError),
        (lambda q: q.limit("t", 1e300, 1e-300), ValueError),
        (lambda q: q.limit("t", 1, 1, 0), ValueError),
        (lambda q: q.limit("t", 1, 1, 1.5), TypeError),
        (lambda q: q.limit("t", 1, 1, 1 << 62), ValueError),
        (lambda q: q.limit(None, 1), TypeError),
        (lambda q: q.pause(None), TypeError),
        (lambda q: q.resume(7), TypeError),
        (lambda q: q.lock_topic(True), TypeError),
        (lambda q: q.lock_topic("t", 0), ValueError),
        (lambda q: q.lock_topic("t", -1), ValueError),
        (lambda q: q.lock_topic("t", INFINITE), ValueError),
        (lambda q: q.lock_topic("t", 1e11), ValueError),
        (lambda q: q.lock_topic("t", "1"), TypeError),
        (lambda q: q.lock_topic("t").extend(0), ValueError),
        (lambda q: q.lock_topic("t").extend(1e11), ValueError),
        (lambda q: q.lock_topic("t").extend("1"), TypeError),
        (lambda q: q.ack_many([1]), TypeError),
        (lambda q: q.ack_many(1), TypeError),
    ],
    ids=named,
)  # fmt: skip
def test_a_wrong_argument(queue, call, error):
    with pytest.raises(error) as caught:
        call(queue)
    assert type(caught.value) is error
    assert queue.stats().puts == 0


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda m: m.extend(0), ValueError),
        (lambda m: m.extend(-1), ValueError),
        (lambda m: m.extend(NAN), ValueError),
        (lambda m: m.extend(INFINITE), ValueError),
        (lambda m: m.extend(1e11), ValueError),
        (lambda m: m.extend("1"), TypeError),
        (lambda m: m.nack(-1), ValueError),
        (lambda m: m.nack(NAN), ValueError),
        (lambda m: m.nack(INFINITE), ValueError),
        (lambda m: m.nack(1e11), ValueError),
        (lambda m: m.nack(datetime(9999, 1, 1, tzinfo=timezone.utc)), ValueError),
        (lambda m: m.nack(NAIVE), ValueError),
        (lambda m: m.nack("1"), TypeError),
        (lambda m: m.nack(error=7), TypeError),
        (lambda m: m.fail(7), TypeError),
    ],
    ids=named,
)
def test_a_wrong_argument_of_a_message(queue, call, error):
    queue.put("x")
    message = queue.get()
    with pytest.raises(error):
        call(message)
    message.ack()


@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("lease", 0, ValueError), ("lease", -1, ValueError), ("lease", INFINITE, ValueError),
        ("lease", 1e11, ValueError), ("lease", "1", TypeError), ("max_attempts", 0, ValueError),
        ("max_attempts", -1, ValueError), ("max_attempts", True, TypeError),
        ("max_attempts", 1 << 63, ValueError),
        ("backoff", -1, ValueError), ("backoff", INFINITE, ValueError), ("backoff", 1e11, ValueError),
        ("keep_done", -1, ValueError),
        ("keep_done", None, TypeError), ("keep_done", 1 << 63, ValueError), ("keep_dead", -1, ValueError),
        ("keep_dead", 1.5, TypeError), ("name", "n" * 256, ValueError), ("name", 7, TypeError),
        ("durability", "none", ValueError), ("timeout", -1, ValueError),
    ],
)  # fmt: skip
def test_a_wrong_option_of_a_queue(states, tmp_path, option, value, error):
    with pytest.raises(error, match=option):
        MessageQueue(tmp_path / "q.db", **{option: value})
    assert not states


TEXTS = strategies.text(strategies.characters(), max_size=20)  # with surrogates


def record(entry: MessageEntry) -> MessageRecord:
    return MessageRecord(
        1, entry.payload, entry.topic, entry.priority, State.READY, 0.0, 0, 0, None, None, entry.key,
        entry.group, entry.headers, None,
    )  # fmt: skip


@hypothesis.given(
    strategies.one_of(TEXTS, strategies.binary(max_size=20)), strategies.dictionaries(TEXTS, TEXTS)
)
def test_keys_and_headers_come_back(key, headers):
    entry = entry_of(b"", vars(OutgoingMessage(None, key=key, headers=headers)))
    assert key_of(record(entry)) == key
    assert headers_of(record(entry)) == headers


@hypothesis.given(TEXTS, strategies.binary(max_size=20))
def test_a_str_and_bytes_have_different_keys(text, data):
    keys = {entry_of(b"", vars(OutgoingMessage(None, key=key))).key for key in (text, data)}
    assert len(keys) == 2


def test_keys_of_other_kinds_of_bytes(queue):
    assert queue.put("x", key=b"k") == 1
    assert queue.put("x", key=bytearray(b"k")) is queue.put("x", key=memoryview(b"k")) is None
    assert queue.put("x", key="k") == 2
    assert queue.put("x", key=Topic.MAILS) == 3
    assert queue.put("x", key="mails") is None


@hypothesis.given(TEXTS)
def test_the_text_of_an_error_can_be_stored(text):
    stored = text_of(text)
    assert stored is not None
    stored.encode()
    assert "\0" not in stored
    if "\0" not in text and text.isprintable():
        assert stored == text


def test_the_text_of_an_error_is_not_endless():
    stored = text_of("x" * 1_000_000)
    assert stored is not None
    assert len(stored) == 10_000


def test_a_rate_is_an_interval(queue, monkeypatch):
    given = []
    monkeypatch.setattr(queue._store, "set_rate", lambda *arguments: given.append(arguments))
    queue.limit("t", 5)
    queue.limit("t", 30, per=60, burst=3)
    queue.limit("t", None)
    assert given == [("t", 0.2, 1), ("t", 2.0, 3), ("t", None, 1)]
    assert all(interval is None or math.isfinite(interval) for _, interval, _ in given)
