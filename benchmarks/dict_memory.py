"""How much memory an iteration over a dict takes."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Mapping
from itertools import islice
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.children import answer, resident, running
from benchmarks.dict_contenders import KINDS, OURS, names
from benchmarks.model import Contender, Figure, Scenario, Sizes

__all__ = ["dict_memory"]

_MOST = 20.0  # MB.
_FIRST = 1_000
_PHASES = ("keys", "items")


def dict_memory(sizes: Sizes, root: str) -> Scenario:
    """Measure how much a process grows that iterates over keys and items."""
    size = sizes.large_table
    path = os.path.join(root, "dict")

    def measure(at: str) -> Mapping[str, float]:
        numbers = {}
        for phase in _PHASES:
            with running(_iterate, [(path, phase, size)]) as (connection,):
                grown = answer(connection)
            if grown is not None:
                numbers[phase] = grown
        return numbers

    def prepare() -> Mapping[str, Any]:
        KINDS[OURS].fill(path, names(size))
        return {}

    def growth(phase: str) -> Figure:
        return Figure(
            f"growth, {phase}", lambda numbers: numbers[f"{OURS}: {phase}"], at_most=_MOST, unit="MB"
        )

    return Scenario(
        name="dict_memory",
        compared=(
            f"How much more of a process is resident at most while it iterates over the {size:,} keys, or"
            f" items, of a dict of ours, than when it had iterated over the first {_FIRST:,}; in a new"
            " process each time."
        ),
        contenders=[Contender(OURS, "process", measure)],
        figures=[growth(phase) for phase in _PHASES],
        unit="MB",
        prepare=prepare,
    )


def _iterate(connection: Connection, path: str, phase: str, size: int) -> None:
    with KINDS[OURS].open(path) as stored:
        view = getattr(stored, phase)
        deque(islice(view(), _FIRST), maxlen=0)
        before = resident("VmRSS")
        count = sum(1 for _ in view())
        after = resident("VmHWM")
        if count != size:
            raise AssertionError(f"{count} of {size} keys came")
    connection.send(None if before is None or after is None else (after - before) * 1024 / 1e6)
