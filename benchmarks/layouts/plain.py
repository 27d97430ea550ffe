"""Layouts of a plain queue that acks: no topics, no priorities, first in, first out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from benchmarks.layouts.model import Claim, Message, State, Store

__all__ = ["PlainDeferred", "PlainSmallTree", "PlainTwoTables"]

_TOTALS, _RETURNED = -3, -4
_REMOVAL = 64
_SMALL_BODY = 512
_ROW = "id, priority, key, time, attempts, crc, payload"
_COLUMNS = "priority, key BLOB, time REAL, attempts INTEGER, crc INTEGER, payload BLOB"
_HELD = {State.DELAYED: 0, State.DONE: -1, State.DEAD: -3}


class PlainTwoTables(Store):
    """The tables and statements of persistcoll's ack queue, from which ``statements`` makes its own."""

    name = "plain, two tables"
    tables = (
        f"CREATE TABLE ready (id INTEGER PRIMARY KEY, {_COLUMNS})",
        f"""CREATE TABLE held (
            holder INTEGER NOT NULL, id INTEGER NOT NULL, until REAL, {_COLUMNS}, PRIMARY KEY (holder, id)
        ) WITHOUT ROWID""",
        "CREATE INDEX due ON held (until) WHERE until IS NOT NULL",
        "CREATE TABLE counters (number INTEGER PRIMARY KEY, last_id, absent, claimed, delayed, done, dead)",
    )

    def create(self) -> None:
        super().create()
        self.execute("INSERT INTO counters VALUES (1, 0, 0, 0, 0, 0, 0)")
        self._ready = self._claimed = 0

    def _save(self) -> None:
        self.execute(
            "UPDATE counters SET last_id = ?, absent = ?, claimed = ? WHERE number = 1",
            (self.last_id, self.last_id - self._ready, self._claimed),
        )

    def put(self, messages: Iterable[Message], now: float) -> list[int | None]:
        rows = [(id, 0, None, now, 0, id, m.body) for id, m in enumerate(messages, self.last_id + 1)]
        self.executemany(f"INSERT INTO ready ({_ROW}) VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
        self.last_id += len(rows)
        self._ready += len(rows)
        return [id for id, *_ in rows]

    def claim(self, topics: Sequence[int] | None, n: int, holder: int, until: float) -> list[Claim]:
        rows = self.execute(f"SELECT {_ROW} FROM ready ORDER BY id LIMIT ?", (n,)).fetchall()
        copy = (
            "INSERT INTO held (holder, id, until, priority, key, time, attempts, crc, payload)"
            " SELECT ?, id, NULL, priority, key, time, attempts + 1, crc, payload FROM ready"
        )
        if n == 1:
            self.execute(f"{copy} WHERE id = ?", (holder, rows[0][0]))
            self.execute("DELETE FROM ready WHERE id = ?", (rows[0][0],))
        else:
            self.execute(f"{copy} ORDER BY id LIMIT ?", (holder, n))
            self.execute(
                "DELETE FROM ready WHERE id <= (SELECT id FROM ready ORDER BY id LIMIT 1 OFFSET ? - 1)", (n,)
            )
        self._ready -= len(rows)
        self._claimed += len(rows)
        self._save()
        return [
            Claim(id, 0, 0, attempts + 1, attempts + 1, holder, until, None, None, payload)
            for id, _, _, _, attempts, _, payload in rows
        ]

    def ack(self, claims: Sequence[Claim], keep: bool = False) -> None:
        text = "DELETE FROM held WHERE holder = ? AND id = ? AND attempts = ?"
        if keep:
            text = "UPDATE held SET holder = -1, until = NULL WHERE holder = ? AND id = ? AND attempts = ?"
        self.executemany(text, [(claim.holder, claim.id, claim.attempts) for claim in claims])
        self._claimed -= len(claims)
        self._save()

    def release(self, claim: Claim) -> None:
        """End a claim so that the message is ready again in its old place."""
        one = (claim.holder, claim.id)
        self.execute(f"INSERT INTO ready ({_ROW}) SELECT {_ROW} FROM held WHERE holder = ? AND id = ?", one)
        self.execute("DELETE FROM held WHERE holder = ? AND id = ?", one)
        self._ready += 1
        self._claimed -= 1
        self._save()

    def fill(self, state: State, first: int, last: int, body: bytes) -> None:
        values = "i, 0, NULL, 0.0, 0, i, :body"
        if state is State.READY:
            self._fill(f"INSERT INTO ready ({_ROW}) SELECT {values} FROM n", first, last, body)
            self._ready += last - first + 1
        else:
            until = "1e9 + i" if state is State.DELAYED else "NULL"
            self._fill(
                f"INSERT INTO held ({_ROW}, holder, until) SELECT {values}, :holder, {until} FROM n",
                first,
                last,
                body,
                holder=_HELD.get(state, 99),
            )
        self._save()


class PlainSmallTree(Store):
    """A claim is a row beside the counters, and the counters say up to which id all was claimed before.

    The rows of ``small`` are a claim (holder, id; deliveries), what was released (``_RETURNED``, id;
    deliveries), and the totals: the highest id ever claimed, last id, absent, claimed.
    """

    name = "plain, small tree"
    tables: ClassVar[Sequence[str]] = (
        "CREATE TABLE messages (id INTEGER PRIMARY KEY, key BLOB, time REAL, crc INTEGER, payload BLOB)",
        "CREATE TABLE small (part INTEGER, id INTEGER, a, b, c, d, PRIMARY KEY (part, id)) WITHOUT ROWID",
        "CREATE TABLE waiting (due REAL, id INTEGER, attempts, PRIMARY KEY (due, id)) WITHOUT ROWID",
        "CREATE TABLE finished (state INTEGER, id INTEGER, PRIMARY KEY (state, id)) WITHOUT ROWID",
    )

    def create(self) -> None:
        super().create()
        self.execute("INSERT INTO small (part, id, a, b, c, d) VALUES (?, 0, 0, 0, 0, 0)", (_TOTALS,))
        self._ready = self._claimed = self._highest = self._returned = 0

    def _save(self) -> None:
        self.execute(
            "UPDATE small SET a = ?, b = ?, c = ?, d = ? WHERE part = ? AND id = 0",
            (self._highest, self.last_id, self.last_id - self._ready, self._claimed, _TOTALS),
        )

    def put(self, messages: Iterable[Message], now: float) -> list[int | None]:
        rows = [(id, None, now, id, m.body) for id, m in enumerate(messages, self.last_id + 1)]
        self.executemany("INSERT INTO messages VALUES (?, ?, ?, ?, ?)", rows)
        self.last_id += len(rows)
        self._ready += len(rows)
        return [id for id, *_ in rows]

    def claim(self, topics: Sequence[int] | None, n: int, holder: int, until: float) -> list[Claim]:
        rows: list[Any] = []
        if self._returned:
            rows = self.execute(
                "SELECT messages.id, small.a, payload FROM small CROSS JOIN messages USING (id)"
                " WHERE part = ? ORDER BY small.id LIMIT ?",
                (_RETURNED, n),
            ).fetchall()
            self.executemany(
                "DELETE FROM small WHERE part = ? AND id = ?", [(_RETURNED, id) for id, *_ in rows]
            )
            self._returned -= len(rows)
        if len(rows) < n:
            rows += self.execute(
                "SELECT id, 0, payload FROM messages WHERE id > ? ORDER BY id LIMIT ?",
                (self._highest, n - len(rows)),
            ).fetchall()
            self._highest = max(self._highest, rows[-1][0])
        self.executemany(
            "INSERT INTO small (part, id, a) VALUES (?, ?, ?)",
            [(holder, id, deliveries + 1) for id, deliveries, _ in rows],
        )
        self._ready -= len(rows)
        self._claimed += len(rows)
        self._save()
        return [
            Claim(id, 0, 0, deliveries + 1, deliveries + 1, holder, until, None, None, payload)
            for id, deliveries, payload in rows
        ]

    def ack(self, claims: Sequence[Claim], keep: bool = False) -> None:
        self.executemany(
            "DELETE FROM small WHERE part = ? AND id = ? AND a = ?",
            [(claim.holder, claim.id, claim.deliveries) for claim in claims],
        )
        if keep:
            self.executemany("INSERT INTO finished VALUES (4, ?)", [(claim.id,) for claim in claims])
        else:
            self.executemany("DELETE FROM messages WHERE id = ?", [(claim.id,) for claim in claims])
        self._claimed -= len(claims)
        self._save()

    def release(self, claim: Claim) -> None:
        """End a claim so that the message is ready again in its old place."""
        self.execute("DELETE FROM small WHERE part = ? AND id = ?", (claim.holder, claim.id))
        self.execute(
            "INSERT INTO small (part, id, a) VALUES (?, ?, ?)", (_RETURNED, claim.id, claim.deliveries)
        )
        self._returned += 1
        self._ready += 1
        self._claimed -= 1
        self._save()

    def fill(self, state: State, first: int, last: int, body: bytes) -> None:
        self._fill("INSERT INTO messages SELECT i, NULL, 0.0, i, :body FROM n", first, last, body)
        if state is State.READY:
            self._ready += last - first + 1
            self._save()
            return
        texts = {
            State.DELAYED: "waiting SELECT 1e9 + i, i, 1",
            State.CLAIMED: "small SELECT 99, i, 1, NULL, NULL, NULL",
            State.DONE: "finished SELECT 4, i",
            State.DEAD: "finished SELECT 6, i",
        }
        self._fill(f"INSERT INTO {texts[state]} FROM n", first, last, body)
        if self._ready:
            # What is ready already lies below the highest claimed id now, as after a release.
            self.execute(
                "INSERT INTO small (part, id, a) SELECT ?, id, 0 FROM messages WHERE id > ? AND id < ?",
                (_RETURNED, self._highest, first),
            )
            self._returned = self._ready
        self._highest = last
        self._save()


class PlainDeferred(PlainSmallTree):
    """As :class:`PlainSmallTree`, and an ack marks the claim, so that messages are removed many at a time."""

    name = "plain, deferred"

    def create(self) -> None:
        super().create()
        self._acked: list[tuple[int, int]] = []

    def ack(self, claims: Sequence[Claim], keep: bool = False) -> None:
        if keep or len(claims[0].body) > _SMALL_BODY:
            super().ack(claims, keep)
            return
        places = [(claim.holder, claim.id) for claim in claims]
        self.executemany(
            "UPDATE small SET b = 1 WHERE part = ? AND id = ? AND a = ? AND b IS NULL",
            [(*place, claim.deliveries) for place, claim in zip(places, claims, strict=True)],
        )
        self._acked += places
        self._claimed -= len(claims)
        if len(self._acked) >= _REMOVAL:
            acked, self._acked = self._acked, []
            self.executemany("DELETE FROM messages WHERE id = ?", sorted((id,) for _, id in acked))
            self.executemany("DELETE FROM small WHERE part = ? AND id = ?", acked)
        self._save()
