"""The queues on PostgreSQL and MySQL, beside their peers and beside bare statements."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import repeat
from typing import Any

from benchmarks.contenders import ITEM, Marks, seconds_together
from benchmarks.model import Contender, Figure, Scenario, Sizes, ratio
from benchmarks.server_contenders import (
    BARE,
    OURS,
    OURS_WITH_ACK,
    PEERS,
    PICKLED,
    Opened,
    Verbs,
    addresses,
    fresh,
    is_there,
)
from persistcoll.servers.address import MYSQL, POSTGRESQL

__all__ = [
    "mysql_batches",
    "mysql_bounded",
    "mysql_single",
    "postgres_batches",
    "postgres_bounded",
    "postgres_single",
    "postgres_threads",
]

_TEN = 10
_THOUSAND = 1_000
_THREADS = 8
_TAKERS = 2
_MAXSIZE = 10_000


@contextmanager
def _ours(kind: str, name: str) -> Iterator[Verbs]:
    with OURS[kind][1](name, url=addresses(kind)) as queue:
        yield Verbs(lambda: queue.put(ITEM), queue.get)
        queue.clear()


@contextmanager
def _ours_with_ack(kind: str, name: str) -> Iterator[Verbs]:
    with OURS_WITH_ACK[kind][1](name, url=addresses(kind)) as queue:

        def take() -> None:
            queue.get()
            queue.task_done()

        yield Verbs(lambda: queue.put(ITEM), take)
        queue.clear()


def _cycle(opened: Opened, count: int, directory: str) -> Mapping[str, float]:
    with opened(fresh()) as verbs:
        verbs.put()
        verbs.take()
        marks = Marks()
        for _ in repeat(None, count):
            verbs.put()
        numbers = {"put": marks.lap(count)}
        for _ in repeat(None, count):
            verbs.take()
        numbers["take"] = marks.lap(count)
    return numbers


def _contenders(kind: str, count: int) -> tuple[list[Contender], list[str]]:
    """Return those that are there, and the names of the others."""
    if not is_there(kind):
        return [], [kind]
    found = [
        Contender("ours", "power", partial(_cycle, partial(_ours, kind), count)),
        Contender("ours with ack", "power", partial(_cycle, partial(_ours_with_ack, kind), count)),
        Contender("bare statements", "power", partial(_cycle, BARE[kind], count)),
    ]
    missing = []
    for name, (is_installed, opened) in PEERS[kind].items():
        if is_installed():
            found.append(Contender(name, "power", partial(_cycle, opened, count)))
        else:
            missing.append(name)
    return found, missing


def _sum(name: str) -> list[str]:
    return [f"{name}: put", f"{name}: take"]


def _single(kind: str, sizes: Sizes, figures: list[Figure], compared: str) -> Scenario:
    count = sizes.slow
    contenders, missing = _contenders(kind, count)
    return Scenario(
        name=f"{'postgres' if kind == POSTGRESQL else 'mysql'}_single",
        compared=(
            f"{OURS[kind][0]} and {OURS_WITH_ACK[kind][0]}: {count:,} puts of a dict of 100 bytes, then a"
            f" take of each, one thread, each waits for the device. Beside {compared}"
        ),
        contenders=contenders,
        figures=[
            ratio("put: ours / bare", ["ours: put"], ["bare statements: put"], at_most=1.2),
            ratio("take: ours / bare", ["ours: take"], ["bare statements: take"], at_most=1.2),
            *figures,
        ],
        missing=missing,
    )


def postgres_single(sizes: Sizes, root: str) -> Scenario:
    """Measure one item at a time on PostgreSQL."""
    return _single(
        POSTGRESQL,
        sizes,
        [
            ratio("put + take: tpq's / ours", _sum("tpq"), _sum("ours"), at_least=1.2),
            ratio("put + take: pgmq's / ours with ack", _sum("pgmq"), _sum("ours with ack")),
            ratio(
                "put + take: procrastinate's / ours with ack", _sum("procrastinate"), _sum("ours with ack")
            ),
        ],
        "tpq (put, get), pgmq's SQL (send, read, delete), procrastinate (defer, and its statements that fetch"
        " and finish a job), and an INSERT and a DELETE with SKIP LOCKED on a table with its primary key.",
    )


def mysql_single(sizes: Sizes, root: str) -> Scenario:
    """Measure one item at a time on MySQL or MariaDB."""
    theirs = "persist-queue MySQLQueue"
    return _single(
        MYSQL,
        sizes,
        [
            ratio("put + take: persist-queue's / ours", _sum(theirs), _sum("ours"), at_least=1.15),
            ratio(
                "put + take: squeal's / ours with ack", _sum("squeal"), _sum("ours with ack"), at_least=1.0
            ),
        ],
        "persist-queue's MySQLQueue (put, get), squeal (put, get, ack), and an INSERT, and SELECT with SKIP"
        " LOCKED and DELETE, on a table with its primary key.",
    )


def _in_batches(kind: str, count: int, with_ack: bool, directory: str) -> Mapping[str, float]:
    with (OURS_WITH_ACK if with_ack else OURS)[kind][1](fresh(), url=addresses(kind)) as queue:

        def take() -> None:
            items = queue.get_many(_TEN)
            if with_ack:
                queue.ack_many(items)

        queue.put_many([ITEM] * _TEN)
        take()
        marks = Marks()
        for _ in range(0, count, _TEN):
            queue.put_many([ITEM] * _TEN)
        numbers = {"put": marks.lap(count)}
        for _ in range(0, count, _TEN):
            take()
        numbers["take"] = marks.lap(count)
        rows = [ITEM] * _THOUSAND
        marks = Marks()
        for _ in range(5):
            queue.put_many(rows)
        numbers["put_many of 1,000"] = marks.lap(5 * _THOUSAND)
        queue.clear()
    return numbers


def _copy(directory: str) -> Mapping[str, float]:
    """Copy 1,000 rows at a time into a table with its primary key alone."""
    import psycopg

    name = fresh()
    with psycopg.connect(addresses(POSTGRESQL), autocommit=True) as connection:
        connection.execute(
            f"CREATE TABLE {name} (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, data bytea)"
        )
        marks = Marks()
        for _ in range(5):
            with (
                connection.cursor() as cursor,
                cursor.copy(f"COPY {name} (data) FROM STDIN (FORMAT BINARY)") as copy,
            ):
                copy.set_types(["bytea"])
                for _ in range(_THOUSAND):
                    copy.write_row((PICKLED,))
        numbers = {"put_many of 1,000": marks.lap(5 * _THOUSAND)}
        connection.execute(f"DROP TABLE {name}")
    return numbers


def _batches(kind: str, sizes: Sizes, peers: Mapping[str, str]) -> Scenario:
    """Measure batches beside peers, and each peer with what does the same as it."""
    count = sizes.slow
    contenders, missing = _contenders(kind, count)
    contenders = [each for each in contenders if each.name in peers]
    figures = [
        ratio(f"put + take: {peer}'s / ours {alike}", _sum(peer), _sum(alike), at_least=4.0)
        for peer, alike in peers.items()
    ]
    if is_there(kind):
        for name, with_ack in (("by ten", False), ("by ten with ack", True)):
            contenders.append(Contender(name, "power", partial(_in_batches, kind, count, with_ack)))
        if kind == POSTGRESQL:
            contenders.append(Contender("COPY", "power", _copy))
            theirs, ours = (f"{name}: put_many of 1,000" for name in ("COPY", "by ten"))
            figures.append(ratio("put_many of 1,000: ours / COPY", [ours], [theirs], at_most=1.7))
    return Scenario(
        name=f"{'postgres' if kind == POSTGRESQL else 'mysql'}_batches",
        compared=(
            f"{OURS[kind][0]} (put_many and get_many of {_TEN}) and {OURS_WITH_ACK[kind][0]} (ack_many, too),"
            f" one thread, beside peers, which take one at a time; and put_many of {_THOUSAND:,}."
        ),
        contenders=contenders,
        figures=figures,
        missing=missing,
    )


def postgres_batches(sizes: Sizes, root: str) -> Scenario:
    """Measure batches on PostgreSQL."""
    return _batches(POSTGRESQL, sizes, {"tpq": "by ten"})


def mysql_batches(sizes: Sizes, root: str) -> Scenario:
    """Measure batches on MySQL or MariaDB."""
    return _batches(MYSQL, sizes, {"persist-queue MySQLQueue": "by ten", "squeal": "by ten with ack"})


def _by_threads(opened: Callable[[str], Any], each: int, directory: str) -> Mapping[str, float]:
    """Put and take in several threads at once, each with an object of its own."""
    name = fresh()
    with ExitStack() as stack:
        verbs = [stack.enter_context(opened(name)) for _ in range(_THREADS)]

        def work(verb: Callable[[], object]) -> None:
            for _ in repeat(None, each):
                verb()

        return {
            phase: seconds_together([partial(work, getattr(one, phase)) for one in verbs])
            * 1e6
            / (each * _THREADS)
            for phase in ("put", "take")
        }


def postgres_threads(sizes: Sizes, root: str) -> Scenario:
    """Measure eight threads on PostgreSQL."""
    each = max(1, sizes.slow // _THREADS)
    found = {name: opened for name, (is_installed, opened) in PEERS[POSTGRESQL].items() if is_installed()}
    contenders = [Contender("ours", "power", partial(_by_threads, partial(_ours, POSTGRESQL), each))]
    if "tpq" in found:
        contenders.append(Contender("tpq", "power", partial(_by_threads, found["tpq"], each)))
    return Scenario(
        name="postgres_threads",
        compared=(
            f"PostgresQueue: put, then take, by {_THREADS} threads at once, beside tpq. The time for an item"
            " of all."
        ),
        contenders=contenders if is_there(POSTGRESQL) else [],
        figures=[ratio("put + take: tpq's / ours", _sum("tpq"), _sum("ours"), at_least=2.0)],
        missing=[] if "tpq" in found else ["tpq"],
    )


def _bounded(kind: str, each: int, waiting: int, maxsize: int, directory: str) -> Mapping[str, float]:
    """Put in several threads at once while others take as much, so that about as many items wait."""
    name = fresh()
    with ExitStack() as stack:
        queues = [
            stack.enter_context(OURS[kind][1](name, url=addresses(kind), maxsize=maxsize))
            for _ in range(_THREADS + _TAKERS)
        ]
        queues[0].put_many([ITEM] * waiting)
        put_by_now = threading.Semaphore(0)

        def put(queue: Any) -> None:
            for _ in repeat(None, each):
                queue.put(ITEM)
                put_by_now.release()

        def take(queue: Any) -> None:
            for _ in range(each * _THREADS // _TAKERS // _TEN):
                for _ in repeat(None, _TEN):
                    put_by_now.acquire()
                queue.get_many(_TEN)

        calls = [partial(put, queue) for queue in queues[:_THREADS]]
        calls += [partial(take, queue) for queue in queues[_THREADS:]]
        seconds = seconds_together(calls)
        queues[0].clear()
    return {"put": seconds * 1e6 / (each * _THREADS)}


def _with_bounds(kind: str, sizes: Sizes) -> Scenario:
    each = max(1, sizes.slow // _THREADS)
    contenders, figures = [], []
    for waiting in (max(1, sizes.slow // 3), 6 * sizes.slow):
        bounded, unbounded = f"maxsize={_MAXSIZE:,}, {waiting:,} waiting", f"{waiting:,} waiting"
        for name, maxsize in ((bounded, _MAXSIZE), (unbounded, 0)):
            run = partial(_bounded, kind, each, waiting, maxsize)
            contenders.append(Contender(name, "power", run))
        figures.append(
            ratio(
                f"put, {waiting:,} waiting: bounded / unbounded", [f"{bounded}: put"], [f"{unbounded}: put"]
            )
        )
    return Scenario(
        name=f"{'postgres' if kind == POSTGRESQL else 'mysql'}_bounded",
        compared=(
            f"{OURS[kind][0]}: {_THREADS} threads put, and {_TAKERS} take as much, with"
            f" maxsize={_MAXSIZE:,} and without one. The time for a put of all."
        ),
        contenders=contenders if is_there(kind) else [],
        figures=figures,
        missing=[] if is_there(kind) else [kind],
    )


def postgres_bounded(sizes: Sizes, root: str) -> Scenario:
    """Measure puts with a bound on PostgreSQL."""
    return _with_bounds(POSTGRESQL, sizes)


def mysql_bounded(sizes: Sizes, root: str) -> Scenario:
    """Measure puts with a bound on MySQL or MariaDB."""
    return _with_bounds(MYSQL, sizes)
