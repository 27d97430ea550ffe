"""What a queue does beside waiting: claims in flight, counts and wake-ups, for threads and tasks alike.

Every method answers at once. :mod:`persistcoll.engine.blocking` adds the waits of threads. The core knows no
thread: a :class:`~persistcoll.engine.in_flight.Consumer` stands for the thread or task that gets items.
"""

from __future__ import annotations

import copy
import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from persistcoll.engine.contracts import Claim, QueueStore, Select
from persistcoll.engine.event_count import EventCount
from persistcoll.engine.in_flight import ClaimList, Consumer, InFlight
from persistcoll.engine.records import Record
from persistcoll.errors import ClaimError, Empty, Full, ShutDown, StaleClaimError, StorageError

__all__ = ["Decode", "QueueCore"]

R = TypeVar("R")
T = TypeVar("T")
Decode = Callable[[Record], tuple[Any, T]]
"""Makes of a record what stands for it in a claim list (its id, where nothing else is said), and the item."""


class QueueCore:
    """The standard library's queue over a store of bytes, without its waits.

    A subclass overrides the methods under "Hooks", and sets the attributes ``_append``, ``_append_many`` and
    ``_ack``, where what is put, or what stands for a claim, is not what the store takes.

    An exception may come out of a signal handler after any call. What was put by then is stored, or not. What
    was claimed by then no consumer has got, so the core releases it. A wake-up too many costs one look.

    ``_mutex`` guards ``_delivered_unfinished``, and ``_popping`` where an entry moves from one to the other.
    It is re-entrant, because a signal handler may come in while this thread holds it; no call is made under
    it. The event counts and the claims in flight guard themselves.

    :ivar maxsize: a put raises ``Full`` while so many items are ready; 0 means without bound.
    :ivar autosave: a get removes the item at once; otherwise ``task_done`` acknowledges it.
    :ivar not_empty: happens when an item becomes ready.
    :ivar any_put: as ``not_empty``, for those who wait for a specific item.
    :ivar not_full: happens when there is room.
    :ivar all_done: happens when an item is finished.
    """

    def __init__(self, store: QueueStore, maxsize: int, autosave: bool) -> None:
        self.maxsize = maxsize
        self.autosave = autosave
        self.is_shutdown = False
        self.is_immediate = False
        self._bind(store)
        self._reset()

    def _bind(self, store: QueueStore) -> None:
        """Use this store."""
        self.store = store
        # Hooks, too: bound here, because a method that calls the store's would be one more call in each put
        # and each acknowledgement of a file queue.
        self._append: Callable[..., Any] = store.append
        self._append_many: Callable[..., Any] = store.append_many
        self._ack: Callable[[Sequence[Any]], None] = store.ack

    def _reset(self) -> None:
        interval = self.store.max_poll_interval
        self.not_empty = EventCount(interval)
        self.any_put = EventCount(interval)
        self.not_full = EventCount(interval)
        self.all_done = EventCount(interval)
        self.in_flight = InFlight(self._new_claim_list)
        self._mutex = threading.RLock()
        # Releases that failed, because the disk was full or the thread must not wait: done before a claim.
        self._pending_release: deque[Sequence[Claim]] = deque()
        # With autosave: how many items each pop that runs takes at most, and how many were got for which
        # task_done() was not called yet.
        self._popping: dict[object, int] = {}
        self._delivered_unfinished = 0

    def after_fork(self) -> None:
        """Begin anew in a forked child, in which no thread waits and the store is the parent's."""
        self._reset()
        self.store.after_fork_in_child()

    def joined(self, connection: Any) -> QueueCore:
        """Return a core whose calls are part of the transaction that the caller has open on ``connection``.

        It leaves no trace in this one: an item that it gets is popped, no consumer holds it, and it wakes no
        waiter, because it learns of no commit and of no rollback. The store says what is unfinished.

        :raise ValueError: the store joins no transactions.
        """
        core = copy.copy(self)
        core._bind(self.store.joined(connection))
        core._reset()
        core.autosave = True
        return core

    # Hooks.

    def _nack(self, token: Any) -> None:
        self.store.nack(token)

    def _new_claim_list(self) -> ClaimList:
        return deque()

    _hands_over_as_is = True
    """Whether :meth:`_hand_over` returns what it is given."""

    def _hand_over(self, items: list[Any], consumer: Consumer) -> list[Any]:
        """Return what a consumer is given in place of what ``decode`` made."""
        return items

    def _take_back(self, token: Any) -> None:
        """Undo the hand-over of an item that no consumer has got after all."""

    # put

    def try_put(self, entry: Any, deadline: float | None = None) -> Any:
        """Store one; raise ``Full`` or ``ShutDown``."""
        if self.is_shutdown:
            raise ShutDown
        try:
            if deadline is None:
                id = self._append(entry, self.maxsize)
            else:
                id = self._append(entry, self.maxsize, deadline=deadline)
            if self.not_empty.listeners:
                self.notify_getters()
        except Full:
            raise
        except BaseException:
            self.notify_getters(None)
            raise
        return id

    def try_put_many(self, entries: Sequence[Any], deadline: float | None = None) -> Any:
        """Store all or none; raise ``Full``, ``ShutDown``, or ``ValueError`` where they never fit."""
        if self.is_shutdown:
            raise ShutDown
        if 0 < self.maxsize < len(entries):
            raise ValueError(f"{len(entries)} items never fit a maxsize of {self.maxsize}")
        try:
            ids = self._append_many(entries, self.maxsize, deadline=deadline)
            if self.not_empty.listeners:
                self.notify_getters(len(entries))
        except Full:
            raise
        except BaseException:
            self.notify_getters(None)
            raise
        return ids

    def notify_getters(self, count: int | None = 1) -> None:
        """Tell that so many items became ready; ``None``: perhaps some."""
        if self.not_empty.listeners:
            self.not_empty.notify(count)
            if self.any_put.listeners:
                self.any_put.notify(None)

    # Claiming. A claim is in `claims` from the step on that made it, until it is delivered or released.

    def try_get(
        self,
        decode: Decode[Any],
        consumer: Consumer,
        select: Select | None = None,
        deadline: float | None = None,
    ) -> Any:
        """Claim an item and deliver it, with ``autosave`` pop it; raise ``Empty`` or ``ShutDown``."""
        if self.autosave:
            return self.try_pop(decode, select, deadline)
        if self.is_immediate:
            raise ShutDown
        if self._pending_release:
            self._do_pending_release()
        claims: list[Claim] = []
        token = None
        try:
            # As try_claim() and deliver(), without their calls.
            try:
                if select is None and deadline is None:
                    token, item = self.store.claim(decode, claims=claims)
                else:
                    token, item = self._select(
                        self.store.claim, decode, select, claims=claims, deadline=deadline
                    )
            except Empty:
                if self.is_shutdown:
                    raise ShutDown from None
                raise
            consumer.claims.append(token)
            if self.not_full.listeners:
                self.not_full.notify()
            return item if self._hands_over_as_is else self._hand_over([item], consumer)[0]
        except BaseException:
            if claims:
                self.undo(claims, () if token is None else (token,))
            raise

    def try_claim(
        self,
        decode: Decode[T],
        claims: list[Claim],
        select: Select | None = None,
        deadline: float | None = None,
    ) -> tuple[Any, T]:
        """Claim an item: what stands for it, and the item. :meth:`deliver` or :meth:`undo` must follow.

        :raise Empty: no such item is ready.
        :raise ShutDown: none is ready, and none will be.
        """
        if self.is_immediate:
            raise ShutDown
        if self._pending_release:
            self._do_pending_release()
        try:
            return self._select(  # type: ignore[no-any-return]
                self.store.claim, decode, select, claims=claims, deadline=deadline
            )
        except Empty:
            if self.is_shutdown:
                raise ShutDown from None
            raise

    def _select(
        self, claim: Callable[..., Any], decode: Decode[Any], select: Select | None, **options: Any
    ) -> Any:
        """Claim or pop; after the last item comes the first one."""
        try:
            return claim(decode, select, **options)
        except Empty:
            if select is None or not select.after:
                raise
            return claim(decode, **options)

    def try_claim_many(
        self, limit: int, decode: Decode[T], claims: list[Claim], deadline: float | None = None
    ) -> list[tuple[Any, T]]:
        """Claim up to ``limit`` items, as :meth:`try_claim` does."""
        if self.is_immediate:
            raise ShutDown
        if self._pending_release:
            self._do_pending_release()
        try:
            return self.store.claim_many(limit, decode, claims=claims, deadline=deadline)
        except Empty:
            if self.is_shutdown:
                raise ShutDown from None
            raise

    def deliver(self, tokens: Sequence[Any], items: list[Any], consumer: Consumer) -> list[Any]:
        """Give claimed items to a consumer, for ``task_done`` to acknowledge; return what it is given."""
        consumer.claims.extend(tokens)
        return self.hand_over(items, consumer)

    def hand_over(self, items: list[Any], consumer: Consumer) -> list[Any]:
        """As :meth:`deliver`, but :meth:`settle` follows for each of them."""
        if self.not_full.listeners:
            self.not_full.notify(len(items))
        return self._hand_over(items, consumer)

    def undo(self, claims: list[Claim], tokens: Sequence[Any] = ()) -> None:
        """Release claims whose items no consumer has got: now, or before the next claim."""
        for token in tokens:
            self.in_flight.forget(token)
            self._take_back(token)
        try:
            self.store.release(claims)
        except BaseException:  # the exception that led here is the one to tell
            self._pending_release.append(tuple(claims))
        claims.clear()
        self.settled(None)

    def release_later(self, claims: Sequence[Claim]) -> None:
        """Release claims before the next claim, because this thread must not wait for the store now."""
        self._pending_release.append(tuple(claims))

    def _do_pending_release(self) -> None:
        while self._pending_release:
            try:
                claims = self._pending_release.popleft()
            except IndexError:  # another thread was faster
                return
            try:
                self.store.release(claims)
            except BaseException:
                self._pending_release.append(claims)
                raise
            self.settled(None)

    # Popping, with autosave.

    def try_pop(
        self,
        decode: Decode[Any],
        select: Select | None = None,
        deadline: float | None = None,
        wait: Callable[[Callable[[], Any]], Any] | None = None,
    ) -> Any:
        """Remove an item, which counts as unfinished until ``task_done``; raise ``Empty`` or ``ShutDown``.

        :param wait: calls what it is given again and again, until that does not raise ``Empty``.
        """
        if select is None and deadline is None:
            pop = partial(self.store.pop, decode)
        else:
            pop = partial(self._select, self.store.pop, decode, select, deadline=deadline)
        return self._pop(pop, 1, False, wait)[1]

    def try_pop_many(
        self,
        limit: int,
        decode: Decode[Any],
        deadline: float | None = None,
        wait: Callable[[Callable[[], Any]], Any] | None = None,
    ) -> list[Any]:
        """Remove up to ``limit`` items, as :meth:`try_pop` does."""
        pop = partial(self.store.pop_many, limit, decode, deadline=deadline)
        return [item for _, item in self._pop(pop, limit, True, wait)]

    def _pop(
        self,
        pop: Callable[[], Any],
        most: int,
        many: bool,
        wait: Callable[[Callable[[], Any]], Any] | None,
    ) -> Any:
        """Call ``pop``, which removes up to ``most`` items.

        They count before they are gone from the store, because `join` might otherwise look in between and
        find them in neither place.
        """
        if self.is_immediate:
            raise ShutDown
        if self._pending_release:
            self._do_pending_release()
        call = object()
        delivered = 0
        try:
            if wait is not None:
                taken = wait(partial(self._count_in, call, pop, most))
            else:
                self._popping[call] = most
                try:
                    taken = pop()
                except Empty:
                    if self.is_shutdown:
                        raise ShutDown from None
                    raise
            delivered = len(taken) if many else 1
            with self._mutex:
                self._delivered_unfinished += delivered
                del self._popping[call]
            if self.not_full.listeners:
                self.not_full.notify(delivered)
        except BaseException:
            # No consumer calls task_done() for it. No call is made in here, because an interrupt could come
            # after it.
            with self._mutex:
                if call in self._popping:
                    del self._popping[call]
                else:
                    self._delivered_unfinished -= delivered
            if self.all_done.listeners:
                self.all_done.notify(None)
            raise
        return taken

    def _count_in(self, call: object, pop: Callable[[], R], most: int) -> R:
        """``pop()`` within a wait; up to ``most`` items count as unfinished while it runs."""
        if self.is_immediate:
            raise ShutDown
        self._popping[call] = most
        try:
            return pop()
        except Empty:
            self._popping[call] = 0
            if self.all_done.listeners:
                self.all_done.notify(None)
            if self.is_shutdown:
                raise ShutDown from None
            raise

    # Settling.

    def settle(self, token: Any, claims: list[Claim], done: bool) -> None:
        """Acknowledge a claimed item that is in no consumer's list, or give it back to its place.

        Where that cannot be done, because the disk is full or a signal handler raises, the core releases the
        item, unless the claim is lost, because another thread may have got the same item by then.
        """
        try:
            if done:
                self._ack((token,))
            else:
                self._nack(token)
            claims.clear()
            self.settled(0 if done else 1)
        except ClaimError as error:
            claims.clear()
            if done or not isinstance(error, StaleClaimError):
                raise  # otherwise it is back already
        except BaseException:
            if claims:
                self.undo(claims, (token,))
            raise

    def settled(self, ready: int | None) -> None:
        """Wake the consumers that this concerns: claims ended, and so many items became ready by that
        (``None``: perhaps some).
        """
        if ready != 0:
            self.notify_getters(ready)
        if self.all_done.listeners:
            self.all_done.notify(None)

    def settled_elsewhere(self, token: Any, consumer: Consumer, ready: int) -> None:
        """An item was settled in another way than by ``task_done``.

        The consumer may still call ``task_done`` for it; then that does nothing.

        :param ready: 1 if the item became ready by that.
        """
        if self.in_flight.forget(token, consumer):
            consumer.settled_early += 1
        self.settled(ready)

    def task_done(self, consumer: Consumer) -> None:
        """Finish the oldest item that this consumer got; ``ValueError`` where none is unfinished."""
        if self.autosave:
            with self._mutex:
                if not self._delivered_unfinished:
                    raise ValueError("task_done() called too many times")
                self._delivered_unfinished -= 1
        else:
            self._ack_oldest(consumer)
        if self.all_done.listeners:
            self.all_done.notify(None)

    def _ack_oldest(self, consumer: Consumer) -> None:
        claims = consumer.claims or self.in_flight.oldest_elsewhere(consumer)
        if claims is None:
            return
        token = None
        try:
            token = claims[0]  # known before it leaves the list: an interrupt may come right after that
            token = claims.popleft()
            self._ack((token,))
        except IndexError:  # another thread was faster: look again
            self._ack_oldest(consumer)
        except ClaimError:
            raise
        except StorageError:
            claims.appendleft(token)  # it was not acknowledged: the next call tries again
            raise
        except BaseException:
            if token is not None:
                self._finish(claims, token)
            raise

    def _finish(self, claims: ClaimList, token: Any) -> None:
        """Acknowledge this item wholly, because an exception came out of a signal handler meanwhile."""
        self.in_flight.forget(token)
        try:
            self._ack((token,))
        except ClaimError:  # that was done before
            pass
        except BaseException:  # the exception that led here is the one to tell
            claims.appendleft(token)

    # Counts.

    def unfinished(self) -> int:
        """Count the items that ``join`` waits for."""
        # What is stored counts as drained after an immediate shutdown, as in the standard library. The sum is
        # in the order in which an item passes through the three, so that none is overlooked.
        stored = self.store.claimed() if self.is_immediate else self.store.unfinished()
        return stored + sum(self._popping.values()) + self._delivered_unfinished

    def has_unfinished(self) -> bool:
        """Whether ``join`` would wait."""
        stored = bool(self.store.claimed()) if self.is_immediate else self.store.has_unfinished()
        return stored or any(self._popping.values()) or self._delivered_unfinished > 0

    def qsize(self) -> int:
        """Count the items that are ready."""
        return 0 if self.is_immediate else self.store.count()

    def is_empty(self) -> bool:
        """Whether no item is ready."""
        return self.is_immediate or self.store.is_empty()

    def full(self) -> bool:
        """Whether ``maxsize`` items are ready."""
        return 0 < self.maxsize <= self.qsize()

    # Removing, and the end.

    def remove(self, id: int | None) -> int | None:
        """Remove a ready item unseen; return its id, or ``None`` if there is no such one."""
        result = self.store.remove(id)
        if result is not None:
            self._removed()
        return result

    def clear(self) -> int:
        """Remove every ready item; return how many there were."""
        count = self.store.clear()
        self._removed()
        return count

    def _removed(self) -> None:
        self.not_full.notify(None)
        self.all_done.notify(None)

    def shutdown(self, immediate: bool) -> None:
        """Refuse puts, and gets once the queue is empty, or at once; wake all that wait."""
        self.is_shutdown = True
        if immediate:
            self.is_immediate = True
        self._wake_all()

    def close(self) -> None:
        """Close the store and wake all that wait."""
        try:
            self.store.close()
        finally:
            self._wake_all()

    def _wake_all(self) -> None:
        for event in (self.not_empty, self.any_put, self.not_full, self.all_done):
            event.notify(None)
