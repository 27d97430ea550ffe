"""Real power cuts under an SQLite queue: see :mod:`tests.crash.images`."""

from __future__ import annotations

import os
import select
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest

from persistcoll import SQLiteAckQueue
from persistcoll.engine.values import Durability
from tests.crash.images import IDS, KINDS, image

pytestmark = [pytest.mark.slow, pytest.mark.needs("root", "mkfs.ext4", "mkfs.xfs", "losetup")]


class Account:
    """What the workers said: what was tried, what returned."""

    def __init__(self) -> None:
        self.tried: set[int] = set()
        self.put: set[int] = set()
        self.may_be_gone: set[int] = set()
        self.gone: set[int] = set()
        self.pending = ""

    def hear(self, text: str) -> int:
        """Take in what was said; how many whole lines there were."""
        *lines, self.pending = (self.pending + text).split("\n")
        books = {"try": self.tried, "put": self.put, "settle": self.may_be_gone, "settled": self.gone}
        for line in lines:
            what, *numbers = line.split()
            books[what].update(map(int, numbers))
        return len(lines)

    def check(self, left: list[int], power: bool) -> None:
        """What must be there after a cut."""
        stored = set(left)
        assert left == sorted(stored), "order, or an item twice"
        assert stored <= self.tried, "an item that nobody put"
        if power:
            assert not stored & self.gone, "an acknowledged item came back"
            assert self.put - self.may_be_gone <= stored, "an item whose put returned was lost"
        else:
            # A prefix of what was done: no item is missing before one that is there.
            before = {number for number in self.put - self.may_be_gone if number < max(stored, default=0)}
            assert before <= stored, "an item was lost before one that was kept"
        # What is not there now was gone or never there; what is there was not acknowledged.
        self.put = set(stored)
        self.tried |= stored
        self.gone -= stored
        self.may_be_gone -= stored
        self.pending = ""


def live(account: Account, rng, path: str, first: int, durability: str) -> subprocess.Popen[bytes]:
    """A worker, stopped at some moment."""
    command = [sys.executable, "-m", "tests.crash.sqlite_worker", path, str(first), str(rng.getrandbits(32))]
    worker = subprocess.Popen([*command, durability], stdout=subprocess.PIPE)
    assert worker.stdout is not None
    heard, enough = 0, rng.randrange(2, 90)
    while heard < enough:
        assert select.select([worker.stdout], [], [], 30)[0], "nothing happens"
        data = os.read(worker.stdout.fileno(), 1 << 16)
        assert data, "the worker ended"
        heard += account.hear(data.decode())
    os.kill(worker.pid, signal.SIGSTOP)
    return worker


def bury(account: Account, worker) -> None:
    """Hear what it had still said, and kill it."""
    worker.kill()
    account.hear(worker.stdout.read().decode())
    worker.stdout.close()
    worker.wait()


def cut_again_and_again(
    rng, directory, kind: str, options: str, cuts: int, durability: Durability, quick: bool = False
) -> int:
    """:param quick: let the worker sync nothing.
    :return: how many items were seen after the cuts.
    """
    worked = "process" if quick else durability
    account, seen = Account(), 0
    with image(directory, kind, options) as disk:
        path = str(disk.place / "queue")
        for _ in range(cuts):
            worker = live(account, rng, path, max(account.tried, default=0) + 1, worked)
            disk.cut_power()
            bury(account, worker)
            disk.unmount()
            disk.mount()
            with SQLiteAckQueue(path, serializer="json", durability=durability) as queue:
                left = list(queue.items())
                assert queue.qsize() == len(left)
            with closing(sqlite3.connect(os.path.join(path, "data.db"))) as connection:
                assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            account.check(left, durability == "power")
            seen += len(left)
    return seen


@pytest.mark.parametrize(("kind", "options"), KINDS, ids=IDS)
def test_what_returned_survives_a_power_cut(kind, options, rng, tmp_path):
    assert cut_again_and_again(rng, tmp_path, kind, options, 30, "power") > 30


@pytest.mark.parametrize(("kind", "options"), KINDS, ids=IDS)
def test_at_process_a_power_cut_leaves_a_prefix(kind, options, rng, tmp_path):
    cut_again_and_again(rng, tmp_path, kind, options, 10, "process")


@pytest.mark.parametrize(("kind", "options"), KINDS, ids=IDS)
def test_without_syncs_the_same_cuts_lose_items(kind, options, rng, tmp_path):
    """A test of the test."""
    with pytest.raises(AssertionError, match=r"was lost|came back"):
        cut_again_and_again(rng, tmp_path, kind, options, 10, "power", quick=True)
