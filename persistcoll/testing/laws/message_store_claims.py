"""The laws Q6 and Q7 of message stores: how claims end, and what is left of them.

See :mod:`persistcoll.testing.laws.message_store`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from types import EllipsisType
from typing import Any

from persistcoll.engine.contracts import MessageStore
from persistcoll.engine.message_records import MessageClaim, MessageEntry, MessageRecord
from persistcoll.engine.records import State
from persistcoll.errors import Empty, StaleClaimError
from persistcoll.testing.children import check, in_forked_child
from persistcoll.testing.laws.message_store_attempts import ATTEMPT_LAWS
from persistcoll.testing.laws.message_store_harness import (
    PLAIN,
    MessageStoreHarness,
    MessageStoreLaw,
    claim_of,
    claims_of,
    ends,
    lock_of,
    message_store_law,
    notices_death,
    put,
    refuses,
    stale,
    standing,
)

__all__ = ["CLAIM_LAWS"]

_NOTICED = 30.0
"""How many seconds a busy store may take to look for holders that died, on a slow machine."""


@message_store_law("Q6")
def claims_end_with_their_leases(harness: MessageStoreHarness) -> None:
    """Every claim ends with its lease and not earlier, and an extension replaces the end of the lease.

    A claim without a lease ends when its holder is dead.
    """
    _needs_a_lease(harness)
    _batches(harness)
    _whose_lease(harness)
    _extensions(harness)
    _holders(harness)
    _holder_of_a_busy_store(harness)
    _seen_at_once(harness)


def _whose_lease(harness: MessageStoreHarness) -> None:
    """Check that the lease is that of the call, otherwise of the message, otherwise of the policy."""
    policy = PLAIN._replace(lease=20.0)
    store = harness.open("whose", policy)
    other = harness.another(store, "whose", policy)
    # By the topic: the lease of the message, that of the call, and the one that applies.
    cases: dict[str, tuple[Any, Any, float | None]] = {
        "policy": (..., ..., 20.0),
        "short": (10.0, ..., 10.0),
        "long": (40.0, ..., 40.0),
        "call": (10.0, 30.0, 30.0),
        "call alone": (..., 30.0, 30.0),
    }
    if notices_death(store):
        cases |= {"none": (None, ..., None), "call without": (10.0, None, None)}
        cases["call, not message"] = (None, 30.0, 30.0)
    ids = put(store, *(harness.entry(topic, topic=topic, lease=own) for topic, (own, _, _) in cases.items()))
    for (topic, (_, given, lasts)), id in zip(cases.items(), ids, strict=True):
        lease = harness.seconds(given) if isinstance(given, float) else given
        _claim(harness, (store, other), topic, lease, lasts)
        check(other.find(id) is not None, f"find() does not know the claimed message of {topic!r}")
    _end_in_time(harness, (store, other), {topic: lasts for topic, (_, _, lasts) in cases.items()})
    for (topic, (_, _, lasts)), id in zip(cases.items(), ids, strict=True):
        record = _found(other, id)
        is_over = lasts is not None
        check(record.claim is None, "find() gives a claim away")
        if is_over:
            check(bool(record.error), f"the lease of {topic!r} is over, and no error says so: {record}")
            check(record.until is None and record.finished is None, f"ready, and yet: {record}")
    if notices_death(store):
        harness.advance(1e6)
        found = {topic: state for topic, state in standing(other).items() if state is State.CLAIMED}
        check(len(found) == 2, f"without a lease, and claimed after a long time: {found}, not 2")


def _claim(
    harness: MessageStoreHarness,
    stores: Sequence[MessageStore],
    topic: str,
    lease: float | EllipsisType | None,
    lasts: float | None,
) -> MessageClaim:
    """Claim the message of this topic, and check its lease."""
    before = harness.now()
    [record] = stores[0].claim(1, [topic], lease=lease)
    ends(harness, f"claim() of {topic!r}", record.until, lasts, before)
    seconds = None if lasts is None else harness.seconds(lasts)
    check(record.lease == seconds, f"claim() of {topic!r} says a lease of {record.lease}, not {seconds}")
    for store in stores:
        found = store.find(record.id)
        wanted = record._replace(claim=None, lease=None)
        check(found == wanted, f"find() gives {found} of what is claimed, not {wanted}")
    [claim] = claims_of([record])
    return claim


def _end_in_time(
    harness: MessageStoreHarness, stores: Sequence[MessageStore], leases: dict[str, float | None]
) -> None:
    """Check that each claim ends after so many seconds from now and not earlier; ``None``: it does not."""
    passed = 0.0
    for end in sorted({each for each in leases.values() if each}):
        early = harness.time.before(end - passed)
        for wait in (early, end - passed - early):
            harness.advance(wait)
            passed += wait
            wanted = {
                payload: State.CLAIMED if each is None or each > passed else State.READY
                for payload, each in leases.items()
            }
            for store in stores:
                # It is quick, because what the stores do takes time from a clock that nobody sets.
                found = {record.payload.decode(): record.state for record in store.scan()}
                check(found == wanted, f"{passed} s after the claims: {found}, not {wanted}")


def _found(store: MessageStore, id: int) -> MessageRecord:
    record = store.find(id)
    if record is None:
        raise AssertionError(f"find() does not know the message {id}")
    return record


def _batches(harness: MessageStoreHarness) -> None:
    """Check that each message of a batch has a lease of its own."""
    policy = PLAIN._replace(lease=20.0)
    store = harness.open("batch", policy)
    leases: list[Any] = [10.0, ..., 40.0]
    put(store, *(harness.entry(lease=lease) for lease in leases))
    before = harness.now()
    records = store.claim(5)
    check(len(records) == 3, f"claim() of 5 gave {len(records)} of 3 messages")
    for record, lasts in zip(records, (10.0, 20.0, 40.0), strict=True):
        ends(harness, "claim() of several", record.until, lasts, before)
        check(record.lease == harness.seconds(lasts), f"a batch says {record.lease} for a lease of {lasts}")
    store.release(claims_of(records))
    before = harness.now()
    for record in store.claim(5, lease=harness.seconds(30.0)):
        ends(harness, "claim() of several with a lease", record.until, 30.0, before)
    check(store.release(claims_of(records)) == 0, "the claims of before a release are still claims")


def _extensions(harness: MessageStoreHarness) -> None:
    policy = PLAIN._replace(lease=20.0)
    store = harness.open("extended", policy)
    other = harness.another(store, "extended", policy)
    stores = (store, other)
    names = ["left alone", "ended", "shorter", "twice", "one of two", "two of two", "later"]
    put(store, *(harness.entry(name, topic=name) for name in names))
    held = {name: _claim(harness, stores, name, ..., 20.0) for name in names}
    leases: dict[str, float | None] = dict.fromkeys(names, None)
    if notices_death(store):
        names += ["none", "from none"]
        put(store, *(harness.entry(name, topic=name) for name in names[-2:]))
        held["none"] = _claim(harness, stores, "none", ..., 20.0)
        held["from none"] = _claim(harness, stores, "from none", None, None)
        _extend(harness, stores, [held["none"]], None)
        leases |= {"none": None, "from none": None}
    _extend(harness, stores, [held["ended"]], 0.0)
    _extend(harness, stores, [held["shorter"]], 10.0)
    _extend(harness, stores, [held["twice"]], 1000.0)
    _extend(harness, stores, [held["twice"]], 30.0)
    _extend(harness, stores, [held["one of two"], held["two of two"]], 30.0)
    _end_in_time(harness, stores, leases | {"ended": 0.0, "shorter": 10.0})
    # From here on 10 seconds are over.
    _extend(harness, stores, [held["later"]], 30.0)
    leases |= {"ended": 0.0, "shorter": 0.0, "left alone": 10.0, "twice": 20.0, "later": 30.0}
    leases |= {"one of two": 20.0, "two of two": 20.0}
    if notices_death(store):
        _extend(harness, stores, [held["from none"]], 20.0)
        leases |= {"from none": 20.0}
    _end_in_time(harness, stores, leases)


def _extend(
    harness: MessageStoreHarness,
    stores: Sequence[MessageStore],
    claims: Sequence[MessageClaim],
    seconds: float | None,
) -> None:
    """Extend claims through the last store, and check the new end of each lease."""
    before = harness.now()
    until = stores[-1].extend(claims, None if seconds is None else harness.seconds(seconds))
    ends(harness, "extend()", until, seconds, before)
    for store in stores if seconds != 0 else ():
        found = [_found(store, claim.id).until for claim in claims]
        check(found == [until] * len(found), f"extend() gave {until}, and find() gives {found}")


def _holders(harness: MessageStoreHarness) -> None:
    """Check that a claim ends when its holder closes or dies, and not when another holder does."""
    store = harness.open("held")
    lease = None if notices_death(store) else harness.seconds(20.0)
    a, b = put(store, harness.entry("a"), harness.entry("b"))
    store.claim(lease=lease)
    if harness.capabilities.handles:
        other = harness.another(store, "held")
        other.claim(lease=lease)
        check(other.reclaim() == store.reclaim() == 0, "reclaim() ended a claim of a living holder")
        other.close()
        found = standing(store)
        check(found == {"a": State.CLAIMED, "b": State.READY}, f"closed by the holder of b: {found}")
        check(bool(_found(store, b).error), "no error says that the holder has closed")
    if harness.capabilities.crashes:
        left = harness.crash("held")
        if notices_death(left):
            harness.time.wait(left.capabilities.death_noticed_after)
        else:
            check(standing(left)["a"] is State.CLAIMED, "the claim of a dead holder has no lease any more")
            harness.advance(20.0)
        check(standing(left)["a"] is State.READY, f"after the death of its holder: {standing(left)}")
        check(bool(_found(left, a).error), "no error says that the holder has died")
        check(left.reclaim() == 0, "reclaim() counts claims that had ended before")


def _holder_of_a_busy_store(harness: MessageStoreHarness) -> None:
    """Check that what a process had claimed when it died comes back while others always find something."""
    store = harness.open("busy")
    if not (harness.capabilities.processes and harness.capabilities.forks and notices_death(store)):
        return
    living, dead = put(store, harness.entry("of the living"), harness.entry("of the dead"))
    store.claim(lease=None)

    def claim_and_die() -> None:  # without a close
        store.after_fork_in_child()
        store.claim(lease=None)

    in_forked_child(claim_and_die)
    harness.time.wait(store.capabilities.death_noticed_after)
    end = time.monotonic() + _NOTICED
    while True:
        put(store, harness.entry("more"))
        (record,) = store.claim(lease=None)
        check(record.id != living, "a claim of a living holder came back")
        if record.id == dead:
            break
        store.ack(claims_of([record]))
        check(time.monotonic() < end, "what a dead process has claimed stays claimed in a busy store")
    check(bool(record.error), f"no error says that the holder has died: {record}")


def _needs_a_lease(harness: MessageStoreHarness) -> None:
    """Check that a store which does not notice deaths refuses everything that could never end."""
    store = harness.open("needs a lease")
    if notices_death(store):
        return
    put(store, harness.entry("a"), harness.entry("b"))
    claim, lock = claim_of(store, "default"), lock_of(store, "t")
    claims: list[MessageClaim] = []
    calls: dict[str, Callable[[], object]] = {
        "claim()": lambda: store.claim(lease=None, claims=claims),
        "put()": lambda: store.put([harness.entry("c"), harness.entry("d", lease=None)]),
        "extend()": lambda: store.extend([claim], None),
        "lock_topic()": lambda: store.lock_topic("u", None),
        "extend_lock()": lambda: store.extend_lock(lock, None),
        "another object": lambda: harness.another(store, "needs a lease", PLAIN._replace(lease=None)),
    }
    for what, call in calls.items():
        if harness.capabilities.handles or what != "another object":
            with refuses(ValueError, f"{what} without a lease", store):
                call()
    check(claims == [], f"refused claims are listed: {claims}")


def _puts(store: MessageStore, record: MessageRecord) -> bool:
    return store.put([MessageEntry(record.payload, key=record.key)]) != [None]


_Look = Callable[[MessageStore, MessageRecord], Any]
_READY: dict[str, tuple[_Look, Any]] = {
    "count()": (lambda store, _: store.count(), 1),
    "is_empty()": (lambda store, _: store.is_empty("default"), False),
    "stats()": (lambda store, _: (store.stats().ready, store.stats().claimed), (1, 0)),
    "topics()": (lambda store, _: store.topics(), {"default": 1}),
    "peek()": (lambda store, record: store.peek().id == record.id, True),
    "find()": (lambda store, record: _found(store, record.id).state, State.READY),
    "scan()": (lambda store, _: [each.state for each in store.scan()], [State.READY]),
    "scan() of the claimed": (lambda store, _: [*store.scan(State.CLAIMED)], []),
    "claim()": (lambda store, record: store.claim()[0].id == record.id, True),
    "claim() of a topic": (lambda store, record: store.claim(5, ["default"])[0].id == record.id, True),
    "put()": (_puts, False),
    "cancel()": (lambda store, record: store.cancel(record.id), True),
    "purge()": (lambda store, _: store.purge(), 1),
    "reclaim()": (lambda store, _: store.reclaim(), 1),
    "lock_topic()": (lambda store, _: (lock := store.lock_topic(None, 3600.0)) and lock.topic, "default"),
    "release()": (lambda store, record: store.release(claims_of([record])), 0),
    "ack()": (lambda store, record: _is_stale(store.ack, record), True),
    "nack()": (lambda store, record: _is_stale(store.nack, record), True),
    "fail()": (lambda store, record: _is_stale(store.fail, record), True),
    "deliver()": (lambda store, record: _is_stale(store.deliver, record), True),
    "extend()": (lambda store, record: _is_stale(store.extend, record, 1.0), True),
}
_DEAD: dict[str, tuple[_Look, Any]] = {
    "count()": (lambda store, _: store.count(), 0),
    "has_unfinished()": (lambda store, _: store.has_unfinished(), False),
    "stats()": (lambda store, _: (store.stats("default").dead, store.stats().claimed), (1, 0)),
    "topics()": (lambda store, _: store.topics(), {"default": 0}),
    "find()": (lambda store, record: _found(store, record.id).state, State.DEAD),
    "scan()": (lambda store, _: [each.state for each in store.scan(State.DEAD)], [State.DEAD]),
    "claim()": (lambda store, _: _is_empty(store), True),
    "put()": (_puts, True),
    "release_key()": (lambda store, _: store.release_key(b"k"), False),
    "redrive()": (lambda store, record: store.redrive(record.id), True),
    "redrive_all()": (lambda store, _: store.redrive_all(), 1),
    "purge()": (lambda store, _: store.purge(dead=True), 1),
    "reclaim()": (lambda store, _: store.reclaim(), 1),
}
_SEEN: list[tuple[str, _Look, int | None, Any]] = [
    *((name, look, None, wanted) for name, (look, wanted) in _READY.items()),
    *((name, look, 1, wanted) for name, (look, wanted) in _DEAD.items()),
]


def _is_stale(verb: Callable[..., Any], record: MessageRecord, *arguments: Any) -> bool:
    try:
        verb(claims_of([record]), *arguments)
    except StaleClaimError:
        return True
    return False


def _is_empty(store: MessageStore) -> bool:
    try:
        store.claim()
    except Empty:
        return True
    return False


def _seen_at_once(harness: MessageStoreHarness) -> None:
    """Check that the first call after the end of a lease sees the message ready, or dead."""
    stores: list[tuple[MessageStore, MessageRecord]] = []
    for name, _, limit, _ in _SEEN:
        policy = PLAIN._replace(lease=20.0, max_attempts=limit)
        store = harness.open(f"{name} {limit}", policy)
        put(store, harness.entry("a", key=b"k"))
        [record] = store.claim()
        stores.append((harness.another(store, f"{name} {limit}", policy), record))
    several = harness.open("several")
    put(several, *(harness.entry(lease=lease) for lease in (20.0, 40.0, 20.0)))
    several.claim(3)
    harness.advance(20.0)
    check(several.reclaim() == 2, "reclaim() did not count the two claims of three whose lease is over")
    check(several.reclaim() == 0, "reclaim() found more the second time")
    for (store, record), (name, look, limit, wanted) in zip(stores, _SEEN, strict=True):
        found = look(store, record)
        how = "ready" if limit is None else "dead"
        check(found == wanted, f"{name}, first when a message is {how}, gave {found!r}, not {wanted!r}")


@message_store_law("Q7")
def ended_claims_change_nothing(harness: MessageStoreHarness) -> None:
    """Every claim that has ended changes nothing, even if the message is claimed again: StaleClaimError.

    The error names all stale claims. A claim of a transaction that was rolled back has ended, too.
    """
    _accepted_everywhere(harness)
    for steps in _ENDS:
        _ended(harness, steps)
    _run_out(harness)
    _several_stale(harness)
    _rolled_back(harness)
    _tokens(harness)


_KEEPS = PLAIN._replace(keep_done=100)


def _verbs(harness: MessageStoreHarness, store: MessageStore) -> dict[str, Callable[..., Any]]:
    return {
        "ack()": store.ack,
        "nack()": store.nack,
        "nack() with a delay": partial(store.nack, delay=harness.seconds(5.0), error="new"),
        "fail()": partial(store.fail, error="new"),
        "extend()": partial(store.extend, seconds=harness.seconds(9.0)),
        "extend() to nothing": partial(store.extend, seconds=0.0),
        "deliver()": store.deliver,
    }


def _accepted_everywhere(harness: MessageStoreHarness) -> None:
    """Check that each object of a queue accepts each claim, and that ``claims`` lists the claims."""
    store = harness.open("everywhere", _KEEPS)
    other = harness.another(store, "everywhere", _KEEPS)
    names = ["acked", "nacked", "failed", "released", "extended", "delivered"]
    put(store, *map(harness.entry, names))
    earlier = MessageClaim(0, 0)
    listed = [earlier]
    records = store.claim(9, claims=listed)
    held = claims_of(records)
    check(listed == [earlier, *held], f"claim() appended {listed[1:]} to the list, and gave {held}")
    other.ack(held[:1])
    other.nack(held[1:2])
    other.fail([MessageClaim(*held[2])])
    check(other.release(held[3:4]) == 1, "release() elsewhere did not count the claim")
    other.extend(held[4:5], 0.0)
    other.deliver(held[5:])
    wanted = {"acked": State.DONE, "nacked": State.READY, "failed": State.DEAD, "released": State.READY}
    wanted |= {"extended": State.READY, "delivered": State.CLAIMED}
    for each in (store, other):
        check(standing(each) == wanted, f"settled elsewhere: {standing(each)}, not {wanted}")
    check(store.release(held) == 1, "release() counted claims that had ended")


def _again(store: MessageStore) -> None:
    """Claim the message of the lost claim again."""
    check(len(store.claim(1, ["lost"])) == 1, "a message whose claim has ended is not claimed again")


_Step = Callable[[MessageStore, MessageStore, MessageClaim], object]
_STEPS: dict[str, _Step] = {
    "ack": lambda store, other, claim: store.ack([claim]),
    "ack elsewhere": lambda store, other, claim: other.ack([claim]),
    "nack": lambda store, other, claim: store.nack([claim]),
    "nack with a delay": lambda store, other, claim: other.nack([claim], 1e6),
    "fail": lambda store, other, claim: store.fail([claim]),
    "release": lambda store, other, claim: store.release([claim]),
    "extension to nothing": lambda store, other, claim: other.extend([claim], 0.0),
    "cancel": lambda store, other, claim: other.cancel(claim.id),
    "redrive": lambda store, other, claim: other.redrive(claim.id),
    "claim again": lambda store, other, claim: _again(store),
    "claim elsewhere": lambda store, other, claim: _again(other),
    "ack of another claim": lambda store, other, claim: other.ack(claims_of(other.claim(1, ["lost"]))),
}
_ENDS: tuple[tuple[str, ...], ...] = (
    ("ack",),
    ("ack elsewhere",),
    ("nack",),
    ("nack with a delay",),
    ("fail",),
    ("release",),
    ("release", "cancel"),
    ("extension to nothing",),
    ("nack", "claim again"),
    ("release", "claim again"),
    ("release", "claim elsewhere"),
    ("extension to nothing", "claim again"),
    ("extension to nothing", "claim elsewhere"),
    ("extension to nothing", "ack of another claim"),
    ("fail", "redrive", "claim again"),
)


def _ended(harness: MessageStoreHarness, steps: Sequence[str]) -> None:
    how = ", ".join(steps)
    for policy in (PLAIN, _KEEPS) if "ack" in how else (PLAIN,):
        name = f"{how} {policy.keep_done}"
        store = harness.open(name, policy)
        other = harness.another(store, name, policy)
        put(store, harness.entry("a", topic="lost"), harness.entry("b", topic="good"))
        lost, good = claims_of(store.claim(2))
        for step in steps:
            _STEPS[step](store, other, lost)
        _changes_nothing(harness, other, lost, good, how)


def _changes_nothing(
    harness: MessageStoreHarness, store: MessageStore, lost: MessageClaim, good: MessageClaim, how: str
) -> None:
    """Check that no verb accepts a lost claim, not even together with one that has not ended."""
    before = list(store.scan())
    for name, verb in _verbs(harness, store).items():
        for claims in ([lost], [good, lost], [lost, good]):
            what = f"{name} of {len(claims)} claims, of which one was ended by {how},"
            _is_refused(what, lost, partial(verb, claims))
            found = list(store.scan())
            check(found == before, f"{what} raised StaleClaimError and changed {before} to {found}")
    check(store.release([lost]) == 0, f"release() counted a claim that was ended by {how}")
    check(list(store.scan()) == before, f"release() ended a claim later than {how}: {standing(store)}")
    check(store.release([lost, good]) == 1, "release() of a claim and a lost one did not count one")


def _is_refused(what: str, lost: MessageClaim, call: Callable[[], object]) -> None:
    try:
        call()
    except StaleClaimError as error:
        check(tuple(error.ids) == (lost.id,), f"{what} named {error.ids} as stale, not {lost.id}")
    else:
        raise AssertionError(f"{what} did not raise StaleClaimError")


def _run_out(harness: MessageStoreHarness) -> None:
    """Check claims whose leases have run out, and claims that nobody ever made."""
    stores: list[tuple[str, MessageStore, list[MessageClaim]]] = []
    for how in ("left", "claimed again", "claimed again elsewhere"):
        store = harness.open(how)
        put(store, harness.entry("a", topic="lost"), harness.entry("b", topic="good"))
        records = store.claim(1, ["lost"], lease=harness.seconds(20.0)) + store.claim(1, ["good"])
        stores.append((how, store, claims_of(records)))
    harness.advance(20.0)
    for how, store, (lost, good) in stores:
        other = harness.another(store, how)
        if how != "left":
            _again(store if how == "claimed again" else other)
        _changes_nothing(harness, store, lost, good, f"the end of its lease, {how}")
    store = harness.open("never made")
    a, _ = put(store, harness.entry("a"), harness.entry("b"))
    [good] = claims_of(store.claim())
    for lost in (good._replace(token=good.token + 1000), MessageClaim(a + 1000, good.token)):
        _changes_nothing(harness, store, lost, good, "nobody, because there was none,")
        [good] = claims_of(store.claim())


def _several_stale(harness: MessageStoreHarness) -> None:
    """Check that the error names all stale claims, however each has ended, and no other."""
    store = harness.open("several stale")
    other = harness.another(store, "several stale")
    put(store, *map(harness.entry, "abcdef"))
    held = claims_of(store.claim(6))
    other.ack(held[1:2])
    store.nack(held[3:4])
    other.release(held[4:5])
    other.claim()
    ids = [held[1].id, held[3].id, held[4].id]
    for each in (store, other):
        for name, verb in _verbs(harness, each).items():
            with stale(ids, f"{name} of six claims, of which three have ended,", each):
                verb(held)
    check(store.release(held) == 3, "release() of six claims, of which three have ended, did not end three")


def _rolled_back(harness: MessageStoreHarness) -> None:
    """Check that a claim of a transaction that was rolled back has ended, and that it never comes back."""
    store = harness.open("rolled back")
    other = harness.another(store, "rolled back")
    put(store, harness.entry("a", topic="lost"), harness.entry("b", topic="good"))
    [good] = claims_of(store.claim(1, ["good"]))
    lost: list[MessageClaim] = []
    if harness.capabilities.transactions:
        with refuses(ZeroDivisionError, "a transaction that raised", store), store.transaction():
            lost += claims_of(store.claim())
            _raise(ZeroDivisionError())
    if harness.capabilities.joins:
        connection = harness.connect(store, "rolled back")
        connection.begin()
        lost += claims_of(store.joined(connection).claim())
        connection.rollback()
    for claim in lost:
        _changes_nothing(harness, other, claim, good, "a rollback")
        [good] = claims_of(store.claim(1, ["good"]))
    for each in (store, other):
        [again] = each.claim(1, ["lost"])
        check(again.attempts == 1, f"an attempt that was rolled back counts: {again}")
        for claim in lost:
            with stale([claim.id], "ack() of a claim that was rolled back, and claimed again,", store):
                each.ack([good, claim])
        each.release(claims_of([again]))


def _raise(error: BaseException) -> None:
    raise error


def _tokens(harness: MessageStoreHarness) -> None:
    """Check that no two claims of a message are equal, whichever objects claim it."""
    store = harness.open("tokens")
    put(store, harness.entry())
    held: list[MessageClaim] = []
    for number in range(6):
        each = harness.another(store, "tokens")
        held += claims_of(each.claim())
        if harness.capabilities.transactions:
            with refuses(ZeroDivisionError, "a transaction that raised"), each.transaction():
                each.release(held[-1:])
                held += claims_of(each.claim())
                _raise(ZeroDivisionError())
            store.release(held[-2:])
        if number % 2 and each is not store:
            each.close()  # which ends its claim
        store.release(held[-1:])
    if not harness.capabilities.handles:
        store.close()
        store = harness.open("tokens")
        held += claims_of(store.claim())
    check(len(set(held)) == len(held), f"claims of one message are equal: {held}")


CLAIM_LAWS: tuple[MessageStoreLaw, ...] = (
    claims_end_with_their_leases,
    ended_claims_change_nothing,
    *ATTEMPT_LAWS,
)
"""By number."""
