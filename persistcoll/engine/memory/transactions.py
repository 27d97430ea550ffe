"""The state of the reference models, and its transactions: a rollback restores what was at the beginning."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from persistcoll.engine.tasks import current_task
from persistcoll.engine.transaction_hooks import OPEN, TransactionHooks
from persistcoll.errors import Empty, LockedError

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["TransactionalState"]


class TransactionalState:
    """What the stores of one name share, and the transaction that one task has open in it.

    It outlives the closing of the stores. Several stores of one state behave like stores in several processes
    that have the same file open. A copy (:meth:`copy`) is the state that another process finds if this
    process dies now.

    ``lock`` protects every attribute and every row. A transaction holds it from its beginning to its end, so
    other threads wait for that. It is re-entrant, so another task of the same thread must be refused.

    :param clock: returns the time in seconds since the epoch.
    :ivar before: a snapshot of the beginning of the open transaction; ``None`` if none is open.
    :ivar changes: how many changes there were; a rollback does not undo it.
    """

    TABLES: ClassVar[tuple[str, ...]] = ("rows",)
    """The names of the attributes that are dicts of rows."""
    NUMBERS: ClassVar[tuple[str, ...]]
    """The names of the attributes that are numbers and a part of what is stored."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.clock = clock
        self.changes = 0
        self.lock = threading.RLock()
        self.before: Any = None
        self._hooks: TransactionHooks | None = None
        self._task: Any = None
        self._thread = 0

    def empty(self) -> Self:
        """Return a new state, of the same kind, that holds nothing."""
        return type(self)(self.clock)

    def copy(self) -> Self:
        """Return a copy of the committed state."""
        with self.lock:
            other = self.empty()
            other.restore(self.before or self.snapshot())
            other.changes = self.changes
            return other

    def snapshot(self) -> dict[str, Any]:
        """Return a copy of what is stored, by the names of the attributes."""
        return _copied({name: getattr(self, name) for name in (*self.TABLES, *self.NUMBERS)})

    def restore(self, before: dict[str, Any]) -> None:
        """Store what the snapshot holds."""
        for name, stored in _copied(before).items():
            setattr(self, name, stored)

    def nothing(self, times: Iterable[float | None]) -> Empty:
        """Return an ``Empty`` that says when a record becomes ready by itself, if a time is known."""
        error = Empty()
        known = [each for each in times if each is not None]
        if known:
            error.next_at = time.monotonic() + min(known) - self.clock()  # type: ignore[attr-defined]
        return error

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
        hooks.released()

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


def _copied(stored: dict[str, Any]) -> dict[str, Any]:
    return {
        name: {key: copy.copy(row) for key, row in value.items()} if isinstance(value, dict) else value
        for name, value in stored.items()
    }
