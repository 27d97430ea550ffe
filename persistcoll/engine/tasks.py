"""The task that runs in the calling thread, for what belongs to one task and not to its whole thread."""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["current_task"]


def current_task() -> Any:
    """Return the asyncio task, or else the greenlet, that runs in this thread; ``None`` if there is none.

    It imports neither library, because a program that has not imported it runs no task of it.
    """
    asyncio = sys.modules.get("asyncio")
    if asyncio is not None:
        try:
            task = asyncio.current_task()
        # No loop runs in this thread, or the module is being imported by another one.
        except (RuntimeError, AttributeError):
            task = None
        if task is not None:
            return task
    greenlet = sys.modules.get("greenlet")
    return None if greenlet is None else greenlet.getcurrent()
