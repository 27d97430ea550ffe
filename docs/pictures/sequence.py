"""Sequences: what parties tell each other, from top to bottom."""

from __future__ import annotations

from collections.abc import Sequence

from docs.pictures.drawing import GREY, INK, SIZE, Drawing, measure, wrap

__all__ = ["Lifelines"]

_HEAD, _GAP, _LINE = 44, 14, SIZE * 1.25


class Lifelines:
    """Draws parties side by side, and what passes between them, one step below the other.

    :param parties: the lines of each party's box.
    :param at: where the line of each party stands.
    """

    def __init__(
        self,
        drawing: Drawing,
        parties: Sequence[Sequence[str]],
        at: Sequence[float],
        colours: Sequence[str],
        box: float,
    ) -> None:
        self._drawing = drawing
        self._at = at
        self._y = 8.0 + _HEAD
        self._since = [self._y] * len(parties)
        self._ends: dict[int, float] = {}
        for lines, x, colour in zip(parties, at, colours, strict=True):
            drawing.box(x - box / 2, 8, box, _HEAD, lines, colour, bold=True, padding=3)

    def message(self, source: int, target: int, text: str, answer: bool = False) -> None:
        """Draw an arrow with its text above; that of an answer is dashed."""
        start, end = self._at[source], self._at[target]
        self._y += _GAP
        self._label(min(start, end), max(start, end), text)
        sign = 1 if end > start else -1
        self._drawing.arrow([(start + 3 * sign, self._y), (end - 3 * sign, self._y)], INK, dashed=answer)

    def _label(self, left: float, right: float, text: str) -> None:
        """Write a text between two lines, and leave ``_y`` below it."""
        lines = wrap(text, right - left - 14)
        self._y += SIZE
        self._drawing.lines((left + right) / 2, self._y, lines, "middle")
        self._interrupt(left, right, len(lines))
        self._y += (len(lines) - 1) * _LINE + 7

    def _interrupt(self, left: float, right: float, count: int) -> None:
        """Interrupt the lines of the parties that a text covers."""
        for party, x in enumerate(self._at):
            if left < x < right:
                self._stretch(party, self._y - SIZE)
                self._since[party] = self._y + (count - 1) * _LINE + 5

    def _stretch(self, party: int, end: float) -> None:
        if party not in self._ends and end > self._since[party]:
            x = self._at[party]
            self._drawing.line([(x, self._since[party]), (x, end)], GREY, dashed=True, width=1.2)

    def note(self, party: int, text: str, width: float, colour: str = GREY) -> None:
        """Write on a party's line what is so or happens there."""
        lines = wrap(text, width - 14)
        self._y += _GAP
        height = len(lines) * _LINE + 8
        x = min(max(self._at[party] - width / 2, 2), self._drawing.width - width - 2)
        for other, at in enumerate(self._at):
            if x <= at <= x + width:
                self._stretch(other, self._y)
                self._since[other] = self._y + height
        self._drawing.box(x, self._y, width, height, lines, colour)
        self._y += height

    def death(self, party: int, text: str) -> None:
        """End a party's line with a cross, and say by what."""
        x = self._at[party]
        self._y += _GAP + 8
        self._stretch(party, self._y)
        self._ends[party] = self._y
        self._drawing.cross(x, self._y)
        room = measure(text, bold=True)
        right = x + 14 + room <= self._drawing.width
        self._drawing.text(
            x + 14 if right else x - 14, self._y + 5, text, "start" if right else "end", bold=True
        )
        self._y += 8

    def finish(self) -> None:
        """End all lines."""
        self._y += _GAP
        for party in range(len(self._at)):
            self._stretch(party, self._y)
