"""CPython's own tests of mappings, run on ``PDict``: ``test.mapping_tests``."""

from __future__ import annotations

import collections
import contextlib
import importlib
import itertools
import shutil
import tempfile
import unittest
from typing import Any

import pytest

from persistcoll.dicts.pdict import PDict

cpython: Any = None
with contextlib.suppress(ImportError):  # a Python without its own tests, as Debian packs it
    cpython = importlib.import_module("test.mapping_tests")


def theirs(name: str) -> Any:
    """Return one of their test classes; as a name of this module pytest would collect it."""
    return getattr(cpython, name, unittest.TestCase)


class _InATemporaryDirectory:
    """The environment that the tests expect: a class that makes an empty dict when it is called."""

    auto_commit = True

    def setUp(self) -> None:
        if cpython is None:
            pytest.skip("needs CPython's own test package")
        directory = tempfile.mkdtemp()
        numbers = itertools.count()
        opened: list[PDict[Any, Any]] = []
        auto_commit = self.auto_commit

        class Dict(PDict[Any, Any]):
            def __init__(self, *arguments: Any, **items: Any) -> None:
                name = str(next(numbers))
                super().__init__(directory, name, durability="process", auto_commit=auto_commit)
                opened.append(self)
                self.update(*arguments, **items)

        self.type2test = Dict
        self.opened = opened
        self.directory = directory

    def tearDown(self) -> None:
        for each in self.opened:
            each.close()
        shutil.rmtree(self.directory)

    def _empty_mapping(self) -> Any:
        return self.type2test()


class _Differences:
    """Where a dict on disk differs from a dict in memory."""

    def test_copy(self) -> None:
        """A copy is no ``PDict``, because it would have no path."""
        d = self._empty_mapping()  # type: ignore[attr-defined]
        d.update({1: 1, 2: 2, 3: 3})
        copy = d.copy()
        assert type(copy) is dict
        assert copy == d == {1: 1, 2: 2, 3: 3}

    def test_setdefault(self) -> None:
        """The result is a copy, so changing it changes nothing."""
        cpython.BasicTestMappingProtocol.test_setdefault(self)
        d = self._empty_mapping()  # type: ignore[attr-defined]
        assert d.setdefault("key0") is None
        assert d.setdefault("key0", []) is None
        d.setdefault("key", []).append(3)
        assert d["key"] == []

    def test_fromkeys(self) -> None:
        """It goes through ``update``, not ``__setitem__``; the other steps are as theirs."""
        made = self.type2test.fromkeys("abc")  # type: ignore[attr-defined]
        assert made == {"a": None, "b": None, "c": None}
        assert made.fromkeys((4, 5), 0) == {4: 0, 5: 0}
        assert made.fromkeys([]) == {}
        assert type(made.fromkeys(iter([1]))) is self.type2test  # type: ignore[attr-defined]
        with pytest.raises(TypeError):
            made.fromkeys(3)

        class Another(self.type2test):  # type: ignore[misc, name-defined]
            def __new__(cls) -> Any:
                return collections.UserDict()

        assert isinstance(Another.fromkeys("ab"), collections.UserDict)

        class Unopenable(self.type2test):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            Unopenable.fromkeys([1])
        with pytest.raises(ZeroDivisionError):
            made.fromkeys(1 // 0 for _ in range(1))

    def test_getitem(self) -> None:
        """Keys are of few types, none of which can raise when it is hashed or compared."""
        cpython.TestMappingProtocol.test_getitem(self)

    def test_pop(self) -> None:
        cpython.TestMappingProtocol.test_pop(self)

    def test_mutatingiteration(self) -> None:
        """The iteration continues, and does not see what is added."""
        d = self._empty_mapping()  # type: ignore[attr-defined]
        d[1] = 1
        seen = []
        for key in d:
            d[key + 1] = 1
            seen.append(key)
        assert seen == [1]
        assert d == {1: 1, 2: 1}

    def test_repr(self) -> None:
        """The text shows the path, not the content."""
        d = self._empty_mapping()  # type: ignore[attr-defined]
        assert self.directory in repr(d)  # type: ignore[attr-defined]

    def test_repr_deep(self) -> None:
        """There is no deep one."""

    def test_eq(self) -> None:
        empty, full = self._empty_mapping(), self._empty_mapping()  # type: ignore[attr-defined]
        full[1] = 2
        other = self._empty_mapping()  # type: ignore[attr-defined]
        other[1] = 2
        assert empty == self._empty_mapping()  # type: ignore[attr-defined]
        assert full == other
        assert full != empty

        class Uncomparable:
            def __eq__(self, other: object) -> bool:
                raise ZeroDivisionError

            __hash__ = None  # type: ignore[assignment]

        with pytest.raises(ZeroDivisionError):
            full == {1: Uncomparable()}  # noqa: B015


class TestBasic(_InATemporaryDirectory, theirs("BasicTestMappingProtocol")):  # type: ignore[misc]
    pass


class TestWhole(_InATemporaryDirectory, _Differences, theirs("TestMappingProtocol")):  # type: ignore[misc]
    pass


class TestHash(_InATemporaryDirectory, _Differences, theirs("TestHashMappingProtocol")):  # type: ignore[misc]
    pass


class TestGathering(TestHash):
    auto_commit = False


def test_the_tests_were_run():
    if cpython is None:
        pytest.skip("needs CPython's own test package")
    names = [name for name in dir(TestHash) if name.startswith("test_")]
    assert len(names) >= 18, names
