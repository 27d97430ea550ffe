"""An open collection whose records are claimed: what queues and message queues share."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar, cast

from persistcoll.engine.forks import acquire_tracked
from persistcoll.errors import LockedError
from persistcoll.sqlite.counters import Counters
from persistcoll.sqlite.driver import Execute
from persistcoll.sqlite.handle import Handle, S
from persistcoll.sqlite.holding import Holding

__all__ = ["ClaimingHandle"]

C = TypeVar("C", bound=Counters)
T = TypeVar("T")
_DUE = object()


class ClaimingHandle(Handle[S], Generic[S, C]):
    """A handle that is a holder of claims. It closes once, and a look at it does first what is due.

    ``_closing`` lets one thread close the handle, and no thread waits for it. The subclass sets it before its
    other fields, and ``_holding`` together with what the end of a claim means.
    """

    _closing: threading.Lock
    _holding: Holding

    def _read(self, query: Callable[[Execute, C], T], snapshot: bool = False) -> T:
        """Return what ``query`` reads from what is committed, after what is due was done.

        While another caller's transaction is open, what is due is read as it was before, because a look waits
        for no transaction.

        :param snapshot: whether all that ``query`` reads is to belong to one snapshot.
        """
        self._check()
        is_locked = False

        def run(execute: Execute, counters: Counters) -> T | object:
            if counters.next_due_at is not None and counters.next_due_at <= self._now() and not is_locked:
                return _DUE
            return query(execute, cast(C, counters))

        while (result := self._database.consult(self._counters, run, snapshot)) is _DUE:
            try:
                self._write_unsynced(self._refresh_counters, 0.0)
            except LockedError:
                is_locked = True
        return cast(T, result)

    def change_token(self) -> object:
        """Return an object that differs from an earlier one if something has changed since."""
        self._check()
        # The end of a delay or a lease, and the death of a holder, do not change the database. The token has
        # the times and not whether they have come: a waiter does what is due, and by its next look something
        # else may be due.
        due = self._counters.next_due_at
        if due is not None and due > self._now():
            due = None
        return self._database.change_token(), due, self._holding.liveness_check_due()

    def shrink(self) -> None:
        """Return unused space to the file system."""
        self._check()
        self._database.shrink(self._timeout)

    def _forget_claims(self) -> None:
        """Forget what this process remembers of the claims, because they end or are the parent's."""

    def after_fork_in_child(self) -> None:
        """Be no holder in a forked child. The database follows forks by itself."""
        self._holding.after_fork_in_child()
        self._forget_claims()

    def close(self) -> None:
        """End the claims, and release the database. Idempotent."""
        held: list[threading.Lock] = []
        try:
            if acquire_tracked(self._closing, 0.0, held):
                self._close()  # otherwise another thread is closing it, or this thread is, further up
        finally:
            if held:
                self._closing.release()

    def _close(self) -> None:
        try:
            if not self._closed:
                self._forget_claims()
                self._holding.close()
                self._warn_if_replaced()
        finally:
            self._closed = True
            # If an interrupt ended `_holding.close()`, this unlocks the holder's file, so that another
            # process reclaims what it had claimed.
            self.after_fork_in_child()
            self._registry.release(self._users)
