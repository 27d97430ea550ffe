"""Pair stores on the servers of PostgreSQL and MySQL."""

from __future__ import annotations

import time
from contextlib import nullcontext

from persistcoll.engine.contracts import PairStore
from persistcoll.servers.address import Address
from persistcoll.servers.open import open_pair_store
from persistcoll.testing import Capabilities
from tests.servers.places import Place
from tests.servers.set_clock import SetClock

__all__ = ["ServerPairStores"]


class ServerPairStores:
    """Pair stores in a place of their own on a server.

    A copy of their tables stands for what a dead process leaves.

    :param sets_clock: the stores have a clock that the factory sets, in place of the server's.
    :param place: an empty one, which is closed with the stores; otherwise one is made.
    """

    def __init__(self, kind: str, sets_clock: bool, place: Place | None = None) -> None:
        self.capabilities = Capabilities(real_time=not sets_clock, law_second=0.04)
        self.place = Place(kind) if place is None else place
        self._clock = SetClock(self.place) if sets_clock else None

    def _now(self) -> float:
        return time.monotonic() if self._clock is None else self._clock.passed

    def open(self, name: str) -> PairStore:
        return self._open(self.place.address, self.place.schema, name)

    def crashed(self, name: str) -> PairStore:
        return self._open(*self.place.copy(name), name)

    def _open(self, address: Address, schema: str | None, name: str) -> PairStore:
        with nullcontext() if self._clock is None else self._clock.used():
            return open_pair_store(
                address,
                name=name,
                serializer="raw",
                durability="process",
                schema=schema,
                clock=self._now,
            )

    def advance(self, seconds: float) -> None:
        if self._clock is None:
            time.sleep(seconds)
        else:
            self._clock.advance(seconds)

    def close(self) -> None:
        self.place.close()
