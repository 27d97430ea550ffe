"""What an operation on messages costs, counted: transactions, statements, syncs, pages, instructions."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from persistcoll.engine.message_records import MessageEntry, MessagePolicy
from persistcoll.engine.records import Durability
from tests.conformance.message_stores import SQLiteMessageStores
from tests.sql.test_costs import Meter
from tests.sql.test_syncs import Syncs

BODY = bytes(100)
PAGE = 1024
FRAME = PAGE + 24  # bytes in the log
KEEP = MessagePolicy(keep_done=1_000_000, max_attempts=None, backoff=None)


@pytest.fixture
def meter(monkeypatch: pytest.MonkeyPatch) -> Meter:
    return Meter(monkeypatch)


class Opened:
    """A message store, and what its operations cost."""

    def __init__(self, directory: Path, durability: Durability = "process", keep: int = 0) -> None:
        self.stores = SQLiteMessageStores(directory, durability)
        self.store: Any = self.stores.open("messages", KEEP._replace(keep_done=keep))
        self.path = directory / "messages.db"
        self.held: list[Any] = []

    def put(self, count: int = 1, **fields: Any) -> None:
        self.store.put([MessageEntry(BODY, **fields) for _ in range(count)])

    def claim(self, count: int = 1, **options: Any) -> None:
        self.held += [record.claim for record in self.store.claim(count, **options)]

    def settle(self, verb: str, count: int = 1, *arguments: Any) -> None:
        taken, self.held = self.held[:count], self.held[count:]
        getattr(self.store, verb)(taken, *arguments)

    def extend(self) -> None:
        self.store.extend(self.held[:1], 30.0)

    def deliver(self) -> None:
        self.store.deliver(self.held[:1])

    def pages(self, call: Callable[[], object]) -> int:
        """Return how many pages a call writes into the log, which has just been emptied."""
        self.store._database.checkpoint(1.0)
        before = self.written()
        call()
        return self.written() - before

    def written(self) -> int:
        """Count the frames of the newest generation of the log, by its salts."""
        data = Path(f"{self.path}-wal").read_bytes()
        salts = data[16:24]
        count = 0
        for at in range(32, len(data) - FRAME + 1, FRAME):
            if data[at + 8 : at + 16] != salts:
                break
            count += 1
        return count


@pytest.fixture(params=["process", "power"])
def opened(request: pytest.FixtureRequest, meter: Meter, tmp_path: Path) -> Iterator[Opened]:
    found = Opened(tmp_path, request.param)
    with closing(found.store):
        found.put(300, topic="a")
        found.put(20, topic="b")
        found.claim()  # the first claim makes the handle a holder
        yield found


OPERATIONS: dict[str, tuple[Callable[[Opened], object], Callable[[Opened], object], str, int]] = {
    # what comes before, what is measured, its statements, its syncs at "power"
    "put": (
        lambda it: None,
        lambda it: it.put(topic="a"),
        "begin insert update commit", 1,
    ),
    "put of 100": (
        lambda it: None,
        lambda it: it.put(100, topic="a"),
        "begin insert*100 update commit", 1,
    ),
    "put of a key": (
        lambda it: None,
        lambda it: it.put(topic="a", key=b"key"),
        "begin select insert*2 update commit", 1,
    ),
    "put of a key with a window": (
        lambda it: None,
        lambda it: it.put(topic="a", key=b"key", key_window=9.0),
        "begin select delete insert*2 update commit", 1,
    ),
    "put into a group": (
        lambda it: None,
        lambda it: it.put(topic="a", group="group"),
        "begin insert*2 update commit", 1,
    ),
    "claim": (
        lambda it: None,
        lambda it: it.claim(),
        "begin select update*3 commit", 0,
    ),
    "claim of a topic": (
        lambda it: None,
        lambda it: it.claim(topics=["b"]),
        "begin select update*3 commit", 0,
    ),
    "claim of several topics": (
        lambda it: None,
        lambda it: it.claim(topics=["a", "b", "c"]),
        "begin select*3 update*3 commit", 0,
    ),
    "claim of 32": (
        lambda it: None,
        lambda it: it.claim(32),
        "begin select update*34 commit", 0,
    ),
    "ack": (
        lambda it: it.claim(),
        lambda it: it.settle("ack"),
        "begin select delete update*2 commit", 1,
    ),
    "ack of 32": (
        lambda it: it.claim(31),
        lambda it: it.settle("ack", 32),
        "begin select*32 delete*32 update*2 commit", 1,
    ),
    "nack": (
        lambda it: it.claim(),
        lambda it: it.settle("nack"),
        "begin select update*3 commit", 1,
    ),
    "nack for later": (
        lambda it: it.claim(),
        lambda it: it.settle("nack", 1, 60.0),
        "begin select update*3 commit", 1,
    ),
    "fail": (
        lambda it: it.claim(),
        lambda it: it.settle("fail"),
        "begin select update*3 commit", 1,
    ),
    "release": (
        lambda it: it.claim(),
        lambda it: it.settle("release"),
        "begin select update*3 commit", 0,
    ),
    "extend": (
        lambda it: None,
        lambda it: it.extend(),
        "begin select update commit", 0,
    ),
    "deliver": (
        lambda it: None,
        lambda it: it.deliver(),
        "update", 0,
    ),
    "find": (
        lambda it: None,
        lambda it: it.store.find(9),
        "select", 0,
    ),
    "peek": (
        lambda it: None,
        lambda it: it.store.peek(),
        "select", 0,
    ),
    "count": (
        lambda it: None,
        lambda it: it.store.count(),
        "", 0,
    ),
    "count of a topic": (
        lambda it: None,
        lambda it: it.store.count("a"),
        "", 0,
    ),
    "topics": (
        lambda it: None,
        lambda it: it.store.topics(),
        "select", 0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_statements_and_syncs_of_each_operation(
    opened: Opened, meter: Meter, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare, call, statements, syncs = OPERATIONS[name]
    prepare(opened)
    counted = Syncs(opened.store._database, monkeypatch)
    assert meter.words(lambda: call(opened)) == statements
    assert counted.count == (syncs if opened.store._power else 0)


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("put", 4, 6),  # because every sixth put begins a page of the table
        ("put of 100", 25, 32),
        ("claim", 5, 8),
        ("claim of 32", 10, 16),
        ("ack", 4, 6),
        ("ack of 32", 8, 14),
        ("nack", 5, 8),
        ("release", 5, 8),
        ("extend", 1, 3),
        ("deliver", 1, 2),
        ("find", 0, 0),
        ("count", 0, 0),
        ("topics", 0, 0),
    ],
)
def test_the_pages_of_each_operation(opened: Opened, name: str, least: int, most: int) -> None:
    prepare, call, *_ = OPERATIONS[name]
    if name == "deliver":
        opened.held.clear()
        opened.claim(prefetch=True)
    prepare(opened)
    assert least <= opened.pages(lambda: call(opened)) <= most


def test_the_pages_of_puts_on_average(opened: Opened) -> None:
    """Pages are divided at some puts, and at which ones depends on the length of a row."""
    count = 120
    written = sum(opened.pages(lambda: opened.put(topic="a")) for _ in range(count))
    assert 4.5 <= written / count <= 5


# Costs with any number of messages in every state, of keys and of topics.


def ready(it: Opened, count: int) -> None:
    it.put(count, topic="others")


def delayed(it: Opened, count: int) -> None:
    it.put(count, topic="others", delay=1000.0)


def claimed(it: Opened, count: int) -> None:
    it.put(count, topic="others")
    it.claim(count)
    it.held.clear()


def done(it: Opened, count: int) -> None:
    it.put(count, topic="others")
    it.claim(count)
    it.settle("ack", count)


def dead(it: Opened, count: int) -> None:
    it.put(count, topic="others")
    it.claim(count)
    it.settle("fail", count)


def blocked(it: Opened, count: int) -> None:
    it.put(count, topic="others", group="group")


def expiring(it: Opened, count: int) -> None:
    it.put(count, topic="others", ttl=1000.0)


def old_keys(it: Opened, count: int) -> None:
    """Keys of which the windows are over."""
    for number in range(0, count, 100):
        keys = [b"%d" % key for key in range(number, min(count, number + 100))]
        it.store.put([MessageEntry(BODY, "others", key=key, key_window=1.0) for key in keys])
        it.claim(len(keys))
        it.settle("ack", len(keys))
    it.stores.advance(2.0)


def topics(it: Opened, count: int) -> None:
    it.store.put([MessageEntry(BODY, f"topic {number}") for number in range(5 * count)])


def many_topics_and_a_gate(it: Opened, count: int) -> None:
    topics(it, count)
    it.store.pause("topic 7")


def priorities(it: Opened, count: int) -> None:
    it.put(count, topic="others")
    it.put(count, topic="others", priority=-1.5)


STATES = [
    ready, delayed, claimed, done, dead, blocked, expiring, old_keys, topics, many_topics_and_a_gate,
    priorities,
]  # fmt: skip
FEW, MANY = 60, 2_000
MORE = 60
"""How many instructions more are the depth of a tree."""


def cycle(it: Opened) -> dict[str, Callable[[], object]]:
    """Return calls that leave as many messages in each state as they found, or one more."""
    return {
        "put": lambda: it.put(topic="mine", priority=9.0),
        "put of a key": lambda: it.put(topic="mine", key=os.urandom(8), key_window=1000.0),
        "put into a group": lambda: it.put(topic="mine", group="mine"),
        "claim": it.claim,
        "extend": it.extend,
        "deliver": it.deliver,
        "ack": lambda: it.settle("ack"),
        "claim of a topic": lambda: it.claim(topics=["mine"]),
        "nack": lambda: it.settle("nack"),
        "claim of two topics": lambda: it.claim(topics=["mine", "another"]),
        "nack for later": lambda: it.settle("nack", 1, 500.0),
        "claim of the group": lambda: it.claim(topics=["mine"]),
        "fail": lambda: it.settle("fail"),
        "find": lambda: it.store.find(3),
        "peek": it.store.peek,
        "count": it.store.count,
        "count of a topic": lambda: it.store.count("mine"),
        "stats": it.store.stats,
        "stats of a topic": lambda: it.store.stats("mine"),
        "cancel": lambda: it.store.cancel(1),
        "reclaim": it.store.reclaim,
    }


def costs(it: Opened, meter: Meter) -> dict[str, tuple[int, int]]:
    for call in cycle(it).values():  # the first round adds the topic and the statements' plans
        call()
    found = {}
    for name, call in cycle(it).items():
        meter.statements.clear()
        instructions, _ = meter.cost(call)
        found[name] = instructions, len(meter.statements)
    return found


@pytest.mark.parametrize("fill", STATES, ids=lambda fill: fill.__name__)
def test_nothing_costs_more_with_more_messages(
    fill: Callable[[Opened, int], None], meter: Meter, tmp_path: Path
) -> None:
    found = []
    for size in (FEW, MANY):
        directory = tmp_path / str(size)
        directory.mkdir()
        opened = Opened(directory, keep=10 * MANY)
        with closing(opened.store):
            opened.put(10, topic="another", priority=5.0)
            opened.claim(2)
            opened.settle("ack")
            opened.held.clear()
            fill(opened, size)
            found.append(costs(opened, meter))
    few, many = found
    for name, (instructions, statements) in few.items():
        assert many[name][0] <= instructions + MORE, name
        assert many[name][1] == statements, name


def test_what_does_grow_is_seen(meter: Meter, tmp_path: Path) -> None:
    """A test of the test."""
    opened = Opened(tmp_path)
    with closing(opened.store):
        topics(opened, 4)
        few, _ = meter.cost(opened.store.topics)
        topics(opened, 40)
        many, _ = meter.cost(opened.store.topics)
    assert many > 5 * few


def test_many_keys_that_are_over_are_removed_by_and_by(tmp_path: Path) -> None:
    opened = Opened(tmp_path)
    with closing(opened.store):
        old_keys(opened, 200)
        database = opened.store._database
        counts = []
        for number in range(20):
            opened.put(key=b"new %d" % number, key_window=1.0)
            counts.append(database.fetch_one("SELECT count(*) FROM keys_1 WHERE unfinished = 0", ())[0])
        assert counts[0] > 100
        assert counts[-1] == 0
