"""The contract of a message store: messages with topics, groups, keys and times, claimed with a lease."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import EllipsisType
from typing import Protocol

from persistcoll.engine.contracts.store import Store
from persistcoll.engine.message_events import Observer
from persistcoll.engine.message_records import MessageClaim, MessageEntry, MessageRecord, TopicClaim
from persistcoll.engine.records import State, Stats

__all__ = ["MessageStore"]


class MessageStore(Store, Protocol):
    """Keep messages, and deliver each one until a consumer acks it or its attempts are used up.

    A message is *ready*, *delayed*, *blocked* (an earlier message of its group is not finished), *claimed*,
    *done* or *dead*. Ready, delayed, blocked and claimed messages are *unfinished*. A store has a
    :class:`~persistcoll.engine.message_records.MessagePolicy`. Times pass on the clock of the store. Every
    call sees what has become due until then: a message whose delay is over is ready, one whose ``ttl`` is
    over is gone, and a claim whose lease is over has ended.

    The unfinished messages of one topic and group have a *head*, which is the only one of them that is not
    blocked. When the head is finished, the message with the lowest id becomes the head. It is delayed if the
    delay of its put is not over, otherwise it is ready. The ids of a group grow whichever producer puts.

    A claim *ends* when it is settled (ack, nack, release or fail), when its lease is over, or when its holder
    is dead. Each claim is one attempt. At the end of a lease or of a holder the message is dead if it has no
    attempts left, otherwise ready, and ``error`` says why (``LEASE_RAN_OUT``, ``HOLDER_DIED`` or
    ``HOLDER_CLOSED`` of :mod:`~persistcoll.engine.message_records`). If the message was only prefetched, such
    an end takes the attempt back and leaves ``error`` as it was (with ``capabilities.counts_delivered``). A
    message that comes back after its ``ttl`` is removed, but one without attempts left is dead.

    A lease of ``None`` lasts until the holder is dead. A store that never notices a death
    (``capabilities.death_noticed_after`` is infinite) raises ``ValueError`` for every lease of ``None``.
    Closing a store is the death of its holder.

    ``deliver`` and the verbs that settle or extend need the claim alone: any store object of the queue
    accepts it, in any process. Except ``release`` they change nothing and raise ``StaleClaimError``, whose
    ``ids`` are those of all stale claims, if one of the claims has ended.

    Where another transaction that is open has changed what a call needs (a message, its group, its key, the
    rate or the lock of its topic), the call waits for its end or raises ``LockedError``. A call on any
    messages, such as ``claim``, ``purge`` and ``reclaim``, passes over them, and what of them is due is seen
    as before. In a transaction the time of each call applies, not that of the commit.

    Rates, pauses and locks of a topic are kept whether the topic has messages or not, also when the store is
    closed. After a rollback of the transaction of a delivery, the delivery counts nowhere.

    An *observer* is told what the calls of one store object do to messages; see :meth:`observe`.

    The arguments are checked above the store. Every store accepts each finite priority that a float
    represents exactly, and each topic, group and name of at most 255 bytes of UTF-8.
    """

    def put(self, entries: Sequence[MessageEntry], *, deadline: float | None = None) -> list[int | None]:
        """Store all entries, in order, or none, and return their ids.

        An entry whose key is active is not stored, and the list has ``None`` in its place. Of several entries
        with one key the first is stored.
        """

    def claim(
        self,
        limit: int = 1,
        topics: Sequence[str] | None = None,
        *,
        lease: float | EllipsisType | None = ...,
        prefetch: bool = False,
        claims: list[MessageClaim] | None = None,
        deadline: float | None = None,
    ) -> list[MessageRecord]:
        """Claim 1 to ``limit`` ready messages in one atomic step, and return them in their order.

        The store passes over topics that are paused, that another store object has locked, and whose rate
        allows no delivery now. A message with a damaged payload becomes dead at once (``DAMAGED``),
        without an attempt, and the next one takes its place.

        :param topics: where to take messages from; ``None``: from every topic.
        :param lease: seconds until the claims end by themselves, ``None``: they last until their holder is
            dead, ``...``: as the message or else the policy says.
        :param prefetch: whether the caller calls :meth:`deliver` before it uses the messages. Otherwise they
            are delivered at once.
        :param claims: a list to which the store appends each claim in the same atomic step, so that a caller
            that is interrupted (``KeyboardInterrupt``) knows what to :meth:`release`. The claims of an answer
            that is lost end with their leases.
        :raise Empty: no message can be claimed. If the error has an attribute ``next_at``, none can be before
            that time (by ``time.monotonic()``), otherwise none ever can be, unless a caller changes
            something or a holder dies. The store may name an earlier time than necessary, and does so after
            it has passed over what another transaction has changed.
        """

    def deliver(self, claims: Sequence[MessageClaim]) -> None:
        """Note that a consumer begins to work on these prefetched messages.

        :raise StaleClaimError: one of the claims has ended.
        """

    def ack(self, claims: Sequence[MessageClaim]) -> None:
        """Finish these messages: they are done, and removed unless the policy keeps them."""

    def nack(
        self, claims: Sequence[MessageClaim], delay: float | None = None, error: str | None = None
    ) -> None:
        """Return these messages to their places, or make them dead if they have no attempts left.

        :param delay: the seconds until they are ready; ``None``: as the back-off of each says.
        :param error: replaces the ``error`` of the messages; ``None``: it stays.
        """

    def release(self, claims: Sequence[MessageClaim]) -> int:
        """Return these messages to their places at once, and take back the attempts.

        The store ignores claims that have ended. No message becomes dead.

        :return: how many claims the call has ended.
        """

    def fail(self, claims: Sequence[MessageClaim], error: str | None = None) -> None:
        """Make these messages dead, whatever attempts they have left. ``error`` as in :meth:`nack`."""

    def extend(self, claims: Sequence[MessageClaim], seconds: float | None) -> float | None:
        """Let the leases end so many seconds from now, which may be earlier than before.

        :param seconds: ``None``: the claims last until their holder is dead.
        :return: the time at which they end, by the store's clock.
        """

    def redrive(self, id: int) -> bool:
        """Make a dead message ready again, with its id, its error, 0 attempts and a new ``ttl``.

        In a group it is the head if no message of the group is unfinished. Otherwise it is blocked.

        :return: whether there is such a dead message.
        :raise CorruptionError: its topic, its key, its group or its ``ttl`` is damaged.
        :raise DuplicateError: its key is active for another message.
        """

    def redrive_all(self, topic: str | None = None) -> int:
        """Redrive all dead messages (of a topic), in the order of their ids, and return how many.

        Those whose keys are active for another message stay dead, and so do those that :meth:`redrive` would
        refuse as damaged.
        """

    def cancel(self, id: int) -> bool:
        """Remove a ready, delayed, blocked or dead message, and make its key inactive, window or not.

        :return: whether there is such a message.
        """

    def purge(self, topic: str | None = None, *, dead: bool = False, before: float | None = None) -> int:
        """Remove messages, and return how many.

        :param topic: of this topic; ``None``: of all topics.
        :param dead: whether to remove the dead messages. Otherwise it is the ready, delayed and blocked ones.
        :param before: only those that were put before this time, by the store's clock: see :meth:`now`.
        """

    def now(self) -> float:
        """Return the time by the store's clock, in seconds since the epoch.

        It is the clock of the times that records tell. It may differ from the system's clock by any length.
        """

    def release_key(self, key: bytes) -> bool:
        """Make a key inactive, whatever its message or window, and tell whether it was active."""

    def find(self, id: int) -> MessageRecord | None:
        """Return a message in any state, or ``None`` if it is not stored."""

    def peek(self, topic: str | None = None) -> MessageRecord:
        """Return the first ready message, whether its topic is paused, locked or limited or not.

        :raise Empty: no message is ready.
        """

    def scan(self, *states: State, topic: str | None = None) -> Iterator[MessageRecord]:
        """Iterate over the messages in these states, in the order of their ids. No state means all states.

        A store may read them as the iteration goes on. Then one that comes into these states or leaves them
        meanwhile may be left out. No message comes twice, and none that was put after the call.
        """

    def topics(self) -> dict[str, int]:
        """Return the number of ready messages of each topic of which a message is stored, in any state."""

    def count(self, topic: str | None = None) -> int:
        """Count the ready messages. A store may have to read each of them."""

    def is_empty(self, topic: str | None = None) -> bool:
        """Tell whether no message is ready."""

    def has_unfinished(self) -> bool:
        """Tell whether a message is ready, delayed, blocked or claimed."""

    def stats(self, topic: str | None = None) -> Stats:
        """Return the numbers of the queue, or of a topic: its counts of states and its oldest age."""

    def set_rate(self, topic: str, interval: float | None, burst: int = 1) -> None:
        """Limit how often messages of a topic are delivered, by all processes together.

        Deliveries are ``interval`` seconds apart. After a time in which none was used, ``burst`` of them may
        come at once. So any span of ``n * interval`` seconds has at most ``n + burst - 1`` of them.
        Redeliveries count, whatever ended the claim before. A call with the present values does nothing.
        With others, the next delivery is possible after one new interval at the latest, and only the first
        rate of a topic begins with a whole burst.

        :param interval: the seconds between two deliveries; ``None``: there is no limit.
        """

    def pause(self, topic: str) -> None:
        """Deliver no message of this topic until :meth:`resume`, in any process."""

    def resume(self, topic: str) -> None:
        """Deliver messages of this topic again."""

    def lock_topic(
        self, topic: str | None, lease: float | None, *, locks: list[TopicClaim] | None = None
    ) -> TopicClaim | None:
        """Let only this store object claim messages of a topic.

        The lock ends with :meth:`unlock_topic`, with its lease, or when the holder is dead.

        :param topic: ``None``: among the topics that are neither locked nor paused, the one with the most
            ready messages, the first by name among equals.
        :param lease: seconds; ``None``: the lock has no lease.
        :param locks: a list to which the store appends the lock in the same atomic step, as :meth:`claim`
            does with ``claims``.
        :return: the lock. It is ``None`` if an object, this one included, has locked the topic, and without a
            name if no such topic has a ready message.
        """

    def extend_lock(self, lock: TopicClaim, seconds: float | None) -> None:
        """Let the lock end so many seconds from now; ``None``: it has no lease. Any object may.

        :raise StaleClaimError: the lock has ended.
        """

    def unlock_topic(self, lock: TopicClaim) -> bool:
        """End the lock, and tell whether it had not ended yet. Any object may."""

    def reclaim(self) -> int:
        """End the claims and the locks of dead holders, and those whose lease is over.

        It checks every holder, however recently the store has checked them by itself.

        :return: how many claims of messages the call has ended.
        """

    def observe(self, observer: Observer | None) -> None:
        """Have ``observer`` called after each later call of this object that has changed messages.

        It is called in the thread of that call, before the call returns or raises, when the change is
        committed and the thread holds no lock. Where the call is a part of a caller's transaction, it is
        called after the end of that, and not at all after a rollback. An error of the storage or an interrupt
        may end a call before it.

        A store tells everything of :class:`~persistcoll.engine.message_events.EventKind` that its own calls
        caused or noticed. For what ends by itself, and for what ``purge`` and ``redrive_all`` do, one event
        may stand for several messages of one topic. A joined store tells nothing.
        """

    def shrink(self) -> None:
        """Return unused space to the file system. A store without a file does nothing."""

    def checkpoint(self) -> None:
        """Copy what lies in a log beside the store into the store. A store without a log does nothing."""
