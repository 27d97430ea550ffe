"""Group commit: one of several waiting threads makes the sync for all of them."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from operator import attrgetter

from persistcoll.disk.calls import Disk
from persistcoll.disk.synced_file import SyncedFile
from persistcoll.engine.combining import Combiner, Request
from persistcoll.engine.poison import Poison
from persistcoll.errors import StorageError

__all__ = ["GroupCommit"]


class _Ticket(Request):
    def __init__(self, number: int) -> None:
        self.number = number


_number = attrgetter("number")


class GroupCommit(SyncedFile):
    """A :class:`SyncedFile` for many concurrent callers, which call :meth:`commit` instead of :meth:`sync`.

    Thread-safe. The combiner lets one thread at a time sync for all waiting threads. The locks of
    :class:`SyncedFile` protect the fields.
    """

    def __init__(self, disk: Disk, path: str, poison: Poison) -> None:
        super().__init__(disk, path, poison)
        self._combiner = Combiner[_Ticket](self._sync_for_all)

    @property
    def users(self) -> Container[int]:
        """The identifiers of the threads within :meth:`commit`."""
        return self._combiner.active_threads

    @property
    def syncing(self) -> bool:
        """Whether a thread is syncing now, or is about to sync."""
        return self._combiner.has_leader

    def commit(self, ticket: int) -> None:
        """Return when everything ``written`` up to ``ticket`` is durable.

        Cost: one sync, which the waiting threads share.

        :raise StorageError: a sync has failed, so that the data may not be durable.
        """
        while self.durable < ticket:
            request = _Ticket(ticket)
            self._combiner.submit(request)
            if not request.cut_short:
                return

    def _sync_for_all(self, tickets: Sequence[_Ticket], waiting: Callable[[], None]) -> None:
        waiting()
        try:
            self.sync(max(map(_number, tickets)))
        except StorageError:
            failure = self._poison.failure
            if failure is None:  # a signal handler raised it
                raise
            for ticket in tickets:
                ticket.failure = self._outcome_unknown_error(failure)
