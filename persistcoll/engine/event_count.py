"""Wake-ups: event counts that lose none.

The rule is: take the ticket, look, then wait on the ticket. Whatever happens after the ticket was
taken ends the wait at once, so there is no moment between looking and waiting in which a wake-up
could be lost. A wake-up too many costs one look; one too few would be a bug.

What other processes do cannot wake anybody here. So one of those who wait polls for it, less and less often:
a wait costs well under one per cent of a core, however many threads wait, and no thread is started for it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

__all__ = ["MAX_POLL_INTERVAL", "MIN_POLL_INTERVAL", "EventCount", "Waiter"]

MIN_POLL_INTERVAL = 0.0005
MAX_POLL_INTERVAL = 0.005
"""Seconds. The slowest is for what is cheap to ask."""


class EventCount:
    """An event count that threads can wait on.

    :param max_poll_interval: seconds between two looks at what other processes do, at the longest.
    :ivar listeners: how many listen. Who notifies may look at it first, after the fact and without a
        lock: a listener counts itself in before it looks at the facts.
    """

    __slots__ = ("_count", "_gates", "_has_poller", "_max_poll_interval", "_mutex", "listeners")

    def __init__(self, max_poll_interval: float = MAX_POLL_INTERVAL) -> None:
        self.listeners = 0
        self._max_poll_interval = max_poll_interval
        # Re-entrant: a signal handler may come in within any of its holders, and notify. Each step leaves the
        # gates such that this does no harm.
        self._mutex = threading.RLock()
        self._count = 0
        self._gates: deque[threading.Lock] = deque()
        self._has_poller = False  # somebody polls

    def notify(self, count: int | None = 1) -> None:
        """Something happened that lets up to ``count`` listeners go on; ``None``: all of them."""
        try:
            with self._mutex:
                self._count += 1
                self._open(len(self._gates) if count is None else count)
        except BaseException:  # out of a signal handler: a wake-up too many costs one look
            with self._mutex:
                self._count += 1
                self._open(len(self._gates))
            raise

    def _open(self, count: int) -> None:
        """With the mutex held: open up to ``count`` gates."""
        gates = self._gates
        gate = None
        try:
            while count > 0 and gates:
                gate = gates[0]
                gates.popleft()
                gate.release()
                gate = None
                count -= 1
        except BaseException:
            if gate is not None:  # nobody else knows of it any more
                with suppress(RuntimeError):  # it was opened already
                    gate.release()
            raise

    def listen(self) -> Waiter:
        """A listener, for one thread. As a context manager it does not leave if a signal handler raises where
        leaving begins.
        """
        return Waiter(self)


class Waiter:
    """One thread's listening to a signal."""

    __slots__ = ("_interval", "_is_poller", "_listens", "_signal", "_ticket", "_waited_cross_process")

    def __init__(self, signal: EventCount) -> None:
        self._signal = signal
        self._ticket = 0
        self._interval = MIN_POLL_INTERVAL
        self._listens = False
        self._is_poller = False  # for all
        self._waited_cross_process = False  # waited for other processes too

    def __enter__(self) -> Waiter:
        self.enter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()

    def enter(self) -> None:
        """Listen, until :meth:`leave`, which must follow an exception as well."""
        signal = self._signal
        with signal._mutex:
            if not self._listens:
                self._listens = True
                signal.listeners += 1

    def leave(self) -> None:
        """Listen no more. Idempotent."""
        signal = self._signal
        with signal._mutex:
            if self._listens:
                self._listens = False
                signal.listeners -= 1
            # Who was woken to take over the polling may leave without having waited again.
            if self._waited_cross_process and not signal._has_poller:
                signal._open(1)

    def prepare(self) -> None:
        """Before looking: what happens from now on ends the next wait."""
        self._ticket = self._signal._count

    def wait(
        self, deadline: float | None, change_token: Callable[[], object] | None, last_token: object
    ) -> bool:
        """Wait for something to happen after the ticket was taken.

        :param deadline: by ``time.monotonic()``; ``None`` waits for ever.
        :param change_token: asked now and then: it differs from ``last_token`` when another process
            did something.
        :return: ``False`` if nothing happened until the deadline.
        """
        self._waited_cross_process = change_token is not None
        gate = threading.Lock()
        gate.acquire()
        try:
            return self._wait(gate, deadline, change_token, last_token)
        except BaseException:  # KeyboardInterrupt, wherever it came in
            self._pass_on(self._withdraw(gate))
            raise

    def _wait(
        self,
        gate: threading.Lock,
        deadline: float | None,
        change_token: Callable[[], object] | None,
        last_token: object,
    ) -> bool:
        signal = self._signal
        while True:
            with signal._mutex:
                happened = signal._count != self._ticket
                if not happened:
                    if change_token is not None and not self._is_poller and not signal._has_poller:
                        signal._has_poller = self._is_poller = True
                    signal._gates.append(gate)
            if happened:
                self._pass_on(False)
                return True
            if self._sleep(gate, deadline):
                self._pass_on(False)
                return True
            if self._withdraw(gate):
                continue  # notified in the last moment: the count tells
            if deadline is not None and time.monotonic() >= deadline:
                self._pass_on(False)
                return False
            if self._is_poller and change_token is not None and change_token() != last_token:
                self._pass_on(False)
                return True

    def _sleep(self, gate: threading.Lock, deadline: float | None) -> bool:
        if deadline is None and not self._is_poller:
            return gate.acquire()
        remaining = threading.TIMEOUT_MAX if deadline is None else max(deadline - time.monotonic(), 0.0)
        if self._is_poller:
            remaining = min(remaining, self._interval)
            self._interval = min(self._interval * 1.5, self._signal._max_poll_interval)
        return gate.acquire(timeout=min(remaining, threading.TIMEOUT_MAX))

    def _withdraw(self, gate: threading.Lock) -> bool:
        """Take the gate back; whether it was opened before that."""
        signal = self._signal
        with signal._mutex:
            try:
                signal._gates.remove(gate)
            except ValueError:
                gate.acquire(blocking=False)  # close it again
                return True
            return False

    def _pass_on(self, wake_up: bool) -> None:
        """Leave a wake-up that was not used, or the polling, to another one who waits."""
        signal = self._signal
        with signal._mutex:
            if wake_up or self._is_poller:
                # It looks, and then finds the polling free when it waits again.
                signal._open(1)
            if self._is_poller:
                self._is_poller = signal._has_poller = False
