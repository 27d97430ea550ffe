"""Group commit: one of the threads that wait for a sync makes it for all of them."""

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
    """A :class:`SyncedFile` for many callers, who queue for its syncs: :meth:`commit` in place of
    :meth:`sync`.
    """

    def __init__(self, disk: Disk, path: str, poison: Poison) -> None:
        super().__init__(disk, path, poison)
        self._combiner = Combiner[_Ticket](self._sync_for_all)

    @property
    def users(self) -> Container[int]:
        """The threads within :meth:`commit`."""
        return self._combiner.active_threads

    @property
    def syncing(self) -> bool:
        """Whether somebody syncs at this moment, or is about to."""
        return self._combiner.has_leader

    def commit(self, ticket: int) -> None:
        """Return when what was ``written`` up to ``ticket`` is durable; ``StorageError`` if it may not be."""
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
            if failure is None:  # a signal handler's own
                raise
            for ticket in tickets:
                ticket.failure = self._outcome_unknown_error(failure)
