"""The system's time is set under a message store: leases, delays, rates and locks keep their length."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from persistcoll import Empty, StaleClaimError
from persistcoll.engine.message_records import MessageEntry, MessagePolicy
from persistcoll.sqlite.message_store import SQLiteMessageStore
from persistcoll.testing.children import in_forked_child
from tests.crash.messages import opened
from tests.sql_queues.test_clock import HOUR, JUMPS, Machine

POLICY = MessagePolicy(lease=100.0, backoff=None)


@pytest.fixture
def machine(monkeypatch) -> Machine:
    return Machine(monkeypatch)


@pytest.fixture
def store(machine, tmp_path) -> Iterator[SQLiteMessageStore]:
    with contextlib.closing(opened(tmp_path, POLICY)) as store:
        yield store


@pytest.mark.parametrize("jump", JUMPS)
@pytest.mark.parametrize("when", ["while it is open", "in another object", "in another process"])
def test_what_is_due_keeps_its_time(machine, store, jump, when, tmp_path):
    store.put([MessageEntry(b"leased"), MessageEntry(b"delayed", delay=100), MessageEntry(b"gone", ttl=100)])
    (record,) = store.claim()
    lock = store.lock_topic("locked", 100.0)
    store.put([MessageEntry(b"key", "keys", key=b"key", key_window=100)])
    assert store.cancel(4) is True
    assert store.put([MessageEntry(b"key", "keys", key=b"key", key_window=100)]) == [5]
    machine.wall += jump

    def look(is_over: bool) -> None:
        stats = store.stats()
        # Before: "gone" and the one with the key. After: the leased, the delayed, the one with the key.
        assert (stats.ready, stats.claimed, stats.delayed) == ((3, 0, 0) if is_over else (2, 1, 1))
        assert stats.expired == is_over

    def check(is_over: bool) -> None:
        if when == "in another process":
            machine.wall += jump  # the system's time is set again, each time
            in_forked_child(lambda: look(is_over))
        elif when == "in another object":
            with contextlib.closing(opened(tmp_path, POLICY)) as other:
                assert other.count() == (3 if is_over else 2)
                assert (other.lock_topic("locked", 1.0) is None) != is_over
        look(is_over)

    check(False)
    machine.wait(99)
    machine.wall -= 2 * jump
    check(False)
    machine.wait(1)
    check(True)
    assert record.claim is not None
    with pytest.raises(StaleClaimError):
        store.ack([record.claim])
    assert lock is not None
    with pytest.raises(StaleClaimError):
        store.extend_lock(lock, 1.0)
    assert [each.payload for each in store.claim(9, ["default"])] == [b"leased", b"delayed"]


@pytest.mark.parametrize("jump", JUMPS)
def test_an_extension_and_a_rate_keep_their_length(machine, store, jump):
    store.set_rate("default", 10.0)
    store.put([MessageEntry(b"%d" % number) for number in range(3)])
    (record,) = store.claim()
    assert record.claim is not None
    store.extend([record.claim], 1000.0)
    machine.wall += jump
    with pytest.raises(Empty):
        store.claim()
    machine.wait(9.9)
    with pytest.raises(Empty):
        store.claim()
    machine.wait(0.1)
    assert len(store.claim(9)) == 1
    machine.wait(989)
    assert store.find(record.id).attempts == 1
    store.extend([record.claim], 2.0)
    machine.wall -= 2 * jump
    machine.wait(1)
    store.ack([record.claim])


def test_after_a_boot_with_a_wrong_clock_no_claim_lasts(machine, tmp_path):
    """The time of a delay goes by that clock. Claims do not, because no holder outlives a boot."""
    store = opened(tmp_path, POLICY)
    store.put([MessageEntry(b"in work"), MessageEntry(b"delayed", delay=100)])
    store.claim()
    store.after_fork_in_child()  # as if it had died
    store.close()
    machine.boot(-HOUR)
    with contextlib.closing(opened(tmp_path, POLICY)) as again:
        (record,) = again.claim()
        assert (record.payload, record.attempts, record.error) == (b"in work", 2, "its worker died")
        machine.wait(HOUR + 99)
        assert again.stats().delayed == 1
        machine.wait(1)
        assert again.stats().delayed == 0
