"""What ``collections()`` tells of each kind, and that it counts as the open container does."""

from __future__ import annotations

import ast
import dataclasses
import os
import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import persistcoll
from persistcoll import (
    CollectionInfo,
    Empty,
    PDict,
    PriorityQueue,
    Queue,
    SQLiteAckQueue,
    SQLiteQueue,
    UniqueAckQ,
    collections,
)
from persistcoll.disk.calls import Disk
from persistcoll.journal import inspect as files
from persistcoll.serializers import compressed, signed
from persistcoll.sqlite.inspect import _STATEMENTS
from persistcoll.sqlite.open import DICT, MESSAGES
from tests.api.tree import modules
from tests.catalog.kinds import CLASSES, COUNTS, IN_DATABASES, told_of, watch_looks
from tests.permissions.kinds import PLAIN, add, die, in_child, take

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def counts(info: CollectionInfo) -> dict[str, int | None]:
    return {name: getattr(info, name) for name in COUNTS}


def only(path: Any) -> CollectionInfo:
    (info,) = collections(path).values()
    return info


@pytest.mark.parametrize("kind", CLASSES)
def test_each_kind_is_told(kind, tmp_path):
    before = time.time()
    with CLASSES[kind](tmp_path / "s", **PLAIN) as container:
        add(container, *"abc")
    after = time.time()
    found = collections(tmp_path / "s")
    name = None if kind == "queue" else "default"
    assert list(found) == [name]
    info = found[name]
    assert info == CollectionInfo(
        kind,
        name,
        str(tmp_path / "s" if kind == "queue" else tmp_path / "s" / "data.db"),
        "json",
        1 if kind in ("queue", "dict") else 2,
        info.created,
        16384 if kind == "queue" else None,
        **dict.fromkeys(COUNTS, 0) | {"ready": 3, "unfinished": 3},
    )
    assert before <= info.created <= after


def test_every_public_class_has_its_kind():
    """A class whose kind the catalogue does not know would be told without its counts."""
    kinds = {
        value._kind
        for name in persistcoll.__all__
        if hasattr(value := getattr(persistcoll, name), "_discipline")
    }
    assert kinds == {*CLASSES} - {"queue", "dict"}
    assert kinds | {DICT, MESSAGES} == _STATEMENTS.keys() - {"priority ack"}
    assert (DICT, MESSAGES) == ("dict", "messages")


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("how", ["open", "closed", "crashed"])
def test_the_counts_are_those_of_the_container(kind, how, tmp_path):
    def crash() -> None:
        use()
        die()

    def use() -> dict[str, int]:
        container = stack.enter_context(CLASSES[kind](tmp_path / "s", **PLAIN))
        add(container, *"abcdefg")
        take(container, 2)
        assert counts(only(tmp_path / "s")) == told_of(container)
        return told_of(container)

    with ExitStack() as stack:
        if how == "crashed":
            assert in_child(crash) == -9
        else:
            told = use()
            if how == "closed":
                stack.close()
            assert counts(only(tmp_path / "s")) == told
    assert only(tmp_path / "s").ready == 5


def test_every_state_of_a_record(tmp_path):
    with SQLiteAckQueue(tmp_path / "s", max_attempts=1, **PLAIN) as queue:
        queue.put_many("abcdefghij")
        queue.ack(queue.get())
        for _ in range(2):
            queue.ack_failed(queue.get())
        for _ in range(3):
            queue.nack(queue.get())  # its only attempt
        queue.get()  # likewise, when the queue is closed
    with SQLiteAckQueue(tmp_path / "s", auto_resume=False, **PLAIN) as queue:
        queue.nack(queue.get(), delay=3600)
        queue.get()
        told = {"ready": 1, "claimed": 1, "delayed": 1, "done": 1, "failed": 2, "dead": 4, "unfinished": 3}
        told["blocked"] = 0
        assert counts(only(tmp_path / "s")) == told_of(queue) == told


CHANGES = ["set", "keep", "pop", "clear"]
STEPS = ["put", "get", "done", "nack", "later", "failed", "clear", "look"]


