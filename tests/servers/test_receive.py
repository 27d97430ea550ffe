"""``receive()`` on servers, which holds a transaction, and calls in a caller's transaction."""

from __future__ import annotations

import os
import pickle
import random
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

import persistcoll
from persistcoll import (
    BackendUnavailableError,
    Empty,
    LockedError,
    OutgoingMessage,
    ShutDown,
    SQLiteQueue,
    StorageError,
)
from persistcoll.engine import event_count
from persistcoll.servers.address import MYSQL
from persistcoll.servers.mysql.statements import MySQLDialect
from persistcoll.servers.postgres import connection as postgres
from persistcoll.servers.postgres.statements import PostgresDialect
from persistcoll.testing.children import run_threads
from tests.concurrency.workers import Remote
from tests.queues.waits import until, waiting
from tests.servers.losing import losing_connections
from tests.servers.places import KINDS, CallerConnection, Place

CLASSES = ["Queue", "LIFOQueue", "UniqueQueue", "PriorityQueue"]


@pytest.fixture(scope="module", params=KINDS)
def place(request):
    place = Place(request.param)
    place.run(f"CREATE TABLE {place.name}.orders (id int PRIMARY KEY)")
    yield place
    place.close()


def refused(queue: Any) -> bool:
    """Tell whether nobody else gets an item."""
    try:
        queue.get(block=False)
    except Empty:
        return True
    return False


# A transaction of its own.


@pytest.mark.parametrize("which", CLASSES)
def test_the_end_of_the_block_removes_the_item(open_queue, which):
    queue, other = open_queue(which), open_queue(which, timeout=9.0)
    queue.put("a")
    with queue.receive() as item:
        assert item == "a"
        assert refused(queue)
        assert refused(other)
        assert (len(queue), len(other), other.empty()) == (1, 1, False)
    assert (len(queue), len(other), other.empty()) == (0, 0, True)
    with pytest.raises(ValueError, match="too many"):
        queue.task_done()
    queue.join()
    assert queue.stats().gets == 1


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, GeneratorExit])
def test_an_error_gives_the_item_back_at_once(open_queue, error):
    queue, other = open_queue(), open_queue(timeout=9.0)
    queue.put_many("ab")

    def block():
        with queue.receive() as item:
            assert item == "a"
            assert other.get(block=False) == "b"
            raise error

    with pytest.raises(error):
        block()
    assert other.get(block=False) == "a"


def test_several_items_are_received_together(open_queue):
    queue = open_queue()
    queue.put_many("abcde")
    with queue.receive_many(3) as items:
        assert items == ["a", "b", "c"]
        assert queue.get(block=False) == "d"

    def block() -> None:
        with queue.receive_many(9) as items:
            assert items == ["e"]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        block()
    assert queue.get_many(9) == ["e"]
    with pytest.raises(Empty), queue.receive_many(2, block=False):
        pass


def hold_until_told(queue: Any, tell: Any) -> None:
    """Receive an item, tell it, and hold it."""
    with queue.receive() as item:
        tell(item)
        tell.wait()


def test_a_killed_process_gives_the_item_back_at_once(open_queue, place, request):
    queue = open_queue()
    queue.put("a")
    other = Remote(place.class_of(), name=request.node.name, **place.where)
    other.start(hold_until_told)
    assert other.told() == "a"
    assert refused(queue)
    other.kill()
    begin = time.monotonic()
    assert queue.get(timeout=20) == "a"
    assert time.monotonic() - begin < queue.patience / 2


@pytest.fixture
def no_polling(monkeypatch):
    """Turn polling off, so that only a wake-up helps."""
    monkeypatch.setattr(event_count, "MIN_POLL_INTERVAL", 30.0)
    for dialect in (PostgresDialect, MySQLDialect):
        monkeypatch.setattr(dialect, "max_poll_interval", 30.0)


def test_a_thread_that_waits_gets_what_another_gives_back(open_queue, no_polling):
    queue = open_queue()
    queue.put("a")
    waiters = []

    def block() -> None:
        with queue.receive():
            waiters.append(waiting(lambda: queue.get(timeout=20)))
            until(lambda: queue._core.not_empty._wakes)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        block()
    assert waiters[0]() == "a"


