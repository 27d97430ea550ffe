"""What a network, an administrator and other transactions do to a queue on a server that runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from persistcoll.engine.records import ClaimPolicy, Entry
from persistcoll.errors import BackendUnavailableError, Empty, EncodeError, LockedError, StorageError
from persistcoll.servers import driver, sessions
from persistcoll.servers.address import MYSQL, POSTGRESQL
from persistcoll.servers.mysql import connection as mysql
from persistcoll.servers.postgres import connection as postgres
from persistcoll.testing.children import run_threads
from tests.queues.waits import waiting
from tests.servers.losing import losing_connections
from tests.servers.places import CallerConnection

MIB = 1 << 20


# Networks that swallow what is sent.


CALLS: dict[str, Callable[[Any], object]] = {
    "put": lambda queue: queue.put("new"),
    "put_many": lambda queue: queue.put_many(["new", "newer"]),
    "get": lambda queue: queue.get(block=False),
    "ack": lambda queue: queue.ack(id=1),
    "ack_many": lambda queue: queue.ack_many(ids=[1, 2]),
    "nack": lambda queue: queue.nack(id=1),
    "qsize": lambda queue: queue.qsize(),
}


@pytest.mark.parametrize("what", ["questions", "answers"])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.sampled(14)
def test_a_call_without_an_answer_ends(open_queue, far, proxy, monkeypatch, call, what):
    monkeypatch.setattr(driver, "_SHORTEST_ANSWER_TIMEOUT", 0.5)
    queue = open_queue("AckQueue", timeout=0.1, patience=60, **far)
    queue.put_many("abcd")
    assert queue.get_many(2) == ["a", "b"]
    begin = time.monotonic()
    error = StorageError if call == "put" else BackendUnavailableError  # a put is sent with its commit
    with proxy.swallowing(what), pytest.raises(error, match=r"no answer|timed out|timeout") as raised:
        CALLS[call](queue)
    assert ("the outcome is unknown" in str(raised.value)) == (call == "put")
    assert time.monotonic() - begin < 10
    # The server has noticed that the connection is closed, and has rolled the transaction back.
    there = open_queue("AckQueue", patience=60)
    puts, acks = there.qsize(), there.acked_count()
    assert puts in ({2, 3} if call in ("put", "nack") else {1, 2} if call == "get" else {2})
    assert acks in ({0, 1} if call == "ack" else {0})
    # The object goes on.
    queue.put("x")
    assert queue.get_many(9)[-1] == "x"


@pytest.mark.parametrize("what", ["questions", "answers"])
def test_a_close_without_an_answer_ends(open_queue, far, proxy, monkeypatch, what):
    monkeypatch.setattr(driver, "_SHORTEST_ANSWER_TIMEOUT", 0.5)
    queue = open_queue("AckQueue", timeout=0.1, patience=1.5, **far)
    queue.put("a")
    queue.get()  # From now on it sends heartbeats.
    begin = time.monotonic()
    with proxy.swallowing(what):
        queue.close()
    assert time.monotonic() - begin < 10
    # Its claims end when its heartbeats have been missing for long enough.
    assert open_queue("AckQueue", patience=1.5).get(timeout=20) == "a"


@pytest.mark.parametrize("what", ["questions", "answers"])
def test_a_server_that_is_silent_from_the_beginning_is_named(place, far, proxy, what):
    with proxy.swallowing(what), pytest.raises(BackendUnavailableError, match=r"127\.0\.0\.1"):
        place.class_of()("jobs", **far, timeout=0.1)


@pytest.mark.parametrize("what", ["nothing", "answers"])
def test_an_interrupt_ends_a_get_that_waits(place, open_queue, request, far, proxy, what):
    open_queue()
    program = f"""
import persistcoll, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may start this with the signal ignored
queue = persistcoll.{place.class_of().__name__}({request.node.name!r}, **{far!r})
print("ready", flush=True)
try:
    while True:
        try:
            queue.get()
        except persistcoll.StorageError as error:  # the network, and not the interrupt
            print(error, file=sys.stderr)
except KeyboardInterrupt:
    print("interrupted", flush=True)
