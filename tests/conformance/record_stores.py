"""The record stores that must obey the laws, and how to open them."""

from __future__ import annotations

import itertools
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast
from unittest import mock
from zlib import crc32

from persistcoll.engine.contracts import RecordStore
from persistcoll.engine.memory.record_store import MemoryRecordState, MemoryRecordStore
from persistcoll.engine.memory.server import MemoryConnection
from persistcoll.engine.memory.server_record_store import MemoryServerState, MemoryServerStore
from persistcoll.engine.records import ClaimPolicy, Discipline, Durability, Record, State
from persistcoll.serializers import codec, resolve, signed
from persistcoll.servers.address import MYSQL, POSTGRESQL
from persistcoll.sqlite.database import Database
from persistcoll.sqlite.database_file import MEMORY, DatabaseFile
from persistcoll.sqlite.open import DatabaseLocation, open_record_store
from persistcoll.sqlite.record_store import SQLiteRecordStore
from persistcoll.sqlite.registry import DATABASES
from persistcoll.testing import Capabilities, RecordStoreFactory
from tests.clusters.pooler import PooledPlace
from tests.conformance.server_record_stores import ServerRecordStores
from tests.conformance.subprocess_record_stores import StoreProcess

__all__ = [
    "RECORD_STORES",
    "MemoryRecordStores",
    "MemoryServerRecordStores",
    "RecordStores",
    "SQLiteMemoryRecordStores",
    "SQLiteRecordStores",
    "copy_database",
    "open_sqlite",
]

T = TypeVar("T")

_SIGNED = resolve(signed("raw", b"a key of 16 bytes or more"))


class MemoryRecordStores:
    """Record stores of the reference model, or of a class derived from it."""

    capabilities = Capabilities(processes=False, transactions=True)

    def __init__(self, make: type[MemoryRecordStore] = MemoryRecordStore) -> None:
        self.now = 1e9
        self._make = make
        self.states: dict[str, MemoryRecordState] = {}

    def open(self, name: str, discipline: Discipline, retry: ClaimPolicy) -> RecordStore:
        state = self.states.setdefault(name, MemoryRecordState(lambda: self.now))
        return self._make(discipline, retry, state)

    def crashed(self, name: str, discipline: Discipline, retry: ClaimPolicy) -> RecordStore:
        return self._make(discipline, retry, self.states[name].copy())

    def advance(self, seconds: float) -> None:
        self.now += seconds

    def close(self) -> None:
        pass


class MemoryServerRecordStores:
    """Record stores in memory as on a server. Each name has its own seed, so that failures repeat."""

    capabilities = Capabilities(processes=False, joins=True, real_time=True)

    def __init__(self, make: Callable[..., RecordStore] = MemoryServerStore) -> None:
        self._make = make
        self.states: dict[str, MemoryServerState] = {}

    def open(self, name: str, discipline: Discipline, retry: ClaimPolicy) -> RecordStore:
        if name not in self.states:
            self.states[name] = MemoryServerState(seed=crc32(name.encode()))
        return self._make(discipline, retry, self.states[name])

    def crashed(self, name: str, discipline: Discipline, retry: ClaimPolicy) -> RecordStore:
        return self._make(discipline, retry, self.states[name].copy())

    def connect(self, name: str) -> MemoryConnection:
        return MemoryConnection(self.states[name])

    def advance(self, seconds: float) -> None:
        time.sleep(seconds)

    def close(self) -> None:
        pass


def open_sqlite(
    path: Path | str,
    name: str,
    discipline: Discipline,
    retry: ClaimPolicy,
    durability: Durability = "process",
    sealed: bool = False,
    clock: Callable[[], float] | None = None,
) -> RecordStore:
    """Open a record store in an SQLite file, or in memory."""

    table = open_record_store(
        DatabaseLocation(path),
        name=name,
        kind=discipline.name,
        discipline=discipline,
        retry=retry,
        serializer="raw",
        executes_code=False,
        durability=durability,
        clock=clock,
    )
    if not sealed:
        return table
    bound = codec(_SIGNED, table.store_id)
    table.seal_with(bound.seal, bound.unseal)
    return cast(RecordStore, _Unsealing(table))


def copy_database(path: Path, copy: Path) -> None:
    """Copy what a dead process leaves of a database."""
    # Another process copies, because closing the files here would drop SQLite's locks on them.
    for end in ("", "-wal"):
        if Path(f"{path}{end}").exists():
            subprocess.run(["cp", f"{path}{end}", f"{copy}{end}"], check=True)


