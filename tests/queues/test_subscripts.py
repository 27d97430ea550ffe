"""``Queue[int]`` and the others exist at run time too, and are the classes themselves."""

from __future__ import annotations

import pickle
import typing

import pytest

from persistcoll import (
    FIFOSQLiteAckQueue,
    FIFOSQLiteQueue,
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

QUEUES = [
    Queue, SQLiteQueue, FIFOSQLiteQueue, FILOSQLiteQueue, UniqueQ, PriorityQueue, SQLiteAckQueue,
    FIFOSQLiteAckQueue, FILOSQLiteAckQueue, UniqueAckQ,
]  # fmt: skip


@pytest.mark.parametrize("kind", QUEUES)
def test_a_queue_of_something_is_that_queue(kind, tmp_path):
    assert typing.get_origin(kind[int]) is kind
    assert typing.get_args(kind[int]) == (int,)
    with kind[int](tmp_path / "q") as queue:
        assert type(queue) is kind
        queue.put(1)
        with pickle.loads(pickle.dumps(queue)) as other:
            assert type(other) is kind
        assert queue.get() == 1


def test_a_dict_of_something_is_that_dict(tmp_path):
    assert typing.get_args(PDict[str, int]) == (str, int)
    with PDict[str, int](tmp_path / "d") as pairs:
        assert type(pairs) is PDict


def test_subclasses_may_fix_the_type(tmp_path):
    class Numbers(Queue[int]):
        pass

    with Numbers(tmp_path / "q") as numbers:
        numbers.put(1)
        assert numbers.get() == 1
