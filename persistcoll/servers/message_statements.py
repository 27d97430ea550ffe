"""The statements of a collection of messages, and what a dialect of SQL adds to them.

All states of a collection's messages are in one table of its own. Four tables are shared by all collections
of a database: the active keys, the groups with unfinished messages, the topics that do not simply deliver,
and the numbers of messages that have expired. Names of topics and groups are bytes of UTF-8, so that no
collation takes two of them for one.

A transaction locks rows of messages that are no follower in a group, then keys, then groups, then followers.
Several of a kind it locks in their order. What works on any messages waits for no lock.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from persistcoll.engine.records import State
from persistcoll.servers.dialect import Dialect
from persistcoll.servers.statements import NUMBERS, newly_due_of

__all__ = [
    "BLOCKED",
    "CLAIMED",
    "DEAD",
    "DELAYED",
    "DONE",
    "MESSAGE_STATES",
    "READY",
    "SKIPPING",
    "MessageDialect",
    "MessageStatements",
    "Tables",
    "message_statements",
    "tables_of",
]

READY, CLAIMED, DELAYED, BLOCKED, DONE, DEAD = (
    NUMBERS[state]
    for state in (State.READY, State.CLAIMED, State.DELAYED, State.BLOCKED, State.DONE, State.DEAD)
)
MESSAGE_STATES = ("ready", "claimed", "delayed", "blocked", "done", "dead")
"""The states in the order of ``MessageStatements.stats``."""
SKIPPING = "FOR UPDATE SKIP LOCKED"
"""The end of each statement that locks what no other transaction has locked."""
_BARE = 14
"""The number of columns of a bare row."""
_COLUMNS = (
    "id", "state", "topic", "attempts", "until", "is_over", "item_key", "grp", "mark", "max_attempts",
    "backoff", "token", "now", "place", "created", "deliveries", "finished", "headers", "error", "lease",
    "crc", "payload",
)  # fmt: skip


class Tables(NamedTuple):
    """The names of the tables."""

    messages: str
    keys: str
    groups: str
    topics: str
    expired: str


class MessageStatements(NamedTuple):
    """The statements of one message queue.

    A *bare* row is: id, state, topic, attempts, until, whether its ttl is over, key, group, mark, the most
    attempts, back-off, token, the server's time, place. A *row* goes on with: time of the put, deliveries,
    time of the end, headers, error, lease, checksum, payload. ``until`` is the end of a delay or a lease, and
    ``due`` the time at which something happens to the row by itself. A time that a statement takes or returns
    is in seconds since the epoch. A key is that of the message with its mark.
    """

    create: tuple[str, ...]
    """Make the tables, those that are shared where they are missing."""
    insert_noted: tuple[str, ...]
    """the columns of a new row, of which ``delay``, ``ttl`` and ``due`` are seconds from now, client, op,
    number, puts -> its id, and a note of the call."""
    insert_many: str
    """the columns of each new row -> the ids."""
    look: str
    """-> whether a row is ready, and in how many seconds the next row is due."""
    claim_next: str | None
    """holder, token, lease, policy_lease, limit -> claims the next rows in one statement, and returns them as
    they are then; none while something is due or a topic has a gate. ``None``: this server cannot."""
    claim_next_of: str | None
    """topic, too -> the same with one topic."""
    claim_one: str | None
    """the parameters of ``claim_next`` -> the same with one row."""
    claim_one_of: str | None
    """those of ``claim_next_of`` -> the same with one row."""
    lock_next: str
    """limit, promoted -> locks and returns the next rows that no other transaction has locked; without
    ``promoted`` none while something is due or a topic has a gate."""
    lock_next_of: str
    """topic, limit, promoted -> the same with one topic."""
    claim: str
    """ids, holder, token, lease, policy_lease, now -> claims these ready rows."""
    heads: str
    """-> of each topic with ready rows: topic, place and id of the first."""
    heads_of: str
    """topic, limit -> topic, place and id of the next rows of that topic."""
    lock_bare_rows: str
    """ids -> locks and returns these bare rows, by id; it waits for locks of other transactions."""
    delete_claim: str
    """id, token -> acks a message that is claimed and has neither key nor group, by deleting it."""
    lock_due: str
    """limit -> locks and returns bare rows that are due."""
    lock_held: str
    """holder, limit -> locks and returns bare rows that it has claimed."""
    lock_lost: str
    """holder, token, limit -> the same of one of its claims."""
    select_claimed: str
    """holder, token -> the rows of one of its claims."""
    select_bare: str
    """id -> that bare row."""
    lock_bare: str
    """id -> the same, locked; it waits for a lock of another transaction."""
    lock_rows: str
    """ids -> locks and returns those of these rows that no other transaction has locked, by id."""
    lock_page: str
    """topic or null, before or null, low, limit -> locks and returns bare rows that are ready, delayed or
    blocked, were put before that time and have ids above ``low``, by id."""
    lock_dead_page: str
    """the same -> the same of dead rows."""
    make_ready: str
    """ids, returned, tells, error -> makes these rows ready, with so many attempts less; ``tells`` says
    whether they get that error."""
    make_delayed: str
    """ids, until, tells, error -> makes these rows delayed."""
    finish: str
    """ids, state, returned, tells, error -> makes these rows done or dead."""
    delete: str
    """ids -> deletes these rows."""
    extend: str
    """ids, until -> lets these claims end at another time."""
    redrive: str
    """ids, state -> puts these dead rows into that state, with no attempts and a new ttl."""
    lock_follower: str
    """topic, grp -> locks and returns id and place of the first blocked row of a group."""
    become_head: str
    """ids -> makes these blocked rows ready, or delayed if their delays are not over."""
    take_key: tuple[str, ...]
    """key, mark, window -> makes a key active unless it is; the last one returns the mark of its message."""
    lock_keys: str
    """keys -> locks and returns these keys: key, mark, whether the window is not over, whether active."""
    lock_free_keys: str
    """keys -> the same of those that no other transaction has locked."""
    select_keys: str
    """keys -> those of these keys that are there."""
    keep_keys: str
    """keys -> lets these keys be active to the ends of their windows."""
    delete_keys: str
    """keys -> makes these keys inactive."""
    lock_old_keys: str
    """limit -> locks and returns keys that are not active any more."""
    enter_group: tuple[str, ...]
    """name, count -> counts so many more messages in a group; the last one returns how many it has."""
    lock_groups: str
    """names -> locks and returns these groups: name, how many unfinished messages it has."""
    lock_free_groups: str
    """names -> the same of those that no other transaction has locked."""
    select_groups: str
    """names -> those of these groups that are there."""
    set_group: str
    """name, count -> so many messages are in the group."""
    delete_groups: str
    """names -> forgets these groups, which have no messages."""
    select_gates: str
    """-> the gates: topic, paused, interval, burst, next, locker, token and end of the lock, time."""
    make_gate: str
    """topic -> an open gate, unless there is one; locked."""
    lock_gate: str
    """topic -> locks and returns that gate."""
    lock_free_gate: str
    """topic -> the same, unless another transaction has locked it."""
    write_gate: str
    """topic, paused, interval, burst, next, locker, lock_token, lock_until -> stored."""
    delete_gate: str
    """topic -> that gate is open."""
    fullest: str
    """-> topic and number of its ready rows, the greatest number first."""
    add_expired: str
    """count -> so many messages more have expired."""
    lock_expired: str
    """limit -> locks and returns id and count of what was added."""
    delete_expired: str
    """ids -> deletes these."""
    select_next: str
    """-> the first ready row."""
    select_next_of: str
    """topic -> the same of a topic."""
    select: str
    """id -> that row."""
    scan_page: str
    """states, topic or null, low, limit -> rows in these states with ids above ``low``, by id."""
    scan_dead_page: str
    """topic or null, low, limit -> dead rows with ids above ``low``, by id."""
    last_id: str
    """-> the highest id, or null."""
    oldest: str
    """state, keep -> the highest id of that state that is not among the ``keep`` newest."""
    lock_oldest: str
    """state, id, limit -> locks and returns the ids of rows in that state up to that id, the lowest first."""
    topics: str
    """-> of each topic the number of its ready rows."""
    count_ready: str
    """-> how many rows are ready."""
    count_ready_of: str
    """topic -> the same of a topic."""
    is_ready_of: str
    """topic -> whether a row of the topic is ready."""
    has_unfinished: str
    """-> whether a row is ready, claimed, delayed or blocked."""
    stats: str
    """-> ready, claimed, delayed, blocked, done, dead rows, the age of the oldest ready one, puts, bytes,
    expired."""
    stats_of: str
    """topic -> the first seven of a topic."""
    token: str
    """-> what differs once a transaction was committed since, or something is due."""
    from_floor: dict[str, str]
    """As that of ``RecordStatements``: ``look``, those that claim or lock the next rows, ``heads_of``, and
    ``is_ready_of``."""


class MessageDialect(Protocol):
    """What one kind of SQL says of messages in its own way. A method takes and returns pieces of statements.

    :ivar general: what it says in its own way of all collections.
    """

    general: Dialect

    def plus(self, time: str, seconds: str) -> str:
        """Return the time so many seconds after ``time``; null if ``seconds`` is."""

    def at(self, epoch: str) -> str:
        """Return the time of that parameter, which is in seconds since the epoch."""

    def seconds(self, name: str) -> str:
        """Return that parameter, which is a number of seconds or null."""

    def name(self, name: str) -> str:
        """Return that parameter, which is bytes or null."""

    def create(self, tables: Tables) -> tuple[str, ...]:
        """Return ``MessageStatements.create``."""

    def insert(self, table: str) -> str:
        """Return the statement that inserts one row, with the parameters of ``insert_noted``."""

    def insert_many(self, table: str) -> str:
        """Return ``MessageStatements.insert_many``."""

    def claim_next(self, table: str, row: str, claim: str, which: str, may: str, one: bool) -> str | None:
        """Return ``MessageStatements.claim_next``.

        :param claim: what is set in each row, with the time of the statement.
        :param which: the table and the condition of the rows.
        :param may: the condition without which none is claimed.
        :param one: whether one row is claimed, and not ``limit``.
        """

    def take_key(self, table: str, number: int) -> tuple[str, ...]:
        """Return ``MessageStatements.take_key``."""

    def enter_group(self, table: str, number: int) -> tuple[str, ...]:
        """Return ``MessageStatements.enter_group``."""

    def make_gate(self, table: str, number: int) -> str:
        """Return ``MessageStatements.make_gate``."""


def tables_of(dialect: Dialect, schema: str | None, number: int) -> Tables:
    """Return the names of the tables of the queue with this number."""
    names = (str(number), "keys", "groups", "topics", "expired")
    return Tables(*(dialect.table(schema, f"pc_{name}") for name in names))


def message_statements(dialect: Dialect, schema: str | None, number: int) -> MessageStatements:
    """Return the statements of the message queue with this number."""
    own, tables = dialect.messages(), tables_of(dialect, schema, number)
    table, keys, groups, gates, expired = tables
    done, collections = (dialect.table(schema, f"pc_{name}") for name in ("done", "collections"))
    now, epoch = dialect.now, dialect.epoch
    is_due_set, of_state = dialect.is_due_set, dialect.hint("by_state")
    special = {
        "until": epoch("until"),
        "is_over": f"expires <= {now}",
        "now": epoch(now),
        "created": epoch("created"),
        "finished": epoch("finished"),
    }
    columns = [special.get(name, name) for name in _COLUMNS]
    row, bare = ", ".join(columns), ", ".join(columns[:_BARE])
    of_ids = f"id {dialect.among('ids')}"
    by_id = f"{table} {dialect.hint('PRIMARY')}"
    of_topic = "topic = %(topic)s"
    is_ready = f"state = {READY}"
    next_of_all, next_of_one = (f"{table} WHERE {each}" for each in (is_ready, f"{is_ready} AND {of_topic}"))
    lock = SKIPPING
    free = "holder = NULL, token = NULL"
    new_error = "error = CASE WHEN %(tells)s THEN %(error)s ELSE error END"
    order = "ORDER BY place, id"
    next_due = f"SELECT due FROM {table} WHERE {is_due_set} ORDER BY due LIMIT 1"
    none_due = f"NOT EXISTS (SELECT 1 FROM ({next_due}) AS head WHERE head.due <= {now})"
    no_gate = f"(SELECT number FROM {gates} WHERE number = {number} ORDER BY number, topic LIMIT 1) IS NULL"
    no_gate_of = f"NOT EXISTS (SELECT 1 FROM {gates} WHERE number = {number} AND {of_topic})"
    may, may_of = (f"{none_due} AND {each}" for each in (no_gate, no_gate_of))
    newly_due = newly_due_of(dialect, table)
    may_newly, may_newly_of = (f"({newly_due}) IS NULL AND {each}" for each in (no_gate, no_gate_of))
    floor = dialect.at_floor
    at_floor = f"{table} {dialect.hint('by_place')} WHERE {is_ready} AND {floor}"
    at_floor_of = f"{table} {dialect.hint('by_topic')} WHERE {is_ready} AND {of_topic} AND {floor}"
    lease = f"coalesce({own.seconds('lease')}, lease, {own.seconds('policy_lease')})"

    def claim_at(time: str) -> str:
        end = own.plus(time, lease)
        return (
            f"state = {CLAIMED}, holder = %(holder)s, token = %(token)s, until = {end}, due = {end},"
            " attempts = attempts + 1, deliveries = deliveries + 1"
        )

    def head(column: str) -> str:
        return (
            f"(SELECT m.{column} FROM {table} AS m WHERE m.{is_ready} AND m.topic = names.topic"
            " ORDER BY m.place, m.id LIMIT 1)"
        )

    def is_any_of(which: str) -> str:
        # Not EXISTS: PostgreSQL removes ORDER BY and LIMIT there, and then trusts its statistics.
        return f"(SELECT id FROM {which} {order} LIMIT 1) IS NOT NULL"

    def look(which: str, due: str) -> str:
        return f"SELECT {is_any_of(which)}, (SELECT {dialect.until('head.due')} FROM ({due}) AS head)"

    def lock_next(which: str, may: str) -> str:
        return f"SELECT {row} FROM {which} AND (%(promoted)s OR ({may})) {order} LIMIT %(limit)s {lock}"

    def claim_next(which: str, may: str, one: bool) -> str | None:
        return own.claim_next(table, row, claim_at(now), which, may, one)

    def heads_of(which: str) -> str:
        return f"SELECT topic, place, id FROM {which} {order} LIMIT %(limit)s"

    from_floor = {
        "look": look(at_floor, newly_due),
        "claim_next": claim_next(at_floor, may_newly, False),
        "claim_next_of": claim_next(at_floor_of, may_newly_of, False),
        "claim_one": claim_next(at_floor, may_newly, True),
        "claim_one_of": claim_next(at_floor_of, may_newly_of, True),
        "lock_next": lock_next(at_floor, may_newly),
        "lock_next_of": lock_next(at_floor_of, may_newly_of),
        "heads_of": heads_of(at_floor_of),
        "is_ready_of": f"SELECT {is_any_of(at_floor_of)}",
    }
    is_any_ready = is_any_of(next_of_all)
    is_any_held = f"(SELECT holder FROM {table} WHERE holder IS NOT NULL ORDER BY holder LIMIT 1) IS NOT NULL"
    is_ahead = f"until > {now}"
    maybe_topic = f"({own.name('topic')} IS NULL OR {of_topic})"
    in_range = f"id > %(low)s AND {maybe_topic}"
    is_before = f"({own.seconds('before')} IS NULL OR created < {own.at('before')})"
    put_before = f"id > %(low)s AND {maybe_topic} AND {is_before}"
    of_keys = f"number = {number} AND item_key {dialect.among('keys', 'bytea')}"
    of_names = f"number = {number} AND name {dialect.among('names', 'bytea')}"
    of_gate = f"number = {number} AND {of_topic}"
    a_key = f"item_key, mark, {is_ahead}, due IS NULL OR due > {now}"
    gate = f"topic, is_paused, rate_interval, burst, rate_next, locker, lock_token, lock_until, {epoch(now)}"
    numbers = ", ".join(
        f"coalesce(sum(CASE WHEN state = {state} THEN 1 ELSE 0 END), 0)"
        for state in (READY, CLAIMED, DELAYED, BLOCKED, DONE, DEAD)
    )
    age = f"SELECT -({dialect.until('created')}) FROM {table} WHERE {is_ready}"

    return MessageStatements(
        create=own.create(tables),
        insert_noted=dialect.insert_noted(own.insert(table), done),
        insert_many=own.insert_many(table),
        look=look(next_of_all, next_due),
        claim_next=claim_next(next_of_all, may, False),
        claim_next_of=claim_next(next_of_one, may_of, False),
        claim_one=claim_next(next_of_all, may, True),
        claim_one_of=claim_next(next_of_one, may_of, True),
        lock_next=lock_next(next_of_all, may),
        lock_next_of=lock_next(next_of_one, may_of),
        claim=f"UPDATE {by_id} SET {claim_at(own.at('now'))} WHERE {of_ids}",
        heads="WITH RECURSIVE names (topic) AS ("
        f"SELECT (SELECT topic FROM {table} WHERE {is_ready} ORDER BY topic LIMIT 1) UNION ALL"
        f" SELECT (SELECT m.topic FROM {table} AS m WHERE m.{is_ready} AND m.topic > names.topic"
        " ORDER BY m.topic LIMIT 1) FROM names WHERE names.topic IS NOT NULL)"
        f" SELECT topic, {head('place')}, {head('id')} FROM names WHERE topic IS NOT NULL",
        heads_of=heads_of(next_of_one),
        lock_bare_rows=f"SELECT {bare} FROM {table} WHERE {of_ids} ORDER BY id FOR UPDATE",
        delete_claim=f"DELETE FROM {table} WHERE id = %(id)s AND token = %(token)s AND {is_ahead}"
        " AND item_key IS NULL AND grp IS NULL",
        lock_due=f"SELECT {bare} FROM {table} WHERE {is_due_set} AND due <= {now} ORDER BY due"
        f" LIMIT %(limit)s {lock}",
        lock_held=f"SELECT {bare} FROM {table} WHERE holder = %(holder)s ORDER BY id LIMIT %(limit)s {lock}",
        lock_lost=f"SELECT {bare} FROM {table} WHERE holder = %(holder)s AND token = %(token)s"
        f" LIMIT %(limit)s {lock}",
        select_claimed=f"SELECT {row} FROM {table} WHERE holder = %(holder)s AND token = %(token)s",
        select_bare=f"SELECT {bare} FROM {table} WHERE id = %(id)s",
        lock_bare=f"SELECT {bare} FROM {table} WHERE id = %(id)s FOR UPDATE",
        lock_rows=f"SELECT {row} FROM {table} WHERE {of_ids} ORDER BY id {lock}",
        lock_page=f"SELECT {bare} FROM {table} WHERE state IN ({READY}, {DELAYED}, {BLOCKED})"
        f" AND {put_before} ORDER BY id LIMIT %(limit)s {lock}",
        lock_dead_page=f"SELECT {bare} FROM {table} {of_state} WHERE state = {DEAD}"
        f" AND {put_before} ORDER BY state, id LIMIT %(limit)s {lock}",
        make_ready=f"UPDATE {by_id} SET state = {READY}, due = expires, until = NULL,"
        f" attempts = attempts - %(returned)s, {new_error}, {free} WHERE {of_ids}",
        make_delayed=f"UPDATE {by_id} SET state = {DELAYED}, until = {own.at('until')},"
        f" due = CASE WHEN expires < {own.at('until')} THEN expires ELSE {own.at('until')} END,"
        f" {new_error}, {free} WHERE {of_ids}",
        finish=f"UPDATE {by_id} SET state = %(state)s, due = NULL, until = NULL, finished = {now},"
        f" attempts = attempts - %(returned)s, {new_error}, {free} WHERE {of_ids}",
        delete=dialect.delete_several(table, of_ids, "mark"),
        extend=f"UPDATE {by_id} SET until = {own.at('until')}, due = {own.at('until')} WHERE {of_ids}",
        redrive=f"UPDATE {by_id} SET state = %(state)s, attempts = 0, until = NULL, finished = NULL,"
        f" expires = {own.plus(now, 'ttl')}, due = {own.plus(now, 'ttl')} WHERE {of_ids}",
        lock_follower=f"SELECT id, place FROM {table} WHERE state = {BLOCKED} AND {of_topic}"
        " AND grp = %(grp)s ORDER BY id LIMIT 1 FOR UPDATE",
        # Of an update MySQL computes each value from the columns that it has changed already.
        become_head=f"UPDATE {by_id} SET state = CASE WHEN {is_ahead} THEN {DELAYED} ELSE {READY} END,"
        f" due = CASE WHEN {is_ahead} AND (expires IS NULL OR until < expires) THEN until ELSE expires END,"
        f" until = CASE WHEN {is_ahead} THEN until ELSE NULL END WHERE {of_ids}",
        take_key=own.take_key(keys, number),
        lock_keys=f"SELECT {a_key} FROM {keys} {dialect.hint('PRIMARY')} WHERE {of_keys}"
        " ORDER BY item_key FOR UPDATE",
        lock_free_keys=f"SELECT {a_key} FROM {keys} WHERE {of_keys} ORDER BY item_key {lock}",
        select_keys=f"SELECT item_key FROM {keys} WHERE {of_keys}",
        keep_keys=f"UPDATE {keys} {dialect.hint('PRIMARY')} SET due = until WHERE {of_keys}",
        delete_keys=dialect.delete_several(keys, of_keys, "mark"),
        lock_old_keys=f"SELECT item_key FROM {keys} WHERE number = {number} AND due <= {now}"
        f" ORDER BY number, due LIMIT %(limit)s {lock}",
        enter_group=own.enter_group(groups, number),
        lock_groups=f"SELECT name, members FROM {groups} {dialect.hint('PRIMARY')} WHERE {of_names}"
        " ORDER BY name FOR UPDATE",
        lock_free_groups=f"SELECT name, members FROM {groups} WHERE {of_names} ORDER BY name {lock}",
        select_groups=f"SELECT name FROM {groups} WHERE {of_names}",
        set_group=f"UPDATE {groups} SET members = %(count)s WHERE number = {number} AND name = %(name)s",
        delete_groups=dialect.delete_several(groups, of_names, "members"),
        select_gates=f"SELECT {gate} FROM {gates} WHERE number = {number}",
        make_gate=own.make_gate(gates, number),
        lock_gate=f"SELECT {gate} FROM {gates} WHERE {of_gate} FOR UPDATE",
        lock_free_gate=f"SELECT {gate} FROM {gates} WHERE {of_gate} {lock}",
        write_gate=f"UPDATE {gates} SET is_paused = %(paused)s, rate_interval = %(interval)s,"
        " burst = %(burst)s, rate_next = %(next)s, locker = %(locker)s, lock_token = %(lock_token)s,"
        f" lock_until = %(lock_until)s WHERE {of_gate}",
        delete_gate=f"DELETE FROM {gates} WHERE {of_gate}",
        fullest=f"SELECT topic, count(*) AS ready FROM {table} WHERE {is_ready} GROUP BY topic"
        " ORDER BY ready DESC, topic",
        add_expired=f"INSERT INTO {expired} (number, messages) VALUES ({number}, %(count)s)",
        lock_expired=f"SELECT id, messages FROM {expired} WHERE number = {number} ORDER BY number, id"
        f" LIMIT %(limit)s {lock}",
        delete_expired=dialect.delete_several(expired, of_ids, "messages"),
        select_next=f"SELECT {row} FROM {table} WHERE {is_ready} {order} LIMIT 1",
        select_next_of=f"SELECT {row} FROM {table} WHERE {is_ready} AND {of_topic} {order} LIMIT 1",
        select=f"SELECT {row} FROM {table} WHERE id = %(id)s",
        scan_page=f"SELECT {row} FROM {table} WHERE state {dialect.among('states')} AND {in_range}"
        " ORDER BY id LIMIT %(limit)s",
        scan_dead_page=f"SELECT {row} FROM {table} {of_state} WHERE state = {DEAD} AND {in_range}"
        " ORDER BY state, id LIMIT %(limit)s",
        last_id=f"SELECT max(id) FROM {table}",
        oldest=f"SELECT id FROM {table} {of_state} WHERE state = %(state)s"
        " ORDER BY id DESC LIMIT 1 OFFSET %(keep)s",
        lock_oldest=f"SELECT id FROM {table} {of_state} WHERE state = %(state)s AND id <= %(id)s"
        f" ORDER BY state, id LIMIT %(limit)s {lock}",
        topics=f"SELECT topic, sum(CASE WHEN {is_ready} THEN 1 ELSE 0 END) FROM {table} GROUP BY topic",
        count_ready=f"SELECT count(*) FROM {table} WHERE {is_ready}",
        count_ready_of=f"SELECT count(*) FROM {table} WHERE {is_ready} AND {of_topic}",
        is_ready_of=f"SELECT {is_any_of(next_of_one)}",
        # Before each blocked row there is the head of its group.
        has_unfinished=f"SELECT {is_any_ready} OR {is_any_held} OR ({next_due}) IS NOT NULL",
        stats=f"SELECT {numbers}, ({age} ORDER BY id LIMIT 1),"
        f" (SELECT puts FROM {collections} WHERE number = {number})"
        f" + (SELECT coalesce(sum(puts), 0) FROM {done} WHERE number = {number}), {dialect.size(table)},"
        f" (SELECT coalesce(sum(messages), 0) FROM {expired} WHERE number = {number}) FROM {table}",
        stats_of=f"SELECT {numbers}, ({age} AND {of_topic} ORDER BY id LIMIT 1) FROM {table}"
        f" WHERE {of_topic}",
        token=dialect.token(table),
        from_floor={name: text for name, text in from_floor.items() if text is not None},
    )
