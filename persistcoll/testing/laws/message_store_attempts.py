"""The laws Q8 and Q9 of message stores: attempts, and what a failed one leads to.

See :mod:`persistcoll.testing.laws.message_store`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from persistcoll.engine.contracts import MessageStore
from persistcoll.engine.message_records import MessageClaim, MessageRecord
from persistcoll.engine.records import Backoff, State
from persistcoll.errors import StaleClaimError
from persistcoll.testing.children import check
from persistcoll.testing.laws.message_store_harness import (
    PLAIN,
    MessageStoreHarness,
    MessageStoreLaw,
    claims_of,
    empty,
    ends,
    message_store_law,
    payloads,
    put,
    standing,
)

__all__ = ["ATTEMPT_LAWS"]


@message_store_law("Q8")
def attempts_are_counted(harness: MessageStoreHarness) -> None:
    """Every delivery counts as an attempt, and a release takes it back. ``deliveries`` never falls.

    A message without attempts left is dead when its claim ends without an ack.
    """
    _counted(harness)
    _limits(harness)
    _last_attempts(harness)
    _finished_now(harness)
    _lower_limit(harness)
    _prefetched(harness)
    _delivered(harness)
    _prefetched_by_the_dead(harness)
    _too_old(harness)


def _found(store: MessageStore, id: int) -> MessageRecord:
    record = store.find(id)
    if record is None:
        raise AssertionError(f"find() does not know the message {id}")
    return record


def _claim(store: MessageStore, topic: str, prefetch: bool = False) -> MessageClaim:
    """Claim the message of this topic."""
    [claim] = claims_of(store.claim(1, [topic], prefetch=prefetch))
    return claim


def _stands(
    store: MessageStore, id: int, what: str, state: State, attempts: int, deliveries: int
) -> MessageRecord:
    """Check the state of a message, and its numbers."""
    record = _found(store, id)
    found = record.state, record.attempts, record.deliveries
    wanted = state, attempts, deliveries
    check(found == wanted, f"{what}: state, attempts and deliveries are {found}, not {wanted}")
    check((record.finished is not None) == (state is State.DEAD), f"{what}: finished at {record.finished}")
    if state is State.DEAD:
        check(record.until is None, f"{what}: dead until {record.until}")
    return record


_End = Callable[[MessageStore, MessageClaim], object]
_ENDS: dict[str, _End] = {
    "nack()": lambda store, claim: store.nack([claim]),
    "nack() with a delay": lambda store, claim: store.nack([claim], 0.0, "failed"),
    "the end of a lease": lambda store, claim: store.extend([claim], 0.0),
}


def _counted(harness: MessageStoreHarness) -> None:
    """Check the numbers through a long life of a message."""
    store = harness.open("counted")
    other = harness.another(store, "counted")
    [id] = put(store, harness.entry())
    attempts = 0
    lives: list[str] = ["release()", *_ENDS, "release()", "release()", *_ENDS, *_ENDS, "release()"]
    _stands(other, id, "never claimed", State.READY, 0, 0)
    for number, how in enumerate(lives, 1):
        [record] = store.claim()
        found = record.attempts, record.deliveries, record.state
        wanted = attempts + 1, number, State.CLAIMED
        check(found == wanted, f"a claim has the attempts, deliveries and state {found}, not {wanted}")
        _stands(other, id, "claimed", State.CLAIMED, attempts + 1, number)
        claim = MessageClaim(*claims_of([record])[0])
        if how == "release()":
            check(other.release([claim]) == 1, "release() did not count the claim")
        else:
            _ENDS[how](other, claim)
            attempts += 1
        _stands(store, id, f"after {how}", State.READY, attempts, number)
    store.fail([_claim(store, "default")])
    _stands(other, id, "after fail()", State.DEAD, attempts + 1, len(lives) + 1)
    other.redrive(id)
    _stands(store, id, "after redrive()", State.READY, 0, len(lives) + 1)
    store.claim()
    _stands(store, id, "claimed after redrive()", State.CLAIMED, 1, len(lives) + 2)


def _limits(harness: MessageStoreHarness) -> None:
    """Check after how many attempts a message is dead, whichever limit applies and however claims end."""
    policy = PLAIN._replace(max_attempts=2)
    store = harness.open("limits", policy)
    other = harness.another(store, "limits", policy)
    # By the limit of the message: the one that applies.
    limits: dict[Any, int | None] = {...: 2, 1: 1, 3: 3, None: None}
    ways: dict[str, _End | None] = dict(_ENDS)
    if harness.capabilities.handles:
        ways["the end of its holder"] = None
    for how, end in ways.items():
        for own, limit in limits.items():
            topic = f"{how} {own}"
            [id] = put(store, harness.entry(topic=topic, max_attempts=own))
            for attempt in range(1, (limit or 7) + 1):
                if end is None:
                    holder = harness.another(store, "limits", policy)
                    _claim(holder, topic)
                    holder.close()
                else:
                    end(other, _claim(store, topic))
                state = State.DEAD if attempt == limit else State.READY
                what = f"a message with the limit {own}, after {how} the {attempt}. time"
                record = _stands(other, id, what, state, attempt, attempt)
                if how != "nack()":
                    check(bool(record.error), f"{what}: no error says why")
            if limit is None:
                other.cancel(id)
            else:
                empty(store, [topic])
                _dies_again(store, id, limit)


def _dies_again(store: MessageStore, id: int, limit: int) -> None:
    """Check that a dead message which is redriven has all of its attempts again, and not more."""
    check(store.redrive(id), "redrive() does not know a dead message")
    for attempt in range(1, limit + 1):
        store.nack(claims_of(store.claim()))
        state = State.DEAD if attempt == limit else State.READY
        _stands(store, id, f"redriven, after nack() {attempt}", state, attempt, limit + attempt)


def _finished_now(harness: MessageStoreHarness) -> None:
    """Check that a dead message is finished at the time when its claim ended, whatever ended it."""
    policy = PLAIN._replace(max_attempts=1)
    store = harness.open("finished", policy)
    holder = harness.another(store, "finished", policy)
    ways: dict[str, _End] = {**_ENDS, "fail()": lambda store, claim: store.fail([claim])}
    if harness.capabilities.handles:
        ways["the end of its holder"] = lambda store, _: store.close()
    for how, end in ways.items():
        [id] = put(store, harness.entry(topic=how))
        claim = _claim(holder, how)
        harness.advance(3.0)
        before = store.now()
        end(holder, claim)
        finished, after = _stands(store, id, how, State.DEAD, 1, 1).finished, store.now()
        # A column of a time has whole microseconds on some servers.
        is_between = finished is not None and before - 1e-3 <= finished <= after + 1e-3
        check(is_between, f"dead by {how} between {before} and {after}, and finished at {finished}")


def _last_attempts(harness: MessageStoreHarness) -> None:
    """Check everything that may become of a last attempt."""
    policy = PLAIN._replace(max_attempts=1, keep_done=10, backoff=Backoff(10.0))
    store = harness.open("last", policy)
    other = harness.another(store, "last", policy)
    names = ["acked", "failed", "nacked", "delayed", "released", "acked later"]
    ids = dict(zip(names, put(store, *(harness.entry(name, topic=name) for name in names)), strict=True))
    held = {name: _claim(store, name) for name in names}
    other.ack([held["acked"]])
    other.fail([held["failed"]], "gave up")
    other.nack([held["nacked"]], error="failed")
    other.nack([held["delayed"]], harness.seconds(10.0))
    for _ in range(5):
        check(other.release([held["released"]]) == 1, "release() did not count a last attempt")
        held["released"] = _claim(store, "released")
    other.release([held["released"]])
    other.extend([held["acked later"]], harness.seconds(1000.0))
    other.ack([held["acked later"]])
    for name in ("failed", "nacked", "delayed"):
        _stands(store, ids[name], name, State.DEAD, 1, 1)
    errors = [_found(store, ids[name]).error for name in ("failed", "nacked", "delayed")]
    check(errors == ["gave up", "failed", None], f"the errors of the dead are {errors}")
    _stands(store, ids["released"], "released six times", State.READY, 0, 6)
    wanted = dict.fromkeys(("acked", "acked later"), State.DONE)
    wanted |= dict.fromkeys(("failed", "nacked", "delayed"), State.DEAD) | {"released": State.READY}
    check(standing(store) == wanted, f"after their last attempts: {standing(store)}, not {wanted}")
    # In one call some die, and others do not.
    put(
        store, *(harness.entry(f"limit {limit}", topic="batch", max_attempts=limit) for limit in (1, 2, None))
    )
    claims = claims_of(store.claim(3, ["batch"]))
    store.nack(claims, 0.0, "all")
    found = [record.state for record in store.scan(topic="batch")]
    check(found == [State.DEAD, State.READY, State.READY], f"after one nack() of limits 1, 2, none: {found}")


def _lower_limit(harness: MessageStoreHarness) -> None:
    """Check a message that has more attempts than a new policy allows."""
    store = harness.open("lower")
    [id] = put(store, harness.entry())
    for _ in range(4):
        store.nack(claims_of(store.claim()))
    store.close()
    store = harness.open("lower", PLAIN._replace(max_attempts=2))
    _stands(store, id, "opened with a lower limit", State.READY, 4, 4)
    claims = claims_of(store.claim())
    store.release(claims)
    _stands(store, id, "released, over the limit", State.READY, 4, 5)
    store.nack(claims_of(store.claim()))
    _stands(store, id, "nacked, over the limit", State.DEAD, 5, 6)


def _too_old(harness: MessageStoreHarness) -> None:
    """Check that a message whose ttl is over dies with its last attempt, and is removed otherwise."""
    store = harness.open("old")
    other = harness.another(store, "old")
    entries = {
        f"{how} {limit}": harness.entry(
            f"{how} {limit}", topic=f"{how} {limit}", max_attempts=limit, ttl=20.0
        )
        for how in (*_ENDS, "release()")
        for limit in (1, 2)
    }
    put(store, *entries.values())
    held = {topic: _claim(store, topic) for topic in entries}
    harness.advance(20.0)
    check(len(list(other.scan(State.CLAIMED))) == len(held), "a claimed message is gone after its ttl")
    for topic, claim in held.items():
        how = topic[:-2]
        if how == "release()":
            check(other.release([claim]) == 1, "release() after the ttl did not count the claim")
        else:
            _ENDS[how](other, claim)
    wanted = {topic: State.DEAD for topic in held if topic[-1] == "1" and topic[:-2] != "release()"}
    check(standing(store) == wanted, f"they came back after their ttl: {standing(store)}, not {wanted}")
    expired = store.stats().expired
    check(expired == len(held) - len(wanted), f"{expired} messages are counted as expired, of {held.keys()}")


def _prefetched(harness: MessageStoreHarness) -> None:
    """Check what becomes of messages that were prefetched and not delivered."""
    policy = PLAIN._replace(max_attempts=2)
    store = harness.open("prefetched", policy)
    other = harness.another(store, "prefetched", policy)
    names = ["left", "failed before", "nacked", "released", "failed", "extended"]
    ids = dict(zip(names, put(store, *(harness.entry(name, topic=name) for name in names)), strict=True))
    store.nack([_claim(store, "failed before")], error="first")
    held = {name: _claim(store, name, prefetch=True) for name in names}
    check(_found(other, ids["left"]).attempts == 1, "the attempt of a prefetched message does not count yet")
    other.nack([held["nacked"]])
    check(other.release([held["released"]]) == 1, "release() did not count a prefetched message")
    other.fail([held["failed"]])
    other.extend([held["extended"]], harness.seconds(1000.0))
    for name in ("left", "failed before", "extended"):
        other.extend([held[name]], 0.0)
    _stands(store, ids["nacked"], "prefetched and nacked", State.READY, 1, 1)
    _stands(store, ids["released"], "prefetched and released", State.READY, 0, 1)
    _stands(store, ids["failed"], "prefetched and failed", State.DEAD, 1, 1)
    what = "prefetched, at the end of its lease"
    counted = 0 if store.capabilities.counts_delivered else 1
    for name in ("left", "extended"):
        record = _stands(store, ids[name], what, State.READY, counted, 1)
        check(bool(record.error) == bool(counted), f"{what}: the error is {record.error!r}")
    if store.capabilities.counts_delivered:
        record = _stands(store, ids["failed before"], what, State.READY, 1, 2)
        check(record.error == "first", f"{what}: the error is {record.error!r}, and was 'first'")
    else:
        record = _stands(store, ids["failed before"], what, State.DEAD, 2, 2)
        check(record.error != "first", f"{what}: the error is still {record.error!r}")


def _delivered(harness: MessageStoreHarness) -> None:
    """Check that a prefetched message which was delivered is like any other."""
    policy = PLAIN._replace(max_attempts=1)
    store = harness.open("delivered", policy)
    other = harness.another(store, "delivered", policy)
    names = ["one", "twice", "extended", "two", "three", "refused", "lost"]
    ids = dict(zip(names, put(store, *(harness.entry(name, topic=name) for name in names)), strict=True))
    held = {name: _claim(store, name, prefetch=True) for name in names}
    before = list(store.scan())
    other.deliver([held["one"]])
    for _ in range(2):
        store.deliver([held["twice"]])
    other.deliver([held["two"], held["three"]])
    store.deliver([held["extended"]])
    check(list(store.scan()) == before, f"deliver() changed {before} to {list(store.scan())}")
    store.extend([held["extended"]], harness.seconds(1000.0))
    store.extend([held["extended"]], 0.0)
    store.release([held["lost"]])
    try:
        store.deliver([held["refused"], held["lost"]])
    except StaleClaimError as error:
        check(tuple(error.ids) == (ids["lost"],), f"deliver() named {error.ids} as stale")
    else:
        raise AssertionError("deliver() accepted a claim that had ended")
    store.extend([held[name] for name in ("one", "twice", "two", "three", "refused")], 0.0)
    for name in ("one", "twice", "extended", "two", "three"):
        record = _stands(other, ids[name], f"{name}, delivered, at the end of its lease", State.DEAD, 1, 1)
        check(bool(record.error), f"{name}: no error says why it is dead")
    if store.capabilities.counts_delivered:
        what = "not delivered, because deliver() was refused"
        _stands(store, ids["refused"], what, State.READY, 0, 1)
        # What was said of an earlier claim does not hold for a later one.
        store.redrive(ids["one"])
        other.extend([_claim(store, "one", prefetch=True)], 0.0)
        _stands(store, ids["one"], "prefetched after an earlier delivery", State.READY, 0, 2)


def _prefetched_by_the_dead(harness: MessageStoreHarness) -> None:
    """Check that a holder's death counts only for what it had delivered, if the store counts that."""
    policy = PLAIN._replace(max_attempts=1)
    store = harness.open("killed", policy)
    ids = put(store, *map(harness.entry, "abc"))
    held = claims_of(store.claim(3, prefetch=True))
    store.deliver(held[:1])
    counts = store.capabilities.counts_delivered
    numbers = (State.READY, 0, 1) if counts else (State.DEAD, 1, 1)
    wanted = ((State.DEAD, 1, 1), numbers, numbers)
    if harness.capabilities.crashes and store.capabilities.death_noticed_after < math.inf:
        left = harness.crash("killed", policy)
        harness.time.wait(left.capabilities.death_noticed_after)
        for id, each in zip(ids, wanted, strict=True):
            _stands(left, id, "after the death of its holder", *each)
    store.close()
    store = harness.open("killed", policy)
    for id, each in zip(ids, wanted, strict=True):
        _stands(store, id, "closed by its holder", *each)


