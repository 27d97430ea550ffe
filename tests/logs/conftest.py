"""Logs that are closed when the test ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from persistcoll import Log
from persistcoll.engine.records import Durability
from tests.conformance.log_stores import CLOCKS


@pytest.fixture
def open_log(tmp_path) -> Iterator[Callable[..., Log]]:
    """Open ``Log`` at ``tmp_path / "log"``, or ``name=``; ``"process"`` unless said otherwise."""
    opened: list[Log] = []

    def make(*, name: str = "log", durability: Durability = "process", **options: Any) -> Log:
        opened.append(Log(tmp_path / name, durability=durability, **options))
        return opened[-1]

    yield make
    for log in opened:
        log.close()


@pytest.fixture
def log(open_log: Callable[..., Log]) -> Log:
    return open_log()


class Clock:
    """The clock of the logs, which stands still until the test sets it."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock(1_700_000_000.0)
    for module in CLOCKS:
        monkeypatch.setattr(module, "_now", clock)
    return clock
