"""Change what keeps a topic from delivering its messages: its rate, its pause and its lock."""

from __future__ import annotations

from persistcoll.engine.message_records import TopicClaim
from persistcoll.errors import StaleClaimError
from persistcoll.sqlite.database import Database
from persistcoll.sqlite.message_counters import MessageCounters, Topic
from persistcoll.sqlite.message_life import MessageLife
from persistcoll.sqlite.message_rows import random_token

__all__ = ["MessageGates"]


class MessageGates:
    """The rates, pauses and locks of one queue's topics. Each method is a part of a transaction."""

    def __init__(self, database: Database, counters: MessageCounters, life: MessageLife) -> None:
        self._database = database
        self._counters = counters
        self._life = life

    def _save(self, topic: Topic) -> None:
        self._counters.gate(topic)
        self._database.mark_dirty(self._counters)

    def set_rate(self, topic: Topic, interval: float | None, burst: int) -> None:
        """Limit how often messages of a topic are delivered; ``None`` ends the limit."""
        now = self._life.now
        if (topic.interval, topic.burst) == (interval, burst) or topic.interval is interval is None:
            return
        if interval is not None:
            # Only the first rate of a topic begins with a whole burst.
            whole = now - (burst - 1) * interval
            opens = whole if topic.interval is None else min(topic.opens, now + interval)
            topic.burst, topic.next = burst, opens + (burst - 1) * interval
        topic.interval = interval
        self._save(topic)

    def pause(self, topic: Topic, pauses: bool) -> None:
        """Deliver no message of a topic, or deliver them again."""
        topic.paused = pauses
        self._save(topic)

    def lock(self, topic: Topic, holder: int, lease: float | None) -> TopicClaim:
        """Let only this holder claim messages of a topic that is not locked."""
        topic.locker, topic.lock = holder, random_token()
        self._set_end(topic, lease)
        return TopicClaim(topic.name, topic.lock)

    def extend(self, topic: Topic, lock: TopicClaim, seconds: float | None) -> None:
        """Let a lock end so many seconds from now.

        :raise StaleClaimError: it has ended.
        """
        if not self._is_held(topic, lock):
            raise StaleClaimError(f"the lock of topic {lock.topic!r} has ended")
        self._set_end(topic, seconds)

    def unlock(self, topic: Topic, lock: TopicClaim) -> bool:
        """End a lock, and tell whether it had not ended yet."""
        if not self._is_held(topic, lock):
            return False
        topic.unlock()
        self._save(topic)
        return True

    def _is_held(self, topic: Topic, lock: TopicClaim) -> bool:
        return topic.lock == lock.token and topic.is_locked(self._life.now)

    def _set_end(self, topic: Topic, seconds: float | None) -> None:
        topic.lock_until = None if seconds is None else self._life.now + seconds
        self._save(topic)
