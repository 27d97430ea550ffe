"""The statements of SQLite for the records and the pairs of one collection: texts with ``?`` for parameters.

Their table names are made of the collection's number, never of its name, so a name is always data.

What is ready has a table of its own, so that nothing else ever lies in its way, and needs no index but the
id: a ``put`` changes one page. All else lies in another one, by who holds it, or by what became of it: to
finish a record changes one number. Measured beside one table with a state column and a partial index over
what is ready, in microseconds: a put 6 and not 9, a removal 7 and not 9.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import NamedTuple

from persistcoll.engine.records import Discipline, State

__all__ = ["PairStatements", "RecordStatements", "pair_statements", "record_statements"]


class RecordStatements(NamedTuple):
    """The statements of one table. A *row* is: id, priority, key, time, attempts, crc, payload."""

    create: tuple[str, ...]
    """Makes the table and its indexes."""
    load: str
    """last_id, absent, claimed, delayed, done, failed, dead, gone, highest ready id, next due time."""
    save: str
    """last_id, absent, claimed, delayed, done, failed, dead, gone -> stored."""
    insert_ready: str
    """A row -> ready."""
    select_ready: str
    """n -> the n ready rows that are next."""
    select_ready_by_id: str
    """id -> that ready row."""
    select_ready_after: str
    """id -> the ready row after it."""
    select_page: str
    """id, id, n -> the first n ready rows above the one and up to the other, by id."""
    delete_ready: str
    """id -> no ready row any more."""
    delete_first: str
    """n -> the n ready rows that are next are ready no more."""
    delete_all: str
    """No ready row any more."""
    claim: str
    """holder, until, id -> from ready to held; the ready row is still to be removed."""
    claim_first: str
    """holder, until, n -> likewise for the n that are next."""
    select_claimed: str
    """holder, id -> that held row."""
    claim_exists: str
    """holder, id, attempts -> a row, if that claim is in force."""
    delete_claim: str
    """holder, id, attempts -> not held any more."""
    select_of_holder: str
    """holder -> id, attempts of all that it holds."""
    delay_claim: str
    """until, holder, id -> held by nobody until then."""
    insert_delayed: str
    """until, a row -> held by nobody until then."""
    select_due: str
    """time, n -> holder, id, attempts of the first n that are due by then."""
    select_next_due: str
    """The earliest time at which one is due."""
    release: str
    """holder, id -> ready again; the held row is still to be dropped."""
    finish_done: str
    finish_failed: str
    finish_dead: str
    """holder, id, attempts -> done, failed or dead, in nobody's hands."""
    delete_oldest: Mapping[State, str]
    """n -> the n oldest rows of that state are gone."""
    update_ready: str
    """payload, crc, key, id -> a ready row's."""
    update_claimed: str
    """payload, crc, key, holder, id -> a held row's."""
    select_in_state: Mapping[State, str]
    """The rows in that state."""
    insert_key: str
    """key, id -> in force; refused if it is."""
    select_key: str
    """key -> the id for which it is in force."""
    delete_key: str
    """key -> not in force."""
    delete_ready_keys: str
    """No ready row's key is in force."""


class PairStatements(NamedTuple):
    """The statements of one mapping. A *row* is: serial, key, name, expires, crc, value."""

    create: tuple[str, ...]
    """Makes the table and its indexes."""
    load: str
    """last serial, how many of those up to it are absent, six zeros, highest serial, next time of expiry."""
    save: str
    """The first eight of them -> stored."""
    select_value: str
    """key -> value, crc, expires."""
    select: str
    """key -> its row."""
    select_end: Mapping[bool, str]
    """By whether the last: that row."""
    insert: str
    """A row, of a new key."""
    insert_if_absent: str
    """A row, unless its key is there."""
    upsert: str
    """A row: new, or of a key that is there, which keeps its serial and name."""
    update_unexpiring: str
    """crc, value, key -> in place of those of a key that never expires."""
    update: str
    """expires, crc, value, key -> in place of those of that key."""
    count_inserted: str
    """serial -> how many have a higher one, and the highest."""
    delete: str
    """key -> gone."""
    delete_all: str
    """All gone."""
    purge: str
    """time -> those that have expired by then are gone."""
    select_next_expiry: str
    """The earliest time at which one expires."""
    count_unexpired: str
    """time -> how many have not expired by then."""
    select_page: Mapping[tuple[bool, bool], str]
    """By whether reversed, and with values: serial, serial, n -> the first n rows between the two."""
    select_range: Mapping[tuple[bool, bool], str]
    """Likewise: key, key, n -> the first n rows from the one up to, not with, the other, by key."""


