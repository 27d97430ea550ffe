"""Calls that wait, in threads, and waiting for a condition."""

from __future__ import annotations

import queue as standard
import signal
import threading
import time

import pytest

from tests.interrupting import Interruption

__all__ = ["interrupt_when", "someone_waits", "until", "waiting"]


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


def interrupt_when(fact, call):
    """Run ``call``, which waits, and interrupt it by a signal as soon as ``fact()`` is true."""

    def raise_it(number, frame):
        raise Interruption

    def interrupt():
        until(fact)
        signal.pthread_kill(caller, signal.SIGUSR1)

    caller = threading.get_ident()
    before = signal.signal(signal.SIGUSR1, raise_it)
    try:
        interrupter = threading.Thread(target=interrupt)
        interrupter.start()
        with pytest.raises(Interruption):
            call()
        interrupter.join()
    finally:
        signal.signal(signal.SIGUSR1, before)


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
