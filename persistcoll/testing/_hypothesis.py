"""Shared parts of the state machines, and the only import of hypothesis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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

__all__ = ["ExpectedError", "outcome", "st", "stateful"]


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
