"""Reading a log, beside a bare loop over its files and beside a log in a database."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from benchmarks import log_contenders, log_floors
from benchmarks.contenders import BATCH
from benchmarks.model import Contender, Scenario, Sizes, ratio

__all__ = ["log_reads"]

_TABLE = "log in SQLite"


def log_reads(sizes: Sizes, root: str) -> Scenario:
    """Measure get_many and commit of all items."""
    size, slow = sizes.large_table, sizes.slow
    path, table = os.path.join(root, "log"), os.path.join(root, "table")

    def prepare() -> Mapping[str, Any]:
        log_contenders.fill(path, size)
        log_contenders.fill_table(table, size)
        return {}

    def ours(level: str) -> Contender:
        return Contender(
            f"ours, {level}", level, lambda at: log_contenders.reads(path, size, durability=level)
        )

    bare = "bare loop: read"
    return Scenario(
        name="log_reads",
        compared=(
            f"A new consumer reads {size:,} dicts of 100 bytes, pickle, with get_many({BATCH}), and commits"
            f" after each {BATCH}; per item. Beside a bare loop over the same files: read 64 KiB, check,"
            f" unpickle, and for information also write a position of 28 bytes after each {BATCH}. And beside"
            " a log in an SQLite database as a consumer of it is commonly written: a table of messages, one"
            " of positions, synchronous=FULL, and a committed UPDATE of the position for each message that"
            f" was read ({slow:,} of {size:,}); its write-ahead log is as long as it becomes before the clock"
            " starts. What a commit said survives a power cut in both; the Log commits less often. For"
            " information the Log also commits each item."
        ),
        contenders=[
            Contender("bare loop", "-", lambda at: log_floors.read_files(path, at, size)),
            ours("process"),
            ours("power"),
            Contender(
                "ours, power, each committed",
                "power",
                lambda at: log_contenders.read_singly(path, slow, durability="power"),
            ),
            Contender(_TABLE, "power", lambda at: log_contenders.read_table(table, slow)),
        ],
        figures=[
            ratio("ours, process / bare loop", ["ours, process: read"], [bare], at_most=3),
            ratio(f"{_TABLE} / ours, power", [f"{_TABLE}: read"], ["ours, power: read"], at_least=20),
            ratio(
                "ours, process / bare loop that writes positions",
                ["ours, process: read"],
                [f"{bare}, positions written"],
            ),
            ratio(
                f"{_TABLE} / ours, power, each committed",
                [f"{_TABLE}: read"],
                ["ours, power, each committed: read"],
            ),
        ],
        prepare=prepare,
    )
