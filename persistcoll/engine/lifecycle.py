"""Open, closed, forked: what every container has in common besides its items."""

from __future__ import annotations

import os
import warnings
import weakref
from typing import Protocol

from persistcoll.errors import ClosedError, StorageError

__all__ = [
    "FORK_PATIENCE",
    "Forkable",
    "Quiescent",
    "follow_forks",
    "quiesce_for_forks",
    "refusal",
    "warn_unclosed",
]


FORK_PATIENCE = 10.0
"""Seconds that a fork waits for what is being done to end."""


class Forkable(Protocol):
    """What :func:`follow_forks` follows."""

    def _after_fork(self) -> None:
        """In a forked child, before anything else runs there: let go of what is the parent's."""


class Quiescent(Forkable, Protocol):
    """What :func:`quiesce_for_forks` follows."""

    def _before_fork(self) -> None:
        """In the parent: come to rest, and stay so."""

    def _after_fork_in_parent(self) -> None:
        """In the parent: go on."""


# By identity; a WeakSet is not safe to iterate over if the fork came while it was changing.
_open: dict[int, weakref.ref[Forkable]] = {}
_quiescent: dict[int, weakref.ref[Quiescent]] = {}
_resting: list[Quiescent] = []


def follow_forks(container: Forkable) -> None:
    """Have ``container._after_fork()`` called in every forked child for as long as it lives."""
    identity = id(container)
    _open[identity] = weakref.ref(container, lambda reference: _forget(identity, reference))


def _forget(identity: int, reference: weakref.ref[Forkable]) -> None:
    if _open.get(identity) is reference:  # not another object that got the same identity
        del _open[identity]


def _after_fork_in_child() -> None:
    _resting.clear()
    for reference in list(_open.values()):
        container = reference()
        if container is not None:
            container._after_fork()


def quiesce_for_forks(container: Quiescent) -> None:
    """As :func:`follow_forks`, and have it come to rest before each fork."""
    identity = id(container)
    _quiescent[identity] = weakref.ref(container, lambda _: _quiescent.pop(identity, None))
    follow_forks(container)


def _before_fork() -> None:
    for reference in list(_quiescent.values()):
        container = reference()
        if container is not None:
            container._before_fork()
            _resting.append(container)


def _after_fork_in_parent() -> None:
    while _resting:
        _resting.pop()._after_fork_in_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child
    )


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
