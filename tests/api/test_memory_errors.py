"""Memory or stack that runs out while an item is encoded or decoded does not condemn the item.

``MemoryError`` and ``RecursionError`` reach the caller unchanged, because the documented reaction to a
``DecodeError`` is ``skip(error.id)``. The item stays, and all counts keep their values.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from persistcoll import (
    DecodeError,
    FILOSQLiteAckQueue,
    FILOSQLiteQueue,
    PDict,
    PriorityQueue,
    Queue,
    SQLiteAckQueue,
    SQLiteQueue,
    UniqueAckQ,
    UniqueQ,
)
from persistcoll.serializers import canonical, compressed, decode, encrypted, resolve, signed
from persistcoll.serializers.dict_keys import key_bytes, key_from, original_key

SHORTAGES = [MemoryError, RecursionError]
SQL = [SQLiteQueue, FILOSQLiteQueue, UniqueQ, PriorityQueue]
ACK = [SQLiteAckQueue, FILOSQLiteAckQueue, UniqueAckQ]
KEY = b"a key of 16 bytes or more"[:16]


class Library(Exception):
    """The error of a serializer's library that wraps every error inside of it."""


class Failing:
    """JSON whose encoding and decoding each raise an error while one is set."""

    name = "failing"
    executes_code = False

    def __init__(self, wraps: bool = False) -> None:
        self.wraps = wraps
        self.reading: BaseException | None = None
        self.writing: BaseException | None = None

    def _fail(self, error: BaseException) -> None:
        if self.wraps:
            raise Library from error
        raise error

    def dumps(self, obj: Any) -> bytes:
        if self.writing is not None:
            self._fail(self.writing)
        return json.dumps(obj).encode()

    def loads(self, data: bytes) -> Any:
        if self.reading is not None:
            self._fail(self.reading)
        return json.loads(data)


WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "plain": lambda inner: inner,
    "compressed": compressed,
    "signed": lambda inner: signed(inner, KEY),
    "encrypted": lambda inner: encrypted(inner, KEY),
    "all": lambda inner: signed(encrypted(compressed(inner), KEY), KEY),
}


def receive(queue: Any) -> None:
    with queue.receive(block=False):
        pytest.fail("the block began")


READS: dict[str, tuple[list[Any], Callable[[Any], Any]]] = {
    "get": ([Queue, *SQL, *ACK], lambda q: q.get(block=False)),
    "get_nowait": ([Queue, *SQL, *ACK], lambda q: q.get_nowait()),
    "get, waiting": ([Queue, *SQL, *ACK], lambda q: q.get(timeout=10)),
    "get_many": ([Queue, *SQL, *ACK], lambda q: q.get_many(2, block=False)),
    "receive": ([Queue, *SQL, *ACK], receive),
    "peek": ([Queue, *SQL, *ACK], lambda q: q.peek()),
    "items": ([Queue, *SQL, *ACK], lambda q: list(q.items())),
    "queue": ([*SQL, *ACK], lambda q: q.queue()),
    "raw": ([*SQL, *ACK], lambda q: q.get(block=False, raw=True)),
    "id": ([*SQL, *ACK], lambda q: q.get(block=False, id=1)),
    "next_in_order": (ACK, lambda q: q.get(block=False, id=1, next_in_order=True)),
}
WRITES: dict[str, tuple[list[Any], Callable[[Any], Any]]] = {
    "put": ([Queue, *SQL, *ACK], lambda q: q.put("new")),
    "put_nowait": ([Queue, *SQL, *ACK], lambda q: q.put_nowait("new")),
    "put_many": ([Queue, *SQL, *ACK], lambda q: q.put_many(["new", "newer"])),
    "update": ([*SQL, *ACK], lambda q: q.update("new", 1)),
}


def of(ways: dict[str, tuple[list[Any], Callable[[Any], Any]]]) -> Any:
    return pytest.mark.parametrize(
        ("cls", "way"),
        [
            pytest.param(cls, way, id=f"{cls.__name__}-{name}")
            for name, (classes, way) in ways.items()
            for cls in classes
        ],
    )


def counts(queue: Any) -> Any:
    stats = dataclasses.asdict(queue.stats())
    for moving in ("oldest_age", "bytes"):
        stats.pop(moving)
    return queue.qsize(), queue.unfinished_tasks, stats


