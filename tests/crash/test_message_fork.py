"""Forks under a message store, with messages in every state: the child never disturbs its parent."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest

from persistcoll import Empty, StaleClaimError, StorageError
from persistcoll.engine.message_records import LEASE_RAN_OUT, MessageClaim, MessageEntry, MessagePolicy
from persistcoll.engine.records import State
from persistcoll.sqlite import database as databases
from persistcoll.testing.children import in_forked_child
from tests.crash.messages import is_consistent, opened

POLICY = MessagePolicy(lease=None, max_attempts=3, backoff=None, keep_done=100)

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork"),
    # Python 3.12 warns of forks with several threads, which these tests are about.
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    pytest.mark.timeout(60),
]


@pytest.fixture
def store(memory_path):
    with closing(opened(memory_path, POLICY)) as store:
        yield store
    is_consistent(memory_path)


def in_child(store: Any, call: Callable[[], object]) -> None:
    """Run ``call()`` in a forked child, in which the store is told of the fork, as a container tells it."""

    def child() -> None:
        store.after_fork_in_child()
        call()

    in_forked_child(child)


def claim_all(store: Any, **options: Any) -> list[Any]:
    """Claim all that is ready."""
    records: list[Any] = []
    while True:
        try:
            records += store.claim(**options)
        except Empty:
            return records


def bodies(records: Any) -> list[bytes]:
    return [record.payload for record in records]


def fill(store: Any) -> Any:
    """Put a message into each state; return what was claimed."""
    store.put([MessageEntry(b"claimed"), MessageEntry(b"prefetched"), MessageEntry(b"done")])
    store.put([MessageEntry(b"dead"), MessageEntry(b"ready"), MessageEntry(b"delayed", delay=1000)])
    store.put([MessageEntry(b"head", group="g", priority=-1), MessageEntry(b"blocked", group="g")])
    (claimed,) = store.claim()
    (prefetched,) = store.claim(prefetch=True)
    done, dead = store.claim(2)
    store.ack([done.claim])
    store.fail([dead.claim])
    return claimed, prefetched


def test_a_child_sees_each_state_and_ends_no_claim(store):
    claimed, prefetched = fill(store)
    lock = store.lock_topic("locked", None)
    store.put([MessageEntry(b"locked", topic="locked")])

    def child() -> None:
        counts = store.stats()
        numbers = (counts.ready, counts.claimed, counts.delayed, counts.blocked, counts.done, counts.dead)
        assert numbers == (3, 2, 1, 1, 1, 1)
        assert store.reclaim() == 0
        assert store.cancel(claimed.id) is False
        assert store.lock_topic("locked", None) is None
        # The parent alone has locked that topic.
        assert bodies(claim_all(store)) == [b"ready", b"head"]
        store.put([MessageEntry(b"of the child")])
        store.close()  # ends what this process has claimed, and nothing else

    in_child(store, child)
    assert [each.id for each in store.scan(State.CLAIMED)] == [claimed.id, prefetched.id]
    assert store.extend([claimed.claim], None) is None
    store.deliver([prefetched.claim])
    store.ack([claimed.claim, prefetched.claim])
    assert bodies(claim_all(store, topics=["locked"])) == [b"locked"]
    assert store.unlock_topic(lock) is True
    assert bodies(claim_all(store)) == [b"ready", b"of the child", b"head"]


def test_a_child_may_settle_what_its_parent_has_claimed(store):
    """A claim needs no holder to be settled, so it may be handed to another process."""
    store.put([MessageEntry(b"a"), MessageEntry(b"b")])
    records = claim_all(store)
    in_child(store, lambda: store.ack([records[0].claim]))
    with pytest.raises(StaleClaimError):
        store.ack([records[0].claim])
    store.ack([records[1].claim])


def test_what_a_child_claims_is_its_own(store):
    """Its death, without closing, ends its claims and not those of its parent."""
    store.put([MessageEntry(b"of the parent"), MessageEntry(b"of the child")])
    (mine,) = store.claim()
    in_child(store, store.claim)
    assert store.reclaim() == 1
    (returned,) = store.claim()
    assert (returned.payload, returned.attempts) == (b"of the child", 2)
    assert store.stats().claimed == 2
    store.ack([mine.claim, returned.claim])


def test_a_grandchild_and_tokens_of_its_own(store):
    """No two processes draw the same tokens after a fork."""
    store.put([MessageEntry(b"%d" % number) for number in range(3)])
    (mine,) = store.claim()
    reading, writing = os.pipe()

    def grandchild() -> None:
        (record,) = store.claim()
        os.write(writing, b"%d\n" % record.claim.token)
        store.close()

    def child() -> None:
        in_child(store, grandchild)
        grandchild()

    in_child(store, child)
    os.close(writing)
    with open(reading) as lines:
        tokens = {int(line) for line in lines}
    assert len(tokens | {mine.claim.token}) == 3
    store.ack([mine.claim])


class Inside:
    """A seal that calls something within the transaction of a put."""

    def __init__(self, call: Any) -> None:
        self._call = call

    def __call__(self, payload: bytes, id: int) -> bytes:
        call, self._call = self._call, lambda: None
        call()
        return payload


@pytest.mark.parametrize("end", ["ends", "closes"])
def test_a_fork_from_within_an_operation(store, monkeypatch, end):
    """The fork happens in the transaction of the forking thread, so it does not wait for it."""
    monkeypatch.setattr(databases, "FORK_TIMEOUT", 1000)
    claimed, prefetched = fill(store)

    def child() -> None:
        for call in (store.claim, store.stats, store.reclaim, lambda: store.ack([claimed.claim])):
            with pytest.raises(StorageError, match="forked within a transaction"):
                call()
        if end == "closes":
            store.close()

    store.seal_with(Inside(lambda: in_child(store, child)), None)
    store.put([MessageEntry(b"sealed")])
    store.ack([claimed.claim, prefetched.claim])
    assert bodies(claim_all(store)) == [b"ready", b"sealed", b"head"]


def test_a_fork_that_waits_in_vain_for_another_thread(store, monkeypatch):
    monkeypatch.setattr(databases, "FORK_TIMEOUT", 0.05)
    claimed, prefetched = fill(store)
    inside, go_on = threading.Event(), threading.Event()

    def pause() -> None:
        inside.set()
        assert go_on.wait(30)

    store.seal_with(Inside(pause), None)
    thread = threading.Thread(target=store.put, args=([MessageEntry(b"slow")],))
    thread.start()
    assert inside.wait(30)

    def child() -> None:
        with pytest.raises(StorageError, match="forked within a transaction"):
            store.claim()
        store.close()

    in_child(store, child)
    go_on.set()
    thread.join(30)
    store.ack([claimed.claim, prefetched.claim])
    in_child(store, lambda: store.put([MessageEntry(b"of the child")]))
    assert bodies(claim_all(store)) == [b"ready", b"slow", b"of the child", b"head"]


def test_a_fork_within_a_transaction(store):
    """The child is no part of it, and its end there changes nothing."""
    claimed, prefetched = fill(store)

    def child() -> None:
        with pytest.raises(StorageError):
            store.put([MessageEntry(b"of the child")])
        with pytest.raises(StorageError):
            store.ack([prefetched.claim])

    with store.transaction():
        store.ack([claimed.claim])
        store.put([MessageEntry(b"within")])
        in_child(store, child)
        store.nack([prefetched.claim])
    assert store.stats().claimed == 0
    assert bodies(claim_all(store)) == [b"prefetched", b"ready", b"within", b"head"]


def test_a_lease_runs_on_in_the_child(memory_path):
    """Either process ends the claim when its time has come, and it ends once."""
    now = [1e9]
    with closing(opened(memory_path, POLICY._replace(lease=100.0), clock=lambda: now[0])) as store:
        store.put([MessageEntry(b"a")])
        claims: list[MessageClaim] = []
        store.claim(claims=claims)

        def child() -> None:
            now[0] += 99
            assert store.count() == 0
            now[0] += 1
            assert store.count() == 1
            (again,) = store.claim()
            assert (again.attempts, again.error) == (2, LEASE_RAN_OUT)
            assert again.claim is not None
            store.release([again.claim])
            store.close()

        in_child(store, child)
        with pytest.raises(StaleClaimError):
            store.ack(claims)
        (again,) = store.claim()
        assert (again.attempts, again.deliveries) == (2, 3)
