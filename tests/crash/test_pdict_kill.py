"""kill -9 at any moment, again and again, on one dict.

What was answered is there, and what was removed stays removed. An ``update`` or a transaction is there as a
whole or not at all. A counter has counted each increment that it answered.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from persistcoll import PDict
from tests.crash.accounts import memory_directory
from tests.crash.dict_accounts import (
    ACCOUNTS,
    SHARED,
    Account,
    Pairs,
    belongs,
    contents,
    hear,
    is_sound,
    kill_again_and_again,
    listen,
    look,
)
from tests.crash.workers import Server

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork"),
]


WORKER = "tests.crash.dict_worker"


@pytest.fixture
def path() -> Iterator[str]:
    """Give a directory in memory, because syncs play no part in this."""
    directory = tempfile.mkdtemp(dir=memory_directory())
    yield os.path.join(directory, "d")
    shutil.rmtree(directory)


def live_and_die(server: Server, rng: random.Random, path: str, kills: int, **options: Any) -> Account:
    def found(path: str) -> Pairs:
        with PDict[Any, Any](path, durability="process") as d:
            return contents(d)

    account = Account()
    kill_again_and_again(server, rng, path, kills, account, found, durability="process", **options)
    return account


@pytest.mark.long
@pytest.mark.parametrize("gathers", [False, True], ids=["auto_commit", "gathering"])
def test_killed_again_and_again(gathers, server, rng, path):
    account = live_and_die(server, rng, path, 60 if gathers else 100, gathers=gathers)
    if not gathers:
        assert account.undone, "no kill cut anything short"
    left = {entry.name for entry in Path(path).iterdir()}
    assert left == {"data.db", "data.db.lock", "data.db.turn"}, "files of the dead remain"


def test_others_go_on(server, rng, path):
    """One of several processes dies, while the others write and this one reads and writes."""
    accounts = {name: Account() for name in ("one", "two", "three")}

    def start(name):
        gathers = rng.random() < 0.2
        return server.start(
            name, path, 0, rng.getrandbits(32), "together", durability="process", gathers=gathers
        )

    def check(d, name):
        accounts[name].check([(key, look(value)) for key, value in d.items() if belongs(key, name)])

    lives = {name: start(name) for name in accounts}
    counts = []
    with PDict[Any, Any](path, durability="process") as d:
        for _ in range(40):
            listen(server, accounts, rng)
            name = rng.choice(list(accounts))
            hear(accounts, server.bury([lives[name]]))
            check(d, name)
            moved = d.get_many(ACCOUNTS)
            assert sum(moved.values()) == 0, f"half of a transaction: {moved}"
            counts.append(d.incr(SHARED))
            lives[name] = start(name)
        hear(accounts, server.bury(list(lives.values())))
        for name in accounts:
            check(d, name)
        counts += [count for account in accounts.values() for count in account.counts]
        assert len(set(counts)) == len(counts), "two who counted got the same number"
        unanswered = sum(account.unanswered for account in accounts.values())
        assert len(counts) <= d[SHARED] <= len(counts) + unanswered
        assert all(d.get_many(ACCOUNTS).values()), "nobody moved anything"
    is_sound(path)


LIES = [
    ("early", "lost or undone"),
    ("torn update", "half of"),
    ("torn transaction", "half of|lost or undone"),
]


@pytest.mark.parametrize(("lie", "said"), LIES, ids=[lie for lie, _ in LIES])
def test_a_dict_that_lies_is_found_out(lie, said, server, rng, path):
    """A test of the test."""
    with pytest.raises(AssertionError, match=said):
        live_and_die(server, rng, path, 200, lie=lie)
