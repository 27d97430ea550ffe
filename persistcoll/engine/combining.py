"""Combine the work of many callers, so that one of them does it for all.

While one caller works, those that come meanwhile wait; when it is done, the first of them does the work of
all of them. This is flat combining (Hendler, Incze, Shavit and Tzafrir, SPAA 2010). Each waiting caller has a
gate of its own, so that no woken caller fights for a common lock.

The next leader wakes those whose work is done, when it begins to wait for the device. Woken at once, they
would run first, because one thread runs at a time, and the device would wait for all of them: with 32 threads
on two cores a put took 36 us that way and takes 25 us this way (benchmarks: power).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Generic, TypeVar

__all__ = ["Combiner", "Request"]

_PAUSE = 0.05  # seconds


class Request:
    """What one caller wants done.

    :ivar failure: set by the thread that does the work: what this caller's ``submit`` raises.
    :ivar cut_short: an interrupt ended that thread's work. The caller must find out by other means how far
        the work came.
    """

    # Class attributes, because each put of an item makes a request.
    failure: BaseException | None = None
    cut_short = False
    gate: threading.Lock | None = None
    batch: list[Request] | None = None  # what the leader works at; set when this request gets the lead
    started = finished = False  # the work at `batch`
    performed = False  # by another leader
    to_wake: list[Request] | None = None  # for the thread of this request to wake


R = TypeVar("R", bound=Request)


class Combiner(Generic[R]):
    """Let one caller at a time work for all that wait.

    An interrupt may end one of them between any two calls; the others go on.

    ``_mutex`` guards ``has_leader``, ``_pending``, and the ``batch``, ``performed`` and ``to_wake`` of every
    request that waits. Each thread adds and removes only itself in ``active_threads``.

    :param execute_batch: does the work of several requests, in order, and sets their ``failure``. It calls
        its second argument when it begins to wait for something else than a processor. A signal handler or a
        destructor may call it within itself, with one request: where this thread holds its lock, it fails
        that request before anything is stored.
    :ivar has_leader: a caller works.
    :ivar active_threads: the threads within :meth:`submit`. A destructor that comes in there must not wait
        for other callers, because they may be waiting for its thread.
    """

    def __init__(self, execute_batch: Callable[[Sequence[R], Callable[[], None]], None]) -> None:
        self._execute_batch = execute_batch
        self._mutex = threading.Lock()
        self._pending: list[Request] = []
        self.has_leader = False
        self.active_threads: set[int] = set()

    def submit(self, request: R) -> None:
        """Return when a leader has executed ``request``; raise its failure.

        A request out of a signal handler or a destructor within another submission of this thread is executed
        alone, because the other callers may be waiting for this thread.
        """
        me = threading.get_ident()
        if me in self.active_threads:
            self._execute_batch([request], _wake_nobody)
        else:
            try:
                self.active_threads.add(me)
                try:
                    self._submit(request)
                except BaseException:
                    # Each call here is as deep as that of _submit() and calls nothing written in Python. A
                    # RecursionError of _submit() therefore cannot prevent it, and leave every thread waiting
                    # for a leader that there is not.
                    if request.gate is not None and not self._remove_pending(request):
                        # Another thread works at the request, or gives it the lead: only the outcome tells
                        # what there is to undo. The wait ends with that, or by another interrupt.
                        while not (request.performed or request.started or request.batch is not None):
                            request.gate.acquire(timeout=_PAUSE)
                    self._leave(request)
                    _open_gates(request)
                    raise
            finally:
                self.active_threads.discard(me)
        if request.failure is not None:
            raise request.failure

    def _submit(self, request: Request) -> None:
        with self._mutex:
            if self.has_leader:
                gate = threading.Lock()
                gate.acquire()
                # No call between these two assignments, because a request with a gate must be pending, or
                # have been.
                request.gate = gate
                self._pending = [*self._pending, request]
            else:
                self.has_leader = True
                request.batch = [request]
        if request.gate is not None:
            request.gate.acquire()
        batch = request.batch
        if batch is not None:
            request.started = True
            self._execute_batch(batch, partial(_open_gates, request))  # type: ignore[arg-type]  # all are R
            request.finished = True
            self._leave(request)
            if request.to_wake:
                _open_gates(request)

    def _remove_pending(self, request: Request) -> bool:
        """Keep every leader from ``request``; return ``False`` if one has it already."""
        with self._mutex:
            if request not in self._pending:
                return False
            self._pending.remove(request)
            return True

    def _leave(self, request: Request) -> None:
        """Hand the lead to the next waiting caller. :func:`_open_gates` must follow, and wakes the callers.

        Both are idempotent, because a thread calls them again after an interrupt.
        """
        with self._mutex:
            batch = request.batch
            if batch is not None:
                following, done = self._pending, batch[1:]
                if not request.started:
                    following, done = [*done, *following], []
                elif not request.finished:
                    for other in done:
                        other.cut_short = True
                for other in done:
                    other.performed = True
                to_wake = [*(request.to_wake or ()), *(following[:1] or done)]
                # No calls below, because an interrupt comes at a call and passing on the lead must be atomic.
                request.to_wake = to_wake
                request.batch = None
                self._pending = []
                if following:
                    following[0].to_wake = done
                    following[0].batch = following
                else:
                    self.has_leader = False


def _wake_nobody() -> None:
    """Stand in for waking callers where a request is executed alone."""


def _open_gates(request: Request) -> None:
    requests = request.to_wake
    while requests:
        gate = requests[0].gate
        del requests[0]
        if gate is not None:
            gate.release()
