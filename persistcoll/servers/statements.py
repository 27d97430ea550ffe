"""The statements of a collection of records, and those on the tables that all collections share.

The texts name their parameters as ``%(name)s``. Names of tables are made of a collection's number, never of
its name, so a name is never a part of a statement.

All states of a collection's records are in one table of its own: a claim then copies no payload, and its
indexes hold nothing of other collections. Every look at the head of a queue, and at what is due, has the form
``ORDER BY … LIMIT``, which is an index scan whatever the server's statistics say of the table.
"""

from __future__ import annotations

from typing import NamedTuple

from persistcoll.engine.records import LEASE_RAN_OUT, Discipline, State
from persistcoll.servers.dialect import Dialect

__all__ = [
    "ALL",
    "BEFORE_ALL",
    "LONGEST_SPAN",
    "NUMBERS",
    "PAGE",
    "RecordStatements",
    "SharedStatements",
    "newly_due_of",
    "record_statements",
    "shared_statements",
]

PAGE = 256
"""Rows that are read or changed at a time."""
ALL = 1 << 62
"""More rows than there are."""
BEFORE_ALL = -1 << 62
"""An id below all others."""
LONGEST_SPAN = 1e10
"""Seconds; a server's times end some time after that."""
NUMBERS = {
    State.READY: 0,
    State.CLAIMED: 1,
    State.DELAYED: 2,
    State.BLOCKED: 3,
    State.DONE: 4,
    State.FAILED: 5,
    State.DEAD: 6,
}
"""The number of each state in the column ``state``."""
_READY, _CLAIMED, _DELAYED, _FAILED, _DEAD = (
    NUMBERS[state] for state in (State.READY, State.CLAIMED, State.DELAYED, State.FAILED, State.DEAD)
)


class SharedStatements(NamedTuple):
    """The statements on the tables that all collections of a database share.

    Each text is described by its parameters, and after an arrow by its result or effect.
    """

    create: tuple[str, ...]
    """Make the tables where they are missing."""
    lock_creation: str
    """name, seconds -> waits until no other session creates; ``1`` if it has the lock."""
    unlock_creation: str | None
    """name -> lets others create; ``None``: the end of the transaction does."""
    find_collection: str
    """name -> number, kind, serializer, version, store id."""
    select_collections: str
    """-> number, name, kind, serializer, version, time of each collection, in the order of creation."""
    next_number: str
    """-> the number of the next collection, which none has had."""
    insert_collection: str
    """number, name, kind, serializer, version, store -> registered."""
    lock_collection: str
    """number -> locked until the end of the transaction."""
    lock_free_collection: str
    """number -> the same, and a row, unless another transaction has locked it."""
    insert_done: str
    """client, op, number, puts -> a note of this call. It fails if there is one, because a commit that comes
    after it was given up must do nothing."""
    give_up: str
    """client, op, number -> a note of this call, unless there is one."""
    find_done: str
    """client, op -> the number in the note of this call, and the id."""
    select_old_clients: str
    """client, limit -> the first sessions that have notes, below that one."""
    lock_done: str
    """client, op -> locks and returns number and puts of the notes of this session before ``op``."""
    add_puts: str
    """number, puts -> added."""
    delete_done: str
    """client, op -> deletes the notes of this session before ``op``."""
    insert_holder: str
    """holder, number, info -> that number is a holder of claims in that collection."""
    beat: str
    """holders -> heard of now."""
    count_holders: str
    """holders -> how many of them are there."""
    select_dead: str
    """number, patience -> locks and returns the dead holders of that collection; of a server that is younger
    than the patience only those that said so (patience ``None``)."""
    close_holder: str
    """holder -> dead from now on."""
    select_living: str
    """number, patience -> the infos of those holders of that collection that ``select_dead`` leaves out."""
    delete_collection: str
    """number -> not registered any more."""
    delete_holders: str
    """number -> deletes the holders of that collection."""
    insert_dropped: str
    """number, name, kind -> noted as a collection that is dropped."""
    select_dropped: str
    """-> number, name, kind of those whose tables may still be there."""
    finish_dropped: str
    """number -> noted as one whose tables are not there any more."""
    delete_dropped: str
    """number -> deletes the notes of those below it whose tables are not there any more."""
    grant_credits: str
    """number, client, capacity, credits -> so many credits more for this session, under that bound."""
    use_credits: str
    """number, client, capacity, credits -> takes so many of the session's credits, if it has them under a
    bound that is not higher; counts 1 if it does."""
    return_credits: str
    """number, client, credits -> so many credits more for this session, which has taken them."""
    select_credits: str
    """number -> the sessions that have credits, without reservations."""
    lock_free_credits: str
    """number -> locks and returns the sessions and reservations whose credits no open transaction takes."""
    revoke_credits: str
    """number, client -> deletes the credits of this session, and waits for a transaction that takes some; or
    deletes this reservation."""
    take_reservation: str
    """number, client -> deletes it, in a caller's transaction; counts 1 if it was there."""
    has_reservation: str
    """number, client -> a row if it is there."""
    delete_credits: str
    """number -> deletes all credits and reservations of that collection."""
    clock: str
    """-> the time in seconds since the epoch."""
    uptime: str
    """-> in the last column the seconds since the server has started."""


