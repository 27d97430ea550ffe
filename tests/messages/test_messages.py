"""A message from its put to its end: what a consumer sees of it, and how it is settled."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from persistcoll import (
    Backoff,
    ClosedError,
    DecodeError,
    Empty,
    EncodeError,
    MessageQueue,
    NotClaimedError,
    OutgoingMessage,
    StaleClaimError,
    State,
    StorageFullError,
)
from tests.messages.conftest import START

VERBS: dict[str, Any] = {
    "ack": lambda message: message.ack(),
    "nack": lambda message: message.nack(),
    "release": lambda message: message.release(),
    "fail": lambda message: message.fail(),
}


def test_what_a_consumer_sees(queue, clock):
    id = queue.put(
        {"a": [1, None]},
        topic="t",
        priority=2.5,
        key="k",
        group="g",
        lease=30,
        ttl=100,
        headers={"trace": "7f"},
    )
    clock.advance(5)
    message = queue.get()
    assert (message.id, message.body, message.topic, message.priority) == (id, {"a": [1, None]}, "t", 2.5)
    assert (message.attempts, message.deliveries, message.enqueued_at) == (1, 1, START)
    assert (message.headers, message.key, message.group) == ({"trace": "7f"}, "k", "g")
    assert (message.last_error, message.leased_until, message.raw()) == (None, START + 35, b'{"a":[1,null]}')
    message.headers["x"] = "y"
    assert message.headers == {"trace": "7f"}
    for name in ("id", "topic", "headers", "leased_until"):
        with pytest.raises(AttributeError):
            setattr(message, name, None)


def test_what_has_no_options(queue):
    queue.put(None)
    message = queue.get()
    assert (message.body, message.topic, message.priority) == (None, "default", 0)
    assert (message.headers, message.key, message.group, message.last_error) == ({}, None, None, None)


def test_the_options_reach_the_store(queue):
    backoff = Backoff(base=3)
    queue.put(
        "x", topic="t", priority=1, delay=2, key=b"k", key_window=3, group="g", lease=None, max_attempts=None,
        backoff=None, ttl=9, headers={},
    )  # fmt: skip
    queue.put_many(["y", OutgoingMessage("z", backoff=2, max_attempts=7)], backoff=backoff, lease=4)
    x, y, z = (row.entry for row in queue._store._state.rows.values())
    assert (x.topic, x.priority, x.delay, x.key_window, x.group, x.ttl) == ("t", 1, 2, 3, "g", 9)
    assert (x.lease, x.max_attempts, x.backoff, x.headers) == (None, None, None, b"")
    assert (y.lease, y.max_attempts, y.backoff) == (4, ..., backoff)
    assert (z.lease, z.max_attempts) == (..., 7)
    assert z.backoff.delay(5) == 2


def test_many_are_put_at_once(queue):
    assert queue.put_many([]) == []
    ids = queue.put_many(
        ["a", OutgoingMessage("b", priority=5), OutgoingMessage("c", key="k"), OutgoingMessage("d", key="k")],
        topic="t",
    )
    assert ids == [1, 2, 3, None]
    assert [queue.find(id).topic for id in ids[:3]] == ["t", "default", "default"]
    assert [message.body for message in queue.get_many(9)] == ["b", "a", "c"]


def test_all_of_many_or_none(queue):
    with pytest.raises(EncodeError):
        queue.put_many(["a", {1, 2}])
    with pytest.raises(ValueError, match="lease"):
        queue.put_many(["a", OutgoingMessage("b", lease=0)])
    assert queue.topics() == {}


def test_many_of_a_generator(queue):
    assert queue.put_many(str(number) for number in range(3)) == [1, 2, 3]


def test_the_lease_of_a_get(queue, clock):
    queue.put_many(["a", "b", OutgoingMessage("c", lease=5)])
    assert queue.get().leased_until == START + 60
    a, c = queue.get_many(2, lease=7)
    assert (a.leased_until, c.leased_until) == (START + 7, START + 7)
    c.release()
    assert queue.get().leased_until == START + 5


def test_no_lease(open_queue, clock):
    queue = open_queue(lease=None)
    queue.put("x")
    message = queue.get()
    assert message.leased_until is None
    clock.advance(1e6)
    message.extend()
    assert message.leased_until is None
    message.extend(5)
    assert message.leased_until == clock.now + 5
    message.ack()


def test_an_ack(queue):
    id = queue.put("x")
    queue.get().ack()
    assert queue.find(id) is None


def test_a_nack(queue, clock):
    id = queue.put("x")
    queue.get().nack(7, "too early")
    info = queue.find(id)
    assert (info.state, info.due_at, info.last_error) == (State.DELAYED, START + 7, "too early")
    clock.advance(7)
    message = queue.get()
    assert (message.attempts, message.last_error) == (2, "too early")
    message.nack()
    assert queue.get().last_error == "too early"


def test_a_nack_backs_off(open_queue, clock):
    queue = open_queue(backoff=Backoff(base=10, jitter=0))
    id = queue.put("x")
    queue.get().nack()
    assert queue.find(id).due_at == START + 10
    clock.advance(10)
    queue.get().nack(0)
    assert queue.find(id).state is State.READY


def test_a_release(queue):
    queue.put_many(["x", "y"])
    queue.get().release()
    message = queue.get()
    assert (message.body, message.attempts, message.deliveries) == ("x", 1, 2)


def test_a_failure(queue):
    id = queue.put("x")
    queue.get().fail("no use")
    info = queue.find(id)
    assert (info.state, info.last_error, info.finished_at) == (State.DEAD, "no use", START)


def test_an_extension(queue, clock):
    queue.put("x")
    message = queue.get(lease=10)
    clock.advance(8)
    message.extend()
    assert message.leased_until == START + 18
    message.extend(3)
    assert message.leased_until == START + 11
    clock.advance(3)
    with pytest.raises(StaleClaimError):
        message.extend()
    assert message.leased_until == START + 11


@pytest.mark.parametrize("second", [*VERBS, "extend"])
@pytest.mark.parametrize("first", VERBS)
def test_a_second_verb(queue, first, second):
    queue.put("x")
    message = queue.get()
    VERBS[first](message)
    with pytest.raises(NotClaimedError, match="settled already"):
        {**VERBS, "extend": lambda message: message.extend()}[second](message)


@pytest.mark.parametrize("verb", [*VERBS, "extend"])
def test_a_verb_after_the_lease(queue, clock, verb):
    id = queue.put("x")
    message = queue.get()
    clock.advance(60)
    again = queue.get()
    with pytest.raises(StaleClaimError) as caught:
        {**VERBS, "extend": lambda message: message.extend()}[verb](message)
    assert caught.value.ids == (id,)
    assert "settled" not in repr(message)
    again.ack()


def test_a_verb_after_another_object_has_the_message_again(queue, clock):
    """What this object settled is not claimed any more, and the present claim stays."""
    queue.put("x")
    message = queue.get()
    message.release()
    again = queue.get()
    with pytest.raises(NotClaimedError):
        message.ack()
    again.ack()


def test_a_verb_after_the_end_of_the_queue(queue):
    queue.put("x")
    message = queue.get()
    queue.close()
    with pytest.raises(ClosedError):
        message.ack()


def test_many_acks(queue):
    queue.put_many(["a", "b", "c"])
    held = queue.get_many(3)
    queue.ack_many(iter([*held, held[0]]))
    assert queue.topics() == {}
    assert all("settled" in repr(message) for message in held)
    with pytest.raises(StaleClaimError) as caught:
        queue.ack_many(held[:2])
    assert sorted(caught.value.ids) == [1, 2]
    queue.ack_many([])


def test_many_acks_with_stale_ones(queue, clock):
    queue.put_many(["a", "b", "c"])
    held = [queue.get(lease=5), queue.get(), queue.get(lease=5)]
    clock.advance(5)
    with pytest.raises(StaleClaimError) as caught:
        queue.ack_many(held)
    assert sorted(caught.value.ids) == [1, 3]
    queue.ack_many([held[1]])
    assert [queue.find(id) is None for id in (1, 2, 3)] == [False, True, False]


# The block.


def test_a_block_that_ends_well(queue):
    queue.put("x")
    with queue.get() as message:
        assert message.body == "x"
    assert queue.topics() == {}


class Unprintable(Exception):
    def __str__(self) -> str:
        raise ValueError


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("no\ud800\0"), "ValueError: no\\ud800\\x00"),
        (KeyError(), "KeyError: "),
        (Unprintable(), "Unprintable: a text that cannot be made, because of ValueError"),
    ],
    ids=["odd", "empty", "unprintable"],
)
def test_a_block_that_raises(queue, error, text):
    id = queue.put("x")
    with pytest.raises(type(error)) as caught, queue.get():
        raise error
    assert caught.value is error
    info = queue.find(id)
    assert (info.state, info.attempts, info.last_error) == (State.READY, 1, text)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_a_block_that_is_ended(queue, error):
    id = queue.put("x")
    with pytest.raises(error), queue.get():
        raise error
    info = queue.find(id)
    assert (info.state, info.attempts, info.last_error) == (State.READY, 0, None)


@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("verb", VERBS)
def test_a_block_that_has_settled(queue, verb, raises):
    """The end of the block changes nothing, and asks the store for nothing."""
    id = queue.put("x")
    try:
        with queue.get() as message:
            VERBS[verb](message)
            queue._store._closed = True  # each call would raise now
            if raises:
                raise LookupError
    except LookupError:
        assert raises
    queue._store._closed = False
    info = queue.find(id)
    states = {"ack": None, "fail": State.DEAD}
    assert (info and info.state) == states.get(verb, State.READY)


def test_a_block_whose_lease_ran_out(queue, clock):
    id = queue.put("x")
    message = queue.get()
    with pytest.raises(StaleClaimError), message:
        clock.advance(60)
    assert queue.find(id).last_error == "lease ran out"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_block_that_raises_after_its_lease(queue, clock, error):
    """The block's own error is raised."""
    queue.put("x")
    message = queue.get()
    clock.advance(60)
    with pytest.raises(error), message:
        raise error


