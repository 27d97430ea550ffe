"""Places on database servers, and stores in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from persistcoll.engine.records import FIFO, ClaimPolicy, Discipline
from persistcoll.servers.mysql import connection as mysql
from persistcoll.servers.open import open_record_store
from persistcoll.servers.postgres import connection as postgres
from persistcoll.servers.record_store import ServerRecordStore
from tests.servers.places import KINDS, CallerConnection, Place
from tests.servers.proxy import Proxy


@pytest.fixture(params=KINDS)
def place(request) -> Iterator[Place]:
    place = Place(request.param)
    yield place
    place.close()


@pytest.fixture
def caller(place) -> Iterator[CallerConnection]:
    """Connect to the place as a program does."""
    with CallerConnection(place) as caller:
        yield caller


@pytest.fixture
def trips(monkeypatch) -> list[list[str]]:
    """Return a list of the trips of own connections to the servers, each of them its statements."""
    made: list[list[str]] = []
    for kind in (mysql._OwnConnection, postgres._OwnConnection):

        def send(self, steps, original=kind._send):
            made.append([step.text for step in steps])
            return original(self, steps)

        monkeypatch.setattr(kind, "_send", send)
    return made


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


@pytest.fixture
def proxy(place) -> Iterator[Proxy]:
    proxy = Proxy(place.address)
    yield proxy
    proxy.close()


@pytest.fixture
def far(place, proxy) -> dict[str, Any]:
    """Name the place by way of the proxy."""
    return {**place.where, "url": proxy.address.shown}
