"""Redrive, cancel and purge messages that nobody has claimed: one, or many page by page.

Many are one transaction and need memory for one page of them, without their bodies.
"""

from __future__ import annotations

from collections.abc import Iterator

from persistcoll.engine.message_events import EventKind
from persistcoll.engine.records import State
from persistcoll.errors import DuplicateError
from persistcoll.sqlite.driver import Execute, corruption_error
from persistcoll.sqlite.message_life import MessageLife
from persistcoll.sqlite.message_rows import MessageRow, MessageRows, read_rows
from persistcoll.sqlite.message_statements import CLAIMED, DEAD, DONE, MessageStatements
from persistcoll.sqlite.scan import BEFORE_ALL

__all__ = ["UNCLAIMED", "MessageRemoval"]

_PAGE = 512  # rows
# Blocked messages first, because the removal of a head makes one of them ready.
UNCLAIMED = (State.BLOCKED, State.READY, State.DELAYED)


class MessageRemoval:
    """What removes or redrives messages of one queue. Each method is a part of a transaction."""

    def __init__(self, sql: MessageStatements, rows: MessageRows, life: MessageLife) -> None:
        self._sql = sql
        self._rows = rows
        self._life = life

    def redrive(self, execute: Execute, id: int) -> bool:
        """Make a dead message ready again; return whether there is one.

        :raise CorruptionError: its topic, key, group or ttl is damaged.
        :raise DuplicateError: its key is active for another message.
        """
        row = self._find(execute, id)
        if row is None or row.number != DEAD:
            return False
        if not self._rows.is_meta_intact(row):
            raise self._rows.damaged(id)
        if self._is_key_taken(execute, row):
            raise DuplicateError(f"the key of message {id} is active for another message")
        self._life.redrive(execute, [row])
        self._life.note(EventKind.REDRIVEN, row.topic, id, 0)
        return True

    def redrive_all(self, execute: Execute, topic: str | None) -> int:
        """Make all dead messages (of a topic) ready again, except those damaged or whose keys are taken.

        One with a damaged ttl could expire at once.
        """
        count, after = 0, BEFORE_ALL
        while rows := read_rows(execute, self._sql.select_dead, (after, topic, topic, _PAGE)):
            free: list[MessageRow] = []
            keys: set[bytes | None] = set()
            for row in rows:
                if row.id <= after:  # otherwise a damaged index could give the same rows for ever
                    raise corruption_error(f"message {row.id} is out of order")
                after = row.id
                if not self._rows.is_meta_intact(row):
                    continue
                if row.key is None or not (row.key in keys or self._is_key_taken(execute, row)):
                    free.append(row)
                    keys.add(row.key)
            self._life.redrive(execute, free)
            self._life.note_each(EventKind.REDRIVEN, free)
            count += len(free)
        return count

    def _is_key_taken(self, execute: Execute, row: MessageRow) -> bool:
        """Tell whether the key of a dead message is active for another one."""
        if row.key is None:
            return False
        found = execute(self._sql.select_key, (row.key,)).fetchone()
        return self._life.is_active(found) and found[0] != row.id

    def _find(self, execute: Execute, id: int) -> MessageRow | None:
        found = execute(self._sql.select_bare, (id,)).fetchone()
        return None if found is None else MessageRow._make(found)

    def cancel(self, execute: Execute, id: int) -> bool:
        """Remove a message that nobody has claimed; return whether there is one."""
        row = self._find(execute, id)
        if row is None or row.number in (CLAIMED, DONE):
            return False
        if self._rows.is_meta_intact(row):
            self._life.finish(execute, row, None, window=False)
        else:
            self._life.remove_damaged(execute, row)
        self._life.note(EventKind.CANCELLED, row.topic, id)
        return True

    def purge(self, execute: Execute, topic: str | None, dead: bool, before: float | None) -> int:
        """Remove the unclaimed messages, or the dead ones, that were put before a time; return how many."""
        count = 0
        for state in (State.DEAD,) if dead else UNCLAIMED:
            for rows in self._pages(execute, state, topic, before):
                self._life.remove(execute, rows, state)
                self._life.note_each(EventKind.PURGED, rows)
                count += len(rows)
        return count

    def _pages(
        self, execute: Execute, state: State, topic: str | None, before: float | None
    ) -> Iterator[list[MessageRow]]:
        """Read page by page what the caller removes in between."""
        given = (before, before) if topic is None else (topic, before, before)
        width = len(MessageRow._fields)
        for pages in (self._sql.pages if topic is None else self._sql.pages_of)[state]:
            found = execute(pages.first, (*given, _PAGE)).fetchall()
            while found:
                yield [MessageRow._make(each[:width]) for each in found]
                place = found[-1][width:]
                if None in place:  # It is damaged, and no place is beyond it.
                    found = execute(pages.first, (*given, _PAGE)).fetchall()
                else:
                    found = execute(pages.onward, (*given, *place, _PAGE)).fetchall()
