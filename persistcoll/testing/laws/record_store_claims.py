"""The laws T3 and T4: claims that end, and keys. See :mod:`persistcoll.testing.laws.record_store`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import astuple
from functools import partial
from typing import Any

from persistcoll.engine.contracts import RecordStore, Select
from persistcoll.engine.records import (
    FIFO,
    LEASE_RAN_OUT,
    PRIORITY,
    UNIQUE,
    Backoff,
    ClaimPolicy,
    Entry,
    Record,
    State,
)
from persistcoll.errors import DuplicateError, Full
from persistcoll.testing.children import check, in_forked_child
from persistcoll.testing.laws.queue_store_harness import claim_all, id_of, token
from persistcoll.testing.laws.record_store_harness import (
    RecordStoreHarness,
    RecordStoreLaw,
    contents,
    keyed,
    record_store_law,
    refuses,
    standing,
)
from persistcoll.testing.laws.record_store_set_aside import requeued_keys

__all__ = ["CLAIM_LAWS"]

_NOTICED = 30.0
"""How many seconds a busy store may take to look for holders that died, on a slow machine."""


@record_store_law("T3")
def what_nobody_holds_is_ready(harness: RecordStoreHarness) -> None:
    """When a lease ended or the holder died, the record is ready again.

    What a living holder has claimed is not.
    """
    _leases(harness)
    for resume in (True, False):
        _holders(harness, resume)
    _holder_of_a_busy_store(harness)
    _delays(harness)
    _seen_at_once(harness)


def _leases(harness: RecordStoreHarness) -> None:
    retry = ClaimPolicy(lease=60.0, backoff=Backoff(base=1000.0, jitter=0.0))
    table = harness.open(FIFO, retry, "leased")
    other = harness.open(FIFO, retry, "leased") if harness.capabilities.handles else table
    table.append_many([b"a", b"b", b"c"])
    expected = list(table.records())
    table.claim(id_of)
    harness.advance(30.0)
    table.claim(id_of)
    harness.advance(harness.time.before(30.0))
    for each in (table, other):
        states = {payload: state for payload, (state, _) in standing(each).items()}
        wanted = {b"a": State.CLAIMED, b"b": State.CLAIMED, b"c": State.READY}
        check(states == wanted, f"before its lease ends: {states}, not {wanted}")
    check(other.reclaim() == 0, "reclaim() made ready what a living holder has claimed")
    harness.advance(30.0 - harness.time.before(30.0))
    for each in (table, other):
        found = list(each.records())
        wanted_records = [expected[0]._replace(attempts=1, reason=LEASE_RAN_OUT), expected[2]]
        check(found == wanted_records, f"at the end of a lease: {found}, not {wanted_records}")
        contents(each)
    check(other.peek(id_of) == expected[0].id, "peek() is not at what a lease has left")
    got = other.claim(lambda record: record)
    first = expected[0]._replace(attempts=2, reason=LEASE_RAN_OUT)
    check(got == first, f"{got} was taken, in the place of {first}")
    harness.advance(30.0)
    check(claim_all(other) == [record.id for record in expected[1:]], "not what a lease has left")
    harness.advance(60.0)
    check(other.clear() == 3, "clear() did not remove what leases have left")


_HELD = {b"a": (State.CLAIMED, 1), b"b": (State.CLAIMED, 1), b"c": (State.READY, 0)}
_FREE = {b"a": (State.READY, 1), b"b": (State.READY, 1), b"c": (State.READY, 0)}


def _holders(harness: RecordStoreHarness, resume: bool) -> None:
    # A dead holder has not nacked, so there is no back-off.
    retry = ClaimPolicy(auto_reclaim=resume, backoff=Backoff(base=1000.0, jitter=0.0))
    reopen = partial(harness.open, FIFO, retry, f"held {resume}")
    table = reopen()
    table.append_many([b"a", b"b", b"c"])
    table.claim_many(2, id_of)
    harness.advance(1e6)
    found = standing(table)
    check(found == _HELD, f"without a lease, after a long time: {found}, not {_HELD}")
    if harness.capabilities.handles:
        other = reopen()
        check(other.reclaim() == 0, "reclaim() made ready what a living holder has claimed")
        found = standing(other)
        check(found == _HELD, f"opened elsewhere: {found}, not {_HELD}")
        other.close()
        found = standing(table)
        check(found == _HELD, f"closed elsewhere: {found}, not {_HELD}")
    if harness.capabilities.crashes:
        left = harness.crash(FIFO, retry, f"held {resume}")
        _comes_back(left, resume, "after a crash")
        left.close()
    beside = harness.capabilities.handles
    left = reopen() if beside else table
    table.close()
    _comes_back(left if beside else reopen(), resume, "closed by its holder")


def _holder_of_a_busy_store(harness: RecordStoreHarness) -> None:
    """Check that what a process had claimed when it died comes back while others always find something."""
    if not (harness.capabilities.processes and harness.capabilities.forks):
        return
    table = harness.open(FIFO, ClaimPolicy(), "busy")
    table.append_many([b"of the living", b"of the dead"])
    living = table.claim(id_of)

    def claim_and_die() -> None:  # without a close
        table.after_fork_in_child()
        table.claim(id_of)

    in_forked_child(claim_and_die)
    harness.notice_death(table)
    end = time.monotonic() + _NOTICED
    while True:
        table.append(b"more")
        record = table.claim(lambda record: record)
        check(record.id != living, "a claim of a living holder came back")
        if record.payload == b"of the dead":
            break
        table.ack([record.id])
        check(time.monotonic() < end, "what a dead process has claimed stays claimed in a busy store")
    check(record.attempts == 2, f"the attempt of the dead process does not count: {record}")


def _comes_back(table: RecordStore, resumed: bool, how: str) -> None:
    """Check that a dead holder's claims end: at once with auto_reclaim, otherwise with reclaim()."""
    if not resumed:
        found = standing(table)
        check(found == _HELD, f"{how}, and opened without resuming: {found}, not {_HELD}")
        count = table.reclaim()
        check(count == 2, f"{how}: reclaim() made ready {count} records, not 2")
    found = standing(table)
    check(found == _FREE, f"{how}: {found}, not {_FREE}")
    check(table.reclaim() == 0, f"{how}: reclaim() found more the second time")
    taken = claim_all(table)
    check(len(taken) == 3, f"{how}: of 3 records {taken} can be taken")


