"""The pictures are well-formed, and readable on each page; the files are what their functions draw."""

from __future__ import annotations

import re
from functools import cache
from itertools import combinations, pairwise
from xml.etree import ElementTree

import pytest

from tests.api.tree import PROJECT

if not (PROJECT / "docs" / "pictures").is_dir():
    pytest.skip("docs/ lies in a checkout only", allow_module_level=True)

from docs.pictures import PICTURES, STORED, drawing, rooms
from docs.pictures.__main__ import main
from docs.pictures.drawing import Drawing, measure

SVG = "{http://www.w3.org/2000/svg}"
FILES = PROJECT / "docs" / "pictures" / "svg"
# Of the theme: its page, light and dark.
PAPERS = ("#ffffff", "#131416", *(scheme["paper"] for scheme in drawing.SCHEMES.values()))

Area = tuple[float, float, float, float]


@cache
def drawn(name: str) -> Drawing:
    return PICTURES[name]()


def tree(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(text)


def number(element: ElementTree.Element, name: str) -> float:
    return float(element.get(name) or 0)


def text_area(text: ElementTree.Element) -> Area:
    """Return left, top, right and bottom of a line."""
    size = number(text, "font-size")
    bold = text.get("font-weight") == "bold"
    width = measure(text.text or "", size, bold, "monospace" in (text.get("font-family") or ""))
    left = (
        number(text, "x") - width * {"start": 0.0, "middle": 0.5, "end": 1.0}[text.get("text-anchor") or ""]
    )
    return left, number(text, "y") - 0.75 * size, left + width, number(text, "y") + 0.2 * size


def rectangle_area(rectangle: ElementTree.Element) -> Area:
    x, y = number(rectangle, "x"), number(rectangle, "y")
    return x, y, x + number(rectangle, "width"), y + number(rectangle, "height")


def overlap(one: Area, other: Area) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def within(inner: Area, outer: Area) -> bool:
    return outer[0] <= inner[0] and outer[1] <= inner[1] and inner[2] <= outer[2] and inner[3] <= outer[3]


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("in_page", [False, True])
def test_a_picture_says_what_it_is(name, in_page):
    picture = tree(drawn(name).svg(in_page))
    assert picture.tag == f"{SVG}svg"
    assert picture.get("role") == "img"
    assert re.fullmatch(r"0 0 \d+ \d+", picture.get("viewBox") or "")
    for kind, attribute in ("title", "aria-labelledby"), ("desc", "aria-describedby"):
        [told] = picture.iter(f"{SVG}{kind}")
        assert told.get("id") == picture.get(attribute)
        assert len(told.text or "") > 10


def test_ids_are_unique_in_a_page_with_all_pictures():
    ids = [
        each.get("id") for name in PICTURES for each in tree(drawn(name).svg(True)).iter() if each.get("id")
    ]
    assert len(ids) == len(set(ids)) == 2 * len(PICTURES)


@pytest.mark.parametrize("name", PICTURES)
def test_a_text_has_room(name):
    picture = tree(drawn(name).svg())
    _, _, width, height = map(float, (picture.get("viewBox") or "").split())
    for text in picture.iter(f"{SVG}text"):
        assert within(text_area(text), (0, 0, width, height)), text.text
    for group in picture.iter(f"{SVG}g"):
        [box] = group.iter(f"{SVG}rect")
        for text in group.iter(f"{SVG}text"):
            assert within(text_area(text), rectangle_area(box)), text.text


@pytest.mark.parametrize("name", PICTURES)
def test_a_text_is_not_written_over_another_one_or_over_a_box(name):
    picture = tree(drawn(name).svg())
    texts = list(picture.iter(f"{SVG}text"))
    for one, other in combinations(texts, 2):
        assert not overlap(text_area(one), text_area(other)), (one.text, other.text)
    boxed = {text for group in picture.iter(f"{SVG}g") for text in group.iter(f"{SVG}text")}
    boxes = list(picture.iter(f"{SVG}rect"))[1:]  # the first one is the paper
    for text in texts:
        if text not in boxed:
            for box in boxes:
                assert not overlap(text_area(text), rectangle_area(box)), text.text


@pytest.mark.parametrize("name", PICTURES)
def test_no_line_crosses_a_text(name):
    picture = tree(drawn(name).svg())
    areas = {text.text: text_area(text) for text in picture.iter(f"{SVG}text")}
    for line in picture.iter(f"{SVG}polyline"):
        points = [tuple(map(float, point.split(","))) for point in (line.get("points") or "").split()]
        for (x0, y0), (x1, y1) in pairwise(points):
            drawn_line = min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)
            crossed = [text for text, area in areas.items() if overlap(area, drawn_line)]
            assert crossed == []


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_fits_a_page_and_its_letters_can_be_read_on_a_narrow_screen(name):
    picture = drawn(name)
    smallest = min(number(text, "font-size") for text in tree(picture.svg()).iter(f"{SVG}text"))
    pixels = smallest * picture.least_width / picture.width
    # The picture of the rooms is as wide as a page's column already.
    assert pixels >= (8 if name == "rooms" else 10.9)
    assert picture.least_width <= 736


