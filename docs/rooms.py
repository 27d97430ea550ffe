"""Draws which room imports which, from the imports themselves: ``python -m docs.rooms > rooms.svg``.

The page of the architecture holds this picture, drawn anew at each build. A room stands above all rooms that
it imports. All arrows to a room have its colour and join, and those that pass a floor run down at the right.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from html import escape

from tests.api.tree import Module, modules

Arrow = tuple[str, str]

# What a floor is called, if it has one of these rooms.
FLOORS = {"cli": "command, tests", "persistcoll": "the package", "queues": "faces", "journal": "stores"}
# Of the rooms that others import, from below.
COLOURS = (
    "#4c72b0 #dd8452 #8172b3 #55a868 #c44e52 #937860 #da8bc3 "
    "#b5a13c #3f9fb5 #2f8f6f #a05ab5 #8c8c8c #c07f6f #7f9f3f #5f6fd0 #9f2f5f #2f5f8f"
).split()
GREY = "#8c8c8c"

BOX_WIDTH, BOX_HEIGHT, SPACE = 118, 44, 26
LABELS = 96
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


def svg(sizes: dict[str, int], arrows: set[Arrow]) -> str:
    """Return the picture as SVG, in the colour of the text around it."""
    picture = lay_out(sizes, arrows)
    order = sorted(sizes, key=lambda room: (-picture.boxes[room][1], room))
    imported = [room for room in order if any(target == room for _, target in arrows)]
    colour = {room: COLOURS[index % len(COLOURS)] for index, room in enumerate(imported)}
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {picture.width:g} {picture.height:g}"',
        ' role="img" font-family="sans-serif" fill="currentColor" style="max-width: 100%; height: auto">',
        "<title>Which room imports which</title>",
    ]
    for (source, target), line in sorted(picture.lines.items()):
        points = " ".join(f"{x:g},{y:g}" for x, y in line)
        out.append(
            f'<polyline data-from="{source}" data-to="{target}" points="{points}" fill="none"'
            f' stroke="{colour[target]}" stroke-width="1.6" stroke-linejoin="round"/>'
        )
    for room in order:
        x, y = picture.boxes[room]
        own = colour.get(room, GREY)
        size = "a module" if sizes[room] == 1 else f"{sizes[room]} modules"
        middle = x + BOX_WIDTH / 2
        out += [
            f'<g data-room="{room}">',
            f'<rect x="{x:g}" y="{y:g}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="5"',
            f' fill="{own}" fill-opacity="0.2" stroke="{own}" stroke-width="1.6"/>',
            f'<text x="{middle:g}" y="{y + 19:g}" text-anchor="middle" font-size="14"',
            f' font-weight="bold">{escape(room)}</text>',
            f'<text x="{middle:g}" y="{y + 35:g}" text-anchor="middle" font-size="11">{size}</text>',
        ]
        if room in imported:
            out.append(f'<path d="M{middle - 4.5:g} {y - 8:g}h9L{middle:g} {y:g}z" fill="{own}"/>')
        out.append("</g>")
    for name, y in picture.labels:
        out.append(f'<text x="0" y="{y + 4:g}" font-size="12" font-style="italic">{escape(name)}</text>')
    return "\n".join([*out, "</svg>"])


if __name__ == "__main__":
    sys.stdout.write(svg(*read(modules())) + "\n")
