"""Wake-ups between processes, on a server that passes notifications on.

A notification is a hint, and the poll is the guarantee. A notification is lost if its sender looked for
waiters before one of them was registered, if the sender had notified a moment before, and with a connection.
So each wait begins to poll within a millisecond, and polls half as often each time. What is put a moment
after a notification, and without one, is found in that moment, because a waiter that was woken polls from the
beginning. A wait that lasts registers its process and listens. Then it polls less often, because it is
notified.

A watch asks the server for its change token only when it polls. In between it returns the token of the last
poll, which is older than the look that follows it. A commit after the look is also a commit after that poll,
so the token of the next poll differs, and nothing is lost. A commit before the look costs a superfluous look.
"""

from __future__ import annotations

import math
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

from persistcoll.engine.contracts import Awaited
from persistcoll.errors import BackendUnavailableError, StorageError
from persistcoll.servers.driver import ConnectionLostError, TryAgainError

if TYPE_CHECKING:
    from persistcoll.servers.driver import OwnConnection
    from persistcoll.servers.sessions import Server, Session

__all__ = ["WakeStatements", "Wakes"]

_SHORTEST_POLL = 0.0005  # seconds
_LONGEST_POLL = 1.0  # of a process that is notified
_LONGEST_POLL_ALONE = 0.04  # of one that is not
# A wait that polls less often than this listens. Others end before a notification would be noticed sooner.
_LISTEN_FROM = 0.016
_NOTIFY_EVERY = 0.02  # seconds between two notifications of one process: waiters read them as seldom
_REGISTERED, _RENEWED = 60.0, 30.0  # seconds that a registration lasts, and after which it is renewed
_UNUSED = 60.0  # seconds without a wait after which nobody listens
_LISTEN_AGAIN = 10.0  # seconds after a failure
_CONNECT_AGAIN = 600.0  # seconds after a connection that cannot listen
_PATIENCE = 1.0  # seconds that closing waits for a thread that is about to listen, or to connect
_PROCESS_BITS = 62


class WakeStatements(NamedTuple):
    """The statements by which processes wake each other. A channel is a name of ASCII letters and digits."""

    create: tuple[str, ...]
    """Make the table of waiters where it is missing."""
    listen: str
    """With the name of a channel after it: notifications of this channel come on this connection."""
    register: str
    """channel, process, seconds -> the process waits for notifications of this channel."""
    delete_old: str
    """channel -> deletes registrations that are over, unless another transaction has locked them."""
    notify_waiting: str
    """channel -> with the commit it is notified, if a process is registered."""
    notify: str
    """channel -> the same if no process is registered, too."""


