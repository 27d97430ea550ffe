"""Layouts that leave a message where its put has stored it, and note its state in small rows elsewhere."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, NamedTuple

from benchmarks.layouts.model import Claim, Layout, Note, State

__all__ = ["Derived", "Heads", "SmallTree"]

# In the column ``part`` of the table ``small``. A claim has the number of its holder there.
_HEADS, _COUNTS, _TOTALS = -1, -2, -3
_ONE = "part = ? AND at = ? AND id = ?"
Place = tuple[float, int]
"""Place and id: what messages of one topic are ordered by."""
_FILL = "i, i % 10, i / 10 % 3, 0.0, NULL, NULL, NULL, i, :body"

# Ids: how many messages a reader may have to count by their rows.
_COUNTED_LATER = 64


class Entry(NamedTuple):
    """A ready message, as the index of the ready ones has it."""

    topic: int
    place: float
    id: int
    deliveries: int = 0
    attempts: int = 0


class SmallTree(Layout):
    """Bodies in one table, ready ones in an index of their own, claims and counters in one small B-tree.

    The rows of ``small`` are:

    - a claim: holder, end of the lease, id; deliveries, attempts
    - the counter of a topic: ``_COUNTS``, topic, 0; ready
    - the totals: ``_TOTALS``, 0, 0; last id, counted id, claimed, delayed, done, dead

    So the claims of a holder lie together, in the order in which their leases end.
    """

    name = "small tree"
    bodies: ClassVar[Sequence[str]] = (
        """CREATE TABLE messages (
            id INTEGER PRIMARY KEY, topic INTEGER, place, time REAL, expires REAL, key BLOB, grp TEXT,
            crc INTEGER, body BLOB
        )""",
        "CREATE INDEX by_expires ON messages (expires) WHERE expires IS NOT NULL",
        """CREATE TABLE ready (
            topic INTEGER, place, id INTEGER, deliveries INTEGER, attempts INTEGER,
            PRIMARY KEY (topic, place, id)
        ) WITHOUT ROWID""",
        """CREATE TABLE small (
            part INTEGER, at, id INTEGER, a, b, c, d, e, f, PRIMARY KEY (part, at, id)
        ) WITHOUT ROWID""",
        """CREATE TABLE waiting (
            due REAL, id INTEGER, deliveries INTEGER, attempts INTEGER, PRIMARY KEY (due, id)
        ) WITHOUT ROWID""",
        """CREATE TABLE blocked (
            topic INTEGER, grp TEXT, id INTEGER, PRIMARY KEY (topic, grp, id)
        ) WITHOUT ROWID""",
        """CREATE TABLE finished (
            state INTEGER, id INTEGER, deliveries INTEGER, attempts INTEGER, error TEXT,
            PRIMARY KEY (state, id)
        ) WITHOUT ROWID""",
        "CREATE TABLE holders (holder INTEGER PRIMARY KEY)",
    )
    tables: ClassVar[Sequence[str]] = (*bodies, "CREATE INDEX ready_any ON ready (place, id)")

    def create(self) -> None:
        super().create()
        self.execute(
            "INSERT INTO small (part, at, id, a, b, c, d, e, f) VALUES (?, 0, 0, 0, 0, 0, 0, 0, 0)",
            (_TOTALS,),
        )
        self.claimed = self.delayed = self.done = self.dead = 0
        self._holders: set[int] = set()
        self._new: list[Entry] = []
        self._must_save = False
        """Whether a put has to store the totals: one of ready messages alone changes no stored number."""

    # Puts.

    def insert(self, note: Note, body: bytes, state: State, due: float | None) -> None:
        self.later("INSERT INTO messages VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", (*note, body))
        if state is State.READY:
            self._new.append(Entry(note.topic, note.place, note.id))
            return
        if state is State.DELAYED:
            self.execute("INSERT INTO waiting VALUES (?, ?, 0, 0)", (due, note.id))
            self.delayed += 1
        else:
            self.execute("INSERT INTO blocked VALUES (?, ?, ?)", (note.topic, note.grp, note.id))
        self._must_save = True

    def after_puts(self) -> None:
        self.flush()
        new, self._new = self._new, []
        if new:
            self._add(new)
        if self._must_save:
            self._save_totals()

    def _insert_ready(self, entries: Sequence[Entry]) -> None:
        text = "INSERT INTO ready VALUES (?, ?, ?, ?, ?)"
        if len(entries) == 1:
            self.execute(text, entries[0])
        else:
            self.executemany(text, sorted(entries))

    def _add(self, entries: Sequence[Entry]) -> None:
        """Make messages ready, and count them."""
        self._insert_ready(entries)
        self._count(Counter(entry.topic for entry in entries))

    def _count(self, changes: dict[int, int]) -> None:
        for topic, change in changes.items():
            self.execute(
                "INSERT INTO small (part, at, id, a) VALUES (?, ?, 0, ?)"
                " ON CONFLICT (part, at, id) DO UPDATE SET a = a + excluded.a",
                (_COUNTS, topic, change),
            )

    def _save_totals(self) -> None:
        self._must_save = False
        self.execute(
            f"UPDATE small SET a = ?, b = ?, c = ?, d = ?, e = ?, f = ? WHERE {_ONE}",
            (self.last_id, self.last_id, self.claimed, self.delayed, self.done, self.dead, _TOTALS, 0, 0),
        )

    # Claims.

    def claim(self, topics: Sequence[int] | None, n: int, holder: int, until: float) -> list[Claim]:
        if holder not in self._holders:
            self.execute("INSERT OR IGNORE INTO holders VALUES (?)", (holder,))
            self._holders.add(holder)
        entries = self._first(topics, n)
        claims = []
        for topic, place, id, deliveries, attempts in entries:
            key, grp, body = self.execute(
                "SELECT key, grp, body FROM messages WHERE id = ?", (id,)
            ).fetchone()
            self.later("DELETE FROM ready WHERE topic = ? AND place = ? AND id = ?", (topic, place, id))
            self.later(
                "INSERT INTO small (part, at, id, a, b) VALUES (?, ?, ?, ?, ?)",
                (holder, until, id, deliveries + 1, attempts + 1),
            )
            claims.append(
                Claim(id, topic, place, deliveries + 1, attempts + 1, holder, until, key, grp, body)
            )
        self.flush()
        self.claimed += len(claims)
        self._count_claimed(entries)
        return claims

    def _first(self, topics: Sequence[int] | None, n: int) -> list[Entry]:
        if topics is None:
            rows = self.execute(
                "SELECT topic, place, id, deliveries, attempts FROM ready INDEXED BY ready_any"
                " ORDER BY place, id LIMIT ?",
                (n,),
            )
            return [Entry(*row) for row in rows.fetchall()]
        entries = [entry for topic in topics for entry in self._first_of(topic, n)]
        return sorted(entries, key=lambda entry: (entry.place, entry.id))[:n]

    def _first_of(self, topic: int, n: int) -> list[Entry]:
        rows = self.execute(
            "SELECT topic, place, id, deliveries, attempts FROM ready WHERE topic = ?"
            " ORDER BY place, id LIMIT ?",
            (topic, n),
        )
        return [Entry(*row) for row in rows.fetchall()]

    def _count_claimed(self, entries: Sequence[Entry]) -> None:
        self._count({topic: -n for topic, n in Counter(entry.topic for entry in entries).items()})
        self._save_totals()

    # Ends of claims.

    def _end_claims(self, claims: Sequence[Claim]) -> None:
        for claim in claims:
            fence = (claim.holder, claim.until, claim.id, claim.deliveries)
            self.later(f"DELETE FROM small WHERE {_ONE} AND a = ?", fence)
        assert self.flush() == len(claims)
        self.claimed -= len(claims)

    def settle(self, claims: Sequence[Claim], state: State | None) -> None:
        self._end_claims(claims)
        if state is None:
            self._remove_messages([claim.id for claim in claims])
            return
        for claim in claims:
            self.execute(
                "INSERT INTO finished VALUES (?, ?, ?, ?, NULL)",
                (int(state), claim.id, claim.deliveries, claim.attempts),
            )
            self.done += state is State.DONE
            self.dead += state is State.DEAD
        self._save_totals()

    def _remove_messages(self, ids: Sequence[int]) -> None:
        for id in ids:
            self.later("DELETE FROM messages WHERE id = ?", (id,))
        self.flush()
        self._save_totals()

    def nack(self, claim: Claim, due: float | None) -> None:
        self._end_claims([claim])
        if due is None:
            self._add([Entry(claim.topic, claim.place, claim.id, claim.deliveries, claim.attempts)])
        else:
            self.execute(
                "INSERT INTO waiting VALUES (?, ?, ?, ?)", (due, claim.id, claim.deliveries, claim.attempts)
            )
            self.delayed += 1
        self._save_totals()

    def promote(self, now: float) -> int:
        count = 0
        waiting = self.execute(
            "SELECT due, id, deliveries, attempts FROM waiting WHERE due <= ? ORDER BY due LIMIT 256", (now,)
        ).fetchall()
        if waiting:
            self.executemany(
                "DELETE FROM waiting WHERE due = ? AND id = ?", [(due, id) for due, id, *_ in waiting]
            )
            self.delayed -= len(waiting)
            self._return((id, deliveries, attempts) for _, id, deliveries, attempts in waiting)
        for (holder,) in self.execute("SELECT holder FROM holders").fetchall():
            count += self._return_claims("AND at <= ? ORDER BY at, id LIMIT 256", holder, now)
        return count + len(waiting)

    def reclaim(self, holder: int) -> int:
        count = self._return_claims("", holder)
        self.execute("DELETE FROM holders WHERE holder = ?", (holder,))
        self._holders.discard(holder)
        return count

    def _return_claims(self, which: str, *parameters: float) -> int:
        holder, *_ = parameters
        rows = self.execute(f"SELECT at, id, a, b FROM small WHERE part = ? {which}", parameters).fetchall()
        if rows:
            self.executemany(f"DELETE FROM small WHERE {_ONE}", [(holder, at, id) for at, id, *_ in rows])
            self.claimed -= len(rows)
            self._return((id, deliveries, attempts) for _, id, deliveries, attempts in rows)
        return len(rows)

    def _return(self, rows: Iterable[tuple[int, int, int]]) -> None:
        entries = []
        for id, deliveries, attempts in rows:
            topic, place = self.execute("SELECT topic, place FROM messages WHERE id = ?", (id,)).fetchone()
            entries.append(Entry(topic, place, id, deliveries, attempts))
        self._add(entries)
        self._save_totals()

    def unblock(self, topic: int, group: str) -> None:
        row = self.execute(
            "SELECT id FROM blocked WHERE topic = ? AND grp = ? ORDER BY id LIMIT 1", (topic, group)
        ).fetchone()
        if row is not None:
            self.execute("DELETE FROM blocked WHERE topic = ? AND grp = ? AND id = ?", (topic, group, *row))
            self._return([(*row, 0, 0)])

    def trim(self, n: int) -> None:
        ids = self.execute("SELECT id FROM finished WHERE state = 4 ORDER BY id LIMIT ?", (n,)).fetchall()
        self.executemany("DELETE FROM finished WHERE state = 4 AND id = ?", ids)
        self.executemany("DELETE FROM messages WHERE id = ?", ids)
        self.done -= len(ids)
        self._save_totals()

    # Looks and fills.

    def counts(self) -> dict[int, int]:
        rows = self.execute("SELECT at, a FROM small WHERE part = ? AND a", (_COUNTS,))
        return dict(rows.fetchall())

    def fill(self, state: State, first: int, last: int, body: bytes) -> None:
        self._fill(f"INSERT INTO messages SELECT {_FILL} FROM n", first, last, body)
        texts = {
            State.READY: "ready SELECT i % 10, i / 10 % 3, i, 0, 0",
            State.DELAYED: "waiting SELECT 1e9 + i, i, 0, 0",
            State.CLAIMED: "small SELECT 99, 1e9 + i, i, 1, 1, NULL, NULL, NULL, NULL",
            State.DONE: "finished SELECT 4, i, 1, 1, NULL",
            State.DEAD: "finished SELECT 6, i, 1, 1, NULL",
        }
        # A table that is ordered by topic is filled from its beginning to its end.
        order = " ORDER BY 1, 2, 3" if state is State.READY else ""
        self._fill(f"INSERT INTO {texts[state]} FROM n{order}", first, last, body)
        if state is State.READY:
            self._count_filled()
        self._save_totals()

    def _count_filled(self) -> None:
        self.execute("DELETE FROM small WHERE part = ?", (_COUNTS,))
        self._count(dict(self.execute("SELECT topic, count(*) FROM ready GROUP BY topic").fetchall()))


class Heads(SmallTree):
    """As :class:`SmallTree`, and the first ready message of each topic has a row in ``small``.

    That row is: ``_HEADS``, place, id; topic, ready. It replaces the index over all topics and the counter of
    the topic, and a topic without ready messages has none.
    """

    name = "heads"
    tables: ClassVar[Sequence[str]] = SmallTree.bodies

    def create(self) -> None:
        super().create()
        self._heads: dict[int, Place | None] = {}
        """The heads of the topics that were used. True as long as no other process writes."""
        self._next: dict[int, Place | None] = {}
        """The heads as they will be when what is being claimed is no longer ready."""

    def _head(self, topic: int) -> Place | None:
        if topic not in self._heads:
            self._heads[topic] = self.execute(
                "SELECT place, id FROM ready WHERE topic = ? ORDER BY place, id LIMIT 1", (topic,)
            ).fetchone()
        return self._heads[topic]

    def _add(self, entries: Sequence[Entry]) -> None:
        self._change_heads(entries, 1)
        self._insert_ready(entries)

    def _change_heads(self, entries: Sequence[Entry], weight: int) -> None:
        """Change the heads before which these become ready, and count each entry ``weight`` times."""
        first: dict[int, Place] = {}
        numbers: dict[int, int] = {}
        for topic, place, id, _, _ in entries:
            numbers[topic] = numbers.get(topic, 0) + 1
            if topic not in first or (place, id) < first[topic]:
                first[topic] = place, id
        for topic, n in numbers.items():
            head, new = self._head(topic), first[topic]
            self._change_head(topic, new if head is None or new < head else head, n * weight)

    def _change_head(self, topic: int, new: Place | None, change: int) -> None:
        """Replace the head of a topic, and change how many of its messages are ready."""
        old = self._head(topic)
        self._heads[topic] = new
        if old is None:
            assert new is not None
            self.execute(
                "INSERT INTO small (part, at, id, a, b) VALUES (?, ?, ?, ?, ?)", (_HEADS, *new, topic, change)
            )
        elif new is None:
            self.execute(f"DELETE FROM small WHERE {_ONE}", (_HEADS, *old))
        elif new != old:
            self.execute(
                f"UPDATE small SET at = ?, id = ?, b = b + ? WHERE {_ONE}", (*new, change, _HEADS, *old)
            )
        elif change:
            self.execute(f"UPDATE small SET b = b + ? WHERE {_ONE}", (change, _HEADS, *old))

    def _first(self, topics: Sequence[int] | None, n: int) -> list[Entry]:
        if topics is None:
            heads = self.execute(
                "SELECT at, id, a FROM small WHERE part = ? ORDER BY at, id LIMIT ?", (_HEADS, n)
            ).fetchall()
        else:
            heads = [(*head, topic) for topic in topics if (head := self._head(topic)) is not None]
        if len(heads) > 1 and n > 1:
            return self._merge(heads, n)
        return self._first_of(min(heads)[2], n) if heads else []

    def _first_of(self, topic: int, n: int) -> list[Entry]:
        *entries, last = super()._first_of(topic, n + 1)
        if len(entries) < n:
            entries.append(last)
            self._next[topic] = None
        else:
            self._next[topic] = last.place, last.id
        return entries

    def _merge(self, heads: list[tuple[float, int, int]], n: int) -> list[Entry]:
        """Return the first n messages of the topics with these heads, and read few more than those."""
        heapq.heapify(heads)
        found: list[Entry] = []
        cursors: dict[int, Any] = {}
        following: dict[int, Any] = {}
        while heads and len(found) < n:
            _, _, topic = heads[0]
            if topic not in cursors:
                cursors[topic] = self.cursor().execute(
                    "SELECT topic, place, id, deliveries, attempts FROM ready WHERE topic = ?"
                    " ORDER BY place, id",
                    (topic,),
                )
                following[topic] = cursors[topic].fetchone()
            found.append(Entry(*following[topic]))
            row = following[topic] = cursors[topic].fetchone()
            if row is None:
                heapq.heappop(heads)
                self._next[topic] = None
            else:
                _, place, id, _, _ = row
                heapq.heapreplace(heads, (place, id, topic))
                self._next[topic] = place, id
        for cursor in cursors.values():
            cursor.close()
        return found

    def _count_claimed(self, entries: Sequence[Entry]) -> None:
        numbers: dict[int, int] = {}
        for topic, place, id, _, _ in entries:
            if topic not in numbers:
                self._heads[topic] = place, id
            numbers[topic] = numbers.get(topic, 0) + 1
        for topic, n in numbers.items():
            self._change_head(topic, self._next[topic], -n)
        self._next.clear()
        self._save_claimed()

    def _save_claimed(self) -> None:
        self._save_totals()

    def counts(self) -> dict[int, int]:
        return dict(self.execute("SELECT a, b FROM small WHERE part = ?", (_HEADS,)).fetchall())

    def _count_filled(self) -> None:
        self.execute("DELETE FROM small WHERE part = ?", (_HEADS,))
        self._heads.clear()
        for topic, n in self.execute("SELECT topic, count(*) FROM ready GROUP BY topic").fetchall():
            head = self._head(topic)
            self._heads[topic] = None
            self._change_head(topic, head, n)


class Derived(Heads):
    """As :class:`Heads`, and a put or an ack changes no counter.

    The totals have an id up to which messages are *counted*. The number in the row of a head plus the rows of
    ``messages`` after that id make the number of ready messages. So a put that becomes no head writes nothing
    but its own rows, and a reader counts few rows, because the counted id follows when they become many. It
    follows, too, before a message after it is removed or is no longer ready for another reason than a claim.

    How many messages are claimed is not stored: the claims are rows that can be counted.
    """

    name = "derived counts"

    def create(self) -> None:
        super().create()
        self._uncounted: dict[int, int] = {}
        self._counted = 0

    def after_puts(self) -> None:
        self.flush()
        new, self._new = self._new, []
        if new:
            self._change_heads(new, 0)
            self._insert_ready(new)
            for entry in new:
                self._uncounted[entry.topic] = self._uncounted.get(entry.topic, 0) + 1
        if self._must_save or self.last_id - self._counted >= _COUNTED_LATER:
            self._save_totals()

    def _change_head(self, topic: int, new: Place | None, change: int) -> None:
        super()._change_head(topic, new, change)
        if new is None and self._uncounted.pop(topic, 0):
            self._must_save = True  # the row is gone that would have to say minus the number of newer rows

    def _save_totals(self) -> None:
        for topic, n in self._uncounted.items():
            self._change_head(topic, self._head(topic), n)
        self._uncounted.clear()
        super()._save_totals()
        self._counted = self.last_id

    def _save_claimed(self) -> None:
        if self._must_save:
            self._save_totals()

    def _remove_messages(self, ids: Sequence[int]) -> None:
        if max(ids) > self._counted:
            self._save_totals()
        for id in ids:
            self.later("DELETE FROM messages WHERE id = ?", (id,))
        self.flush()

    def counts(self) -> dict[int, int]:
        counts = super().counts()
        newer = self.execute(
            f"SELECT topic FROM messages WHERE id > (SELECT b FROM small WHERE {_ONE})", (_TOTALS, 0, 0)
        )
        for (topic,) in newer.fetchall():
            counts[topic] += 1
        return counts
