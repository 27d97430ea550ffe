"""The steps in the life of a message: it is settled, lost, returned, finished, promoted.

Each step is a part of a transaction, and changes one row, the counters, and where there is one the group and
the key. A step may let the next message of a group become ready. What ends by itself ends in slices: a
statement changes those messages of a slice that need no step of their own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from types import NoneType
from typing import Any

from persistcoll.engine.message_events import EventKind, MessageEvent
from persistcoll.engine.message_records import (
    DAMAGED,
    HOLDER_CLOSED,
    HOLDER_DIED,
    LEASE_RAN_OUT,
    MessagePolicy,
)
from persistcoll.engine.records import State
from persistcoll.sqlite.database import Database
from persistcoll.sqlite.driver import Execute, corruption_error
from persistcoll.sqlite.message_counters import MessageCounters, Topic
from persistcoll.sqlite.message_rows import MessageRow, MessageRows, due_of, is_ahead, is_past, read_rows
from persistcoll.sqlite.message_statements import (
    BLOCKED,
    CLAIMED,
    DEAD,
    DELAYED,
    READY,
    STATES,
    MessageStatements,
)

__all__ = ["MessageLife"]

# How many messages one transaction promotes, and how many of which something else is due it ends. Other
# writers wait for so long.
_PROMOTED = _ENDED = 1024
# How many of those that it ends may need steps of their own, which take longer.
_STEPS = 256
_UNLIMITED = 1 << 62  # attempts
_FINAL = (State.DONE, State.DEAD)
# How many finished messages are kept above the limit before they are trimmed, because trimming one costs as
# much as many.
_TRIM_BATCH = 64


class MessageLife:
    """The steps of one queue's messages. The database's lock protects ``now`` and ``events``.

    A transaction does a limited number of what is due. The longest wait for a transaction would otherwise be
    that for a million messages. A call that has to know all ready messages repeats its transaction while
    :attr:`is_behind` is true, and one that has to know all finished messages while ``has_overdue`` is.

    :ivar now: the time of the present call, by the store's clock.
    :ivar has_overdue: whether leases or ttls are over that no transaction has ended yet.
    :ivar events: what the present call does to messages; ``None``: nobody is told.
    """

    def __init__(
        self,
        database: Database,
        sql: MessageStatements,
        counters: MessageCounters,
        rows: MessageRows,
        policy: MessagePolicy,
    ) -> None:
        self._database = database
        self._sql = sql
        self._counters = counters
        self._rows = rows
        self._policy = policy
        self.now = 0.0
        self.has_overdue = False
        self.events: list[MessageEvent] | None = None

    def begin(self, now: float) -> None:
        """Note the time of a call."""
        self.now = now
        self.has_overdue = False

    def note(
        self,
        kind: EventKind,
        topic: str,
        id: int | None,
        attempts: int | None = None,
        error: str | None = None,
        count: int = 1,
    ) -> None:
        """Note what happened to a message; without an id, to ``count`` messages of a topic.

        The steps that are most frequent look themselves whether anybody is told, which saves a call.
        """
        if self.events is not None:
            self.events.append(MessageEvent(kind, topic, self.now, id, count, attempts, error))

    def note_each(self, kind: EventKind, rows: list[MessageRow]) -> None:
        """Note what happened to many messages, by their topics."""
        if self.events is not None:
            for topic, count in Counter(row.topic for row in rows).items():
                self.note(kind, topic, None, count=count)

    def _set(
        self,
        execute: Execute,
        row: MessageRow,
        state: State,
        until: float | None = None,
        attempts: int | None = None,
        error: str | None = None,
    ) -> None:
        """Put a message into another state, without a claim. ``None`` leaves attempts and error."""
        due, number = due_of(state, until, row.expires), STATES[state]
        execute(
            self._sql.settle,
            (
                number,
                until,
                due,
                self.now if state in _FINAL else None,
                row.attempts if attempts is None else attempts,
                row.error if error is None else error,
                row.id,
            ),
        )
        self._counters.move(execute, row.topic, row.number, number)
        if due is not None:
            self._counters.lower_next_due(due)
        self._database.mark_dirty(self._counters)

    def come_back(
        self,
        execute: Execute,
        row: MessageRow,
        kind: EventKind,
        delay: float = 0.0,
        attempts: int | None = None,
        error: str | None = None,
    ) -> None:
        """Return a claimed message to its place, or remove it if its ttl is over.

        :param kind: what has returned it.
        """
        if row.is_over(self.now):
            self.expire(execute, row)
            return
        if delay > 0:
            self._set(execute, row, State.DELAYED, self.now + delay, attempts, error)
        else:
            self._set(execute, row, State.READY, None, attempts, error)
        if self.events is not None:
            self.note(kind, row.topic, row.id, row.attempts if attempts is None else attempts, error)

    def nack(self, execute: Execute, row: MessageRow, delay: float | None, error: str | None) -> None:
        """Return a message, or make it dead if it has no attempts left."""
        if self._rows.is_spent(row):
            self.finish(execute, row, State.DEAD, error)
        else:
            seconds = self._rows.backoff(row) if delay is None else delay
            self.come_back(execute, row, EventKind.NACKED, seconds, None, error)

    def lose(self, execute: Execute, row: MessageRow, error: str) -> None:
        """End a claim that nobody has settled."""
        if not row.delivered and type(row.attempts) is int:
            self.come_back(execute, row, EventKind.RECLAIMED, 0.0, row.attempts - 1)
        elif self._rows.is_spent(row):
            self.finish(execute, row, State.DEAD, error)
        else:
            self.come_back(execute, row, EventKind.RECLAIMED, 0.0, None, error)

    def expire(self, execute: Execute, row: MessageRow) -> None:
        """Remove a message because its ttl is over."""
        self.finish(execute, row, None)
        self._counters.expire(1)
        self.note(EventKind.EXPIRED, row.topic, row.id)

    def kill_damaged(self, execute: Execute, row: MessageRow) -> None:
        """Make a ready message dead because it is damaged."""
        if self._rows.is_meta_intact(row):
            self.finish(execute, row, State.DEAD, DAMAGED)
        else:
            self._finish_damaged(execute, row, State.DEAD, DAMAGED)

    def remove_damaged(self, execute: Execute, row: MessageRow) -> None:
        """Remove a message of which the metadata are damaged."""
        self._finish_damaged(execute, row, None, None)

    def _finish_damaged(
        self, execute: Execute, row: MessageRow, state: State | None, error: str | None
    ) -> None:
        """Make a message dead or done, or remove it, of which topic, group or key cannot be relied on.

        Its keys are found by its id, and :meth:`mend` counts anew.
        """
        execute(self._sql.delete_keys_of, (row.id,))
        if state is None or not self._keeps(state):
            execute(self._sql.delete, (row.id,))
        else:
            execute(self._sql.settle, (STATES[state], None, None, self.now, row.attempts, error, row.id))
        if state is not None:
            kind = EventKind.ACKED if state is State.DONE else EventKind.DEAD
            self.note(kind, row.topic, row.id, row.attempts, error)
        self._counters.is_doubtful = True
        self._database.mark_dirty(self._counters)

    def mend(self, execute: Execute) -> None:
        """Count anew if a damaged message or group has made the counts doubtful. Each change ends with it."""
        if self._counters.is_doubtful:
            self._counters.recount(execute, self.now)

    def ack(self, execute: Execute, rows: Sequence[MessageRow]) -> None:
        """Make claimed messages done, and remove together those that need no step of their own."""
        together: list[MessageRow] = []
        for row in rows:
            if row.key is not None or row.group is not None or self._policy.keep_done:
                self.finish(execute, row, State.DONE)
                continue
            together.append(row)
            if self.events is not None:
                self.note(EventKind.ACKED, row.topic, row.id, row.attempts)
        self._delete(execute, together, CLAIMED)

    def _delete(self, execute: Execute, rows: Sequence[MessageRow], state: int) -> None:
        """Delete rows that are in this state and need no step of their own."""
        self._database.executemany(self._sql.delete, [(row.id,) for row in rows])
        self._count(execute, [(row.topic,) for row in rows], state, None)

    def finish(
        self,
        execute: Execute,
        row: MessageRow,
        state: State | None,
        error: str | None = None,
        window: bool = True,
    ) -> None:
        """Make a message done or dead, or remove it (``None``). The next one of its group becomes the head.

        :param window: whether its key stays active for the rest of its window.
        """
        if (row.key is not None or row.group is not None) and not self._rows.is_meta_intact(row):
            self._finish_damaged(execute, row, state, error)
            return
        self._free_key(execute, row, window)
        if self.events is not None and state is not None:
            kind = EventKind.ACKED if state is State.DONE else EventKind.DEAD
            self.note(kind, row.topic, row.id, row.attempts, error)
        if state is None or not self._keeps(state):
            execute(self._sql.delete, (row.id,))
            self._counters.move(execute, row.topic, row.number, None)
            self._database.mark_dirty(self._counters)
        else:
            self._set(execute, row, state, None, None, error)
            self._trim(execute, state)
        if row.group is not None and row.state not in _FINAL:
            self._leave_group(execute, row)

    def _keeps(self, state: State) -> bool:
        """Tell whether messages in this final state are kept."""
        return bool(self._policy.keep_done) if state is State.DONE else self._policy.keep_dead != 0

    def _leave_group(self, execute: Execute, row: MessageRow) -> None:
        ((left,),) = execute(self._sql.leave_group, (row.topic, row.group)).fetchall() or ((None,),)
        if left == 0:
            execute(self._sql.delete_group, (row.topic, row.group))
            return
        if left is not None and row.state is State.BLOCKED:
            return
        following = execute(self._sql.select_blocked, (row.topic, row.group)).fetchone()
        if left is None or following is None:  # The row of the group is damaged.
            self._counters.is_doubtful = True
            return
        head = MessageRow._make(following)
        if is_ahead(head.until, self.now):
            self._set(execute, head, State.DELAYED, head.until)
        else:
            self._set(execute, head, State.READY)

    def _free_key(self, execute: Execute, row: MessageRow, window: bool) -> None:
        if row.key is None:
            return
        found = execute(self._sql.select_key, (row.key,)).fetchone()
        # After `release_key` the key may be active for another message.
        if found is None or found[0] != row.id:
            return
        _, until, _ = found
        if window and is_ahead(until, self.now):
            execute(self._sql.save_key, (row.key, row.id, until, 0))
        else:
            execute(self._sql.delete_key, (row.key,))

    def _trim(self, execute: Execute, state: State) -> None:
        keep = self._policy.keep_done if state is State.DONE else self._policy.keep_dead
        count = self._counters.count(state)
        if keep is None or count <= keep + _TRIM_BATCH:
            return
        removed = execute(self._sql.delete_oldest[state], (min(count - keep, _ENDED),)).fetchall()
        self._count(execute, removed, STATES[state], None)

    def redrive(self, execute: Execute, rows: Sequence[MessageRow]) -> None:
        """Make dead messages ready again, or blocked. Their keys are free or their own."""
        changes: list[tuple[Any, ...]] = []
        moved: Counter[tuple[str, int]] = Counter()
        for row in rows:
            if row.key is not None:
                found = execute(self._sql.select_key, (row.key,)).fetchone()
                until = found[1] if found is not None and found[0] == row.id else 0.0
                execute(self._sql.save_key, (row.key, row.id, until, 1))
            number = BLOCKED if self.enter_group(execute, row.topic, row.group) else READY
            expires = None if row.ttl is None else self.now + row.ttl
            if expires is not None:
                self._counters.lower_next_due(expires)
            changes.append((number, expires, expires, row.id))
            moved[row.topic, number] += 1
        self._database.executemany(self._sql.redrive, changes)
        for (topic, number), count in moved.items():
            self._counters.move(execute, topic, DEAD, number, count)
        self._database.mark_dirty(self._counters)

    def remove(self, execute: Execute, rows: Sequence[MessageRow], state: State) -> None:
        """Remove messages in this state, together if they need no step of their own."""
        in_groups = state not in _FINAL
        together: list[MessageRow] = []
        for row in rows:
            if not self._rows.is_meta_intact(row):
                self.remove_damaged(execute, row)
            elif row.key is not None or (in_groups and row.group is not None):
                self.finish(execute, row, None)
            else:
                together.append(row)
        self._delete(execute, together, STATES[state])

    def enter_group(self, execute: Execute, topic: str, group: str | None) -> bool:
        """Count a message in its group; return whether another one of it is unfinished."""
        if group is None:
            return False
        ((count,),) = execute(self._sql.enter_group, (topic, group)).fetchall()
        return bool(count > 1)

    def is_active(self, found: Any) -> bool:
        """Tell whether a key is active, of which this is the row."""
        if found is None:
            return False
        _, until, unfinished = found
        return bool(unfinished) or is_ahead(until, self.now)

    # What happens by itself.

    @property
    def is_behind(self) -> bool:
        """Whether something is due that no transaction has done yet."""
        next_due = self._counters.next_due_at
        return next_due is not None and next_due <= self.now

    def release_due(self, execute: Execute) -> int:
        """Promote and end as much of what is due as one transaction may; return how many claims ended."""
        may_be_delayed = self._promote(execute)
        ended, may_be_due = self._end_due(execute)
        self.find_next_due(execute)
        if (self.has_overdue and not may_be_due) or (self.is_behind and not (may_be_due or may_be_delayed)):
            raise corruption_error("what is due is not found")
        self.mend(execute)
        return ended

    def find_next_due(self, execute: Execute) -> float | None:
        """Return when the next delay, lease or ttl ends, or has ended if that is not done."""
        other, delayed = execute(self._sql.select_next_due).fetchone()
        if not all(isinstance(time, (int, float, NoneType)) for time in (other, delayed)):
            raise corruption_error("a time")
        self.has_overdue = other is not None and other <= self.now
        next_due = min((time for time in (other, delayed) if time is not None), default=None)
        if next_due is None and self._counters.delayed:
            raise corruption_error("what is delayed is not found")
        self._counters.next_due_at = next_due
        return next_due

    def _promote(self, execute: Execute) -> bool:
        """Make delayed messages without a ttl ready; return whether some may be left.

        Each one is in no group or the head of its group, and stays it.
        """
        promoted = execute(self._sql.promote, (self.now, _PROMOTED)).fetchall()
        self._count(execute, promoted, DELAYED, READY)
        if self._counters.delayed < 0:  # otherwise a damaged index could give the same rows for ever
            raise corruption_error("the number of delayed messages")
        return len(promoted) == _PROMOTED

    def _end_due(self, execute: Execute) -> tuple[int, bool]:
        """End leases, ttls, and delays of messages with a ttl.

        :return: how many claims that were, and whether more may be due.
        """
        now, left = self.now, _ENDED
        # Each statement finds what those before it have left of the same slice.
        ended = self._end_claims(execute, self._sql.end_leases, LEASE_RAN_OUT, now, left)
        left -= ended
        expired = execute(self._sql.end_ttls, (now, left, now)).fetchall()
        for state in (READY, DELAYED):
            self._count(execute, [row for row in expired if row[2] == state], state, None)
        self._counters.expire(len(expired))
        for topic, id, _ in expired:
            self.note(EventKind.EXPIRED, topic, id)
        left -= len(expired)
        ready = execute(self._sql.end_delays, (now, left, now)).fetchall()
        self._count(execute, ready, DELAYED, READY)
        left -= len(ready)
        most = min(left, _STEPS)
        rest = read_rows(execute, self._sql.select_due, (now, most))
        for row in rest:
            ended += self._end(execute, row)
        return ended, len(rest) == most

    def _end_claims(self, execute: Execute, text: str, error: str, key: float, limit: int) -> int:
        """End together the claims of a slice that need no step of their own; return how many.

        :param key: the time by which they are due, or their holder.
        """
        now, most = self.now, self._policy.max_attempts
        count = 0
        for delivered in (0, 1):
            below = _UNLIMITED if most is None else most
            parameters = (now, LEASE_RAN_OUT, error, key, limit - count, delivered, below, now)
            ended = execute(text, parameters).fetchall()
            self._count(execute, ended, CLAIMED, READY)
            for topic, id, attempts, last_error, due in ended:
                if due is not None:
                    self._counters.lower_next_due(due)
                self.note(EventKind.RECLAIMED, topic, id, attempts, last_error if delivered else None)
            count += len(ended)
        return count

    def _count(self, execute: Execute, changed: list[Any], old: int, new: int | None) -> None:
        """Count that a statement has changed the state of messages.

        :param changed: rows of which the first column is the topic of a message.
        """
        for topic, count in Counter(row[0] for row in changed).items():
            self._counters.move(execute, topic, old, new, count)
        if changed:
            self._database.mark_dirty(self._counters)

    def _end(self, execute: Execute, row: MessageRow) -> bool:
        """End what is due of one message; return whether that was a claim."""
        if row.state is State.CLAIMED:
            self.lose(execute, row, LEASE_RAN_OUT)
            return True
        if row.is_over(self.now):
            # A head that expired before may have moved it on since it was read.
            self.expire(execute, self.read(execute, row.id))
        elif row.state is State.DELAYED:
            self._set(execute, row, State.READY)
        else:  # otherwise a damaged index could give the same row for ever
            raise corruption_error("a message that is not due")
        return False

    def read(self, execute: Execute, id: int) -> MessageRow:
        """Return the bare row with this id, which is known to be there."""
        found = execute(self._sql.select_bare, (id,)).fetchone()
        if found is None:
            raise corruption_error("a message is not where its id says")
        return MessageRow._make(found)

    def end_claims(self, execute: Execute, number: int, closes: bool) -> int:
        """End the claims and locks of a holder that is dead or closes; return how many claims that were."""
        error = HOLDER_CLOSED if closes else HOLDER_DIED
        count = self._counters.claimed
        rest: list[MessageRow] | None = None
        while rest is None or rest:
            self._end_claims(execute, self._sql.end_of_holder, error, number, _ENDED)
            rest = read_rows(execute, self._sql.select_of_holder, (number, _STEPS))
            for row in rest:
                if row.state is not State.CLAIMED:  # otherwise a damaged index could give it for ever
                    raise corruption_error("a claim of a holder")
                self.lose(execute, row, LEASE_RAN_OUT if is_past(row.until, self.now) else error)
        self._unlock(execute, lambda topic: topic.locker == number)
        count -= self._counters.claimed
        self.mend(execute)
        return count

    def end_locks(self, execute: Execute) -> None:
        """End the locks whose leases are over, so that their topics cost a claim nothing any more."""
        self._unlock(execute, lambda topic: not topic.is_locked(self.now))

    def _unlock(self, execute: Execute, ends: Callable[[Topic], bool]) -> None:
        for topic in [self._counters.topic(execute, name) for name in self._counters.gated]:
            if topic.locker is not None and ends(topic):
                topic.unlock()
                self._counters.gate(topic)
                self._database.mark_dirty(self._counters)
