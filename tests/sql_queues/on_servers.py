"""The tests that queues in SQLite share, on servers: an opener that opens the twin of a class there.

A collection is made once and emptied after each test, because making one takes longer than most tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import persistcoll
from persistcoll.serializers import resolve
from persistcoll.servers.address import MYSQL, POSTGRESQL
from tests.servers.places import Place

__all__ = ["SERVERS", "TWINS", "ServerOpener", "ServerPlaces"]

SERVERS = (POSTGRESQL, MYSQL)
_TWINS = {
    "SQLiteQueue": "Queue",
    "FILOSQLiteQueue": "LIFOQueue",
    "UniqueQ": "UniqueQueue",
    "PriorityQueue": "PriorityQueue",
    "SQLiteAckQueue": "AckQueue",
}
TWINS: dict[str, dict[type[Any], type[Any]]] = {
    server: {getattr(persistcoll, ours): getattr(persistcoll, prefix + twin) for ours, twin in _TWINS.items()}
    for server, prefix in ((POSTGRESQL, "Postgres"), (MYSQL, "MySQL"))
}
"""The class on each server that does what a class in SQLite does."""


class ServerPlaces:
    """A place on each server, made when a test first needs it. Between tests it has no connection open."""

    def __init__(self) -> None:
        self._places: dict[str, Place] = {}

    @contextmanager
    def place(self, server: str) -> Iterator[Place]:
        """Give the place on that server, connected."""
        place = self._places.get(server)
        if place is None:
            place = self._places[server] = Place(server)
        else:
            place.connect()
        try:
            yield place
        finally:
            place.disconnect()

    def close(self) -> None:
        """Remove all of them."""
        for place in self._places.values():
            place.connect()
            place.close()


class _AtLeast(int):
    """Equals each number that is not below it."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, int) and other >= int(self)

    __hash__ = None  # type: ignore[assignment]


class ServerOpener:
    """Opens the twins of SQLite's queues on a server, closes them, and empties their collections.

    :ivar backing: the server.
    """

    clock: Callable[[], float] | None = None

    def __init__(self, server: str, place: Place) -> None:
        self.backing = server
        self.place = place
        self.opened: list[Any] = []

    def __call__(self, kind: type[Any], place: str = "q", **options: Any) -> Any:
        twin = TWINS[self.backing][kind]
        serializer = resolve(options.get("serializer", "pickle")).name
        self.opened.append(
            twin(
                f"{twin.__name__} {serializer} {place}",
                **{"durability": "process", **self.place.where, **options},
            )
        )
        return self.opened[-1]

    def id(self, number: int) -> Any:
        """Return what equals the id of that number, or a higher one: what was refused leaves gaps."""
        return _AtLeast(number)

    def close(self) -> None:
        for queue in self.opened:
            queue.close()
        if self.opened:
            self.place.empty({queue.name for queue in self.opened})
