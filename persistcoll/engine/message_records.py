"""The small values that pass between a message queue and its store."""

from __future__ import annotations

from collections.abc import Sequence
from types import EllipsisType
from typing import NamedTuple

from persistcoll.engine.records import HOLDER_CLOSED, HOLDER_DIED, LEASE_RAN_OUT, Backoff, State
from persistcoll.errors import StaleClaimError

__all__ = [
    "DAMAGED",
    "HOLDER_CLOSED",
    "HOLDER_DIED",
    "LEASE_RAN_OUT",
    "MessageClaim",
    "MessageEntry",
    "MessagePolicy",
    "MessageRecord",
    "TopicClaim",
    "stale_claims",
]

DAMAGED = "its body is damaged"
"""The ``error`` of a message that a store itself made dead because it cannot be delivered."""


def stale_claims(ids: Sequence[int]) -> StaleClaimError:
    """Return the error that names the messages whose claims have ended."""
    one = f"the claim of message {ids[0]} has ended"
    return StaleClaimError(one if len(ids) == 1 else f"the claims of messages {list(ids)} have ended", ids)


class MessageClaim(NamedTuple):
    """The right to settle one delivery of a message. Any object of the queue accepts it, in any process."""

    id: int
    """The id of the message."""
    token: int
    """A number that no other claim of this message has, not even one that was rolled back or lost in a crash.
    A number that those would give out again does not do: 62 random bits do."""


class TopicClaim(NamedTuple):
    """The right to end or extend a lock of a topic."""

    topic: str
    token: int
    """A number that no other lock of this topic has."""


class MessagePolicy(NamedTuple):
    """How a message store treats messages that do not say it themselves.

    The store that does a step applies its own policy. So all objects of one queue have the same one.
    """

    lease: float | None = 60.0
    """Seconds after which a claim is lost; ``None``: it lasts until its holder ends."""
    max_attempts: int | None = 5
    """A message that was delivered this often is dead when its claim ends without an ack; ``None``: never."""
    backoff: Backoff | None = Backoff()
    """How long a nacked message is delayed; ``None``: not at all."""
    keep_done: int = 0
    """How many of the newest acked messages are kept, at least."""
    keep_dead: int | None = None
    """How many of the newest dead messages are kept, at least; ``None``: all of them."""


class MessageEntry(NamedTuple):
    """What is put into a message store. Of the fields that may be ``...``, this means the store's policy."""

    payload: bytes
    topic: str = "default"
    priority: float = 0
    """The highest comes first."""
    delay: float = 0
    """Seconds until the message may be delivered."""
    key: bytes | None = None
    """The message is refused while this key is active."""
    key_window: float = 0
    """Seconds from the put for which the key is active even if the message is finished earlier."""
    group: str | None = None
    """Of the messages of one topic and group, one at a time is delivered, in the order of their ids."""
    ttl: float | None = None
    """Seconds from the put after which the message is removed, if it is ready, delayed or blocked, or when it
    comes back from a claim; ``None``: never."""
    headers: bytes = b""
    lease: float | EllipsisType | None = ...
    """As :attr:`MessagePolicy.lease`."""
    max_attempts: int | EllipsisType | None = ...
    """As :attr:`MessagePolicy.max_attempts`."""
    backoff: Backoff | EllipsisType | None = ...
    """As :attr:`MessagePolicy.backoff`."""


class MessageRecord(NamedTuple):
    """One stored message, as a store sees it."""

    id: int
    """Ids grow, and none is used twice."""
    payload: bytes
    topic: str
    priority: float
    state: State
    time: float
    """When it was put: seconds since the epoch, by the store's clock."""
    attempts: int
    """How many of its deliveries count towards ``max_attempts``, the present one included."""
    deliveries: int
    """How often it was claimed, the present claim included. It never falls."""
    until: float | None
    """When its delay or its lease ends, by the store's clock; ``None`` without one. The delay of a blocked
    message may be over."""
    finished: float | None
    """When it became done or dead, by the store's clock; ``None`` while it is unfinished."""
    key: bytes | None
    group: str | None
    headers: bytes
    error: str | None
    """Why its last delivery failed, if one did."""
    claim: MessageClaim | None = None
    """With a delivery: the right to settle it. Otherwise ``None``."""
    lease: float | None = None
    """With a delivery: the seconds of its lease, for an extension."""
    own_mark: int | None = None
    """The number that the seal is bound to, if the store knows no id before it stores the payload."""

    @property
    def mark(self) -> int:
        """The number that the payload's seal is bound to: the id, unless the store drew another number."""
        return self.id if self.own_mark is None else self.own_mark
