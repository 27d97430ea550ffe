"""The reference has every public name, and no page describes a name that does not exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import persistcoll

REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "api.rst"
pytestmark = pytest.mark.skipif(not REFERENCE.is_file(), reason="the pages lie in a checkout")

_DIRECTIVE = re.compile(
    r"^\.\. auto(?P<kind>\w+):: (?P<name>[\w.]+)\n(?P<options>(?: {3}:.*\n)*)", re.MULTILINE
)


def test_every_public_name_is_described():
    text = REFERENCE.read_text("utf-8") + "\n"
    found = list(_DIRECTIVE.finditer(text))
    single = {match["name"] for match in found if match["kind"] != "module"}
    whole = {
        match["name"] for match in found if match["kind"] == "module" and ":members:" in match["options"]
    }
    missing = []
    for name in persistcoll.__all__:
        thing = getattr(persistcoll, name)
        home = getattr(thing, "__module__", None)
        standard = home is not None and not home.startswith("persistcoll")
        if not name.startswith("__") and not standard and f"persistcoll.{name}" not in single | whole:
            missing += [] if home in whole else [name]
    assert missing == []
