"""The files and tests that pages name exist, so that no page names a module that was removed."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from tests.api.tree import PACKAGE, PROJECT

PAGES = [
    page
    for page in [
        PROJECT / "README.md",
        PROJECT / "CONTRIBUTING.md",
        *sorted((PROJECT / "docs").rglob("*.rst")),
    ]
    if page.is_file()
]
TESTS = PROJECT / "tests"
# A path like `engine/blocking`, `persistcoll/engine/blocking.py`, `crash/test_kill.py` or `test_kill.py`.
_PATH = re.compile(r"`((?:[\w.-]+/)+[\w-]*(?:\.py|\.rst|\.md)?|test_\w+\.py)`")
_TEST = re.compile(r"`(test_\w+)`")


@cache
def defined_tests() -> set[str]:
    """Return the names of all test functions."""
    texts = (path.read_text("utf-8") for path in TESTS.rglob("test_*.py"))
    return {name for text in texts for name in re.findall(r"^ *def (test_\w+)", text, re.MULTILINE)}


def missing(text: str) -> list[str]:
    """Give the names on a page that are neither a file of the project nor defined in one."""
    bases = (PROJECT, PACKAGE.parent, PACKAGE, TESTS)
    found = []
    for name in _PATH.findall(text):
        first = name.partition("/")[0]
        if "/" not in name:
            there = any(TESTS.rglob(name))
        elif name.endswith(".py") or any((base / first).is_dir() for base in bases):
            there = any((base / name).exists() or (base / f"{name}.py").is_file() for base in bases)
        else:  # a path on the reader's machine
            there = True
        found += [] if there else [name]
    return found + [name for name in _TEST.findall(text) if name not in defined_tests()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(PROJECT).as_posix())
def test_what_a_page_names_exists(page: Path) -> None:
    assert missing(page.read_text("utf-8")) == []


@pytest.mark.parametrize(
    "name",
    [
        "engine/nothing",
        "persistcoll/engine/nothing.py",
        "crash/test_nothing.py",
        "test_nothing.py",
        "test_nothing",
    ],
)
def test_what_does_not_exist_is_found(name):
    assert missing(f"See ``{name}``, or `{name}`.") == [name, name]


@pytest.mark.parametrize(
    "name",
    [
        "engine/blocking",
        "persistcoll/engine/blocking.py",
        "tests/docs",
        "docs/test_named_files.py",
        "/var/tmp",
    ],
)
def test_what_exists_passes(name):
    assert missing(f"See ``{name}``.") == []