def test_a_file_follows_the_scheme_of_the_system_and_a_page_its_theme():
    text = drawn("durability").svg()
    light, dark = re.findall(r"\.pc\{(.*?)\}", text)
    assert "prefers-color-scheme:dark" in text
    for rules, scheme in (light, "light"), (dark, "dark"):
        colours = drawing.SCHEMES[scheme]
        assert f"--pc-ink:var(--color-foreground-primary,{colours['ink']})" in rules
        assert f"--pc-paper:var(--color-background-primary,{colours['paper']})" in rules


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    """Return it as the Web Content Accessibility Guidelines compute it."""
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("paper", PAPERS)
def test_lines_stand_out_against_light_and_dark(paper):
    text = "".join(drawn(name).svg() for name in PICTURES)
    colours = set(re.findall(r'(?:stroke|fill)="(#\w{6})"', text)) | set(rooms.COLOURS)
    assert {drawing.BLUE, drawing.RED} < colours
    assert [colour for colour in colours if contrast(colour, paper) < 3] == []


@pytest.mark.parametrize("scheme", drawing.SCHEMES)
def test_letters_stand_out_against_the_paper(scheme):
    assert contrast(drawing.SCHEMES[scheme]["ink"], drawing.SCHEMES[scheme]["paper"]) > 7


@pytest.mark.parametrize(
    "draw",
    [
        lambda picture: picture.text(80, 20, "too long for the rest"),
        lambda picture: picture.text(5, 20, "too long", anchor="middle"),
        lambda picture: picture.text(5, 5, "above"),
        lambda picture: picture.box(0, 0, 60, 40, "too long for it"),
        lambda picture: picture.box(0, 0, 90, 40, ["one", "two", "three"]),
        lambda picture: picture.paragraph(0, 20, 40, "incomprehensible"),
        lambda picture: picture.line([(0, 0), (101, 0)]),
    ],
)
def test_what_has_no_room_is_refused(draw):
    with pytest.raises(ValueError, match=r"no room|outside"):
        draw(Drawing("toy", "a toy", "a toy", 100))


def test_a_text_becomes_lines():
    assert drawing.wrap("one two three", measure("one two")) == ["one two", "three"]


def test_a_character_of_unknown_width_is_refused():
    with pytest.raises(KeyError):
        measure("漢")


# The files.


@pytest.mark.parametrize("name", STORED)
def test_a_stored_picture_is_what_its_function_draws(name):
    assert (FILES / f"{name}.svg").read_text("utf-8") == drawn(name).svg() + "\n", "python -m docs.pictures"


def test_the_readme_shows_stored_pictures_only():
    shown = re.findall(r"docs/pictures/svg/(\w+)\.svg", (PROJECT / "README.md").read_text("utf-8"))
    assert set(shown) <= set(STORED)
    assert {path.stem for path in FILES.iterdir()} == set(STORED)


def test_the_command_writes_all_pictures_into_a_directory(tmp_path):
    main([str(tmp_path / "new")])
    assert {path.name for path in (tmp_path / "new").iterdir()} == {f"{name}.svg" for name in PICTURES}


def test_each_picture_is_in_a_page():
    text = "".join(page.read_text("utf-8") for page in (PROJECT / "docs").rglob("*.rst"))
    assert set(re.findall(r"^\.\. picture:: (\w+)$", text, re.MULTILINE)) == set(PICTURES)
