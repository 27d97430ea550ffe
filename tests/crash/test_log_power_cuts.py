"""Real power cuts under a producer and a consumer of a log, as those of a queue.

One log survives all cuts of a test, and is recovered and checked after each. Each life after a cut counts as
another boot of the machine, which a shutdown of a file system alone does not change.
"""

from __future__ import annotations

import os
import random
import signal

import pytest

from persistcoll import PersistcollError
from persistcoll.disk.calls import Disk
from tests.crash.images import IDS, KINDS, image
from tests.crash.log_accounts import Found, LogAccount, disk_of_boot, log_strangers, opened, rest_of
from tests.crash.workers import Life, Server

pytestmark = [pytest.mark.slow, pytest.mark.needs("root", "mkfs.ext4", "mkfs.xfs", "losetup")]

WORKER = "tests.crash.log_worker"
CONSUMERS = ("a", "b")


def live(server: Server, account: LogAccount, rng: random.Random, path: str, options) -> list[Life]:
    """Run a producer and two consumers, and stop them at a random time."""
    first = max(account.order, default=0) + 1
    roles = [("append", ""), *(("consume", name) for name in CONSUMERS)]
    lives = [
        server.start(role, path, first, rng.getrandbits(32), role, consumer=name, **options)
        for role, name in roles
    ]
    heard, enough = 0, rng.randrange(2, 120)
    while heard < enough:
        said_now = server.lines(30)
        assert said_now, "nothing happens"
        heard += len(said_now)
        hear(account, said_now)
    hear(account, server.lines(rng.random() * 0.001))
    for life in lives:
        os.kill(life.pid, signal.SIGSTOP)
    return lives


def hear(account: LogAccount, lines: list[tuple[str, str]]) -> None:
    for _, said in lines:
        assert not said.startswith("error"), said
        if said.split()[0] not in ("open", "waits", "at"):
            account.add(said)


def cut_again_and_again(server, rng, directory, kind, options, cuts, durability, **more) -> int:
    """Cut the power again and again under one log.

    :return: how many items were seen after the cuts.
    """
    account = LogAccount(power=durability == "power")
    seen = 0
    with image(directory, kind, options) as disk:
        path = str(disk.place / "log")
        with opened(path, Disk()) as log:
            for name in CONSUMERS:
                log.consumer(name).close()
            account.add(Found.of(log).line())
        for cut in range(cuts):
            arguments = {"durability": durability, "chunksize": 4, "boot": f"life {cut}", **more}
            workers = live(server, account, rng, path, arguments)
            disk.cut_power()
            hear(account, server.bury(workers))
            disk.unmount()
            disk.mount()
            with opened(path, disk_of_boot(Disk(), f"after cut {cut}")) as log:
                found = Found.of(log)
            account.check(found)
            with opened(path, disk_of_boot(Disk(), f"again after cut {cut}")) as log:
                again = Found.of(log)
                assert (again.items, again.consumers) == (found.items, found.consumers)
                for name, position in found.consumers.items():
                    with log.consumer(name) as consumer:
                        assert rest_of(consumer) == found.after(position)
            assert not [name for name in log_strangers(path) if not name.endswith(".tmp")]
            account.add(found.line())
            seen += len(found.items)
    return seen


@pytest.mark.parametrize(("kind", "options"), KINDS, ids=IDS)
@pytest.mark.parametrize("cuts", [8, pytest.param(30, marks=pytest.mark.long)])
def test_what_returned_survives_a_power_cut(cuts, kind, options, server, rng, tmp_path):
    assert cut_again_and_again(server, rng, tmp_path, kind, options, cuts, "power") > cuts


@pytest.mark.long
@pytest.mark.parametrize(("kind", "options"), KINDS, ids=IDS)
def test_at_process_a_power_cut_leaves_a_prefix(kind, options, server, rng, tmp_path):
    cut_again_and_again(server, rng, tmp_path, kind, options, 10, "process")


@pytest.mark.long
@pytest.mark.parametrize(("kind", "options"), KINDS, ids=IDS)
def test_without_syncs_the_same_cuts_lose_items(kind, options, server, rng, tmp_path):
    """A test of the test: a log whose disk does not sync must lose items."""
    with pytest.raises((AssertionError, PersistcollError)):
        cut_again_and_again(server, rng, tmp_path, kind, options, 10, "power", quick=True)
