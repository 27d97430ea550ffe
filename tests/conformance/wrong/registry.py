"""The list of the wrong record stores."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from persistcoll.engine.memory.record_store import MemoryRecordStore

__all__ = ["WRONG", "breaks"]

T = TypeVar("T", bound=type[MemoryRecordStore])

WRONG: dict[str, tuple[str, type[MemoryRecordStore]]] = {}
"""By the broken law and the class's name: the law's number, and the store."""


def breaks(number: str) -> Callable[[T], T]:
    """Register a store to be tried by the law of this number."""

    def note(kind: T) -> T:
        WRONG[f"{number} {kind.__name__}"] = number, kind
        return kind

    return note
