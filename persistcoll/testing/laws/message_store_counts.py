"""The law Q16: counts and topics. See :mod:`persistcoll.testing.laws.message_store`."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from typing import Any

from persistcoll.engine.contracts import MessageStore
from persistcoll.engine.message_records import MessageClaim, MessageEntry
from persistcoll.engine.records import Backoff, State
from persistcoll.errors import DuplicateError, Empty, StaleClaimError
from persistcoll.testing.children import check
from persistcoll.testing.laws.message_store_harness import (
    KEEPS,
    PLAIN,
    MessageStoreHarness,
    MessageStoreLaw,
    claim_of,
    claims_of,
    contents,
    empty,
    message_store_law,
    put,
    refuses,
    totals,
)

__all__ = ["COUNT_LAWS"]


@message_store_law("Q16")
def counts_are_exact(harness: MessageStoreHarness) -> None:
    """Every count of the queue and of each topic is exact. A topic exists while a message of it is stored."""
    _alone_in_each_state(harness)
    _topics_come_and_go(harness)
    _ages(harness)
    _counted_at_once(harness)
    for seed in range(2):
        _counted_whatever_happens(harness, random.Random(seed), f"seed {seed}")


def _alone_in_each_state(harness: MessageStoreHarness) -> None:
    """Check the counts of a queue with one message, in each state that it may have."""
    store = harness.open("alone", KEEPS)
    other = harness.another(store, "alone", KEEPS)

    def check_state(state: State) -> None:
        for each in (store, other):
            found = [record.state for record in contents(each)]
            check(found == [state], f"of one message, which is {state.value}, there is {found}")
            left = each.has_unfinished()
            check(left == (state not in (State.DONE, State.DEAD)), f"{state.value}, and unfinished: {left}")

    check(contents(store) == [], "a new store is not empty")
    put(store, harness.entry("a", group="g"))
    check_state(State.READY)
    store.nack(claims_of(store.claim(prefetch=True)), harness.seconds(900.0))
    check_state(State.DELAYED)
    check(store.purge() == 1, "purge() did not remove a delayed message")
    put(store, harness.entry("a", group="g"))
    held = claims_of(store.claim())
    check_state(State.CLAIMED)
    store.fail(held)
    check_state(State.DEAD)
    store.redrive_all()
    store.release(claims_of(store.claim()))
    check_state(State.READY)
    store.ack(claims_of(store.claim()))
    check_state(State.DONE)


def _topics_come_and_go(harness: MessageStoreHarness) -> None:
    store = harness.open("topics", PLAIN._replace(max_attempts=1))
    other = harness.another(store, "topics", PLAIN._replace(max_attempts=1))
    for topic in ("ready", "unknown"):
        store.pause(topic)
        store.set_rate(topic, harness.seconds(900.0))
        store.lock_topic(topic, harness.seconds(900.0))
    check(store.topics() == {}, f"topics without a message: {store.topics()}")
    names = ("acked", "cancelled", "purged", "dead", "spent", "claimed", "delayed", "expired", "ready")
    fields: dict[str, dict[str, Any]] = {"delayed": {"delay": 900.0}, "expired": {"ttl": 30.0}}
    ids = {name: put(store, harness.entry(name, topic=name, **fields.get(name, {})))[0] for name in names}
    put(store, *[harness.entry("group", topic="group", group="g", delay=900.0)] * 3)
    counts = dict.fromkeys(names, 1) | {"delayed": 0, "group": 0}

    def check_topics(what: str) -> None:
        for each in (store, other):
            check(each.topics() == counts, f"{what}: topics() is {each.topics()}, not {counts}")

    check_topics("after put()")
    held = {topic: claim_of(store, topic) for topic in ("acked", "dead", "spent", "claimed")}
    counts |= dict.fromkeys(held, 0)
    check_topics("after claim()")
    store.fail([held["dead"]])
    store.nack([held["spent"]])
    check_topics("after messages became dead")
    removals: dict[str, Callable[[], object]] = {
        "expired": lambda: harness.advance(30.0),
        "acked": lambda: store.ack([held["acked"]]),
        "cancelled": lambda: store.cancel(ids["cancelled"]),
        "purged": lambda: store.purge("purged"),
        "dead": lambda: store.purge("dead", dead=True),
        "spent": lambda: store.cancel(ids["spent"]),
        "group": lambda: other.purge("group"),
    }
    for name, remove in removals.items():
        remove()
        del counts[name]
        check_topics(f"without {name!r}")
        _check_no_messages(store, name)
    contents(store)
    store.release([held["claimed"]])
    counts["claimed"] = 1
    check_topics("after release()")
    check(totals(other) == (12, 9, 1), f"of 12 messages, 9 finished, 1 expired: {totals(other)}")


def _check_no_messages(store: MessageStore, topic: str) -> None:
    found = store.count(topic), store.is_empty(topic), list(store.scan(topic=topic))
    check(found == (0, True, []), f"of a topic without messages: {found}")
    told = {state: count for state in State if (count := getattr(store.stats(topic), state.value))}
    check(not told, f"of a topic without messages: {store.stats(topic)}")
    with refuses(Empty, "peek() of a topic without messages"):
        store.peek(topic)
    empty(store, [topic])


def _ages(harness: MessageStoreHarness) -> None:
    store = harness.open("ages")
    began: dict[str, float] = {}

    def add(name: str, topic: str, **fields: Any) -> None:
        before = harness.now()
        (id,) = put(store, harness.entry(name, topic=topic, **fields))
        record = store.find(id)
        assert record is not None
        began[name] = record.time
        known = before - 0.01 <= record.time <= harness.now() + 0.01
        check(known, f"the time of a message is {record.time}, and it was put after {before}")

    def check_ages(**oldest: str | None) -> None:
        for topic, name in oldest.items():
            before = harness.now()
            age = store.stats(None if topic == "queue" else topic).oldest_age
            if name is None or age is None:
                check(name is None and age is None, f"the oldest of {topic} is {name}, its age {age}")
                continue
            least, most = before - began[name] - 0.01, harness.now() - began[name] + 0.01
            check(least <= age <= most, f"the age of {name} is {age}, not between {least} and {most}")

    check_ages(queue=None, t=None)
    add("late", "t", delay=15.0)
    harness.advance(5.0)
    add("a", "t", priority=-1)
    harness.advance(5.0)
    add("b", "s", priority=1)
    harness.advance(harness.time.before(5.0))
    add("c", "s")
    check_ages(queue="a", t="a", s="b")
    held = claims_of(store.claim(1, ["t"]))
    check_ages(queue="b", t=None, s="b")
    store.cancel(store.peek().id)
    check_ages(queue="c", s="c")
    store.fail(held)
    check_ages(queue="c", t=None)
    store.redrive(held[0].id)
    check_ages(queue="a", t="a")
    harness.advance(5.0)
    check_ages(queue="late", t="late")
    store.purge()
    check_ages(queue=None, t=None, s=None)


_READY, _DEAD, _GONE = "ready", "dead", "gone"


def _counted_at_once(harness: MessageStoreHarness) -> None:
    """Check that the first call after something is due counts it."""
    looks: dict[str, tuple[Callable[[MessageStore], Any], dict[str, Any]]] = {
        "count()": (lambda store: store.count(), {_READY: 1, _DEAD: 0, _GONE: 0}),
        "count() of a topic": (lambda store: store.count("t"), {_READY: 1, _DEAD: 0, _GONE: 0}),
        "is_empty()": (lambda store: store.is_empty(), {_READY: False, _DEAD: True, _GONE: True}),
        "is_empty() of a topic": (
            lambda store: store.is_empty("t"),
            {_READY: False, _DEAD: True, _GONE: True},
        ),
        "has_unfinished()": (
            lambda store: store.has_unfinished(),
            {_READY: True, _DEAD: False, _GONE: False},
        ),
        "topics()": (lambda store: store.topics(), {_READY: {"t": 1}, _DEAD: {"t": 0}, _GONE: {}}),
        "stats()": (_counts, {_READY: [_READY], _DEAD: [_DEAD], _GONE: []}),
        "stats() of a topic": (
            lambda store: _counts(store, "t"),
            {_READY: [_READY], _DEAD: [_DEAD], _GONE: []},
        ),
        "totals": (totals, {_READY: (1, 0, 0), _DEAD: (1, 1, 0), _GONE: (1, 1, 1)}),
        "scan()": (
            lambda store: [record.state for record in store.scan()],
            {_READY: [State.READY], _DEAD: [State.DEAD], _GONE: []},
        ),
    }
    causes: dict[str, tuple[str, dict[str, Any]]] = {
        "a delay": (_READY, {"delay": 30.0}),
        "a lease": (_READY, {"lease": 30.0}),
        "the last lease": (_DEAD, {"lease": 30.0, "max_attempts": 1}),
        "a ttl": (_GONE, {"ttl": 30.0}),
        "the ttl of what is delayed": (_GONE, {"delay": 900.0, "ttl": 30.0}),
        "a lease and a ttl": (_GONE, {"lease": 30.0, "ttl": 20.0}),
    }
    opened: list[tuple[str, MessageStore, Callable[[MessageStore], Any], Any]] = []
    for cause, (end, fields) in causes.items():
        for name, (call, wanted) in looks.items():
            store = harness.open(f"{name} {cause}")
            put(store, harness.entry("a", topic="t", **fields))
            if "lease" in fields:
                store.claim()
            opened.append((f"{name} after the end of {cause}", store, call, wanted[end]))
    harness.advance(30.0)
    for name, store, call, wanted in opened:
        found = call(store)
        check(found == wanted, f"{name} is {found}, not {wanted}")


def _counts(store: MessageStore, topic: str | None = None) -> list[str]:
    """Return the names of the states of all messages as ``stats()`` counts them."""
    told = store.stats(topic)
    return [state.value for state in State for _ in range(getattr(told, state.value))]


def _counted_whatever_happens(harness: MessageStoreHarness, chance: random.Random, name: str) -> None:
    """Check the counts after each of many calls."""
    # The clock that nobody sets moves while the law looks, so there nothing becomes due.
    times = 1000.0 if harness.capabilities.real_time else 1.0
    policy = KEEPS._replace(max_attempts=3, backoff=Backoff(2.0 * times, 2.0, 3600.0 * times, 0.0))
    store = harness.open(name, policy)
    stores = [store, harness.another(store, name, policy)]
    held: list[MessageClaim] = []
    ids = [1]
    puts = removed = 0
    for step in range(60):
        mine = chance.choice(stores)
        if times == 1.0 and chance.random() < 0.2:
            harness.advance(1.0)
        entries = [_entry(harness, chance, times, f"{step} {n}") for n in range(chance.randrange(1, 4))]
        added, gone = _change(mine, chance, entries, chance.choice(ids), held)
        puts, removed = puts + added, removed + gone
        settle = chance.choice((mine.ack, mine.ack, mine.nack, mine.fail, mine.release))
        for _ in range(min(len(held), chance.randrange(3))):
            with contextlib.suppress(StaleClaimError):
                settle([held.pop(chance.randrange(len(held)))])
        records = contents(chance.choice(stores))
        ids = [record.id for record in records] or ids
        unfinished = sum(record.finished is None for record in records)
        wanted = puts, puts - unfinished, puts - len(records) - removed
        check(totals(mine) == wanted, f"step {step}: totals {totals(mine)}, not {wanted}: {records}")


def _change(
    store: MessageStore,
    chance: random.Random,
    entries: list[MessageEntry],
    id: int,
    held: list[MessageClaim],
) -> tuple[int, int]:
    """Make one call by chance, and return how many messages it has put and how many it has removed."""
    kind, topic = chance.randrange(10), chance.choice((None, "s", "t"))
    if kind < 3:
        ids = store.put(entries)
        return len(ids) - ids.count(None), 0
    if kind < 6:
        with contextlib.suppress(Empty):
            store.claim(chance.randrange(1, 4), topic and (topic, "u"), claims=held)
    elif kind == 6:
        return 0, store.cancel(id)
    elif kind == 7:
        return 0, store.purge(topic or "u", dead=chance.random() < 0.5)
    elif kind == 8:
        store.redrive_all(topic)
    else:
        with contextlib.suppress(DuplicateError):
            store.redrive(id)
    return 0, 0


def _entry(harness: MessageStoreHarness, chance: random.Random, times: float, payload: str) -> MessageEntry:
    return harness.entry(
        payload,
        topic=chance.choice("stu"),
        priority=chance.randrange(2),
        group=chance.choice((None, None, "g", "h")),
        key=chance.choice((None, None, b"k", b"l")),
        delay=chance.choice((0, 0, 3.0 * times)),
        ttl=chance.choice((None, None, 7.0 * times)),
        lease=chance.choice((2.0 * times, 900.0 * times)),
    )


COUNT_LAWS: tuple[MessageStoreLaw, ...] = (counts_are_exact,)
"""By number."""