_ROW = "id, priority, key, time, attempts, crc, payload"
_COLUMNS = "priority, key BLOB, time REAL, attempts INTEGER, crc INTEGER, payload BLOB"
# In the place of a holder.
_NOBODY = 0
_FINISHED = {State.DONE: -1, State.FAILED: -2, State.DEAD: -3}


def record_statements(number: int, discipline: Discipline) -> RecordStatements:
    """The statements of the records with this number."""
    ready, held, due, keys = (f"{name}_{number}" for name in ("ready", "held", "due", "keys"))
    direction, beyond, before = ("DESC", "<", ">") if discipline.newest_first else ("ASC", ">", "<")
    order = "priority, id" if discipline.by_priority else f"id {direction}"
    one_held = "WHERE holder = ? AND id = ?"
    heads = f"id IN (SELECT id FROM {ready} ORDER BY {order} LIMIT ?)"
    if not discipline.by_priority:  # up to the last of them, in one go
        heads = f"id {before}= (SELECT id FROM {ready} ORDER BY {order} LIMIT 1 OFFSET ? - 1)"
    claim = (
        f"INSERT INTO {held} (holder, id, until, priority, key, time, attempts, crc, payload)"
        f" SELECT ?, id, ?, priority, key, time, attempts + 1, crc, payload FROM {ready}"
    )
    finish = f"UPDATE {held} SET holder = {{}}, until = NULL {one_held} AND attempts = ?"
    create = [
        f"CREATE TABLE {ready} (id INTEGER PRIMARY KEY, {_COLUMNS})",
        # By holder, so that what a dead one held is found without an index of its own, nor what is finished.
        f"""CREATE TABLE {held} (
            holder INTEGER NOT NULL, id INTEGER NOT NULL, until REAL, {_COLUMNS}, PRIMARY KEY (holder, id)
        ) WITHOUT ROWID""",
        f"CREATE INDEX {due} ON {held} (until) WHERE until IS NOT NULL",
    ]
    if discipline.by_priority:
        create.append(f"CREATE INDEX order_{number} ON {ready} (priority, id)")
    if discipline.unique:
        create.append(f"CREATE TABLE {keys} (key BLOB PRIMARY KEY, id INTEGER) WITHOUT ROWID")
    return RecordStatements(
        create=tuple(create),
        load="SELECT last_id, absent, claimed, delayed, done, failed, dead, gone,"
        f" (SELECT max(id) FROM {ready}), (SELECT min(until) FROM {held} WHERE until IS NOT NULL)"
        f" FROM counters WHERE number = {number}",
        save="UPDATE counters SET last_id = ?, absent = ?, claimed = ?, delayed = ?, done = ?, failed = ?,"
        f" dead = ?, gone = ? WHERE number = {number}",
        insert_ready=f"INSERT INTO {ready} ({_ROW}) VALUES (?, ?, ?, ?, ?, ?, ?)",
        select_ready=f"SELECT {_ROW} FROM {ready} ORDER BY {order} LIMIT ?",
        select_ready_by_id=f"SELECT {_ROW} FROM {ready} WHERE id = ?",
        select_ready_after=f"SELECT {_ROW} FROM {ready} WHERE id {beyond} ? ORDER BY id {direction} LIMIT 1",
        select_page=f"SELECT {_ROW} FROM {ready} WHERE id > ? AND id <= ? ORDER BY id LIMIT ?",
        delete_ready=f"DELETE FROM {ready} WHERE id = ?",
        delete_first=f"DELETE FROM {ready} WHERE {heads}",
        delete_all=f"DELETE FROM {ready}",
        claim=f"{claim} WHERE id = ?",
        claim_first=f"{claim} ORDER BY {order} LIMIT ?",
        select_claimed=f"SELECT {_ROW} FROM {held} {one_held}",
        claim_exists=f"SELECT 1 FROM {held} {one_held} AND attempts = ?",
        delete_claim=f"DELETE FROM {held} {one_held} AND attempts = ?",
        select_of_holder=f"SELECT id, attempts FROM {held} WHERE holder = ?",
        delay_claim=f"UPDATE {held} SET holder = {_NOBODY}, until = ? {one_held}",
        insert_delayed=f"INSERT INTO {held} (holder, until, {_ROW})"
        f" VALUES ({_NOBODY}, ?, ?, ?, ?, ?, ?, ?, ?)",
        select_due=f"SELECT holder, id, attempts FROM {held} WHERE until <= ? ORDER BY until LIMIT ?",
        select_next_due=f"SELECT min(until) FROM {held} WHERE until IS NOT NULL",
        release=f"INSERT INTO {ready} ({_ROW}) SELECT {_ROW} FROM {held} {one_held}",
        finish_done=finish.format(_FINISHED[State.DONE]),
        finish_failed=finish.format(_FINISHED[State.FAILED]),
        finish_dead=finish.format(_FINISHED[State.DEAD]),
        delete_oldest={
            state: f"DELETE FROM {held} WHERE holder = {end} AND id <="
            f" (SELECT id FROM {held} WHERE holder = {end} ORDER BY id LIMIT 1 OFFSET ? - 1)"
            for state, end in _FINISHED.items()
        },
        update_ready=f"UPDATE {ready} SET payload = ?, crc = ?, key = ? WHERE id = ?",
        update_claimed=f"UPDATE {held} SET payload = ?, crc = ?, key = ? {one_held}",
        select_in_state={
            State.READY: f"SELECT {_ROW} FROM {ready}",
            State.CLAIMED: f"SELECT {_ROW} FROM {held} WHERE holder > {_NOBODY}",
            State.DELAYED: f"SELECT {_ROW} FROM {held} WHERE holder = {_NOBODY}",
            **{state: f"SELECT {_ROW} FROM {held} WHERE holder = {end}" for state, end in _FINISHED.items()},
        },
        insert_key=f"INSERT INTO {keys} (key, id) VALUES (?, ?) ON CONFLICT DO NOTHING",
        select_key=f"SELECT id FROM {keys} WHERE key = ?",
        delete_key=f"DELETE FROM {keys} WHERE key = ?",
        delete_ready_keys=f"DELETE FROM {keys} WHERE key IN (SELECT key FROM {ready})",
    )


