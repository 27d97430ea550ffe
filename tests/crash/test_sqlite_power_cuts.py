"""Real power cuts under an SQLite queue: see :mod:`tests.crash.images`."""

from __future__ import annotations

import os
import select
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest

from persistcoll import SQLiteAckQueue
from persistcoll.engine.records import Durability
from tests.crash.images import IDS, KINDS, image

pytestmark = [pytest.mark.slow, pytest.mark.needs("root", "mkfs.ext4", "mkfs.xfs", "losetup")]


# The numbers of one worker; those of the next one follow.
EACH = 1_000_000


class Account:
    """What the workers said: what was tried, what returned."""

    def __init__(self) -> None:
        self.tried: set[int] = set()
        self.put: set[int] = set()
        self.may_be_gone: set[int] = set()
        self.gone: set[int] = set()
        self.pending: dict[int, str] = {}

    def next_number(self, worker: int) -> int:
        """Return the first number that this worker has not tried."""
        return max((number for number in self.tried if number // EACH == worker), default=worker * EACH) + 1

    def hear(self, worker: int, text: str) -> int:
        """Record what was said; return the number of complete lines."""
        *lines, self.pending[worker] = (self.pending.get(worker, "") + text).split("\n")
        books = {"try": self.tried, "put": self.put, "settle": self.may_be_gone, "settled": self.gone}
        for line in lines:
            what, *numbers = line.split()
            books[what].update(map(int, numbers))
        return len(lines)

    def check(self, left: list[int], power: bool) -> None:
        """Check what must be there after a cut."""
        stored = set(left)
        assert len(left) == len(stored), "an item twice"
        for worker in {number // EACH for number in stored}:
            own = [number for number in left if number // EACH == worker]
            assert own == sorted(own), "order"
        assert stored <= self.tried, "an item that nobody put"
        if power:
            assert not stored & self.gone, "an acknowledged item came back"
            assert self.put - self.may_be_gone <= stored, "an item whose put returned was lost"
        else:
            # The items are a prefix of the puts: none is missing before one that is there.
            before = {number for number in self.put - self.may_be_gone if number < max(stored, default=0)}
            assert before <= stored, "an item was lost before one that was kept"
        # A missing item was removed or never put; a present one was not acked.
        self.put = set(stored)
        self.tried |= stored
        self.gone -= stored
        self.may_be_gone -= stored
        self.pending = {}


def live(
    account: Account, rng, path: str, count: int, durability: str, kind: str
) -> list[subprocess.Popen[bytes]]:
    """Run workers and stop them at a random time."""
    command = [sys.executable, "-m", "tests.crash.sqlite_worker", path]
    workers = [
        subprocess.Popen(
            [*command, str(account.next_number(number)), str(rng.getrandbits(32)), durability, kind],
            stdout=subprocess.PIPE,
        )
        for number in range(count)
    ]
    numbers: dict[Any, int] = {worker.stdout: number for number, worker in enumerate(workers)}
    heard, enough = 0, rng.randrange(2, 90 * count)
    while heard < enough:
        ready = select.select(list(numbers), [], [], 30)[0]
        assert ready, "nothing happens"
        for pipe in ready:
            data = os.read(pipe.fileno(), 1 << 16)
            assert data, "a worker ended"
            heard += account.hear(numbers[pipe], data.decode())
    for worker in workers:
        os.kill(worker.pid, signal.SIGSTOP)
    return workers


def bury(account: Account, number: int, worker) -> None:
    """Read what the worker had still said, and kill it."""
    worker.kill()
    account.hear(number, worker.stdout.read().decode())
    worker.stdout.close()
    worker.wait()


def stored(path: str, durability: Durability) -> list[int]:
    """Return the items that are there, in order."""
    with SQLiteAckQueue(path, serializer="json", durability=durability) as queue:
        left = list(queue.items())
        assert queue.qsize() == len(left)
    return left


def cut_again_and_again(
    rng,
    directory,
    system: str,
    options: str,
    cuts: int,
    durability: Durability,
    quick: bool = False,
    workers: int = 1,
    kind: str = "ack",
    look: Callable[[str, Durability], list[int]] = stored,
) -> int:
    """Cut the power again and again under one queue.

    :param quick: let the workers sync nothing.
    :param kind: what :mod:`tests.crash.sqlite_worker` works on.
    :param look: returns the numbers that are there, in order.
    :return: how many items were seen after the cuts.
    """
    worked = "process" if quick else durability
    account, seen = Account(), 0
    with image(directory, system, options) as disk:
        path = str(disk.place / "queue")
        for _ in range(cuts):
            living = live(account, rng, path, workers, worked, kind)
            disk.cut_power()
            for number, worker in enumerate(living):
                bury(account, number, worker)
            disk.unmount()
            disk.mount()
            left = look(path, durability)
            with closing(sqlite3.connect(os.path.join(path, "data.db"))) as connection:
                assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            account.check(left, durability == "power")
            seen += len(left)
    return seen


@pytest.mark.long
@pytest.mark.parametrize(("kind", "options"), KINDS, ids=IDS)
def test_what_returned_survives_a_power_cut(kind, options, rng, tmp_path):
    assert cut_again_and_again(rng, tmp_path, kind, options, 30, "power") > 30


@pytest.mark.long
@pytest.mark.parametrize(("kind", "options"), KINDS, ids=IDS)
def test_what_returned_to_any_of_several_processes_survives_a_power_cut(kind, options, rng, tmp_path):
    """The processes commit in turn, and sync side by side."""
    assert cut_again_and_again(rng, tmp_path, kind, options, 10, "power", workers=4) > 10


@pytest.mark.long
@pytest.mark.parametrize(("kind", "options"), KINDS, ids=IDS)
def test_at_process_a_power_cut_leaves_a_prefix(kind, options, rng, tmp_path):
    cut_again_and_again(rng, tmp_path, kind, options, 10, "process")


@pytest.mark.long
@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize(("kind", "options"), KINDS, ids=IDS)
def test_without_syncs_the_same_cuts_lose_items(kind, options, workers, rng, tmp_path):
    """A test of the test."""
    with pytest.raises(AssertionError, match=r"was lost|came back"):
        cut_again_and_again(rng, tmp_path, kind, options, 10, "power", quick=True, workers=workers)
