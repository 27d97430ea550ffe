"""The prose check: each rule finds what it forbids, passes what it allows, and reads prose only."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from tests.api.tree import PROJECT

if not (PROJECT / "tools" / "prose.py").is_file():
    pytest.skip("tools/ lies in a checkout only", allow_module_level=True)

from tools import prose

# For each rule: text that it finds, and text that it lets pass.
FAILING = {
    "who": [
        "Who closes the file last syncs it.",
        "It is kept for whoever comes next.",
        "Those who wait get the error.",
        "The message says who holds it.",
    ],
    "else": ["Else the loop would have no end."],
    "thereby": ["They come late, and thereby in order."],
    "likewise": ["Likewise.", "A warning is logged. Likewise.", "Undone, too (likewise)."],
    "behind": [
        "Read on behind what is known.",
        "It is appended behind the id.",
        "Behind that it is written over.",
        "An interrupt may come in behind\nany call.",
    ],
    "in force": ["The keys in force, each with its id."],
    "such": ["There are such in two cases.", "All such are woken.", "The database raises such, too."],
    "hand": [
        "No item is ever in two hands.",
        "An item in the hands of a dead process.",
        "Not in hand any more.",
    ],
    "give back": [
        "It gives the item back.",
        "What was given back waits.",
        "Giving its room back to the\nsystem.",
    ],
    "bury": ["Bury the record.", "It is buried when its attempts are used up."],
    "rest": ["The database comes to rest before the fork.", "Bring it to rest.", "No other one is at rest."],
    "let go": ["It lets go of the lock."],
    "ledger": ["The ledger has a row for each."],
    "ellipsis": ["Numbers, dates, ... are refused.", "And so on…"],
}
PASSING = {
    "who": ["A user who opens it sees the id.", "The process that holds it, and whose lock it is."],
    "else": ["Anything else is refused.", "Otherwise, or else, it raises."],
    "thereby": ["So they come in order."],
    "likewise": ["A reader likewise opens its own file."],
    "behind": [
        "The reader falls behind, or lags behind the writer.",
        "It stands behind a lock, and behind a transaction-mode pooler.",
        "Files that a process left behind, or that leave nothing behind.",
    ],
    "in force": ["The active keys, enforced by an index."],
    "such": ["An error such as this one.", "Such a record is refused.", "It is known as such."],
    "hand": ["Hand it over, on the other hand by hand.", "The thread hands over leadership."],
    "give back": ["It gives the result, and goes back.", "Return it to the file system."],
    "bury": ["The record is dead."],
    "rest": ["The rest of the records.", "Quiesce the database."],
    "let go": ["Release the lock."],
    "ledger": ["The counters have a row for each."],
    "ellipsis": ["Write ``...`` or `...`, and then stop.", "Calling f(...) is slow."],
}


def found(text: str, name: str = "page.rst") -> list[tuple[int, str]]:
    return [(finding.line, finding.rule) for finding in prose.check(Path(name), textwrap.dedent(text))]


def test_every_rule_has_examples():
    names = {rule.name for rule in prose.RULES}
    assert names == set(FAILING) == set(PASSING)


@pytest.mark.parametrize(("rule", "text"), [(rule, text) for rule in FAILING for text in FAILING[rule]])
def test_what_a_rule_forbids_is_found(rule, text):
    assert [name for _, name in found(text)] == [rule]


@pytest.mark.parametrize(("rule", "text"), [(rule, text) for rule in PASSING for text in PASSING[rule]])
def test_what_a_rule_allows_passes(rule, text):
    assert found(text) == []


@pytest.mark.parametrize("line", ["Whole.", "Give what is there", "The items, from the first"])
def test_a_first_line_that_is_no_sentence_is_found(line):
    assert found(f'def f():\n    """{line}\n\n    More.\n    """\n', "m.py") == [(2, "first line")]


@pytest.mark.parametrize("line", ["Return the items.", "Is it empty?"])
def test_a_first_line_that_is_a_sentence_passes(line):
    assert found(f'class C:\n    """{line}"""\n\n    x = 1\n    """any other string"""\n', "m.py") == []


def test_a_finding_says_where_and_what_to_write():
    (finding,) = prose.check(Path("docs/a.rst"), "Title\n=====\n\nA line.\nElse it fails.\n")
    assert str(finding) == (
        'docs/a.rst:5: else: write "Otherwise" and the condition in full: [A line. Else it fails.]'
    )


def test_comments_and_docstrings_are_read_and_code_is_not():
    source = '''\
        """Check the module.

        Whoever comes.

        >>> print("whoever")
        whoever

        Example::

            whoever = 1

        and ``whoever``.
        """

        whoever = "whoever"  # Else it is lost.
        # A comment in
        # two lines, behind which

        # another one stands; noqa  # noqa: E501


        def function(behind):  # type: ignore
            """Return it.

            :param behind: thereby
            """
    '''
    assert found(source, "m.py") == [(3, "who"), (15, "else"), (17, "behind"), (25, "thereby")]


def test_the_prose_of_a_page_is_read_and_its_code_is_not():
    page = """\
        Title
        =====

        .. Else: a comment.

        .. _else:

        See :ref:`Else <else>`, ``Else`` and :doc:`/whoever`.

        .. code-block:: python
           :caption: Else

           Else = 1

        .. list-table::
           :header-rows: 1

           * - A cell
             - another,
               Else a third
           * - Likewise.

        - An item

          Else one. Like this::

              Else = 1

        .. [#note] Else a footnote.
    """
    assert [line for line, _ in found(page)] == [8, 20, 21, 25, 29]


def test_the_prose_of_markdown_is_read_and_its_code_is_not():
    page = """\
        # Else

        <!-- Else -->
        ```python
        Else = 1
        ```

        | `Else` | in force |
        | --- | --- |

        - [in
          force](Else.md)
    """
    assert [line for line, _ in found(page, "page.md")] == [1, 8, 11]


def test_the_exit_status_tells(tmp_path, capsys):
    (tmp_path / "good.rst").write_text("Good.\n")
    assert prose.main([str(tmp_path)]) == 0
    (tmp_path / "bad.py").write_text("# Else bad.\n")
    (tmp_path / "bad.txt").write_text("Else not read.\n")
    assert prose.main([str(tmp_path)]) == 1
    assert f"{tmp_path / 'bad.py'}:1: else: " in capsys.readouterr().out
    assert prose.main([str(tmp_path / "missing")]) == 2
