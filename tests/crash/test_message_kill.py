"""kill -9 at any moment, again and again, on a process that works on a message queue.

Each operation is there as a whole or not at all, one that returned is there, and the claims of the dead end
as the contract says.
"""

from __future__ import annotations

import os
import random
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from persistcoll.engine.records import Durability
from tests.crash.dict_accounts import kill_again_and_again
from tests.crash.message_accounts import Account, found
from tests.crash.messages import POLICY
from tests.crash.workers import Server

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork"),
]


WORKER = "tests.crash.message_worker"


def live_and_die(
    server: Server,
    rng: random.Random,
    path: Path,
    kills: int,
    durability: Durability = "process",
    **order: Any,
) -> Account:
    account, look = Account(), partial(found, POLICY, durability)
    kill_again_and_again(server, rng, str(path / "d"), kills, account, look, durability=durability, **order)
    return account


def test_a_few_kills(server, rng, memory_path):
    live_and_die(server, rng, memory_path, 5)


@pytest.mark.long
@pytest.mark.parametrize("durability", ["power", "process"])
def test_killed_again_and_again(durability, server, rng, memory_path):
    """The kills are 200 over both."""
    account = live_and_die(server, rng, memory_path, 100, durability)
    assert account.undone, "no kill cut anything short"
    left = {entry.name for entry in (memory_path / "d").iterdir()}
    assert left == {"data.db", "data.db.lock", "data.db.turn"}, "files of the dead remain"


@pytest.mark.long
@pytest.mark.parametrize("lie", ["early", "torn"])
def test_a_worker_that_lies_is_found_out(lie, server, rng, memory_path):
    """A test of the test."""
    with pytest.raises(AssertionError, match="lost or undone"):
        live_and_die(server, rng, memory_path, 300, lie=lie)