@message_store_law("Q9")
def nacked_messages_are_delayed(harness: MessageStoreHarness) -> None:
    """Every nacked message is delayed by its back-off or by the given delay. A released one is ready at once.

    The end of a lease delays nothing.
    """
    _backs_off(harness)
    _whose_backoff(harness)
    _thousandth_attempt(harness)
    _jitter(harness)
    _counts_attempts(harness)
    _errors(harness)
    _ready_at_once(harness)
    _waits(harness)


def _nacked(
    harness: MessageStoreHarness,
    stores: tuple[MessageStore, MessageStore],
    topic: str,
    wanted: float,
    delay: float | None = None,
) -> None:
    """Claim a message and nack it through the other store, and check its delay."""
    store, other = stores
    claim = _claim(store, topic)
    before = harness.now()
    other.nack([claim], None if delay is None else harness.seconds(delay))
    record = _found(store, claim.id)
    what = f"the delay of the message of {topic!r} after {record.attempts} attempts"
    if wanted:
        check(record.state is State.DELAYED, f"{what}: it is {record.state.value}, not delayed")
        ends(harness, what, record.until, wanted, before)
    else:
        check(record.state is State.READY, f"{what}: it is {record.state.value}, not ready")
        check(record.until is None, f"{what}: it is ready until {record.until}")


