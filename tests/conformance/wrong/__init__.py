"""What no law may overlook: tables that are wrong in one point, each time another one."""

from __future__ import annotations

from tests.conformance.wrong import claims, states, stores
from tests.conformance.wrong.registry import WRONG

__all__ = ["WRONG", "claims", "states", "stores"]
