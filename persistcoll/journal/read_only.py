"""A store that is opened for reading only, by a user without write permission or on a read-only disk.

Every file is opened for reading. The only lock is the shared one with which a process tests for an instant
whether a consumer lives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from persistcoll.engine.contracts import Claim
from persistcoll.engine.forks import read_only_error
from persistcoll.journal.log_store import JournalLogStore
from persistcoll.journal.open import Opening
from persistcoll.journal.queue_claims import QueueClaims
from persistcoll.journal.queue_store import JournalQueueStore
from persistcoll.journal.tail_view import TailView

__all__ = ["ReadOnlyLogStore", "ReadOnlyQueueStore"]


class ReadOnlyQueueStore(JournalQueueStore):
    """A :class:`JournalQueueStore` that writes nothing. A call that would change it raises an error."""

    def _open_journal(self, opening: Opening) -> None:
        journal = TailView(self._location)
        opening.undo.callback(journal.close_without_sync)
        journal.refresh()
        self._cursor_view.acknowledged()
        self._journal = journal

    def _check(self) -> None:
        super()._check()
        self._location.check()

    def append(self, payload: bytes, capacity: int = 0, *, deadline: float | None = None) -> NoReturn:
        raise read_only_error(repr(self._path))

    def append_many(
        self, payloads: Sequence[bytes], capacity: int = 0, *, deadline: float | None = None
    ) -> NoReturn:
        raise read_only_error(repr(self._path))

    def ack(self, ids: Sequence[int]) -> NoReturn:
        raise read_only_error(repr(self._path))

    def release(self, claims: Sequence[Claim]) -> NoReturn:
        raise read_only_error(repr(self._path))

    def _become_consumer(self) -> QueueClaims:
        raise read_only_error(repr(self._path))

    _require_consumer = _become_consumer


class ReadOnlyLogStore(JournalLogStore):
    """A :class:`JournalLogStore` that writes nothing. A call that would change it raises an error."""

    _may_write = False

    def _open_journal(self, opening: Opening) -> TailView:
        journal = TailView(opening.location)
        opening.undo.callback(journal.close_without_sync)
        journal.refresh()
        # The location compares the path with this open file, which nothing else keeps open.
        (self._landmark,) = opening.lock_files.values()
        return journal

    def _close_without_sync(self) -> None:
        super()._close_without_sync()
        self._landmark.close()

    def _abandon(self) -> None:
        super()._abandon()
        self._landmark.close()

    def _check(self) -> None:
        super()._check()
        self._parts.location.check()

    def append(self, payload: bytes) -> NoReturn:
        raise read_only_error(repr(self._path))

    def append_many(self, payloads: Sequence[bytes]) -> NoReturn:
        raise read_only_error(repr(self._path))

    def cursor(self, name: str, start: int | None = None) -> NoReturn:
        raise read_only_error(repr(self._path))
