"""The laws Q13 and Q14 of message stores: pauses and locks.

See :mod:`persistcoll.testing.laws.message_store`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from persistcoll.engine.contracts import MessageStore
from persistcoll.engine.message_records import TopicClaim
from persistcoll.engine.records import State
from persistcoll.errors import Empty, StaleClaimError
from persistcoll.testing.children import check
from persistcoll.testing.laws.message_store_harness import (
    PLAIN,
    MessageStoreHarness,
    MessageStoreLaw,
    claims_of,
    contents,
    empty,
    lock_of,
    message_store_law,
    notices_death,
    payloads,
    put,
    refuses,
    standing,
    together,
)
from persistcoll.testing.laws.message_store_rates import RATE_LAWS
from persistcoll.testing.laws.message_store_waits import WAIT_LAWS

__all__ = ["TOPIC_LAWS"]

# Names that a careless comparison takes for one another.
_NAMES = ("t", "T", "t ", "té", "te\u0301", "", "t" * 255)


def _claimable(store: MessageStore, topics: list[str] | None = None) -> list[str]:
    """Return the payloads that a claim of many gives, in order, and return the messages to their places."""
    try:
        records = store.claim(50, topics)
    except Empty:
        return []
    store.release(claims_of(records))
    return payloads(records)


def _gives(store: MessageStore, topics: list[str] | None, wanted: list[str], what: str) -> None:
    found = _claimable(store, topics)
    check(found == wanted, f"{what}: claim() of {topics or 'all topics'} gives {found}, not {wanted}")


@message_store_law("Q13")
def nothing_of_a_paused_topic_is_delivered(harness: MessageStoreHarness) -> None:
    """Every paused topic delivers nothing, to whichever object, until it is resumed.

    A pause does not touch what was delivered before.
    """
    _paused(harness)
    _in_hand(harness)
    together(harness, _due_while_paused(harness))
    _names(harness, "paused", lambda store, topic: store.pause(topic))
    store = harness.open("kept")
    put(store, harness.entry("a", topic="t"))
    store.pause("t")
    store.close()
    store = harness.open("kept")
    _gives(store, None, [], "paused, and opened again")
    store.resume("t")
    _gives(store, None, ["a"], "opened again and resumed")


def _names(harness: MessageStoreHarness, name: str, close: Callable[[MessageStore, str], object]) -> None:
    """Check that what closes a topic for another object closes no topic with a similar name."""
    store = harness.open(f"names {name}")
    other = harness.another(store, f"names {name}")
    put(store, *(harness.entry(topic, topic=topic) for topic in _NAMES))
    topics = list(_NAMES)
    for topic in _NAMES:
        close(store, topic)
        topics.remove(topic)
        for each in topics:
            _gives(other, [each], [each], f"{topic!r} is {name}")
        _gives(other, None, topics, f"{topic!r} is {name}")
        _gives(other, [topic], [], f"{topic!r} is {name}")


def _paused(harness: MessageStoreHarness) -> None:
    store = harness.open("paused")
    other = harness.another(store, "paused")
    store.pause("t")  # before the topic has a message
    put(store, *(harness.entry(name, topic="t", priority=9) for name in ("a", "b")))
    put(store, harness.entry("head", topic="t", group="g"), harness.entry("next", topic="t", group="g"))
    put(store, harness.entry("c", topic="u"), harness.entry("d", topic="v"))
    before = [record._replace(deliveries=0) for record in contents(store)]
    everything = ["a", "b", "head", "c", "d"]
    for number in range(2):  # a second pause changes nothing
        for each in (store, other):
            _gives(each, None, ["c", "d"], "t is paused")
            _gives(each, ["t"], [], "t is paused")
            _gives(each, ["t", "v"], ["d"], "t is paused")
            check(each.count("t") == each.topics()["t"] == 3, "count() does not see what is paused")
            check(each.peek("t").payload == each.peek().payload == b"a", "peek() does not see what is paused")
            check(not each.is_empty("t"), "is_empty() does not see what is paused")
        (store, other)[number].pause("t")
    other.resume("u")  # which was not paused
    _gives(store, None, ["c", "d"], "another topic was resumed")
    other.pause("v")
    _gives(store, None, ["c"], "t and v are paused")
    found = [record._replace(deliveries=0) for record in contents(other)]
    check(
        found == [record._replace(deliveries=0) for record in before], f"a pause changed {before} to {found}"
    )
    other.resume("t")  # which was paused three times
    for each in (store, other):
        _gives(each, None, everything[:-1], "t is resumed")
        _gives(each, ["t"], everything[:3], "t is resumed")
    for each in (other, store):
        each.resume("v")
        _gives(store, None, everything, "everything is resumed")
    store.pause("t")
    check(store.purge("t") == 4 and other.cancel(other.peek("u").id), "a pause protects from removal")
    put(other, harness.entry("e", topic="t"))
    check(store.topics()["t"] == 1, "a pause ends when its topic has no message")
    _gives(other, None, ["d"], "t is paused, and was empty")


def _in_hand(harness: MessageStoreHarness) -> None:
    """Check that every verb works with a message of a paused topic, and that none delivers it again."""
    policy = PLAIN._replace(keep_done=9)
    store = harness.open("in hand", policy)
    other = harness.another(store, "in hand", policy)
    names = ("acked", "nacked", "released", "failed", "extended", "prefetched")
    put(store, *(harness.entry(name, topic="t") for name in names))
    held = claims_of(store.claim(5) + store.claim(prefetch=True))
    other.pause("t")
    store.ack(held[:1])
    store.nack(held[1:2], 0.0)
    check(store.release(held[2:3]) == 1, "release() of what is paused did not count the claim")
    store.fail(held[3:4])
    store.extend(held[4:5], 0.0)
    store.deliver(held[5:])
    wanted = {"acked": State.DONE, "failed": State.DEAD, "prefetched": State.CLAIMED}
    wanted |= dict.fromkeys(("nacked", "released", "extended"), State.READY)
    check(standing(other) == wanted, f"settled while paused: {standing(other)}, not {wanted}")
    check(other.redrive_all("t") == 1, "redrive_all() did not find a dead message of a paused topic")
    for each in (store, other):
        _gives(each, None, [], "what came back is paused")
    store.resume("t")
    _gives(other, None, ["nacked", "released", "failed", "extended"], "what came back is resumed")


def _due_while_paused(harness: MessageStoreHarness) -> Iterator[float]:
    """Check that what becomes due meanwhile is not delivered, and that a ttl passes."""
    store = harness.open("due")
    other = harness.another(store, "due")
    put(store, harness.entry("a", topic="t"))
    store.claim(lease=harness.seconds(10.0))
    put(store, harness.entry("b", topic="t", delay=10.0), harness.entry("c", topic="t", ttl=10.0))
    other.pause("t")
    yield 10.0
    _gives(store, None, [], "due while it is paused")
    wanted = {"a": State.READY, "b": State.READY}
    check(standing(other) == wanted, f"due while it is paused: {standing(other)}, not {wanted}")
    other.resume("t")
    _gives(store, ["t"], ["a", "b"], "due, and resumed")


@message_store_law("Q14")
def only_the_locker_claims(harness: MessageStoreHarness) -> None:
    """Every locked topic delivers only to the store object that has locked it.

    The lock ends when it is unlocked, with its lease, or when its holder is dead.
    """
    if not harness.capabilities.handles:
        _locks_of_one(harness)
        return
    _locked(harness)
    _relocked(harness)
    together(harness, _lock_leases(harness), _lock_extensions(harness))
    _lockers_end(harness)
    _fullest(harness)
    _listed(harness)
    _names(harness, "locked", lambda store, topic: store.lock_topic(topic, 3600.0))


def _locks_of_one(harness: MessageStoreHarness) -> None:
    store = harness.open("one")
    put(store, harness.entry("a", topic="t"))
    lock = lock_of(store, "t")
    check(store.lock_topic("t", 3600.0) is None, "a topic is locked twice")
    _gives(store, ["t"], ["a"], "locked by this object")
    check(store.unlock_topic(lock), "unlock_topic() of a lock that has not ended")
    check(not store.unlock_topic(lock), "unlock_topic() of a lock that has ended")
    _listed(harness)


def _locked(harness: MessageStoreHarness) -> None:
    store, other, third = (harness.open("locked") for _ in range(3))
    put(store, *(harness.entry(name, topic="t", priority=9) for name in ("acked", "nacked")))
    acked, nacked = claims_of(other.claim(2))
    lock = lock_of(store, "t")  # while the topic has no ready message
    put(other, *(harness.entry(name, topic="t", priority=9) for name in ("a", "b")))
    put(other, harness.entry("c", topic="u"))
    for each in (store, other, third):
        for lease in (None, harness.seconds(1000.0)):
            check(each.lock_topic("t", lease) is None, "a locked topic is locked again")
    other.ack([acked])
    other.nack([nacked], 0.0)
    _gives(store, None, ["nacked", "a", "b", "c"], "locked by this object")
    _gives(store, ["t"], ["nacked", "a", "b"], "locked by this object")
    for each in (other, third):
        _gives(each, None, ["c"], "t is locked by another object")
        _gives(each, ["t"], [], "t is locked by another object")
        _gives(each, ["u", "t"], ["c"], "t is locked by another object")
        check(each.count("t") == each.topics()["t"] == 3, "count() does not see what another object locks")
        check(each.peek().payload == b"nacked", "peek() does not see what another object locks")
    contents(third)
    check(other.cancel(other.peek().id) and third.purge("u") == 1, "a lock protects from removal")
    check(other.reclaim() == 0, "reclaim() ended something of a living holder")
    _gives(other, None, [], "t is locked by another object")
    second = lock_of(other, "u")
    check(store.unlock_topic(lock), "unlock_topic() says that a lock had ended before")
    check(not store.unlock_topic(lock), "unlock_topic() ends a lock twice")
    for each in (store, other, third):
        _gives(each, ["t"], ["a", "b"], "unlocked")
    put(store, harness.entry("d", topic="u"))
    _gives(store, None, ["a", "b"], "u is locked by another object")
    _gives(other, None, ["a", "b", "d"], "u is locked by this object")
    check(other.unlock_topic(second), "unlock_topic() does not know the second lock")
    _gives(third, None, ["a", "b", "d"], "nothing is locked")


def _relocked(harness: MessageStoreHarness) -> None:
    """Check that a lock which has ended does not touch a later one."""
    store, other = (harness.open("relocked") for _ in range(2))
    put(store, harness.entry("a", topic="t"))
    ended: list[TopicClaim] = []
    for locker in (store, other, other, store):
        lock = lock_of(locker, "t", harness.seconds(1000.0))
        for old in ended:
            for seconds in (None, 0.0, harness.seconds(1000.0)):
                _is_stale(partial(store.extend_lock, old, seconds))
            check(not store.unlock_topic(old), "unlock_topic() says that it ended a lock twice")
        for each in (store, other):
            _gives(each, ["t"], ["a"] if each is locker else [], "after the end of an older lock")
        if len(ended) % 2:
            check(locker.unlock_topic(lock), "unlock_topic() says that a lock had ended before")
        else:
            locker.extend_lock(lock, 0.0)
        _is_stale(partial(locker.extend_lock, lock, harness.seconds(1000.0)))
        ended.append(lock)
    check(len(set(ended)) == len(ended), f"locks of one topic are equal: {ended}")
    _gives(other, None, ["a"], "every lock has ended")


def _is_stale(call: Callable[[], object]) -> bool:
    try:
        call()
    except StaleClaimError:
        return True
    raise AssertionError("extend_lock() extends a lock that has ended")


def _lock_leases(harness: MessageStoreHarness) -> Iterator[float]:
    """Check that a lock ends with its lease and not earlier, and that each first call sees the end."""
    looks: dict[str, Callable[[MessageStore, MessageStore, TopicClaim], Any]] = {
        "claim()": lambda store, other, lock: payloads(other.claim()) == ["a"],
        "claim() of the topic": lambda store, other, lock: payloads(other.claim(5, ["t"])) == ["a"],
        "lock_topic()": lambda store, other, lock: other.lock_topic("t", 3600.0),
        "lock_topic() by its old holder": lambda store, other, lock: store.lock_topic("t", 3600.0),
        "lock_topic() of any": lambda store, other, lock: other.lock_topic(None, 3600.0),
        "unlock_topic()": lambda store, other, lock: not store.unlock_topic(lock),
        "extend_lock()": lambda store, other, lock: _is_stale(partial(store.extend_lock, lock, 1.0)),
        "reclaim()": lambda store, other, lock: other.reclaim() == 0,
    }
    opened: list[tuple[MessageStore, MessageStore, TopicClaim]] = []
    for name in looks:
        store, other = (harness.open(f"lock {name}") for _ in range(2))
        put(store, harness.entry("a", topic="t"), harness.entry("b", topic="long"))
        opened.append((store, other, lock_of(store, "t", harness.seconds(10.0))))
        lock_of(store, "long", harness.seconds(3600.0))
    early = harness.time.before(10.0)
    yield early
    for _, other, _ in opened:
        empty(other)
        check(other.lock_topic("t", 3600.0) is None, "a topic is locked again before the end of a lease")
    yield 10.0 - early
    for (name, look), (store, other, lock) in zip(looks.items(), opened, strict=True):
        check(
            bool(look(store, other, lock)), f"{name}, first after the lease of a lock, does not see its end"
        )
        empty(other, ["long"])


def _lock_extensions(harness: MessageStoreHarness) -> Iterator[float]:
    """Check that an extension replaces the end of a lock, and that a lock without a lease stays."""
    store, other = (harness.open("extended") for _ in range(2))
    leases: dict[str, float | None] = {"later": 10.0, "shorter": 3600.0}
    ended = ["later", "shorter", "at once"]
    if notices_death(store):
        leases |= {"never": None, "no more": 10.0, "from never": None}
        ended.insert(2, "from never")
    put(store, *(harness.entry(topic, topic=topic) for topic in (*leases, "at once")))
    locks = {
        topic: lock_of(store, topic, None if lease is None else harness.seconds(lease))
        for topic, lease in leases.items()
    }
    store.extend_lock(lock_of(store, "at once"), 0.0)
    _gives(other, None, ["at once"], "the lock was extended to nothing")
    _gives(other, ["at once"], ["at once"], "the lock was extended to nothing")
    yield 5.0
    store.extend_lock(locks["later"], harness.seconds(10.0))
    store.extend_lock(locks["shorter"], harness.seconds(10.0))
    if notices_death(store):
        store.extend_lock(locks["from never"], harness.seconds(10.0))
        store.extend_lock(locks["no more"], None)
    else:
        with refuses(ValueError, "extend_lock() without a lease, where no death is noticed,", store):
            store.extend_lock(locks["later"], None)
    yield 5.0
    _gives(other, None, ["at once"], "before the end of a lock that was extended")
    yield 5.0
    _gives(other, None, ended, "after the new end of the locks")
    yield 0.0 if harness.capabilities.real_time else 1e6
    _gives(other, None, ended, "a lock without a lease has ended")


def _lockers_end(harness: MessageStoreHarness) -> None:
    """Check that closing and dying end the locks of a holder, and of no other one."""
    store, other, holder = (harness.open("lockers") for _ in range(3))
    put(store, *(harness.entry(topic, topic=topic) for topic in ("t", "u")))
    lock_of(holder, "t")
    lock = lock_of(store, "u")
    _gives(other, None, [], "both topics are locked")
    holder.close()
    _gives(other, None, ["t"], "the holder of one of the locks has closed")
    check(store.unlock_topic(lock), "the lock of another holder has ended, too")
    lock = lock_of(other, "t")
    _gives(store, None, ["u"], "locked again after its holder has closed")
    if harness.capabilities.crashes and store.capabilities.death_noticed_after < math.inf:
        left = harness.crash("lockers")
        harness.time.wait(left.capabilities.death_noticed_after)
        _gives(left, None, ["t", "u"], "the holder of the lock is dead")
        lock_of(left, "t")
    _gives(store, None, ["u"], "its holder lives")


def _fullest(harness: MessageStoreHarness) -> None:
    """Check which topic is locked when the caller names none."""
    store, other = (harness.open("fullest") for _ in range(2))
    check(store.lock_topic(None, 3600.0) is None, "lock_topic() locks a topic of an empty store")
    sizes = {"z": 2, "a": 2, "Z": 2, "locked": 4, "paused": 5, "claimed": 4, "delayed": 1, "blocked": 1}
    for topic, size in sizes.items():
        group = "g" if topic == "blocked" else None
        put(store, *(harness.entry(topic=topic) for _ in range(size)))
        delay = 1000.0 if topic == "delayed" else 0.0
        if topic in ("blocked", "delayed"):
            put(store, *(harness.entry(topic=topic, group=group, delay=delay) for _ in range(5)))
    other.claim(3, ["claimed"])
    store.pause("paused")
    lock_of(other, "locked")
    store.set_rate("z", harness.seconds(1000.0))
    # The head of the group of "blocked" is ready, so this topic has two ready messages.
    order = ["Z", "a", "blocked", "z", "claimed", "delayed"]
    lockers = (store, other) * 3
    found = [(lock := each.lock_topic(None, 3600.0)) and lock.topic for each in lockers]
    check(found == order, f"the fullest topics are locked as {found}, not {order}")
    check(store.lock_topic(None, 3600.0) is None, "lock_topic() locks a topic that is locked or paused")
    store.resume("paused")
    lock = other.lock_topic(None, harness.seconds(1000.0))
    check(lock is not None and lock.topic == "paused", f"after resume() it locks {lock}")


def _listed(harness: MessageStoreHarness) -> None:
    """Check that ``locks`` lists the lock that a call has made, and nothing else."""
    store = harness.open("listed")
    wanted = [TopicClaim("earlier", 0)]
    listed = list(wanted)
    for topic in ("t", "t", None, "u", None):
        if topic is None:
            put(store, harness.entry(topic="fullest"))
        lock = store.lock_topic(topic, 3600.0, locks=listed)
        wanted += [] if lock is None else [lock]
        check(listed == wanted, f"lock_topic() of {topic!r} gave {lock}, and listed {listed}, not {wanted}")
    check(len(wanted) == 4, f"the locks of three topics are {wanted[1:]}")
    for made in listed[1:]:
        check(store.unlock_topic(made), f"unlock_topic() does not know the lock {made} of the list")


TOPIC_LAWS: tuple[MessageStoreLaw, ...] = (
    *RATE_LAWS,
    nothing_of_a_paused_topic_is_delivered,
    only_the_locker_claims,
    *WAIT_LAWS,
)
"""By number."""
