"""Checks the words of comments, docstrings and pages: ``python tools/prose.py [PATH ...]``.

Prints ``path:line: rule: message`` for each finding, and exits with status 1 if there is one. Without a path
it reads the whole project. Code is not prose: code blocks, doctests, literals and references are left out.

A rule is a pattern over one passage: a paragraph, a list item, a cell of a table, a block of comment lines.
What a rule allows stands in its pattern, with the reason beside it.
"""

from __future__ import annotations

import ast
import io
import os
import re
import sys
import tokenize
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).parents[1]
EVERYTHING = (
    "persistcoll",
    "serializers",
    "tests",
    "benchmarks",
    "tools",
    "docs",
    "README.md",
    "CONTRIBUTING.md",
)


@dataclass(frozen=True)
class Passage:
    """A piece of prose, and the number of the line that each of its lines has in the file."""

    text: str
    lines: tuple[int, ...]

    def line_at(self, offset: int) -> int:
        """Return the line of the file in which the character at ``offset`` stands."""
        starts = [0] + [match.end() for match in re.finditer("\n", self.text)]
        return self.lines[bisect_right(starts, offset) - 1]


@dataclass(frozen=True)
class Rule:
    """One rule: what it forbids, and what to write instead."""

    name: str
    pattern: re.Pattern[str]
    advice: str


def _rule(name: str, pattern: str, advice: str) -> Rule:
    return Rule(name, re.compile(pattern, re.VERBOSE), advice)


RULES = (
    _rule(
        "who",
        r"""
        \b [Ww]ho(m|so)?ever \b
        | \b Who \b
        # "users who": a person is a who.
        | (?<! person\ )(?<! people\ )(?<! reader\ )(?<! readers\ )(?<! user\ )(?<! users\ )
          (?<! programmer\ )(?<! operator\ )(?<! contributor\ ) \b who \b
        """,
        "name who acts: the thread, the process, the caller, the consumer",
    ),
    _rule("else", r"\b Else \b", 'write "Otherwise" and the condition in full'),
    _rule("thereby", r"\b [Tt]hereby \b", 'write "so" or "because", and a clause of its own'),
    _rule(
        "likewise",
        r"(?: \A | [.!?:;,(] \s* ) [Ll]ikewise \s* (?: [.)] | \Z )",
        "say what happens, or refer to it by name",
    ),
    _rule(
        "behind",
        # To fall or lag behind compares progress; a lock or a pooler has a side that is protected; what is
        # left behind remains when its owner has gone. "Behind its back" is an idiom.
        r"""
        (?<! fall\ )(?<! falls\ )(?<! fell\ )(?<! fallen\ )(?<! falling\ )
        (?<! lag\ )(?<! lags\ )(?<! lagging\ )
        (?<! left\ )(?<! leave\ )(?<! leaves\ )(?<! nothing\ )
        \b [Bb]ehind \b
        (?! \s an?\ lock \b | \s the\ lock \b | \s an?\ (?:[\w-]+\s)? pooler \b
           | \s (?: its | our | your | their )\ backs? \b )
        """,
        'write "after", "following", "beyond" or "under"',
    ),
    _rule("in force", r"\b [Ii]n \s force \b", 'write "active"'),
    _rule(
        "such",
        r"""
        # "As such" means "in this role".
        (?<! [Aa]s\ ) \b [Ss]uch \b (?= \s* (?: [.,;:)] | \Z )
        | \s (?: is | are | was | were | has | have | had | may | must | can | cannot | could | will | would
               | does | do | and | or | by | in | for | to | at | of | on | with | from | not
               | who | which ) \b )
        """,
        "repeat the noun",
    ),
    _rule(
        "hand",
        # By hand, on the other hand, at hand, and the verb in "to hand over" are plain English.
        r"""
        (?<! [Bb]y\ )(?<! other\ )(?<! at\ ) \b [Hh]ands? \b
        (?! \s (?: over | out | on | down | it | them | each | both | back | the | an? | its | their | every
                 | all | these | those | what | leadership ) \b )
        """,
        'write "claimed", "in flight" or "held by"',
    ),
    _rule(
        "give back",
        r"\b [Gg](?: ive | ives | ave | iven | iving ) \b (?: \s+ [\w'*]+ ){0,6}? \s+ back \b",
        'write "release" or "nack" for a claim, "return" for anything else',
    ),
    _rule(
        "bury", r"\b [Bb]ur(?: y | ies | ied | ying ) \b", 'write "dead": a dead record has no attempts left'
    ),
    _rule(
        "rest",
        r"""
        \b (?: [Cc]ome | [Cc]omes | [Cc]ame | [Cc]oming | [Bb]ring | [Bb]rings | [Bb]rought | [Bb]ringing )
        (?: \s+ [\w']+ ){0,4}? \s+ to \s+ rest \b
        | \b at \s+ rest \b
        """,
        'write "quiesce"',
    ),
    _rule("let go", r"\b [Ll](?: et | ets | etting ) \s+ go \b", 'write "release"'),
    _rule("ledger", r"\b [Ll]edgers? \b", 'write "counters"'),
    # "f(...)" is a call, whatever its arguments.
    _rule("ellipsis", r"(?<! [(\[] ) \.\.\. | …", "write the sentence to its end"),
)
# Of a docstring: no pattern says this.
FIRST_LINE = "first line"


