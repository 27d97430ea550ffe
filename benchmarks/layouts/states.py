"""Layouts that leave a message where its put has stored it, and keep the states of all in one B-tree."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any, ClassVar

from benchmarks.layouts.model import Claim, Layout, Note, State

__all__ = ["DeferredRemoval", "StateTree"]

# In the column ``part`` of the table ``states``. A claim has the number of its holder there, and a ready
# message -2 minus the number of its topic. The heads lie beside the claims, because a claim changes both.
_TOTALS, _HEADS, _FIRST_TOPIC = 0, -1, -2
_DELAYED, _DONE, _DEAD = -(1 << 40), -(1 << 41), -(1 << 42)
_FINISHED = {State.DONE: _DONE, State.DEAD: _DEAD}
# The place of the head of a topic that has no ready message.
_NOWHERE = 9e999
# Ids: how many messages a reader may have to count by their rows.
_COUNTED_LATER = 64
_PAGE = 256
# Claims: how many acked messages wait for their removal.
_REMOVAL = 64
# Bytes: the removal of a larger message changes pages of its own, so that waiting for others saves nothing.
_SMALL_BODY = 512

_ONE = "part = ? AND at = ? AND id = ?"
_INSERT = "INSERT INTO states VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
_SELECT_READY = (
    "SELECT part, at, id, topic, deliveries, attempts FROM states WHERE part = ? ORDER BY at, id LIMIT ?"
)
_SELECT_HEADS = "SELECT at, id, topic FROM states WHERE part = ? AND at < ? ORDER BY at, id LIMIT ?"
Place = tuple[float, int]
"""Place and id: what messages of one topic are ordered by."""


class StateTree(Layout):
    """Bodies in one table by id, and one B-tree with a small row for each message, ordered by its state.

    A claim moves the small row from the topic's part of the tree to the holder's, and replaces the head of
    the topic. The rows of ``states`` are:

    - a ready message: ``_FIRST_TOPIC`` minus topic, place, id
    - a claim: holder, end of the lease, id
    - a delayed message: ``_DELAYED``, due, id
    - a finished message: ``_DONE`` or ``_DEAD``, 0, id
    - the head of a topic: ``_HEADS``, place, id; topic, ready ``n``
    - the totals: ``_TOTALS``, 0, 0; the counted id is ``n``

    The number of ready messages of a topic is that in the row of its head plus the rows of ``messages`` after
    the counted id. So a put that becomes no head writes nothing but its own rows. The counted id follows when
    these are many, and before a message after it is removed.

    The row of a message says all that is needed to find its small row, unless it is claimed: ``due`` is the
    time up to which it is, or was, delayed.
    """

    name = "state tree"
    tables: ClassVar[Sequence[str]] = (
        """CREATE TABLE messages (
            id INTEGER PRIMARY KEY, topic INTEGER, place, time REAL, expires REAL, key BLOB, grp TEXT,
            crc INTEGER, due REAL, body BLOB
        )""",
        "CREATE INDEX by_expires ON messages (expires) WHERE expires IS NOT NULL",
        """CREATE TABLE states (
            part INTEGER, at, id INTEGER, topic INTEGER, place, deliveries INTEGER, attempts INTEGER,
            n INTEGER, PRIMARY KEY (part, at, id)
        ) WITHOUT ROWID""",
        """CREATE TABLE blocked (
            topic INTEGER, grp TEXT, id INTEGER, PRIMARY KEY (topic, grp, id)
        ) WITHOUT ROWID""",
        "CREATE TABLE holders (holder INTEGER PRIMARY KEY)",
    )

    def create(self) -> None:
        super().create()
        self._insert_state(_TOTALS, 0, 0, None, None, 0, 0, 0)
        self._heads: dict[int, Place | None] = {}
        """The heads of the topics that were used, true as long as no other process writes."""
        self._holders: set[int] = set()
        self._uncounted: dict[int, int] = {}
        self._counted = 0
        self._must_count = False

    def _insert_state(self, *values: float | None) -> None:
        self.execute(_INSERT, values)

    # Puts.

    def insert(self, note: Note, body: bytes, state: State, due: float | None) -> None:
        id, topic, place, *_ = note
        self.later("INSERT INTO messages VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", (*note, due, body))
        if state is State.READY:
            self._lead(topic, (place, id), 0)
            self.later(_INSERT, (_FIRST_TOPIC - topic, place, id, topic, place, 0, 0, None))
            self._uncounted[topic] = self._uncounted.get(topic, 0) + 1
            return
        if state is State.DELAYED:
            self._insert_state(_DELAYED, due, id, topic, place, 0, 0, None)
        else:
            self.execute("INSERT INTO blocked VALUES (?, ?, ?)", (topic, note.grp, id))
        self._must_count = True

    def after_puts(self) -> None:
        self.flush()
        if self._must_count or self.last_id - self._counted >= _COUNTED_LATER:
            self._count()

    def _lead(self, topic: int, new: Place, change: int) -> None:
        """Make a message that becomes ready the head of its topic if it is the first; count ``change`` more.

        Call it before the row of the message is there.
        """
        head = self._head(topic)
        if head is None:
            self._insert_state(_HEADS, *new, topic, None, None, None, change)
        elif new < head:
            self.execute(
                f"UPDATE states SET at = ?, id = ?, n = n + ? WHERE {_ONE}", (*new, change, _HEADS, *head)
            )
        else:
            if change:
                self.execute(f"UPDATE states SET n = n + ? WHERE {_ONE}", (change, _HEADS, *head))
            return
        self._heads[topic] = new

    def _head(self, topic: int) -> Place | None:
        """Return the place of the row of a topic's head, or ``None`` if there is no row."""
        if topic not in self._heads:
            find = "SELECT at, id FROM states WHERE part = ? ORDER BY at, id LIMIT 1"
            row = self.execute(find, (_FIRST_TOPIC - topic,)).fetchone()
            if row is None:
                row = self.execute(
                    f"SELECT at, id FROM states WHERE {_ONE}", (_HEADS, _NOWHERE, topic)
                ).fetchone()
            self._heads[topic] = row
        return self._heads[topic]

    def _count(self) -> None:
        """Count all messages in the rows of the heads."""
        for topic, n in self._uncounted.items():
            head = self._head(topic)
            assert head is not None
            self.execute(f"UPDATE states SET n = n + ? WHERE {_ONE}", (n, _HEADS, *head))
        self._uncounted.clear()
        self.execute(f"UPDATE states SET n = ? WHERE {_ONE}", (self.last_id, _TOTALS, 0, 0))
        self._counted = self.last_id
        self._must_count = False

    # Claims.

    def claim(self, topics: Sequence[int] | None, n: int, holder: int, until: float) -> list[Claim]:
        if holder not in self._holders:
            self.execute("INSERT OR IGNORE INTO holders VALUES (?)", (holder,))
            self._holders.add(holder)
        claims: list[Claim] = []
        heads: dict[int, Place] = {}
        numbers: dict[int, int] = {}
        entries, following = self._first(topics, n)
        for part, place, id, topic, deliveries, attempts in entries:
            key, grp, body = self.execute(
                "SELECT key, grp, body FROM messages WHERE id = ?", (id,)
            ).fetchone()
            self.later(
                f"UPDATE states SET part = ?, at = ?, deliveries = ?, attempts = ? WHERE {_ONE}",
                (holder, until, deliveries + 1, attempts + 1, part, place, id),
            )
            heads.setdefault(topic, (place, id))
            numbers[topic] = numbers.get(topic, 0) + 1
            claims.append(
                Claim(id, topic, place, deliveries + 1, attempts + 1, holder, until, key, grp, body)
            )
        self.flush()
        for topic, number in numbers.items():
            self._heads[topic] = new = following[topic] or (_NOWHERE, topic)
            self.execute(
                f"UPDATE states SET at = ?, id = ?, n = n - ? WHERE {_ONE}",
                (*new, number, _HEADS, *heads[topic]),
            )
        return claims

    def _first(self, topics: Sequence[int] | None, n: int) -> tuple[list[Any], dict[int, Place | None]]:
        """Return the rows of the first n messages, and by topic what follows them.

        Few more rows are read than these.
        """
        if topics is None:
            heads = self.execute(_SELECT_HEADS, (_HEADS, _NOWHERE, n)).fetchall()
        else:
            heads = [(*head, topic) for topic in topics if (head := self._head(topic)) is not None]
            heads = [head for head in heads if head[0] != _NOWHERE]
        if not heads:
            return [], {}
        if n == 1 or len(heads) == 1:
            _, _, topic = min(heads)
            rows = self.execute(_SELECT_READY, (_FIRST_TOPIC - topic, n + 1)).fetchall()
            return rows[:n], {topic: rows[n][1:3] if len(rows) > n else None}
        return self._merge(heads, n)

    def _merge(
        self, heads: list[tuple[float, int, int]], n: int
    ) -> tuple[list[Any], dict[int, Place | None]]:
        """Merge the rows of several topics, each in its order."""
        found: list[Any] = []
        cursors: dict[int, Any] = {}
        rows: dict[int, Any] = {}
        heapq.heapify(heads)
        while heads and len(found) < n:
            _, _, topic = heads[0]
            if topic not in cursors:
                cursors[topic] = self.cursor().execute(_SELECT_READY, (_FIRST_TOPIC - topic, n + 1))
                rows[topic] = cursors[topic].fetchone()
            found.append(rows[topic])
            row = rows[topic] = cursors[topic].fetchone()
            if row is None:
                heapq.heappop(heads)
            else:
                _, place, id, *_ = row
                heapq.heapreplace(heads, (place, id, topic))
        for cursor in cursors.values():
            cursor.close()
        return found, {topic: row and row[1:3] for topic, row in rows.items()}

    # Ends of claims.

    def settle(self, claims: Sequence[Claim], state: State | None) -> None:
        if state is None and max(claim.id for claim in claims) > self._counted:
            self._count()
        for claim in claims:
            fence = (claim.holder, claim.until, claim.id, claim.deliveries)
            if state is None:
                self.later(f"DELETE FROM states WHERE {_ONE} AND deliveries = ?", fence)
            else:
                self.later(
                    f"UPDATE states SET part = ?, at = 0 WHERE {_ONE} AND deliveries = ?",
                    (_FINISHED[state], *fence),
                )
        assert self.flush() == len(claims)
        if state is None:
            for claim in claims:
                self.later("DELETE FROM messages WHERE id = ?", (claim.id,))
            self.flush()

    def nack(self, claim: Claim, due: float | None) -> None:
        fence = (claim.holder, claim.until, claim.id, claim.deliveries)
        part, at = (_FIRST_TOPIC - claim.topic, claim.place) if due is None else (_DELAYED, due)
        if due is None:
            self._lead(claim.topic, (claim.place, claim.id), 1)
        changed = self.execute(
            f"UPDATE states SET part = ?, at = ? WHERE {_ONE} AND deliveries = ?", (part, at, *fence)
        ).rowcount
        assert changed == 1
        if due is not None:
            self.execute("UPDATE messages SET due = ? WHERE id = ?", (due, claim.id))

    def _return(self, which: str, *parameters: float) -> int:
        """Make the messages of a part of the tree ready."""
        rows = self.execute(
            f"SELECT part, at, id, topic, place FROM states WHERE part = ? AND n IS NULL {which}", parameters
        ).fetchall()
        for part, at, id, topic, place in rows:
            self._lead(topic, (place, id), 1)
            self.execute(
                f"UPDATE states SET part = ?, at = ? WHERE {_ONE}",
                (_FIRST_TOPIC - topic, place, part, at, id),
            )
        return len(rows)

    def promote(self, now: float) -> int:
        parts = [_DELAYED, *(holder for (holder,) in self.execute("SELECT holder FROM holders").fetchall())]
        due = f"AND at <= ? ORDER BY at, id LIMIT {_PAGE}"
        return sum(self._return(due, part, now) for part in parts)

    def reclaim(self, holder: int) -> int:
        count = self._return("", holder)
        self.execute("DELETE FROM holders WHERE holder = ?", (holder,))
        self._holders.discard(holder)
        return count

    def unblock(self, topic: int, group: str) -> None:
        row = self.execute(
            "SELECT id FROM blocked WHERE topic = ? AND grp = ? ORDER BY id LIMIT 1", (topic, group)
        ).fetchone()
        if row is not None:
            self.execute("DELETE FROM blocked WHERE topic = ? AND grp = ? AND id = ?", (topic, group, *row))
            (place,) = self.execute("SELECT place FROM messages WHERE id = ?", row).fetchone()
            self._lead(topic, (place, row[0]), 1)
            self._insert_state(_FIRST_TOPIC - topic, place, row[0], topic, place, 0, 0, None)

    def trim(self, n: int) -> None:
        ids = self.execute(
            "SELECT id FROM states WHERE part = ? AND at = 0 ORDER BY id LIMIT ?", (_DONE, n)
        ).fetchall()
        self._count()
        self.executemany(f"DELETE FROM states WHERE part = {_DONE} AND at = 0 AND id = ?", ids)
        self.executemany("DELETE FROM messages WHERE id = ?", ids)

    # Looks and fills.

    def counts(self) -> dict[int, int]:
        counts = dict(self.execute("SELECT topic, n FROM states WHERE part = ?", (_HEADS,)).fetchall())
        newer = self.execute(
            f"SELECT topic FROM messages WHERE id > (SELECT n FROM states WHERE {_ONE})", (_TOTALS, 0, 0)
        )
        for (topic,) in newer.fetchall():
            counts[topic] = counts.get(topic, 0) + 1
        return counts

    def fill(self, state: State, first: int, last: int, body: bytes) -> None:
        self._fill(
            "INSERT INTO messages"
            " SELECT i, i % 10, i / 10 % 3, 0.0, NULL, NULL, NULL, i, 1e9 + i, :body FROM n",
            first, last, body,
        )  # fmt: skip
        part, at = {
            State.READY: (f"{_FIRST_TOPIC} - i % 10", "i / 10 % 3"),
            State.DELAYED: (f"{_DELAYED}", "1e9 + i"),
            State.CLAIMED: ("99", "1e9 + i"),
            State.DONE: (f"{_DONE}", "0"),
            State.DEAD: (f"{_DEAD}", "0"),
        }[state]
        # In the order of the tree, which is so filled from its beginning to its end.
        self._fill(
            f"INSERT INTO states SELECT {part}, {at}, i, i % 10, i / 10 % 3, 1, 1, NULL FROM n"
            " ORDER BY 1, 2, 3",
            first, last, body,
        )  # fmt: skip
        if state is State.READY:
            self.execute("DELETE FROM states WHERE part = ?", (_HEADS,))
            self._heads.clear()
            for topic, n in self.execute(
                "SELECT topic, count(*) FROM states WHERE part <= ? AND part > ? GROUP BY topic",
                (_FIRST_TOPIC, _DELAYED),
            ).fetchall():
                head = self._head(topic)
                assert head is not None
                self._insert_state(_HEADS, *head, topic, None, None, None, n)
        self._count()


