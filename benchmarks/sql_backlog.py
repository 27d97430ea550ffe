"""The same work with few and with many ready and finished items, in one database."""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping
from itertools import repeat
from typing import Any

from benchmarks.contenders import Marks
from benchmarks.model import Contender, Figure, Scenario, Sizes, ratio
from persistcoll import SQLiteAckQueue, SQLiteQueue

__all__ = ["sql_backlog"]

_BATCH = 1_000
_BLOCK = 500
_REMOVING = ("put", "get", "qsize", "peek")
_KEEPING = ("put", "get", "ack", "nack", "put_many", "get_many", "qsize", "acked_count", "peek")
_OPTIONS: dict[str, Any] = {"serializer": "json", "durability": "process"}


def _ack_queue(path: str) -> SQLiteAckQueue:
    return SQLiteAckQueue(path, keep_acked=None, **_OPTIONS)


def _queue(path: str) -> SQLiteQueue:
    return SQLiteQueue(path, name="removing", auto_commit=True, **_OPTIONS)


def sql_backlog(sizes: Sizes, root: str) -> Scenario:
    """Measure opening and every operation, at both sizes."""
    both = (sizes.small_backlog, sizes.large_table)
    paths = {size: os.path.join(root, f"table-{size}") for size in both}
    small, large = both
    blocks = max(1, sizes.operations // 4 // _BLOCK)

    def removing(size: int) -> Contender:
        name = f"SQLiteQueue, {size:,}"
        return Contender(name, "process", lambda at: _remove(paths[size], size, blocks))

    def keeping(size: int) -> Contender:
        name = f"SQLiteAckQueue, {size:,}"
        return Contender(name, "process", lambda at: _ack(paths[size], size, blocks))

    def beside(kind: str, phase: str) -> Figure:
        over, under = (f"{kind}, {size:,}: {phase}" for size in (large, small))
        return ratio(f"{kind}, {phase}: large / small", [over], [under], at_most=1.3)

    def prepare() -> Mapping[str, Any]:
        return {f"{size:,}": _build(path, size) for size, path in paths.items()}

    return Scenario(
        name="sql_backlog",
        compared=(
            f"Ours with {large:,} items beside ours with {small:,}: so many wait, and in the ack queue, which"
            " keeps what was acknowledged, as many more are finished. Numbers as json, process durability. A"
            " database with both queues is built once, and they stay as long as they are: blocks of 500 puts"
            " and 500 gets; of 500 puts, gets, nacks, gets again, acks, and put_many and get_many of 500, per"
            " item. Opening is the constructor and close() of the ack queue, small and large in turn, in each"
            " round the median. What is read lies in the page cache."
        ),
        contenders=[
            Contender("opening", "process", lambda at: _open(paths, sizes.openings)),
            *map(removing, both),
            *map(keeping, both),
        ],
        figures=[
            ratio("opening: large / small", [f"opening: {large:,}"], [f"opening: {small:,}"], at_most=1.3),
            *(beside("SQLiteQueue", phase) for phase in _REMOVING),
            *(beside("SQLiteAckQueue", phase) for phase in _KEEPING),
        ],
        prepare=prepare,
    )


def _build(path: str, size: int) -> Mapping[str, float]:
    marks = Marks()
    with _queue(path) as removing, _ack_queue(path) as queue:
        for first in range(0, size, _BATCH):
            count = min(_BATCH, size - first)
            queue.put_many([0] * count)
            queue.get_many(count)
            for _ in repeat(None, count):
                queue.task_done()
        for first in range(0, size, _BATCH):
            count = min(_BATCH, size - first)
            queue.put_many([0] * count)
            removing.put_many([0] * count)
        return {"seconds to build": round(marks.lap(1) / 1e6, 2), "bytes": queue.stats().bytes}


def _open(paths: Mapping[int, str], count: int) -> Mapping[str, float]:
    taken: dict[int, list[float]] = {size: [] for size in paths}
    for _ in repeat(None, count):
        for size, path in paths.items():
            marks = Marks()
            _ack_queue(path).close()
            taken[size].append(marks.lap(1))
    return {f"{size:,}": statistics.median(times) for size, times in taken.items()}


def _remove(path: str, size: int, blocks: int) -> Mapping[str, float]:
    numbers = dict.fromkeys(_REMOVING, 0.0)
    total = blocks * _BLOCK
    with _queue(path) as queue:
        for _ in repeat(None, blocks):
            marks = Marks()
            for _ in repeat(None, _BLOCK):
                queue.put(0)
            numbers["put"] += marks.lap(total)
            for _ in repeat(None, _BLOCK):
                queue.get()
            numbers["get"] += marks.lap(total)
        _look(numbers, queue, ("qsize", "peek"), total)
        if queue.qsize() != size:
            raise AssertionError(f"{queue.qsize()} wait instead of {size}")
    return numbers


def _ack(path: str, size: int, blocks: int) -> Mapping[str, float]:
    numbers = dict.fromkeys(_KEEPING, 0.0)
    total = blocks * _BLOCK
    new = [0] * _BLOCK
    with _ack_queue(path) as queue:
        for _ in repeat(None, blocks):
            marks = Marks()
            for item in new:
                queue.put(item)
            numbers["put"] += marks.lap(total)
            items = [queue.get(raw=True) for _ in new]
            numbers["get"] += marks.lap(total)
            for item in items:
                queue.nack(item)
            numbers["nack"] += marks.lap(total)
            items = [queue.get(raw=True) for _ in new]
            marks.lap(total)
            for item in items:
                queue.ack(item)
            numbers["ack"] += marks.lap(total)
            queue.put_many(new)
            numbers["put_many"] += marks.lap(total)
            queue.get_many(_BLOCK)
            numbers["get_many"] += marks.lap(total)
            for _ in new:
                queue.task_done()
            queue.clear_acked_data(max_delete=None, keep_latest=size)
        _look(numbers, queue, ("qsize", "acked_count", "peek"), total)
        found = queue.qsize(), queue.acked_count()
        if found != (size, size):
            raise AssertionError(f"{found} are waiting and finished instead of {size} each")
    return numbers


def _look(numbers: dict[str, float], queue: Any, names: tuple[str, ...], count: int) -> None:
    for name in names:
        look = getattr(queue, name)
        marks = Marks()
        for _ in repeat(None, count):
            look()
        numbers[name] = marks.lap(count)
