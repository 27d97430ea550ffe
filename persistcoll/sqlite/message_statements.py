"""Make SQLite's statements for the messages of one queue: texts with ``?`` for parameters.

A message is one row from its put to its end, and its state is a column. So each step is one change of one
row. The ready rows have an index for each order of delivery; what happens by itself has an index by its time;
no claim meets what is delayed, blocked, claimed, done or dead.
"""

from __future__ import annotations

from typing import NamedTuple

from persistcoll.engine.records import State

__all__ = [
    "BLOCKED",
    "CLAIMED",
    "DEAD",
    "DELAYED",
    "DONE",
    "READY",
    "STATES",
    "MessageStatements",
    "message_statements",
]

READY, CLAIMED, DELAYED, BLOCKED, DONE, DEAD = range(6)
"""The numbers of the states in the database."""
STATES = {
    State.READY: READY,
    State.CLAIMED: CLAIMED,
    State.DELAYED: DELAYED,
    State.BLOCKED: BLOCKED,
    State.DONE: DONE,
    State.DEAD: DEAD,
}


class MessageStatements(NamedTuple):
    """The statements of one message queue.

    Each text is described by its parameters, and after an arrow by its result or effect. A *row* is: id,
    state, topic, place, created, attempts, deliveries, until, finished, key, grp, headers, error, options,
    ttl, expires, token, delivered, crc, payload. The *place* is the negative priority, so that every order is
    ascending.
    """

    create: tuple[str, ...]
    """Make the tables and their indexes."""
    load: str
    """-> last_id, absent, claimed, delayed, done, expired, dead, finished, highest id, next due time."""
    save: str
    """last_id, absent, claimed, delayed, done, expired, dead, finished -> stored."""
    insert: str
    """a row without token and delivered, and its due time -> stored."""
    select: str
    """id -> its row."""
    select_claimed: str
    """id, token -> its row, without headers and payload, if that is its claim."""
    select_ready: str
    """n -> the next n ready rows of all topics."""
    select_ready_of: str
    """topic, n -> the next n ready rows of a topic."""
    claim: str
    """holder, token, until, due, delivered, id -> claimed."""
    deliver: str
    """id -> delivered."""
    extend: str
    """until, due, id -> the claim ends then."""
    settle: str
    """state, until, due, finished, attempts, error, id -> in that state, without a claim."""
    redrive: str
    """state, due, expires, id -> in that state, as if it had never been delivered."""
    delete: str
    """id -> deleted."""
    select_due: str
    """time, n -> the first n rows of which something is due by then, other than what ``promote`` does."""
    promote: str
    """time, n -> makes the first n delayed rows without a ttl ready that are due by then; gives topics."""
    select_next_due: str
    """-> the earliest time at which something is due, and the earliest at which ``promote`` has a row."""
    select_of_holder: str
    """holder -> the rows that it has claimed."""
    select_blocked: str
    """topic, grp -> the blocked row with the lowest id."""
    select_oldest: str
    """state, n -> the rows in that final state with the lowest ids."""
    select_oldest_ready: str
    """-> when the ready message with the lowest id was put."""
    select_oldest_ready_of: str
    """topic -> when the ready message of that topic with the lowest id was put."""
    select_in_state: str
    """state -> the rows in that state."""
    select_in_state_of: str
    """state, topic -> the rows of a topic in that state."""
    enter_group: str
    """topic, grp -> counts one unfinished message more; gives the count."""
    leave_group: str
    """topic, grp -> counts one unfinished message less; gives the count."""
    delete_group: str
    """topic, grp -> deleted."""
    select_key: str
    """key -> id, until, unfinished."""
    save_key: str
    """key, id, until, unfinished -> stored in place of what was there."""
    delete_key: str
    """key -> deleted."""
    delete_keys_over: str
    """time -> deletes the keys of finished messages whose windows are over."""
    select_topic: str
    """topic -> its row: counts by state, then paused, interval, burst, next, locker, lock, lock_until."""
    save_topic: str
    """topic, its row, gated -> stored in place of what was there."""
    count_topic: str
    """the counts by state, topic -> stored in the row of a topic that has one."""
    delete_topic: str
    """topic -> deleted."""
    select_topics: str
    """-> topic and the number of its ready rows, for each topic of which a row is stored."""
    select_gated: str
    """-> the topics that are paused, limited or locked."""


