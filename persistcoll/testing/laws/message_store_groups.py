"""The law Q2: groups. See :mod:`persistcoll.testing.laws.message_store`."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from persistcoll.engine.contracts import MessageStore
from persistcoll.engine.message_records import MessagePolicy
from persistcoll.engine.records import State
from persistcoll.errors import Empty
from persistcoll.testing.children import check, run_threads
from persistcoll.testing.laws.message_store_harness import (
    MessageStoreHarness,
    MessageStoreLaw,
    claimable,
    claims_of,
    contents,
    empty,
    message_store_law,
    put,
    standing,
)

__all__ = ["ENDS", "GROUP_LAWS", "NAMES", "ONCE"]

NAMES = ("a", "A", "a ", "\xe4", "", "x" * 255, "\xe4" * 127 + "x", "%", "a'b")
"""Names of which a collation that ignores case, accents or spaces at the end takes some for one."""

_LEASED = MessagePolicy(lease=10.0, max_attempts=None, backoff=None)
ONCE = MessagePolicy(lease=10.0, max_attempts=1, backoff=None, keep_done=5)
"""The policy for :data:`ENDS`."""

ENDS: dict[str, tuple[float | None, Callable[[MessageStore, int], Any]]] = {
    "ack()": (None, lambda store, id: store.ack(claims_of(store.claim()))),
    "fail()": (None, lambda store, id: store.fail(claims_of(store.claim()))),
    "nack() of its last attempt": (None, lambda store, id: store.nack(claims_of(store.claim()))),
    "cancel()": (None, lambda store, id: store.cancel(id)),
    "the end of its last lease": (None, lambda store, id: store.claim()),
    "the end of its ttl": (10.0, lambda store, id: None),
}
"""What finishes the only ready message of a store, at once or 10 seconds later: its ttl, and a call."""


@message_store_law("Q2")
def one_of_a_group_at_a_time(harness: MessageStoreHarness) -> None:
    """Every group has one message at a time that a claim may give, in the order of their ids.

    A claimed, delayed or ready head blocks all others of its topic and group. The next message becomes the
    head only when the head is finished.
    """
    _groups_apart(harness)
    _order_in_a_group(harness)
    _next_is_delayed(harness)
    _heads_that_stay(harness)
    _heads_that_end(harness)
    _others_removed(harness)
    _redriven_in_a_group(harness)
    _heads_of_the_dead(harness)
    _all_at_once(harness)


def _groups_apart(harness: MessageStoreHarness) -> None:
    store = harness.open("apart")
    other = harness.another(store, "apart")
    places = [(topic, group) for topic in ("t", "T") for group in (*NAMES, None)]
    put(store, *(harness.entry(turn, topic=topic, group=group) for turn in "12" for topic, group in places))
    wanted = [(b"1", *place) for place in places] + [(b"2", topic, None) for topic in "tT"]
    stored = contents(other)
    found = [(record.payload, record.topic, record.group) for record in stored]
    check(found == [(turn, *place) for turn in (b"1", b"2") for place in places], f"stored is {found}")
    for place, record in zip(found, stored, strict=True):
        state = State.READY if place in wanted else State.BLOCKED
        check(record.state is state, f"{record} is not {state.value}")
    heads = other.claim(1000)
    found = [(record.payload, record.topic, record.group) for record in heads]
    check(found == wanted, f"claimed together: {found}, not {wanted}")
    empty(store)
    # The heads of many groups end in one call, and only these groups move on.
    store.ack(claims_of([record for record in heads if record.topic == "t"]))
    after = [(record.payload, record.topic, record.group) for record in other.claim(1000)]
    check(after == [(b"2", "t", name) for name in NAMES], f"after the heads of topic t come {after}")
    # An entry that is refused is of no group.
    put(store, harness.entry("a", key=b"k"))
    check(store.put([harness.entry("a", key=b"k", group="new")]) == [None], "an active key is not refused")
    put(store, harness.entry("head", group="new"))
    check(standing(other)["head"] is State.READY, "a refused entry blocks its group")


def _order_in_a_group(harness: MessageStoreHarness) -> None:
    """Check that priorities order the heads among others, and not the messages of one group."""
    store = harness.open("order")
    other = harness.another(store, "order")
    put(store, harness.entry("a", group="g"), harness.entry("b", group="g", priority=9))
    put(store, harness.entry("x", priority=5))
    put(store, harness.entry("c", group="g", priority=-1), harness.entry("d", group="g", priority=99))
    put(store, harness.entry("y"))
    got: list[str] = []
    for _ in range(3):
        for each in (store, other):
            [record] = each.claim()
            got.append(record.payload.decode())
            each.ack(claims_of([record]))
    check(got == ["x", "a", "b", "y", "c", "d"], f"claims gave {got}")
    # What one object puts has no lower id than what another one put before and a consumer has finished.
    ids: list[int] = []
    for each in (store, other, store, other):
        put(each, harness.entry("e", group="g"))
        [record] = other.claim()
        store.ack(claims_of([record]))
        ids.append(record.id)
    check(ids == sorted(ids), f"the messages of a group came in the order {ids}")


def _heads_that_stay(harness: MessageStoreHarness) -> None:
    """Check that a head which comes back, at once or later, is still the head."""
    store = harness.open("stay", _LEASED)
    other = harness.another(store, "stay", _LEASED)
    put(store, harness.entry("a", group="g", delay=10.0))
    put(store, harness.entry("b", group="g", priority=9), harness.entry("c", group="g", priority=99))

    def is_head(*wanted: str, how: str, state: State = State.READY) -> None:
        for each in (other, store):
            found = standing(each)
            states = dict.fromkeys("abc", State.BLOCKED) | {"a": state}
            check(found == states, f"the head {how}, and the group is {found}")
            given = claimable(each)
            check(given == list(wanted), f"the head {how}, and {given} can be claimed")

    is_head(how="is delayed", state=State.DELAYED)
    harness.advance(10.0)
    is_head("a", how="is not delayed any more")
    claims = claims_of(store.claim(9))
    is_head(how="is claimed", state=State.CLAIMED)
    other.release(claims)
    is_head("a", how="was released")
    other.nack(claims_of(store.claim(9)))
    is_head("a", how="was nacked")
    other.nack(claims_of(store.claim(9)), harness.seconds(10.0))
    is_head(how="was nacked with a delay", state=State.DELAYED)
    harness.advance(10.0)
    is_head("a", how="was nacked with a delay that is over")
    store.claim(9, prefetch=True)
    is_head(how="is prefetched", state=State.CLAIMED)
    harness.advance(10.0)
    is_head("a", how="had a lease that is over")
    store.fail(claims_of(other.claim(9)))
    check(claimable(other) == ["b"], "the head is dead, and the next one cannot be claimed")


def _heads_that_end(harness: MessageStoreHarness) -> None:
    """Check that only the next message becomes the head, in whatever way the head is finished."""
    late: list[Callable[[], None]] = []
    for how, (ttl, end) in ENDS.items():
        store = harness.open(how, ONCE)
        other = harness.another(store, how, ONCE)
        [first] = put(store, harness.entry("a", group="g", ttl=ttl))
        put(store, harness.entry("b", group="g"), harness.entry("c", group="g"))
        # It is of another group.
        put(store, harness.entry("d", topic="t", group="g", delay=3000.0))
        end(other, first)
        if "the end of" not in how:
            _is_next(store, other, how)
            continue
        check(claimable(other, ["t"]) == [], "what is delayed is claimed")
        late.append(partial(_is_next, store, other, how))
    store = harness.open("purge()", ONCE)
    put(store, harness.entry("a", group="g"))
    harness.advance(10.0)
    for is_next in late:
        is_next()
    put(store, harness.entry("b", group="g"), harness.entry("c", group="g"))
    put(store, harness.entry("d", topic="t", group="g", delay=3000.0))
    time_of_b = [record.time for record in store.scan()][1]
    check(store.purge(before=time_of_b) == 1, "purge() of one older message")
    _is_next(store, harness.another(store, "purge()", ONCE), "purge()")


def _is_next(store: MessageStore, other: MessageStore, how: str) -> None:
    given = claimable(other)
    check(given == ["b"], f"the head is finished by {how}, and a claim gave {given}")
    states = standing(store)
    states.pop("a", None)
    wanted = {"b": State.READY, "c": State.BLOCKED, "d": State.DELAYED}
    check(states == wanted, f"the head is finished by {how}, and the others are {states}")
    store.ack(claims_of(other.claim(9)))
    check(claimable(store) == ["c"], f"the head is finished by {how}, and the last one is not the head")


def _next_is_delayed(harness: MessageStoreHarness) -> None:
    """Check that the delay of a blocked message passes from its put, and blocks those after it."""
    store = harness.open("next")
    other = harness.another(store, "next")
    put(store, harness.entry("a", group="g"), harness.entry("b", group="g", delay=20.0))
    put(store, harness.entry("c", group="g", delay=10.0), harness.entry("d", group="g"))
    store.ack(claims_of(store.claim(9)))
    wanted = {"b": State.DELAYED, "c": State.BLOCKED, "d": State.BLOCKED}
    found = standing(other)
    check(found == wanted, f"the next head is delayed, and there is {found}")
    harness.advance(harness.time.before(20.0))
    check(claimable(other) == [], "a delayed head does not block what is behind it")
    harness.advance(20.0 - harness.time.before(20.0))
    for payload in "bcd":
        given = claimable(other)
        check(given == [payload], f"after all delays of a group {given} can be claimed, not {payload}")
        store.ack(claims_of(store.claim(9)))


def _others_removed(harness: MessageStoreHarness) -> None:
    """Check that the head stays the only one, when blocked messages are removed."""
    stores: dict[State, MessageStore] = {}
    for state in (State.READY, State.DELAYED, State.CLAIMED):
        stores[state] = store = harness.open(f"others of {state.value}")
        put(store, harness.entry("a", group="g", delay=3000.0 if state is State.DELAYED else 0.0))
        put(store, harness.entry("b", group="g", ttl=20.0))
        c, _ = put(store, harness.entry("c", group="g"), harness.entry("d", group="g"))
        if state is State.CLAIMED:
            store.claim()
        check(store.cancel(c), "a blocked message cannot be cancelled")
        wanted = {"a": state, "b": State.BLOCKED, "d": State.BLOCKED}
        found = standing(store)
        check(found == wanted, f"a blocked message is cancelled, and there is {found}")
    harness.advance(20.0)
    for state, store in stores.items():
        other = harness.another(store, f"others of {state.value}")
        check(claimable(other) == ["a"] * (state is State.READY), "the ttl of a blocked message is over")
        wanted = {"a": state, "d": State.BLOCKED}
        found = standing(store)
        check(found == wanted, f"a blocked message is expired, and there is {found}")
        count = 1 if state is State.CLAIMED else 2
        found = standing(other)
        check(other.purge() == count, f"purge() of {found} did not remove {count}")
        put(store, harness.entry("e", group="g"), harness.entry("f", group="g"))
        wanted_head = [] if state is State.CLAIMED else ["e"]
        given = claimable(other)
        check(
            given == wanted_head, f"the others of a {state.value} head are purged, and a claim gave {given}"
        )


def _redriven_in_a_group(harness: MessageStoreHarness) -> None:
    store = harness.open("redriven")
    other = harness.another(store, "redriven")
    put(store, *(harness.entry(each, group="g") for each in "abcd"))
    for payload in "abc":
        [record] = store.claim(9)
        check(record.payload == payload.encode(), f"{record} is claimed, not {payload}")
        store.fail(claims_of([record]))
    a, b, c, _ = (record.id for record in store.scan())
    # The later message is the head, and it stays the head. The earlier ones come next.
    check(other.redrive(b) and other.redrive(a), "what is dead cannot be redriven")
    states = dict.fromkeys("ab", State.BLOCKED) | {"c": State.DEAD, "d": State.READY}
    found = standing(store)
    check(found == states, f"redriven behind a ready head: {found}")
    head = claims_of(store.claim(9))
    check(other.redrive_all() == 1, "redrive_all() of the one dead message")
    states |= {"c": State.BLOCKED, "d": State.CLAIMED}
    found = standing(store)
    check(found == states, f"redriven behind a claimed head: {found}")
    store.nack(head, harness.seconds(10.0))
    check(claimable(other) == [], "what is redriven is claimed before its delayed head")
    harness.advance(10.0)
    check(claimable(other) == ["d"], "what is redriven took the place of the head")
    store.fail(claims_of(other.claim(9)))
    for payload in "ab":
        [record] = other.claim(9)
        check(record.payload == payload.encode(), f"redriven, {record} is claimed, not {payload}")
        other.fail(claims_of([record]))
    check(store.cancel(c), "a redriven head cannot be cancelled")
    # No message of the group is unfinished: the first of those that are redriven is the head.
    check(store.redrive_all() == 3, "redrive_all() did not redrive all three")
    states = {"a": State.READY, "b": State.BLOCKED, "d": State.BLOCKED}
    found = standing(other)
    check(found == states, f"a whole group is redriven: {found}")
    check(store.redrive(a) is False, "redrive() of a head that is ready")


def _heads_of_the_dead(harness: MessageStoreHarness) -> None:
    """Check that a group goes on after its head's holder was closed or died."""
    for policy, wanted in ((_LEASED, "a"), (ONCE, "b")):
        name = f"the head of the dead, before {wanted}"
        store = harness.open(name, policy)
        put(store, harness.entry("a", group="g"), harness.entry("b", group="g"))
        store.claim(9)
        if harness.capabilities.crashes and store.capabilities.death_noticed_after < math.inf:
            left = harness.crash(name, policy)
            harness.time.wait(left.capabilities.death_noticed_after)
            given = claimable(left)
            check(given == [wanted], f"a crash left a group of which {given} can be claimed")
        store.close()
        store = harness.open(name, policy)
        given = claimable(store)
        check(given == [wanted], f"a close left a group of which {given} can be claimed")


