"""No built page shows the reader an error of docutils, of Sphinx or of the theme.

A warning fails the build itself. There remain boxes that no builder warns of: the theme draws one over a page
that lists its own contents.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

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


@pytest.mark.skipif(not DOCS.is_dir(), reason="the pages lie in a checkout")
@pytest.mark.skipif(
    importlib.util.find_spec("sphinx") is None,
    reason="Sphinx is of the extra docs; the documentation step of .ci/run has it",
)
def test_no_page_shows_an_error(tmp_path):
    html = Path(os.environ.get("PERSISTCOLL_HTML") or tmp_path)
    if html == tmp_path:
        build = [sys.executable, "-m", "sphinx", "-q", "-W", "-n", "--keep-going", "-b", "html"]
        subprocess.run([*build, str(DOCS), str(html)], check=True)
    shown = {
        page.relative_to(html).as_posix(): found
        for page in html.rglob("*.html")
        if (found := boxes(page.read_text("utf-8")))
    }
    assert shown == {}
    assert (html / "index.html").is_file()
