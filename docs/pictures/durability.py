"""How far a put has come when it returns, and what a crash takes away."""

from __future__ import annotations

from docs.pictures.drawing import BLUE, GREEN, SIZE, VIOLET, Drawing

__all__ = ["draw"]

_LEFT, _WIDTH, _RIGHT = 10, 196, 222


def draw() -> Drawing:
    """Return the picture."""
    drawing = Drawing(
        "durability",
        "What survives kill -9, and what survives a power cut",
        "From top to bottom: the program calls put(item). A write passes the item to the page cache of "
        'the operating system, and a put with durability="process" returns. A sync passes it on to the '
        'device, and a put with durability="power", the default, returns. kill -9 takes away only what '
        "has not left the program. A power cut takes away also what is only in the page cache.",
        440,
    )
    layers = [
        (["the program", "put(item)"], BLUE),
        (["the page cache", "of the operating system"], VIOLET),
        (["the device"], GREEN),
    ]
    for index, (lines, colour) in enumerate(layers):
        drawing.box(_LEFT, 10 + index * 150, _WIDTH, 56, lines, colour, bold=True)
    steps = [
        ("write", 'returns at durability="process"', "kill -9 cuts here", "What is above is lost."),
        ("sync", 'returns at durability="power"', "a power cut cuts here", "What is above is lost."),
    ]
    middle = _LEFT + _WIDTH / 2
    for index, (step, returns, cut, loss) in enumerate(steps):
        top = 66 + index * 150
        drawing.arrow([(middle - 40, top), (middle - 40, top + 94)])
        drawing.text(middle - 26, top + 30, step, bold=True)
        drawing.zigzag(_LEFT, _LEFT + _WIDTH, top + 52)
        drawing.text(_RIGHT, top + 49, cut, bold=True)
        drawing.text(_RIGHT, top + 49 + SIZE * 1.25, loss)
        _returned(drawing, top + 94 + 28, returns)
    drawing.height += 4
    return drawing


def _returned(drawing: Drawing, y: float, text: str) -> None:
    """Draw that a put returns when its item is in the layer at ``y``."""
    drawing.arrow([(_LEFT + _WIDTH, y), (_RIGHT + 6, y)])
    verb, _, level = text.rpartition(" ")
    drawing.lines(_RIGHT + 14, y - 4, [f"put {verb}", level])
