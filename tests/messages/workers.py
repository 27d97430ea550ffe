"""What the tests of workers share: handlers that wait, and workers that run in a thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

import pytest

from persistcoll import Backoff, MessageQueue, State, Worker
from persistcoll.messages.message import Message
from tests.messages.conftest import START, Clock
from tests.queues.waits import waiting

__all__ = ["Held", "RunningClock", "bodies", "quick_pauses", "running", "threads"]

PATIENCE = 20.0


class RunningClock(Clock):
    """A clock that runs, and that the test may also put forward."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def __call__(self) -> float:
        return START + time.monotonic() + self.now


class Held:
    """A handler whose calls wait until the test opens it.

    :ivar handled: the bodies of the calls that have returned.
    """

    def __init__(self) -> None:
        self._begun: SimpleQueue[Message[Any]] = SimpleQueue()
        self._is_open = threading.Event()
        self.handled: list[Any] = []

    def __call__(self, message: Message[Any]) -> None:
        self._begun.put(message)
        assert self._is_open.wait(PATIENCE)
        self.handled.append(message.body)

    def begun(self, count: int = 1) -> list[Message[Any]]:
        """Wait until so many more calls have begun, and return their messages in any order."""
        return [self._begun.get(timeout=PATIENCE) for _ in range(count)]

    def has_begun(self) -> bool:
        return not self._begun.empty()

    def open(self) -> None:
        self._is_open.set()


@contextmanager
def running(worker: Worker[Any], raises: type[BaseException] | None = None) -> Iterator[Any]:
    """Run the worker in a thread during the block, and stop it at its end.

    :param raises: what ``run`` has to raise then. What the block is given has it as ``error``.
    """
    result = waiting(worker.run)
    try:
        yield result
    finally:
        worker.stop()
    if raises is None:
        result()
    else:
        with pytest.raises(raises) as caught:
            result()
        result.error = caught.value


def bodies(queue: MessageQueue[Any], state: State) -> str:
    """Return the bodies of the messages in this state, in the order of their ids."""
    return "".join(str(queue._info(record).body) for record in queue._store.scan(state))


def threads() -> int:
    """Return how many threads of handlers there are."""
    return sum(thread.name.startswith("persistcoll-worker") for thread in threading.enumerate())


def quick_pauses(monkeypatch: Any, seconds: float = 0.0) -> None:
    """Let workers try again after so many seconds."""
    for module in ("worker", "handling"):
        pauses = Backoff(base=seconds, factor=1, jitter=0)
        monkeypatch.setattr(f"persistcoll.messages.{module}.PAUSES", pauses)
