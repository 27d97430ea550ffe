"""Waiting, written once: block, timeout, maxsize, task_done, join and shutdown over any store.

A store answers at once; everything here that waits does it in one way: listen, take a ticket, look,
wait (see :mod:`persistcoll.engine.event_count`). Deadlines are of the monotonic clock, so that a change of
the wall clock moves none of them.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from persistcoll.engine.arguments import checked_timeout
from persistcoll.engine.contracts import Claim, QueueStore
from persistcoll.engine.event_count import EventCount
from persistcoll.engine.forks import within_an_operation
from persistcoll.engine.in_flight import AllClaims, ClaimList, InFlight
from persistcoll.engine.records import Record
from persistcoll.errors import ClaimError, Empty, Full, ShutDown, StaleClaimError, StorageError

__all__ = ["BlockingQueue"]

T = TypeVar("T")
R = TypeVar("R")
Decode = Callable[[Record], tuple[Any, T]]
"""What stands for the record in a hand (its id, where nothing else is said), and what ``get`` returns."""

Take = Callable[..., tuple[Any, Any]]
"""``take`` of a store, or of a choice of its records."""


def _deadline(block: bool, timeout: float | None) -> float | None:
    """Until when to wait, by the monotonic clock; ``None``: for ever."""
    timeout = checked_timeout(timeout)
    if not block:
        return 0.0
    return None if timeout is None else time.monotonic() + timeout


class _Unfinished(Exception):
    """There are items to wait for."""


class BlockingQueue:
    """The standard library's queue, over a store of bytes.

    :param maxsize: ``put`` waits while so many items are ready; 0 means without bound.
    :param autosave: ``get`` acknowledges; else ``task_done`` does.
    :param append: puts one in place of the store's ``append``.
    :param append_many: puts several in place of the store's ``append_many``.
    :param acknowledge: in place of the store's; it is given what stands for the records in a hand.
    :param nack: in place of the store's; it is given what stands for the record.
    :param hand: makes what the threads hold those in.
    :param hand_over: given what ``decode`` made of what was taken: what to return in its place, and what is
        to leave the hands.
    :param take_back: given what stands for a record that was taken and is not: an exception came out of a
        signal handler.
    """

    def __init__(
        self,
        store: QueueStore,
        maxsize: int,
        autosave: bool,
        *,
        append: Callable[[Any, int], Any] | None = None,
        append_many: Callable[[Sequence[Any], int], Any] | None = None,
        acknowledge: Callable[[Sequence[Any]], None] | None = None,
        nack: Callable[[Any], object] | None = None,
        hand: Callable[[], ClaimList] = deque,
        hand_over: Callable[[Sequence[Any]], tuple[list[Any], Sequence[Any]]] | None = None,
        take_back: Callable[[Any], None] | None = None,
    ) -> None:
        self.maxsize = maxsize
        self.autosave = autosave
        self.store = store
        self._take = store.take
        self._append: Callable[..., Any] = append or store.append
        self._append_many: Callable[..., Any] = append_many or store.append_many
        self._ack = acknowledge or store.ack
        self._nack = nack or store.nack
        self._make_hand = hand
        self._hand_over = hand_over
        self._take_back = take_back
        self.is_shutdown = False
        self._immediate = False
        self._reset()

    def _reset(self) -> None:
        max_poll_interval = self.store.max_poll_interval
        self._not_empty = EventCount(max_poll_interval)
        self._any_put = EventCount(max_poll_interval)
        self._not_full = EventCount(max_poll_interval)
        self._all_done = EventCount(max_poll_interval)
        # Re-entrant: a signal handler may come in while this thread has it. No call is made under it.
        self._mutex = threading.RLock()
        self._pending_release: deque[Sequence[Claim]] = deque()  # to be released, which could not be done
        # With autosave.
        self._taking: dict[object, int] = {}  # by each call that takes: how many at most
        self._delivered_unfinished = 0  # got, and task_done() not yet called for
        self._all_hands: AllClaims = []
        self._hands = InFlight(self._all_hands, self._mutex, self._make_hand)

    def after_fork(self) -> None:
        """In a forked child: nobody waits here, nothing is in any hand, the store is the parent's."""
        self._reset()
        self.store.after_fork_in_child()

    # An exception may come out of a signal handler behind any call. What was put by then is stored, or not;
    # what was taken by then nobody has got, so it is released. A wake-up too many costs one look.

    # put

    def put(self, what: Any, block: bool, timeout: float | None) -> Any:
        deadline = None if block and timeout is None else _deadline(block, timeout)
        if self.is_shutdown:
            raise ShutDown
        try:
            try:
                if deadline is None:
                    id = self._append(what, self.maxsize)
                else:
                    id = self._append(what, self.maxsize, deadline=deadline)
            except Full:
                if not block:
                    raise
                id = self._wait_and_put(partial(self._append, what), deadline)
            if self._not_empty.listeners:
                self._notify_getters()
        except BaseException:
            self._notify_getters(None)
            raise
        return id

    def put_many(self, several: Sequence[Any], block: bool, timeout: float | None) -> Any:
        deadline = _deadline(block, timeout)
        if self.is_shutdown:
            raise ShutDown
        if 0 < self.maxsize < len(several):
            raise ValueError(f"{len(several)} items never fit a maxsize of {self.maxsize}")
        try:
            try:
                ids = self._append_many(several, self.maxsize, deadline=deadline)
            except Full:
                if not block:
                    raise
                ids = self._wait_and_put(partial(self._append_many, several), deadline)
            if self._not_empty.listeners:
                self._notify_getters(len(several))
        except BaseException:
            self._notify_getters(None)
            raise
        return ids

    def _notify_getters(self, count: int | None = 1) -> None:
        """So many items became ready; ``None``: perhaps some."""
        if self._not_empty.listeners:
            self._not_empty.notify(count)
            if self._any_put.listeners:
                self._any_put.notify(None)

    def _wait_and_put(self, append: Callable[..., T], deadline: float | None) -> T:
        def attempt() -> T:
            if self.is_shutdown:
                raise ShutDown
            return append(self.maxsize, deadline=deadline)

        return self._wait_for(self._not_full, attempt, Full, deadline)

    def _wait_for(
        self, signal: EventCount, attempt: Callable[[], T], retry_on: type[Exception], deadline: float | None
    ) -> T:
        """``attempt()``, again and again until it does not raise ``retry_on``."""
        change_token = self.store.change_token
        listener = signal.listen()
        try:
            try:
                listener.enter()
                while True:
                    listener.prepare()
                    last_token = change_token()
                    try:
                        return attempt()
                    except retry_on:
                        pass
                    if not listener.wait(deadline, change_token, last_token):
                        raise retry_on
            finally:
                listener.leave()
        except BaseException:
            listener.leave()  # again: the first time an interrupt may have come in where it began
            raise

    # get

    def get(self, decode: Decode[Any], block: bool, timeout: float | None, choose: Take | None = None) -> Any:
        """:param choose: in place of the store's ``take``: takes one that is not any one."""
        deadline = None if block and timeout is None else _deadline(block, timeout)
        if self._immediate:
            raise ShutDown
        if self._pending_release:
            self._do_pending_release()
        take: Take = choose or self._take
        if self.autosave:
            return self._pop(take, decode, 1, False, block, deadline, choose is not None)[1]
        claims: list[Claim] = []
        token = None
        try:
            try:
                if deadline is None:
                    token, item = take(decode, False, claims=claims)
                else:
                    token, item = take(decode, False, claims=claims, deadline=deadline)
            except Empty:
                if not block or self.is_shutdown:
                    raise self._nothing() from None
                again = partial(take, decode, False, claims=claims, deadline=deadline)
                token, item = self._wait_and_get(again, deadline, choose is not None)
            self._hands.ids.append(token)
            if self._not_full.listeners:
                self._not_full.notify()
            return item if self._hand_over is None else self._handed_over((item,))[0]
        except BaseException:
            if claims:
                self._undo(claims, () if token is None else (token,))
            raise

    def get_many(self, limit: int, decode: Decode[Any], block: bool, timeout: float | None) -> list[Any]:
        deadline = _deadline(block, timeout)
        if limit < 1:
            raise ValueError(f"get_many() needs at least 1 item to ask for, not {limit}")
        if self._immediate:
            raise ShutDown
        if self._pending_release:
            self._do_pending_release()
        take = partial(self.store.take_many, limit)
        if self.autosave:
            return [item for _, item in self._pop(take, decode, limit, True, block, deadline, False)]
        claims: list[Claim] = []
        pairs: list[tuple[Any, Any]] = []
        try:
            claim = partial(take, decode, False, claims=claims, deadline=deadline)
            try:
                pairs = claim()
            except Empty:
                if not block or self.is_shutdown:
                    raise self._nothing() from None
                pairs = self._wait_and_get(claim, deadline)
            self._hands.ids.extend([token for token, _ in pairs])
            if self._not_full.listeners:
                self._not_full.notify(len(pairs))
            items = [item for _, item in pairs]
            return self._handed_over(items)
        except BaseException:
            if claims:
                self._undo(claims, [token for token, _ in pairs])
            raise

    def _handed_over(self, items: Sequence[Any]) -> list[Any]:
        if self._hand_over is None:
            return list(items)
        result, forgotten = self._hand_over(items)
        for token in forgotten:
            self._hands.drop(token)
        return result

    def _nothing(self) -> Exception:
        return ShutDown() if self.is_shutdown else Empty()

    def _wait_and_get(self, take: Callable[[], T], deadline: float | None, chosen: bool = False) -> T:
        def attempt() -> T:
            if self._immediate:
                raise ShutDown
            try:
                return take()
            except Empty:
                raise self._nothing() from None

        if not chosen:
            return self._wait_for(self._not_empty, attempt, Empty, deadline)
        # A thread waiting for a specific item must not consume a wake-up meant for a thread waiting for any
        # item, so every item wakes all threads waiting for specific ones. They count among the listeners of
        # `_not_empty`, which `put` looks at.
        listener = self._not_empty.listen()
        try:
            try:
                listener.enter()
                return self._wait_for(self._any_put, attempt, Empty, deadline)
            finally:
                listener.leave()
        except BaseException:
            listener.leave()  # as in _wait_for()
            raise

    def take_back(self, claims: list[Claim]) -> None:
        """Nobody will settle these claims: release them, at once unless that might wait for ever."""
        if within_an_operation():  # a destructor's thread, for which another thread may be waiting
            self._pending_release.append(tuple(claims))
        else:
            self._undo(claims)

    def _undo(self, claims: list[Claim], tokens: Sequence[Any] = ()) -> None:
        """Nobody has got what these claims hold: release it, now if that can be done."""
        for token in tokens:
            self._hands.drop(token)
            if self._take_back is not None:
                self._take_back(token)
        try:
            self.store.release(claims)
        except BaseException:  # the exception that led here is the one to tell
            self._pending_release.append(tuple(claims))
        claims.clear()
        self.settled(None)

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

    # get, with autosave

    def _pop(
        self,
        take: Callable[..., R],
        decode: Decode[Any],
        most: int,
        many: bool,
        block: bool,
        deadline: float | None,
        chosen: bool,
    ) -> R:
        """Take up to ``most`` items, which count as unfinished until ``task_done``.

        They count before they are gone from the store, because `join` might otherwise look in between and
        find them in neither place.
        """
        call = object()
        handed = 0
        try:
            self._taking[call] = most
            try:
                taken = take(decode, True) if deadline is None else take(decode, True, deadline=deadline)
            except Empty:
                if not block or self.is_shutdown:
                    raise self._nothing() from None
                again = partial(take, decode, True, deadline=deadline)
                taken = self._wait_and_get(partial(self._count_in, call, again, most), deadline, chosen)
            handed = len(taken) if many else 1  # type: ignore[arg-type]  # then it is a list
            with self._mutex:
                self._delivered_unfinished += handed
                del self._taking[call]
            if self._not_full.listeners:
                self._not_full.notify(handed)
        except BaseException:
            # Nobody calls task_done() for it. No call is made in here, behind which an interrupt could come.
            with self._mutex:
                if call in self._taking:
                    del self._taking[call]
                else:
                    self._delivered_unfinished -= handed
            if self._all_done.listeners:
                self._all_done.notify(None)
            raise
        return taken

    def _count_in(self, call: object, take: Callable[[], R], most: int) -> R:
        """``take()``; while it runs, up to ``most`` items count as unfinished."""
        self._taking[call] = most
        try:
            return take()
        except Empty:
            self._taking[call] = 0
            if self._all_done.listeners:
                self._all_done.notify(None)
            raise

    # receive

    def claim(
        self, decode: Decode[T], block: bool, timeout: float | None, claims: list[Claim]
    ) -> tuple[Any, T]:
        """As ``get``, but the item is in no thread's hand: :meth:`settle` follows, with the same claims."""
        deadline = _deadline(block, timeout)
        if self._immediate:
            raise ShutDown
        if self._pending_release:
            self._do_pending_release()
        take = partial(self._take, decode, False, claims=claims, deadline=deadline)
        try:
            try:
                token, item = take()
            except Empty:
                if not block or self.is_shutdown:
                    raise self._nothing() from None
                token, item = self._wait_and_get(take, deadline)
            if self._not_full.listeners:
                self._not_full.notify()
            return token, self._handed_over((item,))[0]
        except BaseException:
            if claims:
                self._undo(claims)
            raise

    def settle(self, token: Any, claims: list[Claim], done: bool) -> None:
        """Acknowledge a claimed item, or give it back to its place.

        Where that cannot be done, because the disk is full or a signal handler raises, the item is released
        as far as the claim is still in force, because another thread may have got the same item by then.
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
                self._undo(claims, (token,))
            raise

    def settled(self, ready: int | None) -> None:
        """Wake the threads that this concerns: items are not claimed any more, and so many of them ready
        (``None``: perhaps some).
        """
        if ready != 0:
            self._notify_getters(ready)
        if self._all_done.listeners:
            self._all_done.notify(None)

    # task_done and join

    def task_done(self) -> None:
        if self.autosave:
            with self._mutex:
                if not self._delivered_unfinished:
                    raise ValueError("task_done() called too many times")
                self._delivered_unfinished -= 1
        else:
            self._acknowledge_oldest()
        if self._all_done.listeners:
            self._all_done.notify(None)

    def _acknowledge_oldest(self) -> None:
        ids = self._hands.ids or self._hands.other()
        if ids is None:
            return
        token = None
        try:
            token = ids[0]  # known before it leaves the hand: an interrupt may come in right behind that
            token = ids.popleft()
            self._ack((token,))
        except IndexError:  # another thread was faster: look again
            self._acknowledge_oldest()
        except ClaimError:
            raise
        except StorageError:
            ids.appendleft(token)  # it was not acknowledged: the next call tries again
            raise
        except BaseException:
            if token is not None:
                self._finish(ids, token)
            raise

    def _finish(self, ids: ClaimList, token: Any) -> None:
        """An exception came out of a signal handler: acknowledge this item wholly."""
        self._hands.drop(token)
        try:
            self._ack((token,))
        except ClaimError:  # that was done before
            pass
        except BaseException:  # the exception that led here is the one to tell
            ids.appendleft(token)

    def let_go(self, id: Any, ready: int) -> None:
        """An item was settled in another way than by ``task_done``.

        ``task_done`` may still be called for it; then it does nothing.

        :param ready: 1 if it became ready by that.
        """
        if self._hands.drop(id):
            self._hands.settled += 1
        self.settled(ready)

    def drop(self, id: Any) -> None:
        """An item that was in a hand is lost: it is for others."""
        self._hands.drop(id)

    def join(self) -> None:
        def attempt() -> None:
            if self.unfinished():
                raise _Unfinished

        self._wait_for(self._all_done, attempt, _Unfinished, None)

    def unfinished(self) -> int:
        """How many items ``join`` waits for."""
        # What is stored counts as drained after an immediate shutdown, as in the standard library. The sum is
        # in the order in which an item passes through the three, so that none is overlooked.
        stored = self.store.claimed() if self._immediate else self.store.unfinished()
        return stored + sum(self._taking.values()) + self._delivered_unfinished

    # The rest.

    def qsize(self) -> int:
        return 0 if self._immediate else self.store.count()

    def full(self) -> bool:
        return 0 < self.maxsize <= self.qsize()

    def remove(self, id: int | None) -> int | None:
        result = self.store.remove(id)
        if result is not None:
            self._removed()
        return result

    def clear(self) -> int:
        count = self.store.clear()
        self._removed()
        return count

    def _removed(self) -> None:
        self._not_full.notify(None)
        self._all_done.notify(None)

    def shutdown(self, immediate: bool) -> None:
        self.is_shutdown = True
        if immediate:
            self._immediate = True
        self._wake_all()

    def close(self) -> None:
        try:
            self.store.close()
        finally:
            self._wake_all()

    def _wake_all(self) -> None:
        for signal in (self._not_empty, self._any_put, self._not_full, self._all_done):
            signal.notify(None)
