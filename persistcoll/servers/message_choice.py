"""Choose the messages to claim on a server: in their order, of the topics that deliver now."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from persistcoll.servers.message_life import MessageLife
from persistcoll.servers.message_rows import MessageRow
from persistcoll.servers.message_statements import READY
from persistcoll.servers.message_topics import Gate, change_gate
from persistcoll.servers.statements import PAGE

__all__ = ["MessageChoice"]


class _Head(NamedTuple):
    """The first ready message of a topic, in the order of delivery."""

    place: float
    id: int
    topic: bytes


class MessageChoice:
    """What one claim may have, within a transaction. It waits for no lock.

    While no topic has a gate, a claim of any topic locks the first rows of one index. Otherwise it reads the
    first rows of each topic that delivers now, and locks the first ones of these.

    :param holder: the store object that claims.
    :ivar openings: in how many seconds topics open that have ready messages and deliver none now.
    :ivar has_passed: whether another transaction has locked what could be claimed otherwise.
    """

    def __init__(self, life: MessageLife, holder: int) -> None:
        self._life = life
        self._holder = holder
        self._gates: dict[bytes, Gate] = {}
        self._locked: dict[bytes, Gate] = {}
        self.openings: list[float] = []
        self.has_passed = False

    def lock(self, limit: int, topics: Sequence[bytes] | None) -> list[MessageRow]:
        """Lock and return the next messages, at most ``limit``, in their order."""
        session, sql = self._life.session, self._life.sql
        gates = [Gate.of(row) for row in session.run(sql.select_gates).rows]
        self._gates = {gate.topic: gate for gate in gates if not gate.is_open}
        for gate in gates:
            if gate.is_open and not self._life.is_joined:
                change_gate(session, sql, gate.topic, lambda found: found, waits=False)
        if topics is None and not self._gates and not self._life.is_joined:
            rows = self._life.next("lock_next", None, limit, promoted=True)
            self.has_passed = not rows
            return rows
        heads = self._heads(topics, limit)
        rows = []
        while heads and not rows:
            for topic, count in self._counts(heads, limit).items():
                found = self._lock_of(topic, count)
                if len(found) < count:
                    heads = [head for head in heads if head.topic != topic]
                    self.has_passed = True
                rows += found
        rows.sort(key=lambda row: (row.place, row.id))
        return rows

    def _free(self, topic: bytes, limit: int) -> int:
        """Return how many messages of a topic may be claimed, at most ``limit``."""
        gate = self._gates.get(topic)
        return limit if gate is None else gate.free(self._holder, limit)

    def _heads(self, topics: Sequence[bytes] | None, limit: int) -> list[_Head]:
        """Return the first messages of the topics that deliver now, in their order."""
        session, sql = self._life.session, self._life.sql
        found: list[Any] = []
        if topics is None:
            found = session.run(sql.heads).rows
        else:
            for topic in topics:
                found += self._life.look("heads_of", topic, limit=1)
        heads: list[_Head] = []
        for topic, place, id in found:
            name = bytes(topic)
            if self._free(name, limit):
                heads.append(_Head(place, id, name))
            elif (opens := self._gates[name].opens_at(self._holder)) is not None:
                self.openings.append(opens - self._gates[name].now)
        return sorted(heads)

    def _counts(self, heads: list[_Head], limit: int) -> Counter[bytes]:
        """Return how many of the next messages are of which topics."""
        first = heads[:limit]  # No other topic has one of them.
        if len(first) == 1:
            return Counter({head.topic: self._free(head.topic, limit) for head in first})
        each = [
            [_Head(place, id, bytes(topic)) for topic, place, id in rows]
            for rows in (
                self._life.look("heads_of", head.topic, limit=self._free(head.topic, limit)) for head in first
            )
        ]
        merged = heapq.merge(*each)
        return Counter(head.topic for head, _ in zip(merged, range(limit), strict=False))

    def _lock_of(self, topic: bytes, count: int) -> list[MessageRow]:
        """Lock and return the next messages of a topic, as many as it delivers now."""
        session, sql = self._life.session, self._life.sql
        gate = self._gates.get(topic)
        if gate is not None and gate.interval is not None:
            rows = session.run(sql.lock_free_gate, topic=topic).rows
            if not rows:  # Another transaction delivers messages of the topic.
                return []
            gate = self._locked[topic] = Gate.of(rows[0])
            count = gate.free(self._holder, count)
        if not self._life.is_joined:
            return self._life.next("lock_next_of", topic, count, promoted=True) if count else []
        # See MessageLife.lock_any.
        ids = [id for _, _, id in session.run(sql.heads_of, topic=topic, limit=count + PAGE).rows]
        found: list[MessageRow] = []
        while ids and len(found) < count:
            some, ids = ids[: count - len(found)], ids[count - len(found) :]
            found += [row for row in self._life.lock_rows(some) if row.number == READY]
        return found

    def use(self, rows: Sequence[MessageRow]) -> None:
        """Count the deliveries of these messages in the rates of their topics."""
        for topic, count in Counter(row.topic.encode() for row in rows).items():
            if topic in self._locked:
                self._locked[topic].used(count).write(self._life.session, self._life.sql)
