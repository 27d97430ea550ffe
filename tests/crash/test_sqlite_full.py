"""A full disk and a failing sync under SQLite queues."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from persistcoll import Empty, SQLiteAckQueue, SQLiteQueue, StorageFullError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def small_disk(tmp_path):
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], check=True)
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(queue) -> list[int]:
    """Put numbered items until there is no room; those that were put."""
    for number in range(100_000):
        try:
            queue.put([number, "x" * 200])
        except StorageFullError:
            return list(range(number))
    raise AssertionError("never full")


@pytest.mark.needs("root", "mount")
@pytest.mark.parametrize("durability", ["power", "process"])
@pytest.mark.parametrize("kind", [SQLiteQueue, SQLiteAckQueue])
def test_room_comes_back_in_the_same_process(kind, durability, small_disk):
    with kind(small_disk / "queue", serializer="json", durability=durability) as queue:
        put = fill(queue)
        assert len(put) > 100
        with pytest.raises(StorageFullError):
            queue.put_many([[-1, "y" * 200_000]] * 3)
        # Taking needs room in the log as well; looking does not.
        for take in (queue.get_nowait, queue.clear, queue.skip):
            with pytest.raises(StorageFullError):
                take()
        assert [number for number, _ in queue.items()] == put
        assert [row["data"][0] for row in queue.queue()] == put
        assert queue.peek()[0] == put[0]
        assert queue.qsize() == queue.unfinished_tasks == queue.stats().ready == len(put)
        subprocess.run(["mount", "-o", "remount,size=16m", str(small_disk)], check=True)
        queue.put([len(put), "there is room"])
        got = []
        while True:
            try:
                got.append(queue.get_nowait())
            except Empty:
                break
            queue.task_done()
        assert [number for number, _ in got] == [*put, len(put)]
    with kind(small_disk / "queue", serializer="json", durability=durability) as queue:
        assert (queue.qsize(), queue.unfinished_tasks) == (0, 0)


FAILING = """
import sys
from persistcoll import SQLiteQueue, StorageError

q, other = SQLiteQueue(sys.argv[1]), SQLiteQueue(sys.argv[1], name="other")
put = []
try:
    for number in range(1000):
        q.put(number)
        put.append(number)
except StorageError as error:
    assert "unknown" in str(error), error
else:
    raise AssertionError("no sync failed")
for refused in (lambda: q.put(1), q.get_nowait, lambda: other.put(1), other.qsize):
    try:
        refused()
    except StorageError as error:
        assert "open it again" in str(error), error
    else:
        raise AssertionError("not refused")
q.close()
other.close()
with SQLiteQueue(sys.argv[1]) as q:
    left = list(q.items())
    assert left in (put, [*put, len(put)]), (left, put)
    q.put("on")
print("right", len(put))
"""


@pytest.mark.needs("strace")
@pytest.mark.parametrize("when", [12, 25])
def test_a_sync_that_fails_poisons_what_is_open(when, tmp_path):
    strace = shutil.which("strace")
    assert strace is not None
    inject = f"inject=fdatasync:error=EIO:when={when}"
    command = [strace, "-f", "-qq", "-o", str(tmp_path / "log"), "-e", "trace=fdatasync", "-e", inject]
    # strace wants the interpreter itself, not a version manager's script.
    command += [os.path.realpath(sys.executable), "-c", FAILING, str(tmp_path / "queue")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("right")
