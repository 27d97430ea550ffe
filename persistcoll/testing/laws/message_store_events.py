"""The law Q19 of message stores: observers. See :mod:`persistcoll.testing.laws.message_store`."""

from __future__ import annotations

import contextlib
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from persistcoll.engine.contracts import MessageStore
from persistcoll.engine.message_events import EventKind, MessageEvent
from persistcoll.engine.message_records import HOLDER_CLOSED, LEASE_RAN_OUT, MessageClaim
from persistcoll.engine.records import State
from persistcoll.errors import DuplicateError, Empty, StaleClaimError
from persistcoll.testing.children import check, run_threads
from persistcoll.testing.laws.message_store_harness import (
    PLAIN,
    MessageStoreHarness,
    MessageStoreLaw,
    claim_of,
    claims_of,
    empty,
    lock_of,
    message_store_law,
    put,
    stale,
)

__all__ = ["EVENT_LAWS"]

_PATIENCE = 10.0
"""The seconds that another thread may need for a call while an observer waits for it."""


@message_store_law("Q19")
def what_was_done_is_told(harness: MessageStoreHarness) -> None:
    """Every observer is told once of each thing that the calls of its store do to messages.

    It is told after the commit and without a lock, in the thread of the call, and not of what was rolled
    back.
    """
    _settled(harness)
    _by_itself(harness)
    _removed_and_redriven(harness)
    _nothing_to_tell(harness)
    _closed(harness)
    _each_its_own(harness)
    _without_a_lock(harness)
    if harness.capabilities.transactions:
        _transactions(harness)
    if harness.capabilities.joins:
        _joined(harness)
    for seed in range(2):
        _add_up(harness, random.Random(seed), f"seed {seed}")


class _Told(NamedTuple):
    """What is to be told of one message, whose topic is its name."""

    kind: EventKind
    topic: str
    attempts: int | None = None
    error: str | None = None


class _Watched:
    """A store and what its observer was told."""

    def __init__(self, harness: MessageStoreHarness, store: MessageStore) -> None:
        self.store = store
        self.harness = harness
        self.events: list[MessageEvent] = []
        self.ids: dict[str, set[int]] = {}
        store.observe(self.events.extend)

    def put(self, *topics: str, **fields: Any) -> None:
        """Put a message for each topic."""
        ids = put(self.store, *(self.harness.entry(topic, topic=topic, **fields) for topic in topics))
        for topic, id in zip(topics, ids, strict=True):
            self.ids.setdefault(topic, set()).add(id)

    def claim(self, *topics: str, prefetch: bool = False) -> list[MessageClaim]:
        """Claim the next message of each topic."""
        return [claim_of(self.store, topic, prefetch) for topic in topics]

    @contextlib.contextmanager
    def tells(self, what: str, *expected: _Told) -> Iterator[None]:
        """Check that the block is told, and nothing else."""
        self.events.clear()
        before = self.harness.now()
        yield
        self.check_told(what, before, expected)

    def check_told(self, what: str, since: float, expected: Sequence[_Told]) -> None:
        """Check that this was told, in any order, and nothing else."""
        now = self.harness.now()
        wanted = Counter((each.kind, each.topic, each.error) for each in expected)
        found: Counter[tuple[EventKind, str, str | None]] = Counter()
        for event in self.events:
            found[event.kind, event.topic, event.error] += event.count
            check(since - 0.01 <= event.time <= now + 0.01, f"{what} is told to be at {event.time}: {event}")
            if event.id is None:
                check(event.attempts is None, f"of several messages the attempts are told: {event}")
                continue
            check(event.count == 1, f"of one message a count is told: {event}")
            ids = self.ids.get(event.topic, set())
            check(event.id in ids, f"{what}: {event} is of none of {ids}")
            attempts = {each.attempts for each in expected if each.topic == event.topic}
            check(event.attempts in attempts, f"{what}: {event}, and the attempts are {attempts}")
        check(found == wanted, f"{what} is told as {self.events}, and is {list(expected)}")
        self.events.clear()


