"""The other process, which several machines share."""

from __future__ import annotations

from tests.conformance.subprocess_record_stores import store_process

__all__ = ["store_process"]
