"""What follows the end of a caller's transaction: the undoing after a rollback, the wake-ups after a commit.

A store undoes what is stored. What a process remembers of it beside the store, such as which items a thread
has got, is undone by the hooks: each operation within the transaction adds one before it changes something.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

__all__ = ["OPEN", "TransactionHooks"]

OPEN: list[object] = []
"""The hooks of every transaction that a thread of this process has open.

It is nearly always empty, and a look at it is the whole cost of the hooks to an operation in no transaction.
An entry that is there for too long only makes each operation ask its store. Each step on the list is atomic.
"""


class TransactionHooks:
    """The functions to call when one open transaction ends. Only its thread uses them, so they need no lock.

    An interrupt may end the calling of the hooks at any place, and the next call goes on with the function
    that it came in. So each function must be idempotent, except those of :meth:`after_release`.
    """

    def __init__(self) -> None:
        self._undo: list[Callable[[], object]] = []
        self._after_commit: deque[Callable[[], object]] = deque()
        self._after_release: deque[Callable[[], object]] = deque()

    def on_rollback(self, undo: Callable[[], object]) -> None:
        """Have ``undo`` called if the transaction is rolled back, before another caller can write.

        The function that was added last is called first. None of them may use the store.
        """
        self._undo.append(undo)

    def after_commit(self, function: Callable[[], object]) -> None:
        """Have ``function`` called if the transaction is committed, before another caller can write.

        The function that was added first is called first.
        """
        self._after_commit.append(function)

    def after_release(self, function: Callable[[], object]) -> None:
        """Have ``function`` called if the transaction is committed, when the thread holds no lock any more.

        It may use the store. The function that was added first is called first. It is called once at most: an
        interrupt leaves out those that have not been called yet.
        """
        self._after_release.append(function)

    def rolled_back(self) -> None:
        """Call what follows a rollback."""
        while self._undo:
            self._undo[-1]()
            self._undo.pop()

    def committed(self) -> None:
        """Call what follows a commit."""
        while self._after_commit:
            self._after_commit[0]()
            self._after_commit.popleft()

    def released(self) -> None:
        """Call what follows a commit and the release of all locks."""
        while self._after_release:
            self._after_release.popleft()()
