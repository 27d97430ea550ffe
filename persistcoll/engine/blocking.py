"""The waits of threads, written once: block, timeout and join over any queue core.

The core answers at once. Everything here that waits does so in one way: listen, take a ticket, try, wait (see
:mod:`persistcoll.engine.event_count`). Deadlines are times of the monotonic clock, so a change of the wall
clock moves none of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple, TypeVar

from persistcoll.engine.arguments import checked_timeout
from persistcoll.engine.contracts import Awaited, Claim, Select
from persistcoll.engine.event_count import EventCount, ask
from persistcoll.engine.forks import in_operation
from persistcoll.engine.in_flight import ThreadConsumer
from persistcoll.engine.queue_core import Decode, QueueCore
from persistcoll.engine.transaction_hooks import OPEN
from persistcoll.errors import Empty, Full, StorageError

__all__ = ["BlockingQueue", "deadline_after", "wait"]

T = TypeVar("T")


def deadline_after(block: bool, timeout: float | None) -> float | None:
    """Return until when to wait, by the monotonic clock; ``None``: for ever.

    :raise TypeError: the timeout is not a number.
    :raise ValueError: the timeout is negative.
    """
    timeout = checked_timeout(timeout)
    if not block:
        return 0.0
    return None if timeout is None else time.monotonic() + timeout


class _Unfinished(Exception):
    """Raised within a wait while there are unfinished items."""


class _Batch(NamedTuple):
    """How many items a thread asks for, and how it waits for them."""

    limit: int
    linger: float
    block: bool


def wait(
    change_token: Callable[[], object],
    event: EventCount,
    attempt: Callable[[], T],
    retry_on: type[Exception],
    deadline: float | None,
) -> T:
    """Call ``attempt`` until it does not raise ``retry_on``, or the deadline has passed.

    The exception may have an attribute ``next_at``: when an item becomes ready by itself.

    :param change_token: what the store's ``watch`` returns.
    """
    waiter = event.listen()
    try:
        try:
            waiter.enter()
            while True:
                waiter.prepare()
                last_token = ask(change_token)
                until = deadline
                try:
                    return attempt()
                except retry_on as error:
                    next_at = getattr(error, "next_at", None)
                    if next_at is not None:
                        until = next_at if deadline is None else min(deadline, next_at)
                if not waiter.wait(until, change_token, last_token) and until == deadline:
                    raise retry_on
        finally:
            waiter.leave()
    except BaseException:
        waiter.leave()  # Again, because a signal handler may have raised at the beginning of the first call.
        raise


class BlockingQueue:
    """What the threads that share a queue call: the methods of its core that wait, or need a consumer.

    It has no lock. The core guards itself, and each thread has a consumer of its own.

    :ivar core: the core of the queue.
    :ivar consumer: its ``own`` is the consumer of the calling thread.
    """

    def __init__(self, core: QueueCore) -> None:
        self.core = core
        self.consumer = ThreadConsumer(core.in_flight)

    def after_fork(self) -> None:
        """Begin again in a forked child."""
        self.core.after_fork()
        self.consumer = ThreadConsumer(self.core.in_flight)

    # The faces of files call `core.try_put` and `core.try_get` themselves, and call these methods only if
    # those raise `Full` or `Empty`, because each further call costs 1 to 2 % of a put or get at "process"
    # (benchmarks: single).

    def _wait(
        self,
        event: EventCount,
        attempt: Callable[[], T],
        retry_on: type[Exception],
        deadline: float | None,
        awaited: Awaited = Awaited.READY,
    ) -> T:
        """Call :func:`wait`.

        Within a caller's transaction the first exception is raised, because no other caller can change
        anything before its end.
        """
        store = self.core.store
        if OPEN and store.open_transaction() is not None:
            return attempt()
        return wait(store.watch(awaited), event, attempt, retry_on, deadline)

    # put

    def put(self, entry: Any, block: bool, timeout: float | None) -> Any:
        """Store one entry, and wait for room."""
        deadline = None if block and timeout is None else deadline_after(block, timeout)
        try:
            return self.core.try_put(entry, deadline)
        except Full:
            if not block:
                raise
        return self.wait_and_put(entry, deadline)

    def wait_and_put(self, entry: Any, deadline: float | None) -> Any:
        """Store one entry as soon as there is room."""
        return self._wait_for_room(partial(self.core.try_put, entry, deadline), deadline)

    def put_many(self, entries: list[Any], block: bool, timeout: float | None) -> Any:
        """Store all entries or none, and wait for room."""
        deadline = deadline_after(block, timeout)
        try:
            return self.core.try_put_many(entries, deadline)
        except Full:
            if not block:
                raise
        return self._wait_for_room(partial(self.core.try_put_many, entries, deadline), deadline)

    def _wait_for_room(self, attempt: Callable[[], T], deadline: float | None) -> T:
        return self._wait(self.core.not_full, attempt, Full, deadline, Awaited.LEFT)

    # get

    def get(
        self, decode: Decode[Any], block: bool, timeout: float | None, select: Select | None = None
    ) -> Any:
        """Give an item to this thread, and wait for one."""
        deadline = None if block and timeout is None else deadline_after(block, timeout)
        try:
            return self.core.try_get(decode, self.consumer.own, select, deadline)
        except Empty:
            if not block:
                raise
        return self.wait_and_get(decode, select, deadline)

    def wait_and_get(self, decode: Decode[Any], select: Select | None, deadline: float | None) -> Any:
        """Give an item to this thread as soon as there is one."""
        core = self.core
        if core.autosave:
            return core.try_pop(decode, select, deadline, partial(self._wait_for_item, deadline, select))
        claims: list[Claim] = []
        token = None
        try:
            attempt = partial(core.try_claim, decode, claims, select, deadline)
            token, item = self._wait_for_item(deadline, select, attempt)
            return core.deliver((token,), [item], self.consumer.own)[0]
        except BaseException:
            if claims:
                core.undo(claims, () if token is None else (token,))
            raise

    def get_many(
        self, limit: int, decode: Decode[Any], block: bool, timeout: float | None, linger: float = 0.0
    ) -> list[Any]:
        """Give up to ``limit`` items to this thread, and wait for the first.

        :param linger: seconds to wait for the others when the first one is ready. None is claimed meanwhile,
            so all are claimed in one step, and no lease runs before.
        """
        deadline = deadline_after(block, timeout)
        core, batch = self.core, _Batch(limit, linger, block)
        if core.autosave:
            wait_for_batch = partial(self._wait_for_batch, deadline, batch) if block or linger else None
            return core.try_pop_many(limit, decode, deadline, wait_for_batch)
        claims: list[Claim] = []
        pairs: list[tuple[Any, Any]] = []
        try:
            attempt = partial(core.try_claim_many, limit, decode, claims, deadline)
            pairs = self._wait_for_batch(deadline, batch, attempt)
            tokens, items = [token for token, _ in pairs], [item for _, item in pairs]
            return core.deliver(tokens, items, self.consumer.own)
        except BaseException:
            if claims:
                core.undo(claims, [token for token, _ in pairs])
            raise

    def claim(
        self, decode: Decode[T], block: bool, timeout: float | None, claims: list[Claim]
    ) -> tuple[Sequence[Any], T]:
        """Claim an item as :meth:`get` does, but leave it to no thread.

        The caller must call ``core.settle`` with the same claims.

        :return: a sequence of what stands for the item in a claim list, and the item.
        """
        deadline = deadline_after(block, timeout)
        try:
            attempt = partial(self.core.try_claim, decode, claims, None, deadline)
            token, item = self._attempt(attempt, block, deadline)
            return (token,), self.core.hand_over((token,), [item], self.consumer.own, claims)[0]
        except BaseException:
            if claims:
                self.core.undo(claims)
            raise

    def claim_many(
        self,
        limit: int,
        decode: Decode[T],
        block: bool,
        timeout: float | None,
        linger: float,
        claims: list[Claim],
    ) -> tuple[Sequence[Any], list[T]]:
        """Claim items as :meth:`get_many` does, but leave them to no thread, as :meth:`claim` does."""
        deadline = deadline_after(block, timeout)
        try:
            attempt = partial(self.core.try_claim_many, limit, decode, claims, deadline)
            pairs = self._wait_for_batch(deadline, _Batch(limit, linger, block), attempt)
            tokens, items = [token for token, _ in pairs], [item for _, item in pairs]
            return tokens, self.core.hand_over(tokens, items, self.consumer.own, claims)
        except BaseException:
            if claims:
                self.core.undo(claims)
            raise

    def begin_pop_many(
        self,
        limit: int,
        begin: Callable[[float | None], T],
        block: bool,
        timeout: float | None,
        linger: float,
    ) -> T:
        """Get items as :meth:`get_many` does, by ``begin``, in a transaction that the caller must end.

        :param begin: called with the deadline.
        """
        deadline = deadline_after(block, timeout)
        attempt = partial(self.core.try_begin_pop, partial(begin, deadline))
        return self._wait_for_batch(deadline, _Batch(limit, linger, block), attempt)

    def _attempt(self, attempt: Callable[[], T], block: bool, deadline: float | None) -> T:
        try:
            return attempt()
        except Empty:
            if not block:
                raise
            return self._wait_for_item(deadline, None, attempt)

    def _wait_for_batch(self, deadline: float | None, batch: _Batch, attempt: Callable[[], T]) -> T:
        """Call ``attempt`` when a batch is ready, again if another consumer was faster."""
        if not batch.linger:
            return self._attempt(attempt, batch.block, deadline)
        while True:
            first = partial(self._find_ready, 1)
            if batch.block:
                self._wait_beside(first, deadline)
            else:
                first()
            with suppress(Empty):  # The time is over, and what is ready is the batch.
                self._wait_beside(partial(self._find_ready, batch.limit), time.monotonic() + batch.linger)
            try:
                return attempt()
            except Empty:
                if not batch.block or (deadline is not None and time.monotonic() >= deadline):
                    raise

    def _find_ready(self, count: int) -> None:
        """Raise ``Empty`` unless so many items are ready, or no more will come."""
        core = self.core
        if 0 < core.maxsize < count:
            count = core.maxsize
        if not core.is_shutdown and core.qsize() < count:
            raise Empty

    def _wait_for_item(self, deadline: float | None, select: Select | None, attempt: Callable[[], T]) -> T:
        if select is not None:
            return self._wait_beside(attempt, deadline)
        return self._wait(self.core.not_empty, attempt, Empty, deadline)

    def _wait_beside(self, attempt: Callable[[], T], deadline: float | None) -> T:
        """Wait until ``attempt`` does not raise ``Empty``, beside threads that wait for any item."""
        core = self.core
        # A thread waiting for a specific item, or for several, must not consume a wake-up meant for a thread
        # waiting for any item, so it waits on `any_put`, which every put notifies. It also counts among the
        # listeners of `not_empty`; otherwise a put would see no listener and notify nobody.
        waiter = core.not_empty.listen()
        try:
            try:
                waiter.enter()
                return self._wait(core.any_put, attempt, Empty, deadline)
            finally:
                waiter.leave()
        except BaseException:
            waiter.leave()  # Again, for the reason given in wait().
            raise

    def take_back(self, claims: list[Claim]) -> None:
        """Release claims that nobody will settle, at once unless that might wait for ever."""
        # The thread of a destructor must not wait, because another thread may be waiting for it.
        if in_operation():
            self.core.release_later(claims)
        else:
            self.core.undo(claims)

    # task_done and join

    def task_done(self, count: int = 1) -> None:
        """Finish the ``count`` oldest items that this thread got."""
        self.core.task_done(self.consumer.own, count)

    def settled_elsewhere(self, token: Any, ready: int) -> None:
        """Note that this thread settled an item in another way than by ``task_done``."""
        self.core.settled_elsewhere(token, self.consumer.own, ready)

    def join(self) -> None:
        """Wait until no item is unfinished."""

        def attempt() -> None:
            if self.core.has_unfinished():
                raise _Unfinished

        try:
            self._wait(self.core.all_done, attempt, _Unfinished, None, Awaited.LEFT)
        except _Unfinished:
            raise StorageError(
                "join() would wait for ever, because nothing can be finished by others before this"
                " transaction ends; leave its block first"
            ) from None