@dataclass(frozen=True)
class Finding:
    """One place that breaks a rule."""

    path: str
    line: int
    rule: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.rule}: {self.message}"


# Prose out of files.

# What no rule reads: literals and references. Their length stays, so that lines can be counted.
_TITLED = re.compile(r":[\w:]+:`([^`<]*?)\s*<[^`>]*>`")
_QUOTED = re.compile(
    r"``.+?``|:[\w:]+:`[^`]*`|(?<!\w)`[^`]+`(?!\w)|https?://\S+|^:\w+(?: \S+)?:", re.DOTALL | re.MULTILINE
)
_LINK = re.compile(r"\[([^\]]*)\](\([^)]*\))")

_DIRECTIVE = re.compile(r"\.\. ([\w:-]+)::(?:\s+(.*))?$")
_PROSE_DIRECTIVES = set("deprecated glossary list-table note versionadded versionchanged warning".split())
_MARKER = re.compile(r"(?:[*-] +|\d+\. +|\.\. \[#?\w+\] +)")
_RULER = re.compile(r"[-=~^\"'*+#.|: ]{3,}$")


def _masked(text: str) -> str:
    def blank(match: re.Match[str]) -> str:
        return re.sub(r"[^\n]", "x", match[0])

    text = _TITLED.sub(lambda match: match[1] + " " * (len(match[0]) - len(match[1])), text)
    text = _LINK.sub(lambda match: f" {match[1]} " + " " * len(match[2]), text)
    return _QUOTED.sub(blank, text)


class _Collector:
    """Joins lines to passages."""

    def __init__(self) -> None:
        self.passages: list[Passage] = []
        self._open: list[tuple[int, str]] = []
        self._indent = -1

    def add(self, number: int, text: str, indent: int = 0) -> None:
        if indent != self._indent:
            self.end()
        self._indent = indent
        self._open.append((number, text))

    def end(self) -> None:
        if self._open:
            numbers, texts = zip(*self._open, strict=True)
            self.passages.append(Passage(_masked("\n".join(texts)), numbers))
        self._open = []


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def restructured(lines: list[str], first: int = 1) -> list[Passage]:
    """Return the prose of reStructuredText whose first line has the number ``first``."""
    found = _Collector()
    index = 0

    def skip_block(depth: int) -> None:
        nonlocal index
        while index < len(lines) and (not lines[index].strip() or _indent(lines[index]) > depth):
            index += 1

    while index < len(lines):
        line, number = lines[index], first + index
        stripped, depth = line.strip(), _indent(line)
        index += 1
        if not stripped or _RULER.match(stripped):
            found.end()
        elif stripped.startswith(">>> "):
            while index < len(lines) and lines[index].strip():
                index += 1
        elif directive := _DIRECTIVE.match(stripped):
            found.end()
            if directive[1] not in _PROSE_DIRECTIVES:
                skip_block(depth)
                continue
            if directive[2]:
                found.add(number, directive[2], depth)
                found.end()
            while index < len(lines) and re.match(r"\s+:[\w-]+:", lines[index]):
                index += 1
        elif stripped.startswith(".. ") and not stripped.startswith(".. ["):
            found.end()
            skip_block(depth)
        else:
            while marker := _MARKER.match(stripped):
                found.end()
                depth += marker.end()
                stripped = stripped[marker.end() :]
            found.add(number, stripped, depth)
            if stripped.endswith("::"):
                found.end()
                skip_block(_indent(line))
    found.end()
    return found.passages