def _watch(harness: MessageStoreHarness, name: str, **policy: Any) -> _Watched:
    return _Watched(harness, harness.open(name, PLAIN._replace(**policy)))


def _settled(harness: MessageStoreHarness) -> None:
    watched = _watch(harness, "settled")
    store, kind = watched.store, EventKind
    names = ("acked", "nacked", "later", "released", "failed", "given up")
    with watched.tells(
        "put()", *(_Told(kind.PUT, name, 0) for name in (*names, "group", "group", "delayed"))
    ):
        watched.put(*names[:4], "group", "group", group="g")
        watched.put("failed", key=b"key")
        watched.put("given up", max_attempts=1)
        watched.put("delayed", delay=900.0)
    with watched.tells("claim()", *(_Told(kind.CLAIMED, name, 1) for name in names)):
        held = dict(zip(names, watched.claim(*names), strict=True))
    with watched.tells("ack()", _Told(kind.ACKED, "acked", 1)):
        store.ack([held["acked"], held["acked"]])
    with watched.tells("nack()", _Told(kind.NACKED, "nacked", 1, "no")):
        store.nack([held["nacked"]], error="no")
    with watched.tells("nack() with a delay", _Told(kind.NACKED, "later", 1)):
        store.nack([held["later"]], harness.seconds(900.0))
    with watched.tells("release()", _Told(kind.RELEASED, "released", 0)):
        store.release([held["released"]])
    with watched.tells("fail()", _Told(kind.DEAD, "failed", 1, "why")):
        store.fail([held["failed"]], "why")
    with watched.tells("nack() of the last attempt", _Told(kind.DEAD, "given up", 1)):
        store.nack([held["given up"]])
    with watched.tells("claim() of a nacked message", _Told(kind.CLAIMED, "nacked", 2)):
        (again,) = watched.claim("nacked")
    with watched.tells("nack() without an error, after one", _Told(kind.NACKED, "nacked", 2)):
        store.nack([again], 0.0)
    head = watched.claim("group")
    with watched.tells("ack() of the head of a group", _Told(kind.ACKED, "group", 1)):
        store.ack(head)


def _by_itself(harness: MessageStoreHarness) -> None:
    watched = _watch(harness, "by itself")
    store, kind = watched.store, EventKind
    watched.put("lost", "prefetched", lease=10.0)
    watched.put("spent", lease=10.0, max_attempts=1)
    watched.put("over", ttl=10.0)
    watched.put("late", ttl=20.0)
    watched.put("group", "group", ttl=20.0, group="g")
    watched.put("nacked", "released", ttl=5.0)
    watched.put("delayed", delay=5.0)
    watched.claim("lost", "spent")
    watched.claim("prefetched", prefetch=True)
    nacked, released = watched.claim("nacked", "released")
    harness.advance(6.0)
    store.count()
    with watched.tells("a nack after the ttl", _Told(kind.EXPIRED, "nacked")):
        store.nack([nacked], error="no")
    with watched.tells("a release after the ttl", _Told(kind.EXPIRED, "released")):
        store.release([released])
    harness.advance(5.0)
    undelivered = _Told(kind.RECLAIMED, "prefetched", 0)
    if not store.capabilities.counts_delivered:
        undelivered = _Told(kind.RECLAIMED, "prefetched", 1, LEASE_RAN_OUT)
    with watched.tells(
        "the end of leases and a ttl",
        _Told(kind.RECLAIMED, "lost", 1, LEASE_RAN_OUT),
        _Told(kind.DEAD, "spent", 1, LEASE_RAN_OUT),
        _Told(kind.EXPIRED, "over"),
        undelivered,
    ):
        store.count()
    (claim,) = watched.claim("lost")
    harness.advance(11.0)
    due = [_Told(kind.RECLAIMED, "lost", 2, LEASE_RAN_OUT)]
    due += [_Told(kind.EXPIRED, name) for name in ("late", "group", "group")]
    # A store may undo what it has noticed within a call that raises. Then the next one notices it.
    with watched.tells("a stale ack, and what it notices", *due):
        with stale([claim.id], "a stale ack"):
            store.ack([claim])
        store.count()
    watched.put("late", ttl=5.0)
    harness.advance(6.0)
    with watched.tells("a claim that finds nothing, and what it notices", _Told(kind.EXPIRED, "late")):
        empty(store, ["nobody"])
        store.count()