def test_join_and_put_wait_for_the_end_of_the_block(open_queue, no_polling):
    queue = open_queue(maxsize=1)
    queue.put("a")
    with queue.receive():
        finish = waiting(queue.join)
        put = waiting(lambda: queue.put("b", timeout=20))
        until(lambda: queue._core.all_done._wakes and queue._core.not_full._wakes)
        assert not finish.done()
    put()
    assert queue.get() == "b"
    queue.task_done()
    finish()


@pytest.mark.parametrize("timeout", [0, 1])
def test_an_equal_item_waits_for_the_end_of_the_block_and_no_longer_than_allowed(open_queue, timeout):
    queue, other = open_queue("UniqueQueue"), open_queue("UniqueQueue", timeout=timeout)
    queue.put("a")
    with queue.receive():
        with pytest.raises(LockedError):
            waiting(lambda: other.put("a"))()
        assert other.put("b") is not None
    assert other.put("a") is not None


def test_an_equal_item_waits_no_longer_than_the_calls_own_timeout(open_queue):
    queue, other = open_queue("UniqueQueue"), open_queue("UniqueQueue", timeout=9.0)
    queue.put("a")
    with queue.receive():
        start = time.monotonic()
        with pytest.raises(LockedError):
            waiting(lambda: other.put("a", timeout=1))()
        assert time.monotonic() - start < 4
        # The next call on the same session has no timeout of its own.
        finish = waiting(lambda: other.put("a"))
        threading.Event().wait(2.5)
        assert not finish.done()
    assert finish() is not None


def test_a_block_may_last(open_queue, place, monkeypatch):
    """The server ends other transactions of ours that do nothing for a while."""
    monkeypatch.setattr(postgres, "_IDLE_IN_TRANSACTION", 100)
    queue = open_queue(timeout=8.0)
    queue.put("a")
    with queue.receive() as item:
        threading.Event().wait(0.3)
    assert item == "a"
    assert queue.empty()


@pytest.mark.parametrize("where", ["before commit", "after commit"])
def test_a_connection_that_is_lost_at_the_end(open_queue, where):
    cut: list[str] = []
    ready = False

    def is_lost(place: str) -> bool:
        if not ready or cut or place != where:
            return False
        cut.append(place)
        return True

    with losing_connections(is_lost):
        queue = open_queue(timeout=7.0)
        queue.put_many("ab")
        if where == "after commit":
            with queue.receive():
                ready = True
        else:
            with pytest.raises(BackendUnavailableError, match="nothing of the transaction"), queue.receive():
                ready = True
        assert cut == [where]
        assert queue.get_many(9) == (["b"] if where == "after commit" else ["a", "b"])


def test_a_child_that_is_forked_in_the_block_ends_nothing(open_queue):
    queue = open_queue()
    queue.put_many("ab")
    with queue.receive() as item:
        assert item == "a"
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.write(write, queue.get(timeout=10).encode())
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(pid, 0)[1] == 0
        assert os.read(read, 9) == b"b"
        os.close(read)
        os.close(write)
    assert queue.empty()


def test_a_child_that_leaves_the_block_is_refused(open_queue):
    queue = open_queue()
    queue.put("a")

    def block() -> None:
        with queue.receive():
            pid = os.fork()
            if pid:
                assert os.waitpid(pid, 0)[1] == 0

    parent, status = os.getpid(), 1
    try:
        block()
    except StorageError as error:
        status = "belongs to the process" not in str(error)
    finally:
        if os.getpid() != parent:
            os._exit(status)
    assert queue.empty()


def test_a_shut_down_queue_gives_what_it_has(open_queue):
    queue = open_queue()
    queue.put("a")
    queue.shutdown()
    with queue.receive() as item:
        assert item == "a"
    with pytest.raises(ShutDown), queue.receive():
        pass
    queue.shutdown(immediate=True)
    with pytest.raises(ShutDown), queue.receive():
        pass


# A transaction of the caller.


