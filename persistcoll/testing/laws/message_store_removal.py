"""The laws Q10 and Q11: dead messages, and removal. See :mod:`persistcoll.testing.laws.message_store`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from persistcoll.engine.contracts import MessageStore
from persistcoll.engine.message_records import MessagePolicy, MessageRecord
from persistcoll.engine.records import State
from persistcoll.errors import DuplicateError
from persistcoll.testing.children import check
from persistcoll.testing.laws.message_store_harness import (
    PLAIN,
    MessageStoreHarness,
    MessageStoreLaw,
    claim_all,
    claimable,
    claims_of,
    contents,
    empty,
    message_store_law,
    put,
    refuses,
    standing,
)

__all__ = ["REMOVAL_LAWS"]

_TWICE = MessagePolicy(lease=20.0, max_attempts=2, backoff=None, keep_done=5)


@message_store_law("Q10")
def dead_messages_stay_as_they_were(harness: MessageStoreHarness) -> None:
    """Every dead message keeps its id, payload, times and error until a caller removes or redrives it.

    A redrive makes it ready again, with 0 attempts and a new ttl.
    """
    _stays_dead(harness)
    _redrive_one(harness)
    _redrive_all(harness)
    _redriven_keys(harness)
    _redriven_times(harness)
    _not_dead(harness)


_DEATHS: dict[str, Callable[[MessageStore, list[Any]], Any]] = {
    "fail()": lambda store, claims: store.fail(claims, "no use"),
    "fail() without an error": lambda store, claims: store.fail(claims),
    "nack()": lambda store, claims: store.nack(claims, None, "once more"),
    "nack() without an error": lambda store, claims: store.nack(claims, 3000.0),
    "the end of its lease": lambda store, claims: None,
}
"""What makes a claimed message dead that was nacked once, with "early" as error."""


def _stays_dead(harness: MessageStoreHarness) -> None:
    """Check that nothing of a dead message changes, however it died and whatever passes."""
    store = harness.open("dead", _TWICE)
    other = harness.another(store, "dead", _TWICE)
    for place, how in enumerate(_DEATHS):
        fields: dict[str, Any] = {"priority": place, "headers": b"h%d" % place, "key": b"k%d" % place}
        put(store, harness.entry(how, topic=how, group=how, ttl=40.0, **fields))
        other.nack(claims_of(store.claim()), None, "early")
    put(store, harness.entry("lives", topic="t", priority=-1))
    born = contents(store)[:-1]
    for how, die in _DEATHS.items():
        die(other, claims_of(store.claim(1, [how])))
    harness.advance(20.0)
    dead = list(other.scan(State.DEAD))
    check([record.id for record in dead] == [record.id for record in born], f"of {born} are dead {dead}")
    for was, record in zip(born, dead, strict=True):
        changed = record._replace(state=was.state, attempts=1, deliveries=1, finished=None, error="early")
        check(changed == was, f"{was} is dead as {record}")
        check((record.attempts, record.deliveries) == (2, 2), f"dead after two deliveries: {record}")
        check(record.until is None, f"a dead message has a delay or a lease: {record}")
        check(record.finished is not None and record.finished >= record.time, f"died early: {record}")
    errors = [record.error for record in dead[:-1]]
    check(errors == ["no use", "early", "once more", "early"], f"the errors of the dead are {errors}")
    check(dead[-1].error not in ("early", None), f"the error of a lease that was over is {dead[-1].error}")
    check([record.payload for record in claim_all(store)] == [b"lives"], "what is dead is claimed")
    check(not store.has_unfinished() or store.stats().claimed == 1, "what is dead is unfinished")
    harness.advance(40.0)
    _stays_in_every_copy(harness, store, dead)


def _stays_in_every_copy(
    harness: MessageStoreHarness, store: MessageStore, dead: list[MessageRecord]
) -> None:
    def is_kept(each: MessageStore, where: str) -> None:
        each.reclaim()
        found = list(each.scan(State.DEAD))
        check(found == dead, f"{where} dead messages are {found}, of {dead}")
        for record in dead:
            alone = list(each.scan(State.DEAD, topic=record.topic))
            check(alone == [record], f"{where} the dead messages of topic {record.topic} are {alone}")

    is_kept(store, "after their ttl")
    if harness.capabilities.crashes:
        is_kept(harness.crash("dead", _TWICE), "after a crash")
    store.close()
    is_kept(harness.open("dead", _TWICE), "after a close")


def _redrive_one(harness: MessageStoreHarness) -> None:
    store = harness.open("redriven", _TWICE)
    other = harness.another(store, "redriven", _TWICE)
    put(store, harness.entry("before"), harness.entry("a", delay=5.0, headers=b"h"), harness.entry("after"))
    harness.advance(5.0)
    before, record, after = store.claim(3)
    other.fail(claims_of([record]), "bad")
    store.release(claims_of([before, after]))
    for _ in range(2):
        dead = store.find(record.id)
        assert dead is not None
        check(dead.state is State.DEAD and dead.attempts > 0, f"it should be dead: {dead}")
        check(other.redrive(record.id) is True, f"redrive() did not find {dead}")
        # It has no delay, although its put had one.
        wanted = dead._replace(state=State.READY, attempts=0, finished=None)
        for each in (store, other):
            check(each.find(record.id) == wanted, f"redriven it is {each.find(record.id)}, not {wanted}")
        check(claimable(other) == ["before", "a", "after"], f"redriven it is in another place: {wanted}")
        check(store.redrive(record.id) is False, "redrive() of a message that is redriven")
        # It has all of its attempts again. The release of above was a delivery.
        for attempt in (1, 2):
            before, record, after = store.claim(3)
            store.release(claims_of([before, after]))
            numbers = record.attempts, record.deliveries
            wanted_numbers = attempt, dead.deliveries + 1 + attempt
            check(numbers == wanted_numbers, f"claim {attempt} after a redrive of {dead} gave {record}")
            other.nack(claims_of([record]))


def _redrive_all(harness: MessageStoreHarness) -> None:
    store = harness.open("redriven together", _TWICE)
    other = harness.another(store, "redriven together", _TWICE)
    check(store.redrive_all() == 0, "redrive_all() of an empty store")
    put(store, *(harness.entry(f"{topic}{turn}", topic=topic) for turn in "12" for topic in ("s", "t", "T")))
    put(store, harness.entry("ready", topic="t"), harness.entry("delayed", topic="t", delay=3000.0))
    records = store.claim(6)
    store.fail(claims_of(records[::-1]))
    done, _ = put(store, *(harness.entry(each, topic="t", priority=1) for each in ("done", "held")))
    [record, held] = store.claim(2)
    check(record.id == done, f"claimed is {record}, not {done}")
    store.ack(claims_of([record]))
    check(other.redrive_all("missing") == 0, "redrive_all() of a topic that does not exist")
    check(other.redrive_all("t") == 2, "redrive_all() did not redrive both dead messages of a topic")
    states = {
        **dict.fromkeys(("s1", "s2", "T1", "T2"), State.DEAD),
        **dict.fromkeys(("t1", "t2", "ready"), State.READY),
        "delayed": State.DELAYED,
        "done": State.DONE,
        "held": State.CLAIMED,
    }
    for each in (store, other):
        found = standing(each)
        check(found == states, f"one topic is redriven: {found}, not {states}")
    given = claimable(other)
    check(given == ["t1", "t2", "ready"], f"one topic is redriven, not {given}")
    check(store.redrive_all() == 4, "redrive_all() did not redrive the others")
    check(store.redrive_all() == 0, "redrive_all() redrove something twice")
    wanted = ["s1", "t1", "T1", "s2", "t2", "T2", "ready"]
    given = claimable(other)
    check(given == wanted, f"all are redriven, and a claim gave {given}, not {wanted}")
    check(all(record.attempts == 0 for record in store.scan(State.READY)), "redriven with attempts")
    store.ack(claims_of([held]))


def _redriven_keys(harness: MessageStoreHarness) -> None:
    """Check that a dead message stays dead while its key is active for another message."""
    store = harness.open("redriven keys", PLAIN)
    other = harness.another(store, "redriven keys", PLAIN)

    def put_dead(payload: str, key: bytes) -> int:
        [id] = put(store, harness.entry(payload, key=key, group=payload))
        store.fail(claims_of(store.claim()))
        return id

    first, second = (put_dead(each, b"k") for each in ("first", "second"))
    put_dead("free", b"free")
    put(store, harness.entry("new", key=b"k", key_window=20.0))
    for each in (store, other):
        with refuses(DuplicateError, "redrive() of a message whose key another one has", store, other):
            each.redrive(first)
    check(other.redrive_all() == 1, "redrive_all() redrove what has the key of another message")
    states = {"first": State.DEAD, "second": State.DEAD, "free": State.READY, "new": State.READY}
    found = standing(store)
    check(found == states, f"two messages whose key is active: {found}")
    store.ack(claims_of(store.claim(2)))
    # The window of a message that is finished keeps the key for it.
    with refuses(DuplicateError, "redrive() of a message whose key is in another one's window", store, other):
        other.redrive(second)
    check(other.redrive_all() == 0, "redrive_all() redrove what is in the window of another message")
    harness.advance(20.0)
    check(other.redrive_all() == 1, "redrive_all() of two messages with one key did not redrive one")
    found = standing(store)
    check(found == {"first": State.READY, "second": State.DEAD}, f"of two messages with one key: {found}")
    check(store.put([harness.entry("again", key=b"k")]) == [None], "the key of a redriven message is free")
    with refuses(DuplicateError, "redrive() of a message whose key a redriven one has", store, other):
        store.redrive(second)
    check(store.cancel(first), "a redriven message cannot be cancelled")
    check(store.redrive(second), "redrive() of a message whose key is free")
    check(store.put([harness.entry("again", key=b"k")]) == [None], "the key of a redriven message is free")


def _redriven_times(harness: MessageStoreHarness) -> None:
    """Check that a redrive begins the ttl anew, even when the ttl of the put is over."""
    store = harness.open("redriven times", PLAIN)
    other = harness.another(store, "redriven times", PLAIN)
    put(store, harness.entry("a", ttl=20.0), harness.entry("b", ttl=20.0))
    a, b = claims_of(store.claim(2))
    store.fail([a, b])
    harness.advance(30.0)
    check(other.redrive(a.id), "a dead message cannot be redriven after its ttl")
    check(store.redrive_all() == 1, "redrive_all() does not redrive a message after its ttl")
    harness.advance(harness.time.before(20.0))
    for each in (store, other):
        check(claimable(each) == ["a", "b"], "a redriven message does not live for its ttl")
    harness.advance(20.0 - harness.time.before(20.0))
    for each in (other, store):
        stored = contents(each)
        check(stored == [], f"redriven, and after a ttl from then on: {stored}")


def _all_states(harness: MessageStoreHarness, name: str) -> tuple[MessageStore, MessageStore, dict[str, int]]:
    """Return two handles of a store with a message in each state, and the ids by payload."""
    policy = PLAIN._replace(keep_done=5)
    store = harness.open(name, policy)
    entries = [harness.entry(each) for each in ("done", "dead", "claimed", "ready")]
    entries += [harness.entry("delayed", delay=3000.0), harness.entry("head", group="g", priority=1)]
    ids = put(store, *entries, harness.entry("blocked", group="g"))
    _, done, dead, _ = claims_of(store.claim(4))
    store.ack([done])
    store.fail([dead])
    names = [entry.payload.decode() for entry in entries]
    return store, harness.another(store, name, policy), dict(zip([*names, "blocked"], ids, strict=True))


def _not_dead(harness: MessageStoreHarness) -> None:
    """Check that only dead messages are redriven."""
    store, other, ids = _all_states(harness, "not dead")
    before = contents(store)
    for payload, id in ids.items():
        if payload != "dead":
            check(other.redrive(id) is False, f"redrive() of a message that is {payload}")
    check(other.redrive(max(ids.values()) + 1000) is False, "redrive() of a message that was never put")
    stored = contents(store)
    check(stored == before, f"redrive() of what is not dead made {stored} of {before}")
    check(store.cancel(ids["dead"]), "a dead message cannot be cancelled")
    check(other.redrive(ids["dead"]) is False, "redrive() of a message that is cancelled")
    check(other.redrive_all() == 0, "redrive_all() of no dead message")


@message_store_law("Q11")
def only_unclaimed_messages_are_removed(harness: MessageStoreHarness) -> None:
    """Every cancel and every purge removes only messages that nobody has claimed."""
    _cancel(harness)
    _cancel_what_was_claimed(harness)
    _purge(harness)
    _purge_topics(harness)
    _purge_before(harness)
    _purge_dead(harness)


_CANCELLED = {"ready": True, "delayed": True, "blocked": True, "dead": True, "claimed": False, "done": False}


def _cancel(harness: MessageStoreHarness) -> None:
    for payload, is_cancelled in _CANCELLED.items():
        store, other, ids = _all_states(harness, f"cancel {payload}")
        wanted = [record for record in contents(store) if not is_cancelled or record.id != ids[payload]]
        for again in (False, True):
            found = other.cancel(ids[payload])
            check(found is (is_cancelled and not again), f"cancel() of what is {payload} gave {found}")
            for each in (store, other):
                stored = contents(each)
                check(stored == wanted, f"cancel() of what is {payload} made {stored}")
        check(other.cancel(max(ids.values()) + 1000) is False, "cancel() of a message that was never put")
        stored = contents(store)
        check(stored == wanted, f"cancel() of what was never put made {stored}")


def _cancel_what_was_claimed(harness: MessageStoreHarness) -> None:
    """Check that a cancel leaves a claim as it is, and that what comes back can be cancelled."""
    store = harness.open("claimed", _TWICE)
    other = harness.another(store, "claimed", _TWICE)
    names = ("acked", "released", "delayed", "leased", "expired", "prefetched")
    ids = put(
        store,
        *(harness.entry(each, ttl=20.0 if each == "expired" else None, key=each.encode()) for each in names),
    )
    claims = claims_of(store.claim(5) + store.claim(1, prefetch=True))
    for each in (other, store):
        for id in ids:
            check(each.cancel(id) is False, "a claimed message is cancelled")
        refused = each.put([harness.entry(name, key=name.encode()) for name in names])
        check(
            refused == [None] * len(names), f"cancel() of a claimed message made its key inactive: {refused}"
        )
    store.ack(claims[:1])
    other.release(claims[1:2])
    store.nack(claims[2:3], harness.seconds(3000.0))
    harness.advance(20.0)
    cancelled = [other.cancel(id) for id in ids]
    wanted = [False, True, True, True, False, True]
    check(cancelled == wanted, f"messages {names} came back, and cancel() gave {cancelled}, not {wanted}")
    found = standing(store)
    check(list(found) == ["acked"], f"what came back is cancelled: {found}")


def _purge(harness: MessageStoreHarness) -> None:
    store, other, ids = _all_states(harness, "purge")
    states = standing(store)
    held = [record for record in contents(store) if record.state in (State.CLAIMED, State.DONE, State.DEAD)]
    # Its head is claimed, and goes on.
    check(other.purge() == 3, f"purge() of {states} did not remove three")
    for each in (store, other):
        found = standing(each)
        check(contents(each) == held, f"purge() of {states} left {found}")
    check(store.purge() == 0, "purge() found something twice")
    check(other.purge(dead=True) == 1, f"purge() of the dead of {states} did not remove one")
    left = {"done": State.DONE, "claimed": State.CLAIMED, "head": State.CLAIMED}
    found = standing(store)
    check(found == left, f"purge() of the dead of {states} left {found}")
    check(store.purge(dead=True) == 0, "purge() found a dead message twice")
    check(store.find(ids["claimed"]) is not None, "purge() removed what is claimed")
    empty(store)
    put(store, harness.entry("new"))
    check(claimable(other) == ["new"], "after purge() nothing can be claimed")


def _purge_topics(harness: MessageStoreHarness) -> None:
    store = harness.open("topics")
    other = harness.another(store, "topics")
    for topic in ("t", "T", "u"):
        put(store, *(harness.entry(each + topic, topic=topic) for each in ("dead ", "claimed ", "ready ")))
        put(store, harness.entry("delayed " + topic, topic=topic, delay=3000.0))
        dead, _ = claims_of(store.claim(2))
        store.fail([dead])
        put(store, *(harness.entry(each + topic, topic=topic, group="g") for each in ("head ", "blocked ")))
        store.pause(topic)
    wanted = standing(store)
    check(
        other.purge("missing") == other.purge("missing", dead=True) == 0,
        "purge() of a topic without messages",
    )
    for dead_ones, topic, names in (
        (False, "t", ("ready", "delayed", "head", "blocked")),
        (True, "T", ("dead",)),
        (True, "t", ("dead",)),
        (False, "u", ("ready", "delayed", "head", "blocked")),
    ):
        count = other.purge(topic, dead=dead_ones)
        check(count == len(names), f"purge({topic!r}, dead={dead_ones}) removed {count}, not {names}")
        for name in names:
            del wanted[f"{name} {topic}"]
        for each in (store, other):
            found = standing(each)
            check(found == wanted, f"purge({topic!r}, dead={dead_ones}) left {found}")


def _purge_before(harness: MessageStoreHarness) -> None:
    """Check that a purge by time goes by the put, whatever became of the message since."""
    store = harness.open("before")
    other = harness.another(store, "before")
    held: list[MessageRecord] = []
    fields: dict[str, dict[str, Any]] = {
        "a": {},
        "b": {"delay": 3000.0},
        "c": {"group": "g"},
        "d": {"priority": 1},
    }
    for number in range(1, 4):
        early = other.now()
        put(store, *(harness.entry(f"{letter}{number}", **each) for letter, each in fields.items()))
        late, latest = store.now(), max(record.time for record in store.scan())
        check(early <= latest <= late, f"now() was {early} and {late}, and a put in between was at {latest}")
        held += store.claim()
        harness.advance(5.0)
    other.fail(claims_of(held))
    first, second, third = [record.time for record in store.scan() if record.payload.startswith(b"a")]
    check(store.redrive(next(store.scan(State.DEAD)).id), "a dead message cannot be redriven")
    left = {*standing(store)}
    check(other.purge(before=first) == other.purge(dead=True, before=first) == 0, "purge() before every put")
    check(other.purge("missing", before=third) == 0, "purge() of a topic without messages")
    for dead_ones, before, names in (
        (False, second, {"a1", "b1", "c1", "d1"}),
        (False, second, set[str]()),
        (True, third, {"d2"}),
        (False, third, {"a2", "b2", "c2"}),
        (True, harness.now() + 1.0, {"d3"}),
    ):
        count = other.purge("default", dead=dead_ones, before=before)
        gone = left - {*standing(store)}
        left -= gone
        check(gone == names, f"purge(dead={dead_ones}) by time removed {gone}, not {names}")
        check(count == len(names), f"purge(dead={dead_ones}) by time counted {count}, not {len(names)}")
    given = claimable(other)
    check(given == ["a3", "c3"], f"purge() by time left {given} to be claimed")


def _purge_dead(harness: MessageStoreHarness) -> None:
    """Check that a purge of dead messages touches neither the keys nor the groups of others."""
    store = harness.open("dead ones")
    other = harness.another(store, "dead ones")
    for payload in ("a", "b"):
        put(store, harness.entry(payload, key=b"k", group="g"))
        store.fail(claims_of(store.claim()))
    put(store, harness.entry("c", key=b"k", group="g"), harness.entry("d", group="g"))
    held = store.claim()
    check(other.purge(dead=True) == 2, "purge() of two dead messages")
    wanted = {"c": State.CLAIMED, "d": State.BLOCKED}
    found = standing(store)
    check(found == wanted, f"two dead messages of a group are purged: {found}")
    check(other.put([harness.entry(key=b"k")]) == [None], "purge() of dead messages freed an active key")
    store.ack(claims_of(held))
    check(claimable(other) == ["d"], "after purge() of dead messages a group does not go on")


REMOVAL_LAWS: tuple[MessageStoreLaw, ...] = (
    dead_messages_stay_as_they_were,
    only_unclaimed_messages_are_removed,
)
"""By number."""
