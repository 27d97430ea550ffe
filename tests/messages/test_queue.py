"""What a message queue offers beside getting: dead letters, removal, inspection, topics, its own life."""

from __future__ import annotations

import copy
import errno
import inspect
import pickle
import time
import weakref
from datetime import datetime, timezone
from typing import Any

import pytest

from persistcoll import (
    Backoff,
    ClosedError,
    DecodeError,
    DuplicateError,
    Empty,
    MessageQueue,
    OutgoingMessage,
    ShutDown,
    StaleClaimError,
    State,
    StorageError,
)
from persistcoll.engine.memory.server import MemoryConnection
from tests.messages.conftest import START


def kill(queue: MessageQueue[Any], *bodies: str, **options: Any) -> list[int | None]:
    ids = queue.put_many(bodies, **options)
    for message in queue.get_many(9, options.get("topic")):
        message.fail(f"{message.body} is dead")
    return ids


# Dead letters and removal.


def test_dead_letters(queue, clock):
    kill(queue, "a", "b")
    clock.advance(5)
    kill(queue, "c", topic="t")
    letters = list(queue.dead_letters())
    assert [letter.body for letter in letters] == ["a", "b", "c"]
    assert {letter.state for letter in letters} == {State.DEAD}
    assert letters[0].last_error == "a is dead"
    assert [letter.enqueued_at for letter in letters] == [START, START, START + 5]
    assert [letter.id for letter in queue.dead_letters("t")] == [3]


def test_redriving(queue):
    kill(queue, "a", "b")
    kill(queue, "c", topic="t")
    assert queue.redrive(1) == 1
    assert queue.redrive(1) == queue.redrive(99) == 0
    assert queue.redrive(topic="t") == 1
    assert queue.redrive() == 1
    message = queue.get()
    assert (message.id, message.attempts, message.deliveries, message.last_error) == (1, 1, 2, "a is dead")


def test_redriving_what_has_a_key_of_another(queue):
    kill(queue, "a", key="k")
    queue.put("b", key="k")
    with pytest.raises(DuplicateError):
        queue.redrive(1)
    assert queue.redrive() == 0


def test_purging(queue, clock, monkeypatch):
    monkeypatch.setattr(time, "time", clock)
    queue.put_many(["a", OutgoingMessage("b", delay=50), OutgoingMessage("c", topic="t")])
    clock.advance(10)
    queue.put("d")
    held = queue.get("t")
    assert queue.purge(before=datetime.fromtimestamp(START + 10, timezone.utc)) == 2
    assert queue.purge("t") == 0
    assert queue.purge("default", before=START + 10) == 0
    assert queue.purge(before=START + 11) == 1
    held.fail()
    assert queue.purge() == 0
    assert queue.purge(dead=True) == 1
    assert queue.topics() == {}


def test_cancelling(queue):
    queue.put_many(["a", OutgoingMessage("b", key="k")])
    held = queue.get()
    assert queue.cancel(held.id) is False
    assert queue.cancel(2) is True
    assert queue.cancel(2) is False
    assert queue.put("c", key="k") == 3
    held.ack()


def test_keys(queue, clock):
    assert [queue.put("a", key="k"), queue.put("b", key="k"), queue.put("b", key=b"k")] == [1, None, 2]
    assert queue.release_key("k") is True
    assert queue.release_key("k") is False
    assert queue.put("c", key="k", key_window=100) == 3
    for message in queue.get_many(9):
        message.ack()
    assert queue.put("d", key="k") is None
    clock.advance(100)
    assert queue.put("d", key="k") == 4


# Inspection.


