"""The law Q18 of message stores: how a consumer waits. See :mod:`persistcoll.testing.laws.message_store`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from persistcoll.engine.contracts import MessageStore
from persistcoll.engine.message_records import MessageClaim
from persistcoll.engine.records import State
from persistcoll.errors import BackendUnavailableError, StaleClaimError
from persistcoll.testing.children import check
from persistcoll.testing.laws.message_store_harness import (
    PLAIN,
    MessageStoreHarness,
    MessageStoreLaw,
    claim_all,
    claims_of,
    empty,
    lock_of,
    message_store_law,
    put,
    refuses,
    together,
)

__all__ = ["WAIT_LAWS"]


@message_store_law("Q18")
def when_to_look_again(harness: MessageStoreHarness) -> None:
    """Every claim that finds nothing says when to look again, and that is never too late.

    The change token differs after a change of another process, and after what time has changed.
    """
    store = harness.open("nothing")
    _never(store, "of an empty store")
    put(store, harness.entry("a"), harness.entry("b"))
    dead, done = claims_of(store.claim(2))
    store.fail([dead])
    store.ack([done])
    _never(store, "of a store with a dead message")
    together(harness, *(_next_at(harness, name, prepare) for name, prepare in _WAITS.items()))
    _changes(harness)
    together(harness, *(_time_changes(harness, limit) for limit in (None, 1)))


def _never(store: MessageStore, what: str) -> None:
    error = empty(store)
    check(not hasattr(error, "next_at"), f"claim() {what} says that there is something at {error!r}")


def _claim_for(harness: MessageStoreHarness, store: MessageStore, seconds: float) -> list[MessageClaim]:
    return claims_of(store.claim(lease=harness.seconds(seconds)))


def _delayed(harness: MessageStoreHarness, store: MessageStore) -> None:
    delays = (40.0, 10.0, 20.0)
    put(store, *(harness.entry(topic="t", delay=delay) for delay in delays))


def _delayed_elsewhere(harness: MessageStoreHarness, store: MessageStore) -> None:
    put(store, harness.entry(topic="paused", delay=1.0), harness.entry(topic="t", delay=10.0))
    store.pause("paused")


def _leased(harness: MessageStoreHarness, store: MessageStore) -> None:
    put(store, harness.entry(topic="t"), harness.entry(topic="t"))
    _claim_for(harness, store, 40.0)
    _claim_for(harness, store, 10.0)


def _nacked(harness: MessageStoreHarness, store: MessageStore) -> None:
    put(store, harness.entry(topic="t", backoff=harness.backoff(10.0)))
    store.nack(_claim_for(harness, store, 40.0))


def _shortened(harness: MessageStoreHarness, store: MessageStore) -> None:
    put(store, harness.entry(topic="t"))
    store.extend(_claim_for(harness, store, 1000.0), harness.seconds(10.0))


def _rate(harness: MessageStoreHarness, store: MessageStore, burst: int = 1) -> None:
    # The next delivery is an interval after the present time, or after the last delivery.
    put(store, *(harness.entry(topic="t") for _ in range(5)))
    store.set_rate("t", harness.seconds(10.0), burst)
    claim_all(store)


def _changed_rate(harness: MessageStoreHarness, store: MessageStore) -> None:
    put(store, *(harness.entry(topic="t") for _ in range(5)))
    store.set_rate("t", harness.seconds(1000.0), 2)
    claim_all(store)
    store.set_rate("t", harness.seconds(10.0), 1)
    claim_all(store)


def _locked_by_another(harness: MessageStoreHarness, store: MessageStore) -> None:
    put(store, harness.entry(topic="t"), harness.entry(topic="far", delay=1000.0))
    lock_of(store, "t", harness.seconds(10.0))


def _shortened_lock(harness: MessageStoreHarness, store: MessageStore) -> None:
    put(store, harness.entry(topic="t"))
    store.extend_lock(lock_of(store, "t"), harness.seconds(10.0))


def _head_delayed(harness: MessageStoreHarness, store: MessageStore) -> None:
    put(store, harness.entry(topic="t", group="g", delay=10.0), harness.entry(topic="t", group="g"))


def _head_dies(harness: MessageStoreHarness, store: MessageStore) -> None:
    put(store, harness.entry(topic="t", group="g", max_attempts=1), harness.entry(topic="t", group="g"))
    _claim_for(harness, store, 10.0)


def _head_expires(harness: MessageStoreHarness, store: MessageStore) -> None:
    put(store, harness.entry(topic="t", group="g", ttl=10.0), harness.entry(topic="t", group="g"))
    store.nack(_claim_for(harness, store, 1000.0), harness.seconds(1000.0))


def _follower_delayed(harness: MessageStoreHarness, store: MessageStore) -> None:
    put(store, harness.entry(topic="t", group="g", ttl=5.0), harness.entry(topic="t", group="g", delay=10.0))
    store.nack(_claim_for(harness, store, 1000.0), harness.seconds(1000.0))


_Prepare = Callable[[MessageStoreHarness, MessageStore], None]
_WAITS: dict[str, _Prepare] = {
    "a delay": _delayed,
    "a delay, while another topic is paused": _delayed_elsewhere,
    "a lease": _leased,
    "a back-off": _nacked,
    "a lease that was shortened": _shortened,
    "a rate": _rate,
    "a rate with a burst": partial(_rate, burst=3),
    "a rate that was changed": _changed_rate,
    "another object's lock": _locked_by_another,
    "another object's lock that was shortened": _shortened_lock,
    "a delayed head": _head_delayed,
    "a head that dies": _head_dies,
    "a head that expires": _head_expires,
    "the delay of the message after a head": _follower_delayed,
}


def _next_at(harness: MessageStoreHarness, name: str, prepare: _Prepare) -> Iterator[float]:
    """Check that a store says no later time than that at which there is a message."""
    store = harness.open(name)
    other = harness.another(store, name)
    if "lock" in name and other is store:
        return
    prepare(harness, store)
    for topics in (None, ["t"], ["u", "t"]):
        error = empty(other, topics)
        latest = time.monotonic() + harness.seconds(10.0)
        at = getattr(error, "next_at", None)
        if at is None:
            raise AssertionError(f"claim() of {topics} does not say that {name} will end")
        check(at <= latest + 1e-4, f"claim() of {topics} says that {name} ends {at - latest} s too late")
    yield 10.0
    check(len(other.claim(1, ["t"])) == 1, f"after {name} there is no message")


def _token(store: MessageStore) -> object:
    """Return ``change_token()``, once the store can be reached."""
    while True:
        with contextlib.suppress(BackendUnavailableError):
            return store.change_token()


def _changes(harness: MessageStoreHarness) -> None:
    """Check that each change of one object changes the token of another one."""
    store = harness.open("changes", PLAIN._replace(keep_done=9))
    other = harness.another(store, "changes", PLAIN._replace(keep_done=9))
    seen = _token(other)

    def changed(what: str) -> None:
        nonlocal seen
        now = _token(other)
        check(now != seen, f"after {what} change_token() is still {now!r}")
        seen = now

    put(store, *(harness.entry(name, key=name.encode()) for name in "abcdefgh"))
    changed("put()")
    held = claims_of(store.claim(6, prefetch=True))
    changed("claim()")
    lock = lock_of(store, "default", harness.seconds(1000.0))
    changed("lock_topic()")
    ids = [record.id for record in store.scan(State.READY)]
    calls: dict[str, Callable[[], object]] = {
        "deliver()": partial(store.deliver, held),
        "ack()": partial(store.ack, held[:1]),
        "nack()": partial(store.nack, held[1:2]),
        "nack() with a delay": partial(store.nack, held[2:3], harness.seconds(1000.0)),
        "release()": partial(store.release, held[3:4]),
        "fail()": partial(store.fail, held[4:5]),
        "extend()": partial(store.extend, held[5:], harness.seconds(500.0)),
        "redrive()": partial(store.redrive, held[4].id),
        "cancel()": partial(store.cancel, ids[0]),
        "release_key()": partial(store.release_key, b"h"),
        "set_rate()": partial(store.set_rate, "default", harness.seconds(1000.0)),
        "set_rate() with another interval": partial(store.set_rate, "default", harness.seconds(1.0)),
        "set_rate() without an interval": partial(store.set_rate, "default", None),
        "pause()": partial(store.pause, "default"),
        "resume()": partial(store.resume, "default"),
        "extend_lock()": partial(store.extend_lock, lock, harness.seconds(500.0)),
        "unlock_topic()": partial(store.unlock_topic, lock),
        "purge()": store.purge,
    }
    for what, call in calls.items():
        call()
        changed(what)
    with refuses(StaleClaimError, "ack() of what is done", store):
        store.ack(held[:1])
    if other is not store:
        store.close()
        changed("close(), which ends a claim,")


def _time_changes(harness: MessageStoreHarness, limit: int | None) -> Iterator[float]:
    """Check that the end of a delay, of a lease and of a ttl change the token, if nothing else is called."""
    stores: dict[str, MessageStore] = {}
    for what in ("delay", "lease", "ttl"):
        stores[what] = store = harness.open(f"time {what} {limit}")
        fields: dict[str, Any] = {what: 10.0}
        put(store, harness.entry(max_attempts=limit, **fields))
        if what == "lease":
            store.claim()
    seen = {what: _token(store) for what, store in stores.items()}
    yield 10.0
    for what, store in stores.items():
        # A consumer that waits for a message or for the end of all calls nothing else.
        check(_token(store) != seen[what], f"the {what} is over, and change_token() is still {seen[what]!r}")


WAIT_LAWS: tuple[MessageStoreLaw, ...] = (when_to_look_again,)
"""By number."""
