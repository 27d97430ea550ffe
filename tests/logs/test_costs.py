"""The costs that ``help(Log.append)`` and the other docstrings state, counted at the disk."""

from __future__ import annotations

import inspect
import math
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from persistcoll import Consumer, Log
from persistcoll.testing.faults import FaultyDisk


def receive(log: Any, consumer: Any) -> None:
    with consumer.receive():
        pass


def trim(log: Any, consumer: Any) -> None:
    assert log.trim(3) == 2


# The name of the method whose help states the cost, the call, and what it costs: writes, syncs at "power",
# syncs at "process", syncs of the directory.
Call = Callable[[Any, Any], object]
COSTS: list[tuple[str, Call, tuple[int, int, int, int]]] = [
    ("Log.append", lambda log, consumer: log.append("x"), (1, 1, 0, 0)),
    ("Log.extend", lambda log, consumer: log.extend(range(500)), (1, 1, 0, 0)),
    ("Consumer.get", lambda log, consumer: consumer.get(), (0, 0, 0, 0)),
    ("Consumer.get_many", lambda log, consumer: consumer.get_many(5), (0, 0, 0, 0)),
    ("Consumer.commit", lambda log, consumer: consumer.commit(), (1, 1, 0, 0)),
    ("Consumer.commit", lambda log, consumer: consumer.commit(), (0, 0, 0, 0)),
    ("Consumer.receive", receive, (1, 1, 0, 0)),
    ("Consumer.seek", lambda log, consumer: consumer.seek(30), (1, 1, 0, 0)),
    ("Consumer.seek", lambda log, consumer: consumer.seek(20), (2, 1, 1, 1)),
    ("Log.consumer", lambda log, consumer: log.kept.append(log.consumer("new")), (3, 1, 1, 1)),
    ("Log.consumer", lambda log, consumer: log.kept.append(log.consumer("old")), (1, 0, 0, 0)),
    ("Log.forget", lambda log, consumer: log.forget("forgotten"), (1, 0, 0, 1)),
    ("Log.trim", trim, (1, 4, 4, 1)),  # it does not know yet how far 3 consumers have come
    ("Log.trim", lambda log, consumer: log.trim(4), (1, 1, 1, 1)),
    ("Log.__len__", lambda log, consumer: len(log), (0, 0, 0, 0)),
    ("Log.__getitem__", lambda log, consumer: log[40], (0, 0, 0, 0)),
    ("Log.__getitem__", lambda log, consumer: log[-1], (0, 0, 0, 0)),
    ("Log.read", lambda log, consumer: log.read(10, 5), (0, 0, 0, 0)),
    ("Log.consumers", lambda log, consumer: log.consumers(), (0, 0, 0, 0)),
]


@pytest.mark.parametrize("durability", ["power", "process"])
def test_a_call_costs_what_its_help_says(durability, tmp_path):
    disk = FaultyDisk()
    counts = []
    with Log(tmp_path / "log", durability=durability, _disk=disk) as log:
        for number in range(50):  # the first ones make files
            log.append(number)
        for name in ("old", "forgotten"):
            with log.consumer(name) as other:
                other.commit(5)
        consumer = log.consumer("c")
        for _ in range(3):
            consumer.get()
            consumer.commit()
        log.kept = []  # type: ignore[attr-defined]
        for name, call, (writes, at_power, at_process, directory) in COSTS:
            if call is trim:
                log.kept[0].commit(5)  # type: ignore[attr-defined]
            face, method = name.split(".")
            kind = Log if face == "Log" else Consumer
            assert "Cost:" in (inspect.getdoc(getattr(kind, method)) or ""), name
            disk.calls.clear()
            call(log, consumer)
            syncs = at_power if durability == "power" else at_process
            made = disk.calls["write"] + disk.calls["pwrite"]
            counted = made, disk.calls["sync"], disk.calls["sync_directory"]
            counts.append((name, counted, (writes, syncs, directory)))
    assert [each for each in counts if each[1] != each[2]] == []


