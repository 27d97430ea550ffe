"""An exception out of a signal handler at every place of a call: no claim is lost, no thread sleeps on."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable
from typing import Any

import pytest

from persistcoll import Empty, MessageQueue, State, StorageError
from persistcoll.messages.message import Message
from tests.interrupting import Interruption, handled, interruptions
from tests.messages.waits import asleep, until_asleep
from tests.queues.waits import interrupt_when, waiting

pytestmark = pytest.mark.timeout(120)

# The store is the model, a lock around dicts, so the tests do not interrupt its calls.
FILES = {
    "queue.py", "base.py", "claiming.py", "message.py", "core.py", "message_core.py", "topic_lock.py",
    "blocking.py", "event_count.py",
}  # fmt: skip
BORDERS = ("call  in __enter__", "call  in __exit__")
"""Places at which a block has not begun, or is not left yet. Then the end of the lease ends a claim."""
BODIES = ["a", "b", "c", "d", "e"]


class Opened:
    """A queue of five messages, whose first claims find nothing if they are to wait."""

    def __init__(self, queue: MessageQueue[Any], empty: int) -> None:
        self.queue = queue
        self.got: list[Message[Any]] = []
        queue.put_many(BODIES)
        store = queue._store
        claim = store.claim

        def claim_after_a_while(*arguments: Any, **options: Any) -> Any:
            nonlocal empty
            if empty:
                empty -= 1
                error: Any = Empty()
                error.next_at = time.monotonic()
                raise error
            return claim(*arguments, **options)

        store.claim = claim_after_a_while  # type: ignore[method-assign]


def get(opened: Opened) -> None:
    opened.got.append(opened.queue.get())


def get_with_a_timeout(opened: Opened) -> None:
    opened.got.append(opened.queue.get("default", timeout=5, lease=9))


def get_many(opened: Opened) -> None:
    opened.got += opened.queue.get_many(3)


def get_many_that_lingers(opened: Opened) -> None:
    claim = opened.queue._store.claim

    def claim_two(*arguments: Any, **options: Any) -> Any:
        limit, *others = arguments
        return claim(min(limit, 2), *others, **options)

    opened.queue._store.claim = claim_two  # type: ignore[method-assign]
    opened.got += opened.queue.get_many(4, linger=5)


def consume(opened: Opened) -> None:
    with contextlib.closing(opened.queue.consume()) as iteration:
        for message in iteration:
            opened.got.append(message)
            if len(opened.got) >= 2:
                break


def consume_what_is_prefetched(opened: Opened) -> None:
    with contextlib.closing(opened.queue.consume(prefetch=2)) as iteration:
        for message in iteration:
            opened.got.append(message)
            if len(opened.got) >= 3:
                break


def consume_until_a_shutdown(opened: Opened) -> None:
    for message in opened.queue.consume(prefetch=3):
        opened.got.append(message)
        opened.queue.shutdown()


def consume_and_drop(opened: Opened) -> None:
    iteration = opened.queue.consume(prefetch=3)
    opened.got.append(next(iteration))
    iteration.close()


CALLS: list[Callable[[Opened], None]] = [
    get, get_with_a_timeout, get_many, get_many_that_lingers, consume, consume_what_is_prefetched,
    consume_until_a_shutdown, consume_and_drop,
]  # fmt: skip


@pytest.fixture
def prepare(open_queue):
    """Return a function that makes a queue of five messages each time."""
    numbers = itertools.count()

    def make(empty: int = 0) -> Callable[[], Opened]:
        return lambda: Opened(open_queue(f"q{next(numbers)}", backoff=None), empty)

    return make


def check(opened: Opened, where: str) -> None:
    """Fail unless the caller has what is claimed, and everything is ready that it has not got."""
    queue = opened.queue
    queue._core._do_pending_release()
    got = {message.id for message in opened.got}
    for info in map(queue.find, range(1, 6)):
        assert info is not None, where
        if info.id in got:
            assert info.state is State.CLAIMED, where
        else:
            assert (info.state, info.attempts) == (State.READY, 0), f"{where}: {info}"
    for message in opened.got:
        message.ack()
    assert not [event for event in queue._core._available.values() if event.listeners], where


@pytest.mark.sampled(4)
@pytest.mark.parametrize("empty", [0, 2], ids=["at once", "after a wait"])
@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_getting(prepare, call, empty):
    count = 0
    for opened, where in interruptions(prepare(empty), call, files=FILES):
        count += 1
        check(opened, where)
    assert count > 5


class Refusing:
    """JSON that decodes only what is told."""

    name = "refusing"
    executes_code = False

    def dumps(self, obj: Any) -> bytes:
        return str(obj).encode()

    def loads(self, data: bytes) -> Any:
        if data in (b"a", b"c"):
            raise ValueError
        return data.decode()


def test_getting_what_cannot_be_decoded(open_queue):
    numbers = itertools.count()

    def make() -> Opened:
        return Opened(open_queue(f"q{next(numbers)}", serializer=Refusing(), backoff=900), 0)

    for opened, where in interruptions(make, get_many, files=FILES):
        opened.queue._core._do_pending_release()
        got = [message.body for message in opened.got]
        assert got in ([], ["b"]), where
        for id in range(1, 6):
            info = opened.queue.find(id)
            assert info is not None
            if info.state is State.CLAIMED:
                assert got == ["b"], where
                assert id == 2
            elif info.state is State.DELAYED:
                assert id in (1, 3), where
                assert info.last_error, where
            else:
                assert (info.state, info.attempts) == (State.READY, 0), where


def block(opened: Opened) -> None:
    with opened.queue.get() as message:
        opened.got.append(message)


def block_that_raises(opened: Opened) -> None:
    with contextlib.suppress(ValueError), opened.queue.get() as message:
        opened.got.append(message)
        raise ValueError("no")


def block_that_settles(opened: Opened) -> None:
    with opened.queue.get() as message:
        opened.got.append(message)
        message.nack(error="no")


@pytest.mark.parametrize(
    "call", [block, block_that_raises, block_that_settles], ids=lambda call: call.__name__
)
def test_a_block(prepare, call):
    """After it nothing is claimed."""
    for opened, where in interruptions(prepare(), call, files=FILES):
        if where.startswith(BORDERS):
            continue
        queue = opened.queue
        queue._core._do_pending_release()
        info = queue.find(1)
        if info is None:
            assert call is block, where
        else:
            assert info.state is State.READY, where
            assert (info.attempts, info.last_error) in ((0, None), (1, "no"), (1, "ValueError: no")), where
        assert len(queue) == (4 if info is None else 5), where


def test_a_lock(prepare):
    """After the block of a lock the topic is free."""

    def lock(opened: Any) -> None:
        with opened.lock:
            pass

    def make() -> Any:
        opened = prepare()()
        opened.lock = opened.queue.lock_topic("default")
        return opened

    for opened, where in interruptions(make, lock, files=FILES):
        if where.startswith(BORDERS):
            continue
        assert opened.queue.lock_topic("default") is not None, where


def test_locking(prepare):
    """The caller has the lock, or nobody has, and it stays so after the next claim."""

    def lock(opened: Any) -> None:
        opened.lock = opened.queue.lock_topic("default")

    def make() -> Any:
        opened = prepare()()
        opened.lock = None
        return opened

    count = 0
    for opened, where in interruptions(make, lock, files=FILES):
        count += 1
        found = opened.queue._store._state.locks
        opened.queue._core._do_pending_release()
        assert len(found) == (opened.lock is not None), where
        if opened.lock is None:
            assert opened.queue.lock_topic("default") is not None, where
    assert count > 5


def test_a_lock_that_cannot_be_released_yet(queue):
    """The next call that claims or locks releases it."""
    store, lock_topic, unlock_topic = queue._store, queue._store.lock_topic, queue._store.unlock_topic

    def lock_and_raise(*arguments: Any, **options: Any) -> None:
        lock_topic(*arguments, **options)
        raise Interruption

    def refuse(lock: Any) -> bool:
        store.unlock_topic = unlock_topic
        raise StorageError("no room")

    store.lock_topic, store.unlock_topic = lock_and_raise, refuse
    with pytest.raises(Interruption):
        queue.lock_topic("t")
    store.lock_topic = lock_topic
    assert store._state.locks
    assert queue.lock_topic("t") is not None


WAKING: dict[str, Callable[[Any], object]] = {
    "put": lambda opened: opened.queue.put("x", topic="t"),
    "put_many": lambda opened: opened.queue.put_many(["x", "y"], topic="t"),
    "resume": lambda opened: opened.queue.resume("t"),
    "nack": lambda opened: opened.held.nack(0),
    "release": lambda opened: opened.held.release(),
    "close": lambda opened: opened.iteration.close(),
}


@pytest.mark.parametrize("name", WAKING)
def test_a_change_that_wakes_a_thread(prepare, name):
    """If the interrupted call has made a message available, the thread that waits for one gets it."""

    def make() -> Any:
        opened = prepare()()
        queue = opened.queue
        if name == "resume":
            queue.pause("t")
        if name not in ("put", "put_many"):
            queue.put("x", topic="t")
        if name in ("nack", "release"):
            opened.held = queue.get("t")
        elif name == "close":
            queue.put("y", topic="t", priority=5)
            opened.iteration = queue.consume("t", prefetch=2)
            next(opened.iteration)
        queue._store.is_quiet = True
        opened.get = waiting(lambda: queue.get("t", timeout=20).body)
        until_asleep(queue, 1, ("t",))
        return opened

    for opened, where in interruptions(make, WAKING[name], files=FILES, step=2):
        queue = opened.queue
        paused = "t" in queue._store._state.paused
        if not opened.get.done() and (paused or not queue.qsize("t")):
            # Nothing has changed, or the release is left to the next claim, so do it now.
            queue._core._do_pending_release()
            if name == "resume":
                queue.resume("t")
            elif name in ("nack", "release") and queue.stats("t").claimed:
                opened.held.release()
            elif name in ("put", "put_many") and not queue.stats("t").puts:
                queue.put("x", topic="t")
        assert opened.get() in ("x", "y"), where


HANDLERS: dict[str, Callable[[Opened], object]] = {
    "get": lambda opened: opened.got.append(opened.queue.get(block=False)),
    "put": lambda opened: opened.queue.put("handler", topic="h"),
    "shutdown": lambda opened: opened.queue.shutdown(),
    "topics": lambda opened: opened.queue.topics(),
    "recover": lambda opened: opened.queue.recover(),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("handler", HANDLERS)
@pytest.mark.parametrize("call", CALLS[:-2], ids=lambda call: call.__name__)
def test_a_signal_handler_within_a_call(prepare, call, handler):
    """A handler that uses the queue answers or raises ``StorageError``, and never hangs."""

    def handle(opened: Opened) -> None:
        with contextlib.suppress(StorageError, Empty):
            HANDLERS[handler](opened)

    def call_it(opened: Opened) -> None:
        with contextlib.suppress(Exception):
            call(opened)

    for opened, where in handled(prepare(1), call_it, handle, files=FILES, step=3):
        check(opened, where)


def test_an_interrupted_thread_keeps_no_other_one_waiting(queue):
    queue._store.is_quiet = True
    other = waiting(lambda: queue.get().body)
    until_asleep(queue, 1)

    interrupt_when(lambda: asleep(queue) == 2, queue.get)
    queue.put("new")
    assert other() == "new"
