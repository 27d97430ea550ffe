"""The message store in memory that is as hard as one on a server: its own behaviour."""

from __future__ import annotations

import time

import pytest

from persistcoll.engine.memory.server import MemoryConnection
from persistcoll.engine.memory.server_message_store import (
    MemoryMessageServerState,
    MemoryMessageServerStore,
)
from persistcoll.engine.message_records import LEASE_RAN_OUT, MessageEntry, MessagePolicy
from persistcoll.errors import BackendUnavailableError, Empty, EncodeError, LockedError


@pytest.fixture
def now():
    return [1e9]


@pytest.fixture
def state(now):
    return MemoryMessageServerState(lambda: now[0], loss=0.0)


def opened(state, **policy):
    return MemoryMessageServerStore(MessagePolicy(**policy), state)


def test_ids_of_two_producers_come_late_and_with_gaps(state):
    one, two = opened(state), opened(state)
    entry = MessageEntry(b"")
    assert [*one.put([entry]), *two.put([entry]), *one.put([entry])] == [1, 5, 2]
    assert [record.id for record in one.scan()] == [1, 2, 5]


def test_ids_of_a_group_are_in_the_order_of_the_puts(state):
    one, two = opened(state), opened(state)
    first, second = MessageEntry(b"first", group="g"), MessageEntry(b"second", group="g")
    two.put([MessageEntry(b"draws ids")])
    one.put([MessageEntry(b"draws ids")])
    two.put([first])
    one.put([second])
    of_group = [record.payload for record in one.scan() if record.group]
    assert of_group == [b"first", b"second"]


def test_no_death_is_noticed_and_a_lease_ends(state, now):
    holder = opened(state, lease=30.0)
    holder.put([MessageEntry(b"")])
    holder.claim()
    left = opened(state.copy(), lease=30.0)
    assert (left.reclaim(), left.count()) == (0, 0)
    now[0] += 30.0
    (again,) = left.claim()
    assert (again.attempts, again.error) == (2, LEASE_RAN_OUT)


def test_everything_needs_a_lease(state):
    store = opened(state)
    (id,) = store.put([MessageEntry(b"")])
    (record,) = store.claim()
    lock = store.lock_topic("b", 5.0)
    for call in (
        lambda: opened(state, lease=None),
        lambda: store.put([MessageEntry(b"", lease=None)]),
        lambda: store.claim(lease=None),
        lambda: store.extend([record.claim], None),
        lambda: store.lock_topic("default", None),
        lambda: store.extend_lock(lock, None),
    ):
        with pytest.raises(ValueError, match="a lease is needed"):
            call()
    assert [each.id for each in store.scan()] == [id]


def test_a_caller_that_only_looks_locks_nothing(state, now):
    store, connection = opened(state), MemoryConnection(state)
    store.put([MessageEntry(b"", delay=5.0), MessageEntry(b"", ttl=5.0)])
    now[0] += 5.0
    connection.begin()
    assert store.joined(connection).count() == 1
    assert len(store.claim(5)) == 1
    connection.rollback()


def test_what_was_passed_over_is_looked_at_again_soon(state):
    store, connection = opened(state), MemoryConnection(state)
    store.put([MessageEntry(b"")])
    connection.begin()
    with pytest.raises(ValueError, match="is open already"):
        connection.begin()
    store.joined(connection).claim()
    before = time.monotonic()
    with pytest.raises(Empty) as found:
        store.claim()
    assert before < found.value.next_at < time.monotonic() + 1.0  # type: ignore[attr-defined]
    connection.rollback()
    assert store.claim()


def test_what_another_transaction_has_changed_is_not_removed(state):
    store, connection = opened(state), MemoryConnection(state)
    store.put([MessageEntry(b"", key=b"k", key_window=60.0)])
    (record,) = store.claim()
    lock = store.lock_topic("b", 5.0)
    store.set_rate("c", 1.0)
    connection.begin()
    joined = store.joined(connection)
    joined.ack([record.claim])
    joined.extend_lock(lock, 9.0)
    joined.set_rate("c", 2.0)
    for call in (
        lambda: store.release_key(b"k"),
        lambda: store.unlock_topic(lock),
        lambda: store.set_rate("c", None),
    ):
        with pytest.raises(LockedError):
            call()
    store.close()
    connection.commit()
    other = opened(state)
    assert other.release_key(b"k")
    assert other.unlock_topic(lock)


def test_closing_ends_the_claims_if_the_server_can_be_reached(state):
    store, other = opened(state, lease=30.0), opened(state)
    store.put([MessageEntry(b"a"), MessageEntry(b"b")])
    store.claim()
    store.close()
    store.close()
    assert other.count() == 2
    other.claim()
    state.loss = 1.0
    other.close()
    state.loss = 0.0
    assert opened(state).stats().claimed == 1


def test_what_another_transaction_has_changed_is_locked(state):
    store, connection = opened(state), MemoryConnection(state)
    group, key = MessageEntry(b"g", group="g"), MessageEntry(b"k", key=b"k")
    (head,) = store.put([group])
    (claimed,) = store.claim()
    connection.begin()
    joined = store.joined(connection)
    joined.put([group, key])
    joined.lock_topic("b", 30.0)
    for call in (
        lambda: store.put([group]),
        lambda: store.put([key]),
        lambda: store.ack([claimed.claim]),
        lambda: store.cancel(head or 0),
        lambda: store.redrive(head or 0),
        lambda: store.lock_topic("b", 30.0),
    ):
        with pytest.raises(LockedError):
            call()
    assert (store.purge(), store.reclaim()) == (0, 0)
    connection.commit()
    assert store.put([key]) == [None]
    store.ack([claimed.claim])
    assert [record.payload for record in store.claim(5)] == [b"g", b"k"]


def test_payloads_have_a_limit(state):
    store = opened(state)
    with pytest.raises(EncodeError, match="too large"):
        store.put([MessageEntry(bytes(1 << 20)), MessageEntry(bytes((1 << 20) + 1))])
    assert store.is_empty()


def test_a_server_that_is_never_reached(state):
    store = opened(state)
    state.loss = 1.0
    for call in (store.change_token, lambda: store.put([MessageEntry(b"")]), store.has_unfinished):
        with pytest.raises(BackendUnavailableError):
            call()
