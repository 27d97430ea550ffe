"""The message stores that must obey the laws, and how to open them."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zlib import crc32

from persistcoll.engine.contracts import MessageStore
from persistcoll.engine.memory.message_store import MemoryMessageState, MemoryMessageStore
from persistcoll.engine.memory.server import MemoryConnection
from persistcoll.engine.memory.server_message_store import (
    MemoryMessageServerState,
    MemoryMessageServerStore,
)
from persistcoll.engine.message_records import MessagePolicy
from persistcoll.engine.records import Durability
from persistcoll.servers.address import MYSQL, POSTGRESQL
from persistcoll.testing import Capabilities
from tests.clusters.pooler import PooledPlace
from tests.conformance.record_stores import copy_database
from tests.conformance.server_message_stores import ServerMessageStores
from tests.crash.messages import opened

__all__ = ["MESSAGE_STORES", "MemoryMessageServerStores", "MemoryMessageStores", "SQLiteMessageStores"]


class MemoryMessageStores:
    """Message stores of the reference model, or of a class derived from it."""

    capabilities = Capabilities(processes=False, transactions=True)

    def __init__(self, make: Callable[..., MessageStore] = MemoryMessageStore) -> None:
        self._now = 1e9
        self._make = make
        self.states: dict[str, MemoryMessageState] = {}

    def open(self, name: str, policy: MessagePolicy) -> MessageStore:
        state = self.states.setdefault(name, MemoryMessageState(self.now))
        return self._make(policy, state)

    def crashed(self, name: str, policy: MessagePolicy) -> MessageStore:
        return self._make(policy, self.states[name].copy())

    def advance(self, seconds: float) -> None:
        self._now += seconds

    def now(self) -> float:
        return self._now

    def close(self) -> None:
        """Do nothing."""


class MemoryMessageServerStores:
    """Message stores in memory as on a server. Each name has its own seed, so that failures repeat.

    :param options: of the states of the server.
    """

    capabilities = Capabilities(processes=False, joins=True, real_time=True)

    def __init__(self, make: Callable[..., MessageStore] = MemoryMessageServerStore, **options: Any) -> None:
        self._make = make
        self._options = options
        self.states: dict[str, MemoryMessageServerState] = {}

    def open(self, name: str, policy: MessagePolicy) -> MessageStore:
        if name not in self.states:
            seed = crc32(name.encode())
            self.states[name] = MemoryMessageServerState(**{"seed": seed, **self._options})
        return self._make(policy, self.states[name])

    def crashed(self, name: str, policy: MessagePolicy) -> MessageStore:
        return self._make(policy, self.states[name].copy())

    def connect(self, name: str) -> MemoryConnection:
        return MemoryConnection(self.states[name])

    def advance(self, seconds: float) -> None:
        time.sleep(seconds)

    def now(self) -> float:
        return MemoryMessageServerState().clock()

    def close(self) -> None:
        """Do nothing."""


class SQLiteMessageStores:
    """Message stores in one SQLite file. A copy of it stands for what a dead process leaves."""

    capabilities = Capabilities(transactions=True)

    def __init__(self, directory: Path, durability: Durability = "process") -> None:
        self._now = 1e9
        self._directory = directory
        self._durability = durability
        self._copies = itertools.count()

    def open(self, name: str, policy: MessagePolicy) -> MessageStore:
        return self._opened(self._directory / "messages.db", name, policy)

    def _opened(self, path: Path, name: str, policy: MessagePolicy) -> MessageStore:
        return opened(path, policy, self._durability, name, clock=self.now)

    def crashed(self, name: str, policy: MessagePolicy) -> MessageStore:
        path = self._directory / f"copy-{next(self._copies)}.db"
        copy_database(self._directory / "messages.db", path)
        return self._opened(path, name, policy)

    def advance(self, seconds: float) -> None:
        self._now += seconds

    def now(self) -> float:
        return self._now

    def close(self) -> None:
        """Do nothing."""


MESSAGE_STORES: dict[str, Callable[[Path], Any]] = {
    "memory": lambda directory: MemoryMessageStores(),
    "memory-server": lambda directory: MemoryMessageServerStores(),
    "sqlite-process": SQLiteMessageStores,
    "sqlite-power": lambda directory: SQLiteMessageStores(directory, "power"),
    "postgresql": lambda directory: ServerMessageStores(POSTGRESQL, True),
    "postgresql-lossy": lambda directory: ServerMessageStores(POSTGRESQL, True, 0.002),
    "postgresql-own-clock": lambda directory: ServerMessageStores(POSTGRESQL, False),
    "postgresql-pooled": lambda directory: ServerMessageStores(POSTGRESQL, True, place=PooledPlace()),
    "postgresql-from-floor": lambda directory: ServerMessageStores(POSTGRESQL, True, starts_at_floor=True),
    "mysql": lambda directory: ServerMessageStores(MYSQL, True),
    "mysql-lossy": lambda directory: ServerMessageStores(MYSQL, True, 0.0005),
    "mysql-own-clock": lambda directory: ServerMessageStores(MYSQL, False),
    "mysql-from-floor": lambda directory: ServerMessageStores(MYSQL, True, starts_at_floor=True),
}