@pytest.fixture
def caller(place):
    """Connect as a program does."""
    connection = CallerConnection(place).connection
    yield connection
    connection.rollback()
    place.run(f"DELETE FROM {place.name}.orders")
    connection.close()


def order(place, caller, id):
    with caller.cursor() as cursor:
        cursor.execute(f"INSERT INTO {place.name}.orders VALUES ({id})")


def orders(place):
    return [id for (id,) in place.run(f"SELECT id FROM {place.name}.orders ORDER BY id")]


@pytest.mark.parametrize("which", [*CLASSES, "AckQueue"])
def test_a_put_is_a_part_of_the_callers_transaction(open_queue, place, caller, which):
    queue = open_queue(which)
    for ends, there in ((caller.rollback, []), (caller.commit, ["a", "b", "c"])):
        order(place, caller, 1)
        queue.put("a", connection=caller)
        queue.put_nowait("b", connection=caller) if which != "AckQueue" else queue.put("b", connection=caller)
        queue.put_many(["c"], connection=caller)
        assert queue.empty()
        ends()
        assert sorted(queue.items()) == there
        assert orders(place) == [1] * bool(there)


def test_a_get_is_a_part_of_the_callers_transaction(open_queue, place, caller):
    queue = open_queue()
    queue.put_many("abcd")
    for ends, there in ((caller.rollback, list("abcd")), (caller.commit, ["d"])):
        order(place, caller, 1)
        assert queue.get(connection=caller) == "a"
        assert queue.get_nowait(connection=caller) == "b"
        assert queue.get_many(1, connection=caller) == ["c"]
        ends()
        assert list(queue.items()) == there
    assert orders(place) == [1]
    with pytest.raises(ValueError, match="too many"):
        queue.task_done()


def test_nothing_is_waited_for_in_a_callers_transaction(open_queue, caller):
    queue = open_queue(maxsize=1)
    with pytest.raises(Empty):
        queue.get(connection=caller)
    with pytest.raises(Empty), queue.receive(connection=caller):
        pass
    queue.put("a", connection=caller)
    with pytest.raises(persistcoll.Full):
        queue.put("b", connection=caller)
    caller.commit()
    assert list(queue.items()) == ["a"]


def test_an_error_undoes_the_block_and_nothing_before_it(open_queue, place, caller):
    queue = open_queue()
    queue.put_many("abc")
    order(place, caller, 1)

    def block(wanted: list[str], id: int) -> None:
        with queue.receive_many(len(wanted), connection=caller) as items:
            assert items == wanted
            order(place, caller, id)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        block(["a"], 2)
    with queue.receive(connection=caller) as item:
        assert item == "a"
        order(place, caller, 3)
        with pytest.raises(ZeroDivisionError):
            block(["b", "c"], 4)
    assert orders(place) == []
    caller.commit()
    assert orders(place) == [1, 3]
    assert list(queue.items()) == ["b", "c"]

    def outer() -> None:
        with queue.receive(connection=caller):
            order(place, caller, 5)
            with queue.receive(connection=caller):
                order(place, caller, 6)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        outer()
    caller.commit()
    assert orders(place) == [1, 3]
    assert list(queue.items()) == ["b", "c"]


def test_the_constructor_takes_the_connection(open_queue, place, caller):
    direct, queue = open_queue(timeout=9.0), open_queue(connection=caller)
    queue.put_many("ab")
    order(place, caller, 1)
    assert (len(queue), len(direct)) == (2, 0)
    caller.commit()
    assert len(direct) == 2
    assert queue.get() == "a"

    def block() -> None:
        with queue.receive():
            order(place, caller, 2)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        block()
    with queue.receive() as item:
        assert item == "b"
    with pytest.raises(Empty):
        queue.get()
    caller.rollback()
    assert list(direct.items()) == ["a", "b"]
    assert queue.skip() is not None
    caller.commit()
    assert list(direct.items()) == ["b"]
    with pytest.raises(TypeError, match="connection"):
        pickle.dumps(queue)
    queue.close()
    with pytest.raises(persistcoll.ClosedError):
        queue.put("c")
    assert orders(place) == [1]
    with pytest.raises(ValueError, match="auto_commit"):
        open_queue(connection=caller, auto_commit=False)


