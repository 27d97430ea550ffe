"""Queues that are closed when the test ends: in a file, in memory, and over the model store."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

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
from persistcoll.sqlite.open import DatabaseLocation, open_record_store
from persistcoll.sqlite.record_store import SQLiteRecordStore

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


@pytest.fixture(params=["file", "memory", "model"])
def open_queue(request, tmp_path, monkeypatch) -> Iterator[Opener]:
    """Give the opener: ``open_queue(SQLiteQueue, **options)``."""
    yield from _opener(tmp_path, monkeypatch, request.param)


@pytest.fixture(params=["file", "model"])
def open_stored(request, tmp_path, monkeypatch) -> Iterator[Opener]:
    """Give an opener whose queues share their items with other objects."""
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
    for table in (SQLiteRecordStore, ModelTable):
        monkeypatch.setattr(table, "max_poll_interval", 30.0)


def done_with(queue: Any) -> None:
    """Ack what this thread got, for any class."""
    if isinstance(queue, SQLiteAckQueue) or not queue.auto_commit:
        queue.task_done()


@pytest.fixture
def other(tmp_path) -> Iterator[PDict[str, Any]]:
    """Give another collection of the same file, whose transactions the queues take part in."""
    with PDict[str, Any](tmp_path, "other") as mapping:
        yield mapping
    assert OPEN == []
