"""Open, closed, forked: what every container has in common besides its items."""

from __future__ import annotations

import errno
import gc
import os
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from itertools import compress
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

from persistcoll.errors import StorageError

if TYPE_CHECKING:
    from threading import RLock  # a function at run time before Python 3.13

__all__ = [
    "FORK_PATIENCE",
    "Forkable",
    "Nestable",
    "Quiescent",
    "Used",
    "acquire_noted",
    "follow_forks",
    "follow_unseen_fork",
    "fork_was_seen",
    "note_users",
    "owned",
    "patience_left",
    "quiesce_for_forks",
    "quiesce_no_more",
    "read_only_error",
    "used_no_more",
    "warn_unclosed",
    "within_an_operation",
]

T = TypeVar("T")

FORK_PATIENCE = 10.0
"""Seconds that a fork waits for what is being done to end."""
# Of these, how long something may be kept from others while another thing is waited for, at first.
_MOMENT = 0.05


class Forkable(Protocol):
    """What :func:`follow_forks` follows."""

    def _after_fork(self) -> None:
        """In a forked child, before anything else runs there: let go of what is the parent's."""


class Used(Protocol):
    """What :func:`note_users` notes."""

    def used_here(self) -> bool:
        """Whether this thread is within an operation of it, so that waiting for it would be for ever."""


class Quiescent(Forkable, Used, Protocol):
    """What :func:`quiesce_for_forks` follows."""

    def _before_fork(self) -> None:
        """In the parent: come to rest, and stay so."""

    def _after_fork_in_parent(self) -> None:
        """In the parent: go on, if it is at rest."""


@runtime_checkable
class Nestable(Quiescent, Protocol):
    """One within whose operations another one may be used."""

    def _come_to_rest(self, patience: float) -> bool:
        """Ahead of ``_before_fork``: let nobody use it, if within so many seconds nobody does; whether so."""


# By identity; a WeakSet is not safe to iterate over if the fork came while it was changing.
_open: dict[int, weakref.ref[Forkable]] = {}
_quiescent: dict[int, weakref.ref[Quiescent]] = {}
_used: dict[int, weakref.ref[Used]] = {}
_resting: list[Quiescent] = []
# One fork at a time: two would let go of what the other one has brought to rest. It knows its owner, however
# soon behind taking it that one is interrupted.
_forking = threading.RLock()
_collecting = False  # whether the garbage collector is to be switched on again
_waited = 0.0  # seconds, for all at once
_process = os.getpid()
_prepared = False  # Python's hooks have run for the fork under way
_seen = True  # they had run for the fork that this process came from


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


def note_users(container: Used) -> None:
    """Have :func:`within_an_operation` ask ``container`` for as long as it lives."""
    identity = id(container)
    _used[identity] = weakref.ref(container, lambda _: _used.pop(identity, None))


def quiesce_for_forks(container: Quiescent) -> None:
    """As :func:`follow_forks` and :func:`note_users`, and have it come to rest before each fork."""
    identity = id(container)
    _quiescent[identity] = weakref.ref(container, lambda _: _quiescent.pop(identity, None))
    note_users(container)
    follow_forks(container)


def quiesce_no_more(container: Quiescent) -> None:
    """It is shut: there is nothing to bring to rest any more."""
    _quiescent.pop(id(container), None)
    used_no_more(container)


def used_no_more(container: Used) -> None:
    """It is shut: nothing is within it any more."""
    _used.pop(id(container), None)


def owned(lock: RLock) -> Callable[[], bool]:
    """What tells whether this thread has the lock.

    The lock knows it from the moment that it is taken, so no signal handler comes in between the two.
    """
    return lock._is_owned  # type: ignore[attr-defined, no-any-return]


def within_an_operation() -> bool:
    """Whether this thread is within an operation of any container that notes its users.

    A destructor may run there, at any moment. It must not wait for another operation, whose thread may be
    waiting for this one's.
    """
    return any(container.used_here() for container in _living(_used))


def acquire_noted(lock: threading.Lock, timeout: float, held: list[threading.Lock]) -> bool:
    """``lock.acquire(timeout=timeout)``, and put among ``held`` if so; whether so.

    In one call of C, so that whatever an interrupt comes in behind is known.
    """
    held.extend(compress((lock,), map(lock.acquire, (True,), (timeout,))))
    return lock in held


