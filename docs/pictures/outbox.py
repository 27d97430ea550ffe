"""How a row and the message about it are stored together, and handled in another transaction."""

from __future__ import annotations

from docs.pictures.drawing import GREEN, ORANGE, VIOLET, Drawing
from docs.pictures.sequence import Lifelines

__all__ = ["draw"]


def draw() -> Drawing:
    """Return the picture. ``tests/docs/test_picture_facts.py`` does what it shows."""
    drawing = Drawing(
        "outbox",
        "A row and a message about it commit together, and so do the ack and the rows that it causes",
        "In one transaction a shop inserts an order and puts a message about it, and one commit stores both. "
        "For another order the block raises after the put, and neither the row nor the message is stored. A "
        "worker gets the message of the first order. In one transaction it inserts an invoice and acks the "
        "message, and one commit stores both.",
        456,
    )
    shop, file, worker = range(3)
    steps = Lifelines(
        drawing,
        [["shop"], ["shop.db", "rows, queue"], ["worker"]],
        [60, 228, 396],
        [ORANGE, VIOLET, GREEN],
        104,
    )
    steps.message(shop, file, "INSERT order 1")
    steps.message(shop, file, "put(order 1)")
    steps.note(file, "one commit: the row and the message", 268, VIOLET)
    steps.message(shop, file, "INSERT order 2")
    steps.message(shop, file, "put(order 2)")
    steps.note(shop, "the block raises", 110, ORANGE)
    steps.note(file, "neither the row nor the message", 238, VIOLET)
    steps.message(worker, file, "get()")
    steps.message(file, worker, "order 1", answer=True)
    steps.message(worker, file, "INSERT invoice 1")
    steps.message(worker, file, "ack()")
    steps.note(file, "one commit: the invoice and the ack", 268, VIOLET)
    steps.finish()
    return drawing
