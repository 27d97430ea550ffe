"""The plans of the statements that run often: by an index, whatever the server's statistics say.

A queue's table is empty at one moment and full at the next, so the statistics are those of another table. The
plans are looked at three times: never analyzed, analyzed while empty, and analyzed while full.
"""

from __future__ import annotations

import pytest

from persistcoll.engine.records import FIFO, LIFO, PRIORITY, UNIQUE, ClaimPolicy, Entry
from persistcoll.servers.address import MYSQL, POSTGRESQL
from persistcoll.servers.open import open_record_store

ROWS = 3000
PARAMETERS = {
    "limit": 1, "promoted": False, "holder": 1, "fence": 1, "lease": 1.0, "id": 5, "ids": [5, 6, 7],
    "most": 1, "state": 4, "frees": False, "seconds": None, "new": 99999, "key": b"k", "mark": 1, "crc": 1,
    "payload": b"", "low": 5, "high": 90, "keep": 3, "tells": True, "reason": b"why",
}  # fmt: skip
OFTEN = (
    "look", "claim_next", "lock_next", "lock_by_id", "lock_after", "claim", "unclaim", "finish_ready",
    "delete", "settle", "delete_claim", "renumber", "lock_due", "lock_held", "come_back", "lock_ready",
    "lock_aside", "lock_aside_by_id", "requeue", "update", "select_next", "select_page", "last_id",
    "lock_oldest", "has_key", "count_ready", "has_unfinished", "token",
)  # fmt: skip


def full_scans(place, text, parameters=PARAMETERS):
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
            found = full_scans(place, text)
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
