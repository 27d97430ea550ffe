"""What a store is: the Protocol that containers use, and the laws that every store obeys.

A store keeps records of bytes. It never blocks and never waits for an item or for room: each call
is one short atomic operation that answers now. It may be called from any thread.

=====  =============================================================================================
S1     An operation that raised or was cut short by a crash happened wholly or not at all.
S2     What returned is durable, at the level that the store was opened with.
S3     ``take`` calls ``use`` at most once, before the removal is final; if ``use`` raises, the
       record is where it was.
S4     Records come in order of their ids, and ids grow and are never used twice, not even for a
       record that is gone. A record given back returns to its place.
S5     One record is never in the hands of two takers.
S6     An append never makes ``count()`` exceed ``capacity``, whoever else appends.
S7     Stores with different names do not see each other.
S8     Closing and opening again changes nothing, except that what was claimed is ready again.
S9     After ``close`` every call raises ``ClosedError``, except ``close``.
S10    A forked child can use the store, and never disturbs its parent.
J1     After a crash a journal is a prefix of what was appended, and contains every append that
       returned.
J2     Nothing ever appears behind a reader.
J3     A cursor's commit is atomic and only moves forward; rewinding is a verb of its own.
J4     Trimming never removes what a cursor still needs.
=====  =============================================================================================

Tests carry these numbers in their names; ``persistcoll.testing.laws`` has one function for each
law that a single process can check.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

from persistcoll.engine.values import Record, Stats

__all__ = ["Store"]

T = TypeVar("T")


class Store(Protocol):
    """A first-in, first-out store of bytes in which a taken record stays until acknowledged.
    A record is *ready*, then *claimed* by a ``take``, then gone by ``acknowledge`` or ready again by
    ``give_back``. All counts are exact at the moment of the call, across threads and processes.
    """

    def append(self, payload: bytes, capacity: int = 0) -> int:
        """Store ``payload`` behind all others and return its id.

        :param capacity: raise ``Full`` if ``count()`` is not below it; 0 means without bound.
        """

    def append_many(self, payloads: Sequence[bytes], capacity: int = 0) -> range:
        """Store them all, in order, or none; return their ids. ``Full`` unless all of them fit."""

    def take(self, use: Callable[[Record], T], acknowledge: bool = False) -> T:
        """Claim the first ready record and return ``use(record)``; ``Empty`` if there is none.

        :param acknowledge: acknowledge it in the same atomic step.
        """

    def take_many(self, limit: int, use: Callable[[Record], T], acknowledge: bool = False) -> list[T]:
        """Claim up to ``limit`` ready records in one step; ``Empty`` if there is none.

        If ``use`` raises at the first one, that is raised; at a later one, those before it are
        returned and it stays ready.
        """

    def acknowledge(self, ids: Sequence[int]) -> None:
        """Remove these claimed records for good. ``NotClaimedError`` for any other id."""

    def give_back(self, id: int) -> None:
        """Make a claimed record ready again, in its place. ``NotClaimedError`` for any other id."""

    def peek(self, use: Callable[[Record], T]) -> T:
        """``use`` of what the next ``take`` would claim; ``Empty`` if there is none."""

    def discard(self, id: int | None = None) -> int | None:
        """Remove a ready record unseen, the first one without ``id``.

        :return: its id, or ``None`` if there is no such ready record.
        """

    def clear(self) -> int:
        """Remove every ready record; return how many there were."""

    def records(self) -> Iterator[Record]:
        """The ready records of this moment, in order, without taking them."""

    def count(self) -> int:
        """How many records are ready."""

    def claimed(self) -> int:
        """How many records are claimed."""

    def unfinished(self) -> int:
        """How many records are ready or claimed, at one moment."""

    def version(self) -> object:
        """Differs from an earlier one when another process has changed something since."""

    def stats(self) -> Stats:
        """The numbers of this moment."""

    def abandon(self) -> None:
        """In a forked child, before anything else: let go of what is the parent's, write nothing.

        The next call opens the store anew; what the parent claimed is not claimed here.
        """

    def close(self) -> None:
        """Let go of everything. What is claimed stays stored. Idempotent."""
