"""The steps in the life of a message on a server: it is put, settled, lost, returned, finished, promoted.

Each step is a part of a transaction. It changes many messages by one statement wherever they need no
statements of their own, as one with a key or in a group does.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from persistcoll.engine.contracts import Awaited
from persistcoll.engine.message_events import EventKind, MessageEvent
from persistcoll.engine.message_records import DAMAGED, LEASE_RAN_OUT, MessageEntry, MessagePolicy
from persistcoll.engine.records import State
from persistcoll.errors import DuplicateError
from persistcoll.servers.heads import Heads
from persistcoll.servers.message_rows import MessageRow, MessageRows, due_in, group_name, later
from persistcoll.servers.message_statements import (
    BLOCKED,
    CLAIMED,
    DEAD,
    DELAYED,
    READY,
    SKIPPING,
    MessageStatements,
)
from persistcoll.servers.sessions import Session
from persistcoll.servers.statements import BEFORE_ALL, LONGEST_SPAN, NUMBERS, PAGE

__all__ = ["MessageLife"]

_UNFINISHED = (READY, CLAIMED, DELAYED, BLOCKED)


class _Key(NamedTuple):
    """A key that the transaction has locked."""

    mark: int
    """That of the message for which it is active."""
    in_window: bool


class MessageLife:
    """The steps of one transaction.

    Before a message with a key or in a group is finished, :meth:`lock_beside` locks these.

    :param heads: where looks at the next messages begin.
    :param is_joined: whether the transaction is a caller's.
    :param tells: whether anybody is told of events.
    :ivar awaited: what others may wait for that the transaction does.
    :ivar events: what the transaction does to messages.
    :ivar finished: how many messages of each final state it adds.
    :ivar has_expired: whether it has removed messages after their ttl.
    :ivar has_kept_keys: whether keys stay active for the rest of their windows.
    :ivar came_back: place, id and topic of the messages that it has made ready.
    """

    def __init__(
        self,
        session: Session,
        sql: MessageStatements,
        rows: MessageRows,
        policy: MessagePolicy,
        shared_clock: str,
        heads: Heads,
        is_joined: bool,
        tells: bool,
    ) -> None:
        self.session = session
        self.sql = sql
        self.rows = rows
        self._policy = policy
        self._clock = shared_clock
        self._looks = heads
        self.is_joined = is_joined
        self._tells = tells
        self.awaited: set[Awaited] = set()
        self.events: list[MessageEvent] = []
        self.finished: Counter[State] = Counter()
        self.has_expired = False
        self.has_kept_keys = False
        self.came_back: list[tuple[float, int, bytes]] = []
        self._keys: dict[bytes, _Key] = {}
        self._groups: dict[bytes, int] = {}
        # Blocked messages that have become heads in this transaction, after it has read their rows.
        self._heads: set[int] = set()

    def now(self) -> float:
        """Return the server's time."""
        ((now,),) = self.session.run(self._clock).rows
        return float(now)

    def read(self, text: str, **parameters: Any) -> list[MessageRow]:
        """Return the rows that a statement finds."""
        return [MessageRow.of(row) for row in self.session.run(text, **parameters).rows]

    def look(self, name: str, topic: bytes | None = None, **parameters: Any) -> list[Any]:
        """Return the rows that the statement with that name finds at the head of all topics, or of one."""
        return self._looks.look(self.session, self.sql, name, topic, **parameters).result.rows

    def next(self, name: str, topic: bytes | None, limit: int, **parameters: Any) -> list[MessageRow]:
        """Claim or lock the next rows by the statement with that name, and return them in their order.

        :param topic: ``None``: the rows of all topics.
        """
        look = self._looks.look(self.session, self.sql, name, topic, limit=limit, **parameters)
        rows = sorted((MessageRow.of(row) for row in look.result.rows), key=lambda row: (row.place, row.id))
        if rows:
            self._looks.claimed(look, rows[0].place, rows[0].id, topic)
            if not parameters.get("promoted"):
                self._looks.nothing_due(look)
        return rows

    def lock_any(self, text: str, **parameters: Any) -> list[MessageRow]:
        """Lock and return the rows that a statement finds and that no other transaction has locked.

        MySQL locks the gaps between the rows that it reads, in a transaction that is REPEATABLE READ. Then
        others could put no message there before the end of a caller's transaction. So there the rows are read
        first, and locked by their ids.
        """
        if not self.is_joined:
            return self.read(text, **parameters)
        found = self.read(text.removesuffix(SKIPPING), **parameters)
        rows = self.lock_rows([row.id for row in found])
        before = {row.id: (row.number, row.token, row.until) for row in found}
        return [row for row in rows if before[row.id] == (row.number, row.token, row.until)]

    def lock_rows(self, ids: list[int]) -> list[MessageRow]:
        """Lock and return those of these rows that no other transaction has locked, by id."""
        return self.read(self.sql.lock_rows, ids=ids) if ids else []

    def _note(
        self, kind: EventKind, row: MessageRow, attempts: int | None = None, error: str | None = None
    ) -> None:
        if self._tells:
            self.events.append(MessageEvent(kind, row.topic, row.now, row.id, 1, attempts, error))

    def _note_ready(self, rows: Sequence[MessageRow]) -> None:
        self.awaited.add(Awaited.READY)
        self.came_back += [(row.place, row.id, row.topic.encode()) for row in rows]

    # Putting.

    def put(self, entries: Sequence[MessageEntry], columns: Sequence[dict[str, Any]]) -> list[int | None]:
        """Store messages, and return their ids; ``None`` for one whose key is active."""
        refused = self._take_keys(entries, columns)
        chosen = [index for index in range(len(entries)) if index not in refused]
        self._enter_groups([columns[index] for index in chosen], [entries[index] for index in chosen])
        ids: list[int | None] = [None] * len(entries)
        for index, id in zip(chosen, self._insert([columns[index] for index in chosen]), strict=True):
            ids[index] = id
            if columns[index]["state"] == READY:
                self.came_back.append((columns[index]["place"], id, columns[index]["topic"]))
        if self._tells and chosen:
            now = self.now()
            self.events += [
                MessageEvent(EventKind.PUT, entries[index].topic, now, ids[index], 1, 0) for index in chosen
            ]
        return ids

    def _take_keys(self, entries: Sequence[MessageEntry], columns: Sequence[dict[str, Any]]) -> set[int]:
        """Make the keys of these messages active, and return the places of those that are refused."""
        places: dict[bytes, list[int]] = defaultdict(list)
        for index, entry in enumerate(entries):
            if entry.key is not None:
                places[entry.key].append(index)
        refused: set[int] = set()
        for key in sorted(places):
            first, *others = places[key]
            refused.update(others)
            window = min(entries[first].key_window, LONGEST_SPAN)
            if not self._take_key(key, columns[first]["mark"], window):
                refused.add(first)
        return refused

    def _take_key(self, key: bytes, mark: int, window: float) -> bool:
        """Make a key active for the message with this mark, and return whether it is."""
        rows = self._run_last(self.sql.take_key, key=key, mark=mark, window=window)
        return bool(rows) and rows[0][0] == mark

    def _run_last(self, texts: Sequence[str], **parameters: Any) -> list[Any]:
        """Run statements, and return the rows of the last one."""
        *before, last = texts
        for text in before:
            self.session.defer(text, **parameters)
        return self.session.run(last, **parameters).rows

    def _enter_groups(self, columns: Sequence[dict[str, Any]], entries: Sequence[MessageEntry]) -> None:
        """Count messages in their groups; each one that is not the head is blocked from now on."""
        members: dict[bytes, list[dict[str, Any]]] = defaultdict(list)
        for row, entry in zip(columns, entries, strict=True):
            row["state"] = DELAYED if row["delay"] else READY  # as before an earlier try
            if entry.group is not None:
                members[group_name(entry.topic, entry.group)].append(row)
        for name in sorted(members):
            before = self._enter_group(name, len(members[name])) - len(members[name])
            for row in members[name][before == 0 :]:
                row["state"] = BLOCKED

    def _enter_group(self, name: bytes, count: int) -> int:
        """Count messages in a group, and return how many it has."""
        return int(self._run_last(self.sql.enter_group, name=name, count=count)[0][0])

    def _insert(self, columns: Sequence[dict[str, Any]]) -> list[int]:
        if columns:
            self.awaited.add(Awaited.READY)
        rows = [{**row, "due": due_in(row)} for row in columns]
        return self.session.insert_rows(self.sql.insert_many, rows)

    # Keys and groups.

    def lock_beside(self, rows: Sequence[MessageRow], *, waits: bool) -> list[MessageRow]:
        """Lock the keys and the groups of messages, and return the messages of which both are locked.

        :param waits: for other transactions, so that all are locked. Otherwise a message is left out of which
            another transaction has locked the key or the group.
        """
        sql = self.sql
        keys = sorted({row.key for row in rows if row.key is not None} - self._keys.keys())
        names = {row.group_name for row in rows if row.group is not None} - self._groups.keys()
        if keys:
            text = sql.lock_keys if waits else sql.lock_free_keys
            for key, mark, in_window, _ in self.session.run(text, keys=keys).rows:
                self._keys[bytes(key)] = _Key(mark, bool(in_window))
        self.lock_groups(sorted(names), waits=waits)
        if waits:
            return list(rows)
        busy_keys = self._busy(sql.select_keys, keys=[key for key in keys if key not in self._keys])
        busy_names = self._busy(sql.select_groups, names=sorted(names - self._groups.keys()))
        return [
            row
            for row in rows
            if row.key not in busy_keys and (row.group is None or row.group_name not in busy_names)
        ]

    def lock_groups(self, names: list[bytes], *, waits: bool) -> None:
        """Lock groups, as :meth:`lock_beside` does."""
        if names:
            text = self.sql.lock_groups if waits else self.sql.lock_free_groups
            for name, members in self.session.run(text, names=names).rows:
                self._groups[bytes(name)] = members

    def _busy(self, text: str, **given: list[bytes]) -> set[bytes | None]:
        """Return which of the names are there that this transaction could not lock."""
        if not any(given.values()):
            return set()
        return {bytes(name) for (name,) in self.session.run(text, **given).rows}

    def _free_keys(self, rows: Sequence[MessageRow], window: bool) -> None:
        kept: list[bytes] = []
        freed: list[bytes] = []
        for row in rows:
            found = None if row.key is None else self._keys.get(row.key)
            # After `release_key` the key may be active for another message.
            if row.key is None or found is None or found.mark != row.mark:
                continue
            (kept if window and found.in_window else freed).append(row.key)
        if kept:
            self.session.defer(self.sql.keep_keys, keys=kept)
            self.has_kept_keys = True
        if freed:
            self.session.defer(self.sql.delete_keys, keys=freed)

    def _leave_groups(self, rows: Sequence[MessageRow]) -> None:
        """Count messages out of their groups. If one of them was the head, the next one becomes the head."""
        left: dict[bytes, list[MessageRow]] = defaultdict(list)
        for row in rows:
            if row.group is not None and row.number in _UNFINISHED:
                left[row.group_name].append(row)
        ended: list[bytes] = []
        heads: list[tuple[int, float, bytes]] = []
        for name in sorted(left):
            members = self._groups[name] = self._groups[name] - len(left[name])
            if not members:
                ended.append(name)
                continue
            self.session.defer(self.sql.set_group, name=name, count=members)
            if not all(row.is_blocked and row.id not in self._heads for row in left[name]):
                one = left[name][0]
                group = {"topic": one.topic.encode(), "grp": (one.group or "").encode()}
                found = self.session.run(self.sql.lock_follower, **group).rows
                heads += [(id, place, group["topic"]) for id, place in found]
        if ended:
            self.session.defer(self.sql.delete_groups, names=ended)
            for name in ended:
                del self._groups[name]
        if heads:
            ids = [id for id, *_ in heads]
            self.session.defer(self.sql.become_head, ids=ids)
            self._heads.update(ids)
            self.came_back += [(place, id, topic) for id, place, topic in heads]
            self.awaited.add(Awaited.READY)

    # Ends of claims.

    def finish(
        self,
        rows: Sequence[MessageRow],
        state: State | None,
        error: str | None = None,
        *,
        window: bool = True,
        returned: int = 0,
    ) -> None:
        """Make messages done or dead, or remove them (``None``). The next ones of their groups become heads.

        :param error: what becomes the error of each; ``None``: it stays.
        :param window: whether their keys stay active for the rest of their windows.
        :param returned: how many attempts each one gets back.
        """
        if not rows:
            return
        self.awaited.add(Awaited.LEFT)
        ids = [row.id for row in rows]
        if state is None or not self._keeps(state):
            self.session.defer(self.sql.delete, ids=ids)
        else:
            parameters = {"state": NUMBERS[state], "returned": returned, **_told(error)}
            self.session.defer(self.sql.finish, ids=ids, **parameters)
            self.finished[state] += len(ids)
        self._free_keys(rows, window)
        self._leave_groups(rows)
        if state is not None:
            kind = EventKind.ACKED if state is State.DONE else EventKind.DEAD
            for row in rows:
                self._note(kind, row, row.attempts - returned, error)

    def _keeps(self, state: State) -> bool:
        """Tell whether messages in this final state are kept."""
        return bool(self._policy.keep_done) if state is State.DONE else self._policy.keep_dead != 0

    def _expire(self, rows: Sequence[MessageRow]) -> None:
        """Remove messages because their ttls are over."""
        if rows:
            self.finish(rows, None)
            self.session.defer(self.sql.add_expired, count=len(rows))
            self.has_expired = True
            for row in rows:
                self._note(EventKind.EXPIRED, row)

    def nack(self, rows: Sequence[MessageRow], delay: float | None, error: str | None) -> None:
        """Return messages to their places, or make them dead if they have no attempts left."""
        spent = [row for row in rows if self.rows.is_spent(row)]
        back = [row for row in rows if not self.rows.is_spent(row)]
        over = [row for row in back if row.is_over]
        self.lock_beside([*spent, *over], waits=True)
        self.finish(spent, State.DEAD, error)
        self._expire(over)
        by_delay: dict[float, list[MessageRow]] = defaultdict(list)
        for row in back:
            if not row.is_over:
                by_delay[self.rows.delay(row) if delay is None else delay].append(row)
        for seconds, some in by_delay.items():
            self._return(some, EventKind.NACKED, seconds, error)

    def release(self, rows: Sequence[MessageRow], waits: bool = True) -> list[MessageRow]:
        """Return messages to their places at once, and take back the attempts; return which these are."""
        over = self.lock_beside([row for row in rows if row.is_over], waits=waits)
        back = [row for row in rows if not row.is_over]
        self._expire(over)
        self._return(back, EventKind.RELEASED, returned=1)
        return [*over, *back]

    def _return(
        self,
        rows: Sequence[MessageRow],
        kind: EventKind,
        delay: float = 0.0,
        error: str | None = None,
        returned: int = 0,
    ) -> None:
        if not rows:
            return
        self.awaited.add(Awaited.READY)
        ids, told = [row.id for row in rows], _told(error)
        if delay > 0:
            until = later(rows[0].now, min(delay, LONGEST_SPAN))
            self.session.defer(self.sql.make_delayed, ids=ids, until=until, **told)
        else:
            self.session.defer(self.sql.make_ready, ids=ids, returned=returned, **told)
            self._note_ready(rows)
        for row in rows:
            self._note(kind, row, row.attempts - returned, error)

    def lose(self, rows: Sequence[MessageRow], error: str) -> int:
        """End claims that nobody has settled; return how many.

        What is locked by another transaction, or whose key or group is, stays.
        """
        spent = self.lock_beside([row for row in rows if self.rows.is_spent(row)], waits=False)
        back = [row for row in rows if not self.rows.is_spent(row)]
        over = self.lock_beside([row for row in back if row.is_over], waits=False)
        ready = [row for row in back if not row.is_over]
        self.finish(spent, State.DEAD, error)
        self._expire(over)
        self._return(ready, EventKind.RECLAIMED, 0.0, error)
        return len(spent) + len(over) + len(ready)

    def kill_damaged(self, rows: Sequence[MessageRow]) -> None:
        """Make messages dead that were claimed although they are damaged. It takes back the attempts."""
        self.finish(self.lock_beside(rows, waits=False), State.DEAD, DAMAGED, returned=1)

    # What happens by itself.

    def promote(self) -> tuple[bool, int]:
        """Do a page of what is due; return whether more may be due, and how many claims it ended."""
        rows = self.lock_any(self.sql.lock_due, limit=PAGE)
        claimed = [row for row in rows if row.number == CLAIMED]
        over = self.lock_beside([row for row in rows if row.number != CLAIMED and row.is_over], waits=False)
        ready = [row for row in rows if row.number != CLAIMED and not row.is_over]
        ended = self.lose(claimed, LEASE_RAN_OUT)
        self._expire(over)
        if ready:
            ids = [row.id for row in ready]
            self.session.defer(self.sql.make_ready, ids=ids, returned=0, **_told(None))
            self._note_ready(ready)
        # What stays, because another transaction has locked its key or group, is due in the next page, too.
        return len(rows) == PAGE and bool(ended or over or ready), ended

    # Dead letters and removal.

    def redrive(self, row: MessageRow) -> bool:
        """Make a dead message ready or blocked, unless its key is active for another one."""
        if row.key is not None and not self._take_key(row.key, row.mark, 0.0):
            return False
        is_blocked = row.group is not None and self._enter_group(row.group_name, 1) > 1
        self.session.defer(self.sql.redrive, ids=[row.id], state=BLOCKED if is_blocked else READY)
        self._note_ready([row])
        self._note(EventKind.REDRIVEN, row, 0)
        return True

    def redrive_one(self, id: int) -> bool:
        """Redrive a dead message; return whether there is one.

        :raise DuplicateError: its key is active for another one.
        """
        rows = [row for row in self.read(self.sql.lock_bare, id=id) if row.number == DEAD]
        if rows and not self.redrive(rows[0]):
            raise DuplicateError(f"the key of message {id} is active for another message")
        return bool(rows)

    def redrive_all(self, topic: str | None) -> int:
        """Redrive all dead messages (of a topic), and return how many."""
        count = 0
        for rows in self._pages(self.sql.lock_dead_page, topic, None):
            count += sum(self.redrive(row) for row in self.lock_beside(rows, waits=False))
        return count

    def cancel(self, id: int) -> bool:
        """Remove a message that nobody has claimed; return whether there is one."""
        for row in self.read(self.sql.select_bare, id=id):
            if row.is_blocked:  # The transaction that finishes its head locks the group first.
                self.lock_groups([row.group_name], waits=True)
        rows = self.read(self.sql.lock_bare, id=id)
        rows = [row for row in rows if row.number in (READY, DELAYED, BLOCKED, DEAD)]
        self.lock_beside(rows, waits=True)
        self.finish(rows, None, window=False)
        for row in rows:
            self._note(EventKind.CANCELLED, row)
        return bool(rows)

    def purge(self, topic: str | None, dead: bool, before: float | None) -> int:
        """Remove the unclaimed messages, or the dead ones, that were put before a time; return how many."""
        count, text = 0, self.sql.lock_dead_page if dead else self.sql.lock_page
        for rows in self._pages(text, topic, before):
            free = self.lock_beside(rows, waits=False)
            self.finish(free, None)
            for row in free:
                self._note(EventKind.PURGED, row)
            count += len(free)
        return count

    def _pages(self, text: str, topic: str | None, before: float | None) -> Iterator[list[MessageRow]]:
        name = None if topic is None else topic.encode()
        low = BEFORE_ALL
        while rows := self.lock_any(text, topic=name, before=before, low=low, limit=PAGE):
            yield rows
            low = rows[-1].id

    def release_key(self, key: bytes) -> bool:
        """Make a key inactive, and return whether it was active."""
        rows = self.session.run(self.sql.lock_keys, keys=[key]).rows
        if rows:
            self.session.defer(self.sql.delete_keys, keys=[key])
        return any(is_active for *_, is_active in rows)

    # Tidying.

    def trim(self, state: State, keep: int) -> None:
        """Remove the oldest messages in a final state, except so many."""
        number = NUMBERS[state]
        for (last,) in self.session.run(self.sql.oldest, state=number, keep=keep).rows:
            while found := self.session.run(self.sql.lock_oldest, state=number, id=last, limit=PAGE).rows:
                self.session.defer(self.sql.delete, ids=[id for (id,) in found])

    def forget_keys(self) -> None:
        """Remove keys whose windows are over."""
        rows = self.session.run(self.sql.lock_old_keys, limit=PAGE).rows
        if rows:
            self.session.defer(self.sql.delete_keys, keys=[bytes(key) for (key,) in rows])

    def sum_up(self) -> None:
        """Sum up numbers of messages that have expired."""
        rows = self.session.run(self.sql.lock_expired, limit=PAGE).rows
        if rows:
            self.session.defer(self.sql.delete_expired, ids=[id for id, _ in rows])
            self.session.defer(self.sql.add_expired, count=sum(count for _, count in rows))


def _told(error: str | None) -> dict[str, Any]:
    """Return the parameters of a statement that sets the error; ``None``: it stays."""
    encoded = None if error is None else error.encode(errors="backslashreplace")
    return {"tells": error is not None, "error": encoded}
