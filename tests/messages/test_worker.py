"""Workers: what becomes of a message, how many handlers run at once, what is claimed ahead."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import Counter
from typing import Any

import pytest

from persistcoll import ClosedError, MessageQueue, OutgoingMessage, State, StorageError, Worker
from tests.messages.waits import until_asleep
from tests.messages.workers import Held, bodies, running, threads
from tests.queues.waits import until


def work(queue: MessageQueue[Any], handler: Any = lambda message: None, **options: Any) -> None:
    """Run a worker until nothing is ready or claimed any more."""
    with running(Worker(queue, handler, **options)):
        until(lambda: not queue.stats().ready and not queue.stats().claimed)


# What becomes of a message


def test_a_message_whose_handler_returns_is_acked(open_queue):
    queue = open_queue(keep_done=9)
    queue.put_many("abc")
    got = []
    work(queue, lambda message: got.append((message.body, message.attempts)))
    assert got == [("a", 1), ("b", 1), ("c", 1)]
    assert bodies(queue, State.DONE) == "abc"


SETTLED: dict[str, tuple[Any, State]] = {
    "ack": (lambda message: message.ack(), State.DONE),
    "nack": (lambda message: message.nack(delay=900), State.DELAYED),
    "fail": (lambda message: message.fail("no"), State.DEAD),
    "a block": (lambda message: message.__exit__(None, None, None), State.DONE),
}


@pytest.mark.parametrize("how", SETTLED)
def test_what_the_handler_settles_stays_as_it_is(open_queue, how, caplog, monkeypatch):
    """The worker asks the store nothing more."""
    queue = open_queue(keep_done=9)
    queue.put("a")
    settle, state = SETTLED[how]
    acks, ack = [], queue._store.ack

    def watched(claims: Any) -> None:
        acks.append(claims)
        ack(claims)

    monkeypatch.setattr(queue._store, "ack", watched)
    work(queue, settle)
    assert bodies(queue, state) == "a"
    assert len(acks) == (state is State.DONE)
    assert not caplog.records


def test_a_message_that_its_handler_releases_comes_again(queue):
    queue.put("a")
    attempts = []

    def handle(message: Any) -> None:
        attempts.append(message.attempts)
        if len(attempts) < 3:
            message.release()

    work(queue, handle)
    assert attempts == [1, 1, 1]


@pytest.mark.parametrize("is_stored", [True, False], ids=["committed", "rolled back"])
def test_a_transaction_of_the_handler_settles(tmp_path, is_stored):
    """After a rollback the message is not settled, so the worker acks it."""
    with MessageQueue[Any](tmp_path, serializer="json", durability="process", keep_done=9) as queue:
        queue.put("a")

        def handle(message: Any) -> None:
            try:
                with queue.transaction():
                    queue.put("b", topic="results")
                    message.ack()
                    if not is_stored:
                        raise LookupError
            except LookupError:
                pass

        with running(Worker(queue, handle, topics="default")):
            until(lambda: queue.stats().done == 1)
        assert queue.topics() == ({"default": 0, "results": 1} if is_stored else {"default": 0})


@pytest.mark.parametrize("error", [ValueError("no"), asyncio.CancelledError("no")], ids=repr)
def test_a_message_whose_handler_raises_is_nacked(open_queue, error):
    """What cancels a task of the handler's own is no request to stop."""
    queue = open_queue(max_attempts=2, backoff=0)
    queue.put("a")
    attempts = []

    def handle(message: Any) -> None:
        attempts.append((message.attempts, message.last_error))
        raise error

    work(queue, handle)
    text = f"{type(error).__name__}: no"
    assert attempts == [(1, None), (2, text)]
    (letter,) = queue.dead_letters()
    assert letter.last_error == text


def test_a_nacked_message_is_delayed_by_its_backoff(open_queue, clock):
    queue = open_queue(backoff=10)
    queue.put("a")
    work(queue, lambda message: 1 / 0)
    assert queue.find(1).due_at == clock() + 10


def test_on_error(queue):
    """It is called before the message is nacked, and may settle it in another way."""
    queue.put_many(["wait", "give up"])
    called = []

    def handle(message: Any) -> None:
        raise ValueError(message.body)

    def on_error(message: Any, error: BaseException) -> None:
        called.append((message.body, repr(error), queue.find(message.id).state))
        if message.body == "give up":
            message.fail("no way")
        else:
            message.nack(delay=60, error="later")

    work(queue, handle, on_error=on_error)
    assert called == [
        ("wait", "ValueError('wait')", State.CLAIMED), ("give up", "ValueError('give up')", State.CLAIMED),
    ]  # fmt: skip
    assert [queue.find(id).last_error for id in (1, 2)] == ["later", "no way"]
    assert [queue.find(id).state for id in (1, 2)] == [State.DELAYED, State.DEAD]