def _delays(harness: RecordStoreHarness) -> None:
    retry = ClaimPolicy(backoff=Backoff(base=10.0, factor=2.0, limit=30.0, jitter=0.0))
    table = harness.open(FIFO, retry, "delayed")
    other = harness.open(FIFO, retry, "delayed") if harness.capabilities.handles else table
    first, second = table.append_many([b"a", b"b"])
    for delay, seconds in ((None, 10.0), (None, 20.0), (5.0, 5.0), (None, 30.0), (None, 30.0), (60.0, 60.0)):
        check(table.claim(id_of) == first, "what was delayed is not in its place")
        check(
            table.nack(first, None if delay is None else harness.seconds(delay)) == first,
            "nack() with a delay gave another id",
        )
        harness.advance(harness.time.before(seconds))
        for each in (table, other):
            states = {payload: state for payload, (state, _) in standing(each).items()}
            wanted = {b"a": State.DELAYED, b"b": State.READY}
            check(states == wanted, f"delayed by {seconds} s: {states}, not {wanted}")
            check(each.peek(id_of) == second, "peek() is at what is delayed")
        harness.advance(seconds - harness.time.before(seconds))
        for each in (other, table):
            found = [record.id for record in each.records()]
            check(found == [first, second], f"after a delay of {seconds} s: {found}")
    taken = table.claim(id_of)
    table.nack(taken, 0.0)
    check(table.count() == 2, f"nacked without delay: {contents(table)}")
    last = table.nack(table.claim(id_of), harness.seconds(10.0), True)
    found = [record.id for _, record in table.scan(State.DELAYED)]
    check(found == [last] and table.claimed() == 0, f"delayed and to the back: {contents(table)}")
    harness.advance(10.0)
    got = claim_all(table)
    check(got == [second, last] and last > second, f"delayed and to the back: {got}")
    _nacked_together(harness, table, got)
    _put_for_later(harness)


