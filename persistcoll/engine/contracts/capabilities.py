"""The promises of a store beyond its contract."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["StoreCapabilities"]


@dataclass(frozen=True)
class StoreCapabilities:
    """What a store promises beyond its contract. The laws test each promise that a store makes. Immutable."""

    total_order: bool = True
    """Whether records of all producers appear in the order of their ids."""
    decodes_once: bool = True
    """Whether a claim calls ``decode`` once for each record, even if a connection is lost meanwhile."""
    death_noticed_after: float = 0.0
    """The seconds after the death of a process after which its holder is dead; infinite: it never is."""
    transactions: bool = False
    """Whether :meth:`~persistcoll.engine.contracts.Store.transaction` works."""
    joins_transactions: bool = False
    """Whether :meth:`~persistcoll.engine.contracts.Store.joined` works."""
    counts_delivered: bool = True
    """Whether only a delivered message loses an attempt when its holder dies or its lease is over. Otherwise
    one that was prefetched does, too. Only message stores have this."""
    max_payload: int | None = None
    """The greatest size of a payload in bytes. Above it a call raises ``EncodeError``. ``None``: no limit."""
