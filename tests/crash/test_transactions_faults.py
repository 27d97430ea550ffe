"""A full disk and failing calls under a transaction over several collections.

After an error each object is as it was before the transaction, or the error says that the outcome is unknown.
"""

from __future__ import annotations

import contextlib
import errno
from typing import Any

import pytest

from persistcoll import StorageError, StorageFullError
from tests.crash.dict_accounts import is_sound
from tests.crash.images import image
from tests.crash.test_disk_full import WHEN, WRITERS_CALLS, child, failing
from tests.crash.test_pdict_full import Narrow
from tests.crash.test_sqlite_full import fill
from tests.crash.transaction_accounts import MEMBERS, Workshop
from tests.sql.test_syncs import Syncs, database_of


def state(shop: Workshop) -> list[Any]:
    """Return what the objects tell."""
    queues: list[Any] = [shop.jobs, shop.results]
    found: list[Any] = [(queue.qsize(), queue.unfinished_tasks, [*queue.items()]) for queue in queues]
    return [*found, shop.jobs.unack_count(), len(shop.counters), dict(shop.counters)]


def use_all(shop: Workshop, claimed: list[Any]) -> None:
    """Change something in each collection, and settle what was claimed before."""
    job = shop.jobs.get(block=False)
    shop.results.put(job)
    shop.jobs.ack(job)
    shop.jobs.ack(claimed[0])
    shop.jobs.nack(claimed[1])
    shop.jobs.put("one more")
    shop.counters["new"] = shop.counters.incr("count")


@pytest.fixture
def quiet_syncs(tmp_path, monkeypatch):
    """Give a workshop with two claimed jobs, the jobs, and what counts the syncs of its database."""
    with Workshop(tmp_path / "d") as shop:
        shop.jobs.put_many(["a", "b", "c", "d"])
        claimed = shop.jobs.get_many(2)
        yield shop, claimed, Syncs(database_of(shop.jobs), monkeypatch)


@pytest.mark.slow
@pytest.mark.needs("root", "mkfs.ext4", "mkfs.xfs", "losetup")
@pytest.mark.parametrize(("system", "durability"), [("ext4", "power"), ("xfs", "process")])
def test_a_full_disk(system, durability, tmp_path):
    at_commit = []

    def small(shop):
        use_all(shop, claimed)
        at_commit.append("small")

    def long(shop):
        shop.results.put_many([["y" * 3000]] * 100)
        use_all(shop, claimed)
        at_commit.append("long")

    def longer_than_the_cache(shop):
        shop.counters["before"] = 1
        with contextlib.suppress(StorageFullError):
            shop.results.put("z" * 5_000_000)
        shop.counters["after"] = 1
        at_commit.append("longer")

    with image(tmp_path, system, "") as disk:
        narrow = Narrow(disk)
        with Workshop(disk.place / "d", durability=durability) as shop:
            shop.jobs.put_many(["a", "b", "c", "d"])
            claimed = shop.jobs.get_many(2)
            fill(shop.results)
            before = state(shop)
            for attempt in (small, long, longer_than_the_cache):
                for of in MEMBERS:
                    with pytest.raises(StorageFullError, match="nothing is stored"), shop.transaction(of):
                        attempt(shop)
                    assert state(shop) == before
            assert at_commit == ["small"] * 3 + ["long"] * 3
            narrow.widen()
            with shop.transaction("jobs"):
                use_all(shop, claimed)
            assert shop.jobs.unack_count() == 0
            assert [*shop.jobs.items()] == ["b", "d", "one more"]
            assert shop.counters == {"count": 1, "new": 1}
            after = state(shop)
        with Workshop(disk.place / "d", durability=durability) as shop:
            assert state(shop) == after
        is_sound(str(disk.place / "d"))


@pytest.mark.parametrize("of", MEMBERS)
def test_a_sync_that_fails_after_the_commit(of, quiet_syncs, tmp_path):
    """The outcome is unknown, and every object of the file refuses everything. Here the commit remains."""
    shop, claimed, syncs = quiet_syncs

    def fail() -> None:
        raise OSError(errno.EIO, "injected")

    syncs.before = fail
    with pytest.raises(StorageError, match=r"whether .* unknown"), shop.transaction(of):
        use_all(shop, claimed)
    for refused in (
        lambda: shop.transaction(of).__enter__(),
        shop.jobs.qsize,
        shop.jobs.get_nowait,
        shop.jobs.unack_count,
        lambda: shop.results.put(1),
        lambda: shop.counters["count"],
    ):
        with pytest.raises(StorageError, match="open it again"):
            refused()
    assert syncs.count == 1
    with contextlib.suppress(StorageError):  # The queue cannot end its claims.
        shop.close()
    syncs.before = lambda: None
    with Workshop(tmp_path / "d") as again:
        assert state(again) == [
            (3, 3, ["b", "d", "one more"]), (1, 1, ["c"]), 0, 2, {"count": 1, "new": 1}
        ]  # fmt: skip


def test_a_transaction_that_is_rolled_back_meets_no_failing_sync(quiet_syncs):
    shop, claimed, syncs = quiet_syncs
    before = state(shop)
    syncs.before = lambda: pytest.fail("a sync")
    with contextlib.suppress(ZeroDivisionError), shop.transaction("results"):
        use_all(shop, claimed)
        raise ZeroDivisionError
    assert state(shop) == before


FAULTY = """
import contextlib, random, sys
from persistcoll import StorageError
from tests.crash.transaction_accounts import Account, MEMBERS, Workshop, do, invent

path, kind, durability, seed = sys.argv[1:]
rng, account = random.Random(seed), Account()
shop = Workshop(path, kind, durability=durability)
failed, left = 0, 300
while left:
    left -= 1
    op = (*invent(rng, shop)[:4], False)
    account.add(f"ask {op!r}")
    try:
        said = f"ok {do(shop, op)!r}"
    except StorageError as error:
        failed += 1
        if "unknown" in str(error):
            for of in MEMBERS:
                try:
                    shop.transaction(of).__enter__()
                except StorageError as refusal:
                    assert "open it again" in str(refusal), refusal
                else:
                    raise AssertionError("not refused")
            break
        account.asked, left = None, 10
    else:
        account.add(said)
    account.check(shop.contents())
with contextlib.suppress(StorageError):
    shop.close()
with Workshop(path, kind, durability=durability) as shop:
    account.check(shop.contents())
print("right", failed)
"""


@pytest.mark.long
@pytest.mark.needs("strace")
@pytest.mark.parametrize("kind", ["fifo", "ack"])
@pytest.mark.parametrize(("call", "error", "durability"), WRITERS_CALLS)
def test_any_call_of_a_transaction_fails(call, error, durability, kind, rng, tmp_path):
    log = tmp_path / "log"
    command = failing(log, call, error, rng.randrange(*WHEN.get(call, (150, 600))))
    seed = str(rng.getrandbits(32))
    assert child(FAULTY, str(tmp_path / "d"), kind, durability, seed, command=command)
    assert "INJECTED" in log.read_text()
