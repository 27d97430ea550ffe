"""Consumers of a message queue that die, hang, raise or fork while they work on a message.

Each test lets it happen to a process and shows what the next consumer gets.
"""

from __future__ import annotations

import math
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from persistcoll import Empty, MessageQueue, StaleClaimError, State
from persistcoll.sqlite import holding
from persistcoll.testing.children import in_forked_child
from tests.permissions.kinds import die, in_child

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    pytest.mark.timeout(60),
]


def opened(path: Path, **options: Any) -> MessageQueue[Any]:
    options = {"serializer": "json", "durability": "process", "backoff": None, "max_attempts": 3, **options}
    return MessageQueue(path, **options)


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[MessageQueue[Any]]:
    with opened(tmp_path) as queue:
        yield queue


# Death.


@pytest.mark.parametrize("lease", [60.0, None])
@pytest.mark.parametrize("prefetch", [1, 3])
def test_a_consumer_that_is_killed(queue, tmp_path, prefetch, lease):
    """Its death counts for the message on which it worked, and not for those that were only prefetched."""

    def work() -> None:
        consumer = opened(tmp_path, lease=lease)
        for message in consumer.consume(prefetch=prefetch):
            assert message.body == "in hand"
            die()

    queue.put_many(["in hand", "a", "b", "c"])
    assert in_child(work) == -signal.SIGKILL
    assert queue.recover() == prefetch
    first, *others = queue.get_many(9)
    assert [message.body for message in (first, *others)] == ["in hand", "a", "b", "c"]
    assert (first.attempts, first.deliveries, first.last_error) == (2, 2, "its worker died")
    assert [message.attempts for message in others] == [1, 1, 1]
    assert [message.deliveries for message in others] == ([2, 2, 1] if prefetch > 1 else [1, 1, 1])
    assert {message.last_error for message in others} == {None}
    queue.ack_many([first, *others])
    assert queue.topics() == {}


def test_a_death_is_noticed_when_nothing_else_is_ready(queue, tmp_path, monkeypatch):
    """An object that is opened, as by a worker that begins, looks at once."""
    # Otherwise a claim that finds something also looks, if the machine is slow.
    monkeypatch.setattr(holding, "_BUSY_INTERVAL", math.inf)

    def work() -> None:
        consumer = opened(tmp_path)
        with consumer.get():
            die()

    queue.put_many(["lost", "a", "b"])
    assert in_child(work) == -signal.SIGKILL
    assert [queue.get(block=False).body for _ in range(2)] == ["a", "b"]
    assert queue.get(timeout=30).body == "lost"
    queue.put_many(["lost again", "c"])
    assert in_child(work) == -signal.SIGKILL
    with opened(tmp_path) as other:
        assert other.get(block=False).body == "lost again"


def test_a_message_that_kills_its_consumers(queue, tmp_path):
    """It is dead after its attempts, and takes none of its neighbours with it."""

    def work() -> None:
        consumer = opened(tmp_path)
        for message in consumer.consume(prefetch=10):
            if message.body == "poison":
                die()
            message.ack()
            if not consumer.qsize() and not consumer.stats().claimed:
                consumer.shutdown()
        consumer.close()

    queue.put_many(range(5))
    poison = queue.put("poison")
    queue.put_many(range(5, 30))
    ends = []
    while queue.recover() or queue.qsize():
        ends.append(in_child(work))
    assert ends == [-signal.SIGKILL] * 3 + [0]
    (letter,) = queue.dead_letters()
    assert (letter.id, letter.attempts, letter.last_error) == (poison, 3, "its worker died")
    stats = queue.stats()
    assert (stats.ready, stats.claimed, stats.dead, stats.gets) == (0, 0, 1, 31)


def test_a_consumer_that_exits_without_an_end(queue, tmp_path):
    """``os._exit`` in a handler is the death of the process. A consumer that waits notices it."""

    def work() -> None:
        consumer = opened(tmp_path)
        with consumer.get():
            os._exit(7)

    queue.put("x")
    assert in_child(work) == 7
    message = queue.get(timeout=30)
    assert (message.attempts, message.last_error) == (2, "its worker died")


def test_a_consumer_that_is_asked_to_end(queue, tmp_path):
    """``SystemExit`` releases the message, so that the attempt does not count."""

    def work() -> None:
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(3))
        try:
            with opened(tmp_path) as consumer, consumer.get():
                os.kill(os.getpid(), signal.SIGTERM)
        except SystemExit:
            os._exit(3)

    queue.put("x")
    assert in_child(work) == 3
    message = queue.get(block=False)
    assert (message.attempts, message.deliveries, message.last_error) == (1, 2, None)


# Hanging.


