"""Message stores on the servers of PostgreSQL and MySQL."""

from __future__ import annotations

import time
from contextlib import ExitStack

from persistcoll.engine.contracts import MessageStore
from persistcoll.engine.message_records import MessagePolicy
from persistcoll.servers.address import Address
from persistcoll.servers.heads import Heads
from persistcoll.servers.open import open_message_store
from persistcoll.testing import Capabilities
from tests.servers.floors import FromLastClaim, from_floor
from tests.servers.losing import losing_connections
from tests.servers.places import CallerConnection, Place
from tests.servers.set_clock import SetClock

__all__ = ["ServerMessageStores"]


class ServerMessageStores:
    """Message stores in a place of their own on a server.

    A copy of their tables stands for what a dead process leaves.

    :param sets_clock: the stores have a clock that the factory sets, in place of the server's.
    :param starts_at_floor: every look begins at the last claim of its store.
    :param loss: the probability that a connection is lost before a statement, and that it is lost after one.
    :param place: an empty one, which is closed with the stores; otherwise one is made.
    """

    def __init__(
        self,
        kind: str,
        sets_clock: bool,
        loss: float = 0.0,
        starts_at_floor: bool = False,
        place: Place | None = None,
    ) -> None:
        self.capabilities = Capabilities(joins=True, real_time=not sets_clock, law_second=0.04)
        self.place = Place(kind) if place is None else place
        self._clock = SetClock(self.place) if sets_clock else None
        self._loss = loss
        self._starts_at_floor = starts_at_floor
        self._connections: list[CallerConnection] = []

    def open(self, name: str, policy: MessagePolicy) -> MessageStore:
        return self._open(self.place.address, self.place.schema, name, policy)

    def crashed(self, name: str, policy: MessagePolicy) -> MessageStore:
        return self._open(*self.place.copy(name), name, policy)

    def _open(self, address: Address, schema: str | None, name: str, policy: MessagePolicy) -> MessageStore:
        with ExitStack() as stack:
            if self._clock is not None:
                stack.enter_context(self._clock.used())
            if self._loss:
                stack.enter_context(losing_connections(self._loss))
            store = open_message_store(
                address, name=name, policy=policy, serializer="raw", durability="process", schema=schema
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

    def now(self) -> float:
        if self._clock is None:
            ((now,),) = self.place.run(f"SELECT {self.place.epoch}")
            return float(now)
        return self._clock.now()

    def close(self) -> None:
        for connection in self._connections:
            connection.close()
        self.place.close()
