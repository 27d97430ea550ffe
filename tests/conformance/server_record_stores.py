"""Record stores on the servers of PostgreSQL and MySQL."""

from __future__ import annotations

import time
from contextlib import nullcontext

from persistcoll.engine.contracts import RecordStore
from persistcoll.engine.records import ClaimPolicy, Discipline
from persistcoll.servers.address import Address
from persistcoll.servers.heads import Heads
from persistcoll.servers.open import open_record_store
from persistcoll.testing import Capabilities
from tests.servers.floors import FromLastClaim, from_floor
from tests.servers.places import CallerConnection, Place
from tests.servers.set_clock import SetClock

__all__ = ["ServerRecordStores"]

# Seconds: with the server's own clock long enough for a heartbeat on a machine with more to do.
_PATIENCE = 1.0


class ServerRecordStores:
    """Record stores in a place of their own on a server.

    A copy of their tables stands for what a dead process leaves.

    :param sets_clock: the stores have a clock that the factory sets, in place of the server's.
    :param starts_at_floor: every look begins at the last claim of its store.
    :param place: an empty one, which is closed with the stores; otherwise one is made.
    """

    def __init__(
        self, kind: str, sets_clock: bool, starts_at_floor: bool = False, place: Place | None = None
    ) -> None:
        self.capabilities = Capabilities(joins=True, real_time=not sets_clock, law_second=0.04)
        self.place = Place(kind) if place is None else place
        self._clock = SetClock(self.place) if sets_clock else None
        self._starts_at_floor = starts_at_floor
        self._connections: list[CallerConnection] = []

    def open(self, name: str, discipline: Discipline, retry: ClaimPolicy) -> RecordStore:
        return self._open(self.place.address, self.place.schema, name, discipline, retry)

    def crashed(self, name: str, discipline: Discipline, retry: ClaimPolicy) -> RecordStore:
        return self._open(*self.place.copy(name), name, discipline, retry)

    def _open(
        self, address: Address, schema: str | None, name: str, discipline: Discipline, retry: ClaimPolicy
    ) -> RecordStore:
        with nullcontext() if self._clock is None else self._clock.used():
            store = open_record_store(
                address,
                name=name,
                kind=discipline.name,
                discipline=discipline,
                retry=retry,
                serializer="raw",
                durability="process",
                schema=schema,
                patience=_PATIENCE,
            )
        return from_floor(store, self._clock, FromLastClaim if self._starts_at_floor else Heads)

    def connect(self, name: str) -> CallerConnection:
        self._connections.append(CallerConnection(self.place))
        return self._connections[-1]

    def advance(self, seconds: float) -> None:
        if self._clock is None:
            time.sleep(seconds)
        else:
            self._clock.advance(seconds)

    def close(self) -> None:
        for connection in self._connections:
            connection.close()
        self.place.close()
