"""The laws S8 to S10: opening, closing, forking. See :mod:`persistcoll.testing.laws`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from persistcoll.errors import ClosedError, LockedError, NotClaimedError
from persistcoll.testing.bench import Bench, StoreLaw, id_of, law, numbers, payloads, refused, state, take_all
from persistcoll.testing.children import demand, in_forked_child

__all__ = ["LIFE_LAWS"]


@law("S8")
def reopening_changes_nothing(bench: Bench) -> None:
    """Closing and opening again changes nothing, except that what was claimed is ready again."""
    store = bench.open()
    ids = list(store.append_many(numbers(0, 9)))
    expected = list(store.records())
    taken = store.take_many(1, id_of) + [store.take(id_of) for _ in range(5)]
    store.ack([taken[3], taken[0]])
    store.remove(ids[7])
    gone = {ids[0], ids[3], ids[7]}
    expected = [record for record in expected if record.id not in gone]
    for time in range(3):
        store.close()
        store = bench.open()
        found = list(store.records())
        demand(found == expected, f"opened for the {time + 2}. time: {found}, not {expected}")
        demand(state(store)[1:] == (6, 0, 6), f"counts after opening again: {state(store)[1:]}")
        told = store.stats()
        counted = told.ready, told.claimed, told.puts, told.gets
        demand(counted == (6, 0, 9, 3), f"stats() after opening again: {told}")
        store.nack(store.take(id_of))
        store.take(id_of)
    store.close()
    store = bench.open()
    demand(take_all(store) == [record.id for record in expected], "not all of them can be taken")


@law("S9")
def closed_is_closed(bench: Bench) -> None:
    """After close() every call raises ClosedError, except close()."""
    store = bench.open()
    store.append_many(numbers(0, 3))
    id = store.take(id_of)
    reading = store.records()
    next(reading)
    store.close()
    store.close()
    calls: dict[str, Callable[[], Any]] = {
        "append": lambda: store.append(b""),
        "append with a capacity": lambda: store.append(b"", 1),
        "append_many": lambda: store.append_many([b""]),
        "append_many of nothing": lambda: store.append_many([]),
        "take": lambda: store.take(id_of),
        "take_many": lambda: store.take_many(2, id_of),
        "ack": lambda: store.ack([id]),
        "acknowledge of nothing": lambda: store.ack([]),
        "nack": lambda: store.nack(id),
        "peek": lambda: store.peek(id_of),
        "remove": store.remove,
        "clear": store.clear,
        "records": lambda: list(store.records()),
        "count": store.count,
        "claimed": store.claimed,
        "unfinished": store.unfinished,
        "change_token": store.change_token,
        "stats": store.stats,
    }
    for name, call in calls.items():
        with refused(ClosedError, f"{name}() of a closed store"):
            call()
    with contextlib.suppress(ClosedError):
        list(reading)  # begun before: goes on or says so
    demand(payloads(bench.open()) == numbers(0, 3), "calls after close() did something")


@law("S10", "forks")
def forks_are_harmless(bench: Bench) -> None:
    """A forked child can use the store, and never disturbs its parent."""
    store = bench.open()
    store.append_many(numbers(0, 5))
    held = store.take(id_of)
    shared = bench.capabilities.processes

    def child() -> None:
        store.after_fork_in_child()
        with refused(NotClaimedError, "ack() of what the parent holds", store):
            store.ack([held])
        store.append(b"of the child")
        count = 5 if shared else 6
        demand(store.count() == count, f"the child counts {store.count()} ready records, not {count}")
        with contextlib.suppress(LockedError):  # the parent is the consumer
            got = store.take(id_of)
            demand(got != held or not shared, "the child took what the parent holds")
            store.nack(got)
        store.close()
        with refused(ClosedError, "append() of a closed store"):
            store.append(b"")

    in_forked_child(child)
    in_forked_child(lambda: None)  # one that ends without having touched it
    expected = numbers(1, 5) + ([b"of the child"] if shared else [])
    found = state(store)
    demand(found == (expected, len(expected), 1, len(expected) + 1), f"after the child: {found}")
    store.ack([held])
    store.append(b"more")
    got = [store.take(lambda record: record.payload) for _ in range(len(expected) + 1)]
    demand(got == [*expected, b"more"], f"after the child the parent took {got}")


LIFE_LAWS: tuple[StoreLaw, ...] = (reopening_changes_nothing, closed_is_closed, forks_are_harmless)
"""By number."""
