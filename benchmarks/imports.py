"""What an import costs a program that starts, beside a Python that imports nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from time import perf_counter

import persistcoll
from benchmarks import contenders
from benchmarks.model import Contender, Figure, Scenario, Sizes, ratio

__all__ = ["imports"]

_MOST = 60.0  # Milliseconds.
_BARE = "bare Python"
_PROGRAMS = {
    _BARE: "pass",
    "import persistcoll": "import persistcoll",
    "Queue": "from persistcoll import Queue",
    "SQLiteQueue": "from persistcoll import SQLiteQueue",
    "PDict": "from persistcoll import PDict",
}
_PEERS = {"import persistqueue": ("persistqueue", "import persistqueue")}


def imports(sizes: Sizes, root: str) -> Scenario:
    """Measure each import in a new process, with the bytecode that an earlier start wrote."""
    programs, missing = dict(_PROGRAMS), []
    for name, (module, program) in _PEERS.items():
        if contenders.have(module):
            programs[name] = program
        else:
            missing.append(module)
    times = max(2, sizes.openings // 5)

    def over_bare(name: str) -> Figure:
        return Figure(
            f"{name}: over bare Python",
            lambda numbers: (numbers[f"{name}: start"] - numbers[f"{_BARE}: start"]) / 1e3,
            at_most=_MOST if name == "import persistcoll" else None,
            unit="ms",
        )

    names = [name for name in programs if name != _BARE]
    return Scenario(
        name="imports",
        compared=(
            f"The time from starting a Python process to its end, the best of {times}: other processes"
            " disturb a start most. Bare Python imports nothing."
        ),
        contenders=[Contender(name, "-", partial(_start, text, times)) for name, text in programs.items()],
        figures=[
            *map(over_bare, names),
            *(ratio(f"{name} / bare Python", [f"{name}: start"], [f"{_BARE}: start"]) for name in names),
        ],
        missing=missing,
    )


def _start(program: str, times: int, at: str) -> Mapping[str, float]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPATH"] = os.path.dirname(os.path.dirname(os.path.abspath(persistcoll.__file__)))
    command = [sys.executable, "-X", f"pycache_prefix={at}", "-c", program]
    subprocess.run(command, env=environment, check=True)  # Writes the bytecode.
    seconds = []
    for _ in range(times):
        began = perf_counter()
        subprocess.run(command, env=environment, check=True)
        seconds.append(perf_counter() - began)
    return {"start": min(seconds) * 1e6}
