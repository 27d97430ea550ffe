"""A law: what holds for every store of a kind, as a function that tries it.

Queue stores, record stores and pair stores have a harness each (``laws/*_harness.py``), which opens what the
law works with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

__all__ = ["Capabilities", "Law", "laws_with"]


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


class _Open(Protocol):
    def close(self) -> None: ...


class _Harness(Protocol):
    @property
    def opened(self) -> Sequence[_Open]: ...


B = TypeVar("B", bound=_Harness)


@dataclass(frozen=True)
class Law(Generic[B]):
    """A law: its number, its text, and the function that checks it."""

    number: str
    text: str
    needs: tuple[str, ...]
    """Names of :class:`Capabilities` without which it says nothing."""
    check: Callable[[B], None]
    harness: Callable[[Any], B]
    """Makes of a factory what ``check`` works with."""

    def __str__(self) -> str:
        return self.number

    def applies_to(self, factory: Any) -> bool:
        """Whether what the factory opens can do what this law is about."""
        return all(getattr(factory.capabilities, need) for need in self.needs)

    def __call__(self, factory: Any) -> None:
        """Check it.

        :raise AssertionError: it is broken; the message says how.
        """
        harness = self.harness(factory)
        try:
            self.check(harness)
        except Exception as error:
            what = str(error) if isinstance(error, AssertionError) else f"{error!r} was raised"
            raise AssertionError(f"{self.number} ({self.text}): {what}") from error
        finally:
            for opened in harness.opened:
                opened.close()


def laws_with(harness: Callable[[Any], B]) -> Callable[..., Callable[[Callable[[B], None]], Law[B]]]:
    """A decorator, ``law(number, *needs)``, for laws that work with such a harness."""

    def law(number: str, *needs: str) -> Callable[[Callable[[B], None]], Law[B]]:
        """A law of a function whose docstring states it.

        :param needs: names of :class:`Capabilities` without which it says nothing.
        """

        def make(check: Callable[[B], None]) -> Law[B]:
            return Law(number, " ".join((check.__doc__ or "").split()), needs, check, harness)

        return make

    return law
