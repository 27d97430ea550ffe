"""A log with many consumers: making and opening them, and appending meanwhile."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from itertools import repeat

from benchmarks.contenders import ITEM, Marks
from benchmarks.log_floors import make_consumer_files
from benchmarks.model import Contender, Figure, Scenario, Sizes, ratio
from persistcoll import Log

__all__ = ["log_consumers"]

_MOST = 1.3
_APPENDS = 20
"""Appends after each consumer."""
_FLOOR = "bare files"


def log_consumers(sizes: Sizes, root: str) -> Scenario:
    """Measure the first consumers beside the last ones."""
    count = sizes.consumers
    few = count // 10

    def last_to_first(what: str, of: str = "ours", at_most: float | None = None) -> Figure:
        text = f"{what}, {of}: last {few:,} / first {few:,}"
        return ratio(text, [f"{of}: {what}, last"], [f"{of}: {what}, first"], at_most=at_most)

    ours, bare = last_to_first("make"), last_to_first("make", _FLOOR)
    return Scenario(
        name="log_consumers",
        compared=(
            f"{count:,} consumers of one log, process durability, made and closed one after another, and then"
            f" opened and closed again; the first {few:,} of them beside the last {few:,}. Making one syncs"
            " three times, and a file system takes longer for new files the more it has just made: so beside"
            f" a bare loop that makes the same files with the same syncs. After each consumer {_APPENDS}"
            " appends of a dict of 100 bytes, pickle."
        ),
        contenders=[
            Contender("ours", "process", lambda at: _measure(at, count, few)),
            Contender(_FLOOR, "power", lambda at: _measure_bare(at, count, few)),
        ],
        figures=[
            Figure(
                f"make: last {few:,} / first {few:,}, beside bare's",
                lambda numbers: ours.of(numbers) / bare.of(numbers),
                at_most=_MOST,
            ),
            ours,
            bare,
            last_to_first("open", at_most=_MOST),
            last_to_first("append", at_most=_MOST),
            ratio(f"make, last {few:,}: ours / bare", ["ours: make, last"], [f"{_FLOOR}: make, last"]),
        ],
    )


def _measure(directory: str, count: int, few: int) -> Mapping[str, float]:
    """Return the microseconds of the first and the last ``few`` consumers, and of the appends after them."""
    with Log(os.path.join(directory, "log"), durability="process") as log:

        def open_consumer(name: str) -> None:
            log.consumer(name).close()

        def append() -> None:
            for _ in repeat(None, _APPENDS):
                log.append(ITEM)

        append()
        made, appended = _first_and_last(open_consumer, count, few, append)
        opened, _ = _first_and_last(open_consumer, count, few, append)
    return {
        **{f"make, {when}": made[when] for when in made},
        **{f"open, {when}": opened[when] for when in opened},
        **{f"append, {when}": appended[when] / _APPENDS for when in appended},
    }


def _measure_bare(directory: str, count: int, few: int) -> Mapping[str, float]:
    parent = os.open(directory, os.O_RDONLY)
    try:
        made, _ = _first_and_last(lambda name: make_consumer_files(directory, name, parent), count, few)
    finally:
        os.close(parent)
    return {f"make, {when}": made[when] for when in made}


def _first_and_last(
    work: Callable[[str], None], count: int, few: int, after: Callable[[], None] = lambda: None
) -> tuple[Mapping[str, float], Mapping[str, float]]:
    """Return the microseconds of the first and the last ``few`` calls of ``work``, and of ``after`` each."""
    worked, came_after = [], []
    for number in range(count):
        marks = Marks()
        work(f"consumer {number}")
        worked.append(marks.lap(few))
        after()
        came_after.append(marks.lap(few))
    return _ends(worked, few), _ends(came_after, few)


def _ends(times: list[float], few: int) -> Mapping[str, float]:
    return {"first": sum(times[:few]), "last": sum(times[-few:])}