def _removed_and_redriven(harness: MessageStoreHarness) -> None:
    watched = _watch(harness, "removed")
    store, kind = watched.store, EventKind
    dead = ("redriven", "one of all", "another", "dead", "gone")
    for name in dead:
        watched.put(name)
    store.fail(watched.claim(*dead), "why")
    with watched.tells("redrive()", _Told(kind.REDRIVEN, "redriven", 0)):
        store.redrive(min(watched.ids["redriven"]))
    with watched.tells("cancel() of a dead message", _Told(kind.CANCELLED, "gone")):
        store.cancel(min(watched.ids["gone"]))
    with watched.tells("redrive_all() of a topic", _Told(kind.REDRIVEN, "another", 0)):
        store.redrive_all("another")
    with watched.tells("redrive_all()", *(_Told(kind.REDRIVEN, name, 0) for name in ("one of all", "dead"))):
        store.redrive_all()
    store.fail(watched.claim("dead"))
    with watched.tells("purge() of the dead", _Told(kind.PURGED, "dead")):
        store.purge(dead=True)
    with watched.tells("cancel()", _Told(kind.CANCELLED, "another")):
        store.cancel(min(watched.ids["another"]))
    watched.put(*["many"] * 5, group="g")
    left = ("redriven", "one of all", *["many"] * 5)
    with watched.tells("purge()", *(_Told(kind.PURGED, name) for name in left)):
        store.purge()


def _nothing_to_tell(harness: MessageStoreHarness) -> None:
    watched = _watch(harness, "nothing")
    store = watched.store
    entry = harness.entry("a", topic="keyed", key=b"key")
    watched.put("keyed", key=b"key")
    watched.put("other", max_attempts=None)
    watched.put("finished")
    (claim,) = watched.claim("keyed", prefetch=True)
    (finished,) = watched.claim("finished")
    store.ack([finished])
    with watched.tells("what changes no message"):
        check(store.put([entry]) == [None], "put() of an active key gave an id")
        store.deliver([claim])
        store.extend([claim], harness.seconds(60.0))
        store.set_rate("other", 1e-6)
        store.pause("other")
        store.resume("other")
        lock = lock_of(store, "other")
        store.unlock_topic(lock)
        store.release([finished])
        store.cancel(finished.id)
        store.cancel(claim.id)
        store.redrive(claim.id)
        store.redrive_all()
        store.purge("nobody")
        store.purge(dead=True)
        store.release_key(b"nobody's")
        store.reclaim()
        store.find(claim.id)
        store.peek()
        list(store.scan())
        store.topics()
        store.stats("other")
        with contextlib.suppress(StaleClaimError):
            store.ack([claim, finished])
    store.fail([claim])
    watched.put("keyed", key=b"key")
    with watched.tells("a redrive that is refused"), contextlib.suppress(DuplicateError):
        store.redrive(claim.id)
    store.observe(None)
    with watched.tells("what is not observed any more"):
        store.purge()


def _closed(harness: MessageStoreHarness) -> None:
    watched = _watch(harness, "closed")
    watched.put("claimed", "ready")
    watched.claim("claimed")
    with watched.tells("close()", _Told(EventKind.RECLAIMED, "claimed", 1, HOLDER_CLOSED)):
        watched.store.close()
        watched.store.close()