_BACKOFF = Backoff(base=100.0, factor=2.0, limit=500.0, jitter=0.0)


def _backs_off(harness: MessageStoreHarness) -> None:
    """Check that the delay grows with each attempt until its limit, and that a given delay replaces it."""
    policy = PLAIN._replace(backoff=_BACKOFF)
    store = harness.open("backs off", policy)
    stores = store, harness.another(store, "backs off", policy)
    for attempt, wanted in enumerate((100.0, 200.0, 400.0, 500.0, 500.0), 1):
        topic = f"attempt {attempt}"
        put(store, harness.entry(topic=topic))
        for _ in range(attempt - 1):
            _nacked(harness, stores, topic, 0.0, 0.0)
        _nacked(harness, stores, topic, wanted)
        topic = f"given a delay at attempt {attempt}"
        put(store, harness.entry(topic=topic))
        for _ in range(attempt - 1):
            _nacked(harness, stores, topic, 0.0, 0.0)
        _nacked(harness, stores, topic, 1000.0, 1000.0)


def _whose_backoff(harness: MessageStoreHarness) -> None:
    """Check that the back-off is that of the message, otherwise of the policy."""
    for name, of_policy, wanted in (("one", _BACKOFF, 100.0), ("none", None, 0.0)):
        policy = PLAIN._replace(backoff=of_policy)
        store = harness.open(f"whose {name}", policy)
        stores = store, harness.another(store, f"whose {name}", policy)
        cases: dict[str, tuple[Any, float]] = {
            "policy": (..., wanted),
            "message": (harness.backoff(50.0, 3.0), 50.0),
            "message without": (None, 0.0),
            "nothing": (harness.backoff(0.0), 0.0),
            "limited": (harness.backoff(500.0, 2.0, 70.0), 70.0),
            "constant": (harness.backoff(60.0, 1.0), 60.0),
        }
        put(store, *(harness.entry(topic=topic, backoff=own) for topic, (own, _) in cases.items()))
        for topic, (_, delay) in cases.items():
            _nacked(harness, stores, topic, delay)
        check(store.purge() == len(cases), "purge() did not remove what is ready or delayed")
        # In one call each message has a delay of its own.
        put(store, *(harness.entry(topic, backoff=own) for topic, (own, _) in cases.items()))
        claims = claims_of(store.claim(len(cases)))
        before = harness.now()
        stores[1].nack(claims)
        for record in store.scan():
            delay = cases[record.payload.decode()][1]
            ends(harness, "nack() of several", record.until, delay or None, before)


