"""What a benchmark consists of: scenarios, their contenders, and figures computed from the numbers.

A figure is computed from the numbers of *one* round, in which every contender ran once, and only then
summarized over the rounds. So a machine that is slow for a minute slows down both sides of a ratio.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["FULL", "QUICK", "TINY", "Contender", "Figure", "Numbers", "Scenario", "Sizes", "Summary", "ratio"]

Numbers = Mapping[str, float]
"""What was measured in one round: ``"contender: phase"`` to a number, times in microseconds."""


@dataclass(frozen=True)
class Sizes:
    """How often each thing is done, and with how many items."""

    rounds: int
    operations: int
    """Operations that take microseconds."""
    slow: int
    """Operations that take a tenth of a millisecond or more."""
    synced: int
    """Puts of one thread that each wait for the device."""
    small_backlog: int
    large_backlog: int
    large_table: int
    """Ready items, and as many finished ones."""
    openings: int
    """How often something large is opened, or looked into."""
    consumers: int
    """Consumers of one log; a multiple of ten."""
    wakeups: int
    idle_seconds: float


FULL = Sizes(
    rounds=11,
    operations=20_000,
    slow=1_500,
    synced=2_000,
    small_backlog=1_000,
    large_backlog=10_000_000,
    large_table=1_000_000,
    openings=25,
    consumers=1_000,
    wakeups=60,
    idle_seconds=3.0,
)
QUICK = Sizes(
    rounds=7,
    operations=20_000,
    slow=500,
    synced=800,
    small_backlog=1_000,
    large_backlog=1_000_000,
    large_table=100_000,
    openings=10,
    consumers=300,
    wakeups=25,
    idle_seconds=1.0,
)
# For the test that everything runs: the numbers mean nothing.
TINY = Sizes(
    rounds=2,
    operations=300,
    slow=20,
    synced=16,
    small_backlog=100,
    large_backlog=1_000,
    large_table=200,
    openings=2,
    consumers=20,
    wakeups=3,
    idle_seconds=0.05,
)


@dataclass(frozen=True)
class Contender:
    """One thing that is measured.

    :ivar survives: what an operation of it that returned survives: ``"power"``, ``"process"``, ``"-"`` (for a
        floor that promises nothing), or a few words.
    :ivar measure: does the work once in an empty directory, and returns a number for each phase.
    """

    name: str
    survives: str
    measure: Callable[[str], Mapping[str, float]]


@dataclass(frozen=True)
class Figure:
    """What is computed from the numbers of a round.

    :ivar of: raises ``KeyError`` if a contender was not there.
    :ivar at_most: the promise that it is compared with; without one of the two it is for information.
    """

    text: str
    of: Callable[[Numbers], float]
    at_least: float | None = None
    at_most: float | None = None
    unit: str = "x"

    @property
    def goal(self) -> str:
        """The promise in words; empty if there is none."""
        if self.at_least is not None:
            return f"at least {self.at_least:g} {self.unit}"
        if self.at_most is not None:
            return f"at most {self.at_most:g} {self.unit}"
        return ""

    def reached(self, value: float) -> bool | None:
        """Tell whether ``value`` keeps the promise; ``None`` if there is none."""
        if self.at_least is not None:
            return value >= self.at_least
        if self.at_most is not None:
            return value <= self.at_most
        return None


def ratio(
    text: str,
    over: Sequence[str],
    under: Sequence[str],
    at_least: float | None = None,
    at_most: float | None = None,
) -> Figure:
    """Return the figure of one sum of numbers divided by another."""

    def of(numbers: Numbers) -> float:
        return sum(numbers[key] for key in over) / sum(numbers[key] for key in under)

    return Figure(text, of, at_least, at_most)


@dataclass(frozen=True)
class Scenario:
    """Contenders that run in turn.

    :ivar compared: what is compared with what, and what is durable.
    :ivar prepare: run once before the first round, for example to build a backlog; returns facts to report.
    :ivar finish: run once at the end, to remove what is not below the directory.
    """

    name: str
    compared: str
    contenders: Sequence[Contender]
    figures: Sequence[Figure]
    unit: str = "us"
    prepare: Callable[[], Mapping[str, Any]] | None = None
    missing: Sequence[str] = field(default_factory=tuple)
    finish: Callable[[], None] | None = None
    """Packages that are not installed, whose contenders are left out."""


@dataclass(frozen=True)
class Summary:
    """The median and the spread of several values."""

    median: float
    lower_quartile: float
    upper_quartile: float
    least: float
    greatest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Summary:
        ordered = sorted(values)
        if len(ordered) > 1:
            lower, _, upper = statistics.quantiles(ordered, n=4, method="inclusive")
        else:
            lower = upper = ordered[0]
        return cls(statistics.median(ordered), lower, upper, ordered[0], ordered[-1])