def test_a_look_at_each_state(open_queue, clock):
    queue = open_queue(keep_done=5)
    queue.put("ready", priority=3, headers={"a": "b"}, key="k")
    queue.put("delayed", delay=50)
    queue.put("claimed", topic="claimed", group="g")
    queue.put("blocked", topic="claimed", group="g", delay=70)
    queue.put_many(["done", "dead"], topic="over")
    queue.get("claimed")
    clock.advance(1)
    done, dead = queue.get_many(2, "over")
    done.ack()
    dead.fail("why")
    infos = {info.body: info for info in map(queue.find, range(1, 7))}
    assert {body: info.state.value for body, info in infos.items()} == {body: body for body in infos}
    assert {body: info.due_at for body, info in infos.items() if info.due_at} == {
        "delayed": START + 50, "blocked": START + 70,
    }  # fmt: skip
    assert {body: info.leased_until for body, info in infos.items() if info.leased_until} == {
        "claimed": START + 60
    }
    assert {body: info.finished_at for body, info in infos.items() if info.finished_at} == {
        "done": START + 1, "dead": START + 1,
    }  # fmt: skip
    ready = infos["ready"]
    assert (ready.id, ready.topic, ready.priority, ready.attempts, ready.deliveries) == (
        1,
        "default",
        3,
        0,
        0,
    )
    assert (ready.headers, ready.key, ready.group, ready.last_error) == ({"a": "b"}, "k", None, None)
    assert (infos["claimed"].group, infos["dead"].last_error, infos["dead"].attempts) == ("g", "why", 1)
    assert queue.find(7) is None
    stats = queue.stats()
    assert (stats.ready, stats.delayed, stats.claimed, stats.blocked, stats.done, stats.dead) == (1,) * 6
    assert queue.stats("over").dead == 1
    assert queue.stats("over").ready == 0


def test_counts(queue):
    assert (len(queue), queue.qsize(), queue.empty(), bool(queue)) == (0, 0, True, True)
    with pytest.raises(Empty):
        queue.peek()
    queue.put_many(["a", "b"], topic="t")
    queue.put_many(["c", OutgoingMessage("d", priority=1)])
    queue.pause("t")
    assert (len(queue), queue.qsize(), queue.qsize("t"), queue.qsize("no")) == (4, 4, 2, 0)
    assert (queue.empty(), queue.empty("t"), queue.empty("no")) == (False, False, True)
    assert queue.topics() == {"t": 2, "default": 2}
    assert (queue.peek().body, queue.peek("t").body) == ("d", "a")
    with pytest.raises(Empty):
        queue.peek("no")


# Topics.


def test_a_paused_topic(queue):
    queue.put("x", topic="t")
    queue.pause("t")
    with pytest.raises(Empty):
        queue.get("t", False)
    queue.resume("t")
    queue.get("t", False).ack()


def test_a_limited_topic(queue, clock):
    queue.put_many("abcd", topic="t")
    queue.limit("t", 2, per=10, burst=2)
    assert len(queue.get_many(9)) == 2
    with pytest.raises(Empty):
        queue.get("t", False)
    clock.advance(5)
    assert len(queue.get_many(9)) == 1
    queue.limit("t", None)
    assert len(queue.get_many(9)) == 1


def test_a_locked_topic(open_queue):
    mine, other = open_queue(), open_queue()
    mine.put_many("ab", topic="t")
    lock = mine.lock_topic("t")
    assert repr(lock) == "<TopicLock of 't'>"
    assert mine.lock_topic("t") is other.lock_topic("t") is None
    assert mine.lock_topic() is None
    with pytest.raises(Empty):
        other.get("t", False)
    with lock:
        assert mine.get("t", False).body == "a"
    assert other.get("t", False).body == "b"
    lock.release()
    with pytest.raises(StaleClaimError):
        lock.extend()
    for way in (copy.copy, pickle.dumps):
        with pytest.raises(TypeError, match="held by this process"):
            way(lock)


def test_the_end_of_a_lock(open_queue, clock):
    mine, other = open_queue(), open_queue()
    mine.put_many("abc", topic="t")
    mine.put("x", topic="u")
    lock = mine.lock_topic(lease=10)
    assert lock.topic == "t"
    clock.advance(9)
    lock.extend()
    clock.advance(9)
    assert other.lock_topic().topic == "u"
    lock.extend(5)
    clock.advance(5)
    other.get("t", False).ack()
    forever = mine.lock_topic("t", lease=None)
    clock.advance(1e6)
    forever.extend()
    with pytest.raises(Empty):
        other.get("t", False)
    mine.close()
    other.get("t", False).ack()


def test_a_lock_whose_release_is_interrupted(queue, monkeypatch):
    lock = queue.lock_topic("t")
    unlock = queue._store.unlock_topic
    calls = []

    def interrupted(claim: Any) -> Any:
        calls.append(claim)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return unlock(claim)

    monkeypatch.setattr(queue._store, "unlock_topic", interrupted)
    with pytest.raises(KeyboardInterrupt), lock:
        pass
    assert queue.lock_topic("t") is not None


# Upkeep.


def test_recovering(open_queue, clock):
    mine, other = open_queue(), open_queue()
    mine.put_many("ab")
    mine.get(lease=5)
    clock.advance(5)
    assert other.recover() == 1
    assert other.recover() == 0


