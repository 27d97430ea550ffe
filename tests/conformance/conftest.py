"""The other process, which the tests of several share."""

from __future__ import annotations

from tests.conformance.elsewhere import elsewhere

__all__ = ["elsewhere"]
