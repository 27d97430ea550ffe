"""Waiting, written once: block, timeout, maxsize, task_done, join and shutdown over any store.

A store answers at once; everything here that waits does it in one way: listen, take a ticket, look,
wait (see :mod:`persistcoll.engine.signals`). Deadlines are of the monotonic clock, so that a change of
the wall clock moves none of them.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from persistcoll.engine.contracts import Store
from persistcoll.engine.hands import EveryHand, Hand, Hands
from persistcoll.engine.signals import Signal
from persistcoll.engine.values import Record
from persistcoll.errors import ClaimError, Empty, Full, ShutDown, StaleClaimError

__all__ = ["BlockingQueue", "checked_timeout"]

T = TypeVar("T")
R = TypeVar("R")
Use = Callable[[Record], tuple[Any, T]]
"""What stands for the record in a hand (its id, where nothing else is said), and what ``get`` returns."""
Take = Callable[[Use[T], bool], tuple[Any, T]]
"""``take`` of a store, or of a choice of its records."""


def checked_timeout(timeout: float | None) -> float | None:
    """``timeout`` if it is one; ``ValueError`` if negative, ``TypeError`` if not a number."""
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise TypeError(f"'timeout' must be a number of seconds or None, not {type(timeout).__name__}")
    if not timeout >= 0:  # NaN too
        raise ValueError("'timeout' must be a non-negative number")
    return timeout


class _Unfinished(Exception):
    """There are items to wait for."""


class BlockingQueue:
    """The standard library's queue, over a store of bytes.

    :param maxsize: ``put`` waits while so many items are ready; 0 means without bound.
    :param autosave: ``get`` acknowledges; else ``task_done`` does.
    :param append: puts one in place of the store's ``append``.
    :param append_many: puts several in place of the store's ``append_many``.
    :param acknowledge: in place of the store's; it is given what stands for the records in a hand.
    :param give_back: likewise.
    :param hand: makes what the threads hold those in.
    """

    def __init__(
        self,
        store: Store,
        maxsize: int,
        autosave: bool,
        *,
        append: Callable[[Any, int], Any] | None = None,
        append_many: Callable[[Sequence[Any], int], Any] | None = None,
        acknowledge: Callable[[Sequence[Any]], None] | None = None,
        give_back: Callable[[Any], object] | None = None,
        hand: Callable[[], Hand] = deque,
    ) -> None:
        self.maxsize = maxsize
        self.autosave = autosave
        self.store = store
        self._take = store.take
        self._append = append or store.append
        self._append_many = append_many or store.append_many
        self._acknowledge = acknowledge or store.acknowledge
        self._give_back = give_back or store.give_back
        self._make_hand = hand
        self.is_shutdown = False
        self._immediate = False
        self._reset()

    def _reset(self) -> None:
        slowest_poll = self.store.slowest_poll
        self._items = Signal(slowest_poll)
        self._chosen = Signal(slowest_poll)
        self._space = Signal(slowest_poll)
        self._idle = Signal(slowest_poll)
        self._mutex = threading.Lock()
        self._owed: deque[Any] = deque()  # to be given back, which could not be done
        self._handed = 0  # with autosave: got, and task_done() not yet called for
        self._all_hands: EveryHand = []
        self._hands = Hands(self._all_hands, self._mutex, self._make_hand)

    def after_fork(self) -> None:
        """In a forked child: nobody waits here, nothing is in any hand, the store is the parent's."""
        self._reset()
        self.store.abandon()

    # put

    def put(self, what: Any, block: bool, timeout: float | None) -> Any:
        if timeout is not None:
            checked_timeout(timeout)
        if self.is_shutdown:
            raise ShutDown
        try:
            id = self._append(what, self.maxsize)
        except Full:
            if not block:
                raise
            id = self._put_again(lambda: self._append(what, self.maxsize), timeout)
        if self._items.listeners:
            self._wake_takers()
        return id

    def put_many(self, several: Sequence[Any], block: bool, timeout: float | None) -> Any:
        checked_timeout(timeout)
        if self.is_shutdown:
            raise ShutDown
        if 0 < self.maxsize < len(several):
            raise ValueError(f"{len(several)} items never fit a maxsize of {self.maxsize}")
        try:
            ids = self._append_many(several, self.maxsize)
        except Full:
            if not block:
                raise
            ids = self._put_again(lambda: self._append_many(several, self.maxsize), timeout)
        if self._items.listeners:
            self._wake_takers(len(several))
        return ids

    def _wake_takers(self, count: int = 1) -> None:
        """So many items became ready."""
        self._items.notify(count)
        if self._chosen.listeners:
            self._chosen.notify(None)

    def _put_again(self, append: Callable[[], T], timeout: float | None) -> T:
        def attempt() -> T:
            if self.is_shutdown:
                raise ShutDown
            return append()

        return self._wait_for(self._space, attempt, Full, timeout)

    def _wait_for(
        self, signal: Signal, attempt: Callable[[], T], not_yet: type[Exception], timeout: float | None
    ) -> T:
        """``attempt()``, again and again until it does not raise ``not_yet``."""
        deadline = None if timeout is None else time.monotonic() + timeout
        version = self.store.version
        with signal.listen() as listener:
            while True:
                listener.take_ticket()
                seen = version()
                try:
                    return attempt()
                except not_yet:
                    pass
                if not listener.wait(deadline, version, seen):
                    raise not_yet

    # get

    def get(self, use: Use[T], block: bool, timeout: float | None, choose: Take[T] | None = None) -> T:
        """:param choose: in place of the store's ``take``: takes one that is not any one."""
        if timeout is not None:
            checked_timeout(timeout)
        if self._immediate:
            raise ShutDown
        if self._owed:
            self._give_back_owed()
        autosave = self.autosave
        take = choose or self._take
        try:
            id, item = self._hand_out(take, use) if autosave else take(use, False)
        except Empty:
            if not block or self.is_shutdown:
                raise self._nothing() from None
            again = partial(self._hand_out, take, use) if autosave else partial(take, use, False)
            id, item = self._take_again(again, timeout, choose is not None)
        if not autosave:
            self._hands.ids.append(id)
        if self._space.listeners:
            self._space.notify()
        return item

    def get_many(self, limit: int, use: Use[T], block: bool, timeout: float | None) -> list[T]:
        checked_timeout(timeout)
        if limit < 1:
            raise ValueError(f"get_many() needs at least 1 item to ask for, not {limit}")
        if self._immediate:
            raise ShutDown
        if self._owed:
            self._give_back_owed()
        autosave = self.autosave
        take = partial(self.store.take_many, limit)
        take_now = partial(self._hand_out, take, use, limit) if autosave else partial(take, use, False)
        try:
            pairs = take_now()
        except Empty:
            if not block or self.is_shutdown:
                raise self._nothing() from None
            pairs = self._take_again(take_now, timeout)
        if autosave:
            self._count_handed(len(pairs) - limit)
        else:
            self._hands.ids.extend([id for id, _ in pairs])
        if self._space.listeners:
            self._space.notify(len(pairs))
        return [item for _, item in pairs]

    def _nothing(self) -> Exception:
        return ShutDown() if self.is_shutdown else Empty()

    def _take_again(self, take: Callable[[], T], timeout: float | None, chosen: bool = False) -> T:
        def attempt() -> T:
            if self._immediate:
                raise ShutDown
            try:
                return take()
            except Empty:
                raise self._nothing() from None

        if not chosen:
            return self._wait_for(self._items, attempt, Empty, timeout)
        # Who waits for one item must not be given the wake-up of another one, for which others wait:
        # all such are woken by all items. Counted among the listeners of `_items`, so that any are.
        with self._items.listen():
            return self._wait_for(self._chosen, attempt, Empty, timeout)

    def _hand_out(self, take: Callable[[Use[T], bool], R], use: Use[T], most: int = 1) -> R:
        """With autosave: take up to ``most``, counted before they are gone from the store.

        Else ``join`` might look in between, and find them in neither place.
        """
        self._count_handed(most)
        try:
            return take(use, True)
        except BaseException:
            self._count_handed(-most)
            raise

    def _count_handed(self, count: int) -> None:
        with self._mutex:
            self._handed = max(0, self._handed + count)
        if count < 0 and self._idle.listeners:
            self._idle.notify(None)

    # receive

    def claim(self, use: Use[T], block: bool, timeout: float | None) -> tuple[Any, T]:
        """As ``get``, but the item is in no thread's hand: :meth:`settle` has to follow."""
        checked_timeout(timeout)
        if self._immediate:
            raise ShutDown
        if self._owed:
            self._give_back_owed()
        try:
            pair = self._take(use)
        except Empty:
            if not block or self.is_shutdown:
                raise self._nothing() from None
            pair = self._take_again(lambda: self._take(use), timeout)
        if self._space.listeners:
            self._space.notify()
        return pair

    def settle(self, id: Any, done: bool) -> None:
        """Acknowledge a claimed item, or give it back to its place.

        Where neither could be done, as the disk is full, it is given back before the next one is taken.
        """
        try:
            if done:
                self._acknowledge((id,))
            else:
                self._give_back(id)
        except ClaimError as error:
            if done or not isinstance(error, StaleClaimError):
                raise  # else it is back already
        except BaseException:
            self._owed.append(id)
            raise
        self.settled(0 if done else 1)

    def _give_back_owed(self) -> None:
        while self._owed:
            try:
                id = self._owed.popleft()
            except IndexError:  # another thread was faster
                return
            try:
                self.settle(id, done=False)
            except ClaimError:
                pass  # its acknowledgement was interrupted behind the fact

    def settled(self, ready: int) -> None:
        """Wake whom it concerns that items are not claimed any more, and so many of them ready."""
        if ready:
            self._wake_takers(ready)
        if self._idle.listeners:
            self._idle.notify(None)

    # task_done and join

    def task_done(self) -> None:
        if self.autosave:
            with self._mutex:
                if not self._handed:
                    raise ValueError("task_done() called too many times")
                self._handed -= 1
        else:
            ids = self._hands.ids or self._hands.other()
            if ids is None:
                return
            try:
                id = ids.popleft()
            except IndexError:  # another thread was faster: look again
                self.task_done()
                return
            try:
                self._acknowledge((id,))
            except ClaimError:
                raise
            except BaseException:
                ids.appendleft(id)  # it was not acknowledged: the next call tries again
                raise
        if self._idle.listeners:
            self._idle.notify(None)

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

        self._wait_for(self._idle, attempt, _Unfinished, None)

    def unfinished(self) -> int:
        """How many items ``join`` waits for."""
        if self._immediate:  # what is stored counts as drained, as in the standard library
            return self.store.claimed() + self._handed
        return self.store.unfinished() + self._handed

    # The rest.

    def qsize(self) -> int:
        return 0 if self._immediate else self.store.count()

    def full(self) -> bool:
        return 0 < self.maxsize <= self.qsize()

    def discard(self, id: int | None) -> int | None:
        result = self.store.discard(id)
        if result is not None:
            self._removed()
        return result

    def clear(self) -> int:
        count = self.store.clear()
        self._removed()
        return count

    def _removed(self) -> None:
        self._space.notify(None)
        self._idle.notify(None)

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
        for signal in (self._items, self._chosen, self._space, self._idle):
            signal.notify(None)
