"""The law Q12 of message stores: rates. See :mod:`persistcoll.testing.laws.message_store`."""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial

from persistcoll.engine.contracts import MessageStore
from persistcoll.engine.message_records import MessageClaim
from persistcoll.errors import Empty
from persistcoll.testing.children import check, run_threads
from persistcoll.testing.laws.message_store_harness import (
    MessageStoreHarness,
    MessageStoreLaw,
    claim_all,
    claims_of,
    contents,
    empty,
    message_store_law,
    put,
    together,
)

__all__ = ["RATE_LAWS"]


@message_store_law("Q12")
def deliveries_keep_their_rate(harness: MessageStoreHarness) -> None:
    """Every topic delivers at most as often as its rate says, whichever objects claim. Redeliveries count."""
    together(
        harness,
        _evenly_spaced(harness),
        _bursts(harness),
        _redeliveries(harness),
        _beside_others(harness),
        _unused(harness),
        _same_values(harness),
        _other_values(harness),
        _other_bursts(harness),
        _alternating(harness),
        _lifted(harness),
        _threads(harness),
        _kept(harness),
        _at_random(harness, 1),
        _at_random(harness, 3),
    )


def _limited(
    harness: MessageStoreHarness, name: str, interval: float = 10.0, burst: int = 1, count: int = 12
) -> tuple[MessageStore, MessageStore]:
    """Return two handles of a store with messages of a topic that has a rate."""
    store = harness.open(name)
    store.set_rate("t", harness.seconds(interval), burst)
    if count:
        put(store, *(harness.entry(topic="t") for _ in range(count)))
    return store, harness.another(store, name)


def _gives(store: MessageStore, count: int, what: str, limit: int = 100) -> None:
    """Check how many messages one claim of many gives, and that the next one gives none."""
    try:
        found = len(store.claim(limit, ["t"]))
    except Empty:
        found = 0
    check(found == count, f"{what} claim() of {limit} gave {found} messages, not {count}")
    if limit > count:
        empty(store, ["t"])
        empty(store)


def _evenly_spaced(harness: MessageStoreHarness) -> Iterator[float]:
    store, other = _limited(harness, "even")
    yield 10.0
    _gives(store, 1, "of a topic with the burst 1")
    _gives(other, 0, "elsewhere, after a delivery,")
    early = harness.time.before(10.0)
    for each, another in ((store, other), (other, store), (store, other)):
        yield early
        _gives(store, 0, "before the interval is over")
        _gives(other, 0, "elsewhere, before the interval is over,")
        yield 10.0 - early
        _gives(another, 1, "after an interval")
        _gives(each, 0, "elsewhere, after the one of an interval,")
    yield 40.0
    _gives(store, 1, "after four intervals without a delivery, with the burst 1,")
    check(store.count("t") == store.topics()["t"] == 7, "count() does not see what a rate holds back")
    check(other.peek("t").id == other.peek().id, "peek() does not see what a rate holds back")
    contents(other)


def _bursts(harness: MessageStoreHarness) -> Iterator[float]:
    store, other = _limited(harness, "burst", burst=3)
    yield 30.0
    _gives(store, 2, "within a burst of 3", 2)
    _gives(other, 1, "elsewhere, at the end of a burst of 3,")
    _gives(store, 0, "after a burst of 3")
    yield 10.0
    _gives(other, 1, "an interval after a burst of 3")
    yield 20.0
    _gives(store, 2, "two intervals later")
    yield 50.0
    _gives(other, 3, "five intervals later, with the burst 3,")


def _redeliveries(harness: MessageStoreHarness) -> Iterator[float]:
    """Check that a delivery counts, whatever ends the claim."""
    store = harness.open("redelivered")
    other = harness.another(store, "redelivered")
    ways: dict[str, Callable[[MessageClaim], object]] = {
        "ack()": lambda claim: other.ack([claim]),
        "nack()": lambda claim: other.nack([claim], 0.0),
        "release()": lambda claim: other.release([claim]),
        "fail()": lambda claim: other.fail([claim]),
        "the end of a lease": lambda claim: other.extend([claim], 0.0),
    }
    topics = [*ways, "prefetched", "closed"]
    for topic in topics:
        store.set_rate(topic, harness.seconds(10.0))
        put(store, harness.entry(topic=topic), harness.entry(topic=topic))
    yield 10.0
    for topic, end in ways.items():
        end(*claims_of(store.claim(5, [topic])))
    found = store.claim(5, ["prefetched"], prefetch=True)
    check(len(found) == 1, f"with the burst 1 {len(found)} messages were prefetched at once")
    store.release(claims_of(found))
    holder = harness.another(store, "redelivered")
    closed = claims_of(holder.claim(5, ["closed"]))
    if holder is store:
        store.release(closed)
    else:
        holder.close()
    early = harness.time.before(10.0)
    yield early
    for topic in topics:
        for each in (store, other):
            empty(each, [topic])
    empty(store)
    yield 10.0 - early
    for topic in topics:
        found = store.claim(5, [topic])
        check(len(found) == 1, f"an interval after {topic} there are {len(found)} deliveries, not one")


