"""The pictures of the documentation, each drawn by a function from the code or the results that it shows.

A build of the documents draws them anew. Those that the README shows are files in ``svg``, which
``python -m docs.pictures`` writes.
"""

from __future__ import annotations

from collections.abc import Callable

from docs.pictures import (
    durability,
    failover,
    log_consumers,
    message_life,
    ordered_group,
    outbox,
    plots,
    queue_files,
    redelivery,
    rooms,
    servers,
    transaction,
    wake_up,
)
from docs.pictures.drawing import Drawing

__all__ = ["PICTURES", "STORED"]

PICTURES: dict[str, Callable[[], Drawing]] = {
    "backlog": plots.backlog,
    "batches": plots.batches,
    "durability": durability.draw,
    "failover": failover.draw,
    "log_consumers": log_consumers.draw,
    "message_life": message_life.draw,
    "neighbours": plots.neighbours,
    "ordered_group": ordered_group.draw,
    "outbox": outbox.draw,
    "queue_files": queue_files.draw,
    "redelivery": redelivery.draw,
    "rooms": rooms.draw,
    "servers": servers.draw,
    "speed": plots.speed,
    "threads": plots.threads,
    "transaction": transaction.draw,
    "wake_up": wake_up.draw,
}

STORED = ("durability", "neighbours", "redelivery")
"""The names of those that the README shows."""
