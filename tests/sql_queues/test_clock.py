"""Clocks that jump: the system's time is set, or the machine boots, perhaps without a boot id."""

from __future__ import annotations

import time
from typing import Any

import pytest

from persistcoll import Empty, PriorityQueue, SQLiteAckQueue, SQLiteQueue
from persistcoll.sqlite import schema
from persistcoll.testing.children import in_forked_child

HOUR = 3600.0
JUMPS = [-1e9, -HOUR, HOUR, 1e9]


class Machine:
    """A machine's two clocks: the one that can be set, and the one that only runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wall = 1_800_000_000.0
        self.running = 5000.0
        self.boot_id: str | None = "first"
        monkeypatch.setattr(time, "time", lambda: self.wall)
        monkeypatch.setattr(schema, "steady", lambda: self.running)
        monkeypatch.setattr(schema, "boot_id", lambda: self.boot_id)

    def wait(self, seconds: float) -> None:
        self.wall += seconds
        self.running += seconds

    def boot(self, off: float) -> None:
        """Boot after the machine was off for so many seconds."""
        self.wall += off
        self.running, self.boot_id = 10.0, "next"


@pytest.fixture
def machine(monkeypatch) -> Machine:
    return Machine(monkeypatch)


@pytest.fixture
def opened(tmp_path):
    queues: list[Any] = []

    def opening(kind: type[Any] = SQLiteAckQueue, **options: Any) -> Any:
        queues.append(kind(tmp_path / "q", durability="process", **options))
        return queues[-1]

    yield opening
    for queue in queues:
        queue.close()


@pytest.mark.parametrize("jump", JUMPS)
@pytest.mark.parametrize("when", ["while it is open", "between two openings", "in another process"])
def test_leases_and_delays_keep_their_length(machine, opened, jump, when):
    queue = opened(lease=100, auto_resume=False)
    queue.put_many(["leased", "delayed"])
    queue.get()
    queue.nack(queue.get(), delay=100)
    machine.wall += jump
    if when == "between two openings":
        queue.close()
        queue = opened(lease=100, auto_resume=False)

    def after(seconds: float, waiting: int) -> None:
        machine.wait(seconds)
        if when == "in another process":
            machine.wall += jump  # the system's time is set again, each time
            in_forked_child(lambda: check(waiting))
        check(waiting)

    def check(waiting: int) -> None:
        assert queue.qsize() == waiting
        assert queue.stats().delayed == queue.unack_count() == (0 if waiting else 1)

    after(0, 0)
    after(99, 0)
    after(1, 2)
    assert queue.get_many(2) == ["leased", "delayed"]


@pytest.mark.parametrize("jump", JUMPS)
def test_order_and_ids_do_not_come_from_times(machine, opened, jump):
    for kind in (SQLiteQueue, PriorityQueue):
        queue = opened(kind, name=kind.__name__)
        assert queue.put("first") == 1
        machine.wall += jump
        assert queue.put("next") == 2
        machine.wall -= 2 * jump
        assert queue.put("last") == 3
        stats = queue.stats()
        assert stats.oldest_age is not None
        assert stats.oldest_age >= 0
        assert queue.get_many(3) == ["first", "next", "last"]


@pytest.mark.parametrize("jump", JUMPS)
def test_waiting_keeps_its_length(machine, opened, jump):
    queue = opened(SQLiteQueue)
    begun = time.monotonic()
    with pytest.raises(Empty):
        queue.get(timeout=0.05)
    machine.wall += jump
    with pytest.raises(Empty):
        queue.get(timeout=0.05)
    assert 0.1 <= time.monotonic() - begun < 10


@pytest.mark.parametrize("off", [0, 50])
def test_after_a_boot_the_systems_time_counts_once(machine, opened, off):
    """The time while the machine was off has passed, if its clock says so."""
    queue = opened()
    queue.put("delayed")
    queue.nack(queue.get(), delay=100)
    queue.close()
    machine.boot(off)
    queue = opened()
    machine.wall += HOUR  # then it is set by hand
    machine.wait(99 - off)
    assert queue.qsize() == 0
    machine.wait(1)
    assert queue.get(timeout=0) == "delayed"


def test_a_boot_with_a_wrong_clock(machine, opened):
    """A delay goes by that clock. Claims do not, because no holder outlives a boot."""
    queue = opened(lease=100)
    queue.put_many(["in work", "delayed"])
    queue.get()
    queue.nack(queue.get(), delay=100)
    holder = queue._store._claims.holding._holder
    queue._store.after_fork_in_child()  # as if it had died
    queue.close()
    assert holder is not None
    machine.boot(-HOUR)
    queue = opened()
    assert queue.get(timeout=0) == "in work"
    machine.wait(HOUR)
    assert queue.stats().delayed == 1
    machine.wait(100)
    assert queue.get(timeout=0) == "delayed"


def test_all_processes_use_the_clock_of_the_first_one(machine, opened):
    """Two processes that each set the clock would not agree."""
    one = opened(lease=100)
    one.put("a")
    machine.wall += HOUR
    other = opened(lease=100)
    assert one._store._now() == other._store._now() == machine.wall - HOUR
    in_forked_child(lambda: check_now(one, machine.wall - HOUR))


def check_now(queue: Any, expected: float) -> None:
    queue.qsize()  # opens the database again
    assert queue._store._now() == expected


def test_where_boots_cannot_be_told_apart_it_is_the_systems_time(machine, opened):
    machine.boot_id = None
    queue = opened(lease=100)
    queue.put("a")
    queue.get()
    machine.wall += 99
    assert queue.qsize() == 0
    machine.wall += 1
    assert queue.qsize() == 1
