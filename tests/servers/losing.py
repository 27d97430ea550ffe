"""Connections that are lost now and then: before a statement reaches the server, or before its answer."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from persistcoll.servers import sessions
from persistcoll.servers.driver import ConnectionLostError, Driver, OwnConnection

__all__ = ["losing_connections"]

# What is called, and what it is called in the places that are lost. A flush commits a put of one item.
_METHODS = {"run": "run", "begin": "begin", "commit": "commit", "flush": "commit", "rollback": "rollback"}


class _Losing:
    """A connection that ``is_lost`` ends."""

    def __init__(self, connection: OwnConnection, is_lost: Callable[[str], bool]) -> None:
        self._connection = connection
        self._is_lost = is_lost

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._connection, name)
        if name not in _METHODS:
            return method

        def call(*arguments: Any) -> Any:
            self._lose(f"before {_METHODS[name]}")
            result = method(*arguments)
            self._lose(f"after {_METHODS[name]}")
            return result

        return call

    def _lose(self, where: str) -> None:
        if self._is_lost(where):
            self._connection.close()
            raise ConnectionLostError(f"cut {where}")


class _Driver:
    def __init__(self, driver: Driver, is_lost: Callable[[str], bool]) -> None:
        self._driver = driver
        self._is_lost = is_lost

    def connect(self, *arguments: Any) -> Any:
        return _Losing(self._driver.connect(*arguments), self._is_lost)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._driver, name)


@contextmanager
def losing_connections(is_lost: Callable[[str], bool] | float, seed: int = 0) -> Iterator[None]:
    """Let the connections of servers that are opened in the block be lost.

    :param is_lost: a probability; or called with ``"before run"``, ``"after commit"`` and so on.
    """
    chance = random.Random(seed)
    lost = is_lost if callable(is_lost) else lambda where: chance.random() < is_lost
    original = sessions.driver_of
    with mock.patch.object(sessions, "driver_of", lambda kind: _Driver(original(kind), lost)):
        yield
