"""Boxes, arrows and labels as SVG, which refuses a text that has no room.

A picture is readable on a light and on a dark page. In a page of the documentation its ink and its paper are
those of the theme. Anywhere else the SVG's own style follows the reader's colour scheme. The other colours
are strong enough on both, and no picture says anything by colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

__all__ = [
    "BLUE",
    "GREEN",
    "GREY",
    "INK",
    "ORANGE",
    "PAPER",
    "RED",
    "SIZE",
    "VIOLET",
    "Drawing",
    "Point",
    "measure",
    "wrap",
]

Point = tuple[float, float]

INK, PAPER = "var(--pc-ink)", "var(--pc-paper)"
BLUE, ORANGE, GREEN, RED, VIOLET, GREY = "#4c78b8 #c06a1c #3b8a50 #c9494f #8468bd #7d7d7d".split()
SCHEMES = {"light": {"ink": "#1f2328", "paper": "#ffffff"}, "dark": {"ink": "#e6edf3", "paper": "#0d1117"}}
_THEME = {"ink": "--color-foreground-primary", "paper": "--color-background-primary"}

SIZE = 14
"""Of the letters, unless a text says otherwise."""
PADDING = 7
_LEAST = 11  # pixels of the smallest letters on a narrow screen, where a wide picture is scrolled
_COLUMN = 700  # pixels of a page's column on a wide screen, where none is

# Hundredths of the size: for each character its width in the widest of the common fonts.
_WIDTHS = {
    28: "'ijl", 30: "I", 32: " \u00a0,.", 34: "/:;\\|", 36: "f", 37: "-", 40: "()[]t", 41: "!", 42: "r",
    46: '"', 50: "*J`", 53: "sz", 55: "c", 56: "?L_", 58: "k", 60: "vxy", 62: "FTaeo",
    64: "$0123456789bdghnpqu{}", 67: "EKPSY", 69: "ABVXZ", 73: "CR", 74: "U", 75: "N", 76: "H", 78: "&DG",
    79: "OQ", 82: "w", 84: "#+<=>^~", 87: "M", 96: "%", 98: "m", 99: "W", 100: "…", 102: "@",
}  # fmt: skip
_WIDTH = {character: width / 100 for width, characters in _WIDTHS.items() for character in characters}
_BOLD, _MONO = 1.2, 0.61


def measure(text: str, size: float = SIZE, bold: bool = False, mono: bool = False) -> float:
    """Return the width of a text in any of the common fonts, or more.

    :raise KeyError: the width of a character is not known.
    """
    if mono:
        return size * _MONO * len(text)
    return size * (_BOLD if bold else 1.0) * sum(_WIDTH[character] for character in text)


def wrap(text: str, width: float, size: float = SIZE) -> list[str]:
    """Return the lines of a text.

    :raise ValueError: a word is wider than that.
    """
    lines = [""]
    for word in text.split(" "):
        if measure(word, size) > width:
            raise ValueError(f"{word!r} has no room in {width:g}")
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if measure(longer, size) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _attributes(**values: object) -> str:
    return "".join(f' {name.replace("_", "-")}="{_value(value)}"' for name, value in values.items())


def _value(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, (int, float)) else escape(str(value))


def _style() -> str:
    def variables(scheme: dict[str, str]) -> str:
        each = (f"--pc-{name}:var({_THEME[name]},{colour})" for name, colour in scheme.items())
        return f".pc{{{';'.join(each)}}}"

    dark = variables(SCHEMES["dark"])
    return f"<style>{variables(SCHEMES['light'])}@media(prefers-color-scheme:dark){{{dark}}}</style>"


class Drawing:
    """A picture that becomes as high as what is drawn.

    :ivar name: of the picture, unique in a page.
    :ivar title: what it shows, in a few words.
    :ivar description: what it says, for readers who do not see it.
    :ivar least_width: pixels; where there are fewer, a page scrolls the picture.
    """

    def __init__(self, name: str, title: str, description: str, width: float) -> None:
        self.name = name
        self.title = title
        self.description = description
        self.width = width
        self.height = 0.0
        self._smallest = float(SIZE)
        self._parts: list[str] = []

    @property
    def least_width(self) -> float:
        """The width in pixels from which on its smallest letters can be read."""
        return min(_COLUMN, round(self.width * _LEAST / self._smallest))

    def _reach(self, *points: Point) -> None:
        for x, y in points:
            if not (0 <= x <= self.width and y >= 0):
                raise ValueError(f"{self.name}: ({x:g}, {y:g}) lies outside")
            self.height = max(self.height, y + 12)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        anchor: str = "start",
        size: float = SIZE,
        bold: bool = False,
        italic: bool = False,
        mono: bool = False,
    ) -> None:
        """Write one line, whose letters stand on ``y``.

        :raise ValueError: it would pass an edge.
        """
        width = measure(text, size, bold, mono)
        left = x - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
        self._reach((left, y - size), (left + width, y))
        self._smallest = min(self._smallest, size)
        style = {"font_weight": "bold"} if bold else {}
        style |= {"font_style": "italic"} if italic else {}
        style |= {"font_family": "ui-monospace, monospace"} if mono else {}
        head = _attributes(x=x, y=y, text_anchor=anchor, font_size=size, **style)
        self._parts.append(f"<text{head}>{escape(text, quote=False)}</text>")

    def lines(
        self, x: float, y: float, lines: Iterable[str], anchor: str = "start", size: float = SIZE
    ) -> float:
        """Write lines below each other, the first on ``y``, and return where the next one would stand."""
        for line in lines:
            self.text(x, y, line, anchor, size)
            y += size * 1.25
        return y

    def paragraph(
        self, x: float, y: float, width: float, text: str, anchor: str = "start", size: float = SIZE
    ) -> float:
        """Write a text in as many lines as it needs, and return where the next one would stand."""
        return self.lines(x, y, wrap(text, width, size), anchor, size)

    def rectangle(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        colour: str = GREY,
        fill: float = 0.14,
        dashed: bool = False,
        corner: float = 5,
    ) -> None:
        """Draw a rectangle, filled with a part of its colour."""
        self._reach((x, y), (x + width, y + height))
        dash = {"stroke_dasharray": "5 4"} if dashed else {}
        head = _attributes(x=x, y=y, width=width, height=height, rx=corner, fill=colour, fill_opacity=fill)
        self._parts.append(f"<rect{head}{_attributes(stroke=colour, stroke_width=1.6, **dash)}/>")

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        text: str | Sequence[str],
        colour: str = GREY,
        size: float = SIZE,
        bold: bool = False,
        fill: float = 0.14,
        dashed: bool = False,
        padding: float = PADDING,
        **data: str,
    ) -> None:
        """Draw a rectangle with lines in its middle, the first of them bold if ``bold`` says so.

        :param data: attributes of the element, such as ``data_room``.

        :raise ValueError: a line has no room in it.
        """
        lines = [text] if isinstance(text, str) else text
        for index, line in enumerate(lines):
            if measure(line, size, bold and not index) > width - 2 * padding:
                raise ValueError(f"{self.name}: {line!r} has no room in a box of {width:g}")
        if len(lines) * size * 1.25 > height:
            raise ValueError(f"{self.name}: {len(lines)} lines have no room in a box of {height:g}")
        self._parts.append(f"<g{_attributes(**data)}>")
        self.rectangle(x, y, width, height, colour, fill, dashed)
        at = y + height / 2 - (len(lines) - 1) * size * 0.625 + size * 0.36
        for index, line in enumerate(lines):
            self.text(x + width / 2, at, line, "middle", size, bold and not index)
            at += size * 1.25
        self._parts.append("</g>")

    def line(
        self,
        points: Sequence[Point],
        colour: str = INK,
        dashed: bool = False,
        width: float = 1.6,
        **data: str,
    ) -> None:
        """Draw a line from corner to corner.

        :param data: attributes of the element, such as ``data_from``.
        """
        self._reach(*points)
        dash = {"stroke_dasharray": "5 4"} if dashed else {}
        corners = " ".join(f"{x:.6g},{y:.6g}" for x, y in points)
        head = _attributes(points=corners, fill="none", stroke=colour, stroke_width=width)
        self._parts.append(f"<polyline{head}{_attributes(stroke_linejoin='round', **dash, **data)}/>")

    def arrow(self, points: Sequence[Point], colour: str = INK, dashed: bool = False) -> None:
        """Draw a line with a head at its end."""
        self.line(self.head(points, colour), colour, dashed)

    def head(self, points: Sequence[Point], colour: str) -> list[Point]:
        """Draw the head of an arrow, and return the line without the part that the head covers."""
        (x0, y0), (x, y) = points[-2:]
        length = ((x - x0) ** 2 + (y - y0) ** 2) ** 0.5
        dx, dy = (x - x0) / length, (y - y0) / length
        back = (x - 9 * dx, y - 9 * dy)
        corners = [(x, y), (back[0] - 4.5 * dy, back[1] + 4.5 * dx), (back[0] + 4.5 * dy, back[1] - 4.5 * dx)]
        path = "L".join(f"{at_x:.6g} {at_y:.6g}" for at_x, at_y in corners)
        self._parts.append(f"<path{_attributes(d=f'M{path}z', fill=colour)}/>")
        return [*points[:-1], (x - 7 * dx, y - 7 * dy)]

    def cross(self, x: float, y: float) -> None:
        """Draw an X."""
        for slope in (8, -8):
            self.line([(x - 8, y - slope), (x + 8, y + slope)], RED, width=3)

    def dot(self, x: float, y: float) -> None:
        """Draw a filled circle."""
        self._reach((x, y))
        self._parts.append(f"<circle{_attributes(cx=x, cy=y, r=4, fill=INK)}/>")

    def zigzag(self, x: float, right: float, y: float) -> None:
        """Draw a jagged line across, as that of a cut."""
        count = max(2, int((right - x) / 12))
        step = (right - x) / count
        points = [(x + step * index, y + (4 if index % 2 else -4)) for index in range(count + 1)]
        self.line(points, RED, width=2)

    def svg(self, in_page: bool = False) -> str:
        """Return the picture as SVG.

        :param in_page: it becomes an element of a page, as wide as its place there. Otherwise it is a file,
            whose paper is painted, because a page may be dark where the reader's system is light.
        """
        width, height = math.ceil(self.width), math.ceil(self.height)
        ids = f"{self.name}-title", f"{self.name}-description"
        style = "color:var(--pc-ink)"
        sizes = {}
        if in_page:
            style += f";display:block;width:100%;height:auto;min-width:{self.least_width}px"
        else:
            sizes = {"width": width, "height": height}
        head = _attributes(
            xmlns="http://www.w3.org/2000/svg",
            viewBox=f"0 0 {width:g} {height:g}",
            **sizes,
            role="img",
            aria_labelledby=ids[0],
            aria_describedby=ids[1],
            font_family="system-ui, sans-serif",
            fill="currentColor",
            **{"class": "pc"},
            style=style,
        )
        paper = f"<rect{_attributes(width=width, height=height, rx=8, fill=PAPER)}/>"
        return "\n".join(
            [
                f"<svg{head}>",
                f'<title id="{ids[0]}">{escape(self.title, quote=False)}</title>',
                f'<desc id="{ids[1]}">{escape(self.description, quote=False)}</desc>',
                _style(),
                *([] if in_page else [paper]),
                *self._parts,
                "</svg>",
            ]
        )
