"""Layouts whose rows carry their state, or move between two tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from benchmarks.layouts.model import Claim, Layout, Note, State

__all__ = ["Clustered", "ClusteredById", "NarrowState", "StateColumn", "TwoTables"]

_NOTE = "id, topic, place, time, expires, key, grp, crc"
_NOTE_COLUMNS = "topic INTEGER, place, time REAL, expires REAL, key BLOB, grp TEXT, crc INTEGER"
# Ten topics, and three priorities within each.
_NOTE_FILL = "i, i % 10, i / 10 % 3, 0.0, NULL, NULL, NULL, i"
_READ = "id, topic, place, deliveries, attempts, key, grp"


class _Counted(Layout):
    """A layout with a row of counters for each topic, and one for all messages."""

    counters: ClassVar[Sequence[str]] = (
        "CREATE TABLE counters (topic INTEGER PRIMARY KEY, ready INTEGER)",
        "CREATE TABLE totals (one INTEGER PRIMARY KEY, last_id, claimed, delayed, done, dead)",
    )

    def create(self) -> None:
        for text in self.counters:
            self.execute(text)
        super().create()
        self.execute("INSERT INTO totals VALUES (1, 0, 0, 0, 0, 0)")
        self._ready: dict[int, int] = {}
        self.claimed = self.delayed = self.done = self.dead = 0

    def _count(self, topic: int, change: int) -> None:
        self._ready[topic] = self._ready.get(topic, 0) + change

    def _save(self) -> None:
        """Store the counters that have changed."""
        for topic, change in self._ready.items():
            if change:
                self.execute(
                    "INSERT INTO counters VALUES (?, ?)"
                    " ON CONFLICT (topic) DO UPDATE SET ready = ready + excluded.ready",
                    (topic, change),
                )
        self._ready.clear()

    def _save_totals(self) -> None:
        self._save()
        self.execute(
            "UPDATE totals SET last_id = ?, claimed = ?, delayed = ?, done = ?, dead = ? WHERE one = 1",
            (self.last_id, self.claimed, self.delayed, self.done, self.dead),
        )

    def _count_settled(self, n: int, state: State | None) -> None:
        self.claimed -= n
        if state is State.DONE:
            self.done += n
        elif state is State.DEAD:
            self.dead += n
        self._save_totals()

    def after_puts(self) -> None:
        self.flush()
        # The last id is that of the newest row, and a put of a ready message changes no other total.
        self._save()

    def counts(self) -> dict[int, int]:
        return dict(self.execute("SELECT topic, ready FROM counters WHERE ready").fetchall())

    def _heads(self, topics: Sequence[int] | None, n: int) -> list[Any]:
        if topics is None:
            return self.execute(self.select_any, (n,)).fetchall()
        if len(topics) == 1:
            return self.execute(self.select_topic, (topics[0], n)).fetchall()
        # The first n of each topic, then the first n of those.
        rows = [row for topic in topics for row in self.execute(self.select_topic, (topic, n))]
        return sorted(rows, key=lambda row: (row[2], row[0]))[:n]

    select_any: ClassVar[str]
    select_topic: ClassVar[str]


class TwoTables(_Counted):
    """Ready rows in one table, all others in a second one, ordered by holder. A claim copies the row."""

    name = "two tables"
    tables: ClassVar[Sequence[str]] = (
        f"CREATE TABLE ready (id INTEGER PRIMARY KEY, {_NOTE_COLUMNS}, deliveries, attempts, body BLOB)",
        "CREATE INDEX ready_any ON ready (place, id)",
        "CREATE INDEX ready_topic ON ready (topic, place, id)",
        "CREATE INDEX ready_expires ON ready (expires) WHERE expires IS NOT NULL",
        f"""CREATE TABLE held (
            holder INTEGER, id INTEGER, until REAL, {_NOTE_COLUMNS}, deliveries, attempts, body BLOB,
            PRIMARY KEY (holder, id)
        ) WITHOUT ROWID""",
        "CREATE INDEX held_due ON held (until) WHERE until IS NOT NULL",
        "CREATE INDEX held_blocked ON held (topic, grp, id) WHERE holder = -3",
        "CREATE INDEX held_expires ON held (expires) WHERE expires IS NOT NULL",
    )
    select_any = f"SELECT {_READ}, body FROM ready ORDER BY place, id LIMIT ?"
    select_topic = f"SELECT {_READ}, body FROM ready WHERE topic = ? ORDER BY place, id LIMIT ?"

    # The end of what is neither claimed nor delayed, and the condition that finds a row of the second table.
    _end: ClassVar[float | None] = None
    _one: ClassVar[str] = "holder = ? AND until IS ? AND id = ?"
    _holders: ClassVar[dict[State, int]] = {
        State.DELAYED: 0,
        State.BLOCKED: -3,
        State.DONE: -4,
        State.DEAD: -6,
    }

    def insert(self, note: Note, body: bytes, state: State, due: float | None) -> None:
        if state is State.READY:
            self.later(
                f"INSERT INTO ready ({_NOTE}, deliveries, attempts, body)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0, 0, ?)",
                (*note, body),
            )
            self._count(note.topic, 1)
            return
        self.later(
            f"INSERT INTO held ({_NOTE}, deliveries, attempts, body, holder, until)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0, 0, ?, ?, ?)",
            (*note, body, self._holders[state], due if state is State.DELAYED else self._end),
        )
        self.delayed += state is State.DELAYED
        self._save_totals()

    def claim(self, topics: Sequence[int] | None, n: int, holder: int, until: float) -> list[Claim]:
        claims = []
        for id, topic, place, deliveries, attempts, key, grp, body in self._heads(topics, n):
            self._copy(id, topic, place, holder, until)
            self._count(topic, -1)
            claims.append(
                Claim(id, topic, place, deliveries + 1, attempts + 1, holder, until, key, grp, body)
            )
        self.flush()
        self.claimed += len(claims)
        self._save_claimed()
        return claims

    def _copy(self, id: int, topic: int, place: float, holder: int, until: float) -> None:
        """Move a ready row to the claimed ones, by the next flush."""
        self.later(
            f"INSERT INTO held ({_NOTE}, deliveries, attempts, body, holder, until)"
            f" SELECT {_NOTE}, deliveries + 1, attempts + 1, body, ?, ? FROM ready WHERE id = ?",
            (holder, until, id),
        )
        self.later("DELETE FROM ready WHERE id = ?", (id,))

    def _save_claimed(self) -> None:
        self._save_totals()

    def settle(self, claims: Sequence[Claim], state: State | None) -> None:
        one = f"WHERE {self._one} AND deliveries = ?"
        for claim in claims:
            fence = (claim.holder, claim.until, claim.id, claim.deliveries)
            if state is None:
                self.later(f"DELETE FROM held {one}", fence)
            else:
                self.later(
                    f"UPDATE held SET holder = ?, until = ? {one}", (self._holders[state], self._end, *fence)
                )
        assert self.flush() == len(claims)
        self._count_settled(len(claims), state)

    def nack(self, claim: Claim, due: float | None) -> None:
        if due is None:
            self._make_ready(claim.holder, claim.until, claim.id, claim.topic)
        else:
            self.execute(
                f"UPDATE held SET holder = 0, until = ? WHERE {self._one}",
                (due, claim.holder, claim.until, claim.id),
            )
            self.delayed += 1
        self.claimed -= 1
        self._save_totals()

    def _make_ready(self, holder: int, until: float | None, id: int, topic: int) -> None:
        columns = f"{_NOTE}, deliveries, attempts, body"
        place = (holder, until, id)
        self.execute(f"INSERT INTO ready ({columns}) SELECT {columns} FROM held WHERE {self._one}", place)
        self.execute(f"DELETE FROM held WHERE {self._one}", place)
        self._count(topic, 1)

    def promote(self, now: float) -> int:
        rows = self.execute(
            "SELECT holder, until, id, topic FROM held WHERE until <= ? ORDER BY until LIMIT 256", (now,)
        ).fetchall()
        for holder, until, id, topic in rows:
            self._make_ready(holder, until, id, topic)
            self.claimed -= holder > 0
            self.delayed -= holder == 0
        self._save_totals()
        return len(rows)

    def reclaim(self, holder: int) -> int:
        rows = self.execute("SELECT until, id, topic FROM held WHERE holder = ?", (holder,)).fetchall()
        for until, id, topic in rows:
            self._make_ready(holder, until, id, topic)
        self.claimed -= len(rows)
        self._save_totals()
        return len(rows)

    def unblock(self, topic: int, group: str) -> None:
        row = self.execute(
            "SELECT id FROM held WHERE holder = -3 AND topic = ? AND grp = ? ORDER BY id LIMIT 1",
            (topic, group),
        ).fetchone()
        if row is not None:
            self._make_ready(-3, self._end, row[0], topic)
            self._save()

    def trim(self, n: int) -> None:
        done = "holder = -4" if self._end is None else f"holder = -4 AND until = {self._end}"
        self.done -= self.execute(
            f"DELETE FROM held WHERE {done} AND id <="
            f" (SELECT id FROM held WHERE {done} ORDER BY id LIMIT 1 OFFSET ? - 1)",
            (n,),
        ).rowcount
        self._save_totals()

    def fill(self, state: State, first: int, last: int, body: bytes) -> None:
        columns = f"{_NOTE}, deliveries, attempts, body"
        if state is State.READY:
            self._fill(
                f"INSERT INTO ready ({columns}) SELECT {_NOTE_FILL}, 0, 0, :body FROM n", first, last, body
            )
            for topic, n in self.execute("SELECT topic, count(*) FROM ready GROUP BY topic").fetchall():
                self._ready[topic] = n
            self.execute("DELETE FROM counters")
        else:
            until = "1e9 + i" if state in (State.DELAYED, State.CLAIMED) else "NULL"
            if self._end is not None:
                until = until.replace("NULL", "0.0")
            self._fill(
                f"INSERT INTO held ({columns}, holder, until)"
                f" SELECT {_NOTE_FILL}, 1, 1, :body, :holder, {until} FROM n",
                first,
                last,
                body,
                holder=self._holders.get(state, 99),
            )
        self._save_totals()


class Clustered(TwoTables):
    """As :class:`TwoTables`, and each table lies in the order in which its rows are wanted.

    The ready ones are ordered by topic, place and id, the others by holder, the end of the lease, and id. So
    one index is left: over the ready ones of all topics. An ack changes no counter.
    """

    name = "clustered"
    tables: ClassVar[Sequence[str]] = (
        f"""CREATE TABLE ready (
            id INTEGER, {_NOTE_COLUMNS}, deliveries, attempts, body BLOB, PRIMARY KEY (topic, place, id)
        ) WITHOUT ROWID""",
        "CREATE INDEX ready_any ON ready (place, id)",
        "CREATE INDEX ready_expires ON ready (expires) WHERE expires IS NOT NULL",
        f"""CREATE TABLE held (
            holder INTEGER, until REAL, id INTEGER, {_NOTE_COLUMNS}, deliveries, attempts, body BLOB,
            PRIMARY KEY (holder, until, id)
        ) WITHOUT ROWID""",
        "CREATE INDEX held_blocked ON held (topic, grp, id) WHERE holder = -3",
        "CREATE INDEX held_expires ON held (expires) WHERE expires IS NOT NULL",
        "CREATE TABLE holders (holder INTEGER PRIMARY KEY)",
    )
    _end = 0.0
    _one = "holder = ? AND until = ? AND id = ?"

    def create(self) -> None:
        super().create()
        self._holding: set[int] = set()

    def claim(self, topics: Sequence[int] | None, n: int, holder: int, until: float) -> list[Claim]:
        if holder not in self._holding:
            self.execute("INSERT OR IGNORE INTO holders VALUES (?)", (holder,))
            self._holding.add(holder)
        return super().claim(topics, n, holder, until)

    def _copy(self, id: int, topic: int, place: float, holder: int, until: float) -> None:
        one = "WHERE topic = ? AND place = ? AND id = ?"
        self.later(
            f"INSERT INTO held ({_NOTE}, deliveries, attempts, body, holder, until)"
            f" SELECT {_NOTE}, deliveries + 1, attempts + 1, body, ?, ? FROM ready {one}",
            (holder, until, topic, place, id),
        )
        self.later(f"DELETE FROM ready {one}", (topic, place, id))

    def _save_claimed(self) -> None:
        self._save()

    def _count_settled(self, n: int, state: State | None) -> None:
        if state is not None:
            super()._count_settled(n, state)

    def promote(self, now: float) -> int:
        count = 0
        for (holder,) in [(0,), *self.execute("SELECT holder FROM holders").fetchall()]:
            rows = self.execute(
                "SELECT until, id, topic FROM held WHERE holder = ? AND until <= ? ORDER BY until LIMIT 256",
                (holder, now),
            ).fetchall()
            for until, id, topic in rows:
                self._make_ready(holder, until, id, topic)
            count += len(rows)
        self._save()
        return count


class ClusteredById(Clustered):
    """As :class:`Clustered`, and a message can be found by its id, in whatever state it is."""

    name = "clustered, by id"
    tables: ClassVar[Sequence[str]] = (
        *Clustered.tables,
        "CREATE UNIQUE INDEX ready_id ON ready (id)",
        "CREATE UNIQUE INDEX held_id ON held (id)",
    )


class StateColumn(_Counted):
    """One table with a column for the state, and a partial index for each thing that is looked for."""

    name = "state column"
    tables: ClassVar[Sequence[str]] = (
        f"""CREATE TABLE messages (
            id INTEGER PRIMARY KEY, {_NOTE_COLUMNS}, state INTEGER, due REAL, holder INTEGER,
            deliveries INTEGER, attempts INTEGER, body BLOB
        )""",
        "CREATE INDEX by_place ON messages (place, id) WHERE state = 0",
        "CREATE INDEX by_topic ON messages (topic, place, id) WHERE state = 0",
        "CREATE INDEX by_due ON messages (due) WHERE due IS NOT NULL",
        "CREATE INDEX by_holder ON messages (holder) WHERE holder IS NOT NULL",
        "CREATE INDEX by_group ON messages (topic, grp, id) WHERE state = 3",
        "CREATE INDEX by_state ON messages (state, id) WHERE state >= 4",
        "CREATE INDEX by_expires ON messages (expires) WHERE expires IS NOT NULL",
    )
    select_any = f"SELECT {_READ}, body FROM messages WHERE state = 0 ORDER BY place, id LIMIT ?"
    select_topic = (
        f"SELECT {_READ}, body FROM messages WHERE state = 0 AND topic = ? ORDER BY place, id LIMIT ?"
    )

    def insert(self, note: Note, body: bytes, state: State, due: float | None) -> None:
        self._insert_row(note, body, state, due if state is State.DELAYED else None)
        if state is State.READY:
            self._count(note.topic, 1)
        else:
            self.delayed += state is State.DELAYED
            self._save_totals()

    def _insert_row(self, note: Note, body: bytes, state: State, due: float | None) -> None:
        self.later(
            f"INSERT INTO messages ({_NOTE}, state, due, deliveries, attempts, body)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, 0, ?)",
            (*note, int(state), due, body),
        )

    def claim(self, topics: Sequence[int] | None, n: int, holder: int, until: float) -> list[Claim]:
        # One UPDATE with RETURNING and a subquery takes longer than these two statements.
        claims = []
        for id, topic, place, deliveries, attempts, key, grp, body in self._heads(topics, n):
            self.later(
                "UPDATE messages SET state = 1, due = ?, holder = ?, deliveries = deliveries + 1,"
                " attempts = attempts + 1 WHERE id = ?",
                (until, holder, id),
            )
            self._count(topic, -1)
            claims.append(
                Claim(id, topic, place, deliveries + 1, attempts + 1, holder, until, key, grp, body)
            )
        self.flush()
        self.claimed += len(claims)
        self._save_totals()
        return claims

    def settle(self, claims: Sequence[Claim], state: State | None) -> None:
        one = "WHERE id = ? AND state = 1 AND deliveries = ?"
        for claim in claims:
            fence = (claim.id, claim.deliveries)
            if state is None:
                self.later(f"DELETE FROM messages {one}", fence)
            else:
                self.later(
                    f"UPDATE messages SET state = ?, due = NULL, holder = NULL {one}", (int(state), *fence)
                )
        assert self.flush() == len(claims)
        if state is None:
            self._delete_bodies([claim.id for claim in claims])
        self._count_settled(len(claims), state)

    def _delete_bodies(self, ids: Sequence[int]) -> None:
        """Delete what lies in other tables of removed messages."""

    def nack(self, claim: Claim, due: float | None) -> None:
        if due is None:
            self._make_ready(claim.id, claim.topic)
        else:
            self.execute(
                "UPDATE messages SET state = 2, due = ?, holder = NULL WHERE id = ?", (due, claim.id)
            )
            self.delayed += 1
        self.claimed -= 1
        self._save_totals()

    def _make_ready(self, id: int, topic: int) -> None:
        self.execute("UPDATE messages SET state = 0, due = NULL, holder = NULL WHERE id = ?", (id,))
        self._count(topic, 1)

    def promote(self, now: float) -> int:
        rows = self.execute(
            "SELECT id, topic, state FROM messages WHERE due <= ? ORDER BY due LIMIT 256", (now,)
        ).fetchall()
        for id, topic, state in rows:
            self._make_ready(id, topic)
            self.claimed -= state == State.CLAIMED
            self.delayed -= state == State.DELAYED
        self._save_totals()
        return len(rows)

    def reclaim(self, holder: int) -> int:
        rows = self.execute("SELECT id, topic FROM messages WHERE holder = ?", (holder,)).fetchall()
        for id, topic in rows:
            self._make_ready(id, topic)
        self.claimed -= len(rows)
        self._save_totals()
        return len(rows)

    def unblock(self, topic: int, group: str) -> None:
        row = self.execute(
            "SELECT id FROM messages WHERE state = 3 AND topic = ? AND grp = ? ORDER BY id LIMIT 1",
            (topic, group),
        ).fetchone()
        if row is not None:
            self._make_ready(row[0], topic)
            self._save()

    def trim(self, n: int) -> None:
        # Both conditions, because SQLite does not conclude that a state of 4 is in an index of 4 and more.
        ids = self.execute(
            "SELECT id FROM messages WHERE state = 4 AND state >= 4 ORDER BY id LIMIT ?", (n,)
        ).fetchall()
        for row in ids:
            self.later("DELETE FROM messages WHERE id = ?", row)
        self.flush()
        self._delete_bodies([id for (id,) in ids])
        self.done -= len(ids)
        self._save_totals()

    def fill(self, state: State, first: int, last: int, body: bytes) -> None:
        due = "1e9 + i" if state in (State.DELAYED, State.CLAIMED) else "NULL"
        self._fill_rows(
            f"{_NOTE_FILL}, :state, {due}, :holder, 0, 0", first, last, body,
            state=int(state), holder=99 if state is State.CLAIMED else None,
        )  # fmt: skip
        if state is State.READY:
            self.execute("DELETE FROM counters")
            for topic, n in self.execute(
                "SELECT topic, count(*) FROM messages WHERE state = 0 GROUP BY topic"
            ).fetchall():
                self._ready[topic] = n
        self._save_totals()

    def _fill_rows(self, values: str, first: int, last: int, body: bytes, **named: Any) -> None:
        self._fill(
            f"INSERT INTO messages ({_NOTE}, state, due, holder, deliveries, attempts, body)"
            f" SELECT {values}, :body FROM n", first, last, body, **named,
        )  # fmt: skip


class NarrowState(StateColumn):
    """As :class:`StateColumn`, and the bodies lie in a table of their own."""

    name = "narrow state"
    tables: ClassVar[Sequence[str]] = (
        StateColumn.tables[0].replace(", body BLOB", ""),
        *StateColumn.tables[1:],
        "CREATE TABLE bodies (id INTEGER PRIMARY KEY, body BLOB)",
    )
    _from: ClassVar[str] = "FROM messages CROSS JOIN bodies USING (id) WHERE state = 0"
    select_any = f"SELECT {_READ}, body {_from} ORDER BY place, id LIMIT ?"
    select_topic = f"SELECT {_READ}, body {_from} AND topic = ? ORDER BY place, id LIMIT ?"

    def _insert_row(self, note: Note, body: bytes, state: State, due: float | None) -> None:
        self.later(
            f"INSERT INTO messages ({_NOTE}, state, due, deliveries, attempts)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, 0)",
            (*note, int(state), due),
        )
        self.later("INSERT INTO bodies VALUES (?, ?)", (note.id, body))

    def _delete_bodies(self, ids: Sequence[int]) -> None:
        for id in ids:
            self.later("DELETE FROM bodies WHERE id = ?", (id,))
        self.flush()

    def _fill_rows(self, values: str, first: int, last: int, body: bytes, **named: Any) -> None:
        self._fill(
            f"INSERT INTO messages ({_NOTE}, state, due, holder, deliveries, attempts)"
            f" SELECT {values} FROM n", first, last, body, **named,
        )  # fmt: skip
        self._fill("INSERT INTO bodies SELECT i, :body FROM n", first, last, body)
