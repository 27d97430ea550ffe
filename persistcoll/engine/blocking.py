"""Waiting, written once: block, timeout, maxsize, task_done, join and shutdown over any store.

A store answers at once; everything here that waits does it in one way: listen, take a ticket, look,
wait (see :mod:`persistcoll.engine.signals`). Deadlines are of the monotonic clock, so that a change of
the wall clock moves none of them.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeVar

from persistcoll.engine.contracts import Store
from persistcoll.engine.signals import Signal
from persistcoll.engine.values import Record
from persistcoll.errors import Empty, Full, NotClaimedError, ShutDown

__all__ = ["BlockingQueue", "checked_timeout"]

T = TypeVar("T")
Use = Callable[[Record], tuple[int, T]]


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


class _Hand:
    """The ids that one thread got and has not acknowledged, oldest first."""

    __slots__ = ("__weakref__", "ids")

    def __init__(self) -> None:
        self.ids: deque[int] = deque()


class _Hands(threading.local):
    """Each thread's hand. The ids of a thread that ended stay known, for ``task_done`` to fall back on."""

    def __init__(self, all_hands: list[tuple[weakref.ref[_Hand], deque[int]]]) -> None:
        self.hand = _Hand()
        self.ids = self.hand.ids
        all_hands[:] = [entry for entry in all_hands if entry[0]() is not None or entry[1]]
        all_hands.append((weakref.ref(self.hand), self.ids))


class BlockingQueue:
    """The standard library's queue, over a store of bytes.

    :param maxsize: ``put`` waits while so many items are ready; 0 means without bound.
    :param autosave: ``get`` acknowledges; else ``task_done`` does.
    """

    def __init__(self, store: Store, maxsize: int, autosave: bool) -> None:
        self.maxsize = maxsize
        self.autosave = autosave
        self.store = store
        self._take = store.take
        self._append = store.append
        self.is_shutdown = False
        self._immediate = False
        self._reset()

    def _reset(self) -> None:
        self._items = Signal()
        self._space = Signal()
        self._idle = Signal()
        self._mutex = threading.Lock()
        self._handed = 0  # with autosave: got, and task_done() not yet called for
        self._all_hands: list[tuple[weakref.ref[_Hand], deque[int]]] = []
        self._hands = _Hands(self._all_hands)

    def after_fork(self) -> None:
        """In a forked child: nobody waits here, nothing is in any hand, the store is the parent's."""
        self._reset()
        self.store.abandon()

    # put

    def put(self, payload: bytes, block: bool, timeout: float | None) -> int:
        if timeout is not None:
            checked_timeout(timeout)
        if self.is_shutdown:
            raise ShutDown
        try:
            id = self._append(payload, self.maxsize)
        except Full:
            if not block:
                raise
            id = self._put_again(lambda: self._append(payload, self.maxsize), timeout)
        if self._items.listeners:
            self._items.notify()
        return id

    def put_many(self, payloads: Sequence[bytes], block: bool, timeout: float | None) -> range:
        checked_timeout(timeout)
        if self.is_shutdown:
            raise ShutDown
        if 0 < self.maxsize < len(payloads):
            raise ValueError(f"{len(payloads)} items never fit a maxsize of {self.maxsize}")
        try:
            ids = self.store.append_many(payloads, self.maxsize)
        except Full:
            if not block:
                raise
            ids = self._put_again(lambda: self.store.append_many(payloads, self.maxsize), timeout)
        if self._items.listeners:
            self._items.notify(len(ids))
        return ids

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

    def get(self, use: Use[T], block: bool, timeout: float | None) -> T:
        if timeout is not None:
            checked_timeout(timeout)
        if self._immediate:
            raise ShutDown
        autosave = self.autosave
        try:
            id, item = self._take(use, autosave)
        except Empty:
            if not block or self.is_shutdown:
                raise self._nothing() from None
            id, item = self._take_again(lambda: self._take(use, autosave), timeout)
        if autosave:
            self._count_handed(1)
        else:
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
        autosave = self.autosave
        try:
            pairs = self.store.take_many(limit, use, autosave)
        except Empty:
            if not block or self.is_shutdown:
                raise self._nothing() from None
            pairs = self._take_again(lambda: self.store.take_many(limit, use, autosave), timeout)
        if autosave:
            self._count_handed(len(pairs))
        else:
            self._hands.ids.extend([id for id, _ in pairs])
        if self._space.listeners:
            self._space.notify(len(pairs))
        return [item for _, item in pairs]

    def _nothing(self) -> Exception:
        return ShutDown() if self.is_shutdown else Empty()

    def _take_again(self, take: Callable[[], T], timeout: float | None) -> T:
        def attempt() -> T:
            if self._immediate:
                raise ShutDown
            try:
                return take()
            except Empty:
                raise self._nothing() from None

        return self._wait_for(self._items, attempt, Empty, timeout)

    def _count_handed(self, count: int) -> None:
        with self._mutex:
            self._handed += count

    # receive

    def claim(self, use: Use[T], block: bool, timeout: float | None) -> tuple[int, T]:
        """As ``get``, but the item is in no thread's hand: :meth:`settle` has to follow."""
        checked_timeout(timeout)
        if self._immediate:
            raise ShutDown
        try:
            pair = self._take(use)
        except Empty:
            if not block or self.is_shutdown:
                raise self._nothing() from None
            pair = self._take_again(lambda: self._take(use), timeout)
        self._space.notify()
        return pair

    def settle(self, id: int, done: bool) -> None:
        """Acknowledge a claimed item, or give it back to its place."""
        if done:
            self.store.acknowledge((id,))
            self._idle.notify(None)
        else:
            self.store.give_back(id)
            self._items.notify()

    # task_done and join

    def task_done(self) -> None:
        if self.autosave:
            with self._mutex:
                if not self._handed:
                    raise ValueError("task_done() called too many times")
                self._handed -= 1
        else:
            ids = self._hands.ids or self._oldest_hand()
            id = ids.popleft()
            try:
                self.store.acknowledge((id,))
            except NotClaimedError:
                raise
            except BaseException:
                ids.appendleft(id)  # it was not acknowledged: the next call tries again
                raise
        if self._idle.listeners:
            self._idle.notify(None)

    def _oldest_hand(self) -> deque[int]:
        """The standard library lets any thread call task_done(): take the oldest that was got."""
        with self._mutex:
            candidates = [ids for _, ids in self._all_hands if ids]
            if not candidates:
                raise ValueError("task_done() called too many times")
            return min(candidates, key=lambda ids: ids[0])

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
        for signal in (self._items, self._space, self._idle):
            signal.notify(None)
