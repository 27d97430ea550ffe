"""The costs that ``help(Queue.put)`` and the other docstrings state, counted at the disk."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from persistcoll import PriorityQueue, Queue, SQLiteAckQueue, SQLiteQueue
from persistcoll.testing.faults import FaultyDisk


def receive(queue: Any) -> None:
    with queue.receive():
        pass


def receive_many(queue: Any) -> None:
    with queue.receive_many(10):
        pass


# Method, call, and with task_done() and with autosave: writes, and syncs at "power".
COSTS: list[tuple[str, Any, tuple[int, int], tuple[int, int]]] = [
    ("put", lambda q: q.put("x"), (1, 1), (1, 1)),
    ("put_many", lambda q: q.put_many(range(100)), (1, 1), (1, 1)),
    ("get", lambda q: q.get(), (1, 0), (1, 1)),
    ("get_many", lambda q: q.get_many(10), (1, 0), (2, 1)),
    ("task_done", lambda q: q.task_done(), (1, 1), (0, 0)),
    ("task_done", lambda q: q.task_done(10), (1, 1), (0, 0)),
    ("receive", receive, (2, 1), (2, 1)),
    ("receive_many", receive_many, (2, 1), (2, 1)),
    ("peek", lambda q: q.peek(), (0, 0), (0, 0)),
    ("qsize", lambda q: q.qsize(), (0, 0), (0, 0)),
    ("items", lambda q: list(q.items()), (0, 0), (0, 0)),
]


@pytest.mark.parametrize("autosave", [False, True])
@pytest.mark.parametrize("durability", ["power", "process"])
def test_a_call_costs_what_its_help_says(durability, autosave, tmp_path):
    disk = FaultyDisk()
    with Queue(tmp_path / "q", durability=durability, autosave=autosave, _disk=disk) as queue:
        for number in range(50):  # the first puts make files
            queue.put(number)
        for _ in range(3):
            queue.get()
            queue.task_done()
        for name, call, later, at_once in COSTS:
            writes, syncs = at_once if autosave else later
            assert "Cost:" in (inspect.getdoc(getattr(Queue, name)) or ""), name
            disk.calls.clear()
            call(queue)
            counted = disk.calls["write"] + disk.calls["pwrite"], disk.calls["sync"]
            assert counted == (writes, syncs if durability == "power" else 0), name


@pytest.mark.parametrize("done", [0, 1, 2])
@pytest.mark.parametrize("durability", ["power", "process"])
def test_a_close_costs_at_most_what_its_help_says(durability, done, tmp_path):
    disk = FaultyDisk()
    with Queue(tmp_path / "q", durability=durability, _disk=disk) as queue:
        queue.put_many(range(5))
        queue.get_many(2)
        for _ in range(done):
            queue.task_done()
        disk.calls.clear()
        queue.close()
        assert disk.calls["write"] + disk.calls["pwrite"] <= 2
        assert disk.calls["sync"] == (2 if durability == "process" else 1)
        assert not disk.calls["sync_directory"]


@pytest.mark.parametrize("kind", [SQLiteQueue, PriorityQueue, SQLiteAckQueue])
@pytest.mark.parametrize(
    "name",
    ["put", "put_many", "get", "get_many", "task_done", "receive", "receive_many", "peek"],
)
def test_the_help_of_what_is_in_a_database_says_it_too(kind, name):
    """``crash/test_sqlite_syncs.py`` counts them."""
    assert "Cost:" in (inspect.getdoc(getattr(kind, name)) or "")
