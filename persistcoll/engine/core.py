"""What the cores of queues and of message queues do alike: late releases, wake-ups and the shutdown."""

from __future__ import annotations

import copy
import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from persistcoll.engine.contracts import MessageStore, QueueStore
from persistcoll.engine.event_count import EventCount
from persistcoll.engine.transaction_hooks import OPEN

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Core"]

S = TypeVar("S", QueueStore, MessageStore)


class Core(Generic[S]):
    """A collection over a store, without its waits: every method answers at once.

    A subclass overrides the methods under "Hooks".

    ``_mutex`` is for the subclass. It is re-entrant, because a signal handler may run while this thread holds
    it. No lock guards ``_pending_release``, because each step on a deque is atomic, or the two flags of a
    shutdown, because each is set by one assignment.

    :ivar all_done: happens when an item is finished.
    """

    store: S

    def __init__(self, store: S) -> None:
        self.is_shutdown = False
        self.is_immediate = False
        self._bind(store)
        self._reset()

    def _bind(self, store: S) -> None:
        """Use this store."""
        self.store = store

    def _reset(self) -> None:
        self.all_done = EventCount(self.store.max_poll_interval)
        self._mutex = threading.RLock()
        # Releases that failed, because the disk was full or the thread must not wait. They are done before
        # the next claim.
        self._pending_release: deque[Sequence[Any]] = deque()
        self._failed_release = self._pending_release

    def after_fork(self) -> None:
        """Begin again in a forked child, in which no thread waits and the store is the parent's."""
        self._reset()
        self.store.after_fork_in_child()

    def joined(self, connection: Any) -> Self:
        """Return a core whose calls are part of the transaction that the caller has open on ``connection``.

        It wakes no waiter, because it learns of no commit and of no rollback. What it fails to release, this
        core releases.

        :raise ValueError: the store joins no transactions.
        """
        core = copy.copy(self)
        core._bind(self.store.joined(connection))
        core._reset()
        core._failed_release = self._pending_release
        return core

    # Hooks.

    def _wake_getters(self) -> None:
        """Wake all that wait for an item, now."""
        raise NotImplementedError

    def _released(self) -> None:
        """Wake waiters, because claims were released: now, or after the caller's commit."""
        raise NotImplementedError

    def _release(self, claims: Sequence[Any]) -> None:
        """Release claims in the store."""
        self.store.release(claims)

    def _wake_all(self) -> None:
        """Wake all waiters, now."""
        self._wake_getters()
        self.all_done.notify(None)

    # For the subclass.

    def _notify(self, event: EventCount, count: int | None = None) -> None:
        """Say that ``event`` happened so many times: now, or after the commit of the caller's transaction."""
        if OPEN and (transaction := self.store.open_transaction()) is not None:
            transaction.after_commit(partial(self._notify, event, count))
        elif event.listeners:
            event.notify(count)

    def _on_rollback(self, undo: Callable[..., object], *arguments: Any) -> None:
        """Have ``undo(*arguments)`` called if a caller's transaction is open and is rolled back."""
        transaction = self.store.open_transaction()
        if transaction is not None:
            transaction.on_rollback(partial(undo, *arguments))

    # Late releases.

    def release_later(self, claims: Sequence[Any]) -> None:
        """Release claims before the next claim, because this thread must not wait for the store now."""
        self._failed_release.append(tuple(claims))

    def _release_again(self, claims: Sequence[Any]) -> None:
        """Undo the settling of claims that nobody holds any more: release them before the next claim.

        Claims that were made in the transaction have ended by its rollback, and their release does nothing.
        Idempotent.
        """
        if claims not in self._failed_release:
            self._failed_release.append(claims)
        self._wake_getters()

    def _do_pending_release(self) -> None:
        while self._pending_release:
            try:
                claims = self._pending_release.popleft()
            except IndexError:  # Another thread was faster.
                return
            try:
                if OPEN:
                    self._on_rollback(self._release_again, claims)
                self._release(claims)
            except BaseException:
                self._pending_release.append(claims)
                raise
            self._released()

    # The end.

    def shutdown(self, immediate: bool) -> None:
        """Refuse puts, and gets once no item is ready, or at once; wake all waiters."""
        self.is_shutdown = True
        if immediate:
            self.is_immediate = True
        self._wake_all()

    def close(self) -> None:
        """Close the store and wake all waiters."""
        try:
            self.store.close()
        finally:
            self._wake_all()
