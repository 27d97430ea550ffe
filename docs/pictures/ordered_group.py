"""How a queue keeps the order of a group although two workers get at the same time."""

from __future__ import annotations

from docs.pictures.drawing import GREEN, ORANGE, VIOLET, Drawing
from docs.pictures.sequence import Lifelines

__all__ = ["draw"]


def draw() -> Drawing:
    """Return the picture. ``tests/docs/test_picture_facts.py`` does what it shows."""
    drawing = Drawing(
        "ordered_group",
        "Two workers get at the same time, and the events of an account keep their order",
        "A queue has three messages: open and deposit in the group ann, and open in the group bob. Ann's "
        "deposit is blocked until her open is finished. Worker A gets ann's open, and worker B bob's open. "
        "B gets again and finds nothing that is ready. A acks, which makes ann's deposit ready, and B gets "
        "that.",
        456,
    )
    first, queue, second = range(3)
    steps = Lifelines(
        drawing,
        [["worker", "A"], ["queue"], ["worker", "B"]],
        [60, 228, 396],
        [ORANGE, VIOLET, GREEN],
        104,
    )
    steps.note(queue, "ready: ann: open, bob: open; blocked: ann: deposit", 208, VIOLET)
    steps.message(first, queue, "get()")
    steps.message(queue, first, "ann: open", answer=True)
    steps.message(second, queue, "get()")
    steps.message(queue, second, "bob: open", answer=True)
    steps.message(second, queue, "get(timeout=0)")
    steps.message(queue, second, "Empty", answer=True)
    steps.message(first, queue, "ack()")
    steps.note(queue, "ann: deposit is ready", 180, VIOLET)
    steps.message(second, queue, "get()")
    steps.message(queue, second, "ann: deposit", answer=True)
    steps.finish()
    return drawing