@pytest.mark.parametrize("kind", [kind for kind in CLASSES if kind != "dict"])
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.sampled_from(STEPS), max_size=20), reopen=st.booleans())
def test_whatever_was_done_the_counts_agree(kind, steps, reopen, memory_path):
    path = memory_path / os.urandom(8).hex()
    queue = CLASSES[kind](path, **PLAIN)
    is_ack = isinstance(queue, SQLiteAckQueue)
    got: list[Any] = []
    try:
        for number, step in enumerate(steps):
            if step == "put":
                queue.put(number)
            elif step == "get":
                try:
                    got.append(queue.get_nowait())
                except Empty:
                    assert not queue.qsize()
            elif step == "clear":
                queue.clear()
            elif got and step != "look":
                settle: Callable[[Any], Any] = {
                    "done": queue.ack if is_ack else lambda item: queue.task_done(),
                    "nack": getattr(queue, "nack", lambda item: queue.task_done()),
                    "later": lambda item: queue.nack(item, delay=3600) if is_ack else queue.task_done(),
                    "failed": getattr(queue, "ack_failed", lambda item: queue.task_done()),
                }[step]
                settle(got.pop(0))
            told = told_of(queue)
            if kind == "queue" and told["claimed"]:
                told |= dict.fromkeys(("ready", "claimed"))  # type: ignore[arg-type]
            assert counts(only(path)) == told
        if reopen:
            queue.close()
            queue = CLASSES[kind](path, **PLAIN)
            assert counts(only(path)) == told_of(queue)
    finally:
        queue.close()


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.tuples(st.sampled_from(CHANGES), st.integers(0, 5)), max_size=20))
def test_whatever_was_done_to_a_dict_the_counts_agree(steps, memory_path):
    path = memory_path / os.urandom(8).hex()
    with PDict(path, **PLAIN) as mapping:
        for step, key in steps:
            if step == "set":
                mapping[key] = step
            elif step == "keep":
                mapping.set(key, step, ttl=3600)
            elif step == "pop":
                mapping.pop(key, None)
            else:
                mapping.clear()
            assert counts(only(path)) == told_of(mapping)
            assert only(path).unfinished == len(mapping)


# Queues in files: what a consumer has is only known for sure where it says that it has nothing.


def test_while_a_consumer_has_items_only_the_sum_is_known(tmp_path):
    with Queue(tmp_path / "s", **PLAIN) as queue:
        queue.put_many("abcd")
        assert counts(only(tmp_path / "s")) == {**dict.fromkeys(COUNTS, 0), "unfinished": 4, "ready": 4}
        queue.get()
        info = only(tmp_path / "s")
        assert (info.unfinished, info.ready, info.claimed) == (4, None, None)
        queue.task_done()
        info = only(tmp_path / "s")
        assert (info.unfinished, info.ready, info.claimed) == (3, 3, 0)
        queue.get()
    info = only(tmp_path / "s")
    assert (info.unfinished, info.ready, info.claimed) == (3, 3, 0)


def test_what_a_dead_consumer_had_is_not_taken_for_claimed(tmp_path):
    def crash() -> None:
        queue = Queue(tmp_path / "s", **PLAIN)
        queue.put_many("abcd")
        queue.get()
        die()

    assert in_child(crash) == -9
    info = only(tmp_path / "s")
    assert (info.unfinished, info.ready, info.claimed) == (4, None, None)
    with Queue(tmp_path / "s", **PLAIN) as queue:
        assert queue.get() == "a"
        queue.task_done()
        info = only(tmp_path / "s")
        assert (info.unfinished, info.ready, info.claimed) == (3, 3, 0)


def test_items_acknowledged_out_of_order(tmp_path):
    with Queue(tmp_path / "s", chunksize=3, **PLAIN) as queue:
        queue.put_many(range(20))
        for id in (17, 4, 9, 10, 11):
            assert queue.skip(id) == id
        assert counts(only(tmp_path / "s")) == told_of(queue)
        assert only(tmp_path / "s").ready == 15
    assert only(tmp_path / "s").ready == 15


def test_over_many_chunks(tmp_path):
    with Queue(tmp_path / "s", chunksize=2, autosave=True, **PLAIN) as queue:
        for number in range(25):
            queue.put(number)
            assert only(tmp_path / "s").ready == number + 1
        for number in range(25):
            queue.get()
            assert only(tmp_path / "s").ready == 24 - number
        assert only(tmp_path / "s").chunksize == 2


# What is due.


def test_expired_pairs_are_not_counted(tmp_path):
    with PDict(tmp_path / "s", **PLAIN) as mapping:
        mapping["a"] = 1
        mapping.set("b", 2, ttl=0.001)
        while "b" in mapping:
            pass
        assert counts(only(tmp_path / "s")) == dict.fromkeys(COUNTS)
        mapping["c"] = 3  # a write removes what has expired
        assert only(tmp_path / "s").ready == 2


