"""How soon a get in another process has an item that was put on a server, and what the wait costs."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Mapping
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.children import answer, running
from benchmarks.model import Contender, Figure, Scenario, Sizes
from benchmarks.server_contenders import OURS, addresses, fresh, is_there
from persistcoll import Empty, drop
from persistcoll.servers.address import MYSQL, POSTGRESQL
from persistcoll.servers.pipelining import PipeliningConnection

__all__ = ["mysql_wakeups", "postgres_wakeups"]

_SHORT, _LONG = 0.1, 2.0  # seconds of a wait
_SPREAD = 0.05  # seconds that a wait is longer, so that it ends at any time between two polls
_FEWER = 6  # One of so many waits is long.
_FIRST = 1.0  # seconds in which an idle waiter polls more often


def postgres_wakeups(sizes: Sizes, root: str) -> Scenario:
    """Measure waits on PostgreSQL."""
    return _scenario(POSTGRESQL, "postgres_wakeups", sizes)


def mysql_wakeups(sizes: Sizes, root: str) -> Scenario:
    """Measure waits on MySQL or MariaDB."""
    return _scenario(MYSQL, "mysql_wakeups", sizes)


def _scenario(kind: str, name: str, sizes: Sizes) -> Scenario:
    counts = {_SHORT: sizes.wakeups, _LONG: max(1, sizes.wakeups // _FEWER)}
    contenders = [
        Contender(f"after {wait:g} s", "power", partial(_latency, kind, wait, count))
        for wait, count in counts.items()
    ]
    contenders.append(
        Contender("idle", "power", partial(_idle, kind, _FIRST + max(_LONG, sizes.idle_seconds)))
    )
    figures = [
        Figure(
            f"{phase} from put to get after {wait:g} s",
            partial(_milliseconds, key=f"after {wait:g} s: {phase}"),
            unit="ms",
        )
        for wait in counts
        for phase in ("median", "maximum")
    ]
    return Scenario(
        name=name,
        compared=(
            f"{OURS[kind][0]} alone. One process puts the time of day of the monotonic clock, which all"
            " processes share; another one, which has waited in get() for 0.1 s or 2 s, compares it with its"
            " own after. Idle: the time on a processor (user and system) of a process whose only thread waits"
            " in get(timeout=...), by the time that passed, and its trips to the server after the first"
            " second."
        ),
        contenders=contenders if is_there(kind) else [],
        figures=[
            *figures,
            Figure(
                "an idle waiter takes of a core", lambda numbers: numbers["idle: of a core (%)"], unit="%"
            ),
            Figure("trips of an idle waiter in a second", lambda numbers: numbers["idle: trips"], unit=""),
        ],
        missing=[] if is_there(kind) else [kind],
    )


def _milliseconds(numbers: Mapping[str, float], key: str) -> float:
    return numbers[key] / 1e3


def _queue(kind: str, name: str) -> Any:
    return OURS[kind][1](name, url=addresses(kind), serializer="json")


def _latency(kind: str, wait: float, count: int, directory: str) -> Mapping[str, float]:
    name = fresh()
    with _queue(kind, name) as queue, running(_time_gets, [(kind, name, count)]) as (connection,):
        for _ in range(count):
            answer(connection)  # The child is about to get.
            time.sleep(wait + random.uniform(0, _SPREAD))
            queue.put(time.monotonic_ns())
        latencies = answer(connection)
    drop(addresses(kind), name)
    return {"median": statistics.median(latencies), "maximum": max(latencies)}


def _time_gets(connection: Connection, kind: str, name: str, count: int) -> None:
    latencies = []
    with _queue(kind, name) as queue:
        for _ in range(count):
            connection.send("ready")
            put = queue.get()
            latencies.append((time.monotonic_ns() - put) / 1e3)
    connection.send(latencies)


def _idle(kind: str, seconds: float, directory: str) -> Mapping[str, float]:
    name = fresh()
    with running(_wait_in_vain, [(kind, name, seconds)]) as (connection,):
        percent, trips = answer(connection)
    drop(addresses(kind), name)
    return {"of a core (%)": percent, "trips": trips}


def _wait_in_vain(connection: Connection, kind: str, name: str, seconds: float) -> None:
    trips = 0
    send = PipeliningConnection._send_waiting

    def counted(self: PipeliningConnection) -> Any:
        nonlocal trips
        trips += time.perf_counter() > begin + _FIRST
        return send(self)

    with _queue(kind, name) as queue:
        begin, used = time.perf_counter(), time.process_time()
        PipeliningConnection._send_waiting = counted  # type: ignore[method-assign]
        try:
            queue.get(timeout=seconds)
        except Empty:
            pass
        used, passed, made = time.process_time() - used, time.perf_counter() - begin, trips
    connection.send((100 * used / passed, made / (passed - _FIRST)))
