"""Records that are set aside on a server: made ready again beside other transactions, and their reasons."""

from __future__ import annotations

from contextlib import closing

import pytest

from persistcoll.engine.records import UNIQUE, ClaimPolicy, Entry, State
from persistcoll.errors import DuplicateError, LockedError
from persistcoll.servers.address import MYSQL
from persistcoll.servers.statements import PAGE
from tests.queues.waits import until, waiting
from tests.servers.places import CallerConnection

EQUAL = Entry(b"k", key=b"k")


def id_of(record):
    return record.id


@pytest.mark.parametrize("which", ["all", "one"])
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_requeue_waits_for_an_equal_item_that_is_not_committed(place, opened, caller, which, end):
    store = opened(discipline=UNIQUE)
    (id,) = store.put([EQUAL])
    store.fail([store.claim(id_of)])
    caller.begin()
    assert store.joined(caller.connection).put([EQUAL]) != [None]
    finish = waiting(lambda: store.requeue(id if which == "one" else None))
    until(place.someone_waits_for_a_lock)
    assert not finish.done()
    getattr(caller, end)()
    if end == "rollback":
        assert finish() == 1
        assert [record.id for record in store.records()] == [id]
    elif which == "one":
        with pytest.raises(DuplicateError, match=f"equals item {id} is"):
            finish()
    else:
        assert finish() == 0
    assert store.count() == 1
    assert store.has_active_key(b"k")


@pytest.mark.parametrize("which", ["all", "one"])
def test_a_requeue_in_a_callers_transaction_is_rolled_back_with_it(opened, caller, which):
    store = opened(discipline=UNIQUE)
    (id,) = store.put([EQUAL])
    store.fail([store.claim(id_of)], "no")
    caller.begin()
    assert store.joined(caller.connection).requeue(id if which == "one" else None) == 1
    assert store.stats().failed == 1
    # What the transaction has requeued is locked, so it is passed over.
    assert store.requeue() == 0
    caller.rollback()
    assert (store.stats().failed, store.count()) == (1, 0)
    assert store.put([EQUAL]) != [None]


def test_a_callers_transaction_that_an_equal_item_precedes_is_to_begin_again(place, opened, caller):
    """Only its caller can repeat it, because it may hold more than this call."""
    store = opened(discipline=UNIQUE)
    store.put([EQUAL])
    store.fail([store.claim(id_of)])
    with closing(CallerConnection(place)) as other:
        other.begin()
        store.joined(other.connection).put([EQUAL])
        caller.begin()
        joined = store.joined(caller.connection)
        finish = waiting(joined.requeue)
        until(place.someone_waits_for_a_lock)
        other.commit()
    with pytest.raises(LockedError, match="begin it again"):
        finish()
    caller.rollback()
    assert joined.requeue() == 0


def test_of_many_equal_ones_the_first_is_requeued_whichever_its_state(opened):
    """Failed and dead ones alternate, and their equals are more than a page apart."""
    store = opened(discipline=UNIQUE, retry=ClaimPolicy(max_attempts=1))
    keys = [b"%d" % number for number in range(PAGE + 20)]
    ids: list[int] = []
    for turn in range(2):
        ids += store.put([Entry(key, key=key) for key in keys])
        held = store.claim_many(len(keys), id_of)
        assert held == ids[-len(keys) :]
        store.fail(held[turn::2], "failed")
        store.nack_many(held[1 - turn :: 2], "dead")
    told = store.stats()
    assert (told.failed, told.dead) == (len(keys), len(keys))
    assert store.requeue() == len(keys)
    assert [record.id for record in store.records()] == ids[: len(keys)]
    assert {record.attempts for record in store.records()} == {0}
    assert store.requeue() == 0


def test_all_of_many_are_requeued(opened):
    store = opened()
    count = 2 * PAGE + 1
    ids = store.put([Entry(b"x")] * count)
    store.fail(store.claim_many(count, id_of))
    assert store.requeue() == count
    assert [record.id for record in store.records()] == ids


REASONS = ["ä中\N{GRINNING FACE}", "", "a 'quote', a \\, a % and a \"", "\udc80", "x" * 60_000]


@pytest.mark.parametrize("reason", REASONS, ids=lambda reason: ascii(reason)[:20])
def test_any_reason_is_kept_whatever_the_character_set(place, opened, caller, reason):
    store = opened()
    store.put([Entry(b"x")] * 2)
    one, two = store.claim_many(2, id_of)
    store.fail([one], reason)
    caller.begin()
    cursor = caller.connection.cursor()
    cursor.execute("SET NAMES latin1" if place.kind == MYSQL else "SET client_encoding = latin1")
    joined = store.joined(caller.connection)
    joined.fail([two], reason)
    wanted = reason.encode(errors="backslashreplace").decode()
    assert {record.reason for _, record in joined.scan(State.FAILED)} == {wanted}
    caller.commit()
    assert [record.reason for _, record in store.scan(State.FAILED)] == [wanted, wanted]
