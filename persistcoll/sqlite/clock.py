"""Tell the time by which leases run out and delays end.

The process that opens a database first after the machine's boot sets its clock by the wall clock. Then the
clock runs by the monotonic clock, which is the same for all processes. So a wall clock that is set neither
ends a lease early nor keeps an item back, and all processes agree on the time.
"""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["Clock", "steady"]

Clock = Callable[[], float]
"""Returns seconds since the epoch, by the store's own clock."""


def steady() -> float:
    """Return the seconds since the machine was booted, sleep included if the system counts it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()
