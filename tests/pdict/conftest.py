"""Dicts that are closed when the test ends: over the reference pair store, in SQLite, and on servers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from persistcoll.dicts.pdict import PDict
from persistcoll.engine.contracts import PairStore
from persistcoll.engine.memory.pair_store import MemoryPairState, MemoryPairStore
from persistcoll.engine.records import Durability
from persistcoll.serializers import resolve
from tests.servers.places import KINDS, Place
from tests.servers.set_clock import SetClock
from tests.sql_queues.on_servers import ServerPlaces

__all__ = ["InMemory", "Opener"]

Opener = Callable[..., "PDict[Any, Any]"]


class InMemory(PDict[Any, Any]):
    """A ``PDict`` over any pair store: everything but the storage and the path."""

    def __init__(
        self, store: PairStore | None = None, serializer: Any = "pickle", auto_commit: bool = True
    ) -> None:
        self._model = store or MemoryPairStore()
        super().__init__(":memory:", serializer=serializer, auto_commit=auto_commit)

    def _open_store(self, options: Any) -> Any:
        vars(self._model)["store_id"] = b"a store"
        return self._model


@pytest.fixture
def open_dict(tmp_path) -> Iterator[Opener]:
    """Open ``PDict`` at ``tmp_path / "d"``, or ``path=``; ``"process"`` unless said otherwise."""
    opened: list[PDict[Any, Any]] = []

    def make(
        name: str = "default", *, path: str = "d", durability: Durability = "process", **options: Any
    ) -> PDict[Any, Any]:
        place = path if path == ":memory:" else tmp_path / path
        opened.append(PDict(place, name, durability=durability, **options))
        return opened[-1]

    yield make
    for each in opened:
        each.close()


class Kind:
    """One kind of dict: how to open one, how to open it again, and its clock."""

    now: float

    def __init__(self) -> None:
        self.opened: list[PDict[Any, Any]] = []

    def open(self, name: str = "default", **options: Any) -> PDict[Any, Any]:
        made = self._open(name, **options)
        buffer: Any = made._buffer
        for each in (made._store,) if buffer is None else (buffer, buffer._store):
            if hasattr(each, "_clock"):
                each._clock = lambda: self.now
        self.opened.append(made)
        return made

    def _open(self, name: str, **options: Any) -> PDict[Any, Any]:
        raise NotImplementedError

    def close(self) -> None:
        for each in self.opened:
            each.close()


class ModelKind(Kind):
    now = 1e9

    def __init__(self) -> None:
        super().__init__()
        self._states: dict[str, MemoryPairState] = {}

    def _open(self, name: str, **options: Any) -> PDict[Any, Any]:
        state = self._states.setdefault(name, MemoryPairState(lambda: self.now))
        return InMemory(MemoryPairStore(state), **options)


class SQLiteKind(Kind):
    now = 1e9

    def __init__(self, open_dict: Opener) -> None:
        super().__init__()
        self._open_dict = open_dict

    def _open(self, name: str, **options: Any) -> PDict[Any, Any]:
        return self._open_dict(name, **options)


class ServerKind(Kind):
    """Dicts on a server. One is made once and emptied after each test, because making one takes longer."""

    def __init__(self, place: Place, clock: SetClock) -> None:
        super().__init__()
        self._place = place
        self._clock = clock

    @property
    def now(self) -> float:
        return self._clock.passed

    @now.setter
    def now(self, now: float) -> None:
        self._clock.advance(now - self._clock.passed)

    def _open(self, name: str, **options: Any) -> PDict[Any, Any]:
        name = f"{resolve(options.get('serializer', 'pickle')).name} {name}"
        options = {"durability": "process", "schema": self._place.schema, **options}
        with self._clock.used():
            return PDict(self._place.address.shown, name, password=self._place.address.password, **options)

    def close(self) -> None:
        super().close()
        self._place.empty({each.name for each in self.opened})


class ServerKinds:
    """A place with a clock on each server."""

    def __init__(self) -> None:
        self._places = ServerPlaces()
        self._clocks: dict[str, SetClock] = {}

    @contextmanager
    def kind(self, server: str) -> Iterator[ServerKind]:
        with self._places.place(server) as place:
            if server not in self._clocks:
                self._clocks[server] = SetClock(place)
            yield ServerKind(place, self._clocks[server])

    def close(self) -> None:
        self._places.close()


@pytest.fixture(scope="session")
def server_kinds() -> Iterator[ServerKinds]:
    kinds = ServerKinds()
    yield kinds
    kinds.close()


# Of a test's cases on servers one in each run.
_SERVERS = [pytest.param(server, marks=pytest.mark.sampled(100)) for server in KINDS]


@pytest.fixture(params=["model", "sqlite", *_SERVERS])
def kind(request: pytest.FixtureRequest, open_dict: Opener, server_kinds: ServerKinds) -> Iterator[Kind]:
    if request.param in KINDS:
        with server_kinds.kind(request.param) as on_server:
            yield on_server
            on_server.close()
        return
    made = ModelKind() if request.param == "model" else SQLiteKind(open_dict)
    yield made
    made.close()


@pytest.fixture(params=[True, False], ids=["auto_commit", "gathering"])
def d(request: pytest.FixtureRequest, kind: Kind) -> PDict[Any, Any]:
    """Give an empty dict of each kind, which commits its changes at once or buffers them."""
    return kind.open(auto_commit=request.param)
