"""Real power cuts: ext4 and xfs in an image, shut down without a flush under a working process.

The shutdown ioctl drops what the file system has not written by then, as a power cut does (the image's own
page cache stands for the device). One queue survives all cuts of a test, and is recovered and checked after
each.
"""

from __future__ import annotations

import os
import random
import signal

import pytest

from persistcoll import PersistcollError, Queue
from tests.crash.accounts import Account, number_of, strangers
from tests.crash.images import IDS, KINDS, image
from tests.crash.workers import Life, Server

pytestmark = [pytest.mark.slow, pytest.mark.needs("root", "mkfs.ext4", "mkfs.xfs", "losetup")]


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


def live(server: Server, account: Account, rng: random.Random, path: str, first: int, options) -> Life:
    """Run a worker and stop it at a random time."""
    worker = server.start("worker", path, first, rng.getrandbits(32), **options)
    heard, enough = 0, rng.randrange(2, 70)
    while heard < enough:
        said_now = server.lines(30)
        assert said_now, "nothing happens"
        heard += len(said_now)
        hear(account, said_now)
    hear(account, server.lines(rng.random() * 0.001))
    os.kill(worker.pid, signal.SIGSTOP)
    return worker


def hear(account: Account, lines: list[tuple[str, str]]) -> None:
    for _, said in lines:
        assert not said.startswith("error"), said
        if said != "open":
            account.add(said)


def cut_again_and_again(server, rng, directory, kind, options, cuts, durability, **more) -> int:
    """Cut the power again and again under one queue.

    :return: how many items were seen after the cuts.
    """
    account = Account()
    seen = 0
    with image(directory, kind, options) as disk:
        path = str(disk.place / "queue")
        for _ in range(cuts):
            first = max(account.order, default=0) + 1
            arguments = {"durability": durability, "chunksize": 4, **more}
            worker = live(server, account, rng, path, first, arguments)
            disk.cut_power()
            hear(account, server.bury([worker]))
            disk.unmount()
            disk.mount()
            with Queue(path, serializer="raw", durability=durability) as queue:
                left = [number_of(item) for item in queue.items()]
                assert queue.qsize() == len(left)
            with Queue(path, serializer="raw") as queue:
                assert [number_of(item) for item in queue.items()] == left
            account.check(left, power=durability == "power")
            assert not [name for name in strangers(path) if not name.endswith(".tmp")]
            account.add(" ".join(["saw", *map(str, left)]))
            seen += len(left)
    return seen


@pytest.mark.parametrize(("kind", "options"), KINDS, ids=IDS)
def test_what_returned_survives_a_power_cut(kind, options, server, rng, tmp_path):
    assert cut_again_and_again(server, rng, tmp_path, kind, options, 30, "power") > 30


@pytest.mark.parametrize(("kind", "options"), KINDS, ids=IDS)
def test_at_process_a_power_cut_leaves_a_prefix(kind, options, server, rng, tmp_path):
    cut_again_and_again(server, rng, tmp_path, kind, options, 10, "process")


@pytest.mark.long
@pytest.mark.parametrize(("kind", "options"), KINDS, ids=IDS)
def test_without_syncs_the_same_cuts_lose_items(kind, options, server, rng, tmp_path):
    """A test of the test: a worker whose disk does not sync must lose items."""
    with pytest.raises((AssertionError, PersistcollError)):
        cut_again_and_again(server, rng, tmp_path, kind, options, 10, "power", quick=True)
