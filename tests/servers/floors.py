"""Stores on servers whose looks begin at the floor."""

from __future__ import annotations

import math
import time
from typing import Any, TypeVar

from persistcoll.servers import heads
from persistcoll.servers.heads import Heads, Look
from tests.servers.set_clock import SetClock

__all__ = ["AtLastClaim", "FromFloor", "FromLastClaim", "from_floor"]

T = TypeVar("T")


class AtLastClaim(Heads):
    """The floor is the last claim, so a test need not wait until it is.

    What another object put before, and commits later, is found by the next full look.
    """

    def claimed(self, look: Look, place: float, id: int, topic: bytes | None = None) -> None:
        self._floors[topic] = heads._Floor((place, id), (place, id), look.began)


class FromFloor(Heads):
    """Each look begins at the floor, if there is one, however quick full looks are.

    :ivar found: how many looks from the floor found something.
    """

    found = 0

    def _pace(self, *key: object) -> heads._Pace:
        pace = super()._pace(*key)
        pace.until = math.inf
        return pace

    def look(self, *arguments: Any, **options: Any) -> Look:
        look = super().look(*arguments, **options)
        self.found += not look.is_full
        return look


class FromLastClaim(FromFloor, AtLastClaim):
    """Each look begins at the last claim of its object, if there is one."""


def from_floor(store: T, clock: SetClock | None = None, heads: type[Heads] = FromLastClaim) -> T:
    """Let the looks of a store begin at its last claim.

    :param clock: that of the server. The heads have to follow it: otherwise a look from the floor, to which
        they change on a busy machine, would not see what the set clock has made due.
    :param heads: ``Heads``: only follow the clock.
    """
    changed: Any = store
    changed._heads = heads(lambda: time.monotonic() + (0.0 if clock is None else clock.passed))
    return store
