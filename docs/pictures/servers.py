"""Processes on several machines, and what the server does for them."""

from __future__ import annotations

from docs.pictures.drawing import BLUE, GREEN, ORANGE, VIOLET, Drawing
from docs.pictures.sequence import Lifelines
from persistcoll.servers.holders import _BEATS
from persistcoll.servers.open import PATIENCE
from persistcoll.servers.wakes import _LONGEST_POLL_ALONE

__all__ = ["draw"]


def draw() -> Drawing:
    """Return the picture."""
    beat, poll = f"{PATIENCE / _BEATS:g}\u00a0s", f"{_LONGEST_POLL_ALONE * 1000:g}\u00a0ms"
    drawing = Drawing(
        "servers",
        "A machine dies, and another one gets its item from the server",
        "A consumer waits in get. A producer on another machine puts an item. PostgreSQL notifies the "
        f"consumer; on MySQL the consumer asks at least every {poll}. The consumer claims the item and "
        f"sends a heartbeat every {beat}. Its machine dies. After {PATIENCE:g} s without a heartbeat "
        "the claim has ended, in a message queue when its lease is over. A consumer on a third machine "
        "gets the item again and acks it.",
        456,
    )
    producer, server, first, second = range(4)
    steps = Lifelines(
        drawing,
        [["machine 1", "producer"], ["the server"], ["machine 2", "consumer A"], ["machine 3", "consumer B"]],
        [54, 170, 286, 402],
        [BLUE, VIOLET, ORANGE, GREEN],
        104,
    )
    steps.message(first, server, "get() finds nothing and waits")
    steps.message(producer, server, "put(item): commit")
    steps.message(server, first, "PostgreSQL: NOTIFY", answer=True)
    steps.message(first, server, f"MySQL: asks at least every {poll}")
    steps.message(first, server, "get(): A has claimed item")
    steps.message(first, server, f"heartbeat every {beat}")
    steps.death(first, "dies")
    steps.note(
        server,
        f"{PATIENCE:g} s without a heartbeat, or in a message queue at the end of the lease: A's claim "
        "has ended",
        240,
        VIOLET,
    )
    steps.message(second, server, "get(): B has claimed item")
    steps.message(second, server, "ack(item): commit")
    steps.finish()
    return drawing