@pytest.mark.parametrize(("name", "called"), [("vacuum", "shrink"), ("checkpoint", "checkpoint")])
def test_upkeep_is_the_stores(queue, monkeypatch, name, called):
    calls = []
    monkeypatch.setattr(queue._store, called, lambda: calls.append(called))
    getattr(queue, name)()
    assert calls == [called]


# Its own life.

GIVEN: dict[str, Any] = {
    "name": "n", "lease": 5.0, "max_attempts": 3, "backoff": Backoff(base=2), "keep_done": 7, "keep_dead": 9,
    "serializer": "json", "durability": "process", "timeout": 5.0, "db_file_name": "x.db", "mode": 0o640,
    "trust_directory": True, "allow_network_fs": True, "read_only": False, "create": True,
}  # fmt: skip


def test_every_parameter_is_an_attribute(states, tmp_path):
    with MessageQueue(tmp_path / "d", **GIVEN) as queue:
        assert {name: getattr(queue, name) for name in GIVEN} == GIVEN
        assert queue.path == queue.target == str(tmp_path / "d")
        parameters = inspect.signature(MessageQueue).parameters
        of_servers = {"password", "schema"}
        assert {name for name in parameters if not hasattr(queue, name)} == of_servers
        for name in [*GIVEN, "target"]:
            with pytest.raises(AttributeError):
                setattr(queue, name, None)
        policy = queue._options.policy
        assert policy == (5.0, 3, Backoff(base=2), 7, 9)


def test_the_defaults(states, tmp_path):
    with MessageQueue(tmp_path / "d") as queue:
        assert queue._options.policy == (60.0, 5, Backoff(), 0, None)
        assert (queue.name, queue.durability, queue.timeout) == ("messages", "power", 10.0)


def test_names_share_nothing(open_queue):
    open_queue("a").put("x")
    assert len(open_queue("b")) == 0
    assert len(open_queue("a")) == 1


@pytest.mark.parametrize(
    "way",
    [lambda one: pickle.loads(pickle.dumps(one)), copy.copy, copy.deepcopy],
    ids=["pickle", "copy", "deepcopy"],
)
def test_another_object_on_the_same_queue(queue, way):
    queue.put("x")
    with way(queue) as other:
        assert type(other) is MessageQueue
        assert other._options == queue._options
        assert other.get(block=False).body == "x"
        assert other.__getstate__() == {}


def test_what_is_in_memory_is_not_copied(states):
    with MessageQueue(":memory:") as queue, pytest.raises(TypeError, match="in memory"):
        pickle.dumps(queue)


def test_its_repr(queue):
    assert repr(queue) == f"<MessageQueue 'messages' in {queue.path!r}, 0 ready>"
    queue.close()
    assert repr(queue).endswith(" closed>")


def test_its_end(queue):
    queue.put("x")
    queue.get()
    queue.close()
    queue.close()
    for call in (
        lambda: queue.put("y"), queue.get, lambda: next(queue.consume()), queue.join, queue.topics,
        queue.stats, lambda: queue.ack_many([]), lambda: queue.lock_topic("t"),
        lambda: queue.get_many(2, block=False),
    ):  # fmt: skip
        with pytest.raises(ClosedError):
            call()


def test_what_was_claimed_at_its_end(open_queue):
    queue, other = open_queue(), open_queue()
    queue.put("x")
    queue.get()
    queue.close()
    message = other.get(block=False)
    assert (message.attempts, message.last_error) == (2, "its queue was closed")


def test_it_warns_if_it_is_not_closed(states, tmp_path):
    queues: Any = [MessageQueue(tmp_path / "q.db")]
    store = queues[0]._store
    with pytest.warns(ResourceWarning, match="unclosed <MessageQueue 'messages' in"):
        queues.clear()
    with pytest.raises(ClosedError):
        store.topics()


def test_it_is_in_no_reference_cycle(states, tmp_path, no_collector):
    """The last reference frees it, and not the collector at a later time."""
    queue: Any = MessageQueue(tmp_path / "q.db")
    queue.put("x")
    queue.get().nack(5)
    queue._store._state.rows[1].entry = queue._store._state.rows[1].entry._replace(payload=b"no pickle")
    info = queue.find(1)
    with pytest.raises(DecodeError):
        _ = info.body
    with pytest.raises(Empty):
        queue.get(timeout=0)
    queue.close()
    reference = weakref.ref(queue)
    del queue
    assert reference() is None


