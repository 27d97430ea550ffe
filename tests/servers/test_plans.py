"""The plans of the statements that run often: by an index, whatever the server's statistics say.

A queue's table is empty at one moment and full at the next, so the statistics are those of another table. The
plans are looked at three times: never analyzed, analyzed while empty, and analyzed while full.
"""

from __future__ import annotations

import pytest

from persistcoll.engine.records import FIFO, LIFO, PRIORITY, UNIQUE, ClaimPolicy, Entry
from persistcoll.servers.address import MYSQL, POSTGRESQL
from persistcoll.servers.handle import PAGE
from persistcoll.servers.open import open_pair_store, open_record_store

ROWS = 3000
PARAMETERS = {
    "limit": 1, "promoted": False, "holder": 1, "fence": 1, "lease": 1.0, "id": 5, "ids": [5, 6, 7],
    "most": 1, "state": 4, "frees": False, "seconds": None, "new": 99999, "key": b"k", "mark": 1, "crc": 1,
    "payload": b"", "low": 5, "high": 90, "keep": 3, "tells": True, "reason": b"why",
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
    "look", "claim_next", "lock_next", "lock_by_id", "lock_after", "claim", "unclaim", "finish_ready",
    "delete", "settle", "delete_claim", "renumber", "lock_due", "lock_held", "come_back", "lock_ready",
    "lock_aside", "lock_aside_by_id", "requeue", "update", "select_next", "select_page", "last_id",
    "lock_oldest", "has_key", "count_ready", "has_unfinished", "token",
)  # fmt: skip


def full_scans(place, text, parameters):
    """Return what a plan does that grows with the table: scans of all rows, and sorts."""
    if place.kind == POSTGRESQL:
        place.run(f"SET search_path = {place.name}")
        lines = [line for (line,) in place.run(f"EXPLAIN {text}", **parameters)]
        return [line for line in lines if "Seq Scan on pc_" in line or "Sort" in line]
    place.run(f"USE {place.name}")
    rows = place.run(f"EXPLAIN {text}", **parameters)
    scans = [row for row in rows if row[3] == "ALL" and str(row[2]).startswith("pc_")]
    return scans + [row for row in rows if "filesort" in str(row[-1])]


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
        for name in OFTEN:
            text = getattr(store._sql, name)
            if text is None or (name == "has_key" and not discipline.unique):
                continue
            found = full_scans(place, text, PARAMETERS)
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
