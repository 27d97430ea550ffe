"""A clock of a server that tests set: a row of a table, in place of the server's own time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from persistcoll.servers import sessions
from persistcoll.servers.address import MYSQL
from persistcoll.servers.dialect import Dialect
from persistcoll.servers.driver import Driver
from persistcoll.servers.mysql.statements import MySQLDialect
from persistcoll.servers.postgres.statements import PostgresDialect
from tests.servers.places import Place

__all__ = ["SetClock"]


class _PostgresDialect(PostgresDialect):
    def __init__(self, place: str) -> None:
        self.now = f"(SELECT now FROM {place}.clock)"


class _MySQLDialect(MySQLDialect):
    def __init__(self, place: str) -> None:
        self.now = f"(SELECT now FROM {place}.clock)"


class _Driver:
    def __init__(self, driver: Driver, dialect: Dialect) -> None:
        self._driver = driver
        self.dialect = dialect

    def __getattr__(self, name: str) -> Any:
        return getattr(self._driver, name)


class SetClock:
    """The clock of the stores that are opened in a place, with :meth:`used`. It stands still.

    :ivar passed: the seconds by which it was moved.
    """

    def __init__(self, place: Place) -> None:
        self.passed = 0.0
        self._place = place
        self._is_mysql = place.kind == MYSQL
        self._dialect = (_MySQLDialect if self._is_mysql else _PostgresDialect)(place.name)
        place.run(f"CREATE TABLE {place.name}.clock (now {'BIGINT' if self._is_mysql else 'timestamptz'})")
        # A float represents whole seconds and their quarters exactly.
        now = f"{int(time.time()) * 1000000}" if self._is_mysql else "date_trunc('second', now())"
        place.run(f"INSERT INTO {place.name}.clock VALUES ({now})")

    @contextmanager
    def used(self) -> Iterator[None]:
        """Let the servers that are opened in the block have this clock."""
        original = sessions.driver_of

        def driver_of(kind: str) -> Any:
            return _Driver(original(kind), self._dialect)

        with mock.patch.object(sessions, "driver_of", driver_of):
            yield

    def advance(self, seconds: float) -> None:
        """Move the clock, and let the holders of this process be heard of."""
        self.passed += seconds
        step = f"{round(seconds * 1e6)}" if self._is_mysql else f"interval '{seconds} seconds'"
        self._place.run(f"UPDATE {self._place.name}.clock SET now = now + {step}")
        for server in list(sessions.SERVERS._servers.values()):
            server.heartbeat.beat()

    def now(self) -> float:
        """Return the time in seconds since the epoch."""
        now = "now / 1e6" if self._is_mysql else "extract(epoch FROM now)::float8"
        ((seconds,),) = self._place.run(f"SELECT {now} FROM {self._place.name}.clock")
        return float(seconds)