def items_of(cls: Any) -> list[Any]:
    return ["b", "a"] if cls in (FILOSQLiteQueue, FILOSQLiteAckQueue) else ["a", "b"]


@pytest.fixture(params=[False, True], ids=["raised", "wrapped by a library"])
def failing(request) -> Failing:
    return Failing(request.param)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("shortage", SHORTAGES)
@of(READS)
def test_a_shortage_at_any_way_of_reading_reaches_the_caller(cls, way, shortage, failing, tmp_path):
    with cls(tmp_path / "q", serializer=failing) as queue:
        queue.put_many(["a", "b"])
        before = counts(queue)
        failing.reading = shortage()
        for _ in range(3):
            with pytest.raises(shortage) as caught:
                way(queue)
            assert caught.value is failing.reading
            assert counts(queue) == before
        failing.reading = None
        assert [queue.get(block=False), queue.get(block=False)] == items_of(cls)


@pytest.mark.parametrize("auto_commit", [True, False])
@pytest.mark.parametrize("shortage", SHORTAGES)
@pytest.mark.parametrize("cls", SQL)
def test_a_get_that_acknowledges_takes_nothing_while_memory_is_short(
    cls, auto_commit, shortage, failing, tmp_path
):
    with cls(tmp_path / "q", serializer=failing, auto_commit=auto_commit) as queue:
        queue.put_many(["a", "b"])
        before = counts(queue)
        failing.reading = shortage()
        for way in (queue.get_nowait, lambda: queue.get_many(2)):
            with pytest.raises(shortage):
                way()
            assert counts(queue) == before
        failing.reading = None
        for item in items_of(cls):
            assert queue.get_nowait() == item
            queue.task_done()
        assert queue.unfinished_tasks == 0


@pytest.mark.parametrize("autosave", [True, False])
@pytest.mark.parametrize("shortage", SHORTAGES)
def test_a_shortage_leaves_a_file_queue_as_it_was(autosave, shortage, failing, tmp_path):
    with Queue(tmp_path / "q", serializer=failing, autosave=autosave) as queue:
        queue.put_many(["a", "b", "c"])
        assert queue.get() == "a"
        before = counts(queue)
        failing.reading = shortage()
        for way in (queue.get_nowait, lambda: queue.get_many(2), queue.peek):
            with pytest.raises(shortage):
                way()
            assert counts(queue) == before
    failing.reading = None
    with Queue(tmp_path / "q", serializer=failing, autosave=autosave) as queue:
        assert list(queue.items()) == (["b", "c"] if autosave else ["a", "b", "c"])


@pytest.mark.parametrize("shortage", SHORTAGES)
@pytest.mark.parametrize("cls", [Queue, SQLiteQueue, UniqueQ, PriorityQueue, SQLiteAckQueue])
def test_a_shortage_in_the_middle_of_a_batch_makes_it_shorter(cls, shortage, tmp_path):
    class FailingAtB(Failing):
        def loads(self, data: bytes) -> Any:
            return super().loads(data) if data == b'"b"' else json.loads(data)

    failing = FailingAtB()
    with cls(tmp_path / "q", serializer=failing) as queue:
        queue.put_many(["a", "b", "c"])
        failing.reading = shortage()
        assert queue.get_many(3) == ["a"]
        assert queue.qsize() == 2
        with pytest.raises(shortage):
            queue.get_many(3)
        assert queue.qsize() == 2
        failing.reading = None
        assert queue.get_many(3) == ["b", "c"]


@pytest.mark.parametrize("shortage", SHORTAGES)
@of(WRITES)
def test_a_shortage_at_any_way_of_writing_reaches_the_caller(cls, way, shortage, failing, tmp_path):
    with cls(tmp_path / "q", serializer=failing) as queue:
        queue.put("a")
        before = counts(queue)
        failing.writing = shortage()
        with pytest.raises(shortage) as caught:
            way(queue)
        assert caught.value is failing.writing
        assert counts(queue) == before
        assert list(queue.items()) == ["a"]


