"""What a transaction makes of a consumer that is killed between its result and its ack."""

from __future__ import annotations

from docs.pictures.drawing import GREEN, ORANGE, VIOLET, Drawing
from docs.pictures.sequence import Lifelines

__all__ = ["draw"]


def draw() -> Drawing:
    """Return the picture. ``tests/docs/test_picture_facts.py`` does what it shows."""
    drawing = Drawing(
        "transaction",
        "A consumer is killed in the middle of a transaction, and its result is stored once",
        "A queue named orders and a dict named sold lie in one file. Consumer A gets an order. In a "
        "transaction it counts the order in sold and acks it, and it is killed before the block ends. "
        "Nothing of the block is stored. Consumer B gets the order again, and does the same. At the end of "
        "its block one commit stores both: the count is 1, and the order is removed.",
        456,
    )
    first, file, second = range(3)
    steps = Lifelines(
        drawing,
        [["consumer", "A"], ["shop.db", "orders, sold"], ["consumer", "B"]],
        [60, 228, 396],
        [ORANGE, VIOLET, GREEN],
        110,
    )
    steps.message(first, file, "orders.get()")
    steps.message(file, first, "order", answer=True)
    steps.message(first, file, "transaction()")
    steps.message(first, file, "sold.incr(order)")
    steps.message(first, file, "orders.ack(order)")
    steps.death(first, "kill -9")
    steps.note(file, "no commit: sold is as before, and order is not acked", 230, VIOLET)
    steps.message(second, file, "orders.get()")
    steps.message(file, second, "order again", answer=True)
    steps.message(second, file, "transaction()")
    steps.message(second, file, "sold.incr(order)")
    steps.message(second, file, "orders.ack(order)")
    steps.message(second, file, "the block ends: commit")
    steps.note(file, "one commit: sold counts 1, and order is removed", 230, VIOLET)
    steps.finish()
    return drawing
