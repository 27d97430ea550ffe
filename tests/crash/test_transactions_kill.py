"""kill -9 at any moment, again and again, on a process that works in transactions over several collections.

Each transaction is there as a whole or not at all: jobs are gone if and only if their results are there and
both are counted. One that returned is there, and nothing is there of one that was rolled back.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from persistcoll.engine.records import Durability
from tests.crash.dict_accounts import Pairs, hear, is_sound, kill_again_and_again, listen
from tests.crash.transaction_accounts import KINDS, Account, Tally, Workshop
from tests.crash.workers import Server

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork"),
]


WORKER = "tests.crash.transaction_worker"


def found(kind: str, durability: Durability, path: str) -> Pairs:
    """Return what another process finds."""
    with Workshop(path, kind, durability=durability) as shop:
        return shop.contents()


def live_and_die(
    server: Server,
    rng: random.Random,
    path: Path,
    kills: int,
    kind: str = "ack",
    durability: Durability = "process",
    **order: Any,
) -> Account:
    account, look = Account(), partial(found, kind, durability)
    kill_again_and_again(
        server, rng, str(path / "d"), kills, account, look, kind=kind, durability=durability, **order
    )
    return account


@pytest.mark.parametrize("kind", KINDS)
def test_a_few_kills(kind, server, rng, memory_path):
    live_and_die(server, rng, memory_path, 5, kind)


@pytest.mark.long
@pytest.mark.parametrize("durability", ["power", "process"])
@pytest.mark.parametrize("kind", KINDS)
def test_killed_again_and_again(kind, durability, server, rng, memory_path):
    """The kills are 200 and more over all kinds."""
    account = live_and_die(server, rng, memory_path, 40, kind, durability)
    assert account.undone, "no kill cut anything short"
    left = {entry.name for entry in (memory_path / "d").iterdir()}
    assert left == {"data.db", "data.db.lock", "data.db.turn"}, "files of the dead remain"


@pytest.mark.parametrize("durability", ["power", "process"])
def test_others_go_on(durability, server, rng, memory_path):
    """One of several processes dies within its transaction or without, and the others go on."""
    path = str(memory_path / "d")
    tallies = {name: Tally() for name in ("one", "two", "three")}

    def start(name):
        return server.start(name, path, 0, rng.getrandbits(32), "together", kind="ack", durability=durability)

    def check(shop, exact=False):
        with shop.transaction("jobs"):
            shop.agrees()
            counters = dict(shop.counters)
        if exact:
            sure = sum((tally.sure for tally in tallies.values()), Counter())
            perhaps = sure + sum((tally.perhaps for tally in tallies.values()), Counter())
            for name in perhaps:
                assert sure[name] <= counters.get(name, 0) <= perhaps[name], f"lost or undone: {name}"

    lives = {name: start(name) for name in tallies}
    with Workshop(path, "ack", durability=durability) as shop:
        for _ in range(20):
            listen(server, tallies, rng)
            name = rng.choice(list(tallies))
            hear(tallies, server.bury([lives[name]]))
            tallies[name].bury()
            check(shop)
            lives[name] = start(name)
        hear(tallies, server.bury(list(lives.values())))
        for tally in tallies.values():
            tally.bury()
        check(shop, exact=True)
    assert found("ack", durability, path), "nothing was done"
    is_sound(path)


@pytest.mark.parametrize("lie", ["torn", "early", "kept"])
def test_a_workshop_that_lies_is_found_out(lie, server, rng, memory_path):
    """A test of the test."""
    with pytest.raises(AssertionError, match=r"half of|lost or undone"):
        live_and_die(server, rng, memory_path, 200, lie=lie)