def test_it_only_looks(open_queue):
    queue = open_queue(keep_done=3)
    queue.put("x")
    looking = open_queue(read_only=True)
    for name, call in {
        "put": lambda: looking.put("y"), "put_many": lambda: looking.put_many([]), "get": looking.get,
        "get_many": lambda: looking.get_many(1), "consume": looking.consume, "purge": looking.purge,
        "ack_many": lambda: looking.ack_many([]), "redrive": looking.redrive,
        "cancel": lambda: looking.cancel(1),
        "release_key": lambda: looking.release_key("k"), "lock_topic": looking.lock_topic,
        "limit": lambda: looking.limit("t", 1), "pause": lambda: looking.pause("t"),
        "resume": lambda: looking.resume("t"), "recover": looking.recover, "vacuum": looking.vacuum,
        "checkpoint": looking.checkpoint, "transaction": looking.transaction,
    }.items():  # fmt: skip
        with pytest.raises(StorageError, match="read_only=True") as caught:
            call()
        assert caught.value.errno == errno.EROFS, name
    assert (looking.peek().body, looking.topics(), len(looking), looking.find(1).id) == (
        "x",
        {"default": 1},
        1,
        1,
    )
    assert list(looking.dead_letters()) == []
    assert looking.stats().ready == 1
    assert looking.empty() is False


# Shutdown.


def test_a_shutdown(queue):
    queue.put_many("ab")
    held = queue.get()
    before = queue.is_shutdown
    queue.shutdown()
    assert (before, queue.is_shutdown) == (False, True)
    for call in (lambda: queue.put("c"), lambda: queue.put_many(["c"])):
        with pytest.raises(ShutDown):
            call()
    assert queue.get().body == "b"
    for call in (queue.get, lambda: queue.get(block=False), lambda: queue.get_many(3)):
        with pytest.raises(ShutDown):
            call()
    held.ack()
    assert list(queue.consume()) == []
    assert queue.stats().puts == 2


def test_an_immediate_shutdown(queue):
    queue.put("a")
    queue.shutdown(immediate=True)
    with pytest.raises(ShutDown):
        queue.get()
    assert len(queue) == 1


def test_other_objects_do_not_notice_a_shutdown(open_queue):
    mine, other = open_queue(), open_queue()
    mine.shutdown(immediate=True)
    other.put("x")
    other.get(block=False).ack()


# A caller's connection.

CALLS: dict[str, Any] = {
    "put": lambda queue, message, c: queue.put("y", connection=c),
    "put_many": lambda queue, message, c: queue.put_many(["y"], connection=c),
    "get": lambda queue, message, c: queue.get(block=False, connection=c),
    "get_many": lambda queue, message, c: queue.get_many(1, block=False, connection=c),
    "ack_many": lambda queue, message, c: queue.ack_many([message], connection=c),
    "ack": lambda queue, message, c: message.ack(connection=c),
    "nack": lambda queue, message, c: message.nack(connection=c),
    "release": lambda queue, message, c: message.release(connection=c),
    "fail": lambda queue, message, c: message.fail(connection=c),
    "extend": lambda queue, message, c: message.extend(connection=c),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_connection_that_cannot_be_joined(queue, call):
    queue.put_many("ab")
    message = queue.get()
    with pytest.raises(ValueError, match=r"use transaction\(\)"):
        CALLS[call](queue, message, object())
    message.ack()


def test_what_joins_a_transaction_of_its_caller(server_queue):
    queue = server_queue
    connection = MemoryConnection(queue._store._state)
    queue.put_many("ab")
    first = queue.get()
    connection.begin()
    queue.put("c", connection=connection)
    second = queue.get(connection=connection)
    second.ack(connection=connection)
    first.ack(connection=connection)
    with pytest.raises(Empty):  # it does not wait
        queue.get("no", connection=connection)
    connection.commit()
    assert [queue.find(id) is None for id in (1, 2, 3)] == [True, True, False]


def test_a_message_of_a_transaction_is_settled_after_it(server_queue):
    queue = server_queue
    connection = MemoryConnection(queue._store._state)
    queue.put_many("ab")
    connection.begin()
    message = queue.get(connection=connection)
    connection.commit()
    connection.begin()
    message.ack()
    connection.rollback()
    assert queue.find(1) is None


def test_what_is_settled_in_a_transaction_that_is_rolled_back(server_queue):
    queue = server_queue
    connection = MemoryConnection(queue._store._state)
    queue.put("a")
    with queue.get() as message:
        connection.begin()
        message.nack(connection=connection)
        connection.rollback()
    assert queue.find(1) is None