class RecordStatements(NamedTuple):
    """The statements of one queue.

    A *row* is: id, place, attempts, time, mark, crc, payload, reason. The *next* rows are the first in the
    order of delivery. A row keeps its key in ``item_key``; while the key is active, it is in ``dedup``, too.
    A reason is UTF-8, because a caller's connection may have a character set that lacks a part of it.
    """

    create: tuple[str, ...]
    """Make the table and its indexes."""
    insert: str
    """place, key, mark, crc, payload, delay, state -> a ready row, or one that is delayed by so many seconds;
    its id, or 0 if the key is active."""
    insert_noted: tuple[str, ...]
    """the same and client, op, number, puts -> a row, and a note of the call with its id, in a transaction of
    their own; one of the statements gives the id. The key is not active."""
    insert_by_credit: tuple[str, ...]
    """the same and capacity -> the same, if the session has a credit under a bound that is not higher; it is
    taken in the same transaction."""
    insert_many: str | None
    """place, mark, crc, payload, delay, state of each row -> such rows; their ids. ``None``: one by one,
    because a key may be active."""
    look: str
    """-> whether a row is ready, and in how many seconds the next row is due."""
    claim_next: str | None
    """holder, fence, lease, limit, promoted -> claims the next rows in one statement, and returns them with
    the attempts before. ``None``: this server cannot. Without ``promoted`` this statement and the next six
    find nothing while something is due."""
    claim_one: str | None
    """the same but limit -> the same with one row."""
    take_next: str | None
    """limit, promoted, client, op, number, puts -> deletes the next rows and notes the call in one statement,
    and returns the rows. ``None``: this server cannot."""
    take_one: str | None
    """the same but limit -> the same with one row."""
    lock_next: str
    """limit, promoted -> locks and returns the next rows that no other transaction has locked."""
    lock_by_id: str
    """id, promoted -> locks and returns that ready row, unless another transaction has locked it."""
    lock_after: str
    """id, promoted -> locks and returns the ready row after it."""
    claim: str
    """ids, holder, fence, lease -> claims these ready rows."""
    unclaim: str
    """ids, fence -> makes these rows ready, as if this claim had not been made."""
    release_fence: str
    """holder, fence -> makes ready what a claim with a lost answer has claimed, as ``unclaim`` does."""
    finish_ready: str
    """ids, state -> makes these ready rows done, with an attempt."""
    delete: str
    """ids -> deletes these rows."""
    settle: str
    """id, fence, state, frees, seconds, tells, reason -> ends a claim: puts the row in that state, which ends
    so many seconds from now; ``frees`` says whether its key ceases to be active, ``tells`` whether it gets
    that reason or keeps its own."""
    settle_many: str
    """ids, fence and the others of ``settle`` -> the same with the claims of these rows with that fence."""
    delete_claim: str
    """id, fence -> ends a claim and deletes the row."""
    delete_claims: str
    """ids, fence -> the same with the claims of these rows with that fence."""
    select_fences: str
    """ids -> id, state, and fence of these rows: that of the claim that is active, or was settled last."""
    draw_id: tuple[str, ...]
    """The first one gives a new id, higher than all others, as the id of its result; id -> the others delete
    what it has inserted for that."""
    renumber: str
    """id, new -> gives a row another id."""
    lock_due: str
    """limit -> locks and returns the ids of rows whose delay or lease is over."""
    lock_held: str
    """holder, limit -> locks and returns the ids of rows that it has claimed."""
    lock_ownerless: str
    """limit -> locks and returns the ids of rows whose holder is not there any more."""
    come_back: str
    """ids, most, reason -> makes these rows ready, or dead if they are claimed and have no attempts left.
    Those that are claimed get that reason, or ``LEASE_RAN_OUT`` if their lease is over."""
    has_claims: str
    """holder -> a row if it has claimed something."""
    forget_holder: str
    """holder -> deletes it."""
    lock_ready: str
    """limit -> locks and returns the ids of ready rows that no other transaction has locked."""
    lock_aside: str
    """state, low, limit -> locks the rows in that state with ids above ``low``, by id; id, key and, if the
    key is active, for which row."""
    lock_aside_by_id: str
    """id -> the same of that row, if it is failed or dead; waits for a lock of another transaction."""
    requeue: str
    """ids -> makes these failed or dead rows ready, with no attempts, and their keys active."""
    update: str
    """id, key, mark, crc, payload -> stored in that row, if it is unfinished."""
    select_next: str
    """-> the next row."""
    select_page: str
    """low, limit -> ready rows with ids above ``low``, by id."""
    scan_page: str
    """low, states, limit -> state and row of the rows in these states with ids above ``low``, by id."""
    last_id: str
    """-> the highest id, or null."""
    oldest: str
    """state, keep -> the highest id of that state that is not among the ``keep`` newest."""
    lock_oldest: str
    """state, id, limit -> locks and returns the ids of rows in that state up to that id, the lowest first."""
    has_key: str
    """key -> whether it is active."""
    count_ready: str
    """limit -> how many rows are ready, counted up to the limit."""
    counts: str
    """-> ready, claimed, delayed rows."""
    room: str
    """limit -> ready, claimed, delayed rows, and those that are due, each counted up to the limit; the sum
    of credits and reservations, that of reservations, and the lowest bound under which there are some."""
    has_unfinished: str
    """-> whether a row is ready, claimed or delayed."""
    stats: str
    """-> ready, claimed, delayed, done, failed, dead rows, the age of the oldest ready one, puts, bytes."""
    token: str
    """-> what differs once a transaction was committed since, or something is due."""
    from_floor: dict[str, str]
    """``look``, ``lock_next``, and those that claim or take at once, from a floor: floor_place, floor_id,
    age, too -> the same, without the rows before the floor and without what was due so many seconds ago;
    ``look`` tells of nothing that will be due."""


