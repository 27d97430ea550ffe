"""Opening a long log, looking into it, and memory while it is read."""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping
from datetime import datetime, timezone
from itertools import repeat
from multiprocessing.connection import Connection
from time import perf_counter
from typing import Any

from benchmarks.children import answer, resident, running
from benchmarks.contenders import BATCH, Marks
from benchmarks.model import Contender, Figure, Scenario, Sizes
from persistcoll import Log

__all__ = ["log_backlog"]

_BATCH = 10_000
_FIRST = 1_000
_MOST_OPENING, _MOST_LOOK, _MOST_GROWTH = 1.0, 50.0, 5.0  # seconds, milliseconds, MB
_LOOKS = ("log[position]", "seek(position)", "seek(datetime)")
# Small items, so that a long log means many records and not many bytes.
_OPTIONS: dict[str, Any] = {"serializer": "json", "durability": "process"}


def log_backlog(sizes: Sizes, root: str) -> Scenario:
    """Measure opening, looks at positions and times, and memory."""
    size, read = sizes.large_backlog, sizes.large_table
    path, short = os.path.join(root, "log"), os.path.join(root, "short")
    times: list[datetime] = []

    def prepare() -> Mapping[str, Any]:
        _build(short, sizes.small_backlog)
        begin = perf_counter()
        times.extend(_build(path, size))
        seconds = perf_counter() - begin
        held = sum(entry.stat().st_size for entry in os.scandir(path))
        return {f"{size:,}": {"seconds to build": round(seconds, 2), "bytes": held}}

    def slowest(look: str, when: str) -> Figure:
        key = f"looks: {look}, {when}, slowest"
        text = f"slowest {look}, {when} look"
        return Figure(text, lambda numbers: numbers[key] / 1e3, at_most=_MOST_LOOK, unit="ms")

    return Scenario(
        name="log_backlog",
        compared=(
            f"Ours with {size:,} items: numbers as json, process durability, appended {_BATCH:,} at once,"
            f" within which no index has an entry, and {_BATCH:,} one by one, in turn. Opening is the"
            f" constructor and close(), beside a log of {sizes.small_backlog:,}. A look goes to an item near"
            " the end of one of these, or to the time at which one began, in chunks all over the log: the"
            " first look finds no index of the chunk and makes it, the later one is that of another object."
            " In each round the median and the slowest. Memory is how much more of a new process is resident"
            f" at most when it has read {read:,} items with get_many({BATCH}) and commit, than when it had"
            f" read {_FIRST:,}. What is read lies in the page cache."
        ),
        contenders=[
            Contender("opening", "process", lambda at: _open({"long": path, "short": short}, sizes.openings)),
            Contender("looks", "process", lambda at: _look(path, times, sizes.openings)),
            Contender("reading", "process", lambda at: _read_in_child(path, read)),
        ],
        figures=[
            # The slowest and not the median, because the promises are about any opening and any look.
            Figure(
                "slowest opening",
                lambda numbers: numbers["opening: long, slowest"] / 1e6,
                at_most=_MOST_OPENING,
                unit="s",
            ),
            Figure(
                "opening: long / short", lambda numbers: numbers["opening: long"] / numbers["opening: short"]
            ),
            *(slowest(look, when) for look in _LOOKS for when in ("first", "later")),
            Figure(
                "growth of memory",
                lambda numbers: numbers["reading: growth (KiB)"] * 1024 / 1e6,
                at_most=_MOST_GROWTH,
                unit="MB",
            ),
        ],
        prepare=prepare,
    )


def _build(path: str, size: int) -> list[datetime]:
    """Make a log of the numbers from 1 to ``size``, and return a time before each of its batches.

    Batch ``n`` begins with the number ``n * _BATCH + 1``, and so does its position. Every second one is
    appended item by item.
    """
    times = []
    with Log(path, **_OPTIONS) as log:
        for first in range(1, size + 1, _BATCH):
            times.append(datetime.now(timezone.utc))
            numbers = range(first, min(first + _BATCH, size + 1))
            if len(times) % 2:
                log.extend(numbers)
            else:
                for number in numbers:
                    log.append(number)
    return times


def _open(paths: Mapping[str, str], count: int) -> Mapping[str, float]:
    taken: dict[str, list[float]] = {name: [] for name in paths}
    for _ in repeat(None, count):
        for name, path in paths.items():
            marks = Marks()
            Log(path, **_OPTIONS).close()
            taken[name].append(marks.lap(1))
    return {key: value for name, each in taken.items() for key, value in _median_and_slowest(name, each)}


def _median_and_slowest(name: str, times: list[float]) -> list[tuple[str, float]]:
    return [(name, statistics.median(times)), (f"{name}, slowest", max(times))]


def _look(path: str, times: list[datetime], count: int) -> Mapping[str, float]:
    batches = len(times)
    # Steps of a third of the log or more, so that seeks go forward and back.
    chosen = list(dict.fromkeys(number * (batches // 3 + 1) % batches for number in range(count)))
    numbers: dict[str, float] = {}
    for look in _LOOKS:
        for entry in list(os.scandir(path)):
            if entry.name.endswith(".index"):
                os.remove(entry.path)
        for when in ("first", "later"):
            numbers.update(_median_and_slowest(f"{look}, {when}", _looks(path, look, times, chosen)))
    return numbers


def _looks(path: str, look: str, times: list[datetime], chosen: list[int]) -> list[float]:
    """Return the microseconds of one look into each of these batches."""
    taken = []
    with Log(path, **_OPTIONS) as log, log.consumer("looker") as consumer:
        last = log.last
        for batch in chosen:
            first = batch * _BATCH + 1
            within = min(first + _BATCH * 9 // 10, last)
            marks = Marks()
            if look == "log[position]":
                found, wanted = log[within], within
            else:
                consumer.seek(within if look == "seek(position)" else times[batch])
                found, wanted = consumer.get(False), within if look == "seek(position)" else first
            taken.append(marks.lap(1))
            if found != wanted:
                raise AssertionError(f"{look} came to {found} instead of {wanted}")
    return taken


def _read_in_child(path: str, count: int) -> Mapping[str, float]:
    with running(_read, [(path, count)]) as (connection,):
        microseconds, growth = answer(connection)
    numbers: dict[str, float] = {"read": microseconds}
    if growth is not None:
        numbers["growth (KiB)"] = growth
    return numbers


def _read(connection: Connection, path: str, count: int) -> None:
    with Log(path, **_OPTIONS) as log, log.consumer("reader") as consumer:
        consumer.seek("first")
        _read_some(consumer, min(_FIRST, count))
        before = resident("VmRSS")
        consumer.seek("first")
        marks = Marks()
        _read_some(consumer, count)
        microseconds = marks.lap(count)
        after = resident("VmHWM")
    growth = None if before is None or after is None else after - before
    connection.send((microseconds, growth))


def _read_some(consumer: Any, count: int) -> None:
    while count > 0:
        count -= len(consumer.get_many(BATCH, False))
        consumer.commit()