def test_a_block_whose_ack_fails(queue, monkeypatch):
    """The message stays claimed until its lease is over, and the attempt counts."""
    id = queue.put("x")

    def full(claims: Any) -> None:
        raise StorageFullError("no room")

    monkeypatch.setattr(queue._store, "ack", full)
    with pytest.raises(StorageFullError), queue.get():
        pass
    assert queue.find(id).state is State.CLAIMED


def test_a_block_whose_ack_is_interrupted(queue, monkeypatch):
    id = queue.put("x")

    def interrupted(claims: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(queue._store, "ack", interrupted)
    with pytest.raises(KeyboardInterrupt), queue.get():
        pass
    info = queue.find(id)
    assert (info.state, info.attempts) == (State.READY, 0)


# The object.


def test_a_message_is_neither_copied_nor_pickled(queue):
    queue.put("x")
    message = queue.get()
    for way in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="claimed by this process"):
            way(message)


def test_its_repr_tells_no_body(queue):
    queue.put("secret", topic="t")
    message = queue.get()
    assert repr(message) == "<Message 1 of topic 't', attempt 1>"
    message.ack()
    assert repr(message) == "<Message 1 of topic 't', settled>"


def test_an_info_is_a_value(queue):
    queue.put({"a": 1}, headers={"b": "c"}, key="k")
    info = queue.find(1)
    assert info == queue.find(1)
    assert pickle.loads(pickle.dumps(info)) == info
    assert info.body == {"a": 1}
    with pytest.raises(AttributeError):
        info.state = State.DEAD
    queue.get()
    assert info != queue.find(1)


