"""The record store in memory that is as hard as one on a server: its own behaviour, and the laws on it."""

from __future__ import annotations

import time

import pytest

from persistcoll.engine.memory.server import MemoryConnection
from persistcoll.engine.memory.server_record_store import MemoryServerState, MemoryServerStore
from persistcoll.engine.records import FIFO, UNIQUE, ClaimPolicy, Entry
from persistcoll.errors import BackendUnavailableError, Empty, LockedError
from persistcoll.testing import RECORD_STORE_LAWS, Skipped
from persistcoll.testing.harness import Capabilities, Law, LawTime
from tests.conformance.record_stores import MemoryRecordStores, MemoryServerRecordStores
from tests.conformance.wrong.servers import WRONG_SERVERS


def id_of(record):
    return record.id


@pytest.fixture
def now():
    return [1e9]


@pytest.fixture
def state(now):
    return MemoryServerState(lambda: now[0], patience=30.0, loss=0.0)


def opened(state, **policy):
    return MemoryServerStore(FIFO, ClaimPolicy(**policy), state)


@pytest.mark.long
@pytest.mark.parametrize("name", WRONG_SERVERS)
def test_a_wrong_server_is_seen(name):
    number, make = WRONG_SERVERS[name]
    with pytest.raises(AssertionError, match=rf"^{number} \("):
        RECORD_STORE_LAWS[number](MemoryServerRecordStores(make))


def test_ids_of_two_producers_come_late_and_with_gaps(state):
    one, two = opened(state), opened(state)
    assert [one.append(b""), two.append(b""), one.append(b"")] == [1, 5, 2]
    assert [record.id for record in one.records()] == [1, 2, 5]
    one.close()
    assert opened(state).append(b"") == 9


def test_death_is_noticed_when_a_holder_is_not_heard_of_for_its_patience(state, now):
    holder, other = opened(state), opened(state)
    id = holder.append(b"")
    holder.claim(id_of)
    now[0] += 1000.0
    assert other.claimed() == 1
    state.silence(holder._client)
    now[0] += 29.0
    before = other.change_token()
    assert (other.claimed(), other.reclaim()) == (1, 0)
    now[0] += 1.0
    assert other.change_token() != before
    assert other.claim(id_of) == id


def test_empty_says_when_something_becomes_ready(state):
    store = opened(state, lease=60.0)
    with pytest.raises(Empty) as found:
        store.claim(id_of)
    assert not hasattr(found.value, "next_at")
    store.append(b"")
    store.claim(id_of)
    before = time.monotonic()
    with pytest.raises(Empty) as found:
        store.claim(id_of)
    assert before + 60.0 <= found.value.next_at <= time.monotonic() + 60.0  # type: ignore[attr-defined]


def test_a_server_that_is_never_reached(state):
    store = opened(state)
    state.loss = 1.0
    for call in (store.change_token, lambda: store.append(b""), store.count):
        with pytest.raises(BackendUnavailableError):
            call()
    state.loss = 0.0
    assert store.count() == 0
    store.close()


def test_what_another_transaction_has_changed_is_locked(state):
    store = MemoryServerStore(UNIQUE, ClaimPolicy(), state)
    id = store.put([Entry(b"", key=b"k")])[0] or 0
    connection = MemoryConnection(state)
    with pytest.raises(ValueError, match="no transaction"):
        store.joined(connection).count()
    connection.begin()
    assert store.claim(id_of) == id
    store.joined(connection).ack([id])
    store.joined(connection).put([Entry(b"", key=b"l")])
    for call in (
        lambda: store.ack([id]),
        lambda: store.update(id, b""),
        lambda: store.put([Entry(b"", key=b"l")]),
    ):
        with pytest.raises(LockedError):
            call()
    connection.commit()
    assert store.put([Entry(b"", key=b"l"), Entry(b"", key=b"k")])[0] is None
    with pytest.raises(ValueError, match="no transaction"):
        connection.rollback()


def test_a_law_that_says_nothing_is_skipped_with_the_reason():
    with pytest.raises(Skipped, match="T5 needs what these stores lack: joins"):
        RECORD_STORE_LAWS["T5"](MemoryRecordStores())
    stores = MemoryRecordStores()
    stores.capabilities = Capabilities(crashes=False)
    with pytest.raises(Skipped, match="S2 needs what these stores lack: crashes"):
        RECORD_STORE_LAWS["S2"](stores)


class _Harness:
    opened = ()

    def __init__(self, factory, again):
        self.time = LawTime(factory, again)


@pytest.mark.parametrize(("real", "slow", "tries"), [(True, True, 5), (True, False, 1), (False, True, 1)])
def test_only_a_run_that_was_too_slow_is_repeated(real, slow, tries):
    class Factory:
        capabilities = Capabilities(real_time=real)

        def advance(self, seconds):
            given.append(seconds)

    def broken(harness):
        harness.time.advance(2.0)
        harness.time._began -= 1000.0 if slow else -1000.0
        raise AssertionError("too bad")

    given: list[float] = []
    with pytest.raises(AssertionError, match=r"^X1 \(a law\): too bad"):
        Law("X1", "a law", (), broken, _Harness)(Factory())
    assert len(given) == tries
    assert given == ([0.02 * 2**again for again in range(tries)] if real else [2.0])
