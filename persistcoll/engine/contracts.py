"""What a store is: the Protocol that containers use, and the laws that every store obeys.

A store keeps records of bytes. It never blocks and never waits for an item or for room: each call
is one short atomic operation that answers now. It may be called from any thread.

=====  =============================================================================================
S1     An operation that raised or was cut short by a crash happened wholly or not at all.
S2     What returned is durable, at the level that the store was opened with.
S3     ``take`` calls ``decode`` at most once, before the removal is final; if ``decode`` raises, the
       record is where it was. ``claims`` tells what was claimed, whatever came out of the call; after
       ``release`` it is where it was, and a claim that is not in force any more releases nothing.
S4     Records come in order of their ids, and ids grow and are never used twice, not even for a
       record that is gone. A record given back returns to its place.
S5     One record is never in the hands of two takers.
S6     An append never makes ``count()`` exceed ``capacity``, whoever else appends.
S7     Stores with different names do not see each other.
S8     Closing and opening again changes nothing, except that what was claimed is ready again; in a table
       dead, where it was claimed too often, and claimed still, where nobody resumes by himself.
S9     After ``close`` every call raises ``ClosedError``, except ``close``.
S10    A forked child can use the store, and never disturbs its parent.
J1     After a crash a journal is a prefix of what was appended, and contains every append that
       returned.
J2     Nothing ever appears behind a reader.
J3     A cursor's commit is atomic and only moves forward; rewinding is a verb of its own.
J4     Trimming never removes what a cursor still needs.
T1     A record of a table goes from ready or delayed to claimed, and from claimed to gone, done,
       failed, dead, delayed or ready; what is done, failed or dead is only ever removed.
T2     A claim that was lost (to the end of its lease, or to somebody who gave it back) can do nothing
       any more: ``StaleClaimError``.
T3     What a lease that ran out, or a holder that died, had claimed is ready again; what a living one
       holds is not.
T4     A key is refused while a record of it is ready, delayed or claimed, and free after.
M1     A mapping keeps its pairs in the order in which their keys came; a new value keeps the place and
       the name. No iteration gives a key twice, or misses one that is there all the while.
M2     What a mapping's transaction does happens wholly or not at all, it sees what it did itself, and
       nobody else writes meanwhile.
M3     Nothing that has expired is ever seen.
=====  =============================================================================================

Tests carry these numbers in their names. :mod:`persistcoll.testing` has a function for each one: of stores
(S, J) in ``laws``, of tables (S, T) in ``table_laws``, of mappings (M) in ``mapping_laws``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol, TypeVar

from persistcoll.engine.records import Entry, Record, State, Stats

__all__ = ["MAX_POLL_INTERVAL", "Claim", "Pair", "PairStore", "QueueStore", "RecordStore", "Select"]

T = TypeVar("T")
MAX_POLL_INTERVAL = 0.005
"""Seconds between two looks at a store that is cheap to ask."""
Claim = tuple[int, Any]
"""The id of a record, and what tells this claim of it from every other one, as its store says."""


class Select(NamedTuple):
    """Which ready record to claim, in place of the next one."""

    id: int
    after: bool = False
    """Whether to claim the one that comes after that id, and the first one after the last."""


class QueueStore(Protocol):
    """A first-in, first-out store of bytes in which a taken record stays until acknowledged.
    A record is *ready*, then *claimed* by a ``take``, then gone by ``ack`` or ready again by
    ``nack``. All counts are exact at the moment of the call, across threads and processes.

    A call may come from a signal handler or a destructor within another call of the same thread. It works
    where the thread holds no lock of the store; otherwise it raises ``StorageError`` before anything is
    stored. ``count``, ``peek`` and ``close`` never wait for their own thread.

    A ``deadline`` (by ``time.monotonic()``) bounds the wait for another caller's open transaction, and for
    nothing else, because the short turns of ordinary writers always end. After it the call raises
    ``LockedError``. ``None``: the time that the store was opened with.

    :ivar max_poll_interval: how many seconds a waiter lets pass between two calls of :meth:`change_token`, at
        most, so that they cost well under one per cent of a core.
    """

    max_poll_interval: float = MAX_POLL_INTERVAL

    def append(self, payload: bytes, capacity: int = 0, *, deadline: float | None = None) -> int:
        """Store ``payload`` behind all others and return its id.

        :param capacity: raise ``Full`` if ``count()`` is not below it; 0 means without bound.
        """

    def append_many(
        self, payloads: Sequence[bytes], capacity: int = 0, *, deadline: float | None = None
    ) -> range:
        """Store them all, in order, or none; return their ids. ``Full`` unless all of them fit."""

    def take(
        self,
        decode: Callable[[Record], T],
        acknowledge: bool = False,
        *,
        claims: list[Claim] | None = None,
        deadline: float | None = None,
    ) -> T:
        """Claim the first ready record and return ``decode(record)``; ``Empty`` if there is none.

        :param acknowledge: acknowledge it in the same atomic step.
        :param claims: what is claimed is appended to it in the same atomic step. So it tells a caller that is
            interrupted (``KeyboardInterrupt``) what there is to :meth:`release`.
        """

    def take_many(
        self,
        limit: int,
        decode: Callable[[Record], T],
        acknowledge: bool = False,
        *,
        claims: list[Claim] | None = None,
        deadline: float | None = None,
    ) -> list[T]:
        """Claim up to ``limit`` ready records in one step; ``Empty`` if there is none.

        If ``decode`` raises at the first one, that is raised; at a later one, those before it are
        returned and it stays ready.
        """

    def ack(self, ids: Sequence[int]) -> None:
        """Remove these claimed records for good. ``NotClaimedError`` for any other id."""

    def nack(self, id: int) -> int | None:
        """Make a claimed record ready again, in its place. ``NotClaimedError`` for any other id."""

    def release(self, claims: Sequence[Claim]) -> int:
        """Make ready again, in its place and at once, what these claims hold. A claim that is not in force
        any more is passed over. In a table the attempt stays counted, because its number tells one claim from
        the next, but no back-off applies and no record becomes dead.

        :return: how many records became ready.
        """

    def peek(self, decode: Callable[[Record], T]) -> T:
        """``decode`` of what the next ``take`` would claim; ``Empty`` if there is none."""

    def remove(self, id: int | None = None) -> int | None:
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

    def is_empty(self) -> bool:
        """Whether no record is ready. It never counts, because on a server that would look at each record."""
        return not self.count()

    def has_unfinished(self) -> bool:
        """Whether a record is ready or claimed. It never counts, as :meth:`is_empty`."""
        return self.unfinished() > 0

    def change_token(self) -> object:
        """Differs from an earlier one when another process has changed something since."""

    def stats(self) -> Stats:
        """The numbers of this moment."""

    def after_fork_in_child(self) -> None:
        """In a forked child, before anything else: let go of what is the parent's, write nothing.

        The next call opens the store anew; what the parent claimed is not claimed here.
        """

    def close(self) -> None:
        """Let go of everything. What is claimed stays stored. Idempotent."""


class RecordStore(QueueStore, Protocol):
    """A store of records with states, made with a :class:`~persistcoll.engine.records.Discipline` and a
    :class:`~persistcoll.engine.records.ClaimPolicy`.

    *Ready*, and what ``count`` counts, is also what was delayed and is due, and what was claimed with a
    lease that ran out. A claim that no lease ends is held until its store is closed or its process dies.
    What ``ack``, ``fail`` and ``nack`` are given must have been claimed by this very store:
    ``NotClaimedError`` for what never was or is finished, ``StaleClaimError`` for a claim that was lost.
    """

    def put(
        self, entries: Sequence[Entry], capacity: int = 0, *, deadline: float | None = None
    ) -> list[int | None]:
        """Store them all, in order, or none (``Full``); ``None`` in place of an id for an entry whose
        key is in force, which is not stored and needs no room.
        """

    def take(
        self,
        decode: Callable[[Record], T],
        acknowledge: bool = False,
        id: int | None = None,
        following: bool = False,
        *,
        claims: list[Claim] | None = None,
        deadline: float | None = None,
    ) -> T:
        """As in a :class:`QueueStore`; with an ``id`` that ready record, or, ``following``, the ready record
        that comes after that id in the order of taking (by priority: of ids).
        """

    def fail(self, ids: Sequence[int]) -> None:
        """Set claimed records aside as failed."""

    def nack(self, id: int, delay: float | None = None, to_back: bool = False) -> int:
        """Make a claimed record ready again; dead, if it was claimed too often.

        :param delay: seconds until then; ``None``: as the table's back-off says.
        :param to_back: as a record with a new id that has had as many attempts: first in, first out it
            comes behind all others, last in, first out before them.
        :return: its id.
        """

    def update(self, id: int, payload: bytes, key: bytes | None = None) -> bool:
        """Another payload for a record that is ready, delayed or claimed by whomever.

        :return: whether there is one. ``DuplicateError`` if the new key is in force for another record.
        """

    def has_active_key(self, key: bytes) -> bool:
        """Whether a record of this key is ready, delayed or claimed."""

    def reclaim(self) -> int:
        """Make ready what holders that are dead had claimed; return how many records."""

    def scan(self, *states: State) -> Iterator[tuple[State, Record]]:
        """The records in these states (none named: in any), in the order of their ids."""

    def purge(self, state: State, keep: int = 0, limit: int | None = None) -> int:
        """Remove what is done, failed or dead, the oldest first.

        :param keep: how many of the newest stay.
        :param limit: how many to remove at most.
        :return: how many were removed.
        """

    def shrink(self) -> None:
        """Give unused room back to the file system."""


class Pair(NamedTuple):
    """A key and its value, as a mapping gives them."""

    key: bytes
    """What decides which keys are equal, and where they stand in a :meth:`PairStore.scan`."""
    original_key: bytes
    """The key as it was first given, in whatever form its owner reads."""
    value: bytes
    """Empty where values were not asked for."""


class PairStore(Protocol):
    """A dict of bytes. Each call is one short atomic operation, from any thread.

    A key that has expired is not there: set again, it is a new one.
    """

    def get(self, key: bytes) -> bytes | None:
        """The value of ``key``; ``None`` if it is not there."""

    def get_many(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """The values of those of the keys that are there, at one moment."""

    def contains(self, key: bytes) -> bool:
        """Whether ``key`` is there."""

    def set_many(self, items: Sequence[tuple[bytes, bytes, bytes]], expires: float | None = None) -> None:
        """Store all of them, in order, or none: key, name, value. The name of a key that is there stays.

        :param expires: seconds from now until they are gone; ``None``: never.
        """

    def change(self, key: bytes, name: bytes, change: Callable[[bytes | None], tuple[bytes | None, T]]) -> T:
        """Give ``change`` the value of ``key``, or ``None``, and store the one that it returns (``None``:
        remove the key; the same object: leave it) in one step; return its other result.

        If it raises, nothing happened. It must not call this mapping. A key that is there expires when it
        would have; a new one never does.
        """

    def remove(self, key: bytes) -> bool:
        """Remove ``key``, its value unread, so that a damaged one can be removed; whether it was there."""

    def pop(self, decode: Callable[[Pair], T], last: bool = True) -> T:
        """Remove the last (or first) pair and return ``decode`` of it; ``KeyError`` if there is none.
        If ``decode`` raises, it stays. It must not call this mapping.
        """

    def clear(self) -> int:
        """Remove every pair; return how many there were."""

    def count(self) -> int:
        """How many pairs there are."""

    def pairs(self, reverse: bool = False, values: bool = True) -> Iterator[Pair]:
        """The pairs in their order. Whoever changes the mapping meanwhile, no key comes twice, every
        key that is there all the while comes, one set after the call does not, and a value is one that it had
        since the call. In memory there are never more than some hundred pairs or a few megabytes.
        """

    def scan(self, start: bytes, stop: bytes, reverse: bool = False, values: bool = True) -> Iterator[Pair]:
        """The pairs with ``start <= key < stop``, in the order of their keys; as with :meth:`pairs`, but a
        key set meanwhile may come.
        """

    def transaction(self) -> AbstractContextManager[None]:
        """What this thread does within happens at the end of the block; not at all if the block raises.
        One within another is part of it. Other threads' and processes' changes wait meanwhile.
        """

    def change_token(self) -> object:
        """Differs from an earlier one when another process has changed something since."""

    def stats(self) -> Stats:
        """``ready``: how many pairs; ``bytes``: what their file occupies."""

    def after_fork_in_child(self) -> None:
        """In a forked child, before anything else: let go of what is the parent's, write nothing."""

    def close(self) -> None:
        """Let go of everything. Idempotent."""
