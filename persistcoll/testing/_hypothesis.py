"""What the state machines share, and the one place that imports hypothesis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from persistcoll.errors import ClaimError, DecodeError, DuplicateError, Empty, EncodeError, Full

try:
    from hypothesis import stateful
    from hypothesis import strategies as st
except ImportError as cause:
    raise ImportError(
        "hypothesis, which the machines need, cannot be imported: pip install 'persistcoll[testing]'"
    ) from cause

__all__ = ["ExpectedError", "outcome", "st", "stateful"]


class ExpectedError(Exception):
    """Raised by a ``decode``, or in a block, to see what comes of it."""


def outcome(call: Callable[[], Any]) -> Any:
    """What ``call()`` returned, or the type of what it raised."""
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
        ValueError,
    ) as error:
        return type(error)
