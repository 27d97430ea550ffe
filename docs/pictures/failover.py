"""What becomes of an item whose server is killed, when a standby has it."""

from __future__ import annotations

from docs.pictures.drawing import BLUE, GREEN, ORANGE, Drawing
from docs.pictures.sequence import Lifelines

__all__ = ["draw"]


def draw() -> Drawing:
    """Return the picture. ``tests/clusters/test_pair.py`` does what it shows."""
    drawing = Drawing(
        "failover",
        "A primary is killed, and its standby has what was put",
        "A program puts an item into a queue on the primary db1. The commit waits until the standby db2 has "
        "it, so put returns after that. The primary is killed. The program's next get finds no server that "
        "may be written to, and tries again. An administrator or a tool promotes db2. The next try reaches "
        "db2, and get returns the item.",
        456,
    )
    program, primary, standby = range(3)
    steps = Lifelines(
        drawing,
        [["program"], ["db1", "primary"], ["db2", "standby"]],
        [60, 228, 396],
        [BLUE, ORANGE, GREEN],
        104,
    )
    steps.message(program, primary, "put(item): commit")
    steps.message(primary, standby, "the commit")
    steps.message(standby, primary, "is on the disk", answer=True)
    steps.message(primary, program, "returns: item is on both", answer=True)
    steps.death(primary, "kill -9")
    steps.message(program, standby, "get(): db1 does not answer, db2 may not be written to")
    steps.note(program, "tries again, for timeout seconds", 116, BLUE)
    steps.note(standby, "is promoted: primary", 104, GREEN)
    steps.message(program, standby, "get() tries again")
    steps.message(standby, program, "item", answer=True)
    steps.finish()
    return drawing
