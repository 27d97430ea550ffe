"""The architecture page: its picture shows the arrows of the imports, and its table states the rules."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from tests.api.test_rooms import MODULES, ROOFS, RULES
from tests.api.tree import PACKAGE, PROJECT, Module

if not (PROJECT / "docs" / "pictures").is_dir():
    pytest.skip("docs/ lies in a checkout only", allow_module_level=True)

from docs.pictures import rooms

SVG = "{http://www.w3.org/2000/svg}"


def picture(found: list[Module]) -> ElementTree.Element:
    return ElementTree.fromstring(rooms.draw_found(*rooms.read(found)).svg())


def arrows(drawn: ElementTree.Element) -> set[tuple[str | None, str | None]]:
    return {(line.get("data-from"), line.get("data-to")) for line in drawn.iter(f"{SVG}polyline")}


def table() -> Iterator[tuple[set[str], set[str]]]:
    """Return the rows of the page's table: the packages in the first cell, and in the last."""
    text = (PROJECT / "docs" / "explanation" / "architecture.rst").read_text("utf-8")
    rows = re.findall(r"^ {3}\* - (``.*)\n((?: {5}.*\n)+)", text, re.MULTILINE)
    assert rows
    for first, rest in rows:
        yield set(re.findall(r"``(\w+)``", first)), set(re.findall(r"``(\w+)``", rest.split("     - ")[-1]))


def test_the_picture_has_the_arrows_of_the_imports():
    seen = set()
    for module in MODULES:
        home = module.room or "persistcoll"
        for name in module.imports():
            top, _, rest = name.partition(".")
            # A name of the package itself, such as `Queue`, is no package.
            target = rest.partition(".")[0]
            target = target if (PACKAGE / target).is_dir() or (PACKAGE / f"{target}.py").is_file() else ""
            if top == "persistcoll" and target != module.room:
                seen.add((home.replace("__main__", "cli"), target or "persistcoll"))
    assert seen - {("cli", "cli")} == arrows(picture(MODULES))


def test_the_picture_has_no_arrow_that_the_rules_forbid():
    drawn = arrows(picture(MODULES))
    assert {
        (source, target) for source, target in drawn if target not in RULES.get(source or "", {target})
    } == set()
    assert {(source, target) for source, target in drawn if target in ROOFS} <= {("cli", "testing")}


def test_an_arrow_goes_from_a_room_down_to_the_one_that_it_imports():
    sizes, found = rooms.read(MODULES)
    drawn = rooms.lay_out(sizes, found)
    width, height = rooms.BOX_WIDTH, rooms.BOX_HEIGHT
    for (source, target), line in drawn.lines.items():
        (left, top), (x, y) = drawn.boxes[source], line[0]
        assert left < x < left + width
        assert y == top + height
        assert line[-1] == (drawn.boxes[target][0] + width / 2, drawn.boxes[target][1])
        assert [below for _, below in line] == sorted(below for _, below in line)
        for (x0, y0), (x1, y1) in pairwise(line):
            assert x0 == x1 or y0 == y1
            for box_x, box_y in drawn.boxes.values():
                assert not (min(x0, x1) < box_x + width and max(x0, x1) > box_x) or not (
                    min(y0, y1) < box_y + height and max(y0, y1) > box_y
                )


def test_the_arrows_to_a_room_have_a_colour_of_its_own():
    colours: dict[str | None, set[str | None]] = {}
    for line in picture(MODULES).iter(f"{SVG}polyline"):
        colours.setdefault(line.get("data-to"), set()).add(line.get("stroke"))
    assert {len(found) for found in colours.values()} == {1}
    assert len({colour for found in colours.values() for colour in found}) == len(colours)


def test_the_picture_is_of_what_it_is_given():
    toy = [
        Module("persistcoll", "from persistcoll.queues import Queue"),
        Module("persistcoll.queues", "from persistcoll.queues.file import Queue"),
        Module("persistcoll.queues.file", "def late():\n    from persistcoll import errors"),
        Module("persistcoll.errors", "import os"),
        Module("persistcoll.__main__", "from persistcoll.cli import main"),
        Module("persistcoll.cli", "from persistcoll import Queue"),
    ]
    drawn = picture(toy)
    assert arrows(drawn) == {("persistcoll", "queues"), ("queues", "errors"), ("cli", "persistcoll")}
    assert {group.get("data-room") for group in drawn.iter(f"{SVG}g")} == {
        "cli",
        "errors",
        "persistcoll",
        "queues",
    }
    assert picture(toy[::-1]).attrib == drawn.attrib
    assert rooms.draw_found(*rooms.read(toy)).svg() == rooms.draw_found(*rooms.read(toy[::-1])).svg()


def test_a_circle_is_refused():
    toy = [Module("persistcoll.a", "import persistcoll.b"), Module("persistcoll.b", "import persistcoll.a")]
    with pytest.raises(ValueError, match="circle"):
        picture(toy)


def test_the_table_has_every_room_and_the_rules():
    sizes, _ = rooms.read(MODULES)
    named = [room for row, _ in table() for room in row]
    assert sorted(named) == sorted(sizes)
    assert {room: allowed for row, allowed in table() for room in row if room in RULES} == RULES
