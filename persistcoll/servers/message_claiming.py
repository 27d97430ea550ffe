"""Claim messages on a server, and what an open message queue knows of its claims."""

from __future__ import annotations

import math
import secrets
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from types import EllipsisType
from typing import Any, NamedTuple, TypeVar

from persistcoll.engine.contracts import Awaited, StoreCapabilities
from persistcoll.engine.message_events import EventKind, MessageEvent, Observer
from persistcoll.engine.message_records import HOLDER_CLOSED, MessageClaim, MessagePolicy, MessageRecord
from persistcoll.engine.records import State
from persistcoll.errors import StorageError
from persistcoll.servers.handle import DueHandle, empty
from persistcoll.servers.heads import finds_ready
from persistcoll.servers.holders import release_each
from persistcoll.servers.message_choice import MessageChoice
from persistcoll.servers.message_life import MessageLife
from persistcoll.servers.message_rows import NO_LEASE, MessageRow, MessageRows, later
from persistcoll.servers.message_statements import CLAIMED, message_statements
from persistcoll.servers.message_topics import Gate, change_gate, unlocked
from persistcoll.servers.schema import Collection
from persistcoll.servers.sessions import Server, Session
from persistcoll.servers.statements import LONGEST_SPAN, PAGE

__all__ = ["ClaimingMessages"]

T = TypeVar("T")

_MOST = 1 << 31  # messages of one claim
_NUMBER_BITS = 62
# How many things this store leaves to be tidied before it does so, because one costs as much as many.
_BATCH = 32


class _Wanted(NamedTuple):
    """What a claim asks for."""

    limit: int
    topics: tuple[bytes, ...] | None
    lease: float | None
    """``None``: as the message or else the policy says."""
    deadline: float | None


class _Holder:
    """One store object as the holder of claims and of locks. Each step on ``lost`` is atomic.

    :ivar number: a random one, which no other object has.
    :ivar holds: whether it may hold anything.
    :ivar lost: the tokens of claims of which it is not known whether they were made.
    """

    def __init__(self) -> None:
        self.number = secrets.randbits(_NUMBER_BITS)
        self.holds = False
        self.lost: deque[int] = deque()


