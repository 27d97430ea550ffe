"""Reads the code blocks of a page and runs them as a reader would: in order, in one directory.

A page of Markdown or reStructuredText; the blocks of one page share one namespace, like one session.

=====================  =============================================================================
block                  what happens
=====================  =============================================================================
``python``             executed; a traceback names the page's own line
``pycon``, ``>>>``     executed as a doctest, results compared
``console``            with the mark ``run``: its ``$`` lines are run, what they print is compared
``text``               with the mark ``output``: compared with what the block before it printed
anything else          ignored
=====================  =============================================================================

A mark is a comment right above the block, ``<!-- mark -->`` or ``.. mark``:

``run: name.py``   save the block under that name, then run it with Python (it may use multiprocessing)
``file: name``     save the block under that name
``run``            run a ``console`` block: ``persistcoll`` and ``python`` are this Python's
``output``         compare; ``...`` stands for anything
``skip: reason``   leave it out; a reason must be given
"""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import re
import shlex
import subprocess
import sys
import textwrap
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import persistcoll
from tests.leaks import Snapshot

__all__ = ["Block", "SnippetError", "blocks", "run_page"]

_FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
_MARK = re.compile(r"(?:<!--\s*(?P<md>[^>]*?)\s*-->|\.\.\s+(?P<rst>.*?))\s*$")
_FENCE = re.compile(r"(?P<indent>\s*)(?P<fence>```+|~~~+)\s*(?P<language>[\w+-]*)")
_DIRECTIVE = re.compile(r"(?P<indent>\s*)\.\. (?:code-block|code|sourcecode):: *(?P<language>[\w+-]*)\s*$")
_VERBS = {"run", "file", "output", "skip"}


class SnippetError(AssertionError):
    """A block that does not do what its page says. The message starts with ``page:line``."""


@dataclass(frozen=True)
class Block:
    """One code block: the place of its first line, and what the comment above it asks for."""

    page: Path
    line: int
    language: str
    text: str
    verb: str = ""
    argument: str = ""

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """Return the code blocks of a page, in order."""
    lines = page.read_text("utf-8").splitlines()
    found = _markdown(lines) if page.suffix == ".md" else _restructured(lines)
    return [_marked(page, lines, *block) for block in found]


def _markdown(lines: list[str]) -> Iterator[tuple[int, int, str, str]]:
    """Give start (index of the fence), index of the first code line, language and text."""
    index = 0
    while index < len(lines):
        fence = _FENCE.match(lines[index])
        index += 1
        if fence is None:
            continue
        first = index
        while index < len(lines) and lines[index].strip() != fence["fence"]:
            index += 1
        yield first - 1, first, fence["language"], _dedented(lines[first:index])
        index += 1


def _restructured(lines: list[str]) -> Iterator[tuple[int, int, str, str]]:
    index = 0
    while index < len(lines):
        directive, start = _DIRECTIVE.match(lines[index]), index
        if directive is None and lines[index].lstrip().startswith(">>> "):
            while index < len(lines) and lines[index].strip():
                index += 1
            yield start, start, "pycon", _dedented(lines[start:index])
            continue
        index += 1
        if directive is None:
            continue
        depth = len(directive["indent"])
        while index < len(lines) and re.match(r"\s+:[\w-]+:", lines[index]):
            index += 1
        while index < len(lines) and not lines[index].strip():
            index += 1
        first = index
        while index < len(lines) and (not lines[index].strip() or _indent(lines[index]) > depth):
            index += 1
        yield start, first, directive["language"], _dedented(lines[first:index])


def _marked(page: Path, lines: list[str], start: int, first: int, language: str, text: str) -> Block:
    above = start - 1
    while above >= 0 and not lines[above].strip():
        above -= 1
    mark = _MARK.match(lines[above].strip()) if above >= 0 else None
    if mark is None or "::" in lines[above]:
        return Block(page, first + 1, language, text)
    verb, _, argument = (mark["md"] or mark["rst"] or "").partition(":")
    if verb.strip() not in _VERBS:
        return Block(page, first + 1, language, text)
    return Block(page, first + 1, language, text, verb.strip(), argument.strip())


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _dedented(lines: list[str]) -> str:
    return textwrap.dedent("\n".join(lines)).rstrip() + "\n"


