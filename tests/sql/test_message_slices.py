"""Many leases, ttls and delays end at once: no writer waits for all of them, and no answer leaves one out."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from persistcoll import StaleClaimError
from persistcoll.engine.message_records import (
    HOLDER_DIED,
    LEASE_RAN_OUT,
    MessageClaim,
    MessageEntry,
    MessagePolicy,
)
from persistcoll.engine.records import State
from persistcoll.sqlite import message_life
from persistcoll.sqlite.message_store import SQLiteMessageStore
from tests.conformance.message_stores import SQLiteMessageStores
from tests.sql.test_costs import Meter

COUNT = 10
AT_ONCE, STEPS = 4, 3
LATER = 61.0
POLICY = MessagePolicy(lease=60.0, max_attempts=3, backoff=None)


class Due:
    """A store of messages whose claims, ttls or delays end at the same time.

    :ivar claims: those of the claimed messages.
    """

    def __init__(self, directory: Path, policy: MessagePolicy = POLICY) -> None:
        self.policy = policy
        self.stores = SQLiteMessageStores(directory)
        self.path = directory / "messages.db"
        self.store = self.open()
        self.claims: list[MessageClaim] = []

    def open(self) -> SQLiteMessageStore:
        store = self.stores.open("messages", self.policy)
        assert isinstance(store, SQLiteMessageStore)
        return store

    def put(self, count: int = COUNT, **fields: Any) -> list[Any]:
        return self.store.put(
            [
                MessageEntry(b"%d" % number, "odd" if number % 2 else "even", **fields)
                for number in range(count)
            ]
        )

    def claim(self, count: int = COUNT, **fields: Any) -> None:
        self.put(count, **fields)
        self.store.claim(count, claims=self.claims)

    def rows(self, text: str) -> list[Any]:
        with closing(sqlite3.connect(self.path)) as database:
            return database.execute(text).fetchall()

    def left(self) -> int:
        """How many of them no transaction has ended, as another program sees it."""
        ((count,),) = self.rows(f"SELECT count(*) FROM messages_1 WHERE due <= {self.stores.now()}")
        return int(count)


@pytest.fixture
def due(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Due]:
    monkeypatch.setattr(message_life, "_ENDED", AT_ONCE)
    monkeypatch.setattr(message_life, "_STEPS", STEPS)
    found = Due(tmp_path)
    with closing(found.store):
        yield found


TOGETHER: dict[str, Callable[[Due], Any]] = {
    "ttl": lambda due: due.put(ttl=60.0),
    "ttl of what is delayed": lambda due: due.put(ttl=60.0, delay=9.0),
    "delay with a ttl": lambda due: due.put(delay=60.0, ttl=1000.0),
    "lease": lambda due: due.claim(),
    "lease of a key": lambda due: (
        [due.store.put([MessageEntry(b"", key=b"%d" % each)]) for each in range(COUNT)]
        and due.store.claim(COUNT)
    ),
    "lease of a head": lambda due: (
        [due.store.put([MessageEntry(b"", group=f"{each}")]) for each in range(COUNT)]
        and due.store.claim(COUNT)
    ),
    "lease of what is prefetched": lambda due: due.put() and due.store.claim(COUNT, prefetch=True),
}
IN_STEPS: dict[str, Callable[[Due], Any]] = {
    "ttl of a key": lambda due: [
        due.store.put([MessageEntry(b"", key=b"%d" % each, ttl=60.0)]) for each in range(COUNT)
    ],
    "ttl of a group": lambda due: due.put(ttl=60.0, group="g"),
    "last lease": lambda due: due.claim(max_attempts=1),
    "lease of a message that says something itself": lambda due: due.claim(max_attempts=5),
}


@pytest.mark.parametrize("name", [*TOGETHER, *IN_STEPS])
def test_each_writer_ends_a_limited_number(due: Due, name: str) -> None:
    (TOGETHER | IN_STEPS)[name](due)
    due.stores.advance(LATER)
    lefts = [due.left()]
    for number in range(5):
        due.store.put([MessageEntry(b"new %d" % number)])
        lefts.append(due.left())
    assert lefts == ([10, 6, 2, 0, 0, 0] if name in TOGETHER else [10, 7, 4, 1, 0, 0])
    stats = due.store.stats()
    assert stats.ready + stats.dead + stats.expired == COUNT + 5
    assert (stats.claimed, stats.delayed, stats.blocked) == (0, 0, 0)


@pytest.mark.parametrize("name", TOGETHER)
def test_a_slice_costs_as_many_statements_as_one_message(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meter = Meter(monkeypatch)
    due = Due(tmp_path)
    with closing(due.store):
        words = []
        for count in (2, 2, COUNT):  # the first time the store has to look for the topics
            monkeypatch.setattr("tests.sql.test_message_slices.COUNT", count)
            TOGETHER[name](due)
            due.stores.advance(LATER)
            words.append(meter.words(lambda: due.store.put([MessageEntry(b"new", "odd")])))
            assert due.left() == 0
            due.store.purge()
    assert words[1] == words[2]
    assert "select*2 " in words[2], "what is left of the slice, and when something is due next"


def test_what_needs_steps_and_what_ends_together_in_one_slice(due: Due) -> None:
    """Whatever their order, each message ends as if it were alone."""
    store = due.store
    names: dict[int, str] = {}

    def put(name: str, count: int = 1, **fields: Any) -> None:
        ids = store.put([MessageEntry(name.encode(), name, **fields) for _ in range(count)])
        names.update({id: name for id in ids if id is not None})

    for number in range(3):
        put("expires", ttl=60.0)
        put("expires with a key", ttl=60.0, key=b"expired %d" % number)
        put("expires in a group", ttl=60.0, group="g")
        put("next", group="g", ttl=1000.0)
        put("delayed", delay=60.0, ttl=1000.0)
        put("comes back", ttl=1000.0)
        put("comes back late", ttl=60.0)
        put("last", max_attempts=1)
    for name in ("comes back", "comes back late", "last"):
        store.claim(9, [name])
    put("prefetched", 2)
    store.claim(9, ["prefetched"], prefetch=True)
    due.stores.advance(LATER)
    assert store.reclaim() == 3 + 3 + 3 + 2
    left = Counter((names[record.id], record.state, record.error) for record in store.scan())
    assert left == {
        ("next", State.READY, None): 1,
        ("next", State.BLOCKED, None): 2,
        ("delayed", State.READY, None): 3,
        ("comes back", State.READY, LEASE_RAN_OUT): 3,
        ("last", State.DEAD, LEASE_RAN_OUT): 3,
        ("prefetched", State.READY, None): 2,
    }
    attempts = {(names[record.id], record.attempts, record.deliveries) for record in store.scan()}
    assert attempts >= {("comes back", 1, 1), ("prefetched", 0, 1), ("last", 1, 1)}
    assert store.stats().expired == 3 * 4
    # The ttls go on.
    due.stores.advance(1000.0)
    assert store.stats().expired == 3 * 4 + 3 * 3


# What a call finds that is the first one after the end of all.


def stale(call: Callable[[], object]) -> str:
    try:
        call()
    except StaleClaimError as error:
        return f"{len(error.ids)} stale"
    return "settled"


LEASES: dict[str, tuple[Callable[[Due], Any], Any]] = {
    "ack": (lambda due: stale(lambda: due.store.ack(due.claims)), f"{COUNT} stale"),
    "nack": (lambda due: stale(lambda: due.store.nack(due.claims[-1:])), "1 stale"),
    "fail": (lambda due: stale(lambda: due.store.fail(due.claims[-1:])), "1 stale"),
    "deliver": (lambda due: stale(lambda: due.store.deliver(due.claims[-1:])), "1 stale"),
    "extend": (lambda due: stale(lambda: due.store.extend(due.claims[-1:], 9.0)), "1 stale"),
    "release": (lambda due: due.store.release(due.claims), 0),
    "reclaim": (lambda due: due.store.reclaim(), COUNT),
    "count": (lambda due: due.store.count(), COUNT),
    "count of a topic": (lambda due: due.store.count("odd"), COUNT // 2),
    "stats": (lambda due: (due.store.stats().ready, due.store.stats().claimed), (COUNT, 0)),
    "find": (lambda due: due.store.find(COUNT).state, State.READY),  # type: ignore[union-attr]
    "scan": (lambda due: len([*due.store.scan(State.READY)]), COUNT),
    "claim": (lambda due: len(due.store.claim(99)), COUNT),
    "claim of a topic": (lambda due: len(due.store.claim(99, ["odd"])), COUNT // 2),
    "cancel": (lambda due: due.store.cancel(COUNT), True),
    "purge": (lambda due: due.store.purge(), COUNT),
    "purge of a topic": (lambda due: due.store.purge("odd"), COUNT // 2),
    "fullest topic": (lambda due: due.store.lock_topic(None, 9.0).topic, "even"),  # type: ignore[union-attr]
}


@pytest.mark.parametrize("name", LEASES)
def test_after_many_leases_the_first_answer_misses_nothing(due: Due, name: str) -> None:
    ask, expected = LEASES[name]
    due.claim()
    due.stores.advance(LATER)
    assert ask(due) == expected
    assert due.store.stats().claimed == (expected if name.startswith("claim") else 0)


def keyed(due: Due) -> None:
    due.store.put([MessageEntry(b"", "odd", key=b"%d" % number, ttl=60.0) for number in range(COUNT)])


TTLS: dict[str, tuple[Callable[[Due], Any], Any]] = {
    "put of a key": (lambda due: due.store.put([MessageEntry(b"", key=b"9", ttl=9.0)]), [COUNT + 2]),
    "release of a key": (lambda due: due.store.release_key(b"9"), False),
    "redrive": (lambda due: due.store.redrive(1), True),
    "redrive of all": (lambda due: due.store.redrive_all(), 1),
    "cancel": (lambda due: due.store.cancel(COUNT + 1), False),
    "purge": (lambda due: due.store.purge(), 0),
    "find": (lambda due: due.store.find(COUNT + 1), None),
    "topics": (lambda due: due.store.topics(), {"default": 0}),
    "is empty": (lambda due: due.store.is_empty("odd"), True),
    "stats": (lambda due: due.store.stats().expired, COUNT),
    "has unfinished": (lambda due: due.store.has_unfinished(), False),
}


@pytest.mark.parametrize("name", TTLS)
def test_after_many_ttls_the_first_answer_misses_nothing(due: Due, name: str) -> None:
    """Each message has a key, and that of a dead one is active for the last of them."""
    ask, expected = TTLS[name]
    due.store.put([MessageEntry(b"dead", key=b"9")])
    due.store.fail([record.claim for record in due.store.claim() if record.claim is not None])
    keyed(due)
    due.stores.advance(LATER)
    assert ask(due) == expected
    assert due.left() == 0 or name == "is empty"


def test_a_transaction_of_the_caller_ends_all_that_it_asks_for(due: Due) -> None:
    due.put(ttl=60.0)
    due.stores.advance(LATER)
    with due.store.transaction():
        due.store.put([MessageEntry(b"new")])
        assert due.store.count() == 1
        assert due.left() == COUNT  # so far only this transaction knows
    assert due.left() == 0


def test_a_claim_of_a_message_after_one_that_expired_in_its_group(due: Due) -> None:
    """An ack makes the next one the head, although that has expired. No claim gives it."""
    store = due.store
    (head,) = store.put([MessageEntry(b"head", "g", group="g")])
    store.put([MessageEntry(b"expires", "g", group="g", ttl=60.0), MessageEntry(b"last", "g", group="g")])
    (record,) = store.claim(lease=1000.0)
    assert (record.id, record.claim) == (head, record.claim)
    due.put(ttl=59.0)
    due.stores.advance(LATER)
    store.ack([record.claim] if record.claim is not None else [])
    assert due.left() > 0
    assert [each.payload for each in store.claim(99)] == [b"last"]


# Many claims of one holder.


def test_all_claims_of_a_dead_holder_end(due: Due) -> None:
    due.claim(COUNT, ttl=1000.0)
    due.claim(COUNT, max_attempts=1)
    left: Any = due.stores.crashed("messages", POLICY)
    with closing(left):
        assert left.stats().claimed == 0
        found = Counter((record.state, record.error) for record in left.scan())
        assert found == {(State.READY, HOLDER_DIED): COUNT, (State.DEAD, HOLDER_DIED): COUNT}
        due.stores.advance(1001.0)
        assert left.stats().expired == COUNT


def test_a_handle_that_closes_after_a_lease_says_so(due: Due) -> None:
    due.claim()
    other = due.open()
    with closing(other):
        due.stores.advance(LATER)
        due.store.close()
        assert {record.error for record in other.scan()} == {LEASE_RAN_OUT}


def test_no_body_is_read_to_end_what_is_due(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meter = Meter(monkeypatch)
    due = Due(tmp_path, POLICY._replace(keep_dead=0))
    with closing(due.store):
        for make in (TOGETHER | IN_STEPS).values():
            make(due)
        due.stores.advance(LATER)
        meter.statements.clear()
        due.store.put([MessageEntry(b"new")])
        assert due.left() == 0
        read = [text for text in meter.statements if text.startswith("SELECT")]
        assert len(read) > 15
        assert not [text for text in read if "payload" in text or "headers" in text]


def test_many_that_are_kept_too_long_are_removed_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program, or an object that keeps fewer, has left them."""
    meter = Meter(monkeypatch)
    due = Due(tmp_path, POLICY._replace(keep_done=500))
    with closing(due.store), closing(Due(tmp_path, POLICY._replace(keep_done=10)).store) as other:
        due.claim(301)
        due.store.ack(due.claims[:300])
        words = meter.words(lambda: other.ack(due.claims[300:]))
        assert other.stats().done == 10
        assert words == "begin select update*4 delete commit"
