"""The law T6: transactions of the stores. See :mod:`persistcoll.testing.laws.message_store`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from persistcoll.engine.contracts import MessageStore
from persistcoll.engine.message_records import MessageClaim
from persistcoll.engine.records import State
from persistcoll.errors import StaleClaimError
from persistcoll.testing.children import begin_in_threads, check
from persistcoll.testing.harness import only_its_task_is_in_it
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
from persistcoll.testing.laws.message_store_joined import JOINED_LAWS

__all__ = ["TRANSACTION_LAWS"]


@message_store_law("T6", "transactions")
def transactions_leave_no_trace(harness: MessageStoreHarness) -> None:
    """Every transaction of a message store happens wholly or not at all, and sees its own changes.

    After a rollback each claim is as it was before. Another task of the same thread is refused meanwhile.
    """
    _wholly_or_not_at_all(harness)
    for again in (False, True):
        _claimed_and_rolled_back(harness, again)
    _settled_and_rolled_back(harness)
    _lost_and_rolled_back(harness)
    _beside_messages(harness)
    _closed_and_rolled_back(harness)
    _alone(harness)
    _of_its_task(harness)


def _closed_and_rolled_back(harness: MessageStoreHarness) -> None:
    """Check that the claims of a store end when it is closed, even in a transaction that is rolled back."""
    if not harness.capabilities.handles:
        return
    store, other = (harness.open("closed within") for _ in range(2))
    put(store, harness.entry("a"), harness.entry("b", topic="locked"))
    store.claim(1, ["default"], lease=None)
    lock_of(store, "locked")
    _roll_back(other, store.close)
    found = payloads(other.claim(5))
    check(found == ["a", "b"], f"after close() in a transaction that was rolled back, {found} can be claimed")


def _roll_back(store: MessageStore, change: Callable[[], object], error: BaseException | None = None) -> None:
    """Run a transaction that changes something and raises."""
    error = ZeroDivisionError() if error is None else error
    try:
        with store.transaction():
            change()
            raise error
    except type(error) as raised:
        check(raised is error, f"a transaction that raised {error!r} ended with {raised!r}")


_HELD = ("acked", "failed", "nacked", "delayed", "released", "extended", "delivered")


def _wholly_or_not_at_all(harness: MessageStoreHarness) -> None:
    store = harness.open(policy=KEEPS)
    check(
        store.capabilities.transactions, "the factory has transactions, and the store says that it has none"
    )
    other = harness.another(store, policy=KEEPS)
    entry = harness.entry
    put(store, *(entry(name, topic=name, key=name.encode(), group="g") for name in _HELD))
    put(store, *(entry(f"next {name}", topic=name, group="g") for name in _HELD))
    put(store, *(entry(name, topic=name, key=name.encode()) for name in ("dead", "cancelled", "ready")))
    store.fail([claim_of(store, "dead")], "why")
    held = {name: claim_of(store, name, prefetch=name == "delivered") for name in _HELD}
    numbers = totals(store)
    for error in (ZeroDivisionError(), KeyboardInterrupt()):
        made: list[MessageClaim] = []
        hooks: list[str] = []
        before = contents(store)
        _roll_back(store, partial(_change_everything, harness, store, held, made, hooks), error)
        for each in (store, other):
            found = contents(each)
            check(found == before, f"a rollback left {found}, not {before}")
        check(hooks == ["undo 2", "undo 1"], f"after a rollback the hooks were {hooks}")
        check(totals(store) == numbers, f"after a rollback the totals are {totals(store)}, not {numbers}")
        check(store.open_transaction() is None, "a transaction is open after its end")
        for name, call in settling(harness, other, made).items():
            with stale([claim.id for claim in made], f"{name} of claims of a rolled-back transaction", store):
                call()
        check(other.release(made) == 0, "release() ended claims of a rolled-back transaction")
    # Every claim of before the transactions still settles its message.
    made, hooks = [], []
    with store.transaction():
        _change_everything(harness, store, held, made, hooks)
        within = contents(store)
    check(hooks == ["do 1", "do 2"], f"after a commit the hooks were {hooks}")
    for each in (store, other):
        found = contents(each)
        check(found == within, f"after a commit there is {found}, not {within}")
    puts = totals(store)[0] - numbers[0]
    check(puts == 3, f"a transaction that put three messages counted {puts}")
    other.ack(made)


def _change_everything(
    harness: MessageStoreHarness,
    store: MessageStore,
    held: dict[str, MessageClaim],
    made: list[MessageClaim],
    hooks: list[str],
) -> None:
    """Make each kind of change, and check that the transaction sees it."""
    for number in (1, 2):
        transaction = store.open_transaction()
        assert transaction is not None
        transaction.on_rollback(partial(hooks.append, f"undo {number}"))
        transaction.after_commit(partial(hooks.append, f"do {number}"))
    store.ack([held["acked"]])
    store.fail([held["failed"]], "failed")
    store.nack([held["nacked"]], error="nacked")
    store.nack([held["delayed"]], harness.seconds(900.0))
    store.release([held["released"]])
    with store.transaction():
        store.extend([held["extended"]], harness.seconds(100.0))
        store.deliver([held["delivered"]])
        got = store.claim(1, ["acked"]) + store.claim(1, ["nacked"], claims=made)
        check(payloads(got) == ["next acked", "nacked"], f"a transaction claimed {payloads(got)}")
    check(store.redrive(_dead(store)["dead"]), "a transaction redrove nothing")
    cancelled = next(record.id for record in store.scan(topic="cancelled"))
    check(store.cancel(cancelled), "a transaction cancelled nothing")
    check(store.purge("ready") == 1, "a transaction purged nothing")
    names = ("cancelled", "ready", "dead")
    ids = store.put([harness.entry(f"new {name}", topic="new", key=name.encode()) for name in names])
    check([id is None for id in ids] == [False, False, True], f"put() of two free keys gave {ids}")
    put(store, harness.entry("new follower", topic="failed", group="g"))
    store.release(claims_of([got[0]]))
    made += claims_of(store.claim(9, ["new", "dead"]))
    wanted = {"acked": State.DONE, "failed": State.DEAD, "nacked": State.CLAIMED, "delayed": State.DELAYED}
    wanted |= dict.fromkeys(("released", "dead"), State.READY) | {"dead": State.CLAIMED}
    wanted |= dict.fromkeys(("extended", "delivered", "new ready", "new cancelled"), State.CLAIMED)
    wanted |= dict.fromkeys(("next acked", "next failed"), State.READY)
    wanted |= dict.fromkeys([f"next {name}" for name in _HELD[2:]], State.BLOCKED)
    wanted |= {"new follower": State.BLOCKED}
    found = standing(store)
    check(found == wanted, f"a transaction sees {found}, not {wanted}")


def _dead(store: MessageStore) -> dict[str, int]:
    """Return the ids of the dead messages by their payloads."""
    return {record.payload.decode(): record.id for record in store.scan(State.DEAD)}


def _claimed_and_rolled_back(harness: MessageStoreHarness, again: bool) -> None:
    """Check that a claim which was rolled back settles nothing, even if the message is claimed again."""
    store = harness.open(f"claimed {again}", KEEPS)
    other = harness.another(store, f"claimed {again}", KEEPS)
    put(store, harness.entry("a", group="g"), harness.entry("b", group="g"))
    made: list[MessageClaim] = []
    for _ in range(2):
        _roll_back(store, lambda: store.claim(claims=made))
        _roll_back(store, lambda: store.ack(claims_of(store.claim(claims=made))))
    check(len(set(made)) == 4, f"two claims of one message are equal: {made}")
    found = [(record.state, record.attempts, record.deliveries) for record in contents(store)]
    wanted = [(State.READY, 0, 0), (State.BLOCKED, 0, 0)]
    check(found == wanted, f"after claims that were rolled back: {found}, not {wanted}")
    (present,) = claims_of(other.claim()) if again else [None]
    check(present not in made, f"a claim is equal to one that was rolled back: {present}")
    for claim in made:
        for each in (store, other):
            for name, call in settling(harness, each, [claim]).items():
                with stale([claim.id], f"{name} of a claim that was rolled back", store):
                    call()
            check(each.release([claim]) == 0, "release() counted a claim that was rolled back")
    if present is not None:
        store.ack([present])
    wanted_states = {
        "a": State.DONE if again else State.READY,
        "b": State.READY if again else State.BLOCKED,
    }
    found_states = standing(store)
    check(found_states == wanted_states, f"there is {found_states}, not {wanted_states}")


def _settled_and_rolled_back(harness: MessageStoreHarness) -> None:
    """Check that a message which a rolled-back transaction settled is claimed as before."""
    store = harness.open("settled", KEEPS)
    other = harness.another(store, "settled", KEEPS)
    put(store, *(harness.entry(name, key=name.encode()) for name in "abcde"))
    held = claims_of(store.claim(4, prefetch=True, lease=harness.seconds(60.0)))
    before = contents(store)

    def changes(name: str, call: Callable[[], object], mine: MessageStore) -> None:
        _roll_back(mine, call)
        for each in (store, other):
            found = contents(each)
            check(found == before, f"{name} that was rolled back made {found} of {before}")

    for mine in (store, other):
        for name, call in settling(harness, mine, held).items():
            changes(name, call, mine)
        changes("release()", partial(mine.release, held), mine)
        changes("claim() of the rest", partial(claim_all, mine), mine)
    check(
        store.put([harness.entry("x", key=b"a")]) == [None], "a rollback freed the key of a claimed message"
    )
    harness.advance(harness.time.before(60.0))
    other.ack(held[:1])
    harness.advance(60.0 - harness.time.before(60.0))
    found = {record.payload.decode(): (record.state, record.attempts) for record in contents(other)}
    left = 0 if store.capabilities.counts_delivered else 1
    wanted = {"a": (State.DONE, 1), "e": (State.READY, 0)} | dict.fromkeys("bcd", (State.READY, left))
    check(found == wanted, f"after the end of the leases: {found}, not {wanted}")
    with stale([claim.id for claim in held], "ack() after the end of the leases", store):
        store.ack(held)


def _lost_and_rolled_back(harness: MessageStoreHarness) -> None:
    """Check that a lost claim stays lost, whatever a rolled-back transaction saw or did."""
    store = harness.open("lost", KEEPS)
    put(store, harness.entry("a", lease=20.0), harness.entry("b", lease=20.0))
    held = claims_of(store.claim(2))

    def lose() -> None:
        harness.advance(20.0)
        with stale([claim.id for claim in held], "ack() of lost claims, in a transaction"):
            store.ack(held)
        store.ack(claims_of(store.claim(1, lease=harness.seconds(900.0))))

    _roll_back(store, lose)
    with stale([claim.id for claim in held], "ack() of claims that were lost", store):
        store.ack(held)
    found = [(record.state, record.deliveries) for record in contents(store)]
    check(found == [(State.READY, 1)] * 2, f"messages whose claims were lost are {found}")


def _beside_messages(harness: MessageStoreHarness) -> None:
    """Check that a rollback restores keys, rates, pauses and locks."""
    store = harness.open("beside")
    other = harness.another(store, "beside")
    names = ("limited", "open", "paused", "locked")
    put(store, *(harness.entry(name, topic=name) for name in names * 3))
    put(store, harness.entry("window", topic="window", key=b"window", key_window=900.0))
    store.ack([claim_of(store, "window")])
    store.set_rate("limited", harness.seconds(900.0))
    store.pause("paused")
    lock = lock_of(store, "locked", harness.seconds(900.0))
    made = []

    def change() -> None:
        claim_of(store, "limited")
        empty(store, ["limited"])
        store.set_rate("limited", None)
        claim_of(store, "limited")
        store.set_rate("open", harness.seconds(900.0))
        claim_of(store, "open")
        store.pause("open")
        store.resume("paused")
        claim_of(store, "paused")
        made.append(lock_of(store, "paused", harness.seconds(900.0)))
        store.extend_lock(lock, harness.seconds(2.0))
        check(store.release_key(b"window"), "release_key() found no active key")
        keys = store.put([harness.entry("x", topic="keys", key=key) for key in (b"window", b"new")])
        check(None not in keys, f"put() of two free keys gave {keys}")

    before = contents(store)
    _roll_back(store, change)
    _roll_back(store, lambda: check(store.unlock_topic(lock), "unlock_topic() did not end the lock"))
    check(contents(other) == before, f"a rollback made {contents(other)} of {before}")
    harness.advance(3.0)
    claim_of(other, "limited")
    for topic in ("limited", "paused") + (("locked",) if other is not store else ()):
        empty(other, [topic])
    for _ in range(2):
        claim_of(other, "open")
    check(not other.unlock_topic(made[0]), "unlock_topic() ended a lock that was rolled back")
    with refuses(StaleClaimError, "extend_lock() of a lock that was rolled back", store):
        other.extend_lock(made[0], 3600.0)
    present = lock_of(other, "paused")
    check(present not in made, f"a lock is equal to one that was rolled back: {present}")
    check(not store.unlock_topic(made[0]), "a lock that was rolled back ended the present one")
    keys = other.put([harness.entry("x", topic="keys", key=key) for key in (b"window", b"new")])
    check([id is None for id in keys] == [True, False], f"an active and a free key gave {keys}")
    other.extend_lock(lock, harness.seconds(900.0))
    check(other.unlock_topic(lock), "a rollback ended a lock")


def _alone(harness: MessageStoreHarness) -> None:
    """Check that no other thread writes within a transaction or sees what is not committed."""
    store = harness.open("alone")
    other = harness.another(store, "alone")
    put(store, harness.entry("there"))
    seen: list[list[str]] = []
    with store.transaction():
        put(store, harness.entry("within"))
        end = begin_in_threads(
            partial(other.put, [harness.entry("elsewhere")]),
            lambda: seen.append(payloads(list(other.scan()))),
            other.await_transaction,
        )
        found = payloads(contents(store))
        check(found == ["there", "within"], f"another thread wrote: {found}")
        store.cancel(contents(store)[0].id)
    end()
    found = payloads(contents(other))
    check(found == ["within", "elsewhere"], f"after the transaction there is {found}")
    check("there" not in seen[0] or len(seen[0]) == 1, f"another thread saw {seen[0]}")


def _of_its_task(harness: MessageStoreHarness) -> None:
    store = harness.open("task", KEEPS)
    put(store, *(harness.entry(name, topic=name) for name in "abc"))
    held = claim_of(store, "a")
    lock = lock_of(store, "b")
    calls: dict[str, Callable[[], object]] = {
        **settling(harness, store, [held]),
        "claim()": store.claim,
        "release()": partial(store.release, [held]),
        "cancel()": partial(store.cancel, held.id + 1),
        "purge()": store.purge,
        "redrive_all()": store.redrive_all,
        "release_key()": partial(store.release_key, b"k"),
        "set_rate()": partial(store.set_rate, "c", harness.seconds(900.0)),
        "pause()": partial(store.pause, "c"),
        "resume()": partial(store.resume, "c"),
        "lock_topic()": partial(store.lock_topic, "c", None),
        "unlock_topic()": partial(store.unlock_topic, lock),
        "extend_lock()": partial(store.extend_lock, lock, None),
        "reclaim()": store.reclaim,
        "count()": store.count,
        "stats()": store.stats,
        "topics()": store.topics,
        "find()": partial(store.find, held.id),
        "peek()": store.peek,
    }
    before = contents(store)
    only_its_task_is_in_it(store.transaction, partial(store.put, [harness.entry("new")]), calls)
    found = contents(store)
    check(found[:-1] == before, f"another task made {found} of {before}")
    check(found[-1].payload == b"new", f"of two tasks one put a message, and there is {found}")
    check(len(claim_all(store)) == 3, "another task changed what can be claimed")
    store.ack([held])


TRANSACTION_LAWS: tuple[MessageStoreLaw, ...] = (*JOINED_LAWS, transactions_leave_no_trace)
"""By number."""