class DeferredRemoval(StateTree):
    """As :class:`StateTree`, and an ack marks the claim, so that messages are removed many at a time.

    The mark is ``n`` in the row of a claim. The claims of a dead holder that have it are removed and not
    returned.
    """

    name = "state tree, deferred"

    def create(self) -> None:
        super().create()
        self._acked: list[tuple[int, float, int]] = []

    def settle(self, claims: Sequence[Claim], state: State | None) -> None:
        now = [claim for claim in claims if state is not None or len(claim.body) > _SMALL_BODY]
        if now:
            super().settle(now, state)
            claims = [claim for claim in claims if claim not in now]
        for claim in claims:
            place = claim.holder, claim.until, claim.id
            self.later(
                f"UPDATE states SET n = 1 WHERE {_ONE} AND deliveries = ? AND n IS NULL",
                (*place, claim.deliveries),
            )
            self._acked.append(place)
        assert self.flush() == len(claims)
        if len(self._acked) >= _REMOVAL:
            acked, self._acked = self._acked, []
            self._remove(acked)

    def _remove(self, acked: list[tuple[int, float, int]]) -> None:
        ids = sorted((id,) for _, _, id in acked)
        if ids and ids[-1] > (self._counted,):
            self._count()
        self.executemany("DELETE FROM messages WHERE id = ?", ids)
        self.executemany(f"DELETE FROM states WHERE {_ONE}", acked)

    def reclaim(self, holder: int) -> int:
        self._acked = [place for place in self._acked if place[0] != holder]
        self._remove(
            self.execute(
                "SELECT part, at, id FROM states WHERE part = ? AND n IS NOT NULL", (holder,)
            ).fetchall()
        )
        return super().reclaim(holder)
