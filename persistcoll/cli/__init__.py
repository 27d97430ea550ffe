"""The ``persistcoll`` command, which is also ``python -m persistcoll``.

Every command is a module of this package: its ``add(commands)`` adds the command's parser, and what the
parser sets as ``run`` does the work (see :mod:`persistcoll.cli.command`).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from persistcoll import __version__
from persistcoll.cli import demo
from persistcoll.cli.command import (
    BROKEN_PIPE,
    EXITS,
    INTERRUPTED,
    USAGE,
    CommandError,
    exit_status,
    print_error,
)
from persistcoll.errors import PersistcollError

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that ``argv`` names (default: the arguments of this process).

    :return: the exit status: 0 done, 1 nothing there, 2 wrong usage, 3 storage error, 4 damaged data;
        130 after Ctrl-C, 141 when nobody reads the output, as shells have it.
    """
    parser = _parser()
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as end:  # --help, --version and wrong usage, which argparse has answered
        return end.code if isinstance(end.code, int) else USAGE
    if arguments.run is None:
        parser.print_help(sys.stderr)
        return USAGE
    try:
        status: int = arguments.run(arguments)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return print_error("stopped", INTERRUPTED)
    except BrokenPipeError:
        # Nobody reads on: as with other tools, no reason to complain, nor to do so when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except (CommandError, PersistcollError, OSError) as error:
        return print_error(str(error), exit_status(error))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="persistcoll", description="Queues on disk that survive kill -9 and the power cut.", epilog=EXITS
    )
    parser.add_argument("--version", action="version", version=f"persistcoll {__version__}")
    parser.set_defaults(run=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for module in (demo,):
        module.add(commands)
    return parser