def _thousandth_attempt(harness: MessageStoreHarness) -> None:
    """Check that no power of the factor is too large."""
    policy = PLAIN._replace(backoff=Backoff(1.0, 10.0, 500.0, 0.0))
    store = harness.open("thousand", policy)
    [id] = put(store, harness.entry())
    for _ in range(999):
        store.nack(claims_of(store.claim()), 0.0)
    _nacked(harness, (store, store), "default", 500.0)
    _stands(store, id, "nacked 1,000 times", State.DELAYED, 1000, 1000)


def _jitter(harness: MessageStoreHarness) -> None:
    """Check that messages nacked together are not ready together, and not far from their delay."""
    policy = PLAIN._replace(backoff=Backoff(100.0, 2.0, 3600.0, 0.5))
    store = harness.open("jitter", policy)
    put(store, *map(harness.entry, "abcdefghijkl"))
    claims = claims_of(store.claim(12))
    before = harness.now()
    store.nack(claims)
    passed = harness.now() - before
    delays = [(record.until or before) - before for record in store.scan(State.DELAYED)]
    least, most = harness.seconds(50.0) - 1e-5, harness.seconds(150.0) + passed + 1e-5
    check(len(delays) == 12, f"of 12 nacked messages {len(delays)} are delayed")
    check(all(least <= delay <= most for delay in delays), f"the jitter of 0.5 of 100 s gives {delays}")
    check(len(set(delays)) > 1, f"in spite of the jitter all delays are the same: {delays}")


