"""Workers and time: leases that are extended, hung handlers, storage that fails for a while or for good."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from persistcoll import (
    BackendUnavailableError,
    ClosedError,
    CorruptionError,
    LockedError,
    OutgoingMessage,
    State,
    StorageError,
    StorageFullError,
    StoreReplacedError,
    Worker,
)
from tests.messages.waits import until_asleep
from tests.messages.workers import Held, RunningClock, bodies, quick_pauses, running
from tests.queues.waits import until


@pytest.fixture
def clock() -> RunningClock:
    """Leases end while a worker runs."""
    return RunningClock()


@pytest.fixture
def soon(monkeypatch) -> None:
    """Let a lease of a minute be extended after 30 ms, so that it is in no danger."""
    monkeypatch.setattr("persistcoll.messages.worker._LEFT", 0.9995)


@pytest.fixture
def extended(queue, monkeypatch) -> list[tuple[set[int], float]]:
    """Return the extensions: the ids of their messages, and the seconds."""
    extended: list[tuple[set[int], float]] = []
    extend = queue._store.extend

    def watched(claims: Any, seconds: float) -> Any:
        result = extend(claims, seconds)
        extended.append(({claim.id for claim in claims}, seconds))
        return result

    monkeypatch.setattr(queue._store, "extend", watched)
    return extended


# Leases


@pytest.mark.usefixtures("soon")
def test_one_call_extends_the_leases_of_all_messages(queue, extended):
    """Those of running handlers, and those of messages that wait for one."""
    queue.put_many("abcdefgh")
    held = Held()
    with running(Worker(queue, held, concurrency=4, prefetch=2)):
        held.begun(4)
        before = [queue.find(id).leased_until for id in range(1, 7)]
        until(lambda: sum(len(ids) == 6 for ids, _ in extended) >= 3)
        assert extended[-1] == ({1, 2, 3, 4, 5, 6}, 60.0)
        assert threading.active_count() == 1 + 1 + 4  # this thread, that of run(), and the handlers
        after = [queue.find(id).leased_until for id in range(1, 7)]
        assert all(later > earlier for later, earlier in zip(after, before, strict=True))
        held.open()
        until(lambda: len(held.handled) == 8)
    assert queue.topics() == {}


@pytest.mark.usefixtures("soon")
def test_each_length_of_a_lease_is_extended_when_it_is_due(queue, extended):
    lengths = (60, 120, 100_000, None)
    queue.put_many([OutgoingMessage(str(length), lease=length) for length in lengths])
    held = Held()
    with running(Worker(queue, held, concurrency=4)):
        held.begun(4)
        until(lambda: len(extended) > 8)
        held.open()
    assert {(tuple(ids), seconds) for ids, seconds in extended} == {((1,), 60.0), ((2,), 120.0)}
    numbers = [seconds for _, seconds in extended]
    assert numbers.count(60.0) > numbers.count(120.0)


def test_a_quick_handler_needs_no_extension(queue, extended):
    queue.put_many(range(50))
    with running(Worker(queue, lambda message: None, concurrency=2, prefetch=4)):
        until(lambda: not queue.stats().ready and not queue.stats().claimed)
    assert extended == []


@pytest.mark.usefixtures("soon")
def test_without_extend_no_lease_is_extended(queue, extended, clock):
    """What another consumer has got meanwhile is not handled once more."""
    queue.put_many("abc", topic="t")
    queue.put("x", topic="extended")
    held, other = Held(), Held()
    with running(Worker(queue, other, topics="extended", prefetch=0)):
        other.begun()
        with running(Worker(queue, held, topics="t", prefetch=2, extend=False)):
            held.begun()
            until(lambda: queue.stats("t").claimed == 3)
            extended.clear()
            until(lambda: len(extended) >= 3)
            other.open()
            until(lambda: other.handled)
            clock.advance(60)
            others = queue.get_many(3, "t")
            assert [message.body for message in others] == ["a", "b", "c"]
            held.open()
            until(lambda: held.handled == ["a"])
            until_asleep(queue, 1, ("t",))
    assert not held.has_begun()
    assert {id for ids, _ in extended for id in ids} == {4}


@pytest.mark.usefixtures("soon")
def test_a_lease_that_its_handler_has_extended_is_not_shortened(queue, extended):
    queue.put_many("ab")
    opened = threading.Event()

    def handle(message: Any) -> None:
        if message.body == "a":
            message.extend(3600)
        assert opened.wait(20)

    with running(Worker(queue, handle, concurrency=2)):
        until(lambda: len(extended) >= 6)
        left = queue.find(1).leased_until - queue.find(2).leased_until
        opened.set()
    assert left > 3500
    assert [ids for ids, _ in extended if 2 in ids] == [{2}] * (len(extended) - extended.count(({1}, 3600.0)))


@pytest.mark.usefixtures("soon")
def test_the_lease_of_a_hung_handler_ends(queue, extended, clock, caplog):
    """Another consumer gets the message, and the late ack is logged."""
    queue.put_many("ab")
    held = Held()
    with running(Worker(queue, held, timeout=0.1, prefetch=0)):
        held.begun()
        until(lambda: "not extended any more" in caplog.text)
        assert ({1}, 60.0) in extended
        clock.advance(60)
        with queue.get() as message:
            assert (message.body, message.attempts, message.last_error) == ("a", 2, "lease ran out")
        caplog.clear()
        held.open()
        until(lambda: held.handled == ["a", "b"])
    assert [record.getMessage() for record in caplog.records] == [
        "the claim of message 1 of topic 'default' ended before its handler did, so it is delivered again"
    ]
    assert queue.topics() == {}


@pytest.mark.usefixtures("soon")
def test_a_timeout_begins_when_the_handler_does(queue, extended, caplog):
    """What has waited long is extended again when its handler runs."""
    queue.put_many("ab")
    first, second = Held(), Held()
    with running(Worker(queue, lambda m: (first if m.body == "a" else second)(m), timeout=0.1)):
        first.begun()
        until(lambda: caplog.text.count("not extended any more") == 2)
        extended.clear()
        first.open()
        second.begun()
        until(lambda: ({2}, 60.0) in extended)
        until(lambda: caplog.text.count("not extended any more") == 3)
        second.open()
        until(lambda: second.handled)


@pytest.mark.usefixtures("soon")
def test_a_message_that_comes_again_while_its_first_handler_hangs(queue, extended, caplog):
    """The lease of the later delivery is extended, also after the first handler. Only that one is acked."""
    queue.put("a")
    handlers = [Held(), Held()]
    with running(Worker(queue, lambda m: handlers[m.deliveries - 1](m), concurrency=2, prefetch=0)):
        (first,) = handlers[0].begun()
        queue._store.release((first._claim,))
        handlers[1].begun()
        for held in handlers:
            extended.clear()
            until(lambda: len(extended) >= 3)
            assert bodies(queue, State.CLAIMED) == "a"
            held.open()
            until(lambda held=held: held.handled)
        until(lambda: queue.topics() == {})
    assert caplog.text.count("ended before its handler did") == 1


@pytest.mark.usefixtures("soon")
def test_a_claim_that_has_ended_does_not_cost_the_leases_of_others(queue, extended, monkeypatch):
    """The store refuses a whole batch because of one."""
    queue.put_many("ab")
    held = Held()
    with running(Worker(queue, held, concurrency=2, prefetch=0)):
        first = next(message for message in held.begun(2) if message.body == "a")
        until(lambda: ({1, 2}, 60.0) in extended)
        asked, extend = [], queue._store.extend

        def watched(claims: Any, seconds: float) -> Any:
            asked.append(len(claims))
            return extend(claims, seconds)

        monkeypatch.setattr(queue._store, "extend", watched)
        queue._store.release((first._claim,))
        until(lambda: asked[-3:] == [1] * 3)
        assert asked.count(2) <= 2
        assert extended[-1] == ({2}, 60.0)
        queue.cancel(1)
        held.open()


# What fails for a while

TEMPORARY = [LockedError("x is locked"), StorageFullError("no room"), BackendUnavailableError("no server")]
CALLS: dict[str, Callable[[Any], None]] = {
    "claim": lambda queue: queue.put("a"),
    "ack": lambda queue: queue.put("a"),
    "nack": lambda queue: queue.put("fails", max_attempts=1),
    "deliver": lambda queue: queue.put_many("ab"),
}


def failing(queue: Any, monkeypatch: Any, name: str, error: Exception, times: int) -> list[int]:
    """Let a call of the store raise the error so many times, and return the list of those."""
    call = getattr(queue._store, name)
    failed: list[int] = []

    def fail(*arguments: Any, **options: Any) -> Any:
        if len(failed) < times:
            failed.append(1)
            raise error
        return call(*arguments, **options)

    monkeypatch.setattr(queue._store, name, fail)
    return failed


@pytest.mark.parametrize("error", TEMPORARY, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("name", CALLS)
def test_a_temporary_failure(queue, monkeypatch, caplog, name, error):
    """The call is made again until it succeeds."""
    quick_pauses(monkeypatch)
    CALLS[name](queue)
    got: list[Any] = []

    def handle(message: Any) -> None:
        got.append(message.body)
        if message.body == "fails":
            raise ValueError

    failed = failing(queue, monkeypatch, name, error, 3)
    with running(Worker(queue, handle)):
        until(lambda: got and not queue.stats().ready and not queue.stats().claimed)
    assert len(failed) == 3
    assert sorted(got) == sorted({"nack": ["fails"], "deliver": ["a", "b"]}.get(name, ["a"]))
    texts = [record.getMessage() for record in caplog.records if str(error) in record.getMessage()]
    assert len(texts) == 3
    assert all(record.levelno == logging.WARNING for record in caplog.records)


def test_a_failure_to_nack_what_cannot_be_decoded(open_queue, monkeypatch):
    """The message does not stay claimed."""
    quick_pauses(monkeypatch)
    queue = open_queue(backoff=900)
    queue.put("a")
    queue._store._state.rows[1].entry = queue._store._state.rows[1].entry._replace(payload=b"no JSON")
    failing(queue, monkeypatch, "nack", LockedError("x is locked"), 1)
    with running(Worker(queue, print)):
        until(lambda: queue.find(1).state is State.DELAYED)


@pytest.mark.usefixtures("soon")
def test_a_temporary_failure_of_an_extension(queue, monkeypatch, extended, caplog):
    quick_pauses(monkeypatch)
    queue.put("a")
    failed = failing(queue, monkeypatch, "extend", LockedError("x is locked"), 3)
    held = Held()
    with running(Worker(queue, held)):
        until(lambda: len(extended) >= 2)
        held.open()
    assert len(failed) == 3
    assert caplog.text.count("tries again") == 3


@pytest.mark.usefixtures("soon")
def test_leases_are_extended_between_two_attempts_to_claim(queue, monkeypatch, extended):
    quick_pauses(monkeypatch, 1000)
    queue.put("a")
    held = Held()
    with running(Worker(queue, held, concurrency=2)):
        held.begun()
        failed = failing(queue, monkeypatch, "claim", LockedError("x is locked"), 10**9)
        queue.put("b")
        until(lambda: failed)
        extended.clear()
        until(lambda: len(extended) >= 3)
        assert len(failed) == 1
        held.open()


@pytest.mark.parametrize("name", ["claim", "extend"])
def test_a_stop_ends_the_pause_after_a_failure(queue, monkeypatch, caplog, name, request):
    if name == "extend":
        request.getfixturevalue("soon")
    quick_pauses(monkeypatch, 1000)
    queue.put("a")
    failing(queue, monkeypatch, name, LockedError("x is locked"), 10**9)
    held = Held()
    with running(Worker(queue, held)):
        until(lambda: "tries again" in caplog.text)
        held.open()


def test_pauses_grow(queue, monkeypatch):
    """A storage that is full for hours is not asked all the time."""
    pauses: list[float] = []

    class Watched:
        def delay(self, failures: int) -> float:
            pauses.append(failures)
            return 0.0

    monkeypatch.setattr("persistcoll.messages.worker.PAUSES", Watched())
    queue.put_many("ab")
    failing(queue, monkeypatch, "claim", StorageFullError("no room"), 4)
    got: list[Any] = []
    with running(Worker(queue, lambda message: got.append(message.body))):
        until(lambda: len(got) == 2)
        failing(queue, monkeypatch, "claim", StorageFullError("no room"), 2)
        queue.put("c")
        until(lambda: len(got) == 3)
    assert pauses == [1, 2, 3, 4, 1, 2]


def test_the_pauses_have_a_limit():
    from persistcoll.messages.handling import PAUSES

    assert PAUSES.delay(1) < 0.2
    assert PAUSES.delay(10**6) < 6


# What fails for good

FATAL = [
    StoreReplacedError("replaced"), ClosedError("closed"), StorageError("a sync failed"),
    CorruptionError("damaged"), MemoryError(),
]  # fmt: skip


@pytest.mark.parametrize("error", FATAL, ids=lambda error: type(error).__name__)
def test_a_claim_that_fails_for_good(queue, monkeypatch, error):
    """The worker ends with it, when the running handlers have returned and their messages are acked."""
    queue.put("a")
    held = Held()
    with running(Worker(queue, held, concurrency=2), type(error)) as result:
        held.begun()
        failing(queue, monkeypatch, "claim", error, 10**9)
        queue.put("b")
        until_asleep(queue, 1, ())
        assert not result.done()
        held.open()
    assert result.error is error
    assert held.handled == ["a"]
    assert bodies(queue, State.READY) == "b"


@pytest.mark.parametrize("name", ["ack", "nack", "release", "deliver"])
def test_another_call_that_fails_for_good(queue, monkeypatch, name):
    queue.put_many("ab")
    error = StorageError("a sync failed")
    held = Held()

    def handle(message: Any) -> None:
        held(message)
        if name == "nack":
            raise ValueError
        if name == "release":
            raise SystemExit(3)

    worker = Worker(queue, handle)
    with running(worker, SystemExit if name == "release" else StorageError) as result:
        held.begun()
        until_asleep(queue, 1, ())
        failing(queue, monkeypatch, name, error, 1)
        held.open()
        until(lambda: worker._stops)
    assert result.error is error or name == "release"
    assert held.handled == ["a"]


@pytest.mark.usefixtures("soon")
def test_an_extension_that_fails_for_good(queue, monkeypatch, extended):
    queue.put("a")
    held = Held()
    error = StoreReplacedError("replaced")
    worker = Worker(queue, held)
    with running(worker, StoreReplacedError) as result:
        held.begun()
        failed = failing(queue, monkeypatch, "extend", error, 10**9)
        until(lambda: worker._stops)
        until_asleep(queue, 1, ())
        assert not result.done()
        held.open()
    assert len(failed) == 1
    assert held.handled == ["a"]


def test_a_queue_that_is_closed_meanwhile(queue):
    queue.put("a")
    held = Held()
    with running(Worker(queue, held, concurrency=2), ClosedError):
        held.begun()
        until_asleep(queue, 1)
        queue.close()
        held.open()
    assert held.handled == ["a"]


def test_a_system_that_starts_no_more_threads(queue, monkeypatch):
    """What no thread can handle is released, and what one handles is acked."""
    start, started = threading.Thread.start, []

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith("persistcoll-worker"):
            started.append(thread)
            if len(started) > 1:
                raise RuntimeError("no more threads")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    queue.put_many("abc")
    held = Held()
    worker = Worker(queue, held, concurrency=2)
    with running(worker, RuntimeError):
        held.begun()
        until(lambda: bodies(queue, State.READY) == "bc")
        held.open()
    assert held.handled == ["a"]
    assert [queue.find(id).attempts for id in (2, 3)] == [0, 0]


def test_the_clock_of_a_lease_is_the_store_s(queue, clock, extended, monkeypatch):
    """A store whose clock is far ahead extends neither early nor late."""
    clock.advance(10**6)
    monkeypatch.setattr("persistcoll.messages.worker._LEFT", 0.9995)
    queue.put("a")
    held = Held()
    with running(Worker(queue, held)):
        begun = time.monotonic()
        held.begun()
        until(lambda: extended)
        assert time.monotonic() - begun >= 0.02
        held.open()
