"""The part of the contract that queue stores and message stores share: transactions, life and death."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

from persistcoll.engine.contracts.capabilities import StoreCapabilities
from persistcoll.engine.transaction_hooks import TransactionHooks

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["MAX_POLL_INTERVAL", "Awaited", "Store"]

MAX_POLL_INTERVAL = 0.005
"""The seconds between two calls of ``change_token``, for a store in which the call is cheap."""


class Awaited(Enum):
    """What ends a wait."""

    READY = "ready"
    """An item becomes ready, or will become ready at another time than before."""
    LEFT = "left"
    """An item is not ready any more, or not unfinished."""


class Store(Protocol):
    """Keep bytes that consumers claim. Any thread may call any method, and none waits for an item.

    A signal handler or a destructor may call the store within another call of the same thread. The call works
    if the thread holds no lock of the store. Otherwise it raises ``StorageError`` before anything is stored.

    A ``deadline`` (by ``time.monotonic()``) bounds three waits: for another caller's open transaction, for a
    connection, and for a lock of the database. It bounds no other wait, because the short turns of ordinary
    writers always end. After the deadline the call raises ``LockedError`` or ``BackendUnavailableError``.
    With ``None``, and in a call without this parameter, the time that the store was opened with applies.

    A holder is *dead* as soon as it has closed, or when the store has noticed that its process died. A store
    that uses heartbeats takes a holder for dead after a time without a heartbeat that the store was opened
    with. It looks for holders that died when a claim finds nothing, and from time to time while claims find
    something. So what a dead process has claimed comes back in a busy store, too.

    :ivar capabilities: what this store promises beyond the contract.
    :ivar max_poll_interval: the longest time in seconds that a waiter lets pass between two calls of
        :meth:`change_token`. It is so long that the calls take a small part of a core.
    """

    capabilities: StoreCapabilities = StoreCapabilities()
    max_poll_interval: float = MAX_POLL_INTERVAL

    def change_token(self) -> object:
        """Return an object that differs from an earlier one if another process changed something since.

        It also differs when a delay, a lease or another time is over, and when a holder was found dead.

        :raise BackendUnavailableError: the store cannot be reached now. A waiter calls again.
        """

    def watch(self, awaited: Awaited) -> Callable[[], object]:
        """Return the change token of one wait: a function that is called in place of :meth:`change_token`.

        What it returns need not differ after a change that is not awaited, or while the store notices changes
        in a cheaper way. ``None``: the store cannot be reached now.
        """
        return self.change_token

    def transaction(self) -> AbstractContextManager[Any]:
        """Return a context manager for a transaction of this task (of this thread, if it runs none).

        At the end of the block all that this task did to collections of the same database takes effect
        together. If the block raises, nothing of it does, and every claim is as it was before. A transaction
        within another one is part of the outer one. Writers in other threads and processes wait until the end
        of the block, and another task of the same thread is refused with ``LockedError``.

        :return: what it gives to the block is the store's own; SQLite gives the connection.
        :raise ValueError: this store has no transactions.
        """
        raise ValueError(f"{type(self).__name__} has no transactions")

    def open_transaction(self) -> TransactionHooks | None:
        """Return the hooks of the transaction that the next call of this task is a part of, or ``None``."""
        return None

    def is_held_up(self) -> bool:
        """Tell whether reading waits for the end of another caller's transaction."""
        return False

    def await_transaction(self) -> None:
        """Return when no other caller's transaction is open.

        What the process remembers of a claim may be that of the open transaction, and the end may undo it. So
        the core waits for the end before it settles a claim, and not only for the lock of the database.

        :raise LockedError: the transaction did not end in time.
        """
        return

    def joined(self, connection: Any) -> Self:
        """Return this store bound to the transaction that the caller has open on ``connection``.

        The changes of its methods are part of that transaction. The caller commits the transaction or rolls
        it back, and the store learns of neither. The methods never wait for an item, retry nothing and wake
        no waiter. If one of them settles a claim, the claim is stale after the commit: a store that remembers
        its claims raises ``StaleClaimError``, and not ``NotClaimedError``.

        :raise ValueError: this store joins no transactions.
        """
        raise ValueError(f"{type(self).__name__} joins no transactions of a caller")

    def after_fork_in_child(self) -> None:
        """Close what belongs to the parent, and write nothing. It is the first call in a forked child.

        The next call opens the store again. The claims of the parent are not claims of the child.
        """

    def close(self) -> None:
        """End the claims of this store, and close all files and connections. Idempotent."""