def _nacked_together(harness: RecordStoreHarness, table: RecordStore, held: list[int]) -> None:
    """Check that several records which are nacked together have the delays that each one has alone."""
    _, last = held  # claimed once, and more often than makes a difference
    table.nack_many(held)
    for seconds, left in ((10.0, [last]), (20.0, [])):
        harness.advance(harness.time.before(seconds))
        before = [record.id for _, record in table.scan(State.DELAYED)]
        harness.advance(seconds - harness.time.before(seconds))
        found = [record.id for _, record in table.scan(State.DELAYED)]
        check(found == left and len(before) == len(left) + 1, f"nacked together: {before}, then {found}")
    check(claim_all(table) == held, "what was nacked together is not in its places")


def _put_for_later(harness: RecordStoreHarness) -> None:
    """Check that an entry with a delay is ready after it, in its place, and not before."""
    table = harness.open(PRIORITY, name="put for later")
    delay = harness.seconds(20.0)
    ids = table.put([Entry(b"a", 1, delay=delay), Entry(b"b", 1), Entry(b"c", 0, delay=delay)])
    more = table.append(b"d")
    check([*ids, more] == sorted([*(id or 0 for id in ids), more]), f"ids of delayed entries: {ids}, {more}")
    harness.advance(harness.time.before(20.0))
    wanted = {b"a": (State.DELAYED, 0), b"b": (State.READY, 0), b"c": (State.DELAYED, 0)}
    found = standing(table)
    check(found == wanted | {b"d": (State.READY, 0)}, f"put with a delay, before its end: {found}")
    harness.advance(20.0 - harness.time.before(20.0))
    got = claim_all(table)
    check(got == [ids[2], more, ids[0], ids[1]], f"put with a delay, after its end: {got}")


