"""What a store promises beyond its contract, or cannot promise."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["StoreCapabilities"]


@dataclass(frozen=True)
class StoreCapabilities:
    """What a store says of itself. The laws check what it promises, and say which of them it cannot keep."""

    total_order: bool = True
    """Whether records appear in the order of their ids, whichever producer they are from."""
    decodes_once: bool = True
    """Whether a claim calls ``decode`` once for each record, also where a connection is lost meanwhile."""
    death_noticed_after: float = 0.0
    """Seconds after which a holder whose process died is dead."""
    joins_transactions: bool = False
    """Whether :meth:`~persistcoll.engine.contracts.QueueStore.joined` works."""
    max_payload: int | None = None
    """How many bytes a payload may have; above it ``EncodeError`` is raised. ``None``: as memory allows."""
