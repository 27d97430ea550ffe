"""Faults that other message queues were found to have. Each test shows that one of them is absent here.

The queues lie in a database, whose clock the tests set.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from persistcoll import Backoff, Empty, EncodeError, MessageQueue, OutgoingMessage, StaleClaimError, State
from persistcoll.sqlite import driver
from persistcoll.testing.children import run_threads
from tests.permissions.kinds import in_child
from tests.queues.waits import waiting
from tests.sql_queues.test_clock import Machine

LEASE = 60.0
Open = Callable[..., MessageQueue[Any]]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    """Open the same queue each time, in objects of their own."""
    with ExitStack() as stack:

        def make(**options: Any) -> MessageQueue[Any]:
            options = {"serializer": "json", "durability": "process", "backoff": None, **options}
            return stack.enter_context(MessageQueue[Any](tmp_path / "q", **options))

        yield make


def bodies(messages: Any) -> list[Any]:
    return [message.body for message in messages]


# A consumer whose lease has run out acks, and so removes the message that another consumer works on.

SETTLE: dict[str, Callable[[MessageQueue[Any], Any], object]] = {
    "ack": lambda queue, message: message.ack(),
    "ack_many": lambda queue, message: queue.ack_many([message]),
    "nack": lambda queue, message: message.nack(),
    "release": lambda queue, message: message.release(),
    "fail": lambda queue, message: message.fail(),
    "extend": lambda queue, message: message.extend(1),
}


@pytest.mark.parametrize("verb", SETTLE)
def test_a_stale_ack_does_not_delete_the_claim_of_another_consumer(opened: Open, machine: Machine, verb: str):
    slow, quick = opened(), opened()
    (id,) = slow.put_many(["x"])
    assert id is not None
    late = slow.get(lease=LEASE)
    machine.wait(LEASE)
    present = quick.get(block=False)
    before = quick.find(id)
    with pytest.raises(StaleClaimError) as caught:
        SETTLE[verb](slow, late)
    assert caught.value.ids == (id,)
    assert quick.find(id) == before
    assert before is not None
    assert (before.state, before.attempts) == (State.CLAIMED, 2)
    present.ack()
    assert quick.find(id) is None


# The first message has no attempts left, and a get that meets it returns nothing, although others are ready.


@pytest.mark.parametrize("how", ["nack", "lease", "closed"])
def test_an_exhausted_head_hides_no_ready_message(opened: Open, machine: Machine, how: str):
    first, queue = opened(), opened()
    queue.put_many(["spent 1", "spent 2", "spent 3"], priority=9, max_attempts=1)
    queue.put_many(["a", "b", "c"])
    spent = first.get_many(3)
    if how == "nack":
        for message in spent:
            message.nack()
    elif how == "lease":
        machine.wait(LEASE)
    else:
        first.close()
    assert queue.qsize() == 3
    assert queue.get(block=False).body == "a"
    assert bodies(queue.get_many(5, block=False)) == ["b", "c"]
    assert bodies(queue.dead_letters()) == ["spent 1", "spent 2", "spent 3"]


# A dead letter goes to a store of its own under another number, so no caller can find what it put.


@pytest.mark.parametrize("how", ["fail", "nack", "lease"])
def test_a_dead_letter_has_the_id_that_put_returned(opened: Open, machine: Machine, how: str):
    queue = opened(max_attempts=1)
    ids = queue.put_many(["a", "b", "c"], topic="t", headers={"h": "v"})
    live = queue.put("live")
    for message in queue.get_many(3, "t"):
        if how == "fail":
            message.fail("no use")
        elif how == "nack":
            message.nack(error="no use")
    machine.wait(LEASE)
    queue.close()
    queue = opened(max_attempts=1)
    assert [letter.id for letter in queue.dead_letters()] == ids
    for id, body in zip(ids, "abc", strict=True):
        assert id is not None
        info = queue.find(id)
        assert info is not None
        assert (info.body, info.state, info.headers) == (body, State.DEAD, {"h": "v"})
        assert info.last_error == ("lease ran out" if how == "lease" else "no use")
    assert queue.redrive(ids[1]) == 1
    assert queue.get("t", block=False).id == ids[1]
    assert queue.put("new") == (live or 0) + 1


# A batch is cut short, and its beginning is stored.


def test_a_batch_that_cannot_be_encoded_is_not_half_stored(opened: Open):
    queue = opened()
    with pytest.raises(EncodeError):
        queue.put_many(["a", "b", {1, 2}, "c"])
    with pytest.raises(ZeroDivisionError):
        queue.put_many(1 / number for number in (2, 1, 0))
    assert queue.stats().puts == 0


class Killer:
    """Lets this process kill itself at the given ``INSERT`` of a message."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self, statement: str) -> None:
        if statement.startswith("INSERT INTO messages_"):
            self.left -= 1
            if not self.left:
                os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize("at", [1, 2, 500, 1000])
