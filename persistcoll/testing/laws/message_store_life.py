"""The laws S1 to S10 of message stores. See :mod:`persistcoll.testing.laws.message_store`."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from persistcoll.engine.contracts import MessageStore
from persistcoll.engine.message_records import MessageClaim, MessageRecord, TopicClaim
from persistcoll.engine.records import State
from persistcoll.errors import ClosedError, Empty
from persistcoll.testing.children import check, in_forked_child, run_threads
from persistcoll.testing.laws.message_store_durability import DURABILITY_LAWS
from persistcoll.testing.laws.message_store_harness import (
    KEEPS,
    PLAIN,
    MessageStoreHarness,
    MessageStoreLaw,
    claim_all,
    claim_of,
    claims_of,
    contents,
    empty,
    lock_of,
    message_store_law,
    notices_death,
    payloads,
    put,
    refuses,
    settling,
    stale,
    standing,
)
from persistcoll.testing.laws.message_store_refusals import REFUSAL_LAWS

__all__ = ["LIFE_LAWS"]


@message_store_law("S4")
def in_order_and_never_twice(harness: MessageStoreHarness) -> None:
    """Every message comes in the order of the ids; ids grow and are never used twice.

    A message that comes back is in its place. Without a total order this holds for each producer alone.
    """
    _returned_to_its_place(harness)
    _never_used_again(harness)
    _of_several_producers(harness)


def _returned_to_its_place(harness: MessageStoreHarness) -> None:
    store = harness.open("places", PLAIN._replace(lease=900.0))
    other = harness.another(store, "places", PLAIN._replace(lease=900.0))
    entry = harness.entry
    ids = put(store, entry("0"), entry("1", key=b"k"), entry("2", group="g"), entry("3"), entry("4"))
    (refused, *more) = store.put([entry("x", key=b"k"), entry("5"), entry("6", topic="t"), entry("7")])
    check(refused is None, f"an active key was given the id {refused}")
    ids += [id for id in more if id is not None]
    ids += put(store, entry("8", delay=20.0), entry("9", lease=20.0))
    check(ids == sorted(set(ids)) and len(ids) == 10, f"ids do not grow: {ids}")
    taken = store.claim(4) + claim_all(store)
    check([record.id for record in taken] == [*ids[:8], ids[9]], f"of {ids} came {taken}")
    claims = claims_of(taken)
    store.nack([claims[4]])
    other.release([claims[0]])
    other.nack([claims[5], claims[1]], 0.0)
    store.fail([claims[3]])
    store.nack([claims[2]], harness.seconds(20.0))
    check(other.redrive(ids[3]), "redrive() found no dead message")
    harness.advance(20.0)
    wanted = [*ids[:6], ids[8], ids[9]]
    check(store.peek().id == ids[0], f"peek() gave {store.peek()}, not {ids[0]}")
    listed = [record.id for record in store.scan(State.READY)]
    check(listed == wanted, f"scan() of the ready messages {wanted} gave {listed}")
    again = [record.id for record in other.claim(3) + claim_all(other)]
    check(again == wanted, f"{wanted} came back as {again}")


def _never_used_again(harness: MessageStoreHarness) -> None:
    given: list[int] = []

    def add(store: MessageStore, **fields: Any) -> int:
        given.extend(put(store, harness.entry("a", **fields)))
        check(given == sorted(set(given)), f"ids do not grow, or one is used twice: {given}")
        return given[-1]

    store = harness.open("ids")
    for group in (None, "g"):
        store.cancel(add(store, group=group))
        add(store, group=group)
        store.ack(claims_of(claim_all(store)))
        add(store, group=group)
        store.purge()
        add(store, group=group)
        store.fail(claims_of(store.claim()))
        store.purge(dead=True)
        add(store, group=group, ttl=2.0)
        harness.advance(2.0)
        check(contents(store) == [], f"not all are removed: {contents(store)}")
        store.close()
        store = harness.open("ids")
        add(store, group=group)
        if harness.capabilities.crashes:
            left = harness.crash("ids")
            (id,) = put(left, harness.entry("a"))
            check(id > given[-1], f"after a crash an id is {id}, after {given[-1]}")
            left.close()
        store.purge()


def _of_several_producers(harness: MessageStoreHarness) -> None:
    total, producers = 13, 3
    store = harness.open("producers")
    stores = [harness.another(store, "producers") for _ in range(producers)]
    given: dict[str, list[int]] = {str(number): [] for number in range(producers)}
    taken: list[tuple[int, str]] = []

    def produce(number: int) -> None:
        mine, name = stores[number], str(number)
        while len(given[name]) < total:
            given[name] += put(mine, *[harness.entry(name, topic=name)] * (1 + len(given[name]) % 2))

    def consume() -> None:
        while len(taken) < total * producers:
            with contextlib.suppress(Empty):
                taken.extend((record.id, record.topic) for record in store.claim(2))

    run_threads(consume, *[partial(produce, number) for number in range(producers)])
    everything = [id for ids in given.values() for id in ids]
    check(len(set(everything)) == len(everything), f"an id is used twice: {given}")
    for name, ids in given.items():
        check(ids == sorted(ids), f"the ids of a producer do not grow: {ids}")
        got = [id for id, topic in taken if topic == name]
        check(got == ids, f"of a producer {ids} were put, and came as {got}")
    if store.capabilities.total_order:
        check(taken == sorted(taken), f"a message came after one with a higher id: {taken}")


@message_store_law("S5")
def one_taker_each(harness: MessageStoreHarness) -> None:
    """No message is claimed by two consumers at a time."""
    total, claimers = 40, 4
    store = harness.open()
    stores = [store, harness.another(store)]
    ids = put(store, *(harness.entry(str(number), group=_group(number)) for number in range(total)))
    holding: set[int] = set()
    groups: set[str] = set()
    seen: set[MessageClaim] = set()
    finished: list[int] = []
    mutex, over = threading.Lock(), threading.Event()

    def note(got: list[MessageRecord]) -> None:
        found = {record.id for record in got}
        of_groups = [record.group for record in got if record.group is not None]
        with mutex:
            twice = holding & found or groups.intersection(of_groups)
            check(not twice and len(set(of_groups)) == len(of_groups), f"{twice or of_groups} claimed twice")
            again = seen.intersection(claims_of(got))
            check(not again, f"two deliveries have the claim {again}")
            seen.update(claims_of(got))
            holding.update(found)
            groups.update(of_groups)

    def settle(mine: MessageStore, record: MessageRecord) -> None:
        with mutex:
            holding.discard(record.id)
            groups.discard(record.group or "")
            verb = (mine.ack, mine.nack, mine.release)[(record.id + record.deliveries) % 3]
            if verb == mine.ack:
                finished.append(record.id)
        verb(claims_of([record]))

    def claim(number: int) -> None:
        mine, held = stores[number % 2], list[MessageRecord]()
        try:
            while len(finished) < total and not over.is_set():
                got: list[MessageRecord] = []
                with contextlib.suppress(Empty):  # another consumer may nack what it has claimed
                    got = mine.claim(1 + number % 3)
                note(got)
                for record in held:
                    settle(mine, record)
                held = got
        finally:
            over.set()

    run_threads(*[partial(claim, number) for number in range(claimers)])
    check(sorted(finished) == ids, f"acked were {sorted(finished)}, put were {ids}")
    check(contents(store) == [], f"of acked messages there is {contents(store)}")
    _held_elsewhere(harness, store, stores[1])


def _group(number: int) -> str | None:
    return None if number % 3 else str(number % 2)


def _held_elsewhere(harness: MessageStoreHarness, store: MessageStore, other: MessageStore) -> None:
    put(store, *(harness.entry(name) for name in "abc"))
    held = claims_of(store.claim(2, prefetch=True))
    check(payloads(claim_all(other)) == ["c"], f"of three messages two are claimed: {contents(other)}")
    empty(store)
    check([record.claim for record in other.scan(State.CLAIMED)] == [None] * 3, "scan() gives claims away")
    check(other.reclaim() == 0, "reclaim() ended claims of a living holder")
    other.close()
    if other is not store:
        check(payloads(claim_all(store)) == ["c"], "close() elsewhere ended more than its own claims")
        store.ack(held)


@message_store_law("S7")
def strangers_by_name(harness: MessageStoreHarness) -> None:
    """No two stores with different names see each other."""
    one, two = harness.open("a", KEEPS), harness.open("b", KEEPS)
    entry = harness.entry
    ids = put(one, *(entry(str(n), topic="t", key=b"%d" % n, group="g" if n > 2 else None) for n in range(6)))
    check(contents(two) == [], f"what was put into one is in the other: {contents(two)}")
    put(two, entry("x", topic="t", key=b"0", group="g"), entry("y", topic="t", group="g"))
    before = contents(two)
    check([record.state for record in before] == [State.READY, State.BLOCKED], f"in the other is {before}")

    def untouched(what: str) -> None:
        check(contents(two) == before, f"{what} of one changed the other: {contents(two)}, of {before}")
        check(two.put([entry("x", key=b"0")]) == [None], f"{what} of one freed a key of the other")

    held = claims_of(one.claim(3))
    untouched("claim()")
    foreign = [claim for claim in held if all(claim.id != record.id for record in before)]
    for name, call in settling(harness, two, foreign).items():
        with stale([claim.id for claim in foreign], f"{name} of claims of another queue", one, two):
            call()
    check(two.release(foreign) == 0, "release() of claims of another queue ended one")
    check(two.find(ids[-1]) is None, "find() gave a message of another queue")
    one.ack(held[:1])
    one.fail(held[1:2])
    one.release(held[2:])
    untouched("settling")
    one.release_key(b"0")
    untouched("release_key()")
    one.pause("t")
    one.set_rate("t", harness.seconds(900.0))
    lock_of(one, "t", harness.seconds(900.0))
    (got,) = two.claim(9, ["t"])
    check(got.payload == b"x", f"a pause, rate or lock elsewhere, and {got} came")
    two.unlock_topic(lock_of(two, "t"))
    two.release(claims_of([got]))
    before = contents(two)
    one.redrive_all()
    one.purge()
    one.purge(dead=True)
    one.reclaim()
    one.shrink()
    one.checkpoint()
    untouched("removal")
    one.close()
    untouched("close()")


@message_store_law("S9")
def closed_is_closed(harness: MessageStoreHarness) -> None:
    """After close() every call raises ClosedError, except close()."""
    store = harness.open(policy=KEEPS)
    put(store, *(harness.entry(name, topic=name, key=name.encode()) for name in "abcd"))
    held, failed = claim_of(store, "a"), claim_of(store, "b")
    store.fail([failed])
    lock = lock_of(store, "c")
    reading = store.scan()
    next(reading)
    before = standing(store) | {"a": State.READY}
    store.close()
    store.close()
    for name, call in _every_call(harness, store, held, lock, failed.id).items():
        with refuses(ClosedError, f"{name} of a closed store"):
            call()
    with contextlib.suppress(ClosedError):
        list(reading)  # it began before: it continues, or raises
    after = harness.open(policy=KEEPS)
    found = standing(after)
    check(found == before, f"calls after close() made {found} of {before}")
    check(len(claim_all(after)) == 3, "calls after close() paused, locked or limited a topic")


def _every_call(
    harness: MessageStoreHarness, store: MessageStore, held: MessageClaim, lock: TopicClaim, dead: int
) -> dict[str, Callable[[], object]]:
    """Return each call of a store but ``close()``, with arguments that change something if it is open."""
    calls: dict[str, Callable[[], object]] = {
        "put()": lambda: store.put([harness.entry("e")]),
        "put() of what is refused": lambda: store.put([harness.entry("a", key=b"a")]),
        "put() of nothing": lambda: store.put([]),
        "claim()": store.claim,
        "claim() of several": lambda: store.claim(9, prefetch=True),
        "claim() of a topic without messages": lambda: store.claim(1, ["unknown"]),
        "release()": lambda: store.release([held]),
        "redrive()": lambda: store.redrive(dead),
        "redrive() of none": lambda: store.redrive(-1),
        "redrive_all()": store.redrive_all,
        "cancel()": lambda: store.cancel(dead),
        "cancel() of none": lambda: store.cancel(-1),
        "purge()": store.purge,
        "purge() of the dead": lambda: store.purge(dead=True),
        "release_key()": lambda: store.release_key(b"c"),
        "find()": lambda: store.find(dead),
        "peek()": store.peek,
        "scan()": lambda: list(store.scan()),
        "scan() of a state": lambda: list(store.scan(State.READY, topic="c")),
        "topics()": store.topics,
        "count()": store.count,
        "is_empty()": store.is_empty,
        "has_unfinished()": store.has_unfinished,
        "stats()": store.stats,
        "stats() of a topic": lambda: store.stats("c"),
        "set_rate()": lambda: store.set_rate("c", harness.seconds(900.0)),
        "pause()": lambda: store.pause("c"),
        "resume()": lambda: store.resume("c"),
        "lock_topic()": lambda: store.lock_topic("d", harness.seconds(900.0)),
        "lock_topic() of any topic": lambda: store.lock_topic(None, 3600.0),
        "extend_lock()": lambda: store.extend_lock(lock, 3600.0),
        "unlock_topic()": lambda: store.unlock_topic(lock),
        "reclaim()": store.reclaim,
        "shrink()": store.shrink,
        "checkpoint()": store.checkpoint,
        "change_token()": store.change_token,
    }
    for claims in ([held], []):
        each = settling(harness, store, claims)
        calls |= {f"{name} of {len(claims)} claims": call for name, call in each.items()}
    if harness.capabilities.transactions:
        calls["transaction()"] = lambda: store.transaction().__enter__()
    return calls


@message_store_law("S10", "forks")
def forks_are_harmless(harness: MessageStoreHarness) -> None:
    """Every forked child can use the store, and never disturbs its parent."""
    for dies in (True, False):
        _forked(harness, dies)


def _forked(harness: MessageStoreHarness, dies: bool) -> None:
    store = harness.open(str(dies), KEEPS)
    names = ("held", "given", "locked", "free", "done", "left")
    put(store, *(harness.entry(name, topic=name, key=name.encode()) for name in names))
    held, given = claim_of(store, "held"), claim_of(store, "given")
    lock = lock_of(store, "locked", harness.seconds(900.0))
    expected = standing(store)
    in_forked_child(lambda: None)  # a child that ends without using it
    shared = harness.capabilities.processes
    in_forked_child(partial(_child, harness, store, [held, given], shared, dies))
    if shared:
        expected |= {"given": State.DONE, "done": State.DONE, "new": State.READY}
        if dies and not notices_death(store):
            expected["left"] = State.CLAIMED
        elif dies:
            harness.time.wait(store.capabilities.death_noticed_after)
            count = store.reclaim()
            check(count <= 1, f"of the child's one claim, reclaim() ended {count}")
    found = standing(store)
    check(found == expected, f"after the child: {found}, not {expected}")
    store.ack([held] if shared else [held, given])
    store.extend_lock(lock, harness.seconds(900.0))
    if harness.capabilities.handles:
        empty(harness.open(str(dies), KEEPS), ["locked"])
    claim_of(store, "locked")
    check(store.unlock_topic(lock), "the child has ended the lock of its parent")
    check(None not in put(store, harness.entry("b", key=b"held")), "the child took the key of its parent")


def _child(
    harness: MessageStoreHarness, store: MessageStore, claims: list[MessageClaim], shared: bool, dies: bool
) -> None:
    store.after_fork_in_child()
    held, given = claims
    if not shared and notices_death(store):  # a copy, in which the parent is dead
        harness.time.wait(store.capabilities.death_noticed_after)
        with stale([held.id, given.id], "ack() of what a dead parent held", store):
            store.ack(claims)
        left = store.find(held.id)
        check(left is not None and left.error is not None, f"the message of a dead parent is {left}")
        claim_of(store, "held")
        claim_of(store, "locked")
    else:
        check(store.reclaim() == 0, "the child reclaimed what the parent holds")
        for topic in ("held", "locked"):
            empty(store, [topic])
        check(store.lock_topic("locked", 3600.0) is None, "the child locked the topic of its parent")
        check(store.put([harness.entry("x", key=b"held")]) == [None], "the parent's key is not active")
        store.ack([given])
    put(store, harness.entry("new", topic="new"))
    store.ack([claim_of(store, "done")])
    claim_of(store, "left")
    found = {name: state for name, state in standing(store).items() if name in ("done", "left", "new")}
    wanted = {"done": State.DONE, "left": State.CLAIMED, "new": State.READY}
    check(found == wanted, f"in the child there is {found}, not {wanted}")
    if not dies:
        store.close()
        with refuses(ClosedError, "put() into a closed store"):
            store.put([harness.entry("more")])


LIFE_LAWS: tuple[MessageStoreLaw, ...] = (
    *REFUSAL_LAWS,
    *DURABILITY_LAWS[:1],
    in_order_and_never_twice,
    one_taker_each,
    strangers_by_name,
    *DURABILITY_LAWS[1:],
    closed_is_closed,
    forks_are_harmless,
)
"""By number."""
