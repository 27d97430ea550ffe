"""The laws S8 to S10 of tables: opening, closing, forking. See :mod:`persistcoll.testing.table_laws`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

from persistcoll.engine.contracts import RecordStore
from persistcoll.engine.records import UNIQUE, ClaimPolicy, Discipline, State
from persistcoll.errors import ClosedError, NotClaimedError
from persistcoll.testing.bench import id_of, take_all
from persistcoll.testing.children import demand, in_forked_child
from persistcoll.testing.table_bench import (
    DISCIPLINES,
    TableBench,
    TableLaw,
    after_the_end,
    entries,
    keyed,
    look,
    order,
    refuses,
    standing,
    table_law,
)

__all__ = ["TABLE_LIFE_LAWS"]


@table_law("S8")
def reopening_changes_nothing(bench: TableBench) -> None:
    """Closing and opening again changes nothing, except that what was claimed is ready again (or dead, or
    still claimed, as the table was made).
    """
    for discipline in DISCIPLINES:
        _reopened(bench, discipline, ClaimPolicy(max_attempts=3, keep_done=10))
        _reopened(bench, discipline, ClaimPolicy(lease=1000.0, keep_done=10, auto_reclaim=False))


def _reopened(bench: TableBench, discipline: Discipline, retry: ClaimPolicy) -> None:
    reopen = partial(bench.open, discipline, retry, f"{discipline.name} {retry.auto_reclaim}")
    table = reopen()
    table.put(entries(*"abcdefg"))
    bench.advance(1.0)
    done, failed, delayed, back = (table.take(id_of) for _ in range(4))
    table.ack([done])
    table.fail([failed])
    table.nack(delayed, 100.0)
    table.nack(back, to_back=True)
    table.nack(table.take(id_of))
    if discipline.unique:
        table.put(keyed("k", "l"))
        (_, id) = [record.id for record in table.records() if record.payload in (b"k", b"l")]
        table.update(id, b"new", b"n")
    numbers = table.stats()
    for time in range(2, 5):
        table.take_many(1, id_of)
        rows = after_the_end(look(table), retry)
        table.close()
        table = reopen()
        found = look(table)
        demand(found == rows, f"opened for the {time}. time: {found}, not {rows}")
        if discipline.unique:
            keys = [table.has_active_key(key) for key in (b"k", b"l", b"n")]
            demand(keys == [True, False, True], f"opened for the {time}. time: {keys} of 3 keys in force")
        told = table.stats()
        counted = (told.puts, told.gets), (numbers.puts, numbers.gets)
        dead = told.dead - numbers.dead
        demand(told.puts == numbers.puts and told.gets == numbers.gets + dead, f"puts and gets: {counted}")
    held = table.claimed()
    demand(held == (0 if retry.auto_reclaim else 3), f"{held} are still claimed, of 3")
    count = table.reclaim()
    demand(count == held, f"reclaim() gave back {count} of {held} records")
    bench.advance(100.0)
    wanted = [record.id for record in order(list(table.records()), discipline)]
    demand(len(wanted) == table.unfinished(), f"not all are ready: {look(table)}")
    got = take_all(table)
    demand(got == wanted, f"after all that {got} were taken, not {wanted}")


@table_law("S9")
def closed_is_closed(bench: TableBench) -> None:
    """After close() every call raises ClosedError, except close()."""
    retry = ClaimPolicy(lease=60.0, keep_done=10)
    table = bench.open(UNIQUE, retry)
    (first, *_) = table.put(keyed("a", "b", "c"))
    id = table.take(id_of)
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
        "take": lambda: table.take(id_of),
        "take of an id": lambda: table.take(id_of, id=id + 1),
        "take_many": lambda: table.take_many(2, id_of),
        "ack": lambda: table.ack([id]),
        "fail": lambda: table.fail([id]),
        "fail of nothing": lambda: table.fail([]),
        "nack": lambda: table.nack(id),
        "nack with a delay": lambda: table.nack(id, 1.0),
        "peek": lambda: table.peek(id_of),
        "remove": table.remove,
        "clear": table.clear,
        "update": lambda: table.update(first or 0, b""),
        "holds": lambda: table.has_active_key(b"b"),
        "reclaim": table.reclaim,
        "purge": lambda: table.purge(State.DONE),
        "shrink": table.shrink,
        "scan": lambda: list(table.scan()),
        "scan in a state": lambda: list(table.scan(State.READY)),
        "records": lambda: list(table.records()),
        "count": table.count,
        "claimed": table.claimed,
        "unfinished": table.unfinished,
        "change_token": table.change_token,
        "stats": table.stats,
    }
    for name, call in calls.items():
        with refuses(ClosedError, f"{name}() of a closed table"):
            call()
    with contextlib.suppress(ClosedError):
        list(reading)  # begun before: goes on or says so
    before[b"a"] = (State.READY, 1)
    after = standing(bench.open(UNIQUE, retry))
    demand(after == before, f"calls after close() made {after} of {before}")


@table_law("S10", "forks")
def forks_are_harmless(bench: TableBench) -> None:
    """A forked child can use the table, and never disturbs its parent."""
    for dies in (True, False):
        _forked(bench, dies, ClaimPolicy(keep_done=10))
        _forked(bench, dies, ClaimPolicy(lease=1000.0, keep_done=10, auto_reclaim=False))


def _forked(bench: TableBench, dies: bool, retry: ClaimPolicy) -> None:
    table = bench.open(UNIQUE, retry, f"{dies} {retry.auto_reclaim}")
    table.put(keyed(*"abcdef"))
    held = [table.take(id_of), table.take(id_of)]
    expected = standing(table)
    in_forked_child(lambda: None)  # one that ends without having touched it
    in_forked_child(partial(_child, table, held, bench.capabilities.processes, dies))
    if bench.capabilities.processes:
        expected[b"c"] = (State.DONE, 1)
        expected[b"d"] = (State.FAILED, 1)
        expected[b"new"] = (State.READY, 0)
        # What closing gives back and what death leaves are one as soon as somebody resumes.
        left = int(dies or not retry.auto_reclaim)
        count = table.reclaim()
        demand(
            count == left, f"of what the child had claimed, reclaim() gave back {count} records, not {left}"
        )
        expected[b"e"] = (State.READY, 1)
    found = standing(table)
    demand(found == expected, f"after the child: {found}, not {expected}")
    table.ack(held[:1])
    table.nack(held[1])
    demand(table.put(keyed("a", "b")) != [None, None], "what the parent acknowledged is still in force")


def _child(table: RecordStore, held: list[int], shared: bool, dies: bool) -> None:
    table.after_fork_in_child()
    for verb in (table.ack, table.fail):
        with refuses(NotClaimedError, f"{verb.__name__}() of what the parent holds", table):
            verb(held)
    with refuses(NotClaimedError, "nack() of what the parent holds", table):
        table.nack(held[0])
    if shared:
        demand(table.reclaim() == 0, "the child gave back what the parent holds")
        demand(table.put(keyed("a")) == [None], "what the parent holds is not in force")
    else:
        table.reclaim()  # a copy, in which the parent is dead
        table.take_many(2, id_of)
    demand(table.put(keyed("new")) != [None], "what the child put is refused")
    record = table.take(lambda record: record)
    demand(record.payload == b"c", f"the child took {record}")
    table.ack([record.id])
    table.fail([table.take(id_of)])
    table.take(id_of)
    if not dies:
        table.close()
        with refuses(ClosedError, "put() into a closed table"):
            table.put(keyed("more"))


TABLE_LIFE_LAWS: tuple[TableLaw, ...] = (reopening_changes_nothing, closed_is_closed, forks_are_harmless)
"""By number."""