sys.stdin.read()
"""
    child = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdin is not None
    assert child.stdout is not None
    with child, child.stdin, child.stdout:
        assert child.stdout.readline() == "ready\n"
        proxy.silent = what == "answers"
        threading.Event().wait(0.3)  # until it polls
        begin = time.monotonic()
        child.send_signal(signal.SIGINT)
        assert child.stdout.readline() == "interrupted\n"
        assert time.monotonic() - begin < 1
        os.kill(child.pid, signal.SIGKILL)
        child.wait()


def test_a_transaction_whose_client_is_gone_locks_nothing_for_long(opened, monkeypatch):
    monkeypatch.setattr(mysql, "_IDLE_IN_TRANSACTION", 1)
    monkeypatch.setattr(postgres, "_IDLE_IN_TRANSACTION", 1000)
    store = opened()
    store.append(b"a")
    session = store._server.acquire()
    session.connection.begin(True, None)
    assert len(session.run(store._sql.lock_next, limit=1, promoted=True).rows) == 1
    until, pause = time.monotonic() + 20, threading.Event()
    while store.clear() == 0:
        assert time.monotonic() < until
        pause.wait(0.05)
    with pytest.raises(driver.ConnectionLostError):
        session.connection.commit()
    store._server.discard(session)


def test_a_commit_that_never_arrives_is_found_out(open_queue, far, proxy, monkeypatch):
    """The server knows nothing of the loss, and keeps the transaction open with all of its locks."""
    monkeypatch.setattr(mysql, "_IDLE_IN_TRANSACTION", 1)
    monkeypatch.setattr(postgres, "_IDLE_IN_TRANSACTION", 1000)
    queue = open_queue(timeout=1.0, **far)
    proxy.strands = 1
    queue.put_many("ab")
    assert proxy.strands == 0
    assert (queue.qsize(), queue.stats().puts) == (2, 2)
    proxy.strands = 1
    assert queue.get() in ("a", "b")  # the transaction that is lost may still hold the first
    assert proxy.strands == 0
    assert (queue.qsize(), queue.stats().gets) == (1, 1)


def test_a_transaction_may_idle_where_it_is_told_to(opened, monkeypatch):
    monkeypatch.setattr(mysql, "_IDLE_IN_TRANSACTION", 1)
    monkeypatch.setattr(postgres, "_IDLE_IN_TRANSACTION", 1000)
    store = opened()
    session = store._server.acquire()
    session.connection.begin(True, None, idles=True)
    threading.Event().wait(1.2)
    session.connection.commit()
    session.connection.begin(True, None)
    session.connection.commit()
    store._server.release(session)


# Connections that an administrator or a timeout of the server ends.


def end_connections(place) -> None:
    """End all connections to this place but the place's own."""
    if place.kind == MYSQL:
        rows = place.run(
            "SELECT id FROM information_schema.processlist WHERE db = %(db)s AND id <> connection_id()",
            db=place.name,
        )
        for (id,) in rows:
            with suppress(StorageError):  # it has ended since
                place.run(f"KILL CONNECTION {id}")
    else:
        place.run(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'persistcoll'"
            " AND pid <> pg_backend_pid() AND query LIKE %(pattern)s",
            pattern=f"%{place.name}%",
        )


def test_connections_that_an_administrator_ends_are_replaced(place, open_queue):
    queue = open_queue("AckQueue")
    numbers = iter(range(100))
    for call in (queue.put, queue.get, queue.ack, queue.nack, queue.qsize, queue.stats, queue.clear):
        queue.put_many([next(numbers) for _ in range(3)])
        item = queue.get()
        end_connections(place)
        arguments = {queue.put: (next(numbers),), queue.ack: (item,), queue.nack: (item,)}
        call(*arguments.get(call, ()))
        queue.put("there")


def test_a_get_that_waits_survives_that_its_connections_are_ended(place, open_queue):
    queue = open_queue()
    got = waiting(lambda: queue.get(timeout=30))
    for _ in range(3):
        end_connections(place)
    open_queue().put("late")
    assert got() == "late"


@pytest.fixture
def few(place) -> Iterator[dict[str, Any]]:
    """Name the place as a user who may have two connections."""
    name = f"few_{place.name[8:16]}"
    arguments = {**place.keywords, "user": name, "password": "few"}
    if place.kind == MYSQL:
        with place.mysql_user(name, "few", "ALL"):
            for host in ("'%%'", "localhost"):
                place.run(f"ALTER USER {name}@{host.replace('%%', '%')} WITH MAX_USER_CONNECTIONS 2")
            yield arguments
        return
    place.run(f"CREATE ROLE {name} LOGIN CONNECTION LIMIT 2")
    place.run(f"GRANT ALL ON SCHEMA {place.name} TO {name}")
    place.run(f"GRANT CREATE ON DATABASE {place.address.database} TO {name}")
    yield arguments
    place.run(f"DROP OWNED BY {name} CASCADE")
    place.run(f"DROP ROLE {name}")


