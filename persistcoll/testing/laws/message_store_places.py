"""The law Q1: the order of messages. See :mod:`persistcoll.testing.laws.message_store`."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from persistcoll.engine.message_records import MessagePolicy, MessageRecord
from persistcoll.engine.records import State
from persistcoll.errors import Empty
from persistcoll.testing.children import check
from persistcoll.testing.laws.message_store_groups import NAMES, ONCE
from persistcoll.testing.laws.message_store_harness import (
    MessageStoreHarness,
    MessageStoreLaw,
    claim_all,
    claimable,
    claims_of,
    contents,
    empty,
    message_store_law,
    payloads,
    put,
)

__all__ = ["PLACE_LAWS"]

_LEASED = MessagePolicy(lease=10.0, max_attempts=None, backoff=None)

# The extremes, neighbours that a float distinguishes, and equal ones.
_PRIORITIES = (
    *(0, 1, -1, 0.5, -0.0, 0.1, 1, 2**53 - 1, 2**53, -(2**53), 2**100, -(2**100)),
    *(1.7976931348623157e308, -1.7976931348623157e308, 5e-324, -5e-324, 0.0, 0.1),
)


def _sorted(records: Sequence[MessageRecord]) -> list[MessageRecord]:
    return sorted(records, key=lambda record: (-record.priority, record.id))


@message_store_law("Q1")
def highest_priority_first(harness: MessageStoreHarness) -> None:
    """Every claim takes the ready message with the highest priority, and of equal ones the lowest id.

    It is of the topics that were asked for. A message that comes back has the place that it had.
    """
    _priorities(harness)
    _topics(harness)
    _passed_over(harness)
    _spent(harness)
    _comes_back(harness)
    _at_random(harness)


def _priorities(harness: MessageStoreHarness) -> None:
    store = harness.open("priorities")
    other = harness.another(store, "priorities")
    entries = [harness.entry(str(place), priority=each) for place, each in enumerate(_PRIORITIES)]
    ids = put(store, *entries)
    check(ids == sorted(set(ids)), f"the ids of one put() do not grow: {ids}")
    records = contents(other)
    found = [record.priority for record in records]
    check(found == list(_PRIORITIES), f"priorities are {found}, not {list(_PRIORITIES)}")
    wanted = [record.id for record in _sorted(records)]
    got: list[int] = []
    for each, limit in ((other, 1), (store, 1), (other, 5), (store, 2), (other, 1000)):
        first = each.peek()
        claimed = each.claim(limit)
        check(claimed[0].id == first.id, f"claim() gave {claimed[0]}, peek() {first}")
        got += [record.id for record in claimed]
        check(got == wanted[: len(got)], f"claims gave {got}, not {wanted}")
    check(got == wanted, f"claims gave {got}, not {wanted}")
    empty(store)
    # What is put later comes first, if its priority is higher.
    put(store, harness.entry("low"))
    put(store, harness.entry("high", priority=1))
    put(store, harness.entry("same", priority=1))
    check(payloads(claim_all(other)) == ["high", "same", "low"], "what was put later is not in its place")


def _topics(harness: MessageStoreHarness) -> None:
    store = harness.open("topics")
    other = harness.another(store, "topics")
    entries = [harness.entry(f"{topic}{turn}", topic=topic) for turn in (1, 2) for topic in NAMES]
    put(store, *entries)
    check(store.topics() == dict.fromkeys(NAMES, 2), f"the topics are {store.topics()}, of {NAMES}")
    empty(store, ["missing"])
    for topic in NAMES:
        for each in (store, other):
            for asked in ([topic], [topic, topic], ["missing", topic]):
                given = claimable(each, asked)
                check(given == [f"{topic}1", f"{topic}2"], f"of the topics {asked} a claim gave {given}")
        first = store.peek(topic).payload.decode()
        check(first == f"{topic}1", f"peek({topic!r}) gave {first!r}")
    # The order of the names is not one of the messages.
    put(store, *(harness.entry(payload, topic=payload[0]) for payload in ("z1", "y1", "z2", "y2")))
    put(store, harness.entry("z3", topic="z", priority=1))
    for asked in (["y", "z"], ["z", "y"], ["y", "z", "y", "missing"]):
        given = claimable(other, asked)
        check(given == ["z3", "z1", "y1", "z2", "y2"], f"of the topics {asked} a claim gave {given}")
    check(payloads(store.claim(2, ["y", "z"])) == ["z3", "z1"], "two of two topics are not the first ones")
    check(payloads(claim_all(other, ["y"])) == ["y1", "y2"], "claims of one topic gave others")
    wanted = [record.id for record in store.scan(State.READY)]
    check([record.id for record in claim_all(other)] == wanted, "claims of every topic left some")


def _passed_over(harness: MessageStoreHarness) -> None:
    """Check that many messages which cannot be claimed now do not hide those after them."""
    store = harness.open("passed over")
    other = harness.another(store, "passed over")
    many = range(40)
    put(store, *(harness.entry(topic="paused", priority=9) for _ in many))
    put(store, *(harness.entry(topic="limited", priority=8) for _ in many))
    put(store, *(harness.entry(priority=7, delay=3000.0) for _ in many))
    put(store, *(harness.entry(priority=6, group="g") for _ in many))
    put(store, harness.entry("b", topic="b"), harness.entry("a", topic="a"), harness.entry("c", priority=-1))
    store.pause("paused")
    store.set_rate("limited", harness.seconds(3000.0))
    if other is not store:
        put(store, *(harness.entry(topic="locked", priority=5) for _ in many))
        check(store.lock_topic("locked", 3600.0) is not None, "a topic that nobody has locked is locked")
    first = other.claim(2)
    found = [(record.topic, record.group) for record in first]
    check(found == [("limited", None), ("default", "g")], f"the first two claimed are {found}")
    for limit, wanted in ((1, ["b"]), (2, ["a", "c"])):
        got = payloads(other.claim(limit))
        check(got == wanted, f"behind many that cannot be claimed a claim gave {got}, not {wanted}")
    empty(other)


def _spent(harness: MessageStoreHarness) -> None:
    """Check that messages without attempts left do not hide those after them."""
    store = harness.open("spent", ONCE)
    other = harness.another(store, "spent", ONCE)
    put(store, *(harness.entry("spent", priority=1) for _ in range(20)))
    put(store, harness.entry("a"), harness.entry("b"), harness.entry("c"))
    claimed = store.claim(20)
    store.nack(claims_of(claimed[:10]))
    check(payloads(other.claim(1)) == ["a"], "a claim did not pass over what is dead")
    harness.advance(10.0)
    check(payloads(other.claim(1)) == ["b"], "a claim did not pass over what died with its lease")
    check(payloads(store.claim(5)) == ["c"], "a claim did not pass over what is dead")


def _comes_back(harness: MessageStoreHarness) -> None:
    store = harness.open("back", _LEASED)
    other = harness.another(store, "back", _LEASED)
    for payload, priority in (("c", 0), ("d", 0), ("a", 1), ("e", 0), ("b", 0.5)):
        put(store, harness.entry(payload, priority=priority))
    wanted = ["a", "b", "c", "d", "e"]

    def is_in_place(how: str) -> None:
        for each in (other, store):
            given = claimable(each)
            check(given == wanted, f"what {how} is in the order {given}, not {wanted}")

    def taken(prefetch: bool = False) -> list[MessageRecord]:
        records = [*store.claim(2, prefetch=prefetch), *other.claim(9, prefetch=prefetch)]
        check(payloads(records) == wanted, f"two claims gave {payloads(records)}, not {wanted}")
        return records[::-1]

    other.release(claims_of(taken(prefetch=True)))
    is_in_place("a consumer prefetched and released")
    for claim in claims_of(taken(prefetch=True)):
        store.deliver([claim])
        store.release([claim])
    is_in_place("was released one by one, the last one first")
    for claim in claims_of(taken()):
        other.nack([claim])
    is_in_place("was nacked one by one, the last one first")
    other.nack(claims_of(taken()), 0.0, "bad")
    is_in_place("was nacked together, the last one first")
    dead = taken()
    for record in dead:
        other.fail(claims_of([record]))
    for record in dead:
        check(store.redrive(record.id), f"a dead message cannot be redriven: {record}")
    is_in_place("was dead and redriven, the last one first")
    claims = claims_of(taken())
    store.fail(claims[1::2])
    store.release(claims[::2])
    check(other.redrive_all() == 2, "redrive_all() did not redrive two")
    is_in_place("was in part dead and redriven together")
    for delay, claim in enumerate(claims_of(taken())):
        store.nack([claim], harness.seconds(4.0 + delay))
    harness.advance(8.0)
    is_in_place("was nacked with delays, of which the last one's was the first to end,")
    for lease, claim in enumerate(claims_of(taken())):
        store.extend([claim], harness.seconds(4.0 + lease))
    harness.advance(8.0)
    is_in_place("had leases that are over, of which the last one's was the first to end,")
    if other is not store:
        third = harness.another(store, "back", _LEASED)
        third.claim(2)
        third.claim(1)
        third.close()
        is_in_place("had a holder that was closed")


def _at_random(harness: MessageStoreHarness) -> None:
    store = harness.open("random")
    stores = (store, harness.another(store, "random"))
    chance = random.Random(1)
    held: list[MessageRecord] = []
    for step in range(150):
        each = chance.choice(stores)
        verb = chance.choice(("put", "claim", "claim", "settle"))
        if verb == "put":
            some = range(chance.randint(1, 4))
            fields = [
                {"topic": chance.choice("abc"), "group": chance.choice(("g", None))} | {"priority": priority}
                for priority in (chance.choice((-1, 0, 0, 1)) for _ in some)
            ]
            put(each, *(harness.entry(str(step), **field) for field in fields))
        elif verb == "settle" and held:
            chance.shuffle(held)
            settle: Callable[[Any], Any] = chance.choice((each.ack, each.nack, each.release))
            settle(claims_of(held[:3]))
            del held[:3]
        elif verb == "claim":
            topics = chance.choice((None, ["a"], ["b", "a"]))
            limit = chance.randint(1, 3)
            ready = [record for record in each.scan(State.READY) if topics is None or record.topic in topics]
            wanted = [record.id for record in _sorted(ready)][:limit]
            got: list[MessageRecord] = []
            try:
                got = each.claim(limit, topics)
            except Empty:
                check(not wanted, f"claim({limit}, {topics}) found nothing, of {ready}")
            ids = [record.id for record in got]
            check(ids == wanted, f"claim({limit}, {topics}) gave {ids}, not {wanted}")
            held += got
    contents(store)


PLACE_LAWS: tuple[MessageStoreLaw, ...] = (highest_priority_first,)
"""By number."""
