"""The queues on PostgreSQL and MySQL with few and with many rows, and while old rows cannot be removed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import repeat
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.children import running, together
from benchmarks.contenders import ITEM, Marks
from benchmarks.model import Contender, Figure, Scenario, Sizes, ratio
from benchmarks.server_contenders import OURS_WITH_ACK, addresses, fresh, is_there
from persistcoll import drop
from persistcoll.servers.address import MYSQL, POSTGRESQL, Address

__all__ = ["mysql_backlog", "mysql_processes", "postgres_backlog", "postgres_processes"]

_BATCH = 1_000
_TEN = 10
_PHASES = ("put", "get", "ack", "get and nack", "put_many", "get_many", "ack_many", "empty")
_PREFIXES = {POSTGRESQL: "postgres", MYSQL: "mysql"}


@contextmanager
def _queue(kind: str, name: str, **options: Any) -> Iterator[Any]:
    with OURS_WITH_ACK[kind][1](name, url=addresses(kind), lease=600.0, **options) as queue:
        yield queue


def _cycle(queue: Any, count: int) -> None:
    """Put, get and ack so many items, in batches."""
    for first in range(0, count, _BATCH):
        size = min(_BATCH, count - first)
        queue.put_many([ITEM] * size)
        queue.ack_many(queue.get_many(size))


def _fill(queue: Any, count: int) -> None:
    """Let so many items wait."""
    for first in range(0, count, _BATCH):
        queue.put_many([ITEM] * min(_BATCH, count - first))


def _operate(queue: Any, operations: int) -> Mapping[str, float]:
    """Return the median of each operation; those of ten items per item. As many wait as before."""
    taken: dict[str, list[float]] = {phase: [] for phase in _PHASES}
    for _ in repeat(None, operations):
        marks = Marks()
        queue.put(ITEM)
        taken["put"].append(marks.lap(1))
        item = queue.get()
        taken["get"].append(marks.lap(1))
        queue.ack(item)
        taken["ack"].append(marks.lap(1))
        queue.nack(queue.get())
        taken["get and nack"].append(marks.lap(1))
        queue.put_many([ITEM] * _TEN)
        taken["put_many"].append(marks.lap(_TEN))
        items = queue.get_many(_TEN)
        taken["get_many"].append(marks.lap(_TEN))
        queue.ack_many(items)
        taken["ack_many"].append(marks.lap(_TEN))
        queue.empty()
        taken["empty"].append(marks.lap(1))
    return {phase: statistics.median(times) for phase, times in taken.items()}


def _snapshot(kind: str) -> Any:
    """Return a connection with a transaction that keeps the server from removing old rows."""
    address = Address.parse(addresses(kind))
    if kind == POSTGRESQL:
        import psycopg

        connection: Any = psycopg.connect(addresses(kind))
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.execute("SELECT 1 FROM pg_class LIMIT 1")
        return connection
    import pymysql

    ((host, port),) = address.hosts
    connection = pymysql.connect(
        host=host, port=port, user=address.user, password=address.password or "", database=address.database
    )
    connection.cursor().execute("START TRANSACTION WITH CONSISTENT SNAPSHOT")
    return connection


def _pinned(kind: str, sizes: Sizes, cycles: int, directory: str) -> Mapping[str, float]:
    name = fresh()
    snapshot = _snapshot(kind)
    try:
        with _queue(kind, name, keep_acked=0) as queue:
            _fill(queue, sizes.small_backlog)
            _cycle(queue, cycles)
            return _operate(queue, max(1, sizes.slow // 10))
    finally:
        snapshot.rollback()
        snapshot.close()
        drop(addresses(kind), name)


def _backlog(kind: str, sizes: Sizes) -> Scenario:
    both = small, large = sizes.small_backlog, sizes.large_table
    cycles = max(1, sizes.large_table * 3 // 100)
    names = {size: fresh() for size in both}
    pinned = f"{cycles:,} cycles in a snapshot"

    def measure(size: int, directory: str) -> Mapping[str, float]:
        with _queue(kind, names[size], keep_acked=None) as queue:
            return _operate(queue, max(1, sizes.slow // 10))

    def prepare() -> Mapping[str, Any]:
        facts = {}
        for size, name in names.items():
            marks = Marks()
            with _queue(kind, name, keep_acked=None) as queue:
                _cycle(queue, size)
                _fill(queue, size)
            facts[f"{size:,}"] = {"seconds to build": round(marks.lap(1) / 1e6, 1)}
        return facts

    def finish() -> None:
        for name in names.values():
            drop(addresses(kind), name)

    def beside(over: str, phase: str) -> Figure:
        under = f"{small:,} waiting"
        return ratio(f"{phase}: {over} / {under}", [f"{over}: {phase}"], [f"{under}: {phase}"])

    there = is_there(kind)
    return Scenario(
        name=f"{_PREFIXES[kind]}_backlog",
        compared=(
            f"{OURS_WITH_ACK[kind][0]} with {large:,} items waiting and as many finished, after as many"
            f" cycles of put, get and ack, beside {small:,}; and with {small:,} waiting after {cycles:,}"
            " cycles while another connection has a snapshot, which keeps the server from removing old rows."
            " A dict of 100 bytes, a lease, one thread, each waits for the device. The median of each"
            f" operation; put_many, get_many and ack_many of {_TEN}, per item. For information."
        ),
        contenders=[
            *(Contender(f"{size:,} waiting", "power", partial(measure, size)) for size in both if there),
            *([Contender(pinned, "power", partial(_pinned, kind, sizes, cycles))] if there else []),
        ],
        figures=[
            *(beside(f"{large:,} waiting", phase) for phase in _PHASES),
            *(beside(pinned, phase) for phase in _PHASES),
        ],
        prepare=prepare if there else None,
        finish=finish if there else None,
        missing=[] if there else [kind],
    )


def postgres_backlog(sizes: Sizes, root: str) -> Scenario:
    """Measure few and many rows on PostgreSQL."""
    return _backlog(POSTGRESQL, sizes)


def mysql_backlog(sizes: Sizes, root: str) -> Scenario:
    """Measure few and many rows on MySQL or MariaDB."""
    return _backlog(MYSQL, sizes)


# Several consuming processes.

_COUNTS = (1, 4)


def _consume(connection: Connection, kind: str, name: str, count: int) -> None:
    with _queue(kind, name) as queue:
        queue.empty()
        connection.send("ready")
        connection.recv()
        begin = time.monotonic()
        for _ in repeat(None, count):
            queue.ack(queue.get())
        connection.send((begin, time.monotonic()))


def _by_processes(kind: str, processes: int, each: int, directory: str) -> Mapping[str, float]:
    name = fresh()
    try:
        with _queue(kind, name) as queue:
            _fill(queue, processes * each)
            with running(_consume, [(kind, name, each)] * processes) as connections:
                spans = together(connections)
            if not queue.empty():
                raise AssertionError("items are left")
    finally:
        drop(addresses(kind), name)
    seconds = max(end for _, end in spans) - min(begin for begin, _ in spans)
    return {"get and ack": seconds * 1e6 / (processes * each)}


def _processes(kind: str, sizes: Sizes, at_least: float) -> Scenario:
    there = is_there(kind)
    names = {count: f"{count} process{'es' if count > 1 else ''}" for count in _COUNTS}
    one, several = (f"{name}: get and ack" for name in names.values())

    def rate(name: str) -> Figure:
        of: Callable[[Mapping[str, float]], float] = lambda numbers: 1e6 / numbers[f"{name}: get and ack"]  # noqa: E731
        return Figure(f"items a second, {name}", of, unit="/s")

    return Scenario(
        name=f"{_PREFIXES[kind]}_processes",
        compared=(
            f"{OURS_WITH_ACK[kind][0]}: get and ack of a dict of 100 bytes, one at a time, by 4 processes"
            " beside one, from the first's start to the last's end. Each ack waits for the device."
        ),
        contenders=[
            Contender(name, "power", partial(_by_processes, kind, count, max(1, sizes.slow // 2)))
            for count, name in names.items()
            if there
        ],
        figures=[
            *map(rate, names.values()),
            ratio("items a second: 4 processes / 1", [one], [several], at_least=at_least),
        ],
        missing=[] if there else [kind],
    )


def postgres_processes(sizes: Sizes, root: str) -> Scenario:
    """Measure several consuming processes on PostgreSQL."""
    return _processes(POSTGRESQL, sizes, 2.0)


def mysql_processes(sizes: Sizes, root: str) -> Scenario:
    """Measure several consuming processes on MySQL or MariaDB."""
    return _processes(MYSQL, sizes, 1.7)