def test_a_connection_alone_names_the_server(place, open_queue, caller, request):
    queue = open_queue()
    with place.class_of()(request.node.name, connection=caller, schema=place.schema) as bound:
        assert bound.url.startswith(queue.url)
        bound.put("a")
        assert queue.empty()
        caller.commit()
        with bound.receive() as item:
            assert item == queue.peek() == "a"
        caller.commit()
    assert queue.empty()
    with pytest.raises(TypeError, match="a connection of"):
        place.class_of()(request.node.name, connection=object())
    if place.kind == MYSQL:
        caller._ssl_required = True  # as if the program had given it certificates
        with pytest.raises(ValueError, match="certificates"):
            place.class_of()(request.node.name, connection=caller)


def test_what_is_stored_with_an_item_is_stored_once(place, open_queue):
    """Consumers fail now and then, and commit a row with each item that they finish."""
    queue, count = open_queue(), 60
    queue.put_many(range(count))

    def consume(number: int) -> None:
        chance = random.Random(number)
        connection = CallerConnection(place).connection
        try:
            while len(queue):
                try:
                    with queue.receive(connection=connection) as item:
                        order(place, connection, item)
                        if chance.random() < 0.3:
                            raise ZeroDivisionError
                except (Empty, ZeroDivisionError):
                    pass
                if chance.random() < 0.2:
                    connection.rollback()
                connection.commit()
        finally:
            connection.close()

    run_threads(*[lambda number=number: consume(number) for number in range(4)])
    assert orders(place) == list(range(count))
    place.run(f"DELETE FROM {place.name}.orders")


def wrappers(raw: Any) -> list[Any]:
    """Return what frameworks give: SQLAlchemy's pool, connection and session, and Django's."""
    pool = SimpleNamespace(driver_connection=raw)
    connection = SimpleNamespace(connection=pool)
    return [
        raw,
        pool,
        connection,
        SimpleNamespace(connection=lambda: connection),
        SimpleNamespace(connection=raw),
    ]


def test_wrapped_connections_are_taken(open_queue, caller):
    queue = open_queue()
    for number, wrapper in enumerate(wrappers(caller)):
        queue.put(number, connection=wrapper)
    caller.commit()
    assert queue.get_many(9) == [0, 1, 2, 3, 4]


def test_what_is_no_connection_of_the_driver_is_refused(open_queue, caller):
    queue = open_queue()
    foreign = type("connection", (), {"__module__": "psycopg2.extensions"})()
    for wrong in (foreign, "connection", 1):
        with pytest.raises(
            TypeError, match=r"a connection of (psycopg 3|PyMySQL), not on (psycopg2|builtins)"
        ):
            queue.put("a", connection=wrong)
    with pytest.raises(TypeError):
        open_queue(connection=foreign)
    with SQLiteQueue(":memory:") as here, pytest.raises(ValueError, match="joins no transactions"):
        here.put("a", connection=caller)


def test_without_a_transaction_it_is_refused(open_queue, place, caller):
    queue = open_queue()
    bound = open_queue(connection=caller)
    if place.kind == MYSQL:
        caller.autocommit(True)
    else:
        caller.autocommit = True
    for call in (lambda: queue.put("a", connection=caller), bound.get):
        with pytest.raises(ValueError, match="no transaction is open"):
            call()
    with pytest.raises(ValueError, match="no transaction is open"), queue.receive(connection=caller):
        pass
    with caller.cursor() as cursor:
        cursor.execute("BEGIN")
        queue.put("a", connection=caller)
        cursor.execute("COMMIT")
    assert queue.get(block=False) == "a"


def test_a_connection_that_is_not_connected_is_said_to_be(open_queue, place):
    queue = open_queue()
    caller = CallerConnection(place).connection
    if place.kind == MYSQL:
        later = type(caller)(user="nobody", defer_connect=True)
        with pytest.raises(BackendUnavailableError, match="not connected"):
            queue.put("a", connection=later)
    caller.close()
    with pytest.raises(BackendUnavailableError, match="closed"):
        queue.put("a", connection=caller)


