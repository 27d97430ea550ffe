"""The contract of a queue store: bytes that are put, claimed, and acked or given back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

from persistcoll.engine.contracts.capabilities import StoreCapabilities
from persistcoll.engine.records import Record, Stats

__all__ = ["MAX_POLL_INTERVAL", "Claim", "QueueStore", "Select"]

T = TypeVar("T")
MAX_POLL_INTERVAL = 0.005
"""Seconds between two looks at a store that is cheap to ask."""
Claim = tuple[int, Any]
"""The id of a record, and what the store tells this claim of it by from every other one."""


class Select(NamedTuple):
    """Say which ready record to claim, in place of the next one."""

    id: int
    after: bool = False
    """Whether to claim the record that comes after that id, and not the one of that id."""


class QueueStore(Protocol):
    """Keep records of bytes, first in, first out.

    A record is *ready*; ``claim`` makes it *claimed*; ``ack`` removes it, and ``nack`` or ``release`` makes
    it ready again. All counts are exact at the moment of the call, across threads and processes, but a store
    may have to look at each record to count.

    A call may come from a signal handler or a destructor within another call of the same thread. It works
    where the thread holds no lock of the store; otherwise it raises ``StorageError`` before anything is
    stored. ``count``, ``peek`` and ``close`` never wait for their own thread.

    A ``deadline`` (by ``time.monotonic()``) bounds the waits for another caller's open transaction, for a
    connection and for a lock of the database, and no other wait, because the short turns of ordinary writers
    always end. After it the call raises ``LockedError`` or ``BackendUnavailableError``. ``None``, and where a
    call takes no deadline: the time that the store was opened with.

    A holder is *dead* as soon as it has closed, and when its process died and the store noticed; a store that
    notices it by missing heartbeats takes a holder for dead that was not heard of for its patience.

    :ivar capabilities: what this store promises beyond the contract.
    :ivar max_poll_interval: how many seconds a waiter lets pass between two calls of :meth:`change_token`, at
        most, so that they cost well under one per cent of a core.
    """

    capabilities: StoreCapabilities = StoreCapabilities()
    max_poll_interval: float = MAX_POLL_INTERVAL

    def append(self, payload: bytes, capacity: int = 0, *, deadline: float | None = None) -> int:
        """Store ``payload`` after all others and return its id.

        :param capacity: how many records may be ready afterwards; 0: without bound.
        :raise Full: they would be more.
        """

    def append_many(
        self, payloads: Sequence[bytes], capacity: int = 0, *, deadline: float | None = None
    ) -> Sequence[int]:
        """Store all payloads, in order, or none; return their ids, which grow and may have gaps.

        :raise Full: not all of them fit.
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

        :param select: which one; ``None``: the next. Only record stores know another.
        :param claims: the claim is appended to it in the same atomic step, so that a caller that is
            interrupted (``KeyboardInterrupt``) knows what to :meth:`release`.
        :raise Empty: there is no such ready record. Its ``next_at``, where it has one, is the time (by
            ``time.monotonic()``) at which one becomes ready by itself.
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
        """Claim up to ``limit`` ready records in one atomic step, as :meth:`claim`.

        If ``decode`` raises at the first one, the call raises that; at a later one, the call returns those
        before it, and the record stays ready.
        """

    def pop(
        self, decode: Callable[[Record], T], select: Select | None = None, *, deadline: float | None = None
    ) -> T:
        """Claim a ready record as :meth:`claim` does, and ack it in the same atomic step."""

    def pop_many(
        self, limit: int, decode: Callable[[Record], T], *, deadline: float | None = None
    ) -> list[T]:
        """Claim up to ``limit`` ready records as :meth:`claim_many` does, and ack them in the same step."""

    def ack(self, ids: Sequence[int]) -> None:
        """Remove these claimed records for good, all or none.

        :raise NotClaimedError: this store has not claimed one of them.
        """

    def nack(self, id: int) -> int | None:
        """Make a claimed record ready again, in its place.

        :raise NotClaimedError: this store has not claimed it.
        """

    def release(self, claims: Sequence[Claim]) -> int:
        """Make ready again, at once and in its place, each record that these claims hold.

        A claim that ended is passed over. In a record store the attempt stays counted, because its number
        tells one claim from the next, but no back-off applies and no record becomes dead.

        :return: how many records became ready.
        """

    def peek(self, decode: Callable[[Record], T]) -> T:
        """Return ``decode`` of the next ready record, which stays ready.

        :raise Empty: no record is ready.
        """

    def remove(self, id: int | None = None) -> int | None:
        """Remove a ready record unseen, the next one without ``id``.

        :return: its id, or ``None`` if there is no such ready record.
        """

    def clear(self) -> int:
        """Remove every ready record; return how many there were."""

    def records(self) -> Iterator[Record]:
        """Iterate over the records that are ready at this moment, in the order of their ids."""

    def count(self) -> int:
        """Count the ready records."""

    def claimed(self) -> int:
        """Count the claimed records."""

    def unfinished(self) -> int:
        """Count the records that are ready or claimed, at one moment."""

    def is_empty(self) -> bool:
        """Say whether no record is ready.

        A store overrides this where it counts by looking at each record.
        """
        return not self.count()

    def has_unfinished(self) -> bool:
        """Say whether a record is ready or claimed; to be overridden as :meth:`is_empty`."""
        return self.unfinished() > 0

    def change_token(self) -> object:
        """Return an object that differs from an earlier one if another process changed something since.

        :raise BackendUnavailableError: the store cannot be reached now; a waiter asks again.
        """

    def joined(self, connection: Any) -> QueueStore:
        """Return this store bound to the transaction that the caller has open on ``connection``.

        What its methods do is part of that transaction: the caller commits it or rolls it back, and the store
        learns of neither. They never wait for an item, retry nothing and wake no waiter. A claim that one of
        them settles stays known to this store, which raises ``StaleClaimError`` for it after the commit.

        :raise ValueError: this store joins no transactions.
        """
        raise ValueError(f"{type(self).__name__} joins no transactions of a caller")

    def stats(self) -> Stats:
        """Return the numbers of this moment."""

    def after_fork_in_child(self) -> None:
        """Let go of what is the parent's, and write nothing; the first call in a forked child.

        The next call opens the store anew. What the parent claimed is not claimed here.
        """

    def close(self) -> None:
        """Release the claims of this store and let go of everything. Idempotent."""