def markdown(lines: list[str]) -> list[Passage]:
    """Return the prose of Markdown: its code, comments and addresses are left out."""
    found = _Collector()
    fenced = False
    for number, line in enumerate(lines, 1):
        stripped = line.strip()
        if stripped.startswith(("```", "~~~")):
            fenced = not fenced
            found.end()
        elif fenced or not stripped or stripped.startswith("<!--") or _RULER.match(stripped):
            found.end()
        elif stripped.startswith("|"):
            for cell in stripped.strip("|").split("|"):
                found.end()
                found.add(number, cell.strip())
            found.end()
        elif stripped.startswith("#"):
            found.end()
            found.add(number, stripped.lstrip("# "))
            found.end()
        else:
            if marker := _MARKER.match(stripped):
                found.end()
                stripped = stripped[marker.end() :]
            found.add(number, stripped)
    found.end()
    return found.passages


_NO_PROSE = re.compile(r"#\s*(?:noqa|type:|fmt:|pragma|ruff:|mypy:|!)")


def comments(text: str) -> list[Passage]:
    """Return the comments of Python source: lines that stand below each other are one passage."""
    found = _Collector()
    last = 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type != tokenize.COMMENT or _NO_PROSE.match(token.string):
            continue
        number, column = token.start
        trails = bool(token.line[:column].strip())
        if number != last + 1 or trails:
            found.end()
        last = 0 if trails else number
        found.add(number, re.split(r"\s+#\s*noqa", token.string)[0].lstrip("#").strip(), column)
    found.end()
    return found.passages


def docstrings(text: str) -> Iterator[tuple[ast.Constant, list[Passage], bool]]:
    """Give each string that is a statement, its prose, and whether it is a docstring."""
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(text)):
        body = getattr(node, "body", None)
        if not isinstance(body, list):
            continue
        for index, statement in enumerate(body):
            if not isinstance(statement, ast.Expr) or not isinstance(statement.value, ast.Constant):
                continue
            value = statement.value
            if isinstance(value.value, str):
                lines = value.value.split("\n")
                yield value, restructured(lines, value.lineno), index == 0 and isinstance(node, owners)


def _first_line(text: str) -> str | None:
    """Return what is wrong with a docstring's first line, or None."""
    line = text.lstrip("\n").split("\n")[0].strip()
    if not line.endswith((".", "?", "!")):
        return f"end it with a period: [{line[-40:]}]"
    if len(line.split()) < 2:
        return f"write a sentence: [{line}]"
    return None


# The check.


def broken_rules(passage: Passage) -> Iterator[tuple[int, str, str]]:
    """Give line, rule and message of each place in a passage that breaks a rule."""
    for rule in RULES:
        # A blank for a line's end, so that a pattern need not care where a line was broken.
        for match in rule.pattern.finditer(passage.text.replace("\n", " ")):
            start = match.start() + len(match[0]) - len(match[0].lstrip())
            around = passage.text[max(0, start - 25) : match.end() + 25].replace("\n", " ").strip()
            yield passage.line_at(start), rule.name, f"{rule.advice}: [{around}]"


def check(path: Path, text: str) -> list[Finding]:
    """Return what is wrong with one file, by line."""
    found = []
    if path.suffix == ".py":
        passages = comments(text)
        for value, prose, is_docstring in docstrings(text):
            passages += prose
            wrong = _first_line(value.value) if is_docstring and isinstance(value.value, str) else None
            if wrong is not None:
                found.append(Finding(str(path), value.lineno, FIRST_LINE, wrong))
    elif path.suffix == ".md":
        passages = markdown(text.split("\n"))
    else:
        passages = restructured(text.split("\n"))
    for passage in passages:
        found += [Finding(str(path), *broken) for broken in broken_rules(passage)]
    return sorted(found, key=lambda finding: (finding.line, finding.rule))


def files(paths: list[Path]) -> Iterator[Path]:
    """Give every file with prose that a path names or holds, without following links to directories."""
    for path in paths:
        if path.is_file():
            yield path
            continue
        for folder, folders, names in os.walk(path):
            folders[:] = sorted(
                name for name in folders if not name.startswith((".", "_build", "__pycache__"))
            )
            for name in sorted(names):
                if name.endswith((".py", ".rst", ".md")):
                    yield Path(folder, name)


def main(arguments: list[str]) -> int:
    """Check what the arguments name, and return the exit status."""
    names = arguments or [os.path.relpath(PROJECT / name) for name in EVERYTHING]
    paths = [Path(name) for name in names]
    missing = [path for path in paths if not path.exists()]
    if missing:
        print(*(f"{path}: no such file or directory" for path in missing), sep="\n")
        return 2
    found = [finding for path in files(paths) for finding in check(path, path.read_text("utf-8"))]
    print(*found, f"{len(found)} found" if found else "no rule is broken", sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
