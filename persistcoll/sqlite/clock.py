"""The clock by which leases run out and delays end.

It is set by the wall clock once for each boot of the machine, by whoever opens the database first, and
then runs by the monotonic clock, which is the same for all processes. So a wall clock that is moved neither
ends a lease early nor keeps an item back, and all processes agree on the time.
"""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["Clock", "boot", "steady"]

Clock = Callable[[], float]
"""Seconds since the epoch, by the store's own reckoning."""

_BOOT_ID = "/proc/sys/kernel/random/boot_id"


def boot() -> str | None:
    """What tells this boot of the machine from all others; ``None`` where the system does not say."""
    try:
        with open(_BOOT_ID, encoding="ascii") as file:
            return file.read().strip()
    except (OSError, ValueError):
        return None


def steady() -> float:
    """Seconds since the machine was booted, sleep included where the system counts it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()
