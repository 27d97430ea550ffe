"""Queues that are closed when the test ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from persistcoll import Queue
from persistcoll.engine.records import Durability


@pytest.fixture
def open_queue(tmp_path) -> Iterator[Callable[..., Queue]]:
    """Open ``Queue`` at ``tmp_path / "q"``, or ``name=``; ``"process"`` unless said otherwise."""
    opened: list[Queue] = []

    def make(
        maxsize: int = 0, *, name: str = "q", durability: Durability = "process", **options: Any
    ) -> Queue:
        opened.append(Queue(tmp_path / name, maxsize, durability=durability, **options))
        return opened[-1]

    yield make
    for queue in opened:
        queue.close()


@pytest.fixture
def queue(open_queue: Callable[..., Queue]) -> Queue:
    return open_queue()


@pytest.fixture(params=[False, True], ids=["task_done", "autosave"])
def either(request: pytest.FixtureRequest, open_queue: Callable[..., Queue]) -> Queue:
    """Give a queue that acks by ``task_done()``, and one with autosave."""
    return open_queue(autosave=request.param)
