"""Transactions of the reference models: a snapshot at the beginning, which a rollback restores."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from persistcoll.engine.tasks import current_task
from persistcoll.engine.transaction_hooks import OPEN, TransactionHooks
from persistcoll.errors import LockedError

__all__ = ["TransactionalState"]


class TransactionalState(ABC):
    """What the stores of one name share, and the transaction that one task has open in it.

    ``lock`` protects every attribute. A transaction holds it from its beginning to its end, so other threads
    wait for that. It is re-entrant, so another task of the same thread must be refused.

    :ivar before: a snapshot of the beginning of the open transaction; ``None`` if none is open.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.before: Any = None
        self._hooks: TransactionHooks | None = None
        self._task: Any = None
        self._thread = 0

    @abstractmethod
    def snapshot(self) -> Any:
        """Return a copy of what is stored."""

    @abstractmethod
    def restore(self, before: Any) -> None:
        """Store what the snapshot holds."""

    def refuse_other_task(self) -> None:
        """Raise ``LockedError`` if another task of this thread has a transaction open. Needs the lock."""
        if self._hooks is not None and self._task is not current_task():
            raise LockedError("another task of this thread has a transaction open")

    def open_transaction(self) -> TransactionHooks | None:
        """Return the hooks of the transaction that this task has open, or ``None``. Needs no lock."""
        hooks = self._hooks
        is_own = self._thread == threading.get_ident() and self._task is current_task()
        return hooks if is_own else None

    @contextmanager
    def transaction(self, check: Callable[[], object]) -> Iterator[None]:
        """Return a context manager for a transaction.

        :param check: raises if the store that begins it cannot be used.
        """
        with self.lock:
            check()
            if self._hooks is not None:
                yield
                return
            hooks = self._begin()
            try:
                yield
            except BaseException:
                self.restore(self.before)
                hooks.rolled_back()
                raise
            finally:
                self._hooks = self._task = self.before = None
                OPEN.remove(hooks)
        hooks.committed()

    def _begin(self) -> TransactionHooks:
        self._thread, self._task = threading.get_ident(), current_task()
        self.before = self.snapshot()
        self._hooks = hooks = TransactionHooks()
        OPEN.append(hooks)
        return hooks

    def forked(self) -> None:
        """Roll back in a forked child what a thread of the parent had open."""
        self.lock = threading.RLock()
        if self._hooks is not None:
            self.restore(self.before)
            OPEN.remove(self._hooks)
            self._hooks = self._task = self.before = None
