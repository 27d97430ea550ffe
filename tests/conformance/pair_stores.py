"""The pair stores that must obey the laws, and how to open them."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from persistcoll.dicts.write_buffer import WriteBuffer
from persistcoll.engine.contracts import PairStore
from persistcoll.engine.memory.pair_store import MemoryPairState, MemoryPairStore
from persistcoll.engine.records import Durability
from persistcoll.servers.address import MYSQL, POSTGRESQL
from persistcoll.sqlite.open import DatabaseLocation, open_pair_store
from persistcoll.testing.harness import Capabilities
from persistcoll.testing.laws.pair_store_harness import PairStoreFactory
from tests.clusters.pooler import PooledPlace
from tests.conformance.server_pair_stores import ServerPairStores

__all__ = ["PAIR_STORES", "BufferedPairStores", "MemoryPairStores", "PairStores", "SQLitePairStores"]


class PairStores(PairStoreFactory, Protocol):
    """A factory that is closed after its stores."""

    def close(self) -> None: ...


class MemoryPairStores:
    """Pair stores of the reference model."""

    capabilities = Capabilities(processes=False)

    def __init__(self) -> None:
        self._now = 1e9
        self._states: dict[str, MemoryPairState] = {}

    def now(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        self._now += seconds

    def open(self, name: str) -> PairStore:
        return MemoryPairStore(self._states.setdefault(name, MemoryPairState(self.now)))

    def crashed(self, name: str) -> PairStore:
        return MemoryPairStore(self._states[name].copy())

    def close(self) -> None:
        pass


class BufferedPairStores(MemoryPairStores):
    """Stores that buffer changes and commit them when they are closed.

    One is open at a time. Uncommitted changes survive no crash, and a forked child does not have them.
    """

    capabilities = Capabilities(handles=False, crashes=False, forks=False, processes=False)

    def open(self, name: str) -> PairStore:
        return _CommittedAtTheEnd(super().open(name), self.now)


class _CommittedAtTheEnd(WriteBuffer):
    _done = False

    def close(self) -> None:
        if not self._done:
            self._done = True
            self.commit()
        super().close()


class SQLitePairStores:
    """Pair stores in one SQLite file. A copy of it stands for what a dead process leaves."""

    capabilities = Capabilities()

    def __init__(self, directory: Path, durability: Durability = "process") -> None:
        self._now = 1e9
        self._directory = directory
        self._durability: Durability = durability
        self._copies = itertools.count()

    def now(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        self._now += seconds

    def open(self, name: str) -> PairStore:
        return self._open(self._directory / "data.db", name)

    def _open(self, path: Path, name: str) -> PairStore:
        return open_pair_store(
            DatabaseLocation(path),
            name=name,
            serializer="raw",
            executes_code=False,
            durability=self._durability,
            clock=self.now,
        )

    def crashed(self, name: str) -> PairStore:
        copy = self._directory / f"copy-{next(self._copies)}.db"
        # Another process copies, because closing the files here would drop SQLite's locks on them.
        for end in ("", "-wal"):
            file = self._directory / f"data.db{end}"
            if file.exists():
                subprocess.run(["cp", file, f"{copy}{end}"], check=True)
        return self._open(copy, name)

    def close(self) -> None:
        pass


class SQLiteMemoryPairStores(MemoryPairStores):
    """Pair stores in a database in memory, which ends when it is closed, so only one is open at a time."""

    capabilities = Capabilities(handles=False, crashes=False, processes=False)

    def open(self, name: str) -> PairStore:
        return open_pair_store(
            DatabaseLocation(":memory:"),
            name=name,
            serializer="raw",
            executes_code=False,
            durability="process",
            clock=self.now,
        )


PAIR_STORES: dict[str, Callable[[Path], PairStores]] = {
    "memory": lambda directory: MemoryPairStores(),
    "gathering": lambda directory: BufferedPairStores(),
    "sqlite-process": SQLitePairStores,
    "sqlite-power": lambda directory: SQLitePairStores(directory, "power"),
    "sqlite-memory": lambda directory: SQLiteMemoryPairStores(),
    "postgresql": lambda directory: ServerPairStores(POSTGRESQL, True),
    "postgresql-own-clock": lambda directory: ServerPairStores(POSTGRESQL, False),
    "postgresql-pooled": lambda directory: ServerPairStores(POSTGRESQL, True, place=PooledPlace()),
    "mysql": lambda directory: ServerPairStores(MYSQL, True),
    "mysql-own-clock": lambda directory: ServerPairStores(MYSQL, False),
}
"""By the name in the tests' ids."""
