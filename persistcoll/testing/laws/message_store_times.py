"""The laws Q3 and Q5: delays, and the ttl. See :mod:`persistcoll.testing.laws.message_store`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from persistcoll.engine.contracts import MessageStore
from persistcoll.engine.message_records import MessagePolicy
from persistcoll.engine.records import State
from persistcoll.errors import BackendUnavailableError, Empty
from persistcoll.testing.children import check
from persistcoll.testing.laws.message_store_harness import (
    PLAIN,
    MessageStoreHarness,
    MessageStoreLaw,
    claimable,
    claims_of,
    contents,
    empty,
    message_store_law,
    payloads,
    put,
    standing,
)

__all__ = ["TIME_LAWS"]

_LEASED = MessagePolicy(lease=10.0, max_attempts=None, backoff=None)


@message_store_law("Q3")
def ready_when_the_delay_is_over(harness: MessageStoreHarness) -> None:
    """Every message is claimed when its delay is over, and not before."""
    _ready_at_once(harness)
    _delayed_by_put(harness)
    _delayed_by_nack(harness)
    _delayed_while_blocked(harness)
    _delays_of_all_lengths(harness)


def _delayed_by_put(harness: MessageStoreHarness) -> None:
    store = harness.open("put")
    other = harness.another(store, "put")
    delays = {"now": 0.0, "twenty": 20.0, "forty": 40.0, "never": 1e9}
    priorities = {"now": 0, "twenty": 9, "forty": 5, "never": 99}
    put(store, *(harness.entry(each, delay=delays[each], priority=priorities[each]) for each in delays))
    waits = harness.time.before(20.0)
    for passes, ready in (
        (waits, ["now"]),
        (20.0 - waits, ["twenty", "now"]),
        (waits, ["twenty", "now"]),
        (20.0 - waits, ["twenty", "forty", "now"]),
    ):
        harness.advance(passes)
        for each in (other, store):
            for record in contents(each):
                name = record.payload.decode()
                state = State.READY if name in ready else State.DELAYED
                check(record.state is state, f"{record} is not {state.value}")
                _check_until(record.until, record.time + harness.seconds(delays[name]), state)
        for each in (other, store):
            given = claimable(each)
            check(given == ready, f"of the delays {delays} a claim gave {given}, not {ready}")
    # The delay of a put passes once.
    claims = claims_of(store.claim(9))
    check(len(claims) == 3, f"three messages are ready, and {len(claims)} were claimed")
    other.nack(claims[:1])
    store.release(claims[1:])
    check(claimable(other) == ["twenty", "forty", "now"], "after a claim the delay of the put passes again")


def _check_until(until: float | None, wanted: float, state: State) -> None:
    """Check the time that a record tells, which a store may round."""
    if state is State.READY:
        check(until is None, f"a ready message has a time until {until}")
    else:
        check(until is not None and abs(until - wanted) < 1e-3, f"delayed until {until}, not {wanted}")


def _delayed_by_nack(harness: MessageStoreHarness) -> None:
    store = harness.open("nack", _LEASED)
    other = harness.another(store, "nack", _LEASED)
    put(store, harness.entry("a", delay=10.0), harness.entry("b"), harness.entry("c"))
    harness.advance(10.0)
    a, b, _ = claims_of(store.claim(9))
    other.nack([b, a], harness.seconds(10.0))
    began = harness.now()
    harness.advance(harness.time.before(10.0))
    for each in (other, store):
        check(claimable(each) == [], "the delay of a nack is not over")
        for record in contents(each)[:2]:
            check(record.state is State.DELAYED, f"nacked with a delay: {record}")
            late = began + harness.seconds(10.0) - (record.until or 0.0)
            check(-1e-3 <= late <= harness.seconds(5.0), f"nacked at {began} for 10 seconds: {record}")
    harness.advance(10.0 - harness.time.before(10.0))
    for each in (store, other):
        given = claimable(each)
        check(given == ["a", "b", "c"], f"after the delay of a nack and a lease a claim gave {given}")
    # A delay that is over has no part in the end of a later claim.
    store.release(claims_of(other.claim(2)))
    store.claim(2)
    harness.advance(10.0)
    given = claimable(other)
    check(given == ["a", "b", "c"], f"nacked with a delay once, and later a claim gave {given}")


def _delayed_while_blocked(harness: MessageStoreHarness) -> None:
    """Check that the delay of a blocked message passes from its put."""
    store = harness.open("blocked")
    other = harness.another(store, "blocked")
    put(store, *(harness.entry(each, group=each) for each in "gh"))
    g, h = put(store, *(harness.entry(group * 2, group=group, delay=12.0) for group in "gh"))
    heads = claims_of(store.claim(2))
    harness.advance(6.0)
    other.ack(heads[:1])
    for each in (store, other):
        states = {"gg": State.DELAYED, "h": State.CLAIMED, "hh": State.BLOCKED}
        found = standing(each)
        check(found == states, f"behind the delay of a head: {found}")
        record = each.find(g)
        assert record is not None
        _check_until(record.until, record.time + harness.seconds(12.0), State.DELAYED)
        check(claimable(each) == [], "the delay of what was blocked is not over")
    harness.advance(6.0)
    found = standing(other)
    check(claimable(other) == ["gg"], f"a delay that began while blocked is over: {found}")
    store.ack(heads[1:])
    found = standing(other)
    check(claimable(other) == ["gg", "hh"], f"a delay ended while blocked: {found}")
    record = other.find(h)
    check(record is not None and record.until is None, f"a delay ended while blocked: {record}")


def _delays_of_all_lengths(harness: MessageStoreHarness) -> None:
    store = harness.open("lengths")
    lengths = (1e-9, 0.25, 0.5, 10.0, 10.25, 10.5, 11.0, 1e6, 1e9)
    put(store, *(harness.entry(str(each), delay=each) for each in reversed(lengths)))
    if not harness.capabilities.real_time:
        passed = 0.0
        for length in lengths[1:-2]:
            harness.advance(length - 0.125 - passed)
            shorter = [str(each) for each in lengths[::-1] if each < length]
            given = claimable(store)
            check(given == shorter, f"after {length - 0.125} s: {given}, not {shorter}")
            passed = length - 0.125
    harness.advance(12.0)
    wanted = [str(each) for each in lengths[-3::-1]]
    given = claimable(store)
    check(given == wanted, f"after some delays: {given}, not {wanted}")
    found = standing(store)
    check(len(list(store.scan(State.DELAYED))) == 2, f"long delays: {found}")


def _finds(call: Callable[[], Any]) -> Any:
    """Return what a call returns, or ``None`` if it finds nothing."""
    try:
        return call()
    except Empty:
        return None


_AT_ONCE: dict[str, tuple[Callable[[MessageStore, int], Any], Any, Any]] = {
    "claim()": (lambda store, id: payloads(_finds(store.claim) or []), ["a"], []),
    "claim() of its topic": (
        lambda store, id: payloads(_finds(lambda: store.claim(5, ["t"])) or []),
        ["a"],
        [],
    ),
    "peek()": (lambda store, id: getattr(_finds(store.peek), "payload", None), b"a", None),
    "peek() of its topic": (
        lambda store, id: getattr(_finds(lambda: store.peek("t")), "id", 0) == id,
        True,
        False,
    ),
    "count()": (lambda store, id: store.count(), 1, 0),
    "count() of its topic": (lambda store, id: store.count("t"), 1, 0),
    "is_empty()": (lambda store, id: store.is_empty(), False, True),
    "has_unfinished()": (lambda store, id: store.has_unfinished(), True, False),
    "topics()": (lambda store, id: store.topics(), {"t": 1}, {}),
    "stats()": (lambda store, id: _numbers(store, None), (1, 0, 0, True), (0, 0, 0, False)),
    "stats() of its topic": (lambda store, id: _numbers(store, "t"), (1, 0, 0, True), (0, 0, 0, False)),
    "scan()": (lambda store, id: [record.state for record in store.scan()], [State.READY], []),
    "scan() of one state": (lambda store, id: [*store.scan(State.DELAYED, State.CLAIMED)], [], []),
    "find()": (lambda store, id: getattr(store.find(id), "state", None), State.READY, None),
    "lock_topic()": (lambda store, id: store.lock_topic(None, 3600.0) is not None, True, False),
    "cancel()": (lambda store, id: store.cancel(id), True, False),
    "purge()": (lambda store, id: store.purge(), 1, 0),
    "redrive()": (lambda store, id: store.redrive(id), False, False),
}
"""Calls, and what each gives if its message is ready, and if it is gone."""


def _numbers(store: MessageStore, topic: str | None) -> tuple[int, int, int, bool]:
    stats = store.stats(topic)
    return stats.ready, stats.delayed, stats.claimed, stats.oldest_age is not None


def _ready_at_once(harness: MessageStoreHarness) -> None:
    """Check that the first call after a delay sees the message ready."""
    stores: list[tuple[str, MessageStore, int]] = []
    for name in _AT_ONCE:
        for how in ("put", "nack"):
            store = harness.open(f"{name} {how}")
            [id] = put(store, harness.entry(topic="t", delay=10.0 if how == "put" else 0.0))
            if how == "nack":
                store.nack(claims_of(store.claim()), harness.seconds(10.0))
            stores.append((name, harness.another(store, f"{name} {how}"), id))
    waiting = harness.open("change_token()")
    put(waiting, harness.entry(delay=10.0))
    token = _token(waiting)
    harness.advance(10.0)
    for name, store, id in stores:
        call, wanted, _ = _AT_ONCE[name]
        found = call(store, id)
        check(found == wanted, f"{name}, first after a delay, gave {found!r}, not {wanted!r}")
    # A consumer that waits for a message calls nothing else.
    check(_token(waiting) != token, f"a delay is over, and change_token() is still {token!r}")


def _token(store: MessageStore) -> object:
    while True:
        with contextlib.suppress(BackendUnavailableError):
            return store.change_token()


@message_store_law("Q5")
def gone_when_the_ttl_is_over(harness: MessageStoreHarness) -> None:
    """Every message is removed when its ttl is over, unless it is claimed, done or dead.

    It is never claimed after it. A claimed message is removed if it comes back after its ttl.
    """
    _gone_at_once(harness)
    _in_each_state(harness)
    _while_claimed(harness)
    _not_expired(harness)
    _several_of_a_group(harness)


def _in_each_state(harness: MessageStoreHarness) -> None:
    """Check that nothing is removed early, and what was neither claimed nor finished is removed in time."""
    store = harness.open("states")
    other = harness.another(store, "states")
    put(store, harness.entry("head", group="g", priority=9, ttl=20.0))
    head = claims_of(store.claim())
    put(store, harness.entry("ready", ttl=20.0, priority=8), harness.entry("nacked", ttl=20.0, priority=7))
    put(store, harness.entry("released", ttl=20.0, priority=6))
    put(
        store, harness.entry("delayed", ttl=20.0, delay=3000.0), harness.entry("blocked", ttl=20.0, group="g")
    )
    put(store, harness.entry("short", ttl=20.0, delay=2.0), harness.entry("paused", ttl=20.0, topic="p"))
    put(
        store,
        harness.entry("long", ttl=1e6),
        harness.entry("none"),
        harness.entry("last", topic="p", ttl=1e6),
    )
    store.pause("p")
    ready, nacked, released = claims_of(store.claim(3))
    other.nack([nacked], harness.seconds(1000.0))
    store.release([ready, released])
    names = "ready", "released", "short", "paused", "long", "none", "last"
    states = dict.fromkeys(names, State.READY) | dict.fromkeys(("nacked", "delayed"), State.DELAYED)
    states |= {"head": State.CLAIMED, "blocked": State.BLOCKED}
    harness.advance(harness.time.before(20.0))
    for each in (other, store):
        found = standing(each)
        check(found == states, f"shortly before the end of a ttl there is {found}, not {states}")
        check(each.stats().expired == 0, f"before the end of a ttl it counts {each.stats()}")
    harness.advance(20.0 - harness.time.before(20.0))
    for each in (store, other):
        wanted = {"head": State.CLAIMED} | dict.fromkeys(("long", "none", "last"), State.READY)
        found = standing(each)
        check(found == wanted, f"at the end of a ttl there is {found}, not {wanted}")
        check(each.stats().expired == 7, f"seven messages are expired, and it counts {each.stats()}")
        check(each.topics() == {"default": 2, "p": 1}, f"at the end of a ttl the topics are {each.topics()}")
        check(claimable(each) == ["long", "none"], "what is expired is claimed")
    put(store, harness.entry("next", group="g"))
    check(standing(other)["next"] is State.BLOCKED, "a claimed head whose ttl is over blocks its group")
    store.ack(head)
    check(claimable(other) == ["long", "none", "next"], "after a head whose ttl is over, not the next one")


_SETTLED: dict[str, tuple[Callable[[MessageStore, Any], Any], State | None]] = {
    "ack()": (lambda store, claims: store.ack(claims), State.DONE),
    "nack()": (lambda store, claims: store.nack(claims), None),
    "nack() with a delay": (lambda store, claims: store.nack(claims, 1e6), None),
    "release()": (lambda store, claims: store.release(claims), None),
    "fail()": (lambda store, claims: store.fail(claims), State.DEAD),
    "nack() of the last attempt": (lambda store, claims: store.nack(claims), State.DEAD),
    "release() of the last attempt": (lambda store, claims: store.release(claims), None),
    "the end of its lease": (lambda store, claims: None, None),
    "the end of its last lease": (lambda store, claims: None, State.DEAD),
    "the end of its last lease, when it is prefetched": (lambda store, claims: None, State.DEAD),
}
"""What ends a claim after the ttl, and the state of the message after it; ``None``: it is removed."""


def _while_claimed(harness: MessageStoreHarness) -> None:
    """Check that a claimed message stays beyond its ttl, and what becomes of it when the claim ends."""
    held: dict[str, tuple[MessageStore, MessageStore, Any]] = {}
    for how in _SETTLED:
        lease, attempts = 25.0 if "lease" in how else 3000.0, 1 if "last" in how else None
        policy = MessagePolicy(lease, attempts, backoff=None, keep_done=5)
        store = harness.open(how, policy)
        put(store, harness.entry("a", ttl=10.0, group="g"), harness.entry("b", group="g", delay=3000.0))
        held[how] = (
            store,
            harness.another(store, how, policy),
            claims_of(store.claim(prefetch="prefetched" in how)),
        )
    harness.advance(10.0)
    for how in sorted(held, key=lambda how: "lease" not in how):
        store, other, claims = held[how]
        for each in (other, store):
            found = standing(each)
            check(found == {"a": State.CLAIMED, "b": State.BLOCKED}, f"claimed, and the ttl is over: {found}")
        end, state = _SETTLED[how]
        end(other, claims)
        if "lease" not in how:
            _check_ended(other, store, how, state)
    harness.advance(15.0)
    for how in held:
        if "lease" in how:
            store, other, _ = held[how]
            takes_back = "prefetched" in how and store.capabilities.counts_delivered
            _check_ended(store, other, how, None if takes_back else _SETTLED[how][1])
    _lease_beyond_ttl(harness)


def _check_ended(store: MessageStore, other: MessageStore, how: str, state: State | None) -> None:
    wanted = {"b": State.DELAYED} if state is None else {"a": state, "b": State.DELAYED}
    for each in (store, other):
        found = standing(each)
        check(found == wanted, f"after the ttl {how} made {found}, not {wanted}")
        expired = each.stats().expired
        check(expired == (state is None), f"after the ttl and {how} it counts {expired} expired messages")
        check(claimable(each) == [], f"after the ttl and {how} a message is claimed")


def _lease_beyond_ttl(harness: MessageStoreHarness) -> None:
    """Check that an extension keeps a message, and that a holder that is closed lets it go."""
    store = harness.open("extended", _LEASED)
    put(store, *(harness.entry(each, ttl=15.0) for each in "ab"))
    holder = harness.another(store, "extended", _LEASED)
    extended, closed = claims_of(store.claim(1) + holder.claim(1))
    store.extend([extended], harness.seconds(3000.0))
    holder.extend([closed], harness.seconds(3000.0))
    harness.advance(15.0)
    found = standing(store)
    check(found == dict.fromkeys("ab", State.CLAIMED), f"extended beyond the ttl: {found}")
    if holder is not store:
        holder.close()
        found = standing(store)
        check(found == {"a": State.CLAIMED}, f"after the ttl the holder of b was closed: {found}")
    store.extend([extended], harness.seconds(0.0))
    found = standing(store)
    check("a" not in found, f"the lease and the ttl are over: {found}")


def _not_expired(harness: MessageStoreHarness) -> None:
    """Check that done and dead messages stay, and that only a put and a redrive begin the ttl."""
    policy = PLAIN._replace(keep_done=5)
    store = harness.open("stays", policy)
    other = harness.another(store, "stays", policy)
    for payload in ("done", "dead", "redriven"):
        put(store, harness.entry(payload, ttl=12.0))
    done, dead, redriven = claims_of(store.claim(3))
    store.ack([done])
    store.fail([dead, redriven])
    put(store, harness.entry("anew", ttl=12.0))
    put(store, harness.entry("head", group="g"), harness.entry("next", group="g", ttl=12.0))
    harness.advance(6.0)
    # Neither a nack nor a release nor a claim begins the ttl anew, and a new head keeps its own.
    other.nack(claims_of(store.claim()))
    anew, head = claims_of(store.claim(2))
    other.release([anew])
    store.ack([head])
    check(other.redrive(redriven.id), "a dead message cannot be redriven before its ttl is over")
    harness.advance(6.0)
    wanted = {"done": State.DONE, "dead": State.DEAD, "redriven": State.READY, "head": State.DONE}
    for each in (other, store):
        found = standing(each)
        check(found == wanted, f"after the ttl there is {found}, not {wanted}")
    check(store.redrive(dead.id), "a dead message cannot be redriven after its ttl")
    check(claimable(other) == ["dead", "redriven"], "a redrive does not begin the ttl anew")
    harness.advance(6.0)
    del wanted["redriven"]
    found = standing(other)
    check(found == wanted | {"dead": State.READY}, f"the ttl of a redrive: {found}")
    harness.advance(6.0)
    wanted = {"done": State.DONE, "head": State.DONE}
    found = standing(store)
    check(found == wanted, f"the ttl of another redrive: {found}")
    check(store.stats().expired == 4, f"four messages are expired, and it counts {store.stats()}")


def _several_of_a_group(harness: MessageStoreHarness) -> None:
    """Check a group of which several messages, the head among them, expire before the next call."""
    store = harness.open("group", _LEASED)
    other = harness.another(store, "group", _LEASED)
    times = {"a": 10.0, "b": 5.0, "c": None, "d": 10.0, "e": None}
    for group in "gh":
        put(store, *(harness.entry(each + group, group=group, ttl=ttl) for each, ttl in times.items()))
    store.claim()
    harness.advance(10.0)
    # The claimed head comes back too late, too.
    found = standing(other)
    check(claimable(other) == ["cg", "ch"], f"of two groups most are expired: {found}")
    wanted = {"cg": State.READY, "eg": State.BLOCKED, "ch": State.READY, "eh": State.BLOCKED}
    found = standing(store)
    check(found == wanted, f"of two groups most are expired: {found}")
    check(other.stats().expired == 6, f"six messages are expired, and it counts {other.stats()}")


def _gone_at_once(harness: MessageStoreHarness) -> None:
    """Check that the first call after the end of a ttl does not see the message any more."""
    stores: list[tuple[str, MessageStore, int, bool]] = []
    for name in _AT_ONCE:
        for is_back in (False, True):
            # The lease that is over returns the message at the end of its ttl.
            store = harness.open(f"{name} {is_back}", _LEASED)
            [id] = put(store, harness.entry(topic="t", ttl=10.0))
            if is_back:
                store.claim()
            stores.append((name, harness.another(store, f"{name} {is_back}", _LEASED), id, is_back))
    harness.advance(10.0)
    for name, store, id, is_back in stores:
        call, _, wanted = _AT_ONCE[name]
        found = call(store, id)
        how = "a ttl and a lease" if is_back else "a ttl"
        check(found == wanted, f"{name}, first after {how}, gave {found!r}, not {wanted!r}")
        empty(store)


TIME_LAWS: tuple[MessageStoreLaw, ...] = (ready_when_the_delay_is_over, gone_when_the_ttl_is_over)
"""By number."""
