"""What a message queue tells a program of its messages: one event for each transition."""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from persistcoll.engine.transaction_hooks import OPEN

if TYPE_CHECKING:
    from persistcoll.engine.contracts import MessageStore

__all__ = ["EventKind", "MessageEvent", "Observer", "observer_of", "tell"]

_log = logging.getLogger("persistcoll")


class EventKind(enum.Enum):
    """What happened to a message."""

    PUT = "put"
    """It was stored: ready, delayed or blocked. A message whose key is active is not stored."""
    CLAIMED = "claimed"
    """A consumer has claimed it, by ``get`` or ahead of its work, as ``prefetch`` says."""
    ACKED = "acked"
    """It is done."""
    NACKED = "nacked"
    """It was returned with a nack, and is ready or delayed."""
    RELEASED = "released"
    """It was released, and is ready."""
    RECLAIMED = "reclaimed"
    """Its claim has ended by itself, with its lease or its holder, and it is ready."""
    DEAD = "dead"
    """It is a dead letter: it was failed, its attempts are used up, or its body is damaged."""
    EXPIRED = "expired"
    """It was removed because its ``ttl`` was over."""
    REDRIVEN = "redriven"
    """It was a dead letter, and is ready or blocked."""
    CANCELLED = "cancelled"
    """``cancel`` has removed it."""
    PURGED = "purged"
    """``purge`` has removed it."""


@dataclass(frozen=True, slots=True)
class MessageEvent:
    """One thing that happened to a message, or to several of one topic. It holds nothing of what was put.

    Neither the body nor the headers, the key or the group is in it, so it may be logged.
    """

    kind: EventKind
    topic: str
    time: float
    """When it happened: seconds since the epoch, by the clock of the store. What ended by itself happened
    when the queue noticed it."""
    id: int | None = None
    """Of the message; ``None`` where one step does it to any number of messages, as ``purge`` does."""
    count: int = 1
    """To how many messages it happened."""
    attempts: int | None = None
    """How many deliveries count towards ``max_attempts`` after it; ``None`` without an ``id``, and if the
    message was removed unfinished."""
    error: str | None = None
    """What became the ``last_error`` of the message with it; ``None`` if that stayed as it was."""


Observer = Callable[[Sequence[MessageEvent]], object]
"""What a store calls after a call has changed messages, with what happened to them, in this order."""


def observer_of(function: Callable[[MessageEvent], object]) -> Observer:
    """Return an observer that calls ``function`` with one event after the other, and logs what it raises."""

    def each(events: Sequence[MessageEvent]) -> None:
        for event in events:
            try:
                function(event)
            except Exception:
                _log.exception("the observer %r raised an exception; the queue goes on", function)

    return each


def tell(store: MessageStore, observer: Observer, events: Sequence[MessageEvent]) -> None:
    """Call the observer: now, or after the end of the caller's transaction, unless that is rolled back.

    The caller is a store that holds no lock, and has committed what happened or made it a part of that
    transaction.
    """
    if not events:
        return
    if OPEN and (transaction := store.open_transaction()) is not None:
        transaction.after_release(partial(observer, events))
    else:
        observer(events)
