"""Record stores that no law may overlook: each is wrong in one point."""

from __future__ import annotations

from tests.conformance.wrong import claims, states, stores
from tests.conformance.wrong.registry import WRONG

__all__ = ["WRONG", "claims", "states", "stores"]
