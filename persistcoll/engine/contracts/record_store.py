"""The contract of a record store: a queue store whose records have states, keys and an order of their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from persistcoll.engine.contracts.queue_store import QueueStore
from persistcoll.engine.records import NACKED, Entry, Record, State

__all__ = ["RecordStore"]


class RecordStore(QueueStore, Protocol):
    """Keep records with states.

    A store has a :class:`~persistcoll.engine.records.Discipline` and a
    :class:`~persistcoll.engine.records.ClaimPolicy`. A delayed record whose delay is over is *ready* as well,
    and so is a claimed record whose lease is over, and ``count`` counts both. A claim without a lease lasts
    until its store is closed or its process dies. The record after an id is the next one in the discipline's
    order (by priority: in the order of ids), and no record comes after the last one. ``ack``, ``fail``,
    ``nack`` and ``nack_many`` settle only claims of this store object. They raise ``NotClaimedError`` for a
    record that the store never claimed or has already settled, and ``StaleClaimError`` for a claim that was
    lost. ``ids`` of the error names these records.

    A record has the reason for which its last claim that was not acked ended. The consumer gives it to
    ``fail`` and ``nack``; otherwise it is ``LEASE_RAN_OUT``, ``HOLDER_DIED`` or ``HOLDER_CLOSED`` of
    ``persistcoll.engine.records``. ``release`` leaves it as it is.

    Every store accepts each priority that is a finite number which a float represents exactly, and each name
    of at most 255 bytes of UTF-8. A store may refuse other values.
    """

    def put(
        self, entries: Sequence[Entry], capacity: int = 0, *, deadline: float | None = None
    ) -> list[int | None]:
        """Store all entries, in order, or none, and return their ids.

        In a unique store an entry whose key is active is not stored. It needs no room, and the list has
        ``None`` in the place of its id. An entry with a delay needs no room either.

        :raise Full: there would be more than ``capacity`` ready records.
        """

    def fail(self, ids: Sequence[int], reason: str | None = None) -> None:
        """Make claimed records failed, all or none.

        :param reason: ``None``: there is none, and an earlier one is forgotten.
        """

    def nack(self, id: int, delay: float | None = None, to_back: bool = False, reason: str = NACKED) -> int:
        """Make a claimed record ready again, or dead if it has no attempts left.

        :param delay: the seconds until the record is ready; ``None``: the delay of the policy's back-off.
        :param to_back: whether the record gets a new id. Its attempts stay counted. In the order first in,
            first out it then comes after all others; last in, first out, before them.
        :return: the id of the record.
        """

    def nack_many(self, ids: Sequence[int], reason: str = NACKED) -> None:
        """Make claimed records ready again in their places, or dead, all or none.

        Each of them is delayed by the policy's back-off.
        """

    def requeue(self, id: int | None = None) -> int:
        """Make failed and dead records ready again, in their places, without attempts and with their reasons.

        In a unique store a record whose key is active stays as it is, and of several with one key the one
        with the lowest id becomes ready. A requeued record needs no room.

        :param id: the id of the record; ``None``: all of them.
        :return: how many became ready.
        :raise DuplicateError: the key of the record with this id is active.
        """

    def update(self, id: int, payload: bytes, key: bytes | None = None) -> bool:
        """Replace payload and key of a record that is ready, delayed, or claimed by any store.

        :return: whether there is such a record.
        :raise DuplicateError: the new key is active for another record.
        """

    def has_active_key(self, key: bytes) -> bool:
        """Tell whether a record of this key is ready, delayed or claimed."""

    def reclaim(self) -> int:
        """Make the records of dead holders ready again, or dead if they have no attempts left.

        It checks every holder, however recently the store has checked them by itself.

        :return: how many records it has changed.
        """

    def scan(self, *states: State) -> Iterator[tuple[State, Record]]:
        """Iterate over the records in these states, in the order of their ids. No state means all states."""

    def purge(self, state: State, keep: int = 0, limit: int | None = None) -> int:
        """Remove done, failed or dead records, the oldest first.

        :param keep: how many of the newest records stay.
        :param limit: the greatest number of records to remove; ``None``: no limit.
        :return: how many records were removed.
        :raise ValueError: records in this state are never purged.
        """

    def shrink(self) -> None:
        """Return unused space to the file system. A store without a file does nothing."""
