"""Real power cuts under transactions over several collections: see :mod:`tests.crash.images`."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from persistcoll.engine.records import Durability
from tests.crash.dict_accounts import cut_again_and_again
from tests.crash.images import PLAIN, image
from tests.crash.test_transactions_kill import found
from tests.crash.transaction_accounts import KINDS, Account
from tests.crash.workers import Server

pytestmark = [pytest.mark.slow, pytest.mark.needs("root", "mkfs.ext4", "mkfs.xfs", "losetup")]


WORKER = "tests.crash.transaction_worker"


def cut(
    server: Server,
    rng: random.Random,
    directory: Path,
    system: str,
    cuts: int,
    durability: Durability = "power",
    kind: str = "ack",
    **options: Any,
) -> Account:
    account = Account()
    with image(directory, system, "") as disk:
        cut_again_and_again(
            server,
            rng,
            disk,
            cuts,
            account,
            partial(found, kind, durability),
            durability,
            kind=kind,
            **options,
        )
    return account


@pytest.mark.parametrize("system", PLAIN)
def test_a_few_power_cuts(system, server, rng, tmp_path):
    cut(server, rng, tmp_path, system, 5)


@pytest.mark.long
@pytest.mark.parametrize("system", PLAIN)
@pytest.mark.parametrize("kind", KINDS)
def test_what_returned_survives_a_power_cut(kind, system, server, rng, tmp_path):
    account = cut(server, rng, tmp_path, system, 10, kind=kind)
    assert account.done + account.undone, "no cut came within a transaction"


@pytest.mark.long
@pytest.mark.parametrize("system", PLAIN)
def test_at_process_a_power_cut_leaves_whole_transactions(system, server, rng, tmp_path):
    assert cut(server, rng, tmp_path, system, 15, "process").between, "all was lost, or nothing"


@pytest.mark.long
@pytest.mark.parametrize("system", PLAIN)
@pytest.mark.parametrize(
    "defect", [{"syncs": False}, {"lie": "early"}, {"lie": "torn"}], ids=["no sync", "early", "torn"]
)
def test_without_syncs_the_same_cuts_lose_transactions(defect, system, server, rng, tmp_path):
    """A test of the test."""
    with pytest.raises(AssertionError, match=r"lost or undone|half of"):
        cut(server, rng, tmp_path, system, 60, **defect)