@pytest.mark.parametrize("stops", [False, True], ids=["hangs", "is stopped"])
def test_a_consumer_that_hangs(queue, tmp_path, stops):
    """With its lease it loses the message to another consumer, and its late ack changes nothing."""
    hear, say = os.pipe()
    wait, go_on = os.pipe()
    queue.put("x", lease=0.3)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            consumer = opened(tmp_path)
            message = consumer.get(block=False)
            os.write(say, b"!")
            os.read(wait, 1)
            try:
                message.ack()
            except StaleClaimError:
                status = 0
        finally:
            os._exit(status)
    assert os.read(hear, 1) == b"!"
    if stops:
        os.kill(pid, signal.SIGSTOP)
    message = queue.get(timeout=30, lease=60)
    assert (message.attempts, message.last_error) == (2, "lease ran out")
    if stops:
        os.kill(pid, signal.SIGCONT)
    os.write(go_on, b"!")
    assert os.waitpid(pid, 0)[1] == 0
    for end in (hear, say, wait, go_on):
        os.close(end)
    assert queue.find(message.id).state is State.CLAIMED
    message.ack()
    assert queue.topics() == {}


def test_a_message_on_which_each_consumer_hangs(queue):
    """It is dead after its attempts."""
    id = queue.put("x", lease=0.01)
    for attempt in (1, 2, 3):
        assert queue.get(timeout=30).attempts == attempt
    queue.join()
    letter = queue.find(id)
    assert (letter.state, letter.attempts, letter.last_error) == (State.DEAD, 3, "lease ran out")


def test_a_message_without_a_lease_is_never_taken_from_a_living_process(tmp_path):
    with opened(tmp_path, lease=None) as slow, opened(tmp_path, lease=None) as other:
        slow.put("x")
        message = slow.get()
        assert message.leased_until is None
        assert other.recover() == 0
        with pytest.raises(Empty):
            other.get(timeout=0.01)
        message.ack()


# Raising.


def test_a_handler_that_always_raises(queue):
    """The message is a dead letter after its attempts, and says why."""
    queue.put_many(["bad", "good"])
    for attempt in (1, 2, 3):
        message = queue.get(block=False)
        assert (message.body, message.attempts) == ("bad", attempt)
        with pytest.raises(ValueError, match="cannot"), message:
            raise ValueError("cannot be done")
    with queue.get(block=False) as message:
        assert message.body == "good"
    (letter,) = queue.dead_letters()
    assert (letter.body, letter.attempts) == ("bad", 3)
    assert letter.last_error == "ValueError: cannot be done"


# Forking.


def leave_well(message: Any) -> None:
    message.__exit__(None, None, None)


def leave_with(error: BaseException) -> Callable[[Any], None]:
    return lambda message: message.__exit__(type(error), error, None)


CHILDREN: dict[str, Callable[[Any], None]] = {
    "exits": lambda message: None,
    "leaves the block": leave_well,
    "raises": leave_with(ValueError("no")),
    "is interrupted": leave_with(KeyboardInterrupt()),
    "is killed": lambda message: die(),
}


@pytest.mark.parametrize("prefetch", [None, 1, 3])
@pytest.mark.parametrize("child", CHILDREN)
def test_a_handler_that_forks(queue, tmp_path, child, prefetch):
    """The message stays its parent's, however the child ends."""
    queue.put_many("abcd")
    if prefetch is None:
        message = queue.get()
    else:
        iteration = queue.consume(prefetch=prefetch)
        message = next(iteration)
    with message:
        expected = -signal.SIGKILL if child == "is killed" else 0
        assert in_child(lambda: CHILDREN[child](message)) == expected
        with opened(tmp_path) as other:
            assert other.recover() == 0
            found = other.find(message.id)
        assert found is not None
        assert (found.state, found.attempts) == (State.CLAIMED, 1)
    assert queue.find(message.id) is None
    if prefetch is not None:
        second = next(iteration)
        assert (second.body, second.attempts, second.deliveries) == ("b", 1, 1)
        iteration.close()
    assert queue.stats().puts == 4


def test_a_child_that_goes_on_with_its_parents_iteration(queue):
    """It gets other messages than its parent."""
    queue.put_many("abcdef")
    iteration = queue.consume(prefetch=3)

    def work() -> None:
        message = next(iteration)
        assert message.body == "d"
        message.ack()
        iteration.close()
        queue.close()

    with next(iteration) as message:
        in_forked_child(work)
        assert message.body == "a"
    rest = [next(iteration).body for _ in range(4)]
    assert rest == ["b", "c", "e", "f"]
    iteration.close()


def test_a_child_that_settles_for_its_parent(queue):
    """A claim is all that settling needs, in whichever process."""
    queue.put("x")
    message = queue.get()
    in_forked_child(message.ack)
    with pytest.raises(StaleClaimError):
        message.ack()
    assert queue.topics() == {}
