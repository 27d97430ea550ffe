"""What becomes of an item whose consumer is killed."""

from __future__ import annotations

from docs.pictures.drawing import BLUE, GREEN, ORANGE, VIOLET, Drawing
from docs.pictures.sequence import Lifelines

__all__ = ["draw"]


def draw() -> Drawing:
    """Return the picture. ``tests/docs/test_pictures.py`` does what it shows."""
    drawing = Drawing(
        "redelivery",
        "A consumer is killed, and another one gets its item",
        "A producer puts a job into the queue, which stores it before put returns. Consumer A gets the "
        "job and is killed before task_done. The job is still stored. Consumer B gets it again and "
        "calls task_done. The queue removes the job before task_done returns.",
        456,
    )
    producer, queue, first, second = range(4)
    steps = Lifelines(
        drawing,
        [["producer"], ["queue"], ["consumer", "A"], ["consumer", "B"]],
        [50, 170, 290, 406],
        [BLUE, VIOLET, ORANGE, GREEN],
        92,
    )
    steps.message(producer, queue, "put(job)")
    steps.message(queue, producer, "returns: job is stored", answer=True)
    steps.message(first, queue, "get()")
    steps.message(queue, first, "job, which A has claimed", answer=True)
    steps.death(first, "kill -9")
    steps.note(queue, "job is still stored; its claim ends with A", 180, VIOLET)
    steps.message(second, queue, "get()")
    steps.message(queue, second, "job again", answer=True)
    steps.message(second, queue, "task_done()")
    steps.message(queue, second, "returns: job is removed", answer=True)
    steps.finish()
    return drawing