def _all_at_once(harness: MessageStoreHarness) -> None:
    """Check that groups keep their order while several threads put, claim and settle."""
    store = harness.open("at once")
    stores = [store, *(harness.another(store, "at once") for _ in range(3))]
    total, lock, until = 40, threading.Lock(), time.monotonic() + 60.0
    busy: set[str] = set()
    got: dict[str, list[int]] = {"g": [], "h": []}

    def produce(each: MessageStore) -> None:
        for number in range(total // 4):
            put(each, harness.entry(str(number), group="g"), harness.entry(str(number), group="h"))

    def consume(each: MessageStore) -> None:
        while sum(map(len, got.values())) < total:
            check(time.monotonic() < until, f"of {total} messages in groups only these came: {got}")
            with contextlib.suppress(Empty):
                records = each.claim(2)
                groups = [record.group or "" for record in records]
                with lock:
                    check(not busy & {*groups} and len({*groups}) == len(groups), f"{groups} beside {busy}")
                    busy.update(groups)
                time.sleep(0)  # a store that gives two of a group at a time gives the second one now
                with lock:
                    busy.difference_update(groups)
                    for record in records:
                        if record.deliveries > 1:
                            got[record.group or ""].append(record.id)
                for record in records:
                    settle = each.ack if record.deliveries > 1 else each.release
                    settle(claims_of([record]))

    calls = (produce, produce, consume, consume)
    run_threads(*(partial(call, each) for each, call in zip(stores, calls, strict=True)))
    for ids in got.values():
        check(ids == sorted(ids), f"a group came in the order {ids}")


GROUP_LAWS: tuple[MessageStoreLaw, ...] = (one_of_a_group_at_a_time,)
"""By number."""
