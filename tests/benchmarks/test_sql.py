"""What the benchmarks of the SQLite queues assume about the libraries that they compare."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.api.tree import PROJECT

if not (PROJECT / "benchmarks" / "__main__.py").is_file():
    pytest.skip("benchmarks/ lies in a checkout only", allow_module_level=True)

from benchmarks import sql_contenders, sql_floors
from benchmarks.contenders import ITEM, have, puts_of_threads
from benchmarks.processes import puts_of_processes
from persistcoll import SQLiteQueue

needs_peer = pytest.mark.skipif(not have("persistqueue"), reason="persist-queue is not installed")


@contextmanager
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Record the first words of all statements on connections that are made in the block."""
    words: list[str] = []
    connect = sqlite3.connect

    def connect_traced(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*arguments, **options)
        connection.set_trace_callback(lambda text: words.append(text.split()[0]))
        return connection

    with monkeypatch.context() as patch:
        patch.setattr(sqlite3, "connect", connect_traced)
        yield words


def transactions(words: list[str]) -> list[list[str]]:
    """Split words into transactions; a change outside of BEGIN and COMMIT is one of its own."""
    found: list[list[str]] = []
    within = False
    for word in words:
        if word == "BEGIN":
            within = True
            found.append([])
        elif word == "COMMIT":
            within = False
        elif within:
            found[-1].append(word)
        elif word in ("INSERT", "UPDATE", "DELETE"):
            found.append([word])
    return found


def test_the_bare_loop_runs_the_statements_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with traced(monkeypatch) as words:
        with SQLiteQueue(str(tmp_path / "ours"), durability="process", auto_commit=True) as queue:
            queue.put(ITEM)
            queue.get()
            del words[:]
            queue.put(ITEM)
            queue.get()
            put, get = transactions(words)
        del words[:]
        sql_floors.bare_queue(str(tmp_path), 1)
        _, bare_put, bare_get, _, uncounted = transactions(words)

    assert bare_put == put
    assert bare_get == get
    # The last contender is for information: it lacks the counters that ours keeps.
    assert [word for word in get if word != "UPDATE"] == uncounted


def log_size(directory: str) -> int:
    return os.stat(os.path.join(directory, "data.db-wal")).st_size


@pytest.mark.parametrize(
    "opening",
    [
        pytest.param(partial(sql_contenders.our_queue, durability="process"), id="ours"),
        pytest.param(
            lambda directory: sql_contenders.persist_queue("SQLiteQueue", directory, "NORMAL"),
            marks=needs_peer,
            id="persist-queue",
        ),
    ],
)
def test_a_log_that_was_lengthened_is_written_over_and_does_not_grow(
    opening: Callable[[str], Any], tmp_path: Path
) -> None:
    path = str(tmp_path / "queue")
    with opening(str(tmp_path)) as queue:
        queue.put("first")
        sql_floors.lengthen_log(path)
        before = log_size(path)
        assert before > 4096 * 1024  # the size at which our queue starts its log again
        for number in range(600):
            queue.put(number)
        assert log_size(path) == before
        assert [queue.get() for _ in range(601)] == ["first", *range(600)]


@needs_peer
@pytest.mark.parametrize(("name", "code"), [("FULL", 2), ("NORMAL", 1)])
def test_persist_queue_syncs_as_it_is_told(name: str, code: int, tmp_path: Path) -> None:
    with sql_contenders.persist_queue("SQLiteAckQueue", str(tmp_path), name) as queue:
        for connection in (queue._conn, queue._getter, queue._putter):
            assert connection.execute("PRAGMA synchronous").fetchone() == (code,)


class Refusing(SQLiteQueue):
    """A queue on a full disk."""

    def put(self, *arguments: Any, **options: Any) -> Any:
        raise OSError("no room")


def test_a_put_that_fails_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no room"):
        puts_of_threads(partial(Refusing, durability="process"), str(tmp_path), 2, 1)


@pytest.mark.slow
def test_a_put_that_fails_in_a_process_ends_the_run(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(EOFError):
        puts_of_processes(partial(Refusing, durability="process"), str(tmp_path), 1, 1)
    assert "no room" in capfd.readouterr().err
