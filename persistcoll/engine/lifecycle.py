"""Open, closed, forked: what every container has in common besides its items."""

from __future__ import annotations

import gc
import os
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

from persistcoll.errors import ClosedError, StorageError

__all__ = [
    "FORK_PATIENCE",
    "Forkable",
    "Quiescent",
    "follow_forks",
    "quiesce_for_forks",
    "quiesce_no_more",
    "refusal",
    "warn_unclosed",
    "within_an_operation",
]

T = TypeVar("T")

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

    def used_here(self) -> bool:
        """Whether this thread is within an operation of it, so that waiting for it would be for ever."""


# By identity; a WeakSet is not safe to iterate over if the fork came while it was changing.
_open: dict[int, weakref.ref[Forkable]] = {}
_quiescent: dict[int, weakref.ref[Quiescent]] = {}
_resting: list[Quiescent] = []
# One fork at a time: two would let go of what the other one has brought to rest.
_forking = threading.Lock()
_forker: int | None = None  # the thread that has it
_collecting = False  # whether the garbage collector was on before the fork


def follow_forks(container: Forkable) -> None:
    """Have ``container._after_fork()`` called in every forked child for as long as it lives."""
    identity = id(container)
    _open[identity] = weakref.ref(container, lambda reference: _forget(identity, reference))


def _forget(identity: int, reference: weakref.ref[Forkable]) -> None:
    if _open.get(identity) is reference:  # not another object that got the same identity
        del _open[identity]


def _living(references: dict[int, weakref.ref[T]]) -> list[T]:
    return [container for reference in list(references.values()) if (container := reference()) is not None]


def _each(calls: Iterable[Callable[[], None]]) -> None:
    """Call all of them, whatever one raises; the interpreter reports the first such error."""
    failure: BaseException | None = None
    for call in calls:
        try:
            call()
        except BaseException as error:
            failure = failure or error
    if failure is not None:
        raise failure


def quiesce_for_forks(container: Quiescent) -> None:
    """As :func:`follow_forks`, and have it come to rest before each fork."""
    identity = id(container)
    _quiescent[identity] = weakref.ref(container, lambda _: _quiescent.pop(identity, None))
    follow_forks(container)


def quiesce_no_more(container: Quiescent) -> None:
    """It is shut: there is nothing to bring to rest any more."""
    _quiescent.pop(id(container), None)


def within_an_operation() -> bool:
    """Whether this thread is within an operation of any that comes to rest for forks.

    A destructor may run there, at any moment. It must not wait for another operation, whose thread may be
    waiting for this one's.
    """
    return any(container.used_here() for container in _living(_quiescent))


def _before_fork() -> None:
    global _forker, _collecting
    _forking.acquire()
    _forker = threading.get_ident()
    # The destructor of a forgotten container would wait for what is at rest, here and in the child.
    _collecting = gc.isenabled()
    gc.disable()
    _each(_comings_to_rest())


def _comings_to_rest() -> Iterator[Callable[[], None]]:
    # What opens others comes last, though it was there first: within an operation of one, which is waited
    # for, another one may be opened. Then come those.
    while awake := [container for container in reversed(_living(_quiescent)) if container not in _resting]:
        for container in awake:
            _resting.append(container)  # before: also what fails half way has something to let go of
            yield container._before_fork


def _after_fork_in_parent() -> None:
    global _forker
    if _forker != threading.get_ident():  # it was interrupted while it waited for another one's fork
        return
    try:
        _each(container._after_fork_in_parent for container in reversed(_resting))
    finally:
        _resting.clear()
        if _collecting:
            gc.enable()
        _forker = None
        _forking.release()


def _after_fork_in_child() -> None:
    global _forking, _forker
    _forking = threading.Lock()
    _forker = None
    _resting.clear()
    try:
        _each(container._after_fork for container in _living(_open))
    finally:
        if _collecting:
            gc.enable()


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