def _before_fork() -> None:
    global _collecting, _prepared
    _forking.acquire()
    _prepared = True
    # The destructor of a forgotten container would wait for what is at rest, here and in the child.
    _collecting = _collecting or gc.isenabled()
    gc.disable()
    _each(_comings_to_rest())


def _comings_to_rest() -> Iterator[Callable[[], None]]:
    yield _rest_together
    for nestable in _resting.copy():
        yield nestable._before_fork
    # What opens others comes last, though it was there first: within an operation of one, which is waited
    # for, another one may be opened. Then come those.
    while awake := [container for container in reversed(_living(_quiescent)) if container not in _resting]:
        for container in awake:
            _resting.append(container)  # before: also what fails half way has something to let go of
            yield container._before_fork


def _rest_together() -> None:
    """Bring to rest those within whose operations others are used, if it can be done in half of the patience.

    For who is within an operation of a late one may be waiting for another one. So while a late one is waited
    for, none is at rest, but for a moment: busy ones are hardly ever free at the same time. The next time it
    comes first, and the moment is longer: thereby they get into the order in which they are used.
    """
    global _waited
    _waited = 0.0
    deadline = time.monotonic() + FORK_PATIENCE / 2
    moment = _MOMENT
    late: Nestable | None = None
    order: list[Nestable] = []
    while (patience := deadline - time.monotonic()) > 0:
        awake = [container for container in reversed(_living(_quiescent)) if isinstance(container, Nestable)]
        awake = [container for container in awake if not container.used_here()]
        if len(awake) < 2:
            return
        order = [container for container in order if container in awake]
        order += [container for container in awake if container not in order]
        for container in order:
            _resting.append(container)
            if not container._come_to_rest(patience if container is late else moment):
                late = container
                break
        else:
            return
        _let_go()
        order.remove(late)
        order.insert(0, late)
        moment *= 2
    _waited = FORK_PATIENCE / 2


def patience_left(patience: float) -> float:
    """What is left of so many seconds for a container alone, after all were waited for together in vain."""
    return max(0.0, patience - _waited)


def _let_go() -> None:
    """Of all that is at rest, whatever one raises."""
    failure: BaseException | None = None
    while _resting:
        for _ in range(2):  # an interrupt may have cut it short
            try:
                _resting[-1]._after_fork_in_parent()
                break
            except BaseException as error:
                failure = failure or error
        del _resting[-1]
    if failure is not None:
        raise failure


def _interrupt() -> None:
    """What interrupts a fork is raised where the first function behind it begins: here."""


def _after_fork_in_parent() -> None:
    global _collecting, _prepared
    _prepared = False
    try:
        with _forking:
            try:
                _let_go()
            finally:
                try:
                    _let_go()
                finally:
                    if _collecting:
                        _collecting = False
                        gc.enable()
    finally:
        try:
            _forking.release()
        except RuntimeError:  # it was interrupted while it waited for another one's fork
            pass


def follow_unseen_fork() -> None:
    """Do what the fork has left undone, in a process whose id is not the one that a container remembers.

    Programs that embed Python and C libraries fork without calling Python's hooks: then nothing had come to
    rest, and the child finds out by its process id at its first call. uWSGI without ``enable-threads`` does.
    """
    if os.getpid() != _process:
        _after_fork_in_child()


def fork_was_seen() -> bool:
    """Within ``_after_fork``: whether Python's hooks had brought everything to rest, as far as they could."""
    return _seen


def _after_fork_in_child() -> None:
    global _forking, _collecting, _process, _prepared, _seen
    _process = os.getpid()
    _prepared, _seen = False, _prepared
    _forking = threading.RLock()
    _resting.clear()
    try:
        _each(container._after_fork for container in _living(_open))
    finally:
        if _collecting:
            _collecting = False
            gc.enable()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_parent=_interrupt)
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child
    )


def read_only_error(what: str) -> StorageError:
    """The error for a call that would change what was opened only to look."""
    return StorageError(
        f"{what} was opened with read_only=True, so this is refused; open it without that", errno.EROFS
    )


def warn_unclosed(container: object) -> None:
    """To be called by a destructor that finds its container open."""
    warnings.warn(f"unclosed {container!r}", ResourceWarning, stacklevel=3, source=container)
