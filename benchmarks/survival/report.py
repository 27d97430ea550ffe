"""What was observed, as text and as the tables of the documentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["matrix", "text", "versions"]

Result = Mapping[str, Any]


def text(result: Result) -> str:
    """Return everything that was observed: a section for each fault."""
    sections = [versions(result) + "\n"]
    for fault in _faults(result):
        rows = [
            [name, found[fault]["verdict"], found[fault]["text"]]
            for name, found in result["outcomes"].items()
            if fault in found
        ]
        sections.append(f"{fault}\n{'-' * len(fault)}\n{_aligned(rows)}\n")
    return "\n".join(sections)


def versions(result: Result) -> str:
    """Return the versions of what was there."""
    return ", ".join(f"{name} {version}" for name, version in result["versions"].items())


def matrix(result: Result) -> str:
    """Return the verdicts as a table of reStructuredText: a row for each contender."""
    faults = _faults(result)
    lines = [".. list-table::", "   :header-rows: 1", ""]
    rows = [["", *faults]]
    for name, found in result["outcomes"].items():
        # A bare "-" would begin a list.
        rows.append([name, *(found[fault]["verdict"].replace("-", "no server") for fault in faults)])
    for row in rows:
        lines += [f"   {'* -' if not at else '  -'} {cell}".rstrip() for at, cell in enumerate(row)]
    return "\n".join(lines) + "\n"


def _faults(result: Result) -> list[str]:
    return list(dict.fromkeys(fault for found in result["outcomes"].values() for fault in found))


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
