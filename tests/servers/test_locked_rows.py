"""What another transaction has locked holds up no call on other rows, however few rows there are beside."""

from __future__ import annotations

import pytest

from persistcoll.engine.contracts import Claim
from persistcoll.engine.message_records import MessageClaim, MessageEntry, MessagePolicy
from persistcoll.engine.records import FIFO, UNIQUE, ClaimPolicy, Entry, State
from persistcoll.servers.open import open_message_store

# Of a list that has most rows of a table, MySQL would read the whole table; and MariaDB of a long one.
SIZES = [6, 40, pytest.param(1500, marks=pytest.mark.long)]


def id_of(record):
    return record.id


@pytest.fixture
def caller(caller):
    """Return the driver's own connection."""
    return caller.connection


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("keep_done", [0, 10**6])
@pytest.mark.parametrize("discipline", [FIFO, UNIQUE], ids=lambda each: each.name)
def test_records(opened, caller, discipline, keep_done, size):
    store = opened(discipline=discipline, retry=ClaimPolicy(keep_done=keep_done, lease=3600.0), timeout=1)
    ids = store.put([Entry(b"x", key=b"%d" % number) for number in range(size)])
    joined = store.joined(caller)
    assert joined.pop(id_of) == ids[0]
    # Each call changes all of the others.
    claims: list[Claim] = []
    assert store.claim_many(size, id_of, claims=claims) == ids[1:]
    assert store.release(claims) == size - 1
    store.nack_many(store.claim_many(size, id_of))
    store.fail(store.claim_many(size, id_of))
    assert store.requeue() == size - 1
    store.ack(store.claim_many(size, id_of))
    ids[1:] = store.put([Entry(b"y", key=b"new %d" % number) for number in range(size - 1)])
    assert store.pop_many(size, id_of) == ids[1:]
    caller.commit()
    assert store.stats().ready == store.stats().claimed == 0
    assert store.stats().done == (2 * size - 1 if keep_done else 0)


@pytest.mark.parametrize("size", [6, 40])
@pytest.mark.parametrize("verb", ["pop", "claim", "ack", "release"])
def test_a_callers_batch_locks_no_others(opened, caller, verb, size):
    store = opened(timeout=1)
    ids = store.append_many([b"x"] * size)
    joined = store.joined(caller)
    if verb == "pop":
        joined.pop_many(size - 2, id_of)
    else:
        claims: list[Claim] = []
        joined.claim_many(size - 2, id_of, claims=claims)
        if verb == "ack":
            joined.ack(ids[:-2])
        elif verb == "release":
            joined.release(claims)
    # MySQL locks the row after the last one that a transaction has searched for.
    assert ids[-1] in store.pop_many(2, id_of)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("keep", [0, 10**6])
def test_messages(place, caller, keep, size):
    policy = MessagePolicy(lease=3600.0, keep_done=keep, keep_dead=10**6)
    options = {"name": "mails", "policy": policy, "serializer": "raw", "schema": place.schema, "timeout": 1}
    store = open_message_store(place.address, durability="process", **options)
    held = MessageEntry(b"held", key=b"held", group="held")
    store.put([held, *(MessageEntry(b"x", key=b"%d" % n, group=f"{n}") for n in range(size))])
    joined = store.joined(caller)
    claims: list[MessageClaim] = []
    joined.claim(1, claims=claims)
    joined.ack(claims)

    def claim():
        claims: list[MessageClaim] = []
        store.claim(size + 1, claims=claims)
        assert len(claims) == size
        return claims

    store.extend(claims := claim(), 60.0)
    assert store.release(claims) == size
    store.nack(claim(), 0.0)
    store.fail(claim())
    assert store.redrive_all() == size
    store.ack(claim())
    caller.commit()
    assert store.stats().done == (size + 1 if keep else 0)
    for table in ("pc_keys", "pc_groups"):
        assert place.run(f"SELECT number FROM {place.name}.{table}") == []
    assert list(store.scan(State.DEAD)) == []
    store.close()
