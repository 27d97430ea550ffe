"""Open, closed, forked: what every container has in common besides its items."""

from __future__ import annotations

import os
import warnings
import weakref
from typing import Protocol

from persistcoll.errors import ClosedError, StorageError

__all__ = ["Forkable", "follow_forks", "refusal", "warn_unclosed"]


class Forkable(Protocol):
    """What :func:`follow_forks` follows."""

    def _after_fork(self) -> None:
        """In a forked child, before anything else runs there: let go of what is the parent's."""


# By identity; a WeakSet is not safe to iterate over if the fork came while it was changing.
_open: dict[int, weakref.ref[Forkable]] = {}


def follow_forks(container: Forkable) -> None:
    """Have ``container._after_fork()`` called in every forked child for as long as it lives."""
    identity = id(container)
    _open[identity] = weakref.ref(container, lambda reference: _forget(identity, reference))


def _forget(identity: int, reference: weakref.ref[Forkable]) -> None:
    if _open.get(identity) is reference:  # not another object that got the same identity
        del _open[identity]


def _after_fork_in_child() -> None:
    for reference in list(_open.values()):
        container = reference()
        if container is not None:
            container._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def refusal(trouble: StorageError | ClosedError, where: str) -> StorageError | ClosedError:
    """The error for a call on a store in this state: a failure that nothing follows, or closed."""
    if isinstance(trouble, ClosedError):
        return ClosedError(f"the store in {where!r} is closed")
    error = StorageError(f"{trouble}; close the store and open it again", trouble.errno)
    error.__cause__ = trouble
    return error


def warn_unclosed(container: object) -> None:
    """To be called by a destructor that finds its container open."""
    warnings.warn(f"unclosed {container!r}", ResourceWarning, stacklevel=3, source=container)
