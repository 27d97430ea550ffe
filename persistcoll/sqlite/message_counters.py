"""Count the messages of one queue, in all and by topic, and know which topics deliver now."""

from __future__ import annotations

from typing import Any

from persistcoll.sqlite.counters import Counters
from persistcoll.sqlite.driver import Execute, corruption_error
from persistcoll.sqlite.message_statements import CLAIMED, DEAD, DELAYED, DONE, READY, MessageStatements

__all__ = ["MessageCounters", "Topic"]

_MOST_TOPICS = 10_000
"""How many topics a process remembers before it forgets all of them."""


class Topic:
    """The counts of one topic, and what keeps its messages from being delivered.

    The database's lock protects every field.

    :ivar counts: the number of its messages in each state, by the number of the state.
    :ivar is_stored: whether it has a row in the database.
    :ivar has_changed_gate: whether more than the counts must be stored.
    :ivar interval: the seconds between two deliveries; ``None``: they are not limited.
    :ivar next: the time at which the next delivery would be if all were evenly spaced.
    :ivar locker: the number of the holder that alone may claim from it; ``None``: it is not locked.
    """

    __slots__ = (
        "burst", "counts", "has_changed_gate", "interval", "is_stored", "lock", "lock_until", "locker",
        "name", "next", "paused",
    )  # fmt: skip

    interval: float | None
    burst: int
    next: float
    locker: int | None
    lock: int | None
    lock_until: float | None

    def __init__(self, name: str, row: Any) -> None:
        *counts, paused, self.interval, self.burst, self.next, self.locker, self.lock, self.lock_until = (
            row or (0, 0, 0, 0, 0, 0, 0, None, 1, 0.0, None, None, None)
        )
        if not all(type(count) is int for count in counts):
            raise corruption_error("the counters of a topic")
        self.name = name
        self.paused = bool(paused)
        self.counts: list[int] = counts
        self.is_stored = row is not None
        self.has_changed_gate = False

    @property
    def gated(self) -> bool:
        """Whether it is paused, limited or locked."""
        return self.paused or self.interval is not None or self.locker is not None

    @property
    def opens(self) -> float:
        """The time from which one delivery is possible. The topic must be limited."""
        assert self.interval is not None
        return self.next - (self.burst - 1) * self.interval

    def free(self, now: float, holder: int | None) -> int | None:
        """Return how many messages may be delivered to a holder now; ``None``: any number."""
        if self.paused or self.is_locked(now, holder):
            return 0
        if self.interval is None:
            return None
        # A float rounds a time of this century by less than a microsecond.
        unused = (now - self.opens + 1e-6) // self.interval + 1
        return int(max(0.0, min(unused, self.burst)))

    def is_locked(self, now: float, holder: int | None = None) -> bool:
        """Tell whether another holder than this one has it locked."""
        is_over = self.lock_until is not None and self.lock_until <= now
        return self.locker is not None and self.locker != holder and not is_over

    def use(self, now: float, count: int) -> None:
        """Note that so many messages are being delivered."""
        if self.interval is not None:
            self.next = max(self.next, now) + count * self.interval

    def unlock(self) -> None:
        """End the lock."""
        self.locker = self.lock = self.lock_until = None