def _seen_at_once(harness: RecordStoreHarness) -> None:
    """Check that the first call after the end of a lease or a delay sees the record ready."""
    ready: dict[str, tuple[Callable[[RecordStore, int], Any], Any]] = {
        "count()": (lambda table, id: table.count(), 1),
        "claimed()": (lambda table, id: table.claimed(), 0),
        "unfinished()": (lambda table, id: table.unfinished(), 1),
        "stats()": (lambda table, id: astuple(table.stats())[:6], (1, 0, 0, 0, 0, 0)),
        "peek()": (lambda table, id: table.peek(_payload), b"k"),
        "records()": (lambda table, id: [*map(_payload, table.records())], [b"k"]),
        "scan()": (lambda table, id: [state for state, _ in table.scan()], [State.READY]),
        "scan() elsewhere": (lambda table, id: [*table.scan(State.CLAIMED, State.DELAYED)], []),
        "claim()": (lambda table, id: table.claim(_payload), b"k"),
        "claim() of an id": (lambda table, id: table.claim(_payload, Select(id)), b"k"),
        "claim_many()": (lambda table, id: table.claim_many(5, _payload), [b"k"]),
        "pop()": (lambda table, id: table.pop(_payload), b"k"),
        "pop() of an id": (lambda table, id: table.pop(_payload, Select(id)), b"k"),
        "pop_many()": (lambda table, id: table.pop_many(5, _payload), [b"k"]),
        "remove()": (lambda table, id: table.remove() == id, True),
        "remove() of an id": (lambda table, id: table.remove(id) == id, True),
        "clear()": (lambda table, id: table.clear(), 1),
        "append()": (lambda table, id: _is_full(lambda: table.append(b"", 1)), True),
        "put()": (lambda table, id: _is_full(lambda: table.put([Entry(b"")], 1)), True),
        "update()": (lambda table, id: table.update(id, b"new", b"l"), True),
        "requeue()": (lambda table, id: (table.requeue(), table.count()), (0, 1)),
        "has_active_key()": (lambda table, id: table.has_active_key(b"k"), True),
    }
    dead: dict[str, tuple[Callable[[RecordStore, int], Any], Any]] = {
        "count()": (lambda table, id: table.count(), 0),
        "claimed()": (lambda table, id: table.claimed(), 0),
        "unfinished()": (lambda table, id: table.unfinished(), 0),
        "stats()": (lambda table, id: astuple(table.stats())[:6], (0, 0, 0, 0, 0, 1)),
        "records()": (lambda table, id: [*table.records()], []),
        "scan()": (lambda table, id: [state for state, _ in table.scan(State.DEAD)], [State.DEAD]),
        "clear()": (lambda table, id: table.clear(), 0),
        "remove()": (lambda table, id: table.remove(), None),
        "put()": (lambda table, id: table.put(keyed("k")) == [None], False),
        "update()": (lambda table, id: table.update(id, b"new", b"k"), False),
        "has_active_key()": (lambda table, id: table.has_active_key(b"k"), False),
        "purge()": (lambda table, id: table.purge(State.DEAD), 1),
        "requeue()": (lambda table, id: table.requeue(), 1),
    }
    tables: list[tuple[str, RecordStore, int, Callable[[RecordStore, int], Any], Any]] = []
    for limit, looks in ((None, ready), (1, dead)):
        retry = ClaimPolicy(lease=60.0, max_attempts=limit)
        for name, (call, wanted) in looks.items():
            for how in ("claimed", "nacked", "put"):
                table = harness.open(UNIQUE, retry, f"{name} {limit} {how}")
                delay = harness.seconds(60.0) if how == "put" and limit is None else 0.0
                (id,) = (each or 0 for each in table.put([Entry(b"k", key=b"k", delay=delay)]))
                if not delay:
                    table.claim(id_of)
                if how == "nacked" and limit is None:
                    table.nack(id, harness.seconds(60.0))
                tables.append((name, table, id, call, wanted))
    harness.advance(60.0)
    for name, table, id, call, wanted in tables:
        found = call(table, id)
        check(found == wanted, f"{name}, first when time has come, gave {found!r}, not {wanted!r}")
        table.close()
    table = harness.open(UNIQUE, ClaimPolicy(lease=60.0), "change_token()")
    table.append(b"")
    table.claim(id_of)
    before = token(table)
    harness.advance(60.0)
    # A consumer that waits for a record calls nothing else.
    check(token(table) != before, f"time has come, and change_token() is still {before!r}")


def _payload(record: Record) -> bytes:
    return record.payload


def _is_full(call: Callable[[], Any]) -> bool:
    try:
        call()
    except Full:
        return True
    return False


