"""The laws of record stores, each as a function that tries to break it.

They are used as those in :mod:`persistcoll.testing.laws.queue_store`, for a
:class:`~persistcoll.engine.contracts.RecordStore` of your own. A :class:`RecordStoreFactory` opens the
stores, of any discipline and with any claim policy, and moves their time:

>>> from persistcoll.engine.memory.record_store import MemoryRecordStore, MemoryRecordState
>>> from persistcoll.testing import Capabilities, Skipped
>>> class InMemory:
...     capabilities = Capabilities(crashes=False, processes=False)
...     def __init__(self):
...         self.states, self.now = {}, 0.0
...     def open(self, name, discipline, retry):
...         state = self.states.setdefault(name, MemoryRecordState(lambda: self.now))
...         return MemoryRecordStore(discipline, retry, state)
...     def advance(self, seconds):
...         self.now += seconds
>>> for law in RECORD_STORE_LAWS.values():
...     try:
...         law(InMemory())
...     except Skipped as reason:
...         print(reason)
S2 needs what these stores lack: crashes
T5 needs what these stores lack: joins
T6 needs what these stores lack: transactions

A record store is a queue store too: ``LAWS[number](FifoStores(InMemory()))`` checks a law of queue stores.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

from persistcoll.engine.contracts import RecordStore, Select
from persistcoll.engine.records import FIFO, UNIQUE, ClaimPolicy, Discipline, Entry, State
from persistcoll.errors import ClosedError, DuplicateError, Empty, Full, NotClaimedError
from persistcoll.testing.children import check, in_forked_child, run_threads
from persistcoll.testing.laws.queue_store_harness import claim_all, id_of, raising
from persistcoll.testing.laws.record_store_claims import CLAIM_LAWS
from persistcoll.testing.laws.record_store_harness import (
    DISCIPLINES,
    FifoStores,
    RecordStoreFactory,
    RecordStoreHarness,
    RecordStoreLaw,
    after_the_end,
    closed_as_died,
    contents,
    entries,
    keyed,
    order,
    record_store_law,
    refuses,
    standing,
)
from persistcoll.testing.laws.record_store_joined import JOINED_LAWS
from persistcoll.testing.laws.record_store_order import ORDER_LAWS
from persistcoll.testing.laws.record_store_states import STATE_LAWS
from persistcoll.testing.laws.record_store_transactions import TRANSACTION_LAWS

__all__ = ["RECORD_STORE_LAWS", "FifoStores", "RecordStoreFactory"]


@record_store_law("S1")
def whole_or_not_at_all(harness: RecordStoreHarness) -> None:
    """When an operation raised, it happened not at all."""
    table = harness.open(UNIQUE)
    table.put(keyed("gone", "failed", "claimed", "ready"), 4)
    with refuses(Full, "put() into a full table", table):
        table.put(keyed("more"), 4)
    with refuses(Full, "put() of more than there is room for", table):
        table.put(keyed("ready", "more", "and more"), 5)
    check(not table.has_active_key(b"more"), "a put() that raised left a key active")
    got = table.put(keyed("ready", "gone"), 4)
    check(got == [None, None], f"put() of what is there already, into a full table, gave {got}")
    check(table.put([], 4) == [], "put() of nothing gave an id")
    (refused, more) = table.put(keyed("ready", "more"), 5)
    check(refused is None and more is not None, "put() of one that fits and one that is there already")
    gone, failed, claimed, ready = (table.claim(id_of) for _ in range(4))
    table.ack([gone])
    table.fail([failed])
    table.nack(ready)
    for wrong in (ready, gone, failed, (more or 0) + 1000, 0, -1):
        calls: dict[str, Callable[[], Any]] = {
            "ack()": partial(table.ack, [claimed, wrong]),
            "fail()": partial(table.fail, [claimed, wrong]),
            "nack()": partial(table.nack, wrong),
            "nack_many()": partial(table.nack_many, [claimed, wrong]),
            "nack() with a delay": partial(table.nack, wrong, harness.seconds(60.0)),
            "nack() to the back": partial(table.nack, wrong, to_back=True),
        }
        for name, call in calls.items():
            with refuses(NotClaimedError, f"{name} of {wrong}, which is not claimed,", table):
                call()
    for id in (claimed, gone, failed, (more or 0) + 1000, 0, -1):
        with refuses(Empty, f"claim() of {id}, which is not ready,", table):
            table.claim(id_of, Select(id))
    with refuses(Empty, "claim() of what follows the last", table):
        table.claim(id_of, Select(more or 0, after=True))
    for id in (ready, claimed):
        with refuses(DuplicateError, "update() by an equal of another", table):
            table.update(id, b"another", b"more")
    with refuses(KeyboardInterrupt, "claim(), interrupted,", table):
        table.pop(raising(KeyboardInterrupt(), 1)[0])
    with refuses(KeyboardInterrupt, "claim() of an id, interrupted,", table):
        table.claim(raising(KeyboardInterrupt(), 1)[0], Select(ready))
    with refuses(KeyboardInterrupt, "claim_many(), interrupted at its second record,", table):
        table.claim_many(2, raising(KeyboardInterrupt(), 2)[0])
    check(
        table.has_active_key(b"claimed") and table.has_active_key(b"more"),
        "what was refused took a key out of force",
    )


@record_store_law("S2", "crashes")
def durable_when_returned(harness: RecordStoreHarness) -> None:
    """Every change that returned survives the process."""
    retry = ClaimPolicy(max_attempts=4, keep_done=100)
    table = harness.open(UNIQUE, retry)
    names = [*(name.encode() for name in "abcdefghijklm"), b"later"]

    def left(verb: str) -> None:
        wanted = after_the_end(contents(table), retry)
        dead = {record.payload for state, record in wanted if state is State.DEAD}
        keys = {key: table.has_active_key(key) and key not in dead for key in names}
        found = harness.crash(UNIQUE, retry)
        rows = contents(found)
        check(rows == wanted, f"after {verb} a dead process would leave {rows}, not {wanted}")
        same = {key: found.has_active_key(key) for key in names}
        check(same == keys, f"after {verb} a dead process would leave the keys {same}, not {keys}")
        told, before = found.stats(), table.stats()
        counted = told.puts, told.gets - told.dead
        wanted_counts = before.puts, before.gets - before.dead
        check(counted == wanted_counts, f"after {verb}: puts and gets {counted}, not {wanted_counts}")
        found.close()

    table.put([Entry(name, index % 3, name) for index, name in enumerate(names[:-1])])
    left("put()")
    table.append(b"without a key")
    left("append()")
    table.put([Entry(b"later", key=b"later", delay=harness.seconds(60.0))])
    left("put() with a delay")
    one, two, three = (table.claim(id_of) for _ in range(3))
    left("claim()")
    many = table.claim_many(4, id_of)
    left("claim_many()")
    table.ack([one])
    left("ack()")
    table.fail([two], "given up")
    left("fail()")
    table.nack(three, harness.seconds(60.0))
    left("nack() with a delay")
    last = table.nack(many[0], to_back=True)
    left("nack() to the back")
    table.nack(many[1], reason="busy")
    left("nack()")
    table.nack_many(many[2:], "busy, too")
    left("nack_many()")
    table.update(last, b"another")
    table.update(three, b"and another")
    left("update()")
    for _ in range(table.peek(lambda record: record.attempts), 3):
        table.nack(table.claim(id_of))
    left("nack() again and again")
    table.claim(id_of)
    left("the last attempt")
    table.pop(id_of)
    left("pop()")
    table.remove()
    left("remove()")
    table.remove(last)
    left("remove() of an id")
    harness.advance(60.0)
    left("the end of a delay")
    table.requeue(two)
    left("requeue() of an id")
    table.fail([table.claim(id_of)])
    table.requeue()
    left("requeue()")
    table.fail([table.claim(id_of)])
    table.purge(State.FAILED)
    table.purge(State.DONE, 1)
    left("purge()")
    table.shrink()
    left("shrink()")
    table.clear()
    left("clear()")


@record_store_law("S6")
def within_capacity(harness: RecordStoreHarness) -> None:
    """No put makes count() exceed capacity, whatever others put.

    A delayed or claimed record takes no space until it is ready again.
    """
    capacity, each = 4, 41
    retry = ClaimPolicy(lease=60.0)
    table = harness.open(UNIQUE, retry)
    tables = [table, harness.another(table, UNIQUE, retry)]
    counts: list[int] = []
    taken: list[bytes] = []

    def put(number: int) -> None:
        mine, done = tables[number % 2], 0
        while done < each:
            more = 1 + done % 2
            new = keyed(*(f"{number} {done + index}" for index in range(more)))
            with contextlib.suppress(Full):
                ids = mine.put([*new, new[0]], capacity)
                check([id is None for id in ids] == [False] * more + [True], f"put() of {new} gave {ids}")
                done += more
            counts.append(mine.count())

    def claim() -> None:
        while len(taken) < each * 3:
            counts.append(table.count())
            with contextlib.suppress(Empty):
                taken.append(table.pop(lambda record: record.payload))

    run_threads(claim, *[lambda number=number: put(number) for number in range(3)])
    check(len(set(taken)) == each * 3, f"of {each * 3} entries {len(set(taken))} arrived")
    check(max(counts) <= capacity, f"{max(counts)} records in a table of capacity {capacity}")
    check(min(counts) >= 0, f"a count of {min(counts)} records")
    one, other = tables
    one.put(keyed(*"abcd"), capacity)
    for mine in tables:
        with refuses(Full, "put() into a full table", *tables):
            mine.put(keyed("e"), capacity)
        with refuses(Full, "append() to a full table", *tables):
            mine.append(b"e", capacity)
        check(mine.put(keyed("a", "d"), capacity) == [None, None], "an entry that is refused needs no room")
    (later,) = one.put([Entry(b"later", key=b"later", delay=harness.seconds(1000.0))], capacity)
    check(later is not None and one.count() == capacity, "a delayed entry needs room, or counts as ready")
    one.nack(one.claim(id_of), harness.seconds(30.0))
    one.claim(id_of)
    other.put(keyed("e", "f"), capacity)
    for seconds in (30.0, 30.0):
        with refuses(Full, "put() into a table that is full again", *tables):
            other.put(keyed("g"), capacity)
        harness.advance(seconds)
        capacity += 1  # the record that was delayed, then the claimed one
        for mine in tables:
            with refuses(Full, "put() into a table that time has filled", *tables):
                mine.put(keyed("g"), capacity)
    check(other.put(keyed("g"), capacity + 1) != [None], "put() refused what there is room for")
    _later_into_what_is_full(harness)


def _later_into_what_is_full(harness: RecordStoreHarness) -> None:
    """Check that requeued records and delayed entries need no room, in a table that is more than full."""
    for discipline in (FIFO, UNIQUE):
        table = harness.open(discipline, name=f"more than full {discipline.name}")
        table.put(keyed("a", "b"), 2)
        table.fail([table.claim(id_of)])
        table.put(keyed("c"), 2)
        with refuses(Full, "put() into a table that is full", table):
            table.put(keyed("d"), 2)
        check(table.requeue() == 1, "what is requeued needs room")
        for _ in range(2):
            with refuses(Full, "put() into a table that is more than full", table):
                table.put([*keyed("d"), Entry(b"later", key=b"later", delay=harness.seconds(1000.0))], 2)
        (one,) = table.put([Entry(b"e", key=b"e", delay=harness.seconds(1000.0))], 2)
        check(one is not None, "put() of a delayed entry into a table that is more than full")
        check(table.count() == 3, f"of three ready records {table.count()} are")


@record_store_law("S7")
def strangers_by_name(harness: RecordStoreHarness) -> None:
    """No two stores with different names see each other."""
    retry = ClaimPolicy(lease=60.0, keep_done=10, auto_reclaim=False)
    one, two = harness.open(UNIQUE, retry, "a"), harness.open(UNIQUE, retry, "b")
    one.put(keyed("x", "y", "z"))
    check(contents(two) == [], f"what was put into one is in the other: {contents(two)}")
    check(not two.has_active_key(b"x"), "a key of one is active in the other")
    (id,) = two.put(keyed("x"))
    check(id is not None, "a key of one is refused in the other")
    before = contents(two)

    def untouched(what: str) -> None:
        check(contents(two) == before, f"{what} of one changed the other: {contents(two)}, of {before}")
        check(two.has_active_key(b"x"), f"{what} of one took a key of the other out of force")

    held = [one.claim(id_of) for _ in range(3)]
    untouched("claim()")
    only = next(id for id in held if id not in {record.id for _, record in before})
    for verb in (two.ack, two.fail):
        with refuses(NotClaimedError, f"{verb.__name__}() of what another table holds", one, two):
            verb([only])
    with refuses(Empty, "claim() of another table's record", one, two):
        two.claim(id_of, Select(only))
    check(not two.update(only, b""), "update() of another table's record")
    one.ack(held[:1])
    one.fail(held[1:2])
    untouched("ack() and fail()")
    one.requeue()
    one.fail([one.claim(id_of)])
    untouched("requeue()")
    taken = two.claim(lambda record: record)
    check(taken.payload == b"x", f"{taken} is another table's")
    two.fail([taken.id])
    two.put(keyed("x"))
    before = contents(two)
    one.purge(State.FAILED)
    one.purge(State.DONE)
    untouched("purge()")
    one.put(keyed("w"))
    check(one.clear() == 1, "clear() did not remove the one that was ready")
    untouched("clear()")
    one.close()
    one = harness.open(UNIQUE, retry, "a")
    check(two.reclaim() == 0, "reclaim() of one gave back what was claimed in the other")
    check(one.reclaim() == 1, "reclaim() did not find what a closed table left claimed")
    untouched("reclaim()")
    two.claim(id_of)
    before = contents(two)
    one.nack(one.claim(id_of), to_back=True)
    one.close()
    untouched("close()")


@record_store_law("S8")
def reopening_changes_nothing(harness: RecordStoreHarness) -> None:
    """No close and no opening changes a record, except that a claimed one is ready again.

    Depending on the claim policy it may be dead, or still claimed.
    """
    for discipline in DISCIPLINES:
        _reopened(harness, discipline, ClaimPolicy(max_attempts=3, keep_done=10))
        _reopened(harness, discipline, ClaimPolicy(lease=1000.0, keep_done=10, auto_reclaim=False))


def _reopened(harness: RecordStoreHarness, discipline: Discipline, retry: ClaimPolicy) -> None:
    reopen = partial(harness.open, discipline, retry, f"{discipline.name} {retry.auto_reclaim}")
    table = reopen()
    table.put(entries(*"abcdefg"))
    harness.advance(1.0)
    done, failed, delayed, back = (table.claim(id_of) for _ in range(4))
    table.ack([done])
    table.fail([failed])
    table.nack(delayed, harness.seconds(100.0))
    table.nack(back, to_back=True)
    table.nack(table.claim(id_of))
    if discipline.unique:
        table.put(keyed("k", "l"))
        (_, id) = [record.id for record in table.records() if record.payload in (b"k", b"l")]
        table.update(id, b"new", b"n")
    numbers = table.stats()
    for time in range(2, 5):
        table.claim_many(1, id_of)
        rows = closed_as_died(after_the_end(contents(table), retry))
        table.close()
        table = reopen()
        found = closed_as_died(contents(table))
        check(found == rows, f"opened for the {time}. time: {found}, not {rows}")
        if discipline.unique:
            keys = [table.has_active_key(key) for key in (b"k", b"l", b"n")]
            check(keys == [True, False, True], f"opened for the {time}. time: {keys} of 3 keys active")
        told = table.stats()
        counted = (told.puts, told.gets), (numbers.puts, numbers.gets)
        dead = told.dead - numbers.dead
        check(told.puts == numbers.puts and told.gets == numbers.gets + dead, f"puts and gets: {counted}")
    held = table.claimed()
    check(held == (0 if retry.auto_reclaim else 3), f"{held} are still claimed, of 3")
    count = table.reclaim()
    check(count == held, f"reclaim() made ready {count} of {held} records")
    harness.advance(100.0)
    wanted = [record.id for record in order(list(table.records()), discipline)]
    check(len(wanted) == table.unfinished(), f"not all are ready: {contents(table)}")
    got = claim_all(table)
    check(got == wanted, f"after all that {got} were taken, not {wanted}")


@record_store_law("S9")
def closed_is_closed(harness: RecordStoreHarness) -> None:
    """After close() every call raises ClosedError, except close()."""
    retry = ClaimPolicy(lease=60.0, keep_done=10)
    table = harness.open(UNIQUE, retry)
    (first, *_) = table.put(keyed("a", "b", "c"))
    id = table.claim(id_of)
    reading = table.scan()
    next(reading)
    before = standing(table)
    table.close()
    table.close()
    calls: dict[str, Callable[[], Any]] = {
        "append": lambda: table.append(b""),
        "append_many": lambda: table.append_many([b""]),
        "put": lambda: table.put(keyed("d")),
        "put of what is there": lambda: table.put(keyed("b")),
        "put of nothing": lambda: table.put([]),
        "claim": lambda: table.claim(id_of),
        "claim of an id": lambda: table.claim(id_of, Select(id + 1)),
        "claim_many": lambda: table.claim_many(2, id_of),
        "pop": lambda: table.pop(id_of),
        "pop of an id": lambda: table.pop(id_of, Select(id + 1)),
        "pop_many": lambda: table.pop_many(2, id_of),
        "ack": lambda: table.ack([id]),
        "fail": lambda: table.fail([id]),
        "fail of nothing": lambda: table.fail([]),
        "nack": lambda: table.nack(id),
        "nack with a delay": lambda: table.nack(id, harness.seconds(1.0)),
        "nack_many": lambda: table.nack_many([id]),
        "nack_many of nothing": lambda: table.nack_many([]),
        "peek": lambda: table.peek(id_of),
        "remove": table.remove,
        "clear": table.clear,
        "update": lambda: table.update(first or 0, b""),
        "holds": lambda: table.has_active_key(b"b"),
        "reclaim": table.reclaim,
        "requeue": table.requeue,
        "purge": lambda: table.purge(State.DONE),
        "shrink": table.shrink,
        "scan": lambda: list(table.scan()),
        "scan in a state": lambda: list(table.scan(State.READY)),
        "records": lambda: list(table.records()),
        "count": table.count,
        "claimed": table.claimed,
        "unfinished": table.unfinished,
        "is_empty": table.is_empty,
        "has_unfinished": table.has_unfinished,
        "change_token": table.change_token,
        "stats": table.stats,
    }
    for name, call in calls.items():
        with refuses(ClosedError, f"{name}() of a closed table"):
            call()
    with contextlib.suppress(ClosedError):
        list(reading)  # it began before: it continues, or raises
    before[b"a"] = (State.READY, 1)
    after = standing(harness.open(UNIQUE, retry))
    check(after == before, f"calls after close() made {after} of {before}")


@record_store_law("S10", "forks")
def forks_are_harmless(harness: RecordStoreHarness) -> None:
    """Every forked child can use the store, and never disturbs its parent."""
    for dies in (True, False):
        _forked(harness, dies, ClaimPolicy(keep_done=10))
        _forked(harness, dies, ClaimPolicy(lease=1000.0, keep_done=10, auto_reclaim=False))


def _forked(harness: RecordStoreHarness, dies: bool, retry: ClaimPolicy) -> None:
    table = harness.open(UNIQUE, retry, f"{dies} {retry.auto_reclaim}")
    table.put(keyed(*"abcdef"))
    held = [table.claim(id_of), table.claim(id_of)]
    expected = standing(table)
    in_forked_child(lambda: None)  # a child that ends without using it
    shared = harness.capabilities.processes
    in_forked_child(partial(_child, table, held, shared, dies, harness.notice_death))
    if harness.capabilities.processes:
        expected[b"c"] = (State.DONE, 1)
        expected[b"d"] = (State.FAILED, 1)
        expected[b"new"] = (State.READY, 0)
        # The claims that a close releases and those of the dead are the same after a reclaim.
        left = int(dies or not retry.auto_reclaim)
        harness.notice_death(table)
        count = table.reclaim()
        check(
            count == left, f"of what the child had claimed, reclaim() made ready {count} records, not {left}"
        )
        expected[b"e"] = (State.READY, 1)
    found = standing(table)
    check(found == expected, f"after the child: {found}, not {expected}")
    table.ack(held[:1])
    table.nack(held[1])
    check(table.put(keyed("a", "b")) != [None, None], "what the parent acknowledged is still active")


def _child(
    table: RecordStore,
    held: list[int],
    shared: bool,
    dies: bool,
    notice_death: Callable[[RecordStore], None],
) -> None:
    table.after_fork_in_child()
    for verb in (table.ack, table.fail):
        with refuses(NotClaimedError, f"{verb.__name__}() of what the parent holds", table):
            verb(held)
    with refuses(NotClaimedError, "nack() of what the parent holds", table):
        table.nack(held[0])
    if shared:
        check(table.reclaim() == 0, "the child reclaimed what the parent holds")
        check(table.put(keyed("a")) == [None], "the key of what the parent holds is not active")
    else:
        notice_death(table)
        table.reclaim()  # a copy, in which the parent is dead
        table.claim_many(2, id_of)
    check(table.put(keyed("new")) != [None], "what the child put is refused")
    record = table.claim(lambda record: record)
    check(record.payload == b"c", f"the child took {record}")
    table.ack([record.id])
    table.fail([table.claim(id_of)])
    table.claim(id_of)
    if not dies:
        table.close()
        with refuses(ClosedError, "put() into a closed table"):
            table.put(keyed("more"))


RECORD_STORE_LAWS: dict[str, RecordStoreLaw] = {
    each.number: each
    for each in (
        whole_or_not_at_all,
        durable_when_returned,
        *ORDER_LAWS,
        within_capacity,
        strangers_by_name,
        reopening_changes_nothing,
        closed_is_closed,
        forks_are_harmless,
        *STATE_LAWS,
        *CLAIM_LAWS,
        *JOINED_LAWS,
        *TRANSACTION_LAWS,
    )
}
"""Every law of record stores, by its number."""