class MessageCounters(Counters):
    """The counters of a queue of messages.

    Beside what :class:`~persistcoll.sqlite.counters.Counters` says, it remembers the topics that were used
    since it was loaded, and stores those that were changed. ``failed`` counts the messages that have expired,
    because no message is failed. Blocked messages are those that are put, not finished, and in no other
    state.

    :ivar gated: the names of the topics that are paused, limited or locked.
    :ivar is_doubtful: whether they may be wrong, because a message or a group is damaged.
    """

    __slots__ = ("_changed", "_topics", "_totals_changed", "gated", "is_doubtful", "messages_sql")

    def __init__(self, sql: MessageStatements) -> None:
        super().__init__(sql)
        self.messages_sql = sql
        self._topics: dict[str, Topic] = {}
        self._changed: dict[str, Topic] = {}
        self._totals_changed = False
        self.gated: set[str] = set()
        self.is_doubtful = False

    def new(self) -> MessageCounters:
        return MessageCounters(self.messages_sql)

    def __copy__(self) -> MessageCounters:
        other = self.new()
        for name in Counters.__slots__:
            setattr(other, name, getattr(self, name))
        other.gated = set(self.gated)
        return other

    def load(self, execute: Execute) -> None:
        super().load(execute)
        self._topics.clear()
        self._changed.clear()
        self._totals_changed = self.is_doubtful = False
        self.gated = {name for (name,) in execute(self.messages_sql.select_gated).fetchall()}

    def save(self, execute: Execute) -> None:
        if self._totals_changed:
            self._totals_changed = False
            super().save(execute)
        if self._changed:
            for topic in self._changed.values():
                self._save(execute, topic)
            self._changed.clear()
            if len(self._topics) > _MOST_TOPICS:
                self._topics.clear()

    def _save(self, execute: Execute, topic: Topic) -> None:
        sql, counts = self.messages_sql, topic.counts
        if not any(counts) and not topic.gated:
            execute(sql.delete_topic, (topic.name,))
            topic.is_stored = False
        elif topic.is_stored and not topic.has_changed_gate:
            execute(sql.count_topic, (*counts, topic.name))
        else:
            execute(
                sql.save_topic,
                (
                    topic.name, *counts, int(topic.paused), topic.interval, topic.burst, topic.next,
                    topic.locker, topic.lock, topic.lock_until, int(topic.gated),
                ),
            )  # fmt: skip
            topic.is_stored = True
        topic.has_changed_gate = False

    def recount(self, execute: Execute, now: float) -> None:
        """Count all messages, and see to it that each group has a head, within a transaction.

        Cost: it reads all messages of the queue.
        """
        repair = self.messages_sql.repair
        self._totals_changed = True  # because a put of a ready message does not store the last id
        self.save(execute)
        execute(repair.promote_heads, (now, now, now))
        for text in repair.recount:
            execute(text)
        self.load(execute)

    @property
    def blocked(self) -> int:
        """How many messages are blocked."""
        return self.last_id - self.finished - self.ready - self.delayed - self.claimed

    @property
    def unfinished(self) -> int:
        """How many messages are ready, delayed, blocked or claimed."""
        return self.last_id - self.finished

    def has_held(self) -> bool:
        return self.claimed > 0 or bool(self.gated)

    def topic(self, execute: Execute, name: str) -> Topic:
        """Return the numbers of a topic."""
        topic = self._topics.get(name)
        if topic is None:
            row = execute(self.messages_sql.select_topic, (name,)).fetchone()
            topic = self._topics[name] = Topic(name, row)
        return topic

    def ready_by_topic(self, execute: Execute) -> dict[str, int]:
        """Return the number of ready messages of each topic of which a message is stored."""
        found: dict[str, int] = dict(execute(self.messages_sql.select_topics).fetchall())
        for name, topic in self._changed.items():
            if any(topic.counts):
                found[name] = topic.counts[READY]
            else:
                found.pop(name, None)
        return found

    def gate(self, topic: Topic) -> None:
        """Have a topic stored of which the pause, the rate or the lock has changed, within a transaction."""
        topic.has_changed_gate = True
        self._changed[topic.name] = topic
        if topic.gated:
            self.gated.add(topic.name)
        else:
            self.gated.discard(topic.name)

    def move(self, execute: Execute, name: str, old: int | None, new: int | None, count: int = 1) -> None:
        """Count that messages of a topic go from one state to another, within a transaction.

        :param old: the number of their state; ``None``: they are being put.
        :param new: ``None``: they are removed.
        """
        topic = self._topics.get(name) or self.topic(execute, name)
        self._changed[name] = topic
        if old is not None:
            topic.counts[old] -= count
            self._add(old, -count)
            if topic.counts[old] < 0:
                self.is_doubtful = True
        if new is not None:
            topic.counts[new] += count
            self._add(new, count)
        # The number of ids up to the last one that are not ready stays the same when a ready message is put.
        if old is not None or new != READY:
            self._totals_changed = True
            was_finished, is_finished = old in (DONE, DEAD), new in (None, DONE, DEAD)
            self.finished += count * (is_finished - was_finished)

    def _add(self, state: int, count: int) -> None:
        if state == READY:
            self.ready += count
        elif state == CLAIMED:
            self.claimed += count
        elif state == DELAYED:
            self.delayed += count
        elif state == DONE:
            self.done += count
        elif state == DEAD:
            self.dead += count

    def expire(self, count: int) -> None:
        """Count so many messages more that have expired."""
        self.failed += count
        self._totals_changed = self._totals_changed or count > 0
