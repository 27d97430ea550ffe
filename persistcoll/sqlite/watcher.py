"""Notice that another process has written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from persistcoll.sqlite.driver import DATA_VERSION, Connection
from persistcoll.sqlite.owned_lock import OwnedLock

__all__ = ["ChangeWatcher"]


class ChangeWatcher:
    """A connection that serves only to ask SQLite whether another one has written.

    The writing connection cannot serve for that, because it may be waiting for the device. This one is opened
    at the first question. Any thread may ask.

    ``lock`` protects ``connection`` and ``_connected``. A thread takes it before the database's lock.

    :param connect: passes a connection to the function that it is given, or raises.
    :ivar lock: held during each question; the caller of :meth:`close` holds it as well.
    """

    def __init__(self, connect: Callable[[Callable[[Connection], None]], None]) -> None:
        self.lock = OwnedLock()
        self.connection: Connection | None = None
        self._connected = 0
        self._connect = connect

    def change_token(self) -> Any:
        """Return a value that differs from an earlier one if another connection has written since."""
        with self.lock.mutex:
            if self.connection is None:
                self._connect(self._use)
            assert self.connection is not None
            # SQLite's `data_version` can be compared within one connection only, so the connection's number
            # is a part of the token.
            return self._connected, self.connection.execute(DATA_VERSION).fetchone()

    def _use(self, connection: Connection) -> None:
        self.connection = connection
        self._connected += 1

    def close(self) -> None:
        """Close the connection; the next question opens another one."""
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.close()