def test_a_read_only_transaction_is_said_to_be(open_queue, place, caller):
    queue = open_queue()
    with caller.cursor() as cursor:
        cursor.execute("START TRANSACTION READ ONLY" if place.kind == MYSQL else "SET TRANSACTION READ ONLY")
    with pytest.raises(BackendUnavailableError, match="the transaction is read-only"):
        queue.put("a", connection=caller)
    caller.rollback()


def test_a_pipeline_of_the_caller_gives_each_call_its_answer(open_queue, place, caller):
    if place.kind == MYSQL:
        pytest.skip("PyMySQL has none")
    queue, acks = open_queue(), open_queue("AckQueue", "pipelined acks")
    with caller.pipeline(), caller.transaction():
        one = caller.execute("SELECT 1")
        ids = queue.put_many(["a", "b"], connection=caller)
        assert len(ids) == 2
        assert queue.get(connection=caller) == "a"
        acks.put("c", connection=caller)
        item = acks.get(connection=caller)
        assert acks.ack(item, connection=caller) is not None
        with pytest.raises(Empty):
            acks.get(connection=caller)
        assert one.fetchone() == (1,)
    caller.commit()
    assert (queue.get_many(9), acks.stats().done) == (["b"], 1)


def test_an_old_meaning_of_backslashes_changes_no_bytes(open_queue, place, caller):
    """On PostgreSQL standard_conforming_strings may be off, and on MySQL the sql_mode says it."""
    with caller.cursor() as cursor:
        if place.kind == MYSQL:
            cursor.execute("SET SESSION sql_mode = 'NO_BACKSLASH_ESCAPES'")
        else:
            cursor.execute("SET standard_conforming_strings = off")
    items = [b"\\x00'\\", "\\'", bytes(range(256))]
    queue, unique = open_queue(), open_queue("UniqueQueue", "backslashes")
    queue.put_many(items, connection=caller)
    for item in items:
        queue.put(item, connection=caller)
        assert unique.put(item, connection=caller) is not None
        assert unique.put(item, connection=caller) is None
    caller.commit()
    assert queue.get_many(9) == items * 2
    assert unique.get_many(9) == items


def test_nulls_are_sent_whatever_the_session_takes_for_one(open_queue, place, caller, monkeypatch):
    """On PostgreSQL array_nulls may be off."""
    if place.kind == MYSQL:
        pytest.skip("MySQL has no arrays")
    monkeypatch.setenv("PGOPTIONS", "-c array_nulls=off")
    with caller.cursor() as cursor:
        cursor.execute("SET array_nulls = off")
    queue = open_queue(timeout=21.0)  # on connections of its own
    url, options = place.where["url"], {"schema": place.schema, "timeout": 21.0}
    jobs = persistcoll.MessageQueue(url, "jobs", password=place.address.password, **options)
    dicts = [
        persistcoll.PDict(url, "pairs", password=place.address.password, connection=connection, **options)
        for connection in (None, caller)
    ]
    some = [OutgoingMessage("d", topic="t", key="k", delay=0), OutgoingMessage("e")]
    with jobs, dicts[0], dicts[1]:
        for connection, pairs in zip((None, caller), dicts, strict=True):
            queue.put_many("ab", connection=connection)
            queue.put("c", connection=connection)
            jobs.put_many(some, connection=connection)
            jobs.put("f", connection=connection)
            pairs.set_many({"a": 1, "b": pairs.get("b", 0) + 1})
        caller.commit()
        assert queue.get_many(9) == list("abc") * 2
        assert sorted(message.body for message in jobs.get_many(9)) == list("deeff")
        assert dict(dicts[0]) == {"a": 1, "b": 2}


def test_a_failed_transaction_is_refused(open_queue, place, caller):
    if place.kind == MYSQL:
        pytest.skip("here an error fails a statement alone")
    queue = open_queue()
    with pytest.raises(Exception, match="nowhere"), caller.cursor() as cursor:
        cursor.execute("SELECT * FROM nowhere")
    with pytest.raises(ValueError, match="has failed"):
        queue.put("a", connection=caller)
    caller.rollback()
    queue.put("a", connection=caller)