def test_the_log_has_no_bodies(queue, caplog):
    """The text of an error may quote one, and so may that of an error in the hook."""
    queue.put("secret", topic="letters", headers={"trace": "secret"}, max_attempts=1)

    def handle(message: Any) -> None:
        raise ValueError(message.body)

    def on_error(message: Any, error: BaseException) -> None:
        raise LookupError(message.body)

    with caplog.at_level(logging.DEBUG, "persistcoll"):
        work(queue, handle, on_error=on_error)
    assert [record.getMessage() for record in caplog.records] == [
        "the handler raised ValueError for message 1 of topic 'letters', attempt 1",
        "on_error raised LookupError for message 1 of topic 'letters'",
    ]
    assert "secret" not in caplog.text
    assert queue.find(1).last_error == "ValueError: secret"


def test_what_cannot_be_decoded_is_passed_over(open_queue):
    queue = open_queue(backoff=900)
    queue.put_many("abcd")
    queue._store._state.rows[2].entry = queue._store._state.rows[2].entry._replace(payload=b"no JSON")
    got: list[str] = []
    worker = Worker(queue, lambda message: got.append(message.body), prefetch=3)
    with running(worker):
        until(lambda: len(got) == 3)
        until(lambda: not worker._claims)
    assert got == ["a", "c", "d"]
    assert queue.find(2).state is State.DELAYED


# How many handlers run at once


def test_concurrency(queue):
    queue.put_many("abcde")
    held = Held()
    with running(Worker(queue, held, concurrency=3, prefetch=0)):
        held.begun(3)
        until_asleep(queue, 1, ())
        assert bodies(queue, State.READY) == "de"
        assert threads() == 3
        held.open()
        held.begun(2)
        until(lambda: len(held.handled) == 5)
        assert threads() == 3


def test_concurrency_by_topic(queue):
    """A topic whose handlers hang leaves those of other topics alone."""
    queue.put_many("abc", topic="slow")
    held, quick = Held(), []

    def handle(message: Any) -> None:
        if message.topic == "slow":
            held(message)
        else:
            quick.append(message.body)

    with running(Worker(queue, handle, concurrency={"slow": 2, "quick": 1}, prefetch=0)):
        held.begun(2)
        until_asleep(queue, 1, ("quick",))
        for number in range(3):
            queue.put(number, topic="quick")
            until(lambda number=number: len(quick) == number + 1)
        queue.put("x", topic="other")
        assert not held.has_begun()
        assert threads() == 3
        held.open()
        until(lambda: len(held.handled) == 3)
    assert queue.topics() == {"other": 1}


def test_a_claim_gives_no_topic_more_than_its_concurrency(queue):
    """One claim for both topics could get only messages of one of them."""
    queue.put_many([OutgoingMessage(number, topic="a") for number in range(5)])
    queue.put_many([OutgoingMessage(number, topic="b") for number in range(5)])
    most: Counter[str] = Counter()
    held = Held()
    with running(Worker(queue, held, concurrency={"a": 1, "b": 3}, prefetch=0)):
        for message in held.begun(4):
            most[message.topic] += 1
        until_asleep(queue, 1, ())
        assert most == {"a": 1, "b": 3}
        assert queue.stats().claimed == 4
        held.open()
        until(lambda: len(held.handled) == 10)


def test_very_many_topics_need_few_threads(queue):
    """No topic has threads or waiters of its own."""
    topics = [f"topic {number:03}" for number in range(1000)]
    got: Counter[str] = Counter()
    held = Held()

    def handle(message: Any) -> None:
        got[message.topic] += 1
        if message.body == "held":
            held(message)

    worker = Worker(queue, handle, concurrency=dict.fromkeys(topics, 4))
    with running(worker):
        until_asleep(queue, 1, tuple(topics))
        assert (threads(), len(queue._core._available)) == (0, 1)
        queue.put_many([OutgoingMessage("held", topic=topic) for topic in topics[:5] for _ in range(4)])
        held.begun(20)
        # The other topics have room, and one thread more handles their messages, one after the other.
        for topic in topics[5:30]:
            queue.put("quick", topic=topic)
            until(lambda topic=topic: got[topic] == 1 and worker._running.total() == 20)
        until_asleep(queue, 1, tuple(topics))
        assert (threads(), len(queue._core._available)) == (21, 1)
        held.open()
        until(lambda: not queue.stats().claimed)
    assert got == {**dict.fromkeys(topics[:5], 4), **dict.fromkeys(topics[5:30], 1)}


