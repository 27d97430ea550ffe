"""Several processes that write to one database all the time, with checkpoints."""

from __future__ import annotations

import multiprocessing
import sqlite3
import time
from contextlib import closing
from typing import Any

import pytest

from persistcoll import Empty, PriorityQueue, SQLiteAckQueue, SQLiteQueue

CONTEXT = multiprocessing.get_context("spawn")
PROCESSES = 4
# SQLite reads and writes a database page by page. These items fill many pages, and so cause many checkpoints.
ITEM = "x" * 700


def churn(path: str, seconds: float, results) -> None:
    """Put, get and ack in three queues of one file; return how many of each."""
    put = got = 0
    end = time.monotonic() + seconds
    options: Any = {"serializer": "json", "durability": "process"}
    with (
        SQLiteQueue(path, **options) as fifo,
        SQLiteAckQueue(path, name="acked", **options) as acked,
        PriorityQueue(path, name="ranked", **options) as ranked,
    ):
        while time.monotonic() < end:
            for queue in (fifo, acked, ranked):
                put += len(queue.put_many([ITEM, ITEM]))
                try:
                    item = queue.get_nowait()
                except Empty:
                    continue
                if queue is acked:
                    queue.ack(item)
                got += 1
    results.put((put, got))


def churned(path: str, seconds: float) -> None:
    results = CONTEXT.Queue()
    workers = [CONTEXT.Process(target=churn, args=(path, seconds, results)) for _ in range(PROCESSES)]
    for worker in workers:
        worker.start()
    counts = [results.get(timeout=seconds + 60) for _ in workers]
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    results.close()
    results.join_thread()
    put, got = (sum(column) for column in zip(*counts, strict=True))
    assert put > 100
    options: Any = {"serializer": "json", "durability": "process"}
    left = 0
    for kind, name in ((SQLiteQueue, "default"), (SQLiteAckQueue, "acked"), (PriorityQueue, "ranked")):
        with kind(path, name=name, **options) as queue:
            assert queue.qsize() == sum(1 for _ in queue.items())
            left += queue.qsize()
    assert left == put - got
    with closing(sqlite3.connect(f"{path}/data.db")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@pytest.mark.long
@pytest.mark.slow
def test_writers_and_checkpoints(tmp_path):
    churned(str(tmp_path / "q"), 8)


@pytest.mark.stress
def test_writers_and_checkpoints_for_a_minute(tmp_path):
    churned(str(tmp_path / "q"), 60)