def _each_its_own(harness: MessageStoreHarness) -> None:
    if not harness.capabilities.handles:
        return
    watched, other = _watch(harness, "own"), _watch(harness, "own")
    watched.put("a", "b", lease=10.0)
    (claim, _) = watched.claim("a", "b")
    watched.events.clear()
    check(not other.events, f"an observer was told what another object did: {other.events}")
    other.ids = watched.ids
    with (
        watched.tells("what another object did"),
        other.tells("ack() by another object", _Told(EventKind.ACKED, "a", 1)),
    ):
        other.store.ack([claim])
    harness.advance(11.0)
    with other.tells("a lease", _Told(EventKind.RECLAIMED, "b", 1, LEASE_RAN_OUT)):
        other.store.count()
    with watched.tells("a lease of which another object has noticed the end"):
        watched.store.count()


def _without_a_lock(harness: MessageStoreHarness) -> None:
    """Check that the observer may wait for another thread that uses the store, and sees what it is told."""
    store = harness.open("lock")
    other = harness.another(store, "lock")
    seen: list[tuple[int, State | None]] = []

    def observer(events: Sequence[MessageEvent]) -> None:
        (event,) = events
        assert event.id is not None
        record = other.find(event.id)
        seen.append((threading.get_ident(), None if record is None else record.state))
        store.observe(None)  # the call below tells nobody
        run_threads(lambda: put(store, harness.entry("beside", topic="beside")), timeout=_PATIENCE)
        run_threads(other.count, timeout=_PATIENCE)

    held: list[MessageClaim] = []
    calls: dict[State | None, Callable[[], object]] = {
        State.READY: lambda: put(store, harness.entry("a", topic="a")),
        State.CLAIMED: lambda: held.extend(claims_of(store.claim(1, ["a"]))),
        State.DEAD: lambda: store.fail(held),
        None: lambda: store.cancel(held[0].id),
    }
    for state, call in calls.items():
        seen.clear()
        store.observe(observer)
        call()
        check(
            seen == [(threading.get_ident(), state)],
            f"the observer was called in the threads and saw {seen}, and this is {threading.get_ident()}",
        )
    put(store, harness.entry("held", topic="a"))
    id = claims_of(store.claim(1, ["a"]))[0].id
    seen.clear()
    store.observe(observer)
    store.release([MessageClaim(id, -1)])
    check(not seen, f"release() of a stale claim is told: {seen}")
    store.observe(None)


class _Undone(Exception):
    """Raised to have a transaction rolled back."""


def _transactions(harness: MessageStoreHarness) -> None:
    watched = _watch(harness, "transactions")
    store, kind = watched.store, EventKind
    watched.put("lost", lease=10.0)
    watched.claim("lost")
    harness.advance(11.0)
    with (
        watched.tells("a transaction that is rolled back"),
        contextlib.suppress(_Undone),
        store.transaction(),
    ):
        watched.put("undone")
        store.ack(watched.claim("undone"))
        check(not watched.events, f"before the end of a transaction is told: {watched.events}")
        raise _Undone
    with watched.tells("a lease", _Told(kind.RECLAIMED, "lost", 1, LEASE_RAN_OUT)):
        store.count()
    order = [kind.PUT, kind.CLAIMED, kind.ACKED]
    watched.events.clear()
    with store.transaction(), store.transaction():
        watched.put("done")
        store.ack(watched.claim("done"))
        check(not watched.events, f"before the commit of a transaction is told: {watched.events}")
    found = [event.kind for event in watched.events]
    check(found == order, f"after a commit is told: {watched.events}, not {order}")

    def observer(events: Sequence[MessageEvent]) -> None:
        store.observe(None)
        run_threads(lambda: put(store, harness.entry("beside", topic="beside")), timeout=_PATIENCE)
        watched.events.extend(events)

    watched.events.clear()
    store.observe(observer)
    with store.transaction():
        watched.put("last")
    check(len(watched.events) == 1, f"after a commit is told: {watched.events}")


def _joined(harness: MessageStoreHarness) -> None:
    watched = _watch(harness, "joined")
    connection = harness.connect(watched.store, "joined")
    with watched.tells("what a joined store does"):
        connection.begin()
        put(watched.store.joined(connection), harness.entry("a"))
        connection.commit()


_TOPICS = ("a", "b")


