"""The log stores that must obey the laws, and how to open them."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from persistcoll.engine.contracts import LogStore
from persistcoll.engine.memory.log_store import MemoryLogState, MemoryLogStore
from persistcoll.engine.records import Durability, Retain
from persistcoll.journal import journal, log_trim, tail
from persistcoll.journal.directory import LOG, OpenOptions
from persistcoll.journal.log_store import JournalLogStore
from persistcoll.journal.open import Opening
from persistcoll.testing.harness import Capabilities
from persistcoll.testing.laws.log_store_harness import LogStoreFactory

__all__ = ["CLOCKS", "LOG_STORES", "FileLogStores", "MemoryLogStores"]

CLOCKS: tuple[Any, ...] = journal, tail, log_trim
"""The modules whose ``_now`` is the clock of logs in files. They look it up at each call."""


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


class FileLogStores:
    """Logs in directories, side by side. A copy of the directory stands for what a dead process leaves."""

    capabilities = Capabilities()

    def __init__(
        self, directory: Path, durability: Durability = "process", chunksize: int | None = None
    ) -> None:
        self._now = 1e9
        self._directory = directory
        self._durability: Durability = durability
        self._copies = itertools.count()
        self._options = OpenOptions(serializer="raw", kind=LOG, chunksize=chunksize)
        self.kept_beyond = 2 * (chunksize or 16384)

    def now(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        self._now += seconds

    def open(self, name: str, retain: Retain | None = None) -> LogStore:
        for module in CLOCKS:
            module._now = self.now
        with Opening(str(self._directory / name), self._options) as opening:
            try:
                opening.begin()
                return JournalLogStore(opening, durability=self._durability, retain=retain)
            finally:
                opening.release()

    def crashed(self, name: str) -> LogStore:
        copy = f"{name} {next(self._copies)}"
        shutil.copytree(self._directory / name, self._directory / copy)
        return self.open(copy)


LOG_STORES: dict[str, Callable[[Path], LogStoreFactory]] = {
    "memory": lambda directory: MemoryLogStores(),
    "file-process": FileLogStores,
    "file-power": lambda directory: FileLogStores(directory, "power"),
    "file-chunksize-1": lambda directory: FileLogStores(directory, chunksize=1),
    "file-chunksize-2": lambda directory: FileLogStores(directory, chunksize=2),
    "file-chunksize-3": lambda directory: FileLogStores(directory, "power", chunksize=3),
    "file-chunksize-7": lambda directory: FileLogStores(directory, chunksize=7),
}
"""By the name in the tests' ids."""
