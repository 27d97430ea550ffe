"""How soon a get in another process has an item that was put here, and what the wait costs."""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Mapping
from functools import partial
from multiprocessing.connection import Connection

from benchmarks.children import answer, running
from benchmarks.contenders import Opening
from benchmarks.model import Contender, Figure, Scenario, Sizes
from persistcoll import Empty, Queue, SQLiteQueue

__all__ = ["sql_wakeups", "wakeups"]

# Seconds: so long that the waiting process polls at its longest interval, and never in step with it.
_PAUSE = (0.03, 0.06)


def wakeups(sizes: Sizes, root: str) -> Scenario:
    """Measure the queue in files."""
    return _scenario("wakeups", partial(Queue, serializer="json", durability="process"), 5.0, sizes)


def sql_wakeups(sizes: Sizes, root: str) -> Scenario:
    """Measure a queue in an SQLite database."""
    opening = partial(SQLiteQueue, serializer="json", durability="process", auto_commit=True)
    return _scenario("sql_wakeups", opening, 10.0, sizes)


def _scenario(name: str, opening: Opening, at_most: float, sizes: Sizes) -> Scenario:
    """Measure the latency from before ``put`` to after ``get``, and the processor time of a waiting ``get``.

    :param at_most: milliseconds.
    """
    return Scenario(
        name=name,
        compared=(
            "Ours alone, against a promise in seconds. One process puts the time of day of the monotonic"
            " clock, which all processes share; another one, which waits in get(), compares it with its own"
            " after. 30 to 60 ms between puts. Idle: the time on a processor (user and system) of a process"
            " whose only thread waits in get(timeout=...), by the time that passed."
        ),
        contenders=[
            Contender("ours", "process", lambda at: _latency(opening, at, sizes.wakeups)),
            Contender("ours, idle", "process", lambda at: _idle(opening, at, sizes.idle_seconds)),
        ],
        figures=[
            Figure(
                "median from put to get",
                lambda numbers: numbers["ours: median"] / 1e3,
                at_most=at_most,
                unit="ms",
            ),
            Figure("90 % are within", lambda numbers: numbers["ours: 90 %"] / 1e3, unit="ms"),
            Figure(
                "an idle waiter takes of a core",
                lambda numbers: numbers["ours, idle: of a core (%)"],
                at_most=1.0,
                unit="%",
            ),
        ],
    )


def _latency(opening: Opening, directory: str, count: int) -> Mapping[str, float]:
    path = os.path.join(directory, "queue")
    with (
        opening(path) as queue,
        running(_time_gets, [(opening, path, count)]) as (connection,),
    ):
        answer(connection)  # The child is about to get.
        for _ in range(count):
            time.sleep(random.uniform(*_PAUSE))
            queue.put(time.monotonic_ns())
        latencies = answer(connection)
    deciles = statistics.quantiles(latencies, n=10, method="inclusive")
    return {"median": statistics.median(latencies), "90 %": deciles[8]}


def _time_gets(connection: Connection, opening: Opening, path: str, count: int) -> None:
    latencies = []
    with opening(path) as queue:
        connection.send("ready")
        for _ in range(count):
            put = queue.get()
            latencies.append((time.monotonic_ns() - put) / 1e3)
            queue.task_done()
    connection.send(latencies)


def _idle(opening: Opening, directory: str, seconds: float) -> Mapping[str, float]:
    with running(_wait_in_vain, [(opening, os.path.join(directory, "queue"), seconds)]) as (connection,):
        return {"of a core (%)": answer(connection)}


def _wait_in_vain(connection: Connection, opening: Opening, path: str, seconds: float) -> None:
    with opening(path) as queue:
        begin, used = time.perf_counter(), time.process_time()
        try:
            queue.get(timeout=seconds)
        except Empty:
            pass
        used, passed = time.process_time() - used, time.perf_counter() - begin
    connection.send(100 * used / passed)
