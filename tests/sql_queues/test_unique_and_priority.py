"""Equal items that are refused, and items in the order of their priority."""

from __future__ import annotations

import math

import pytest

from persistcoll import DuplicateError, Empty, EncodeError, Full, PriorityQueue, UniqueAckQ, UniqueQ
from persistcoll.sqlite import rows
from persistcoll.testing.children import run_threads
from tests.queues.waits import someone_waits, until, waiting
from tests.sql_queues.conftest import done_with

EQUAL = [
    ({"a": 1, "b": [2, {"c": None}]}, {"b": [2.0, {"c": None}], "a": True}),
    (1, 1.0),
    (1, True),
    (0, -0.0),
    ({1, 2}, frozenset({2, 1})),
]
UNEQUAL = [(1, "1"), ("a", b"a"), ([1], (1,)), (None, 0), ("", b""), ({"a": 1}, {"a": 2})]


@pytest.fixture(params=[UniqueQ, UniqueAckQ], ids=lambda kind: kind.__name__)
def unique(request):
    return request.param


# Unique items.


@pytest.mark.parametrize(("one", "other"), EQUAL, ids=repr)
def test_an_equal_item_is_not_stored(open_queue, unique, one, other):
    queue = open_queue(unique)
    assert queue.put(one) == 1
    assert queue.put(other) is None
    assert queue.put_nowait(one) is None
    assert other in queue
    assert len(queue) == 1
    assert queue.get() == one


@pytest.mark.parametrize(("one", "other"), UNEQUAL, ids=repr)
def test_an_unequal_item_is_stored(open_queue, unique, one, other):
    queue = open_queue(unique)
    assert queue.put(one) == 1
    assert other not in queue
    assert queue.put(other) == 2


def test_put_many_leaves_out_equal_ones(open_queue, unique):
    queue = open_queue(unique)
    assert queue.put_many(["a", "b", "a"]) == [1, 2, None]
    assert queue.put_many(["b", "c", "c", "d"]) == [None, open_queue.id(3), None, open_queue.id(4)]
    assert queue.put_many(["a", "b"]) == [None, None]
    assert list(queue.items()) == ["a", "b", "c", "d"]


def test_an_equal_item_needs_no_room(open_queue, unique):
    queue = open_queue(unique, maxsize=2)
    queue.put_many("ab")
    assert queue.put("a", block=False) is None
    with pytest.raises(Full):
        queue.put_nowait("c")


@pytest.mark.parametrize(
    "item", [object(), {"a": object()}, {1: math}, float("nan")], ids=["object", "inside", "module", "nan"]
)
def test_what_cannot_be_compared_is_refused(open_queue, unique, item):
    queue = open_queue(unique, serializer=Anything())
    queue.put("a")
    for call in (queue.put, queue.put_nowait, queue.__contains__, lambda item: queue.put_many([1, item])):
        with pytest.raises(
            (TypeError, ValueError), match=r"^(NaN .*, so )?an item that .* cannot be compared"
        ) as caught:
            call(item)
        assert "key" not in str(caught.value)
    with pytest.raises((TypeError, ValueError), match="cannot be compared"):
        queue.update(item, id=1)
    assert list(queue.items()) == ["a"]


class Anything:
    """A serializer that accepts everything."""

    name = "anything"
    executes_code = False

    @staticmethod
    def dumps(obj):
        return str(obj).encode()

    @staticmethod
    def loads(data):
        return data.decode()


@pytest.mark.parametrize("options", [{}, {"auto_commit": False}], ids=str)
def test_an_item_is_free_when_it_is_gone(open_queue, options):
    queue = open_queue(UniqueQ, **options)
    queue.put("a")
    queue.get()
    if options:
        assert "a" in queue
        assert queue.put("a") is None
        queue.task_done()
    assert "a" not in queue
    assert queue.put("a") == open_queue.id(2)


@pytest.mark.parametrize("verb", ["ack", "ack_failed", "task_done", "skip", "clear", "max_attempts"])
def test_an_item_in_work_is_not_free(open_here, verb):
    queue = open_here(UniqueAckQ, max_attempts=1 if verb == "max_attempts" else None)
    queue.put("a")
    item = queue.get()
    assert "a" in queue
    assert queue.put("a") is None
    if verb in ("skip", "clear"):
        queue.nack(item, delay=0)
        assert queue.put("a") is None
        getattr(queue, verb)()
    elif verb == "task_done":
        queue.task_done()
    elif verb == "max_attempts":
        queue.nack(item)
    else:
        getattr(queue, verb)(item)
    assert "a" not in queue
    assert queue.put("a") == 2


def test_an_item_that_waits_for_later_is_not_free(open_here):
    queue = open_here(UniqueAckQ)
    queue.put("a")
    queue.nack(queue.get(), delay=1000)
    assert "a" in queue
    assert queue.put("a") is None


@pytest.mark.parametrize("remove", ["clear", "skip"])
def test_removing_what_is_ready_leaves_claimed_keys_active(open_queue, unique, remove):
    queue = open_queue(unique) if unique is UniqueAckQ else open_queue(unique, auto_commit=False)
    queue.put_many("abc")
    queue.get()
    if unique is UniqueAckQ:
        queue.nack(queue.get(), delay=1000)
    else:
        queue.get()
    getattr(queue, remove)()
    assert [item in queue for item in "abc"] == [True, True, False]
    assert queue.put_many("abc") == [None, None, open_queue.id(4)]