@pytest.mark.parametrize("shortage", SHORTAGES)
@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
@pytest.mark.parametrize("cls", [Queue, SQLiteQueue, SQLiteAckQueue])
def test_a_shortage_passes_through_every_wrapper(cls, wrap, shortage, failing, tmp_path):
    if wrap in (WRAPPERS["encrypted"], WRAPPERS["all"]):
        pytest.importorskip("cryptography")
    with cls(tmp_path / "q", serializer=wrap(failing)) as queue:
        queue.put("a")
        failing.reading = failing.writing = shortage()
        with pytest.raises(shortage):
            queue.get(block=False)
        with pytest.raises(shortage):
            queue.put("b")
        failing.reading = None
        assert queue.qsize() == 1
        assert queue.get(block=False) == "a"


# PDict.


def edit(pairs: Any) -> None:
    with pairs.edit("a"):
        pytest.fail("the block began")


DICT_READS: dict[str, Callable[[Any], Any]] = {
    "[]": lambda d: d["a"],
    "get": lambda d: d.get("a"),
    "get_many": lambda d: d.get_many(["a"]),
    "setdefault": lambda d: d.setdefault("a", 5),
    "pop": lambda d: d.pop("a", None),
    "popitem": lambda d: d.popitem(),
    "incr": lambda d: d.incr("a"),
    "edit": edit,
    "items": lambda d: list(d.items()),
    "values": lambda d: list(d.values()),
    "reversed": lambda d: list(reversed(d.values())),
    "in values": lambda d: 1 in d.values(),
    "scan": lambda d: list(d.scan()),
    "copy": lambda d: d.copy(),
    "==": lambda d: d == {"a": 1, "b": 2},
    "|": lambda d: d | {},
}
DICT_WRITES: dict[str, Callable[[Any], Any]] = {
    "[]": lambda d: d.__setitem__("c", 3),
    "set": lambda d: d.set("c", 3, ttl=100),
    "update": lambda d: d.update(c=3, d=4),
    "set_many": lambda d: d.set_many({"c": 3}),
    "setdefault": lambda d: d.setdefault("c", 3),
    "incr": lambda d: d.incr("a"),
    "|=": lambda d: d.__ior__({"c": 3}),
}


@pytest.fixture(params=[True, False], ids=["auto_commit", "gathering"])
def pairs(request, failing, tmp_path) -> Iterator[Any]:
    with PDict[str, int](tmp_path / "d", serializer=failing, auto_commit=request.param) as opened:
        opened.update({"a": 1, "b": 2})
        yield opened
        failing.reading = failing.writing = None
        assert list(opened.items()) == [("a", 1), ("b", 2)]


@pytest.mark.parametrize("shortage", SHORTAGES)
@pytest.mark.parametrize("way", DICT_READS.values(), ids=DICT_READS)
def test_a_shortage_at_any_way_of_reading_a_dict_reaches_the_caller(way, shortage, failing, pairs):
    failing.reading = shortage()
    with pytest.raises(shortage) as caught:
        way(pairs)
    assert caught.value is failing.reading
    assert len(pairs) == 2


@pytest.mark.parametrize("shortage", SHORTAGES)
@pytest.mark.parametrize("way", DICT_WRITES.values(), ids=DICT_WRITES)
def test_a_shortage_at_any_way_of_writing_a_dict_reaches_the_caller(way, shortage, failing, pairs):
    failing.writing = shortage()
    with pytest.raises(shortage) as caught:
        way(pairs)
    assert caught.value is failing.writing
    assert len(pairs) == 2


# Deep items, and deep callers.


def at_every_depth(call: Callable[[], Any]) -> Iterator[Any]:
    """Give what ``call`` returns or raises as the remaining stack becomes shorter."""

    def deep(levels: int) -> Any:
        return deep(levels - 1) if levels else call()

    used = 0
    frame: Any = sys._getframe()
    while frame is not None:
        used, frame = used + 1, frame.f_back
    # A multiple of 3 frames for each level of the items. Every depth would try every line of the library.
    for left in range(200, 0, -1):
        try:
            yield deep(sys.getrecursionlimit() - used - left)
        except Exception as error:
            yield error


def nested(depth: int, innermost: object = 1) -> Any:
    item: Any = [innermost]
    for _ in range(depth):
        item = [item]
    return item


