"""Threads that wait for messages."""

from __future__ import annotations

from typing import Any

from persistcoll import MessageQueue
from persistcoll.engine.message_core import Topics
from tests.queues.waits import until

__all__ = ["asleep", "until_asleep"]


def asleep(queue: MessageQueue[Any], topics: Topics = None) -> int:
    """Return how many threads sleep until a message of these topics is ready."""
    event = queue._core._available.get(topics)
    return 0 if event is None else len(event._wakes)


def until_asleep(queue: MessageQueue[Any], count: int, topics: Topics = None) -> None:
    until(lambda: asleep(queue, topics) == count)