def test_a_call_waits_for_a_connection_while_there_are_too_many(place, few):
    with place.class_of()("jobs", **few, timeout=0.3) as queue:
        server = queue._store._server
        taken = [server.acquire(), server.acquire()]
        with pytest.raises(BackendUnavailableError, match=r"too many|max_user_connections"):
            queue.put("a")
        free = threading.Timer(0.1, server.discard, [taken.pop()])
        free.start()
        queue.put("b")
        free.join()
        server.release(taken.pop())
        assert queue.get_many(2) == ["b"]


# Other transactions.


def test_a_deadlock_with_another_program_is_survived(place, opened):
    """That program locks the second row and then the first one, as no call of ours does."""
    store = opened(retry=ClaimPolicy(keep_done=10))
    first, second = store.put([Entry(b"a"), Entry(b"b")])
    store.claim_many(2, lambda record: record.id)
    caller = CallerConnection(place)
    table = f"{place.name}.pc_{store._number}"

    def lock(id: Any) -> None:
        with caller.connection.cursor() as cursor:
            cursor.execute(f"UPDATE {table} SET crc = crc WHERE id = {id}")
            # The server ends the transaction that has done less, or that waits longer.
            cursor.execute(f"UPDATE {table} SET place = place + 1 WHERE id = {id}")

    lock(second)
    acked = waiting(lambda: store.ack([first, second]))
    until = time.monotonic() + 20
    pause = threading.Event()
    while not _waits_for_a_lock(place):
        assert time.monotonic() < until
        pause.wait(0.15)  # MariaDB looks again only if nobody has asked for 0.1 s.
    try:
        lock(first)
        caller.commit()
    except Exception:  # It was this transaction that the server has ended.
        caller.rollback()
    acked()
    caller.close()
    assert (store.stats().done, store.stats().ready) == (2, 0)


def _waits_for_a_lock(place) -> bool:
    if place.kind == MYSQL:
        text = "SELECT count(*) FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'"
    else:
        text = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    return bool(place.run(text)[0][0])


def test_a_deadlock_in_a_callers_transaction_is_told(place, open_queue):
    """MySQL then has rolled everything back, the savepoint of the call as well."""
    queue = open_queue("UniqueQueue")
    callers = [CallerConnection(place), CallerConnection(place)]
    errors: list[Exception] = []
    barrier = threading.Barrier(2)

    def put(caller: CallerConnection, items: list[str]) -> None:
        try:
            queue.put(items[0], connection=caller.connection)
            barrier.wait()
            queue.put(items[1], connection=caller.connection)
            caller.commit()
        except Exception as error:
            errors.append(error)
            caller.rollback()

    run_threads(lambda: put(callers[0], ["a", "b"]), lambda: put(callers[1], ["b", "a"]))
    for caller in callers:
        caller.close()
    (error,) = errors
    assert type(error) is LockedError
    assert "begin it again" in str(error)
    assert queue.qsize() == 2


@contextmanager
def failing_statements(place, table: str, times: int) -> Iterator[None]:
    """Let the first changes of rows of a table fail as if transactions could not be serialized."""
    name = place.name
    if place.kind == MYSQL:
        # It does not know transactions, so that a rollback changes nothing there.
        place.run(f"CREATE TABLE {name}.failures (n INT) ENGINE = MyISAM")
        place.run(f"INSERT INTO {name}.failures VALUES ({times})")
        for verb in ("UPDATE", "INSERT", "DELETE"):
            place.run(
                f"CREATE TRIGGER {name}.fail_{verb} BEFORE {verb} ON {table} FOR EACH ROW BEGIN"
                f" IF (SELECT n FROM {name}.failures) > 0 THEN UPDATE {name}.failures SET n = n - 1;"
                " SIGNAL SQLSTATE '40001' SET MYSQL_ERRNO = 1213; END IF; END"
            )
        yield
        assert place.run(f"SELECT n FROM {name}.failures")[0][0] == 0
        for verb in ("UPDATE", "INSERT", "DELETE"):
            place.run(f"DROP TRIGGER {name}.fail_{verb}")
        place.run(f"DROP TABLE {name}.failures")
    else:
        place.run(f"CREATE SEQUENCE {name}.failures")
        place.run(
            f"CREATE FUNCTION {name}.fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            f" IF nextval('{name}.failures') <= {times} THEN RAISE serialization_failure; END IF;"
            " RETURN coalesce(new, old); END $$"
        )
        place.run(
            f"CREATE TRIGGER fail BEFORE UPDATE OR INSERT OR DELETE ON {table} FOR EACH ROW"
            f" EXECUTE FUNCTION {name}.fail()"
        )
        yield
        assert place.run(f"SELECT last_value FROM {name}.failures")[0][0] > times
        place.run(f"DROP TRIGGER fail ON {table}")
        place.run(f"DROP FUNCTION {name}.fail")
        place.run(f"DROP SEQUENCE {name}.failures")


