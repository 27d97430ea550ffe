"""CPython's own tests of ``queue.Queue``, ``LifoQueue`` and ``PriorityQueue``, run on the SQLite queues."""

from __future__ import annotations

import itertools
import queue
import shutil
import tempfile
import unittest
from typing import Any

from persistcoll import FILOSQLiteAckQueue, FILOSQLiteQueue, SQLiteAckQueue, SQLiteQueue
from persistcoll import PriorityQueue as StoredPriorityQueue
from tests.queues.test_stdlib import Mixin, need_the_mixin


class _InATemporaryDirectory(Mixin):  # type: ignore[misc]
    """The environment that the mixin expects: the module's names, and a class of the right name."""

    queue = queue
    base: type[Any] = SQLiteQueue
    name = "Queue"  # the mixin derives the expected order from it
    by_task_done = False

    def setUp(self) -> None:
        if hasattr(super(), "setUp"):
            super().setUp()
        directory = tempfile.mkdtemp()
        numbers = itertools.count()
        opened: list[Any] = []
        base = self.base
        options = {"auto_commit": False} if self.by_task_done else {}

        def make(self: Any, maxsize: int = 0) -> None:
            # In one database, because they must not see each other.
            name = f"queue {next(numbers)}"
            base.__init__(self, directory, name=name, maxsize=maxsize, durability="process", **options)
            opened.append(self)

        members: dict[str, Any] = {"__init__": make}
        if base is StoredPriorityQueue:
            members["put"] = put_by_itself
            members["put_nowait"] = lambda self, item: self.put(item, False)
        self.type2test = type(self.name, (base,), members)
        self.opened = opened
        self.directory = directory

    def tearDown(self) -> None:
        for each in self.opened:
            each.close()
        shutil.rmtree(self.directory)
        if hasattr(super(), "tearDown"):
            super().tearDown()


def put_by_itself(self: Any, item: Any, block: bool = True, timeout: float | None = None) -> None:
    """Put an item that is its own priority, as in ``queue.PriorityQueue``."""
    priority = item if isinstance(item, (int, float)) else 0
    StoredPriorityQueue.put(self, item, priority, block, timeout)


class TestFirstInFirstOut(_InATemporaryDirectory, unittest.TestCase):
    pass


class TestFirstInFirstOutByTaskDone(_InATemporaryDirectory, unittest.TestCase):
    by_task_done = True


class TestLastInFirstOut(_InATemporaryDirectory, unittest.TestCase):
    base = FILOSQLiteQueue
    name = "LifoQueue"


class TestLastInFirstOutByTaskDone(TestLastInFirstOut):
    by_task_done = True


class TestPriorities(_InATemporaryDirectory, unittest.TestCase):
    base = StoredPriorityQueue
    name = "PriorityQueue"


class TestPrioritiesByTaskDone(TestPriorities):
    by_task_done = True


class TestAckQueue(_InATemporaryDirectory, unittest.TestCase):
    base = SQLiteAckQueue


class TestLastInFirstOutAckQueue(_InATemporaryDirectory, unittest.TestCase):
    base = FILOSQLiteAckQueue
    name = "LifoQueue"


def test_the_mixin_was_run():
    need_the_mixin()
    names = [name for name in dir(TestPriorities) if name.startswith("test_")]
    assert len(names) >= 6, names
    assert "test_shutdown_immediate" in names or not hasattr(queue, "ShutDown")
