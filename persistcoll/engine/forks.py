"""Follow forks, and tell what is unusable: what every container has in common besides its items."""

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
    "FORK_TIMEOUT",
    "REENTRANT",
    "Forkable",
    "Nestable",
    "Quiescent",
    "Used",
    "acquire_tracked",
    "fork_was_seen",
    "in_operation",
    "notice_unseen_fork",
    "operations_here",
    "owned",
    "read_only_error",
    "register_forkable",
    "register_quiescent",
    "register_used",
    "timeout_left",
    "unregister_quiescent",
    "unregister_used",
    "warn_unclosed",
]

T = TypeVar("T")

REENTRANT = "nothing can be done with a store from within another operation of this thread on it"
"""For a ``StorageError``: a signal handler or a destructor came in within an operation."""
FORK_TIMEOUT = 10.0
"""Seconds that a fork waits for the operations of other threads to end."""
# For how many of these seconds one container is held, at first, while the fork waits for another one.
_FIRST_HOLD = 0.05


class Forkable(Protocol):
    """What :func:`register_forkable` takes."""

    def _after_fork(self) -> None:
        """Drop what is the parent's, in a forked child, before anything else runs there."""


class Used(Protocol):
    """What :func:`register_used` takes."""

    def used_here(self) -> bool:
        """Tell whether this thread is within an operation of it, so that it would wait for itself."""


class Quiescent(Forkable, Used, Protocol):
    """What :func:`register_quiescent` takes."""

    def _before_fork(self) -> None:
        """Quiesce, in the parent: let no operation run until after the fork."""

    def _after_fork_in_parent(self) -> None:
        """Let operations run again, in the parent, if it is quiesced."""


@runtime_checkable
class Nestable(Quiescent, Protocol):
    """A quiescent container within whose operations another one may be used."""

    def _try_quiesce(self, timeout: float) -> bool:
        """Quiesce ahead of ``_before_fork``, if no operation runs within so many seconds; return whether."""


# By identity, because a WeakSet is not safe to iterate over if the fork came while it changed.
_open: dict[int, weakref.ref[Forkable]] = {}
_quiescent: dict[int, weakref.ref[Quiescent]] = {}
_used: dict[int, weakref.ref[Used]] = {}
_quiesced: list[Quiescent] = []
# One fork at a time, because each would resume what the other one has quiesced. The lock knows its owner,
# however soon after taking it an interrupt ends that thread's call.
_forking = threading.RLock()
_collecting = False  # whether to switch the garbage collector on again
_waited = 0.0  # seconds that a fork has waited for all containers at once
_process = os.getpid()
_prepared = False  # Python's hooks have run for the fork under way
_seen = True  # they had run for the fork that this process came from


def register_forkable(container: Forkable) -> None:
    """Call ``container._after_fork()`` in every forked child for as long as the container lives."""
    identity = id(container)
    _open[identity] = weakref.ref(container, lambda reference: _forget(identity, reference))


def _forget(identity: int, reference: weakref.ref[Forkable]) -> None:
    if _open.get(identity) is reference:  # not another object that got the same identity
        del _open[identity]


def _living(references: dict[int, weakref.ref[T]]) -> list[T]:
    return [container for reference in list(references.values()) if (container := reference()) is not None]


def _call_all(calls: Iterable[Callable[[], None]]) -> None:
    """Call all of them, even if one raises, and raise the first error, which the interpreter reports."""
    failure: BaseException | None = None
    for call in calls:
        try:
            call()
        except BaseException as error:
            failure = failure or error
    if failure is not None:
        raise failure


def register_used(container: Used) -> None:
    """Let :func:`in_operation` ask ``container`` for as long as it lives."""
    identity = id(container)
    _used[identity] = weakref.ref(container, lambda _: _used.pop(identity, None))


def register_quiescent(container: Quiescent) -> None:
    """Register it as forkable and used, and quiesce it before each fork."""
    identity = id(container)
    _quiescent[identity] = weakref.ref(container, lambda _: _quiescent.pop(identity, None))
    register_used(container)
    register_forkable(container)


def unregister_quiescent(container: Quiescent) -> None:
    """Quiesce it no more, because it is closed."""
    _quiescent.pop(id(container), None)
    unregister_used(container)


def unregister_used(container: Used) -> None:
    """Ask it no more, because it is closed and no thread is within it."""
    _used.pop(id(container), None)


def owned(lock: RLock) -> Callable[[], bool]:
    """Return a function that tells whether this thread holds the lock.

    The lock knows its owner from the moment on that it is taken, so no signal handler comes in between.
    """
    return lock._is_owned  # type: ignore[attr-defined, no-any-return]


def in_operation() -> bool:
    """Tell whether this thread is within an operation of any container that :func:`register_used` knows.

    A destructor may run there at any moment. It must not wait for another operation, because the thread of
    that one may be waiting for this thread.
    """
    return any(container.used_here() for container in _living(_used))


