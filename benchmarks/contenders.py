"""The queues: those of persistcoll and their peers, each used as its documentation says."""

from __future__ import annotations

import importlib.util
import os
import pickle
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import repeat
from time import perf_counter
from typing import Any

from persistcoll import Queue

__all__ = [
    "BATCH",
    "ITEM",
    "Marks",
    "Opening",
    "have",
    "ours_batches",
    "ours_phases",
    "persist_queue_file_phases",
    "persist_queue_sqlite_puts",
    "puts_of_threads",
    "queuelib_phases",
    "seconds_together",
]

ITEM: dict[str, Any] = {"id": 12345, "name": "a" * 40, "kind": "job", "n": 1.5}
"""100 bytes as a pickle of protocol 5."""
BATCH = 100
Opening = Callable[[str], Any]
"""Returns a queue for a path, as a context manager. It can be passed to another process."""

assert len(pickle.dumps(ITEM, 5)) == 100


def have(module: str) -> bool:
    """Tell whether a peer is installed: only the environment of the benchmarks has them."""
    return importlib.util.find_spec(module) is not None


class Marks:
    """Microseconds per operation between one call and the next."""

    def __init__(self) -> None:
        self._last = perf_counter()

    def lap(self, operations: int) -> float:
        now = perf_counter()
        result = (now - self._last) * 1e6 / operations
        self._last = perf_counter()
        return result


def ours_phases(directory: str, count: int, **options: Any) -> Mapping[str, float]:
    """Put all items, then get and ack each; then put, get and ack each on an empty queue."""
    item = options.pop("item", ITEM)
    with Queue(os.path.join(directory, "queue"), **options) as queue:
        put, get, task_done = queue.put, queue.get, queue.task_done
        marks = Marks()
        for _ in repeat(None, count):
            put(item)
        numbers = {"put": marks.lap(count)}
        for _ in repeat(None, count):
            get()
            task_done()
        numbers["get + task_done"] = marks.lap(count)
        for _ in repeat(None, count):
            put(item)
            get()
            task_done()
        numbers["in turn"] = marks.lap(count)
    return numbers


def ours_batches(directory: str, count: int, **options: Any) -> Mapping[str, float]:
    """Put and get all items in batches of :data:`BATCH`, then ack them one by one."""
    batch = [ITEM] * BATCH
    with Queue(os.path.join(directory, "queue"), **options) as queue:
        marks = Marks()
        for _ in range(0, count, BATCH):
            queue.put_many(batch)
        numbers = {"put": marks.lap(count)}
        for _ in range(0, count, BATCH):
            queue.get_many(BATCH)
        numbers["get"] = marks.lap(count)
        if not queue.autosave:
            for _ in repeat(None, count):
                queue.task_done()
            numbers["task_done"] = marks.lap(count)
    return numbers


def persist_queue_file_phases(directory: str, count: int) -> Mapping[str, float]:
    """Run the phases of :func:`ours_phases` with persist-queue's ``Queue``.

    It syncs only where a chunk of 100 items ends.
    """
    from persistqueue import Queue as FileQueue

    path = os.path.join(directory, "queue")
    # By default it puts temporary files elsewhere, on whatever file system that is.
    os.mkdir(path)
    queue = FileQueue(path, tempdir=path)
    put, get, task_done = queue.put, queue.get, queue.task_done
    marks = Marks()
    for _ in repeat(None, count):
        put(ITEM)
    numbers = {"put": marks.lap(count)}
    for _ in repeat(None, count):
        get()
        task_done()
    numbers["get + task_done"] = marks.lap(count)
    for _ in repeat(None, count):
        put(ITEM)
        get()
        task_done()
    numbers["in turn"] = marks.lap(count)
    return numbers


@contextmanager
def _fifo_disk_queue(directory: str) -> Iterator[tuple[Callable[[bytes], None], Callable[[], Any]]]:
    from queuelib import FifoDiskQueue

    queue = FifoDiskQueue(os.path.join(directory, "queue"))
    try:
        yield queue.push, queue.pop
    finally:
        queue.close()


def queuelib_phases(directory: str, count: int) -> Mapping[str, float]:
    """Push all items to queuelib's ``FifoDiskQueue`` as pickles, then pop them.

    It has no lock and no checksum, and after a crash only a queue that was closed knows what it holds. Its
    pop is final; it has no ack.
    """
    dumps, loads = pickle.dumps, pickle.loads
    with _fifo_disk_queue(directory) as (push, pop):
        marks = Marks()
        for _ in repeat(None, count):
            push(dumps(ITEM, 5))
        numbers = {"put": marks.lap(count)}
        for _ in repeat(None, count):
            loads(pop())
        numbers["get"] = marks.lap(count)
    return numbers


def persist_queue_sqlite_puts(directory: str, count: int) -> Mapping[str, float]:
    """Put all items into persist-queue's ``SQLiteQueue``: each put is a transaction and a sync."""
    from persistqueue import SQLiteQueue

    queue = SQLiteQueue(os.path.join(directory, "queue"), auto_commit=True, multithreading=True)
    try:
        marks = Marks()
        for _ in repeat(None, count):
            queue.put(ITEM)
        return {"put": marks.lap(count)}
    finally:
        queue.close()


def seconds_together(calls: Sequence[Callable[[], object]]) -> float:
    """Run each call in a thread of its own, and return the seconds from the common start to the last end.

    The first failure is raised.
    """
    start = threading.Barrier(len(calls) + 1)
    failures: list[BaseException] = []

    def work(call: Callable[[], object]) -> None:
        start.wait()
        try:
            call()
        except BaseException as error:
            failures.append(error)

    workers = [threading.Thread(target=work, args=(call,)) for call in calls]
    for worker in workers:
        worker.start()
    start.wait()
    begin = perf_counter()
    for worker in workers:
        worker.join()
    seconds = perf_counter() - begin
    if failures:
        raise failures[0]
    return seconds


def puts_of_threads(
    opening: Opening,
    directory: str,
    threads: int,
    each: int,
    prepare: Callable[[str], None] = lambda path: None,
) -> Mapping[str, float]:
    """Return microseconds per put, from the common start to the last thread's end.

    :param prepare: called with the queue's path when it is open.
    """
    path = os.path.join(directory, "queue")
    with opening(path) as queue:
        prepare(path)

        def work() -> None:
            for _ in repeat(None, each):
                queue.put(ITEM)

        seconds = seconds_together([work] * threads)
        if queue.qsize() != threads * each:
            raise AssertionError(f"{queue.qsize()} of {threads * each} items are there")
    return {"put": seconds * 1e6 / (threads * each)}
