"""Which room imports which, from the imports themselves.

A room stands above all rooms that it imports. All arrows to a room have its colour and join, and those that
pass a floor run down at the right.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from docs.pictures.drawing import GREY, Drawing
from tests.api.tree import Module, modules

__all__ = ["draw", "draw_found", "lay_out", "read"]

Arrow = tuple[str, str]

# What a floor is called, if it has one of these rooms.
FLOORS = {"cli": "command, tests", "persistcoll": "the package", "dicts": "faces", "journal": "stores"}
# Of the rooms that others import, from below.
COLOURS = (
    "#4c72b0 #d17c4e #8172b3 #52a263 #c44e52 #937860 #c279b1 "
    "#a59134 #3e9db3 #2f8f6f #a05ab5 #8c8c8c #c07f6f #7d9d3e #5f6fd0 #ab3b6b #386898 #7a7a3a #d05a86 #6a8796"
).split()

BOX_WIDTH, BOX_HEIGHT, SPACE = 118, 44, 20
LABELS = 108
TRACK, MARGIN = 9, 14


def room_of(name: str, rooms: set[str]) -> str:
    """Return the room of a dotted name; what the package itself holds is in ``persistcoll``."""
    room = name.partition(".")[2].partition(".")[0]
    # `python -m persistcoll` is the command.
    return "cli" if room == "__main__" else room if room in rooms else "persistcoll"


def read(found: Iterable[Module]) -> tuple[dict[str, int], set[Arrow]]:
    """Return the number of modules in each room, and which room imports which other one."""
    found = list(found)
    rooms = {module.room for module in found} - {"", "__main__"}
    sizes: dict[str, int] = {}
    arrows = set()
    for module in found:
        home = room_of(module.name, rooms)
        sizes[home] = sizes.get(home, 0) + 1
        for name in module.imports():
            if name.partition(".")[0] == "persistcoll" and room_of(name, rooms) != home:
                arrows.add((home, room_of(name, rooms)))
    return sizes, arrows


def floors(rooms: Iterable[str], arrows: set[Arrow]) -> dict[str, int]:
    """Return the floor of each room, 0 at the bottom: next below what imports it, or else at the top."""
    below = {room: {target for source, target in arrows if source == room} for room in rooms}
    above = {room: {source for source, target in arrows if target == room} for room in rooms}
    lowest: dict[str, int] = {}
    order: list[str] = []
    while len(order) < len(below):
        ready = sorted(room for room in below if room not in lowest and below[room] <= lowest.keys())
        if not ready:
            raise ValueError(f"rooms import each other in a circle: {sorted(below.keys() - lowest.keys())}")
        lowest |= {room: 1 + max((lowest[target] for target in below[room]), default=-1) for room in ready}
        order += ready
    floor: dict[str, int] = {}
    for room in reversed(order):
        floor[room] = min((floor[source] for source in above[room]), default=max(lowest.values()) + 1) - 1
    return floor


@dataclass
class Picture:
    """Where everything is: boxes by their left upper corner, and the corners of each arrow's line."""

    width: float
    height: float
    boxes: dict[str, tuple[float, float]]
    lines: dict[Arrow, list[tuple[float, float]]]
    labels: list[tuple[str, float]] = field(default_factory=list)