def test_what_is_read_ahead_costs_no_call_of_the_system(tmp_path):
    """However many items are got at once, the calls do not grow with their number."""
    disk = FaultyDisk()
    with Log(tmp_path / "log", durability="process", _disk=disk) as log, log.consumer("c") as consumer:
        log.extend(range(2000))
        assert [consumer.get(), consumer.get()] == [0, 1]
        for count in (1, 10, 100, 500):
            disk.calls.clear()
            calls = _system_calls(partial(consumer.get_many, count))
            assert (calls, disk.calls) == (Counter(), Counter())


def _system_calls(call: Callable[[], object]) -> Counter[str]:
    """Return which functions of the operating system a call calls, and how often."""
    counted: Counter[str] = Counter()

    def profile(frame: Any, event: str, function: Any) -> None:
        if event == "c_call" and getattr(function, "__module__", None) in ("posix", "fcntl"):
            counted[function.__name__] += 1

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(before)
    return counted


def test_opening_a_log_costs_the_same_however_large_it_is(memory_path):
    """It reads no cursor of a consumer, and as few chunks of 200 as of 5."""
    counted = []
    for chunks, consumers in ((5, 1), (200, 300)):
        path = memory_path / f"log {chunks}"
        with Log(path, chunksize=1, durability="process") as log:
            for number in range(chunks):
                log.append(number)
            for number in range(consumers):
                log.consumer(f"c{number}").close()
        disk = FaultyDisk()
        disk.on("open", pytest.fail, times="forever", path="consumer-*")
        logs: list[Any] = []
        calls = _system_calls(lambda: logs.append(Log(path, _disk=disk)))  # noqa: B023 - called at once
        counted.append((calls, disk.calls.copy()))
        logs[0].close()
    assert counted[0] == counted[1]
    assert counted[0][1]["open"] < 10


@pytest.mark.parametrize("chunks", [16, 256])
def test_an_item_is_found_by_bisection(memory_path, chunks):
    with Log(memory_path / "log", chunksize=1, durability="process") as log:
        for number in range(1, chunks + 1):
            log.append(number)
    opens = []
    for position in range(1, chunks + 1, chunks // 16):
        disk = FaultyDisk()
        with Log(memory_path / "log", durability="process", _disk=disk) as log:
            disk.calls.clear()
            assert log[position] == position
            opens.append(disk.calls["open"])
    assert max(opens) <= math.log2(chunks) + 10


def test_at_most_one_chunk_is_read_for_an_item(memory_path):
    with Log(memory_path / "log", chunksize=1000, durability="process", serializer="raw") as log:
        for _ in range(5000):
            log.append(bytes(400))
    size = (memory_path / "log" / "q00001").stat().st_size
    for position in (1, 999, 2500, -1, -1500):
        disk = FaultyDisk()
        taken: list[int] = []
        _count_bytes(disk, taken)
        with Log(memory_path / "log", durability="process", serializer="raw", _disk=disk) as log:
            taken.clear()
            assert len(log[position]) == 400
            first = sum(taken)
            taken.clear()
            assert len(log[position]) == 400
        assert first <= 2 * size, (position, first, size)
        assert sum(taken) <= size / 2, (position, sum(taken), size)


def _count_bytes(disk: Any, taken: list[int]) -> None:
    read = disk.read

    def counting(*arguments: Any) -> Any:
        data = read(*arguments)
        taken.append(data if isinstance(data, int) else len(data))
        return data

    disk.read = counting


@pytest.mark.parametrize("way", ["log", "consumer"])
def test_memory_is_flat_while_a_log_is_read(memory_path, way):
    with Log(memory_path / "log", durability="process", serializer="raw", chunksize=2000) as log:
        for _ in range(200):
            log.extend([bytes(1000)] * 100)
        with log.consumer("c") as consumer:
            assert len(next(iter(log))) == 1000
            found = iter(log) if way == "log" else (consumer.get(False) for _ in range(20_000))
            tracemalloc.start()
            try:
                assert sum(1 for _ in found) == 20_000
                peak = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
    assert peak < 4_000_000  # of 20 MB
