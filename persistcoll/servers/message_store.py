"""Store messages on a database server: put, claim, settle, remove and read them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from types import EllipsisType
from typing import Any, TypeVar

from persistcoll.engine.contracts import Awaited, MessageStore
from persistcoll.engine.message_events import Observer
from persistcoll.engine.message_records import (
    MessageClaim,
    MessageEntry,
    MessageRecord,
    TopicClaim,
    stale_claims,
)
from persistcoll.engine.records import State, Stats
from persistcoll.errors import Empty, StaleClaimError
from persistcoll.servers.handle import count_stored
from persistcoll.servers.message_claiming import ClaimingMessages
from persistcoll.servers.message_life import MessageLife
from persistcoll.servers.message_rows import NO_LEASE, MessageRow, later
from persistcoll.servers.message_statements import MESSAGE_STATES
from persistcoll.servers.message_topics import (
    Gate,
    change_gate,
    change_lock,
    lease_end,
    lock_topic,
    with_rate,
)
from persistcoll.servers.rows import Seal
from persistcoll.servers.sessions import Session
from persistcoll.servers.statements import LONGEST_SPAN, NUMBERS

__all__ = ["ServerMessageStore"]

T = TypeVar("T")


class ServerMessageStore(ClaimingMessages, MessageStore):
    """A :class:`~persistcoll.engine.contracts.MessageStore` in tables on a database server."""

    def seal_with(self, seal: Seal | None, unseal: Seal | None) -> None:
        """Apply ``seal`` to each payload and its mark before it is written, from now on.

        ``unseal`` undoes it.
        """
        self._rows.seal, self._rows.unseal = seal, unseal

    def transaction(self) -> AbstractContextManager[Any]:
        raise ValueError(
            "a queue on a server has no transactions of its own; begin one on a connection of yours, and pass"
            " it as 'connection'"
        )

    def observe(self, observer: Observer | None) -> None:
        self._observer = observer

    # Putting.

    def put(self, entries: Sequence[MessageEntry], *, deadline: float | None = None) -> list[int | None]:
        self._check()
        if not entries:
            return []
        columns = [self._rows.new(entry) for entry in entries]
        if len(entries) == 1 and self._is_plain(entries[0]):
            id = self._insert_noted(self._sql.insert_noted, columns[0], deadline)
            self._heads.lower(columns[0]["place"], id, columns[0]["topic"])
            return [id]
        if any(entry.key is not None for entry in entries):
            self._look()  # The key of a message whose ttl or last lease is over is free.
        return self._change(lambda life: life.put(entries, columns), puts=count_stored, deadline=deadline)

    def _is_plain(self, entry: MessageEntry) -> bool:
        """Tell whether a put is one statement, of which nobody is told."""
        has_others = entry.key is not None or entry.group is not None
        return not (has_others or self._is_joined or self._observer is not None)

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
        return self._claim(limit, topics, lease, claims, deadline)

    # Settling.

    def _claimed(self, life: MessageLife, claims: Sequence[MessageClaim]) -> list[MessageRow]:
        """Lock and return the rows of these claims.

        :raise StaleClaimError: one of them has ended.
        """
        rows = _of_claims(life, claims)
        active = {(row.id, row.token) for row in rows}
        stale = [claim.id for claim in dict.fromkeys(claims) if claim not in active]
        if stale:
            raise stale_claims(stale)
        return rows

    def _settle(
        self,
        claims: Sequence[MessageClaim],
        step: Callable[[MessageLife, list[MessageRow]], Any],
        **options: Any,
    ) -> None:
        self._check()
        if claims:
            self._change(lambda life: step(life, self._claimed(life, claims)), **options)

    def deliver(self, claims: Sequence[MessageClaim]) -> None:
        self._settle(claims, lambda life, rows: None, sync=False, once=False)

    def ack(self, claims: Sequence[MessageClaim]) -> None:
        self._check()
        alone = len(claims) == 1 and not self._policy.keep_done and self._observer is None
        if not (alone and self._ack_at_once(claims[0])):
            self._settle(claims, partial(_finish, state=State.DONE))

    def _ack_at_once(self, claim: MessageClaim) -> bool:
        """Delete a message that has neither key nor group, in one statement; return whether it is gone."""
        tries = 0

        def delete(session: Session) -> bool:
            nonlocal tries
            tries += 1
            self._notify(session, Awaited.LEFT)
            return session.run(self._sql.delete_claim, id=claim.id, token=claim.token).count > 0

        if self._sessions.repeat(delete):
            return True
        # After a lost answer, a message that is not there any more was deleted by the first try.
        return tries > 1 and not self._query(self._sql.select_bare, id=claim.id)

    def nack(
        self, claims: Sequence[MessageClaim], delay: float | None = None, error: str | None = None
    ) -> None:
        self._settle(claims, lambda life, rows: life.nack(rows, delay, error))

    def release(self, claims: Sequence[MessageClaim]) -> int:
        self._check()
        if not claims:
            return 0
        return self._change(lambda life: len(life.release(_of_claims(life, claims))), sync=False)

    def fail(self, claims: Sequence[MessageClaim], error: str | None = None) -> None:
        self._settle(claims, partial(_finish, state=State.DEAD, error=error))

    def extend(self, claims: Sequence[MessageClaim], seconds: float | None) -> float | None:
        self._check()
        if seconds is None:
            raise ValueError(NO_LEASE)
        span = min(seconds, LONGEST_SPAN)

        def extend(life: MessageLife) -> float:
            rows = self._claimed(life, claims)
            if not rows:
                return later(life.now(), span)
            until = later(rows[0].now, span)
            if any(row.until is not None and until < row.until for row in rows):
                life.awaited.add(Awaited.READY)
            life.session.defer(self._sql.extend, ids=[row.id for row in rows], until=until)
            return until

        return self._change(extend, sync=False)

    # Dead letters and removal.

    def _after_look(self, step: Callable[[MessageLife], T]) -> T:
        """Run a step in a transaction, after what is due was done."""
        self._check()
        self._look()
        return self._change(step)

    def redrive(self, id: int) -> bool:
        return self._after_look(lambda life: life.redrive_one(id))

    def redrive_all(self, topic: str | None = None) -> int:
        return self._after_look(lambda life: life.redrive_all(topic))

    def cancel(self, id: int) -> bool:
        return self._after_look(lambda life: life.cancel(id))

    def purge(self, topic: str | None = None, *, dead: bool = False, before: float | None = None) -> int:
        return self._after_look(lambda life: life.purge(topic, dead, before))

    def now(self) -> float:
        self._check()
        return float(self._query(self._server.sql.clock)[0][0])

    def release_key(self, key: bytes) -> bool:
        return self._after_look(lambda life: life.release_key(key))

    # Reading.

    def find(self, id: int) -> MessageRecord | None:
        for row in self._read(self._sql.select, id=id):
            return self._rows.record(MessageRow.of(row))
        return None

    def peek(self, topic: str | None = None) -> MessageRecord:
        text, where = self._of(topic, self._sql.select_next, self._sql.select_next_of)
        for row in self._read(text, **where):
            return self._rows.record(MessageRow.of(row))
        raise Empty

    def _of(self, topic: str | None, text: str, of_topic: str) -> tuple[str, dict[str, Any]]:
        """Return the statement on all topics or on one, and its parameters."""
        return (text, {}) if topic is None else (of_topic, {"topic": topic.encode()})

    def scan(self, *states: State, topic: str | None = None) -> Iterator[MessageRecord]:
        name = None if topic is None else topic.encode()
        if set(states) == {State.DEAD}:
            pages = self._pages(self._sql.scan_dead_page, 0, topic=name)
        else:
            numbers = [NUMBERS[state] for state in states or State]
            pages = self._pages(self._sql.scan_page, 0, states=numbers, topic=name)
        return (self._rows.record(MessageRow.of(row)) for page in pages for row in page)

    def topics(self) -> dict[str, int]:
        return {bytes(topic).decode(): int(ready) for topic, ready in self._read(self._sql.topics)}

    def count(self, topic: str | None = None) -> int:
        text, where = self._of(topic, self._sql.count_ready, self._sql.count_ready_of)
        return int(self._read(text, **where)[0][0])

    def is_empty(self, topic: str | None = None) -> bool:
        self._check()
        ready, _ = self._look()
        if topic is None or not ready:
            return not ready
        return not self._is_ready(topic.encode())

    def has_unfinished(self) -> bool:
        return bool(self._read(self._sql.has_unfinished)[0][0])

    def stats(self, topic: str | None = None) -> Stats:
        text, where = self._of(topic, self._sql.stats, self._sql.stats_of)
        ((*numbers,),) = self._read(text, **where)
        width = len(MESSAGE_STATES)
        counts = {name: int(number) for name, number in zip(MESSAGE_STATES, numbers, strict=False)}
        age = None if numbers[width] is None else max(0.0, float(numbers[width]))
        if topic is not None:
            return Stats(**counts, oldest_age=age)
        puts, size, expired = (int(number or 0) for number in numbers[width + 1 :])
        unfinished = sum(counts[name] for name in ("ready", "claimed", "delayed", "blocked"))
        return Stats(**counts, oldest_age=age, puts=puts, gets=puts - unfinished, bytes=size, expired=expired)

    # Topics.

    def _change_gate(self, topic: str, change: Callable[[Gate], Gate | None], makes: bool) -> None:
        self._check()
        name = topic.encode()

        def run(session: Session) -> None:
            change_gate(session, self._sql, name, change, makes=makes)
            self._notify(session, Awaited.READY)

        self._transact(run)

    def set_rate(self, topic: str, interval: float | None, burst: int = 1) -> None:
        self._change_gate(topic, with_rate(interval, burst), interval is not None)

    def pause(self, topic: str) -> None:
        self._change_gate(topic, lambda gate: gate._replace(paused=True), True)

    def resume(self, topic: str) -> None:
        self._change_gate(topic, lambda gate: gate._replace(paused=False), False)

    def lock_topic(
        self, topic: str | None, lease: float | None, *, locks: list[TopicClaim] | None = None
    ) -> TopicClaim | None:
        self._check()
        if topic is None:
            self._look()
        holder = self._holder
        holder.holds = True

        def lock(session: Session) -> TopicClaim | None:
            name = self._fullest(session) if topic is None else topic.encode()
            return None if name is None else lock_topic(session, self._sql, name, holder.number, lease)

        made = self._transact(lock, sync=False)
        if made is not None and locks is not None:
            locks.append(made)
        if self._original._closed:
            self._end_own()
            self._check()
        return made

    def _fullest(self, session: Session) -> bytes | None:
        """Return the topic with the most ready messages of those that are neither locked nor paused."""
        gates = [Gate.of(row) for row in session.run(self._sql.select_gates).rows]
        closed = {gate.topic for gate in gates if gate.paused or gate.is_locked}
        for topic, _ in session.run(self._sql.fullest).rows:
            if bytes(topic) not in closed:
                return bytes(topic)
        return None

    def extend_lock(self, lock: TopicClaim, seconds: float | None) -> None:
        self._check()
        until = partial(lease_end, seconds)
        if not self._transact(lambda session: change_lock(session, self._sql, lock, until), sync=False):
            raise StaleClaimError(f"the lock of topic {lock.topic!r} has ended")

    def unlock_topic(self, lock: TopicClaim) -> bool:
        self._check()

        def unlock(session: Session) -> bool:
            self._notify(session, Awaited.READY)
            return change_lock(session, self._sql, lock, None)

        return self._transact(unlock, sync=False)

    # Upkeep.

    def reclaim(self) -> int:
        self._check()
        return self._end_due()

    def shrink(self) -> None:
        self._check()

    def checkpoint(self) -> None:
        self._check()


def _finish(life: MessageLife, rows: list[MessageRow], state: State, error: str | None = None) -> None:
    life.lock_beside(rows, waits=True)
    life.finish(rows, state, error)


def _of_claims(life: MessageLife, claims: Sequence[MessageClaim]) -> list[MessageRow]:
    """Lock and return the rows of those of these claims that have not ended."""
    wanted = set(claims)
    rows = life.read(life.sql.lock_bare_rows, ids=sorted({claim.id for claim in claims})) if claims else []
    return [
        row for row in rows if (row.id, row.token) in wanted and row.until is not None and row.until > row.now
    ]