@pytest.mark.parametrize("call", [call for call in CALLS if call != "qsize"])
@pytest.mark.sampled(4)
def test_transactions_that_cannot_be_serialized_begin_again(place, open_queue, call):
    queue = open_queue("AckQueue")
    queue.put_many("abcd")
    assert queue.get_many(2) == ["a", "b"]
    with failing_statements(place, f"{place.name}.pc_{queue._store._number}", 2):
        CALLS[call](queue)
    told = queue.stats()
    wanted = {
        "put": (3, 2, 0),
        "put_many": (4, 2, 0),
        "get": (1, 3, 0),
        "ack": (2, 1, 1),
        "ack_many": (2, 0, 2),
        "nack": (3, 1, 0),
    }
    assert (told.ready, told.claimed, told.done) == wanted[call]


# Notes and claims of calls whose answers were lost.


def test_a_lost_answer_while_notes_are_removed_leaves_no_connection(opened, monkeypatch):
    monkeypatch.setattr(sessions, "_OPS_BETWEEN_SWEEPS", 1)
    for place in ("before run", "after begin", "after commit"):
        armed: list[str] = []

        def is_lost(where: str, place: str = place, armed: list[str] = armed) -> bool:
            if armed and where == place:
                armed.clear()
                return True
            return False

        with losing_connections(is_lost):
            store = opened(name=place)
            server = store._server
            sweep = server._sweep

            def armed_sweep(session: Any, sweep: Any = sweep, armed: list[str] = armed) -> None:
                armed.append("now")
                sweep(session)

            monkeypatch.setattr(server, "_sweep", armed_sweep)
            store.append(b"x")
            assert not armed
            assert server._all == set(server._idle)
            store.close()


def test_a_claim_whose_answer_was_lost_counts_no_attempt(place, opened):
    last = "after commit" if place.kind == MYSQL else "after run"
    lost: list[str] = []

    def lose_once(where: str) -> bool:
        if where == last and lost == ["arm"]:
            lost.append(where)
            return True
        return False

    with losing_connections(lose_once):
        store = opened(retry=ClaimPolicy(max_attempts=1))
        store.append(b"a")
        store.claim(lambda record: record)
        store.nack(1)  # it is a holder, and its first record is dead
        store.append(b"b")
        lost.append("arm")
        with pytest.raises(Empty):
            store.claim(lambda record: record)  # the second try finds nothing
        assert len(lost) == 2
        assert store.claim(lambda record: (record.payload, record.attempts)) == (b"b", 1)


# Large items.


def test_an_item_of_16_mib_is_an_item(place, open_queue):
    queue = open_queue("AckQueue", serializer="raw")
    item = os.urandom(16 * MIB)
    if place.kind == MYSQL:
        ((packet,),) = place.run("SELECT @@max_allowed_packet")
        if packet < 40 * MIB:
            with pytest.raises(EncodeError, match="too large"):
                queue.put(item)
            item = item[: queue._store.capabilities.max_payload]
    queue.put(item)
    got = queue.get()
    assert got == item
    queue.nack(got)
    assert queue.get() == item


def test_a_limit_that_was_lowered_since_is_told(place, open_queue):
    if place.kind == POSTGRESQL:
        pytest.skip("PostgreSQL has one that nobody can lower")
    queue = open_queue(serializer="raw")
    ((packet,),) = place.run("SELECT @@global.max_allowed_packet")
    try:
        place.run(f"SET GLOBAL max_allowed_packet = {MIB}")
        end_connections(place)
        with pytest.raises(EncodeError, match="max_allowed_packet"):
            queue.put(bytes(2 * MIB))
    finally:
        place.run(f"SET GLOBAL max_allowed_packet = {packet}")
    end_connections(place)
    queue.put(bytes(2 * MIB))
    assert len(queue.get()) == 2 * MIB
