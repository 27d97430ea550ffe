"""Who uses a database at this moment, and bringing it to rest: to fork, and to let go of the file."""

from __future__ import annotations

import threading
from typing import Any

from persistcoll.disk.group_commit import GroupCommit
from persistcoll.engine.combining import Combiner
from persistcoll.engine.forks import FORK_PATIENCE, acquire_noted, patience_left
from persistcoll.sqlite.database_file import MEMORY
from persistcoll.sqlite.owned_lock import OwnedLock, release_all
from persistcoll.sqlite.watcher import ChangeWatcher

__all__ = ["Restable"]


class Restable:
    """The part of a database that knows its users."""

    path: str
    _lock: OwnedLock
    _combiner: Combiner[Any]
    _wal_sync: GroupCommit
    _watcher: ChangeWatcher
    _gate: threading.Lock  # what a transaction() has from its beginning to its end; taken before the mutex
    # The thread within transaction(), which has the mutex for each operation only.
    _transaction_owner: int | None
    _at_rest: bool  # for a fork
    _held: list[threading.Lock]  # for that

    def used_here(self) -> bool:
        """Whether this thread is within an operation, as a destructor's may be."""
        me = threading.get_ident()
        return (
            me == self._transaction_owner
            or self._lock.is_owned()
            or self._watcher.lock.is_owned()
            or me in self._combiner.users
            or me in self._wal_sync.users
        )

    @property
    def in_transaction(self) -> bool:
        """Whether some thread is within a caller's transaction."""
        return self._transaction_owner is not None

    def _disconnect(self) -> None:
        raise NotImplementedError

    def _rest(self, patience: float, held: list[threading.Lock]) -> bool:
        """Let nobody use it, once nobody does; whether that came about within so many seconds.

        :param held: for :func:`~persistcoll.sqlite.owned_lock.release_all`.
        """
        rested = False
        try:
            rested = (
                acquire_noted(self._gate, patience, held)
                and self._watcher.lock.quiesce(patience, held)
                and self._lock.quiesce(patience, held)
            )
        finally:
            if not rested:
                release_all(held)
        return rested

    # SQLite keeps a process's locks in memory, of which a forked child gets a copy: it would take its
    # parent's for its own. So nothing is connected while a process forks; both connect anew.

    def _come_to_rest(self, patience: float) -> bool:
        self._at_rest = self._rest(patience, self._held)
        return self._at_rest

    def _before_fork(self) -> None:
        # For a thread that forks within its own operation nobody waits: it does not come to rest.
        if not self._at_rest and not self.used_here():
            self._come_to_rest(patience_left(FORK_PATIENCE))
        if self._at_rest and self.path != MEMORY:
            self._disconnect()

    def _after_fork_in_parent(self) -> None:
        self._at_rest = False
        release_all(self._held)