def _beside_others(harness: MessageStoreHarness) -> Iterator[float]:
    """Check that a topic without a delivery to give hides no other topic."""
    store = harness.open("beside")
    other = harness.another(store, "beside")
    for topic, priority, interval in (("slow", 2, 10.0), ("slower", 1, 20.0), ("free", 0, None)):
        store.set_rate(topic, None if interval is None else harness.seconds(interval))
        put(store, *(harness.entry(topic=topic, priority=priority) for _ in range(3)))
    yield 20.0
    found = [record.topic for record in store.claim(9)]
    wanted = ["slow", "slower", "free", "free", "free"]
    check(found == wanted, f"claim() of all topics gave {found}, not {wanted}")
    for topics in (None, ["slow", "free"], ["slower", "slow", "free"]):
        empty(other, topics)
        put(store, harness.entry(topic="free", priority=-1))
        [record] = other.claim(1, topics)
        check(record.topic == "free", f"a message of {record.topic!r} was delivered too early")
    yield 10.0
    put(store, harness.entry(topic="free", priority=-1))
    found = [record.topic for record in other.claim(9)]
    check(found == ["slow", "free"], f"after an interval of one topic: {found}")


def _unused(harness: MessageStoreHarness) -> Iterator[float]:
    """Check that a claim uses only as many deliveries as it gives messages."""
    store, other = _limited(harness, "unused", burst=3, count=0)
    yield 30.0
    for each in (store, other, store, other):
        empty(each, ["t"])
        empty(each)
    put(store, harness.entry(topic="t"))
    _gives(other, 1, "after claims that found nothing, of one message,")
    put(store, *(harness.entry(topic="t") for _ in range(5)))
    _gives(store, 2, "after one delivery of a burst of 3")
    yield 10.0
    store.pause("t")
    for each in (store, other):
        empty(each, ["t"])
    store.resume("t")
    _gives(other, 1, "after claims that a pause refused")


def _same_values(harness: MessageStoreHarness) -> Iterator[float]:
    store, other = _limited(harness, "same")
    yield 10.0
    _gives(store, 1, "after an interval")
    for each in (store, other):
        each.set_rate("t", harness.seconds(10.0), 1)
        _gives(store, 0, "after a call of set_rate() with the same values")
    early = harness.time.before(10.0)
    yield early
    for each in (store, other):
        each.set_rate("t", harness.seconds(10.0), 1)
        _gives(other, 0, "after a call of set_rate() with the same values")
    yield 10.0 - early
    _gives(other, 1, "an interval after the last delivery, and in spite of set_rate() meanwhile,")


def _other_values(harness: MessageStoreHarness) -> Iterator[float]:
    """Check that an interval may change, and that no change makes a delivery possible at once."""
    shorter = _limited(harness, "shorter")
    longer = _limited(harness, "longer")
    toggled = _limited(harness, "toggled")
    yield 10.0
    for store, other in (shorter, longer, toggled):
        _gives(store, 1, "after an interval")
        _gives(other, 0, "after a delivery")
    shorter[1].set_rate("t", harness.seconds(3600.0))
    shorter[1].set_rate("t", harness.seconds(10.0))
    longer[1].set_rate("t", harness.seconds(20.0))
    toggled[1].set_rate("t", harness.seconds(11.0))
    toggled[0].set_rate("t", harness.seconds(10.0))
    for store, other in (shorter, longer, toggled):
        _gives(store, 0, "after a change of the rate")
        _gives(other, 0, "after a change of the rate elsewhere")
    early = harness.time.before(10.0)
    yield early
    for store, _ in (shorter, longer, toggled):
        _gives(store, 0, "before the first of the two intervals is over")
    yield 10.0 - early
    for store, _ in (shorter, toggled):
        _gives(store, 1, "after a new interval")
    yield 10.0
    _gives(longer[0], 1, "after a new and longer interval")


