"""The contract of a queue store: bytes that are put, claimed, and acked or released."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

from persistcoll.engine.contracts.store import Store
from persistcoll.engine.records import Record, Stats

__all__ = ["Claim", "QueueStore", "Select"]

T = TypeVar("T")
Claim = tuple[int, Any]
"""The id of a record, and a token by which the store distinguishes this claim from every other one."""


class Select(NamedTuple):
    """The choice of a ready record other than the next one."""

    id: int
    after: bool = False
    """Whether to claim the record after ``id``. Otherwise the choice is the record with this id."""


class QueueStore(Store, Protocol):
    """Keep records of bytes, first in, first out.

    A record is *ready*; ``claim`` makes it *claimed*; ``ack`` removes it, and ``nack`` or ``release`` makes
    it ready again. All counts are exact at the time of the call, across threads and processes. A store may
    have to read each record to count.

    ``count``, ``peek`` and ``close`` never wait for a lock that their own thread holds.
    """

    def append(self, payload: bytes, capacity: int = 0, *, deadline: float | None = None) -> int:
        """Store ``payload`` after all others and return its id.

        :param capacity: the greatest number of ready records after the call; 0: no limit.
        :raise Full: there would be more ready records.
        """

    def append_many(
        self, payloads: Sequence[bytes], capacity: int = 0, *, deadline: float | None = None
    ) -> Sequence[int]:
        """Store all payloads, in order, or none, and return their ids, which grow and may have gaps.

        :param capacity: the greatest number of ready records after the call; 0: no limit.
        :raise Full: there would be more ready records.
        """

    def claim(
        self,
        decode: Callable[[Record], T],
        select: Select | None = None,
        *,
        claims: list[Claim] | None = None,
        deadline: float | None = None,
    ) -> T:
        """Claim a ready record and return ``decode(record)``.

        :param select: which record to claim; ``None``: the next one. Only record stores support another
            choice.
        :param claims: a list to which the store appends the claim in the same atomic step, so that a caller
            that is interrupted (``KeyboardInterrupt``) knows what to :meth:`release`.
        :raise Empty: there is no such ready record. If the error has an attribute ``next_at``, a record
            becomes ready by itself at that time (by ``time.monotonic()``).
        :raise ValueError: this store cannot select.
        """

    def claim_many(
        self,
        limit: int,
        decode: Callable[[Record], T],
        *,
        claims: list[Claim] | None = None,
        deadline: float | None = None,
    ) -> list[T]:
        """Claim up to ``limit`` ready records in one atomic step, as :meth:`claim` does.

        If ``decode`` raises at the first record, the call raises the same error. If it raises at a later
        record, the call returns the results before it, and that record stays ready.
        """

    def pop(
        self, decode: Callable[[Record], T], select: Select | None = None, *, deadline: float | None = None
    ) -> T:
        """Claim a ready record as :meth:`claim` does, and ack it in the same atomic step."""

    def pop_many(
        self, limit: int, decode: Callable[[Record], T], *, deadline: float | None = None
    ) -> list[T]:
        """Claim up to ``limit`` records as :meth:`claim_many` does, and ack them in the same atomic step."""

    def ack(self, ids: Sequence[int]) -> None:
        """Remove these claimed records for good, all or none.

        :raise NotClaimedError: this store has not claimed one of them. ``ids`` of the error names those.
        """

    def nack(self, id: int) -> int | None:
        """Make a claimed record ready again, in its place.

        :raise NotClaimedError: this store has not claimed it.
        """

    def nack_many(self, ids: Sequence[int]) -> None:
        """Make these claimed records ready again in one atomic step, all or none, as :meth:`nack` does.

        :raise NotClaimedError: this store has not claimed one of them. ``ids`` of the error names those.
        """

    def release(self, claims: Sequence[Claim]) -> int:
        """Make each record of these claims ready again, at once and in its place.

        The store ignores a claim that ended. In a record store the attempt stays counted, no back-off
        applies, and no record becomes dead.

        :return: how many records became ready.
        """

    def peek(self, decode: Callable[[Record], T]) -> T:
        """Return ``decode`` of the next ready record, which stays ready.

        :raise Empty: no record is ready.
        """

    def remove(self, id: int | None = None) -> int | None:
        """Remove a ready record without decoding it.

        :param id: the id of the record; ``None``: the next one.
        :return: the id of the removed record, or ``None`` if there is no such ready record.
        """

    def clear(self) -> int:
        """Remove every ready record, and return how many there were."""

    def records(self) -> Iterator[Record]:
        """Iterate over the records that are ready at the time of the call, in the order of their ids."""

    def count(self) -> int:
        """Count the ready records."""

    def claimed(self) -> int:
        """Count the claimed records."""

    def unfinished(self) -> int:
        """Count the records that are ready or claimed, from one snapshot."""

    def is_empty(self) -> bool:
        """Tell whether no record is ready.

        A store overrides this method if its :meth:`count` reads each record.
        """
        return not self.count()

    def has_unfinished(self) -> bool:
        """Tell whether a record is ready or claimed. A store overrides it as it does :meth:`is_empty`."""
        return self.unfinished() > 0

    def stats(self) -> Stats:
        """Return the current numbers of the store."""
