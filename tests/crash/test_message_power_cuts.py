"""Real power cuts under a message queue: see :mod:`tests.crash.images`.

What returned and is to survive is there: puts, acks, nacks and failures. Claims, releases and locks may be
lost, with all that came after them and was not synced.
"""

from __future__ import annotations

import random
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from persistcoll.engine.records import Durability
from tests.crash.dict_accounts import cut_again_and_again
from tests.crash.images import PLAIN, image
from tests.crash.message_accounts import Account, found
from tests.crash.messages import POLICY, is_consistent, opened
from tests.crash.test_sqlite_power_cuts import cut_again_and_again as cut_under_several
from tests.crash.workers import Server

pytestmark = [pytest.mark.slow, pytest.mark.needs("root", "mkfs.ext4", "mkfs.xfs", "losetup")]


WORKER = "tests.crash.message_worker"


def cut(
    server: Server,
    rng: random.Random,
    directory: Path,
    system: str,
    cuts: int,
    durability: Durability = "power",
    **options: Any,
) -> Account:
    account = Account("power cut" if durability == "power" else "without syncs")
    look = partial(found, POLICY, durability)
    with image(directory, system, "") as disk:
        cut_again_and_again(server, rng, disk, cuts, account, look, durability, **options)
    return account


@pytest.mark.parametrize("system", PLAIN)
def test_a_few_power_cuts(system, server, rng, tmp_path):
    cut(server, rng, tmp_path, system, 3)


@pytest.mark.long
@pytest.mark.parametrize("system", PLAIN)
def test_what_returned_survives_a_power_cut(system, server, rng, tmp_path):
    account = cut(server, rng, tmp_path, system, 30)
    assert account.done + account.undone, "no cut came within an operation"


@pytest.mark.long
@pytest.mark.parametrize("system", PLAIN)
def test_at_process_a_power_cut_leaves_a_state_of_before(system, server, rng, tmp_path):
    assert cut(server, rng, tmp_path, system, 15, "process").between, "all was lost, or nothing"


@pytest.mark.long
@pytest.mark.parametrize("system", PLAIN)
@pytest.mark.parametrize(
    "defect", [{"syncs": False}, {"lie": "early"}, {"lie": "torn"}], ids=["no sync", "early", "torn"]
)
def test_without_syncs_the_same_cuts_lose_messages(defect, system, server, rng, tmp_path):
    """A test of the test."""
    with pytest.raises(AssertionError, match="lost or undone"):
        cut(server, rng, tmp_path, system, 60, **defect)


def unfinished(path: str, durability: Durability) -> list[int]:
    """Return the numbers of the messages that are there, in the order of their ids."""
    with closing(opened(path, durability=durability)) as store:
        numbers = [int(record.payload) for record in store.scan()]
        stats = store.stats()
        assert stats.ready + stats.blocked == len(numbers)
    is_consistent(path)
    return numbers


@pytest.mark.long
@pytest.mark.parametrize("system", PLAIN)
def test_what_returned_to_any_of_several_processes_survives_a_power_cut(system, rng, tmp_path):
    """The processes commit in turn, and sync side by side."""
    seen = cut_under_several(
        rng, tmp_path, system, "", 10, "power", workers=4, kind="messages", look=unfinished
    )
    assert seen > 10


@pytest.mark.long
@pytest.mark.parametrize("system", PLAIN)
def test_without_syncs_the_same_cuts_lose_messages_of_several_processes(system, rng, tmp_path):
    """A test of the test."""
    with pytest.raises(AssertionError, match=r"was lost|came back"):
        cut_under_several(
            rng,
            tmp_path,
            system,
            "",
            10,
            "power",
            quick=True,
            workers=4,
            kind="messages",
            look=unfinished,
        )
