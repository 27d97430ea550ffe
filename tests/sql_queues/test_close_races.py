"""Claims beside a close or a rollback are never lost."""

from __future__ import annotations

import multiprocessing
import os
import signal

import pytest

from persistcoll import ClosedError, PDict, SQLiteAckQueue, SQLiteQueue, StorageFullError
from tests.queues.waits import WatchedLock, waiting
from tests.sql_queues.conftest import ACK

KINDS = [SQLiteQueue, SQLiteAckQueue]


def claiming(kind):
    """Return the options with which ``get`` of this class claims."""
    return {} if kind in ACK else {"auto_commit": False}


@pytest.mark.parametrize("known", [True, False], ids=["a holder", "no holder yet"])
@pytest.mark.parametrize("call", ["get", "get_many", "receive"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_get_that_races_with_close_claims_nothing(open_file, kind, call, known):
    """Another queue keeps the database open, but the closed one must not claim afterwards."""
    open_file(kind, name="other", **claiming(kind))
    queue = open_file(kind, **claiming(kind))
    queue.put_many(["a", "b", "c"])
    if known:
        queue.get()
    database = queue._store._database

    def close_first(*arguments, **options):
        del database.write  # restore the method of the class
        queue.close()
        return database.write(*arguments, **options)

    database.write = close_first
    with pytest.raises(ClosedError):  # noqa: PT012
        if call == "receive":
            with queue.receive():
                pass
        else:
            queue.get() if call == "get" else queue.get_many(2)
    again = open_file(kind, **claiming(kind))
    stats = again.stats()
    assert (stats.ready, stats.claimed) == (3, 0)
    assert sorted(again.get_many(3)) == ["a", "b", "c"]


@pytest.mark.parametrize("kind", KINDS)
def test_two_threads_that_close_release_once(open_file, kind):
    """Otherwise the database would be closed under the other queue."""
    other = open_file(kind, name="other", **claiming(kind))
    queue = open_file(kind, **claiming(kind))
    queue.put("a")
    queue.get()
    close = queue._store._holding.close

    def with_another():
        queue._store._holding.close = close
        waiting(queue.close)()
        close()

    queue._store._holding.close = with_another
    queue.close()
    other.put("b")
    assert other.get() == "b"


def get_and_die(path, kind, options):
    with PDict[str, int](path, name="dict", durability="process") as mapping:
        queue = kind(path, durability="process", **options)
        try:
            with mapping.transaction():
                queue.get()
                raise KeyError
        except KeyError:
            pass
        queue.get_many(2)
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("kind", KINDS)
def test_a_queue_that_becomes_a_holder_in_a_transaction_that_is_rolled_back(open_file, tmp_path, kind):
    """It stays a known holder, so what it claims later is reclaimed when it dies."""
    path = tmp_path / "q"
    with PDict[str, int](path, name="dict", durability="process"):
        queue = open_file(kind, **claiming(kind))
        queue.put_many(["a", "b"])
        process = multiprocessing.get_context("fork").Process(
            target=get_and_die, args=(path, kind, claiming(kind))
        )
        process.start()
        process.join()
        process.close()
        assert queue.stats().claimed == 2
        assert sorted([queue.get(timeout=10), queue.get(timeout=10)]) == ["a", "b"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_number_of_a_holder_that_was_rolled_back_is_not_reused(open_file, tmp_path, kind):
    with PDict[str, int](tmp_path / "q", name="dict", durability="process") as mapping:
        one, two = (open_file(kind, name=name, **claiming(kind)) for name in ("one", "two"))
        for queue in (one, two):
            queue.put("a")
        with pytest.raises(KeyError), mapping.transaction():  # noqa: PT012
            one.get()
            raise KeyError
        assert two.get() == "a"  # this queue becomes the next holder
        assert one.get() == "a"
        one.close()
        assert two.stats().claimed == 1
    assert open_file(kind, name="one", **claiming(kind)).get() == "a"


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", KINDS)
def test_a_first_get_waits_for_a_transaction_that_gets_as_well(open_file, tmp_path, kind):
    with PDict[str, int](tmp_path / "q", name="dict", durability="process") as mapping:
        queue = open_file(kind, **claiming(kind))
        queue.put_many(["a", "b"])
        gate = queue._store._database._transaction.gate = WatchedLock()
        with mapping.transaction():
            finish = waiting(queue.get)
            assert gate.waited_for.wait(10)
            here = queue.get()
        assert sorted([here, finish()]) == ["a", "b"]


@pytest.mark.parametrize("raises", [False, True], ids=["ends well", "raises"])
def test_what_fails_within_a_transaction_ends_it(open_file, tmp_path, raises):
    """SQLite itself rolls back when the disk is full, so later changes must not be stored alone."""
    with PDict[str, int](tmp_path / "q", name="dict", durability="process") as mapping:
        queue = open_file(SQLiteQueue, serializer="raw")
        connection = queue._store._database._connection
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count={pages + 20}")

        def block():
            with mapping.transaction():
                mapping["a"] = 1
                assert queue.put(b"small") == 1
                for refused in (bytes(100_000), b"small"):
                    with pytest.raises(StorageFullError):
                        queue.put(refused)
                with pytest.raises(StorageFullError):
                    mapping["b"] = 2
                with pytest.raises(StorageFullError):
                    len(queue)
                if raises:
                    raise KeyError

        with pytest.raises(KeyError if raises else StorageFullError):
            block()
        assert (dict(mapping), list(queue.items())) == ({}, [])
        mapping["c"] = 3
        with mapping.transaction():
            assert queue.put(b"again") == 1
            mapping["d"] = 4
        assert (dict(mapping), list(queue.items())) == ({"c": 3, "d": 4}, [b"again"])
