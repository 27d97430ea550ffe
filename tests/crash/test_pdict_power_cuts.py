"""Real power cuts under a dict: see :mod:`tests.crash.images`."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from persistcoll import PDict
from persistcoll.engine.records import Durability
from tests.crash.dict_accounts import Account, contents, hear, is_sound, listen
from tests.crash.images import KINDS, Image, image, program
from tests.crash.workers import Server

pytestmark = [pytest.mark.slow, pytest.mark.needs("root", "mkfs.ext4", "mkfs.xfs", "losetup")]

# ext4's other mount options concern renames, which SQLite does not make.
FILE_SYSTEMS = [kind for kind, options in KINDS if not options]


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server("tests.crash.dict_worker")
    yield server
    server.close()


@pytest.fixture(params=FILE_SYSTEMS)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Image]:
    with image(tmp_path, request.param, "") as disk:
        yield disk


def cut_again_and_again(
    server: Server,
    rng: random.Random,
    disk: Image,
    cuts: int,
    durability: Durability,
    *,
    gathers: bool = False,
    syncs: bool = True,
    **options: Any,
) -> Account:
    """Cut the power again and again under one dict.

    :param syncs: whether the worker's disk does anything for durability.
    """
    account = Account()
    path = str(disk.place / "d")
    for _ in range(cuts):
        order: dict[str, Any] = {"durability": durability if syncs else "process", "gathers": gathers}
        worker = server.start("it", path, 0, rng.getrandbits(32), "alone", **order, **options)
        listen(server, {"it": account}, rng)
        if durability == "process":  # the system may do this at any moment, and rarely does
            program("sync", "-f", path)
            listen(server, {"it": account}, rng)
        os.kill(worker.pid, signal.SIGSTOP)
        disk.cut_power()
        hear({"it": account}, server.bury([worker]))
        disk.unmount()
        disk.mount()
        with PDict[Any, Any](path, durability=durability) as d:
            account.check(contents(d), prefix=durability == "process")
        is_sound(path)
    return account


@pytest.mark.long
def test_what_returned_survives_a_power_cut(server, rng, disk):
    account = cut_again_and_again(server, rng, disk, 30, "power")
    assert account.done + account.undone, "no cut came within an operation"


def test_what_was_committed_survives_a_power_cut(server, rng, disk):
    cut_again_and_again(server, rng, disk, 10, "power", gathers=True)


@pytest.mark.long
def test_at_process_a_power_cut_leaves_a_state_of_before(server, rng, disk):
    assert cut_again_and_again(server, rng, disk, 15, "process").between, "all was lost, or nothing"


@pytest.mark.long
@pytest.mark.parametrize(
    "defect", [{"syncs": False}, {"lie": "early"}, {"lie": "torn update"}], ids=["no sync", "early", "torn"]
)
def test_without_syncs_the_same_cuts_lose_changes(defect, server, rng, disk):
    """A test of the test."""
    with pytest.raises(AssertionError, match=r"lost or undone|half of"):
        cut_again_and_again(server, rng, disk, 60, "power", **defect)
