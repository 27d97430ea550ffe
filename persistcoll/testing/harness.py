"""A law: what holds for every store of a kind, as a function that tests it.

Queue stores, record stores and pair stores have a harness each (``laws/*_harness.py``), which opens the
stores that the law uses.
"""

from __future__ import annotations

import asyncio
import time
import unittest
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from persistcoll.errors import LockedError

__all__ = ["Capabilities", "Law", "LawTime", "Skipped", "laws_with", "only_its_task_is_in_it"]


@dataclass(frozen=True)
class Capabilities:
    """What a store can do. A law that needs a capability does not apply to a store that lacks it."""

    handles: bool = True
    """One name may be open several times at once."""
    crashes: bool = True
    """The factory has ``crashed(name)``, which opens what a process that died now would leave."""
    forks: bool = True
    """A forked child may use the store, after ``after_fork_in_child()``."""
    processes: bool = True
    """Several processes that opened the same name see each other's changes."""
    transactions: bool = False
    """The stores have ``transaction()``."""
    joins: bool = False
    """The factory has ``connect(name)``: a caller's connection, whose transactions the stores join."""
    real_time: bool = False
    """The clock of the stores cannot be set: the factory's ``advance`` waits."""
    law_second: float = 0.01
    """With ``real_time``: how many seconds of the store's clock a second of a law is, at the first try. It is
    longer for a store whose calls take longer."""


class Skipped(unittest.SkipTest):
    """The law says nothing about a store without the capability in the text. pytest skips such a test."""


class _Open(Protocol):
    def close(self) -> None: ...


class LawTime:
    """How a law lets time pass: by a clock that the factory sets, or by waiting.

    A law counts in seconds of its own. With a real clock one of them is shorter, so that no law takes long.
    On a slow machine more time may pass than the law wants; the result of that run then says nothing.

    :param again: how often the law was tried before; each try has twice the time of the one before.
    :ivar spent: how many of its seconds the law has let pass.
    """

    _MOST = 100.0
    """With a real clock ``advance`` lets no more pass; a lease that a law lets end is shorter."""

    def __init__(self, factory: Any, again: int) -> None:
        self._factory = factory
        self._is_real: bool = factory.capabilities.real_time
        self._unit = factory.capabilities.law_second * 2**again if self._is_real else 1.0
        self._began = time.monotonic()
        self._is_used = False
        self.spent = 0.0

    def seconds(self, seconds: float) -> float:
        """Return how many seconds of the store's clock these are."""
        self._is_used = True
        return seconds * self._unit

    def before(self, seconds: float) -> float:
        """Return how long to wait for something that must not have happened yet."""
        return seconds / 2 if self._is_real else seconds - 0.25

    def advance(self, seconds: float) -> None:
        """Let so many of the law's seconds pass."""
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
        """Tell whether so much more time passed than the law wanted that a claim may have ended early."""
        passed = time.monotonic() - self._began - self.seconds(self.spent)
        return self._is_real and self._is_used and passed > self.seconds(5.0)


class _Harness(Protocol):
    time: LawTime

    @property
    def opened(self) -> Sequence[_Open]: ...


B = TypeVar("B", bound=_Harness)
_TRIES = 5


@dataclass(frozen=True)
class Law(Generic[B]):
    """A law: its number, its text, and the function that checks it."""

    number: str
    text: str
    needs: tuple[str, ...]
    """Names of :class:`Capabilities` without which the law says nothing."""
    check: Callable[[B], None]
    harness: Callable[[Any, int], B]
    """Makes the harness from a factory and the number of tries before."""

    def __str__(self) -> str:
        return self.number

    def applies_to(self, factory: Any) -> bool:
        """Tell whether the factory's stores have the capabilities that the law needs."""
        return all(getattr(factory.capabilities, need) for need in self.needs)

    def __call__(self, factory: Any) -> None:
        """Check the law on the stores of a factory.

        With a clock that cannot be set, a broken law that uses time is tried again with more time, if so much
        time passed by itself that this may be the cause.

        :raises AssertionError: if the law is broken; the message says how.
        :raises Skipped: if the law says nothing about these stores.
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
    """Return a decorator, ``law(number, *needs)``, for laws that use such a harness."""

    def law(number: str, *needs: str) -> Callable[[Callable[[B], None]], Law[B]]:
        """Make a law of a function whose docstring states it.

        :param needs: names of :class:`Capabilities` without which the law says nothing.
        """

        def make(check: Callable[[B], None]) -> Law[B]:
            return Law(number, " ".join((check.__doc__ or "").split()), needs, check, harness)

        return make

    return law


def only_its_task_is_in_it(
    transaction: Callable[[], AbstractContextManager[Any]],
    write: Callable[[], object],
    calls: dict[str, Callable[[], object]],
) -> None:
    """Check that another task of the same thread is refused within a transaction that writes.

    :param write: what the task of the transaction does once, and the other task does not.
    :param calls: what the other task does not, either, by the name for messages.
    """
    entered, refused = asyncio.Event(), asyncio.Event()

    def within() -> None:
        with transaction():
            write()

    async def first() -> None:
        with transaction():
            write()
            entered.set()
            await refused.wait()

    async def second() -> None:
        await entered.wait()
        try:
            for name, call in {"a write": write, "a transaction": within, **calls}.items():
                try:
                    call()
                except LockedError:
                    continue
                raise AssertionError(f"{name} of another task is a part of the transaction")
        finally:
            refused.set()

    async def both() -> None:
        await asyncio.gather(first(), second())

    asyncio.run(both())
