"""The index of each folder of pages lists every page once, under a question, in an entry of one line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
FOLDERS = ["tutorial", "how-to", "explanation", "reference"]
pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="the pages lie in a checkout")


def listed(text: str) -> list[str]:
    """Return the pages of the entries: of those that are one line, and stand below a heading."""
    _, _, groups = text.partition("\n---")
    return re.findall(r"^- :doc:`([\w/-]+)`: [^\n]{1,110}\.$(?!\n +)", groups, re.MULTILINE)


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_page_is_listed(folder):
    text = (DOCS / folder / "index.rst").read_text("utf-8")
    _, _, contents = text.partition(".. toctree::\n   :hidden:\n\n")
    pages = [page.stem for page in (DOCS / folder).glob("*.rst") if page.stem != "index"]
    pages += [
        f"{page.parent.name}/index"
        for page in (DOCS / folder).glob("*/index.rst")  # a folder in the folder
    ]
    entries = [name.removeprefix(f"/{folder}/") for name in listed(text)]
    assert sorted(name for name in entries if not name.startswith("/")) == sorted(pages)
    assert sorted(contents.split()) == sorted(pages)


def test_what_is_no_entry_is_not_listed():
    text = "Title\n=====\n\n- :doc:`above`: no heading.\n\nBegin\n-----\n\n- :doc:`good`: one line.\n"
    assert listed(text + "- :doc:`long`: two\n  lines.\n- :doc:`longer`: it ends here.\n  Or not.\n") == [
        "good"
    ]
