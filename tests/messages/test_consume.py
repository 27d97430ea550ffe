"""Iterations over messages: what they prefetch, release, extend, and when they end."""

from __future__ import annotations

import gc
import os
from typing import Any

import pytest

from persistcoll import Empty, MessageQueue, OutgoingMessage, ShutDown, StaleClaimError, State
from persistcoll.engine.message_records import MessageClaim
from tests.messages.waits import until_asleep
from tests.permissions.kinds import in_child
from tests.queues.waits import until, waiting


def put(queue: MessageQueue[Any], bodies: str = "abcdef", **options: Any) -> None:
    queue.put_many(bodies, **options)


def attempts(queue: MessageQueue[Any], body: str) -> int:
    (info,) = [queue._info(record) for record in queue._store.scan() if queue._info(record).body == body]
    return info.attempts


def states(queue: MessageQueue[Any]) -> str:
    """Return the bodies that are ready, in order."""
    return "".join(queue._info(record).body for record in queue._store.scan(State.READY))


@pytest.mark.parametrize("prefetch", [1, 2, 3, 100])
def test_it_gets_one_after_the_other(queue, prefetch):
    put(queue)
    put(queue, "xyz", topic="t", priority=1)
    got = []
    for message in queue.consume(prefetch=prefetch):
        with message:
            got.append(message.body)
            if len(got) == 9:
                queue.shutdown()
    assert "".join(got) == "xyzabcdef"
    assert queue.topics() == {}


def test_it_waits(queue):
    got: list[Any] = []

    def consume() -> None:
        for message in queue.consume(["t", "u"], prefetch=2):
            with message:
                got.append(message.body)

    result = waiting(consume)
    for number in range(3):
        until_asleep(queue, 1, ("t", "u"))
        queue.put(number, topic="tu"[number % 2])
        until(lambda number=number: len(got) == number + 1)
    queue.shutdown()
    result()
    assert got == [0, 1, 2]


def test_it_claims_nothing_before_it_is_asked(queue):
    put(queue)
    iteration = queue.consume(prefetch=3)
    assert states(queue) == "abcdef"
    next(iteration)
    assert states(queue) == "def"
    iteration.close()


def test_without_a_prefetch_it_claims_one(queue):
    put(queue)
    iteration = queue.consume()
    next(iteration)
    assert states(queue) == "bcdef"
    iteration.close()
    assert states(queue) == "bcdef"


END: dict[str, Any] = {
    "close": lambda held: held[0].close(),
    "drop": lambda held: held.clear(),
    "throw": lambda held: throw(held[0], ValueError),
    "interrupt": lambda held: throw(held[0], KeyboardInterrupt),
}


def throw(iteration: Any, error: type[BaseException]) -> None:
    with pytest.raises(error):
        iteration.throw(error())


@pytest.mark.parametrize("end", END)
def test_its_end_releases_what_was_only_prefetched(queue, no_collector, end):
    """What it has yielded stays claimed, because its consumer settles it."""
    put(queue)
    held = [queue.consume(prefetch=4)]
    first, second = next(held[0]), next(held[0])
    first.ack()
    END[end](held)
    assert states(queue) == "cdef"
    assert [attempts(queue, body) for body in "bcd"] == [1, 0, 0]
    second.ack()


def test_a_message_that_wakes_another_thread_at_its_end(queue):
    put(queue, "ab")
    iteration = queue.consume(prefetch=2)
    next(iteration)
    queue._store.is_quiet = True
    get = waiting(lambda: queue.get().body)
    until_asleep(queue, 1)
    iteration.close()
    assert get() == "b"


@pytest.mark.parametrize("immediate", [False, True])
def test_a_shutdown_between_two_messages(queue, immediate):
    put(queue)
    iteration = queue.consume(prefetch=4)
    message = next(iteration)
    queue.shutdown(immediate)
    assert list(iteration) == []
    assert states(queue) == "bcdef"
    assert attempts(queue, "b") == 0
    message.ack()


def test_a_shutdown_while_it_claims(queue, monkeypatch):
    """What it claims at that moment is released."""
    put(queue)
    claim = queue._store.claim

    def claim_and_shut_down(*arguments: Any, **options: Any) -> Any:
        records = claim(*arguments, **options)
        queue.shutdown()
        return records

    monkeypatch.setattr(queue._store, "claim", claim_and_shut_down)
    assert list(queue.consume(prefetch=2)) == []
    assert states(queue) == "abcdef"


