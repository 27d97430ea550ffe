"""Make SQLite's statements for the messages of one queue: texts with ``?`` for parameters.

A message is one row from its put to its end, and its state is a column. So each step is one change of one
row. The ready rows have an index for each order of delivery; what happens by itself has an index by its time;
no claim meets what is delayed, blocked, claimed, done or dead.

A statement that needs an index names it. Otherwise SQLite might go through the table, because another program
had it analyzed while it held other rows than now.
"""

from __future__ import annotations

from collections.abc import Mapping
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
    "PageStatements",
    "RepairStatements",
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


class PageStatements(NamedTuple):
    """How to read messages in one state page by page, while those of each page are removed.

    Before its parameters each text has the topic, if it is of one topic. A page is n bare rows that were put
    before a time (``NULL``: at any time), and after each row its place in the index.
    """

    first: str
    """time, time, n -> the first page."""
    onward: str
    """time, time, a place in the index, n -> the first page from that place on."""


class RepairStatements(NamedTuple):
    """How to make anew what follows from the messages: indexes, counts, heads, keys. It reads all of them."""

    reindex: tuple[str, ...]
    """-> makes the indexes anew."""
    promote_heads: str
    """time, time, time -> makes the first blocked message of each group without a head its head."""
    recount: tuple[str, ...]
    """-> makes groups, topics and counters anew; the counters have the last id already."""
    state: str
    """id -> state and topic."""
    purge: str
    """four states, time, time, topic, topic -> removes messages as a purge does, but no groups and keys."""
    finish_keys: str
    """-> makes the keys of all messages that are not unfinished keys of finished ones."""


class MessageStatements(NamedTuple):
    """The statements of one message queue.

    Each text is described by its parameters, and after an arrow by its result or effect. A *row* is: id,
    state, topic, place, created, attempts, deliveries, until, finished, key, grp, headers, error, options,
    ttl, expires, token, delivered, meta_crc, crc, payload. A *bare row* has ``NULL`` for headers and payload,
    and reads neither. The *place* is the negative priority, so that every order is ascending.

    What *ends together* is a slice of messages of which the statement changes those that need no step of
    their own. The others of the slice stay, and are then the first ones of its index.
    """

    create: tuple[str, ...]
    """Make the tables and their indexes."""
    upgrade: tuple[str, ...]
    """Make tables of version 1 those of this version."""
    load: str
    """-> last_id, absent, claimed, delayed, done, expired, dead, finished, highest id, next due time."""
    save: str
    """last_id, absent, claimed, delayed, done, expired, dead, finished -> stored."""
    insert: str
    """a row without token and delivered, and its due time -> stored."""
    select: str
    """id -> its row."""
    select_bare: str
    """id -> its bare row."""
    select_claimed: str
    """id, token, time -> its bare row, if that is its claim, which has not ended by then."""
    select_ready: str
    """n -> the next n ready rows of all topics."""
    select_ready_of: str
    """topic, n -> the next n ready rows of a topic."""
    claim: str
    """holder, token, until, due, delivered, id -> claimed."""
    deliver: str
    """id, token, time -> delivered, if that is its claim, which has not ended by then."""
    extend: str
    """until, due, id -> the claim ends then."""
    settle: str
    """state, until, due, finished, attempts, error, id -> in that state, without a claim."""
    redrive: str
    """state, due, expires, id -> in that state, as if it had never been delivered."""
    delete: str
    """id -> deleted."""
    select_due: str
    """time, n -> the first n bare rows of which something other than what ``promote`` does is due by then."""
    end_leases: str
    """time, error of a lease, error, time, n, delivered, most attempts, time -> ends together the claims of
    the first n rows that are due by that time, if they have attempts left and come back; gives topics, ids,
    attempts, errors, and when something is due again."""
    end_ttls: str
    """time, n, time -> removes together, of the first n rows that are due by that time, those of which the
    ttl is over, and that have neither a key nor a group; gives topics, ids and states."""
    end_delays: str
    """time, n, time -> makes ready together, of the first n rows that are due by that time, the delayed ones
    of which the ttl is not over; gives topics."""
    promote: str
    """time, n -> makes the first n delayed rows without a ttl ready that are due by then; gives topics."""
    select_next_due: str
    """-> the earliest time at which something is due, and the earliest at which ``promote`` has a row."""
    select_of_holder: str
    """holder, n -> n bare rows that it has claimed."""
    end_of_holder: str
    """time, error of a lease, error, holder, n, delivered, most attempts, time -> as ``end_leases``, of n
    rows that the holder has claimed."""
    select_blocked: str
    """topic, grp -> the bare row of the blocked one with the lowest id."""
    delete_oldest: Mapping[State, str]
    """n -> removes the rows in that final state with the lowest ids; gives topics."""
    select_oldest_ready: str
    """-> when the ready message with the lowest id was put."""
    select_oldest_ready_of: str
    """topic -> when the ready message of that topic with the lowest id was put."""
    pages: Mapping[State, tuple[PageStatements, ...]]
    """How to read the ready, delayed, blocked or dead messages."""
    pages_of: Mapping[State, tuple[PageStatements, ...]]
    """The same, of a topic."""
    select_dead: str
    """id, topic, topic, n -> the first n bare rows of dead messages (of a topic) with higher ids."""
    scan: str
    """id, id, six states, topic, topic, n -> the first n rows (of a topic) from above the first id up to the
    second one that are in none of these states."""
    scan_in_state: Mapping[State, str]
    """id, id, topic, topic, n -> the same of the rows in that final state."""
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
    delete_keys_of: str
    """id -> deletes the keys of a message, whatever they are."""
    delete_keys_over: str
    """time, n -> deletes n keys of finished messages whose windows are over."""
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
    repair: RepairStatements
    """How to make anew what follows from the messages."""


