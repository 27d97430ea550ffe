"""The reference message store: :class:`MemoryMessageStore`, the simplest store that keeps its laws.

Tests compare the other stores with it, so it shares no algorithm with any of them. It consists of dicts of
rows, one lock, and a search wherever a search is sufficient. The clock is a function, so that a test of
leases and delays need not wait.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from types import EllipsisType

from persistcoll.engine.contracts import MessageStore
from persistcoll.engine.memory.message_life_cycle import MessageLifeCycle
from persistcoll.engine.memory.message_rows import (
    UNCLAIMED,
    UNFINISHED,
    MemoryMessageState,
    Rate,
    TopicLock,
)
from persistcoll.engine.message_events import EventKind, MessageEvent, Observer, tell
from persistcoll.engine.message_records import (
    HOLDER_CLOSED,
    MessageClaim,
    MessageEntry,
    MessageRecord,
    TopicClaim,
)
from persistcoll.engine.records import State, Stats
from persistcoll.engine.transaction_hooks import TransactionHooks
from persistcoll.errors import DuplicateError, LockedError, StaleClaimError

__all__ = ["MemoryMessageState", "MemoryMessageStore"]


class MemoryMessageStore(MessageLifeCycle, MessageStore):
    """A :class:`~persistcoll.engine.contracts.MessageStore` in memory.

    A new store of the same state continues with it. Any thread may call any method. The time of a call grows
    with the number of messages.

    The state's lock protects every field.

    >>> from persistcoll.engine.message_records import MessagePolicy
    >>> now = 0.0
    >>> store = MemoryMessageStore(MessagePolicy(lease=60), MemoryMessageState(clock=lambda: now))
    >>> store.put([MessageEntry(b"first"), MessageEntry(b"urgent", priority=1)])
    [1, 2]
    >>> [urgent] = store.claim()
    >>> urgent.payload, urgent.attempts
    (b'urgent', 1)
    >>> now += 60
    >>> store.ack([urgent.claim])
    Traceback (most recent call last):
    persistcoll.errors.StaleClaimError: the claim of message 2 has ended
    >>> store.find(2).error
    'lease ran out'

    :param policy: what applies to messages that do not say it themselves.
    :param state: the state with the messages; a new and empty one by default.
    """

    # Transactions.

    def transaction(self) -> AbstractContextManager[None]:
        return self._state.transaction(self._check)

    def await_transaction(self) -> None:
        with self._state.lock:
            pass

    def open_transaction(self) -> TransactionHooks | None:
        return self._state.open_transaction()

    # Putting.

    def put(self, entries: Sequence[MessageEntry], *, deadline: float | None = None) -> list[int | None]:
        with self._observed():
            self._promote_due()
            if any(entry.lease is None for entry in entries):
                self._refuse_no_lease()
            return [self._put(entry) for entry in entries]

    # Claiming.

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
        with self._observed():
            state = self._promote_due()
            if lease is None:
                self._refuse_no_lease()
            rows = self._open_rows(limit, topics)
            if not rows:
                raise state.nothing(self._openings(topics))
            leases = [self._lease(row, lease) for row in rows]
            for topic, count in Counter(row.entry.topic for row in rows).items():
                self._use_rate(topic, count)
            records = [self._claim(row, seconds, prefetch) for row, seconds in zip(rows, leases, strict=True)]
            if claims is not None:
                claims.extend(row.claim for row in rows)
            return records

    # Settling.

    def deliver(self, claims: Sequence[MessageClaim]) -> None:
        with self._observed():
            self._promote_due()
            for row in self._claimed(claims):
                row.delivered = True
                self._state.changes += 1

    def ack(self, claims: Sequence[MessageClaim]) -> None:
        with self._observed():
            self._promote_due()
            for row in self._claimed(claims):
                self._finish(row, State.DONE)
                self._note(EventKind.ACKED, row)

    def nack(
        self, claims: Sequence[MessageClaim], delay: float | None = None, error: str | None = None
    ) -> None:
        with self._observed():
            self._promote_due()
            for row in self._claimed(claims):
                row.error = row.error if error is None else error
                if self._is_spent(row):
                    self._finish(row, State.DEAD)
                    self._note(EventKind.DEAD, row, error)
                else:
                    self._come_back(row, self._backoff(row) if delay is None else delay)
                    self._note_return(EventKind.NACKED, row, error)

    def release(self, claims: Sequence[MessageClaim]) -> int:
        with self._observed():
            self._promote_due()
            rows = [row for claim in dict.fromkeys(claims) if (row := self._of_claim(claim)) is not None]
            for row in rows:
                row.attempts -= 1
                self._come_back(row)
                self._note_return(EventKind.RELEASED, row)
            return len(rows)

    def fail(self, claims: Sequence[MessageClaim], error: str | None = None) -> None:
        with self._observed():
            self._promote_due()
            for row in self._claimed(claims):
                row.error = row.error if error is None else error
                self._finish(row, State.DEAD)
                self._note(EventKind.DEAD, row, error)

    def extend(self, claims: Sequence[MessageClaim], seconds: float | None) -> float | None:
        with self._observed():
            state, until = self._promote_due(), self._end_of(seconds)
            for row in self._claimed(claims):
                row.until = until
                state.changes += 1
            return until

    # Dead letters and removal.

    def redrive(self, id: int) -> bool:
        with self._observed():
            row = self._promote_due().rows.get(id)
            if row is None or row.state is not State.DEAD:
                return False
            if not self._redrive(row):
                raise DuplicateError(f"the key of message {id} is active for another message")
            return True

    def redrive_all(self, topic: str | None = None) -> int:
        with self._observed():
            rows = self._promote_due().select(State.DEAD, topic=topic)
            return sum(self._redrive(row) for row in rows if self._may_change(row))

    def cancel(self, id: int) -> bool:
        with self._observed():
            row = self._promote_due().rows.get(id)
            if row is None or row.state not in (*UNCLAIMED, State.DEAD):
                return False
            self._finish(row, window=False)
            self._note(EventKind.CANCELLED, row)
            return True

    def purge(self, topic: str | None = None, *, dead: bool = False, before: float | None = None) -> int:
        with self._observed():
            rows = self._promote_due().select(*((State.DEAD,) if dead else UNCLAIMED), topic=topic)
            rows = [row for row in rows if before is None or row.time < before]
            rows = [row for row in rows if self._may_change(row)]
            for row in rows:
                self._finish(row)
                self._note(EventKind.PURGED, row)
            return len(rows)

    def now(self) -> float:
        self._check()
        return self._state.clock()

    def release_key(self, key: bytes) -> bool:
        with self._observed():
            was_active = self._promote_due().keys.pop(key, None) is not None
            self._state.changes += was_active
            return was_active

    # Inspection.

    def find(self, id: int) -> MessageRecord | None:
        with self._observed():
            row = self._promote_due().rows.get(id)
            return None if row is None else self._record(row)

    def peek(self, topic: str | None = None) -> MessageRecord:
        with self._observed():
            state = self._promote_due()
            for row in self._ready(None if topic is None else (topic,)):
                return self._record(row)
            raise state.nothing(())

    def scan(self, *states: State, topic: str | None = None) -> Iterator[MessageRecord]:
        with self._observed():
            rows = self._promote_due().select(*(states or State), topic=topic)
            return iter([self._record(row) for row in rows])

    def topics(self) -> dict[str, int]:
        with self._observed():
            rows = self._promote_due().rows.values()
            counts = dict.fromkeys((row.entry.topic for row in rows), 0)
            return counts | Counter(row.entry.topic for row in rows if row.state is State.READY)

    def count(self, topic: str | None = None) -> int:
        with self._observed():
            return len(self._promote_due().select(State.READY, topic=topic))

    def is_empty(self, topic: str | None = None) -> bool:
        return not self.count(topic)

    def has_unfinished(self) -> bool:
        with self._observed():
            return bool(self._promote_due().select(*UNFINISHED))

    def stats(self, topic: str | None = None) -> Stats:
        with self._observed():
            state = self._promote_due()
            counts = {each.value: len(state.select(each, topic=topic)) for each in State}
            ready = state.select(State.READY, topic=topic)
            age = max(0.0, self._now - ready[0].time) if ready else None
            if topic is not None:
                return Stats(**counts, oldest_age=age)
            return Stats(
                **counts,
                oldest_age=age,
                puts=state.puts,
                gets=state.puts - len(state.select(*UNFINISHED)),
                bytes=sum(len(row.entry.payload) for row in state.rows.values()),
                expired=state.expired,
            )

    def change_token(self) -> object:
        with self._observed():
            return self._promote_due().changes

    # Topics.

    def set_rate(self, topic: str, interval: float | None, burst: int = 1) -> None:
        with self._observed():
            state, now = self._promote_due(), self._now
            rate = state.rates.get(topic)
            if rate is not None and (rate.interval, rate.burst) == (interval, burst):
                return
            if interval is None:
                state.rates.pop(topic, None)
            else:
                # Only the first rate of a topic begins with a whole burst.
                opens = now - (burst - 1) * interval if rate is None else min(rate.opens, now + interval)
                state.rates[topic] = Rate(interval, burst, opens + (burst - 1) * interval)
            state.changes += 1

    def pause(self, topic: str) -> None:
        with self._observed():
            self._promote_due().paused[topic] = True
            self._state.changes += 1

    def resume(self, topic: str) -> None:
        with self._observed():
            self._promote_due().paused.pop(topic, None)
            self._state.changes += 1

    def lock_topic(
        self, topic: str | None, lease: float | None, *, locks: list[TopicClaim] | None = None
    ) -> TopicClaim | None:
        with self._observed():
            state = self._promote_due()
            topic = self._fullest() if topic is None else topic
            if topic is None or topic in state.locks:
                return None
            lock = TopicLock(next(state.tokens), self._holder, self._end_of(lease))
            state.locks[topic] = lock
            state.changes += 1
            made = TopicClaim(topic, lock.token)
            if locks is not None:
                locks.append(made)
            return made

    def extend_lock(self, lock: TopicClaim, seconds: float | None) -> None:
        with self._observed():
            state = self._promote_due()
            held = state.locks.get(lock.topic)
            if held is None or held.token != lock.token:
                raise StaleClaimError(f"the lock of topic {lock.topic!r} has ended")
            state.locks[lock.topic] = held._replace(until=self._end_of(seconds))
            state.changes += 1

    def _end_of(self, lease: float | None) -> float | None:
        if lease is None:
            self._refuse_no_lease()
            return None
        return self._now + lease

    def unlock_topic(self, lock: TopicClaim) -> bool:
        with self._observed():
            state = self._promote_due()
            held = state.locks.get(lock.topic)
            if held is None or held.token != lock.token:
                return False
            del state.locks[lock.topic]
            state.changes += 1
            return True

    # Lifecycle.

    def observe(self, observer: Observer | None) -> None:
        with self._state.lock:
            self._observer = observer

    def _tell(self, observer: Observer, events: Sequence[MessageEvent]) -> None:
        tell(self, observer, events)

    def reclaim(self) -> int:
        with self._observed():
            if self._closed:
                self._promote_due()
            self._state.refuse_other_task()
            return self._reclaim()

    def shrink(self) -> None:
        with self._observed():
            self._promote_due()

    def checkpoint(self) -> None:
        with self._observed():
            self._promote_due()

    def after_fork_in_child(self) -> None:
        # The child's memory is a copy, in which every holder is dead. A thread of the parent that the child
        # does not have may hold the old lock.
        self._state.forked()
        self._state.kill_holders()

    def end_own_claims(self) -> None:
        """End the claims and the locks of this store."""
        with self._observed():
            self._reclaim()
            for topic, lock in list(self._state.locks.items()):
                if lock.holder == self._holder and not self._is_locked("locks", topic):
                    del self._state.locks[topic]
                    self._state.changes += 1
            for row in self._state.select(State.CLAIMED):
                if row.holder == self._holder and self._may_change(row):
                    self._lose(row, HOLDER_CLOSED)

    def close(self) -> None:
        with self._observed():
            if not self._closed:
                # Where another task has a transaction open, the next call ends the claims of the dead.
                with suppress(LockedError):
                    self._state.refuse_other_task()
                    self.end_own_claims()
                self._closed = True
