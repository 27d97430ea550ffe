"""Message queues over the model in memory, with a clock that the test sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from persistcoll import MessageQueue
from persistcoll.engine.memory.message_store import MemoryMessageState, MemoryMessageStore
from persistcoll.engine.memory.server_message_store import (
    MemoryMessageServerState,
    MemoryMessageServerStore,
)
from persistcoll.engine.message_records import MessageEntry, MessagePolicy, MessageRecord
from persistcoll.options import MessageQueueOptions

START = 1_700_000_000.0


class Clock:
    """A clock that stands still until the test sets it."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class FaceStore(MemoryMessageStore):
    """The model as a face needs it: with an id, and with payloads that a serializer seals.

    :ivar attempts: how many claims were tried.
    :ivar is_quiet: whether a waiter sees no change by polling, so that only wake-ups wake it.
    """

    store_id = b"sixteen bytes id"

    def __init__(self, policy: MessagePolicy, state: MemoryMessageState) -> None:
        super().__init__(policy, state)
        self.attempts = 0
        self.is_quiet = False
        self._seal: Any = None

    def seal_with(self, seal: Any, unseal: Any) -> None:
        self._seal = seal

    def _put(self, entry: MessageEntry) -> int | None:
        if self._seal is not None:
            entry = entry._replace(payload=self._seal(entry.payload, self._state.last_id + 1))
        return super()._put(entry)

    def claim(self, *arguments: Any, **options: Any) -> list[MessageRecord]:
        self.attempts += 1
        return super().claim(*arguments, **options)

    def change_token(self) -> object:
        return 0 if self.is_quiet else super().change_token()


def store_of(queue: MessageQueue[Any]) -> FaceStore:
    assert isinstance(queue._store, FaceStore)
    return queue._store


class ServerFaceStore(MemoryMessageServerStore):
    """The same for the model of a server, which joins the transactions of its callers."""

    store_id = b"sixteen bytes id"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def states(monkeypatch, clock) -> dict[tuple[str, str], MemoryMessageState]:
    """Let every message queue be in memory, and return the states by place and name."""
    states: dict[tuple[str, str], MemoryMessageState] = {}

    def open_store(options: MessageQueueOptions) -> MemoryMessageStore:
        from persistcoll.serializers import codec, resolve

        state = states.setdefault((options.file, options.name), MemoryMessageState(clock))
        store = FaceStore(options.policy, state)
        store.observe(options.observer)
        bound = codec(resolve(options.serializer), store.store_id)
        store.seal_with(bound.seal, bound.unseal)
        return store

    monkeypatch.setattr("persistcoll.messages.queue.open_store", open_store)
    return states


@pytest.fixture
def open_queue(states, tmp_path) -> Iterator[Callable[..., MessageQueue[Any]]]:
    """Open ``MessageQueue``, each time the same one unless ``name`` differs, and close it at the end."""
    opened: list[MessageQueue[Any]] = []

    def make(name: str = "messages", **options: Any) -> MessageQueue[Any]:
        options.setdefault("serializer", "json")
        opened.append(MessageQueue(tmp_path / "q.db", name, **options))
        return opened[-1]

    yield make
    for queue in opened:
        queue.close()


@pytest.fixture
def queue(open_queue) -> MessageQueue[Any]:
    queue: MessageQueue[Any] = open_queue(backoff=None)
    return queue


@pytest.fixture
def quiet(queue) -> MessageQueue[Any]:
    """Return a queue whose waiters poll in vain, so that only wake-ups wake them."""
    store_of(queue).is_quiet = True
    result: MessageQueue[Any] = queue
    return result


@pytest.fixture
def server_queue(monkeypatch, tmp_path) -> Iterator[MessageQueue[Any]]:
    """Open a queue on the model of a server."""
    state = MemoryMessageServerState()

    def open_store(options: MessageQueueOptions) -> MemoryMessageServerStore:
        store = ServerFaceStore(options.policy, state)
        store.observe(options.observer)
        return store

    monkeypatch.setattr("persistcoll.messages.queue.open_store", open_store)
    with MessageQueue[Any](tmp_path / "q.db", serializer="json") as queue:
        yield queue
