"""``python -m benchmarks.message_layouts``: measure how messages can lie in the tables of a database.

The layouts run in turn, in short rounds, because the speed of a machine changes from second to second. A
ratio is formed from the numbers of one round. What is measured are bare statements over ``sqlite3``: no locks
among processes, no checksums, no recovery.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.layouts import plain, states, tables, trees
from benchmarks.layouts.measure import FILLS, OPERATIONS, Case, Reading, measure
from benchmarks.layouts.model import Layout, Store
from benchmarks.machine import describe
from benchmarks.model import Summary

__all__ = ["LAYOUTS", "PLAIN", "cases", "main", "table"]

LAYOUTS: Sequence[type[Layout]] = (
    tables.TwoTables,
    tables.StateColumn,
    tables.NarrowState,
    tables.Clustered,
    tables.ClusteredById,
    trees.SmallTree,
    trees.Heads,
    trees.Derived,
    states.StateTree,
    states.DeferredRemoval,
)
"""Of a queue of messages. The first one is what the others are compared with."""
PLAIN: Sequence[type[Store]] = (plain.PlainTwoTables, plain.PlainSmallTree, plain.PlainDeferred)
"""Of a queue without topics and priorities."""

_SMALL = 1_000
_LARGE_BODY = 10_000
_CYCLE = ("put", "claim, one topic", "ack, one topic")
_CYCLE_ANY = ("put", "claim, any", "ack, any")


def cases(rows: int) -> list[tuple[Case, Sequence[type[Store]]]]:
    """Return what is measured, and with which layouts."""
    sizes = [_SMALL, rows] if rows > _SMALL else [rows]
    small = min(_SMALL, rows)
    found: list[tuple[Case, Sequence[type[Store]]]] = [
        (Case(fill, size), LAYOUTS) for size in sizes for fill in FILLS
    ]
    found += [(Case("ready", small, body=_LARGE_BODY), LAYOUTS)]
    found += [(Case("ready", small, durability="power"), LAYOUTS)]
    found += [(Case("ready", size), PLAIN) for size in sizes]
    found += [(Case("mix", rows), PLAIN)]
    found += [(Case("ready", small, body=_LARGE_BODY), PLAIN)]
    found += [(Case("ready", small, durability="power"), PLAIN)]
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure everything, print it and store it, and return the exit status."""
    options = _parser().parse_args(arguments)
    heading = "{implementation} {python}, {system} {kernel} {architecture}, {cpus} CPUs, SQLite {sqlite}"
    machine = {**describe(options.directory), "sqlite": sqlite3.sqlite_version}
    print(heading.format(**machine), *_LEGEND, sep="\n", flush=True)
    stored = []
    for case, layouts in cases(options.rows):
        # A sync takes as long as some hundred operations without one.
        share = 5 if case.durability == "power" or case.body > _SMALL else 1
        operations = max(1, options.operations // share)
        found = measure(layouts, case, options.rounds, operations, options.directory)
        print(f"\n== {case.name}", table(found), sep="\n", flush=True)
        stored.append({"case": case._asdict(), "layouts": found})
    if options.json is not None:
        result = {"machine": machine, "operations": OPERATIONS, "reading": Reading._fields, "cases": stored}
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


_LEGEND = (
    "pages: written into the log by one transaction; us: of the processor, medians of the rounds.",
    "cycle: put + claim + ack of one topic; its middle half. any: the same with a claim of any topic.",
    "ratio: the first layout's cycle / this one's, of the processor; formed in each round.",
    "with checkpoints: the same of the mean of the clock, to which the checkpoints and the syncs belong.",
)


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the numbers of one case as text."""
    rows = [[
        "", "pages", "put", "claim", "ack", "us", "put", "claim", "ack", "cycle", "middle half", "least",
        "ratio", "middle half", "any", "ratio", "with checkpoints", "ratio",
        "us put 100", "claim 32", "ack 32",
    ]]  # fmt: skip
    (first, *_) = found.values()
    for name, numbers in found.items():
        pages = numbers["pages"]
        cycle, any_topic = _sums(numbers, _CYCLE, "processor"), _sums(numbers, _CYCLE_ANY, "processor")
        middle, ratio = Summary.of(cycle), _ratio(_sums(first, _CYCLE, "processor"), cycle)
        clock, first_clock = (_mean(_sums(each, _CYCLE, "mean")) for each in (numbers, first))
        rows.append([
            name,
            f"{sum(pages[name] for name in _CYCLE):.1f}",
            *(f"{pages[name]:.1f}" for name in _CYCLE),
            "",
            *(f"{_median(numbers, name):.0f}" for name in _CYCLE),
            f"{middle.median:.0f}",
            f"{middle.lower_quartile:.0f} .. {middle.upper_quartile:.0f}",
            f"{middle.least:.0f}",
            f"{ratio.median:.2f}",
            f"{ratio.lower_quartile:.2f} .. {ratio.upper_quartile:.2f}",
            f"{Summary.of(any_topic).median:.0f}",
            f"{_ratio(_sums(first, _CYCLE_ANY, 'processor'), any_topic).median:.2f}",
            f"{clock:.0f}",
            f"{first_clock / clock:.2f}",
            *(f"{_median(numbers, name):,.0f}" for name in ("put 100", "claim 32, any", "ack 32")),
        ])  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _sums(numbers: Mapping[str, Any], operations: Sequence[str], field: str) -> list[float]:
    """Return for each round what these operations took together."""
    return [sum(getattr(readings[name], field) for name in operations) for readings in numbers["rounds"]]


def _median(numbers: Mapping[str, Any], operation: str) -> float:
    return Summary.of(_sums(numbers, (operation,), "processor")).median


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _ratio(over: Sequence[float], under: Sequence[float]) -> Summary:
    """Summarize the ratios of the rounds."""
    return Summary.of([a / b for a, b in zip(over, under, strict=True)])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.message_layouts",
        description="Ways to lay out messages in tables of SQLite, measured in turn.",
    )
    parser.add_argument("--rows", type=_positive, default=1_000_000, metavar="N", help="rows that lie there")
    parser.add_argument("--rounds", type=_positive, default=60, metavar="N", help="how often all take turns")
    parser.add_argument("--operations", type=_positive, default=50, metavar="N", help="in each round")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where every number is stored")
    parser.add_argument(
        "--directory",
        default=tempfile.gettempdir(),
        metavar="DIR",
        help="where the databases are made; needs about 5 GB for a million rows",
    )
    return parser


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise ValueError(text)
    return number


if __name__ == "__main__":
    sys.exit(main())
