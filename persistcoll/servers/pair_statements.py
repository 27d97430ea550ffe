"""The statements of a dict on a server.

As those of :mod:`persistcoll.servers.statements` they are index scans whatever the statistics say, except
those that count or remove all pairs. A pair whose time is over is not there for any of them but those that
say so.
"""

from __future__ import annotations

from typing import NamedTuple

from persistcoll.servers.dialect import Dialect

__all__ = ["PageStatements", "PairStatements", "create_pairs", "pair_statements"]


class PageStatements(NamedTuple):
    """The statements that read pairs in one order from a bound on: bound, limit -> rows.

    The bound is an id or a key. In the order of ids or keys it is among what is read, in the reversed order
    it is not. There is no second bound, because PostgreSQL takes a range of a table that it has not analyzed
    for a small one, and sorts all of it for each page.
    """

    sizes: str
    """-> id, key, size of the value."""
    pairs: str
    """-> id, key, original key, seconds until it expires, crc, value."""
    keys: str
    """-> id, key, original key, seconds until it expires."""


class PairStatements(NamedTuple):
    """The statements of one dict."""

    lock_shared: str
    """-> until the end of the transaction no other one has the dict alone."""
    lock_alone: str
    """-> until the end of the transaction no other one writes."""
    get: str
    """key -> crc, value."""
    contains: str
    """key -> a row if the key is stored."""
    get_many: str
    """keys -> key, crc, value of those that are stored."""
    find_keys: str
    """keys -> id and whether it has expired, of those that are stored or expired."""
    lock_keys: str
    """keys -> the same, and locks them in their order."""
    lock_pair: str
    """key -> locks that pair; id, whether it has expired, crc, value."""
    insert: str
    """key, name, crc, size, value -> a new pair; raises or counts 0 if the key is there."""
    upsert: str
    """key, name, crc, size, value, seconds -> stored: a new pair, or a new value and end of the one there."""
    upsert_many: str
    """the same of each row -> the same of several, in their order."""
    update: str
    """id, crc, size, value -> a new value."""
    remove: str
    """key -> counts 1 if it was stored."""
    delete: str
    """ids -> deletes these rows."""
    delete_if_expired: str
    """ids -> deletes those of these rows whose time is over."""
    lock_expired: str
    """limit -> locks and returns the ids of pairs whose time is over."""
    delete_expired: str
    """Delete all pairs whose time is over."""
    delete_all: str
    """Delete all pairs."""
    select_end: dict[bool, str]
    """By whether it is the last: -> id, key, name, crc, value of the first or last pair."""
    last_id: str
    """-> the highest id, or null."""
    by_id: dict[bool, PageStatements]
    """By whether the order is reversed: what reads pairs in the order of their ids."""
    by_key: dict[bool, PageStatements]
    """The same in the order of their keys."""
    count_pairs: str
    """-> how many pairs there are."""
    stats: str
    """-> how many pairs there are, bytes."""
    token: str
    """As ``RecordStatements.token``."""


def create_pairs(dialect: Dialect, schema: str | None, number: int) -> tuple[str, ...]:
    """Return the statements that make the table of the dict with this number, and its indexes."""
    return dialect.create_pairs(dialect.table(schema, f"pc_{number}"))


def pair_statements(dialect: Dialect, schema: str | None, number: int, store_id: bytes) -> PairStatements:
    """Return the statements of the dict with this number.

    :param store_id: the dict's own, by which some servers lock it.
    """
    table = dialect.table(schema, f"pc_{number}")
    collections = dialect.table(schema, "pc_collections")
    now = dialect.now
    live = f"(due IS NULL OR due > {now})"
    of_key = "item_key = %(key)s"
    among_keys = f"item_key {dialect.among('keys', 'bytea')}"
    columns = "item_key, name, crc, size, value"
    pair = "id, item_key, name"
    left = dialect.until("due")
    is_over = f"{dialect.is_due_set} AND due <= {now}"
    find_keys = f"SELECT id, due <= {now} FROM {table} WHERE {among_keys} ORDER BY item_key"
    upsert = (
        f"INSERT INTO {table} ({columns}, due)"
        f" VALUES (%(key)s, %(name)s, %(crc)s, %(size)s, %(value)s, {dialect.later('seconds')})"
        f" {dialect.replace_pair}"
    )
    number_of = f"SELECT count(*) FROM {table} WHERE {live}"

    def pages(order: str) -> dict[bool, PageStatements]:
        def select(what: str, reverse: bool) -> str:
            begin, direction = ("<", "DESC") if reverse else (">=", "ASC")
            return (
                f"SELECT {what} FROM {table} WHERE {order} {begin} %(bound)s AND {live}"
                f" ORDER BY {order} {direction} LIMIT %(limit)s"
            )

        return {
            reverse: PageStatements(
                sizes=select("id, item_key, size", reverse),
                pairs=select(f"{pair}, {left}, crc, value", reverse),
                keys=select(f"{pair}, {left}", reverse),
            )
            for reverse in (False, True)
        }

    return PairStatements(
        lock_shared=dialect.lock_shared(collections, number, store_id),
        lock_alone=dialect.lock_alone(collections, number, store_id),
        get=f"SELECT crc, value FROM {table} WHERE {of_key} AND {live}",
        contains=f"SELECT 1 FROM {table} WHERE {of_key} AND {live}",
        get_many=f"SELECT item_key, crc, value FROM {table} WHERE {among_keys} AND {live}",
        find_keys=find_keys,
        lock_keys=f"{find_keys} FOR UPDATE",
        lock_pair=f"SELECT id, due <= {now}, crc, value FROM {table} WHERE {of_key} FOR UPDATE",
        insert=f"INSERT INTO {table} ({columns})"
        f" VALUES (%(key)s, %(name)s, %(crc)s, %(size)s, %(value)s) {dialect.unless_key}",
        upsert=upsert,
        upsert_many=dialect.upsert_pairs(table, upsert),
        update=f"UPDATE {table} SET crc = %(crc)s, size = %(size)s, value = %(value)s WHERE id = %(id)s",
        remove=f"DELETE FROM {table} WHERE {of_key} AND {live}",
        delete=f"DELETE FROM {table} WHERE id {dialect.among('ids')}",
        delete_if_expired=f"DELETE FROM {table} WHERE id {dialect.among('ids')} AND {is_over}",
        lock_expired=f"SELECT id FROM {table} WHERE {is_over} ORDER BY due LIMIT %(limit)s"
        " FOR UPDATE SKIP LOCKED",
        delete_expired=f"DELETE FROM {table} WHERE {is_over}",
        delete_all=f"DELETE FROM {table}",
        select_end={
            last: f"SELECT {pair}, crc, value FROM {table} WHERE {live}"
            f" ORDER BY id {'DESC' if last else 'ASC'} LIMIT 1"
            for last in (False, True)
        },
        last_id=f"SELECT max(id) FROM {table}",
        by_id=pages("id"),
        by_key=pages("item_key"),
        count_pairs=number_of,
        stats=f"SELECT ({number_of}), {dialect.size(table)}",
        token=dialect.token(table),
    )
