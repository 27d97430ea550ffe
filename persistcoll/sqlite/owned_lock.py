"""A mutex that knows which thread holds it, so that no thread waits for itself.

A destructor or a signal handler may run at any call, in any thread. In a thread that is within an operation
it must wait for no other thread, because that thread may be waiting for this thread's mutex. So code that may
run there asks :attr:`OwnedLock.is_owned` first, and destructors ask
:func:`~persistcoll.engine.forks.in_operation`.
"""

from __future__ import annotations

import threading
from typing import cast

from persistcoll.engine.forks import acquire_tracked, owned

__all__ = ["OwnedLock", "release_all"]


class OwnedLock:
    """A mutex and its owner.

    The mutex is re-entrant because only a re-entrant lock knows its owner from the moment at which it is
    acquired: an interrupt may come directly after the call. It is acquired by ``with owned_lock.mutex`` and
    not by a method, because an interrupt where a method in Python begins or ends would leave it locked.

    :ivar is_owned: tells whether this thread holds it.
    """

    __slots__ = ("is_owned", "mutex")

    def __init__(self) -> None:
        self.mutex = threading.RLock()
        self.is_owned = owned(self.mutex)

    def quiesce(self, timeout: float, held: list[threading.Lock]) -> bool:
        """Keep all other threads from it until :func:`release_all`; return whether that succeeded.

        It fails if another thread holds the mutex for too long, and if this thread held it before.

        :param timeout: seconds to wait until no thread holds it.
        :param held: gets the mutex.
        """
        # Both kinds of locks have the methods that are called.
        return not self.is_owned() and acquire_tracked(cast(threading.Lock, self.mutex), timeout, held)


def release_all(held: list[threading.Lock]) -> None:
    """Release all of ``held``, the last one first. Idempotent, and may be called again after an interrupt."""
    while held:
        lock = held[-1]
        del held[-1]
        lock.release()  # no other call since `del`, so an interrupt cannot come between the two