def test_prefetched_messages_are_delivered_one_by_one(open_queue):
    """After a crash only the message on which work had begun counts an attempt."""
    mine, other = open_queue(), open_queue()
    put(mine, "abc")
    iteration = mine.consume(prefetch=3)
    next(iteration)
    mine.close()
    del iteration
    assert [message.attempts for message in other.get_many(3)] == [2, 1, 1]


def test_its_leases_are_extended(queue, clock, monkeypatch):
    """A consumer that works for most of a lease at a time loses none of what it has prefetched."""
    now = [0.0]
    monkeypatch.setattr("persistcoll.messages.claiming.time.monotonic", lambda: now[0])
    put(queue)
    got = []
    for message in queue.consume(prefetch=6, lease=10):
        with message:
            got.append(message.body)
            assert message.leased_until > clock.now
            clock.advance(8.9)
            now[0] += 8.9
            if len(got) == 6:
                queue.shutdown()
    assert "".join(got) == "abcdef"
    assert queue.stats().gets == 6


def test_each_lease_is_extended_by_its_own_length(queue, clock, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("persistcoll.messages.claiming.time.monotonic", lambda: now[0])
    queue.put_many(
        [
            "a",
            OutgoingMessage("b", lease=10),
            OutgoingMessage("c", lease=500),
            OutgoingMessage("d", lease=None),
        ]
    )
    iteration = queue.consume(prefetch=4)
    next(iteration)
    clock.advance(5)
    now[0] += 5
    messages = [next(iteration) for _ in range(3)]
    ends = [message.leased_until for message in messages]
    assert ends == [clock.now + 10, clock.now + 500, None]
    assert ends == [queue.find(message.id).leased_until for message in messages]


def test_a_quick_consumer_extends_nothing(queue, monkeypatch):
    def extend(claims: Any, seconds: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(queue._store, "extend", extend)
    put(queue)
    iteration = queue.consume(prefetch=6)
    assert [next(iteration).body for _ in range(6)] == list("abcdef")


@pytest.mark.parametrize("noticed", [False, True])
def test_what_lost_its_lease_is_not_yielded(queue, clock, monkeypatch, noticed):
    """Neither if the time is noticed before the next message, so that it extends, nor if it is not."""
    now = [0.0]
    monkeypatch.setattr("persistcoll.messages.claiming.time.monotonic", lambda: now[0])
    put(queue, "abc", lease=10)
    put(queue, "de", lease=100)
    iteration = queue.consume(prefetch=5)
    first = next(iteration)
    clock.advance(10)
    now[0] += 10 if noticed else 0
    assert queue.get().body == "a"  # which the consumer still works on
    assert [next(iteration).body for _ in range(2)] == ["d", "e"]
    assert attempts(queue, "b") == 0
    assert next(iteration).body == "b"
    with pytest.raises(StaleClaimError):
        first.ack()


def test_all_leases_lost(queue, clock):
    put(queue, "abc")
    iteration = queue.consume(prefetch=3)
    next(iteration)
    clock.advance(60)
    assert [next(iteration).body for _ in range(3)] == ["a", "b", "c"]


def test_what_cannot_be_decoded_is_passed_over(open_queue):
    queue = open_queue(backoff=900)
    put(queue, "abcd")
    queue._store._state.rows[2].entry = queue._store._state.rows[2].entry._replace(payload=b"no JSON")
    iteration = queue.consume(prefetch=3)
    assert [next(iteration).body for _ in range(2)] == ["a", "c"]
    assert queue.find(2).state is State.DELAYED
    iteration.close()
    assert states(queue) == "d"


def test_several_iterations_share_the_work(queue):
    put(queue)
    one, two = queue.consume(prefetch=2), queue.consume(prefetch=3)
    assert [next(one).body, next(two).body, next(one).body, next(one).body] == ["a", "c", "b", "f"]
    two.close()
    assert next(one).body == "d"
    one.close()
    assert states(queue) == "e"


def test_an_iteration_keeps_its_queue_open(states, tmp_path):
    def begin() -> Any:
        queue: MessageQueue[Any] = MessageQueue(tmp_path / "q.db", serializer="json")
        queue.put_many("ab")
        return queue.consume(prefetch=2)

    iteration = begin()
    gc.collect()
    assert next(iteration).body == "a"
    iteration.gi_frame.f_locals["owner"].close()
    del iteration


def test_an_iteration_of_a_closed_queue_can_be_dropped(queue, no_collector):
    put(queue)
    iteration = queue.consume(prefetch=3)
    next(iteration)
    queue.close()
    del iteration


def test_a_destructor_within_an_operation_does_not_wait(queue, monkeypatch):
    """It leaves the release to the next claim."""
    put(queue)
    iteration = queue.consume(prefetch=3)
    next(iteration)
    monkeypatch.setattr("persistcoll.engine.message_core.in_operation", lambda: True)
    del iteration
    assert states(queue) == "def"
    assert queue.get().body == "b"
    assert states(queue) == "cdef"


@pytest.mark.parametrize("fails", [LookupError, KeyboardInterrupt])
def test_a_release_that_fails_is_made_up_for(queue, monkeypatch, fails):
    put(queue, "abc")
    iteration = queue.consume(prefetch=3)
    next(iteration)
    release = queue._store.release
    failed: list[int] = []

    def fail_once(claims: list[MessageClaim]) -> Any:
        if not failed:
            failed.append(1)
            raise fails
        return release(claims)

    monkeypatch.setattr(queue._store, "release", fail_once)
    if fails is LookupError:
        iteration.close()
    else:
        with pytest.raises(KeyboardInterrupt):
            iteration.close()
    assert states(queue) == ""
    assert queue.get(block=False).body == "b"
    assert states(queue) == "c"


def test_a_pending_release_that_fails_stays(queue, monkeypatch):
    put(queue, "ab")
    iteration = queue.consume(prefetch=2)
    next(iteration)
    release = queue._store.release
    left = [2]

    def fail_twice(claims: list[MessageClaim]) -> Any:
        left[0] -= 1
        if left[0] >= 0:
            raise LookupError
        return release(claims)

    monkeypatch.setattr(queue._store, "release", fail_twice)
    iteration.close()
    with pytest.raises(LookupError):
        queue.get(block=False)
    assert queue.get(block=False).body == "b"


# Forks


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
class TestForks:
    pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

    @pytest.fixture
    def calls(self, queue, monkeypatch) -> list[str]:
        """Return the names of the calls that need a claim."""
        calls: list[str] = []
        for name in ("deliver", "ack", "nack", "release", "fail", "extend", "unlock_topic"):
            call = getattr(queue._store, name)

            def watched(*arguments: Any, call: Any = call, name: str = name, **options: Any) -> Any:
                calls.append(name)
                return call(*arguments, **options)

            monkeypatch.setattr(queue._store, name, watched)
        return calls

    @pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
    def test_a_child_that_leaves_a_block(self, queue, calls, error):
        put(queue)
        codes = []

        def leave(message: Any, lock: Any) -> None:
            try:
                message.__exit__(error, error and error(), None)
                lock.__exit__(None, None, None)
                assert calls == []
            finally:
                calls.clear()

        with queue.lock_topic("t") as lock, queue.get() as message:
            codes.append(in_child(lambda: leave(message, lock)))
        assert codes == [0]
        assert calls == ["ack", "unlock_topic"]

    @pytest.mark.parametrize("how", ["goes on", "closes", "raises"])
    def test_a_child_in_an_iteration(self, queue, calls, how):
        """It neither yields nor releases what the parent has prefetched, and gets messages of its own."""
        put(queue)
        iteration = queue.consume(prefetch=4)
        next(iteration)
        calls.clear()

        def child() -> None:
            if how == "goes on":
                # In the child's memory the parent is dead, and its claims have ended.
                assert next(iteration).attempts == 2
                assert calls == ["deliver"]
                iteration.close()
                assert calls == ["deliver", "release"]
            elif how == "closes":
                iteration.close()
                assert calls == []
            else:
                with pytest.raises(ValueError, match="x"):
                    iteration.throw(ValueError("x"))
                assert calls == []

        assert in_child(child) == 0
        assert next(iteration).body == "b"
        iteration.close()
        assert states(queue) == "cdef"

    def test_a_child_uses_the_queue(self, queue):
        queue.put("x", topic="t")
        get = waiting(lambda: queue.get("u").body)
        until_asleep(queue, 1, ("u",))

        def child() -> None:
            assert not queue._core._available
            with queue.get("t", timeout=5) as message:
                assert message.body == "x"
            with pytest.raises(Empty):
                queue.get("u", timeout=0.01)
            queue.shutdown()
            with pytest.raises(ShutDown):
                queue.get("u")

        assert in_child(child) == 0
        queue.put("y", topic="u")
        assert get() == "y"

    def test_pending_releases_are_the_parents(self, queue, calls):
        queue._core.release_later([MessageClaim(1, 1)])

        def child() -> None:
            with pytest.raises(Empty):
                queue.get(block=False)
            assert calls == []

        assert in_child(child) == 0
