"""What a message queue does besides waiting: wake-ups by topic, claims that nobody got, and its shutdown.

Every method answers at once. The core remembers no claim of a consumer, because the store decides by the
claim itself what it may still do. So a rollback of a caller's transaction undoes nothing here.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import EllipsisType
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakValueDictionary

from persistcoll.engine.contracts import MessageStore
from persistcoll.engine.core import Core
from persistcoll.engine.event_count import EventCount
from persistcoll.engine.forks import in_operation
from persistcoll.engine.message_records import MessageClaim, MessageEntry, MessageRecord, TopicClaim
from persistcoll.engine.transaction_hooks import OPEN
from persistcoll.errors import Empty, ShutDown, StaleClaimError

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["MessageCore", "Topics", "Wakes"]

R = TypeVar("R")
Topics = tuple[str, ...] | None
"""The topics that a consumer gets from, in an order that is the same for the same topics; ``None``: all."""
Wakes = Mapping[str | None, int | None]
"""How many waiters of which topics a change wakes; ``None``: of any topic, or all waiters."""


class _Available(EventCount):
    """Happens when a message of these topics may have become ready.

    :ivar topics: these topics.
    """

    __slots__ = ("__weakref__", "topics")

    def __init__(self, topics: Topics, max_poll_interval: float) -> None:
        super().__init__(max_poll_interval)
        self.topics = topics


class MessageCore(Core[MessageStore]):
    """A message queue over a store, without its waits.

    Waiters for the same topics share an event count. Otherwise a wake-up for a message of one topic might go
    to a thread that waits for others and sleeps on, or that takes another message. A message that becomes
    ready wakes one waiter of each event count that it concerns. A change by which messages become ready later
    than now, or earlier than a waiter knows, wakes all of them, because each has to learn the new time.

    ``_mutex`` guards the making of event counts. An event count goes when no waiter refers to it.
    """

    def _reset(self) -> None:
        super()._reset()
        # By the topics; that of one waiter alone by an object of its own.
        self._available: WeakValueDictionary[object, _Available] = WeakValueDictionary()

    def joined(self, connection: Any) -> Self:
        if not self.store.capabilities.joins_transactions:
            raise ValueError(
                "a queue in this database joins no transaction of another connection; use transaction(),"
                " which gives its block a connection for statements of your own"
            )
        return super().joined(connection)

    # Hooks.

    def _wake_getters(self) -> None:
        self._wake(None, None)

    def _release(self, claims: Sequence[Any]) -> None:
        for lock in claims:
            if isinstance(lock, TopicClaim):
                self.store.unlock_topic(lock)
        self.store.release([claim for claim in claims if isinstance(claim, MessageClaim)])

    def _released(self) -> None:
        self.notify()

    # Wake-ups.

    def available(self, topics: Topics, alone: bool = False) -> EventCount:
        """Return the event count that happens when a message of these topics may have become ready.

        :param alone: for one waiter that claims no message at most of its wake-ups, and so must not have
            those of the others.
        """
        key = object() if alone else topics
        with self._mutex:
            event = self._available.get(key)
            if event is None:
                # One waiter of each event count polls. Where there are many of them, the later ones poll less
                # often, so that all of them together still cost little.
                interval = self.store.max_poll_interval * (len(self._available) + 1)
                event = self._available[key] = _Available(topics, interval)
            return event

    def notify(self, topic: str | None = None, count: int | None = None) -> None:
        """Wake waiters, because messages may have become ready; now or after the caller's commit.

        :param topic: of this topic; ``None``: of any.
        :param count: how many; ``None``: an unknown number, or at another time than now.
        """
        if OPEN and (transaction := self.store.open_transaction()) is not None:
            transaction.after_commit(partial(self._wake, topic, count))
        elif self._available:
            self._wake(topic, count)

    def _wake(self, topic: str | None, count: int | None) -> None:
        # Other threads may add event counts meanwhile, and this list of references is made in one step.
        for reference in self._available.valuerefs():
            event = reference()
            if event is None or not event.listeners:
                continue
            if topic is None or event.topics is None or topic in event.topics:
                event.notify(count)

    def _change(self, change: Callable[[], R], wakes: Wakes) -> R:
        """Change the store, and wake the threads that wait for what becomes ready or is finished by that."""
        try:
            result = change()
            if self._available or OPEN:
                for topic, count in wakes.items():
                    self.notify(topic, count)
            self._notify(self.all_done)
            return result
        except StaleClaimError:  # Nothing has changed.
            raise
        except BaseException:
            # A signal handler may have raised after the change. A superfluous wake-up costs one read.
            self.notify()
            self._notify(self.all_done)
            raise

    # Putting and claiming.

    def try_put(self, entries: Sequence[MessageEntry]) -> list[int | None]:
        """Store all entries or none; raise ``ShutDown``."""
        if self.is_shutdown:
            raise ShutDown
        try:
            ids = self.store.put(entries)
            if self._available or OPEN:
                self._notify_of(entries)
            return ids
        except BaseException:
            self.notify()
            raise

    def _notify_of(self, entries: Sequence[MessageEntry]) -> None:
        for topic, count in Counter(entry.topic for entry in entries if not entry.delay).items():
            self.notify(topic, count)
        for topic in {entry.topic for entry in entries if entry.delay}:
            self.notify(topic)

    def try_claim(
        self,
        limit: int,
        topics: Topics,
        lease: float | EllipsisType | None,
        prefetch: bool,
        claims: list[MessageClaim],
        deadline: float | None = None,
    ) -> list[MessageRecord]:
        """Claim messages as the store does; raise ``Empty`` or ``ShutDown``.

        From this step until a consumer has the messages, ``claims`` has the claims, and :meth:`take_back`
        releases them.
        """
        if self.is_immediate:
            raise ShutDown
        if self._pending_release:
            self._do_pending_release()
        try:
            return self.store.claim(
                limit, topics, lease=lease, prefetch=prefetch, claims=claims, deadline=deadline
            )
        except Empty:
            if self.is_shutdown:
                raise ShutDown from None
            raise

    def try_lock(self, topic: str | None, lease: float | None, locks: list[TopicClaim]) -> TopicClaim | None:
        """Lock a topic as the store does.

        From this step until the caller has the lock, ``locks`` has it, and :meth:`take_back` ends it.
        """
        if self._pending_release:
            self._do_pending_release()
        return self.store.lock_topic(topic, lease, locks=locks)

    def take_back(self, claims: list[Any], process: int) -> None:
        """Release claims whose messages no consumer has got, or locks that no caller has; empty the list.

        :param process: that in which they were made. A forked child leaves them to its parent.
        """
        if claims and process == os.getpid():
            # The thread of a destructor must not wait, because another thread may be waiting for it.
            if in_operation():
                self.release_later(claims)
            else:
                self.release_unused(claims)
        claims.clear()

    def release_unused(self, claims: list[Any]) -> None:
        """Release what no caller has got, now or before the next claim. Empty the list."""
        try:
            if OPEN:
                self._on_rollback(self._release_again, tuple(claims))
            self._release(claims)
        except BaseException as error:
            self.release_later(claims)
            if not isinstance(error, Exception):
                raise
        finally:
            # In this order: if a signal handler raises here, the caller calls again, and releases them twice.
            self.notify()
            claims.clear()

    # Settling.

    def ack(self, claims: Sequence[MessageClaim], wakes: Wakes) -> None:
        """Finish messages, by which the next ones of their groups may become ready."""
        self._change(partial(self.store.ack, claims), wakes)

    def nack(
        self, claims: Sequence[MessageClaim], wakes: Wakes, delay: float | None, error: str | None
    ) -> None:
        """Return messages to their places, with a delay or without."""
        self._change(partial(self.store.nack, claims, delay, error), wakes)

    def release(self, claims: Sequence[MessageClaim], wakes: Wakes) -> int:
        """Return messages to their places at once."""
        return self._change(partial(self.store.release, claims), wakes)

    def fail(self, claims: Sequence[MessageClaim], wakes: Wakes, error: str | None) -> None:
        """Make messages dead."""
        self._change(partial(self.store.fail, claims, error), wakes)

    def extend(
        self, claim: MessageClaim, topic: str, seconds: float | None, known: float | None
    ) -> float | None:
        """Let a lease end so many seconds from now, and return when that is.

        :param known: the end of the lease until now. Waiters are woken only if the new end is earlier.
        """

        def extend() -> float | None:
            until = self.store.extend((claim,), seconds)
            if until is not None and (known is None or until < known):
                self.notify(topic)
            return until

        return self._change(extend, {})

    def change(self, call: Callable[[MessageStore], R], topic: str | None = None) -> R:
        """Change the store, by which messages (of a topic) may become ready or be finished."""
        return self._change(partial(call, self.store), {topic: None})
