"""The law T5: callers' transactions. See :mod:`persistcoll.testing.laws.record_store`."""

from __future__ import annotations

from persistcoll.engine.contracts import RecordStore
from persistcoll.engine.records import FIFO, ClaimPolicy, Record
from persistcoll.errors import StaleClaimError
from persistcoll.testing.children import check
from persistcoll.testing.laws.queue_store_harness import id_of, payloads, token
from persistcoll.testing.laws.record_store_harness import (
    RecordStoreHarness,
    RecordStoreLaw,
    contents,
    record_store_law,
    refuses,
)

__all__ = ["JOINED_LAWS"]


def _payload(record: Record) -> bytes:
    return record.payload


@record_store_law("T5", "joins")
def part_of_the_callers_transaction(harness: RecordStoreHarness) -> None:
    """All changes of a joined store are part of the caller's transaction.

    After its commit all see them, before it nothing else does, and after a rollback they did not happen. Then
    a claim that was made in it settles nothing.
    """
    policy = ClaimPolicy()
    table = harness.open(FIFO, policy)
    other = harness.another(table, FIFO, policy)
    for commits in (False, True):
        _joined(harness, table, other, commits)
        _claimed(harness, table, other, commits)


def _joined(harness: RecordStoreHarness, table: RecordStore, other: RecordStore, commits: bool) -> None:
    connection = harness.connect(table)
    table.append_many([b"a", b"b", b"c", b"d"])
    held, given = table.claim(id_of), table.claim(id_of)
    before, numbers, seen = contents(table), table.stats(), token(other)
    connection.begin()
    joined = table.joined(connection)
    joined.append(b"new")
    check(joined.pop(_payload) == b"c", "a joined pop() did not give the next record")
    joined.ack([held])
    joined.nack(given)
    check(payloads(joined) == [b"b", b"d", b"new"], f"a transaction sees {payloads(joined)}")
    for each in (table, other):
        check(contents(each) == before, f"before the commit there is {contents(each)}, not {before}")
    check(other.claim(_payload) == b"d", "what a transaction popped is claimed by another one, or locks all")
    other.clear()
    check(payloads(table) == [b"c"], f"clear() beside a transaction that popped c left {payloads(table)}")
    if commits:
        connection.commit()
        wanted, unfinished = [b"b", b"new"], 3
        with refuses(StaleClaimError, "ack() of what a joined store acknowledged", table, other):
            table.ack([held])
    else:
        connection.rollback()
        wanted, unfinished = [b"c"], 4
    check(token(other) != seen, "change_token() is still the same")
    for each in (table, other):
        left = payloads(each), each.unfinished()
        check(left == (wanted, unfinished), f"ready, unfinished: {left}, not {(wanted, unfinished)}")
    puts = table.stats().puts - numbers.puts
    check(puts == commits, f"a transaction with one append() counted {puts} puts")
    if not commits:
        table.ack([held])
        table.nack(given)
    contents(table)
    table.clear()
    for id in [record.id for _, record in other.scan()]:
        other.ack([id])


def _claimed(harness: RecordStoreHarness, table: RecordStore, other: RecordStore, commits: bool) -> None:
    """Check that a claim which a joined store makes, and its end, are part of the transaction."""
    connection = harness.connect(table)
    table.append_many([b"a", b"b", b"c"])
    before = contents(table)
    connection.begin()
    joined = table.joined(connection)
    settled = joined.claim(id_of)
    (kept,) = joined.claim_many(1, id_of)
    check(joined.claimed() == 2, f"a transaction that claimed two records counts {joined.claimed()}")
    joined.ack([settled])
    check((joined.claimed(), payloads(joined)) == (1, [b"c"]), "a joined ack() of a joined claim() left it")
    for each in (table, other):
        check(contents(each) == before, f"before the commit there is {contents(each)}, not {before}")
    check(other.claim(_payload) == b"c", "what a transaction claimed is claimed by another one, or locks all")
    if commits:
        connection.commit()
        ended = [settled]
    else:
        connection.rollback()
        ended = [settled, kept]
    left = table.claimed(), payloads(table)
    wanted = (2, []) if commits else (1, [b"a", b"b"])
    check(left == wanted, f"claimed, ready: {left}, not {wanted}")
    for id in ended:
        with refuses(StaleClaimError, "ack() of a claim that has ended", table, other):
            table.ack([id])
    if commits:
        table.ack([kept])
    other.clear()
    for id in [record.id for _, record in other.scan()]:
        other.ack([id])


JOINED_LAWS: tuple[RecordStoreLaw, ...] = (part_of_the_callers_transaction,)
"""By number."""
