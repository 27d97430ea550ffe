"""Message stores that no law may overlook: each is wrong in one point."""

from __future__ import annotations

from tests.conformance.wrong_messages import (
    attempts,
    claims,
    contents,
    events,
    keys,
    life,
    locks,
    pauses,
    places,
    rates,
    removal,
    times,
    transactions,
)
from tests.conformance.wrong_messages.registry import WRONG

__all__ = [
    "WRONG",
    "attempts",
    "claims",
    "contents",
    "events",
    "keys",
    "life",
    "locks",
    "pauses",
    "places",
    "rates",
    "removal",
    "times",
    "transactions",
]