def shared_statements(dialect: Dialect, schema: str | None) -> SharedStatements:
    """Return the statements on the shared tables."""
    collections, done, holders, dropped, granted = (
        dialect.table(schema, f"pc_{name}")
        for name in ("collections", "done", "holders", "dropped", "credits")
    )
    now = dialect.now
    settled = "WHERE client = %(client)s AND op < %(op)s"
    wakes = dialect.wakes(schema)
    living = f"WHERE holder {dialect.among('holders')} AND beat IS NOT NULL"
    of_session = "number = %(number)s AND client = %(client)s"
    return SharedStatements(
        create=(
            *dialect.create_shared(schema, collections, done, holders, dropped, granted),
            *(() if wakes is None else wakes.create),
        ),
        lock_creation=dialect.lock_creation,
        unlock_creation=dialect.unlock_creation,
        find_collection=f"SELECT number, kind, serializer, version, store FROM {collections}"
        " WHERE name = %(name)s",
        select_collections=f"SELECT number, name, kind, serializer, version, {dialect.epoch('created')}"
        f" FROM {collections} ORDER BY number",
        next_number=f"SELECT greatest(coalesce(max(number), 0), (SELECT coalesce(max(number), 0)"
        f" FROM {dropped})) + 1 FROM {collections}",
        insert_collection=f"INSERT INTO {collections}"
        " (number, name, kind, serializer, version, store, created)"
        f" VALUES (%(number)s, %(name)s, %(kind)s, %(serializer)s, %(version)s, %(store)s, {now})",
        lock_collection=f"SELECT 1 FROM {collections} WHERE number = %(number)s FOR UPDATE",
        lock_free_collection=f"SELECT 1 FROM {collections} WHERE number = %(number)s FOR UPDATE SKIP LOCKED",
        insert_done=f"INSERT INTO {done} (client, op, number, puts)"
        " VALUES (%(client)s, %(op)s, %(number)s, %(puts)s)",
        give_up=f"INSERT INTO {done} (client, op, number, puts)"
        f" VALUES (%(client)s, %(op)s, %(number)s, 0) {dialect.unless_noted}",
        # With a lock, so that it ends when the standbys have what it has found.
        find_done=f"SELECT number, result FROM {done} WHERE client = %(client)s AND op = %(op)s FOR UPDATE",
        select_old_clients=f"SELECT DISTINCT client FROM {done} WHERE client < %(client)s ORDER BY client"
        " LIMIT %(limit)s",
        lock_done=f"SELECT number, puts FROM {done} {settled} FOR UPDATE",
        add_puts=f"UPDATE {collections} SET puts = puts + %(puts)s WHERE number = %(number)s",
        delete_done=f"DELETE FROM {done} {settled}",
        insert_holder=f"INSERT INTO {holders} (holder, number, beat, info)"
        f" VALUES (%(holder)s, %(number)s, {now}, %(info)s)",
        beat=f"UPDATE {holders} SET beat = {now} {living}",
        count_holders=f"SELECT count(*) FROM {holders} {living}",
        select_dead=f"SELECT holder FROM {holders} WHERE number = %(number)s"
        f" AND (beat IS NULL OR beat <= {dialect.ago('patience')}) ORDER BY holder FOR UPDATE SKIP LOCKED",
        close_holder=f"UPDATE {holders} SET beat = NULL WHERE holder = %(holder)s",
        select_living=f"SELECT info FROM {holders} WHERE number = %(number)s AND beat IS NOT NULL"
        f" AND (beat <= {dialect.ago('patience')}) IS NOT TRUE",
        delete_collection=f"DELETE FROM {collections} WHERE number = %(number)s",
        delete_holders=f"DELETE FROM {holders} WHERE number = %(number)s",
        insert_dropped=f"INSERT INTO {dropped} (number, name, kind) VALUES (%(number)s, %(name)s, %(kind)s)",
        select_dropped=f"SELECT number, name, kind FROM {dropped} WHERE kind <> '' ORDER BY number",
        finish_dropped=f"UPDATE {dropped} SET kind = '' WHERE number = %(number)s",
        delete_dropped=f"DELETE FROM {dropped} WHERE number < %(number)s AND kind = ''",
        grant_credits=dialect.grant_credits(granted),
        use_credits=f"UPDATE {granted} SET credits = credits - %(credits)s WHERE {of_session}"
        " AND credits >= %(credits)s AND capacity <= %(capacity)s",
        return_credits=f"UPDATE {granted} SET credits = credits + %(credits)s WHERE {of_session}",
        select_credits=f"SELECT client FROM {granted} WHERE number = %(number)s AND client >= 0",
        lock_free_credits=f"SELECT client FROM {granted} WHERE number = %(number)s FOR UPDATE SKIP LOCKED",
        # Of one row each: to delete several, MySQL may read and lock others, too, be it that after the last.
        revoke_credits=f"DELETE FROM {granted} WHERE {of_session}",
        take_reservation=f"{dialect.despite_snapshot}DELETE FROM {granted} WHERE {of_session}",
        has_reservation=f"SELECT 1 FROM {granted} WHERE {of_session}",
        delete_credits=f"DELETE FROM {granted} WHERE number = %(number)s",
        clock=f"SELECT {dialect.epoch(now)}",
        uptime=dialect.uptime,
    )


