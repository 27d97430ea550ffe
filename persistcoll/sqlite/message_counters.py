"""Count the messages of one queue, in all and by topic, and know which topics deliver now."""

from __future__ import annotations

from typing import Any

from persistcoll.engine.records import State
from persistcoll.sqlite.counters import Counters
from persistcoll.sqlite.driver import Execute, corruption_error
from persistcoll.sqlite.message_statements import MessageStatements

__all__ = ["MessageCounters", "Topic"]

_MOST_TOPICS = 10_000
"""How many topics a process remembers before it forgets all of them."""


class Topic:
    """The counts of one topic, and what keeps its messages from being delivered.

    The database's lock protects every field.

    :ivar counts: the number of its messages in each state.
    :ivar interval: the seconds between two deliveries; ``None``: they are not limited.
    :ivar next: the time at which the next delivery would be if all were evenly spaced.
    :ivar locker: the number of the holder that alone may claim from it; ``None``: it is not locked.
    """

    __slots__ = ("burst", "counts", "interval", "lock", "lock_until", "locker", "name", "next", "paused")

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
        self.counts: dict[State, int] = dict(zip(_ORDER, counts, strict=True))

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


_ORDER = (State.READY, State.CLAIMED, State.DELAYED, State.BLOCKED, State.DONE, State.DEAD)


class MessageCounters(Counters):
    """The counters of a queue of messages.

    Beside what :class:`~persistcoll.sqlite.counters.Counters` says, it remembers the topics that were used
    since it was loaded, and stores those that were changed. ``failed`` counts the messages that have expired,
    because no message is failed. Blocked messages are those that are put, not finished, and in no other
    state.

    :ivar gated: the names of the topics that are paused, limited or locked.
    """

    __slots__ = ("_changed", "_topics", "gated", "messages_sql")

    def __init__(self, sql: MessageStatements) -> None:
        super().__init__(sql)
        self.messages_sql = sql
        self._topics: dict[str, Topic] = {}
        self._changed: dict[str, Topic] = {}
        self.gated: set[str] = set()

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
        self.gated = {name for (name,) in execute(self.messages_sql.select_gated).fetchall()}

    def save(self, execute: Execute) -> None:
        super().save(execute)
        changed, self._changed = self._changed, {}
        for topic in changed.values():
            if topic.gated or any(topic.counts.values()):
                counts = [topic.counts[state] for state in _ORDER]
                execute(
                    self.messages_sql.save_topic,
                    (
                        topic.name, *counts, int(topic.paused), topic.interval, topic.burst, topic.next,
                        topic.locker, topic.lock, topic.lock_until, int(topic.gated),
                    ),
                )  # fmt: skip
            else:
                execute(self.messages_sql.delete_topic, (topic.name,))
        if len(self._topics) > _MOST_TOPICS:
            self._topics.clear()

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
            if any(topic.counts.values()):
                found[name] = topic.counts[State.READY]
            else:
                found.pop(name, None)
        return found

    def changed(self, topic: Topic) -> None:
        """Have a topic stored with the counters, within a transaction."""
        self._changed[topic.name] = topic
        if topic.gated:
            self.gated.add(topic.name)
        else:
            self.gated.discard(topic.name)

    def move(self, execute: Execute, name: str, old: State | None, new: State | None) -> None:
        """Count that a message of a topic goes from one state to another.

        :param old: ``None``: it is being put.
        :param new: ``None``: it is removed.
        """
        topic = self.topic(execute, name)
        for state, change in ((old, -1), (new, 1)):
            if state is not None:
                topic.counts[state] += change
                if state is not State.BLOCKED:
                    self.add(state, change)
        if old in (State.DONE, State.DEAD) and new not in (None, State.DONE, State.DEAD):
            self.finished -= 1
        elif old not in (State.DONE, State.DEAD) and new in (None, State.DONE, State.DEAD):
            self.finished += 1
        self.changed(topic)
