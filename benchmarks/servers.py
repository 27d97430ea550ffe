"""The queues on PostgreSQL and MySQL, beside their peers and beside bare statements."""

from __future__ import annotations

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

__all__ = ["mysql_batches", "mysql_single", "postgres_batches", "postgres_single", "postgres_threads"]

_TEN = 10
_THOUSAND = 1_000
_THREADS = 8


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


def _in_batches(kind: str, count: int, directory: str) -> Mapping[str, float]:
    with OURS_WITH_ACK[kind][1](fresh(), url=addresses(kind)) as queue:
        queue.put_many([ITEM] * _TEN)
        queue.ack_many(queue.get_many(_TEN))
        marks = Marks()
        for _ in range(0, count, _TEN):
            queue.put_many([ITEM] * _TEN)
        numbers = {"put": marks.lap(count)}
        for _ in range(0, count, _TEN):
            queue.ack_many(queue.get_many(_TEN))
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


def _batches(kind: str, sizes: Sizes, peers: list[str]) -> Scenario:
    count = sizes.slow
    contenders, missing = _contenders(kind, count)
    contenders = [each for each in contenders if each.name in (*peers, "ours with ack")]
    figures = [
        ratio(f"put + take: {peer}'s / ours by ten", _sum(peer), _sum("by ten"), at_least=4.0)
        for peer in peers
    ]
    if contenders:
        contenders.append(Contender("by ten", "power", partial(_in_batches, kind, count)))
        if kind == POSTGRESQL:
            contenders.append(Contender("COPY", "power", _copy))
            theirs, ours = (f"{name}: put_many of 1,000" for name in ("COPY", "by ten"))
            figures.append(ratio("put_many of 1,000: ours / COPY", [ours], [theirs], at_most=1.7))
    return Scenario(
        name=f"{'postgres' if kind == POSTGRESQL else 'mysql'}_batches",
        compared=(
            f"{OURS_WITH_ACK[kind][0]}: put_many of {_TEN}, get_many and ack_many of {_TEN}, one thread,"
            f" beside peers, which take one at a time; and put_many of {_THOUSAND:,}."
        ),
        contenders=contenders,
        figures=figures,
        missing=missing,
    )


def postgres_batches(sizes: Sizes, root: str) -> Scenario:
    """Measure batches on PostgreSQL."""
    return _batches(POSTGRESQL, sizes, ["tpq"])


def mysql_batches(sizes: Sizes, root: str) -> Scenario:
    """Measure batches on MySQL or MariaDB."""
    return _batches(MYSQL, sizes, ["persist-queue MySQLQueue", "squeal"])


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