def test_a_batch_whose_process_is_killed_is_not_half_stored(tmp_path: Path, at: int):
    path = tmp_path / "q"

    def put() -> None:
        connect = driver.connect

        def watched(path: str, timeout: float) -> Any:
            connection = connect(path, timeout)
            connection.set_trace_callback(Killer(at))
            return connection

        driver.connect = watched
        MessageQueue[Any](path, durability="process").put_many(range(1000), group="g", topic="t")

    assert in_child(put) == -signal.SIGKILL
    with MessageQueue[Any](path) as queue:
        assert (queue.topics(), queue.stats().puts) == ({}, 0)
        assert queue.put("x", topic="t", group="g") == 1
        assert queue.get(block=False).body == "x"


def test_a_batch_of_acks_with_a_stale_one_is_not_half_done(opened: Open, machine: Machine):
    queue = opened()
    queue.put_many(["a", "b", "c"])
    held = [queue.get(lease=LEASE) for _ in range(3)]
    held[1].extend(2 * LEASE)
    machine.wait(LEASE)
    with pytest.raises(StaleClaimError) as caught:
        queue.ack_many(held)
    assert sorted(caught.value.ids) == [1, 3]
    assert queue.stats().claimed == 1
    assert queue.topics() == {"default": 2}


# The lease is stored, and nothing ends the claim unless a program calls a function for it.


def test_a_lease_ends_although_nobody_recovers(opened: Open, machine: Machine):
    slow, quick = opened(), opened()
    slow.put("x")
    slow.get(lease=LEASE)
    machine.wait(LEASE - 1)
    for queue in (slow, quick):
        with pytest.raises(Empty):
            queue.get(block=False)
    machine.wait(1)
    message = quick.get(block=False)
    assert (message.body, message.last_error) == ("x", "lease ran out")
    machine.wait(LEASE)
    assert slow.get(block=False).attempts == 3


def test_the_end_of_a_lease_wakes_a_consumer_that_waits(opened: Open):
    slow, quick = opened(), opened()
    slow.put("x")
    slow.get(lease=0.2)
    get = waiting(lambda: quick.get(timeout=30).body)
    assert get() == "x"


# A buffer of prefetched messages is emptied from its end.


@pytest.mark.parametrize("prefetch", [1, 2, 5, 100])
def test_prefetched_messages_come_in_their_order(opened: Open, prefetch: int):
    queue = opened()
    queue.put_many(range(20))
    queue.put_many([OutgoingMessage(100 + number, topic="t", priority=number % 2) for number in range(6)])
    got = []
    for message in queue.consume(prefetch=prefetch):
        with message:
            got.append(message.body)
            if len(got) == 26:
                queue.shutdown()
    assert got == [101, 103, 105, *range(20), 100, 102, 104]


def test_prefetched_messages_that_come_back_have_their_places(opened: Open):
    queue = opened()
    queue.put_many("abcdef")
    iteration = queue.consume(prefetch=4)
    assert next(iteration).body == "a"
    iteration.close()
    assert bodies(queue.get_many(9)) == ["b", "c", "d", "e", "f"]


# Messages are ready, and a get that meets other consumers says that there are none.


def take(queue: MessageQueue[Any], count: int, taken: list[int]) -> None:
    """Get so many messages without waiting, of any topic and of one in turn."""
    for number in range(count):
        message = queue.get(None if number % 2 else "t", block=False)
        taken.append(message.body)
        message.ack()


