"""The list of the wrong message stores."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from persistcoll.engine.contracts import MessageStore
from persistcoll.engine.memory.message_store import MemoryMessageStore
from persistcoll.engine.memory.server_message_store import MemoryMessageServerStore

__all__ = ["WRONG", "breaks"]

T = TypeVar("T", bound=type[MessageStore])

WRONG: dict[str, tuple[str, type[MemoryMessageStore | MemoryMessageServerStore]]] = {}
"""By the broken law and the class's name: the law's number, and the store."""


def breaks(number: str) -> Callable[[T], T]:
    """Register a store to be tried by the law of this number."""

    def note(kind: T) -> T:
        assert issubclass(kind, (MemoryMessageStore, MemoryMessageServerStore))
        WRONG[f"{number} {kind.__name__}"] = number, kind
        return kind

    return note