class SQLiteRecordStores:
    """Record stores in one SQLite file. A copy of it stands for what a dead process leaves.

    :param store_process: a process in which every second handle of a store is opened.
    """

    capabilities = Capabilities(transactions=True)

    def __init__(
        self,
        directory: Path,
        durability: Durability = "process",
        sealed: bool = False,
        store_process: StoreProcess | None = None,
    ) -> None:
        self.now = 1e9
        self._directory = directory
        self._options = durability, sealed
        self._copies = itertools.count()
        self._process = store_process
        self._times: Counter[str] = Counter()
        if store_process is not None:
            store_process.clock = self._clock

    def _clock(self) -> float:
        return self.now

    def open(self, name: str, discipline: Discipline, retry: ClaimPolicy) -> RecordStore:
        arguments = self._directory / "data.db", name, discipline, retry, *self._options
        self._times[name] += 1
        if self._process is not None and self._times[name] % 2 == 0:
            return cast(RecordStore, self._process.open(open_sqlite, *arguments))
        return open_sqlite(*arguments, clock=self._clock)

    def crashed(self, name: str, discipline: Discipline, retry: ClaimPolicy) -> RecordStore:
        copy = self._directory / f"copy-{next(self._copies)}.db"
        copy_database(self._directory / "data.db", copy)
        return open_sqlite(copy, name, discipline, retry, *self._options, clock=self._clock)

    def advance(self, seconds: float) -> None:
        self.now += seconds

    def close(self) -> None:
        pass


class _Lasting(Database):
    """A database in memory that stays when its last store is closed."""

    def try_close(self) -> bool:
        return True

    def end(self) -> None:
        super().try_close()


class SQLiteMemoryRecordStores:
    """Record stores in one database in memory, with one handle of each at a time."""

    capabilities = Capabilities(handles=False, crashes=False, forks=False, processes=False, transactions=True)

    def __init__(self) -> None:
        self.now = 1e9
        self._database = _Lasting(DatabaseFile(MEMORY))

    def open(self, name: str, discipline: Discipline, retry: ClaimPolicy) -> RecordStore:
        # Containers get a new database in memory each.
        with mock.patch.object(DATABASES, "acquire", return_value=self._database):
            return open_sqlite(MEMORY, name, discipline, retry, clock=lambda: self.now)

    def advance(self, seconds: float) -> None:
        self.now += seconds

    def close(self) -> None:
        self._database.end()


class _Unsealing:
    """A store that seals with a signature bound to the record's id, and unseals as containers do."""

    def __init__(self, table: SQLiteRecordStore) -> None:
        self._table = table
        unseal = codec(_SIGNED, table.store_id).unseal
        assert unseal is not None
        self._unseal = unseal

    def _plain(self, record: Record) -> Record:
        return record._replace(payload=self._unseal(record.payload, record.mark))

    def _unsealing(self, decode: Callable[[Record], T]) -> Callable[[Record], T]:
        return lambda record: decode(self._plain(record))

    def claim(self, decode: Callable[[Record], T], *arguments: Any, **options: Any) -> T:
        return self._table.claim(self._unsealing(decode), *arguments, **options)

    def claim_many(self, limit: int, decode: Callable[[Record], T], **options: Any) -> list[T]:
        return self._table.claim_many(limit, self._unsealing(decode), **options)

    def pop(self, decode: Callable[[Record], T], *arguments: Any, **options: Any) -> T:
        return self._table.pop(self._unsealing(decode), *arguments, **options)

    def pop_many(self, limit: int, decode: Callable[[Record], T], **options: Any) -> list[T]:
        return self._table.pop_many(limit, self._unsealing(decode), **options)

    def peek(self, decode: Callable[[Record], T]) -> T:
        return self._table.peek(self._unsealing(decode))

    def records(self) -> Iterator[Record]:
        return map(self._plain, self._table.records())

    def scan(self, *states: State) -> Iterator[tuple[State, Record]]:
        return ((state, self._plain(record)) for state, record in self._table.scan(*states))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._table, name)


class RecordStores(RecordStoreFactory, Protocol):
    """A factory that is closed after its stores."""

    def close(self) -> None: ...


RECORD_STORES: dict[str, Callable[[Path, StoreProcess], RecordStores]] = {
    "memory": lambda directory, store_process: MemoryRecordStores(),
    "memory-server": lambda directory, store_process: MemoryServerRecordStores(),
    "sqlite-process": lambda directory, store_process: SQLiteRecordStores(directory),
    "sqlite-power": lambda directory, store_process: SQLiteRecordStores(directory, "power"),
    "sqlite-sealed": lambda directory, store_process: SQLiteRecordStores(directory, sealed=True),
    "sqlite-processes": lambda directory, store_process: SQLiteRecordStores(
        directory, store_process=store_process
    ),
    "sqlite-memory": lambda directory, store_process: SQLiteMemoryRecordStores(),
    "postgresql": lambda directory, store_process: ServerRecordStores(POSTGRESQL, True),
    "postgresql-own-clock": lambda directory, store_process: ServerRecordStores(POSTGRESQL, False),
    "postgresql-pooled": lambda directory, store_process: ServerRecordStores(
        POSTGRESQL, True, place=PooledPlace()
    ),
    "postgresql-from-floor": lambda directory, store_process: ServerRecordStores(
        POSTGRESQL, True, starts_at_floor=True
    ),
    "mysql": lambda directory, store_process: ServerRecordStores(MYSQL, True),
    "mysql-own-clock": lambda directory, store_process: ServerRecordStores(MYSQL, False),
    "mysql-from-floor": lambda directory, store_process: ServerRecordStores(
        MYSQL, True, starts_at_floor=True
    ),
}
"""By the name in the tests' ids."""
