"""Store messages in SQLite: put, claim, settle and read them."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import EllipsisType
from typing import Any, TypeVar, cast

from persistcoll.engine.contracts import MessageStore, StoreCapabilities
from persistcoll.engine.message_events import EventKind, Observer
from persistcoll.engine.message_records import (
    MessageClaim,
    MessageEntry,
    MessagePolicy,
    MessageRecord,
    TopicClaim,
    stale_claims,
)
from persistcoll.engine.records import State, Stats
from persistcoll.errors import CorruptionError, Empty
from persistcoll.sqlite import schema
from persistcoll.sqlite.claiming import ClaimingHandle
from persistcoll.sqlite.counters import Counters
from persistcoll.sqlite.driver import Execute, corruption_error
from persistcoll.sqlite.handle import Collection
from persistcoll.sqlite.holding import Holding
from persistcoll.sqlite.message_choice import MessageChoice
from persistcoll.sqlite.message_counters import MessageCounters, Topic
from persistcoll.sqlite.message_gates import MessageGates
from persistcoll.sqlite.message_life import MessageLife
from persistcoll.sqlite.message_removal import MessageRemoval
from persistcoll.sqlite.message_repair import MessageRepair
from persistcoll.sqlite.message_rows import MessageRow, MessageRows, random_token
from persistcoll.sqlite.message_statements import (
    CLAIMED,
    READY,
    STATES,
    MessageStatements,
    message_statements,
)
from persistcoll.sqlite.observed_writes import ObservedWrites, Write
from persistcoll.sqlite.rows import Seal, time_of
from persistcoll.sqlite.scan import in_pages

__all__ = ["SQLiteMessageStore"]

T = TypeVar("T")
_MOST = (1 << 63) - 1  # rows
_BEHIND = object()
# How many keys whose windows are over a put removes that adds one: more than one, so that all go in the end.
_KEYS_OVER = 16
_PAGE = 64  # rows, with their bodies
_NO_STATE = -1


class SQLiteMessageStore(ClaimingHandle[MessageStatements, MessageCounters], MessageStore):
    """A :class:`~persistcoll.engine.contracts.MessageStore` in a database file.

    Claims, locks and whatever ends them need not survive a power cut, because a message whose claim is lost
    is ready, so these operations do not sync.

    The database's lock protects what the transactions of all handles change, and ``_ended``.
    """

    capabilities = StoreCapabilities(transactions=True)
    # Seconds. Asking a database costs 20 to 50 us if the processor's caches hold nothing of it any more.
    max_poll_interval = 0.01

    def __init__(self, collection: Collection, policy: MessagePolicy) -> None:
        sql = message_statements(collection.collection_id, collection.version >= schema.MESSAGE_VERSION)
        self._closing = threading.Lock()
        super().__init__(collection, sql)
        counters = cast(MessageCounters, self._counters)
        self._rows = MessageRows(self._database.path, self.store_id, policy)
        self._life = MessageLife(self._database, sql, counters, self._rows, policy)
        self._removal = MessageRemoval(sql, self._rows, self._life)
        self._gates = MessageGates(self._database, counters, self._life)
        self._repair = MessageRepair(self._database, sql, counters, self._life, self._now)
        self._holding = Holding(self, self._life.end_claims)
        self._choice = MessageChoice(sql, self._rows, self._life, self._holding)
        self._ended = 0
        self._transact: Write = self._database.write
        self._users = collection.users

    def _new_counters(self, sql: MessageStatements) -> Counters:
        return MessageCounters(sql)

    def seal_with(self, seal: Seal | None, unseal: Seal | None) -> None:
        """Apply ``seal`` to each payload and its id before it is written, from now on; ``unseal`` undoes it.

        They are no parameters of the constructor, because both are made with the collection's id, which is
        known only when the collection is open.
        """
        self._rows.seal, self._rows.unseal = seal, unseal

    def observe(self, observer: Observer | None) -> None:
        self._life.events = None
        self._transact = self._database.write if observer is None else ObservedWrites(self, observer)

    def _write_unsynced(self, run: Callable[[Execute], T], timeout: float) -> T:
        return self._transact(run, False, timeout=timeout)

    # Within a transaction.

    def _refresh_counters(self, execute: Execute, now: float | None = None) -> Counters:
        # Every transaction begins here, close()'s too: otherwise its steps would use an earlier call's time.
        now = self._now() if now is None else now
        self._life.begin(now)
        self._ended = 0
        return super()._refresh_counters(execute, now)

    def _refresh(self, execute: Execute) -> MessageCounters:
        """Return the true counters, after what is due was done, and note the time of this call."""
        return cast(MessageCounters, self._refresh_counters(execute))

    def _release_due(self, execute: Execute, counters: Counters) -> None:
        self._ended = self._life.release_due(execute)

    def _claimed(self, execute: Execute, claims: Sequence[MessageClaim]) -> list[MessageRow]:
        """Return the rows of these claims.

        :raise StaleClaimError: one of them has ended.
        """
        rows: list[MessageRow] = []
        stale: list[int] = []
        for claim in dict.fromkeys(claims):
            row = self._of_claim(execute, claim)
            if row is None:
                stale.append(claim.id)
            else:
                rows.append(row)
        if stale:
            raise stale_claims(stale)
        return rows

    def _of_claim(self, execute: Execute, claim: MessageClaim) -> MessageRow | None:
        found = execute(self._sql.select_claimed, (*claim, self._life.now)).fetchone()
        return None if found is None else MessageRow._make(found)

    def _settle(
        self, claims: Sequence[MessageClaim], sync: bool, step: Callable[[Execute, MessageRow], object]
    ) -> None:
        """Do a step with each message of these claims, all or none."""

        def settle(execute: Execute, rows: list[MessageRow]) -> None:
            for row in rows:
                step(execute, row)

        self._settle_together(claims, sync, settle)

    def _settle_together(
        self, claims: Sequence[MessageClaim], sync: bool, settle: Callable[[Execute, list[MessageRow]], None]
    ) -> None:
        self._check()

        def run(execute: Execute) -> None:
            self._refresh(execute)
            settle(execute, self._claimed(execute, claims))
            self._life.mend(execute)

        if claims:
            self._transact(run, sync and self._power, timeout=self._timeout)

    def _change(
        self,
        run: Callable[[Execute], T],
        sync: bool = True,
        after: Callable[[T], object] | None = None,
    ) -> T:
        self._check()
        return self._transact(run, sync and self._power, after=after, timeout=self._timeout)

    def _change_finished(self, change: Callable[[Execute], T]) -> T:
        """Change the store by what has to know all claims and messages that are over."""

        def run(execute: Execute) -> T | object:
            self._refresh(execute)
            if self._life.has_overdue:
                return _BEHIND
            result = change(execute)
            self._life.mend(execute)
            return result

        return self._until_current(lambda: self._change(run))

    def _until_current(self, call: Callable[[], T | object]) -> T:
        """Repeat a call that has to know all that is over, and end a slice of it before each time."""
        while (result := call()) is _BEHIND:
            self._change(self._refresh, False)
        return cast(T, result)

    # Putting.

    def put(self, entries: Sequence[MessageEntry], *, deadline: float | None = None) -> list[int | None]:
        self._check()
        if not entries:
            return []

        def run(execute: Execute) -> list[int | None] | object:
            counters = self._refresh(execute)
            if self._life.has_overdue and any(entry.key is not None for entry in entries):
                return _BEHIND
            ids = self._assign_ids(execute, entries, counters.last_id + 1)
            # All that may raise comes before the first change.
            new = [
                (id, entry, self._rows.sealed(id, entry))
                for id, entry in zip(ids, entries, strict=True)
                if id is not None
            ]
            rows = [self._put(execute, counters, *each) for each in new]
            self._database.executemany(self._sql.insert, rows)
            for (topic, state), count in Counter((row[2], row[1]) for row in rows).items():
                counters.move(execute, topic, None, state, count)
            if new:
                counters.last_id = new[-1][0]
                self._database.mark_dirty(counters)
            return ids

        return self._until_current(
            lambda: self._transact(run, self._power, deadline=deadline, timeout=self._timeout)
        )

    def _assign_ids(self, execute: Execute, entries: Sequence[MessageEntry], first: int) -> list[int | None]:
        ids: list[int | None] = []
        seen: set[bytes] = set()
        for entry in entries:
            key = entry.key
            if key is not None:
                found = execute(self._sql.select_key, (key,)).fetchone()
                if key in seen or self._life.is_active(found):
                    ids.append(None)
                    continue
                seen.add(key)
            ids.append(first)
            first += 1
        return ids

    def _put(
        self, execute: Execute, counters: MessageCounters, id: int, entry: MessageEntry, payload: bytes
    ) -> tuple[Any, ...]:
        """Put a message into its group, make its key active, and return the row to insert."""
        life = self._life
        is_blocked = life.enter_group(execute, entry.topic, entry.group)
        row = self._rows.new(id, entry, payload, is_blocked, life.now)
        if entry.key is not None:
            if entry.key_window:
                execute(self._sql.delete_keys_over, (life.now, _KEYS_OVER))
            execute(self._sql.save_key, (entry.key, id, life.now + entry.key_window, 1))
        if life.events is not None:
            life.note(EventKind.PUT, entry.topic, id, 0)
        if row[-1] is not None:
            counters.lower_next_due(row[-1])
        return row

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
        self._check()
        limit = min(limit, _MOST)

        def run(execute: Execute) -> list[MessageRecord] | None:
            counters = self._refresh(execute)
            if self._life.is_behind:
                return None
            self._holding.reclaim_while_busy(execute)
            rows = self._choice.claimable(execute, counters, limit, topics)
            if not rows and self._holding.reclaim_if_due(execute):
                rows = self._choice.claimable(execute, counters, limit, topics)
            if not rows:
                self._database.keep_changes()
                raise self._choice.nothing(execute, counters, topics)
            records = self._claim(execute, counters, rows, lease, prefetch)
            self._life.mend(execute)
            return records

        after = None if claims is None else partial(_note_claims, claims)
        found: list[MessageRecord] | None = None
        while found is None:
            found = self._transact(run, False, False, after, deadline, self._timeout)
        return found

    def _claim(
        self,
        execute: Execute,
        counters: MessageCounters,
        rows: list[MessageRow],
        lease: float | EllipsisType | None,
        prefetch: bool,
    ) -> list[MessageRecord]:
        now = self._life.now
        holder, token = self._holding.ensure(execute), random_token()
        for name, count in Counter(row.topic for row in rows).items():
            counters.move(execute, name, READY, CLAIMED, count)
            if name in counters.gated:
                topic = counters.topic(execute, name)
                topic.use(now, count)
                counters.gate(topic)
        delivered = int(not prefetch)
        records: list[MessageRecord] = []
        changes: list[tuple[Any, ...]] = []
        for row in rows:
            seconds = self._rows.lease(row, lease)
            until = None if seconds is None else now + seconds
            changes.append((holder, token, until, until, delivered, row.id))
            if self._life.events is not None:
                self._life.note(EventKind.CLAIMED, row.topic, row.id, row.attempts + 1)
            if until is not None:
                counters.lower_next_due(until)
            records.append(self._rows.delivery(row, token, until, seconds))
        self._database.executemany(self._sql.claim, changes)
        self._database.mark_dirty(counters)
        return records

    # Settling.

    def deliver(self, claims: Sequence[MessageClaim]) -> None:
        if len(claims) != 1:
            self._settle(claims, False, self._deliver)
            return
        (claim,) = claims
        self._check()

        # A consumer calls this for each message, so it is one statement, and a transaction of its own.
        def run(execute: Execute) -> None:
            self._refresh(execute)
            if not self._deliver(execute, claim):
                raise stale_claims([claim.id])

        self._transact(run, False, True, timeout=self._timeout)

    def _deliver(self, execute: Execute, claim: MessageClaim | MessageRow) -> bool:
        """Note that a claim is delivered, and tell whether it has not ended."""
        parameters = claim.id, claim.token, self._life.now
        return execute(self._sql.deliver, parameters).rowcount > 0

    def ack(self, claims: Sequence[MessageClaim]) -> None:
        self._settle_together(claims, True, self._life.ack)

    def nack(
        self, claims: Sequence[MessageClaim], delay: float | None = None, error: str | None = None
    ) -> None:
        self._settle(claims, True, lambda execute, row: self._life.nack(execute, row, delay, error))

    def fail(self, claims: Sequence[MessageClaim], error: str | None = None) -> None:
        self._settle(claims, True, lambda execute, row: self._life.finish(execute, row, State.DEAD, error))

    def release(self, claims: Sequence[MessageClaim]) -> int:
        self._check()

        def run(execute: Execute) -> int:
            self._refresh(execute)
            found = [self._of_claim(execute, claim) for claim in dict.fromkeys(claims)]
            rows = [row for row in found if row is not None]
            for row in rows:
                attempts = row.attempts - 1 if type(row.attempts) is int else None
                self._life.come_back(execute, row, EventKind.RELEASED, 0.0, attempts)
            self._life.mend(execute)
            return len(rows)

        return self._transact(run, False, timeout=self._timeout) if claims else 0

    def extend(self, claims: Sequence[MessageClaim], seconds: float | None) -> float | None:
        def run(execute: Execute) -> float | None:
            counters = self._refresh(execute)
            until = None if seconds is None else self._life.now + seconds
            for row in self._claimed(execute, claims):
                execute(self._sql.extend, (until, until, row.id))
            if until is not None:
                counters.lower_next_due(until)
            return until

        return self._change(run, False)

    # Dead letters and removal.

    def redrive(self, id: int) -> bool:
        return self._change_finished(lambda execute: self._removal.redrive(execute, id))

    def redrive_all(self, topic: str | None = None) -> int:
        return self._change_finished(lambda execute: self._removal.redrive_all(execute, topic))

    def cancel(self, id: int) -> bool:
        return self._remove(
            lambda execute: self._removal.cancel(execute, id),
            lambda execute: self._repair.cancel(execute, id),
        )

    def purge(self, topic: str | None = None, *, dead: bool = False, before: float | None = None) -> int:
        return self._remove(
            lambda execute: self._removal.purge(execute, topic, dead, before),
            lambda execute: self._repair.purge(execute, topic, dead, before),
        )

    def _remove(self, change: Callable[[Execute], T], repair: Callable[[Execute], T]) -> T:
        """Remove messages; if an index or a count is damaged, by what makes these anew."""
        try:
            return self._change_finished(change)
        except CorruptionError:
            if self._database.open_transaction() is not None:  # The error has ended it.
                raise
        return self._change(repair)

    def now(self) -> float:
        self._check()
        return self._now()

    def release_key(self, key: bytes) -> bool:
        def run(execute: Execute) -> bool:
            found = execute(self._sql.select_key, (key,)).fetchone()
            execute(self._sql.delete_key, (key,))
            return self._life.is_active(found)

        return self._change_finished(run)

    # Reading.

    def find(self, id: int) -> MessageRecord | None:
        found = self._read(lambda execute, _: execute(self._sql.select, (id,)).fetchone())
        return None if found is None else self._rows.record(MessageRow._make(found))

    def peek(self, topic: str | None = None) -> MessageRecord:
        text, parameters = (
            (self._sql.select_ready, (1,)) if topic is None else (self._sql.select_ready_of, (topic, 1))
        )

        def query(execute: Execute, counters: MessageCounters) -> Any:
            found = execute(text, parameters).fetchone()
            ready = counters.ready if topic is None else counters.topic(execute, topic).counts[READY]
            if found is None and ready:
                raise corruption_error(f"none of {ready} ready messages is found")
            return found

        found = self._read(query)
        if found is None:
            raise Empty
        return self._rows.record(MessageRow._make(found))

    def scan(self, *states: State, topic: str | None = None) -> Iterator[MessageRecord]:
        wanted = STATES.keys() & (states or State)
        last = self._read(lambda _, counters: counters.last_id)
        if not wanted:
            return iter(())
        text = self._sql.scan
        others = tuple(_NO_STATE if state in wanted else number for state, number in STATES.items())
        if len(wanted) == 1 and wanted <= self._sql.scan_in_state.keys():
            text, others = self._sql.scan_in_state[states[0]], ()

        def page(after: int) -> list[Any]:
            parameters = (after, last, *others, topic, topic, _PAGE)
            return self._read(lambda execute, _: execute(text, parameters).fetchall())

        # A damaged message ends no iteration.
        return map(self._rows.record, map(MessageRow._make, in_pages(page, self._database.path)))

    def topics(self) -> dict[str, int]:
        return self._read(lambda execute, counters: counters.ready_by_topic(execute))

    def count(self, topic: str | None = None) -> int:
        if topic is None:
            return self._read(lambda _, counters: counters.ready)
        return self._read(lambda execute, counters: counters.topic(execute, topic).counts[READY])

    def is_empty(self, topic: str | None = None) -> bool:
        return not self.count(topic)

    def has_unfinished(self) -> bool:
        return self._read(lambda _, counters: counters.unfinished > 0)

    def stats(self, topic: str | None = None) -> Stats:
        def query(execute: Execute, counters: MessageCounters) -> Stats:
            oldest = execute(*self._oldest(topic)).fetchone()
            age = None if oldest is None else max(0.0, self._now() - time_of(oldest[0]))
            if topic is not None:
                counts = counters.topic(execute, topic).counts
                numbers = {state.value: counts[number] for state, number in STATES.items()}
                return Stats(**numbers, oldest_age=age)
            return Stats(
                ready=counters.ready,
                claimed=counters.claimed,
                delayed=counters.delayed,
                blocked=counters.blocked,
                done=counters.done,
                dead=counters.dead,
                oldest_age=age,
                puts=counters.last_id,
                gets=counters.finished,
                bytes=self._database.source.disk_usage(),
                expired=counters.failed,
            )

        return self._read(query, True)

    def _oldest(self, topic: str | None) -> tuple[str, tuple[object, ...]]:
        if topic is None:
            return self._sql.select_oldest_ready, ()
        return self._sql.select_oldest_ready_of, (topic,)

    # Topics.

    def _change_topic(self, name: str, change: Callable[[Topic], T], sync: bool = True) -> T:
        return self._change(lambda execute: change(self._refresh(execute).topic(execute, name)), sync)

    def set_rate(self, topic: str, interval: float | None, burst: int = 1) -> None:
        self._change_topic(topic, lambda found: self._gates.set_rate(found, interval, burst))

    def pause(self, topic: str) -> None:
        self._change_topic(topic, lambda found: self._gates.pause(found, True))

    def resume(self, topic: str) -> None:
        self._change_topic(topic, lambda found: self._gates.pause(found, False))

    def lock_topic(
        self, topic: str | None, lease: float | None, *, locks: list[TopicClaim] | None = None
    ) -> TopicClaim | None:
        def run(execute: Execute) -> TopicClaim | object | None:
            counters = self._refresh(execute)
            if topic is None and self._life.is_behind:
                return _BEHIND
            self._holding.reclaim_if_due(execute)
            name = self._choice.fullest(execute, counters) if topic is None else topic
            if name is None or (found := counters.topic(execute, name)).is_locked(self._life.now):
                return None
            return self._gates.lock(found, self._holding.ensure(execute), lease)

        after = None if locks is None else partial(_note_lock, locks)
        while (result := self._change(run, False, after)) is _BEHIND:
            pass
        return cast("TopicClaim | None", result)

    def extend_lock(self, lock: TopicClaim, seconds: float | None) -> None:
        self._change_topic(lock.topic, lambda found: self._gates.extend(found, lock, seconds), False)

    def unlock_topic(self, lock: TopicClaim) -> bool:
        return self._change_topic(lock.topic, lambda found: self._gates.unlock(found, lock), False)

    # Upkeep.

    def reclaim(self) -> int:
        def run(execute: Execute) -> tuple[int, bool]:
            self._refresh(execute)
            if self._life.has_overdue:
                return self._ended, True
            return self._ended + self._holding.reclaim(execute), False

        count, is_behind = self._change(run, False)
        while is_behind:
            more, is_behind = self._change(run, False)
            count += more
        return count

    def checkpoint(self) -> None:
        self._check()
        self._database.checkpoint(self._timeout)


def _note_claims(claims: list[MessageClaim], records: list[MessageRecord] | None) -> None:
    """Add the claims of these records, which were committed. Idempotent."""
    noted = set(claims)
    made = [record.claim for record in records or () if record.claim is not None]
    claims += [claim for claim in made if claim not in noted]


def _note_lock(locks: list[TopicClaim], lock: object) -> None:
    """Add the lock, which was committed, if the call has made one. Idempotent."""
    if isinstance(lock, TopicClaim) and lock not in locks:
        locks.append(lock)
