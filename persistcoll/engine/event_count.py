"""Wake-ups: event counts that lose none.

A waiter takes the ticket, reads the store, and then waits on the ticket. Whatever happens after the ticket
was taken ends the wait at once, so no wake-up is lost between the reading and the wait. A superfluous wake-up
costs one read; a missing one would be a defect. The name is from Reed and Kanodia (CACM 22(2), 1979).

Other processes cannot wake a thread here. So one of the waiters polls for their changes, less and less often.
That costs the same however many threads wait, and no thread is started for it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING

from persistcoll.engine.contracts import MAX_POLL_INTERVAL
from persistcoll.errors import BackendUnavailableError

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["MIN_POLL_INTERVAL", "EventCount", "ThreadWaiter", "Waiter", "ask"]

MIN_POLL_INTERVAL = 0.0005  # Seconds.

Wake = Callable[[], object]
"""Wakes one sleeper.

It must never raise, because :meth:`EventCount.notify` calls it under its mutex, and the other sleepers that
are to be woken would sleep on.
"""


class EventCount:
    """An event count that threads and tasks can wait on.

    ``_mutex`` guards ``listeners``, ``_count``, ``_wakes`` and ``_has_poller``. It is re-entrant, because a
    signal handler may run within any of its holders, and notify. Each step leaves ``_wakes`` in a state in
    which that does no harm.

    :param max_poll_interval: seconds between two polls for changes of other processes, at the longest.
    :ivar listeners: how many waiters listen. A notifier may read it without the mutex, after the change that
        it notifies of, because a waiter counts itself in before it reads the store.
    """

    __slots__ = ("_count", "_has_poller", "_max_poll_interval", "_mutex", "_wakes", "listeners")

    def __init__(self, max_poll_interval: float = MAX_POLL_INTERVAL) -> None:
        self.listeners = 0
        self._max_poll_interval = max_poll_interval
        self._mutex = threading.RLock()
        self._count = 0
        self._wakes: deque[Wake] = deque()
        self._has_poller = False

    def notify(self, count: int | None = 1) -> None:
        """Say that something happened that lets up to ``count`` sleepers go on; ``None``: all."""
        try:
            with self._mutex:
                self._count += 1
                self._wake(len(self._wakes) if count is None else count)
        except BaseException:
            # A signal handler raised, so it is not known how many were woken. Wake all: a superfluous wake-up
            # costs one read.
            with self._mutex:
                self._count += 1
                self._wake(len(self._wakes))
            raise

    def _wake(self, count: int) -> None:
        """Wake up to ``count`` sleepers. The caller holds the mutex."""
        wakes = self._wakes
        wake = None
        try:
            while count > 0 and wakes:
                wake = wakes[0]
                wakes.popleft()
                wake()
                wake = None
                count -= 1
        except BaseException:
            # No other thread knows of this wake-up any more.
            if wake is not None:
                # It is a lock that was released already.
                with suppress(RuntimeError):
                    wake()
            raise

    def listen(self) -> ThreadWaiter:
        """Make a waiter for one thread.

        As a context manager it does not leave if a signal handler raises where leaving begins.
        """
        return ThreadWaiter(self)


class Waiter:
    """What one thread or task needs to wait on an event count. A subclass adds how it sleeps.

    The mutex of the event count guards ``_listens`` and ``_is_poller``. Only the waiter's own thread or task
    uses the other fields.
    """

    __slots__ = ("_event", "_interval", "_is_poller", "_listens", "_ticket", "_waited_cross_process")

    def __init__(self, event: EventCount) -> None:
        self._event = event
        self._ticket = 0
        self._interval = MIN_POLL_INTERVAL
        self._listens = False
        self._is_poller = False  # It polls for all waiters.
        self._waited_cross_process = False  # Its last wait was for other processes, too.

    def __enter__(self) -> Self:
        self.enter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()

    def enter(self) -> None:
        """Listen until :meth:`leave`, which must be called after an exception as well."""
        event = self._event
        with event._mutex:
            if not self._listens:
                self._listens = True
                event.listeners += 1

    def leave(self) -> None:
        """Listen no more. Idempotent."""
        event = self._event
        with event._mutex:
            if self._listens:
                self._listens = False
                event.listeners -= 1
            # A waiter that was woken to take over the polling may leave without having waited again.
            if self._waited_cross_process and not event._has_poller:
                event._wake(1)

    def prepare(self) -> None:
        """Take the ticket. What happens from now on ends the next wait."""
        self._ticket = self._event._count

    def arm(self, wake: Wake, cross_process: bool) -> bool:
        """Have ``wake`` called when something happens; return ``False`` if it happened already.

        The waiter compares the count with its ticket.

        :param cross_process: poll for other processes, if no other waiter does.
        """
        event = self._event
        with event._mutex:
            if event._count != self._ticket:
                return False
            if cross_process and not self._is_poller and not event._has_poller:
                event._has_poller = self._is_poller = True
            event._wakes.append(wake)
            return True

    def disarm(self, wake: Wake) -> bool:
        """Remove ``wake``, and return whether it was called before that."""
        event = self._event
        with event._mutex:
            try:
                event._wakes.remove(wake)
            except ValueError:
                return True
            return False

    def pass_on(self, wake_up: bool) -> None:
        """Leave an unused wake-up, or the polling, to another waiter."""
        event = self._event
        with event._mutex:
            if wake_up or self._is_poller:
                # That waiter reads the store, and becomes the poller when it waits again.
                event._wake(1)
            if self._is_poller:
                self._is_poller = event._has_poller = False

    def next_interval(self) -> float | None:
        """Return in how many seconds to poll; ``None`` if another waiter polls."""
        if not self._is_poller:
            return None
        interval = self._interval
        self._interval = min(interval * 1.5, self._event._max_poll_interval)
        return interval


class ThreadWaiter(Waiter):
    """A :class:`Waiter` that sleeps on a lock."""

    __slots__ = ()

    def wait(
        self, deadline: float | None, change_token: Callable[[], object] | None, last_token: object
    ) -> bool:
        """Wait for something to happen after the ticket was taken.

        :param deadline: by ``time.monotonic()``; ``None`` waits for ever.
        :param change_token: called now and then. Its result differs from ``last_token`` if another process
            changed something. If the store cannot be reached, it is called again later.
        :return: ``False`` if nothing happened until the deadline.
        """
        self._waited_cross_process = change_token is not None
        gate = threading.Lock()
        gate.acquire()
        try:
            return self._wait(gate, deadline, change_token, last_token)
        except BaseException:  # KeyboardInterrupt, wherever it came.
            self.pass_on(self.disarm(gate.release))
            raise

    def _wait(
        self,
        gate: threading.Lock,
        deadline: float | None,
        change_token: Callable[[], object] | None,
        last_token: object,
    ) -> bool:
        wake = gate.release
        while True:
            if not self.arm(wake, change_token is not None) or self._sleep(gate, deadline):
                self.pass_on(False)
                return True
            if self.disarm(wake):
                gate.acquire(blocking=False)  # Lock it again.
                continue  # Notified just before it was disarmed: the count says so.
            if deadline is not None and time.monotonic() >= deadline:
                self.pass_on(False)
                return False
            if self._is_poller and change_token is not None and _changed(change_token, last_token):
                self.pass_on(False)
                return True

    def _sleep(self, gate: threading.Lock, deadline: float | None) -> bool:
        interval = self.next_interval()
        if deadline is None and interval is None:
            return gate.acquire()
        remaining = threading.TIMEOUT_MAX if deadline is None else max(deadline - time.monotonic(), 0.0)
        if interval is not None:
            remaining = min(remaining, interval)
        return gate.acquire(timeout=min(remaining, threading.TIMEOUT_MAX))


def ask(change_token: Callable[[], object]) -> object:
    """Return the store's change token; ``None`` while the store cannot be reached.

    A wait survives that: until its deadline it asks again.
    """
    try:
        return change_token()
    except BackendUnavailableError:
        return None


def _changed(change_token: Callable[[], object], last_token: object) -> bool:
    token = ask(change_token)
    return token is not None and token != last_token
