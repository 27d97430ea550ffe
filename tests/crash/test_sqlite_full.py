"""A full disk and a failing sync under SQLite queues."""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import sys
from pathlib import Path

import pytest

from persistcoll import Empty, MessageQueue, SQLiteAckQueue, SQLiteQueue, StorageFullError
from tests.crash.test_disk_full import child, failing, traced


@pytest.fixture
def small_disk(tmp_path):
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], check=True)
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(queue) -> list[int]:
    """Put numbered items until there is no space; return those that were put."""
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
        # A get needs space in the log too; reading does not.
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


@pytest.mark.needs("root", "mount")
@pytest.mark.parametrize("durability", ["power", "process"])
def test_a_message_queue_on_a_full_disk(durability, small_disk):
    """Claims and acks need space, too. What they would change stays as it is, and all can be read."""
    with MessageQueue(small_disk / "queue", serializer="json", durability=durability, backoff=None) as queue:
        held = [queue.get() for _ in queue.put_many(["ack", "nack", "release", "fail"])]
        put = fill(queue)
        ballast = fill_up(small_disk)
        ack, nack, release, fail = held
        # Each writes more pages into the log than may fit into the last block.
        for change in (
            lambda: queue.put([-1, "y"]), lambda: queue.get(block=False), lambda: queue.get_many(3), ack.ack,
            nack.nack, release.release, fail.fail, queue.purge,
        ):  # fmt: skip
            with pytest.raises(StorageFullError):
                change()
        assert queue.topics() == {"default": len(put)}
        assert (queue.stats().claimed, queue.stats().dead) == (4, 0)
        assert queue.peek().body[0] == put[0]
        assert [info and info.attempts for info in map(queue.find, range(1, 6))] == [1, 1, 1, 1, 0]
        ballast.unlink()
        subprocess.run(["mount", "-o", "remount,size=16m", str(small_disk)], check=True)
        ack.ack()
        nack.nack()
        release.release()
        fail.fail()
        got = [message.body for message in queue.get_many(10_000)]
        assert got[:2] == ["nack", "release"]
        assert [number for number, _ in got[2:]] == put
        assert [letter.body for letter in queue.dead_letters()] == ["fail"]


LIMITED = """
import resource, sys
from persistcoll import MessageQueue, PDict, SQLiteAckQueue, SQLiteQueue, StorageFullError

kind, durability = sys.argv[2:]
with eval(kind)(sys.argv[1], serializer="raw", durability=durability) as store:
    def write(number):
        payload = number.to_bytes(4, "big") + bytes(20_000)
        if kind == "PDict":
            store[number] = payload
        else:
            store.put(payload)

    written = []
    for limit in (600_000, 1_200_000, resource.RLIM_INFINITY):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            for number in range(len(written), len(written) + 100):
                write(number)
                written.append(number)
            assert limit == resource.RLIM_INFINITY, "never full"
        except StorageFullError as error:
            assert "nothing is stored" in str(error)
with eval(kind)(sys.argv[1], serializer="raw") as store:
    if kind == "MessageQueue":
        left = [message.body for message in store.get_many(1000)]
    else:
        left = [*store.values()] if kind == "PDict" else [*store.items()]
assert [int.from_bytes(data[:4], "big") for data in left] == written
print("right", len(written))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
@pytest.mark.parametrize("durability", ["power", "process"])
@pytest.mark.parametrize("kind", ["SQLiteQueue", "SQLiteAckQueue", "PDict", "MessageQueue"])
def test_a_limit_of_a_files_size_is_a_want_of_room(kind, durability, tmp_path):
    """SQLite calls it an I/O error, after which no operation would succeed."""
    (said,) = child(LIMITED, str(tmp_path / "store"), kind, durability)
    assert said.startswith("right")


def frames(database: Path) -> int:
    """Return how many frames SQLite's index of the log knows.

    Another process reads it, because closing that file here would drop SQLite's locks.
    """
    program = "import sys; print(int.from_bytes(open(sys.argv[1], 'rb').read(20)[16:], sys.byteorder))"
    (count,) = child(program, f"{database}-shm")
    return int(count)


def fill_up(place: Path) -> Path:
    """Leave no space for a single block."""
    path = place / "ballast"
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return path


@pytest.mark.needs("root", "mount")
def test_an_index_that_cannot_be_made_is_a_want_of_room(small_disk):
    """SQLite's shared-memory index has 32 KiB; no process has the database open."""
    with SQLiteQueue(small_disk / "queue") as queue:
        queue.put(1)
    ballast = fill_up(small_disk)
    with pytest.raises(StorageFullError):
        SQLiteQueue(small_disk / "queue")
    ballast.unlink()
    with SQLiteQueue(small_disk / "queue") as queue:
        queue.put(2)
        assert [*queue.items()] == [1, 2]


@pytest.mark.long
@pytest.mark.needs("root", "mount")
@pytest.mark.parametrize("durability", ["power", "process"])
def test_an_index_that_cannot_grow_is_a_want_of_room(durability, small_disk):
    """The index grows with the 4,063rd frame of the log."""
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    with SQLiteQueue(small_disk / "queue", durability=durability) as queue:
        put: list[int | None] = []
        while (known := frames(small_disk / "queue" / "data.db")) < 4030:
            put += [queue.put(number) for number in range(40 if known < 3900 else 2)]
        ballast = fill_up(small_disk)
        with contextlib.suppress(StorageFullError):
            while len(put) < 10_000:
                put.append(queue.put(b"y" * 100))
        assert queue.qsize() == len(put) < 10_000
        ballast.unlink()
        put.append(queue.put("there is room"))
        assert [row["id"] for row in queue.queue()] == put


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
    command = failing(tmp_path / "log", "fdatasync", "EIO", when)
    (said,) = child(FAILING, str(tmp_path / "queue"), command=command)
    assert said.startswith("right")


UNLOCKING = """
import sys
from persistcoll import LockedError, SQLiteQueue

path, puts = sys.argv[1], int(sys.argv[2])
queue = SQLiteQueue(path, durability="process")
other = SQLiteQueue(path, name="other", durability="process")
put = []
try:
    while len(put) < puts:
        queue.put(len(put))
        put.append(len(put))
        assert queue.peek() == 0
except LockedError as error:
    assert "open them again" in str(error), error
queue.close()
other.close()
# The closed objects are still there.
with SQLiteQueue(path) as again:
    assert list(again.items()) in (put, [*put, len(put)])
    again.put("on")
print("right", len(put))
"""


@pytest.mark.long
@pytest.mark.needs("strace")
def test_an_unlock_that_fails_is_over_when_all_is_closed(tmp_path):
    """SQLite takes the lock for its own for as long as a connection is open, and tries for ten seconds."""
    log = tmp_path / "log"
    assert child(UNLOCKING, str(tmp_path / "whole"), "9", command=traced(log, "fcntl")) == ["right 9"]
    calls = log.read_text().splitlines()
    # The lock of a place up to which a connection reads. The connection locks it alone to move it.
    moves = [
        number
        for number, (before, call) in enumerate(itertools.pairwise(calls), start=2)
        if "F_WRLCK" in before and "F_UNLCK" in call and "l_start=124," in call
    ]
    command = failing(log, "fcntl", "EIO", moves[-6])
    (said,) = child(UNLOCKING, str(tmp_path / "failing"), "9", command=command)
    assert "F_UNLCK" in next(call for call in log.read_text().splitlines() if "INJECTED" in call)
    assert "right 0" < said < "right 9"
