"""Choose the messages to claim: in their order, of the topics that deliver now."""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterable, Sequence

from persistcoll.errors import Empty
from persistcoll.sqlite.driver import ERRORS, Execute, corruption_error, end_statement
from persistcoll.sqlite.holding import Holding
from persistcoll.sqlite.message_counters import MessageCounters, Topic
from persistcoll.sqlite.message_life import MessageLife
from persistcoll.sqlite.message_rows import MessageRow, MessageRows, read_rows
from persistcoll.sqlite.message_statements import READY, MessageStatements

__all__ = ["MessageChoice"]

# How many ready messages of topics with a gate a claim passes. Then it is cheaper to ask each topic.
_PASSED = 256


class MessageChoice:
    """What one handle may claim of a queue's messages. Its methods are parts of a transaction.

    While no topic is paused, limited or locked, a claim of any topic reads the first rows of one index.
    Otherwise it passes the rows of such topics there, and reads the first rows of each such topic. If it had
    to pass many, it reads the first rows of each topic that has ready messages instead.
    """

    def __init__(
        self, sql: MessageStatements, rows: MessageRows, life: MessageLife, holding: Holding
    ) -> None:
        self._sql = sql
        self._rows = rows
        self._life = life
        self._holding = holding

    def claimable(
        self, execute: Execute, counters: MessageCounters, limit: int, topics: Sequence[str] | None
    ) -> list[MessageRow]:
        """Return the next rows that can be claimed; those that are damaged become dead."""
        while True:
            found = self._next(execute, counters, limit, topics)
            damaged = [row for row in found if not self._rows.is_intact(row)]
            for row in damaged:
                self._kill(execute, row)
            if damaged:
                continue
            if not counters.is_doubtful:
                return found
            # Once for all that were damaged, because it reads every message. It may make others ready.
            self._life.mend(execute)

    def _kill(self, execute: Execute, row: MessageRow) -> None:
        """Make a damaged message dead.

        :raise CorruptionError: an index has other values than the row, so SQLite refuses each change of it.
        """
        try:
            self._life.kill_damaged(execute, row)
        except ERRORS as error:
            raise self._rows.damaged(row.id) from error

    def _next(
        self, execute: Execute, counters: MessageCounters, limit: int, topics: Sequence[str] | None
    ) -> list[MessageRow]:
        if counters.gated:
            self._life.end_locks(execute)
        if topics is None and not counters.gated:
            return read_rows(execute, self._sql.select_ready, (limit,))
        best: list[list[MessageRow]] = []
        if topics is None:
            rest = self._rest(execute, counters, limit)
            if rest is None:
                topics = [name for name, ready in counters.ready_by_topic(execute).items() if ready]
            else:
                best.append(rest)
                topics = [name for name in counters.gated if counters.topic(execute, name).counts[READY]]
        for name in dict.fromkeys(topics):
            free = self._free(execute, counters, name)
            most = limit if free is None else min(limit, free)
            if most:
                best.append(read_rows(execute, self._sql.select_ready_of, (name, most)))
        merged = heapq.merge(*best, key=_order)
        return [row for row, _ in zip(merged, range(limit), strict=False)]

    def _rest(self, execute: Execute, counters: MessageCounters, limit: int) -> list[MessageRow] | None:
        """Return the next rows of the topics without a gate.

        :return: ``None`` if too many rows of topics with a gate come before them.
        """
        rows: list[MessageRow] = []
        found = execute(self._sql.select_ready, (-1,))  # without a limit, because it stops by itself
        passed = 0
        while len(rows) < limit and passed <= _PASSED and (each := found.fetchone()) is not None:
            row = MessageRow._make(each)
            if row.topic in counters.gated:
                passed += 1
            else:
                rows.append(row)
        end_statement(execute)
        return rows if passed <= _PASSED else None

    def _free(self, execute: Execute, counters: MessageCounters, name: str) -> int | None:
        """Return how many messages of a topic this store may claim now; ``None``: any number."""
        if name not in counters.gated:
            return None
        return counters.topic(execute, name).free(self._life.now, self._holding.number)

    def nothing(self, execute: Execute, counters: MessageCounters, topics: Sequence[str] | None) -> Empty:
        """Return an ``Empty`` that says when to look again."""
        self._check_none_left(execute, counters, topics)
        error, now = Empty(), self._life.now
        next_due = self._life.find_next_due(execute)
        if self._life.is_behind:
            raise corruption_error("what is due is not found")
        times = [] if next_due is None else [next_due]
        for name in counters.gated:
            if topics is None or name in topics:
                times += self._opening(counters.topic(execute, name))
        if times:
            error.next_at = time.monotonic() + min(times) - now  # type: ignore[attr-defined]
        return error

    def _check_none_left(
        self, execute: Execute, counters: MessageCounters, topics: Sequence[str] | None
    ) -> None:
        """Raise the database's error for damage if the counters say that there is a message to claim."""
        if topics is None and not counters.gated:
            left = counters.ready
        else:
            names = counters.ready_by_topic(execute) if topics is None else topics
            open_now = [name for name in names if self._free(execute, counters, name) != 0]
            left = sum(counters.topic(execute, name).counts[READY] for name in open_now)
        if left:
            raise corruption_error(f"none of {left} ready messages is found")

    def _opening(self, topic: Topic) -> Iterable[float]:
        """Return the time at which a topic delivers again, if that is known."""
        now, holder = self._life.now, self._holding.number
        if topic.paused or not topic.counts[READY]:
            return
        if topic.is_locked(now, holder):
            if topic.lock_until is not None:
                yield topic.lock_until
        elif topic.free(now, holder) == 0:
            yield topic.opens

    def fullest(self, execute: Execute, counters: MessageCounters) -> str | None:
        """Return the topic with the most ready messages of those that are neither locked nor paused."""
        counts = {name: ready for name, ready in counters.ready_by_topic(execute).items() if ready}
        for name in counters.gated & counts.keys():
            topic = counters.topic(execute, name)
            if topic.paused or topic.is_locked(self._life.now):
                del counts[name]
        return min(counts, key=lambda name: (-counts[name], name), default=None)


def _order(row: MessageRow) -> tuple[float, int]:
    """Return what the order of delivery goes by. A damaged place comes first, to be noticed."""
    return row.place if type(row.place) is float else float("-inf"), row.id
