"""Who has got what and not acknowledged it: for ``task_done``, which says no id."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any, Protocol

__all__ = ["AllClaims", "ClaimList", "InFlight", "IndexedClaimList"]


class ClaimList(Protocol):
    """What one thread got and has not acknowledged, oldest first: ids, or what stands for them. A deque is
    one, and the fastest.
    """

    def append(self, id: Any, /) -> None:
        """It got this."""

    def extend(self, ids: Iterable[Any], /) -> None:
        """It got these."""

    def appendleft(self, id: Any, /) -> None:
        """It has this back, which it got before all others."""

    def popleft(self) -> Any:
        """What it got first, which it has no more; ``IndexError`` if it has nothing."""

    def remove(self, id: Any, /) -> None:
        """It has this no more; ``ValueError`` if it had not."""

    def __getitem__(self, index: int, /) -> Any:
        """At 0: what it got first."""

    def __len__(self) -> int:
        """How many it has."""


class IndexedClaimList:
    """A :class:`ClaimList` from which one may be taken as fast as another. From any thread."""

    def __init__(self) -> None:
        self._ids: OrderedDict[Any, None] = OrderedDict()
        self._mutex = threading.RLock()  # a signal handler may come in while this thread has it

    def append(self, id: Any) -> None:
        """It got this."""
        with self._mutex:
            self._ids[id] = None

    def extend(self, ids: Iterable[Any]) -> None:
        """It got these."""
        with self._mutex:
            for id in ids:  # less than half of the time of update()
                self._ids[id] = None

    def appendleft(self, id: Any) -> None:
        """It has this back."""
        with self._mutex:
            self._ids[id] = None
            self._ids.move_to_end(id, last=False)

    def popleft(self) -> Any:
        """What it got first."""
        with self._mutex:
            if not self._ids:
                raise IndexError
            return self._ids.popitem(last=False)[0]

    def remove(self, id: Any) -> None:
        """It has this no more."""
        with self._mutex:
            if id not in self._ids:
                raise ValueError
            del self._ids[id]

    def __getitem__(self, index: int) -> Any:
        """What it got first."""
        with self._mutex:
            for id in self._ids:
                return id
        raise IndexError

    def __len__(self) -> int:
        return len(self._ids)


class _LivenessToken:
    """Goes with its thread."""

    __slots__ = ("__weakref__",)


AllClaims = list[tuple["weakref.ref[_LivenessToken]", ClaimList]]
"""The hands of all threads. What a thread that ended had got stays known."""


class InFlight(threading.local):
    """Each thread's hand.

    :param everyone: an empty list, in which the threads find each other's.
    :param mutex: guards it.
    :param make: makes an empty hand.
    :ivar ids: this thread's.
    :ivar settled: how many this thread has settled in another way than by ``task_done``, which was not yet
        called for them.
    """

    # Called once in each thread.
    def __init__(
        self, everyone: AllClaims, mutex: AbstractContextManager[Any], make: Callable[[], ClaimList] = deque
    ) -> None:
        self._everyone = everyone
        self._mutex = mutex
        self._alive = _LivenessToken()
        self.ids = make()
        self.settled = 0
        with mutex:
            everyone[:] = [entry for entry in everyone if entry[0]() is not None or entry[1]]
            everyone.append((weakref.ref(self._alive), self.ids))

    def other(self) -> ClaimList | None:
        """For a thread whose hand is empty: whose comes next; ``None`` where it has settled what it got.

        The standard library lets any thread call task_done(): take the oldest that was got.

        :raise ValueError: nobody has anything.
        """
        if self.settled:
            self.settled -= 1
            return None
        with self._mutex:
            hands = [ids for _, ids in self._everyone]
        oldest = None
        for ids in hands:
            try:
                first = ids[0]
            except IndexError:  # also where it was emptied just now
                continue
            if oldest is None or first < oldest[0]:
                oldest = first, ids
        if oldest is None:
            raise ValueError("task_done() called too many times")
        return oldest[1]

    def drop(self, id: Any) -> bool:
        """Take it out of the hand that it is in; whether it was in one."""
        try:
            self.ids.remove(id)  # nearly always
            return True
        except ValueError:
            pass
        with self._mutex:
            hands = [ids for _, ids in self._everyone]
        for ids in hands:
            try:
                ids.remove(id)
            except ValueError:
                continue
            return True
        return False