def _counts_attempts(harness: MessageStoreHarness) -> None:
    """Check that a back-off depends on the attempts, and not on the deliveries."""
    policy = PLAIN._replace(backoff=_BACKOFF)
    store = harness.open("attempts", policy)
    stores = store, harness.another(store, "attempts", policy)
    put(store, harness.entry("a", topic="released"))
    [id] = put(store, harness.entry("b", topic="redriven"))
    for _ in range(3):
        store.release([_claim(store, "released")])
        store.nack([_claim(store, "redriven")], 0.0)
    store.fail([_claim(store, "redriven")])
    store.redrive(id)
    for topic in ("released", "redriven"):
        _nacked(harness, stores, topic, 100.0)


def _errors(harness: MessageStoreHarness) -> None:
    """Check that a nack replaces the error only if it gives one, and that a release never does."""
    store = harness.open("errors")
    other = harness.another(store, "errors")
    put(store, harness.entry("a"), harness.entry("b"))
    for error, wanted in (("first", "first"), (None, "first"), ("", ""), ("second", "second")):
        other.nack(claims_of(store.claim(2)), 0.0, error)
        found = [record.error for record in store.scan()]
        check(found == [wanted] * 2, f"after nack() with the error {error!r}: {found}, not {wanted!r}")
    other.release(claims_of(store.claim(2)))
    records = store.claim(2)
    found = [record.error for record in records]
    check(found == ["second"] * 2, f"after release(): {found}, not 'second'")
    other.fail(claims_of(records))
    found = [record.error for record in store.scan(State.DEAD)]
    check(found == ["second"] * 2, f"after fail() without an error: {found}, not 'second'")


