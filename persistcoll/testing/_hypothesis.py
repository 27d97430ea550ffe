"""Shared parts of the state machines, and the only import of hypothesis."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from persistcoll.errors import (
    ClaimError,
    DecodeError,
    DuplicateError,
    Empty,
    EncodeError,
    Full,
    LockedError,
    TrimmedError,
)

try:
    from hypothesis import stateful
    from hypothesis import strategies as st
except ImportError as cause:
    raise ImportError(
        "hypothesis, which the machines need, cannot be imported: pip install 'persistcoll[testing]'"
    ) from cause

__all__ = ["ExpectedError", "StepMachine", "outcome", "st", "stateful", "weighted"]


class ExpectedError(Exception):
    """The error that a ``decode`` or a block raises on purpose."""


def outcome(call: Callable[[], Any]) -> Any:
    """Return the result of ``call()``, or the type of the error that it raised."""
    try:
        return call()
    except (
        ExpectedError,
        Empty,
        Full,
        ClaimError,
        DuplicateError,
        DecodeError,
        EncodeError,
        LockedError,
        TrimmedError,
        ValueError,
    ) as error:
        return type(error)


def weighted(
    steps: Mapping[str, tuple[int, tuple[st.SearchStrategy[Any], ...]]],
) -> st.SearchStrategy[tuple[Any, ...]]:
    """Return a strategy of steps: the name of a method, and its arguments.

    :param steps: by the name of the method: how often it is chosen, and the strategies of its arguments.
    """
    return st.one_of(
        [
            st.tuples(st.just(name), *arguments)
            for name, (weight, arguments) in steps.items()
            for _ in range(weight)
        ]
    )


class StepMachine(stateful.RuleBasedStateMachine):
    """A state machine whose steps are methods, some of which are chosen more often than others.

    One rule covers all steps, because hypothesis leaves out some rules in each run, and little can happen in
    a run in which nothing is put, claimed or read.
    """

    steps: ClassVar[st.SearchStrategy[tuple[Any, ...]]]

    @stateful.rule(step=st.runner().flatmap(lambda machine: machine.steps))
    def step(self, step: tuple[Any, ...]) -> None:
        """Do one of the steps, with its arguments."""
        name, *arguments = step
        getattr(self, name)(*arguments)
