"""The plans of the statements that run often: by an index, whatever the server's statistics say.

A queue's table is empty at one moment and full at the next, so the statistics are those of another table. The
plans are looked at three times: never analyzed, analyzed while empty, and analyzed while full.
"""

from __future__ import annotations

from itertools import pairwise

import pytest

from persistcoll.engine.records import FIFO, LIFO, PRIORITY, UNIQUE, ClaimPolicy, Entry
from persistcoll.servers.address import MYSQL, POSTGRESQL
from persistcoll.servers.open import open_pair_store, open_record_store
from persistcoll.servers.postgres.connection import RANDOM_PAGE_COST
from persistcoll.servers.postgres.protocol import compiled
from persistcoll.servers.statements import PAGE

ROWS = 3000
PARAMETERS = {
    "limit": 1, "promoted": False, "holder": 1, "fence": 1, "lease": 1.0, "id": 5, "ids": [5, 6, 7],
    "client": 1, "op": 1, "number": 1, "puts": 0, "most": 1, "state": 4, "frees": False, "seconds": None,
    "new": 99999, "key": b"k", "mark": 1, "crc": 1, "payload": b"", "low": 5, "keep": 3,
    "tells": True, "reason": b"why", "floor_place": 0.0, "floor_id": 1, "age": 1.0,
}  # fmt: skip
PAIR_PARAMETERS = {
    **PARAMETERS, "key": b"key 5", "keys": [b"key 5", b"key 6", b"key 7"], "name": b"", "size": 1,
    "value": b"x", "seconds": None,
}  # fmt: skip
OF_PAIRS = (
    "get", "contains", "get_many", "find_keys", "lock_keys", "lock_pair", "update", "remove", "delete",
    "delete_if_expired", "lock_expired", "last_id", "token",
)  # fmt: skip
OFTEN = (
    "look", "claim_next", "claim_one", "take_next", "take_one", "lock_next", "lock_by_id", "lock_after",
    "claim", "unclaim", "finish_ready", "delete", "settle", "settle_many", "delete_claim", "delete_claims",
    "renumber", "lock_due", "lock_held", "come_back", "lock_ready", "lock_aside", "lock_aside_by_id",
    "requeue", "update", "select_next", "select_page", "last_id", "lock_oldest", "has_key", "count_ready",
    "has_unfinished", "token", "room",
)  # fmt: skip


def plan_for_any(place, text):
    """Return the lines of the plan that a session may keep for all parameters.

    It plans anew each time where the state that is looked for is a parameter, because that decides whether it
    may use the index of the states.
    """
    _, prepared, names = compiled(text)
    if "WHERE state = %(state)s" in text:
        return []
    place.run("SET plan_cache_mode = force_generic_plan")
    place.run(f"SET random_page_cost = {RANDOM_PAGE_COST}")
    place.run(f"PREPARE looked_at AS {prepared.decode()}")
    nulls = f"({', '.join(['NULL'] * len(names))})" if names else ""
    lines = [line for (line,) in place.run(f"EXPLAIN EXECUTE looked_at{nulls}")]
    place.run("DEALLOCATE looked_at")
    return lines


def full_scans(place, text, parameters):
    """Return what a plan does that grows with the table: scans of all rows, and sorts."""
    if place.kind == POSTGRESQL:
        place.run(f"SET search_path = {place.name}")
        lines = [line for (line,) in place.run(f"EXPLAIN {text}", **parameters)]
        lines += plan_for_any(place, text)
        return [line for line in lines if "Seq Scan on pc_" in line or "Sort" in line]
    place.run(f"USE {place.name}")
    rows = place.run(f"EXPLAIN {text}", **parameters)
    scans = [row for row in rows if row[3] == "ALL" and str(row[2]).startswith("pc_")]
    return scans + [row for row in rows if "filesort" in str(row[-1])]


def other_indexes(place, text):
    """Return the part of a plan of a look from the floor that searches for ready rows by a wrong index.

    By that of the ids it would read the claimed and finished rows that are not before the floor.
    """
    if place.kind == MYSQL:
        rows = place.run(f"EXPLAIN {text}", **PARAMETERS)
        return [row for row in rows if str(row[5]) == "PRIMARY"]
    lines = [line for (line,) in place.run(f"EXPLAIN {text}", **PARAMETERS)]
    return [line for line, after in pairwise(lines) if "pc_1_pkey" in line and ">=" in after]


