"""Items one at a time, each on the device before its put returns."""

from __future__ import annotations

from functools import partial

from benchmarks import contenders, floors
from benchmarks.model import Contender, Figure, Scenario, Sizes
from persistcoll import Queue

__all__ = ["power"]

_OPEN = partial(Queue, durability="power")

# How many times the puts of the bare loop, by the number of threads: if one sync serves many puts, as many
# puts take less time.
_PUTS = {1: 1, 2: 1, 8: 2, 32: 4}


def power(sizes: Sizes, root: str) -> Scenario:
    """Measure puts of 1 to 32 threads, each waiting for its own record to be durable."""
    synced = sizes.synced
    found = [Contender("append + fdatasync", "power", lambda at: floors.append_and_sync(at, synced))]
    found += [_ours(threads, max(1, synced * more // threads)) for threads, more in _PUTS.items()]
    missing = []
    if contenders.have("persistqueue"):
        slow = sizes.slow
        found.append(
            Contender(
                "persist-queue SQLiteQueue",
                "power",
                lambda at: contenders.persist_queue_sqlite_puts(at, slow),
            )
        )
    else:
        missing.append("persist-queue")
    return Scenario(
        name="power",
        compared=(
            "put of a dict of 100 bytes, pickle, by 1 to 32 threads, each waiting until its own is on the"
            " device, with a bare loop of append + fdatasync in one thread. Durable against durable; the"
            " ratio is of rates."
        ),
        contenders=found,
        figures=[
            _rate("rate with 1 thread / bare loop", 1, 0.85),
            _rate("rate with 8 threads / bare loop", 8, 2.5),
            _rate("rate with 32 threads / bare loop", 32, 6.0),
            _rate("rate with 2 threads / bare loop", 2, None),
            Figure(
                "rate with 1 thread / persist-queue's SQLiteQueue",
                lambda numbers: numbers["persist-queue SQLiteQueue: put"] / numbers["ours, 1 thread: put"],
            ),
        ],
        missing=missing,
    )


def _name(threads: int) -> str:
    return f"ours, {threads} thread{'s' if threads > 1 else ''}"


def _rate(text: str, threads: int, at_least: float | None) -> Figure:
    key = f"{_name(threads)}: put"
    return Figure(text, lambda numbers: numbers["append + fdatasync: put"] / numbers[key], at_least=at_least)


def _ours(threads: int, each: int) -> Contender:
    return Contender(_name(threads), "power", lambda at: contenders.puts_of_threads(_OPEN, at, threads, each))
