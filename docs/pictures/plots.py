"""Plots of the stored results of the benchmarks."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from docs.pictures.drawing import BLUE, GREY, Drawing

__all__ = ["NEIGHBOURS", "RESULTS", "backlog", "batches", "neighbours", "speed", "threads"]

_STORED = Path(__file__).parents[2] / "benchmarks" / "results"
RESULTS, NEIGHBOURS = _STORED / "cpython-3.11.json", _STORED / "cpython-3.11-neighbours.json"

_WIDTH, _LEFT, _ROW, _BAR = 420, 118, 22, 14
_VALUES = 58  # room for a number after its bar


class Number(NamedTuple):
    """What was measured: the median, and the middle half."""

    median: float
    lower: float
    upper: float


class Bar(NamedTuple):
    """One bar: its label, its number, and whether it is the one that the plot is about."""

    label: str
    number: Number
    strong: bool


class Group(NamedTuple):
    """Bars that are compared with each other, and what they did."""

    what: str
    bars: Sequence[Bar]


class Panel(NamedTuple):
    """Groups over one axis, and what is the same for all of them."""

    title: str
    groups: Sequence[Group]


@cache
def results(path: Path = RESULTS) -> Any:
    """Return what a run has stored: the last whole one, if nothing else is said."""
    return json.loads(path.read_text("utf-8"))


def measured(scenario: str, contender: str, operation: str, survives: str, path: Path = RESULTS) -> Number:
    """Return a number of a contender.

    :raise ValueError: it was measured at another durability.
    """
    found = results(path)["scenarios"][scenario]
    if found["contenders"][contender] != survives or found["unit"] != "us":
        raise ValueError(f"{scenario}: {contender} survives {found['contenders'][contender]}, not {survives}")
    number = found["numbers"][f"{contender}: {operation}"]
    return Number(number["median"], number["lower_quartile"], number["upper_quartile"])


def rate(number: Number) -> Number:
    """Return how many there are in a second, of the microseconds of one."""
    return Number(1e6 / number.median, 1e6 / number.upper, 1e6 / number.lower)


def _pair(scenario: str, rival: str, operation: str, survives: str) -> list[Bar]:
    """Return what a rival and persistcoll took for the same."""
    return [
        Bar("persistcoll", measured(scenario, "ours", operation, survives), True),
        Bar(rival.partition(" ")[0], measured(scenario, rival, operation, survives), False),
    ]


def speed() -> Drawing:
    """Return one item at a time, beside persist-queue, at both levels of durability."""
    process, power = "process", "power"
    puts = {"ours, 1 thread": "persistcoll", "persist-queue SQLiteQueue": "persist-queue"}
    puts["append + fdatasync"] = "bare loop"
    shared = [Bar("persistcoll", measured("power", "ours, 32 threads", "put", power), True)]
    panels = [
        Panel(
            'Survives kill -9: durability="process"',
            [
                Group(
                    "Queue: put, get, task_done in turn",
                    _pair("single", "persist-queue Queue", "in turn", process),
                ),
                Group("SQLiteQueue: put", _pair("sql_single", "persist-queue SQLiteQueue", "put", process)),
                Group("SQLiteQueue: get", _pair("sql_single", "persist-queue SQLiteQueue", "get", process)),
                Group(
                    "SQLiteAckQueue: put, get, ack in turn",
                    _pair("sql_acknowledged", "persist-queue SQLiteAckQueue", "in turn", process),
                ),
            ],
        ),
        Panel(
            'Survives a power cut: durability="power"',
            [
                Group(
                    "put: Queue; SQLiteQueue of persist-queue; append + fdatasync",
                    [
                        Bar(label, measured("power", contender, "put", power), label == "persistcoll")
                        for contender, label in puts.items()
                    ],
                ),
                Group("Queue: put by 32 threads, which share syncs", shared),
                Group(
                    "SQLiteAckQueue: put, get, ack in turn",
                    _pair("sql_power", "persist-queue SQLiteAckQueue", "in turn", power),
                ),
            ],
        ),
    ]
    return _plot(
        "speed",
        "What an item costs, beside persist-queue",
        "microseconds an item; less is better",
        panels,
        shared=True,
    )


def neighbours() -> Drawing:
    """Return one item at a time beside several neighbours, at both levels of durability."""
    contenders = {
        "persistcoll Queue": "our Queue",
        "persistcoll SQLiteAckQueue": "our acks",
        "persist-queue SQLiteAckQueue": "persist-queue",
        "diskcache Deque": "diskcache",
        "litequeue": "litequeue",
        "huey SqliteStorage": "huey",
        "Redis list": "Redis",
    }
    titles = {
        "process": 'Survives kill -9: durability="process"',
        "power": 'Survives a power cut: durability="power"',
    }

    def bars(level: str) -> list[Bar]:
        return [
            Bar(
                label,
                measured("neighbours", f"{name}, {level}", "all", level, NEIGHBOURS),
                name.startswith("persistcoll"),
            )
            for name, label in contenders.items()
        ]

    what = "put, get and ack, ours of Queue and SQLiteAckQueue; diskcache and huey have no ack"
    return _plot(
        "neighbours",
        "What an item costs, beside others",
        "microseconds an item; less is better",
        [Panel(title, [Group(what, bars(level))]) for level, title in titles.items()],
        path=NEIGHBOURS,
    )


def batches() -> Drawing:
    """Return batches beside queuelib."""
    groups = [
        Group(
            what,
            [
                Bar("persistcoll", measured("batches", "ours, autosave", operation, "process"), True),
                Bar("queuelib", measured("batches", "queuelib", operation, "a clean close only"), False),
            ],
        )
        for what, operation in [
            ("put_many of 100; push of queuelib", "put"),
            ("get_many of 100 with autosave; pop of queuelib", "get"),
        ]
    ]
    panel = Panel("Queue survives kill -9, queuelib does not", groups)
    return _plot(
        "batches",
        "An item of a batch, beside queuelib",
        "microseconds an item; less is better; queuelib survives a clean close only",
        [panel],
    )


def backlog() -> Drawing:
    """Return every operation with few and with many items waiting."""

    def panel(scenario: str, title: str, contenders: Mapping[str, str], operations: str) -> Panel:
        groups = [
            Group(
                operation,
                [
                    Bar(label, measured(scenario, contender, operation, "process"), "000,000" in label)
                    for contender, label in contenders.items()
                ],
            )
            for operation in operations.split()
        ]
        return Panel(title, groups)

    files = {"1,000 waiting": "1,000", "10,000,000 waiting": "10,000,000"}
    database = {"SQLiteAckQueue, 1,000": "1,000", "SQLiteAckQueue, 1,000,000": "1,000,000"}
    panels = [
        panel("backlog", "Queue", files, "put get task_done qsize peek"),
        panel(
            "sql_backlog",
            "SQLiteAckQueue",
            database,
            "put get ack nack qsize peek",
        ),
    ]
    title = "What an operation costs, by backlog"
    return _plot("backlog", title, 'microseconds at durability="process"; the same is best', panels)


def threads() -> Drawing:
    """Return how many puts a second one and several threads do."""

    def bars(scenario: str, contenders: Mapping[str, str]) -> list[Bar]:
        return [
            Bar(label, rate(measured(scenario, contender, "put", "power")), "bare" not in label)
            for contender, label in contenders.items()
        ]

    files = {f"ours, {count}": count for count in ("1 thread", "2 threads", "8 threads", "32 threads")}
    database = {count: count for count in ("1 thread", "8 threads", "32 threads")}
    groups = [
        Group("Queue", bars("power", {**files, "append + fdatasync": "bare, 1 thread"})),
        Group("SQLiteQueue", bars("sql_threads", {**database, "bare loop": "bare, 1 thread"})),
    ]
    panel = Panel("Puts that survive a power cut", groups)
    return _plot("threads", "Threads that put share syncs", "puts a second; more is better", [panel])


def _step(most: float) -> float:
    """Return a round distance of at most six marks on an axis."""
    power = 10.0 ** math.floor(math.log10(most / 6))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor * 6 >= most)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def _describe(unit: str, panels: Sequence[Panel]) -> str:
    parts = [
        f"{panel.title}. {group.what}: "
        + ", ".join(f"{bar.label} {_number(bar.number.median)}" for bar in group.bars)
        + "."
        for panel in panels
        for group in panel.groups
    ]
    return f"Medians, in {unit}. {' '.join(parts)}"


def _plot(
    name: str, title: str, unit: str, panels: Sequence[Panel], shared: bool = False, path: Path = RESULTS
) -> Drawing:
    """Draw panels below each other.

    :param shared: whether their axes are the same.
    :param path: of the results.
    """
    machine, rounds = results(path)["machine"], results(path)["sizes"]["rounds"]
    drawing = Drawing(name, title, _describe(unit, panels), _WIDTH)
    drawing.text(8, 22, title, size=15, bold=True)
    y = drawing.paragraph(8, 42, _WIDTH - 16, f"{unit[0].upper()}{unit[1:]}") - 14
    tops = [max(bar.number.upper for group in panel.groups for bar in group.bars) for panel in panels]
    for panel, top in zip(panels, tops, strict=True):
        y = _panel(drawing, y + 22, panel, max(tops) if shared else top)
    text = (
        f"Bars: medians of {rounds} rounds, from 0. Whiskers: their middle half. "
        "{implementation} {python}, {system}, {cpus} CPUs, {file system}.".format(**machine)
    )
    drawing.paragraph(8, y + 26, _WIDTH - 16, text, size=13)
    return drawing


def _panel(drawing: Drawing, y: float, panel: Panel, most: float) -> float:
    """Draw one panel, and return where it ends."""
    step = _step(most)
    marks = [step * index for index in range(math.floor(most / step) + 1)]
    room = _WIDTH - _LEFT - _VALUES
    scale = room / most
    drawing.text(8, y, panel.title, bold=True)
    top = y = y + 8
    for group in panel.groups:
        y = drawing.paragraph(_LEFT + 6, y + 18, room + _VALUES - 14, group.what, size=13) - 9
        for bar in group.bars:
            _bar(drawing, y, bar, scale)
            y += _ROW
    drawing.line([(_LEFT, top), (_LEFT, y + 4), (_LEFT + room, y + 4)], GREY)
    for mark in marks:
        x = _LEFT + mark * scale
        drawing.line([(x, y + 4), (x, y + 9)], GREY)
        drawing.text(x, y + 23, f"{mark:,g}", "middle", 13)
    return y + 30


def _bar(drawing: Drawing, y: float, bar: Bar, scale: float) -> None:
    middle = y + _BAR / 2
    median, lower, upper = (_LEFT + value * scale for value in bar.number)
    drawing.text(_LEFT - 8, middle + 5, bar.label, "end", 13, bold=bar.strong)
    drawing.rectangle(
        _LEFT, y, median - _LEFT, _BAR, BLUE if bar.strong else GREY, 0.75 if bar.strong else 0.2, corner=0
    )
    drawing.line([(lower, middle), (upper, middle)], width=1.2)
    for x in (lower, upper):
        drawing.line([(x, middle - 4), (x, middle + 4)], width=1.2)
    drawing.text(max(median, upper) + 6, middle + 5, _number(bar.number.median), size=13)
