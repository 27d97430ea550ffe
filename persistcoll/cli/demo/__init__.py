"""``persistcoll demo``: the lines of a file go through a queue whose consumers are killed again and again."""

from __future__ import annotations

import argparse
from functools import partial

from persistcoll.cli.command import EXITS, Commands, int_min

__all__ = ["add"]

# Some seconds' work.
LINES = 60_000

_DESCRIPTION = """\
Send the lines of FILE through a queue: two processes put them, others get them, count in a PDict which words
they begin with, and acknowledge them. Those are killed with SIGKILL several times on the way and started
again. At the end every line is accounted for, the counts are looked up, and the power is cut in a simulation.
"""
_EPILOG = f"""\
{EXITS} Status 0 says that no line was lost or altered or counted twice, that each consumer got each
producer's lines in order, that no line came twice but those that a killed consumer had in its hands, and that
no power cut loses or repeats anything at the durability "power".
"""


def add(commands: Commands) -> None:
    """Add this command to the parser."""
    short = "send a file's lines through a queue whose consumers are killed on the way"
    parser = commands.add_parser("demo", help=short, description=_DESCRIPTION, epilog=_EPILOG)
    option, whole, positive = parser.add_argument, partial(int_min, 0), partial(int_min, 1)
    option("file", metavar="FILE", nargs="?", help="default: the source text of Python's standard library")
    queues = "a Queue, from which one process gets, or an SQLiteQueue, from which two get (default: file)"
    option("--queue", choices=("file", "sqlite"), default="file", help=queues)
    option("--kills", type=whole, default=5, metavar="N", help="kill N consumers (default: 5)")
    levels = "what queue and counts are to survive: kill -9, or a power cut too (default: power)"
    option("--durability", choices=("process", "power"), default="power", help=levels)
    first = f"send the first N lines only (default: all of FILE, {LINES:,} of the standard library)"
    option("--lines", type=positive, metavar="N", help=first)
    option("--seed", type=whole, metavar="N", help="kill after the same lines as the run with this seed")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from persistcoll.cli.demo.run import run  # not above: --help needs neither processes nor a database

    if arguments.file is None and arguments.lines is None:
        arguments.lines = LINES
    return run(arguments)
