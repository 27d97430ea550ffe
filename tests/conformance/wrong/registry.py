"""Where the wrong tables are noted."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from persistcoll.engine.memory.record_store import MemoryRecordStore

__all__ = ["WRONG", "breaks"]

T = TypeVar("T", bound=type[MemoryRecordStore])

WRONG: dict[str, tuple[str, type[MemoryRecordStore]]] = {}
"""By the law that is broken and how: the law's number, and the table."""


def breaks(number: str) -> Callable[[T], T]:
    """Have a table tried by the law of this number."""

    def note(kind: T) -> T:
        WRONG[f"{number} {kind.__name__}"] = number, kind
        return kind

    return note
