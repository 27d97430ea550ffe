"""What the laws T1, T2 and T4 say of records that are set aside: their reasons, and their return.

See :mod:`persistcoll.testing.laws.record_store_states` and
:mod:`persistcoll.testing.laws.record_store_claims`.
"""

from __future__ import annotations

from persistcoll.engine.contracts import Claim, RecordStore
from persistcoll.engine.records import (
    FIFO,
    HOLDER_CLOSED,
    HOLDER_DIED,
    LEASE_RAN_OUT,
    NACKED,
    UNIQUE,
    ClaimPolicy,
    Discipline,
    Entry,
)
from persistcoll.errors import DuplicateError, StaleClaimError
from persistcoll.testing.children import check
from persistcoll.testing.laws.queue_store_harness import claim_all, id_of
from persistcoll.testing.laws.record_store_harness import (
    DISCIPLINES,
    RecordStoreHarness,
    contents,
    entries,
    order,
    refuses,
)

__all__ = ["claimed_since_a_requeue", "reasons_are_kept", "requeued_keys", "requeued_to_their_places"]


def _reasons(table: RecordStore) -> dict[bytes, str | None]:
    return {record.payload: record.reason for _, record in contents(table)}


def _told(table: RecordStore, wanted: dict[bytes, str | None], what: str) -> None:
    found = _reasons(table)
    check(found == wanted, f"{what}: the reasons are {found}, not {wanted}")


def reasons_are_kept(harness: RecordStoreHarness) -> None:
    """Check that each record has the reason for which its last claim that was not acked ended."""
    retry = ClaimPolicy(lease=60.0, max_attempts=3, keep_done=10)
    table = harness.open(FIFO, retry, "reasons")
    table.append_many([b"a", b"b", b"c", b"d", b"e", b"f"])
    wanted: dict[bytes, str | None] = dict.fromkeys((b"a", b"b", b"c", b"d", b"e", b"f"))
    a, b, c, d, e, f = (table.claim(id_of) for _ in range(6))
    table.fail([a], "no such address")
    table.fail([b])
    table.nack(c, reason="busy")
    table.nack(d, harness.seconds(60.0), True)
    table.nack_many([e, f], "both")
    wanted |= {b"a": "no such address", b"c": "busy", b"d": NACKED, b"e": "both", b"f": "both"}
    _told(table, wanted, "given by the consumer")
    again = table.claim(lambda record: record)
    check(again.reason == "busy", f"claim() gave {again}, whose reason is not that of its last claim")
    claims: list[Claim] = []
    table.claim(id_of, claims=claims)
    table.release(claims)
    table.ack([table.claim(id_of)])
    _told(table, wanted, "after a claim, a release and an ack")
    harness.advance(60.0)
    wanted |= {b"c": LEASE_RAN_OUT}
    _told(table, wanted, "at the end of a lease")
    check(claim_all(table)[0] == again.id, "what its lease has left is not the first")
    table.fail([again.id])
    wanted |= {b"c": None}
    _told(table, wanted, "failed without a reason")
    _what_is_dead_says_why(harness)


def _what_is_dead_says_why(harness: RecordStoreHarness) -> None:
    retry = ClaimPolicy(lease=60.0, max_attempts=1)
    table = harness.open(FIFO, retry, "dead")
    table.append_many([b"a", b"b", b"c", b"d", b"e"])
    a, b, c = (table.claim(id_of) for _ in range(3))
    table.nack(a, reason="one")
    table.nack_many([b, c], "two")
    table.claim(id_of)
    harness.advance(60.0)
    wanted = {b"a": "one", b"b": "two", b"c": "two", b"d": LEASE_RAN_OUT, b"e": None}
    _told(table, wanted, "dead, however the last claim ended")
    check(table.stats().dead == 4, f"not four are dead: {contents(table)}")
    table.claim(id_of)
    if harness.capabilities.crashes:
        left = harness.crash(FIFO, retry, "dead")
        _told(left, wanted | {b"e": HOLDER_DIED}, "dead after a crash")
        left.close()
    table.close()
    told = _reasons(harness.open(FIFO, retry, "dead"))[b"e"]
    # A server may know no more than that a holder is gone.
    check(told in (HOLDER_CLOSED, HOLDER_DIED), f"dead by close(): the reason is {told}")


def requeued_to_their_places(harness: RecordStoreHarness) -> None:
    """Check that what is set aside is ready again in its place, as if it had never been claimed."""
    for discipline in DISCIPLINES:
        _requeued(harness, discipline)


