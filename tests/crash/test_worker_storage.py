"""Workers on a database that is locked, full, or taken away."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from persistcoll import MessageQueue, StoreReplacedError, Worker
from tests.crash.test_sqlite_full import fill
from tests.crash.test_sqlite_full import small_disk as small_disk
from tests.messages.workers import Held, quick_pauses, running
from tests.queues.waits import until


def opened(path: Path, **options: Any) -> MessageQueue[Any]:
    return MessageQueue(path, serializer="json", **options)


@pytest.mark.parametrize("when", ["it claims", "a handler has returned"])
def test_a_database_that_another_object_has_locked(tmp_path, monkeypatch, caplog, when):
    """The worker tries again until the transaction has ended."""
    quick_pauses(monkeypatch)
    with opened(tmp_path, timeout=0.05, durability="process") as queue, opened(tmp_path) as other:
        held = Held()
        worker = Worker(queue, held)
        with running(worker):
            if when != "it claims":
                queue.put("a")
                held.begun()
            with other.transaction():
                if when == "it claims":
                    other.put("a")
                held.open()
                # A change that no worker sees yet wakes none, so this one is told to look.
                worker._wake()
                until(lambda: caplog.text.count("has had a transaction open") > 3)
            until(lambda: held.handled == ["a"])
            until(lambda: other.topics() == {})


@pytest.mark.needs("root", "mount")
@pytest.mark.parametrize("durability", ["power", "process"])
def test_a_full_disk(small_disk, monkeypatch, caplog, durability):
    """The worker waits for room, and then handles all that was stored."""
    quick_pauses(monkeypatch, 0.01)
    with opened(small_disk / "queue", durability=durability) as queue:
        count = len(fill(queue))
        assert count > 100
        got: list[int] = []
        with running(Worker(queue, lambda message: got.append(message.body[0]), prefetch=8)):
            until(lambda: "tries again" in caplog.text)
            subprocess.run(["mount", "-o", "remount,size=16m", str(small_disk)], check=True)
            until(lambda: queue.topics() == {}, 60)
    assert sorted(set(got)) == [*range(count)]
    assert len(got) == count


def test_a_database_that_is_removed(tmp_path):
    """The worker ends, and says why, when its handler has returned."""
    place = tmp_path / "queue"
    queue = opened(place)
    queue.put("a")
    held = Held()
    worker = Worker(queue, held)
    with running(worker, StoreReplacedError):
        held.begun()
        place.rename(tmp_path / "elsewhere")
        place.mkdir()
        held.open()
        until(lambda: worker._stops)
    assert held.handled == ["a"]
    with pytest.raises(StoreReplacedError):
        queue.put("b")
    queue.close()
