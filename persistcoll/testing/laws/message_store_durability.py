"""The laws S2 and S8: what outlives a process. See :mod:`persistcoll.testing.laws.message_store`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from persistcoll.engine.contracts import MessageStore
from persistcoll.engine.message_records import MessageClaim, MessageRecord
from persistcoll.engine.records import State
from persistcoll.errors import Empty
from persistcoll.testing.children import check
from persistcoll.testing.laws.message_store_harness import (
    PLAIN,
    MessageStoreHarness,
    MessageStoreLaw,
    claim_of,
    claims_of,
    contents,
    lock_of,
    message_store_law,
    notices_death,
    put,
    stale,
    totals,
)

__all__ = ["DURABILITY_LAWS"]

_POLICY = PLAIN._replace(max_attempts=2, keep_done=1000)
_HEADS = (State.READY, State.DELAYED, State.CLAIMED)


@message_store_law("S2", "crashes")
def durable_when_returned(harness: MessageStoreHarness) -> None:
    """Every change that returned survives the process."""
    store = harness.open(policy=_POLICY)
    entry = harness.entry

    def left(verb: str, spent: Collection[str] = (), undelivered: Collection[str] = ()) -> None:
        before, numbers = contents(store), totals(store)
        found = harness.crash(policy=_POLICY)
        if notices_death(found):
            harness.time.wait(found.capabilities.death_noticed_after)
            before = _held_by_the_dead(found, before, spent, undelivered)
        _compare(found, before, f"after {verb} a dead process would leave")
        check(bool(spent) or totals(found) == numbers, f"after {verb}: {totals(found)}, not {numbers}")
        found.close()

    put(
        store, *(entry(name, topic=name, headers=b"h", priority=0.5, key=name.encode()) for name in "abcdefg")
    )
    left("put()")
    put(store, entry("h", topic="g", group="g"), entry("i", topic="g", group="g"))
    put(store, entry("j", delay=500.0, ttl=1000.0))
    left("put() of what is delayed or blocked")
    a, b, c, d, e = (claim_of(store, name) for name in "abcde")
    left("claim()")
    f, g = claim_of(store, "f", prefetch=True), claim_of(store, "g", prefetch=True)
    left("claim() of what is prefetched", undelivered="fg")
    store.deliver([g])
    left("deliver()", undelivered="f")
    store.ack([a])
    left("ack()", undelivered="f")
    store.nack([b, f], error="why")
    left("nack()")
    store.nack([c], harness.seconds(500.0), "why not")
    left("nack() with a delay")
    store.release([g])
    left("release()")
    store.fail([d], "no")
    left("fail()")
    store.extend([e], harness.seconds(500.0))
    left("extend()")
    b = claim_of(store, "b")
    left("the last attempt", spent="b")
    store.nack([b], error="the last")
    left("nack() of the last attempt")
    store.redrive(b.id)
    left("redrive()")
    check(store.redrive_all() == 1, "redrive_all() did not redrive the other dead message")
    left("redrive_all()")
    store.cancel(c.id)
    left("cancel()")
    _durable_after_a_time(harness, store, e.id, left)
    store.fail([claim_of(store, "d")])
    store.purge(dead=True)
    left("purge() of the dead")
    store.shrink()
    left("shrink()")
    store.checkpoint()
    left("checkpoint()")
    store.purge("b")
    left("purge() of a topic")
    store.purge()
    left("purge()")
    _durable_beside_messages(harness, store)
    _durable_fence(harness)


def _durable_after_a_time(
    harness: MessageStoreHarness, store: MessageStore, claimed: int, left: Callable[[str], None]
) -> None:
    (held,) = [record for record in store.scan(State.CLAIMED) if record.id == claimed]
    put(store, harness.entry("k", ttl=50.0), harness.entry("l", delay=50.0))
    short = store.claim(1, ["g"], lease=harness.seconds(50.0))
    left("claim() with a lease of its own, put() with a ttl and a delay")
    early = harness.crash(policy=_POLICY)
    harness.advance(50.0)
    left("the end of a ttl, of a delay and of a lease")
    states = {record.payload: record.state for record in contents(early)}
    check(states[b"l"] is State.READY, f"after a crash and the end of a delay: {states}")
    check(states[b"g"] is State.READY, f"after a crash and the end of a lease: {states}")
    check(b"k" not in states, f"after a crash and the end of a ttl: {states}")
    early.close()
    found = {record.id for record in store.scan(State.CLAIMED)}
    check(found == {held.id}, f"after the lease of {short} messages are claimed: {found}")
    store.reclaim()
    left("reclaim()")


def _compare(found: MessageStore, wanted: Sequence[MessageRecord], what: str) -> None:
    rows = contents(found)
    ends = {record.id for record in wanted if record.error == _ENDED}
    rows = [_without_reason(record) if record.id in ends else record for record in rows]
    check(rows == list(wanted), f"{what} {rows}, not {list(wanted)}")


_ENDED = "the law's name of any reason"


def _without_reason(record: MessageRecord) -> MessageRecord:
    """Return the message without what depends on the store: the reason and the time of its end."""
    finished = None if record.finished is None else 0.0
    return record._replace(error=None if record.error is None else _ENDED, finished=finished)


def _held_by_the_dead(
    store: MessageStore,
    records: Sequence[MessageRecord],
    spent: Collection[str],
    undelivered: Collection[str],
) -> list[MessageRecord]:
    """Return these messages as they are after the end of the holder of each claim.

    :param spent: the payloads of those without attempts left.
    :param undelivered: the payloads of those that were only prefetched.
    """
    rows: list[MessageRecord] = []
    for record in records:
        name = record.payload.decode()
        if record.state is State.CLAIMED:
            is_back = store.capabilities.counts_delivered and name in undelivered
            is_dead = name in spent and not is_back
            ended = record._replace(
                state=State.DEAD if is_dead else State.READY,
                attempts=record.attempts - is_back,
                until=None,
                error=record.error if is_back else _ENDED,
                finished=0.0 if is_dead else None,
            )
            rows.append(ended)
        else:
            rows.append(record)
    for index, record in enumerate(rows):
        group = record.topic, record.group
        heads = [row for row in rows if (row.topic, row.group) == group and row.state in _HEADS]
        if record.state is State.BLOCKED and not heads:
            rows[index] = record._replace(state=State.READY)
    return rows


def _durable_beside_messages(harness: MessageStoreHarness, store: MessageStore) -> None:
    """Check what a dead process leaves of keys, ids, claims, pauses, rates and locks."""
    names = ("paused", "resumed", "slow", "lifted", "locked", "held")
    for name in names:
        put(store, *[harness.entry(name, topic=name)] * 2)
    _make_keys(harness, store)
    for topic in ("paused", "resumed"):
        store.pause(topic)
    store.resume("resumed")
    for topic in ("slow", "lifted"):
        store.set_rate(topic, harness.seconds(900.0))
    store.set_rate("lifted", None)
    held = [claim_of(store, topic) for topic in ("slow", "lifted", "held")]
    locks = [lock_of(store, topic, harness.seconds(900.0)) for topic in ("locked", "resumed")]
    store.unlock_topic(locks[1])
    (last,) = put(store, harness.entry("last", delay=900.0))
    store.cancel(last)
    found = harness.crash(policy=_POLICY)
    is_noticed = notices_death(found)
    if is_noticed:
        harness.time.wait(found.capabilities.death_noticed_after)
    wanted = dict.fromkeys(names, True) | {"paused": False, "slow": False, "locked": is_noticed}
    _flows(found, wanted, "after a crash")
    for lock, ends in zip(locks, (not is_noticed, False), strict=True):
        check(found.unlock_topic(lock) == ends, f"after a crash unlock_topic() of {lock} is not {ends}")
    _check_keys(harness, found, "after a crash", last)
    if is_noticed:
        with stale([claim.id for claim in held], "ack() of claims whose holder died", found):
            found.ack(held)
    else:
        found.ack(held)
    found.close()


def _durable_fence(harness: MessageStoreHarness) -> None:
    """Check that no claim is equal to one of a process that died."""
    store = harness.open("fence", _POLICY)
    put(store, harness.entry("a", max_attempts=None, lease=20.0))
    made = claims_of(store.claim())
    found = harness.crash("fence", _POLICY)
    harness.advance(20.0)
    if notices_death(found):
        harness.time.wait(found.capabilities.death_noticed_after)
    (again,) = claims_of(found.claim())
    check(again not in made, f"after a crash a claim is equal to the one before it: {again}")
    with stale([again.id], "ack() of a claim of before a crash", found):
        found.ack(made)
    check(found.release(made) == 0, "release() of a claim of before a crash ended the present one")
    found.close()


def _make_keys(harness: MessageStoreHarness, store: MessageStore) -> None:
    """Make an active key of a finished message, and one that :meth:`release_key` has freed."""
    for key in (b"window", b"free"):
        put(store, harness.entry("key", key=key, key_window=900.0, topic="key"))
    store.ack(claims_of(store.claim(2, ["key"])))
    check(store.release_key(b"free"), "release_key() found no active key")


def _check_keys(harness: MessageStoreHarness, store: MessageStore, what: str, last: int) -> None:
    ids = store.put([harness.entry("key", key=key) for key in (b"window", b"free", b"new")])
    check(ids[0] is None and None not in ids[1:], f"{what} an active key, a free and a new one gave {ids}")
    check(min(id for id in ids if id is not None) > last, f"{what} put() gave {ids}, and {last} before")


def _flows(store: MessageStore, wanted: dict[str, bool], what: str) -> None:
    """Check from which topics a message can be claimed."""
    got: dict[str, bool] = {}
    for topic in wanted:
        try:
            got[topic] = bool(store.claim(1, [topic]))
        except Empty:
            got[topic] = False
    check(got == wanted, f"{what} messages can be claimed: {got}, not {wanted}")


@message_store_law("S8")
def reopening_changes_nothing(harness: MessageStoreHarness) -> None:
    """No close and no opening changes a message, except that a claimed one is ready again.

    It is dead if it has no attempts left.
    """
    store = harness.open(policy=_POLICY)
    other = harness.another(store, policy=_POLICY)
    undelivered, last, lost = _make_one_of_each(harness, store)
    if other is not store:
        theirs = [claim_of(other, "theirs")]
        lock = lock_of(other, "theirs", harness.seconds(900.0))
    before = contents(store)
    ours = [record for record in before if record.topic != "theirs"]
    wanted = _held_by_the_dead(store, ours, ("spent", "spent head", "prefetched"), undelivered)
    wanted = sorted((*wanted, *(record for record in before if record.topic == "theirs")), key=_by_id)
    numbers = totals(store)
    dead = sum(record.state is State.DEAD for record in wanted)
    dead -= sum(record.state is State.DEAD for record in before)
    for time in range(2, 5):
        store.close()
        store = harness.open(policy=_POLICY)
        _compare(store, wanted, f"opened for the {time}. time:")
        counts = numbers[0], numbers[1] + dead, numbers[2]
        check(totals(store) == counts, f"opened for the {time}. time: {totals(store)}, not {counts}")
    check(store.reclaim() == 0, "reclaim() found a claim of a store that was closed")
    flows = {"ready": True, "claimed": True, "spent": False, "paused": False, "slow": False, "locked": True}
    if other is not store:
        flows["theirs"] = False
    _flows(store, flows, "after reopening")
    _check_keys(harness, store, "after reopening", last)
    (again,) = [record for record in store.scan(State.CLAIMED) if record.topic == "claimed"]
    with stale([again.id], "ack() of a claim of before close()", store):
        store.ack([lost])
    store.resume("paused")
    store.set_rate("slow", None)
    _flows(store, {"paused": True, "slow": True}, "after resume() and set_rate()")
    if other is not store:
        other.ack(theirs)
        other.extend_lock(lock, 3600.0)
        check(other.unlock_topic(lock), "closing one object ended the lock of another one")
        _claims_in_the_end(harness, store, other)


def _by_id(record: MessageRecord) -> int:
    return record.id


def _make_one_of_each(
    harness: MessageStoreHarness, store: MessageStore
) -> tuple[list[str], int, MessageClaim]:
    """Put a message in each state, and return the prefetched ones, the last id and a claim."""
    entry = harness.entry
    names = ("ready", "done", "dead", "claimed", "paused", "slow", "slow", "locked", "theirs", "theirs")
    put(store, *(entry(name, topic=name, priority=-0.5, headers=b"h") for name in names))
    put(store, entry("delayed", delay=900.0, ttl=1000.0), entry("back", topic="back"))
    put(store, *(entry(name, topic=name, max_attempts=1) for name in ("spent", "prefetched")))
    for name in ("head", "spent head"):
        last = 1 if name == "spent head" else 9
        put(store, entry(name, topic=name, group="g", max_attempts=last))
        put(store, *[entry(name + " follower", topic=name, group="g", max_attempts=9)] * 2)
    _make_keys(harness, store)
    store.ack([claim_of(store, "done")])
    store.fail([claim_of(store, "dead")], "why")
    store.nack([claim_of(store, "back")], harness.seconds(900.0), "not now")
    held = [claim_of(store, name) for name in ("claimed", "spent", "head", "spent head")]
    claim_of(store, "prefetched", prefetch=True)
    store.set_rate("slow", harness.seconds(900.0))
    claim_of(store, "slow")
    store.pause("paused")
    lock_of(store, "locked")
    (last_id,) = put(store, entry("last"))
    store.cancel(last_id)
    return ["prefetched"], last_id, held[0]


def _claims_in_the_end(harness: MessageStoreHarness, store: MessageStore, other: MessageStore) -> None:
    """Check that a claim which ends with its object after the time of the message removes it, or kills it."""
    ids = put(store, *(harness.entry(name, topic="end", ttl=20.0, max_attempts=9) for name in "ab"))
    ids += put(store, harness.entry("c", topic="end", ttl=20.0, max_attempts=1))
    expired = totals(store)[2]
    claims = claims_of(store.claim(9, ["end"]))
    harness.advance(20.0)
    other.ack(claims[:1])
    store.close()
    states = [None if (found := other.find(id)) is None else found.state for id in ids]
    wanted = [State.DONE, None, State.DEAD]
    check(states == wanted, f"closed after the time of its messages left {states}, not {wanted}")
    check(totals(other)[2] == expired + 1, f"{totals(other)[2] - expired} messages are counted as expired")
    with stale([claim.id for claim in claims], "ack() of claims whose object was closed", other):
        other.ack(claims)


DURABILITY_LAWS: tuple[MessageStoreLaw, ...] = (durable_when_returned, reopening_changes_nothing)
"""By number."""
