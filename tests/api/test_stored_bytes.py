"""Stores that earlier versions wrote: this one opens them, and what it writes has the format that they know.

What was claimed by a process that is gone is ready again, in its place and with its attempts, as soon as an
object is opened. The stores come from another boot of another machine: then the time counts that the system's
clock says, so what was delayed or expires is due by now, unless that is far in the future.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import tarfile
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from persistcoll import (
    AckStatus,
    CorruptionError,
    DecodeError,
    Empty,
    FILOSQLiteAckQueue,
    FILOSQLiteQueue,
    MessageQueue,
    PDict,
    PriorityQueue,
    Queue,
    SQLiteAckQueue,
    SQLiteQueue,
    StorageError,
    UniqueAckQ,
    UniqueQ,
)
from persistcoll.engine.records import State
from persistcoll.serializers import signed
from tests.api.tree import PACKAGE, PROJECT
from tests.stored import make
from tests.stored.formats import describe

ARCHIVES = sorted((Path(__file__).parents[1] / "stored").glob("*.tar.gz"))
"""By age: a number, and the commit whose code wrote it."""

pytestmark = pytest.mark.skipif(
    not hasattr(os, "fork"), reason="needs os.fork, and the files of such a system"
)


def unpack(archive: Path, into: Path) -> None:
    with tarfile.open(archive) as file:
        if hasattr(tarfile, "fully_trusted_filter"):  # with the modes that the files had
            file.extractall(into, filter="fully_trusted")
        else:
            file.extractall(into)


@pytest.fixture(params=make.VARIANTS)
def variant(request) -> str:
    return str(request.param)


@pytest.fixture(params=ARCHIVES, ids=lambda archive: archive.name.partition(".")[0])
def place(request, variant, tmp_path) -> Path:
    unpack(request.param, tmp_path / "stored")
    return Path(tmp_path / "stored" / variant)


def test_there_are_stores_of_several_versions():
    assert len(ARCHIVES) >= 2
    assert sum(archive.stat().st_size for archive in ARCHIVES) < 200_000


# Files.

WAITING = [4, *range(17, 24)]


def test_a_file_queue(place):
    with Queue(place / "queue", read_only=True) as queue:
        assert list(queue.items()) == [make.item(number) for number in WAITING]
    with Queue(place / "queue") as queue:
        stats = queue.stats()
        assert (stats.ready, stats.claimed, stats.dead, stats.puts, stats.gets) == (8, 0, 0, 23, 15)
        queue.put("one more")
        expected = [*(make.item(number) for number in WAITING), "one more"]
        assert [queue.get_nowait() for _ in expected] == expected
        with pytest.raises(Empty):
            queue.get_nowait()
        for _ in range(4):
            queue.task_done()
    with Queue(place / "queue") as queue:  # written on, and opened again
        assert [queue.get_nowait() for _ in expected[4:]] == expected[4:]
        for _ in expected[4:]:
            queue.task_done()
        assert (queue.stats().puts, queue.stats().gets, queue.unfinished_tasks) == (24, 24, 0)


def test_a_sealed_file_queue(place):
    with Queue(place / "sealed", serializer=signed("json", make.KEY)) as queue:
        assert (queue.stats().puts, queue.stats().gets) == (4, 2)
        assert queue.get_many(9) == [{"number": 3}, {"number": 4}]
    another = signed("json", b"the key of somebody else")
    with Queue(place / "sealed", serializer=another) as queue, pytest.raises(DecodeError):
        queue.get()


# Databases.

ORDERS: list[tuple[str, type[Any], dict[str, Any], list[tuple[int, Any]], int, int]] = [
    ("fifo", SQLiteQueue, {"auto_commit": False}, [(4, 4), (5, 5), (6, 6), (7, 7)], 7, 3),
    ("lifo", FILOSQLiteQueue, {}, [(5, 5), (3, 3), (2, 2), (1, 1)], 5, 1),
    ("unique", UniqueQ, {}, [(2, "b"), (3, "a"), (4, {"c": [1, 2]})], 4, 1),
    ("priority", PriorityQueue, {}, [(5, "before all"), (4, "normal"), (1, "low"), (3, "low, too")], 5, 1),
    (
        "sealed",
        SQLiteQueue,
        {"auto_commit": False, "serializer": signed("json", make.KEY)},
        [(3, {"number": 3}), (4, {"number": 4})],
        4,
        2,
    ),
]


@pytest.mark.parametrize(
    ("name", "kind", "options", "expected", "puts", "gets"), ORDERS, ids=[order[0] for order in ORDERS]
)
def test_a_queue_in_a_database(place, name, kind, options, expected, puts, gets):
    options = {"serializer": "json", **options}
    with kind(place, name, read_only=True, **options) as queue:
        rows = queue.queue()
        # What a dead process has got is still its own for objects that only read.
        assert [(row["id"], row["data"]) for row in rows] == sorted(expected)
        assert all(0 <= row["timestamp"] - make.DATE < make.SOON for row in rows)
    with kind(place, name, **options) as queue:
        stats = queue.stats()
        assert (stats.ready, stats.claimed, stats.delayed) == (len(expected), 0, 0)
        assert (stats.puts, stats.gets) == (puts, gets)
        assert queue.put("one more") == puts + 1
        assert queue.get_nowait(id=puts + 1) == "one more"
        got = [queue.get_nowait(raw=True) for _ in expected]
        assert [(row["pqid"], row["data"]) for row in got] == expected
        with pytest.raises(Empty):
            queue.get_nowait()


def test_keys_in_force(place):
    with UniqueQ(place, "unique", serializer="json") as queue:
        assert queue.put_many(["b", "a", {"c": [1, 2]}, "new"]) == [None, None, None, 5]
    with UniqueAckQ(place, name="unique ack", serializer="json") as queue:
        assert queue.put_many(["x", "y"]) == [None, None]
        assert queue.acked_count() == 1
        assert [queue.get(raw=True)["pqid"] for _ in range(2)] == [2, 3]
        assert [queue.ack(id=id) for id in (2, 3)] == [2, 3]
        assert queue.put("x") == 4


def expect_all_states(place: Path) -> None:
    status = AckStatus
    with SQLiteAckQueue[Any](place, name="ack", max_attempts=2) as queue:
        assert [(row["id"], row["data"], row["status"]) for row in queue.queue()] == [
            (1, "done", status.acked),
            (2, "failed", status.ack_failed),
            (3, "far", status.ready),
            (4, "soon", status.ready),
            (5, "dead", status.ack_failed),
            (6, "in work", status.ready),
            (7, "again", status.ready),
            (8, "new", status.inited),
            (9, "kills", status.ack_failed),
            (10, {"put": "last"}, status.inited),
        ]
        stats = queue.stats()
        assert (stats.ready, stats.claimed, stats.delayed) == (5, 0, 1)
        assert (stats.done, stats.failed, stats.dead) == (1, 1, 2)
        assert (stats.puts, stats.gets) == (10, 4)
        assert (queue.acked_count(), queue.ack_failed_count(), queue.active_size()) == (1, 2 + 1, 6)
        assert queue.get_many(9) == ["soon", "in work", "again", "new", {"put": "last"}]
        # The attempts were stored: what was got once before is set aside, what is new comes again.
        for id in (4, 6, 7, 8, 10):
            queue.nack(id=id)
        assert (queue.stats().dead, queue.get_many(9)) == (5, ["new", {"put": "last"}])
        assert queue.ack(id=8) == 8
        assert queue.stats().done == 2


def test_records_in_every_state(place):
    expect_all_states(place)


# Records of version 1 have no reasons. Opening a queue changes its tables, once.

WITH_REASONS = {archive.name for archive in ARCHIVES[4:]}


def versions(place: Path) -> dict[str, int]:
    with closing(sqlite3.connect(place if place.is_file() else place / "data.db")) as database:
        return dict(database.execute("SELECT name, version FROM collections"))


def test_the_reasons_of_records(place, variant, request):
    newest = request.node.callspec.params["place"].name in WITH_REASONS
    wanted: dict[int, str | None] = dict.fromkeys((1, 2, 5, 7, 8))
    if newest:
        wanted |= {5: "nacked", 7: "nacked"}
    for read_only, version in ((True, 2 if newest else 1), (False, 2), (False, 2)):
        with SQLiteAckQueue[Any](place, name="ack", max_attempts=2, read_only=read_only) as queue:
            told = {row["id"]: row["reason"] for row in queue.queue()}
        assert {id: told[id] for id in wanted} == wanted
        assert versions(place)["ack"] == version
    # This one was in work, in the first process and in the second one.
    last = "its queue was closed" if variant == "closed" else "its worker died"
    assert told[9] == (last if newest or variant == "killed" else None)


def test_what_is_set_aside_is_requeued(place):
    with SQLiteAckQueue[Any](place, name="ack", max_attempts=2) as queue:
        assert queue.requeue(2) == 1
        queue.ack_failed(queue.get(id=2), reason="again")
        assert queue.requeue("all") == 3
        raws = [queue.get(id=id, raw=True) for id in (2, 5, 9)]
        assert [(raw["data"], raw["attempts"]) for raw in raws] == [("failed", 1), ("dead", 1), ("kills", 1)]
        assert raws[0]["reason"] == "again"
        assert queue.ack_many(raws) == [2, 5, 9]
    with UniqueAckQ[Any](place, name="unique ack", serializer="json") as unique:
        for _ in range(2):
            for item in unique.get_many(9):
                unique.ack_failed(item)
            assert unique.requeue("all") == 2


def test_a_transaction_changes_no_tables(place, request):
    if request.node.callspec.params["place"].name in WITH_REASONS:
        pytest.skip("these have the newest tables")
    with SQLiteQueue(place, "fifo", auto_commit=False, serializer="json") as queue:

        def block() -> None:
            with queue.transaction():
                queue.put("within")
                SQLiteAckQueue(place, name="ack")

        with pytest.raises(StorageError, match="before the transaction"):
            block()
        assert (queue.qsize(), versions(place)["ack"]) == (4, 1)
    expect_all_states(place)


def test_what_a_killed_process_had_got_is_claimed_until_a_queue_is_opened(place, variant):
    """Closing releases it. The last attempt of ``kills`` was used up either way."""
    with SQLiteAckQueue[Any](place, name="ack", max_attempts=2, read_only=True) as queue:
        status = {row["data"]: row["status"] for row in queue.queue() if row["data"] in ("in work", "kills")}
        stats = queue.stats()
    closed = variant == "closed"
    assert status == (
        {"in work": AckStatus.ready, "kills": AckStatus.ack_failed}
        if closed
        else {"in work": AckStatus.unack, "kills": AckStatus.unack}
    )
    assert (stats.claimed, stats.dead) == ((0, 2) if closed else (2, 1))


def test_a_queue_that_does_not_resume_leaves_claims_alone(place):
    with SQLiteAckQueue(place, False, "not resumed", serializer="json") as queue:
        assert (queue.qsize(), queue.unack_count()) == (2, 1)
        assert queue.resume_unack_tasks() == 1
        assert [queue.get(raw=True)["pqid"] for _ in range(3)] == [1, 2, 3]


def test_a_stack_of_acknowledged_items(place):
    with FILOSQLiteAckQueue(place, name="lifo ack", serializer="json") as queue:
        assert (queue.acked_count(), queue.qsize()) == (1, 4)
        assert [queue.get() for _ in range(4)] == [5, 3, 2, 1]


DICT = [
    ("text", "changed"),
    (b"bytes", 2),
    (3, None),
    (4.5, []),
    (True, "the key of True"),
    (None, {}),
    (("a", (1, b"")), ()),
    ("far", "stays"),
    ("\udcff", "a lone surrogate"),
    ("count", 42),
]


def expect_dict(place: Path) -> None:
    with PDict[Any, Any](place, "dict") as mapping:
        assert list(mapping.items()) == DICT
        assert [type(key) for key in mapping] == [type(key) for key, _ in DICT]
        assert len(mapping) == len(DICT)
        assert "soon" not in mapping
        assert list(mapping.scan("f")) == [("far", "stays")]
        assert mapping.incr("count") == 43
        mapping["text"] = "in its place"
        mapping["last"] = 1
        assert list(mapping) == [*(key for key, _ in DICT), "last"]


def test_a_dict(place):
    with PDict[Any, Any](place, "dict", read_only=True) as mapping:
        assert list(mapping.items()) == DICT
    expect_dict(place)


# Message queues, which the first versions do not have.


@pytest.fixture(params=ARCHIVES[3:], ids=lambda archive: archive.name.partition(".")[0])
def messages(request, variant, tmp_path) -> Path:
    unpack(request.param, tmp_path / "stored")
    return Path(tmp_path / "stored" / variant / "messages.db")


def test_message_queues_are_stored_in_the_latest_archives():
    assert ARCHIVES[3:]


def expect_messages(path: Path) -> None:
    with MessageQueue[Any](path, keep_done=10, serializer="json") as queue:
        stats = queue.stats()
        assert (stats.ready, stats.claimed, stats.delayed, stats.blocked) == (6, 0, 2, 1)
        assert (stats.done, stats.dead, stats.expired, stats.puts) == (2, 1, 1, 13)
        assert queue.topics() == {"default": 2, "groups": 1, "keys": 1, "paused": 1, "work": 1}
        done, dead = queue.find(1), queue.find(2)
        assert done is not None
        assert (done.state, done.headers, done.priority, done.body) == (
            State.DONE,
            {"trace": "7f"},
            9,
            "done",
        )
        assert dead is not None
        assert (dead.state, dead.last_error, dead.deliveries, dead.body) == (State.DEAD, "no", 1, "dead")
        assert queue.find(5) is None
        delayed = queue.find(6)
        assert delayed is not None
        assert (delayed.state, delayed.last_error, delayed.attempts) == (State.DELAYED, "later", 1)
        # The keys are active, and the group has a head.
        assert queue.put("again", topic="keys", key="key") is None
        assert queue.put("again", topic="keys", key=b"key") is None
        assert queue.put("behind", topic="groups", group="g") == 14
        assert [message.body for message in queue.get_many(9, "default")] == ["new", "soon"]
        with queue.get("groups", block=False) as head:
            assert head.body == "head"
        assert queue.stats("groups").delayed == 1
        work = queue.get("work", block=False)
        assert (work.body, work.deliveries) == ("in work", 2)
        # The gates are closed.
        with pytest.raises(Empty):
            queue.get("paused", block=False)
        queue.resume("paused")
        assert queue.get("paused", block=False).body == "paused"
        queue.put_many([1, 2, 3], topic="limited")
        assert len(queue.get_many(9, "limited")) == 2
        assert queue.redrive(2) == 1
        assert queue.get("default", block=False).body == "dead"
        assert queue.stats().puts == 17


def test_messages(messages, variant):
    queue: Any
    with MessageQueue(messages, serializer="json", read_only=True) as queue:
        # What is due, and what a dead process has claimed, waits for an object that may write.
        stats, closed = queue.stats(), variant == "closed"
        assert (stats.ready, stats.claimed, stats.delayed, stats.expired) == (5 + closed, 1 - closed, 3, 0)
        assert all(0 <= queue.find(id).enqueued_at - make.DATE < make.SOON for id in range(1, 14))
    expect_messages(messages)


def test_messages_of_before_keep_their_checksum(messages, request):
    """Those of version 1 have none over what their puts said beside the body; opening adds the column."""
    newest = request.node.callspec.params["messages"].name in WITH_REASONS
    assert set(versions(messages).values()) == {2 if newest else 1}
    with MessageQueue[Any](messages, serializer="json") as queue:
        new = queue.put("new")
        name = queue.name
    assert versions(messages)[name] == 2
    with closing(sqlite3.connect(messages)) as database, database:
        ((number,),) = database.execute("SELECT number FROM collections WHERE name = ?", (name,))
        table = f"messages_{number}"
        of_before = {crc for (crc,) in database.execute(f"SELECT meta_crc FROM {table} WHERE id < {new}")}
        assert (None not in of_before) if newest else (of_before == {None})
        ((now,),) = database.execute(f"SELECT meta_crc FROM {table} WHERE id = {new}")
        assert now is not None
        database.execute(f"UPDATE {table} SET payload = x'31' WHERE id = 1")
    with MessageQueue[Any](messages, serializer="json") as queue, pytest.raises(CorruptionError):
        queue.find(1)


def test_sealed_messages(messages):
    with MessageQueue[Any](messages, "sealed", serializer=signed("json", make.KEY)) as queue:
        assert [message.body for message in queue.get_many(9)] == [{"number": 2}, {"number": 3}]
    with MessageQueue[Any](messages, "sealed", serializer=signed("json", b"of somebody else")) as queue:
        found = queue.find(2)
        assert found is not None
        with pytest.raises(DecodeError):
            found.body  # noqa: B018


def test_after_another_boot(place):
    """The wall clock counts again, once: what is far stays far, what was soon is due."""
    with closing(sqlite3.connect(place / "data.db")) as database, database:
        database.execute("UPDATE store SET boot = 'another one', clock = clock + 1e10")
    expect_all_states(place)
    expect_dict(place)


# The reverse: what today's version writes.


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """An archive of what this version writes."""
    target: Path = tmp_path_factory.mktemp("today") / "stores"
    done = subprocess.run(
        [sys.executable, "-m", "tests.stored.make", str(target)],
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return target.with_name("stores.tar.gz")


@pytest.fixture
def today(made, variant, tmp_path) -> dict[str, Any]:
    return description(made, variant, tmp_path)


def description(archive: Path, variant: str, tmp_path: Path) -> dict[str, Any]:
    unpack(archive, tmp_path / archive.name)
    return describe(tmp_path / archive.name / variant)


def test_today_writes_what_the_last_version_wrote(today, variant, tmp_path):
    assert today == description(ARCHIVES[-1], variant, tmp_path)


def test_today_writes_what_the_first_version_wrote(today, variant, tmp_path):
    """Apart from five additions."""
    now, then = today, description(ARCHIVES[0], variant, tmp_path)
    # There are message queues, in a database of their own.
    del now["messages"]
    now["files"] = [name for name in now["files"] if not name.startswith("messages.db")]
    # The records of queues have reasons.
    assert (reasons(now["database"]) > {"nacked"}, reasons(then["database"])) == (True, set())
    now["database"] = without_reasons(now["database"])
    then["database"] = without_reasons(then["database"])
    # A transaction leaves a note in the lock file, after what was there before.
    assert now["database"].pop("lock") > then["database"].pop("lock")
    # The headers of chunks have three more fields, and so another version.
    for name in ("queue", "sealed"):
        for chunk in now[name]["chunks"].values():
            assert [chunk["header"].pop(field) for field in ("version", "capacity")] == [2, CAPACITY[name]]
            assert chunk["header"].pop("ordinal") == chunk["header"]["previous"]
        for chunk in then[name]["chunks"].values():
            assert chunk["header"].pop("version") == 1
    # A chunk whose items are acknowledged is emptied while an earlier one is needed: header and end stay.
    emptied, whole = (each["queue"]["chunks"].pop("q00001") for each in (now, then))
    assert emptied["frames"] == [(*whole["frames"][-1][:2], None, b"")]
    assert emptied["header"] == {**whole["header"], "first": whole["frames"][-1][1]}
    # The cursor was compacted for it: what it says is the same.
    assert acknowledged(now["queue"].pop("cursor")) == acknowledged(then["queue"].pop("cursor"))
    assert now == then


CAPACITY = {"queue": 2 * 5, "sealed": 2 * 16384}


def reasons(database: dict[str, Any]) -> set[str]:
    """Return the reasons of all records."""
    rows = [row for rows in database["rows"].values() for row in rows if row[0] in ("ready", "held")]
    return {row[-1] for row in rows} - {None}


def without_reasons(database: dict[str, Any]) -> dict[str, Any]:
    """Describe a database of version 2 as one of version 1 with the same records."""
    return {
        **database,
        "schema": [
            (*row, None if sql is None else sql.replace(", reason TEXT", ""))
            for *row, sql in database["schema"]
        ],
        "collections": [(*row, 1) for *row, _version in database["collections"]],
        "rows": {
            name: [row[:-1] if row[0] in ("ready", "held") else row for row in rows]
            for name, rows in database["rows"].items()
        },
    }


def acknowledged(cursor: list[tuple[Any, ...]]) -> set[int]:
    ids: set[int] = set()
    for kind, *entry in cursor:
        first, last = (1, entry[1]) if kind == "POSITION" else entry
        ids.update(range(first, last + 1))
    return ids