def _add_up(harness: MessageStoreHarness, pick: random.Random, what: str) -> None:
    """Check that what is told explains each count, whatever happens."""
    policy = {"max_attempts": 2, "backoff": harness.backoff(2.0)}
    watched = _watch(harness, what, **policy)
    other = _watch(harness, what, **policy) if harness.capabilities.handles else watched
    held: list[MessageClaim] = []
    removed: Counter[tuple[str, bool]] = Counter()
    """How many messages of a topic were removed by a call, and whether they were dead."""

    def add() -> None:
        delay = pick.choice((0, 0, 0, 5.0))
        entries = [
            harness.entry(
                topic=pick.choice(_TOPICS),
                delay=delay,
                group=pick.choice((None, "g")),
                lease=pick.choice((5.0, 50.0)),
            )
            for _ in range(pick.randint(1, 3))
        ]
        put(store, *entries)

    def claim() -> None:
        with contextlib.suppress(Empty):
            records = store.claim(pick.randint(1, 3), prefetch=pick.random() < 0.3)
            held.extend(claims_of(records))

    def settle() -> None:
        verbs: list[Callable[[Sequence[MessageClaim]], object]] = [
            store.ack, store.nack, store.release, store.fail,
        ]  # fmt: skip
        if held:
            with contextlib.suppress(StaleClaimError):
                pick.choice(verbs)([held.pop(pick.randrange(len(held)))])

    def cancel() -> None:
        id = pick.randint(1, max(1, store.stats().puts))
        record = store.find(id)
        if store.cancel(id) and record is not None:
            removed[record.topic, record.state is State.DEAD] += 1

    def purge() -> None:
        topic, dead = pick.choice(_TOPICS), pick.random() < 0.5
        removed[topic, dead] += store.purge(topic, dead=dead)

    def redrive() -> None:
        store.redrive_all()

    steps = [add, add, claim, claim, claim, settle, settle, cancel, purge, redrive]
    for _ in range(60):
        store = pick.choice((watched.store, other.store))
        pick.choice(steps)()
        harness.advance(pick.choice((0.0, 1.0, 3.0)))
        _check_sums(store, [watched] if other is watched else [watched, other], removed)


def _check_sums(
    store: MessageStore, watching: Sequence[_Watched], removed: Counter[tuple[str, bool]]
) -> None:
    told: list[MessageEvent] = []
    while True:  # A look may itself notice what is due.
        puts = store.stats().puts
        stats = {topic: store.stats(topic) for topic in _TOPICS}
        before, told = told, [event for each in watching for event in each.events]
        if before == told:
            break
    sums: Counter[tuple[EventKind, str]] = Counter()
    for event in told:
        sums[event.kind, event.topic] += event.count
    check(puts == sum(sums[EventKind.PUT, topic] for topic in _TOPICS), f"of {puts} puts is told: {told}")
    for topic, found in stats.items():
        count = {kind: sums[kind, topic] for kind in EventKind}
        ended = sum(
            count[kind]
            for kind in (
                EventKind.ACKED, EventKind.NACKED, EventKind.RELEASED, EventKind.RECLAIMED, EventKind.DEAD,
            )
        )  # fmt: skip
        entered = count[EventKind.PUT] + count[EventKind.REDRIVEN]
        left = count[EventKind.ACKED] + count[EventKind.DEAD] + removed[topic, False]
        unfinished = found.ready + found.delayed + found.blocked + found.claimed
        gone = count[EventKind.CANCELLED] + count[EventKind.PURGED]
        dead = count[EventKind.DEAD] - count[EventKind.REDRIVEN] - removed[topic, True]
        for name, real, explained in (
            ("claimed", found.claimed, count[EventKind.CLAIMED] - ended),
            ("unfinished", unfinished, entered - left),
            ("dead", found.dead, dead),
            ("removed", removed[topic, False] + removed[topic, True], gone),
        ):
            check(real == explained, f"{real} messages of {topic!r} are {name}, and by {count} {explained}")


EVENT_LAWS: tuple[MessageStoreLaw, ...] = (what_was_done_is_told,)
