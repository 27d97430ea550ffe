"""The plans of the statements of messages that run often. See :mod:`tests.servers.test_plans`."""

from __future__ import annotations

from persistcoll.engine.message_records import MessageEntry, MessagePolicy
from persistcoll.servers.address import MYSQL, POSTGRESQL
from persistcoll.servers.open import open_message_store
from persistcoll.servers.statements import PAGE
from persistcoll.testing.laws.message_store_harness import claims_of
from tests.servers.test_plans import full_scans

GROUPS, EACH = 1500, 3
PARAMETERS = {
    "limit": 1, "promoted": False, "holder": 1, "token": 1, "lease": None, "policy_lease": 9.0, "id": 5,
    "ids": [5, 6, 7], "now": 1e9, "topic": b"t5", "grp": b"g5", "returned": 0, "tells": True,
    "error": b"why", "until": 2e9, "state": 6, "keys": [b"k1", b"k2"], "names": [b"\0\2t5g5", b"\0\2t6g6"],
    "name": b"\0\2t5g5", "count": 3, "low": 5, "keep": 3, "paused": False, "interval": None,
    "burst": None, "next": None, "locker": None, "lock_token": None, "lock_until": None, "floor_place": 0.0,
    "floor_id": 1, "age": 1.0,
}  # fmt: skip
# Not among them: those that read all messages of some states in pages.
OFTEN = (
    "look", "claim_next", "claim_next_of", "claim_one", "claim_one_of", "lock_next", "lock_next_of", "claim",
    "heads_of", "lock_bare_rows", "delete_claim", "lock_due", "lock_held", "lock_lost", "select_bare",
    "lock_bare", "lock_rows", "make_ready", "make_delayed", "finish", "delete", "extend", "redrive",
    "lock_follower", "become_head", "lock_keys", "lock_free_keys", "select_keys", "keep_keys", "delete_keys",
    "lock_old_keys", "lock_groups", "lock_free_groups", "select_groups", "set_group", "delete_groups",
    "lock_gate", "lock_free_gate", "write_gate", "delete_gate", "select_next", "select_next_of", "select",
    "scan_dead_page", "last_id", "lock_oldest", "is_ready_of", "has_unfinished", "token",
)  # fmt: skip
# These sort no more rows than they are given ids or names.
BOUNDED = {"lock_bare_rows", "lock_rows", "lock_keys", "lock_free_keys", "lock_groups", "lock_free_groups"}


def test_no_statement_that_runs_often_reads_all_rows(place):
    store = open_message_store(
        place.address,
        name="jobs",
        policy=MessagePolicy(lease=3600.0, keep_done=10**6),
        serializer="raw",
        durability="process",
        schema=place.schema,
    )
    from_floor = {f"{name} from the floor": text for name, text in store._sql.from_floor.items()}
    analyzed = [f"{place.name}.pc_{name}" for name in (1, "keys", "groups", "topics", "expired")]
    wrong = {}

    def look(when):
        for name, text in [*((name, getattr(store._sql, name)) for name in OFTEN), *from_floor.items()]:
            if text is None:
                continue
            found = full_scans(place, text, PARAMETERS)
            if name.startswith("claim_next") and "never" in when:
                found = []  # A table of a few pages is read as a whole for a batch, but not for one message.
            if name in BOUNDED:
                found = [line for line in found if "Sort" not in line]
            # A table of MySQL without rows is read by any means.
            if found and (place.kind == POSTGRESQL or when != "empty"):
                wrong[name, when] = found

    def analyze():
        for table in analyzed:
            place.run(f"ANALYZE TABLE {table}" if place.kind == MYSQL else f"ANALYZE {table}")

    entries = [
        MessageEntry(b"x" * 50, topic=f"t{number % 20}", group=f"g{number}", key=b"%d %d" % (number, turn),
                     delay=turn, ttl=9e9)
        for turn in range(EACH) for number in range(GROUPS)
    ]  # fmt: skip
    if place.kind == POSTGRESQL:
        look("never analyzed, empty")
    analyze()
    store.put(entries)
    for number in range(GROUPS):
        store.pause(f"other {number}")
    store.ack(claims_of(store.claim(GROUPS // 3))[: PAGE // 4])
    look("analyzed while empty")
    analyze()
    look("analyzed while full")
    store.close()
    assert wrong == {}
