"""Remove messages where an index, a group or a count is damaged, and make these anew.

What follows from the rows of the messages can be made again. A bit that has changed in a row, or in its copy
in an index, makes SQLite refuse each change of that row; then a removal does this.
"""

from __future__ import annotations

from persistcoll.engine.message_events import EventKind
from persistcoll.engine.records import State
from persistcoll.sqlite.clock import Clock
from persistcoll.sqlite.database import Database
from persistcoll.sqlite.driver import Execute
from persistcoll.sqlite.message_counters import MessageCounters
from persistcoll.sqlite.message_life import MessageLife
from persistcoll.sqlite.message_removal import UNCLAIMED
from persistcoll.sqlite.message_statements import CLAIMED, DONE, STATES, MessageStatements

__all__ = ["MessageRepair"]


class MessageRepair:
    """Removals that make indexes and counts anew. Each method is a transaction that reads all messages."""

    def __init__(
        self,
        database: Database,
        sql: MessageStatements,
        counters: MessageCounters,
        life: MessageLife,
        clock: Clock,
    ) -> None:
        self._database = database
        self._sql = sql
        self._counters = counters
        self._life = life
        self._clock = clock

    def cancel(self, execute: Execute, id: int) -> bool:
        """Remove a message that nobody has claimed; return whether there is one."""
        self._begin(execute)
        found = execute(self._sql.repair.state, (id,)).fetchone()
        is_removed = found is not None and found[0] not in (CLAIMED, DONE)
        if is_removed:
            execute(self._sql.delete_keys_of, (id,))
            execute(self._sql.delete, (id,))
            self._life.note(EventKind.CANCELLED, found[1], id)
        self._counters.recount(execute, self._life.now)
        return is_removed

    def purge(self, execute: Execute, topic: str | None, dead: bool, before: float | None) -> int:
        """Remove the unclaimed messages, or the dead ones, that were put before a time; return how many."""
        self._begin(execute)
        states = [STATES[state] for state in ((State.DEAD,) if dead else UNCLAIMED)]
        four = (*states, *[states[0]] * (4 - len(states)))
        count = execute(self._sql.repair.purge, (*four, before, before, topic, topic)).rowcount
        execute(self._sql.repair.finish_keys)
        self._counters.recount(execute, self._life.now)
        return int(count)

    def _begin(self, execute: Execute) -> None:
        self._life.begin(self._clock())
        self._counters.load(execute)
        self._counters.epoch = self._database.epoch
        for text in self._sql.repair.reindex:
            execute(text)
        self._database.mark_dirty(self._counters)
