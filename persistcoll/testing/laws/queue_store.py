"""The laws of :mod:`persistcoll.engine.contracts`, each as a function that tries to break it.

They test a store of your own. A :class:`StoreFactory` opens it, and says as a value
(:class:`~persistcoll.testing.Capabilities`) what it can do beyond the contract, or cannot:

>>> from persistcoll.engine.memory.queue_store import MemoryQueueState, MemoryQueueStore
>>> from persistcoll.testing import Capabilities
>>> class InMemory:
...     capabilities = Capabilities(handles=True, crashes=False, forks=False, processes=False)
...     def __init__(self):
...         self.states = {}
...     def open(self, name):
...         return MemoryQueueStore(self.states.setdefault(name, MemoryQueueState()))
>>> for law in LAWS.values():
...     if law.applies_to(InMemory()):
...         law(InMemory())

With pytest: ``@pytest.mark.parametrize("law", LAWS.values(), ids=str)``. Each law needs a factory of its
own, whose stores are empty. A broken law raises ``AssertionError``.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

from persistcoll.engine.contracts import Claim, QueueStore
from persistcoll.engine.records import Record
from persistcoll.errors import ClosedError, Empty, EncodeError, Full, LockedError, NotClaimedError
from persistcoll.testing.children import check, in_forked_child, run_threads
from persistcoll.testing.laws.journal import JOURNAL_LAWS
from persistcoll.testing.laws.queue_store_harness import (
    QueueStoreHarness,
    QueueStoreLaw,
    StoreFactory,
    calls,
    claim_all,
    id_of,
    law,
    numbers,
    payloads,
    raising,
    refused,
    state,
)

__all__ = ["LAWS", "StoreFactory"]

_MOST_PAYLOAD = 1 << 26
"""Bytes of a payload that a law tries."""


@law("S1")
def whole_or_not_at_all(harness: QueueStoreHarness) -> None:
    """When an operation raised, it happened not at all."""
    store = harness.open()
    ids = list(store.append_many(numbers(0, 5), 5))
    with refused(Full, "append() to a full store", store):
        store.append(b"more", 5)
    with refused(Full, "append_many() of more than there is room for", store):
        store.append_many([b"more", b"and more"], 6)
    check(not store.append_many([], 5), "append_many() of nothing gave an id")
    for name, verb in (("claim_many()", store.claim_many), ("pop_many()", store.pop_many)):
        for at in (1, 2, 3):
            decode, _ = raising(KeyboardInterrupt(), at)
            with refused(KeyboardInterrupt, f"{name}, interrupted at record {at},", store):
                verb(5, decode)
    for wrong in (ids[3], ids[-1] + 1000, 0, -1):
        first = store.claim(id_of)
        with refused(NotClaimedError, f"ack() of a claimed id and of {wrong}", store):
            store.ack([first, wrong])
        with refused(NotClaimedError, f"nack({wrong})", store):
            store.nack(wrong)
        with refused(NotClaimedError, f"nack_many() of a claimed id and of {wrong}", store):
            store.nack_many([first, wrong])
        store.nack(first)
    limit = store.capabilities.max_payload
    if limit is not None and limit <= _MOST_PAYLOAD:
        with refused(EncodeError, "append() of what is too large", store):
            store.append(b"x" * (limit + 1))
        with refused(EncodeError, "append_many() with one that is too large", store):
            store.append_many([b"small", b"x" * (limit + 1)])
    claimed = [store.claim(id_of), store.claim(id_of)]
    with contextlib.suppress(NotClaimedError):
        store.ack([claimed[0], claimed[0]])  # the same id twice is refused, or acked once
        store.append(b"in its place")
    check(store.unfinished() == 5, f"acknowledging an id twice in a call left {state(store)}")
    check(claim_all(store)[:3] == ids[2:], "after errors the records are not where they were")


@law("S2", "crashes")
def durable_when_returned(harness: QueueStoreHarness) -> None:
    """Every change that returned survives the process."""
    store = harness.open()

    def left(expected: list[bytes], verb: str) -> None:
        found = harness.after_the_end(store)
        check(found == expected, f"after {verb} a dead process would leave {found}, not {expected}")

    store.append(b"0")
    left([b"0"], "append()")
    store.append_many(numbers(1, 12))
    left(numbers(0, 12), "append_many()")
    first = store.claim(id_of)
    left(numbers(0, 12), "claim()")
    store.ack([first])
    left(numbers(1, 12), "ack()")
    store.nack(store.claim(id_of))
    left(numbers(1, 12), "nack()")
    store.nack_many([store.claim(id_of), store.claim(id_of)])
    left(numbers(1, 12), "nack_many()")
    store.pop(id_of)
    left(numbers(2, 12), "pop()")
    count = len(store.pop_many(4, id_of))
    left(numbers(2 + count, 12), "pop_many()")
    store.remove()
    left(numbers(3 + count, 12), "remove()")
    kept = store.claim(id_of)
    store.clear()
    left(numbers(3 + count, 4 + count), "clear()")
    store.ack([kept])
    left([], "ack()")


@law("S3")
def used_once_before_it_is_final(harness: QueueStoreHarness) -> None:
    """Every claim calls decode at most once, before the removal is final.

    If decode raises, the record is where it was.
    """
    store = harness.open()
    ids = list(store.append_many(numbers(0, 6)))
    for one, many in ((store.claim, store.claim_many), (store.pop, store.pop_many)):
        for error in (ValueError(), KeyboardInterrupt()):
            decode, seen = raising(error, 1)
            with refused(type(error), "claim() whose decode raised", store):
                one(decode)
            check(calls(store, seen) == ids[:1], f"claim() called decode with {seen}, not once with {ids[0]}")
            decode, seen = raising(error, 1)
            with refused(type(error), "claim_many() whose decode raised at once", store):
                many(3, decode)
            check(
                calls(store, seen) == ids[:1],
                f"claim_many() called decode with {seen}, not {ids[0]}",
            )
        with refused(ValueError, "peek() whose decode raised", store):
            store.peek(raising(ValueError(), 1)[0])
        decode, seen = raising(ValueError(), 2)
        got = many(3, decode)
        check(got == ids[:1], f"claim_many() whose decode raised at its second record gave {got}")
        used = calls(store, seen)
        check(len(used) == len(set(used)), f"claim_many() used a record twice: {seen}")
        check(store.peek(id_of) == ids[1], "the record whose decode raised is not the next one")
        if many == store.claim_many:
            store.nack(ids[0])
    decode, seen = raising(ValueError(), 2)
    claimed = store.claim(decode)
    check(calls(store, seen) == [claimed], f"claim() of {claimed} called decode with {seen}")
    store.nack(claimed)
    seen.clear()

    def contents(record: Record) -> None:
        seen.append(record.id)
        if harness.capabilities.crashes:
            found = harness.after_the_end(store)
            check(found == numbers(1, 6), f"while decode runs, the record is gone already: {found}")

    store.pop(contents)
    check(calls(store, seen) == [claimed], f"pop() of {claimed} called decode with {seen}")
    _claims_tell_what_to_release(store)


def _claims_tell_what_to_release(store: QueueStore) -> None:
    before = state(store)
    claims: list[Claim] = []
    with contextlib.suppress(KeyboardInterrupt):
        store.claim(raising(KeyboardInterrupt(), 1)[0], claims=claims)
    check(not claims, "claim() that claimed nothing said that it did")
    first = store.claim(id_of, claims=claims)
    rest = store.claim_many(2, id_of, claims=claims)
    check([id for id, _ in claims] == [first, *rest], f"the claims of {[first, *rest]} are {claims}")
    check(store.release(claims) == len(claims), "release() did not count what it made ready")
    check(state(store) == before, f"after release() there is {state(store)}, before there was {before}")
    again: list[Claim] = []
    store.claim(id_of, claims=again)
    check(store.release(claims) == 0, "release() of earlier claims released the present one")
    store.ack([again[0][0]])
    check(store.release(again) == 0, "release() of what is gone counted it")


@law("S4")
def in_order_and_never_twice(harness: QueueStoreHarness) -> None:
    """Every record comes in the order of the ids; ids grow and are never used twice.

    A record that was nacked returns to its place.
    """
    store = harness.open()
    given: list[int] = []

    def append(count: int) -> None:
        given.extend(store.append_many(numbers(0, count)))
        given.append(store.append(b"last"))
        check(given == sorted(set(given)), f"ids do not grow: {given}")

    append(6)
    taken = claim_all(store)
    check(taken == given, f"taken in the order {taken}, put in the order {given}")
    store.nack(taken[4])
    store.nack_many([taken[2], taken[0], taken[5], taken[0]])
    append(1)
    expected = [taken[0], taken[2], taken[4], taken[5], *given[-2:]]
    listed = [record.id for record in store.records()]
    check(listed == expected, f"records() of {expected} gave {listed}")
    check(store.peek(id_of) == expected[0], "peek() is not at the first record")
    some = [*store.claim_many(3, id_of), *claim_all(store)]
    check(some == expected, f"{expected} came back as {some}")
    store.ack(list(reversed(taken)))
    append(2)
    check(store.remove(given[-2]) == given[-2], "remove() of a ready record did nothing")
    check(store.remove(given[-2]) is None, "remove() found a record that is gone")
    check(store.remove(some[-1]) is None, "remove() took a claimed record")
    check(store.remove() == given[-3], "remove() did not remove the first one")
    check(store.clear() == 1, "clear() did not count what it removed")
    append(3)
    store.close()
    store = harness.open()
    append(0)
    check(store.clear() == 7, "clear() did not count what it removed")
    store.close()
    store = harness.open()
    append(2)
    check(claim_all(store) == given[-3:], "not the records that were put last")


@law("S5")
def one_taker_each(harness: QueueStoreHarness) -> None:
    """No record is claimed by two consumers at a time."""
    store = harness.open()
    total, claimers = 240, 4
    ids = list(store.append_many(numbers(0, total)))
    holding: set[int] = set()
    finished: list[int] = []
    mutex = threading.Lock()

    def claim() -> None:
        step = 0
        while True:
            try:
                got = store.claim_many(3, id_of) if step % 2 else [store.claim(id_of)]
            except Empty:
                if not store.unfinished():
                    return
                continue  # another consumer may nack what it has claimed
            with mutex:
                twice = holding.intersection(got)
                holding.update(got)
            check(not twice, f"{twice} claimed twice")
            for id in got:
                step += 1
                with mutex:
                    holding.discard(id)
                    if step % 5:
                        finished.append(id)
                if step % 5:
                    store.ack([id])
                else:
                    store.nack(id)

    run_threads(*[claim] * claimers)
    check(sorted(finished) == ids, "not every record was taken and acknowledged exactly once")
    if not harness.capabilities.handles:
        return
    other = harness.open()
    store.append_many(numbers(0, 3))
    held = store.claim(id_of)
    check(state(other) == (numbers(1, 3), 2, 1, 3), f"elsewhere, one of three taken: {state(other)}")
    with contextlib.suppress(LockedError):  # one consumer at a time is allowed, too
        check(other.claim(id_of) != held, "a claimed record was taken through another store")
    with refused(NotClaimedError, "ack() of what another store holds", store, other):
        other.ack([held])


@law("S6")
def within_capacity(harness: QueueStoreHarness) -> None:
    """No append makes count() exceed capacity, whatever others append."""
    capacity, each, appenders = 5, 60, 4
    store = harness.open()
    stores = [store, harness.open() if harness.capabilities.handles else store]
    counts: list[int] = []
    taken: list[int] = []

    def append(name: int) -> None:
        mine = stores[name % 2]
        done = 0
        while done < each:
            with contextlib.suppress(Full):
                if done % 3 or done + 2 > each:
                    mine.append(b"%d" % name, capacity)
                    done += 1
                else:
                    mine.append_many([b"%d" % name] * 2, capacity)
                    done += 2
            counts.append(mine.count())

    def claim() -> None:
        while len(taken) < each * appenders:
            counts.append(store.count())
            with contextlib.suppress(Empty):
                taken.append(store.pop(id_of))

    run_threads(claim, *[lambda name=name: append(name) for name in range(appenders)])
    check(max(counts) <= capacity, f"{max(counts)} records in a store of capacity {capacity}")
    check(min(counts) >= 0, f"a count of {min(counts)} records")
    store.append_many(numbers(0, capacity), capacity)
    for another in stores:
        with refused(Full, "append() to a full store", *stores):
            another.append(b"more", capacity)
    held = store.claim(id_of)
    stores[1].append(b"in the room of a claimed one", capacity)
    store.nack(held)
    with refused(Full, "append() to a store that is more than full", *stores):
        stores[1].append(b"more", capacity + 1)


@law("S7")
def strangers_by_name(harness: QueueStoreHarness) -> None:
    """No two stores with different names see each other."""
    one, two = harness.open("a"), harness.open("b")
    one.append_many(numbers(0, 3))
    check(state(two) == ([], 0, 0, 0), f"what was put into one is in the other: {state(two)}")
    two.append(b"two")
    held = one.claim(id_of)
    check(state(two) == ([b"two"], 1, 0, 1), f"a claim in one changed the other: {state(two)}")
    check(two.claim(lambda record: record.payload) == b"two", "another store's record was taken")
    check(one.clear() == 2, "clear() did not remove the two that were ready")
    check(state(two) == ([], 0, 1, 1), f"clear() of one changed the other: {state(two)}")
    one.ack([held])
    one.close()
    check(state(two) == ([], 0, 1, 1), f"closing one changed the other: {state(two)}")


@law("S8")
def reopening_changes_nothing(harness: QueueStoreHarness) -> None:
    """No close and no opening changes a record, except that a claimed one is ready again."""
    store = harness.open()
    ids = list(store.append_many(numbers(0, 9)))
    expected = list(store.records())
    taken = store.claim_many(1, id_of) + [store.claim(id_of) for _ in range(5)]
    store.ack([taken[3], taken[0]])
    store.remove(ids[7])
    gone = {ids[0], ids[3], ids[7]}
    expected = [record for record in expected if record.id not in gone]
    for time in range(3):
        store.close()
        store = harness.open()
        found = list(store.records())
        check(found == expected, f"opened for the {time + 2}. time: {found}, not {expected}")
        check(state(store)[1:] == (6, 0, 6), f"counts after opening again: {state(store)[1:]}")
        told = store.stats()
        counted = told.ready, told.claimed, told.puts, told.gets
        check(counted == (6, 0, 9, 3), f"stats() after opening again: {told}")
        store.nack(store.claim(id_of))
        store.claim(id_of)
    store.close()
    store = harness.open()
    check(claim_all(store) == [record.id for record in expected], "not all of them can be taken")


@law("S9")
def closed_is_closed(harness: QueueStoreHarness) -> None:
    """After close() every call raises ClosedError, except close()."""
    store = harness.open()
    store.append_many(numbers(0, 3))
    id = store.claim(id_of)
    reading = store.records()
    next(reading)
    store.close()
    store.close()
    verbs: dict[str, Callable[[], Any]] = {
        "append": lambda: store.append(b""),
        "append with a capacity": lambda: store.append(b"", 1),
        "append_many": lambda: store.append_many([b""]),
        "append_many of nothing": lambda: store.append_many([]),
        "claim": lambda: store.claim(id_of),
        "claim_many": lambda: store.claim_many(2, id_of),
        "pop": lambda: store.pop(id_of),
        "pop_many": lambda: store.pop_many(2, id_of),
        "ack": lambda: store.ack([id]),
        "ack of nothing": lambda: store.ack([]),
        "nack": lambda: store.nack(id),
        "nack_many": lambda: store.nack_many([id]),
        "nack_many of nothing": lambda: store.nack_many([]),
        "peek": lambda: store.peek(id_of),
        "remove": store.remove,
        "clear": store.clear,
        "records": lambda: list(store.records()),
        "count": store.count,
        "claimed": store.claimed,
        "unfinished": store.unfinished,
        "is_empty": store.is_empty,
        "has_unfinished": store.has_unfinished,
        "change_token": store.change_token,
        "stats": store.stats,
    }
    for name, call in verbs.items():
        with refused(ClosedError, f"{name}() of a closed store"):
            call()
    with contextlib.suppress(ClosedError):
        list(reading)  # it began before: it continues, or raises
    check(payloads(harness.open()) == numbers(0, 3), "calls after close() did something")


@law("S10", "forks")
def forks_are_harmless(harness: QueueStoreHarness) -> None:
    """Every forked child can use the store, and never disturbs its parent."""
    store = harness.open()
    store.append_many(numbers(0, 5))
    held = store.claim(id_of)
    shared = harness.capabilities.processes

    def child() -> None:
        store.after_fork_in_child()
        with refused(NotClaimedError, "ack() of what the parent holds", store):
            store.ack([held])
        store.append(b"of the child")
        if not shared:  # a copy, in which the parent is dead
            harness.time.wait(store.capabilities.death_noticed_after)
        count = 5 if shared else 6
        check(store.count() == count, f"the child counts {store.count()} ready records, not {count}")
        with contextlib.suppress(LockedError):  # the parent is the consumer
            got = store.claim(id_of)
            check(got != held or not shared, "the child took what the parent holds")
            store.nack(got)
        store.close()
        with refused(ClosedError, "append() of a closed store"):
            store.append(b"")

    in_forked_child(child)
    in_forked_child(lambda: None)  # a child that ends without using it
    expected = numbers(1, 5) + ([b"of the child"] if shared else [])
    found = state(store)
    check(found == (expected, len(expected), 1, len(expected) + 1), f"after the child: {found}")
    store.ack([held])
    store.append(b"more")
    got = [store.claim(lambda record: record.payload) for _ in range(len(expected) + 1)]
    check(got == [*expected, b"more"], f"after the child the parent took {got}")


LAWS: dict[str, QueueStoreLaw] = {
    each.number: each
    for each in (
        whole_or_not_at_all,
        durable_when_returned,
        used_once_before_it_is_final,
        in_order_and_never_twice,
        one_taker_each,
        within_capacity,
        strangers_by_name,
        reopening_changes_nothing,
        closed_is_closed,
        forks_are_harmless,
        *JOURNAL_LAWS,
    )
}
"""Every law, by its number."""
