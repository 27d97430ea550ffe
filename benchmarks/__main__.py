"""``python -m benchmarks``: run the benchmarks, print and store the results."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.machine import describe, has_device
from benchmarks.model import FULL, QUICK, Sizes
from benchmarks.runner import SCENARIOS, run

__all__ = ["main"]

_RESULTS = Path(__file__).parent / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks, and return the exit status.

    It is 0 whatever the numbers are, and 1 only with ``--check`` and a promise that was not reached.
    """
    options = _parser().parse_args(arguments)
    sizes = QUICK if options.quick else FULL
    if options.rounds is not None:
        sizes = dataclasses.replace(sizes, rounds=options.rounds)
    names = options.only or list(SCENARIOS)
    print(report.heading(describe(options.directory), has_device(options.directory)), end="\n\n", flush=True)
    result = run(names, sizes, options.directory, _print_scenario, _print_progress)
    missed = report.missed(result["scenarios"])
    print(f"{len(missed)} promises not reached or not measured" if missed else "every promise reached")
    for promise in missed:
        print(f"  {promise}")
    _store(result, options, sizes)
    return 1 if options.check and missed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="persistcoll beside other queues and beside bare loops, in one run. Nothing is asserted.",
    )
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds, a smaller backlog")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=SCENARIOS, help=", ".join(SCENARIOS))
    parser.add_argument("--rounds", type=_positive, metavar="N", help="how often everything takes its turn")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="where the numbers are stored; default: benchmarks/results for a whole run, else nowhere",
    )
    parser.add_argument(
        "--directory",
        default=tempfile.gettempdir(),
        metavar="DIR",
        help="where the queues are made, on the file system to measure; needs about 1 GB",
    )
    parser.add_argument("--check", action="store_true", help="exit status 1 if a promise is not reached")
    return parser


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise ValueError(text)
    return number


def _print_scenario(result: dict[str, Any]) -> None:
    _clear_line()
    print(report.scenario(result), flush=True)


def _print_progress(text: str) -> None:
    if sys.stderr.isatty():
        _clear_line()
        print(text, end="", file=sys.stderr, flush=True)


def _clear_line() -> None:
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)


def _store(result: dict[str, Any], options: argparse.Namespace, sizes: Sizes) -> None:
    whole = not options.only and not options.quick
    if options.output is None and not whole:
        return
    directory: Path = options.output or _RESULTS
    directory.mkdir(parents=True, exist_ok=True)
    version = ".".join(platform.python_version_tuple()[:2])
    path = directory / f"{platform.python_implementation().lower()}-{version}.json"
    for at, text in (
        (path, json.dumps(result, indent=1) + "\n"),
        (path.with_suffix(".txt"), report.summary(result)),  # The documentation shows this file.
    ):
        temporary = at.with_suffix(".tmp")
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, at)
    print(f"stored in {path}")


if __name__ == "__main__":
    sys.exit(main())