def test_what_is_due_is_counted_where_the_last_writer_left_it(tmp_path):
    with SQLiteAckQueue(tmp_path / "s", **PLAIN) as queue:
        queue.put_many("ab")
        queue.nack(queue.get(), delay=0.001)
        info = only(tmp_path / "s")
        assert (info.ready, info.delayed, info.unfinished) == (1, 1, 2)
        while queue.qsize() == 1:
            pass
        info = only(tmp_path / "s")
        assert (info.ready, info.delayed, info.unfinished) == (2, 0, 2)


# Names, places, serializers.


def test_all_kinds_in_one_database_in_the_order_in_which_they_were_made(tmp_path):
    with ExitStack() as stack:
        for number, kind in enumerate(reversed(IN_DATABASES)):
            container = stack.enter_context(CLASSES[kind](tmp_path / "s.db", name=f"{kind} é'\"", **PLAIN))
            add(container, *"abcdefghij"[:number])
        found = collections(tmp_path / "s.db")
        assert list(found) == [f"{kind} é'\"" for kind in reversed(IN_DATABASES)]
        assert [info.kind for info in found.values()] == IN_DATABASES[::-1]
        assert [info.ready for info in found.values()] == list(range(len(IN_DATABASES)))
        assert all(info.name == name for name, info in found.items())
    assert collections(tmp_path / "s.db") == found


def test_a_name_may_be_empty_beside_a_queue_in_files(tmp_path):
    with Queue(tmp_path / "s", **PLAIN) as queue, SQLiteQueue(tmp_path / "t", name="", **PLAIN) as other:
        queue.put("a")
        other.put_many("bc")
    (tmp_path / "t" / "data.db").rename(tmp_path / "s" / "data.db")
    (tmp_path / "t" / "data.db.lock").rename(tmp_path / "s" / "data.db.lock")
    found = collections(tmp_path / "s")
    assert {name: (info.kind, info.ready) for name, info in found.items()} == {
        None: ("queue", 1),
        "": ("fifo", 2),
    }
    # Each of the two can still be opened.
    with Queue(tmp_path / "s", **PLAIN) as queue, SQLiteQueue(tmp_path / "s", name="", **PLAIN) as other:
        assert (queue.qsize(), other.qsize()) == (1, 2)


def test_every_way_to_name_the_place(tmp_path, monkeypatch):
    for kind in ("queue", "fifo"):
        with CLASSES[kind](tmp_path / kind, **PLAIN):
            pass
        monkeypatch.chdir(tmp_path)
        (tmp_path / f"{kind}-link").symlink_to(kind)
        expected = collections(tmp_path / kind)
        ways: list[Any] = [kind, f"./{kind}/", kind.encode(), Path(kind), str(tmp_path / kind)]
        for way in ways:
            assert collections(way) == expected
        (linked,) = collections(f"{kind}-link").values()
        (direct,) = expected.values()
        assert dataclasses.replace(linked, path=direct.path) == direct
        # A queue's directory is told as it was given; a database's file by the one name that all use for it.
        assert linked.path == (str(tmp_path / "queue-link") if kind == "queue" else direct.path)
    (tmp_path / "other name").symlink_to("fifo/data.db")
    assert collections("other name") == collections("fifo/data.db") == collections("fifo")


def test_a_file_of_any_name_is_taken_for_a_database(tmp_path):
    with SQLiteQueue(tmp_path / "s.db", **PLAIN) as queue:
        queue.put("a")
    (tmp_path / "s.db").rename(tmp_path / "s.backup?mode=rw#x%41")
    assert only(tmp_path / "s.backup?mode=rw#x%41").ready == 1


class Refusing:
    """A serializer of one's own, that nobody should use for a look."""

    name = "my own"
    executes_code = False

    def dumps(self, item: object) -> bytes:
        return b"?"

    def loads(self, data: bytes) -> object:
        raise AssertionError("decoded")


def serializers() -> Iterator[tuple[Any, str]]:
    key = b"a key of 16 bytes or more"
    yield "raw", "raw"
    yield pickle, "pickle"
    yield Refusing(), "my own"
    yield compressed("raw"), "compressed"
    yield signed("pickle", key), "signed"


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize(("serializer", "name"), [*serializers()], ids=lambda value: str(value)[:10])
def test_no_serializer_is_needed(kind, serializer, name, tmp_path):
    with CLASSES[kind](tmp_path / "s", serializer=serializer) as container:
        (container.update if kind == "dict" else lambda pairs: container.put(b"x"))({b"k": b"x"})
    info = only(tmp_path / "s")
    assert (info.ready, name in info.serializer) == (1, True)


