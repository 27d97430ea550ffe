"""``drop()`` of what is in database files: what is gone, what is refused, and what an open object does."""

from __future__ import annotations

import sqlite3
from contextlib import closing, suppress
from typing import Any

import pytest

from persistcoll import (
    Empty,
    FormatVersionError,
    LockedError,
    MessageQueue,
    PDict,
    Queue,
    SQLiteAckQueue,
    SQLiteQueue,
    StoreMissingError,
    collections,
    drop,
)
from persistcoll.sqlite import drop as dropping
from persistcoll.sqlite.database import Database
from persistcoll.sqlite.write_requests import WriteRequest, run_batch
from tests.catalog.kinds import CLASSES, IN_DATABASES
from tests.concurrency.workers import Remote

KINDS: dict[str, Any] = {**{kind: CLASSES[kind] for kind in IN_DATABASES}, "messages": MessageQueue}
CLAIMING = ["fifo ack", "lifo ack", "unique ack", "messages"]
NONE = type(None)
OF_ALL = {"collections", "counters", "holders", "store"}


def fill(collection: Any) -> None:
    if isinstance(collection, PDict):
        collection.update(a=1, b=2)
    else:
        collection.put_many(["a", "b"])


def contents(collection: Any) -> list[Any]:
    if isinstance(collection, PDict):
        return list(collection.items())
    if isinstance(collection, MessageQueue):
        return [collection.peek().body]
    return list(collection.items())


def tables(path: Any) -> set[str]:
    with closing(sqlite3.connect(path)) as database:
        found = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        return {name for (name,) in found}


def drop_there(_: Any, tell: Any, path: Any, name: str) -> None:
    drop(path, name)


@pytest.mark.parametrize("kind", KINDS)
def test_all_of_it_is_gone_and_nothing_else(tmp_path, kind):
    path = tmp_path / "data.db"
    with KINDS[kind](str(tmp_path), name="first") as first, SQLiteQueue(path, name="second") as second:
        fill(first)
        fill(second)
    before = tables(path)
    drop(tmp_path, "first")
    assert list(collections(path)) == ["second"]
    assert before - tables(path) == {name for name in before if name.endswith("_1")}
    with SQLiteQueue(path, name="second") as second:
        assert contents(second) == ["a", "b"]
    drop(path, "second")
    assert tables(path) == OF_ALL
    assert collections(path) == {}


