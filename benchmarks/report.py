"""The results as plain text."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["heading", "missed", "scenario", "summary"]

_WIDTH = 100


def heading(machine: Mapping[str, Any], directory_syncs: bool) -> str:
    """Return what the run was measured on."""
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    lines = [
        "{implementation} {python}, {system} {kernel} {architecture}, {cpus} CPUs".format(**machine),
        f"queues on {machine['file system']}",
        packages,
        "Medians of interleaved rounds, the middle half of them, the extremes.",
        "A ratio is formed in each round; its median is shown.",
    ]
    if not directory_syncs:
        lines.append("NOTE: this file system is in memory; what is said of durability means nothing here.")
    return "\n".join(lines)


def scenario(result: Mapping[str, Any]) -> str:
    """Return one scenario: what was compared, the numbers, the figures beside their promises."""
    parts = [f"== {result['name']}", textwrap.fill(result["compared"], _WIDTH)]
    for what, facts in result["prepared"].items():
        parts.append(f"{what}: " + ", ".join(f"{name} {value:,}" for name, value in facts.items()))
    if result["missing"]:
        parts.append(f"not installed, so left out: {', '.join(result['missing'])}")
    parts.append("")
    parts.append(_numbers(result))
    parts.append("")
    parts.append(_figures(result["figures"]))
    parts.append(f"took {result['seconds']:.0f} s")
    return "\n".join(parts) + "\n"


def summary(result: Mapping[str, Any]) -> str:
    """Return the figures of a run without their numbers, for the documentation."""
    found = result["scenarios"].values()
    parts = [f"== {each['name']}\n{_figures(each['figures'])}" for each in found]
    return "\n\n".join([heading(result["machine"], True), *parts]) + "\n"


def _numbers(result: Mapping[str, Any]) -> str:
    head = [result["unit"], "survives", "median", "middle half", "least", "greatest"]
    rows = []
    for name, summary in result["numbers"].items():
        contender = name.rpartition(": ")[0]
        rows.append(
            [
                name,
                result["contenders"][contender],
                _number(summary["median"]),
                _middle(summary),
                _number(summary["least"]),
                _number(summary["greatest"]),
            ]
        )
    return _table(head, rows)


def _figures(figures: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for figure in figures:
        summary, unit = figure["measured"], figure["unit"]
        if summary is None:
            rows.append([figure["text"], "not measured", "", figure["goal"], ""])
            continue
        verdict = {True: "reached", False: "NOT REACHED", None: ""}[figure["reached"]]
        median = f"{_number(summary['median'])} {unit}"
        rows.append([figure["text"], median, _middle(summary), figure["goal"], verdict])
    return _table(["", "median", "middle half", "promise", ""], rows)


def _middle(summary: Mapping[str, float]) -> str:
    return f"{_number(summary['lower_quartile'])} .. {_number(summary['upper_quartile'])}"


def _number(value: float) -> str:
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value >= 100 or value < 1 else f"{value:.2f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [head, *rows]
    )


def missed(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return every promise that was not reached, or not measured."""
    return [
        f"{name}: {figure['text']}: {figure['goal']}"
        for name, result in results.items()
        for figure in result["figures"]
        if figure["goal"] and not figure["reached"]
    ]
