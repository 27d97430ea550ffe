"""Threads and forked children whose errors reach the test that waits for them."""

from __future__ import annotations

import os
import threading
import traceback
from collections.abc import Callable

__all__ = ["check", "in_forked_child", "run_threads"]


def check(fact: bool, message: str) -> None:
    """Raise ``AssertionError(message)`` unless the condition holds, under ``python -O`` too."""
    if not fact:
        raise AssertionError(message)


def run_threads(*calls: Callable[[], object], timeout: float = 120.0) -> None:
    """Run the calls at the same time, each in a thread of its own.

    :param timeout: seconds for which the function waits for all threads together.
    :raises AssertionError: if a thread has not ended by then. An error of a thread is raised as it is; of
        several, the first.

    >>> numbers = []
    >>> run_threads(lambda: numbers.append(1), lambda: numbers.append(2))
    >>> sorted(numbers)
    [1, 2]
    """
    errors: list[BaseException] = []
    start = threading.Barrier(len(calls))

    def run(call: Callable[[], object]) -> None:
        try:
            start.wait()
            call()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(call,), daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive() and not errors and timeout > 0:
            thread.join(0.1)
            timeout -= 0.1
    for thread in threads:
        thread.join(5.0 if errors else 0.0)  # A thread may wait forever for the one that failed.
    if errors:
        raise errors[0]
    check(not any(thread.is_alive() for thread in threads), "a thread did not come to its end")


def in_forked_child(call: Callable[[], object]) -> None:
    """Run ``call()`` in a forked child, and raise ``AssertionError`` here if it raised there."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:  # The child runs no test and no exit handler of its parent.
        status = 1
        try:
            os.close(reading)
            try:
                call()
                status = 0
            except BaseException:
                os.write(writing, traceback.format_exc().encode()[:60_000])
        finally:
            os._exit(status)
    os.close(writing)
    with open(reading, "rb") as pipe:
        report = pipe.read().decode()
    _, status = os.waitpid(pid, 0)
    check(status == 0, f"in a forked child: {report or f'wait status {status}'}")
