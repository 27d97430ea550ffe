"""Appending to a log, beside putting into a queue of the same files."""

from __future__ import annotations

from benchmarks import floors, log_contenders
from benchmarks.model import Contender, Scenario, Sizes, ratio

__all__ = ["log_appends"]

_MOST = 1.1


def log_appends(sizes: Sizes, root: str) -> Scenario:
    """Measure append and extend, at both levels of durability."""
    counts = {"process": sizes.operations, "power": sizes.synced}
    found = [
        Contender("bare loop", "process", lambda at: floors.appends(at, sizes.operations)),
        Contender("append + fdatasync", "power", lambda at: floors.append_and_sync(at, sizes.synced)),
    ]
    for level, count in counts.items():
        found.append(_contender("Queue", level, count))
        found.append(_contender("Log", level, count))
    return Scenario(
        name="log_appends",
        compared=(
            "append of a dict of 100 bytes to a Log, pickle, one thread, beside put into the file Queue with"
            " the same durability; then extend beside put_many of 100, per item. For information beside bare"
            " loops of pickle, CRC and write, without a lock for other processes; the one of power with an"
            " fdatasync after each."
        ),
        contenders=found,
        figures=[
            ratio(f"append / put, {level}", [f"Log, {level}: one"], [f"Queue, {level}: one"], at_most=_MOST)
            for level in counts
        ]
        + [
            ratio(f"extend / put_many, {level}", [f"Log, {level}: batch"], [f"Queue, {level}: batch"])
            for level in counts
        ]
        + [
            ratio("append / bare loop, process", ["Log, process: one"], ["bare loop: put"]),
            ratio("append / append + fdatasync, power", ["Log, power: one"], ["append + fdatasync: put"]),
        ],
    )


def _contender(name: str, level: str, count: int) -> Contender:
    measure = log_contenders.appends if name == "Log" else log_contenders.puts
    return Contender(f"{name}, {level}", level, lambda at: measure(at, count, durability=level))
