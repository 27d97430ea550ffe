"""Real power cuts under a dict, a message queue and transactions: see :mod:`tests.crash.images`.

What returned and is to survive is there. Of a message queue that is puts, acks, nacks and failures. Claims,
releases and locks may be lost, with all that came after them and was not synced.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from persistcoll import PDict
from persistcoll.engine.records import Durability
from tests.crash import dict_accounts, message_accounts, test_transactions_kill, transaction_accounts
from tests.crash.dict_accounts import Judge, Pairs
from tests.crash.images import PLAIN, image
from tests.crash.messages import POLICY, is_consistent, opened
from tests.crash.test_sqlite_power_cuts import cut_again_and_again as cut_under_several
from tests.crash.workers import Server

pytestmark = [pytest.mark.slow, pytest.mark.needs("root", "mkfs.ext4", "mkfs.xfs", "losetup")]


class Kind(NamedTuple):
    """What is worked on.

    :ivar found: returns what is there, opened with this durability.
    :ivar order: what the worker is told.
    """

    worker: str
    account: Callable[[Durability], Judge]
    found: Callable[[Durability, str], Pairs]
    order: dict[str, Any]


def in_dict(durability: Durability, path: str) -> Pairs:
    with PDict[Any, Any](path, durability=durability) as d:
        return dict_accounts.contents(d)


def account_of_messages(durability: Durability) -> Judge:
    return message_accounts.Account("power cut" if durability == "power" else "without syncs")


def of_dict(gathers: bool) -> Kind:
    account = dict_accounts.Account
    return Kind("tests.crash.dict_worker", lambda _: account(), in_dict, {"gathers": gathers})


def of_transactions(kind: str) -> Kind:
    account, found = transaction_accounts.Account, partial(test_transactions_kill.found, kind)
    return Kind("tests.crash.transaction_worker", lambda _: account(), found, {"kind": kind})


KINDS = {
    "dict": of_dict(False),
    "gathering dict": of_dict(True),
    "messages": Kind(
        "tests.crash.message_worker", account_of_messages, partial(message_accounts.found, POLICY), {}
    ),
    **{f"transactions, {kind}": of_transactions(kind) for kind in transaction_accounts.KINDS},
}


def cut(
    rng: random.Random,
    directory: Path,
    system: str,
    name: str,
    cuts: int,
    durability: Durability = "power",
    **order: Any,
) -> Any:
    """Cut the power again and again, and return the account."""
    kind = KINDS[name]
    account, found = kind.account(durability), partial(kind.found, durability)
    with image(directory, system, "") as disk, closing(Server(kind.worker)) as server:
        dict_accounts.cut_again_and_again(
            server, rng, disk, cuts, account, found, durability, **kind.order, **order
        )
    return account


@pytest.mark.parametrize("system", PLAIN)
@pytest.mark.parametrize("kind", ["gathering dict", "messages", "transactions, ack"])
def test_a_few_power_cuts(kind, system, rng, tmp_path):
    cut(rng, tmp_path, system, kind, 10 if kind == "gathering dict" else 4)


@pytest.mark.long
@pytest.mark.parametrize("system", PLAIN)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "gathering dict"])
def test_what_returned_survives_a_power_cut(kind, system, rng, tmp_path):
    account = cut(rng, tmp_path, system, kind, 10 if kind.startswith("transactions") else 30)
    assert account.done + account.undone, "no cut came within an operation"


@pytest.mark.long
@pytest.mark.parametrize("system", PLAIN)
@pytest.mark.parametrize("kind", ["dict", "messages", "transactions, ack"])
def test_at_process_a_power_cut_leaves_a_state_of_before(kind, system, rng, tmp_path):
    assert cut(rng, tmp_path, system, kind, 15, "process").between, "all was lost, or nothing"


@pytest.mark.long
@pytest.mark.parametrize("system", PLAIN)
@pytest.mark.parametrize("defect", ["no sync", "early", "torn"])
@pytest.mark.parametrize("kind", ["dict", "messages", "transactions, ack"])
def test_without_syncs_the_same_cuts_lose_changes(kind, defect, system, rng, tmp_path):
    """A test of the test."""
    lie = "torn update" if (kind, defect) == ("dict", "torn") else defect
    order: dict[str, Any] = {"syncs": False} if defect == "no sync" else {"lie": lie}
    with pytest.raises(AssertionError, match=r"lost or undone|half of"):
        cut(rng, tmp_path, system, kind, 60, **order)


def unfinished(path: str, durability: Durability) -> list[int]:
    """Return the numbers of the messages that are there, in the order of their ids."""
    with closing(opened(path, durability=durability)) as store:
        numbers = [int(record.payload) for record in store.scan()]
        stats = store.stats()
        assert stats.ready + stats.blocked == len(numbers)
    is_consistent(path)
    return numbers


cut_under_several_of_messages = partial(
    cut_under_several, options="", cuts=10, durability="power", workers=4, kind="messages", look=unfinished
)


@pytest.mark.long
@pytest.mark.parametrize("system", PLAIN)
def test_what_returned_to_any_of_several_processes_survives_a_power_cut(system, rng, tmp_path):
    """The processes commit in turn, and sync side by side."""
    assert cut_under_several_of_messages(rng, tmp_path, system) > 10


@pytest.mark.long
@pytest.mark.parametrize("system", PLAIN)
def test_without_syncs_the_same_cuts_lose_messages_of_several_processes(system, rng, tmp_path):
    """A test of the test."""
    with pytest.raises(AssertionError, match=r"was lost|came back"):
        cut_under_several_of_messages(rng, tmp_path, system, quick=True)
