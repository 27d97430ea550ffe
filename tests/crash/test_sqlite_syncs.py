"""How many syncs each operation costs: the table in docs/how-to/sqlite.rst, row by row, counted by strace."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from tests.crash.test_disk_full import child, traced

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.needs("strace")

# The program writes a mark before each operation. Its preparations come under the mark "else".
OPERATIONS = """
import os, subprocess, sys, threading, time
from persistcoll import Empty, SQLiteAckQueue, SQLiteQueue

path, durability = sys.argv[1:]

def mark(name):
    os.write(2, f"# {name}.\\n".encode())

def count(name, call, *arguments, **options):
    mark(name)
    try:
        return call(*arguments, **options)
    except Empty:
        pass
    finally:
        mark("else")

options = {"serializer": "json", "durability": durability}
plain = SQLiteQueue(path, name="plain", **options)
later = SQLiteQueue(path, name="later", auto_commit=False, **options)
acked = SQLiteAckQueue(path, name="acked", **options)
for queue in (plain, later, acked):
    queue.put_many(range(10))
count("holder", later.get)

for queue in (plain, later, acked):
    count("put", queue.put, "x")
    count("put_many", queue.put_many, range(300))
    count("skip", queue.skip)
    count("update", queue.update, "y", id=9)
    for name in ("qsize", "peek", "queue", "stats"):
        count("look", getattr(queue, name))
    count("look", lambda: list(queue.items()))
count("get", plain.get)
count("get", plain.get_many, 5)
count("counted", plain.task_done)
count("claim", later.get)
count("claim", later.get_many, 1)
count("settle", later.task_done)
for verb in (acked.ack, acked.nack, acked.ack_failed):
    item = count("claim", acked.get)
    count("settle", verb, item)
count("claim", acked.get)
count("settle", acked.task_done)
count("settle", acked.requeue, "all")
for queue in (later, acked):
    count("claim", queue.get_many, 3)
    count("settle", queue.task_done, 3)
items = count("claim", acked.get_many, 3)
count("settle", acked.ack_many, items)

def received(queue):
    with queue.receive():
        mark("settle")

def received_many(queue):
    with queue.receive_many(3):
        mark("settle")

for queue in (plain, later, acked):
    count("claim", received, queue)
    count("claim", received_many, queue)
for queue in (plain, later, acked):
    count("clear", queue.clear)
    count("waiting", queue.get, timeout=0.02)

# Threads that come while somebody writes.
database = plain._store._database
with database._lock.mutex:
    database._is_writing = True
    threads = [threading.Thread(target=plain.put, args=("x",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 20
    while len(database._combiner._pending) < 7 and time.monotonic() < deadline:
        time.sleep(0.001)
    mark("together")
    database._is_writing = False
for thread in threads:
    thread.join()
mark("else")

# The log is written over from its beginning when all of it is in the database.
fast = SQLiteQueue(path, name="fast", serializer="raw", durability="process")
fast.put_many([bytes(900)] * 5000)  # more than 4 MB
fast.put(b"")
count("log", fast.put_many, [bytes(900)] * 5000)
count("anew", fast.put, b"")
count("no more", fast.put, b"")

OTHER = f'''
import os
from persistcoll import SQLiteQueue
os.write(2, b"# open.\\\\n")
queue = SQLiteQueue({path!r}, name="plain", serializer="json", durability={durability!r})
os.write(2, b"# else.\\\\n")
queue.close()
'''
plain.put("in the log")
subprocess.run([sys.executable, "-c", OTHER], check=True)
count("anew", fast.put, b"")
plain.put("in the log")
for queue in (plain, later, fast):
    count("close", queue.close)
count("last close", acked.close)
"""


def strace(path: Path, durability: str) -> dict[str, list[int]]:
    """Return for each mark the numbers of syncs that follow it."""
    log = path / "log"
    child(OPERATIONS, str(path / "queue"), durability, command=traced(log, "fdatasync,fsync,write"))
    found: dict[str, list[int]] = {"else": [0]}
    now = "else"
    for line in log.read_text().splitlines():
        if match := re.search(r'write\(2, "# ([a-z_ ]+)\.', line):
            now = match[1]
            found.setdefault(now, []).append(0)
        elif re.search(r"\b(fdatasync|fsync)\(", line):
            found[now][-1] += 1
    return found


@pytest.fixture(scope="module")
def power(tmp_path_factory):
    return strace(tmp_path_factory.mktemp("power"), "power")


@pytest.fixture(scope="module")
def process(tmp_path_factory):
    return strace(tmp_path_factory.mktemp("process"), "process")


# How the rows of the table in docs/how-to/sqlite.rst begin, the marks counted for each, and the syncs.
ROWS = [
    ("``put``, ``put_many`` of any number of items", ["put", "put_many"], 1),
    ("``get`` with ``auto_commit``", ["get"], 1),
    ("``get`` without, and of the ack queues: a claim", ["claim", "holder"], 0),
    (
        (
            "``task_done``, ``ack``, ``ack_many``, ``nack``, ``ack_failed``, ``requeue``,"
            " the end of ``receive`` and of ``receive_many``"
        ),
        ["settle"],
        1,
    ),
    ("``update``, ``skip``, ``clear``", ["update", "skip", "clear"], 1),
    (
        "``qsize``, ``peek``, ``items``, ``queue``, ``stats``, waiting",
        ["look", "waiting", "counted", "close"],
        0,
    ),
    (
        "a checkpoint: every 4 MB of the WAL, and when the last object on the file is closed",
        ["log", "last close"],
        2,
    ),
    ("opening a file that others use, if its WAL has something new", ["open"], 3),
    ("the first write after a checkpoint, which begins the WAL anew: beside its own", ["anew"], 1),
]


@pytest.mark.parametrize(("row", "marks", "syncs"), ROWS, ids=[row for row, *_ in ROWS])
def test_a_row_of_the_table(power, row, marks, syncs):
    for mark in marks:
        assert set(power[mark]) == {syncs}, f"{mark}: {Counter(power[mark])}"
    page = ROOT / "docs" / "how-to" / "sqlite.rst"
    assert f"* - {row}\n     - {syncs}\n" in page.read_text(encoding="utf-8")


def test_at_process_only_checkpoints_sync(power, process):
    rare = {"open", "last close", "log", "anew", "else"}
    assert set(power) == set(process)
    assert {mark for mark, syncs in process.items() if any(syncs)} == rare
    for mark in rare - {"else"}:
        assert process[mark] == power[mark]


def test_threads_share_a_sync(power):
    assert power["together"][0] in (1, 2)  # one of the eight may have been alone
