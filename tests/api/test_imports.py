"""The modules that an import loads. They are counted, because the time differs on every run."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import persistcoll

# Each of these takes milliseconds, or imports dozens of others.
HEAVY = {
    "asyncio",
    "email",
    "http",
    "importlib.metadata",
    "multiprocessing",
    "pathlib",
    "shutil",
    "sqlite3",
    "tempfile",
    "unittest",
    "urllib",
    "zipfile",
}
LIBRARIES = {"cbor2", "cryptography", "msgpack", "hypothesis"}
HERE = str(Path(persistcoll.__file__).parents[1])


def imported_by(program: str) -> set[str]:
    """Return the modules that a new Python has after the program and did not have before."""
    text = f"""
        import sys
        sys.path.insert(0, {HERE!r})
        before = set(sys.modules)
        {program}
        import json
        print(json.dumps(sorted(set(sys.modules) - before - {{"json"}})))
        """
    # Without site, because installed packages may import anything at the start.
    done = subprocess.run(
        [sys.executable, "-S", "-c", textwrap.dedent(text)], capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout))


def test_the_package_alone_imports_nothing_of_itself():
    modules = imported_by("import persistcoll; persistcoll.__version__; dir(persistcoll)")
    assert {name for name in modules if name.startswith("persistcoll")} == {"persistcoll"}
    # inspect, which dataclasses imports, is 5 of the 10 ms of engine.records.
    assert modules & (HEAVY | LIBRARIES | {"dataclasses", "inspect", "logging", "pickle"}) == set()


@pytest.mark.parametrize("name", ["Queue", "Empty", "DecodeError", "Stats"])
def test_what_needs_no_database_imports_none(name):
    modules = imported_by(f"from persistcoll import {name}")
    assert modules & (HEAVY | LIBRARIES) == set()
    assert not {module for module in modules if module.startswith("persistcoll.sqlite")}


@pytest.mark.parametrize("name", ["SQLiteQueue", "SQLiteAckQueue", "PDict"])
def test_what_is_in_a_database_imports_no_file_queue(name):
    modules = imported_by(f"from persistcoll import {name}")
    assert modules & (HEAVY - {"sqlite3"} | LIBRARIES) == set()
    assert not {module for module in modules if module.startswith("persistcoll.journal")}


def test_opening_a_queue_imports_no_more_of_them(tmp_path):
    modules = imported_by(f"import persistcoll; persistcoll.Queue({str(tmp_path / 'q')!r}).close()")
    assert modules & (HEAVY | LIBRARIES) == set()


@pytest.mark.sampled(5)
@pytest.mark.parametrize(
    "name", [*persistcoll.__all__, "collections", "errors", "get", "put", "serializers", "__version__"]
)
def test_every_name_is_found_by_itself(name):
    """Each name is imported in a Python that has imported nothing else of the package."""
    imported_by(f"import persistcoll; persistcoll.{name}; assert {name!r} in dir(persistcoll)")


def test_a_name_is_the_same_object_each_time_and_is_found_without_a_search():
    for name in (*persistcoll.__all__, "collections", "get", "put"):
        first = getattr(persistcoll, name)
        assert vars(persistcoll)[name] is first


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"^module 'persistcoll' has no attribute 'Quue'$"):
        persistcoll.Quue  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(ImportError, match="Quue"):
        exec("from persistcoll import Quue")
    # Standard modules that the package imports for itself are not public names.
    assert not hasattr(persistcoll, "pickle")


def test_a_star_gives_all_of_them():
    space: dict[str, object] = {}
    exec("from persistcoll import *", space)
    assert set(persistcoll.__all__) <= set(space)
