"""Puts into a queue that takes only so many items."""

from __future__ import annotations

from persistcoll.errors import Full
from persistcoll.servers.sessions import Server, Session, Sessions
from persistcoll.servers.statements import RecordStatements

__all__ = ["Bound"]


class Bound:
    """Counts what is ready, under a lock that every put with a bound takes: one after another, to the commit.

    :param number: the collection's.
    :ivar was_full: the last put found no room. It is a hint that any thread reads and sets without a lock.
    """

    def __init__(self, server: Server, number: int, sql: RecordStatements) -> None:
        self._lock = server.sql.lock_collection
        self._number = number
        self._sql = sql
        self.was_full = False

    def refuse_full(self, sessions: Sessions, capacity: int, puts: int, unique: bool) -> None:
        """Raise ``Full`` after a read alone, so that polling a full queue locks nothing."""
        self.was_full = False
        # An entry whose key is active needs no room.
        if not unique and puts > capacity - sessions.repeat(lambda session: self._ready(session, capacity)):
            self.was_full = True
            raise Full

    def lock(self, session: Session) -> None:
        """Let no other put with a bound go on before the end of this transaction.

        The statements that follow see what the transaction before has committed.
        """
        session.defer(self._lock, number=self._number)

    def check(self, session: Session, capacity: int) -> None:
        """Raise ``Full`` if there is more than the queue takes."""
        if self._ready(session, capacity + 1) > capacity:
            self.was_full = True
            raise Full

    def _ready(self, session: Session, limit: int) -> int:
        ((ready,),) = session.run(self._sql.count_ready, limit=limit).rows
        return int(ready)
