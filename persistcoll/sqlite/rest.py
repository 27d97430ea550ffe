"""Who uses a database at this moment, and bringing it to rest: to fork, and to let go of the file.

A destructor may run at any moment: the garbage collector comes in behind any call, in whichever thread. In
a thread that is within an operation it must wait for no other one, whose thread may be waiting for this
thread's. So a mutex is taken by `with`, behind which the holder is noted before anything else is called, and
whoever closes something asks :func:`~persistcoll.engine.forks.in_operation` before it waits.
"""

from __future__ import annotations

import threading
from typing import Any

from persistcoll.disk.group_commit import GroupCommit
from persistcoll.engine.combining import Combiner
from persistcoll.engine.forks import FORK_TIMEOUT, acquire_tracked, timeout_left
from persistcoll.sqlite.database_file import MEMORY
from persistcoll.sqlite.watcher import ChangeWatcher

__all__ = ["Restable"]


class Restable:
    """The part of a database that knows its users."""

    path: str
    _mutex: threading.Lock
    _combiner: Combiner[Any]
    _wal_sync: GroupCommit
    _watcher: ChangeWatcher
    _gate: threading.Lock  # what a transaction() has from its beginning to its end; taken before the mutex
    _mutex_owner: int | None  # the thread that has the mutex
    _transaction_owner: (
        int | None
    )  # the thread within transaction(), which has the mutex for each operation only
    _at_rest: bool  # for a fork
    _held: list[threading.Lock]  # for that

    def used_here(self) -> bool:
        """Whether this thread is within an operation, as a destructor's may be."""
        me = threading.get_ident()
        return (
            me in (self._mutex_owner, self._transaction_owner, self._watcher.user)
            or me in self._combiner.active_threads
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

        :param held: for :meth:`_go_on`.
        """
        me = threading.get_ident()
        rested = False
        try:
            rested = (
                acquire_tracked(self._gate, patience, held)
                and acquire_tracked(self._watcher.mutex, patience, held)
                and acquire_tracked(self._mutex, patience, held)
            )
            if rested:
                self._mutex_owner = me
        finally:
            if not rested:
                self._go_on(held)
        return rested

    def _go_on(self, held: list[threading.Lock]) -> None:
        while held:
            lock = held[-1]
            if lock is self._mutex:
                self._mutex_owner = None
            del held[-1]
            lock.release()  # nothing was called since, behind which an interrupt could come

    # SQLite keeps a process's locks in memory, of which a forked child gets a copy: it would take its
    # parent's for its own. So nothing is connected while a process forks; both connect anew.

    def _try_quiesce(self, patience: float) -> bool:
        self._at_rest = self._rest(patience, self._held)
        return self._at_rest

    def _before_fork(self) -> None:
        # For a thread that forks within its own operation nobody waits: it does not come to rest.
        if not self._at_rest and not self.used_here():
            self._try_quiesce(timeout_left(FORK_TIMEOUT))
        if self._at_rest and self.path != MEMORY:
            self._disconnect()

    def _after_fork_in_parent(self) -> None:
        self._at_rest = False
        self._go_on(self._held)