@pytest.mark.sampled(4)
@pytest.mark.parametrize("serializer", ["pickle", "json", "cbor", "msgpack"])
@pytest.mark.parametrize("cls", [Queue, SQLiteQueue, SQLiteAckQueue, UniqueQ])
def test_a_caller_deep_in_a_recursion_gets_the_item_or_a_recursion_error(cls, serializer, tmp_path):
    item = nested(60)
    if serializer in ("cbor", "msgpack"):
        pytest.importorskip(serializer.replace("cbor", "cbor2"))
    with cls(tmp_path / "q", serializer=serializer) as queue:
        queue.put(item)
        kinds = {type(found) for found in at_every_depth(queue.peek)}
        assert kinds == {list, RecursionError}
        kinds = {type(found) for found in at_every_depth(lambda: queue.put(nested(60, 2)))}
        assert RecursionError in kinds
        assert kinds <= {int, type(None), RecursionError}
        # No lock is held, and no thread is awaited: the queue works for a caller with more stack.
        count = queue.qsize()
        queue.put(nested(60, 3), timeout=10)
        assert queue.qsize() == count + 1
        queue.get(timeout=10)


KEY_OF_TUPLES: Any = (1.0,)
for _ in range(60):
    KEY_OF_TUPLES = (KEY_OF_TUPLES,)
ITS_BYTES = key_bytes(KEY_OF_TUPLES)


@pytest.mark.parametrize(
    "call",
    [
        lambda: canonical(nested(60)),
        lambda: key_bytes(KEY_OF_TUPLES),
        lambda: original_key(KEY_OF_TUPLES),
        lambda: key_from(ITS_BYTES),
    ],
    ids=["canonical", "key_bytes", "original_key", "key_from"],
)
def test_a_key_at_the_end_of_the_stack_is_a_recursion_error(call):
    found = list(at_every_depth(call))
    assert any(isinstance(each, RecursionError) for each in found)
    assert not [each for each in found if isinstance(each, Exception) and type(each) is not RecursionError]


def test_an_item_that_is_too_deep_for_any_stack_is_a_recursion_error_at_put(tmp_path):
    for cls in (Queue, SQLiteQueue, UniqueQ):
        for serializer in ("pickle", "json"):
            with cls(tmp_path / f"{cls.__name__}-{serializer}", serializer=serializer) as queue:
                with pytest.raises(RecursionError):
                    queue.put(nested(100_000))
                assert queue.qsize() == 0


@pytest.mark.parametrize("data", [b"[" * 200_000, b'{"":' * 200_000, b'{"\\"[":' * 200_000])
def test_json_that_no_stack_can_hold_is_still_a_decode_error(data):
    """Otherwise a few brackets written by another program would stop a consumer for good."""
    with pytest.raises(DecodeError) as caught:
        decode(resolve("json"), data, 3)
    assert caught.value.id == 3


def test_a_string_of_brackets_is_not_deep():
    assert resolve("json").loads(b'["' + b"[" * 200_000 + b'"]') == ["[" * 200_000]


def test_a_shortage_while_a_foreign_serializer_is_tried_out_settles_nothing():
    class Text:
        name = "text"
        short = True

        def dumps(self, obj: Any) -> str:
            if self.short:
                raise MemoryError
            return json.dumps(obj)

        def loads(self, data: Any) -> Any:
            assert isinstance(data, str)
            return json.loads(data)

    text = Text()
    adapted = resolve(text)
    with pytest.raises(MemoryError):
        adapted.loads(b"[1]")
    text.short = False
    assert adapted.loads(b"[1]") == [1]


def test_zlib_without_memory_is_a_memory_error(monkeypatch):
    small = compressed("json")
    data = small.dumps([1, 2])

    class Inflate:
        def decompress(self, data: bytes, limit: int) -> bytes:
            raise zlib.error("Error -4 while decompressing data")

    monkeypatch.setattr(zlib, "decompressobj", Inflate)
    with pytest.raises(MemoryError):
        small.loads(data)


def test_other_failures_are_still_decode_errors(failing, tmp_path):
    with SQLiteQueue(tmp_path / "q", serializer=failing) as queue:
        queue.put("a")
        failing.reading = KeyError("x")
        with pytest.raises(DecodeError) as caught:
            queue.get()
        assert queue.skip(caught.value.id) == 1
