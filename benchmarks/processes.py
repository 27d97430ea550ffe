"""Several processes that put into one queue at once."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from itertools import repeat
from multiprocessing.connection import Connection

from benchmarks.children import answer, running
from benchmarks.contenders import ITEM
from benchmarks.model import Contender, Figure, Scenario, Sizes
from persistcoll import Queue

__all__ = ["processes"]

_COUNTS = (1, 2, 4)


def processes(sizes: Sizes, root: str) -> Scenario:
    """What all of them put in a second, together."""

    def contender(count: int) -> Contender:
        each = max(1, sizes.operations // count)
        return Contender(_name(count), "process", lambda at: _measure(at, count, each))

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


def _measure(directory: str, count: int, each: int) -> Mapping[str, float]:
    path = os.path.join(directory, "queue")
    with Queue(path, durability="process") as queue:
        with running(_produce, [(path, each)] * count) as connections:
            for connection in connections:
                answer(connection)
            for connection in connections:
                connection.send("go")
            spans = [answer(connection) for connection in connections]
        if queue.qsize() != count * each:
            raise AssertionError(f"{queue.qsize()} of {count * each} items are there")
    seconds = max(end for _, end in spans) - min(begin for begin, _ in spans)
    return {"put": seconds * 1e6 / (count * each)}


def _produce(connection: Connection, path: str, count: int) -> None:
    with Queue(path, durability="process") as queue:
        connection.send("ready")
        connection.recv()
        begin = time.monotonic()
        for _ in repeat(None, count):
            queue.put(ITEM)
        connection.send((begin, time.monotonic()))
