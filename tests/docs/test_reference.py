"""The reference has every public name, says what each method costs, and describes nothing private."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from types import FunctionType

import pytest

import persistcoll
from persistcoll import metrics
from tests.docs.snippets import blocks

REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "api"
needs_pages = pytest.mark.skipif(not REFERENCE.is_dir(), reason="the pages lie in a checkout")

_DIRECTIVE = re.compile(
    r"^\.\. auto(?P<kind>\w+):: (?P<name>[\w.]+)\n(?P<options>(?: {3}:.*\n)*)", re.MULTILINE
)
# `from persistcoll import *` gives these not, but a program uses them.
NAMES = [*persistcoll.__all__, "collections", "get", "put"]


@needs_pages
def test_every_public_name_is_described():
    pages = [page.read_text("utf-8") + "\n" for page in sorted(REFERENCE.glob("*.rst"))]
    found = [match for text in pages for match in _DIRECTIVE.finditer(text)]
    single = {match["name"] for match in found if match["kind"] != "module"}
    whole = {
        match["name"] for match in found if match["kind"] == "module" and ":members:" in match["options"]
    }
    missing = []
    for name in NAMES:
        thing = getattr(persistcoll, name)
        home = getattr(thing, "__module__", None)
        standard = home is not None and not home.startswith("persistcoll")
        if not name.startswith("__") and not standard and f"persistcoll.{name}" not in single | whole:
            missing += [] if home in whole else [name]
    assert missing == []


@needs_pages
def test_the_index_names_every_page():
    index = (REFERENCE / "index.rst").read_text("utf-8")
    table, _, contents = index.partition(".. toctree::")
    pages = sorted(page.stem for page in REFERENCE.glob("*.rst") if page.stem != "index")
    assert sorted(set(re.findall(r":doc:`([\w-]+)`", table))) == pages
    assert sorted(re.findall(r"^   ([\w-]+)$", contents, re.MULTILINE)) == pages


def methods(kind: type) -> dict[str, str]:
    """Return the public methods that the library gives a class, and their docstrings."""
    found = {}
    for base in reversed(kind.__mro__):
        for name, value in vars(base).items():
            function = getattr(value, "__func__", value)
            if base.__module__.startswith("persistcoll") and isinstance(function, FunctionType):
                found[name] = inspect.getdoc(getattr(kind, name)) or ""
    return {name: text for name, text in found.items() if not name.startswith("_")}


def without_cost(things: dict[str, object]) -> list[str]:
    """Give the names of the functions and methods among ``things`` whose docstring has no cost."""
    texts = {}
    for name, thing in things.items():
        if isinstance(thing, FunctionType):
            texts[name] = inspect.getdoc(thing) or ""
        elif isinstance(thing, type) and not issubclass(thing, BaseException):
            texts.update({f"{name}.{method}": text for method, text in methods(thing).items()})
    return [name for name, text in texts.items() if not re.search(r"(^|\. )Cost: ", text, re.MULTILINE)]


def test_every_public_method_says_what_it_costs():
    found = {name: getattr(persistcoll, name) for name in NAMES}
    assert without_cost(found | {name: getattr(metrics, name) for name in metrics.__all__}) == []


# Of the other pages each function has an example of its own, and the classes on servers are those of SQLite.
GLANCES = ["file-queue", "sqlite-queues", "ack-queues", "messages", "dict", "log"]


def without_example(page: Path) -> list[str]:
    """Give the methods of the classes on a page that neither its code nor their docstrings show."""
    code = "".join(block.text for block in blocks(page) if block.language == "python")
    found = []
    for match in _DIRECTIVE.finditer(page.read_text("utf-8") + "\n"):
        kind = getattr(persistcoll, match["name"].removeprefix("persistcoll."))
        found += [
            f"{kind.__name__}.{name}"
            for name, text in methods(kind).items()
            if f".{name}(" not in code and ">>> " not in text
        ]
    return found


@needs_pages
@pytest.mark.parametrize("name", GLANCES)
def test_every_method_has_an_example(name):
    assert without_example(REFERENCE / f"{name}.rst") == []


def test_a_method_without_an_example_is_found(tmp_path):
    page = tmp_path / "page.rst"
    page.write_text(".. code-block:: python\n\n   lock.extend(3)\n\n.. autoclass:: persistcoll.TopicLock\n")
    assert without_example(page) == ["TopicLock.release"]


def test_a_method_without_its_cost_is_found():
    class Thing:
        __module__ = "persistcoll.thing"

        def dear(self):
            """Do it, whatever the Cost: this begins no sentence."""

        @classmethod
        def cheap(cls):
            """Do it. Cost: nothing."""

        def _private(self):
            pass

    assert without_cost({"Thing": Thing, "name": "value"}) == ["Thing.dear"]
