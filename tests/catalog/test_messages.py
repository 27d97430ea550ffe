"""What ``collections()`` tells of a message queue, and that it counts as the open queue does."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from persistcoll import CollectionInfo, MessageQueue, PDict, SQLiteQueue, collections
from tests.catalog.kinds import COUNTS, told_of, watch_looks
from tests.permissions.kinds import PLAIN, die, everything, in_child

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def counts(path: Path, name: str = "messages") -> dict[str, int | None]:
    info = collections(path)[name]
    return {count: getattr(info, count) for count in COUNTS}


def fill(queue: MessageQueue[Any]) -> None:
    """Put messages, and bring them into every state: one each, and two ready ones."""
    for number in range(6):
        queue.put(number)
    queue.put("later", delay=3600)
    queue.put("first", group="g", topic="grouped")
    queue.put("second", group="g", topic="grouped")
    queue.put("third", group="g", topic="grouped")
    queue.get("default").ack()
    for _ in range(2):
        queue.get("default").fail("no")
    queue.get("default")  # and it is not settled


EXPECTED = {
    "ready": 3, "claimed": 1, "delayed": 1, "blocked": 2, "done": 1, "dead": 2, "failed": 0, "unfinished": 7,
}  # fmt: skip


@pytest.fixture(params=["open", "closed", "crashed"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, dict[str, int]]]:
    path, expected = tmp_path / "s", EXPECTED

    def crash() -> None:
        queue = MessageQueue[Any](path, keep_done=10, **PLAIN)
        fill(queue)
        die()

    if request.param == "crashed":
        assert in_child(crash) == -9
        yield path, expected
        return
    with MessageQueue[Any](path, keep_done=10, **PLAIN) as queue:
        fill(queue)
        assert counts(path) == told_of(queue) == expected
        if request.param == "closed":  # which returns what it has claimed
            queue.close()
            expected = expected | {"ready": 4, "claimed": 0}
        yield path, expected


def test_every_state_of_a_message(place: tuple[Path, dict[str, int]]) -> None:
    path, expected = place
    before = everything(path)
    found = collections(path)
    assert everything(path) == before
    info = found["messages"]
    assert info == CollectionInfo(
        "messages", "messages", str(path / "data.db"), "json", 2, info.created, **expected
    )


def test_expired_messages_are_not_failed(tmp_path: Path) -> None:
    with MessageQueue[Any](tmp_path, **PLAIN) as queue:
        queue.put("goes", ttl=0.001)
        queue.put("stays", ttl=3600)
        while queue.qsize() == 2:
            pass
        assert queue.stats().expired == 1
        assert counts(tmp_path) == told_of(queue) == dict.fromkeys(COUNTS, 0) | {"ready": 1, "unfinished": 1}


def test_what_is_due_is_counted_where_the_last_writer_left_it(tmp_path: Path) -> None:
    with MessageQueue[Any](tmp_path, **PLAIN) as queue:
        queue.put("later", delay=0.001)
        assert counts(tmp_path) == dict.fromkeys(COUNTS, 0) | {"delayed": 1, "unfinished": 1}
        while not queue.qsize():
            pass
        assert counts(tmp_path) == dict.fromkeys(COUNTS, 0) | {"ready": 1, "unfinished": 1}


def test_beside_other_collections(tmp_path: Path) -> None:
    with (
        SQLiteQueue(tmp_path, name="mails", **PLAIN) as mails,
        MessageQueue[Any](tmp_path, name="jobs", **PLAIN) as jobs,
        PDict(tmp_path, name="ages", **PLAIN) as ages,
    ):
        mails.put("a")
        jobs.put_many(["b", "c"])
        ages["ann"] = 41
        found = [(info.name, info.kind, info.ready, info.blocked) for info in collections(tmp_path).values()]
    assert found == [("mails", "fifo", 1, 0), ("jobs", "messages", 2, 0), ("ages", "dict", 1, 0)]


def test_damaged_counters_cost_only_the_counts(tmp_path: Path) -> None:
    with MessageQueue[Any](tmp_path, **PLAIN) as queue:
        queue.put("a")
    with closing(sqlite3.connect(tmp_path / "data.db")) as database, database:
        database.execute("UPDATE counters SET claimed = 'many'")
    assert counts(tmp_path) == dict.fromkeys(COUNTS)
    assert collections(tmp_path)["messages"].kind == "messages"


def test_a_look_costs_the_same_at_any_backlog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, steps = watch_looks(monkeypatch)
    costs = []
    for count in (10, 2000):
        path = tmp_path / str(count)
        with MessageQueue[Any](path, keep_done=10_000, **PLAIN) as queue:
            queue.put_many(range(count))
            queue.put_many(range(count), topic="later", delay=3600)
            queue.put_many(range(count), topic="short", ttl=3600)
            queue.ack_many(queue.get_many(count // 2))
            queue.get_many(count // 4)
            queue.pause("later")
        steps.clear()
        assert counts(path)["done"] == count // 2
        costs.append(len(steps))
    assert costs[0] == costs[1]
