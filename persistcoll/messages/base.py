"""What a message queue offers without a claim: dead letters, removal, inspection, topics, upkeep."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import datetime
from typing import Any, Generic

from persistcoll.arguments import checked_short_name
from persistcoll.container import DatabaseContainer, T
from persistcoll.engine.contracts import MessageStore
from persistcoll.engine.message_core import MessageCore
from persistcoll.engine.message_records import MessageRecord, TopicClaim
from persistcoll.engine.records import State, Stats
from persistcoll.errors import DecodeError
from persistcoll.messages.fields import (
    checked_id,
    checked_lease,
    checked_rate,
    checked_time,
    checked_topic,
    encoded_key,
    headers_of,
    key_of,
    time_of_store,
)
from persistcoll.messages.message import MessageInfo
from persistcoll.messages.topic_lock import TopicLock
from persistcoll.serializers import codec
from persistcoll.serializers.base import record_decoder

__all__ = ["BaseMessageQueue"]

_WAY_ON = "cancel({id}) removes it while no consumer has it"


class BaseMessageQueue(DatabaseContainer, Generic[T]):
    """A queue of messages whose bodies are of type ``T``, without putting and getting them."""

    _changing: tuple[str, ...] = (
        "redrive", "purge", "cancel", "release_key", "lock_topic", "limit", "pause", "resume", "recover",
        "vacuum", "checkpoint", "transaction",
    )  # fmt: skip
    """The methods that change what is stored. With ``read_only`` each of them raises."""

    def _attach(self, store: Any) -> None:
        self._store: MessageStore = store
        self._codec = codec(self.serializer, store.store_id)
        self._decode = record_decoder(self._codec, _WAY_ON)
        self._core = MessageCore(store)
        if self.read_only:
            self._refuse_changes(self._changing)

    # Dead letters and removal.

    def dead_letters(self, topic: str | None = None) -> Iterator[MessageInfo[T]]:
        """Return an iterator over the dead letters, of a topic or of all, oldest first.

        It reads them page by page as it goes on. One that is redriven or removed meanwhile may be left out.

        Cost: no write and no sync. It needs memory for 64 of them, on a server for 256.
        """
        return map(self._info, self._store.scan(State.DEAD, topic=checked_topic(topic)))

    def redrive(self, id: int | None = None, *, topic: str | None = None) -> int:
        """Make dead letters ready again, with their ids, places and bodies, and with 0 attempts.

        Cost: 1 transaction, for all of which other writers wait. At ``"power"`` also 1 sync.

        :param id: the one with this id; ``None``: all of them, or all of ``topic``, except those whose keys
            are active for other messages, and those of which more than the body is damaged.
        :return: how many were made ready.
        :raise CorruptionError: the topic, key, group or ttl of the message ``id`` is damaged. It stays dead.
        :raise DuplicateError: the key of the message ``id`` is active for another one, so it stays dead.
        :raise ValueError: both ``id`` and ``topic`` are given, or ``id`` cannot be an id.
        """
        name = checked_topic(topic)
        if id is None:
            return self._core.change(lambda store: store.redrive_all(name))
        if name is not None:
            raise ValueError("redrive() takes an id or a topic, and not both")
        number = checked_id(id)
        return int(self._core.change(lambda store: store.redrive(number)))

    def purge(
        self, topic: str | None = None, *, dead: bool = False, before: float | datetime | None = None
    ) -> int:
        """Remove messages that are ready, delayed or blocked, or dead letters; return how many.

        Cost: 1 transaction, for all of which other writers wait. At ``"power"`` also 1 sync.

        :param topic: only those of this topic.
        :param dead: remove the dead letters, and nothing else.
        :param before: only those that were put before this time by the system's clock: an aware ``datetime``,
            or seconds since the epoch. After that clock was set, a time of an hour ago still means what was
            put an hour ago. ``enqueued_at`` is a time by the queue's clock, which no setting moves.
        :raise TypeError: ``topic`` is no str, or ``before`` no time.
        :raise ValueError: ``before`` is a ``datetime`` without a time zone, or not finite.
        """
        name = checked_topic(topic)
        if before is None:
            return self._core.change(lambda store: store.purge(name, dead=bool(dead)))
        seconds = checked_time("before", before)
        return self._core.change(
            lambda store: store.purge(name, dead=bool(dead), before=time_of_store(store, seconds))
        )

    def cancel(self, id: int) -> bool:
        """Remove a message that no consumer has claimed, dead letters included, and free its key.

        Cost: 1 transaction. At ``"power"`` also 1 sync.

        :return: whether there was such a message.
        :raise ValueError: ``id`` cannot be an id.
        """
        number = checked_id(id)
        return self._core.change(lambda store: store.cancel(number))

    def release_key(self, key: str | bytes) -> bool:
        """Free a key at once, whatever its message or its window, and return whether it was active.

        Cost: 1 transaction. At ``"power"`` also 1 sync.

        :raise TypeError: ``key`` is neither a str nor bytes.
        """
        return self._store.release_key(encoded_key(key))

    # Inspection.

    def find(self, id: int) -> MessageInfo[T] | None:
        """Look at a message in any state; return ``None`` if it is not stored.

        Cost: no write and no sync.

        :raise ValueError: ``id`` cannot be an id.
        """
        record = self._store.find(checked_id(id))
        return None if record is None else self._info(record)

    def peek(self, topic: str | None = None) -> MessageInfo[T]:
        """Look at the first ready message, whether its topic is paused, locked or limited or not.

        Cost: no write and no sync.

        :raise Empty: no message is ready.
        """
        return self._info(self._store.peek(checked_topic(topic)))

    def _info(self, record: MessageRecord) -> MessageInfo[T]:
        body, refusal = None, None
        try:
            body = self._decode(record)[1]
        except DecodeError as error:
            refusal = str(error)  # The error itself refers to this call, and so to the queue.
        is_claimed = record.state is State.CLAIMED
        return MessageInfo(
            id=record.id,
            topic=record.topic,
            priority=record.priority,
            state=record.state,
            attempts=record.attempts,
            deliveries=record.deliveries,
            enqueued_at=record.time,
            due_at=None if is_claimed else record.until,
            headers=headers_of(record),
            key=key_of(record),
            group=record.group,
            last_error=record.error,
            leased_until=record.until if is_claimed else None,
            finished_at=record.finished,
            _body=body,
            _refusal=refusal,
        )

    def topics(self) -> dict[str, int]:
        """Return the number of ready messages of each topic. A topic exists while a message of it is stored.

        Cost: no write and no sync. It grows with the number of topics.
        """
        return self._store.topics()

    def qsize(self, topic: str | None = None) -> int:
        """Return how many messages are ready, exactly, across threads and processes.

        Cost: no write and no sync.
        """
        return self._store.count(checked_topic(topic))

    def __len__(self) -> int:
        return self._store.count()

    _length = __len__

    def __bool__(self) -> bool:
        # As with queue.Queue, an empty queue is true: a queue is a thing and not a sequence.
        return True

    def empty(self, topic: str | None = None) -> bool:
        """Tell whether no message is ready.

        Cost: no write and no sync.
        """
        return self._store.is_empty(checked_topic(topic))

    def stats(self, topic: str | None = None) -> Stats:
        """Return the numbers of the queue at this moment, or those of a topic.

        Of a topic these are the counts of the states and ``oldest_age``; the other numbers are 0.

        Cost: no write and no sync. It grows with the number of different priorities of the ready messages,
        and with nothing else.
        """
        return self._store.stats(checked_topic(topic))

    # Topics.

    def limit(self, topic: str, rate: float | None, per: float = 1.0, burst: int = 1) -> None:
        """Deliver at most ``rate`` messages of a topic in ``per`` seconds, over all processes.

        The deliveries are evenly spaced. After a time in which none was used, ``burst`` of them may come at
        once. Redeliveries count. The limit stays when the queue is closed. A call with the same values
        changes nothing, so each process may make it when it starts.

        Cost: 1 transaction. At ``"power"`` also 1 sync. A delivery of a limited topic writes one row more.

        :param rate: ``None`` lifts the limit.
        :raise TypeError: ``topic`` is no str, or a number is none.
        :raise ValueError: a number is not above 0, not finite, or too large.
        """
        name = checked_short_name("topic", topic)
        interval, most = checked_rate(rate, per, burst)
        self._core.change(lambda store: store.set_rate(name, interval, most), name)

    def pause(self, topic: str) -> None:
        """Deliver no message of this topic until :meth:`resume`, in any process, also after a restart.

        Messages that consumers have got already may be settled.

        Cost: 1 transaction. At ``"power"`` also 1 sync.
        """
        self._store.pause(checked_short_name("topic", topic))

    def resume(self, topic: str) -> None:
        """Deliver messages of this topic again.

        Cost: that of :meth:`pause`.
        """
        name = checked_short_name("topic", topic)
        self._core.change(lambda store: store.resume(name), name)

    def lock_topic(self, topic: str | None = None, lease: float | None = 900.0) -> TopicLock | None:
        """Let only this object get messages of a topic, until the lock is released.

        Cost: 1 transaction, without a sync.

        :param topic: ``None``: of the topics that are neither locked nor paused, the one with the most ready
            messages.
        :param lease: seconds after which the lock ends by itself; ``None``: when this object is closed, or
            its process dies.
        :return: the lock; ``None`` if the topic is locked, also if this object has locked it, or if there is
            no such topic.
        :raise TypeError: ``topic`` is no str, or ``lease`` no number.
        :raise ValueError: ``lease`` is not above 0, or not finite.
        """
        name, length = checked_topic(topic), None if lease is None else checked_lease(lease)
        locks: list[TopicClaim] = []
        process = os.getpid()
        try:
            claim = self._core.try_lock(name, length, locks)
            return None if claim is None else TopicLock(self._core, claim, length)
        except BaseException:
            self._core.take_back(locks, process)
            raise

    # Upkeep.

    def recover(self) -> int:
        """Return at once what dead consumers had, and what has expired; return how many messages these were.

        The queue does it by itself. Here it checks every consumer now.

        Cost: 1 transaction, without a sync.
        """
        return self._core.change(lambda store: store.reclaim())

    def vacuum(self) -> None:
        """Return unused space to the file system.

        Cost: the whole database is written anew, and all other writers wait meanwhile.

        :raise ValueError: the queue is on a server, which does it by itself.
        """
        self._refuse_on_server("vacuum()")
        self._store.shrink()

    def checkpoint(self) -> None:
        """Copy the log of the database into the database's file. SQLite does it by itself now and then.

        Cost: what has not been copied yet is written once more. At either level of durability also 2 syncs.

        :raise ValueError: the queue is on a server, which does it by itself.
        """
        self._refuse_on_server("checkpoint()")
        self._store.checkpoint()

    def _refuse_on_server(self, method: str) -> None:
        if self._is_on_server:
            raise ValueError(f"{method} is for a queue in a file; a server does it by itself")
