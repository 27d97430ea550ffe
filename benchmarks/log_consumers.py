"""A log with many consumers: making and opening them, and appending meanwhile."""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import repeat

from benchmarks.contenders import ITEM, Marks
from benchmarks.model import Contender, Figure, Scenario, Sizes, ratio
from persistcoll import Log

__all__ = ["log_consumers"]

_MOST = 1.3
_APPENDS = 20
"""Appends after each consumer."""
_FLOOR = "no consumer"


def log_consumers(sizes: Sizes, root: str) -> Scenario:
    """Measure the first consumers beside the last ones."""
    count = sizes.consumers
    few = count // 10

    def last_to_first(what: str) -> Figure:
        return ratio(
            f"{what}: last {few:,} / first {few:,}",
            [f"ours: {what}, last"],
            [f"ours: {what}, first"],
            at_most=_MOST,
        )

    return Scenario(
        name="log_consumers",
        compared=(
            f"{count:,} consumers of one log, process durability, made and closed one after another, and then"
            f" opened and closed again; the first {few:,} of them beside the last {few:,}. Making one takes"
            f" syncs, so it depends on the device. After each consumer {_APPENDS} appends of a dict of 100"
            f" bytes, pickle: the first {few * _APPENDS:,} beside the last ones, and both beside as many to a"
            " log without consumers."
        ),
        contenders=[
            Contender("ours", "process", lambda at: _measure(at, count, few)),
            Contender(_FLOOR, "process", lambda at: _measure(at, 0, few)),
        ],
        figures=[
            last_to_first("make"),
            last_to_first("open"),
            last_to_first("append"),
            ratio(
                f"append, last {few:,} / without a consumer",
                ["ours: append, last"],
                [f"{_FLOOR}: append, last"],
                at_most=_MOST,
            ),
        ],
    )


def _measure(directory: str, count: int, few: int) -> Mapping[str, float]:
    """Return the microseconds of the first and of the last ``few`` consumers, and of the appends after them.

    :param count: how many consumers; 0: none, and as many appends as after the first and the last ones.
    """
    numbers: dict[str, float] = {}
    with Log(os.path.join(directory, "log"), durability="process") as log:
        log.append(ITEM)
        if not count:
            _append(log, few)
            return {"append, last": _append(log, few)}
        names = [f"consumer {number}" for number in range(count)]
        for what in ("make", "open"):
            consumers = appends = 0.0
            for number, name in enumerate(names, 1):
                marks = Marks()
                log.consumer(name).close()
                consumers += marks.lap(few)
                appends += _append(log, 1) / few
                if number in (few, count):
                    when = "first" if number == few else "last"
                    numbers[f"{what}, {when}"] = consumers
                    if what == "make":
                        numbers[f"append, {when}"] = appends
                if number in (few, count - few):
                    consumers = appends = 0.0
    return numbers


def _append(log: Log[object], times: int) -> float:
    """Return the microseconds of one append, of so many times :data:`_APPENDS`."""
    count = times * _APPENDS
    marks = Marks()
    for _ in repeat(None, count):
        log.append(ITEM)
    return marks.lap(count)