# Bodies that cannot be decoded.


class Codec:
    """JSON that refuses what begins with these letters, until told otherwise."""

    name = "picky"
    executes_code = False
    refused = b"bad"
    error: type[Exception] = ValueError
    before: Any = staticmethod(lambda data: None)

    def dumps(self, obj: Any) -> bytes:
        return str(obj).encode()

    def loads(self, data: bytes) -> Any:
        self.before(data)
        if data.startswith(self.refused):
            raise self.error
        return data.decode()


@pytest.fixture
def picky(open_queue) -> MessageQueue[Any]:
    queue: MessageQueue[Any] = open_queue(serializer=Codec(), backoff=None, max_attempts=3)
    return queue


def test_get_passes_over_what_cannot_be_decoded(picky, clock):
    picky.put_many(["bad 1", "bad 2", "good"])
    with picky.get(block=False) as message:
        assert message.body == "good"
    info = picky.find(1)
    assert "cannot be deserialized" in info.last_error
    assert "bad" not in info.last_error
    with pytest.raises(Empty):
        picky.get(block=False)
    for _ in range(3):
        clock.advance(1)
        with pytest.raises(Empty):
            picky.get(block=False)
    assert [letter.id for letter in picky.dead_letters()] == [1, 2]
    assert picky.find(1).deliveries == 3


