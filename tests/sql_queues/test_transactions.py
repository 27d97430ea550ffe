"""Waits for another caller's transaction: as long as told, and never for the short turns of writers."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from persistcoll import LockedError, MessageQueue, NotClaimedError, PDict, SQLiteAckQueue, SQLiteQueue
from persistcoll.engine.message_records import MessageEntry, MessagePolicy
from tests.conformance.message_stores import SQLiteMessageStores
from tests.queues.waits import waiting

pytestmark = pytest.mark.timeout(60)

ROOT = Path(__file__).parents[2]
NEVER, SOON = 0.0, 0.05
HOLDING = """
import sys
from persistcoll import PDict, SQLiteQueue
with PDict(sys.argv[1], name="dict", durability="process") as mapping:
    mapping["n"] = 1
    with mapping.transaction():
        mapping["n"] = 2
        print("open", flush=True)
        sys.stdin.readline()
    print("ended", flush=True)
    sys.stdin.readline()
"""
WRITING = """
import sys
from persistcoll import SQLiteQueue
with SQLiteQueue(sys.argv[1], name="other", durability="process") as queue:
    print("open", flush=True)
    while True:
        queue.put(1)
"""


@contextmanager
def another_process(program: str, path: Path) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    command = [os.path.realpath(sys.executable), "-c", program, str(path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        try:
            yield process
        finally:
            process.kill()


def go_on(process: Any, answer: str) -> None:
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == answer


def refused(queue: SQLiteQueue, pid: int) -> None:
    """Check that each call that writes gives up at its timeout, and names the holder."""
    table: Any = queue._store
    for call in (
        lambda: table.append(b"x", deadline=NEVER),
        lambda: table.append_many([b"x"], deadline=NEVER),
        lambda: table.pop(lambda record: record, deadline=NEVER),
        lambda: table.pop_many(2, lambda record: record, deadline=time.monotonic() + SOON),
        lambda: queue.put("y"),
        queue.clear,
        queue.skip,
        queue.shrink_disk_usage,
        lambda: SQLiteQueue(queue.path, name="new", timeout=SOON),
    ):
        with pytest.raises(LockedError, match=rf"{pid}.*transaction open for \d+\.\d s") as found:
            waiting(call)()
        assert found.value.pid == pid


def test_for_another_threads(tmp_path):
    with (
        SQLiteQueue(tmp_path, timeout=SOON) as queue,
        PDict[str, int](tmp_path, name="dict") as mapping,
        PDict[str, int](tmp_path, name="dict", timeout=SOON) as other,
    ):
        queue.put("a")
        mapping["n"] = 1
        with mapping.transaction():
            mapping["n"] = 2
            refused(queue, os.getpid())
            for write in (lambda: other.update(n=3), other.clear, lambda: other.edit("n").__enter__()):
                with pytest.raises(LockedError):
                    waiting(write)()
            # A read sees what is committed, and does not wait.
            assert waiting(
                lambda: (queue.qsize(), queue.peek(), [*queue.items()], other["n"], len(other))
            )() == (
                1,
                "a",
                ["a"],
                1,
                1,
            )
            queue.put("of the transaction")
            assert queue.qsize() == 2
        waiting(lambda: queue.put("b"))()
        assert [*queue.items()] == ["a", "of the transaction", "b"]
        assert mapping["n"] == 2


def test_one_that_cannot_begin_undoes_nothing_of_the_one_before(tmp_path):
    with (
        SQLiteQueue(tmp_path, name="queue", timeout=SOON) as queue,
        SQLiteQueue(tmp_path, name="later", auto_commit=False, timeout=SOON) as later,
        SQLiteAckQueue(tmp_path, name="acks", timeout=SOON) as acks,
        MessageQueue(tmp_path, name="messages", timeout=SOON) as messages,
    ):
        queues: list[Any] = [queue, later, acks]
        for each in queues:
            each.put_many(["a", "b", "c"])
            each.get()
        messages.put_many(["a", "b", "c"])
        message = messages.get(lease=None)
        with queue.transaction():
            for each in queues:
                each.get()
                each.task_done()
            message.ack()
        with another_process(HOLDING, tmp_path):
            for container in (*queues, messages):
                with pytest.raises(LockedError), container.transaction():
                    raise AssertionError("it has begun")
        assert [each.unfinished_tasks for each in queues] == [2, 2, 2]
        assert acks.unack_count() == 1
        with pytest.raises(NotClaimedError):
            message.ack()
        for each in queues:
            each.task_done()
            with pytest.raises(ValueError, match="too many"):
                each.task_done()


def test_for_another_processs(tmp_path):
    with (
        SQLiteQueue(tmp_path, timeout=SOON, durability="process") as queue,
        PDict[str, int](tmp_path, name="dict", durability="process") as mapping,
    ):
        queue.put("a")
        with another_process(HOLDING, tmp_path) as process:
            refused(queue, process.pid)
            assert (queue.qsize(), queue.peek(), mapping["n"], len(mapping)) == (1, "a", 1, 1)
            late = waiting(lambda: queue._store.append(b"x", deadline=time.monotonic() + 20))
            go_on(process, "ended\n")
            late()
            queue.put("b")
            assert mapping["n"] == 2


def test_a_look_waits_for_no_other_processs_though_something_is_due(tmp_path):
    stores = SQLiteMessageStores(tmp_path)
    store: Any = stores.open("messages", MessagePolicy(lease=5.0))
    store.put([MessageEntry(b"leased"), MessageEntry(b"delayed", delay=5.0), MessageEntry(b"gone", ttl=5.0)])
    store.claim()
    with another_process(HOLDING, tmp_path / "messages.db") as process:
        stores.advance(5.0)
        for _ in range(2):  # what is due is seen as it was before
            assert waiting(store.count)() == 1
            stats = waiting(store.stats)()
            assert (stats.ready, stats.delayed, stats.claimed, stats.expired) == (1, 1, 1, 0)
        go_on(process, "ended\n")
        stats = store.stats()
        assert (stats.ready, stats.delayed, stats.claimed, stats.expired) == (2, 0, 0, 1)
    store.close()


def test_a_process_that_was_killed_has_none(tmp_path):
    with (
        SQLiteQueue(tmp_path, timeout=SOON) as queue,
        PDict[str, int](tmp_path, name="dict", timeout=SOON) as mapping,
    ):
        with another_process(HOLDING, tmp_path):
            pass
        queue._store.append(b"x", deadline=NEVER)
        with mapping.transaction():
            mapping["n"] = 4


def test_writers_are_none(tmp_path):
    with (
        SQLiteQueue(tmp_path, durability="process") as queue,
        another_process(WRITING, tmp_path),
        another_process(WRITING, tmp_path),
    ):
        table: Any = queue._store
        until = time.monotonic() + 1.0
        while time.monotonic() < until:
            table.append(b"x", deadline=NEVER)


def test_closing_while_another_process_has_one(tmp_path):
    queue = SQLiteQueue(tmp_path, auto_commit=False, timeout=SOON)
    queue.put("a")
    with another_process(HOLDING, tmp_path):
        queue.close()
    with SQLiteQueue(tmp_path) as again:
        assert again.get() == "a"


@pytest.mark.parametrize("late", ["at its end", "at an operation within it"])
def test_one_that_keeps_others_too_long_is_logged(tmp_path, caplog, late):
    caplog.set_level(logging.WARNING, "persistcoll")
    with PDict[str, int](tmp_path, timeout=0.0) as mapping:
        with mapping.transaction():
            if late != "at its end":
                mapping["n"] = 1
                assert len(caplog.records) == 1
                mapping["n"] = 2
        (record,) = caplog.records
        assert str(tmp_path / "data.db") in record.getMessage()
        assert "is open for longer than 0.0 s" in record.getMessage()