def _requeued(harness: RecordStoreHarness, discipline: Discipline) -> None:
    retry = ClaimPolicy(max_attempts=1, keep_done=10)
    table = harness.open(discipline, retry, f"requeued {discipline.name}")
    table.put(entries(*"abcdefgh"))
    before = {record.id: record for record in table.records()}
    wanted = order(list(before.values()), discipline)
    ids = [table.claim(id_of) for _ in range(6)]
    table.ack([ids[1]])
    table.fail([ids[4], ids[0]], "given up")
    table.nack(ids[2], reason="no")
    table.nack_many([ids[5]], "no")
    rows, numbers = contents(table), table.stats()
    for id in (ids[1], ids[3], wanted[7].id, ids[-1] + 1000, 0, -1):
        check(table.requeue(id) == 0, f"requeue() of {id}, which is not set aside")
    check(contents(table) == rows, f"requeue() of what is not set aside made {contents(table)} of {rows}")
    check(table.requeue(ids[5]) == 1, "requeue() of one that is dead")
    check(table.requeue(ids[5]) == 0, "requeue() of one that is ready again")
    check(table.requeue() == 3, "requeue() did not find the three that are set aside")
    check(table.requeue() == 0, "requeue() found more the second time")
    back = [ids[0], ids[2], ids[4], ids[5]]
    why = dict.fromkeys(back, "no") | dict.fromkeys((ids[0], ids[4]), "given up")
    found = {record.id: record for record in table.records()}
    ready = sorted([*back, *(record.id for record in wanted[6:])])
    same = {id: before[id]._replace(reason=why.get(id)) for id in ready}
    check(found == same, f"{discipline.name}: requeued are {found}, not {same}")
    told = table.stats()
    counts = told.puts, told.gets, told.failed, told.dead
    check(counts == (numbers.puts, numbers.gets - 4, 0, 0), f"after requeue() of four {told}, of {numbers}")
    got = claim_all(table)
    places = [record.id for record in wanted if record.id in same]
    check(got == places, f"{discipline.name}: requeued and claimed in the order {got}, not {places}")
    table.nack_many(got)
    check(table.stats().dead == 6, "what was requeued has more attempts than the policy allows")


def claimed_since_a_requeue(harness: RecordStoreHarness) -> None:
    """Check that a claim of before a requeue settles nothing, although the attempts begin anew."""
    retry = ClaimPolicy(lease=60.0, max_attempts=1)
    table = harness.open(FIFO, retry, "claimed since")
    other = harness.open(FIFO, retry, "claimed since") if harness.capabilities.handles else table
    id = table.append(b"a")
    for first in (table, other):
        old: list[Claim] = []
        new: list[Claim] = []
        first.claim(id_of, claims=old)
        harness.advance(60.0)
        check(table.requeue(id) == 1, "requeue() did not find what its lease has left dead")
        got = table.claim(lambda record: record, claims=new)
        check(got.attempts == 1, f"the first attempt after a requeue is {got}")
        if first is not table:
            with refuses(StaleClaimError, "ack() of a claim of before a requeue", table, other):
                first.ack([id])
        check(first.release(old) == 0, "the release of a claim of before a requeue freed a later claim")
        check(table.claimed() == 1, "a claim of before a requeue has ended a later one")
        check(table.release(new) == 1, "release() of the later claim did not make its record ready")
    table.ack([table.claim(id_of)])


def requeued_keys(harness: RecordStoreHarness) -> None:
    """Check that a requeue makes no key active twice, and that of equal records the oldest returns."""
    retry = ClaimPolicy(max_attempts=1)
    table = harness.open(UNIQUE, retry, "requeued keys")
    entry = Entry(b"k", key=b"k")
    ids = []
    for settle in (table.nack, lambda id: table.fail([id]), lambda id: table.fail([id]), table.nack):
        ids += [table.claim(id_of) for _ in table.put([entry])]
        settle(ids[-1])
    table.put([Entry(b"l", key=b"l"), Entry(b"no key")])
    for _ in range(2):
        table.fail([table.claim(id_of)])
    (active,) = table.put([entry])
    table.put([Entry(b"x", key=b"x")])
    for state in ("ready", "claimed"):
        for id in ids:
            with refuses(DuplicateError, f"requeue() of what equals one that is {state}", table):
                table.requeue(id)
        if state == "ready":
            check(table.claim(id_of) == active, "the equal one is not the next")
    check(table.requeue() == 2, "requeue() of two that nothing equals, and of four that something does")
    ready = [record.payload for record in table.records()]
    check(ready == [b"l", b"no key", b"x"], f"after requeue() {ready} are ready")
    check(table.put([Entry(b"l", key=b"l")]) == [None], "the key of what was requeued is not active")
    table.ack([active or 0])
    check(table.requeue(ids[2]) == 1, "requeue() of one whose key is free")
    table.remove(ids[2])
    check(table.requeue() == 1, "of three equal ones that are set aside not one was requeued")
    oldest = [record.id for record in table.records() if record.payload == b"k"]
    check(oldest == ids[:1], f"of {ids[:2] + ids[3:]}, which are equal, {oldest} was requeued")
    check(table.has_active_key(b"k"), "the key of what was requeued is not active")
    check(table.requeue() == 0, "requeue() made a key active twice")
    table.remove(ids[0])
    check(not table.has_active_key(b"k"), "the key of what was requeued and removed is active")
    plain = harness.open(FIFO, retry, "requeued plain")
    plain.put([entry, entry])
    plain.fail([plain.claim(id_of), plain.claim(id_of)])
    check(plain.requeue() == 2, "refused, though the table is not of unique records")
