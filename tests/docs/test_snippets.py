"""Every code block of README.md and docs/ runs, and the runner notices when one does not."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from persistcoll.servers.address import MYSQL, POSTGRESQL
from tests.docs.snippets import SnippetError, blocks, run_page
from tests.needs import need
from tests.servers.places import Place

PROJECT = Path(__file__).parents[2]
PAGES = sorted(
    page
    for pattern in ("README.md", "docs/**/*.md", "docs/**/*.rst")
    for page in PROJECT.glob(pattern)
    if "_build" not in page.parts
)


# A page says so which servers and packages its blocks need; the addresses are in variables.
NEEDS = re.compile(r"^\.\. needs: (.*)$", re.MULTILINE)
VARIABLES = {POSTGRESQL: "POSTGRES_URL", MYSQL: "MYSQL_URL"}


@pytest.fixture
def servers() -> Iterator[Callable[[str], Place]]:
    """Make places on servers, and remove them at the end."""
    places: list[Place] = []

    def make(kind: str) -> Place:
        places.append(Place(kind))
        return places[-1]

    yield make
    for place in places:
        place.close()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(PROJECT).as_posix())
def test_the_snippets_of_a_page_run(page, tmp_path, monkeypatch, servers):
    monkeypatch.chdir(tmp_path)
    for needs in NEEDS.findall(page.read_text("utf-8")):
        for kind in needs.split():
            if kind.startswith("import:"):
                need(kind)
                continue
            environment = servers(kind).environment
            monkeypatch.setenv(VARIABLES[kind], environment.pop("PERSISTCOLL_URL"))
            for variable, value in environment.items():
                monkeypatch.setenv(variable, value)
    run_page(page, tmp_path)


def page(tmp_path: Path, name: str, text: str) -> Path:
    path = tmp_path / name
    path.write_text(text, "utf-8")
    return path


MARKDOWN = """\
# Title

```python
total = 1
print("hello")
```

<!-- output -->
```text
hel...
```

```pycon
>>> total + 1
2
```

<!-- file: words.txt -->
```text
a b
```

<!-- run: count.py -->
```python
if __name__ == "__main__":
    print(len(open("words.txt", encoding="utf-8").read().split()))
```

<!-- output -->
```text
2
```

<!-- run -->
```console
$ python count.py
2
```

<!-- skip: it needs a second machine -->
```python
raise SystemExit(1)
```

```sh
exit 1
```
"""

RESTRUCTURED = """\
Title
=====

.. code-block:: python
   :caption: one

   import pickle


   class Point:
       pass


   print(type(pickle.loads(pickle.dumps(Point()))).__name__)

.. output

.. code-block:: text

   Point

Text, then a doctest:

>>> Point.__name__
'Point'

.. note::

   .. code-block:: pycon

      >>> isinstance(Point(), Point)
      True

.. skip: it is left out

.. code-block:: python

   1 / 0
"""


@pytest.mark.parametrize(("name", "text", "count"), [("a.md", MARKDOWN, 4), ("a.rst", RESTRUCTURED, 3)])
def test_both_markups_are_read(tmp_path, monkeypatch, name, text, count):
    monkeypatch.chdir(tmp_path)
    assert run_page(page(tmp_path, name, text), tmp_path) == count


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("x\n\n```python\na = 1\n1 / 0\n```\n", 5, "ZeroDivisionError"),
        ("```pycon\n>>> 1 + 1\n3\n```\n", 2, "Expected"),
        ("```python\nprint(1)\n```\n<!-- output -->\n```text\n2\n```\n", 6, "was printed"),
        ("<!-- skip -->\n```python\n1\n```\n", 3, "says why"),
        ("<!-- run -->\n```console\n$ rm x\n```\n", 3, "only persistcoll"),
        ("<!-- run -->\n```console\n$ python -c 'print(1)'\n2\n```\n", 3, "was printed"),
        ("<!-- run: a.py -->\n```python\nraise SystemExit(3)\n```\n", 3, "exit status 3"),
        ("<!-- run: a.py -->\n```text\nx\n```\n", 3, "does not fit"),
    ],
)
def test_a_failing_block_is_named_by_page_and_line(tmp_path, text, line, message):
    failing = page(tmp_path, "failing.md", text)
    with pytest.raises(SnippetError, match=re.escape(message)) as caught:
        run_page(failing, tmp_path)
    assert str(caught.value).startswith(f"{failing}:{line}:")


def test_the_line_of_a_block_is_its_first_line_of_code(tmp_path):
    found = blocks(
        page(tmp_path, "a.rst", ".. code-block:: python\n   :name: x\n\n   one\n\ntext\n\n>>> two\n")
    )
    assert [(block.language, block.line, block.text) for block in found] == [
        ("python", 4, "one\n"),
        ("pycon", 8, ">>> two\n"),
    ]