def test_no_get_of_many_threads_is_empty_while_messages_are_ready(opened: Open):
    queues = [opened() for _ in range(3)]
    threads, each = 9, 30
    queues[0].put_many(range(threads * each), topic="t")
    taken: list[int] = []

    def put() -> None:
        for number in range(100):
            queues[0].put(number, topic="later", delay=3600)

    run_threads(put, *[partial(take, queues[number % 3], each, taken) for number in range(threads)])
    assert sorted(taken) == [*range(threads * each)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_no_get_of_many_processes_is_empty_while_messages_are_ready(tmp_path: Path):
    processes, each = 4, 60
    path = tmp_path / "q"
    with MessageQueue[Any](path, durability="process") as queue:
        queue.put_many(range(processes * each), topic="t")
    begin, say_begin = os.pipe()
    hear, say = os.pipe()

    def work() -> None:
        os.close(say_begin)
        taken: list[int] = []
        with MessageQueue[Any](path, durability="process") as queue:
            os.read(begin, 1)  # returns when the parent closes the other end
            take(queue, each, taken)
        os.write(say, "".join(f"{number}\n" for number in taken).encode())

    pids = []
    for _ in range(processes):
        pids.append(os.fork())
        if pids[-1] == 0:
            try:
                work()
            except BaseException:
                os._exit(1)
            os._exit(0)
    for end in (begin, say_begin, say):
        os.close(end)
    with open(hear) as lines:
        taken = Counter(map(int, lines))
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * processes
    assert taken == dict.fromkeys(range(processes * each), 1)


# The back-off is a power of the number of attempts, which no column and no float holds.


def test_the_thousandth_attempt_has_a_back_off(opened: Open, machine: Machine):
    queue = opened(max_attempts=None, backoff=Backoff(base=1, factor=2.5, limit=500, jitter=0))
    id = queue.put("x")
    assert id is not None
    for _ in range(999):
        queue.get(block=False).nack(0)
    message = queue.get(block=False)
    assert message.attempts == 1000
    message.nack()
    info = queue.find(id)
    assert info is not None
    assert (info.state, info.due_at) == (State.DELAYED, machine.wall + 500)
    machine.wait(500)
    assert queue.get(block=False).attempts == 1001


@pytest.mark.parametrize("attempts", [1, 2, 1000, 1025, 1_000_000])
@pytest.mark.parametrize("factor", [0, 0.5, 1, 2, 2.0, 1e308])
@pytest.mark.parametrize("base", [0, 1, 1e9])
def test_no_back_off_is_above_its_limit(attempts: int, factor: float, base: float):
    delay = Backoff(base=base, factor=factor, limit=500, jitter=0).delay(attempts)
    assert 0 <= delay <= 500
    if base == 0:
        assert delay == 0
    elif factor >= 1 and (base >= 500 or (attempts > 9 and factor > 1)):
        assert delay == 500


# A topic whose messages were claimed by consumers that are gone is in no list, so nobody asks for it.


def test_a_topic_of_messages_whose_leases_have_run_out_is_seen(opened: Open, machine: Machine):
    gone, queue = opened(), opened()
    gone.put_many("ab", topic="t")
    gone.get_many(2, "t", lease=LEASE)
    assert queue.topics() == {"t": 0}
    assert queue.lock_topic() is None
    machine.wait(LEASE)
    assert queue.topics() == {"t": 2}
    assert (queue.qsize("t"), queue.stats("t").ready, queue.empty("t")) == (2, 2, False)
    lock = queue.lock_topic()
    assert lock is not None
    assert lock.topic == "t"
    assert queue.get("t", block=False).body == "a"


def test_a_topic_of_messages_whose_worker_was_killed_is_seen(opened: Open, tmp_path: Path):
    def work() -> None:
        queue = MessageQueue[Any](tmp_path / "q", serializer="json", durability="process")
        queue.put("x", topic="t")
        queue.get("t", lease=None)
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(work) == -signal.SIGKILL
    queue = opened()
    assert queue.topics() == {"t": 1}
    lock = queue.lock_topic()
    assert lock is not None
    assert queue.get("t", block=False).last_error == "its worker died"