_PAIR = "serial, key, name, expires, crc, value"


def pair_statements(number: int) -> PairStatements:
    """The statements of the pairs with this number."""
    pairs, expiring = f"pairs_{number}", f"expiring_{number}"
    last = f"(SELECT max(serial) FROM {pairs})"
    # Any number comes before any text: what damage made of a time is left to who reads that pair.
    next_end = f"SELECT min(expires) FROM {pairs} WHERE expires < ''"
    insert = f"INSERT INTO {pairs} ({_PAIR}) VALUES (?, ?, ?, ?, ?, ?)"
    page, scan = {}, {}
    for reverse, values in itertools.product((False, True), repeat=2):
        select = f"SELECT {_PAIR if values else _PAIR.replace('value', 'NULL')} FROM {pairs} WHERE"
        order = "DESC" if reverse else "ASC"
        page[reverse, values] = f"{select} serial > ? AND serial < ? ORDER BY serial {order} LIMIT ?"
        scan[reverse, values] = f"{select} key >= ? AND key < ? ORDER BY key {order} LIMIT ?"
    return PairStatements(
        create=(
            # By serial: what is added comes to the end, what is replaced stays where it is, and an iteration
            # goes straight through. The value last, as what is read without it may be read without its pages.
            f"""CREATE TABLE {pairs} (
                serial INTEGER PRIMARY KEY, key BLOB, name BLOB, expires REAL, crc INTEGER, value BLOB
            )""",
            f"CREATE UNIQUE INDEX keys_{number} ON {pairs} (key)",
            f"CREATE INDEX {expiring} ON {pairs} (expires) WHERE expires IS NOT NULL",
        ),
        load=f"SELECT last_id, absent, 0, 0, 0, 0, 0, 0, {last}, ({next_end})"
        f" FROM counters WHERE number = {number}",
        save="UPDATE counters SET last_id = ?, absent = ?, claimed = ?, delayed = ?, done = ?, failed = ?,"
        f" dead = ?, gone = ? WHERE number = {number}",
        select_value=f"SELECT value, crc, expires FROM {pairs} WHERE key = ?",
        select=f"SELECT {_PAIR} FROM {pairs} WHERE key = ?",
        select_end={
            last: f"SELECT {_PAIR} FROM {pairs} ORDER BY serial {'DESC' if last else 'ASC'} LIMIT 1"
            for last in (False, True)
        },
        insert=insert,
        insert_if_absent=insert + " ON CONFLICT (key) DO NOTHING",
        upsert=insert + " ON CONFLICT (key) DO UPDATE SET expires = excluded.expires, crc = excluded.crc,"
        " value = excluded.value",
        update_unexpiring=f"UPDATE {pairs} SET crc = ?, value = ? WHERE key = ? AND expires IS NULL",
        update=f"UPDATE {pairs} SET expires = ?, crc = ?, value = ? WHERE key = ?",
        count_inserted=f"SELECT count(*), max(serial) FROM {pairs} WHERE serial > ?",
        delete=f"DELETE FROM {pairs} WHERE key = ?",
        delete_all=f"DELETE FROM {pairs}",
        purge=f"DELETE FROM {pairs} WHERE expires <= ?",
        select_next_expiry=next_end,
        count_unexpired=f"SELECT max(last_id, coalesce({last}, 0)) - absent"
        f" - (SELECT count(*) FROM {pairs} WHERE expires <= ?) FROM counters WHERE number = {number}",
        select_page=page,
        select_range=scan,
    )
