"""Queues in SQLite databases, surviving power cuts: each change waits for the device."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial

from benchmarks import sql_contenders as queues
from benchmarks import sql_floors
from benchmarks.contenders import have, puts_of_threads
from benchmarks.model import Contender, Figure, Scenario, Sizes, ratio
from benchmarks.processes import puts_of_processes
from benchmarks.sql_floors import lengthen_log
from persistcoll import SQLiteQueue

__all__ = ["sql_power", "sql_processes", "sql_threads"]

_OPEN = partial(SQLiteQueue, durability="power")
_PEER = "persist-queue SQLiteAckQueue"
_WORN_IN = (
    " In all of them the write-ahead log is as long as it becomes before the clock starts: no sync has to"
    " make the file longer."
)
# How many times the puts of one thread, by the number of threads.
_PUTS = {1: 1, 8: 2, 32: 4}
_PROCESSES = (1, 8)


def sql_power(sizes: Sizes, root: str) -> Scenario:
    """Measure put + get + ack of one thread."""
    count = sizes.slow // 3

    def contender(name: str, opening: Callable[[str], queues.Opened], worn_in: bool = True) -> Contender:
        def measure(at: str) -> Mapping[str, float]:
            prepare = partial(lengthen_log, os.path.join(at, "queue")) if worn_in else lambda: None
            return queues.acknowledged(opening(at), count, prepare)

        return Contender(name, "power", measure)

    ours = partial(queues.our_ack_queue, durability="power")
    found = [contender("ours", ours), contender("ours, new", ours, worn_in=False)]
    if have("persistqueue"):
        theirs = partial(queues.persist_queue, "SQLiteAckQueue", synchronous="FULL")
        found += [contender(_PEER, theirs), contender(f"{_PEER}, new", theirs, worn_in=False)]
    phases = ("put", "get + ack")

    def beside(text: str, suffix: str, *phases: str, at_least: float | None = None) -> Figure:
        over, under = f"{_PEER}{suffix}: ", f"ours{suffix}: "
        return ratio(text, [over + phase for phase in phases], [under + phase for phase in phases], at_least)

    return Scenario(
        name="sql_power",
        compared=(
            f"SQLiteAckQueue: put + get + ack of a dict of 100 bytes, pickle, one thread, {count:,} items:"
            " all puts, and then get and ack of each; after that the three in turn. A put and an ack that"
            " returned survive a power cut, with both; a claim need not, and ours waits for no device."
            + _WORN_IN
            + " For"
            " information also in new databases, whose log grows."
        ),
        contenders=found,
        figures=[
            beside("put + get + ack: persist-queue's / ours", "", *phases, at_least=1.4),
            beside("put + get + ack in turn: persist-queue's / ours", "", "in turn", at_least=1.4),
            beside("put + get + ack, new: persist-queue's / ours", ", new", *phases),
            beside("put + get + ack in turn, new: persist-queue's / ours", ", new", "in turn"),
        ],
        missing=[] if have("persistqueue") else ["persist-queue"],
    )


def sql_threads(sizes: Sizes, root: str) -> Scenario:
    """Measure puts of 1 to 32 threads."""

    def contender(threads: int, more: int) -> Contender:
        each = max(1, sizes.synced // 2 * more // threads)
        name = _plural(threads, "thread")
        return Contender(
            name, "power", lambda at: puts_of_threads(_OPEN, at, threads, each, prepare=lengthen_log)
        )

    one = ["1 thread: put"]
    return Scenario(
        name="sql_threads",
        compared=(
            "SQLiteQueue: put of a dict of 100 bytes, pickle, by 1, 8 and 32 threads, each waiting until its"
            " own is on the device; and a bare loop over sqlite3 in one thread. The ratio is of rates."
            + _WORN_IN
        ),
        contenders=[
            Contender("bare loop", "power", lambda at: sql_floors.bare_puts(at, sizes.synced // 2)),
            *(contender(threads, more) for threads, more in _PUTS.items()),
        ],
        figures=[
            ratio("rate with 8 threads / 1 thread", one, ["8 threads: put"], at_least=2.5),
            ratio("rate with 32 threads / 1 thread", one, ["32 threads: put"]),
            ratio("rate with 1 thread / bare loop", ["bare loop: put"], one),
        ],
    )


def sql_processes(sizes: Sizes, root: str) -> Scenario:
    """Measure how many items several processes put in a second, and the longest wait of one."""

    def contender(count: int) -> Contender:
        each = max(1, sizes.synced // count)
        name = _plural(count, "process")
        return Contender(
            name, "power", lambda at: puts_of_processes(_OPEN, at, count, each, prepare=lengthen_log)
        )

    return Scenario(
        name="sql_processes",
        compared=(
            "SQLiteQueue: put of a dict of 100 bytes, pickle, by 1 and by 8 processes into one queue, from"
            " the first's start to the last's end; the ratio is of rates. Each put waits for the device. An"
            " error in any of them would end the run." + _WORN_IN
        ),
        contenders=[contender(count) for count in _PROCESSES],
        figures=[
            ratio("rate of 8 processes / 1 process", ["1 process: put"], ["8 processes: put"], at_least=0.9),
            # The slowest of all puts of a round. The report has its median over the rounds, and the greatest
            # beside it.
            Figure(
                "slowest put of 8 processes",
                lambda numbers: numbers["8 processes: slowest"] / 1e3,
                at_most=50.0,
                unit="ms",
            ),
        ],
    )


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}{'es' if noun.endswith('s') else 's'}"
