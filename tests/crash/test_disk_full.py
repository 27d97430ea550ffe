"""Disks that are really full, limits of the operating system, and faults from outside (strace)."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from persistcoll import Queue, StorageFullError
from tests.crash.accounts import Account, drain, numbered, strangers

ROOT = Path(__file__).parents[2]


@pytest.fixture
def small_disk(tmp_path):
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(place)], check=True)
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(queue: Queue, account: Account, first: int, length: int | None = None) -> int:
    """Put until there is no space; return the number that did not fit."""
    for number in range(first, first + 10_000):
        account.add(f"ask put {number} {number}")
        try:
            queue.put(numbered(number, length))
        except StorageFullError:
            account.add(f"no put {number} {number}")
            return number
        account.add(f"ok put {number} {number}")
    raise AssertionError("never full")


@pytest.mark.needs("root", "mount")
@pytest.mark.parametrize("durability", ["power", "process"])
@pytest.mark.parametrize("taken_before", [0, 1], ids=["from the beginning", "going on"])
def test_a_full_tmpfs_is_drained_and_goes_on(taken_before, durability, small_disk):
    account = Account()
    with Queue(small_disk / "queue", chunksize=50, serializer="raw", durability=durability) as queue:
        for number in range(-taken_before, 0):
            queue.put(numbered(1000 + number))
            queue.get()
            queue.task_done()
        failed = fill(queue, account, 1)
        assert failed > 1000
        # The file takes the space in which small writes would still fit, too.
        failed = fill(queue, account, failed + 1, 24)
        fill_up(small_disk)
        delivered = drain(queue)
        account.check(delivered, power=True)
        assert len(delivered) == len(account.put)
        for number in range(failed + 1, failed + 100):  # the removed chunks freed space
            queue.put(numbered(number))
        assert len(drain(queue)) == 99
    assert not strangers(str(small_disk / "queue"))


@pytest.mark.needs("root", "mount")
@pytest.mark.parametrize("durability", ["power", "process"])
def test_room_comes_back_in_the_same_process(durability, small_disk):
    account = Account()
    with Queue(small_disk / "queue", chunksize=50, serializer="raw", durability=durability) as queue:
        failed = fill(queue, account, 1)
        for _ in range(20):
            failed = fill(queue, account, failed + 1, 700)
        subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
        for number in range(failed + 1, failed + 500):
            account.add(f"ask put {number} {number}")
            queue.put(numbered(number))
            account.add(f"ok put {number} {number}")
    with Queue(small_disk / "queue", serializer="raw") as queue:
        delivered = drain(queue)
    account.check(delivered, power=True)
    assert len(delivered) == len(account.put)


def fill_up(disk: Path) -> None:
    """Fill the file system to the last block."""
    with contextlib.suppress(OSError), open(disk / "ballast", "wb", 0) as file:
        while file.write(bytes(100)):
            pass


@pytest.mark.needs("root", "mount")
@pytest.mark.parametrize("durability", ["power", "process"])
@pytest.mark.parametrize("in_hand", [0, 1])
def test_clear_gives_room_on_a_full_disk(in_hand, durability, small_disk):
    with Queue(small_disk / "queue", chunksize=100, serializer="raw", durability=durability) as queue:
        failed = fill(queue, Account(), 1)
        fill_up(small_disk)
        taken = [queue.get() for _ in range(in_hand)]
        assert queue.clear() == failed - 1 - in_hand
        for number in range(failed // 2):
            queue.put(numbered(number))
        for _ in taken:
            queue.task_done()
        assert len(drain(queue)) == failed // 2
    assert not strangers(str(small_disk / "queue"))


def child(code: str, *arguments: str, command: list[str] | None = None) -> list[str]:
    """Run a program in a process of its own; return the lines that it wrote."""
    words = [*(command or []), sys.executable, "-c", code, *arguments]
    done = subprocess.run(words, check=False, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


def traced(log: Path, calls: str, *more: str) -> list[str]:
    """Return the words before those of a program that let strace write its system calls into ``log``."""
    strace = shutil.which("strace")
    assert strace is not None
    return [strace, "-f", "-qq", "-s", "100", "-o", str(log), "-e", f"trace={calls}", *more]


def failing(log: Path, call: str, error: str, when: object) -> list[str]:
    """Return what :func:`traced` does, and let a system call fail.

    :param when: its number; ``"7+"`` is the seventh and all that follow.
    """
    return traced(log, call, "-y", "-e", f"inject={call}:error={error}:when={when}")


# The calls that a writer to a database makes, an error, and the durability.
WRITERS_CALLS = [
    ("fdatasync", "EIO", "power"),
    ("pwrite64", "EIO", "power"),
    ("pwrite64", "EIO", "process"),
    ("pwrite64", "ENOSPC", "power"),
    ("pwrite64", "ENOSPC", "process"),
    ("flock", "EIO", "process"),
]
# The range of the number of the call that fails, unless (150, 600). The first ones are those of the opening.
# The programs of the tests make at least so many calls: fdatasync 93, flock 883, pread64 563, others 1,800.
WHEN = {"fdatasync": (20, 60), "flock": (60, 200), "pread64": (150, 450)}


LIMITED = """
import resource, signal, sys
from persistcoll import Queue, StorageFullError
from tests.crash.accounts import drain, numbered
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
with Queue(sys.argv[1], chunksize=10_000, serializer="raw") as queue:
    stored = []
    for number in range(1, 400):
        try:
            queue.put(numbered(number))
            stored.append(number)
        except StorageFullError:
            pass
    full = 399 - len(stored)
    assert full > 100, full
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    for number in range(400, 500):
        queue.put(numbered(number))
        stored.append(number)
with Queue(sys.argv[1], serializer="raw") as queue:
    assert drain(queue) == stored
print("right")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no resource limits")
def test_a_limit_of_the_file_size(tmp_path):
    assert child(LIMITED, str(tmp_path / "queue")) == ["right"]


FAULTY = """
import sys
from persistcoll import Queue, StorageError
from tests.crash.accounts import numbered
try:
    with Queue(sys.argv[1], chunksize=3, serializer="raw") as queue:
        for number in range(1, 9):
            print("ask put", number, number, flush=True)
            queue.put(numbered(number))
            print("ok put", number, number, flush=True)
            if number % 3 == 0:
                queue.get()
                print("ask drop", number // 3, number // 3, flush=True)
                queue.task_done()
                print("ok drop", number // 3, number // 3, flush=True)
except StorageError as error:
    print("typed", error.errno, flush=True)
"""


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.needs("strace")
@pytest.mark.parametrize("when", ["once", "forever"])
@pytest.mark.parametrize("call", ["fsync", "fdatasync"])
def test_the_kernel_fails_the_nth_sync(call, when, tmp_path):
    fired = 0
    log = tmp_path / "strace.log"
    for nth in range(1, 30):
        path = tmp_path / f"{nth}" / "queue"
        command = failing(log, call, "EIO", f"{nth}+" if when == "forever" else nth)
        said = child(FAULTY, str(path), command=command)
        typed = [line for line in said if line.startswith("typed")]
        injected = [line for line in log.read_text().splitlines() if "INJECTED" in line]
        if not injected:
            assert not typed
            break
        fired += 1
        # The queue discards a new cursor that cannot be synced, if the old one can be.
        if not all("cursor.tmp" in line for line in injected):
            assert typed == ["typed 5"], said
        account = Account(line for line in said if line not in typed)
        with Queue(path, serializer="raw") as queue:
            account.check(drain(queue), power=True)
    assert fired > 3
