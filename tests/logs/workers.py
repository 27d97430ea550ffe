"""Logs in other processes, and what the tests have them do there. See ``tests/concurrency/workers.py``."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from persistcoll import Log
from tests.concurrency.workers import Remote, _Teller

__all__ = ["append", "collect", "hold", "open_there", "remote_log", "wait_for_items"]


def open_there(path: str, **options: Any) -> Log:
    return Log(path, durability="process", **options)


@contextmanager
def remote_log(path: Path, **options: Any) -> Iterator[Remote]:
    """Open the log in another process, until the end of the block."""
    remote = Remote(open_there, path=str(path), **options)
    try:
        yield remote
    finally:
        remote.close()


def append(log: Any, tell: _Teller, *items: Any) -> float:
    """Append items, and return when."""
    for item in items:
        log.append(item)
    return time.monotonic()


def hold(log: Any, tell: _Teller, name: str, gets: int = 0) -> None:
    """Open a consumer, get items, tell them, and keep the consumer open until told."""
    with log.consumer(name) as consumer:
        tell([consumer.get() for _ in range(gets)])
        tell.wait()


def wait_for_items(log: Any, tell: _Teller, name: str, count: int) -> list[tuple[Any, float]]:
    """Follow a consumer for so many items, and return each with the time at which it came."""
    found: list[tuple[Any, float]] = []
    with log.consumer(name) as consumer:
        tell("follows")
        for item in consumer.follow():
            found.append((item, time.monotonic()))
            if len(found) == count:
                return found
    return found


def collect(log: Any, tell: _Teller, name: str, count: int) -> list[Any]:
    """Get so many items with a consumer of that name, as they come."""
    with log.consumer(name) as consumer:
        tell("open")
        found: list[Any] = []
        while len(found) < count:
            found += consumer.get_many(count - len(found), timeout=60)
        consumer.commit()
        return found