def test_threads_are_started_when_they_are_needed(queue):
    got: list[Any] = []
    with running(Worker(queue, lambda message: got.append(message.body), concurrency=50)):
        until_asleep(queue, 1)
        assert threads() == 0
        for number in range(5):
            queue.put(number)
            until(lambda number=number: len(got) == number + 1)
            until_asleep(queue, 1)
        assert 1 <= threads() <= 2
    assert threads() == 0


def test_an_idle_worker_claims_nothing(queue, monkeypatch):
    """It looks whether something has changed, as ``get`` does, and no more."""
    looks, token = [], queue._store.change_token

    def look() -> object:
        looks.append(1)
        return token()

    monkeypatch.setattr(queue._store, "change_token", look)
    with running(Worker(queue, print, concurrency=9, prefetch=9)):
        until_asleep(queue, 1)
        tried, seen = queue._store.attempts, len(looks)
        until(lambda: len(looks) > seen + 30)
        assert queue._store.attempts == tried
        assert threads() == 0


def test_a_message_wakes_one_of_two_workers(queue):
    queue._store.is_quiet = True
    got: list[Any] = []
    workers = [Worker(queue, lambda message: got.append(message.body)) for _ in range(2)]
    with running(workers[0]), running(workers[1]):
        for number in range(10):
            until_asleep(queue, 2)
            queue.put(number)
            until(lambda number=number: len(got) == number + 1)
    assert sorted(got) == [*range(10)]


def test_a_worker_that_ends_leaves_a_wake_up_to_others(queue):
    queue._store.is_quiet = True
    got: list[Any] = []
    ending, other = (Worker(queue, lambda message: got.append(message.body)) for _ in range(2))
    with running(ending):
        until_asleep(queue, 1)
        with running(other):
            until_asleep(queue, 2)
            ending._stops = ending._changed = True  # What stop() does before it wakes the worker.
            queue.put("a")
            until(lambda: got == ["a"])


def test_the_messages_of_a_group_come_one_by_one(queue):
    queue.put_many(range(20), group="g")
    got, now = [], threading.Semaphore(1)

    def handle(message: Any) -> None:
        assert now.acquire(blocking=False)
        got.append(message.body)
        now.release()

    work(queue, handle, concurrency=4, prefetch=4)
    until(lambda: not queue.stats().blocked)
    assert got == [*range(20)]


# What is claimed ahead


@pytest.mark.parametrize("prefetch", [0, 1, 3, 100])
def test_prefetch(queue, prefetch):
    queue.put_many(range(9))
    held = Held()
    with running(Worker(queue, held, concurrency=2, prefetch=prefetch)):
        held.begun(2)
        # A worker waits for messages while it may claim more.
        until_asleep(queue, 1, None if prefetch == 100 else ())
        assert queue.stats().claimed == min(2 + prefetch, 9)
        assert not held.has_begun()
        held.open()
        until(lambda: len(held.handled) == 9)


def test_a_prefetch_is_claimed_at_once_and_again_when_half_of_it_is_used(queue, monkeypatch):
    queue.put_many(range(20))
    claimed: list[tuple[int, bool]] = []
    claim = queue._store.claim

    def watched(limit: int, *arguments: Any, prefetch: bool, **options: Any) -> Any:
        records = claim(limit, *arguments, prefetch=prefetch, **options)
        claimed.append((len(records), prefetch))
        return records

    monkeypatch.setattr(queue._store, "claim", watched)
    turn = threading.Semaphore(0)
    got: list[Any] = []

    def handle(message: Any) -> None:
        assert turn.acquire(timeout=20)
        got.append(message.body)

    with running(Worker(queue, handle, prefetch=6)):
        for number in range(9):
            until_asleep(queue, 1, ())
            turn.release()
            until(lambda number=number: len(got) == number + 1)
        until_asleep(queue, 1, ())
        # 1 for the free handler, 6 ahead; then 4 whenever 4 of the 6 were used.
        assert claimed == [(1, False), (6, True), (4, True), (4, True)]
        turn.release(20)
        until(lambda: len(got) == 20)
    assert got == [*range(20)]


def test_what_was_prefetched_is_noted_when_its_handler_begins(open_queue):
    """So what waits counts no attempt when the worker dies. Here its queue is closed, which does the same."""
    queue, other = open_queue(), open_queue()
    queue.put_many("abcdef")
    held = Held()
    worker = Worker(queue, held, concurrency=2, prefetch=3)
    with running(worker, ClosedError):
        held.begun(2)
        until_asleep(queue, 1, ())
        queue.close()
        held.open()
        worker.stop()
    assert [message.attempts for message in other.get_many(6)] == [2, 2, 1, 1, 1, 1]


