"""Odd and extreme inputs of a message queue, as far as a database and back."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies

from persistcoll import Backoff, Empty, MessageQueue, NotClaimedError, OutgoingMessage, State, StorageError
from persistcoll.sqlite import driver
from tests.messages.test_messages import VERBS
from tests.sql_queues.test_clock import JUMPS, Machine

LONGEST = 1e10  # seconds
HIGHEST = (1 << 63) - 1


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[MessageQueue[Any]]:
    with MessageQueue[Any](tmp_path, serializer="json", durability="process", backoff=None) as queue:
        yield queue


def found(queue: MessageQueue[Any], id: int | None) -> Any:
    assert id is not None
    return queue.find(id)


# Texts.

NAMES = strategies.text(max_size=60)  # at most 240 bytes, and no surrogates
TEXTS = strategies.text(strategies.characters(), max_size=30)  # with surrogates


@hypothesis.given(
    topic=NAMES,
    group=NAMES,
    key=strategies.one_of(TEXTS, strategies.binary(max_size=30)),
    headers=strategies.dictionaries(TEXTS, TEXTS, max_size=4),
    error=TEXTS,
)
def test_texts_of_any_content_come_back(topic, group, key, headers, error):
    with MessageQueue[Any](":memory:", serializer="json", backoff=None, max_attempts=2) as queue:
        first = queue.put("a", topic=topic, group=group, key=key, headers=headers)
        assert queue.put("refused", key=key) is None
        queue.put("b", topic=topic, group=group)
        assert queue.topics() == {topic: 1}
        queue.pause(topic)
        with pytest.raises(Empty):
            queue.get(block=False)
        queue.resume(topic)
        lock = queue.lock_topic()
        assert lock is not None
        assert lock.topic == topic
        queue.limit(topic, 1000, burst=9)
        for attempt in (1, 2):
            message = queue.get([topic, "another"], block=False)
            assert (message.id, message.attempts) == (first, attempt)
            assert (message.topic, message.group, message.key) == (topic, group, key)
            assert message.headers == headers
            message.nack(error=error)
        (letter,) = queue.dead_letters(topic)
        assert letter == found(queue, first)
        assert (letter.topic, letter.group, letter.key, letter.headers) == (topic, group, key, headers)
        assert letter.last_error is not None
        assert queue.get(topic, block=False).body == "b"
        assert (queue.stats(topic).dead, queue.stats(topic).claimed) == (1, 1)
        assert queue.release_key(key) is False


ALIKE = [
    "", "\0", "a", "A", "a ", " a", "a\0", "a\0b", "\0a", "1", "1.0", "01", "\u00e9", "e\u0301",
    "\u00df", "ss", "%", "_", "a%", "'", '"', "''", "--", "NULL", "\n", "\r\n", "\u202e", "\ufeff",
    "\ufeffa", "\U0001f600", "\U0001f600\ufe0f", "\U0001f469\u200d\U0001f680", "\U0010ffff",
    "t" * 255, "t" * 254, "\u20ac" * 85,
    "\U0001f600" * 63,
]  # fmt: skip


def test_names_that_look_alike_are_different(queue):
    """As topics, as groups of one topic, and as keys."""
    by_topic = dict(zip(ALIKE, queue.put_many([OutgoingMessage(None, name) for name in ALIKE]), strict=True))
    assert queue.topics() == dict.fromkeys(ALIKE, 1)
    for name, id in by_topic.items():
        assert queue.peek(name).id == id
        message = queue.get(name, block=False)
        assert (message.id, message.topic) == (id, name)
        message.ack()
        assert name not in queue.topics()
    ids = queue.put_many([OutgoingMessage(None, group=name, key=name) for name in ALIKE])
    assert None not in ids
    assert queue.put_many([OutgoingMessage(None, key=name) for name in ALIKE]) == [None] * len(ALIKE)
    keys = [name.encode() for name in ALIKE]
    assert None not in queue.put_many([OutgoingMessage(None, "bytes", key=key) for key in keys])
    assert [message.id for message in queue.get_many(99, "default")] == ids


def test_surrogates_in_keys_and_headers(queue):
    pairs = {"\ud800": "\udfff", "\udcff\ud800": "\0"}
    for key in pairs:
        info = found(queue, queue.put(None, key=key, headers=pairs))
        assert (info.key, info.headers) == (key, pairs)


@pytest.mark.parametrize("name", ["\U0001f600\0", "q" * 255])
def test_a_name_of_any_content(tmp_path, name):
    with MessageQueue[Any](tmp_path, name) as queue, MessageQueue[Any](tmp_path, name.strip("\0")) as other:
        queue.put("x")
        assert len(other) == (queue.name == other.name)


# Numbers at the ends of what is accepted.


@pytest.mark.parametrize("priority", [1.7976931348623157e308, -1.7976931348623157e308, 5e-324, -0.0, 1 << 62])
def test_extreme_priorities(queue, priority):
    ids = queue.put_many([OutgoingMessage(None, priority=each) for each in (0, priority, 1, -1)])
    assert found(queue, ids[1]).priority == priority
    ranks = {0: 0.0, 1: float(priority), 2: 1.0, 3: -1.0}
    expected = sorted(ranks, key=lambda place: (-ranks[place], place))
    assert [message.id - 1 for message in queue.get_many(4)] == expected


def test_extreme_times(queue):
    longest = Backoff(base=LONGEST, factor=1e308, limit=LONGEST, jitter=1)
    id = queue.put("x", ttl=LONGEST, lease=LONGEST, key="k", key_window=LONGEST, backoff=longest)
    late = queue.put("late", delay=LONGEST)
    assert found(queue, late).due_at == pytest.approx(found(queue, late).enqueued_at + LONGEST)
    message = queue.get(block=False)
    assert message.id == id
    assert message.leased_until is not None
    message.extend(LONGEST)
    message.nack()
    assert found(queue, id).state in (State.DELAYED, State.READY)  # with that jitter it may be any delay
    lock = queue.lock_topic("t", lease=LONGEST)
    assert lock is not None
    lock.extend(LONGEST)
    shortest = queue.put("short", topic="short", delay=5e-324, lease=5e-324, backoff=5e-324)
    message = queue.get("short", timeout=30)
    assert message.id == shortest
    assert queue.get("short", timeout=30).attempts == 2
    assert queue.put("x", key="k") is None


def test_as_many_attempts_as_can_be_given(tmp_path):
    with MessageQueue[Any](
        tmp_path, max_attempts=HIGHEST, keep_done=HIGHEST, keep_dead=HIGHEST, backoff=None
    ) as queue:
        id = queue.put("x", max_attempts=HIGHEST)
        for _ in range(3):
            queue.get(block=False).nack()
        assert found(queue, id).attempts == 3
        queue.get_many(10**30)[0].ack()
        assert found(queue, id).state is State.DONE


@pytest.mark.parametrize(
    ("rate", "per", "burst", "most"),
    [
        (1e300, 1.0, 1, 1),
        (1e300, 1e-20, 1, 1),
        (1e12, 1.0, 10**18, 9),
        (HIGHEST, LONGEST, 1, 1),
        (1, LONGEST, 1, 1),
        (1e-9, 1.0, 1, 1),
        (5e-324, 5e-324, 5, 5),
    ],
)
def test_extreme_rates(queue, rate, per, burst, most):
    queue.limit("default", rate, per, burst)
    queue.put_many(range(9))
    assert [message.body for message in queue.get_many(9)] == [*range(most)]
    queue.limit("default", None)
    assert len(queue.get_many(9, block=False)) == 9 - most if most < 9 else len(queue) == 0


# Ids of no message, and messages that are settled already.


@pytest.mark.parametrize("id", [2, 1 << 32, HIGHEST])
def test_ids_of_no_message(queue, id):
    queue.put("x")
    assert queue.find(id) is None
    assert queue.cancel(id) is False
    assert queue.redrive(id) == 0
    assert queue.stats().ready == 1


def test_the_id_of_a_message_that_is_gone(queue):
    id = queue.put("x")
    assert id is not None
    queue.get(block=False).ack()
    assert (queue.find(id), queue.cancel(id), queue.redrive(id)) == (None, False, 0)
    assert queue.put("y") == id + 1


def test_topics_and_keys_that_nobody_uses(queue):
    queue.put("x")
    assert (queue.purge("no"), queue.redrive(topic="no"), queue.qsize("no")) == (0, 0, 0)
    assert (list(queue.dead_letters("no")), queue.release_key("no"), queue.empty("no")) == ([], False, True)
    queue.resume("no")
    queue.limit("no", None)
    assert queue.topics() == {"default": 1}


@pytest.mark.parametrize("second", [*VERBS, "extend"])
@pytest.mark.parametrize("first", VERBS)
def test_a_message_is_settled_once(queue, first, second):
    id = queue.put("x")
    queue.put("y")
    message = queue.get(block=False)
    VERBS[first](message)
    before = found(queue, id)
    with pytest.raises(NotClaimedError):
        {**VERBS, "extend": lambda message: message.extend(5)}[second](message)
    assert found(queue, id) == before
    assert queue.stats().puts == 2


# The system's time is set.


@pytest.mark.parametrize("jump", JUMPS)
def test_the_times_of_messages_are_those_of_the_queues_clock(monkeypatch, tmp_path, jump):
    """After the system's time is set, they differ from it by that until the next boot."""
    machine = Machine(monkeypatch)
    begun = machine.wall
    with MessageQueue[Any](tmp_path, durability="process") as queue:
        queue.put("before")
        machine.wall += jump
        machine.wait(5)
        after = found(queue, queue.put("after", delay=60))
        assert (after.enqueued_at, after.due_at) == (begun + 5, begun + 65)
        assert queue.stats().oldest_age == 5
        message = queue.get(block=False)
        assert (message.body, message.enqueued_at, message.leased_until) == ("before", begun, begun + 65)
        message.fail("no use")
        assert found(queue, message.id).finished_at == begun + 5


