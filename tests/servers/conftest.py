"""Places on database servers, and stores in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from persistcoll.engine.records import FIFO, ClaimPolicy, Discipline
from persistcoll.servers.open import open_record_store
from persistcoll.servers.record_store import ServerRecordStore
from tests.servers.places import KINDS, Place


@pytest.fixture(params=KINDS)
def place(request) -> Iterator[Place]:
    place = Place(request.param)
    yield place
    place.close()


@pytest.fixture
def open_queue(place, request) -> Iterator[Callable[..., Any]]:
    """Open queues of the test's own name in the place, by the public classes, and close them at the end."""
    queues: list[Any] = []

    def open_one(which: str = "Queue", name: str = request.node.name, **options: Any) -> Any:
        options = {"durability": "process", **place.where, **options}
        queues.append(place.class_of(which)(name, **options))
        return queues[-1]

    yield open_one
    for queue in queues:
        queue.close()


@pytest.fixture
def opened(place) -> Iterator[Callable[..., ServerRecordStore]]:
    """Open stores in the place, and close them at the end."""
    stores: list[ServerRecordStore] = []

    def open_store(
        name: str = "jobs",
        discipline: Discipline = FIFO,
        retry: ClaimPolicy = ClaimPolicy(),  # noqa: B008 - immutable
        **options: Any,
    ) -> ServerRecordStore:
        options = {"serializer": "raw", "durability": "process", "schema": place.schema, **options}
        stores.append(
            open_record_store(
                place.address, name=name, kind=discipline.name, discipline=discipline, retry=retry, **options
            )
        )
        return stores[-1]

    yield open_store
    for store in stores:
        store.close()
