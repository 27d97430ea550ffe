"""``python -m benchmarks.survival``: do each fault to each contender, and print what was observed."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import installed
from benchmarks.survival import report
from benchmarks.survival.contenders import CONTENDERS, Contender, redis_version
from benchmarks.survival.faults import FAULTS, Outcome

__all__ = ["main"]

_RESULTS = Path(__file__).parents[1] / "results" / "survival.json"
_NAMES = [contender.name for contender in CONTENDERS]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the faults, print the table and, with ``--save``, store it."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.save and (options.contender or options.fault or any(each.missing for each in CONTENDERS)):
        parser.error("only a whole run is stored, with every contender")
    result: dict[str, Any] = {"versions": _versions(), "outcomes": {}}
    for contender in CONTENDERS:
        if options.contender and contender.name not in options.contender:
            continue
        if contender.missing:
            print(f"{contender.name}: left out, without {', '.join(contender.missing)}", file=sys.stderr)
            continue
        outcomes = result["outcomes"][contender.name] = {}
        for fault in options.fault or FAULTS:
            outcomes[fault] = run(contender, fault).stored()
            print(f"{contender.name}, {fault}: {outcomes[fault]}", file=sys.stderr, flush=True)
    text = report.text(result)
    print(text)
    if options.save:
        _RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        _RESULTS.with_suffix(".txt").write_text(text, encoding="utf-8")
    return 0


def run(contender: Contender, fault: str) -> Outcome:
    """Do one fault to one contender, in a fresh directory."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        return FAULTS[fault](contender, Path(directory))


def _versions() -> dict[str, str]:
    names = ["persistcoll", *(package for contender in CONTENDERS for package in contender.packages)]
    found = {name: version for name in names if (version := installed(name))}
    if version := redis_version():
        found["redis-server"] = version
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.survival",
        description="What persistcoll and its peers survive. Needs root, to mount small file systems.",
    )
    parser.add_argument("--contender", nargs="+", metavar="NAME", choices=_NAMES, help=", ".join(_NAMES))
    parser.add_argument("--fault", nargs="+", metavar="NAME", choices=FAULTS, help=", ".join(FAULTS))
    parser.add_argument("--save", action="store_true", help="store the result in benchmarks/results")
    return parser


if __name__ == "__main__":
    sys.exit(main())
