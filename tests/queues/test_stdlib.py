"""CPython's own tests of ``queue.Queue``, run on ``Queue``: ``test.test_queue.BaseQueueTestMixin``."""

from __future__ import annotations

import contextlib
import itertools
import queue
import shutil
import tempfile
import unittest
from typing import Any

import pytest

from persistcoll import Empty, Full
from persistcoll import Queue as PersistentQueue

Mixin: Any = object
with contextlib.suppress(ImportError):  # a Python without its own tests, as Debian packs it
    from test import test_queue as cpython  # type: ignore[import-not-found]

    Mixin = cpython.BaseQueueTestMixin


def need_the_mixin() -> None:
    if Mixin is object:
        pytest.skip("needs CPython's own test package")


class _InATemporaryDirectory(Mixin):  # type: ignore[misc]
    """The environment that the mixin expects: the module's names, and a class called Queue."""

    queue = queue
    autosave = False

    def setUp(self) -> None:
        if hasattr(super(), "setUp"):
            super().setUp()
        directory = tempfile.mkdtemp()
        numbers = itertools.count()
        opened: list[PersistentQueue] = []
        autosave = self.autosave

        # The mixin derives the expected order from the class's name.
        class Queue(PersistentQueue):
            def __init__(self, maxsize: int = 0) -> None:
                path = f"{directory}/{next(numbers)}"
                super().__init__(path, maxsize, autosave=autosave, durability="process")
                opened.append(self)

        self.type2test = Queue
        self.opened = opened
        self.directory = directory

    def tearDown(self) -> None:
        for each in self.opened:
            each.close()
        shutil.rmtree(self.directory)
        if hasattr(super(), "tearDown"):
            super().tearDown()


class TestAcknowledgedByTaskDone(_InATemporaryDirectory, unittest.TestCase):
    autosave = False


class TestAcknowledgedAtOnce(_InATemporaryDirectory, unittest.TestCase):
    autosave = True


def test_the_exceptions_are_the_standard_librarys():
    assert Empty is queue.Empty
    assert Full is queue.Full


def test_the_mixin_was_run():
    need_the_mixin()
    names = [name for name in dir(TestAcknowledgedAtOnce) if name.startswith("test_")]
    assert len(names) >= 6, names
    assert "test_shutdown_immediate" in names or not hasattr(queue, "ShutDown")


@pytest.mark.parametrize("autosave", [False, True])
def test_the_standard_librarys_shutdown_on_every_python(autosave, tmp_path):
    """The mixin has these cases only from 3.13 on."""
    from persistcoll import ShutDown

    with PersistentQueue(tmp_path / "q", autosave=autosave, durability="process") as ours:
        ours.put("L")
        ours.put("O")
        ours.shutdown()
        for put in (lambda: ours.put("E"), lambda: ours.put_nowait("W"), lambda: ours.put_many(["D"])):
            with pytest.raises(ShutDown):
                put()
        assert [ours.get(), ours.get()] == ["L", "O"]
        ours.task_done()
        ours.task_done()
        ours.join()
        for get in (ours.get, ours.get_nowait, lambda: ours.get(True, 1.0), lambda: ours.get_many(2)):
            with pytest.raises(ShutDown):
                get()
        with pytest.raises(ShutDown), ours.receive():
            pass
