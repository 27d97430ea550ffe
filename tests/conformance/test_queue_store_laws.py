"""Every law of ``persistcoll.engine.contracts``, tried on every queue store."""

from __future__ import annotations

import re
from typing import Any

import pytest

import persistcoll.engine.contracts
from persistcoll.engine.records import State
from persistcoll.testing import LAWS
from tests.conformance.queue_stores import QUEUE_STORES, MemoryQueueStores

CASES = [
    pytest.param(law, store, id=f"{number}-{store}") for number, law in LAWS.items() for store in QUEUE_STORES
]


@pytest.mark.parametrize(("law", "store"), CASES)
def test_law(law, store, tmp_path):
    stores = QUEUE_STORES[store](tmp_path)
    assert law.applies_to(stores)
    law(stores)


def test_there_is_a_function_for_every_law():
    stated = re.findall(r"^([SJ]\d+) ", persistcoll.engine.contracts.__doc__ or "", re.MULTILINE)
    assert len(stated) == 14
    assert list(LAWS) == stated
    assert [law.number for law in LAWS.values()] == stated
    assert all(law.text for law in LAWS.values())


# Stores that no law may overlook: each is wrong in one point.


def _wrong(**replaced):
    """Return stores of the reference model in which some methods are replaced."""

    class Wrong(MemoryQueueStores):
        def open(self, name):
            return _changed(super().open(name))

        def crashed(self, name):
            return _changed(super().crashed(name))

    def _changed(store):
        for name, function in replaced.items():
            original = getattr(store, name)
            setattr(
                store,
                name,
                lambda *args, function=function, original=original, **kw: function(
                    store, original, *args, **kw
                ),
            )
        return store

    return Wrong()


def _half_a_batch(store, original, payloads, capacity=0):
    first = original(payloads[:1])
    return [*first, *original(payloads[1:], capacity)] if payloads[1:] else first


def _acknowledge_what_is_there(store, original, ids):
    for id in ids:
        original([id])


def _lose(store, original, *arguments):
    id = original(*arguments)
    store._state.rows.pop(id)
    return id


def _use_twice(store, original, decode, **options):
    store.peek(decode)
    return original(decode, **options)


def _says_nothing(store, original, decode, **options):
    return original(decode)


def _says_too_early(store, original, decode, claims=None, **options):
    if claims is not None:
        claims.append((1, None))
    return original(decode)


def _releases_any(store, original, claims):
    held = [id for id, _ in claims if _is_claimed(store, id)]
    for id in held:
        store.nack(id)
    return len(held)


def _is_claimed(store, id):
    row = store._state.rows.get(id)
    return row is not None and row.holder is store


def _remove_before_use(store, original, decode, **options):
    return decode(original(lambda record: record))


def _to_the_end(store, original, id):
    return original(id, to_back=True)


def _nack_the_first(store, original, ids):
    return original(ids[:1])


def _reuse_ids(store, original):
    count = original()
    if not store._state.rows:
        store._state.last_id = 0
    return count


def _without_claim(store, original, decode, **options):
    return store.peek(decode)


def _unbounded(store, original, payload, capacity=0):
    return original(payload)


def _off_by_one(store, original, payload, capacity=0):
    return original(payload, capacity + 1 if capacity else 0)


def _forgets(store, original):
    original()
    store._state.rows.clear()


def _stays_open(store, original):
    return 0


def _remembers_claims(store, original):
    held = [row for row in store._state.rows.values() if row.holder is store]
    original()
    for row in held:
        row.state, row.holder = State.CLAIMED, store


def _abandon_nothing(store, original):
    return None


def _forget_the_first(store, original, ids):
    original(ids)
    rows = store._state.rows
    if len(rows) > 1:
        del rows[min(rows)]


def _listed_backwards(store, original):
    return iter(list(original())[::-1])


WRONG: dict[str, tuple[str, dict[str, Any]]] = {
    "S1 a batch that does not fit is stored in part": ("S1", {"append_many": _half_a_batch}),
    "S1 one wrong id and the others are acknowledged": ("S1", {"ack": _acknowledge_what_is_there}),
    "S1 one wrong id and the others are nacked": ("S1", {"nack_many": _acknowledge_what_is_there}),
    "S2 an append is lost": ("S2", {"append": _lose}),
    "S3 decode is called twice": ("S3", {"claim": _use_twice}),
    "S3 removed before decode": ("S3", {"pop": _remove_before_use}),
    "S3 nobody learns what was claimed": ("S3", {"claim": _says_nothing}),
    "S3 said to be claimed before it is": ("S3", {"claim": _says_too_early}),
    "S3 release takes another one's claim": ("S3", {"release": _releases_any}),
    "S4 given back to the end": ("S4", {"nack": _to_the_end}),
    "S4 several nacked, and only the first is ready": ("S4", {"nack_many": _nack_the_first}),
    "S4 ids start again": ("S4", {"clear": _reuse_ids}),
    "S4 listed backwards": ("S4", {"records": _listed_backwards}),
    "S5 nothing is claimed": ("S5", {"claim": _without_claim}),
    "S6 no bound": ("S6", {"append": _unbounded}),
    "S6 one too many": ("S6", {"append": _off_by_one}),
    "S8 closing forgets": ("S8", {"close": _forgets}),
    "S8 claims outlive their holder": ("S8", {"close": _remembers_claims}),
    "S9 counts when closed": ("S9", {"count": _stays_open}),
    "S10 the child keeps the parent's claims": ("S10", {"after_fork_in_child": _abandon_nothing}),
    "J1 an append is lost": ("J1", {"append": _lose}),
    "J2 read backwards": ("J2", {"records": _listed_backwards}),
    "J3 acknowledging one removes another": ("J3", {"ack": _forget_the_first}),
    "J4 acknowledging one removes another": ("J4", {"ack": _forget_the_first}),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_broken_store_is_seen(name):
    number, replaced = WRONG[name]
    with pytest.raises(AssertionError, match=rf"^{number} \("):
        LAWS[number](_wrong(**replaced))


def test_stores_that_are_one_break_s7():
    stores = MemoryQueueStores()
    one = stores.open

    def open_the_same(name):
        return one("a")

    stores.open = open_the_same  # type: ignore[method-assign]
    with pytest.raises(AssertionError, match=r"^S7 "):
        LAWS["S7"](stores)