def record_statements(
    dialect: Dialect, schema: str | None, number: int, discipline: Discipline
) -> RecordStatements:
    """Return the statements of the queue with this number."""
    table = dialect.table(schema, f"pc_{number}")
    holders, done, collections, granted = (
        dialect.table(schema, f"pc_{name}") for name in ("holders", "done", "collections", "credits")
    )
    direction, beyond = ("DESC", "<") if discipline.newest_first else ("ASC", ">")
    order = f"place, id {direction}" if discipline.by_priority else f"id {direction}"
    row = f"id, place, attempts, {dialect.epoch('created')}, mark, crc, payload, reason"
    of_ids = f"id {dialect.among('ids')}"
    by_id = f"{table} {dialect.hint('PRIMARY')}"
    is_due_set, now = dialect.is_due_set, dialect.now
    lock = "FOR UPDATE SKIP LOCKED"
    free = "due = NULL, holder = NULL, fence = NULL"
    # The sum keeps MySQL from the index of the states. There a caller's transaction at REPEATABLE READ would
    # lock the gap into which others claim.
    is_claim = f"state + 0 = {_CLAIMED} AND fence = %(fence)s AND (due IS NULL OR due > {now})"
    settle = (
        f"UPDATE {by_id} SET dedup = CASE WHEN %(frees)s THEN NULL ELSE dedup END, state = %(state)s,"
        f" due = {dialect.later('seconds')}, holder = NULL,"
        " reason = CASE WHEN %(tells)s THEN %(reason)s ELSE reason END"
    )
    is_held = f"state = {_CLAIMED} AND holder IS NOT NULL"
    is_delayed = f"state = {_DELAYED} AND {is_due_set}"
    next_due = f"SELECT due FROM {table} WHERE {is_due_set} ORDER BY due LIMIT 1"
    # A claim that would overlook what is due finds nothing, and its caller does what is due first.
    may = f"(%(promoted)s OR (({next_due}) <= {now}) IS NOT TRUE)"
    ready = f"{table} WHERE state = {_READY}"
    index, floor = "by_state", "id >= %(floor_id)s"
    if discipline.by_priority:
        index, floor = "by_place", dialect.at_floor
    at_floor = f"{table} {dialect.hint(index)} WHERE state = {_READY} AND {floor}"
    newly_due = newly_due_of(dialect, table)
    # Of an update MySQL computes each value from the columns that it has changed already, from left to right.
    exhausted = f"state = {_CLAIMED} AND attempts >= %(most)s"
    # Not EXISTS: PostgreSQL removes ORDER BY and LIMIT there, and then trusts its statistics.
    is_any_ready = f"(SELECT id FROM {table} WHERE state = {_READY} ORDER BY {order} LIMIT 1) IS NOT NULL"
    is_any_held = f"(SELECT holder FROM {table} WHERE holder IS NOT NULL ORDER BY holder LIMIT 1) IS NOT NULL"

    active = "NULL"
    if discipline.unique:
        active = f"(SELECT active.id FROM {table} AS active WHERE active.dedup = aside.item_key LIMIT 1)"
    aside = f"SELECT id, item_key, {active} AS active_for FROM {table} AS aside"

    def number_of(condition: str) -> str:
        return f"(SELECT count(*) FROM {table} WHERE {condition})"

    def up_to_limit(condition: str, order: str, among: str = "") -> str:
        return (
            f"(SELECT count(*) FROM (SELECT id, state FROM {table} WHERE {condition} ORDER BY {order}"
            f" LIMIT %(limit)s) AS counted{among})"
        )

    def of_credits(value: str, condition: str = "") -> str:
        return f"(SELECT {value} FROM {granted} WHERE number = {number}{condition})"

    is_ready = f"state = {_READY}"

    def look(which: str, due: str) -> str:
        is_any = f"(SELECT id FROM {which} ORDER BY {order} LIMIT 1) IS NOT NULL"
        return f"SELECT {is_any}, (SELECT {dialect.until('head.due')} FROM ({due}) AS head)"

    def lock_next(which: str, may: str) -> str:
        return f"SELECT {row} FROM {which} AND {may} ORDER BY {order} LIMIT %(limit)s {lock}"

    def at_once(which: str, may: str) -> dict[str, str | None]:
        return {
            "claim_next": dialect.claim_next(table, row, which, order, may, False),
            "claim_one": dialect.claim_next(table, row, which, order, may, True),
            "take_next": dialect.take_next(table, row, which, order, may, done, False),
            "take_one": dialect.take_next(table, row, which, order, may, done, True),
        }

    from_floor = {}
    if not discipline.newest_first:  # what is put there takes the place of what is not there any more
        may_newly = f"(%(promoted)s OR ({newly_due}) IS NULL)"
        from_floor = {"look": look(at_floor, newly_due), "lock_next": lock_next(at_floor, may_newly)}
        from_floor |= {name: text for name, text in at_once(at_floor, may_newly).items() if text is not None}
    full = at_once(ready, may)

    return RecordStatements(
        create=dialect.create_records(table, discipline),
        insert=dialect.insert(table, discipline.unique),
        insert_noted=dialect.insert_noted(dialect.insert(table, False), done),
        insert_by_credit=dialect.insert_by_credit(table, done, granted),
        insert_many=None if discipline.unique else dialect.insert_many(table),
        look=look(ready, next_due),
        claim_next=full["claim_next"],
        claim_one=full["claim_one"],
        take_next=full["take_next"],
        take_one=full["take_one"],
        lock_next=lock_next(ready, may),
        lock_by_id=f"SELECT {row} FROM {table} WHERE state = {_READY} AND id = %(id)s AND {may} {lock}",
        lock_after=f"SELECT {row} FROM {table} WHERE state = {_READY} AND id {beyond} %(id)s AND {may}"
        f" ORDER BY id {direction} LIMIT 1 {lock}",
        claim=f"UPDATE {by_id} SET state = {_CLAIMED}, holder = %(holder)s, fence = %(fence)s,"
        f" due = {dialect.later('lease')}, attempts = attempts + 1 WHERE {of_ids}",
        unclaim=f"UPDATE {by_id} SET state = {_READY}, attempts = attempts - 1, {free}"
        f" WHERE {of_ids} AND fence = %(fence)s",
        release_fence=f"UPDATE {table} SET state = {_READY}, attempts = attempts - 1, {free}"
        f" WHERE holder = %(holder)s AND fence = %(fence)s",
        finish_ready=f"UPDATE {by_id} SET state = %(state)s, attempts = attempts + 1, dedup = NULL"
        f" WHERE {of_ids}",
        delete=dialect.delete_several(table, of_ids, "mark"),
        settle=f"{settle} WHERE id = %(id)s AND {is_claim}",
        settle_many=f"{settle} WHERE {of_ids} AND {is_claim}",
        delete_claim=f"DELETE FROM {table} WHERE id = %(id)s AND {is_claim}",
        delete_claims=dialect.delete_several(table, f"{of_ids} AND {is_claim}", "mark"),
        select_fences=f"SELECT id, state, fence FROM {table} WHERE {of_ids}",
        draw_id=dialect.draw_id(table),
        renumber=f"UPDATE {table} SET id = %(new)s WHERE id = %(id)s",
        lock_due=f"SELECT id FROM {table} WHERE {is_due_set} AND due <= {now} ORDER BY due"
        f" LIMIT %(limit)s {lock}",
        lock_held=f"SELECT id FROM {table} WHERE holder = %(holder)s ORDER BY id LIMIT %(limit)s {lock}",
        lock_ownerless=f"SELECT id FROM {table} WHERE holder IS NOT NULL"
        f" AND NOT EXISTS (SELECT 1 FROM {holders} AS h WHERE h.holder = {table}.holder)"
        f" ORDER BY holder, id LIMIT %(limit)s {lock}",
        come_back=f"UPDATE {by_id} SET reason = CASE WHEN state <> {_CLAIMED} THEN reason"
        f" WHEN due <= {now} THEN {dialect.hexadecimal(LEASE_RAN_OUT.encode())} ELSE %(reason)s END,"
        f" dedup = CASE WHEN {exhausted} THEN NULL ELSE dedup END,"
        f" state = CASE WHEN {exhausted} THEN {_DEAD} ELSE {_READY} END, {free} WHERE {of_ids}",
        # Not in one statement, because MySQL would wait there for the locks of a caller's transaction.
        has_claims=f"SELECT 1 FROM {table} WHERE holder = %(holder)s LIMIT 1",
        forget_holder=f"DELETE FROM {holders} WHERE holder = %(holder)s",
        lock_ready=f"SELECT id FROM {table} WHERE state = {_READY} ORDER BY {order} LIMIT %(limit)s {lock}",
        lock_aside=f"{aside} WHERE state = %(state)s AND id > %(low)s ORDER BY state, id"
        f" LIMIT %(limit)s {lock}",
        lock_aside_by_id=f"{aside} WHERE id = %(id)s AND state IN ({_FAILED}, {_DEAD}) FOR UPDATE",
        requeue=f"UPDATE {by_id} SET state = {_READY}, attempts = 0, dedup = item_key WHERE {of_ids}",
        update=f"UPDATE {table} SET dedup = %(key)s, item_key = %(key)s, mark = %(mark)s, crc = %(crc)s,"
        f" payload = %(payload)s WHERE id = %(id)s AND state IN ({_READY}, {_CLAIMED}, {_DELAYED})",
        select_next=f"SELECT {row} FROM {table} WHERE state = {_READY} ORDER BY {order} LIMIT 1",
        select_page=f"SELECT {row} FROM {table} WHERE state = {_READY} AND id > %(low)s"
        " ORDER BY id LIMIT %(limit)s",
        scan_page=f"SELECT state, {row} FROM {table} WHERE id > %(low)s"
        f" AND state {dialect.among('states')} ORDER BY id LIMIT %(limit)s",
        last_id=f"SELECT max(id) FROM {table}",
        oldest=f"SELECT id FROM {table} WHERE state = %(state)s ORDER BY id DESC LIMIT 1 OFFSET %(keep)s",
        lock_oldest=f"SELECT id FROM {table} WHERE state = %(state)s AND id <= %(id)s ORDER BY state, id"
        f" LIMIT %(limit)s {lock}",
        has_key=f"SELECT EXISTS (SELECT 1 FROM {table} WHERE dedup = %(key)s)",
        count_ready=f"SELECT {up_to_limit(is_ready, order)}",
        counts=f"SELECT {number_of(f'state = {_READY}')}, {number_of(is_held)}, {number_of(is_delayed)}",
        room="SELECT "
        + ", ".join(
            (
                up_to_limit(is_ready, order),
                up_to_limit("holder IS NOT NULL", "holder"),
                # No index has delayed rows alone. If the limit cuts some off, these and the claimed ones
                # together reach it.
                up_to_limit(is_due_set, "due", f" WHERE state = {_DELAYED}"),
                up_to_limit(f"{is_due_set} AND due <= {now}", "due"),
                of_credits("coalesce(sum(credits), 0)"),
                of_credits("coalesce(sum(credits), 0)", " AND client < 0"),
                of_credits("min(capacity)", " AND credits > 0"),
            )
        ),
        has_unfinished=f"SELECT {is_any_ready} OR {is_any_held} OR ({next_due}) IS NOT NULL",
        stats="SELECT "
        + ", ".join(
            number_of(condition)
            for condition in (
                f"state = {_READY}",
                is_held,
                is_delayed,
                *(f"state = {NUMBERS[state]}" for state in (State.DONE, State.FAILED, State.DEAD)),
            )
        )
        + f", (SELECT -({dialect.until('created')}) FROM {table} WHERE state = {_READY} ORDER BY id LIMIT 1)"
        f", (SELECT puts FROM {collections} WHERE number = {number})"
        f" + (SELECT coalesce(sum(puts), 0) FROM {done} WHERE number = {number}), {dialect.size(table)}",
        token=dialect.token(table),
        from_floor=from_floor,
    )


def newly_due_of(dialect: Dialect, table: str) -> str:
    """Return the query of the first end that was later than so many seconds ago and is past."""
    return (
        f"SELECT due FROM {table} WHERE due > {dialect.ago('age')} AND due <= {dialect.now}"
        " ORDER BY due LIMIT 1"
    )
