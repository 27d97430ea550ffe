"""A law: what holds for every store of a kind, as a function that tries it.

Queue stores, record stores and pair stores have a harness each (``laws/*_harness.py``), which opens what the
law works with.
"""

from __future__ import annotations

import time
import unittest
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

__all__ = ["Capabilities", "Law", "LawTime", "Skipped", "laws_with"]


@dataclass(frozen=True)
class Capabilities:
    """What a store can do; laws that need what it cannot do do not apply to it."""

    handles: bool = True
    """A store may be open several times at once under one name."""
    crashes: bool = True
    """The factory has ``crashed(name)``: what a process that died at this moment leaves, opened."""
    forks: bool = True
    """A forked child may go on with it, after ``after_fork_in_child()``."""
    processes: bool = True
    """Several processes that opened the same name see what the others do."""
    joins: bool = False
    """The factory has ``connect(name)``: a caller's connection, whose transactions the stores join."""
    real_time: bool = False
    """Nobody can set the clock of the stores: the factory's ``advance`` waits."""


class Skipped(unittest.SkipTest):
    """A law says nothing about a store that lacks a capability, which the text names. pytest knows it."""


class _Open(Protocol):
    def close(self) -> None: ...


class LawTime:
    """How a law lets time pass: by a clock that the factory sets, or by waiting.

    A law counts in seconds of its own. By a real clock one of them is shorter, so that no law takes long. A
    slow machine may then let more time pass than the law wants; such a run says nothing.

    :param again: how often the law was tried before; each time with twice the time.
    :ivar spent: how many of its seconds the law has let pass.
    """

    _SECOND = 0.01
    """How long a law's second is by a real clock, at first."""
    _MOST = 100.0
    """By a real clock a longer time is no longer than this; no lease that a law lets end is as long."""

    def __init__(self, factory: Any, again: int) -> None:
        self._factory = factory
        self._is_real: bool = factory.capabilities.real_time
        self._unit = self._SECOND * 2**again if self._is_real else 1.0
        self._began = time.monotonic()
        self.spent = 0.0

    def seconds(self, seconds: float) -> float:
        """Say how many seconds of the store's clock these are."""
        return seconds * self._unit

    def before(self, seconds: float) -> float:
        """Say how long to wait for something that must not have happened yet."""
        return seconds / 2 if self._is_real else seconds - 0.25

    def advance(self, seconds: float) -> None:
        """Let so much time pass."""
        if self._is_real:
            seconds = min(seconds, self._MOST)
        self.spent += seconds
        self._factory.advance(self.seconds(seconds))

    def wait(self, seconds: float) -> None:
        """Let so many seconds of the store's clock pass."""
        if seconds:
            self._factory.advance(seconds)
            self._began += seconds

    def is_late(self) -> bool:
        """Say whether so much more time passed than the law let pass that a claim may have ended by that."""
        passed = time.monotonic() - self._began - self.seconds(self.spent)
        return self._is_real and self.spent > 0 and passed > self.seconds(5.0)


class _Harness(Protocol):
    time: LawTime

    @property
    def opened(self) -> Sequence[_Open]: ...


B = TypeVar("B", bound=_Harness)
_TRIES = 4


@dataclass(frozen=True)
class Law(Generic[B]):
    """A law: its number, its text, and the function that checks it."""

    number: str
    text: str
    needs: tuple[str, ...]
    """Names of :class:`Capabilities` without which it says nothing."""
    check: Callable[[B], None]
    harness: Callable[[Any, int], B]
    """Makes of a factory, and of how often the law was tried with it, what ``check`` works with."""

    def __str__(self) -> str:
        return self.number

    def applies_to(self, factory: Any) -> bool:
        """Whether what the factory opens can do what this law is about."""
        return all(getattr(factory.capabilities, need) for need in self.needs)

    def __call__(self, factory: Any) -> None:
        """Check it.

        By a clock that nobody sets, a law that uses time and is broken is tried again with more time, if so
        much time passed by itself that this may be why.

        :raise AssertionError: it is broken; the message says how.
        :raise Skipped: it says nothing about these stores.
        """
        lacking = [need for need in self.needs if not getattr(factory.capabilities, need)]
        if lacking:
            raise Skipped(f"{self.number} needs what these stores lack: {', '.join(lacking)}")
        for again in range(_TRIES):
            harness = self.harness(factory, again)
            try:
                self.check(harness)
                return
            except Skipped as reason:
                raise Skipped(f"{self.number}: {reason}") from None
            except Exception as error:
                if again < _TRIES - 1 and harness.time.is_late():
                    continue
                what = str(error) if isinstance(error, AssertionError) else f"{error!r} was raised"
                raise AssertionError(f"{self.number} ({self.text}): {what}") from error
            finally:
                for opened in harness.opened:
                    opened.close()


def laws_with(harness: Callable[[Any, int], B]) -> Callable[..., Callable[[Callable[[B], None]], Law[B]]]:
    """A decorator, ``law(number, *needs)``, for laws that work with such a harness."""

    def law(number: str, *needs: str) -> Callable[[Callable[[B], None]], Law[B]]:
        """A law of a function whose docstring states it.

        :param needs: names of :class:`Capabilities` without which it says nothing.
        """

        def make(check: Callable[[B], None]) -> Law[B]:
            return Law(number, " ".join((check.__doc__ or "").split()), needs, check, harness)

        return make

    return law
