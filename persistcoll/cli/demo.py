"""``persistcoll demo``: the lines of a file go through a queue whose consumers are killed again and again."""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from persistcoll.cli.command import DAMAGED, DONE, EXITS, USAGE, CommandError, Commands, int_min, print_error
from persistcoll.cli.demo_check import Check
from persistcoll.cli.demo_run import Result, Run
from persistcoll.cli.demo_source import PRODUCERS, Source
from persistcoll.cli.demo_store import CONSUMERS, Store
from persistcoll.cli.interrupts import tidily
from persistcoll.cli.progress import Bars, Row, bars, table

__all__ = ["add", "report", "run"]

_DESCRIPTION = f"""\
Send the lines of FILE through a queue: {PRODUCERS} processes put them, others get them, write them out, count
in a PDict which words they begin with, and acknowledge them. Those are killed with SIGKILL several times on
the way and started again. At the end every line is accounted for, and the counts are looked up.
"""
_EPILOG = f"""\
{EXITS} Status 0 says that no line was lost or altered, that each consumer got each producer's lines in order,
that no line came a second time but those that a killed consumer had in its hands, and that each one was
counted once.
"""
_PUT, _GOT = "put", "got"


def add(commands: Commands) -> None:
    """Add this command to the parser."""
    parser = commands.add_parser(
        "demo",
        help="send a file's lines through a queue whose consumers are killed on the way",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    whole = partial(int_min, 0)
    default_file = "default: the source text of Python's standard library"
    parser.add_argument("file", metavar="FILE", nargs="?", help=default_file)
    parser.add_argument(
        "--queue",
        choices=tuple(CONSUMERS),
        default="file",
        help="'file': a Queue, from which one process gets; 'sqlite': an SQLiteQueue, from which two get, in "
        "one database with the counts (default: file)",
    )
    parser.add_argument("--kills", type=whole, default=5, metavar="N", help="kill N consumers (default: 5)")
    parser.add_argument(
        "--durability",
        choices=("process", "power"),
        default="process",
        help="what queue and counts are to survive: both levels survive kill -9, 'power' a power cut too; "
        "the file queue then waits for the disk at every acknowledgement: use it with --lines 50000 "
        "(default: process)",
    )
    parser.add_argument(
        "--lines", type=partial(int_min, 1), metavar="N", help="send the first N lines only (default: all)"
    )
    default_directory = "keep queue and counts here, new or empty (default: a temporary directory)"
    parser.add_argument("--directory", metavar="DIR", help=default_directory)
    parser.add_argument("--seed", type=whole, metavar="N", help="kill where a run with this seed did")
    parser.add_argument("--plain", action="store_true", help="plain text, without the library rich")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Do the demo and say how it went.

    :return: the exit status.
    """
    source = Source.find(arguments.file, arguments.lines)
    seed = secrets.randbelow(10_000) if arguments.seed is None else arguments.seed
    with tidily(), _directory(arguments.directory) as directory:
        store = Store(arguments.queue, directory, arguments.durability)
        expected = source.expected()
        lines = sum(sent.lines for sent in expected.sent)
        with bars({_PUT: lines, _GOT: lines}, arguments.plain) as shown:
            shown.note(f"{_counted(lines, 'line')} of {source.description}")
            shown.note(
                f"{PRODUCERS} producers -> {store.queue_name} -> {_counted(store.consumers, 'consumer')}, "
                f"to be killed {_times(arguments.kills)} -> PDict"
                f"  (durability {arguments.durability!r}, seed {seed})"
            )
            result = Run(source, expected, store, arguments.kills, seed, _Watcher(shown)).run()
    table(report(result, arguments.kills, store.consumers), arguments.plain)
    if arguments.directory is not None:
        print(f"The queue and the counts are kept in {directory!r}.")
    if result.problems:
        return print_error("a promise was broken: " + "; ".join(result.problems), DAMAGED)
    print("Every line that was put came out, in order and unaltered, and was counted once.")
    return DONE


def report(result: Result, asked: int, consumers: int) -> list[Row]:
    """The account, row by row.

    :param asked: how many kills were asked for.
    :param consumers: how many got at the same time.
    """
    check, kills, account = result.check, result.kills, result.account
    fewer = "" if kills == asked else f" ({asked:,} were asked for, and there are no more lines)"
    twice = check.again + check.repeated
    rows: list[Row] = [
        ("lines in", f"{check.lines_in:,}", None),
        ("lines out", f"{check.lines_out:,}", check.lines_out == check.lines_in),
        ("lost", f"{check.lost:,}", check.lost == 0),
        (
            "delivered twice",
            f"{twice:,} (of {check.in_hand:,} in the hands of those killed)",
            check.repeated == 0,
        ),
    ]
    for producer, (sent, digest) in enumerate(zip(check.sent, check.digests, strict=True), 1):
        compared = f"sha256 {sent.digest[:12]} in, {digest[:12]} out"
        rows.append((f"content of producer {producer}", compared, digest == sent.digest))
    rows += [
        ("order per producer", _order(check, consumers), not check.late),
        ("never put", f"{check.unknown:,}", not check.unknown),
        ("left in the queue", f"{result.left:,}", result.left == 0),
        ("lines counted", f"{account.lines:,} by {account.words:,} first words", not account.wrong),
    ]
    for word, counted, there in account.found:
        rows.append((f"counts[{word!a}]", f"{counted:,} ({there:,} in the text)", counted == there))
    rows += [
        ("consumer killed", _times(kills) + fewer, None),
        ("rate", f"{check.lines_out / result.seconds:,.0f} lines/s, {result.seconds:.1f} s in all", None),
    ]
    # What nobody ever sees is worth a row only on the day when it is seen.
    return [row for row in rows if row[0] != "never put" or row[2] is False]


def _order(check: Check, consumers: int) -> str:
    if check.late:
        return f"broken {_times(check.late)}"
    if consumers == 1:
        return "kept"
    late = f"; {_counted(check.excused, 'line')} of those killed came later" if check.excused else ""
    return "kept at each consumer" + late


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number:,} times"


class _Watcher:
    """Shows what happens."""

    def __init__(self, shown: Bars) -> None:
        self._shown = shown

    def moved(self, put: int, got: int) -> None:
        self._shown.move(_PUT, put)
        self._shown.move(_GOT, got)

    def killed(self, pid: int, got: int) -> None:
        self._shown.note(f"  kill -9 {pid}: a consumer died after delivery {got:,}", alarm=True)

    def took_over(self, pid: int, again: bool) -> None:
        what = "lines that come again: they were not acknowledged" if again else "new lines"
        self._shown.note(f"          {pid} goes on with {what}")


@contextmanager
def _directory(wanted: str | None) -> Iterator[str]:
    """Where queue and counts are to be; a temporary directory is gone afterwards."""
    if wanted is None:
        made = tempfile.mkdtemp(prefix="persistcoll-demo-")
        try:
            yield made
        finally:
            shutil.rmtree(made, ignore_errors=True)
        return
    if os.path.lexists(wanted) and not os.path.isdir(wanted):
        raise CommandError(f"{wanted!r} is not a directory", USAGE)
    if os.path.isdir(wanted) and os.listdir(wanted):
        raise CommandError(f"{wanted!r} is not empty: name a directory that is, or a new one", USAGE)
    yield os.path.abspath(wanted)