class ClaimingMessages(DueHandle):
    """A collection of messages that are claimed, and whose claims end.

    ``_last_look_was_empty``, ``_observer`` and the counts of what is to be tidied are read and set by any
    thread without a lock; a count that is lost only postpones that.
    """

    def __init__(self, server: Server, collection: Collection, policy: MessagePolicy) -> None:
        if policy.lease is None:
            raise ValueError(NO_LEASE)
        super().__init__(server, collection)
        self._policy = policy._replace(lease=min(policy.lease, LONGEST_SPAN))
        self._sql = message_statements(server.driver.dialect, server.schema, self._number)
        most = server.max_payload
        self._rows = MessageRows(self.store_id, str(server.address), most, self._policy)
        self.capabilities = StoreCapabilities(
            total_order=False,
            death_noticed_after=math.inf,
            joins_transactions=True,
            counts_delivered=False,
            max_payload=most,
        )
        self._observer: Observer | None = None
        self._holder = _Holder()
        self._last_look_was_empty = False
        self._untidy: Counter[object] = Counter()

    # How a change runs.

    def _life(self, session: Session) -> MessageLife:
        is_joined, tells = self._is_joined, self._observer is not None and not self._is_joined
        clock = self._server.sql.clock
        return MessageLife(session, self._sql, self._rows, self._policy, clock, self._heads, is_joined, tells)

    def _change(self, step: Callable[[MessageLife], T], **options: Any) -> T:
        """Run a step in a transaction, and tell the observer what it has done."""

        def run(session: Session) -> tuple[T, MessageLife]:
            life = self._life(session)
            value = step(life)
            self._notify(session, *life.awaited)
            return value, life

        puts = options.pop("puts", None)
        if puts is not None:
            options["puts"] = lambda result: puts(result[0])
        value, life = self._transact(run, **options)
        for place, id, topic in life.came_back:
            self._heads.lower(place, id, topic)
        self._tell(life.events)
        if not self._is_joined:
            self._tidy(life)
        return value

    def _tell(self, events: Sequence[MessageEvent]) -> None:
        if events and self._observer is not None:
            self._observer(events)

    def _tidy(self, life: MessageLife) -> None:
        """Remove, now and then, what is not needed any more after many transactions like this one."""
        keeps = {State.DONE: self._policy.keep_done, State.DEAD: self._policy.keep_dead}
        for state, count in life.finished.items():
            if (keep := keeps[state]) is not None and self._is_enough(state, count):
                self._change(partial(MessageLife.trim, state=state, keep=keep), once=False)
        if self._is_enough("expired", life.has_expired):
            self._change(MessageLife.sum_up, once=False)
        if self._is_enough("keys", life.has_kept_keys):
            self._change(MessageLife.forget_keys, once=False)

    def _is_enough(self, what: object, count: int) -> bool:
        """Tell whether there is enough to be tidied, after so many more."""
        self._untidy[what] += count
        if self._untidy[what] < _BATCH:
            return False
        self._untidy[what] = 0
        return True

    def _promote(self) -> None:
        self._end_due()

    def _end_due(self) -> int:
        """Do what is due, and return how many claims ended."""
        total, is_more = 0, True
        while is_more:
            is_more, ended = self._change(MessageLife.promote, sync=False, once=False)
            total += ended
        return total

    # Claiming.

    def _claim(
        self,
        limit: int,
        topics: Sequence[str] | None,
        lease: float | EllipsisType | None,
        claims: list[MessageClaim] | None,
        deadline: float | None,
    ) -> list[MessageRecord]:
        self._check()
        if lease is None:
            raise ValueError(NO_LEASE)
        seconds = None if isinstance(lease, EllipsisType) else min(lease, LONGEST_SPAN)
        names = None if topics is None else tuple(topic.encode() for topic in dict.fromkeys(topics))
        wanted = _Wanted(min(limit, _MOST), names, seconds, deadline)
        holder = self._holder
        if not self._is_joined:
            self._release_lost()
        holder.holds = True
        unsure: list[Any] = []  # the tokens of claims that may have been made, and that nobody knows of
        try:
            rows = self._search(wanted, unsure)
            records = [self._rows.delivery(row, self._rows.lease(row, seconds)) for row in rows]
            if claims is not None:
                claims.extend(record.claim for record in records if record.claim is not None)
            unsure.remove(rows[0].token)
        except BaseException as error:
            if not self._is_joined:  # its savepoint undoes it
                holder.lost.extend(unsure)
            if not (self._is_joined or isinstance(error, Exception)):
                with suppress(Exception):  # otherwise the next claim does it
                    self._release_lost()
            raise
        holder.lost.extend(unsure)
        if self._original._closed:  # close() sets it before it ends the claims
            self._end_own()
            self._check()
        if self._observer is not None and not self._is_joined:
            now = rows[0].now
            self._tell(
                [MessageEvent(EventKind.CLAIMED, row.topic, now, row.id, 1, row.attempts) for row in rows]
            )
        return records

    def _search(self, wanted: _Wanted, unsure: list[Any]) -> list[MessageRow]:
        """Claim messages, and return their rows.

        :param unsure: the token of each try is appended, and removed if it has claimed nothing.
        :raise Empty: no message can be claimed.
        """
        while True:
            if self._last_look_was_empty:
                # Only read, so that polling an empty queue locks nothing.
                self._last_look_was_empty = False
                self._refuse_none_ready(wanted)
            rows = self._claim_at_once(wanted, unsure)
            if not rows:
                due = self._refuse_none_ready(wanted)
                rows = self._claim_chosen(wanted, due, unsure)
            intact = [row for row in rows if self._rows.is_intact(row)]
            if len(intact) < len(rows):
                self._kill([row for row in rows if not self._rows.is_intact(row)])
            if intact:
                return intact
            unsure.remove(rows[0].token)

    def _refuse_none_ready(self, wanted: _Wanted) -> float | None:
        """Return in how many seconds the next thing is due.

        :raise Empty: no message of the topics is ready.
        """
        ready, due = self._look()
        if ready and wanted.topics is not None:
            ready = any(map(self._is_ready, wanted.topics))
        if not ready:
            self._last_look_was_empty = True
            raise empty(self._again(due))
        return due

    def _is_ready(self, topic: bytes) -> bool:
        """Tell whether a message of that topic is ready."""
        name = "is_ready_of"
        look = partial(self._heads.look, sql=self._sql, name=name, topic=topic, finds=finds_ready)
        return finds_ready(self._sessions.repeat(look).result)

    def _again(self, due: float | None, *others: float) -> float | None:
        """Return in how many seconds to look again.

        :param due: when the next thing is due; 0 or less: another transaction has locked it.
        """
        times = [*others, *(() if due is None else (due if due > 0 else self.max_poll_interval,))]
        return min(times, default=None)

    def _claim_at_once(self, wanted: _Wanted, unsure: list[int]) -> list[MessageRow]:
        """Claim the next messages in few trips, unless something is due or a topic has a gate."""
        topics = wanted.topics
        if self._is_joined or (topics is not None and len(topics) != 1):
            return []
        topic, of = (None, "") if topics is None else (topics[0], "_of")
        name = f"claim_{'next' if wanted.limit > 1 else 'one'}{of}"

        def at_once(session: Session) -> list[MessageRow]:
            if rows := self._claimed_before(session, unsure):
                return rows
            claimant = self._claimant(wanted, unsure)
            rows = self._life(session).next(name, topic, wanted.limit, **claimant)
            return self._or_nothing(rows, unsure)

        def in_steps(session: Session) -> list[MessageRow]:
            if rows := self._claimed_before(session, unsure):
                return rows
            rows = self._life(session).next(f"lock_next{of}", topic, wanted.limit, promoted=False)
            return self._claim_rows(session, rows, wanted, unsure)

        if getattr(self._sql, name) is None:
            return self._sessions.transact(in_steps, sync=False, once=False, deadline=wanted.deadline)
        return self._sessions.repeat(at_once, wanted.deadline)

    def _claimed_before(self, session: Session, unsure: list[Any]) -> list[MessageRow]:
        """Return what an earlier try of the call has claimed whose answer was lost, in its order."""
        for token in unsure:
            rows = self._life(session).read(self._sql.select_claimed, holder=self._holder.number, token=token)
            if rows:
                return sorted(rows, key=lambda row: (row.place, row.id))
        return []

    def _or_nothing(self, rows: list[MessageRow], unsure: list[Any]) -> list[MessageRow]:
        """Return these rows. If there are none, the last try has claimed nothing for certain."""
        if not rows:
            unsure.pop()
        return rows

    def _claimant(self, wanted: _Wanted, unsure: list[Any]) -> dict[str, Any]:
        """Return the parameters of a claim with a new token."""
        unsure.append(secrets.randbits(_NUMBER_BITS))
        lease = {"lease": wanted.lease, "policy_lease": self._policy.lease}
        return {"holder": self._holder.number, "token": unsure[-1], **lease}

    def _claim_rows(
        self, session: Session, rows: list[MessageRow], wanted: _Wanted, unsure: list[Any]
    ) -> list[MessageRow]:
        """Claim locked rows, and return them as they are then."""
        if not rows:
            return []
        now = rows[0].now
        claimant = self._claimant(wanted, unsure)
        session.defer(self._sql.claim, ids=[row.id for row in rows], now=now, **claimant)
        return [
            row._replace(
                number=CLAIMED,
                attempts=row.attempts + 1,
                deliveries=row.deliveries + 1,
                until=later(now, self._rows.lease(row, wanted.lease)),
                token=claimant["token"],
                now=now,
            )
            for row in rows
        ]

    def _claim_chosen(self, wanted: _Wanted, due: float | None, unsure: list[Any]) -> list[MessageRow]:
        """Claim the next messages of the topics that deliver now, after what was due was done.

        :raise Empty: there are none.
        """

        def choose(session: Session) -> tuple[list[MessageRow], MessageChoice]:
            choice = MessageChoice(self._life(session), self._holder.number)
            if rows := self._claimed_before(session, unsure):
                return rows, choice
            rows = choice.lock(wanted.limit, wanted.topics)
            choice.use([row for row in rows if self._rows.is_intact(row)])
            return self._claim_rows(session, rows, wanted, unsure), choice

        rows, choice = self._sessions.transact(choose, sync=False, once=False, deadline=wanted.deadline)
        if not rows:
            soon = [self.max_poll_interval] if choice.has_passed else []
            raise empty(self._again(due, *choice.openings, *soon))
        return rows

    def _kill(self, damaged: list[MessageRow]) -> None:
        """Make damaged messages dead that were just claimed."""
        ids, token = [row.id for row in damaged], damaged[0].token

        def kill(life: MessageLife) -> None:
            rows = life.read(self._sql.lock_bare_rows, ids=ids)
            life.kill_damaged([row for row in rows if row.token == token])

        self._change(kill)

    # The ends of claims.

    def _release_lost(self) -> None:
        """Release what claims have claimed whose answers were lost."""
        holder = self._holder

        def release(token: int) -> None:
            lost = {"holder": holder.number, "token": token, "limit": _MOST}
            self._change(
                lambda life: life.release(life.read(self._sql.lock_lost, **lost), waits=False),
                sync=False,
                once=False,
            )

        release_each(holder.lost, release)

    def _end_own(self) -> None:
        """End the claims and the locks of this object. What is locked by another transaction ends later."""
        number = self._holder.number

        def end(life: MessageLife) -> bool:
            rows = life.read(self._sql.lock_held, holder=number, limit=PAGE)
            return life.lose(rows, HOLDER_CLOSED) > 0 and len(rows) == PAGE

        def unlock(session: Session) -> None:
            for row in session.run(self._sql.select_gates).rows:
                gate = Gate.of(row)
                if gate.locker == number:
                    change_gate(session, self._sql, gate.topic, self._ended, waits=False)
            self._notify(session, Awaited.READY)

        if self._holder.holds:
            while self._change(end, sync=False, once=False):
                pass
            self._server.transact(unlock, sync=False, once=False)

    def _ended(self, gate: Gate) -> Gate | None:
        return unlocked(gate) if gate.locker == self._holder.number else None

    # Life and death.

    def after_fork_in_child(self) -> None:
        """Hold nothing in a forked child. The server's connections follow forks by themselves."""
        self._holder = _Holder()

    def _end(self) -> None:
        with suppress(StorageError):  # then they end with their leases
            self._end_own()
