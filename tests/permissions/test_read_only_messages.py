"""A message store with ``read_only=True`` answers every look, and writes nothing at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from persistcoll import StorageError, StoreMissingError
from persistcoll.engine.message_records import MessageClaim, MessageEntry, MessagePolicy, TopicClaim
from persistcoll.engine.records import State
from persistcoll.errors import Empty
from persistcoll.sqlite.message_store import SQLiteMessageStore
from persistcoll.sqlite.open import DatabaseLocation, open_message_store
from tests.permissions.kinds import die, everything, in_child

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

NOW = 1e9


def opened(path: Path, *, read_only: bool = False, now: float = NOW) -> SQLiteMessageStore:
    return open_message_store(
        DatabaseLocation(path / "data.db", read_only=read_only),
        name="messages",
        policy=MessagePolicy(keep_done=10, max_attempts=None),
        serializer="raw",
        executes_code=False,
        durability="process",
        clock=lambda: now,
    )


def fill(store: SQLiteMessageStore) -> None:
    """Put messages, of which some are claimed, done, dead, delayed or blocked, and gate a topic."""
    store.put([MessageEntry(b"%d" % number, priority=number) for number in range(5)])
    store.put([MessageEntry(b"later", "other", delay=60.0), MessageEntry(b"short", "other", ttl=90.0)])
    store.put([MessageEntry(b"first", "other", group="g"), MessageEntry(b"second", "other", group="g")])
    store.put([MessageEntry(b"key", "other", key=b"key", key_window=9.0)])
    claims = [record.claim for record in store.claim(3) if record.claim is not None]
    store.ack(claims[:1])
    store.fail(claims[1:2], "no")
    store.pause("other")


def seen(store: SQLiteMessageStore) -> dict[str, Any]:
    """Return what every look gives, the sizes and ages of the files apart."""
    stats = store.stats()
    return {
        "scan": list(store.scan()),
        "dead": list(store.scan(State.DEAD, topic="default")),
        "found": [store.find(id) for id in range(1, 12)],
        "peek": (store.peek().id, store.peek("other").id),
        "topics": store.topics(),
        "counts": (store.count(), store.count("other"), store.count("none"), store.is_empty("none")),
        "unfinished": store.has_unfinished(),
        "stats": (stats.ready, stats.claimed, stats.delayed, stats.blocked, stats.done, stats.dead),
        "numbers": (stats.puts, stats.gets, stats.expired, stats.oldest_age),
        "stats of a topic": store.stats("other"),
    }


@pytest.fixture(params=["closed", "open", "crashed"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """Give a filled directory, and how many messages are claimed in it."""
    path = tmp_path / "s"
    path.mkdir()

    def crash() -> None:
        store = opened(path)
        fill(store)
        die()

    if request.param == "crashed":
        assert in_child(crash) == -9
        yield path, 1
        return
    with closing(opened(path)) as store:
        fill(store)
        seen(store)  # so that SQLite's index of the log knows this reader
        if request.param == "closed":
            store.close()
        yield path, int(request.param == "open")


def test_looks_work_and_write_nothing(place: tuple[Path, int]) -> None:
    path, claimed = place
    before = everything(path)
    with closing(opened(path, read_only=True)) as store:
        first = seen(store)
        assert seen(store) == first
    assert everything(path) == before
    assert first["stats"] == (6 - claimed, claimed, 1, 1, 1, 1)
    assert (len(first["scan"]), len(first["dead"])) == (10, 1)
    assert first["topics"] == {"default": 3 - claimed, "other": 3}


def test_a_look_sees_what_the_writer_sees(tmp_path: Path) -> None:
    with closing(opened(tmp_path)) as writer:
        writer.put([MessageEntry(b"zero")])
        with closing(opened(tmp_path, read_only=True)) as store:
            assert seen_counts(store) == seen_counts(writer)
            fill(writer)
            assert seen(store) == seen(writer)
            writer.purge("other")
            assert seen_counts(store) == seen_counts(writer)


def seen_counts(store: SQLiteMessageStore) -> Any:
    return store.topics(), store.count(), [record.id for record in store.scan()]


def test_what_is_due_is_shown_as_the_last_writer_left_it(tmp_path: Path) -> None:
    """Only a process that writes can promote, expire or reclaim it."""
    with closing(opened(tmp_path)) as writer:
        fill(writer)
        left = seen(writer)
        before = everything(tmp_path)
        with closing(opened(tmp_path, read_only=True, now=NOW + 1000.0)) as store:
            found = seen(store)
            assert found["scan"] == left["scan"]
            assert found["stats"] == left["stats"]
            assert store.find(6).state is State.DELAYED  # type: ignore[union-attr]
        assert everything(tmp_path) == before
        with closing(opened(tmp_path, now=NOW + 1000.0)) as later:
            assert later.stats().delayed == 0
        with closing(opened(tmp_path, read_only=True)) as store:
            assert (store.stats().delayed, store.stats().expired) == (0, 1)


CLAIM, LOCK = MessageClaim(3, 1), TopicClaim("other", 1)
CHANGES: dict[str, Callable[[SQLiteMessageStore], object]] = {
    "put": lambda store: store.put([MessageEntry(b"x")]),
    "claim": lambda store: store.claim(),
    "deliver": lambda store: store.deliver([CLAIM]),
    "ack": lambda store: store.ack([CLAIM]),
    "nack": lambda store: store.nack([CLAIM]),
    "fail": lambda store: store.fail([CLAIM]),
    "release": lambda store: store.release([CLAIM]),
    "extend": lambda store: store.extend([CLAIM], 1.0),
    "redrive": lambda store: store.redrive(1),
    "redrive_all": lambda store: store.redrive_all(),
    "cancel": lambda store: store.cancel(1),
    "purge": lambda store: store.purge(),
    "release_key": lambda store: store.release_key(b"key"),
    "set_rate": lambda store: store.set_rate("other", 1.0),
    "pause": lambda store: store.pause("default"),
    "resume": lambda store: store.resume("other"),
    "lock_topic": lambda store: store.lock_topic("default", None),
    "unlock_topic": lambda store: store.unlock_topic(LOCK),
    "extend_lock": lambda store: store.extend_lock(LOCK, 1.0),
    "reclaim": lambda store: store.reclaim(),
    "shrink": lambda store: store.shrink(),
    "checkpoint": lambda store: store.checkpoint(),
    "transaction": lambda store: store.transaction().__enter__(),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changes_are_refused(name: str, tmp_path: Path) -> None:
    with closing(opened(tmp_path)) as writer:
        fill(writer)
    before = everything(tmp_path)
    with closing(opened(tmp_path, read_only=True)) as store, pytest.raises(StorageError, match="read_only"):
        CHANGES[name](store)
    assert everything(tmp_path) == before


def test_every_change_of_a_store_is_tried() -> None:
    looks = {
        "find", "peek", "scan", "topics", "count", "is_empty", "has_unfinished", "stats", "change_token",
        "close", "after_fork_in_child", "seal_with", "joined", "await_transaction", "open_transaction",
        "is_held_up",
        "observe", "now", "watch",
    }  # fmt: skip
    methods = {
        name
        for name in dir(SQLiteMessageStore)
        if not name.startswith("_") and callable(getattr(SQLiteMessageStore, name))
    }
    assert methods - looks == CHANGES.keys()


def test_an_empty_queue_and_a_missing_one(tmp_path: Path) -> None:
    with closing(opened(tmp_path)):
        pass
    with closing(opened(tmp_path, read_only=True)) as store:
        assert (store.count(), store.topics(), list(store.scan())) == (0, {}, [])
        with pytest.raises(Empty):
            store.peek()
    with pytest.raises(StoreMissingError):
        opened(tmp_path / "none", read_only=True)
    assert os.listdir(tmp_path) == [name for name in os.listdir(tmp_path) if name.startswith("data.db")]
