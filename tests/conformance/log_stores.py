"""The log stores that must obey the laws, and how to open them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from persistcoll.engine.contracts import LogStore
from persistcoll.engine.memory.log_store import MemoryLogState, MemoryLogStore
from persistcoll.engine.records import Retain
from persistcoll.testing.harness import Capabilities
from persistcoll.testing.laws.log_store_harness import LogStoreFactory

__all__ = ["LOG_STORES", "MemoryLogStores"]


class MemoryLogStores:
    """Stores of the reference model."""

    capabilities = Capabilities(processes=False)
    kept_beyond = 0

    def __init__(self) -> None:
        self._now = 1e9
        self._states: dict[str, MemoryLogState] = {}

    def now(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        self._now += seconds

    def open(self, name: str, retain: Retain | None = None) -> LogStore:
        return MemoryLogStore(self._states.setdefault(name, MemoryLogState(self.now)), retain)

    def crashed(self, name: str) -> LogStore:
        return MemoryLogStore(self._states[name].copy())


LOG_STORES: dict[str, Callable[[Path], LogStoreFactory]] = {
    "memory": lambda directory: MemoryLogStores(),
}
"""By the name in the tests' ids."""