_ROW = (
    "id, state, topic, place, created, attempts, deliveries, until, finished, key, grp, headers, error,"
    " options, ttl, expires, token, delivered, crc, payload"
)
# A delayed message that may expire, too, is among the others.
_PROMOTED = "state = 2 AND expires IS NULL"
_DUE = "due IS NOT NULL AND (state != 2 OR expires IS NOT NULL)"
_COUNTS = "ready, claimed, delayed, blocked, done, dead"
_GATE = "paused, interval, burst, next, locker, lock, lock_until"


def message_statements(number: int) -> MessageStatements:
    """Return the statements of the message queue with this number."""
    messages, topics, keys, groups = (f"{name}_{number}" for name in ("messages", "topics", "keys", "groups"))
    select = f"SELECT {_ROW} FROM {messages}"
    inserted = _ROW.replace(" token, delivered,", "") + ", due"
    due = f"FROM {messages} INDEXED BY due_{number} WHERE {_DUE}"
    delayed = f"FROM {messages} INDEXED BY delayed_{number} WHERE {_PROMOTED}"
    return MessageStatements(
        create=(
            f"""CREATE TABLE {messages} (
                id INTEGER PRIMARY KEY, state INTEGER, topic TEXT, place REAL, created REAL,
                attempts INTEGER, deliveries INTEGER, until REAL, due REAL, finished REAL, key BLOB, grp TEXT,
                headers BLOB, error TEXT, options TEXT, ttl REAL, expires REAL, holder INTEGER, token INTEGER,
                delivered INTEGER, crc INTEGER, payload BLOB
            )""",
            f"CREATE INDEX ready_{number} ON {messages} (place, id) WHERE state = 0",
            f"CREATE INDEX ready_of_{number} ON {messages} (topic, place, id) WHERE state = 0",
            f"CREATE INDEX due_{number} ON {messages} (due) WHERE {_DUE}",
            f"CREATE INDEX delayed_{number} ON {messages} (due) WHERE {_PROMOTED}",
            f"CREATE INDEX blocked_{number} ON {messages} (topic, grp, id) WHERE state = 3",
            f"CREATE INDEX claimed_{number} ON {messages} (holder) WHERE state = 1",
            f"CREATE INDEX finished_{number} ON {messages} (state, id) WHERE state >= 4",
            f"""CREATE TABLE {topics} (
                topic TEXT PRIMARY KEY, ready INTEGER, claimed INTEGER, delayed INTEGER, blocked INTEGER,
                done INTEGER, dead INTEGER, paused INTEGER, interval REAL, burst INTEGER, next REAL,
                locker INTEGER, lock INTEGER, lock_until REAL, gated INTEGER
            ) WITHOUT ROWID""",
            f"CREATE INDEX gated_{number} ON {topics} (topic) WHERE gated = 1",
            f"""CREATE TABLE {groups} (
                topic TEXT, grp TEXT, n INTEGER, PRIMARY KEY (topic, grp)
            ) WITHOUT ROWID""",
            f"""CREATE TABLE {keys} (
                key BLOB PRIMARY KEY, id INTEGER, until REAL, unfinished INTEGER
            ) WITHOUT ROWID""",
            f"CREATE INDEX over_{number} ON {keys} (until) WHERE unfinished = 0",
        ),
        load="SELECT last_id, absent, claimed, delayed, done, failed, dead, gone,"
        f" (SELECT max(id) FROM {messages}),"
        f" (SELECT min(due) FROM (SELECT min(due) AS due {due} UNION ALL SELECT min(due) {delayed}))"
        f" FROM counters WHERE number = {number}",
        save="UPDATE counters SET last_id = ?, absent = ?, claimed = ?, delayed = ?, done = ?, failed = ?,"
        f" dead = ?, gone = ? WHERE number = {number}",
        insert=f"INSERT INTO {messages} ({inserted}) VALUES ({', '.join('?' * 19)})",
        select=f"{select} WHERE id = ?",
        select_claimed=f"SELECT {_ROW.replace('headers', 'NULL').replace('payload', 'NULL')} FROM {messages}"
        " WHERE id = ? AND token = ? AND state = 1",
        select_ready=f"{select} WHERE state = 0 ORDER BY place, id LIMIT ?",
        select_ready_of=f"{select} WHERE state = 0 AND topic = ? ORDER BY place, id LIMIT ?",
        claim=f"UPDATE {messages} SET state = 1, holder = ?, token = ?, until = ?, due = ?, delivered = ?,"
        " attempts = attempts + 1, deliveries = deliveries + 1 WHERE id = ?",
        deliver=f"UPDATE {messages} SET delivered = 1 WHERE id = ?",
        extend=f"UPDATE {messages} SET until = ?, due = ? WHERE id = ?",
        settle=f"UPDATE {messages} SET state = ?, until = ?, due = ?, finished = ?, attempts = ?, error = ?,"
        " holder = NULL, token = NULL, delivered = NULL WHERE id = ?",
        redrive=f"UPDATE {messages} SET state = ?, due = ?, expires = ?, attempts = 0, finished = NULL"
        " WHERE id = ?",
        delete=f"DELETE FROM {messages} WHERE id = ?",
        select_due=f"SELECT {_ROW} {due} AND due <= ? ORDER BY due, id LIMIT ?",
        promote=f"UPDATE {messages} SET state = 0, until = NULL, due = NULL WHERE id IN"
        f" (SELECT id {delayed} AND due <= ? ORDER BY due, id LIMIT ?) RETURNING topic",
        select_next_due=f"SELECT (SELECT min(due) {due}), (SELECT min(due) {delayed})",
        select_of_holder=f"{select} WHERE state = 1 AND holder = ?",
        select_blocked=f"{select} WHERE state = 3 AND topic = ? AND grp = ? ORDER BY id LIMIT 1",
        select_oldest=f"{select} WHERE state = ? AND state >= 4 ORDER BY id LIMIT ?",
        select_oldest_ready=f"SELECT created FROM {messages} WHERE state = 0 ORDER BY id LIMIT 1",
        select_oldest_ready_of=f"SELECT created FROM {messages} WHERE state = 0 AND topic = ?"
        " ORDER BY id LIMIT 1",
        select_in_state=f"{select} WHERE state = ?",
        select_in_state_of=f"{select} WHERE state = ? AND topic = ?",
        enter_group=f"INSERT INTO {groups} (topic, grp, n) VALUES (?, ?, 1)"
        " ON CONFLICT (topic, grp) DO UPDATE SET n = n + 1 RETURNING n",
        leave_group=f"UPDATE {groups} SET n = n - 1 WHERE topic = ? AND grp = ? RETURNING n",
        delete_group=f"DELETE FROM {groups} WHERE topic = ? AND grp = ?",
        select_key=f"SELECT id, until, unfinished FROM {keys} WHERE key = ?",
        save_key=f"INSERT OR REPLACE INTO {keys} (key, id, until, unfinished) VALUES (?, ?, ?, ?)",
        delete_key=f"DELETE FROM {keys} WHERE key = ?",
        delete_keys_over=f"DELETE FROM {keys} WHERE unfinished = 0 AND until <= ?",
        select_topic=f"SELECT {_COUNTS}, {_GATE} FROM {topics} WHERE topic = ?",
        save_topic=f"INSERT OR REPLACE INTO {topics} (topic, {_COUNTS}, {_GATE}, gated)"
        f" VALUES ({', '.join('?' * 15)})",
        count_topic=f"UPDATE {topics} SET ready = ?, claimed = ?, delayed = ?, blocked = ?, done = ?,"
        " dead = ? WHERE topic = ?",
        delete_topic=f"DELETE FROM {topics} WHERE topic = ?",
        select_topics=f"SELECT topic, ready FROM {topics}"
        " WHERE ready + claimed + delayed + blocked + done + dead > 0",
        select_gated=f"SELECT topic FROM {topics} WHERE gated = 1",
    )
