"""Several processes that put into one queue at the same time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from itertools import repeat
from multiprocessing.connection import Connection

from benchmarks.children import running, together
from benchmarks.contenders import ITEM, Opening
from benchmarks.model import Contender, Figure, Scenario, Sizes
from persistcoll import Queue

__all__ = ["processes", "puts_of_processes"]

_OPEN = partial(Queue, durability="process")
_COUNTS = (1, 2, 4)


def processes(sizes: Sizes, root: str) -> Scenario:
    """Measure how many items all processes together put in a second."""

    def contender(count: int) -> Contender:
        each = max(1, sizes.operations // count)
        return Contender(_name(count), "process", lambda at: puts_of_processes(_OPEN, at, count, each))

    def rate(count: int) -> Figure:
        text = f"items a second, {_name(count)}"
        return Figure(text, lambda numbers: 1e6 / numbers[f"{_name(count)}: put"], unit="/s")

    return Scenario(
        name="processes",
        compared=(
            "put of a dict of 100 bytes, pickle, by 1, 2 and 4 processes into one queue, from the first's"
            " start to the last's end. Each survives the death of the process. For information."
        ),
        contenders=[contender(count) for count in _COUNTS],
        figures=[rate(count) for count in _COUNTS],
    )


def _name(count: int) -> str:
    return f"{count} process{'es' if count > 1 else ''}"


def puts_of_processes(
    opening: Opening,
    directory: str,
    count: int,
    each: int,
    prepare: Callable[[str], None] = lambda path: None,
) -> Mapping[str, float]:
    """Return microseconds per put, from the first start to the last end, and the slowest put.

    :param prepare: called with the queue's path when it is open.
    """
    path = os.path.join(directory, "queue")
    with opening(path) as queue:
        prepare(path)
        with running(_produce, [(opening, path, each)] * count) as connections:
            spans = together(connections)
        if queue.qsize() != count * each:
            raise AssertionError(f"{queue.qsize()} of {count * each} items are there")
    seconds = max(end for _, end, _ in spans) - min(begin for begin, _, _ in spans)
    return {"put": seconds * 1e6 / (count * each), "slowest": max(slowest for _, _, slowest in spans) * 1e6}


def _produce(connection: Connection, opening: Opening, path: str, count: int) -> None:
    slowest = 0.0
    with opening(path) as queue:
        connection.send("ready")
        connection.recv()
        begin = last = time.monotonic()
        for _ in repeat(None, count):
            queue.put(ITEM)
            now = time.monotonic()
            slowest = max(slowest, now - last)
            last = now
        connection.send((begin, last, slowest))
