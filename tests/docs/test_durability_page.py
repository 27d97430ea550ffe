"""The times on the page about durability are those of the stored run of the benchmarks."""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import median
from typing import Any

import pytest

PROJECT = Path(__file__).parents[2]
PAGE = PROJECT / "docs" / "how-to" / "choosing-durability.rst"
RESULTS = PROJECT / "benchmarks" / "results" / "cpython-3.11.json"
pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="the pages lie in a checkout")

# The rows of the table, and the scenario and the number of each column.
ROWS = {
    ("``put``, 1 thread", "process"): (("single", "ours: put"), ("sql_single", "ours: put")),
    ("``put_many`` of 100, 1 thread", "process"): (
        ("batches", "ours: put"),
        ("sql_batches", "SQLiteQueue: put"),
    ),
    ("``put``, 1 thread", "power"): (("power", "ours, 1 thread: put"), ("sql_threads", "1 thread: put")),
    ("``put``, 8 threads", "power"): (("power", "ours, 8 threads: put"), ("sql_threads", "8 threads: put")),
    ("``put``, 32 threads", "power"): (
        ("power", "ours, 32 threads: put"),
        ("sql_threads", "32 threads: put"),
    ),
}


def measured(scenarios: dict[str, Any], scenario: str, number: str) -> str:
    """Return the median of the rounds in microseconds, with two digits."""
    found = median(each[number] for each in scenarios[scenario]["rounds"])
    return f"{float(f'{found:.1e}'):g}"


def test_the_times_are_those_of_the_stored_run():
    text = PAGE.read_text("utf-8")
    rows = re.findall(r"\* - (.*)\n     - ([\d.]+)\n     - ([\d.]+)\n     - ``\"(\w+)\"``", text)
    found = {(call, level): (in_files, in_database) for call, in_files, in_database, level in rows}
    scenarios = json.loads(RESULTS.read_text("utf-8"))["scenarios"]
    assert found == {
        row: tuple(measured(scenarios, *place) for place in places) for row, places in ROWS.items()
    }
    bare = measured(scenarios, "power", "append + fdatasync: put")
    assert f"``fdatasync`` of one thread took {bare} microseconds" in text
