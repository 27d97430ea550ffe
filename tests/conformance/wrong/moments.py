"""What a wrong store replaces in its state for the moment of a call."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from unittest.mock import patch

from persistcoll.engine.memory.transactions import TransactionalState

__all__ = ["time_stands_still", "without_lock"]


def time_stands_still(state: TransactionalState) -> AbstractContextManager[object]:
    """Let the call promote nothing by itself."""
    return patch.object(state, "clock", lambda: 0.0)


def without_lock(state: TransactionalState) -> AbstractContextManager[object]:
    """Let the call wait for no transaction of another thread."""
    return patch.object(state, "lock", nullcontext())