def operations_here() -> list[Used]:
    """Return everything that :func:`register_used` knows and this thread is within an operation of."""
    return [container for container in _living(_used) if container.used_here()]


def acquire_tracked(lock: threading.Lock, timeout: float, held: list[threading.Lock]) -> bool:
    """Call ``lock.acquire(timeout=timeout)`` and, if that succeeds, add the lock to ``held``; return whether.

    One call of C does both, so that an interrupt cannot come between them.
    """
    held.extend(compress((lock,), map(lock.acquire, (True,), (timeout,))))
    return lock in held


def _before_fork() -> None:
    global _collecting, _prepared
    _forking.acquire()
    _prepared = True
    # The destructor of a forgotten container would wait for what is quiesced, here and in the child.
    _collecting = _collecting or gc.isenabled()
    gc.disable()
    _call_all(_quiesce_steps())


def _quiesce_steps() -> Iterator[Callable[[], None]]:
    yield _quiesce_all
    for nestable in _quiesced.copy():
        yield nestable._before_fork
    # Quiesce the registry last, because an operation that the fork waits for may still open a database.
    # Repeat until no new container appears.
    while awake := [container for container in reversed(_living(_quiescent)) if container not in _quiesced]:
        for container in awake:
            _quiesced.append(
                container
            )  # before the call, because a call that fails half way has to be undone, too
            yield container._before_fork


def _quiesce_all() -> None:
    """Quiesce the nestable containers together, if that succeeds within half of the timeout.

    A thread inside a busy database's operation may need a database that the fork has quiesced already, so
    holding those while it waits would deadlock. Therefore each is held for a short time only. If one is busy
    for longer, all are resumed, the busy one comes first in the next round, and the time doubles: the
    containers get into the order in which the threads use them.
    """
    global _waited
    _waited = 0.0
    deadline = time.monotonic() + FORK_TIMEOUT / 2
    hold = _FIRST_HOLD
    busy: Nestable | None = None
    order: list[Nestable] = []
    while (remaining := deadline - time.monotonic()) > 0:
        awake = [container for container in reversed(_living(_quiescent)) if isinstance(container, Nestable)]
        awake = [container for container in awake if not container.used_here()]
        if len(awake) < 2:
            return
        order = [container for container in order if container in awake]
        order += [container for container in awake if container not in order]
        for container in order:
            _quiesced.append(container)
            if not container._try_quiesce(remaining if container is busy else hold):
                busy = container
                break
        else:
            return
        _resume_all()
        order.remove(busy)
        order.insert(0, busy)
        hold *= 2
    _waited = FORK_TIMEOUT / 2


def timeout_left(timeout: float) -> float:
    """Return what is left of so many seconds for one container, after the fork waited for all in vain."""
    return max(0.0, timeout - _waited)


def _resume_all() -> None:
    """Resume every quiesced container, even if one raises."""
    failure: BaseException | None = None
    while _quiesced:
        for _ in range(2):  # an interrupt may have cut the first call short
            try:
                _quiesced[-1]._after_fork_in_parent()
                break
            except BaseException as error:
                failure = failure or error
        del _quiesced[-1]
    if failure is not None:
        raise failure


def _interrupt() -> None:
    """Give an interrupt that came during the fork a function to come out of: the first one that follows."""


def _after_fork_in_parent() -> None:
    global _collecting, _prepared
    _prepared = False
    try:
        with _forking:
            try:
                _resume_all()
            finally:
                try:
                    _resume_all()
                finally:
                    if _collecting:
                        _collecting = False
                        gc.enable()
    finally:
        try:
            _forking.release()
        except RuntimeError:  # an interrupt came while this thread waited for another one's fork
            pass


def notice_unseen_fork() -> None:
    """Do what an unseen fork has left undone, where the process id is not the one that a container remembers.

    Programs that embed Python, as uWSGI without ``enable-threads``, and C libraries fork without calling
    Python's hooks: then nothing was quiesced, and the child finds out by its process id at its first call.
    """
    if os.getpid() != _process:
        _after_fork_in_child()


def fork_was_seen() -> bool:
    """Tell, within ``_after_fork``, whether Python's hooks had quiesced everything, as far as they could."""
    return _seen


def _after_fork_in_child() -> None:
    global _forking, _collecting, _process, _prepared, _seen
    _process = os.getpid()
    _prepared, _seen = False, _prepared
    _forking = threading.RLock()
    _quiesced.clear()
    try:
        _call_all(container._after_fork for container in _living(_open))
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
    """Make the error for a call that would change what was opened with ``read_only=True``."""
    return StorageError(
        f"{what} was opened with read_only=True, so this is refused; open it without that", errno.EROFS
    )


def warn_unclosed(container: object, description: str) -> None:
    """Warn of a container that its destructor finds open."""
    warnings.warn(f"unclosed {description}", ResourceWarning, stacklevel=3, source=container)
