"""The life cycle of a message in memory, which :class:`MemoryMessageStore` has as its base class."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import EllipsisType
from typing import Any

from persistcoll.engine.contracts import MAX_POLL_INTERVAL, StoreCapabilities
from persistcoll.engine.memory.message_rows import (
    UNFINISHED,
    ActiveKey,
    MemoryMessageState,
    MessageRow,
)
from persistcoll.engine.message_events import EventKind, MessageEvent, Observer
from persistcoll.engine.message_records import (
    HOLDER_DIED,
    LEASE_RAN_OUT,
    MessageClaim,
    MessageEntry,
    MessagePolicy,
    MessageRecord,
    stale_claims,
)
from persistcoll.engine.records import State
from persistcoll.errors import ClosedError

__all__ = ["NO_LEASE", "MessageLifeCycle"]

_REMOVALS = (EventKind.EXPIRED, EventKind.CANCELLED, EventKind.PURGED)
NO_LEASE = "a lease is needed, because this store notices no death of a holder"


class MessageLifeCycle:
    """What happens to messages, one step at a time. The caller of each method holds the state's lock.

    The state's lock protects every field.
    """

    capabilities = StoreCapabilities(transactions=True)

    def __init__(
        self,
        policy: MessagePolicy = MessagePolicy(),  # noqa: B008 - immutable
        state: MemoryMessageState | None = None,
    ) -> None:
        self._policy = policy
        self._state = state or MemoryMessageState()
        self._holder: object = self
        self._closed = False
        self._now = 0.0
        """The time of the present call."""
        self._observer: Observer | None = None
        self._events: list[MessageEvent] | None = None
        """What the present call has done to messages; ``None`` between two calls and without an observer."""

    def _observed(self) -> AbstractContextManager[object]:
        """Hold the state's lock for a call, and afterwards tell the observer what it has done."""
        return self._state.lock if self._observer is None else self._telling(self._observer)

    @contextmanager
    def _telling(self, observer: Observer) -> Iterator[None]:
        # A call within another one is a part of it.
        events: list[MessageEvent] = []
        try:
            with self._state.lock:
                outer = self._events
                self._events = events if outer is None else outer
                try:
                    yield
                finally:
                    self._events = outer
        finally:
            self._tell(observer, events)

    def _tell(self, observer: Observer, events: Sequence[MessageEvent]) -> None:
        raise NotImplementedError

    def _note(self, kind: EventKind, row: MessageRow, error: str | None = None) -> None:
        """Note what happened to a message."""
        if self._events is not None:
            attempts = None if kind in _REMOVALS else row.attempts
            event = MessageEvent(kind, row.entry.topic, self._now, row.id, 1, attempts, error)
            self._events.append(event)

    def _note_return(self, kind: EventKind, row: MessageRow, error: str | None = None) -> None:
        """Note that a message has come back, unless it has expired with that."""
        if row.id in self._state.rows:
            self._note(kind, row, error)

    def _check(self) -> None:
        """Raise the error of a store that cannot be used."""
        if self._closed:
            raise ClosedError("this message store in memory is closed")
        self._state.refuse_other_task()

    def _promote_due(self) -> MemoryMessageState:
        """End what is due: delays, leases, messages, locks, claims of the dead. Each call does it once."""
        self._check()
        self._reclaim()
        return self._state

    def _reclaim(self) -> int:
        """Do it, and return how many claims have ended."""
        state, ended = self._state, 0
        now = self._now = state.clock()
        for topic, lock in list(state.locks.items()):
            is_over = lock.until is not None and lock.until <= now
            if (is_over or self._is_dead(lock.holder)) and not self._is_locked("locks", topic):
                del state.locks[topic]
                state.changes += 1
        while due := [row for row in state.rows.values() if self._is_due(row, now)]:
            row = min(due, key=lambda row: (row.due, row.id))
            ended += row.state is State.CLAIMED
            if row.state is State.CLAIMED:
                self._lose(row, LEASE_RAN_OUT)
            elif row.expires is not None and row.expires <= now:
                self._expire(row)
            else:
                self._move(row, State.READY)
        for row in state.select(State.CLAIMED):
            if self._is_dead(row.holder) and self._may_change(row):
                self._lose(row, HOLDER_DIED)
                ended += 1
        for key, active in list(state.keys.items()):
            if not self._is_active(active) and not self._is_locked("keys", key):
                del state.keys[key]
        return ended

    def _is_locked(self, table: str, key: Any) -> bool:
        """Tell whether another open transaction has changed this row of the state's table."""
        return False

    def _is_due(self, row: MessageRow, now: float) -> bool:
        return row.due is not None and row.due <= now and self._may_change(row)

    def _may_change(self, row: MessageRow) -> bool:
        """Tell whether no other open transaction has changed the message, its group or its key."""
        return True

    def _is_dead(self, holder: object) -> bool:
        # A rollback may have restored the claims of a store that was closed in the transaction.
        return holder is None or (isinstance(holder, MessageLifeCycle) and holder._closed)

    def _refuse_no_lease(self) -> None:
        """Raise ``ValueError`` if what has no lease could never end."""
        if self.capabilities.death_noticed_after == math.inf:
            raise ValueError(NO_LEASE)

    def _move(self, row: MessageRow, state: State, until: float | None = None) -> None:
        """Put a message into another state, without a claim."""
        self._state.changes += 1
        row.state, row.until = state, until
        row.token, row.holder, row.delivered = None, None, False
        row.finished = None if state in UNFINISHED else self._now

    def _lose(self, row: MessageRow, error: str) -> None:
        """End a claim that nobody has settled."""
        if self.capabilities.counts_delivered and not row.delivered:
            row.attempts -= 1
            self._come_back(row)
            self._note_return(EventKind.RECLAIMED, row)
            return
        row.error = error
        if self._is_spent(row):
            self._finish(row, State.DEAD)
            self._note(EventKind.DEAD, row, error)
        else:
            self._come_back(row)
            self._note_return(EventKind.RECLAIMED, row, error)

    def _is_spent(self, row: MessageRow) -> bool:
        own = row.entry.max_attempts
        most = self._policy.max_attempts if isinstance(own, EllipsisType) else own
        return most is not None and row.attempts >= most

    def _come_back(self, row: MessageRow, delay: float = 0.0) -> None:
        """Return a claimed message to its place, or remove it if its time is over."""
        if row.expires is not None and row.expires <= self._now:
            self._expire(row)
        elif delay > 0:
            self._move(row, State.DELAYED, self._now + delay)
        else:
            self._move(row, State.READY)

    def _expire(self, row: MessageRow) -> None:
        self._finish(row)
        self._state.expired += 1
        self._note(EventKind.EXPIRED, row)

    def _finish(self, row: MessageRow, state: State | None = None, window: bool = True) -> None:
        """Make a message done or dead, or remove it. The next message of its group becomes the head.

        :param window: whether its key stays active for the rest of its window.
        """
        was_head = row.state in UNFINISHED and row.state is not State.BLOCKED
        self._free_key(row, window)
        if state is None:
            self._state.changes += 1
            del self._state.rows[row.id]
        else:
            self._move(row, state)
            self._trim(state)
        if was_head and row.group is not None:
            self._next_head(row.group)

    def _next_head(self, group: tuple[str, str]) -> None:
        """Let the blocked message with the lowest id be the head of the group."""
        for row in self._state.select(State.BLOCKED):
            if row.group == group:
                is_delayed = row.until is not None and row.until > self._now
                self._move(
                    row, State.DELAYED if is_delayed else State.READY, row.until if is_delayed else None
                )
                return

    def _trim(self, state: State) -> None:
        keep = self._policy.keep_done if state is State.DONE else self._policy.keep_dead
        rows = [] if keep is None else self._state.select(state)
        for row in rows[: max(0, len(rows) - (keep or 0))]:
            if self._may_change(row):
                self._finish(row)

    def _has_unfinished(self, group: tuple[str, str] | None) -> bool:
        return group is not None and any(row.group == group for row in self._state.select(*UNFINISHED))

    # Keys.

    def _is_active(self, key: ActiveKey | None) -> bool:
        return key is not None and (key.unfinished or key.until > self._now)

    def _free_key(self, row: MessageRow, window: bool) -> None:
        keys, key = self._state.keys, row.entry.key
        active = None if key is None else keys.get(key)
        # After `release_key` the key may be active for another message.
        if key is None or active is None or active.id != row.id:
            return
        if window and active.until > self._now:
            keys[key] = active._replace(unfinished=False)
        else:
            del keys[key]

    # Steps of one call.

    def _put(self, entry: MessageEntry) -> int | None:
        state, now = self._state, self._now
        if entry.key is not None and self._is_active(state.keys.get(entry.key)):
            return None
        until = now + entry.delay if entry.delay > 0 else None
        expires = None if entry.ttl is None else now + entry.ttl
        row = MessageRow(0, entry, now, State.READY if until is None else State.DELAYED, until, expires)
        if self._has_unfinished(row.group):
            row.state = State.BLOCKED
        state.add(row)
        state.puts += 1
        state.changes += 1
        if entry.key is not None:
            state.keys[entry.key] = ActiveKey(row.id, now + entry.key_window)
        self._note(EventKind.PUT, row)
        return row.id

    def _record(self, row: MessageRow, claim: bool = False, lease: float | None = None) -> MessageRecord:
        entry = row.entry
        return MessageRecord(
            id=row.id,
            payload=entry.payload,
            topic=entry.topic,
            priority=entry.priority,
            state=row.state,
            time=row.time,
            attempts=row.attempts,
            deliveries=row.deliveries,
            until=row.until,
            finished=row.finished,
            key=entry.key,
            group=entry.group,
            headers=entry.headers,
            error=row.error,
            claim=row.claim if claim else None,
            lease=lease,
        )

    def _ready(self, topics: Sequence[str] | None = None) -> list[MessageRow]:
        """Return the ready messages in the order in which they are claimed."""
        rows = self._state.select(State.READY)
        rows = [row for row in rows if topics is None or row.entry.topic in topics]
        return sorted(rows, key=lambda row: -row.entry.priority)

    def _open_rows(self, limit: int, topics: Sequence[str] | None) -> list[MessageRow]:
        """Return the ready messages that can be claimed, at most ``limit``."""
        free: dict[str, int] = {}
        rows: list[MessageRow] = []
        for row in self._ready(topics):
            topic = row.entry.topic
            if len(rows) < limit and self._may_change(row) and free.setdefault(topic, self._free(topic)) > 0:
                free[topic] -= 1
                rows.append(row)
        return rows

    def _free(self, topic: str) -> int:
        """Return how many messages of a topic may be delivered to this store now."""
        state, lock = self._state, self._state.locks.get(topic)
        if topic in state.paused or (lock is not None and lock.holder != self._holder):
            return 0
        if self._is_locked("rates", topic) or self._is_locked("locks", topic):
            return 0
        rate = state.rates.get(topic)
        return len(state.rows) if rate is None else rate.free(self._now)

    def _use_rate(self, topic: str, count: int) -> None:
        rate = self._state.rates.get(topic)
        if rate is not None:
            first = max(rate.next, self._now)
            self._state.rates[topic] = rate._replace(next=first + count * rate.interval)

    def _openings(self, topics: Sequence[str] | None) -> Iterable[float | None]:
        """Return the times at which a message that cannot be claimed now may be claimable."""
        state = self._state
        yield from (row.due for row in state.rows.values() if self._may_change(row))
        if not all(map(self._may_change, state.rows.values())):
            # The other transaction may be rolled back, which nothing tells.
            yield self._now + MAX_POLL_INTERVAL
        ready = {row.entry.topic for row in self._ready(topics)} - state.paused.keys()
        for topic in ready:
            lock, rate = state.locks.get(topic), state.rates.get(topic)
            yield None if lock is None else lock.until
            yield None if rate is None or rate.free(self._now) else rate.opens

    def _lease(self, row: MessageRow, lease: float | EllipsisType | None) -> float | None:
        for seconds in (lease, row.entry.lease):
            if not isinstance(seconds, EllipsisType):
                return seconds
        return self._policy.lease

    def _claim(self, row: MessageRow, lease: float | None, prefetch: bool) -> MessageRecord:
        state = self._state
        self._move(row, State.CLAIMED, None if lease is None else self._now + lease)
        row.token, row.holder, row.delivered = next(state.tokens), self._holder, not prefetch
        row.attempts += 1
        row.deliveries += 1
        self._note(EventKind.CLAIMED, row)
        return self._record(row, True, lease)

    def _claimed(self, claims: Sequence[MessageClaim]) -> list[MessageRow]:
        """Return the rows of these claims.

        :raise StaleClaimError: one of them has ended.
        """
        claims = list(dict.fromkeys(claims))
        rows = [self._of_claim(claim) for claim in claims]
        stale = [claim.id for claim, row in zip(claims, rows, strict=True) if row is None]
        if stale:
            raise stale_claims(stale)
        return [row for row in rows if row is not None]

    def _of_claim(self, claim: MessageClaim) -> MessageRow | None:
        row = self._state.rows.get(claim.id)
        return None if row is None or row.token is None or row.claim != claim else row

    def _backoff(self, row: MessageRow) -> float:
        own = row.entry.backoff
        backoff = self._policy.backoff if isinstance(own, EllipsisType) else own
        return 0.0 if backoff is None else backoff.delay(row.attempts)

    def _redrive(self, row: MessageRow) -> bool:
        state, key = self._state, row.entry.key
        if key is not None:
            active = state.keys.get(key)
            if active is not None and active.id != row.id and self._is_active(active):
                return False
            until = active.until if active is not None and active.id == row.id else 0.0
            state.keys[key] = ActiveKey(row.id, until)
        is_blocked = self._has_unfinished(row.group)
        self._move(row, State.BLOCKED if is_blocked else State.READY)
        row.attempts = 0
        row.expires = None if row.entry.ttl is None else self._now + row.entry.ttl
        self._note(EventKind.REDRIVEN, row)
        return True

    def _fullest(self) -> str | None:
        """Return the topic with the most ready messages of those that are neither locked nor paused."""
        closed = self._state.locks.keys() | self._state.paused.keys()
        topics = [row.entry.topic for row in self._ready()]
        counts = Counter(
            topic for topic in topics if topic not in closed and not self._is_locked("locks", topic)
        )
        return min(counts, key=lambda topic: (-counts[topic], topic), default=None)
