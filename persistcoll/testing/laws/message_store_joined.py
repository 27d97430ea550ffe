"""The law T5: callers' transactions. See :mod:`persistcoll.testing.laws.message_store`."""

from __future__ import annotations

import contextlib

from persistcoll.engine.contracts import MessageStore
from persistcoll.engine.message_records import MessageClaim
from persistcoll.engine.records import State
from persistcoll.errors import BackendUnavailableError, Empty
from persistcoll.testing.children import check
from persistcoll.testing.laws.message_store_harness import (
    KEEPS,
    MessageStoreHarness,
    MessageStoreLaw,
    claim_all,
    claim_of,
    claims_of,
    contents,
    empty,
    lock_of,
    message_store_law,
    payloads,
    put,
    refuses,
    settling,
    stale,
    standing,
    totals,
)

__all__ = ["JOINED_LAWS"]


@message_store_law("T5", "joins")
def part_of_the_callers_transaction(harness: MessageStoreHarness) -> None:
    """All changes of a joined store are part of the caller's transaction.

    After its commit all see them, before it nothing else does, and after a rollback they did not happen.
    """
    for commits in (False, True):
        _messages(harness, commits)
        _beside_messages(harness, commits)


_HELD = ("acked", "failed", "nacked", "delayed", "released", "extended", "delivered")


def _messages(harness: MessageStoreHarness, commits: bool) -> None:
    name = f"messages {commits}"
    store = harness.open(name, KEEPS)
    other = harness.another(store, name, KEEPS)
    connection = harness.connect(store, name)
    entry = harness.entry
    put(store, *(entry(each, key=each.encode()) for each in (*_HELD, "dead", "cancelled")))
    put(store, entry("next", group="g"), entry("next but one", group="g"))
    put(store, *(entry(each, topic="ready") for each in ("first", "second", "third")))
    *claims, dead = claims_of(store.claim(8, prefetch=True))
    held = dict(zip(_HELD, claims, strict=True))
    store.fail([dead], "why")
    before, numbers, seen = contents(store), totals(store), _token(other)
    connection.begin()
    joined = store.joined(connection)
    made = _change(harness, joined, held, dead.id)
    beside = _check_joined(joined, other.joined(connection))
    for each in (store, other):
        found = contents(each)
        check(found == before, f"before the commit there is {found}, not {before}")
    (got,) = other.claim(1, ["ready"])
    check(got.payload == b"second", f"{got} is claimed beside a transaction that has claimed the first one")
    put(other, entry("beside", topic="beside"))
    other.ack(claims_of([got]))
    if commits:
        connection.commit()
        check(_token(other) != seen, "change_token() is still the same")
        wanted = beside | {"second": State.DONE, "beside": State.READY}
        _committed(harness, store, other, held, made)
    else:
        connection.rollback()
        wanted = {record.payload.decode(): record.state for record in before}
        wanted |= {"second": State.DONE, "beside": State.READY}
        _rolled_back(harness, store, other, made)
    for each in (store, other):
        found_states = standing(each)
        check(found_states == wanted, f"after the end there is {found_states}, not {wanted}")
    puts = totals(store)[0] - numbers[0] - 1
    check(puts == 2 * commits, f"a transaction that put two messages counted {puts}")
    if commits:
        store.close()
        left = other.find(made[0].id)
        check(left is not None and left.state is State.READY, f"closed after a joined claim(): {left}")
    else:
        # Each message is claimed as before, and its claim settles it.
        other.ack(list(held.values()))
        check(claims_of(store.claim(1, ["ready"])) != made[:1], "a claim is equal to a rolled-back one")
        for verb, call in settling(harness, other, made[:1]).items():
            with stale([made[0].id], f"{verb} of a rolled-back claim of a claimed message", store):
                call()


def _change(
    harness: MessageStoreHarness, joined: MessageStore, held: dict[str, MessageClaim], dead: int
) -> list[MessageClaim]:
    """Make each kind of change to messages, and return the claims that were made."""
    made: list[MessageClaim] = []
    got = joined.claim(1, ["ready"], claims=made)
    check(
        payloads(got) == ["first"] and claims_of(got) == made, f"a joined claim() gave {got}, claims {made}"
    )
    joined.ack([held["acked"]])
    joined.fail([held["failed"]], "failed")
    joined.nack([held["nacked"]], error="nacked")
    joined.nack([held["delayed"]], harness.seconds(900.0))
    check(joined.release([held["released"]]) == 1, "a joined release() did not count its claim")
    joined.extend([held["extended"]], harness.seconds(900.0))
    joined.deliver([held["delivered"]])
    with stale([held["acked"].id], "a joined ack() with a claim that it has ended", joined):
        joined.ack([made[0], held["acked"]])
    with refuses(Empty, "a joined claim() of a topic without ready messages", joined):
        joined.claim(1, ["unknown"])
    check(joined.redrive(dead), "a joined redrive() found no dead message")
    (cancelled,) = [record.id for record in joined.scan() if record.payload == b"cancelled"]
    check(joined.cancel(cancelled), "a joined cancel() found nothing")
    ids = joined.put([harness.entry(each, key=each.encode()) for each in ("acked", "cancelled", "nacked")])
    check([id is None for id in ids] == [False, False, True], f"joined, two free keys and another gave {ids}")
    return made


