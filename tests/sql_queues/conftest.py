"""Queues that are closed when the test ends: in a file, in memory, over the model store, and on servers.

On servers the tests of some modules run by default, each with one class on one server. With ``--all`` all
tests run with each class on each server.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest

from persistcoll import (
    FILOSQLiteAckQueue,
    FILOSQLiteQueue,
    PDict,
    PriorityQueue,
    SQLiteAckQueue,
    SQLiteQueue,
    UniqueAckQ,
    UniqueQ,
)
from persistcoll.engine import event_count
from persistcoll.engine.memory.record_store import MemoryRecordState, MemoryRecordStore
from persistcoll.engine.transaction_hooks import OPEN
from persistcoll.queues import sqlite
from persistcoll.queues.ack import AckQueue
from persistcoll.servers.mysql.statements import MySQLDialect
from persistcoll.servers.postgres.statements import PostgresDialect
from persistcoll.sqlite.open import DatabaseLocation, open_record_store
from persistcoll.sqlite.record_store import SQLiteRecordStore
from tests.sql_queues.on_servers import SERVERS, TWINS, ServerOpener, ServerPlaces

PLAIN: list[type[Any]] = [SQLiteQueue, FILOSQLiteQueue, UniqueQ, PriorityQueue]
ACK: list[type[Any]] = [SQLiteAckQueue, FILOSQLiteAckQueue, UniqueAckQ]
NEWEST_FIRST = (FILOSQLiteQueue, FILOSQLiteAckQueue)


class ModelTable(MemoryRecordStore):
    """The model, opened as a record store of a database is."""

    store_id = b"model"

    def seal_with(self, seal: object, unseal: object) -> None:
        """Seal nothing, because no other process reads the model."""


class Opener:
    """Opens queues, with ``durability="process"`` unless said otherwise, and closes them.

    :ivar clock: the clock of leases and delays; the stores' own if ``None``.
    """

    def __init__(self, directory: Any, backing: str) -> None:
        self.directory = directory
        self.backing = backing
        self.clock: Callable[[], float] | None = None
        self.opened: list[Any] = []
        self._states: dict[tuple[str, str], MemoryRecordState] = {}

    def __call__(self, kind: type[Any], place: str = "q", **options: Any) -> Any:
        path = ":memory:" if self.backing == "memory" else str(self.directory / place)
        self.opened.append(kind(path, **{"durability": "process", **options}))
        return self.opened[-1]

    def id(self, number: int) -> Any:
        """Return what equals the id of that number."""
        return number

    def open_record_store(self, place: DatabaseLocation, **wanted: Any) -> Any:
        """Stand for the containers' ``open_record_store``."""
        if self.backing != "model":
            return open_record_store(place, clock=self.clock, **wanted)
        key = place.file, wanted["name"]
        if key not in self._states:
            self._states[key] = MemoryRecordState(self.clock or time.time)
        return ModelTable(wanted["discipline"], wanted["retry"], self._states[key])

    def close(self) -> None:
        for queue in self.opened:
            queue.close()


def _opener(tmp_path: Any, monkeypatch: pytest.MonkeyPatch, backing: str) -> Iterator[Opener]:
    opener = Opener(tmp_path, backing)
    monkeypatch.setattr(sqlite, "open_record_store", opener.open_record_store)
    yield opener
    opener.close()


@pytest.fixture(scope="session")
def server_places() -> Iterator[ServerPlaces]:
    places = ServerPlaces()
    yield places
    places.close()


def _any_opener(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, backing: str, places: ServerPlaces
) -> Iterator[Opener | ServerOpener]:
    if backing not in SERVERS:
        yield from _opener(tmp_path, monkeypatch, backing)
        return
    with places.place(backing) as place:
        opener = ServerOpener(backing, place)
        yield opener
        opener.close()


@pytest.fixture(params=["file", "memory", "model", *SERVERS])
def open_queue(request, tmp_path, monkeypatch, server_places) -> Iterator[Opener | ServerOpener]:
    """Give the opener: ``open_queue(SQLiteQueue, **options)``."""
    yield from _any_opener(tmp_path, monkeypatch, request.param, server_places)


@pytest.fixture(params=["file", "model", *SERVERS])
def open_stored(request, tmp_path, monkeypatch, server_places) -> Iterator[Opener | ServerOpener]:
    """Give an opener whose queues share their items with other objects."""
    yield from _any_opener(tmp_path, monkeypatch, request.param, server_places)


# They use most of what a queue does, in a few seconds.
_ON_SERVERS = ("test_common", "test_ack", "test_lifecycle")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what no server runs, and without ``--all`` all but one of a test's cases, or all of them."""
    by_test: dict[str, list[pytest.Item]] = {}
    left_out: set[pytest.Item] = set()
    for item in items:
        server = _server_of(item)
        if server is None:
            continue
        values = item.callspec.params.values()  # type: ignore[attr-defined]
        # The clock of a server cannot be set; the laws of the stores have these cases with one that can be.
        if (
            "clock" in item.fixturenames  # type: ignore[attr-defined]
            or "extremes" in item.nodeid
            or any(value in PLAIN + ACK and value not in TWINS[server] for value in values)
        ):
            left_out.add(item)
        else:
            by_test.setdefault(item.nodeid.partition("[")[0], []).append(item)
    if not (config.getoption("--all") or config.getoption("--stress")):
        for name, cases in by_test.items():
            left_out.update(cases)
            if cases[0].path.stem in _ON_SERVERS:
                left_out.remove(cases[crc32(name.encode()) % len(cases)])
    items[:] = [item for item in items if item not in left_out]


def _server_of(item: pytest.Item) -> str | None:
    """Return the server on which a test of these runs."""
    if Path(__file__).parent not in item.path.parents or not hasattr(item, "callspec"):
        return None
    params = item.callspec.params
    return next(
        (each for each in (params.get("open_queue"), params.get("open_stored")) if each in SERVERS), None
    )


@pytest.fixture(params=["file", "memory", "model"])
def open_here(request, tmp_path, monkeypatch) -> Iterator[Opener]:
    """Give an opener for what the queues on servers do not have."""
    yield from _opener(tmp_path, monkeypatch, request.param)


@pytest.fixture
def open_file(tmp_path, monkeypatch) -> Iterator[Opener]:
    """Give an opener whose queues lie in a file."""
    yield from _opener(tmp_path, monkeypatch, "file")


@pytest.fixture(params=PLAIN + ACK, ids=lambda kind: kind.__name__)
def kind(request) -> Any:
    """Give each class of queue."""
    return request.param


@pytest.fixture(params=ACK, ids=lambda kind: kind.__name__)
def ack_kind(request) -> Any:
    """Give each class of ack queue."""
    return request.param


class Clock:
    """A clock for the test to set: the seconds that have passed."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def no_polling(monkeypatch):
    """Turn polling off, so that only a wake-up helps."""
    monkeypatch.setattr(event_count, "MIN_POLL_INTERVAL", 30.0)
    for table in (SQLiteRecordStore, ModelTable, PostgresDialect, MySQLDialect):
        monkeypatch.setattr(table, "max_poll_interval", 30.0)


def done_with(queue: Any) -> None:
    """Ack what this thread got, for any class."""
    if isinstance(queue, AckQueue) or not queue.auto_commit:
        queue.task_done()


@pytest.fixture
def other(tmp_path) -> Iterator[PDict[str, Any]]:
    """Give another collection of the same file, whose transactions the queues take part in."""
    with PDict[str, Any](tmp_path, "other") as mapping:
        yield mapping
    assert OPEN == []
