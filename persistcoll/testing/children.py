"""Threads and forked children whose errors arrive where they are waited for."""

from __future__ import annotations

import os
import threading
import traceback
from collections.abc import Callable

__all__ = ["check", "in_forked_child", "run_threads"]


def check(fact: bool, message: str) -> None:
    """``assert``, but not left out by ``python -O``."""
    if not fact:
        raise AssertionError(message)


def run_threads(*calls: Callable[[], object], timeout: float = 120.0) -> None:
    """Run them at the same time, each in a thread of its own; raise the first error of any.

    :param timeout: seconds after which a thread that has not ended is an ``AssertionError``.

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
        thread.join(5.0 if errors else 0.0)  # the others may wait for what will not come
    if errors:
        raise errors[0]
    check(not any(thread.is_alive() for thread in threads), "a thread did not come to its end")


def in_forked_child(call: Callable[[], object]) -> None:
    """``call()`` in a forked child; what it raises there is an ``AssertionError`` here."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:  # nothing of the parent's may run here: no test, no handler at exit
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
