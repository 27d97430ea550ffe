"""The gates of topics on a server: pauses, rates and locks. A topic without one simply delivers."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any, NamedTuple

from persistcoll.engine.message_records import TopicClaim
from persistcoll.servers.driver import TryAgainError
from persistcoll.servers.message_rows import NO_LEASE
from persistcoll.servers.message_statements import MessageStatements
from persistcoll.servers.sessions import Session
from persistcoll.servers.statements import LONGEST_SPAN

__all__ = ["Gate", "change_gate", "change_lock", "lease_end", "lock_topic", "unlocked", "with_rate"]

_TOKEN_BITS = 62


class Gate(NamedTuple):
    """What decides whether messages of a topic are delivered. Times are in seconds since the epoch.

    The rate is the generic cell rate algorithm (ITU-T I.371): ``next`` is the time at which the next delivery
    would be if all were evenly spaced. A delivery may be ``burst - 1`` intervals early.
    """

    topic: bytes
    paused: bool
    interval: float | None
    burst: int | None
    next: float | None
    locker: int | None
    token: int | None
    """Of the lock."""
    lock_until: float | None
    now: float

    @classmethod
    def of(cls, values: Any) -> Gate:
        """Return the gate of a row."""
        return cls._make(values)._replace(topic=bytes(values[0]), paused=bool(values[1]))

    @property
    def is_locked(self) -> bool:
        """Whether a store object has locked the topic."""
        return self.lock_until is not None and self.lock_until > self.now

    @property
    def is_open(self) -> bool:
        """Whether it decides nothing any more."""
        return not self.paused and self.interval is None and not self.is_locked

    @property
    def opens(self) -> float:
        """The time from which the rate allows one delivery."""
        assert self.interval is not None
        assert self.burst is not None
        assert self.next is not None
        return self.next - (self.burst - 1) * self.interval

    def free(self, holder: int, most: int) -> int:
        """Return how many messages this store object may claim now, at most ``most``."""
        if self.paused or (self.is_locked and self.locker != holder):
            return 0
        if self.interval is None:
            return most
        # A float rounds a time of this century by less than a microsecond.
        unused = (self.now - self.opens + 1e-6) // self.interval + 1
        return int(max(0.0, min(unused, self.burst or 1, most)))

    def opens_at(self, holder: int) -> float | None:
        """Return the time at which a closed topic delivers to this store object, if it is known."""
        if self.paused:
            return None
        if self.is_locked and self.locker != holder:
            return self.lock_until
        return self.opens

    def used(self, count: int) -> Gate:
        """Return the gate after so many deliveries."""
        if self.interval is None or self.next is None:
            return self
        return self._replace(next=max(self.next, self.now) + count * self.interval)

    def write(self, session: Session, sql: MessageStatements) -> None:
        """Store the gate, which this transaction has locked."""
        topic, paused, interval, burst, following, locker, token, until, _ = self
        if self.is_open:
            session.defer(sql.delete_gate, topic=topic)
            return
        session.defer(
            sql.write_gate,
            topic=topic,
            paused=paused,
            interval=interval,
            burst=burst,
            next=following,
            locker=locker,
            lock_token=token,
            lock_until=until,
        )


def change_gate(
    session: Session,
    sql: MessageStatements,
    topic: bytes,
    change: Callable[[Gate], Gate | None],
    *,
    makes: bool = False,
    waits: bool = True,
) -> None:
    """Change the gate of a topic.

    :param change: given the locked gate, returns the new one; ``None``: it stays.
    :param makes: whether to make the gate first, if there is none. Otherwise nothing is done then.
    :param waits: for another transaction. Otherwise nothing is done if one has locked the gate.
    """
    if makes:
        session.defer(sql.make_gate, topic=topic)
    rows = session.run(sql.lock_gate if waits else sql.lock_free_gate, topic=topic).rows
    for row in rows:
        found = Gate.of(row)
        changed = change(found)
        if changed is not None or found.is_open:
            (changed or found).write(session, sql)
    if makes and not rows:
        raise TryAgainError("another transaction has removed the gate of a topic")


def with_rate(interval: float | None, burst: int) -> Callable[[Gate], Gate | None]:
    """Return what changes the rate of a gate. See ``MessageStore.set_rate``."""

    def change(gate: Gate) -> Gate | None:
        if interval is None:
            return None if gate.interval is None else gate._replace(interval=None, burst=None, next=None)
        if (gate.interval, gate.burst) == (interval, burst):
            return None
        # Only the first rate of a topic begins with a whole burst.
        whole = gate.now - (burst - 1) * interval
        opens = whole if gate.interval is None else min(gate.opens, gate.now + interval)
        return gate._replace(interval=interval, burst=burst, next=opens + (burst - 1) * interval)

    return change


def lock_topic(
    session: Session, sql: MessageStatements, topic: bytes, holder: int, lease: float | None
) -> TopicClaim | None:
    """Lock a topic, unless it is locked.

    :raise ValueError: there is no lease.
    """
    made: list[TopicClaim] = []

    def lock(gate: Gate) -> Gate | None:
        if gate.is_locked:
            return None
        until = lease_end(lease, gate)
        made.append(TopicClaim(topic.decode(), secrets.randbits(_TOKEN_BITS)))
        return gate._replace(locker=holder, token=made[0].token, lock_until=until)

    change_gate(session, sql, topic, lock, makes=True)
    return made[0] if made else None


def lease_end(lease: float | None, gate: Gate) -> float:
    """Return the time at which a lock ends.

    :raise ValueError: there is no lease.
    """
    if lease is None:
        raise ValueError(NO_LEASE)
    return gate.now + min(lease, LONGEST_SPAN)


def change_lock(
    session: Session, sql: MessageStatements, lock: TopicClaim, until: Callable[[Gate], float] | None
) -> bool:
    """Let a lock end at another time, or at once. Return whether it had not ended yet."""
    done: list[bool] = []

    def change(gate: Gate) -> Gate | None:
        if gate.token != lock.token or not gate.is_locked:
            return None
        done.append(True)
        return unlocked(gate) if until is None else gate._replace(lock_until=until(gate))

    change_gate(session, sql, lock.topic.encode(), change)
    return bool(done)


def unlocked(gate: Gate) -> Gate:
    """Return the gate without its lock."""
    return gate._replace(locker=None, token=None, lock_until=None)
