"""The laws of :mod:`persistcoll.engine.contracts` for tables, each as a function that tries to break it.

As :mod:`persistcoll.testing.laws`, for whoever writes a :class:`~persistcoll.engine.contracts.RecordStore`. A
:class:`TableFactory` opens them, of any discipline and with any retrying, and moves their time:

>>> from persistcoll.engine.memory.record_store import MemoryRecordStore, MemoryRecordState
>>> from persistcoll.testing import Capabilities
>>> class InMemory:
...     capabilities = Capabilities(crashes=False, processes=False)
...     def __init__(self):
...         self.states, self.now = {}, 0.0
...     def open(self, name, discipline, retry):
...         state = self.states.setdefault(name, MemoryRecordState(lambda: self.now))
...         return MemoryRecordStore(discipline, retry, state)
...     def advance(self, seconds):
...         self.now += seconds
>>> for law in TABLE_LAWS.values():
...     if law.applies_to(InMemory()):
...         law(InMemory())

A table is a store, too: ``LAWS[number](FifoStores(InMemory()))`` checks what holds for every store.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

from persistcoll.engine.records import UNIQUE, ClaimPolicy, Entry, State
from persistcoll.errors import DuplicateError, Empty, Full, NotClaimedError
from persistcoll.testing.bench import id_of, raising
from persistcoll.testing.children import demand, together
from persistcoll.testing.table_bench import (
    FifoStores,
    TableBench,
    TableFactory,
    TableLaw,
    after_the_end,
    keyed,
    look,
    refuses,
    table_law,
)
from persistcoll.testing.table_claim_laws import TABLE_CLAIM_LAWS
from persistcoll.testing.table_life_laws import TABLE_LIFE_LAWS
from persistcoll.testing.table_order_laws import TABLE_ORDER_LAWS
from persistcoll.testing.table_state_laws import TABLE_STATE_LAWS

__all__ = ["TABLE_LAWS", "FifoStores", "TableFactory"]


@table_law("S1")
def whole_or_not_at_all(bench: TableBench) -> None:
    """An operation that raised happened not at all."""
    table = bench.open(UNIQUE)
    table.put(keyed("gone", "failed", "claimed", "ready"), 4)
    with refuses(Full, "put() into a full table", table):
        table.put(keyed("more"), 4)
    with refuses(Full, "put() of more than there is room for", table):
        table.put(keyed("ready", "more", "and more"), 5)
    demand(not table.has_active_key(b"more"), "a put() that raised left a key in force")
    got = table.put(keyed("ready", "gone"), 4)
    demand(got == [None, None], f"put() of what is there already, into a full table, gave {got}")
    demand(table.put([], 4) == [], "put() of nothing gave an id")
    (refused, more) = table.put(keyed("ready", "more"), 5)
    demand(refused is None and more is not None, "put() of one that fits and one that is there already")
    gone, failed, claimed, ready = (table.take(id_of) for _ in range(4))
    table.ack([gone])
    table.fail([failed])
    table.nack(ready)
    for wrong in (ready, gone, failed, (more or 0) + 1000, 0, -1):
        calls: dict[str, Callable[[], Any]] = {
            "ack()": partial(table.ack, [claimed, wrong]),
            "fail()": partial(table.fail, [claimed, wrong]),
            "nack()": partial(table.nack, wrong),
            "nack() with a delay": partial(table.nack, wrong, 60.0),
            "nack() to the back": partial(table.nack, wrong, to_back=True),
        }
        for name, call in calls.items():
            with refuses(NotClaimedError, f"{name} of {wrong}, which is not claimed,", table):
                call()
    for id in (claimed, gone, failed, (more or 0) + 1000, 0, -1):
        with refuses(Empty, f"take() of {id}, which is not ready,", table):
            table.take(id_of, id=id)
    with refuses(Empty, "take() of what follows the last", table):
        table.take(id_of, id=more, following=True)
    for id in (ready, claimed):
        with refuses(DuplicateError, "update() by an equal of another", table):
            table.update(id, b"another", b"more")
    with refuses(KeyboardInterrupt, "take(), interrupted,", table):
        table.take(raising(KeyboardInterrupt(), 1)[0], True)
    with refuses(KeyboardInterrupt, "take() of an id, interrupted,", table):
        table.take(raising(KeyboardInterrupt(), 1)[0], id=ready)
    with refuses(KeyboardInterrupt, "take_many(), interrupted at its second record,", table):
        table.take_many(2, raising(KeyboardInterrupt(), 2)[0])
    demand(
        table.has_active_key(b"claimed") and table.has_active_key(b"more"),
        "what was refused took a key out of force",
    )


@table_law("S2", "crashes")
def durable_when_returned(bench: TableBench) -> None:
    """What returned survives the process."""
    retry = ClaimPolicy(max_attempts=4, keep_done=100)
    table = bench.open(UNIQUE, retry)
    names = [name.encode() for name in "abcdefghijklm"]

    def left(verb: str) -> None:
        wanted = after_the_end(look(table), retry)
        dead = {record.payload for state, record in wanted if state is State.DEAD}
        keys = {key: table.has_active_key(key) and key not in dead for key in names}
        found = bench.crash(UNIQUE, retry)
        rows = look(found)
        demand(rows == wanted, f"after {verb} a dead process would leave {rows}, not {wanted}")
        same = {key: found.has_active_key(key) for key in names}
        demand(same == keys, f"after {verb} a dead process would leave the keys {same}, not {keys}")
        told, before = found.stats(), table.stats()
        counted = told.puts, told.gets - told.dead
        wanted_counts = before.puts, before.gets - before.dead
        demand(counted == wanted_counts, f"after {verb}: puts and gets {counted}, not {wanted_counts}")
        found.close()

    table.put([Entry(name, index % 3, name) for index, name in enumerate(names)])
    left("put()")
    table.append(b"without a key")
    left("append()")
    one, two, three = (table.take(id_of) for _ in range(3))
    left("take()")
    many = table.take_many(4, id_of)
    left("take_many()")
    table.ack([one])
    left("ack()")
    table.fail([two])
    left("fail()")
    table.nack(three, 60.0)
    left("nack() with a delay")
    last = table.nack(many[0], to_back=True)
    left("nack() to the back")
    for id in many[1:]:
        table.nack(id)
    left("nack()")
    table.update(last, b"another")
    table.update(three, b"and another")
    left("update()")
    for _ in range(table.peek(lambda record: record.attempts), 3):
        table.nack(table.take(id_of))
    left("nack() again and again")
    table.take(id_of)
    left("the last attempt")
    table.take(id_of, True)
    left("take() that acknowledges")
    table.remove()
    left("remove()")
    table.remove(last)
    left("remove() of an id")
    bench.advance(60.0)
    left("the end of a delay")
    table.purge(State.FAILED)
    table.purge(State.DONE, 1)
    left("purge()")
    table.shrink()
    left("shrink()")
    table.clear()
    left("clear()")


@table_law("S6")
def within_capacity(bench: TableBench) -> None:
    """A put never makes count() exceed capacity, whoever else puts; what is delayed or claimed takes no
    room until it is ready again.
    """
    capacity, each = 4, 41
    retry = ClaimPolicy(lease=60.0)
    table = bench.open(UNIQUE, retry)
    tables = [table, bench.another(table, UNIQUE, retry)]
    counts: list[int] = []
    taken: list[bytes] = []

    def put(number: int) -> None:
        mine, done = tables[number % 2], 0
        while done < each:
            more = 1 + done % 2
            new = keyed(*(f"{number} {done + index}" for index in range(more)))
            with contextlib.suppress(Full):
                ids = mine.put([*new, new[0]], capacity)
                demand([id is None for id in ids] == [False] * more + [True], f"put() of {new} gave {ids}")
                done += more
            counts.append(mine.count())

    def take() -> None:
        while len(taken) < each * 3:
            counts.append(table.count())
            with contextlib.suppress(Empty):
                taken.append(table.take(lambda record: record.payload, True))

    together(take, *[lambda number=number: put(number) for number in range(3)])
    demand(len(set(taken)) == each * 3, f"of {each * 3} entries {len(set(taken))} arrived")
    demand(max(counts) <= capacity, f"{max(counts)} records in a table of capacity {capacity}")
    demand(min(counts) >= 0, f"a count of {min(counts)} records")
    one, other = tables
    one.put(keyed(*"abcd"), capacity)
    for mine in tables:
        with refuses(Full, "put() into a full table", *tables):
            mine.put(keyed("e"), capacity)
        with refuses(Full, "append() to a full table", *tables):
            mine.append(b"e", capacity)
        demand(mine.put(keyed("a", "d"), capacity) == [None, None], "an entry that is refused needs no room")
    one.nack(one.take(id_of), 30.0)
    one.take(id_of)
    other.put(keyed("e", "f"), capacity)
    for seconds in (30.0, 30.0):
        with refuses(Full, "put() into a table that is full again", *tables):
            other.put(keyed("g"), capacity)
        bench.advance(seconds)
        capacity += 1  # what was delayed, then what was claimed
        for mine in tables:
            with refuses(Full, "put() into a table that time has filled", *tables):
                mine.put(keyed("g"), capacity)
    demand(other.put(keyed("g"), capacity + 1) != [None], "put() refused what there is room for")


@table_law("S7")
def strangers_by_name(bench: TableBench) -> None:
    """Tables with different names do not see each other."""
    retry = ClaimPolicy(lease=60.0, keep_done=10, auto_reclaim=False)
    one, two = bench.open(UNIQUE, retry, "a"), bench.open(UNIQUE, retry, "b")
    one.put(keyed("x", "y", "z"))
    demand(look(two) == [], f"what was put into one is in the other: {look(two)}")
    demand(not two.has_active_key(b"x"), "a key of one is in force in the other")
    (id,) = two.put(keyed("x"))
    demand(id is not None, "a key of one is refused in the other")
    before = look(two)

    def untouched(what: str) -> None:
        demand(look(two) == before, f"{what} of one changed the other: {look(two)}, of {before}")
        demand(two.has_active_key(b"x"), f"{what} of one took a key of the other out of force")

    held = [one.take(id_of) for _ in range(3)]
    untouched("take()")
    only = next(id for id in held if id not in {record.id for _, record in before})
    for verb in (two.ack, two.fail):
        with refuses(NotClaimedError, f"{verb.__name__}() of what another table holds", one, two):
            verb([only])
    with refuses(Empty, "take() of another table's record", one, two):
        two.take(id_of, id=only)
    demand(not two.update(only, b""), "update() of another table's record")
    one.ack(held[:1])
    one.fail(held[1:2])
    untouched("ack() and fail()")
    taken = two.take(lambda record: record)
    demand(taken.payload == b"x", f"{taken} is another table's")
    two.fail([taken.id])
    two.put(keyed("x"))
    before = look(two)
    one.purge(State.FAILED)
    one.purge(State.DONE)
    untouched("purge()")
    one.put(keyed("w"))
    demand(one.clear() == 1, "clear() did not remove the one that was ready")
    untouched("clear()")
    one.close()
    one = bench.open(UNIQUE, retry, "a")
    demand(two.reclaim() == 0, "reclaim() of one gave back what was claimed in the other")
    demand(one.reclaim() == 1, "reclaim() did not find what a closed table left claimed")
    untouched("reclaim()")
    two.take(id_of)
    before = look(two)
    one.nack(one.take(id_of), to_back=True)
    one.close()
    untouched("close()")


TABLE_LAWS: dict[str, TableLaw] = {
    each.number: each
    for each in (
        whole_or_not_at_all,
        durable_when_returned,
        *TABLE_ORDER_LAWS,
        within_capacity,
        strangers_by_name,
        *TABLE_LIFE_LAWS,
        *TABLE_STATE_LAWS,
        *TABLE_CLAIM_LAWS,
    )
}
"""Every law of tables, by its number."""
