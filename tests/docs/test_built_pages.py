"""No built page shows an error of docutils, of Sphinx or of the theme, or a name that no program uses.

A warning fails the build itself. There remain boxes that no builder warns of: the theme draws one over a page
that lists its own contents.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

DOCS = Path(__file__).parents[2] / "docs"

# The theme asks for this mark where a list of contents is wanted beside its own.
_WANTED_CONTENTS = "this-will-duplicate-information-and-it-is-still-useful-here"


class _Boxes(HTMLParser):
    """Collects the elements that are shown as errors."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        # The theme's search page has an error for browsers without scripts, which other browsers do not show.
        self._without_scripts = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._without_scripts += tag == "noscript"
        classes = set((dict(attrs).get("class") or "").split())
        if not self._without_scripts and (
            classes & {"system-message", "problematic"}
            or {"admonition", "error"} <= classes
            or ("contents" in classes and _WANTED_CONTENTS not in classes)
        ):
            self.found.append(self.get_starttag_text() or tag)

    def handle_endtag(self, tag: str) -> None:
        self._without_scripts -= tag == "noscript"


def boxes(text: str) -> list[str]:
    """Return the start tags of a page's errors."""
    parser = _Boxes()
    parser.feed(text)
    return parser.found


@pytest.mark.parametrize(
    "shown",
    [
        '<aside class="system-message">',
        '<span class="problematic" id="id1">',
        '<div class="admonition error">',
        '<nav class="contents local" id="contents">',
    ],
)
def test_an_error_is_found(shown):
    assert boxes(f"<main><p>Text.</p>{shown}</main>") == [shown]


@pytest.mark.parametrize(
    "shown",
    [
        '<div class="admonition note">',
        f'<nav class="contents {_WANTED_CONTENTS}">',
        '<noscript><div class="admonition error"></div></noscript><p class="contents-of-a-file">',
    ],
)
def test_what_is_none_passes(shown):
    assert boxes(f"<main><p>Text.</p>{shown}</main>") == []


class _Signatures(HTMLParser):
    """Collects the texts of the signatures of a page, and the names in its lists of parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._inside = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("dt", "strong"):
            self._inside += 1
            self.found.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside -= tag in ("dt", "strong")

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.found[-1] += data


def private(text: str) -> list[str]:
    """Return the private names in the signatures of a page."""
    parser = _Signatures()
    parser.feed(text)
    return [name for each in parser.found for name in re.findall(r"(?<![A-Za-z0-9_])_[A-Za-z]\w*", each)]


def test_a_private_name_is_found():
    signature = '<dt class="sig">Queue(<em><span>path</span></em>, <em>_disk=None</em>, x=_UNSET, a_b)</dt>'
    listed = "<dd>of _this not, and __init__ <strong>_private</strong> (<em>int</em>)</dd>"
    assert private(f"<dl>{signature}{listed}</dl>") == ["_disk", "_UNSET", "_private"]


class _Links(HTMLParser):
    """Collects where a page leads to, and the places in it that others may lead to."""

    def __init__(self) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.places: set[str] = {"", "top"}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.places |= {name for key in ("id", "name") if (name := given.get(key))}
        if link := given.get("href" if tag in ("a", "link") else "src"):
            self.links.add(link)


def dead_links(html: Path) -> list[tuple[str, str]]:
    """Return each page with a link to a file or a place in one that is not there."""
    pages = {}
    for path in html.rglob("*.html"):
        pages[path.resolve()] = parser = _Links()
        parser.feed(path.read_text("utf-8"))
    found = []
    for path, parser in pages.items():
        for link in parser.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            place = unquote(parts.fragment)
            if not target.exists() or (target in pages and place not in pages[target].places):
                found.append((path.name, link))
    return sorted(found)


def test_a_dead_link_is_found(tmp_path):
    (tmp_path / "a.html").write_text(
        '<a href="b.html#here">b</a><a href="b.html#there">b</a><a href="#x">x</a>'
    )
    (tmp_path / "b.html").write_text(
        '<p id="here"><a href="a.html">a</a><img src="c.png"><a href="https://d">d</a>'
    )
    assert dead_links(tmp_path) == [("a.html", "#x"), ("a.html", "b.html#there"), ("b.html", "c.png")]


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    """Return the directory of the built pages."""
    if not DOCS.is_dir():
        pytest.skip("the pages lie in a checkout")
    if importlib.util.find_spec("sphinx") is None:
        pytest.skip("Sphinx is of the extra docs; the documentation step of .ci/run has it")
    if built := os.environ.get("PERSISTCOLL_HTML"):
        return Path(built)
    made = tmp_path_factory.mktemp("html")
    build = [sys.executable, "-m", "sphinx", "-q", "-W", "-n", "--keep-going", "-b", "html"]
    subprocess.run([*build, str(DOCS), str(made)], check=True)
    return made


def test_no_signature_shows_a_private_name(html):
    pages = sorted((html / "reference" / "api").glob("*.html"))
    assert {page.name: private(page.read_text("utf-8")) for page in pages} == {
        page.name: [] for page in pages
    }
    assert pages


def test_every_link_leads_somewhere(html):
    assert dead_links(html) == []


def test_no_page_shows_an_error(html):
    shown = {
        page.relative_to(html).as_posix(): found
        for page in html.rglob("*.html")
        if (found := boxes(page.read_text("utf-8")))
    }
    assert shown == {}
    assert (html / "index.html").is_file()
