"""Queues on a MariaDB Galera cluster: each node takes puts and gets, and none gives what another one gave."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager, suppress
from functools import partial
from itertools import chain
from typing import Any, TypeVar

import pymysql
import pytest

import persistcoll
from persistcoll import BackendUnavailableError, Empty, Full, LockedError, MessageQueue, PDict
from persistcoll.servers.address import Address
from persistcoll.servers.driver import TryAgainError
from persistcoll.servers.pipelining import PipeliningConnection
from persistcoll.testing.children import run_threads
from tests.clusters.chaos import LENGTHS, WRONG, forget_notes, seconds_of, survive
from tests.clusters.galera import NODES, Galera
from tests.servers import ack_workers

pytestmark = pytest.mark.long  # a cluster takes ten seconds to start

T = TypeVar("T")

ITEMS = 90  # of all nodes together
AWAY = 1.0  # seconds for which a node is away


@pytest.fixture(scope="module")
def galera() -> Iterator[Galera]:
    """Give a cluster whose nodes no test kills, so that each test leaves the processes that it found."""
    galera = Galera()
    galera.nodes[0].run("CREATE TABLE lag (id INT AUTO_INCREMENT PRIMARY KEY)")
    yield galera
    galera.close()


def urls(galera: Galera) -> list[str]:
    """Return the address of the cluster from each node on."""
    orders = [[(first + step) % NODES for step in range(NODES)] for first in range(NODES)]
    return [galera.address(*order).shown for order in orders]


OPENERS: dict[str, Callable[..., Any]] = {
    **{
        name: getattr(persistcoll, f"MySQL{name}")
        for name in ("Queue", "LIFOQueue", "UniqueQueue", "PriorityQueue", "AckQueue")
    },
    "MessageQueue": lambda name, url, **options: MessageQueue(url, name, **options),
}


@pytest.fixture(params=OPENERS)
def handles(galera, request) -> Iterator[list[Any]]:
    """Open a queue at each node."""
    opened = [OPENERS[request.param](request.param, url, timeout=20) for url in urls(galera)]
    yield opened
    for handle in opened:
        handle.close()


def at_once(work: Callable[[int], object]) -> None:
    """Let a thread for each node do this at the same time."""
    barrier = threading.Barrier(NODES)

    def run(number: int) -> None:
        barrier.wait(30)
        work(number)

    run_threads(*(partial(run, number) for number in range(NODES)), timeout=100)


def take_all(queue: Any, got: list[Any]) -> None:
    """Get until nothing is left, one or several at once, and ack what has to be acked."""
    while True:
        try:
            items = [queue.get(block=False)] if len(got) % 2 else queue.get_many(3, block=False)
        except Empty:
            return
        if hasattr(queue, "ack_many"):
            queue.ack_many(items)
        got.extend(getattr(item, "body", item) for item in items)


def test_what_all_nodes_put_and_get_at_once_is_given_once(handles):
    items = [[f"{node} {number}" for number in range(ITEMS // NODES)] for node in range(NODES)]
    got: list[list[str]] = [[] for _ in range(NODES)]

    def work(node: int) -> None:
        half = len(items[node]) // 2
        handles[node].put_many(items[node][:half])
        for item in items[node][half:]:
            handles[node].put(item)
        take_all(handles[node], got[node])

    at_once(work)
    counts = Counter(chain.from_iterable(got))
    assert counts == Counter(chain.from_iterable(items))
    assert [handle.qsize() for handle in handles] == [0] * NODES


def test_what_one_node_has_put_all_see_at_once(handles):
    for number, (first, second) in enumerate(zip(handles, [*handles[1:], handles[0]], strict=True)):
        for item in range(20):
            first.put(f"{number} {item}")
            got = second.get(block=False)
            assert getattr(got, "body", got) == f"{number} {item}"
            if hasattr(second, "ack"):
                second.ack(got)


def test_what_is_added_to_one_key_at_all_nodes_is_added_once(galera):
    dicts = [PDict[str, int](url, "counts", timeout=20) for url in urls(galera)]
    at_once(lambda node: [dicts[node].incr("one") for _ in range(30)])
    assert [each["one"] for each in dicts] == [90] * NODES
    dicts[0].update({f"{number}": number for number in range(30)})
    popped: list[int | None] = []
    at_once(lambda node: popped.extend([dicts[node].pop(f"{number}", None) for number in range(30)]))
    assert sorted(each for each in popped if each is not None) == list(range(30))
    for each in dicts:
        each.close()


def test_a_collection_that_all_nodes_make_at_once_is_one(galera):
    queues: list[list[Any]] = [[] for _ in range(NODES)]

    def work(node: int) -> None:
        for name in ("shared", f"of node {node}", "shared too"):
            queues[node].append(persistcoll.MySQLQueue(name, urls(galera)[node], timeout=20))

    at_once(work)
    for node, opened in enumerate(queues):
        for queue in opened:
            queue.put(node)
    numbers = [[queue._store._number for queue in opened] for opened in queues]
    assert len({each for opened in numbers for each in opened}) == 2 + NODES
    assert [[queue.qsize() for queue in opened] for opened in queues] == [[NODES, 1, NODES]] * NODES
    for queue in chain.from_iterable(queues):
        queue.close()


def test_the_nodes_together_put_no_more_than_the_bound(galera):
    queues = [persistcoll.MySQLQueue("bounded", url, maxsize=4, timeout=20) for url in urls(galera)]

    def fill(node: int) -> None:
        with suppress(Full):
            while True:
                queues[node].put("x", block=False)

    for _ in range(15):
        at_once(fill)
        assert queues[0].clear() == 4
    for queue in queues:
        queue.close()


def test_what_two_nodes_give_in_open_transactions_one_of_them_gives_back(galera):
    first, second, third = (persistcoll.MySQLQueue("received", url, timeout=20) for url in urls(galera))
    first.put("a")
    refused = pytest.raises(LockedError, match="came first, so nothing of this one happened")
    with refused, first.receive() as item, second.receive() as same:
        assert item == same == "a"
    assert third.qsize() == 0
    for queue in (first, second, third):
        queue.close()


# A node that lags behind the others.


@contextmanager
def lagging(galera: Galera, number: int) -> Iterator[Callable[[], None]]:
    """Let a node have nothing of what others commit, until the block calls what it gets, or ends."""
    ((host, port),) = galera.nodes[number].address.hosts
    with pymysql.connect(host=host, port=port, user="root", database="test") as connection:
        cursor = connection.cursor()
        cursor.execute("LOCK TABLES lag WRITE")
        galera.nodes[(number + 1) % NODES].run("INSERT INTO lag VALUES ()")
        yield lambda: cursor.execute("UNLOCK TABLES")


def while_lagging(galera: Galera, change: Callable[[], object], look: Callable[[], T]) -> T:
    """Return what ``look`` returns that began before node 1 had what ``change`` committed elsewhere."""
    with lagging(galera, 1) as catch_up, ThreadPoolExecutor(1) as pool:
        try:
            change()
            looked = pool.submit(look)
            with pytest.raises(FutureTimeoutError):
                looked.result(0.5)
        finally:
            catch_up()
        return looked.result(20)


def test_a_get_at_a_node_that_lags_behind_has_what_was_put(galera):
    first, second, _ = urls(galera)
    with OPENERS["Queue"]("lag", first) as there, OPENERS["Queue"]("lag", second) as here:
        assert while_lagging(galera, lambda: there.put("a"), lambda: here.get(block=False)) == "a"


def test_a_claim_is_settled_at_a_node_that_lags_behind_the_lost_one(galera):
    with OPENERS["AckQueue"]("lag with acks", galera.address(0).shown) as queue:
        queue.put_many(["made it a holder", "a"])
        queue.ack(queue.get())
        server = queue._store._server
        got: list[str] = []

        def settle() -> None:
            server.address = galera.address(1)
            server.close()  # so that it connects anew
            queue.ack(got[0])

        while_lagging(galera, lambda: got.append(queue.get()), settle)
        assert (queue.unfinished_tasks, queue.acked_count()) == (0, 2)


def test_the_question_for_a_note_is_answered_rightly_by_a_node_that_lags_behind(galera):
    first, second, _ = urls(galera)
    with OPENERS["Queue"]("asked", first) as there, OPENERS["Queue"]("asked", second) as here:
        asked, asking = there._store._server, here._store._server
        session = asked.acquire()

        def put() -> None:
            session.connection.begin(True, None)
            session.note(asked.sql, there._store._number, 0)
            session.connection.commit()

        assert while_lagging(galera, put, lambda: asking._find_note(session.client, session.op)) == 0
        # What a node that has asked was told not to be committed never is.
        session.connection.begin(True, None)
        session.note(asked.sql, there._store._number, 0)
        session.flush()
        assert asking._find_note(session.client, session.op) is None
        with pytest.raises(TryAgainError):
            session.connection.commit()
        session.connection.rollback()
        asked.release(session)


# A node that is cut off.


def test_a_commit_that_is_said_to_have_failed_and_has_not_is_not_repeated(galera, monkeypatch):
    commit, failures = (
        PipeliningConnection.commit,
        [TryAgainError("another one came first")],
    )

    def failing_once(connection: Any) -> None:
        commit(connection)
        if failures:
            raise failures.pop()

    with OPENERS["Queue"]("committed", urls(galera)[0]) as queue:
        monkeypatch.setattr(PipeliningConnection, "commit", failing_once)
        queue.put_many(["a", "b"])
        assert (queue.qsize(), failures) == (2, [])


@pytest.fixture
def cut(galera) -> Iterator[Callable[[int], None]]:
    """Cut a node off, until the end of the test."""
    numbers: list[int] = []

    def cut(number: int) -> None:
        numbers.append(number)
        galera.cut(number)

    yield cut
    for number in numbers:
        galera.join(number)


def test_a_node_that_is_cut_off_is_passed_over_and_ids_stay_right(galera, cut):
    first, second, _ = urls(galera)
    with OPENERS["AckQueue"]("cut", first) as here, OPENERS["AckQueue"]("cut", second) as there:
        for queue in (here, there):
            queue.put_many(["a", "b"])
        cut(0)
        # The step of the ids has changed, also that of sessions that are open.
        ids = [id for queue in (here, there) for id in queue.put_many(["c", "d", "e"])]
        put = dict(zip(ids, "cdecde", strict=True))
        assert {row["id"]: row["data"] for row in here.queue()}.items() > put.items()
        with OPENERS["AckQueue"]("cut", first) as opened:
            assert sorted(opened.get_many(10)) == sorted("ababcdecde")
        alone = galera.address(0).shown
        with pytest.raises(BackendUnavailableError, match="WSREP has not yet prepared node"):
            OPENERS["AckQueue"]("cut", alone, timeout=0.5)


# Nodes and workers that fail under load.


@pytest.fixture
def own_galera() -> Iterator[Galera]:
    """Give a cluster whose nodes the test may kill."""
    galera = Galera()
    yield galera
    galera.close()


def failures(galera: Galera, rng: random.Random) -> dict[str, tuple[int, Callable[[], float]]]:
    def fails(fail: Callable[[int], None], repair: Callable[[int], None]) -> float:
        number = rng.randrange(NODES)
        fail(number)
        failed = time.monotonic()
        threading.Event().wait(AWAY)
        repair(number)
        return failed

    return {
        "a node's end": (3, partial(fails, galera.kill, galera.start)),
        "a node's isolation": (3, partial(fails, galera.cut, galera.join)),
    }


def addresses(galera: Galera) -> list[Address]:
    return [galera.address(number) for number in range(NODES)]


@pytest.mark.parametrize("at_length", LENGTHS)
@pytest.mark.parametrize("kind", ["MySQLAckQueue", "MessageQueue"])
def test_every_item_is_settled_once_while_nodes_fail(own_galera, crew, rng, tell, request, kind, at_length):
    started = crew(addresses(own_galera), kind)
    open_queue = partial(ack_workers.opened, kind, {"url": own_galera.address().shown})
    seconds = seconds_of(request.config, at_length, 2)
    rows = survive(started, open_queue, failures(own_galera, rng), seconds, tell)
    ack_workers.Account(started.notes).check(rows)


@pytest.mark.long
def test_calls_that_are_not_noted_are_noticed(own_galera, crew, rng, tell):
    started = crew(addresses(own_galera), "MySQLAckQueue", before=forget_notes)
    open_queue = partial(ack_workers.opened, "MySQLAckQueue", {"url": own_galera.address().shown})
    rows = survive(started, open_queue, failures(own_galera, rng), 10.0, tell)
    with pytest.raises(AssertionError, match=WRONG):
        ack_workers.Account(started.notes).check(rows)