class Bomb:
    """Its pickle is a call."""

    def __reduce__(self) -> Any:
        return os._exit, (3,)


@pytest.mark.parametrize("kind", [kind for kind in CLASSES if "unique" not in kind])
def test_nothing_is_unpickled(kind, tmp_path):
    with CLASSES[kind](tmp_path / "s") as container:
        if kind == "dict":
            container["k"] = Bomb()
        else:
            container.put(Bomb())
    assert in_child(lambda: only(tmp_path / "s")) == 0
    assert only(tmp_path / "s").ready == 1


# What a look costs.


def test_a_look_into_files_costs_the_same_at_any_backlog(tmp_path, monkeypatch):
    calls: list[str] = []

    def counted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            calls.append(name)
            return call(*arguments)

        return run

    class CountingDisk(Disk):
        def __init__(self) -> None:
            super().__init__()
            for name in ("read", "open", "close"):
                setattr(self, name, counted(name, getattr(self, name)))

    monkeypatch.setattr(files, "Disk", CountingDisk)
    costs = []
    for chunks in (2, 60):
        path = tmp_path / str(chunks)
        with Queue(path, chunksize=50, **PLAIN) as queue:
            for _ in range(chunks):
                queue.put_many("x" * 50)
        calls.clear()
        with monkeypatch.context() as patch:
            patch.setattr(os, "listdir", None)  # a listing grows with the chunks
            assert only(path).ready == 50 * chunks
        costs.append(sorted(calls))
    assert costs[0] == costs[1]
    assert costs[0]


def test_a_look_into_a_database_costs_the_same_at_any_backlog(tmp_path, monkeypatch):
    statements, steps = watch_looks(monkeypatch)
    costs = []
    for items in (10, 5000):
        path = tmp_path / str(items)
        with ExitStack() as stack:
            for kind in IN_DATABASES:
                container = stack.enter_context(CLASSES[kind](path, name=kind, **PLAIN))
                if kind == "dict":
                    container.update(dict.fromkeys(range(items)))
                else:
                    container.put_many(range(items))
                    for _ in range(items // 10):
                        container.get()
        statements.clear()
        steps.clear()
        assert len(collections(path)) == len(IN_DATABASES)
        costs.append((len(statements), len(steps)))
    assert costs[0] == costs[1]
    assert costs[0][0] <= 12 + 2 * len(IN_DATABASES)


def test_what_would_cost_too_much_is_not_counted(tmp_path, monkeypatch):
    with Queue(tmp_path / "s", **PLAIN) as queue:
        queue.put_many("abcd")
        queue.get()
        queue.task_done()
        assert only(tmp_path / "s").ready == 3
        for name in ("_MOST_OF_CHUNK", "_MOST_OF_CURSOR"):
            with monkeypatch.context() as patch:
                patch.setattr(files, name, 100)
                info = only(tmp_path / "s")
            assert (info.kind, info.unfinished, info.ready, info.claimed) == ("queue", None, None, None)


def test_a_consumer_that_never_rests_is_counted_at_last(tmp_path, monkeypatch):
    with Queue(tmp_path / "s", **PLAIN) as queue:
        queue.put_many("abcd")
        numbers = iter(range(10**6))
        look = files._read_consumer
        monkeypatch.setattr(files, "_read_consumer", lambda *arguments: (look(*arguments)[0], next(numbers)))
        assert only(tmp_path / "s").unfinished == 4
        assert next(numbers) == 2 * files._PATIENCE


# The value itself.


def test_it_is_a_frozen_value(tmp_path):
    with PriorityQueue(tmp_path / "s", **PLAIN), UniqueAckQ(tmp_path / "t", **PLAIN):
        info = only(tmp_path / "s")
        assert info == only(tmp_path / "s") != only(tmp_path / "t")
        assert hash(info) == hash(only(tmp_path / "s"))
        assert pickle.loads(pickle.dumps(info)) == info
        with pytest.raises(dataclasses.FrozenInstanceError):
            info.ready = 5  # type: ignore[misc]


def test_the_name_hides_no_module():
    """``collections`` is a module of the standard library as well."""
    names: dict[str, Any] = {}
    exec("import collections\nfrom persistcoll import *\ncollections.deque", names)
    assert persistcoll.collections is collections
    assert "collections" not in persistcoll.__all__
    assert "collections" in dir(persistcoll)
    for module in modules():
        bound = {
            alias.asname or alias.name
            for node in ast.walk(module.tree)
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for alias in node.names
        }
        assert "collections" not in bound or module.name == "persistcoll"