def _other_bursts(harness: MessageStoreHarness) -> Iterator[float]:
    used = _limited(harness, "smaller, used", burst=3)
    unused = _limited(harness, "smaller, unused", burst=3)
    larger = _limited(harness, "larger")
    yield 30.0
    _gives(used[0], 3, "of a burst of 3")
    used[1].set_rate("t", harness.seconds(10.0), 1)
    _gives(used[0], 0, "after a burst, and with a smaller one now,")
    unused[1].set_rate("t", harness.seconds(10.0), 1)
    found = len(claim_all(unused[0]))
    check(found <= 1, f"with the burst 1 instead of 3 there are {found} deliveries at once")
    _gives(larger[0], 1, "of a burst of 1")
    larger[1].set_rate("t", harness.seconds(10.0), 3)
    found = len(claim_all(larger[0]))
    check(found <= 2, f"with the burst 3 instead of 1, after one delivery, it gave {found} more")
    yield 10.0
    _gives(used[0], 1, "an interval after the burst was made smaller")
    _gives(unused[1], 1, "an interval after a delivery or a change")
    yield 30.0
    _gives(larger[1], 3, "of the new burst of 3")


def _alternating(harness: MessageStoreHarness) -> Iterator[float]:
    """Check that setting two rates again and again at one moment allows no more deliveries."""
    store, other = _limited(harness, "alternating", 1000.0, 2)
    found = 0
    for burst in (1, 2) * 5:
        other.set_rate("t", harness.seconds(1000.0), burst)
        with contextlib.suppress(Empty):
            found += len(store.claim())
    check(1 <= found <= 2, f"with the bursts 1 and 2 in turn there are {found} deliveries at once")
    yield 0.0


def _lifted(harness: MessageStoreHarness) -> Iterator[float]:
    store, other = _limited(harness, "lifted", count=3)
    other.set_rate("u", None)
    yield 10.0
    _gives(store, 1, "after an interval")
    other.set_rate("t", None)
    _gives(store, 2, "without a rate, of 2 messages,")
    put(store, *(harness.entry(topic="t") for _ in range(6)))
    other.set_rate("t", harness.seconds(10.0), 2)
    found = len(claim_all(store))
    check(found <= 2, f"after set_rate() with the burst 2 there are {found} deliveries at once")
    yield 20.0
    _gives(other, 2, "after two intervals, with the burst 2,")


def _threads(harness: MessageStoreHarness) -> Iterator[float]:
    """Check that several objects that claim at the same time do not exceed a rate together."""
    store, _ = _limited(harness, "threads", burst=3)
    handles = [harness.another(store, "threads") for _ in range(4)]
    yield 30.0
    before = harness.now()
    run_threads(*(partial(claim_all, each) for each in handles))
    passed = harness.now() - before
    claimed, more = store.stats().claimed, 1 + int(passed / harness.seconds(10.0))
    most = 3 + more if harness.capabilities.real_time else 3
    check(3 <= claimed <= most, f"four threads claimed {claimed} messages of a burst of 3")


def _kept(harness: MessageStoreHarness) -> Iterator[float]:
    """Check that a rate, and what is used of it, stays when all objects are closed."""
    stores = _limited(harness, "kept")
    yield 10.0
    _gives(stores[0], 1, "after an interval")
    for each in stores:
        each.close()
    store = harness.open("kept")
    _gives(store, 0, "opened again after a delivery")
    yield 10.0
    _gives(store, 1, "opened again, after an interval,")


def _at_random(harness: MessageStoreHarness, burst: int) -> Iterator[float]:
    """Check the rate through claims, redeliveries and pauses by chance."""
    chance = random.Random(burst)
    interval = 8.0
    handles = _limited(harness, f"random {burst}", interval, burst, 20)
    times: list[tuple[float, float]] = []
    held: list[MessageClaim] = []
    for _ in range(12 if harness.capabilities.real_time else 200):
        yield chance.choice((0.0, 0.0, 1.0, 2.0, 4.0, 8.0, 24.0))
        store, limit = chance.choice(handles), chance.choice((1, 2, 9))
        before = harness.now()
        with contextlib.suppress(Empty):
            got = claims_of(store.claim(limit))
            times += [(before, harness.now())] * len(got)
            held += got
        while held and chance.random() < 0.7:
            claim = [held.pop(chance.randrange(len(held)))]
            chance.choice((store.release, partial(store.nack, delay=0.0)))(claim)
    span = harness.seconds(interval)
    for first, (begin, _) in enumerate(times):
        for last in range(first, len(times)):
            # Of n + burst deliveries the first and the last are n intervals apart.
            least = (last - first + 1 - burst) * span
            passed = times[last][1] - begin
            check(
                passed >= least - 1e-5, f"{last - first + 1} deliveries in {passed} s, with the rate {span}"
            )
    handles[0].release(held)
    yield burst * interval
    _gives(handles[1], burst, "after enough time without a delivery,")
    check(Counter(record.topic for record in handles[0].scan()) == {"t": 20}, "messages are lost")


RATE_LAWS: tuple[MessageStoreLaw, ...] = (deliveries_keep_their_rate,)
"""By number."""
