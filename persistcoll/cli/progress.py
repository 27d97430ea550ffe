"""Progress bars, notes above them and tables: with rich in a terminal where it is installed, else plain text.

Bars and notes go to standard error, tables to standard output, so that a table can be piped on.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

__all__ = ["Bars", "Row", "bars", "pretty", "table"]

Row = tuple[str, str, "bool | None"]
"""A name, a value, and whether that is as it should be; ``None`` where there is nothing to judge."""


class Bars(Protocol):
    """One bar for each name, and room for notes above them."""

    def move(self, name: str, done: int) -> None:
        """So much of it is done."""

    def note(self, text: str, alarm: bool = False) -> None:
        """A line that stays; ``alarm``: of something drastic."""


def pretty(stream: TextIO, plain: bool) -> bool:
    """Whether rich is to write to ``stream``: a terminal that knows more than ASCII."""
    knows_more = (stream.encoding or "").lower().startswith("utf")
    return not plain and stream.isatty() and knows_more and importlib.util.find_spec("rich") is not None


@contextmanager
def bars(totals: Mapping[str, int], plain: bool = False) -> Iterator[Bars]:
    """Show a bar for each name of ``totals`` on standard error, for as long as the context lasts.

    :param plain: do without rich.
    """
    if not pretty(sys.stderr, plain):
        shown = _PlainBars(totals)
        try:
            yield shown
        finally:
            shown.finish()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    progress = Progress(
        TextColumn("  {task.description}", style="bold"),
        BarColumn(bar_width=None, complete_style="cyan", finished_style="green"),
        TaskProgressColumn(),
        TextColumn("{task.completed:>9,} of {task.total:,}"),
        TimeElapsedColumn(),
        console=Console(stderr=True, highlight=False),
        expand=True,
        refresh_per_second=12,
    )
    with progress:
        yield _RichBars(progress, totals)


class _RichBars:
    def __init__(self, progress: RichProgress, totals: Mapping[str, int]) -> None:
        self._progress = progress
        self._tasks = {name: progress.add_task(name, total=total) for name, total in totals.items()}

    def move(self, name: str, done: int) -> None:
        self._progress.update(self._tasks[name], completed=done)

    def note(self, text: str, alarm: bool = False) -> None:
        self._progress.console.print(text, style="red" if alarm else None, markup=False)


class _PlainBars:
    """One line for all bars: rewritten in a terminal, printed now and then elsewhere."""

    _WIDTH = 24
    _TERMINAL_SECONDS = 0.1
    _ELSEWHERE_SECONDS = 2.0

    def __init__(self, totals: Mapping[str, int]) -> None:
        self._totals = totals
        self._done = dict.fromkeys(totals, 0)
        # A dumb terminal does not go back to the beginning of its line.
        self._rewrites = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._interval = self._TERMINAL_SECONDS if self._rewrites else self._ELSEWHERE_SECONDS
        self._shown_at = time.monotonic()
        self._shown = ""

    def move(self, name: str, done: int) -> None:
        self._done[name] = done
        if time.monotonic() - self._shown_at >= self._interval:
            self._show()

    def note(self, text: str, alarm: bool = False) -> None:
        if self._rewrites and self._shown:
            print("\r" + " " * len(self._shown) + "\r", end="", file=sys.stderr)
            self._shown = ""
        print(text, file=sys.stderr, flush=True)

    def finish(self) -> None:
        if self._done != dict.fromkeys(self._totals, 0):
            self._show()
        if self._rewrites and self._shown:
            print(file=sys.stderr, flush=True)

    def _show(self) -> None:
        line = "  " + "   ".join(self._bar(name, total) for name, total in self._totals.items())
        if self._rewrites:
            # Longer lines wrap, and a wrapped line cannot be rewritten. 0: the terminal does not know.
            line = line[: (os.get_terminal_size(sys.stderr.fileno()).columns or 80) - 1]
            print("\r" + line.ljust(len(self._shown)), end="", file=sys.stderr, flush=True)
        elif line != self._shown:
            print(line, file=sys.stderr, flush=True)
        self._shown = line
        self._shown_at = time.monotonic()

    def _bar(self, name: str, total: int) -> str:
        done = self._done[name]
        share = min(done / total, 1.0) if total else 1.0
        if not self._rewrites:
            return f"{name} {done:,} of {total:,}"
        return f"{name} [{'#' * int(share * self._WIDTH):<{self._WIDTH}}] {share:4.0%}"


def table(rows: Sequence[Row], plain: bool = False) -> None:
    """Print ``rows`` on standard output.

    :param plain: do without rich.
    """
    if not pretty(sys.stdout, plain):
        names, values = (max(len(row[column]) for row in rows) for column in (0, 1))  # type: ignore[arg-type]
        for name, value, good in rows:
            mark = {None: "", True: "ok", False: "WRONG"}[good]
            print(f"  {name:<{names}}  {value:<{values}}  {mark}".rstrip())
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=box.ROUNDED, show_header=False)
    marks = {None: Text(""), True: Text("✓", "bold green"), False: Text("✗", "bold red")}
    for name, value, good in rows:
        shown.add_row(Text(name), Text(value, "bold" if good is False else ""), marks[good])
    Console(highlight=False).print(shown)
