"""Public names: complete, sorted, documented; the examples in docstrings run."""

from __future__ import annotations

import doctest
import importlib
import inspect
import types

import pytest

import persistcoll
from persistcoll.servers.address import MYSQL, POSTGRESQL
from tests.api.tree import modules
from tests.servers.places import Place

# Importing __main__ would run the command.
NAMES = [module.name for module in modules() if not module.name.endswith("__main__")]
PUBLIC = [name for name in NAMES if not any(part.startswith("_") for part in name.split("."))]
# Users import from these; any other module without __all__ is internal.
ENTRANCES = {"persistcoll", "persistcoll.errors", "persistcoll.serializers", "persistcoll.testing"}


def _constants_classes_functions(name: str) -> tuple[bool, bool, str]:
    """Sort names in the order of the linter (RUF022): constants, classes, functions."""
    return (not name.isupper(), not name[:1].isupper(), name)


@pytest.mark.parametrize("name", PUBLIC)
def test_all_is_sorted_and_complete(name):
    module = importlib.import_module(name)
    exported = getattr(module, "__all__", None)
    if exported is None:
        assert name not in ENTRANCES, "a user imports from here: it needs __all__"
        return
    assert list(exported) == sorted(set(exported), key=_constants_classes_functions)
    assert [wanted for wanted in exported if not hasattr(module, wanted)] == []
    made_here = {
        key
        for key, value in vars(module).items()
        if not key.startswith("_")
        and isinstance(value, (type, types.FunctionType))
        and value.__module__ == module.__name__
    }
    assert made_here <= set(exported), "public by its name, not by __all__"


@pytest.mark.parametrize("name", NAMES)
def test_every_module_says_what_it_is_for(name):
    assert inspect.getdoc(importlib.import_module(name))


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_object_has_a_docstring(name):
    module = importlib.import_module(name)
    bare = []
    reached = {id(getattr(importlib.import_module(door), key)) for door in ENTRANCES for key in _all_of(door)}
    for exported in getattr(module, "__all__", ()):
        thing = getattr(module, exported)
        # isinstance() takes Callable[[bytes], int] for a class in Python 3.10.
        if not issubclass(type(thing), (type, types.FunctionType)):
            continue
        if not thing.__doc__:
            bare.append(exported)
        # Only methods that a user meets; an internal class may have a close() without a docstring.
        if isinstance(thing, type) and id(thing) in reached and thing.__module__.startswith("persistcoll"):
            bare += [f"{exported}.{method}" for method in _bare_methods(thing)]
    assert bare == []


def _all_of(name: str) -> list[str]:
    return list(getattr(importlib.import_module(name), "__all__", ()))


def _bare_methods(kind: type) -> list[str]:
    """Give its public methods and properties that have no docstring, not even an inherited one."""
    return [
        name
        for name, value in vars(kind).items()
        if not name.startswith("_")
        and isinstance(value, (types.FunctionType, property, classmethod, staticmethod))
        and not inspect.getdoc(getattr(kind, name))
    ]


def test_the_version_is_a_plain_string():
    assert isinstance(persistcoll.__version__, str)


# The examples of these modules need a server.
SERVERS = {
    "persistcoll.queues.mysql": MYSQL,
    "persistcoll.queues.postgres": POSTGRESQL,
    "persistcoll.queues.server": POSTGRESQL,
    "persistcoll.queues.shortcuts": POSTGRESQL,
}


@pytest.mark.parametrize("name", [name for name in NAMES if name not in SERVERS])
def test_examples_in_docstrings_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_examples(name)


@pytest.mark.parametrize("name", SERVERS)
def test_examples_that_need_a_server_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = Place(SERVERS[name])
    try:
        for variable, value in place.environment.items():
            monkeypatch.setenv(variable, value)
        run_examples(name)
    finally:
        place.close()


def run_examples(name: str) -> None:
    module = importlib.import_module(name)
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for test in doctest.DocTestFinder(exclude_empty=True).find(module):
        runner.run(test, out=report.append)
    assert runner.failures == 0, "".join(report)