def _ready_at_once(harness: MessageStoreHarness) -> None:
    """Check that neither a release nor the end of a lease delays, and that each has its old place."""
    policy = PLAIN._replace(backoff=_BACKOFF)
    store = harness.open("at once", policy)
    other = harness.another(store, "at once", policy)
    put(store, *(harness.entry(name, priority=name == "urgent") for name in ("a", "b", "urgent", "c")))
    order = ["urgent", "a", "b", "c"]
    for how in ("release()", "the end of a lease", "the end of its holder"):
        holder = harness.another(store, "at once", policy) if how.endswith("holder") else store
        records = holder.claim(3)
        check(payloads(records) == order[:3], f"claimed are {payloads(records)}, not {order[:3]}")
        claims = claims_of(records)[::-1]
        if how == "release()":
            check(other.release(claims) == 3, "release() of three claims did not count three")
        elif holder is store:
            store.extend(claims, 0.0)
        else:
            holder.close()
        check(set(standing(other).values()) == {State.READY}, f"after {how}: {standing(other)}")
        check(all(record.until is None for record in other.scan()), f"after {how} a message has a time")
        records = other.claim(4)
        check(payloads(records) == order, f"after {how} the order is {payloads(records)}, not {order}")
        other.release(claims_of(records))


def _waits(harness: MessageStoreHarness) -> None:
    """Check that a nacked message is ready after its delay and not earlier, in its old place."""
    policy = PLAIN._replace(backoff=Backoff(20.0, 2.0, 3600.0, 0.0))
    store = harness.open("waits", policy)
    other = harness.another(store, "waits", policy)
    put(store, *map(harness.entry, "abcd"))
    claims = claims_of(store.claim(3))
    store.nack(claims[:1])
    store.nack(claims[1:2], harness.seconds(20.0))
    store.nack(claims[2:], harness.seconds(3600.0))
    stores = (store, other)
    harness.advance(harness.time.before(20.0))
    for each in stores:
        found = [record.payload for record in each.scan(State.READY)]
        check(found == [b"d"], f"ready before the end of a delay: {found}")
    harness.advance(20.0 - harness.time.before(20.0))
    check(other.count() == 3, f"after two delays count() is {other.count()}, not 3")
    records = store.claim(4)
    check(payloads(records) == ["a", "b", "d"], f"after their delay they come as {payloads(records)}")
    check([record.attempts for record in records] == [2, 2, 1], f"the attempts of delayed ones: {records}")


ATTEMPT_LAWS: tuple[MessageStoreLaw, ...] = (attempts_are_counted, nacked_messages_are_delayed)
"""By number."""
