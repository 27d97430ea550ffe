"""The laws T1 and T2: states and lost claims. See :mod:`persistcoll.testing.laws.record_store`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from persistcoll.engine.contracts import Claim, RecordStore, Select
from persistcoll.engine.records import FIFO, UNIQUE, ClaimPolicy, State
from persistcoll.errors import Empty, NotClaimedError, StaleClaimError
from persistcoll.testing.children import check
from persistcoll.testing.laws.queue_store_harness import id_of
from persistcoll.testing.laws.record_store_harness import (
    RecordStoreHarness,
    RecordStoreLaw,
    contents,
    entries,
    keyed,
    record_store_law,
    refuses,
    standing,
)
from persistcoll.testing.laws.record_store_set_aside import (
    claimed_since_a_requeue,
    reasons_are_kept,
    requeued_to_their_places,
)

__all__ = ["STATE_LAWS"]

_FINISHED = (State.DONE, State.FAILED, State.DEAD)
# A store may keep so many acked records more than it was told to, before it trims.
_SLACK = 64


def _ids(table: RecordStore, state: State) -> list[int]:
    return [record.id for _, record in table.scan(state)]


@record_store_law("T1")
def states_change_one_way(harness: RecordStoreHarness) -> None:
    """Every record goes from ready or delayed to claimed, and on from claimed only.

    A claimed record becomes removed, done, failed, dead, delayed or ready; a done record is only ever
    removed, a failed or dead one also requeued. The reason is kept.
    """
    retry = ClaimPolicy(max_attempts=2, keep_done=1000)
    table = harness.open(UNIQUE, retry)
    table.put(keyed(*"abcdefghi"))
    for verb in (table.ack, table.fail):
        verb([table.claim(id_of)])
        verb([table.claim(id_of)])
        harness.advance(1.0)
    for _ in range(2):
        dying = table.claim(id_of)
        check(table.nack(dying, 0.0) == dying, "nack() gave another id")
        table.claim(id_of, Select(dying))
        check(table.nack(dying, harness.seconds(60.0), True) == dying, "what died has another id")
        harness.advance(1.0)
    table.nack(table.claim(id_of), harness.seconds(1e9))
    table.claim(id_of)
    wanted = dict.fromkeys((b"a", b"b"), (State.DONE, 1)) | dict.fromkeys((b"c", b"d"), (State.FAILED, 1))
    wanted |= dict.fromkeys((b"e", b"f"), (State.DEAD, 2)) | {b"g": (State.DELAYED, 1)}
    wanted |= {b"h": (State.CLAIMED, 1), b"i": (State.READY, 0)}
    found = standing(table)
    check(found == wanted, f"records are {found}, not {wanted}")
    _nothing_moves(harness, table, wanted)
    _what_dies(harness)
    reasons_are_kept(harness)
    requeued_to_their_places(harness)
    _what_is_purged(harness, table)
    _what_is_kept(harness)


def _nothing_moves(
    harness: RecordStoreHarness, table: RecordStore, wanted: dict[bytes, tuple[State, int]]
) -> None:
    """Check that only claimed records change their state, whatever is tried."""
    rows = contents(table)
    for state in (*_FINISHED, State.DELAYED, State.CLAIMED):
        for id in _ids(table, state):
            with refuses(Empty, f"claim() of what is {state.value}", table):
                table.claim(id_of, Select(id))
            check(table.remove(id) is None, f"remove() of what is {state.value}")
            if state not in (State.FAILED, State.DEAD):
                check(table.requeue(id) == 0, f"requeue() of what is {state.value}")
            if state is not State.CLAIMED:
                for verb in (table.ack, table.fail):
                    with refuses(NotClaimedError, f"{verb.__name__}() of what is {state.value}", table):
                        verb([id])
                with refuses(NotClaimedError, f"nack() of what is {state.value}", table):
                    table.nack(id)
            if state in _FINISHED:
                check(not table.update(id, b"new"), f"update() of what is {state.value}")
    check(table.reclaim() == 0, "reclaim() found a dead holder")
    for state in (State.READY, State.DELAYED, State.CLAIMED):
        with refuses(ValueError, f"purge() of what is {state.value}", table):
            table.purge(state)
    harness.advance(1e6)
    check(contents(table) == rows, f"something moved: {contents(table)}, of {rows}")
    check(table.clear() == 1, "clear() did not remove the one ready record")
    del wanted[b"i"]
    found = standing(table)
    check(found == wanted, f"after clear() of what is ready: {found}, not {wanted}")


def _what_dies(harness: RecordStoreHarness) -> None:
    """Check that a record which was claimed too often is dead, however its claim ends."""
    retry = ClaimPolicy(lease=60.0, max_attempts=1)
    table = harness.open(FIFO, retry, "dying")
    table.put(entries(*"abcd"))
    a, b, _ = (table.claim(id_of) for _ in range(3))
    check(table.nack(a) == a, "nack() gave another id")
    if harness.capabilities.crashes:
        left = harness.crash(FIFO, retry, "dying")
        found = standing(left)
        check(found[b"c"] == (State.DEAD, 1), f"a crash after the last attempt leaves {found}")
        left.close()
    harness.advance(60.0)
    table.claim(id_of)
    with refuses(StaleClaimError, "ack() of what died at the end of its lease", table):
        table.ack([b])
    table.close()
    found = standing(harness.open(FIFO, retry, "dying"))
    check(found == dict.fromkeys((b"a", b"b", b"c", b"d"), (State.DEAD, 1)), f"all should be dead: {found}")


def _what_is_purged(harness: RecordStoreHarness, table: RecordStore) -> None:
    """Check that a purge removes the oldest of one state, in whatever order they were finished."""
    for state in _FINISHED:
        one, two = _ids(table, state)
        others = [row for row in contents(table) if row[0] is not state]
        check(table.purge(state, 2) == 0, f"purge() that is to keep all that is {state.value}")
        check(table.purge(state, 1, 5) == 1, f"purge() that is to keep one of two that are {state.value}")
        check(_ids(table, state) == [two], f"purge() did not leave the newer of {one} and {two}")
        check(table.purge(state, 0, 0) == 0, "purge() of at most none")
        check(table.purge(state) == 1, f"purge() of one that is {state.value}")
        check(
            contents(table) == others, f"purge() of what is {state.value} made {contents(table)} of {others}"
        )
    # The records were finished in another order than they were put.
    ids = [id or 0 for id in table.put(keyed(*"uvwxyz"))]
    finished = [ids[index] for index in (3, 0, 5, 2, 4, 1)]
    for state, finish in ((State.DONE, table.ack), (State.FAILED, table.fail)):
        for id in finished[:3]:
            harness.advance(1.0)
            finish([table.claim(id_of, Select(id))])
        check(table.purge(state, limit=1) == 1, "purge() of one")
        present = sorted(finished[:3])
        check(_ids(table, state) == present[1:], f"purge() left {contents(table)}, of {present}")
        check(table.purge(state, 1) == 1, "purge() of all but one")
        check(_ids(table, state) == present[2:], f"purge() left {contents(table)}, of {present}")
        del finished[:3]


def _what_is_kept(harness: RecordStoreHarness) -> None:
    """Check that the newest acked records are kept, and not many more."""
    table = harness.open(FIFO, ClaimPolicy(keep_done=3), "kept")
    total = 150
    ids = list(table.append_many([b"%d" % number for number in range(total)]))
    for count in range(1, total + 1):
        harness.advance(1.0)
        if count % 2:
            table.ack([table.claim(id_of)])
        else:
            table.pop(id_of)
        done = table.stats().done
        check(min(count, 3) <= done <= 3 + _SLACK, f"of {count} acknowledged records {done} are kept, not 3")
        check(count % 50 != 0 or _ids(table, State.DONE) == ids[count - done : count], "not the newest")
    table = harness.open(FIFO, ClaimPolicy(), "not kept")
    table.append_many([b"a", b"b"])
    table.ack([table.claim(id_of)])
    table.pop(id_of)
    check(contents(table) == [], f"kept, though none should be: {contents(table)}")


@record_store_law("T2")
def lost_claims_do_nothing(harness: RecordStoreHarness) -> None:
    """Every lost claim can do nothing any more: StaleClaimError.

    A claim is lost when its lease ends, or when another thread nacks it.
    """
    retry = ClaimPolicy(lease=60.0, keep_done=100)
    table = harness.open(UNIQUE, retry)
    other = harness.another(table, UNIQUE, retry)
    tables = [table] if other is table else [table, other]
    table.put(keyed(*"abcdefgh"))
    claimed = [table.claim(id_of) for _ in range(7)]
    harness.advance(harness.time.before(60.0))
    table.ack(claimed[:1])
    harness.advance(60.0 - harness.time.before(60.0))
    fresh = table.claim(id_of, Select(claimed[6]))

    def lost(id: int, how: str) -> None:
        nonlocal fresh
        table.nack(fresh)
        fresh = table.claim(id_of, Select(claimed[6]))
        calls: dict[str, Callable[[], Any]] = {
            "ack()": partial(table.ack, [id]),
            "ack() of it and another": partial(table.ack, [fresh, id]),
            "fail()": partial(table.fail, [id]),
            "fail() of it and another": partial(table.fail, [fresh, id]),
            "nack()": partial(table.nack, id),
            "nack() with a delay": partial(table.nack, id, harness.seconds(5.0)),
            "nack() to the back": partial(table.nack, id, to_back=True),
            "nack_many() of it and another": partial(table.nack_many, [fresh, id]),
        }
        for name, call in calls.items():
            with refuses(StaleClaimError, f"{name}, the claim lost to {how},", *tables):
                _naming(id, call)

    for id in claimed[1:6]:
        lost(id, "the end of its lease")
    if other is not table:
        back = _settled_elsewhere(other, claimed[1:5], harness.seconds(60.0), lost)
        other.remove(claimed[5])
        lost(claimed[5], "another one who discarded it")
        harness.advance(60.0)
        fresh = table.claim(id_of, Select(claimed[6]))
        for id in (back, claimed[4]):
            check(other.claim(id_of, Select(id)) == id, "what was lost cannot be claimed")
            other.ack([id])
        _released_twice(harness)
    # A new claim is as valid as any.
    table.ack([fresh])
    with refuses(NotClaimedError, "ack() of what this table acknowledged", *tables):
        table.ack([fresh])
    if other is table:
        again = table.claim(id_of, Select(claimed[1]))
        table.fail([again])
        with refuses(NotClaimedError, "ack() of what this table set aside", table):
            table.ack([again])
    claimed_since_a_requeue(harness)


def _naming(id: int, call: Callable[[], Any]) -> None:
    """Check that the error which the call raises names this record."""
    try:
        call()
    except StaleClaimError as error:
        check(error.ids == (id,), f"the error for a lost claim of {id} names {error.ids}")
        raise


def _settled_elsewhere(
    other: RecordStore, ids: Sequence[int], delay: float, lost: Callable[[int, str], None]
) -> int:
    """Claim what was lost through another store, and settle it in every way.

    :return: the new id of the record that went to the end.
    """
    ways: dict[str, Callable[[int], Any]] = {
        "another store, which acked it": lambda id: other.ack([id]),
        "another store, which set it aside": lambda id: other.fail([id]),
        "another store, which nacked it to the end": lambda id: other.nack(id, to_back=True),
        "another store, which delayed it": lambda id: other.nack(id, delay),
    }
    results = []
    for id, (how, settle) in zip(ids, ways.items(), strict=True):
        other.claim(id_of, Select(id))
        lost(id, "another store, which claimed it then")
        results.append(settle(id))
        lost(id, how)
    return int(results[2])


def _released_twice(harness: RecordStoreHarness) -> None:
    """Check a release that is sent again after its answer was lost, when another store has the claim."""
    table, other = (harness.open(name="released twice") for _ in range(2))
    id = table.append(b"a")
    claims: list[Claim] = []
    table.claim(id_of, claims=claims)
    check(table.release(claims) == 1, "release() of a claim did not make its record ready")
    check(other.claim(id_of) == id, "what was released cannot be claimed elsewhere")
    check(table.release(claims) == 0, "release(), sent again, counted another store's claim")
    check(other.claimed() == 1, "release(), sent again, freed another store's claim")
    again: list[Claim] = []
    other.nack(id)
    table.claim(id_of, claims=again)
    check(table.release(claims) == 0, "release(), sent again, freed a later claim")
    check(table.release(again) == 1, "release() of the later claim did not make its record ready")


STATE_LAWS: tuple[RecordStoreLaw, ...] = (states_change_one_way, lost_claims_do_nothing)
"""By number."""
