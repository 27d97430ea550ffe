"""Threads that wait for messages: each is woken when it must be, and only as many as a change concerns."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from persistcoll import ClosedError, Empty, LockedError, MessageQueue, OutgoingMessage, ShutDown, StorageError
from persistcoll.engine.message_core import _Available
from tests.messages.conftest import store_of
from tests.messages.waits import asleep, until_asleep
from tests.queues.waits import until, waiting


def getting(queue: MessageQueue[Any], topic: Any = None, timeout: float | None = None) -> Any:
    """Start a ``get`` in a thread; the result returns the body."""
    return waiting(lambda: queue.get(topic, timeout=timeout).body)


def test_a_get_waits_for_a_put(quiet):
    get = getting(quiet)
    until_asleep(quiet, 1)
    quiet.put("x")
    assert get() == "x"


@pytest.mark.parametrize("block", [{"block": False}, {"timeout": 0}, {"timeout": 0.02}], ids=str)
def test_a_get_that_does_not_wait_for_ever(queue, block):
    queue.put("x", topic="other")
    for call in (queue.get, lambda *arguments, **options: queue.get_many(2, *arguments, **options)):
        began = time.monotonic()
        with pytest.raises(Empty):
            call("t", **block)
        assert time.monotonic() - began >= block.get("timeout", 0)
    assert not queue._core._available


def test_get_many_waits_for_the_first(quiet):
    get = waiting(lambda: [message.body for message in quiet.get_many(3)])
    until_asleep(quiet, 1)
    quiet.put_many(["a", "b"])
    assert get() == ["a", "b"]


@pytest.fixture
def notified(monkeypatch) -> list[tuple[Any, int | None]]:
    """Return the topics and the number of each notification of waiters."""
    calls: list[tuple[Any, int | None]] = []
    notify = _Available.notify

    def watched(event: _Available, count: int | None = 1) -> None:
        calls.append((event.topics, count))
        notify(event, count)

    monkeypatch.setattr(_Available, "notify", watched)
    return calls


def test_only_waiters_of_the_topic_are_woken(quiet, notified):
    """One of each different set of topics, because any of them may be the one that goes on."""
    others = [getting(quiet, topics) for topics in ("a", "a", ["c", "a"], ("a", "c"))]
    until(lambda: asleep(quiet, ("a",)) == asleep(quiet, ("a", "c")) == 2)
    mine = getting(quiet, "b")
    until_asleep(quiet, 1, ("b",))
    quiet.put("x", topic="b")
    assert mine() == "x"
    assert notified == [(("b",), 1)]
    quiet.put("y", topic="c")
    until(lambda: sum(other.done() for other in others) == 1)
    assert notified[1:] == [(("a", "c"), 1)]
    quiet.put_many(["p", "q", "r"], topic="a")
    assert sorted(other() for other in others) == ["p", "q", "r", "y"]
    assert sorted(notified[2:]) == [(("a",), 3), (("a", "c"), 3)]


def test_one_message_wakes_one_of_many(quiet, notified):
    store = store_of(quiet)
    event = quiet._core.available(None)
    event._has_poller = True  # Otherwise the one that polls, when it leaves, wakes another to poll.
    gets = [getting(quiet) for _ in range(5)]
    until_asleep(quiet, 5)
    before = store.attempts
    for number in range(5):
        quiet.put(number)
        until(lambda number=number: sum(get.done() for get in gets) == number + 1)
        assert store.attempts == before + number + 1
        assert asleep(quiet) == 4 - number
    assert sorted(get() for get in gets) == [0, 1, 2, 3, 4]
    assert notified == [(None, 1)] * 5


def test_the_end_of_one_message_wakes_one(quiet, notified):
    quiet.put_many("abc", topic="t", group="g")
    quiet.put_many("de", topic="t")
    held = quiet.get_many(5)
    gets = [getting(quiet, "t") for _ in range(4)]
    until_asleep(quiet, 4, ("t",))
    held[1].ack()  # without a group, so nothing becomes ready
    assert notified == []
    held[0].ack()
    held[2].release()
    until(lambda: sum(get.done() for get in gets) == 2)
    assert notified == [(("t",), 1)] * 2
    quiet.shutdown()
    for get in gets:
        with contextlib.suppress(ShutDown):
            get()


def test_a_put_that_stores_nothing_new_wakes_nobody_for_good(quiet):
    quiet.put("x", key="k", delay=900)
    get = getting(quiet)
    until_asleep(quiet, 1)
    quiet.put("y", key="k")
    until_asleep(quiet, 1)
    quiet.shutdown()
    with pytest.raises(ShutDown):
        get()


def test_a_woken_thread_whose_claim_fails_wakes_another(quiet, monkeypatch):
    """The message for which it was woken is still there."""
    store = store_of(quiet)
    event = quiet._core.available(None)
    event._has_poller = True  # Otherwise the one that polls, when it leaves, wakes another to poll.
    gets = [getting(quiet), getting(quiet)]
    until_asleep(quiet, 2)
    claim = store.claim
    failed: list[int] = []

    def fails_once(*arguments: Any, **options: Any) -> Any:
        if not failed:
            failed.append(1)
            raise LockedError("another program keeps it locked")
        return claim(*arguments, **options)

    monkeypatch.setattr(store, "claim", fails_once)
    quiet.put("x")
    until(lambda: sum(get.done() for get in gets) == 2)
    results = []
    for get in gets:
        try:
            results.append(get())
        except LockedError:
            results.append("locked")
    assert sorted(results) == ["locked", "x"]


# What makes a message available besides a put. Each is done while a thread waits that was told another time.


def a_nack(queue):
    queue.put("x", topic="t")
    message = queue.get()
    return lambda: message.nack(0)


def a_release(queue):
    queue.put("x", topic="t")
    message = queue.get()
    return message.release


def a_block_that_raises(queue):
    queue.put("x", topic="t")
    message = queue.get()
    return lambda: message.__exit__(ValueError, ValueError(), None)


def the_ack_of_the_message_before(queue):
    queue.put_many(["y", "x"], topic="t", group="g")
    message = queue.get()
    return message.ack


def many_acks(queue):
    queue.put_many(["y", "x"], topic="t", group="g")
    message = queue.get()
    return lambda: queue.ack_many([message])


def the_failure_of_the_message_before(queue):
    queue.put_many(["y", "x"], topic="t", group="g")
    message = queue.get()
    return message.fail


def the_cancelling_of_the_message_before(queue):
    queue.put_many([OutgoingMessage("y", topic="t", group="g", delay=900)])
    queue.put("x", topic="t", group="g")
    return lambda: queue.cancel(1)


def the_purging_of_the_message_before(queue):
    clock = queue._store._state.clock
    queue.put("y", topic="t", group="g", delay=900)
    clock.advance(1)
    queue.put("x", topic="t", group="g")
    return lambda: queue.purge("t", before=time.time() - 0.5)


def a_redrive(queue):
    queue.put("x", topic="t")
    queue.get().fail()
    return lambda: queue.redrive(1)


def a_redrive_of_all(queue):
    queue.put("x", topic="t")
    queue.get().fail()
    return queue.redrive


def a_resumed_topic(queue):
    queue.put("x", topic="t")
    queue.pause("t")
    return lambda: queue.resume("t")


def a_lifted_rate(queue):
    queue.limit("t", 1, per=900)
    queue.put_many(["y", "x"], topic="t")
    queue.get()
    return lambda: queue.limit("t", None)


AVAILABLE: list[Callable[[Any], Callable[[], object]]] = [
    a_nack, a_release, a_block_that_raises, the_ack_of_the_message_before, many_acks,
    the_failure_of_the_message_before, the_cancelling_of_the_message_before,
    the_purging_of_the_message_before, a_redrive, a_redrive_of_all, a_resumed_topic, a_lifted_rate,
]  # fmt: skip


@pytest.mark.parametrize("topic", [None, "t", ["t", "u"]], ids=["any", "one", "several"])
@pytest.mark.parametrize("prepare", AVAILABLE, ids=lambda prepare: prepare.__name__)
def test_what_makes_a_message_available(quiet, prepare, topic):
    act = prepare(quiet)
    get = getting(quiet, topic)
    until(lambda: sum(len(event._wakes) for event in quiet._core._available.values()) == 1)
    act()
    assert get() == "x"


# What makes a message available at another time. The waiter learns the time, and the clock then goes on.


def an_earlier_delay(queue):
    return lambda: queue.put("x", topic="t", delay=5)


def an_earlier_delay_among_many(queue):
    return lambda: queue.put_many([OutgoingMessage("x", topic="t", delay=5)])


def an_earlier_nack(queue):
    queue.put("x", topic="t")
    message = queue.get()
    return lambda: message.nack(5)


def a_shortened_lease(queue):
    queue.put("x", topic="t")
    message = queue.get()
    return lambda: message.extend(5)


def a_lease_of_a_message_without_one(queue):
    queue.put("x", topic="t", lease=None)
    message = queue.get()
    return lambda: message.extend(5)


def a_faster_rate(queue):
    queue.limit("t", 1, per=900)
    queue.put_many(["y", "x"], topic="t")
    queue.get()
    return lambda: queue.limit("t", 1, per=5)


LATER: list[Callable[[Any], Callable[[], object]]] = [
    an_earlier_delay, an_earlier_delay_among_many, an_earlier_nack, a_shortened_lease,
    a_lease_of_a_message_without_one, a_faster_rate,
]  # fmt: skip


class Sleeps:
    """The deadlines of the sleeps of waiters."""

    def __init__(self, monkeypatch: Any) -> None:
        from persistcoll.engine.event_count import ThreadWaiter

        self.untils: list[float | None] = []
        wait = ThreadWaiter.wait

        def watched(waiter: Any, deadline: float | None, *arguments: Any) -> bool:
            self.untils.append(deadline)
            return wait(waiter, deadline, *arguments)

        monkeypatch.setattr(ThreadWaiter, "wait", watched)


@pytest.mark.parametrize("prepare", LATER, ids=lambda prepare: prepare.__name__)
def test_each_waiter_learns_of_an_earlier_time(quiet, clock, monkeypatch, notified, prepare):
    act = prepare(quiet)
    sleeps = Sleeps(monkeypatch)
    gets = [getting(quiet), getting(quiet, "t"), getting(quiet, "t")]
    until(lambda: asleep(quiet) == 1 and asleep(quiet, ("t",)) == 2)
    sleeps.untils.clear()
    began = time.monotonic()
    act()
    # One that is woken alone may leave before that time, and the others would not know of it.
    assert sorted(notified, key=str) == [(("t",), None), (None, None)]
    until(lambda: len(sleeps.untils) >= 3 and asleep(quiet) == 1 and asleep(quiet, ("t",)) == 2)
    assert all(deadline is not None and began + 4.9 < deadline < began + 15 for deadline in sleeps.untils)
    clock.advance(5)
    quiet._core.notify()
    until(lambda: any(get.done() for get in gets))
    quiet.shutdown()
    bodies = []
    for get in gets:
        try:
            bodies.append(get())
        except ShutDown:
            bodies.append(None)
    assert sorted(bodies, key=str) == [None, None, "x"]


def test_a_longer_lease_wakes_nobody(quiet, notified):
    quiet.put("x")
    message = quiet.get()
    get = getting(quiet)
    until_asleep(quiet, 1)
    message.extend(900)
    message.extend(950)
    assert notified == []
    message.extend(800)
    assert notified == [(None, None)]
    message.release()
    assert get() == "x"


@pytest.mark.parametrize("shorten", [True, False])
def test_a_lock_that_ends(open_queue, clock, shorten):
    """The waiters of another object notice it by polling."""
    mine, other = open_queue(), open_queue()
    mine.put("x", topic="t")
    lock = mine.lock_topic("t")
    get = getting(other, "t")
    until_asleep(other, 1, ("t",))
    if shorten:
        lock.extend(5)
        clock.advance(5)
    else:
        lock.release()
    assert get() == "x"


def test_a_lock_of_its_own_that_ends(quiet, clock, monkeypatch):
    quiet.put("x", topic="t")
    lock = quiet.lock_topic("t")
    woken = []
    monkeypatch.setattr(quiet._core, "notify", lambda *arguments: woken.append(arguments))
    get = getting(quiet, "u")
    until_asleep(quiet, 1, ("u",))
    lock.extend(5)
    lock.release()
    assert woken == [("t", None)] * 2
    quiet.shutdown()
    with pytest.raises(ShutDown):
        get()


def test_time_alone_makes_a_message_ready(states, tmp_path, monkeypatch):
    """A waiter that was told a time looks again then, whether anybody wakes it or not."""
    from persistcoll.engine.memory.message_store import MemoryMessageState

    with MessageQueue[Any](tmp_path / "q.db", "real", serializer="json") as queue:
        store_of(queue)._state = MemoryMessageState()
        store_of(queue).is_quiet = True
        queue.put("x", delay=0.05)
        began = time.monotonic()
        assert queue.get(timeout=10).body == "x"
        assert 0.04 < time.monotonic() - began < 5


def test_a_put_of_another_object(open_queue):
    mine, other = open_queue(), open_queue()
    get = getting(mine, "t")
    until_asleep(mine, 1, ("t",))
    other.put("x", topic="t")
    assert get() == "x"


def test_puts_of_another_object_for_many_topics(open_queue):
    mine, other = open_queue(), open_queue()
    gets = {topic: getting(mine, topic) for topic in "abcd"}
    until(lambda: all(asleep(mine, (topic,)) for topic in gets))
    intervals = [mine._core._available[(topic,)]._max_poll_interval for topic in gets]
    assert len(set(intervals)) == 4
    for topic in gets:
        other.put(topic, topic=topic)
    assert {topic: get() for topic, get in gets.items()} == {topic: topic for topic in gets}


def test_threads_that_wait_for_the_same_topics_share_an_event_count(queue):
    gets = [getting(queue, topics) for topics in (["a", "b"], ("b", "a"), {"a", "b"})]
    until_asleep(queue, 3, ("a", "b"))
    assert len(queue._core._available) == 1
    queue.put_many("xyz", topic="a")
    assert sorted(get() for get in gets) == ["x", "y", "z"]
    until(lambda: not queue._core._available)


def test_a_wake_up_that_comes_with_the_timeout(quiet):
    """A thread that is woken as it leaves leaves nobody asleep beside a message."""
    for _ in range(30):
        short, long = getting(quiet, timeout=0.002), getting(quiet, timeout=10)
        quiet.put("x")
        try:
            got = short()
        except Empty:
            got = None
        if got:
            quiet.put("y")
        assert long() in ("x", "y")


@pytest.mark.parametrize("immediate", [False, True])
def test_a_shutdown_wakes_all(quiet, immediate):
    gets = [getting(quiet), getting(quiet, "t"), waiting(lambda: list(quiet.consume("u")))]
    until(lambda: asleep(quiet) + asleep(quiet, ("t",)) + asleep(quiet, ("u",)) == 3)
    quiet.shutdown(immediate)
    for get in gets[:2]:
        with pytest.raises(ShutDown):
            get()
    assert gets[2]() == []


def test_a_close_wakes_all(quiet):
    quiet.put("x", delay=900)
    gets = [getting(quiet), waiting(quiet.join), waiting(lambda: next(quiet.consume("t")))]
    until(lambda: asleep(quiet) == asleep(quiet, ("t",)) == len(quiet._core.all_done._wakes) == 1)
    quiet.close()
    for get in gets:
        with pytest.raises(ClosedError):
            get()


# join


def test_a_join_of_nothing(queue):
    queue.join()
    queue.put("x")
    queue.get().fail()
    queue.join()


FINISHED: dict[str, Callable[[Any], object]] = {
    "ack": lambda queue: queue.get().ack(),
    "ack_many": lambda queue: queue.ack_many(queue.get_many(2)),
    "fail": lambda queue: queue.get().fail(),
    "the last nack": lambda queue: queue.get().nack(),
    "cancel": lambda queue: queue.cancel(1),
    "purge": lambda queue: queue.purge(),
}


@pytest.mark.parametrize("name", FINISHED)
def test_a_join_ends(open_queue, name):
    queue = open_queue(max_attempts=1)
    store_of(queue).is_quiet = True
    queue.put("x")
    join = waiting(queue.join)
    until(lambda: queue._core.all_done._wakes)
    assert not join.done()
    FINISHED[name](queue)
    join()


def test_what_a_join_waits_for(queue, clock):
    queue.put("x", topic="t", ttl=100)
    queue.pause("t")
    join = waiting(queue.join)
    until(lambda: queue._core.all_done._wakes)
    assert not join.done()
    clock.advance(100)
    join()


def test_a_join_sees_another_object(open_queue):
    mine, other = open_queue(), open_queue()
    mine.put("x")
    join = waiting(mine.join)
    until(lambda: mine._core.all_done._wakes)
    other.get().ack()
    join()


# Transactions


def test_nothing_is_waited_for_in_a_transaction(queue):
    with queue.transaction():
        for call in (
            queue.get,
            lambda: queue.get_many(2),
            lambda: next(queue.consume()),
            lambda: queue.get("t"),
        ):
            with pytest.raises(Empty):
                call()
        queue.join()
        queue.put("x")
        with pytest.raises(StorageError, match="would wait for ever"):
            queue.join()
        assert queue.get().body == "x"


def test_waiters_are_woken_after_the_commit(quiet):
    store = store_of(quiet)
    get = getting(quiet, "t")
    until_asleep(quiet, 1, ("t",))
    before = store.attempts
    with quiet.transaction():
        quiet.put("x", topic="t")
        quiet.put_many(["y"], topic="t", delay=5)
        assert asleep(quiet, ("t",)) == 1
        assert store.attempts == before
    assert get() == "x"


def test_a_rolled_back_put_wakes_nobody(quiet):
    get = getting(quiet)
    until_asleep(quiet, 1)
    before = store_of(quiet).attempts

    def roll_back() -> None:
        with quiet.transaction():
            quiet.put("x")
            raise LookupError

    with pytest.raises(LookupError):
        roll_back()
    assert asleep(quiet) == 1
    assert store_of(quiet).attempts == before
    quiet.put("y")
    assert get() == "y"


def test_joins_are_woken_after_the_commit(quiet):
    quiet.put("x")
    message = quiet.get()
    join = waiting(quiet.join)
    until(lambda: quiet._core.all_done._wakes)
    with quiet.transaction():
        message.ack()
        assert quiet._core.all_done._wakes
    join()


@pytest.mark.parametrize("verb", ["ack", "nack", "release", "fail"])
def test_a_verb_that_is_rolled_back(queue, verb):
    """The message is claimed as before: the end of its block settles it."""
    queue.put("x")

    def roll_back(message: Any) -> None:
        with queue.transaction():
            getattr(message, verb)()
            raise LookupError

    with queue.get() as message:
        with pytest.raises(LookupError):
            roll_back(message)
        assert queue.find(1).state.value == "claimed"
    assert queue.find(1) is None


@pytest.mark.parametrize("verb", ["ack", "nack", "release", "fail"])
@pytest.mark.parametrize("raises", [False, True])
def test_a_verb_that_is_committed(queue, verb, raises):
    """The end of the block changes nothing."""
    queue.put("x")

    def run() -> None:
        with queue.get() as message:
            with queue.transaction():
                getattr(message, verb)()
            if raises:
                raise LookupError

    if raises:
        with pytest.raises(LookupError):
            run()
    else:
        run()
    info = queue.find(1)
    states = {"ack": None, "nack": "ready", "release": "ready", "fail": "dead"}
    assert (info and info.state.value) == states[verb]
    assert info is None or info.last_error is None


def test_a_block_within_a_transaction(queue):
    queue.put("x")
    with queue.transaction(), queue.get() as message:
        message.nack(error="no")
    assert queue.find(1).last_error == "no"


def test_many_acks_that_are_rolled_back(queue):
    queue.put_many("ab")
    held = queue.get_many(2)

    def roll_back() -> None:
        with queue.transaction():
            queue.ack_many(held)
            raise LookupError

    with pytest.raises(LookupError):
        roll_back()
    for message in held:
        with message:
            pass
    assert queue.topics() == {}


def test_a_release_of_an_iteration_that_is_rolled_back(queue):
    """What was only prefetched is released again, before the next claim."""
    queue.put_many("abc")
    iteration = queue.consume(prefetch=3)
    next(iteration).ack()

    def roll_back() -> None:
        with queue.transaction():
            iteration.close()
            assert queue.qsize() == 2
            raise LookupError

    with pytest.raises(LookupError):
        roll_back()
    assert queue.qsize() == 0
    assert queue.get(block=False).body == "b"
    assert queue.qsize() == 1


def test_threads_in_a_transaction_and_out_of_it(queue):
    """Each message is got once, whether its put was in a transaction or not, and rollbacks lose none."""
    got: list[Any] = []

    def consume() -> None:
        for message in queue.consume("t"):
            with message:
                got.append(message.body)

    threads = [threading.Thread(target=consume) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(60):
        try:
            with queue.transaction():
                queue.put(number, topic="t")
                if number % 3 == 0:
                    raise LookupError
        except LookupError:
            queue.put(number, topic="t")
    queue.join()
    queue.shutdown()
    for thread in threads:
        thread.join()
    assert sorted(got) == list(range(60))
