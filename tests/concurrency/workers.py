"""Queues and other collections in other processes, and what the tests have them do there."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from persistcoll import Queue

__all__ = ["Remote", "call", "get_until_told", "produce", "wait_in"]

# Processes are not forked, because a user's processes share nothing with this one.
CONTEXT = multiprocessing.get_context("spawn")
SECONDS = 60.0  # far more than anything here lasts


class Remote:
    """A process with a queue that follows the orders of a test.

    :param queue: the queue, or the path and options of a ``Queue`` to open there, or a function to call with
        them there.

    Each function of this module runs there as ``function(queue, tell, *arguments)``. What it tells arrives
    before its result does.
    """

    def __init__(self, queue: Queue | str | Callable[..., Any], **options: Any) -> None:
        self._pipe, theirs = CONTEXT.Pipe()
        self._process = CONTEXT.Process(target=_serve, args=(theirs, queue, options), daemon=True)
        self._process.start()
        theirs.close()
        assert self._process.pid is not None
        self.pid = self._process.pid
        self._closed = False

    def start(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._pipe.send((function, arguments))

    def _next(self) -> tuple[str, Any]:
        assert self._pipe.poll(SECONDS), "the other process does not answer"
        kind, value = self._pipe.recv()
        if kind == "error":
            raise value
        return kind, value

    def told(self) -> Any:
        """Return the next thing that the process tells."""
        kind, value = self._next()
        assert kind == "told", (kind, value)
        return value

    def result(self) -> Any:
        """Return the result of the function, or raise the error that it raised."""
        kind, value = self._next()
        while kind == "told":
            kind, value = self._next()
        return value

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        self.start(function, *arguments)
        return self.result()

    def __call__(self, method: str, *arguments: Any) -> Any:
        """Call a method of the queue in the process."""
        return self.run(call, method, *arguments)

    @property
    def quiet(self) -> bool:
        """Whether the process has told nothing more."""
        return not self._pipe.poll(0)

    def say(self, something: Any = None) -> None:
        """Let a ``wait()`` in the process return."""
        self._pipe.send(something)

    def kill(self) -> None:
        """Kill the process with SIGKILL."""
        os.kill(self.pid, signal.SIGKILL)
        self._end()

    def close(self) -> None:
        """Let the process close its queue and end."""
        if not self._closed:
            self._pipe.send(None)
            self._end()

    def _end(self) -> None:
        self._closed = True
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()
        self._pipe.close()


def _serve(pipe: Any, queue: Queue | str | Callable[..., Any], options: dict[str, Any]) -> None:
    if not isinstance(queue, Queue):
        queue = Queue(queue, **options) if isinstance(queue, str) else queue(**options)
    with queue as opened:
        while (order := pipe.recv()) is not None:
            function, arguments = order
            tell = _Teller(pipe)
            try:
                pipe.send(("value", function(opened, tell, *arguments)))
            except Exception as error:
                pipe.send(("error", error))


class _Teller:
    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe

    def __call__(self, something: Any) -> None:
        self._pipe.send(("told", something))

    @property
    def said(self) -> bool:
        """Tell whether the test has said something."""
        return bool(self._pipe.poll(0))

    def wait(self) -> Any:
        """Wait until the test says something, and return it."""
        return self._pipe.recv()


def call(queue: Queue, tell: _Teller, method: str, *arguments: Any) -> Any:
    """Call a method, or read a property; ``items()`` becomes a list."""
    value = getattr(queue, method)
    value = value(*arguments) if callable(value) else value
    return list(value) if method == "items" else value


def wait_in(queue: Queue, tell: _Teller, method: str, *arguments: Any) -> tuple[Any, float]:
    """Call a method that has to wait, and tell when it waits; return its result and the time of it."""
    results: list[tuple[Any, float]] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            results.append((getattr(queue, method)(*arguments), time.monotonic()))
        except Exception as error:
            errors.append(error)

    core = queue._core
    signals = (core.not_empty, core.not_full, core.all_done)
    thread = threading.Thread(target=run)
    thread.start()
    pause = threading.Event()
    while thread.is_alive() and not any(each._wakes for each in signals):
        pause.wait(0.0005)
    tell("waits")
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def produce(queue: Queue, tell: _Teller, name: int, count: int) -> int:
    """Put ``(name, 0)`` and so on, some of them in one call; return the highest qsize() seen."""
    tell("ready")
    tell.wait()
    highest = number = 0
    while number < count:
        several = min(count - number, 1 + number % 3)
        if several == 1:
            queue.put((name, number), timeout=SECONDS)
        else:
            queue.put_many([(name, number + more) for more in range(several)], timeout=SECONDS)
        number += several
        highest = max(highest, queue.qsize())
    return highest


def get_until_told(queue: Queue, tell: _Teller, acknowledge: int, hold: int) -> None:
    """Get and ack some items, get others, tell both, and keep the others claimed."""
    done = []
    for _ in range(acknowledge):
        done.append(queue.get(timeout=SECONDS))
        queue.task_done()
    tell((done, [queue.get(timeout=SECONDS) for _ in range(hold)]))
    tell.wait()