def _check_joined(*stores: MessageStore) -> dict[str, State]:
    """Check what the transaction sees through each joined store."""
    wanted = dict.fromkeys(("extended", "delivered", "first"), State.CLAIMED)
    wanted |= dict.fromkeys(
        ("nacked", "released", "dead", "second", "third", "next", "cancelled"), State.READY
    )
    wanted |= {"failed": State.DEAD, "delayed": State.DELAYED, "next but one": State.BLOCKED}
    for each in stores:
        found = [(record.payload.decode(), record.state) for record in contents(each)]
        check(found.count(("acked", State.DONE)) == 1, f"a transaction does not see its ack(): {found}")
        check(found.count(("acked", State.READY)) == 1, f"a transaction does not see its put(): {found}")
        states = {name: state for name, state in found if name != "acked"}
        check(states == wanted, f"a transaction sees {states}, not {wanted}")
    return wanted | {"acked": State.READY}


def _committed(
    harness: MessageStoreHarness,
    store: MessageStore,
    other: MessageStore,
    held: dict[str, MessageClaim],
    made: list[MessageClaim],
) -> None:
    settled = [held[name] for name in ("acked", "failed", "nacked", "delayed", "released")]
    for each in (store, other):
        with stale([claim.id for claim in settled], "ack() of what a joined store settled", store):
            each.ack([*settled, *made])
        check(each.release([held["released"]]) == 0, "release() counted what a joined release() has ended")
    for claims in (made, [held["extended"]]):
        other.extend(claims, harness.seconds(800.0))


def _rolled_back(
    harness: MessageStoreHarness, store: MessageStore, other: MessageStore, made: list[MessageClaim]
) -> None:
    for name, call in settling(harness, other, made).items():
        with stale([claim.id for claim in made], f"{name} of a claim that was rolled back", store):
            call()
    for each in (store, other):
        check(each.release(made) == 0, "release() counted a claim that was rolled back")


def _beside_messages(harness: MessageStoreHarness, commits: bool) -> None:
    """Check the caller's part in keys, groups, rates, pauses and locks."""
    name = f"beside {commits}"
    store = harness.open(name)
    other = harness.another(store, name)
    connection = harness.connect(store, name)
    topics = ("limited", "slow", "opened", "paused", "locked", "free")
    put(store, *(harness.entry(topic, topic=topic) for topic in topics * 2))
    put(store, harness.entry("window", topic="window", key=b"window", key_window=900.0))
    store.ack([claim_of(store, "window")])
    store.set_rate("slow", harness.seconds(900.0))
    store.pause("opened")
    ended = lock_of(store, "free", harness.seconds(900.0))
    before = contents(store)
    connection.begin()
    joined = store.joined(connection)
    joined.set_rate("limited", harness.seconds(900.0))
    claim_of(joined, "limited")
    claim_of(joined, "slow")
    empty(joined, ["slow"])
    joined.pause("paused")
    joined.resume("opened")
    lock = lock_of(joined, "locked", harness.seconds(900.0))
    check(joined.unlock_topic(ended), "a joined unlock_topic() did not end the lock")
    check(joined.release_key(b"window"), "a joined release_key() found no active key")
    put(joined, harness.entry("a", topic="group", group="g"), harness.entry("b", topic="group", group="g"))
    for each in (store, other):
        check(contents(each) == before, f"before the commit there is {contents(each)}, not {before}")
    empty(other, ["opened"])
    (connection.commit if commits else connection.rollback)()
    with contextlib.suppress(Empty):
        other.claim(1, ["limited"])
    got = {topic: len(claim_all(other, [topic])) for topic in topics}
    wanted = {"limited": 0 if commits else 1, "slow": 0 if commits else 1, "opened": 2 * commits}
    wanted |= {"paused": 2 * (not commits), "locked": 2 * (not commits), "free": 2 * commits}
    check(got == wanted, f"after the end messages come: {got}, not {wanted}")
    check(other.unlock_topic(lock) == commits, f"unlock_topic() of a joined lock is not {commits}")
    check(other.unlock_topic(ended) != commits, f"unlock_topic() of what was unlocked is {commits}")
    (id,) = other.put([harness.entry("x", key=b"window")])
    check((id is not None) == commits, f"the key that was released gave {id}")
    put(other, harness.entry("c", topic="group", group="g"))
    states = {each: state for each, state in standing(store).items() if each in "abc"}
    wanted_states = (
        {"a": State.READY, "b": State.BLOCKED, "c": State.BLOCKED} if commits else {"c": State.READY}
    )
    check(states == wanted_states, f"of a group there is {states}, not {wanted_states}")


def _token(store: MessageStore) -> object:
    """Return ``change_token()``, once the store can be reached."""
    while True:
        with contextlib.suppress(BackendUnavailableError):
            return store.change_token()


JOINED_LAWS: tuple[MessageStoreLaw, ...] = (part_of_the_callers_transaction,)
"""By number."""
