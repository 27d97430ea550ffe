"""Noticing that another process has written."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from persistcoll.sqlite.driver import DATA_VERSION, Connection

__all__ = ["ChangeWatcher"]


class ChangeWatcher:
    """A connection of its own to ask for the version, as the writing one may be waiting for the device.

    It is there from the first question on. From any thread.

    :param connect: passes a connection to the function that it is given, or raises.
    :ivar mutex: held while it is asked; who closes it holds it, too.
    :ivar user: the thread that asks it.
    """

    def __init__(self, connect: Callable[[Callable[[Connection], None]], None]) -> None:
        self.mutex = threading.Lock()
        self.user: int | None = None
        self.connection: Connection | None = None
        self._connected = 0
        self._connect = connect

    def change_token(self) -> Any:
        """Differs from an earlier one when somebody else has written since."""
        me = threading.get_ident()
        with self.mutex:
            self.user = me
            try:
                if self.connection is None:
                    self._connect(self._use)
                assert self.connection is not None
                # What one connection says tells nothing about what another one said.
                return self._connected, self.connection.execute(DATA_VERSION).fetchone()[0]
            finally:
                self.user = None

    def _use(self, connection: Connection) -> None:
        self.connection = connection
        self._connected += 1

    def close(self) -> None:
        """Until it is asked again."""
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.close()
