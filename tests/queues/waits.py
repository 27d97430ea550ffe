"""Calls that wait, in threads, and waiting for a condition."""

from __future__ import annotations

import queue as standard
import threading
import time

__all__ = ["someone_waits", "until", "waiting"]


def waiting(call):
    """Start ``call`` in a thread, and return when it waits: a function that returns its result."""
    result: standard.SimpleQueue = standard.SimpleQueue()

    def run():
        try:
            result.put((call(), None))
        except BaseException as error:
            result.put((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def finish():
        value, error = result.get(timeout=10)
        thread.join(10)
        if error is not None:
            raise error
        return value

    finish.thread = thread  # type: ignore[attr-defined]
    finish.done = lambda: not result.empty()  # type: ignore[attr-defined]
    return finish


def until(fact, seconds=10.0):
    """Wait until ``fact()`` is true."""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not fact():
        assert time.monotonic() < deadline, "it did not come true"
        pause.wait(0.001)


def someone_waits(queue):
    core = queue._core
    return any(signal.listeners for signal in (core.not_empty, core.not_full, core.all_done))


class WatchedLock:
    """A lock, to replace a free one, that tells when a thread begins to wait for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.waited_for = threading.Event()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        if self._lock.locked():
            self.waited_for.set()
        return self._lock.acquire(blocking, timeout)

    def release(self) -> None:
        self._lock.release()
