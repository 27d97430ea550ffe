"""Threads and forked children whose errors reach the test that waits for them."""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Callable

__all__ = ["begin_in_threads", "check", "in_forked_child", "run_threads"]

# Seconds. A thread that runs in Python for longer than this without waiting is stopped in between.
_LONG = 10.0


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


def begin_in_threads(*calls: Callable[[], object]) -> Callable[[], None]:
    """Begin each call in a thread of its own, and return when it has ended or waits for something.

    A call that waits for nothing ends first even on a busy machine, because the interpreter lets no other
    thread run until then. A call that waits outside of Python has time to end as well, but no guarantee.

    :return: a function that waits for the ends of all calls.
    :raises AssertionError: by that function, if a call does not end. An error of a call is raised as it is;
        of several, the first.

    >>> lock, numbers = threading.Lock(), []
    >>> def after_the_lock():
    ...     with lock:
    ...         numbers.append(2)
    >>> with lock:
    ...     end = begin_in_threads(after_the_lock, lambda: numbers.append(1))
    ...     numbers
    [1]
    >>> end()
    >>> numbers
    [1, 2]
    """
    errors: list[BaseException] = []

    def run(call: Callable[[], object]) -> None:
        try:
            call()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(call,), daemon=True) for call in calls]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(_LONG)
    try:
        for thread in threads:
            thread.start()
            thread.join(0.05)
    finally:
        sys.setswitchinterval(interval)

    def end() -> None:
        for thread in threads:
            thread.join(60)
        if errors:
            raise errors[0]
        check(not any(thread.is_alive() for thread in threads), "a thread did not come to its end")

    return end


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