def test_a_replaced_item_is_free(open_queue, unique):
    queue = open_queue(unique)
    queue.put_many("ab")
    with pytest.raises(DuplicateError):
        queue.update("b", id=1)
    assert queue.update("a", id=1) == 1
    assert queue.update("c", id=1) == 1
    assert ["a" in queue, "c" in queue] == [False, True]
    assert queue.put("c") is None
    assert queue.put("a") == open_queue.id(3)
    assert list(queue.items()) == ["c", "b", "a"]


@pytest.mark.parametrize("held", [False, True], ids=["waiting", "in work"])
def test_an_item_that_could_not_be_replaced_is_not_free(open_file, monkeypatch, unique, held):
    """Neither is the item that was too large to store: put, update and ``in`` agree on both."""
    queue = open_file(unique) if unique is UniqueAckQ else open_file(unique, auto_commit=False)
    queue.put("a")
    if held:
        queue.get()
    monkeypatch.setattr(rows, "_LARGEST", 100)
    with pytest.raises(EncodeError, match="too large"):
        queue.update("b" * 200, id=1)
    assert ["a" in queue, "b" * 200 in queue] == [True, False]
    assert queue.put("a") is None
    monkeypatch.undo()
    assert queue.put("b" * 200) == 2


def test_unique_across_objects_and_threads(open_stored, unique):
    queues = [open_stored(unique) for _ in range(3)]
    ids: list[int | None] = []

    def put(queue):
        ids.extend(queue.put({"number": number}) for number in range(40))

    run_threads(*[lambda queue=queue: put(queue) for queue in queues])
    stored = sorted(id for id in ids if id is not None)
    assert stored == [open_stored.id(number) for number in range(1, 41)]
    assert len({*stored}) == 40
    assert len(queues[0]) == 40


def test_an_equal_item_wakes_no_thread(open_queue, unique):
    queue = open_queue(unique, auto_commit=True)
    queue.put("a")
    queue.get()
    finish = waiting(lambda: queue.get(timeout=20))
    until(lambda: someone_waits(queue))
    if unique is UniqueAckQ:
        assert queue.put("a") is None
    queue.put("b")
    assert finish() == "b"


# Priorities.


@pytest.mark.parametrize(
    "priorities",
    [
        [3, 1, 2, 1, -5, 2.5, 3, 0, -(1 << 63), 1e300, 1.0],
        pytest.param([3, 1, float("-inf"), float("inf"), -(1 << 63), (1 << 63) - 1, 1.0], id="extremes"),
    ],
)
def test_the_lowest_first_and_the_oldest_among_equals(open_queue, priorities):
    queue = open_queue(PriorityQueue)
    for number, priority in enumerate(priorities):
        assert queue.put(number, priority) == number + 1
    queue.put("default")
    expected = sorted([*enumerate(priorities), ("default", 0)], key=lambda pair: pair[1])
    got = [queue.get(raw=True) for _ in expected]
    assert [(raw["data"], raw["priority"]) for raw in got] == expected


def test_every_way_to_put(open_queue):
    queue = open_queue(PriorityQueue, maxsize=4)
    queue.put_nowait("c", 2)
    queue.put_nowait("b", priority=1)
    assert queue.put_many(["a", "aa"], -1) == [3, 4]
    for put in (queue.put_nowait, lambda item: queue.put(item, 0, False)):
        with pytest.raises(Full):
            put("d")
    with pytest.raises(Full):
        queue.put("d", priority=1, timeout=0.01)
    with pytest.raises(Full):
        queue.put_many("d", timeout=0.01)
    assert queue.peek() == "a"
    assert list(queue.items()) == ["c", "b", "a", "aa"]
    assert [row["priority"] for row in queue.queue()] == [2, 1, -1, -1]
    assert queue.get_many(9) == ["a", "aa", "b", "c"]


@pytest.mark.parametrize(
    ("priority", "error"),
    [
        (float("nan"), ValueError),
        (1 << 63, ValueError),
        (-(1 << 63) - 1, ValueError),
        ("1", TypeError),
        (None, TypeError),
        (True, TypeError),
        (1j, TypeError),
    ],
    ids=repr,
)
def test_what_is_no_priority_is_refused(open_queue, priority, error):
    queue = open_queue(PriorityQueue)
    for put in (queue.put, queue.put_nowait, lambda _, priority: queue.put_many([1], priority)):
        with pytest.raises(error, match="priority"):
            put("a", priority)
    assert queue.empty()


def test_a_released_item_keeps_its_priority(open_queue):
    queue = open_queue(PriorityQueue)
    queue.put("b", 2)
    queue.put("a", 1)

    def block():
        with queue.receive() as item:
            queue.put("c", 3)
            raise KeyError(item)

    with pytest.raises(KeyError, match="a"):
        block()
    assert queue.get_many(3) == ["a", "b", "c"]
    done_with(queue)
    with pytest.raises(Empty):
        queue.get_nowait()