@record_store_law("T4")
def keys_in_force(harness: RecordStoreHarness) -> None:
    """Every key is refused while a record of it is ready, delayed or claimed, and free after."""
    retry = ClaimPolicy(lease=60.0, max_attempts=2, keep_done=100)
    table = harness.open(UNIQUE, retry)
    key = _Key(table, harness.another(table, UNIQUE, retry))
    key.put()
    key.held("ready")
    table.nack(table.claim(id_of), harness.seconds(30.0))
    key.held("delayed")
    harness.advance(30.0)
    key.held("delayed, and due")
    id = table.claim(id_of)
    key.held("claimed")
    table.ack([id])
    key.free("done")
    key.put()
    table.fail([table.claim(id_of)])
    key.free("failed")
    key.put()
    table.claim(id_of)
    harness.advance(60.0)
    key.held("its lease ran out")
    table.nack(table.claim(id_of))
    key.free("dead")
    key.put()
    table.nack(table.claim(id_of), to_back=True)
    key.held("given to the back")
    table.nack(table.claim(id_of), to_back=True)
    key.free("dead, given to the back")
    table.remove(key.put())
    key.free("discarded")
    key.put()
    table.clear()
    key.free("cleared")
    key.put()
    table.pop(id_of)
    key.free("acknowledged as it was taken")
    key.put()
    for _ in range(2):
        table.claim(id_of)
        harness.advance(60.0)
    key.free("dead at the end of its lease")
    key.put()
    table.update(table.claim(id_of), b"claimed, and now of no key")
    key.free("of a record that got none")
    table.clear()
    _replaced(table, key)
    check(None not in table.put([Entry(b"no key"), Entry(b"no key")]), "what has no key is refused")
    check(not table.has_active_key(b""), "what has no key has an empty one")
    table.clear()
    empty = _Key(*key.tables, key=b"")
    id = empty.put()
    empty.held("the empty key")
    table.remove(id)
    empty.free("the empty key, discarded")
    requeued_keys(harness)
    plain = harness.open(FIFO, retry)
    got = [*plain.put(keyed("a", "a")), *plain.put(keyed("a"))]
    check(None not in got, f"refused, though the table is not of unique records: {got}")


class _Key:
    """A key, and whether it is active, through every handle of a store."""

    def __init__(self, *tables: RecordStore, key: bytes = b"k") -> None:
        self.tables = tables
        self.key = key

    def put(self) -> int:
        """Put a new record of the key; return its id."""
        (id,) = self.tables[0].put([Entry(b"payload", key=self.key)])
        check(id is not None, f"{self.key!r}, which is free, is refused")
        return id or 0

    def held(self, how: str) -> None:
        """Check that the key is refused, and that the entries put with it are not."""
        for table in self.tables:
            check(table.has_active_key(self.key), f"{how}: has_active_key() does not know it")
            with_it = [Entry(b"new", key=self.key), Entry(b"", key=b"x"), Entry(b"", key=b"x")]
            first, second, third = table.put(with_it)
            check(first is None, f"{how}: it is not refused")
            check(second is not None and third is None, f"of two equal ones: {second} and {third}")
            check(table.remove(second) == second, "what was put is not ready")

    def free(self, how: str) -> None:
        """Check that the key is accepted."""
        for table in self.tables:
            check(not table.has_active_key(self.key), f"{how}: has_active_key() says that it is active")
            (id,) = table.put([Entry(b"new", key=self.key)])
            check(id is not None, f"{how}: it is refused")
            check(table.remove(id) == id, "what was put is not ready")


def _replaced(table: RecordStore, old: _Key) -> None:
    """Check a record that gets another payload, and with it another key."""
    new = _Key(*old.tables, key=b"l")
    id = old.put()
    check(table.update(id, b"new", b"l"), "update() of a ready record")
    new.held("the key of what was ready and replaced")
    old.free("the key before")
    equal = old.put()
    check(table.update(id, b"newer", b"l"), "update() by the key that it has")
    record = table.claim(lambda record: record)
    check(record.payload == b"newer" and record.id == id, f"{record} is not what was replaced")
    for each, key in ((id, b"k"), (equal, b"l")):
        with refuses(DuplicateError, "update() by the key of another record", table):
            table.update(each, b"", key)
    check(table.remove(equal) == equal, "what is ready cannot be discarded")
    check(table.update(id, b"claimed", b"k"), "update() of a claimed record")
    old.held("the key of what was claimed and replaced")
    new.free("the key before")
    table.nack(id, 60.0)
    check(table.update(id, b"delayed", b"l"), "update() of a delayed record")
    new.held("the key of what was delayed and replaced")
    old.free("the key before")
    found = [record.payload for _, record in table.scan(State.DELAYED)]
    check(found == [b"delayed"], f"what was replaced while delayed is {found}")
    check(not table.update(equal, b"", b"k"), "update() of what is gone")


CLAIM_LAWS: tuple[RecordStoreLaw, ...] = (what_nobody_holds_is_ready, keys_in_force)
"""By number."""
