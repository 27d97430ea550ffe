"""Dicts that are closed when the test ends: over the reference pair store, and in SQLite."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from persistcoll.dicts.pdict import PDict
from persistcoll.engine.contracts import PairStore
from persistcoll.engine.memory.pair_store import MemoryPairState, MemoryPairStore
from persistcoll.engine.records import Durability

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

    def __init__(self, open_dict: Opener, kind: str) -> None:
        self._open_dict = open_dict
        self._kind = kind
        self.now = 1e9
        self._states: dict[str, MemoryPairState] = {}
        self._opened: list[PDict[Any, Any]] = []

    def open(self, name: str = "default", **options: Any) -> PDict[Any, Any]:
        if self._kind.startswith("sqlite"):
            made = self._open_dict(name, **options)
            store: Any = made._store if made._buffer is None else made._buffer._store
            store._clock = lambda: self.now
        else:
            state = self._states.setdefault(name, MemoryPairState(lambda: self.now))
            made = InMemory(MemoryPairStore(state), **options)
        if made._buffer is not None:
            made._buffer._clock = lambda: self.now
        self._opened.append(made)
        return made

    def close(self) -> None:
        for each in self._opened:
            each.close()


@pytest.fixture(params=["model", "sqlite"])
def kind(request: pytest.FixtureRequest, open_dict: Opener) -> Iterator[Kind]:
    made = Kind(open_dict, request.param)
    yield made
    made.close()


@pytest.fixture(params=[True, False], ids=["auto_commit", "gathering"])
def d(request: pytest.FixtureRequest, kind: Kind) -> PDict[Any, Any]:
    """Give an empty dict of each kind, which commits its changes at once or buffers them."""
    return kind.open(auto_commit=request.param)
