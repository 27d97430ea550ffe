"""What a queue does besides waiting: claims in flight, counts and wake-ups, for threads and tasks alike.

Every method answers at once. :mod:`persistcoll.engine.blocking` adds the waits of threads. The core knows no
thread: a :class:`~persistcoll.engine.in_flight.Consumer` stands for the thread or task that gets items.

This module is long because its methods change the same few fields, and because interrupts come at calls: the
order of the calls in each method keeps an interrupt from leaving a wrong state.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from persistcoll.engine.contracts import Claim, QueueStore, Select
from persistcoll.engine.core import Core
from persistcoll.engine.event_count import EventCount
from persistcoll.engine.in_flight import TOO_MANY, ClaimList, Consumer, InFlight, hold_again
from persistcoll.engine.records import Record
from persistcoll.engine.transaction_hooks import OPEN, TransactionHooks
from persistcoll.errors import (
    ClaimError,
    Empty,
    Full,
    NotClaimedError,
    ShutDown,
    StaleClaimError,
    StorageError,
)

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Decode", "QueueCore"]

R = TypeVar("R")
T = TypeVar("T")
Decode = Callable[[Record], tuple[Any, T]]
"""Makes of a record what stands for it in a claim list, which is its id in most queues, and the item."""


class _Within:
    """What a core has done in one open transaction of a caller.

    :ivar done: how many calls of ``task_done`` count at the commit; a list, because a hook holds it.
    :ivar claims: claims that a ``receive`` has made in it.
    """

    __slots__ = ("claims", "done", "transaction")

    def __init__(self, transaction: TransactionHooks | None) -> None:
        self.transaction = transaction
        self.done = [0]
        self.claims: set[Claim] = set()


class QueueCore(Core[QueueStore]):
    """The standard library's queue over a store of bytes, without its waits.

    A subclass overrides the methods under "Hooks". It also sets the attributes ``_append``, ``_append_many``
    and ``_ack``, if what is put, or what stands for a claim, is not what the store takes.

    A signal handler may raise after any call. By then an item that was being put is stored, or not. An item
    that was claimed has no consumer yet, so the core releases it. A superfluous wake-up costs one read of the
    store.

    The hooks of a caller's transaction undo each change of what this object remembers, and wake waiters after
    the commit, because a waiter finds nothing before it.

    ``_mutex`` guards ``_delivered_unfinished``, and ``_popping`` where an entry moves from one to the other.
    No call is made under it. The event counts and the claims in flight guard themselves.

    :ivar maxsize: a put raises ``Full`` while so many items are ready; 0 means without bound.
    :ivar autosave: a get removes the item at once; otherwise ``task_done`` acks it.
    :ivar not_empty: happens when an item becomes ready.
    :ivar any_put: happens with ``not_empty``, for consumers that wait for a specific item.
    :ivar not_full: happens when there is room.
    """

    def __init__(self, store: QueueStore, maxsize: int, autosave: bool) -> None:
        self.maxsize = maxsize
        self.autosave = autosave
        super().__init__(store)

    def _bind(self, store: QueueStore) -> None:
        super()._bind(store)
        # Hooks, too. They are bound here, because a method that calls the store's method would add one call
        # to each put and each ack of a file queue.
        self._append: Callable[..., Any] = store.append
        self._append_many: Callable[..., Any] = store.append_many
        self._ack: Callable[[Sequence[Any]], None] = store.ack

    def _reset(self) -> None:
        super()._reset()
        interval = self.store.max_poll_interval
        self.not_empty = EventCount(interval)
        self.any_put = EventCount(interval)
        self.not_full = EventCount(interval)
        self.in_flight = InFlight(self._new_claim_list)
        # With autosave: how many items each running pop removes at most, and how many items were got without
        # a call of task_done() yet.
        self._popping: dict[object, int] = {}
        self._delivered_unfinished = 0
        # Of the last transaction of a caller that this core was used in. Only the task of that uses it.
        self._within = _Within(None)

    def joined(self, connection: Any) -> Self:
        """Return a core whose calls are part of the transaction that the caller has open on ``connection``.

        It changes nothing in this core. An item that it gets is popped, no consumer holds it, and it wakes no
        waiter, because it learns of no commit and of no rollback. The store says what is unfinished.

        :raise ValueError: the store joins no transactions.
        """
        core = super().joined(connection)
        core.autosave = True
        return core

    # Hooks.

    def _wake_getters(self) -> None:
        self.not_empty.notify(None)

    def _released(self) -> None:
        self.settled(None)

    def _nack(self, tokens: Sequence[Any], reason: str | None) -> None:
        self.store.nack_many(tokens)

    def _id_of(self, token: Any) -> int:
        """Return the id of the item for which this stands in a claim list."""
        return token  # type: ignore[no-any-return]

    def _new_claim_list(self) -> ClaimList:
        return deque()

    def _count_of(self, entries: Sequence[Any]) -> int:
        """Return how many entries need room."""
        return len(entries)

    _hands_over_as_is = True
    """Whether :meth:`_hand_over` returns its argument."""

    def _hand_over(self, items: list[Any], consumer: Consumer) -> list[Any]:
        """Return what a consumer is given in place of what ``decode`` made."""
        return items

    def _take_back(self, token: Any) -> None:
        """Undo delivering an item that no consumer got after all."""

    # put

    def try_put(self, entry: Any, deadline: float | None = None) -> Any:
        """Store one entry; raise ``Full`` or ``ShutDown``."""
        if self.is_shutdown:
            raise ShutDown
        try:
            if deadline is None:
                id = self._append(entry, self.maxsize)
            else:
                id = self._append(entry, self.maxsize, deadline=deadline)
            if self.not_empty.listeners or OPEN:
                self.notify_getters()
        except Full:
            raise
        except BaseException:
            self.notify_getters(None)
            raise
        return id

    def try_put_many(self, entries: Sequence[Any], deadline: float | None = None) -> Any:
        """Store all entries or none.

        :raise Full: not all of them fit now.
        :raise ShutDown: the queue is shut down.
        :raise ValueError: they are more than ``maxsize``, so they never fit.
        """
        if self.is_shutdown:
            raise ShutDown
        if 0 < self.maxsize < len(entries) and self.maxsize < (count := self._count_of(entries)):
            raise ValueError(f"{count} items never fit a maxsize of {self.maxsize}")
        try:
            ids = self._append_many(entries, self.maxsize, deadline=deadline)
            if self.not_empty.listeners or OPEN:
                self.notify_getters(len(entries))
        except Full:
            raise
        except BaseException:
            self.notify_getters(None)
            raise
        return ids

    def notify_getters(self, count: int | None = 1) -> None:
        """Say that so many items became ready; ``None``: an unknown number."""
        if OPEN and (transaction := self.store.open_transaction()) is not None:
            transaction.after_commit(partial(self.notify_getters, count))
        elif self.not_empty.listeners:
            self.not_empty.notify(count)
            if self.any_put.listeners:
                self.any_put.notify(None)

    # Claiming. From the step that makes a claim until the claim is delivered or released, `claims` has it.

    def try_get(
        self,
        decode: Decode[Any],
        consumer: Consumer,
        select: Select | None = None,
        deadline: float | None = None,
    ) -> Any:
        """Claim an item and deliver it, or pop it with ``autosave``; raise ``Empty`` or ``ShutDown``."""
        if self.autosave:
            return self.try_pop(decode, select, deadline)
        if self.is_immediate:
            raise ShutDown
        if self._pending_release:
            self._do_pending_release()
        claims: list[Claim] = []
        token = None
        try:
            # The same as try_claim() and deliver() without the cost of calling them.
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
            if OPEN:
                self._on_rollback(self._forget, (token,))
            consumer.claims.append(token)
            if self.not_full.listeners or OPEN:
                self._notify(self.not_full, 1)
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
        """Claim an item, and return what stands for it and the item.

        The caller must call :meth:`deliver` or :meth:`undo` next.

        :param claims: the claim is appended to this list.
        :raise Empty: no such item is ready.
        :raise ShutDown: no item is ready, and none will be.
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
        """Claim or pop a selected item; after the last item comes the first one."""
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
        """Give claimed items to a consumer, whose ``task_done`` acks them; return what it is given."""
        if OPEN:
            self._on_rollback(self._forget, tokens)
        consumer.claims.extend(tokens)
        return self._give(items, consumer)

    def hand_over(
        self, tokens: Sequence[Any], items: list[Any], consumer: Consumer, claims: list[Claim]
    ) -> list[Any]:
        """Give claimed items to a consumer as :meth:`deliver` does; :meth:`settle` settles each of them.

        :param claims: emptied if a caller's transaction is rolled back, because the claims ended.
        """
        if OPEN:
            self._on_rollback(self._forget, tokens)
            self._on_rollback(claims.clear)
            if (transaction := self.store.open_transaction()) is not None:
                self._enter(transaction).claims.update(claims)
        return self._give(items, consumer)

    def _give(self, items: list[Any], consumer: Consumer) -> list[Any]:
        if self.not_full.listeners or OPEN:
            self._notify(self.not_full, len(items))
        return self._hand_over(items, consumer)

    def undo(self, claims: list[Claim], tokens: Sequence[Any] = ()) -> None:
        """Release claims whose items no consumer has got: now, or before the next claim."""
        self._forget(tokens)
        try:
            if OPEN:
                self._release_on_rollback(claims)
            self.store.release(claims)
        except BaseException:  # The caller raises the exception that led here.
            self.release_later(claims)
        claims.clear()
        self.settled(None)

    def _forget(self, tokens: Sequence[Any]) -> None:
        """Forget claims that no consumer has got, or that were rolled back. Idempotent."""
        for token in tokens:
            self.in_flight.forget(token)
            self._take_back(token)

    def _release_on_rollback(self, claims: Sequence[Claim]) -> None:
        """Have claims of before a transaction released if it is rolled back, because it settles them."""
        transaction = self.store.open_transaction()
        if transaction is not None and not self._enter(transaction).claims.issuperset(claims):
            transaction.on_rollback(partial(self._release_again, tuple(claims)))

    # Popping, with autosave.

    def try_pop(
        self,
        decode: Decode[Any],
        select: Select | None = None,
        deadline: float | None = None,
        wait: Callable[[Callable[[], Any]], Any] | None = None,
    ) -> Any:
        """Remove an item, which counts as unfinished until ``task_done``; raise ``Empty`` or ``ShutDown``.

        :param wait: calls its argument again and again, until that does not raise ``Empty``.
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

        They count as unfinished before the store removes them. Otherwise ``join`` might look between the two
        steps and find them in neither place.
        """
        if self.is_immediate:
            raise ShutDown
        if self._pending_release:
            self._do_pending_release()
        call = object()
        delivered = [0]
        try:
            if wait is not None:
                popped = wait(partial(self._count_in, call, pop, most))
            else:
                self._popping[call] = most
                try:
                    popped = pop()
                except Empty:
                    if self.is_shutdown:
                        raise ShutDown from None
                    raise
            count = len(popped) if many else 1
            if OPEN:
                self._on_rollback(self._count_off, delivered)
            with self._mutex:
                self._delivered_unfinished += count
                delivered[0] = count
                del self._popping[call]
            if self.not_full.listeners or OPEN:
                self._notify(self.not_full, count)
        except BaseException:
            # No consumer calls task_done() for these items. This block makes no call, because a signal
            # handler could raise after one.
            with self._mutex:
                if call in self._popping:
                    del self._popping[call]
                else:
                    self._delivered_unfinished -= delivered[0]
                    delivered[0] = 0
            if self.all_done.listeners:
                self.all_done.notify(None)
            raise
        return popped

    def _count_off(self, delivered: list[int]) -> None:
        """Count so many items no longer as got and unfinished. Idempotent: it makes the number 0."""
        with self._mutex:
            # No call between these two steps, because a signal handler could raise after one.
            self._delivered_unfinished -= delivered[0]
            delivered[0] = 0
        self.all_done.notify(None)

    def _count_in(self, call: object, pop: Callable[[], R], most: int) -> R:
        """Call ``pop`` within a wait; up to ``most`` items count as unfinished while it runs."""
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

    # Popping in a transaction of the store's own, which stays open until the caller ends it.

    def try_begin_pop(self, begin: Callable[[], R]) -> R:
        """Call ``begin``, which pops items in a transaction; raise ``Empty`` or ``ShutDown``."""
        if self.is_immediate:
            raise ShutDown
        try:
            return begin()
        except Empty:
            if self.is_shutdown:
                raise ShutDown from None
            raise

    def pop_ended(self, done: bool) -> None:
        """Wake waiters, because a transaction ended in which items were got.

        :param done: it was committed. Otherwise the items are ready again.
        """
        if done:
            self._removed()
        else:
            self.settled(None)

    # Settling.

    def settle(
        self, tokens: Sequence[Any], claims: list[Claim], done: bool, reason: str | None = None
    ) -> None:
        """Ack or nack claimed items that are in no consumer's list, in one step.

        If that fails, because the disk is full or a signal handler raises, the core releases the items. It
        does not release an item whose claim is lost, because another thread may have claimed the same item by
        then. It settles the others, and raises the error for the lost ones if they were to be acked.

        :param done: ack the items; otherwise nack them.
        :param reason: why they are nacked, for a store that keeps reasons.
        """
        if not claims:
            if not done:
                return  # The rollback has made the items ready, and the caller's own error is to be raised.
            raise NotClaimedError("the transaction in which the item was got was rolled back")
        if OPEN:
            self.store.await_transaction()
        failure: ClaimError | None = None
        try:
            if OPEN:
                self._release_on_rollback(claims)
            while claims:
                try:
                    if done:
                        self._ack(tokens)
                    else:
                        self._nack(tokens, reason)
                    claims.clear()
                    self.settled(0 if done else len(tokens))
                except ClaimError as error:
                    if failure is None:
                        failure = error
                    else:
                        failure.ids += error.ids
                    tokens = self._held_still(tokens, error)
                    held = {self._id_of(token) for token in tokens}
                    claims[:] = [claim for claim in claims if claim[0] in held]
        except BaseException:
            if claims:
                self.undo(claims, tokens)
            raise
        if failure is not None and (done or not isinstance(failure, StaleClaimError)):
            raise failure  # Otherwise the lost items are ready again already.

    def _held_still(self, tokens: Sequence[Any], error: ClaimError) -> list[Any]:
        """Return those of several tokens that are not among the lost ones of which the error tells."""
        lost = set(error.ids)
        held = [token for token in tokens if self._id_of(token) not in lost]
        return held if len(held) < len(tokens) else []

    def settled(self, ready: int | None) -> None:
        """Wake waiters, because claims ended.

        :param ready: how many items became ready by that; ``None``: an unknown number.
        """
        if ready != 0:
            self.notify_getters(ready)
        if self.all_done.listeners or OPEN:
            self._notify(self.all_done)

    def settled_elsewhere(self, token: Any, consumer: Consumer, ready: int) -> None:
        """Note that an item was settled in another way than by ``task_done``.

        The consumer may still call ``task_done`` for it; then that does nothing.

        :param ready: 1 if the item became ready by that, otherwise 0.
        """
        if self.forget_claim(token, consumer):
            consumer.settled_early += 1
        self.settled(ready)

    def forget_claim(self, token: Any, consumer: Consumer) -> bool:
        """Remove a claim that has ended from the list that has it; return whether one had it."""
        if OPEN:
            claims = self.in_flight.find(token, consumer)
            if claims is not None:
                self._on_rollback(self._hold_again, claims, token, consumer, consumer.settled_early)
        return self.in_flight.forget(token, consumer)

    def _hold_again(
        self, claims: ClaimList, token: Any, consumer: Consumer | None = None, settled_early: int = 0
    ) -> None:
        """Undo the settling of a claim that a consumer held. Idempotent."""
        hold_again(claims, token)
        if consumer is not None:
            consumer.settled_early = settled_early

    def task_done(self, consumer: Consumer, count: int = 1) -> None:
        """Finish the ``count`` oldest items that this consumer got, all or none.

        :raise ValueError: fewer items are unfinished.
        """
        if OPEN:
            self.store.await_transaction()
        if not self.autosave:
            self._ack_oldest(consumer, count)
        elif OPEN and (transaction := self.store.open_transaction()) is not None:
            self._count_done_after_commit(transaction, count)
        else:
            with self._mutex:
                if self._delivered_unfinished < count:
                    raise ValueError(TOO_MANY)
                self._delivered_unfinished -= count
        if self.all_done.listeners or OPEN:
            self._notify(self.all_done)

    def _count_done_after_commit(self, transaction: TransactionHooks, count: int) -> None:
        """Count items as finished after the commit, so that no ``join`` ends too early."""
        within = self._enter(transaction)
        if within.done[0] + count > self._delivered_unfinished:
            raise ValueError(TOO_MANY)
        if not within.done[0]:
            transaction.after_commit(partial(self._count_off, within.done))
        within.done[0] += count

    def _enter(self, transaction: TransactionHooks) -> _Within:
        """Return what this core has done in the open transaction."""
        if self._within.transaction is not transaction:
            self._within = _Within(transaction)
        return self._within

    def _own_done(self) -> int:
        """Return how many items this task has finished in a transaction that is not committed yet."""
        done = self._within.done[0]
        return done if done and self.store.open_transaction() is self._within.transaction else 0

    def _ack_oldest(self, consumer: Consumer, count: int) -> None:
        settled_early = consumer.settled_early
        taken: list[tuple[ClaimList, Any]] = []
        tokens: list[Any] = []
        try:
            self._take_oldest(consumer, count, taken)
            if OPEN:
                self._on_rollback(self._put_back, taken, consumer, settled_early)
            tokens = [token for _, token in taken]
            if tokens:
                self._ack(tokens)
        except ClaimError as error:
            held = self._held_still(tokens, error)
            self._put_back([entry for entry in taken if entry[1] in held], consumer, settled_early)
            raise
        except (StorageError, ValueError):  # None was acked: the next call tries again.
            self._put_back(taken, consumer, settled_early)
            raise
        except BaseException:
            if not tokens or not self._finish(tokens):
                self._put_back(taken, consumer, settled_early)
            raise

    def _take_oldest(self, consumer: Consumer, count: int, taken: list[tuple[ClaimList, Any]]) -> None:
        """Remove the oldest claims from the lists that have them.

        :param taken: gets the list and the claim, in order; fewer than ``count`` if the consumer has settled
            some in another way.
        """
        while count:
            claims = consumer.claims or self.in_flight.oldest_elsewhere(consumer)
            if claims is None:
                count -= 1
                continue
            try:
                token = claims[0]
            except IndexError:  # Another thread was faster, so try again.
                continue
            # Known before it is removed from the list, because a signal handler may raise right after that.
            taken.append((claims, token))
            try:
                taken[-1] = claims, claims.popleft()
            except IndexError:
                taken.pop()
                continue
            count -= 1

    def _put_back(
        self, taken: Sequence[tuple[ClaimList, Any]], consumer: Consumer, settled_early: int
    ) -> None:
        """Undo :meth:`_take_oldest`. Idempotent."""
        for claims, token in reversed(taken):
            hold_again(claims, token)
        consumer.settled_early = settled_early

    def _finish(self, tokens: Sequence[Any]) -> bool:
        """Ack these items to the end, because a signal handler raised meanwhile; tell whether they are."""
        try:
            self._ack(tokens)
        except StaleClaimError:
            return False
        except ClaimError:  # They were acked before.
            pass
        except BaseException:  # The caller raises the exception that led here.
            return False
        return True

    # Counts.

    def unfinished(self) -> int:
        """Return how many items ``join`` waits for."""
        # After an immediate shutdown a stored item counts as drained, as in the standard library. The sum is
        # in the order in which an item passes through the three numbers, so that no item is overlooked.
        stored = self.store.claimed() if self.is_immediate else self.store.unfinished()
        return stored + sum(self._popping.values()) + self._delivered_unfinished - self._own_done()

    def has_unfinished(self) -> bool:
        """Tell whether ``join`` would wait."""
        stored = bool(self.store.claimed()) if self.is_immediate else self.store.has_unfinished()
        return stored or any(self._popping.values()) or self._delivered_unfinished > self._own_done()

    def qsize(self) -> int:
        """Return how many items are ready."""
        return 0 if self.is_immediate else self.store.count()

    def is_empty(self) -> bool:
        """Tell whether no item is ready."""
        return self.is_immediate or self.store.is_empty()

    def full(self) -> bool:
        """Tell whether ``maxsize`` items are ready."""
        return 0 < self.maxsize <= self.qsize()

    # Removing, and the end.

    def remove(self, id: int | None) -> int | None:
        """Remove a ready item without decoding it; return its id, or ``None`` if there is no such item."""
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
        self._notify(self.not_full)
        self._notify(self.all_done)

    def _wake_all(self) -> None:
        super()._wake_all()
        self.any_put.notify(None)
        self.not_full.notify(None)
