"""The links of the pages at the root lead to files that exist, and to headings in them.

The links between the pages of docs/ are those of the built pages: ``test_built_pages.py``.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.api.tree import PROJECT

PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
needs_pages = pytest.mark.skipif(not (PROJECT / "README.md").is_file(), reason="the pages lie in a checkout")

_LINK = re.compile(r"\]\(<?([^)\s>]+)|^\[[^\]]+\]: <?(\S+?)>?$|(?:href|src)=\"([^\"]+)", re.MULTILINE)
_CODE = re.compile(r"^```.*?^```|`[^`\n]+`", re.MULTILINE | re.DOTALL)


def without_code(text: str) -> str:
    return _CODE.sub("", text)


def anchors(page: Path) -> set[str]:
    """Return the anchors that a site makes of a page's headings."""
    text = page.read_text("utf-8")
    if page.suffix == ".md":
        headings = re.findall(r"^#+ (.+?) *#*$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    else:
        headings = re.findall(r"^(\S.*)\n[=~^*-]{3,}$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def dead_links(page: Path) -> list[str]:
    """Return the links of a page of Markdown that lead to no file, or to no heading of it."""
    found = []
    for groups in _LINK.findall(without_code(page.read_text("utf-8"))):
        link = "".join(groups)
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            found.append(link)
    return found


@needs_pages
@pytest.mark.parametrize("name", PAGES)
def test_the_links_of_a_page_at_the_root_lead_somewhere(name):
    assert dead_links(PROJECT / name) == []


def test_a_dead_link_is_found(tmp_path):
    (tmp_path / "other.rst").write_text("A heading\n=========\n\nText\n")
    page = tmp_path / "page.md"
    page.write_text(
        "# The `first` one, here\n\n[a](other.rst) [b](other.rst#a-heading) [c](#the-first-one-here)"
        " [d](https://example.org/none) `[e](none.md)`\n\n```text\n# no heading\n[f](none.md)\n```\n"
        '[g](none.md) [h](other.rst#text) [i](#no-heading)\n\n[j]: none.rst\n<img src="none.png">\n'
    )
    assert dead_links(page) == ["none.md", "other.rst#text", "#no-heading", "none.rst", "none.png"]
