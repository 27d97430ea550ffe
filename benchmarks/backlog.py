"""The same work at a small and at a large backlog."""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping
from itertools import repeat
from time import perf_counter
from typing import Any

from benchmarks.children import memory_of_child
from benchmarks.contenders import Marks
from benchmarks.model import Contender, Figure, Scenario, Sizes
from persistcoll import Queue

__all__ = ["backlog"]

_BATCH = 10_000
_BLOCK = 500
# Fewer than a chunk of the small backlog has room for.
_ACKNOWLEDGED = 10_000
_PHASES = ("put", "get", "task_done", "qsize", "peek")
# Small items, so that a large backlog means many records and not many bytes.
_OPTIONS: dict[str, Any] = {"serializer": "json", "durability": "process"}


def backlog(sizes: Sizes, root: str) -> Scenario:
    """Measure opening, every operation and memory, at both sizes."""
    both = (sizes.small_backlog, sizes.large_backlog)
    paths = {size: os.path.join(root, f"backlog-{size}") for size in both}
    # Queues of their own, because the length of a cursor depends on where its queue stands in its chunk.
    opened = {size: os.path.join(root, f"opening-{size}") for size in both}
    acknowledged = min(_ACKNOWLEDGED, sizes.operations // 2)
    small, large = (f"{size:,} waiting" for size in paths)

    def contender(size: int) -> Contender:
        return Contender(f"{size:,} waiting", "process", lambda at: _measure(paths[size], size, sizes))

    def ratio(phase: str) -> Figure:
        over, under = f"{large}: {phase}", f"{small}: {phase}"
        return Figure(f"{phase}: large / small", lambda numbers: numbers[over] / numbers[under], at_most=1.3)

    def prepare() -> Mapping[str, Any]:
        for size, path in opened.items():
            _build(path, size)
            _ack(path, acknowledged)
        return {f"{size:,}": _build(path, size) for size, path in paths.items()}

    return Scenario(
        name="backlog",
        compared=(
            f"Ours with {large} beside ours with {small}: numbers as json, process durability. The backlog"
            " is built once and stays as long as it is: blocks of 500 puts, 500 gets, 500 task_done. Opening"
            " is the constructor and close() of queues of these sizes with equally many acknowledgements"
            f" since their last change of chunk ({acknowledged:,}), as reading these takes time; small and"
            " large in turn, in each round the median and the slowest. Memory is the most that a process of"
            " its own had resident, which opened, put, got, acknowledged, looked and closed. What is read"
            " lies in the page cache."
        ),
        contenders=[
            Contender("opening", "process", lambda at: _open(opened, sizes.openings)),
            *map(contender, paths),
        ],
        figures=[
            Figure(
                "opening: large / small",
                lambda numbers: numbers[f"opening: {large}"] / numbers[f"opening: {small}"],
                at_most=1.3,
            ),
            *map(ratio, _PHASES),
            # The slowest and not the median, because the promise is about any opening.
            Figure(
                "slowest opening at the large one",
                lambda numbers: numbers[f"opening: {large}, slowest"] / 1e6,
                at_most=1.0,
                unit="s",
            ),
            Figure(
                "memory: large / small",
                lambda numbers: numbers[f"{large}: memory (KiB)"] / numbers[f"{small}: memory (KiB)"],
                at_most=1.05,
            ),
        ],
        prepare=prepare,
    )


def _build(path: str, size: int) -> Mapping[str, float]:
    begin = perf_counter()
    with Queue(path, **_OPTIONS) as queue:
        for first in range(0, size, _BATCH):
            queue.put_many(range(first, min(first + _BATCH, size)))
    seconds = perf_counter() - begin
    held = sum(entry.stat().st_size for entry in os.scandir(path))
    return {"seconds to build": round(seconds, 2), "bytes": held}


def _ack(path: str, count: int) -> None:
    """Ack so many more items; as many are ready as before."""
    with Queue(path, **_OPTIONS) as queue:
        for _ in repeat(None, count):
            queue.put(0)
            queue.get()
            queue.task_done()


def _open(paths: Mapping[int, str], count: int) -> Mapping[str, float]:
    """Return medians and not means.

    One opening during which the device is busy would weigh as much in a mean as all the others.
    """
    taken: dict[int, list[float]] = {size: [] for size in paths}
    for _ in repeat(None, count):
        for size, path in paths.items():
            marks = Marks()
            Queue(path, **_OPTIONS).close()
            taken[size].append(marks.lap(1))
    numbers = {}
    for size, times in taken.items():
        numbers[f"{size:,} waiting"] = statistics.median(times)
        numbers[f"{size:,} waiting, slowest"] = max(times)
    return numbers


def _measure(path: str, size: int, sizes: Sizes) -> Mapping[str, float]:
    numbers = dict(_operate(path, size, sizes.operations))
    memory = memory_of_child(_operate, path, size, max(1, sizes.operations // 10))
    if memory is not None:
        numbers["memory (KiB)"] = memory
    return numbers


def _operate(path: str, size: int, operations: int) -> Mapping[str, float]:
    """Return microseconds for each operation at a backlog that stays ``size``."""
    numbers = dict.fromkeys(("put", "get", "task_done"), 0.0)
    block = min(_BLOCK, size)
    blocks = max(1, operations // block)
    with Queue(path, **_OPTIONS) as queue:
        queue.put(queue.get())  # The first get searches for the place where reading begins.
        queue.task_done()
        for _ in repeat(None, blocks):
            marks = Marks()
            for _ in repeat(None, block):
                queue.put(0)
            numbers["put"] += marks.lap(block * blocks)
            for _ in repeat(None, block):
                queue.get()
            numbers["get"] += marks.lap(block * blocks)
            for _ in repeat(None, block):
                queue.task_done()
            numbers["task_done"] += marks.lap(block * blocks)
        marks = Marks()
        for _ in repeat(None, operations):
            queue.qsize()
        numbers["qsize"] = marks.lap(operations)
        for _ in repeat(None, operations):
            queue.peek()
        numbers["peek"] = marks.lap(operations)
        if queue.qsize() != size:
            raise AssertionError(f"{queue.qsize()} wait instead of {size}")
    return numbers
