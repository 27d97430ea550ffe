"""Which consumer has got which items and not acked them: for ``task_done``, which names no id."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import Any, Protocol

__all__ = [
    "TOO_MANY",
    "ClaimList",
    "Consumer",
    "InFlight",
    "IndexedClaimList",
    "ThreadConsumer",
    "hold_again",
]


TOO_MANY = "task_done() called too many times"


class ClaimList(Protocol):
    """What one consumer got and has not acked, oldest first: ids, or what stands for them.

    A deque is one, and the fastest.
    """

    def append(self, token: Any, /) -> None:
        """Add the newest claim."""

    def extend(self, tokens: Iterable[Any], /) -> None:
        """Add the newest claims, in order."""

    def appendleft(self, token: Any, /) -> None:
        """Add a claim again as the oldest one."""

    def popleft(self) -> Any:
        """Remove and return the oldest claim; raise ``IndexError`` if there is none."""

    def remove(self, token: Any, /) -> None:
        """Remove this claim; raise ``ValueError`` if it is not there."""

    def __contains__(self, token: object, /) -> bool:
        """Tell whether this claim is there."""

    def __getitem__(self, index: int, /) -> Any:
        """Return the oldest claim, at index 0."""

    def __len__(self) -> int:
        """Count the claims."""


class IndexedClaimList:
    """A :class:`ClaimList` that removes a claim in its middle as fast as the oldest one.

    Any thread may call any method: ``_mutex`` guards ``_tokens`` and ``_is_sorted``. The tokens compare by
    age, which :meth:`restore` needs.
    """

    def __init__(self) -> None:
        self._tokens: OrderedDict[Any, None] = OrderedDict()
        self._is_sorted = True
        # Re-entrant, because a signal handler may run while this thread holds it.
        self._mutex = threading.RLock()

    def append(self, token: Any) -> None:
        """Add the newest claim."""
        with self._mutex:
            self._tokens[token] = None

    def extend(self, tokens: Iterable[Any]) -> None:
        """Add the newest claims, in order."""
        with self._mutex:
            # A loop takes less than half of the time of update().
            for token in tokens:
                self._tokens[token] = None

    def appendleft(self, token: Any) -> None:
        """Add a claim again as the oldest one."""
        with self._mutex:
            self._tokens[token] = None
            self._tokens.move_to_end(token, last=False)

    def restore(self, token: Any) -> None:
        """Add a claim again in the place from which it was removed. Idempotent."""
        with self._mutex:
            self._is_sorted = False
            self._tokens[token] = None

    def _sort(self) -> None:
        """Put restored claims into their places: at the next read, because many may be restored at once."""
        if not self._is_sorted:
            self._tokens = OrderedDict.fromkeys(sorted(self._tokens))
            self._is_sorted = True

    def popleft(self) -> Any:
        """Remove and return the oldest claim; raise ``IndexError`` if there is none."""
        with self._mutex:
            self._sort()
            if not self._tokens:
                raise IndexError
            return self._tokens.popitem(last=False)[0]

    def remove(self, token: Any) -> None:
        """Remove this claim; raise ``ValueError`` if it is not there."""
        with self._mutex:
            if token not in self._tokens:
                raise ValueError
            del self._tokens[token]

    def __getitem__(self, index: int) -> Any:
        """Return the oldest claim, at index 0."""
        with self._mutex:
            self._sort()
            for token in self._tokens:
                return token
        raise IndexError

    def __contains__(self, token: object) -> bool:
        return token in self._tokens

    def __len__(self) -> int:
        return len(self._tokens)


class Consumer:
    """A thread or task that gets items. The object lives as long as the thread or task.

    It is an object and not the number of a thread, because numbers are used again. A new thread must not
    inherit the claims of a thread that ended, because its ``task_done`` would ack them.

    No lock guards ``settled_early``, because only its own thread or task changes it. ``claims`` guards
    itself.

    :ivar claims: what the consumer got and has not acked.
    :ivar settled_early: how many items it has settled in another way than by ``task_done``, and not called
        ``task_done`` for yet.
    """

    __slots__ = ("__weakref__", "claims", "settled_early")

    def __init__(self, claims: ClaimList) -> None:
        self.claims = claims
        self.settled_early = 0


class InFlight:
    """The claims of all consumers of one queue. Those of a consumer that ended stay known.

    ``_mutex`` guards ``_all``. Each claim list guards itself.

    :param new_claim_list: makes an empty claim list.
    """

    def __init__(self, new_claim_list: Callable[[], ClaimList] = deque) -> None:
        self._new_claim_list = new_claim_list
        # Re-entrant, because a signal handler may run while this thread holds it.
        self._mutex = threading.RLock()
        self._all: list[tuple[weakref.ref[Consumer], ClaimList]] = []

    def new_consumer(self) -> Consumer:
        """Make a consumer that has got nothing yet."""
        consumer = Consumer(self._new_claim_list())
        with self._mutex:
            self._all[:] = [entry for entry in self._all if entry[0]() is not None or entry[1]]
            self._all.append((weakref.ref(consumer), consumer.claims))
        return consumer

    def oldest_elsewhere(self, consumer: Consumer) -> ClaimList | None:
        """Find the claim list with the oldest claim of all, for a consumer that holds none.

        The standard library lets any thread call ``task_done()``, so the oldest item that any consumer got is
        acked.

        :return: ``None`` if this consumer has settled what it got, so that nothing is left to do.
        :raise ValueError: no consumer holds anything.
        """
        if consumer.settled_early:
            consumer.settled_early -= 1
            return None
        with self._mutex:
            lists = [claims for _, claims in self._all]
        oldest = None
        for claims in lists:
            try:
                first = claims[0]
            # The list is empty, perhaps because another thread emptied it meanwhile.
            except IndexError:
                continue
            if oldest is None or first < oldest[0]:
                oldest = first, claims
        if oldest is None:
            raise ValueError(TOO_MANY)
        return oldest[1]

    def find(self, token: Any, consumer: Consumer) -> ClaimList | None:
        """Return the list that has a claim; that of ``consumer`` is searched first."""
        if token in consumer.claims:
            return consumer.claims
        with self._mutex:
            lists = [claims for _, claims in self._all]
        return next((claims for claims in lists if token in claims), None)

    def forget(self, token: Any, consumer: Consumer | None = None) -> bool:
        """Remove a claim from the list that has it.

        :param consumer: the consumer whose list is searched first.
        :return: whether a list had it.
        """
        if consumer is not None:
            try:
                consumer.claims.remove(token)  # Nearly always.
                return True
            except ValueError:
                pass
        with self._mutex:
            lists = [claims for _, claims in self._all]
        for claims in lists:
            try:
                claims.remove(token)
            except ValueError:
                continue
            return True
        return False


def hold_again(claims: ClaimList, token: Any) -> None:
    """Add a claim again to the list that it was removed from, in its place. Idempotent.

    A deque loses its oldest claim only. So the claims that it lost last must be added first.
    """
    if isinstance(claims, IndexedClaimList):
        claims.restore(token)
    elif token not in claims:
        claims.appendleft(token)


class ThreadConsumer(threading.local):
    """The consumer of the calling thread.

    :ivar own: that consumer.
    """

    # Python calls it once in each thread.
    def __init__(self, in_flight: InFlight) -> None:
        self.own = in_flight.new_consumer()