@pytest.mark.parametrize("discipline", [FIFO, LIFO, PRIORITY, UNIQUE], ids=lambda each: each.name)
def test_no_statement_that_runs_often_reads_all_rows(place, discipline):
    store = open_record_store(
        place.address,
        name="jobs",
        kind=discipline.name,
        discipline=discipline,
        retry=ClaimPolicy(keep_done=10**6, lease=3600.0),
        serializer="raw",
        durability="process",
        schema=place.schema,
    )
    table = f"{place.name}.pc_1"
    analyze = f"ANALYZE TABLE {table}" if place.kind == MYSQL else f"ANALYZE {table}"
    wrong = {}

    def look(when):
        texts = {name: getattr(store._sql, name) for name in OFTEN}
        for name, text in [*texts.items(), *store._sql.from_floor.items()]:
            if text is None or (name == "has_key" and not discipline.unique):
                continue
            found = full_scans(place, text, PARAMETERS)
            if text not in texts.values():
                found += other_indexes(place, text)
            # A table of MySQL without rows is read by any means.
            if found and (place.kind == POSTGRESQL or when != "empty"):
                wrong[name, when] = found

    fill = [Entry(b"x" * 50, key=b"%d" % number) for number in range(ROWS)]
    if place.kind == POSTGRESQL:
        look("never analyzed, empty")
    place.run(analyze)
    store.put(fill)
    store.ack(store.claim_many(ROWS // 3, lambda record: record.id))
    store.claim_many(ROWS // 3, lambda record: record.id)
    look("analyzed while empty")
    place.run(analyze)
    look("analyzed while full")
    store.close()
    assert wrong == {}


def test_pages_of_many_rows_are_read_by_an_index_before_any_statistics(place, opened):
    if place.kind == MYSQL:
        pytest.skip("it looks at the index itself before it makes a plan")
    store = opened()
    table = f"{place.name}.pc_1"
    place.run(f"ALTER TABLE {table} SET (autovacuum_enabled = false)")
    place.run(f"INSERT INTO {table} (mark, crc, payload) SELECT 1, 1, 'x' FROM generate_series(1, 200000)")
    parameters = {"low": 5, "limit": PAGE, "states": [0, 1, 2]}
    place.run(f"SET search_path = {place.name}")
    for text in (store._sql.select_page, store._sql.scan_page):
        lines = [line for (line,) in place.run(f"EXPLAIN {text}", **parameters)]
        assert not [line for line in lines if "Seq Scan" in line or "Sort" in line], lines


def pages_of_pairs(sql):
    """Return the statements with which a dict is read page by page, by name, and their parameters."""
    for order, bound in (("by_id", 700), ("by_key", b"key 5")):
        for reverse, page in getattr(sql, order).items():
            for what, text in page._asdict().items():
                yield f"{order} {what} {reverse}", text, {"bound": bound, "limit": PAGE}


def test_no_statement_of_a_dict_reads_all_rows(place):
    store = open_pair_store(
        place.address, name="d", serializer="raw", durability="process", schema=place.schema
    )
    table = f"{place.name}.pc_1"
    analyze = f"ANALYZE TABLE {table}" if place.kind == MYSQL else f"ANALYZE {table}"
    wrong = {}
    # PostgreSQL sorts a small table rather than read it by an index.
    rows = 20_000 if place.kind == POSTGRESQL else ROWS

    def look(when):
        texts = {name: getattr(store._sql, name) for name in OF_PAIRS}
        texts |= {f"end {last}": text for last, text in store._sql.select_end.items()}
        for name, text in texts.items():
            found = full_scans(place, text, PAIR_PARAMETERS)
            # The keys that a call names are sorted, however many pairs there are.
            wrong[name, when] = [each for each in found if "keys" not in name or "Sort" not in str(each)]
        # A page of an empty table is sorted, because that is all of it.
        for name, text, parameters in pages_of_pairs(store._sql) if store.count() else ():
            wrong[name, when] = full_scans(place, text, parameters)

    def fill():
        store.set_many([(b"key %d" % number, b"", b"x" * 50) for number in range(rows)])
        store.set_many([(b"until %d" % number, b"", b"x" * 50) for number in range(ROWS // 3)], 3600.0)

    if place.kind == POSTGRESQL:
        look("never analyzed, empty")
    fill()
    look("never analyzed")
    place.run(f"TRUNCATE TABLE {table}")
    place.run(analyze)
    fill()
    look("analyzed while empty")
    place.run(analyze)
    look("analyzed while full")
    store.close()
    assert {name: found for name, found in wrong.items() if found} == {}