@pytest.mark.parametrize("jump", JUMPS)
@pytest.mark.parametrize("dead", [False, True])
@pytest.mark.parametrize("convert", [float, lambda time: datetime.fromtimestamp(time, timezone.utc)])
def test_a_purge_of_old_messages_is_by_the_systems_clock_of_the_purge(
    monkeypatch, tmp_path, jump, dead, convert
):
    """What was put just now stays, and what was put an hour ago goes, whatever the system's time was then."""
    machine = Machine(monkeypatch)
    with MessageQueue[Any](tmp_path, durability="process") as queue:
        for body in ("an hour ago", "now"):
            queue.put(body)
            if dead:
                queue.get(block=False).fail()
            if body != "now":
                machine.wait(3600)
        machine.wall += jump
        for minutes, count in ((61, 0), (59, 1), (1, 0), (-1, 1)):
            time = convert(machine.wall - 60 * minutes)
            assert queue.purge(dead=dead, before=time) == count, minutes


@pytest.mark.parametrize("jump", JUMPS)
def test_a_delay_until_a_time_is_by_the_systems_clock_of_the_put(monkeypatch, tmp_path, jump):
    machine = Machine(monkeypatch)
    with MessageQueue[Any](tmp_path, durability="process") as queue:
        machine.wall += jump
        until = datetime.fromtimestamp(machine.wall, timezone.utc) + timedelta(seconds=60)
        queue.put("x", delay=until)
        queue.put("y")
        queue.get(block=False).nack(until)
        machine.wall -= jump
        machine.wait(59)
        with pytest.raises(Empty):
            queue.get(block=False)
        machine.wait(1)
        assert [message.body for message in queue.get_many(2, block=False)] == ["x", "y"]


# Upkeep.


@pytest.mark.parametrize(("method", "texts"), [("vacuum", "SHRINK"), ("checkpoint", "CHECKPOINT")])
def test_an_error_of_the_upkeep_says_what_failed(queue, monkeypatch, method, texts):
    monkeypatch.setattr(driver, texts, ("SELECT * FROM missing",))
    doing = {"vacuum": "shrinking", "checkpoint": "checkpointing"}[method]
    with pytest.raises(StorageError, match=f"^{doing} "):
        getattr(queue, method)()