class Wakes:
    """What the waiters of this process know of the others, by one connection that listens.

    A poller and a server in another mode may take the statements, and pass nothing on. So this process
    notifies itself whenever it registers, on a channel of its own. Until it hears that, nobody relies on
    notifications.

    ``_mutex`` guards what belongs to the connection: ``_connection``, ``_own``, ``_registered`` and
    ``_is_closed``. A waiter never waits for it, because its holder reads for all. Any thread reads
    ``_heard``, ``_losses`` and ``_is_heard`` without it. The steps on ``_notified`` are atomic.
    """

    def __init__(self, server: Server, sql: WakeStatements) -> None:
        self._server = server
        self._sql = sql
        self._notified: dict[str, float] = {}
        self._heard: Counter[str] = Counter()
        self._losses = 0
        self._is_closed = False
        self._connection: OwnConnection | None = None
        self.forget()

    def forget(self) -> None:
        """Listen no more in a forked child, because the connection is the parent's."""
        self._mutex = threading.Lock()
        if self._connection is not None:
            self._connection.abandon()
        self._connection = None
        self._thread: threading.Thread | None = None
        self._process, self._own = 0, ""
        self._registered: dict[str, float] = {}
        self._is_heard = False
        self._read_at = 0.0
        self._listen_at = 0.0

    # Notifying.

    def channel(self, store_id: bytes, awaited: Awaited) -> str:
        """Return the channel on which processes are notified that wait for that in this collection."""
        return f"pc_{store_id.hex()}_{awaited.value}"

    def notification(self, channel: str, always: bool = False) -> tuple[str, ...]:
        """Return the statement that notifies a channel; none if this process did so a moment before.

        NOTIFY takes one lock of the whole server for each commit.
        """
        now = time.monotonic()
        if not always:
            if self._connection is not None and now - self._read_at > _UNUSED:
                self._stop_unused()
            if now - self._notified.get(channel, -math.inf) < _NOTIFY_EVERY:
                return ()
        return (self._sql.notify_waiting,)

    def has_notified(self, channels: Iterable[str]) -> None:
        """Note that notifications of these channels were committed.

        Not before, because one that is rolled back wakes nobody, and the next try must send it again.
        """
        now = time.monotonic()
        for channel in channels:
            self._notified[channel] = now

    def _stop_unused(self) -> None:
        """Listen no more: what nobody reads the server would have to keep."""
        if self._mutex.acquire(blocking=False):
            try:
                self._stop()
            finally:
                self._mutex.release()

    # Listening.

    def watch(self, channel: str, poll: Callable[[], object]) -> Callable[[], object]:
        """Return the change token of one wait.

        :param poll: returns the change token of the store.
        """
        return _Watch(self, channel, poll)

    def heard(self, channel: str) -> tuple[int, int]:
        """Return how many notifications of a channel have come, and how often the connection was lost."""
        if self._connection is not None and self._mutex.acquire(blocking=False):
            try:
                self._read()
            finally:
                self._mutex.release()
        return self._heard[channel], self._losses

    def _read(self) -> None:
        connection = self._connection
        if connection is None:
            return
        self._read_at = time.monotonic()
        try:
            for channel in connection.notifications():
                if channel == self._own:
                    self._is_heard = True
                else:
                    self._heard[channel] += 1
        except (ConnectionLostError, StorageError):
            self._stop()

    def longest_poll(self, channel: str) -> float:
        """Return in how many seconds a wait polls at the latest."""
        is_notified = self._is_heard and channel in self._registered
        return _LONGEST_POLL if is_notified else _LONGEST_POLL_ALONE

    def listen(self, channel: str) -> None:
        """Listen to a channel and be registered for it, where the server lets this process do so."""
        now = time.monotonic()
        is_fresh = now - self._registered.get(channel, -math.inf) < _RENEWED
        if is_fresh or now < self._listen_at or not self._mutex.acquire(blocking=False):
            return
        try:
            if self._is_closed:
                return
            if self._connection is None:
                self._begin_to_connect(now)
            else:
                self._listen(channel, now)
        except (ConnectionLostError, TryAgainError, StorageError):  # The poll goes on, and more often.
            self._listen_at = now + _LISTEN_AGAIN
            self._stop()
        except BaseException:  # An interrupt: an answer may still come.
            self._stop()
            raise
        finally:
            self._mutex.release()

    def _begin_to_connect(self, now: float) -> None:
        """Let a thread connect, because a server may answer on its connections and take no new ones.

        The caller holds the mutex. Its wait polls meanwhile, and ends at its deadline.
        """
        self._thread = threading.Thread(target=self._connect, name="persistcoll-wakes", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # The system or the end of the interpreter allows no more threads.
            self._listen_at = now + _LISTEN_AGAIN
        else:
            self._listen_at = math.inf  # until the thread, which waits for the mutex, has set it

    def _connect(self) -> None:
        server = self._server
        connection: OwnConnection | None = None
        pause = _LISTEN_AGAIN
        try:
            connection = server.driver.connect(server.address, server.timeout, False)
            # Otherwise a session of all clients would listen.
            pause = 0.0 if connection.keeps_session else _CONNECT_AGAIN
        except (ConnectionLostError, TryAgainError, StorageError):
            pass  # The waiters poll, and one of them begins again later.
        finally:
            with self._mutex:
                self._read_at = time.monotonic()
                self._listen_at = self._read_at + pause
                if not (pause or self._is_closed or self._connection):
                    self._connection, connection = connection, None
                    self._process = secrets.randbits(_PROCESS_BITS)
                    self._own = f"pc_{self._process:x}"
            if connection is not None:
                connection.close()

    def _listen(self, channel: str, now: float) -> None:
        connection = self._connection
        assert connection is not None
        if not self._registered:
            connection.run(self._sql.listen + self._own)
        if channel not in self._registered:
            # First, because a process that finds the registration notifies at once.
            connection.run(self._sql.listen + channel)
        self._is_heard = False

        def register(session: Session) -> None:
            sql = self._sql
            session.defer(sql.delete_old, channel=channel)
            session.defer(sql.register, channel=channel, process=self._process, seconds=_REGISTERED)
            session.defer(sql.notify, channel=self._own)

        self._server.transact(register, sync=False, once=False, deadline=now)
        self._registered[channel] = now

    def _stop(self) -> None:
        """Close the connection. The caller holds the mutex."""
        connection, self._connection = self._connection, None
        self._registered.clear()
        self._is_heard = False
        if connection is not None:
            self._losses += 1
            connection.close()

    def close(self) -> None:
        """Listen no more, for good.

        A thread that connects still closes what it gets.
        """
        is_held = self._mutex.acquire(timeout=_PATIENCE)
        try:
            self._is_closed = True
            self._stop()
        finally:
            if is_held:
                self._mutex.release()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(_PATIENCE)


class _Watch:
    """The change token of one wait. One thread uses it.

    ``_breaks`` counts what may have cost a notification or made the server forget a commit. After it the
    waiter looks, as soon as the server answers.
    """

    def __init__(self, wakes: Wakes, channel: str, poll: Callable[[], object]) -> None:
        self._wakes = wakes
        self._channel = channel
        self._poll = poll
        self._interval = _SHORTEST_POLL
        self._next = 0.0
        self._polled: object = None
        self._heard, self._losses = wakes.heard(channel)
        self._breaks = 0

    def __call__(self) -> object:
        heard, losses = self._wakes.heard(self._channel)
        now = time.monotonic()
        if heard != self._heard:
            self._heard = heard
            self._interval = _SHORTEST_POLL
            self._next = min(self._next, now + self._interval)
        if losses != self._losses:
            self._losses = losses
            self._breaks += 1
            self._next = now
        if now >= self._next:
            self._ask(now)
        return None if self._polled is None else (self._heard, self._breaks, self._polled)

    def _ask(self, now: float) -> None:
        """Poll the server."""
        wakes = self._wakes
        if self._interval > _LISTEN_FROM:
            wakes.listen(self._channel)
        # A waiter whose connection was lost is notified of nothing until a thread has connected again.
        interval = min(self._interval, wakes.longest_poll(self._channel))
        self._next = now + interval
        self._interval = 2 * interval
        try:
            self._polled = self._poll()
        except BackendUnavailableError:
            self._polled = None
            self._breaks += 1
            raise