def lay_out(sizes: dict[str, int], arrows: set[Arrow]) -> Picture:
    """Return the same picture for the same rooms and arrows, whatever order they come in."""
    floor = floors(sizes, arrows)
    top = max(floor.values())
    rows = [sorted(room for room in floor if floor[room] == level) for level in range(top + 1)]
    # A target whose arrows pass a floor has a lane; one that ends higher has its lane further left.
    passing = {target for source, target in arrows if floor[source] > floor[target] + 1}
    lanes = sorted(passing, key=lambda room: (-floor[room], room))
    right = LABELS + max(len(row) for row in rows) * (BOX_WIDTH + SPACE)
    lane_at = {room: right + TRACK * 1.5 * index for index, room in enumerate(lanes)}

    # Each gap under a floor has a track for each room to which a line there leads.
    tracks: list[list[str]] = [[] for _ in rows]
    for source, target in sorted(arrows):
        for level in {floor[source], floor[target] + 1}:
            if target not in tracks[level]:
                tracks[level].append(target)

    boxes: dict[str, tuple[float, float]] = {}
    track_at: dict[tuple[int, str], float] = {}
    labels = []
    y = float(MARGIN)
    for level in reversed(range(top + 1)):
        row = rows[level]
        x = LABELS + (right - LABELS - SPACE - len(row) * (BOX_WIDTH + SPACE) + SPACE) / 2
        for room in row:
            boxes[room] = (x, y)
            x += BOX_WIDTH + SPACE
        labels += [(name, y + BOX_HEIGHT / 2) for room, name in FLOORS.items() if room in row]
        y += BOX_HEIGHT + MARGIN
        for target in sorted(tracks[level], key=lambda room: (-floor[room], room)):
            track_at[level, target] = y
            y += TRACK
        y += MARGIN

    def entry(target: str) -> float:
        return boxes[target][0] + BOX_WIDTH / 2

    def next_below(source: str) -> set[str]:
        return {room for room in tracks[floor[source]] if floor[room] == floor[source] - 1}

    lines = {}
    for source in sorted(sizes):
        targets = sorted(target for room, target in arrows if room == source)
        targets.sort(
            key=lambda target: lane_at[target] if floor[source] > floor[target] + 1 else entry(target)
        )
        for index, target in enumerate(targets, 1):
            x = boxes[source][0] + BOX_WIDTH * index / (len(targets) + 1)
            # A line that leaves right above an arrow's end would look like its beginning.
            if any(abs(x - entry(room)) < 3 for room in next_below(source) - {target}):
                x += 5
            line = [(x, boxes[source][1] + BOX_HEIGHT), (x, track_at[floor[source], target])]
            if floor[source] > floor[target] + 1:
                line += [
                    (lane_at[target], line[-1][1]),
                    (lane_at[target], track_at[floor[target] + 1, target]),
                ]
            line += [(entry(target), line[-1][1]), (entry(target), boxes[target][1])]
            lines[source, target] = line
    return Picture(right + TRACK * 1.5 * len(lanes) + MARGIN, y, boxes, lines, labels)


def _describe(rooms: Iterable[str], arrows: set[Arrow]) -> str:
    each = ((room, sorted(target for source, target in arrows if source == room)) for room in rooms)
    return " ".join(f"{room} imports {', '.join(targets) or 'nothing'}." for room, targets in each)


def draw_found(sizes: dict[str, int], arrows: set[Arrow]) -> Drawing:
    """Return the picture of these rooms and arrows."""
    picture = lay_out(sizes, arrows)
    order = sorted(sizes, key=lambda room: (-picture.boxes[room][1], room))
    imported = [room for room in order if any(target == room for _, target in arrows)]
    colour = {room: COLOURS[index % len(COLOURS)] for index, room in enumerate(imported)}
    drawing = Drawing("rooms", "Which room imports which", _describe(order, arrows), picture.width)
    for (source, target), line in sorted(picture.lines.items()):
        drawing.line(line, colour[target], data_from=source, data_to=target)
    for room in order:
        x, y = picture.boxes[room]
        size = "a module" if sizes[room] == 1 else f"{sizes[room]} modules"
        own = colour.get(room, GREY)
        drawing.box(x, y, BOX_WIDTH, BOX_HEIGHT, [room, size], own, bold=True, data_room=room)
        if room in imported:
            middle = x + BOX_WIDTH / 2
            drawing.head([(middle, y - 9), (middle, y)], own)
    for name, y in picture.labels:
        drawing.text(4, y + 4, name, italic=True, size=13)
    return drawing


def draw() -> Drawing:
    """Return the picture of the package."""
    return draw_found(*read(modules()))
