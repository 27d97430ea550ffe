"""The law S1: calls that raise. See :mod:`persistcoll.testing.laws.message_store`."""

from __future__ import annotations

from persistcoll.engine.message_records import MessageClaim
from persistcoll.engine.records import State
from persistcoll.errors import DuplicateError, Empty, EncodeError, StaleClaimError
from persistcoll.testing.children import check
from persistcoll.testing.laws.message_store_harness import (
    KEEPS,
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
    settling,
    stale,
    standing,
    totals,
)

__all__ = ["REFUSAL_LAWS"]

_MOST_PAYLOAD = 1 << 26
"""Bytes of a payload that a law tries."""


@message_store_law("S1")
def whole_or_not_at_all(harness: MessageStoreHarness) -> None:
    """When an operation raised, it happened not at all."""
    _refused_puts(harness)
    _refused_settlements(harness)
    _refused_deliveries(harness)
    _refused_claims(harness)
    _refused_redrives(harness)
    _refused_locks(harness)
    _refused_transactions(harness)


def _refused_settlements(harness: MessageStoreHarness) -> None:
    store = harness.open(policy=KEEPS)
    other = harness.another(store, policy=KEEPS)
    put(store, harness.entry("a"), harness.entry("b", group="g"), harness.entry("c"), harness.entry("d"))
    put(store, harness.entry("e"), harness.entry("f", group="g"))
    held = claims_of(store.claim(4))
    acked = held.pop()
    store.ack([acked])
    never = MessageClaim(held[-1].id + 1000, held[0].token)
    before = totals(store)
    for wrong, valid in ((acked, held), (never, held[:1])):
        for claims in ([*valid, wrong], [wrong, *valid]):
            for name, call in settling(harness, other, claims).items():
                with stale([wrong.id], f"{name} of {len(claims)} claims, of which one has ended,", store):
                    call()
    check(totals(store) == before, f"verbs that raised made {totals(store)} of {before}")
    ids = [claim.id for claim in held]
    store.ack(held)
    found = {record.id for record in store.scan(State.DONE)}
    check(found == {*ids, acked.id}, f"after verbs that raised {ids} and {acked.id} were acked, and {found}")


def _refused_deliveries(harness: MessageStoreHarness) -> None:
    store = harness.open("deliveries")
    if not store.capabilities.counts_delivered:
        return
    put(store, harness.entry("a", lease=20.0), harness.entry("b", lease=20.0), harness.entry("c"))
    *held, released = claims_of(store.claim(3, prefetch=True))
    store.release([released])
    for claims in ([*held, released], [released, *held]):
        with stale([released.id], "deliver() with a claim that has ended", store):
            store.deliver(claims)
    harness.advance(20.0)
    attempts = [record.attempts for record in contents(store)]
    check(attempts == [0, 0, 0], f"deliver() that raised has delivered messages: attempts are {attempts}")


def _refused_claims(harness: MessageStoreHarness) -> None:
    store = harness.open("claims")
    put(store, harness.entry("a", topic="paused"), harness.entry("b", topic="slow"))
    put(store, harness.entry("c", topic="slow"))
    store.pause("paused")
    store.set_rate("slow", harness.seconds(20.0), 2)
    mark = MessageClaim(-1, -1)
    claims = [mark]
    with refuses(Empty, "claim() from a paused topic", store):
        store.claim(2, ["paused", "unknown"], claims=claims)
    if not notices_death(store):
        for topics in (["slow"], None):
            with refuses(ValueError, "claim() whose claims could never end", store):
                store.claim(9, topics, lease=None, claims=claims)
    check(claims == [mark], f"claim() that claimed nothing said that it did: {claims}")
    got = store.claim(9, ["slow"], lease=harness.seconds(600.0), claims=claims)
    check(payloads(got) == ["b", "c"], f"claim() that raised used the rate: {got}")
    check(claims == [mark, *claims_of(got)], f"the claims of {got} are {claims}")
    put(store, harness.entry("e", topic="slow"))
    harness.advance(harness.time.before(20.0))
    for _ in range(3):
        with refuses(Empty, "claim() beyond the rate", store):
            store.claim(1, ["slow"], claims=claims)
    harness.advance(20.0 - harness.time.before(20.0))
    check(payloads(store.claim(1, ["slow"])) == ["e"], "claim() that found nothing used the rate")


