"""Real power cuts under a dict: see :mod:`tests.crash.images`."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from persistcoll import PDict
from persistcoll.engine.records import Durability
from tests.crash.dict_accounts import Account, Pairs, contents, cut_again_and_again
from tests.crash.images import PLAIN, Image, image
from tests.crash.workers import Server

pytestmark = [pytest.mark.slow, pytest.mark.needs("root", "mkfs.ext4", "mkfs.xfs", "losetup")]


WORKER = "tests.crash.dict_worker"


@pytest.fixture(params=PLAIN)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Image]:
    with image(tmp_path, request.param, "") as disk:
        yield disk


def cut(
    server: Server, rng: random.Random, disk: Image, cuts: int, durability: Durability, **options: Any
) -> Account:
    """Cut the power again and again under one dict."""

    def found(path: str) -> Pairs:
        with PDict[Any, Any](path, durability=durability) as d:
            return contents(d)

    account = Account()
    cut_again_and_again(server, rng, disk, cuts, account, found, durability, **options)
    return account


@pytest.mark.long
def test_what_returned_survives_a_power_cut(server, rng, disk):
    account = cut(server, rng, disk, 30, "power")
    assert account.done + account.undone, "no cut came within an operation"


def test_what_was_committed_survives_a_power_cut(server, rng, disk):
    cut(server, rng, disk, 10, "power", gathers=True)


@pytest.mark.long
def test_at_process_a_power_cut_leaves_a_state_of_before(server, rng, disk):
    assert cut(server, rng, disk, 15, "process").between, "all was lost, or nothing"


@pytest.mark.long
@pytest.mark.parametrize(
    "defect", [{"syncs": False}, {"lie": "early"}, {"lie": "torn update"}], ids=["no sync", "early", "torn"]
)
def test_without_syncs_the_same_cuts_lose_changes(defect, server, rng, disk):
    """A test of the test."""
    with pytest.raises(AssertionError, match=r"lost or undone|half of"):
        cut(server, rng, disk, 60, "power", **defect)
