"""CPython's own tests of ``queue.Queue``, ``LifoQueue`` and ``PriorityQueue``, run on queues in databases.

On servers they run with ``--all``, because they wait for seconds.
"""

from __future__ import annotations

import itertools
import queue
import shutil
import tempfile
import unittest
from typing import Any

import pytest

from persistcoll import FILOSQLiteAckQueue, FILOSQLiteQueue, SQLiteAckQueue, SQLiteQueue
from persistcoll import PriorityQueue as StoredPriorityQueue
from persistcoll.queues.sql import PriorityPuts
from tests.queues.test_stdlib import Mixin, need_the_mixin
from tests.servers.places import Place
from tests.sql_queues.on_servers import TWINS


class _InADatabase(Mixin):  # type: ignore[misc]
    """The environment that the mixin expects: the module's names, and a class of the right name."""

    queue = queue
    base: type[Any] = SQLiteQueue
    name = "Queue"  # the mixin derives the expected order from it
    by_task_done = False

    def setUp(self) -> None:
        if hasattr(super(), "setUp"):
            super().setUp()
        numbers = itertools.count()
        opened: list[Any] = []
        base = self.base
        options = {"durability": "process", **self.make_place()}
        if self.by_task_done:
            options["auto_commit"] = False

        def make(self: Any, maxsize: int = 0) -> None:
            # In one database, because they must not see each other.
            base.__init__(self, name=f"queue {next(numbers)}", maxsize=maxsize, **options)
            opened.append(self)

        def put_by_itself(self: Any, item: Any, block: bool = True, timeout: float | None = None) -> None:
            # An item that is its own priority, as in queue.PriorityQueue.
            priority = item if isinstance(item, (int, float)) else 0
            base.put(self, item, priority, block, timeout)

        members: dict[str, Any] = {"__init__": make}
        if issubclass(base, PriorityPuts):
            members["put"] = put_by_itself
            members["put_nowait"] = lambda self, item: self.put(item, False)
        self.type2test = type(self.name, (base,), members)
        self.opened = opened

    def tearDown(self) -> None:
        for each in self.opened:
            each.close()
        self.remove_place()
        if hasattr(super(), "tearDown"):
            super().tearDown()

    def make_place(self) -> dict[str, Any]:
        """Make a place for the queues, and return the arguments that name it."""
        self.directory = tempfile.mkdtemp()
        return {"path": self.directory}

    def remove_place(self) -> None:
        """Remove the place."""
        shutil.rmtree(self.directory)


class _OnAServer(_InADatabase):
    server: str

    def make_place(self) -> dict[str, Any]:
        self.place = Place(self.server)
        return self.place.where

    def remove_place(self) -> None:
        self.place.close()


class TestFirstInFirstOut(_InADatabase, unittest.TestCase):
    pass


class TestFirstInFirstOutByTaskDone(_InADatabase, unittest.TestCase):
    by_task_done = True


class TestLastInFirstOut(_InADatabase, unittest.TestCase):
    base = FILOSQLiteQueue
    name = "LifoQueue"


class TestLastInFirstOutByTaskDone(TestLastInFirstOut):
    by_task_done = True


class TestPriorities(_InADatabase, unittest.TestCase):
    base = StoredPriorityQueue
    name = "PriorityQueue"


class TestPrioritiesByTaskDone(TestPriorities):
    by_task_done = True


class TestAckQueue(_InADatabase, unittest.TestCase):
    base = SQLiteAckQueue


class TestLastInFirstOutAckQueue(_InADatabase, unittest.TestCase):
    base = FILOSQLiteAckQueue
    name = "LifoQueue"


def _on_servers() -> None:
    """Make a class of tests for each class of queues on servers."""
    names = {
        "Queue": "Queue",
        "LIFOQueue": "LifoQueue",
        "PriorityQueue": "PriorityQueue",
        "AckQueue": "Queue",
    }
    for server, twins in TWINS.items():
        for twin in twins.values():
            for ours, theirs in names.items():
                if twin.__name__ in (f"Postgres{ours}", f"MySQL{ours}"):
                    members = {"server": server, "base": twin, "name": theirs}
                    made = type(f"Test{twin.__name__}", (_OnAServer, unittest.TestCase), members)
                    globals()[made.__name__] = pytest.mark.long(made)


_on_servers()


def test_the_mixin_was_run():
    need_the_mixin()
    names = [name for name in dir(TestPriorities) if name.startswith("test_")]
    assert len(names) >= 6, names
    assert "test_shutdown_immediate" in names or not hasattr(queue, "ShutDown")