def test_a_prefetch_for_a_topic_whose_handlers_are_busy(queue):
    """It is claimed only if there is nothing for a free handler, and does not keep such a handler waiting."""
    queue.put_many("abc", topic="busy")
    held, got = Held(), []

    def handle(message: Any) -> None:
        if message.topic == "busy":
            held(message)
        else:
            got.append(message.body)

    with running(Worker(queue, handle, concurrency={"busy": 1, "free": 1}, prefetch=1)):
        held.begun()
        until_asleep(queue, 1, ("free",))
        assert queue.stats("busy").claimed == 2
        queue.put("x", topic="free")
        until(lambda: got == ["x"])
        held.open()
        until(lambda: held.handled == ["a", "b", "c"])


def test_free_handlers_come_before_a_prefetch(queue, monkeypatch):
    """Whatever the order of the messages."""
    queue.put_many("ab", topic="busy", priority=1)
    queue.put("x", topic="free")
    claimed: list[tuple[str, bool]] = []
    claim = queue._store.claim

    def watched(*arguments: Any, prefetch: bool, **options: Any) -> Any:
        records = claim(*arguments, prefetch=prefetch, **options)
        claimed.extend((record.topic, prefetch) for record in records)
        return records

    monkeypatch.setattr(queue._store, "claim", watched)
    held = Held()
    with running(Worker(queue, held, concurrency={"busy": 1, "free": 1})):
        held.begun(2)
        until_asleep(queue, 1, ())
        assert claimed == [("busy", False), ("free", False), ("busy", True)]
        held.open()
        until(lambda: len(held.handled) == 3)


# Arguments


REFUSED: list[tuple[dict[str, Any], type[Exception]]] = [
    ({"queue": "jobs"}, TypeError),
    ({"handler": None}, TypeError),
    ({"on_error": 1}, TypeError),
    ({"topics": 1}, TypeError),
    ({"topics": []}, ValueError),
    ({"topics": "x" * 256}, ValueError),
    ({"concurrency": 0}, ValueError),
    ({"concurrency": 1.5}, TypeError),
    ({"concurrency": True}, TypeError),
    ({"concurrency": None}, TypeError),
    ({"concurrency": {}}, ValueError),
    ({"concurrency": {"a": 0}}, ValueError),
    ({"concurrency": {1: 1}}, TypeError),
    ({"concurrency": {"a": 1}, "topics": ["a", "b"]}, ValueError),
    ({"prefetch": -1}, ValueError),
    ({"prefetch": "1"}, TypeError),
    ({"timeout": 0}, ValueError),
    ({"timeout": "1"}, TypeError),
]


@pytest.mark.parametrize(("options", "error"), REFUSED, ids=str)
def test_what_is_refused(queue, options, error):
    with pytest.raises(error):
        Worker(**{"queue": queue, "handler": print, **options})


def test_a_coroutine_function_is_refused(queue):
    """Its call would do nothing, and the message would be acked."""

    async def handle(*arguments: Any) -> None: ...

    with pytest.raises(TypeError, match="coroutine"):
        Worker(queue, handle)
    with pytest.raises(TypeError, match="coroutine"):
        Worker(queue, print, on_error=handle)


@pytest.mark.parametrize("topics", [None, ["b", "a"], ("a", "b", "a")])
def test_a_concurrency_by_topic_names_the_topics(queue, topics):
    worker = Worker(queue, print, concurrency={"b": 2, "a": 1}, topics=topics)
    assert (worker._topics, worker._total) == (("a", "b"), 3)


def test_topics(queue):
    for topic in "abc":
        queue.put(topic, topic=topic)
    got: list[Any] = []
    with running(Worker(queue, lambda message: got.append(message.body), topics=["c", "a"])):
        until(lambda: len(got) == 2)
    assert sorted(got) == ["a", "c"]
    assert queue.topics() == {"b": 1}


def test_a_queue_that_may_only_be_read_is_refused(tmp_path):
    MessageQueue[Any](tmp_path, serializer="json").close()
    with (
        MessageQueue[Any](tmp_path, serializer="json", read_only=True) as queue,
        pytest.raises(StorageError, match="read_only"),
    ):
        Worker(queue, print)


def test_a_transaction_is_no_place_to_run(tmp_path):
    with MessageQueue[Any](tmp_path, serializer="json", durability="process") as queue:
        worker = Worker(queue, print)
        with queue.transaction(), pytest.raises(StorageError, match="leave its block"):
            worker.run()
        with running(worker):
            until_asleep(queue, 1)


def test_its_repr(queue):
    assert repr(Worker(queue, print)) == f"<Worker of MessageQueue 'messages' in {queue.path!r}>"