def _refused_puts(harness: MessageStoreHarness) -> None:
    store = harness.open("puts")
    limit = store.capabilities.max_payload
    if limit is None or limit > _MOST_PAYLOAD:
        return
    before = totals(store)
    large = harness.entry("x")._replace(payload=b"x" * (limit + 1))
    with refuses(EncodeError, "put() of what is too large", store):
        store.put([large])
    with refuses(EncodeError, "put() with one entry that is too large", store):
        store.put([harness.entry("a", key=b"k", key_window=500.0, group="g"), large, harness.entry("b")])
    check(totals(store) == before, f"put() that raised counted {totals(store)}, before {before}")
    put(store, harness.entry("a", key=b"k", group="g"))
    check(standing(store) == {"a": State.READY}, f"after a put() that raised: {contents(store)}")


def _refused_redrives(harness: MessageStoreHarness) -> None:
    store = harness.open("redrives", KEEPS)
    other = harness.another(store, "redrives", KEEPS)
    (dead,) = put(store, harness.entry("dead", key=b"k", group="g"))
    store.fail(claims_of(store.claim()))
    (live,) = put(store, harness.entry("live", key=b"k"))
    put(store, harness.entry("next", group="g", priority=-1))

    def refused(state: State) -> None:
        found = standing(other)
        check(found == {"dead": State.DEAD, "live": state, "next": State.READY}, f"the law has made {found}")
        with refuses(DuplicateError, f"redrive() of a key that another {state.value} message has", store):
            other.redrive(dead)
        check(other.redrive_all() == 0, "redrive_all() counted a message whose key another one has")
        check(other.put([harness.entry("b", key=b"k")]) == [None], "redrive() that raised freed the key")

    refused(State.READY)
    held = claims_of(store.claim())
    check([claim.id for claim in held] == [live], f"after a redrive() that raised {held} was claimed")
    refused(State.CLAIMED)
    store.nack(held, harness.seconds(900.0))
    refused(State.DELAYED)
    store.cancel(live)
    check(store.redrive(dead), "redrive() that raised lost the dead message")
    check(standing(other) == {"dead": State.BLOCKED, "next": State.READY}, f"redriven: {contents(other)}")


def _refused_locks(harness: MessageStoreHarness) -> None:
    store = harness.open("locks")
    other = harness.another(store, "locks")
    put(store, harness.entry("a", topic="t"))
    ended = lock_of(store, "t")
    check(store.lock_topic("t", harness.seconds(1.0)) is None, "a topic was locked twice by one object")
    check(other.lock_topic("t", harness.seconds(1.0)) is None, "a topic was locked twice")
    check(store.unlock_topic(ended), "unlock_topic() did not end the lock")
    present = lock_of(other, "t", harness.seconds(20.0))
    for seconds in (None, harness.seconds(1.0), harness.seconds(500.0)):
        with refuses(StaleClaimError, "extend_lock() of a lock that has ended", store):
            store.extend_lock(ended, seconds)
    check(not store.unlock_topic(ended), "unlock_topic() ended a lock that had ended")
    harness.advance(harness.time.before(20.0))
    if other is not store:
        empty(store, ["t"])
    harness.advance(20.0 - harness.time.before(20.0))
    check(not other.unlock_topic(present), "extend_lock() of an ended lock extended the present one")


def _refused_transactions(harness: MessageStoreHarness) -> None:
    store = harness.open("transactions")
    put(store, harness.entry("a"))
    if not store.capabilities.transactions:
        with refuses(ValueError, "transaction() of a store without transactions", store):
            store.transaction().__enter__()
    if not store.capabilities.joins_transactions:
        with refuses(ValueError, "joined() of a store that joins nothing", store):
            store.joined(object())
    check(store.open_transaction() is None, "open_transaction() found one, and none was begun")
    store.await_transaction()


REFUSAL_LAWS: tuple[MessageStoreLaw, ...] = (whole_or_not_at_all,)
"""By number."""