def test_what_cannot_be_decoded_and_never_dies(open_queue):
    """A call does not go on with one message for ever."""
    queue = open_queue(serializer=Codec(), backoff=None, max_attempts=None)
    queue.put("bad")
    with pytest.raises(Empty):
        queue.get(block=False)
    assert queue.find(1).state is State.DELAYED


def test_get_many_gives_what_can_be_decoded(picky):
    picky.put_many(["a", "bad", "b", "bad too"])
    assert [message.body for message in picky.get_many(4)] == ["a", "b"]
    assert picky.find(2).attempts == 1


def test_what_cannot_be_decoded_and_whose_lease_is_over(picky, clock, monkeypatch):
    picky.put_many(["bad", "good"])
    monkeypatch.setattr(Codec, "before", lambda self, data: clock.advance(60 if data == b"bad" else 0))
    assert picky.get(block=False).body == "good"


@pytest.mark.parametrize("error", [MemoryError, RecursionError])
def test_a_shortage_condemns_no_message(picky, monkeypatch, error):
    picky.put_many(["good", "bad"])
    monkeypatch.setattr(Codec, "error", error)
    with pytest.raises(error):
        picky.get_many(2)
    assert [picky._store.find(id).attempts for id in (1, 2)] == [0, 0]
    assert picky.topics() == {"default": 2}


def test_a_look_at_what_cannot_be_decoded(picky):
    """What is dead for this reason hides no other dead letter, and its other attributes are there."""
    picky.put_many(["bad", "good"])
    for message in picky._store.claim(2):
        picky._store.fail([message.claim])
    first, second = picky.dead_letters()
    assert (first.id, first.state, second.body) == (1, State.DEAD, "good")
    with pytest.raises(DecodeError, match=r"cancel\(1\) removes it") as caught:
        _ = first.body
    assert caught.value.id == 1
    assert "bad" not in repr(first)
    assert pickle.loads(pickle.dumps(first)) == first


def test_bodies_are_sealed(open_queue):
    from persistcoll.serializers import signed

    queue = open_queue(serializer=signed("json", b"a key of 16 bytes or more"))
    queue.put_many(["a", "b"])
    assert queue.peek().body == "a"
    rows = queue._store._state.rows
    rows[1].entry, rows[2].entry = rows[2].entry, rows[1].entry
    with pytest.raises(Empty):
        queue.get(block=False)
    assert "cannot" in queue.find(1).last_error or queue.find(1).last_error
