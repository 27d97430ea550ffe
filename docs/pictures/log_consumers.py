"""How two consumers of a log each have a position."""

from __future__ import annotations

from docs.pictures.drawing import BLUE, GREEN, INK, ORANGE, Drawing, measure

__all__ = ["COMMITTED", "COUNT", "READ", "draw"]

COUNT = 7
COMMITTED = {"cashier": 6, "stock": 3}
READ = {"cashier": 6, "stock": 5}
"""By the name of a consumer, the position that it has got last."""

_COLOURS = {"cashier": GREEN, "stock": ORANGE}
_LEFT, _STEP, _GAP = 12, 62, 8
_BOX = _STEP - _GAP


def draw() -> Drawing:
    """Return the picture. ``tests/docs/test_picture_facts.py`` does what it shows."""
    cashier, stock = COMMITTED["cashier"], COMMITTED["stock"]
    drawing = Drawing(
        "log_consumers",
        "A log with two consumers",
        f"A log has the positions 1 to {COUNT}. append stores the next item at {COUNT + 1}. The consumer "
        f"cashier has got and committed all up to {cashier}, and get gives it {cashier + 1}. The consumer "
        f"stock has committed up to {stock} and got up to {READ['stock']}. After a crash get gives it "
        f"{stock + 1} again, because it has not committed that.",
        456,
    )
    drawing.paragraph(_LEFT, 20, 432, "Items stay, and each consumer has a position:")
    for position in range(1, COUNT + 1):
        left = _LEFT + (position - 1) * _STEP
        drawing.box(left, 38, _BOX, 34, str(position), BLUE)
    y = 96.0
    for name, colour in _COLOURS.items():
        y = _consumer(drawing, name, colour, y)
    return drawing


def _consumer(drawing: Drawing, name: str, colour: str, y: float) -> float:
    """Draw what a consumer has committed and got, and return where the next one begins."""
    committed, read = COMMITTED[name], READ[name]
    right = _LEFT + committed * _STEP - _GAP
    drawing.box(_LEFT, y, right - _LEFT, 26, f"{name}: committed", colour, padding=2)
    text = f"get gives {read + 1}, also after a crash"
    if read > committed:
        width = (read - committed) * _STEP - _GAP
        drawing.box(right + _GAP, y, width, 26, "got", colour, dashed=True, padding=2)
        text = f"get gives {read + 1}, and after a crash {committed + 1} again"
    at = _LEFT + read * _STEP + _BOX / 2
    drawing.arrow([(at, y + 44), (at, y - 2)], INK)
    drawing.text(min(at, 444 - measure(text) / 2), y + 58, text, "middle")
    return y + 84
