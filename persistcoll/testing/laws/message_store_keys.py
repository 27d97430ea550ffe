"""The law Q4: keys and their windows. See :mod:`persistcoll.testing.laws.message_store`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from persistcoll.engine.message_records import MessagePolicy
from persistcoll.engine.records import State
from persistcoll.testing.children import check
from persistcoll.testing.laws.message_store_groups import ENDS, ONCE
from persistcoll.testing.laws.message_store_harness import (
    PLAIN,
    MessageStoreHarness,
    MessageStoreLaw,
    claims_of,
    contents,
    message_store_law,
    put,
    standing,
)

__all__ = ["KEY_LAWS"]

_LEASED = MessagePolicy(lease=10.0, max_attempts=None, backoff=None, keep_done=5)
_KEYS = (b"", b"a", b"A", b"a ", b"a\0", b"\0", b"\xff", b"%", b"x" * 255, b"x" * 254 + b"y")


class _Key:
    """A key, and whether it is active, through every handle of a store."""

    def __init__(self, harness: MessageStoreHarness, name: str, policy: MessagePolicy = _LEASED) -> None:
        self.store = harness.open(name, policy)
        self.other = harness.another(self.store, name, policy)
        self._entry = harness.entry

    def put(self, payload: str = "own", **fields: Any) -> int:
        """Put a message of the key, and return its id."""
        [id] = put(self.store, self._entry(payload, key=b"k", **fields))
        return id

    def check_active(self, how: str) -> None:
        """Check that the key is refused, and that the entries put with it are not."""
        for store in (self.other, self.store):
            before = contents(store)
            # Neither a window nor a group of what is refused has an effect.
            refused = self._entry("refused", key=b"k", topic="t", group="h", key_window=1e6)
            with_it = [self._entry(each, key=b"x", topic=each, group="h") for each in "tu"]
            first, second, third = store.put([refused, *with_it])
            check(first is None, f"{how}: the key is not refused")
            check(second is not None and third is None, f"of two entries with one key: {second}, {third}")
            found = store.find(second or 0)
            check(found is not None and found.state is State.READY, f"beside what is refused: {found}")
            check(store.cancel(second or 0), f"what was put cannot be cancelled: {found}")
            stored = contents(store)
            check(stored == before, f"a refused entry changed {before} to {stored}")

    def check_refused(self, how: str) -> None:
        """Check in one call that the key is refused."""
        ids = self.other.put([self._entry("refused", key=b"k", key_window=1e6)])
        check(ids == [None], f"{how}: the key is not refused")

    def check_free(self, how: str) -> None:
        """Check that the key is accepted."""
        for store in (self.other, self.store):
            [id] = store.put([self._entry("new", key=b"k", key_window=1e6)])
            check(id is not None, f"{how}: the key is refused")
            check(store.cancel(id or 0), "what was put cannot be cancelled")


@message_store_law("Q4")
def refused_while_the_key_is_active(harness: MessageStoreHarness) -> None:
    """Every message is refused while its key is active, and stored otherwise.

    The key is active as long as a message of this key is unfinished, and for the window after its put.
    """
    _keys_apart(harness)
    _free_at_once(harness)
    _unfinished(harness)
    _finished(harness)
    _windows(harness)
    _longer_than_the_window(harness)
    _released_keys(harness)
    _removed_keys(harness)


def _keys_apart(harness: MessageStoreHarness) -> None:
    store = harness.open("apart")
    other = harness.another(store, "apart")
    plain = harness.entry("no key")
    ids = store.put([*(harness.entry("a", key=key) for key in _KEYS), plain, plain])
    check(None not in ids, f"of different keys some are refused: {ids}, of {_KEYS}")
    found = [record.key for record in contents(other)]
    check(found == [*_KEYS, None, None], f"the keys {_KEYS} are stored as {found}")
    # The keys are one space for all topics and groups, and an empty key is one.
    again = other.put([harness.entry("b", key=key, topic="t", group="g") for key in _KEYS])
    check(again == [None] * len(_KEYS), f"active keys are not refused: {again}")
    check("t" not in store.topics(), "a refused entry made a topic")
    check(None not in other.put([plain]), "what has no key is refused")
    # The first of equal ones is stored, wherever it stands among others.
    order = [harness.entry(str(place), key=key) for place, key in enumerate((b"1", b"2", b"1", None, b"2"))]
    stored = [id is not None for id in store.put([*order, *order[:1]])]
    check(stored == [True, True, False, True, False, False], f"of equal entries are stored: {stored}")
    check(other.put([harness.entry("first", key=b"new")]) != [None], "a new key is refused")
    records = {record.payload for record in contents(other)}
    check(records == {b"a", b"no key", b"0", b"1", b"3", b"first"}, f"of equal entries is stored {records}")


def _unfinished(harness: MessageStoreHarness) -> None:
    """Check that the key is active in each state of an unfinished message."""
    key = _Key(harness, "unfinished")
    store, other = key.store, key.other
    put(store, harness.entry("head", group="g"))
    id = key.put(group="g", delay=20.0)
    key.check_active("blocked")
    store.ack(claims_of(store.claim()))
    key.check_active("delayed")
    harness.advance(20.0)
    key.check_active("ready")
    [record] = store.claim(prefetch=True)
    key.check_active("prefetched")
    store.release(claims_of([record]))
    key.check_active("released")
    store.nack(claims_of(other.claim()), harness.seconds(10.0))
    key.check_active("nacked with a delay")
    harness.advance(10.0)
    key.check_active("ready after a delay")
    store.claim()
    key.check_active("claimed")
    harness.advance(10.0)
    key.check_active("back from a lease that is over")
    other.fail(claims_of(store.claim()))
    key.check_free("dead")
    put(store, harness.entry("next", group="g"))
    check(store.redrive(id), "a dead message whose key is free cannot be redriven")
    key.check_active("redriven and blocked")
    other.ack(claims_of(store.claim()))
    key.check_active("redriven")
    claims = claims_of(other.claim())
    check(claims[0].id == id, f"claimed is {claims}, not message {id}")
    store.ack(claims)
    key.check_free("done")


def _finished(harness: MessageStoreHarness) -> None:
    """Check that the key is free without a window, in whatever way its message is finished."""
    late: list[tuple[_Key, str]] = []
    for how, (ttl, end) in ENDS.items():
        key = _Key(harness, f"free after {how}", ONCE)
        end(key.store, key.put(ttl=ttl))
        if "the end of" in how:
            late.append((key, how))
        else:
            key.check_free(how)
    for keep_done in (0, 5):
        key = _Key(harness, f"keeps {keep_done}", _LEASED._replace(keep_done=keep_done))
        key.put()
        key.store.ack(claims_of(key.other.claim()))
        key.check_free(f"done, and {keep_done} are kept")
        key.put()
        check(key.store.purge() == 1, "purge() of a message with a key")
        key.check_free("purged")
    for key, how in late:
        key.check_refused(f"before {how}")
    harness.advance(10.0)
    for key, how in late:
        key.check_free(how)


def _windows(harness: MessageStoreHarness) -> None:
    """Check that a window passes from the put, and only cancel() and release_key() end it early."""
    ends = {**ENDS, "purge()": (None, lambda store, id: store.purge())}
    keys: dict[str, _Key] = {}
    for how, (ttl, end) in ends.items():
        keys[how] = key = _Key(harness, f"window after {how}", ONCE)
        id = key.put(ttl=ttl, key_window=30.0)
        end(key.store, id)
        if how == "cancel()":
            key.check_free("cancelled within its window")
            del keys[how]
        elif "the end of" not in how:
            check(State.READY not in standing(key.store).values(), f"{how} did not finish a message")
    redriven = keys["fail()"]
    check(redriven.other.redrive(_first_id(redriven)), "its own window hinders a redrive")
    harness.advance(10.0)
    for how, key in keys.items():
        key.check_refused(f"{how}, within the window")
    redriven.store.ack(claims_of(redriven.other.claim()))
    redriven.check_refused("redriven and done, within the window")
    harness.advance(harness.time.before(20.0))
    for how, key in keys.items():
        key.check_refused(f"{how}, shortly before the end of the window")
    harness.advance(20.0 - harness.time.before(20.0))
    for how, key in keys.items():
        key.check_free(f"{how}, at the end of the window")


def _first_id(key: _Key) -> int:
    return contents(key.store)[0].id


def _longer_than_the_window(harness: MessageStoreHarness) -> None:
    """Check a message that is unfinished at the end of its window, and a key with a new window."""
    key = _Key(harness, "longer", PLAIN)
    key.put(key_window=10.0)
    claims = claims_of(key.store.claim())
    harness.advance(11.0)
    key.check_refused("claimed beyond the window")
    key.other.ack(claims)
    key.check_free("done after the end of the window")
    key.put("again", key_window=20.0)
    key.other.ack(claims_of(key.store.claim()))
    harness.advance(harness.time.before(20.0))
    key.check_refused("within a window of its own")
    harness.advance(20.0 - harness.time.before(20.0))
    key.check_free("after a window of its own")
    # A window that is shorter than the one before replaces it.
    key.put("no window")
    key.other.ack(claims_of(key.store.claim()))
    key.check_free("without a window, after messages with one")


def _released_keys(harness: MessageStoreHarness) -> None:
    """Check release_key() in each state, and that it touches no message."""
    key = _Key(harness, "released")
    store, other = key.store, key.other
    check(not store.release_key(b"k"), "release_key() of a key that was never put")

    def is_released(how: str) -> None:
        before = contents(store)
        check(other.release_key(b"k"), f"{how}: release_key() says that the key was not active")
        check(not store.release_key(b"k"), f"{how}: release_key() says twice that the key was active")
        stored = contents(store)
        check(stored == before, f"{how}: release_key() changed {before} to {stored}")
        key.check_free(f"{how}, and the key is released")

    id = key.put(delay=3000.0)
    is_released("delayed")
    store.cancel(id)
    put(store, harness.entry("head", group="g"))
    key.put(group="g", key_window=3000.0)
    is_released("blocked")
    store.ack(claims_of(store.claim()))
    old = claims_of(store.claim())
    check(not other.release_key(b"k"), "a message whose key was released got it back when it was claimed")
    new = key.put("new", key_window=20.0)
    # The key is that of the new message, whatever becomes of the old one.
    other.nack(old)
    key.check_active("the message before is nacked")
    store.ack(claims_of(store.claim()))
    key.check_active("the message before is done")
    store.fail(claims_of(store.claim()))
    is_released("dead, within its window")
    check(store.redrive(new), "a dead message whose key was released cannot be redriven")
    key.check_active("redriven after the key was released")
    claimed = claims_of(store.claim())
    is_released("claimed, and redriven before")
    store.ack(claimed)
    check(not store.release_key(b"k"), "an ack made a released key active")
    check(not store.release_key(b"other"), "release_key() of a key that nobody has put")


def _removed_keys(harness: MessageStoreHarness) -> None:
    """Check that a message without its key does not end that of another when it is removed."""
    key = _Key(harness, "removed")
    store, other = key.store, key.other
    for how in ("cancel()", "cancel() of a dead one", "purge() of dead ones", "purge()", "ttl"):
        old = key.put("old", ttl=10.0 if how == "ttl" else None, topic="old", key_window=3000.0)
        if "dead" in how:
            store.fail(claims_of(store.claim()))
        store.release_key(b"k")
        key.put("new", delay=3000.0)
        if "cancel" in how:
            check(other.cancel(old), f"{how} of a message whose key was released")
        elif how == "ttl":
            harness.advance(10.0)
        else:
            check(other.purge("old", dead="dead" in how) == 1, f"{how} of a message whose key was released")
        key.check_active(f"{how} of the message that had it before")
        found = standing(store)
        check([*found] == ["new"], f"{how} left {found}")
        check(store.purge() == 1, "purge() of a delayed message")
        key.check_free("purged, and so is the message before")
    # A cancel frees the key of a dead message, too.
    old = key.put("old", key_window=3000.0)
    store.fail(claims_of(store.claim()))
    key.check_refused("dead, within its window")
    check(other.cancel(old), "cancel() of a dead message within its window")
    key.check_free("cancelled when it was dead, within its window")
    # The cancel of a dead message does not free the key that another one has.
    old = key.put("old")
    store.fail(claims_of(store.claim()))
    new = key.put("new")
    check(other.cancel(old), "cancel() of a dead message")
    key.check_active("a dead message that had it before is cancelled")
    check(store.cancel(new), "cancel() of a ready message")
    key.check_free("cancelled")


def _free_at_once(harness: MessageStoreHarness) -> None:
    """Check that the first call after a window, a ttl or the last lease sees the key free."""
    ways: dict[str, tuple[dict[str, Any], Callable[[_Key], object]]] = {
        "its window": ({"key_window": 10.0}, lambda key: key.other.ack(claims_of(key.store.claim()))),
        "its ttl": ({"ttl": 10.0}, lambda key: None),
        "its last lease": ({}, lambda key: key.store.claim()),
    }
    calls: dict[str, Callable[[_Key], object]] = {
        "put()": lambda key: key.other.put([harness.entry("new", key=b"k")]) == [None],
        "release_key()": lambda key: key.other.release_key(b"k"),
    }
    keys = [(f"{call}, {way}", call, way) for call in calls for way in ways]
    made = {name: _Key(harness, name, ONCE) for name, _, _ in keys}
    for name, _, way in keys:
        fields, before = ways[way]
        made[name].put(**fields)
        before(made[name])
    harness.advance(10.0)
    for name, call, way in keys:
        check(calls[call](made[name]) is False, f"{call}, first after {way}, found the key active")


KEY_LAWS: tuple[MessageStoreLaw, ...] = (refused_while_the_key_is_active,)
"""By number."""
