"""A mutex that knows which thread has it, so that its thread is never kept waiting for itself.

A destructor or a signal handler may run behind any call, in whichever thread. In a thread that is within an
operation it must wait for no other thread, because that one may be waiting for this thread's mutex. So
whatever may run there asks :attr:`OwnedLock.is_owned` first, and destructors ask
:func:`~persistcoll.engine.forks.in_operation`.
"""

from __future__ import annotations

import threading
from typing import cast

from persistcoll.engine.forks import acquire_tracked, owned

__all__ = ["OwnedLock", "release_all"]


class OwnedLock:
    """A mutex and its owner.

    The mutex is re-entrant because only such a one knows its owner as soon as it is taken: an interrupt may
    come in behind the call. It is taken by ``with owned_lock.mutex``, not by a method, because an interrupt
    where a method in Python begins or ends would leave it taken.

    :ivar is_owned: whether this thread has it.
    """

    __slots__ = ("is_owned", "mutex")

    def __init__(self) -> None:
        self.mutex = threading.RLock()
        self.is_owned = owned(self.mutex)

    def quiesce(self, timeout: float, held: list[threading.Lock]) -> bool:
        """Keep all other threads from it until :func:`release_all` of ``held``.

        :param timeout: seconds to wait until no thread has it.
        :return: whether it is kept; never where this thread had it before.
        """
        # A lock of either kind has the methods that are called.
        return not self.is_owned() and acquire_tracked(cast(threading.Lock, self.mutex), timeout, held)


def release_all(held: list[threading.Lock]) -> None:
    """Release them, the last one first. Idempotent, also where it was interrupted."""
    while held:
        lock = held[-1]
        del held[-1]
        lock.release()  # nothing was called since, behind which an interrupt could come