@pytest.mark.parametrize("where", ["this process", "another process"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_open_is_missing_and_never_uses_the_tables_of_another(tmp_path, kind, where):
    path, made = tmp_path / "data.db", KINDS[kind]
    with (
        made(path, name="jobs") as user,
        made(path, name="jobs", read_only=True) as reader,
        made(path, name="jobs") as other,
    ):
        fill(user)
        assert contents(reader) == contents(user)
        if where == "this process":
            drop(path, "jobs")
        else:
            remote = Remote(str(tmp_path / "unused"))
            remote.run(drop_there, path, "jobs")
            remote.close()
        with made(path, name="jobs") as again:
            for use, used in ((fill, user), (contents, user), (contents, reader), (fill, other)):
                with pytest.raises(StoreMissingError, match="was dropped from"):
                    use(used)
            assert [found.unfinished or found.ready for found in collections(path).values()] == [0]
            fill(again)
            assert len(contents(again)) >= 1


def test_a_get_that_waits_ends(tmp_path):
    remote = Remote(SQLiteQueue, path=str(tmp_path), name="jobs")
    remote.start(wait_and_get)
    assert remote.told() == "waits"
    drop(tmp_path, "jobs")
    with pytest.raises(StoreMissingError, match="was dropped from"):
        remote.result()
    remote.kill()


def wait_and_get(queue: Any, tell: Any) -> None:
    with pytest.raises(Empty):
        queue.get(block=False)
    tell("waits")
    queue.get(timeout=60)


@pytest.mark.parametrize("kind", CLAIMING)
def test_claims_of_the_living_are_kept_and_those_of_the_dead_are_not(tmp_path, kind):
    path, made = tmp_path / "data.db", KINDS[kind]
    with made(path, name="jobs") as queue:
        fill(queue)
        message = queue.get()
        with pytest.raises(LockedError, match="has claims of an object that is open"):
            drop(path, "jobs")
        assert collections(path)["jobs"].claimed == 1
        message.ack() if kind == "messages" else queue.ack(message)
        drop(path, "jobs")  # a holder without claims
    assert not list(tmp_path.glob("*.holder-*"))
    remote = Remote(made, **{"target" if kind == "messages" else "path": str(path)}, name="jobs")
    remote.run(put_and_get)
    with pytest.raises(LockedError):
        drop(path, "jobs")
    remote.kill()
    drop(path, "jobs")
    assert collections(path) == {}
    assert not list(tmp_path.glob("*.holder-*"))


def put_and_get(queue: Any, tell: Any) -> None:
    queue.put("a")
    queue.get()


def test_an_open_transaction_is_waited_for(tmp_path):
    with SQLiteQueue(tmp_path, name="jobs") as queue:
        queue.put("a")
        remote = Remote(str(tmp_path / "unused"))
        with queue.transaction():
            queue.put("b")
            remote.start(drop_there, tmp_path, "jobs")
            assert remote.quiet
        remote.result()
        remote.close()
        with pytest.raises(StoreMissingError):
            contents(queue)


def test_within_a_transaction_it_is_a_part_of_it(tmp_path):
    with SQLiteQueue(tmp_path, name="jobs") as queue:
        queue.put("a")
        with suppress(KeyError), queue.transaction():
            drop(tmp_path, "jobs")
            raise KeyError
        assert contents(queue) == ["a"]
        queue.put("b")
        assert len(queue) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_same_transaction_has_changed_goes_with_it(tmp_path, kind):
    path = tmp_path / "data.db"
    with KINDS[kind](path, name="jobs") as jobs, PDict(path, name="kept") as kept:
        with kept.transaction():
            fill(jobs)
            drop(path, "jobs")
            kept["a"] = 1
        assert dict(kept) == {"a": 1}
        assert list(collections(path)) == ["kept"]


class Interrupt(Exception):
    """What a signal handler raises."""


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_of_a_signal_handler_leaves_all_of_it(tmp_path, kind, monkeypatch):
    path = tmp_path / "data.db"

    class AfterTheFirstTable:
        calls = 0

        def findall(self, text: str) -> list[str]:
            found = table.findall(text)
            self.calls += bool(found)
            if self.calls == 2 or not found:
                raise Interrupt
            return found

    table = dropping._TABLE
    with KINDS[kind](path, name="jobs") as jobs:
        fill(jobs)
        before = tables(path)
        with monkeypatch.context() as patch:
            patch.setattr(dropping, "_TABLE", AfterTheFirstTable())
            with pytest.raises(Interrupt):
                drop(path, "jobs")
        assert tables(path) == before
        assert contents(jobs)
        drop(path, "jobs")


@pytest.mark.parametrize("kind", KINDS)
def test_others_in_the_same_batch_are_not_disturbed(tmp_path, kind, monkeypatch):
    path = tmp_path / "data.db"
    requests: list[Any] = []
    collecting = False

    def collect(self: Any, run: Any, sync: bool, single: bool = False, after: Any = None, **rest: Any) -> Any:
        if not collecting:
            return write(self, run, sync, single, after, **rest)
        requests.append(WriteRequest(run, sync, after))
        raise Interrupt

    write = Database.write
    monkeypatch.setattr(Database, "write", collect)
    with KINDS[kind](path, name="jobs") as jobs, SQLiteQueue(path, name="kept") as kept:
        fill(jobs)
        database: Database = vars(kept._store)["_database"]
        collecting = True
        for call in [lambda: drop(path, "jobs"), lambda: fill(jobs), lambda: kept.put("a")]:
            with pytest.raises(Interrupt):
                call()
        collecting = False
        run_batch(database, requests, lambda: None)
        assert [type(request.failure) for request in requests] == [NONE, StoreMissingError, NONE]
        assert contents(kept) == ["a"]
        assert list(collections(path)) == ["kept"]


def test_what_is_missing_or_unknown_is_said(tmp_path):
    path = tmp_path / "data.db"
    with pytest.raises(StoreMissingError):
        drop(tmp_path, "jobs")
    assert not list(tmp_path.iterdir())
    Queue(tmp_path / "files").close()
    with pytest.raises(StoreMissingError):
        drop(tmp_path / "files", "jobs")
    with SQLiteAckQueue(path, name="jobs") as queue:
        queue.put("a")
    with pytest.raises(StoreMissingError, match="holds no 'Jobs'"):
        drop(path, "Jobs")
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE collections SET version = 99")
    with pytest.raises(FormatVersionError, match=r"'jobs' in .* version 99"):
        drop(path, "jobs")


def test_arguments_are_checked(tmp_path):
    with pytest.raises(TypeError, match="'name' must be a str"):
        drop(tmp_path, None)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        drop(7, "jobs")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="goes with its object"):
        drop(":memory:", "jobs")
    with pytest.raises(ValueError, match="no schemas"):
        drop(tmp_path, "jobs", schema="s")
