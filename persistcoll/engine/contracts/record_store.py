"""The contract of a record store: a queue store whose records have states, keys and an order of their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from persistcoll.engine.contracts.queue_store import QueueStore
from persistcoll.engine.records import Entry, Record, State

__all__ = ["RecordStore"]


class RecordStore(QueueStore, Protocol):
    """Keep records with states.

    It is made with a :class:`~persistcoll.engine.records.Discipline` and a
    :class:`~persistcoll.engine.records.ClaimPolicy`. A record is *ready* as well, and ``count`` counts it, if
    it was delayed and the delay is over, or if it was claimed and the lease is over. A claim without a lease
    lasts until its store is closed or its process dies. The record after an id is the next one in the
    discipline's order (by priority: in the order of ids), and none comes after the last. ``ack``, ``fail``
    and ``nack`` work on what this very store has claimed: otherwise they raise ``NotClaimedError`` for a
    record that it never claimed or that it settled, and ``StaleClaimError`` for a claim that was lost.

    Every store takes a priority that is a finite number which a float holds exactly, and a name of at most
    255 bytes of UTF-8. A store may refuse others.
    """

    def put(
        self, entries: Sequence[Entry], capacity: int = 0, *, deadline: float | None = None
    ) -> list[int | None]:
        """Store all entries, in order, or none; return their ids.

        An entry whose key is active is not stored, needs no room, and has ``None`` in place of an id.

        :raise Full: not all of the others fit.
        """

    def fail(self, ids: Sequence[int]) -> None:
        """Make claimed records failed, all or none."""

    def nack(self, id: int, delay: float | None = None, to_back: bool = False) -> int:
        """Make a claimed record ready again, or dead if it was claimed too often.

        :param delay: seconds until it is ready; ``None``: as the policy's back-off says.
        :param to_back: give it a new id, with as many attempts: first in, first out, it comes after all
            others; last in, first out, before them.
        :return: its id.
        """

    def update(self, id: int, payload: bytes, key: bytes | None = None) -> bool:
        """Give a record that is ready, delayed or claimed by any store another payload and key.

        :return: whether there is one.
        :raise DuplicateError: the new key is active for another record.
        """

    def has_active_key(self, key: bytes) -> bool:
        """Say whether a record of this key is ready, delayed or claimed."""

    def reclaim(self) -> int:
        """Make ready what dead holders had claimed, or dead if it was claimed too often.

        It looks at every holder now, however short ago the store looked by itself.

        :return: how many records.
        """

    def scan(self, *states: State) -> Iterator[tuple[State, Record]]:
        """Iterate over the records in these states (none named: in any), in the order of their ids."""

    def purge(self, state: State, keep: int = 0, limit: int | None = None) -> int:
        """Remove done, failed or dead records, the oldest first.

        :param keep: how many of the newest stay.
        :param limit: how many to remove at most.
        :return: how many were removed.
        :raise ValueError: records in this state are never purged.
        """

    def shrink(self) -> None:
        """Give unused room back to the file system. A store without one does nothing."""
