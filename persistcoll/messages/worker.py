"""A worker: it gets messages, and lets handlers work on several of them at once until it is stopped."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from inspect import iscoroutinefunction
from queue import SimpleQueue
from typing import Any, Generic

from persistcoll.arguments import checked_limit, checked_span
from persistcoll.container import T
from persistcoll.engine.event_count import EventCount
from persistcoll.engine.forks import read_only_error
from persistcoll.engine.message_records import MessageClaim
from persistcoll.engine.transaction_hooks import OPEN
from persistcoll.errors import Empty, ShutDown, StorageError
from persistcoll.messages.claiming import Wanted
from persistcoll.messages.fields import checked_concurrency
from persistcoll.messages.handling import PAUSES, TEMPORARY, Handling
from persistcoll.messages.message import Message
from persistcoll.messages.queue import MessageQueue
from persistcoll.messages.stop_signals import StopSignals

__all__ = ["Worker"]

_log = logging.getLogger("persistcoll")

_LEFT = 2 / 3
"""The part of a lease that is left when it is extended, so that none ends while the machine is busy."""
_NOTICED_AFTER = 1.0
"""Seconds until a signal is noticed at the latest. If one comes directly before a thread waits for a lock,
CPython runs its handler when the wait ends."""


class _Changed(Exception):
    """Raised within a wait for messages, because the worker has something else to do first."""


@dataclass(eq=False)
class _Delivery(Generic[T]):
    """A message from its claim until its handler has returned.

    :ivar was_prefetched: whether it has to be noted that the work on it begins.
    :ivar lease: the length of its lease in seconds; 0 without one.
    :ivar ahead: by how much the store's clock is ahead of the monotonic one.
    :ivar is_extended: whether its lease is extended.
    :ivar since: when it was claimed or, later, when a thread got it, by the monotonic clock.
    """

    message: Message[T]
    was_prefetched: bool
    lease: float
    ahead: float
    is_extended: bool = False
    since: float = 0.0

    @property
    def ends_at(self) -> float:
        """When its lease ends, by the monotonic clock; infinite if it is not extended."""
        until = self.message._leased_until
        if not self.is_extended or self.message._settled_for_good or until is None:
            return math.inf
        return until - self.ahead

    @property
    def extend_at(self) -> float:
        """When its lease is to be extended."""
        return self.ends_at - self.lease * _LEFT


class Worker(Generic[T]):
    """Gets messages of a queue, and calls a handler with each of them, in several threads at once.

    A message whose handler returns is acked. If the handler raises an exception, the message is nacked with
    its type and text as ``last_error``. What the handler has settled itself stays as it is. Only
    :exc:`KeyboardInterrupt` and :exc:`SystemExit` release the message and end the worker: :meth:`run` raises
    them when the other handlers have returned.

    While a handler runs, the worker extends the lease of its message. So a message whose worker dies is
    delivered again soon, and one that takes long is not. Only messages that a handler has got count an
    attempt if the process dies.

    Any number of workers, in any processes, may share a queue. A worker runs once. A child that a handler
    forks gets no message and settles none.

    Cost: for each message an ack, a claim, which those that are claimed together share, and 1 more
    transaction without a sync if it was prefetched. One transaction extends all leases of a worker that are
    equally long, after a third of that length. The thread that calls :meth:`run` claims and extends, and the
    worker starts as many others as handlers run at once. While nothing is to be done the former does what a
    waiting :meth:`MessageQueue.get` does, and the others do nothing.

    The log (logger ``persistcoll``) has ids and topics, and never a body, a header or the text of a handler's
    exception.

    >>> from persistcoll import MessageQueue, Worker
    >>> def resize(message):
    ...     print(message.body)
    ...     if message.body == "b.png":
    ...         worker.stop()
    >>> with MessageQueue("jobs") as jobs:
    ...     ids = jobs.put_many(["a.png", "b.png", "c.png"], topic="images")
    ...     worker = Worker(jobs, resize, topics="images")
    ...     worker.run()
    ...     print(jobs.topics())
    a.png
    b.png
    {'images': 1}

    :param handler: is called with each :class:`Message`. With a ``concurrency`` above 1, several threads call
        it at once.
    :param topics: where to get messages from: a name or several; ``None``: any topic, or those of
        ``concurrency``.
    :param concurrency: how many handlers run at once at most; or a dict that says how many for each topic,
        and so names the topics. A topic whose handlers hang then leaves those of the others alone.
    :param prefetch: how many messages are claimed ahead at most, while no handler is free for them. They are
        claimed again when more than half of them have gone to a handler.
    :param extend: whether leases are extended.
    :param timeout: seconds after which the lease of a handler that still runs is extended no more, so that
        another worker gets the message when the lease is over. The handler itself cannot be stopped, and
        keeps its thread. ``None``: its lease is extended for ever.
    :param on_error: is called with the message and the exception when a handler has raised one, before the
        message is nacked. It may settle the message in another way, such as ``message.fail()``. An
        :exc:`Exception` that it raises is logged.
    :raise TypeError: an argument is of a wrong type.
    :raise ValueError: a number is too small; a topic is too long; or ``topics`` are not those of
        ``concurrency``.
    :raise StorageError: the queue was opened with ``read_only=True``.
    """

    # There is no lock. The thread of run() alone uses the fields, with two exceptions. `_handed` and
    # `_finished` are queues between it and the threads of handlers. `_stops`, `_failure` and `_interruption`
    # are set by any thread and by signal handlers, which then call _wake(). No change is missed, because
    # _wake() sets `_changed` before it reads `_event`, and run() clears `_changed` before it reads what has
    # changed, and sets `_event` before it reads `_changed` and waits.

    def __init__(
        self,
        queue: MessageQueue[T],
        handler: Callable[[Message[T]], object],
        *,
        topics: str | Iterable[str] | None = None,
        concurrency: int | Mapping[str, int] = 1,
        prefetch: int = 1,
        extend: bool = True,
        timeout: float | None = None,
        on_error: Callable[[Message[T], BaseException], object] | None = None,
    ) -> None:
        if not isinstance(queue, MessageQueue):
            raise TypeError(f"'queue' must be a MessageQueue, not {type(queue).__name__}")
        if queue.read_only:
            raise read_only_error(repr(queue))
        _check_function("handler", handler)
        if on_error is not None:
            _check_function("on_error", on_error)
        self._queue = queue
        self._core, self._claiming = queue._core, queue._claiming
        self._topics, self._limits, self._total = checked_concurrency(topics, concurrency)
        self._prefetch = checked_limit("prefetch", prefetch)
        self._extend = bool(extend)
        self._timeout = None if timeout is None else checked_span("timeout", timeout)
        self._handling = Handling(self._claiming, handler, on_error, self._fail)

        self._runs_once = threading.Lock()  # Held from the call of run() on.
        self._signals = StopSignals(self.stop, self._interrupt)
        self._process = 0
        self._stops = False
        self._failure: BaseException | None = None  # What run() raises when all handlers have returned.
        self._interruption: BaseException | None = None  # What run() raises at once.
        self._changed = False
        self._event = EventCount()  # The one on which run() waits, or has waited last.

        self._claims: list[MessageClaim] = []  # Those of a claim that is going on.
        self._deliveries: dict[int, _Delivery[T]] = {}  # The last one of each message, by its id.
        self._waiting: list[_Delivery[T]] = []  # Those that no thread has got yet, in their order.
        self._running: Counter[str] = Counter()  # How many of each topic threads have got.
        self._threads: list[threading.Thread] = []
        self._handed: SimpleQueue[_Delivery[T] | None] = SimpleQueue()  # To a thread; None ends it.
        self._finished: deque[_Delivery[T]] = deque()
        self._extend_at = math.inf
        self._claim_at = -math.inf
        self._failures = 0  # How many calls of the store have failed, one after the other.

    def __repr__(self) -> str:
        return f"<Worker of {self._queue._description}>"

    # For its users.

    def run(self) -> None:
        """Get and handle messages until :meth:`stop`, a signal, or ``shutdown()`` of the queue.

        Then messages that were only prefetched are released, the handlers that run are waited for, their
        messages are settled, and this method returns. No attempt is lost by that, and no thread remains.

        In the main thread SIGTERM and SIGINT do what :meth:`stop` does, until this method returns; a signal
        that the process ignores stays ignored. In other threads signals are left alone. A second signal, a
        second or more after the first one, ends the worker at once: the messages of running handlers are
        released, too, and this method raises :exc:`KeyboardInterrupt` (SIGINT), or :exc:`SystemExit` with the
        status 143 (SIGTERM), without waiting for any handler. Their threads do not keep the process alive. A
        third signal does what it did before.

        A database that is full or locked, and a server that cannot be reached, are logged and tried again,
        with longer and longer pauses of up to 5 seconds. Every other error of the storage ends the worker, as
        an exception of a handler that ends it does.

        Cost: that of the class, for each message.

        :raise RuntimeError: the worker has run already.
        :raise ClosedError: the queue was closed.
        :raise StorageError: the storage failed for good; or it was called in the block of
            :meth:`MessageQueue.transaction`.
        :raise KeyboardInterrupt: a handler has raised it, or a second signal came.
        :raise SystemExit: a handler has raised it, or a second signal came.
        """
        if OPEN and self._core.store.open_transaction() is not None:
            raise StorageError("a worker cannot run within a transaction; leave its block first")
        if not self._runs_once.acquire(blocking=False):
            raise RuntimeError("a worker runs once; make another one")
        self._process = os.getpid()
        try:
            try:
                self._signals.catch()
                while not self._step():
                    pass
            finally:
                self._end()
        except BaseException:
            self._end()  # Again, because a signal handler may have raised within the first call.
            raise
        if self._failure is not None:
            failure, self._failure = self._failure, None
            try:
                raise failure
            finally:
                del failure  # Otherwise the exception would refer to itself.

    def stop(self) -> None:
        """Let :meth:`run` end as soon as the handlers that run have returned. It does not wait for that.

        Any thread may call it, also a handler and a signal handler, at any time and several times. A worker
        that was stopped before it runs gets no message.

        Cost: no write and no sync.
        """
        self._stops = True
        self._wake()

    # The thread of run().

    def _end(self) -> None:
        """Leave nothing claimed, and no thread but those whose handlers still run. Idempotent."""
        self._event = EventCount()
        self._release([*self._deliveries.values()])
        for _ in self._threads:
            self._handed.put(None)
        if not self._running:
            for thread in self._threads:
                if thread.is_alive():
                    thread.join()
        self._signals.restore()

    def _step(self) -> bool:
        """Do what is to be done now, wait for what is next, and tell whether nothing is."""
        self._changed = False
        ends = self._stops or self._core.is_shutdown
        self._note_finished()
        self._keep_leases()
        if not ends:
            self._hand_out()
            self._get()
            return False
        if self._interruption is not None:
            raise self._interruption
        self._release(self._waiting)
        self._waiting.clear()
        if self._running:
            self._sleep(self._extend_at)
        return not self._running

    def _note_finished(self) -> None:
        while self._finished:
            delivery = self._finished.popleft()
            message = delivery.message
            self._running[message.topic] -= 1
            if not self._running[message.topic]:
                del self._running[message.topic]
            if self._deliveries.get(message.id) is delivery:
                del self._deliveries[message.id]

    def _hand_out(self) -> None:
        """Let threads handle the messages that wait, as far as the concurrency allows."""
        for delivery in self._waiting.copy():
            busy, topic = self._running.total(), delivery.message.topic
            if busy == self._total:
                break
            if self._limits is not None and self._running[topic] == self._limits[topic]:
                continue
            if busy == len(self._threads) and not self._start_thread():
                break
            self._waiting.remove(delivery)
            self._watch(delivery)
            self._running[topic] += 1
            self._handed.put(delivery)

    def _start_thread(self) -> bool:
        """Start one more thread for handlers, and tell whether the system allows it."""
        name = f"persistcoll-worker-{len(self._threads) + 1}"
        # After a second signal the process ends although handlers run, so the threads must not keep it alive.
        thread = threading.Thread(target=self._handle_all, name=name, daemon=True)
        # Before the start, because a signal handler may raise after it.
        self._threads.append(thread)
        try:
            thread.start()
        except RuntimeError as error:
            self._threads.remove(thread)
            self._fail(error)
            return False
        return True

    def _wanted(self) -> list[Wanted]:
        """Return what to claim: first for free handlers, then ahead for those that are not free."""
        if self._limits is None:
            topics, free = self._topics, self._total - self._running.total()
        else:
            rooms = {topic: limit - self._running[topic] for topic, limit in self._limits.items()}
            topics = tuple(topic for topic, room in rooms.items() if room)
            # A claim is for any of these topics, so all that it gets may be of one of them.
            free = min((rooms[topic] for topic in topics or ()), default=0)
        wanted = []
        if free:
            wanted.append(Wanted(free, topics, ...))
        room = self._prefetch - len(self._waiting)
        if room * 2 > self._prefetch and not (free and topics == self._topics):
            wanted.append(Wanted(room, self._topics, ..., True))
        return wanted

    def _get(self) -> None:
        """Claim messages, or wait until there is one, or until something else is to be done."""
        wanted = self._wanted()
        if not wanted or time.monotonic() < self._claim_at:
            self._sleep(min(self._extend_at, self._claim_at if wanted else math.inf))
            return
        try:
            for each in wanted[:-1]:
                if self._claim(partial(self._attempt, each), each.prefetch):
                    return
            last = wanted[-1]
            self._event = event = self._core.available(last.topics)
            attempt = partial(self._attempt, last)
            self._claim(partial(self._claiming.wait, event, attempt, self._extend_at), last.prefetch)
        except _Changed:
            pass
        except TEMPORARY as error:
            self._claim_at = self._time_after(error)
        except Exception as error:
            self._fail(error)

    def _attempt(self, wanted: Wanted) -> list[Message[T]]:
        if self._changed:
            raise _Changed
        return self._claiming.attempt(self._core, wanted, self._claims)

    def _claim(self, get: Callable[[], list[Message[T]]], prefetch: bool) -> bool:
        """Take the messages that ``get`` returns, and tell whether there are any."""
        try:
            messages = get()
        except (Empty, ShutDown):
            messages = []
        except BaseException:
            self._release([])
            raise
        self._failures = 0
        now = time.monotonic()
        for message in messages:
            until, lease = message._record.until, message._record.lease
            if until is None or lease is None:
                delivery = _Delivery(message, prefetch, 0.0, 0.0)
            else:
                delivery = _Delivery(message, prefetch, lease, until - lease - now)
            # If the claim of an earlier delivery of this message has ended, this one takes its place.
            self._deliveries[message.id] = delivery
            self._waiting.append(delivery)
            self._watch(delivery)
        self._claims.clear()
        return bool(messages)

    def _watch(self, delivery: _Delivery[T]) -> None:
        """Let the time for which a lease is extended begin now."""
        delivery.since = time.monotonic()
        delivery.is_extended = self._extend and delivery.lease > 0
        self._extend_at = min(self._extend_at, delivery.extend_at)

    def _keep_leases(self) -> None:
        """Extend the leases, if it is time for it."""
        now = time.monotonic()
        if now < self._extend_at:
            return
        for delivery in self._deliveries.values():
            if delivery.is_extended and self._timeout is not None and now - delivery.since >= self._timeout:
                delivery.is_extended = False
                _log.warning(
                    "the lease of message %d of topic %r is not extended any more, after %.1f s",
                    delivery.message.id, delivery.message.topic, now - delivery.since,
                )  # fmt: skip
        extended = [delivery for delivery in self._deliveries.values() if delivery.is_extended]
        lengths = {each.lease for each in extended if each.extend_at <= now}
        # A handler may have extended its lease by more than this would do.
        due = [each for each in extended if each.lease in lengths and each.ends_at <= now + each.lease]
        try:
            lost = self._claiming.extend([delivery.message for delivery in due])
        except TEMPORARY as error:
            self._extend_at = self._time_after(error)
            return
        except Exception as error:
            self._fail(error)
            self._extend_at = math.inf
            return
        for delivery in due:
            if delivery.message.id in lost:
                delivery.is_extended = False
        self._extend_at = min((delivery.extend_at for delivery in extended), default=math.inf)

    def _time_after(self, error: Exception) -> float:
        """Return when to try again what has failed with a temporary error."""
        self._failures += 1
        pause = PAUSES.delay(self._failures)
        _log.warning("a worker of %r tries again in %.1f s: %s", self._queue, pause, error)
        return time.monotonic() + pause

    def _release(self, deliveries: Iterable[_Delivery[T]]) -> None:
        """Release these messages, and those of a claim that was interrupted."""
        claims = [*self._claims, *(delivery.message._claim for delivery in deliveries)]
        self._core.take_back(claims, self._process)
        self._claims.clear()
        for delivery in deliveries:
            self._deliveries.pop(delivery.message.id, None)

    # Waiting.

    def _wake(self) -> None:
        self._changed = True
        self._event.notify(None)

    def _sleep(self, deadline: float) -> None:
        """Wait until something changes, or until the deadline."""
        deadline = min(deadline, time.monotonic() + _NOTICED_AFTER)
        # No message notifies the event count of no topics, and a shutdown of the queue does.
        self._event = event = self._core.available(())
        with event.listen() as waiter:
            waiter.prepare()
            if not self._changed:
                waiter.wait(deadline, None, None)

    def _fail(self, error: BaseException) -> None:
        """Stop, and let :meth:`run` raise this error at its end, unless it has to raise an earlier one."""
        if self._failure is None:
            self._failure = error
        self.stop()

    def _interrupt(self, error: BaseException) -> None:
        """Let :meth:`run`, which is stopped already, raise this error at once."""
        self._interruption = error
        self._wake()

    # The threads of handlers.

    def _handle_all(self) -> None:
        while self._handle_next():
            pass

    def _handle_next(self) -> bool:
        """Handle one message, and tell whether to go on."""
        delivery = self._handed.get()
        if delivery is None:
            return False
        self._handling.handle(delivery.message, delivery.was_prefetched)
        if delivery.message._is_parents:  # The handler has forked, and has returned in the child.
            return False
        self._finished.append(delivery)
        self._wake()
        return True


def _check_function(name: str, value: Any) -> None:
    if not callable(value):
        raise TypeError(f"{name!r} must be a function, not {type(value).__name__}")
    if iscoroutinefunction(value):
        raise TypeError(f"{name!r} must be a function, and not one that only makes a coroutine")
