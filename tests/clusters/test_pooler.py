"""A server of PostgreSQL behind a pooler that gives its sessions to other clients after each transaction."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from functools import partial
from itertools import count
from typing import Any

import pytest

from persistcoll import (
    BackendUnavailableError,
    Empty,
    MessageQueue,
    PDict,
    PostgresAckQueue,
    PostgresQueue,
    StoreMissingError,
    collections,
    drop,
)
from persistcoll.servers import sessions, wakes
from persistcoll.servers.address import POSTGRESQL
from persistcoll.servers.postgres import connection as postgres
from persistcoll.servers.sessions import driver_of
from persistcoll.testing.children import run_threads
from tests.clusters.chaos import LENGTHS, WRONG, forget_notes, seconds_of, survive
from tests.clusters.pooler import PooledPlace, Pooler
from tests.queues.waits import until, waiting
from tests.servers import ack_workers
from tests.servers.own_server import OwnServer
from tests.servers.places import CallerConnection, Place, need_server
from tests.servers.test_standby import become_standby
from tests.servers.test_wakes import is_asleep, of

THREADS = 3
EACH = 12  # items of a thread
SECONDS = 20.0  # far more than any wait here lasts
SESSIONS = 2  # of the server
LONGEST_AWAY = 0.4  # seconds
POOL_OF_LOAD = 6
# The pooler itself lets a client without a name have that of the one before.
SETTINGS = "SELECT name, setting FROM pg_settings WHERE name <> 'application_name'"


@pytest.fixture
def pooler() -> Iterator[Pooler]:
    pooler = Pooler(need_server(POSTGRESQL), SESSIONS)
    yield pooler
    pooler.close()


@pytest.fixture
def place(pooler) -> Iterator[Place]:
    place = PooledPlace(pooler.address)
    yield place
    place.close()


@pytest.fixture
def server() -> Iterator[OwnServer]:
    server = OwnServer(POSTGRESQL)
    yield server
    server.close()


@pytest.fixture
def behind(server) -> Iterator[Pooler]:
    """A pooler in front of a server that the test may stop."""
    pooler = Pooler(server.address, POOL_OF_LOAD)
    yield pooler
    pooler.close()


@pytest.fixture
def caller(place) -> Iterator[CallerConnection]:
    with CallerConnection(place) as caller:
        yield caller


@pytest.fixture
def open_one(place) -> Iterator[Callable[..., Any]]:
    """Open collections, and close them at the end. One with another timeout is as in another process."""
    with ExitStack() as opened:

        def open_one(which: str, name: str = "letters", **options: Any) -> Any:
            if which == "MessageQueue":
                made: Any = MessageQueue(place.where["url"], name, schema=place.schema, **options)
            elif which == "PDict":
                made = PDict(place.where["url"], name, schema=place.schema, **options)
            else:
                made = place.class_of(which)(name, **place.where, **options)
            return opened.enter_context(closing(made))

        yield open_one


def settle(queue: Any, item: Any) -> None:
    if isinstance(queue, MessageQueue):
        item.ack()
    elif hasattr(queue, "ack"):
        queue.ack(item)


def body(item: Any) -> Any:
    return getattr(item, "body", item)


def put_and_get_all(queue: Any) -> list[Any]:
    """Put by several threads while others get, and return what they got."""
    got: list[Any] = []
    numbers = count()

    def put() -> None:
        for _ in range(EACH):
            queue.put(next(numbers))

    def get() -> None:
        for _ in range(EACH):
            item = queue.get(timeout=SECONDS)
            settle(queue, item)
            got.append(body(item))

    run_threads(*[get] * THREADS, *[put] * THREADS, timeout=60)
    return got


QUEUES = ("Queue", "LIFOQueue", "UniqueQueue", "PriorityQueue", "AckQueue", "MessageQueue")


@pytest.mark.parametrize("which", QUEUES)
def test_threads_put_and_get_each_item_once(open_one, which):
    queue = open_one(which)
    assert sorted(put_and_get_all(queue)) == list(range(THREADS * EACH))
    with pytest.raises(Empty):
        queue.get(block=False)


@pytest.mark.parametrize(("which", "maxsize"), [("Queue", 4), ("Queue", 1000), ("AckQueue", 3)])
def test_a_queue_never_has_more_than_its_maxsize(open_one, which, maxsize):
    queue = open_one(which, maxsize=maxsize)
    assert sorted(put_and_get_all(queue)) == list(range(THREADS * EACH))
    queue.put_many(range(maxsize))
    assert queue.full()
    settle(queue, queue.get())
    queue.put("x", block=False)
    assert queue.full()


def test_threads_count_in_a_dict(open_one):
    pairs = open_one("PDict")

    def work() -> None:
        for _ in range(EACH):
            pairs.incr("n")

    run_threads(*[work] * THREADS)
    pairs.set_many({"a": 1, "b": 2})
    del pairs["a"]
    assert dict(pairs.items()) == {"n": THREADS * EACH, "b": 2}


def test_messages_have_keys_groups_and_failures(open_one):
    queue = open_one("MessageQueue", max_attempts=2, backoff=None)
    queue.put("first", key="k", group="g")
    queue.put("again", key="k", group="g")
    queue.put("second", group="g")
    first = queue.get(timeout=SECONDS)
    assert first.body == "first"
    with pytest.raises(Empty):
        queue.get(block=False)
    first.ack()
    for _ in range(2):
        queue.get(timeout=SECONDS).nack()
    assert queue.stats().dead == 1


def test_a_receive_gives_back_what_fails_and_removes_the_rest(open_one):
    queue, other = open_one("Queue"), open_one("Queue", timeout=9.0)
    queue.put("x")
    with suppress(ZeroDivisionError), queue.receive():
        with pytest.raises(Empty):
            other.get(block=False)
        raise ZeroDivisionError
    with queue.receive(timeout=SECONDS) as item:
        assert item == "x"
    assert queue.empty()


def test_a_call_joins_a_transaction_that_goes_through_the_pooler(open_one, caller):
    queue, messages = open_one("AckQueue"), open_one("MessageQueue", "messages")
    ids = [queue.put("kept"), queue.put("claimed")]
    for end in (caller.rollback, caller.commit):
        queue.put("joined", connection=caller.connection)
        messages.put("joined", connection=caller.connection)
        with caller.connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        assert queue.qsize() == len(ids)
        end()
    assert [queue.get(timeout=SECONDS) for _ in range(3)] == ["kept", "claimed", "joined"]
    assert messages.get(timeout=SECONDS).body == "joined"


def test_collections_are_listed_and_dropped(open_one, place, monkeypatch):
    url = place.where["url"]
    if place.address.password is not None:
        monkeypatch.setenv("PERSISTCOLL_PASSWORD", place.address.password)
    for which in QUEUES:
        open_one(which, which).put(1)
    assert set(collections(url, schema=place.schema)) == set(QUEUES)
    for which in QUEUES:
        drop(url, which, schema=place.schema)
    assert not list(collections(url, schema=place.schema))


# What is left on the server's sessions.


def lasting(place: Place) -> dict[int, Any]:
    """Return what lasts longer than a transaction in each session of the server, by its process."""
    found: dict[int, Any] = {}
    with ExitStack() as callers:
        for _ in range(SESSIONS):  # With that many transactions at once each one has a session.
            # It rolls back at its end: otherwise the pooler ends the session.
            caller = callers.enter_context(CallerConnection(place))
            with caller.connection.cursor() as cursor:

                def rows(text: str, cursor: Any = cursor) -> list[Any]:
                    return list(cursor.execute(text).fetchall())

                ((process,),) = rows("SELECT pg_backend_pid()")
                found[process] = {
                    "settings": dict(rows(SETTINGS)),
                    "prepared": rows("SELECT name FROM pg_prepared_statements"),
                    "channels": rows("SELECT pg_listening_channels()"),
                    "locks": rows(
                        "SELECT objid FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory'"
                    ),
                }
    return found


def use_all(open_one: Callable[..., Any], place: Place) -> None:
    """Run each kind of statement more than once, and wait for what does not come."""
    for which in QUEUES:
        queue = open_one(which, which)
        for _ in range(3):
            queue.put(which)
            settle(queue, queue.get())
    open_one("Queue", "Queue").put_many(range(3))
    pairs = open_one("PDict", "pairs")
    for _ in range(3):
        pairs.incr("n")
    for which in ("AckQueue", "MessageQueue"):
        with pytest.raises(Empty):
            open_one(which, which).get(timeout=0.3)


def test_nothing_is_left_in_the_sessions_of_the_server(open_one, place):
    before = lasting(place)
    assert len(before) == SESSIONS
    use_all(open_one, place)
    after = lasting(place)
    assert after == before
    for each in after.values():
        assert not each["prepared"] + each["channels"] + each["locks"]


def test_each_statement_has_the_settings_of_a_session_of_its_own(server, behind):
    """Whether it is a transaction, or one of several in one."""
    names = (
        "lock_timeout", "idle_in_transaction_session_timeout", "random_page_cost", "synchronous_commit",
        "transaction_isolation", "transaction_read_only", "array_nulls",
    )  # fmt: skip
    text = "SELECT " + ", ".join(f"current_setting('{name}')" for name in names)
    server.run("ALTER ROLE postgres SET default_transaction_isolation = 'serializable'")
    server.run("ALTER ROLE postgres SET default_transaction_read_only = on")
    server.run("ALTER ROLE postgres SET array_nulls = off")
    found = []
    for address in (server.address, behind.address):
        with closing(driver_of(POSTGRESQL).connect(address, 3.0, False)) as connection:
            found.append(connection.run(text).rows)
            connection.begin(True, None)
            found.append(connection.run(text).rows)
            connection.rollback()
    assert found == [[("3s", "30s", "1.1", "off", "read committed", "off", "on")]] * 4


def test_a_call_takes_as_many_trips_as_without_a_pooler(open_one, monkeypatch):
    trips: list[int] = []

    def answers(self, calls, original=postgres._OwnConnection._answers):
        trips.append(len(calls))
        return original(self, calls)

    monkeypatch.setattr(postgres._OwnConnection, "_answers", answers)
    queue = open_one("AckQueue")
    for call, most in (("put", 1), ("put", 1), ("get", 1), ("empty", 1), ("ack", 1)):
        for _ in range(2):
            arguments = ["x"] if call == "put" else [queue.get()] if call == "ack" else []
            trips.clear()
            getattr(queue, call)(*arguments)
        assert len(trips) == most, call
        queue.put_many("xyz")


def test_a_statement_that_fails_leaves_no_transaction_open(place):
    with closing(driver_of(POSTGRESQL).connect(place.address, 3.0, True)) as connection:
        for _ in range(2):
            with pytest.raises(Exception, match="division by zero"):
                connection.run("SELECT 1 / 0")
            assert connection.run("SELECT pg_current_xact_id_if_assigned() IS NULL").rows == [(True,)]


# Waits, without notifications.


def test_a_wait_asks_the_server_and_does_not_listen(open_one, place, monkeypatch):
    # A process that is notified asks so seldom.
    monkeypatch.setattr(wakes, "_LONGEST_POLL", 3600.0)
    mine, other = open_one("AckQueue", maxsize=1), open_one("AckQueue", timeout=9.0)

    def asleep(call: Callable[[], Any]) -> Any:
        """Begin a call that waits, and return when it sleeps, and its process has tried to listen."""
        finish = waiting(call)
        until(lambda: is_asleep(mine) and of(mine)._listen_at)
        assert not finish.done()
        return finish

    finish = asleep(lambda: mine.get(timeout=SECONDS))
    other.put("x")
    item = finish()
    finish = asleep(mine.join)
    mine.ack(item)
    finish()
    other.put("y")
    finish = asleep(lambda: mine.put("z", timeout=SECONDS))
    other.get()
    finish()
    assert place.run(f"SELECT 1 FROM {place.name}.pc_waiters") == []
    for queue in (mine, other):
        assert of(queue)._connection is None


def test_a_process_that_listens_is_notified_by_one_behind_the_pooler(open_one, place):
    direct = place.where | {"url": need_server(POSTGRESQL).shown}
    behind = open_one("Queue")
    with closing(place.class_of("Queue")("letters", **direct)) as queue:
        finish = waiting(lambda: queue.get(timeout=SECONDS))
        until(lambda: of(queue)._is_heard)
        behind.put("x")
        assert finish() == "x"
        assert sum(of(queue)._heard.values())


# The pooler dies.


def retrying(call: Callable[[], Any]) -> Any:
    """Begin a call that cannot succeed yet, and return after some tries: a function for the result."""
    finish = waiting(call)
    threading.Event().wait(0.3)
    assert not finish.done()
    return finish


def test_the_pooler_may_die_between_any_two_steps(open_one, pooler):
    queue, messages = open_one("AckQueue", timeout=SECONDS), open_one("MessageQueue", "m", timeout=SECONDS)
    for _ in range(2):
        queue.put("x")
        messages.put("x")
        pooler.restart()
        item, message = queue.get(), messages.get()
        pooler.restart()
        queue.nack(item)
        message.nack(delay=0)
        pooler.restart()
        item, message = queue.get(timeout=SECONDS), messages.get(timeout=SECONDS)
        pooler.restart()
        queue.ack(item)
        message.ack()
        pooler.restart()
        assert queue.unfinished_tasks == 0
        assert messages.stats().ready == 0


def test_a_call_waits_for_the_pooler_to_come_back(open_one, pooler):
    queue = open_one("Queue", timeout=SECONDS)
    pooler.kill()
    finish = retrying(lambda: queue.put("x"))
    pooler.start()
    finish()
    pooler.kill()
    finish = retrying(queue.get)
    pooler.start()
    assert finish() == "x"


def test_what_is_received_is_there_again_after_the_pooler_died_in_the_block(open_one, pooler):
    queue = open_one("Queue", timeout=SECONDS)
    queue.put("x")
    with pytest.raises(BackendUnavailableError, match="nothing of the transaction"), queue.receive():
        pooler.restart()
    assert queue.get(timeout=SECONDS) == "x"


def test_a_call_waits_for_room_in_the_pooler():
    with closing(Pooler(need_server(POSTGRESQL), 1, "max_client_conn = 1")) as pooler:
        with closing(driver_of(POSTGRESQL).connect(pooler.address, 3.0, True)) as only:
            assert only.run("SELECT 1").rows == [(1,)]
            finish = retrying(lambda: collections(pooler.address.shown, schema="nowhere"))
        with pytest.raises(StoreMissingError):
            finish()


# The server of the pooler dies, or becomes another one.


def test_a_call_waits_for_the_server_behind_the_pooler_to_come_back(server, behind):
    with PostgresAckQueue("letters", behind.address.shown, timeout=SECONDS) as queue:
        queue.put("x")
        server.kill()
        finish = retrying(lambda: queue.put("y"))
        server.start()
        finish()
        assert queue.get_many(3, timeout=SECONDS) == ["x", "y"]


def test_a_server_behind_the_pooler_that_becomes_a_standby_is_read(server, behind, monkeypatch):
    url = behind.address.shown
    with PostgresQueue("letters", url, timeout=2.0) as queue, PDict(url, "ages", timeout=2.0) as ages:
        queue.put("x")
        ages["ann"] = 41
        become_standby(server)
        # What has not begun has no outcome that the next session could find.
        monkeypatch.delattr(sessions.Server, "_find_note")
        for _ in range(2):  # by connections that were made to a primary, and then by new ones
            with pytest.raises(BackendUnavailableError, match="standby"):
                queue.put("y")
            with pytest.raises(BackendUnavailableError, match="standby"):
                ages["bob"] = 1
            assert ages["ann"] == 41


@pytest.fixture
def load(server, behind, crew, rng, tell) -> Callable[..., Any]:
    """Return a function that lets the pooler die while processes are at work.

    It returns the directory of their notes, and what the queue holds at last.
    """

    def die() -> float:
        behind.kill()
        killed = time.monotonic()
        threading.Event().wait(rng.choice((0.0, rng.uniform(0.0, LONGEST_AWAY))))
        behind.start()
        return killed

    def run(kind: str, target: Callable[..., None], seconds: float, **options: Any) -> Any:
        started = crew([behind.address], kind, target, **options)
        open_queue = partial(ack_workers.opened, kind, {"url": server.address.shown})
        return started.notes, survive(started, open_queue, {"the pooler's end": (8, die)}, seconds, tell)

    return run


@pytest.mark.parametrize("at_length", LENGTHS)
@pytest.mark.parametrize("kind", ["PostgresAckQueue", "MessageQueue"])
def test_every_item_is_settled_once_while_the_pooler_dies_again_and_again(load, request, kind, at_length):
    notes, rows = load(kind, ack_workers.work, seconds_of(request.config, at_length, 3))
    ack_workers.Account(notes).check(rows)


@pytest.mark.long
def test_calls_that_are_not_noted_are_noticed(load):
    notes, rows = load("PostgresAckQueue", ack_workers.work, 15.0, before=forget_notes)
    with pytest.raises(AssertionError, match=WRONG):
        ack_workers.Account(notes).check(rows)


@pytest.mark.parametrize("at_length", LENGTHS)
def test_what_is_booked_in_the_transaction_that_gets_it_is_booked_once_while_the_pooler_dies(
    server, load, request, at_length
):
    server.run("CREATE TABLE booked (number int)")
    book = partial(ack_workers.book, prepare_threshold=None)
    notes, rows = load("PostgresQueue", book, seconds_of(request.config, at_length, 3))
    assert rows == []
    booked = [number for (number,) in server.run("SELECT number FROM booked")]
    ack_workers.Account(notes).check_booked(booked)