def run_page(page: Path, directory: Path) -> int:
    """Run the page's blocks in ``directory``, the current one; return how many ran."""
    # The page gets a module of its own, so that pickle finds its classes by name.
    module = types.ModuleType("snippets_of_" + re.sub(r"\W", "_", page.stem))
    sys.modules[module.__name__] = module
    ran, printed = 0, ""
    before = Snapshot.now()
    try:
        for block in blocks(page):
            result = _run(block, module, directory, printed)
            if result is not None:
                ran, printed = ran + 1, result
    finally:
        del sys.modules[module.__name__]
        # A page is a program of its own: its handlers of signals end with it.
        before.restore_handlers()
    return ran


def _run(block: Block, module: types.ModuleType, directory: Path, printed: str) -> str | None:
    """Run one block; return what it printed, or None where there was nothing to run."""
    match block.verb, block.language:
        case "skip", _:
            if not block.argument:
                raise SnippetError(f"{block.where}: a block that is left out says why: `skip: reason`")
            return None
        case "file", _:
            (directory / block.argument).write_text(block.text, "utf-8")
            return None
        case "output", _:
            _compare(block, block.text, printed)
            return None
        case "run", "python":
            # Tracebacks show the page's own lines.
            text = "\n" * (block.line - 1) + block.text
            (directory / block.argument).write_text(text, "utf-8")
            return _command(block, [sys.executable, block.argument], directory)
        case "run", "console":
            return _console(block, directory)
        case "", "python" | "py":
            return _execute(block, module)
        case "", "pycon" | "python-console" | "doctest":
            return _doctest(block, module)
        case "", _:
            return None
    raise SnippetError(
        f"{block.where}: `{block.verb}` does not fit a block of {block.language or 'no language'}"
    )


def _execute(block: Block, module: types.ModuleType) -> str:
    code = compile("\n" * (block.line - 1) + block.text, str(block.page), "exec")
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            exec(code, module.__dict__)
    except Exception as error:
        line = block.line
        trace = error.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code.co_filename == str(block.page):
                line = trace.tb_lineno
            trace = trace.tb_next
        raise SnippetError(f"{block.page}:{line}: {type(error).__name__}: {error}") from error
    return printed.getvalue()


def _doctest(block: Block, module: types.ModuleType) -> str:
    test = doctest.DocTestParser().get_doctest(
        block.text, module.__dict__, block.page.name, str(block.page), block.line - 1
    )
    # The parser copies the namespace, but the page is one session.
    test.globs = module.__dict__
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=_FLAGS, verbose=False)
    runner.run(test, out=report.append, clear_globs=False)
    if runner.failures:
        raise SnippetError(f"{block.where}: {''.join(report)}")
    return ""


def _console(block: Block, directory: Path) -> str:
    """Run every ``$`` line, and compare what it prints with the lines below it, if any."""
    printed = ""
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        command, _, expected = part.partition("\n")
        words = shlex.split(command)
        if words[0] == "persistcoll":
            words[:1] = [sys.executable, "-m", "persistcoll"]
        elif words[0] in ("python", "python3"):
            words[0] = sys.executable
        else:
            raise SnippetError(f"{block.where}: only persistcoll and python can be run, not {words[0]}")
        printed = _command(block, words, directory)
        if expected.strip():
            _compare(block, expected, printed)
    return printed


def _command(block: Block, words: list[str], directory: Path) -> str:
    # The tested persistcoll, wherever it lies.
    path = os.pathsep.join([str(Path(persistcoll.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    # The options of this suite are none of a suite that a page shows.
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}
    done = subprocess.run(
        words,
        cwd=directory,
        env={**environment, "PYTHONPATH": path.rstrip(os.pathsep), "PYTHONIOENCODING": "utf-8"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )
    if done.returncode:
        raise SnippetError(f"{block.where}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def _compare(block: Block, expected: str, printed: str) -> None:
    checker = doctest.OutputChecker()
    wanted = textwrap.dedent(expected).strip() + "\n"
    if not checker.check_output(wanted, printed.strip() + "\n", _FLAGS):
        raise SnippetError(f"{block.where}: the page says\n{wanted}and this was printed\n{printed}")