_ROW = (
    "id, state, topic, place, created, attempts, deliveries, until, finished, key, grp, headers, error,"
    " options, ttl, expires, token, delivered, meta_crc, crc, payload"
)
# A row that waits for the end of its delay alone is in one of two indexes, and all else that is due in the
# other one. The states that nothing waits for have no index over the time.
_INDEXES = {
    "ready": ("place, id", "state = 0"),
    "ready_of": ("topic, place, id", "state = 0"),
    "due": ("due", "due IS NOT NULL AND (state != 2 OR expires IS NOT NULL)"),
    "delayed": ("due", "state = 2 AND expires IS NULL"),
    "blocked": ("topic, grp, id", "state = 3"),
    "claimed": ("holder", "state = 1"),
    "done": ("id", "state = 4"),
    "dead": ("id", "state = 5"),
}
_COUNTS = "ready, claimed, delayed, blocked, done, dead"
_GATE = "paused, interval, burst, next, locker, lock, lock_until"


def message_statements(number: int, has_meta_crc: bool = True) -> MessageStatements:
    """Return the statements of the message queue with this number.

    :param has_meta_crc: whether its table has the column; that of version 1, which is only read, does not.
    """
    messages, topics, keys, groups = (f"{name}_{number}" for name in ("messages", "topics", "keys", "groups"))
    part = {
        name: f"FROM {messages} INDEXED BY {name}_{number} WHERE {condition}"
        for name, (_, condition) in _INDEXES.items()
    }
    select = f"SELECT {_ROW if has_meta_crc else _ROW.replace('meta_crc', 'NULL')}"
    select_bare = select.replace("headers", "NULL").replace("payload", "NULL")
    due = f"{part['due']} AND due <= ? ORDER BY due, id LIMIT ?"
    held = f"{part['claimed']} AND holder = ? LIMIT ?"
    inserted = _ROW.replace(" token, delivered,", "") + ", due"
    of_topic = "(? IS NULL OR topic = ?)"

    def page(name: str, place: str, more: str = "") -> PageStatements:
        columns = place.split(", ")
        found = f"{select_bare}, {place} {part[name]}{more} AND (? IS NULL OR created < ?)"
        onward = f"({place}) >= ({', '.join('?' * len(columns))})"
        ordered = f"ORDER BY {place}{'' if place == 'id' else ', id'} LIMIT ?"
        return PageStatements(f"{found} {ordered}", f"{found} AND {onward} {ordered}")

    of_claim = "WHERE id = ? AND token = ? AND state = 1 AND (until IS NULL OR until > ?)"
    return MessageStatements(
        create=(
            f"""CREATE TABLE {messages} (
                id INTEGER PRIMARY KEY, state INTEGER, topic TEXT, place REAL, created REAL,
                attempts INTEGER, deliveries INTEGER, until REAL, due REAL, finished REAL, key BLOB, grp TEXT,
                headers BLOB, error TEXT, options TEXT, ttl REAL, expires REAL, holder INTEGER, token INTEGER,
                delivered INTEGER, meta_crc INTEGER, crc INTEGER, payload BLOB
            )""",
            *(
                f"CREATE INDEX {name}_{number} ON {messages} ({columns}) WHERE {condition}"
                for name, (columns, condition) in _INDEXES.items()
            ),
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
        upgrade=(f"ALTER TABLE {messages} ADD COLUMN meta_crc INTEGER",),
        load="SELECT last_id, absent, claimed, delayed, done, failed, dead, gone,"
        f" (SELECT max(id) FROM {messages}),"
        f" (SELECT min(due) FROM (SELECT min(due) AS due {part['due']}"
        f" UNION ALL SELECT min(due) {part['delayed']}))"
        f" FROM counters WHERE number = {number}",
        save="UPDATE counters SET last_id = ?, absent = ?, claimed = ?, delayed = ?, done = ?, failed = ?,"
        f" dead = ?, gone = ? WHERE number = {number}",
        insert=f"INSERT INTO {messages} ({inserted}) VALUES ({', '.join('?' * 20)})",
        select=f"{select} FROM {messages} WHERE id = ?",
        select_bare=f"{select_bare} FROM {messages} WHERE id = ?",
        select_claimed=f"{select_bare} FROM {messages} {of_claim}",
        select_ready=f"{select} {part['ready']} ORDER BY place, id LIMIT ?",
        select_ready_of=f"{select} {part['ready_of']} AND topic = ? ORDER BY place, id LIMIT ?",
        claim=f"UPDATE {messages} SET state = 1, holder = ?, token = ?, until = ?, due = ?, delivered = ?,"
        " attempts = attempts + 1, deliveries = deliveries + 1 WHERE id = ?",
        deliver=f"UPDATE {messages} SET delivered = 1 {of_claim}",
        extend=f"UPDATE {messages} SET until = ?, due = ? WHERE id = ?",
        settle=f"UPDATE {messages} SET state = ?, until = ?, due = ?, finished = ?, attempts = ?, error = ?,"
        " holder = NULL, token = NULL, delivered = NULL WHERE id = ?",
        redrive=f"UPDATE {messages} SET state = ?, due = ?, expires = ?, attempts = 0, finished = NULL"
        " WHERE id = ?",
        delete=f"DELETE FROM {messages} WHERE id = ?",
        select_due=f"{select_bare} {due}",
        end_leases=_end_claims(messages, due),
        end_ttls=f"DELETE FROM {messages} WHERE id IN (SELECT id {due}) AND state IN (0, 2) AND expires <= ?"
        " AND key IS NULL AND grp IS NULL RETURNING topic, id, state",
        end_delays=f"UPDATE {messages} SET state = 0, until = NULL, due = expires"
        f" WHERE id IN (SELECT id {due}) AND state = 2 AND expires > ? RETURNING topic",
        promote=f"UPDATE {messages} SET state = 0, until = NULL, due = NULL WHERE id IN"
        f" (SELECT id {part['delayed']} AND due <= ? ORDER BY due, id LIMIT ?) RETURNING topic",
        select_next_due=f"SELECT (SELECT min(due) {part['due']}), (SELECT min(due) {part['delayed']})",
        select_of_holder=f"{select_bare} {held}",
        end_of_holder=_end_claims(messages, held),
        select_blocked=f"{select_bare} {part['blocked']} AND topic = ? AND grp = ? ORDER BY id LIMIT 1",
        delete_oldest={
            state: f"DELETE FROM {messages}"
            f" WHERE id IN (SELECT id {part[state.value]} ORDER BY id LIMIT ?) RETURNING topic"
            for state in (State.DONE, State.DEAD)
        },
        select_oldest_ready=_oldest(messages, part["ready"], of_topic=False),
        select_oldest_ready_of=_oldest(messages, part["ready_of"], of_topic=True),
        pages={
            State.READY: (page("ready", "place"),),
            State.DELAYED: (page("delayed", "due"), page("due", "due", " AND state = 2")),
            State.BLOCKED: (page("blocked", "topic, grp"),),
            State.DEAD: (page("dead", "id"),),
        },
        pages_of={
            State.READY: (page("ready_of", "place", " AND topic = ?"),),
            State.DELAYED: (
                page("delayed", "due", " AND topic = ?"),
                page("due", "due", " AND topic = ? AND state = 2"),
            ),
            State.BLOCKED: (page("blocked", "grp", " AND topic = ?"),),
            State.DEAD: (page("dead", "id", " AND topic = ?"),),
        },
        select_dead=f"{select_bare} {part['dead']} AND id > ? AND {of_topic} ORDER BY id LIMIT ?",
        scan=f"{select} FROM {messages} WHERE id > ? AND id <= ? AND state NOT IN (?, ?, ?, ?, ?, ?)"
        f" AND {of_topic} ORDER BY id LIMIT ?",
        scan_in_state={
            state: f"{select} {part[state.value]} AND id > ? AND id <= ? AND {of_topic} ORDER BY id LIMIT ?"
            for state in (State.DONE, State.DEAD)
        },
        enter_group=f"INSERT INTO {groups} (topic, grp, n) VALUES (?, ?, 1)"
        " ON CONFLICT (topic, grp) DO UPDATE SET n = n + 1 RETURNING n",
        leave_group=f"UPDATE {groups} SET n = n - 1 WHERE topic = ? AND grp = ? RETURNING n",
        delete_group=f"DELETE FROM {groups} WHERE topic = ? AND grp = ?",
        select_key=f"SELECT id, until, unfinished FROM {keys} WHERE key = ?",
        save_key=f"INSERT OR REPLACE INTO {keys} (key, id, until, unfinished) VALUES (?, ?, ?, ?)",
        delete_key=f"DELETE FROM {keys} WHERE key = ?",
        delete_keys_of=f"DELETE FROM {keys} WHERE id = ?",
        delete_keys_over=f"DELETE FROM {keys} WHERE key IN (SELECT key FROM {keys} INDEXED BY over_{number}"
        " WHERE unfinished = 0 AND until <= ? LIMIT ?)",
        select_topic=f"SELECT {_COUNTS}, {_GATE} FROM {topics} WHERE topic = ?",
        save_topic=f"INSERT OR REPLACE INTO {topics} (topic, {_COUNTS}, {_GATE}, gated)"
        f" VALUES ({', '.join('?' * 15)})",
        count_topic=f"UPDATE {topics} SET ready = ?, claimed = ?, delayed = ?, blocked = ?, done = ?,"
        " dead = ? WHERE topic = ?",
        delete_topic=f"DELETE FROM {topics} WHERE topic = ?",
        select_topics=f"SELECT topic, ready FROM {topics}"
        " WHERE ready + claimed + delayed + blocked + done + dead > 0",
        select_gated=f"SELECT topic FROM {topics} WHERE gated = 1",
        repair=_repair_statements(number, messages, topics, keys, groups),
    )


def _end_claims(messages: str, which: str) -> str:
    """Return a statement that ends together the claims of a slice that come back with attempts left.

    It does what :meth:`~persistcoll.sqlite.message_life.MessageLife.lose` does with a message that says
    nothing itself. Its group needs no step, because it stays the head.
    """
    return (
        f"UPDATE {messages} SET state = 0, until = NULL, due = expires, holder = NULL, token = NULL,"
        " delivered = NULL, attempts = attempts - (delivered IS 0),"
        " error = CASE WHEN delivered IS 0 THEN error WHEN until <= ? THEN ? ELSE ? END"
        f" WHERE id IN (SELECT id {which}) AND state = 1 AND delivered IS ? AND options IS NULL"
        " AND (delivered IS 0 OR attempts < ?) AND (expires IS NULL OR expires > ?)"
        " RETURNING topic, id, attempts, error, due"
    )


def _repair_statements(number: int, messages: str, topics: str, keys: str, groups: str) -> RepairStatements:
    """Return them. They name no index, because an index may be what is damaged."""
    unfinished = "state IN (0, 1, 2, 3)"
    in_state = {name: f"state = {STATES[State(name)]}" for name in _COUNTS.split(", ")}
    count_groups = (
        f"INSERT INTO {groups} (topic, grp, n) SELECT topic, grp, count(*) FROM {messages}"
        f" WHERE {unfinished} AND typeof(topic) = 'text' AND typeof(grp) = 'text' GROUP BY topic, grp"
    )
    sums = ", ".join(f"sum({condition})" for condition in in_state.values())
    count_topics = (
        f"INSERT INTO {topics} (topic, {_COUNTS}, paused, burst, next, gated)"
        f" SELECT topic, {sums}, 0, 1, 0.0, 0 FROM {messages} WHERE typeof(topic) = 'text' GROUP BY topic"
        f" ON CONFLICT (topic) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in in_state)}"
    )
    found = {name: f"(SELECT count(*) FROM {messages} WHERE {each})" for name, each in in_state.items()}
    count_all = (
        f"UPDATE counters SET absent = last_id - {found['ready']}, claimed = {found['claimed']},"
        f" delayed = {found['delayed']}, done = {found['done']}, dead = {found['dead']},"
        f" gone = last_id - (SELECT count(*) FROM {messages} WHERE {unfinished}) WHERE number = {number}"
    )
    return RepairStatements(
        reindex=tuple(f"REINDEX {table}" for table in (messages, topics, keys, groups)),
        promote_heads=f"UPDATE {messages} SET state = CASE WHEN until > ? THEN 2 ELSE 0 END,"
        " due = CASE WHEN until > ? THEN min(until, ifnull(expires, until)) ELSE expires END,"
        " until = CASE WHEN until > ? THEN until END"
        f" WHERE id IN (SELECT min(id) FROM {messages} WHERE {unfinished} AND grp IS NOT NULL"
        " GROUP BY topic, grp HAVING min(state) = 3) OR (state = 3 AND grp IS NULL)",
        recount=(
            f"DELETE FROM {groups}",
            count_groups,
            f"UPDATE {topics} SET {', '.join(f'{name} = 0' for name in in_state)}",
            count_topics,
            f"DELETE FROM {topics} WHERE gated = 0 AND {' + '.join(in_state)} = 0",
            count_all,
        ),
        state=f"SELECT state, topic FROM {messages} WHERE id = ?",
        purge=f"DELETE FROM {messages} WHERE state IN (?, ?, ?, ?) AND (? IS NULL OR created < ?)"
        " AND (? IS NULL OR topic = ?)",
        finish_keys=f"UPDATE {keys} SET unfinished = 0 WHERE unfinished = 1"
        f" AND id NOT IN (SELECT id FROM {messages} WHERE {unfinished})",
    )


def _oldest(messages: str, ready: str, *, of_topic: bool) -> str:
    """Return a query for the time of the ready row with the lowest id, of all or of a topic.

    The ready rows are in the order of their places first. So it goes from place to place, which costs two
    searches for each priority that a ready message has.
    """
    given, same = (" AND topic = ?", " AND topic = places.topic") if of_topic else ("", "")
    return (
        f"WITH RECURSIVE places (topic, place) AS (SELECT topic, min(place) {ready}{given} UNION ALL"
        f" SELECT topic, (SELECT min(place) {ready}{same} AND place > places.place)"
        " FROM places WHERE place IS NOT NULL)"
        f" SELECT created FROM {messages} WHERE id ="
        f" (SELECT min((SELECT min(id) {ready}{same} AND place = places.place)) FROM places)"
    )
