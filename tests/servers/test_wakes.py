"""Waiters are woken by what others do: by a notification where the server passes it on, and always by a poll.

Two objects with different timeouts have connections of their own, and know nothing of each other, as in two
processes.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import pairwise
from typing import Any

import pytest

from persistcoll import Empty, MessageQueue, PostgresQueue
from persistcoll.engine.contracts import Awaited
from persistcoll.errors import BackendUnavailableError, ClosedError
from persistcoll.servers import wakes
from persistcoll.servers.address import MYSQL, POSTGRESQL
from persistcoll.servers.wakes import Wakes
from persistcoll.testing.children import in_forked_child
from tests.queues.waits import until, waiting
from tests.servers.own_server import OwnServer
from tests.servers.places import CallerConnection, Place
from tests.servers.test_plans import full_scans

NEVER = 3600.0
SECONDS = 8.0


@pytest.fixture
def place(request) -> Iterator[Place]:
    """A place on PostgreSQL, or on the server that the test names."""
    place = Place(getattr(request, "param", POSTGRESQL))
    yield place
    place.close()


@pytest.fixture
def polls_never(monkeypatch) -> None:
    """Let a wait listen at once and poll once, so that only a notification ends it; none is left out."""
    for name in ("_SHORTEST_POLL", "_LONGEST_POLL", "_LONGEST_POLL_ALONE"):
        monkeypatch.setattr(wakes, name, NEVER)
    monkeypatch.setattr(wakes, "_NOTIFY_EVERY", 0.0)


@pytest.fixture
def open_one(place, request) -> Iterator[Callable[..., Any]]:
    """Open queues, and close them at the end. One with another timeout is as in another process."""
    opened: list[Any] = []

    def open_one(which: str, timeout: float = 10.0, **options: Any) -> Any:
        options = {"name": "q", "durability": "process", "timeout": timeout, **options}
        if which == "MessageQueue":
            options.pop("durability")
            opened.append(MessageQueue(place.where["url"], schema=place.schema, **options))
        else:
            opened.append(place.class_of(which)(**place.where, **options))
        return opened[-1]

    yield open_one
    for queue in opened:
        queue.close()


def texts_of(trips):
    """Return the statements."""
    return [text for trip in trips for text in trip]


def is_asleep(queue: Any) -> bool:
    core = queue._core
    events = [core.all_done]
    if isinstance(queue, MessageQueue):
        events += core._available.values()
    else:
        events += (core.not_empty, core.any_put, core.not_full)
    return any(event._wakes for event in events)


def of(queue: Any) -> Wakes:
    found: Wakes | None = queue._store._server.wakes
    assert found is not None
    return found


def connect(queue: Any) -> None:
    """Connect as a wait does that polls again and again, so that one that polls once listens at once."""
    if of(queue)._connection is None:
        of(queue).listen("pc_none")
        until(lambda: of(queue)._connection)


def asleep(queue: Any, call: Callable[[], Any]) -> Any:
    """Begin a call that waits, and return when it sleeps and is notified: a function for the result."""
    connect(queue)
    finish = waiting(call)
    until(lambda: is_asleep(queue) and of(queue)._is_heard)
    assert not finish.done()
    return finish


# What wakes, without a poll.

Change = Callable[[Any], Callable[[], object]]
"""Prepares another object, and returns what it does then."""


def _nack(other):
    other.put("x")
    item = other.get()
    return lambda: other.nack(item)


def _close(other):
    other.put("x")
    other.get()
    return other.close


def _requeue(other):
    id = other.put("x")
    other.ack_failed(id=other.get(raw=True)["pqid"])
    return lambda: other.requeue(id)


def _receive_in_vain(other):
    other.put("x")
    entered, leave = threading.Event(), threading.Event()

    def receive():
        with suppress(ZeroDivisionError), other.receive():
            entered.set()
            leave.wait(SECONDS)
            raise ZeroDivisionError

    finish = waiting(receive)
    entered.wait(SECONDS)

    def end():
        leave.set()
        finish()

    return end


READY: dict[str, tuple[str, dict[str, Any], Change]] = {
    "put": ("Queue", {}, lambda other: lambda: other.put("x")),
    "put_many": ("Queue", {}, lambda other: lambda: other.put_many(["x", "x"])),
    "put of what is unique": ("UniqueQueue", {}, lambda other: lambda: other.put("x")),
    "put with a bound": ("Queue", {"maxsize": 5}, lambda other: lambda: other.put("x")),
    "put with a priority": ("PriorityQueue", {}, lambda other: lambda: other.put("x")),
    "nack": ("AckQueue", {}, _nack),
    "close": ("AckQueue", {}, _close),
    "requeue": ("AckQueue", {}, _requeue),
    "receive that fails": ("Queue", {}, _receive_in_vain),
}


@pytest.mark.parametrize("name", READY)
def test_what_makes_an_item_ready_wakes_a_get(polls_never, open_one, name):
    which, options, prepare = READY[name]
    mine, other = open_one(which), open_one(which, 9.0, **options)
    change = prepare(other)
    finish = asleep(mine, lambda: mine.get(timeout=SECONDS))
    change()
    assert finish() == "x"


@pytest.mark.parametrize("which", ["Queue", "AckQueue"])
def test_a_get_wakes_a_put_that_waits_for_room(polls_never, open_one, which):
    mine, other = open_one(which, maxsize=1), open_one(which, 9.0)
    mine.put("x")
    finish = asleep(mine, lambda: mine.put("y", timeout=SECONDS))
    assert other.get() == "x"
    finish()


def test_an_ack_wakes_a_join(polls_never, open_one):
    mine, other = open_one("AckQueue"), open_one("AckQueue", 9.0)
    mine.put("x")
    item = other.get()
    finish = asleep(mine, mine.join)
    other.ack(item)
    finish()


def test_what_is_removed_wakes_a_join(polls_never, open_one):
    mine, other = open_one("AckQueue"), open_one("AckQueue", 9.0)
    mine.put("x")
    finish = asleep(mine, mine.join)
    other.clear()
    finish()


def _got(other, **options):
    other.put("x", **options)
    return other.get()


def _follower(other):
    other.put("first", group="g")
    other.put("x", group="g")
    return other.get().ack


def _dead(other):
    _got(other).fail()
    return other.redrive


def _paused(other):
    other.pause("default")
    other.put("x")
    return lambda: other.resume("default")


def _locked(other):
    other.put("x")
    return other.lock_topic("default").release


MESSAGES: dict[str, Change] = {
    "put": lambda other: lambda: other.put("x"),
    "put_many": lambda other: lambda: other.put_many(["x", "x"]),
    "put with a key": lambda other: lambda: other.put("x", key="k"),
    "put with a delay": lambda other: lambda: other.put("x", delay=0.05),
    "nack": lambda other: _got(other).nack,
    "release": lambda other: _got(other).release,
    "ack of the head of a group": _follower,
    "redrive": _dead,
    "resume": _paused,
    "release of a topic": _locked,
    "lease that is made shorter": lambda other: partial(_got(other).extend, 0.05),
    "close": lambda other: (_got(other), other.close)[1],
}


@pytest.mark.parametrize("name", MESSAGES)
def test_what_makes_a_message_ready_wakes_a_get(polls_never, open_one, name):
    mine, other = open_one("MessageQueue"), open_one("MessageQueue", 9.0)
    change = MESSAGES[name](other)
    finish = asleep(mine, lambda: mine.get(timeout=SECONDS).body)
    change()
    assert finish() == "x"


FINISHES: dict[str, Callable[[Any, Any], object]] = {
    "ack": lambda other, message: message.ack(),
    "fail": lambda other, message: message.fail(),
    "ack_many": lambda other, message: other.ack_many([message]),
    "purge": lambda other, message: (message.release(), other.purge()),
}


@pytest.mark.parametrize("name", FINISHES)
def test_what_finishes_a_message_wakes_a_join(polls_never, open_one, name):
    mine, other = open_one("MessageQueue"), open_one("MessageQueue", 9.0)
    message = _got(other)
    finish = asleep(mine, mine.join)
    FINISHES[name](other, message)
    finish()


def test_a_callers_commit_wakes_however_soon_after_another_put(place, polls_never, open_one, monkeypatch):
    monkeypatch.setattr(wakes, "_NOTIFY_EVERY", NEVER)
    mine, other = open_one("Queue"), open_one("Queue", 9.0)
    caller = CallerConnection(place)
    other.put("w")
    assert mine.get() == "w"
    finish = asleep(mine, lambda: mine.get(timeout=SECONDS))
    other.put("x", connection=caller.connection)
    assert not finish.done()
    caller.commit()
    assert finish() == "x"
    caller.close()


def test_what_comes_back_in_a_callers_transaction_wakes_however_soon_after_a_put(
    place, polls_never, open_one, monkeypatch
):
    monkeypatch.setattr(wakes, "_NOTIFY_EVERY", NEVER)
    caller = CallerConnection(place)
    mine, other = open_one("AckQueue"), open_one("AckQueue", 9.0)
    joined = open_one("AckQueue", 9.0, connection=caller.connection)
    other.put("x")
    assert joined.get() == "x"
    caller.commit()
    finish = asleep(mine, lambda: mine.get(timeout=SECONDS))
    joined.close()
    assert not finish.done()
    caller.commit()
    assert finish() == "x"
    caller.close()


def test_another_process_wakes(polls_never, open_one):
    mine = open_one("Queue")
    finish = asleep(mine, lambda: mine.get(timeout=SECONDS))
    in_forked_child(lambda: mine.put("x"))
    assert finish() == "x"


def test_a_child_of_a_waiting_process_disturbs_nothing(place, polls_never, open_one):
    mine, other = open_one("Queue"), open_one("Queue", 9.0)
    finish = asleep(mine, lambda: mine.get(timeout=SECONDS))
    connection: Any = of(mine)._connection
    descriptor = connection._connection.fileno()

    def child():
        assert of(mine)._connection is None
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)
        with suppress(Empty):
            mine.get(timeout=0.05)
        assert of(mine)._connection is not connection
        mine.close()

    in_forked_child(child)
    assert of(mine)._connection is connection
    assert not finish.done()
    other.put("x")
    assert finish() == "x"


# The poll.


@pytest.mark.parametrize("place", [POSTGRESQL, MYSQL], indirect=True)
def test_without_notifications_the_poll_wakes(open_one, monkeypatch, place):
    monkeypatch.setattr(Wakes, "notification", lambda self, channel, always=False: ())
    mine, other = open_one("AckQueue"), open_one("AckQueue", 9.0)
    finish = waiting(lambda: mine.get(timeout=SECONDS))
    until(lambda: is_asleep(mine))
    other.put("x")
    item = finish()
    join = waiting(other.join)
    until(lambda: is_asleep(other))
    mine.ack(item)
    join()


def test_a_waiter_seldom_asks(open_one, trips, monkeypatch):
    """The server commits what others do in the meantime, so that each poll may be followed by a look."""
    mine = open_one("Queue")
    trips.clear()
    with suppress(Empty):
        mine.get(timeout=2)
    seconds, polls = 0.0, 0
    interval = wakes._SHORTEST_POLL
    while seconds < 2:
        seconds, polls, interval = seconds + interval, polls + 1, min(2 * interval, wakes._LONGEST_POLL)
    asked = [text for text in texts_of(trips) if not text.startswith(("BEGIN", "COMMIT", "SET "))]
    assert len(asked) <= 2 * (polls + 1) + 15, asked


@pytest.mark.parametrize("place", [MYSQL], indirect=True)
def test_where_nobody_is_notified_a_poll_is_a_statement(open_one, trips):
    mine = open_one("Queue")
    trips.clear()
    with suppress(Empty):
        mine.get(timeout=1)
    asked = [text for text in texts_of(trips) if not text.startswith("SET ")]
    looks = asked.count(mine._store._sql.look)
    assert len(asked) <= looks + 6, trips
    assert looks <= 1 / mine._store.max_poll_interval + 20


@pytest.mark.parametrize("place", [MYSQL], indirect=True)
def test_a_token_is_the_same_only_while_nothing_is_ready_or_due(open_one):
    queue = open_one("MessageQueue")
    token = queue._store.watch(Awaited.READY)
    first = token()
    assert token() == first
    queue.pause("default")
    queue.put("x")
    assert len({token() for _ in range(3)} | {first}) == 4
    queue.resume("default")
    queue.get().nack(delay=0.05)
    until(lambda: token() != first)
    queue.get(timeout=1).ack()
    assert token() == first
    assert queue._store.watch(Awaited.LEFT)() != queue._store.watch(Awaited.LEFT)()


def test_a_short_wait_writes_nothing(place, open_one):
    queue = open_one("Queue")
    with suppress(Empty):
        queue.get(timeout=0.01)
    assert of(queue)._connection is None
    assert place.run(f"SELECT count(*) FROM {place.name}.pc_waiters")[0][0] == 0


def watched(monkeypatch) -> tuple[Any, list[Any], Any]:
    """Return a watch that is asked at the times in a list, its polls, and what it knows of notifications."""

    class Heard:
        now, told, losses, asked = 0.0, 0, 0, 0
        answer: Any = "a"

        def heard(self, channel):
            return self.told, self.losses

        def listen(self, channel):
            pass

        def longest_poll(self, channel):
            return 1.0

        def poll(self):
            self.asked += 1
            if self.answer is None:
                raise BackendUnavailableError("no answer")
            return self.answer

    heard = Heard()
    monkeypatch.setattr(time, "monotonic", lambda: heard.now)
    return wakes._Watch(heard, "c", heard.poll), [], heard  # type: ignore[arg-type]


def test_a_watch_polls_half_as_often_each_time_until_it_is_notified(monkeypatch):
    watch, times, server = watched(monkeypatch)
    first = watch()
    for step in range(4000):
        server.now = step / 2000
        asked = server.asked
        assert watch() == first
        times += [server.now] if server.asked > asked else []
    intervals = [after - before for before, after in pairwise(times)]
    assert intervals == pytest.approx([wakes._SHORTEST_POLL * 2**step for step in range(1, 11)], abs=0.0011)
    server.told += 1
    asked = server.asked
    assert watch() != first
    assert server.asked == asked, "the notification is enough"
    server.now += 0.0005
    watch()
    assert server.asked == asked + 1, "what came a moment after the notification is found"


def test_a_watch_differs_after_each_break(monkeypatch):
    watch, _, server = watched(monkeypatch)
    first = watch()
    server.losses, server.answer = 1, None
    with pytest.raises(BackendUnavailableError):
        watch()
    assert watch() is None, "it is not known yet whether the server answers"
    server.now, server.answer = 1.0, "a"
    second = watch()
    assert second not in (first, None)
    assert watch() == second


# Notifications.


def test_a_burst_is_notified_once_and_nothing_is_lost(open_one, trips, monkeypatch):
    monkeypatch.setattr(wakes, "_NOTIFY_EVERY", NEVER)
    mine, other = open_one("Queue"), open_one("Queue", 9.0)
    got: list[str] = []

    def get_all():
        while len(got) < 50:
            got.append(mine.get(timeout=SECONDS))

    finish = asleep(mine, get_all)
    trips.clear()
    for number in range(50):
        other.put(f"{number}")
    # The other one may be that of the gets, which make room.
    assert texts_of(trips).count(of(other)._sql.notify_waiting) <= 2
    finish()
    assert got == [f"{number}" for number in range(50)]


def test_two_schemas_do_not_hear_each_other(polls_never, open_one, place):
    mine, elsewhere = open_one("Queue"), Place(POSTGRESQL)
    finish = asleep(mine, lambda: mine.get(timeout=SECONDS))
    with elsewhere.class_of()("q", **elsewhere.where) as other:
        theirs = asleep(other, lambda: other.get(timeout=SECONDS))
        mine.put("x")
        assert finish() == "x"
        assert not sum(of(other)._heard.values())
        other.put("y")
        assert theirs() == "y"
    elsewhere.close()


def test_a_registration_is_renewed_and_old_ones_are_removed(place, polls_never, open_one, monkeypatch):
    mine = open_one("Queue")
    channel = of(mine).channel(mine._store.store_id, Awaited.READY)
    table = f"{place.name}.pc_waiters"
    old = f"INSERT INTO {table} VALUES (%(channel)s, %(process)s, now() - interval '1 second')"
    for process in (1, 2):
        place.run(old, channel=channel, process=process)
    place.run(old, channel="pc_other", process=1)
    caller = CallerConnection(place)
    caller.connection.execute(f"SELECT FROM {table} WHERE process = 2 FOR UPDATE")
    connect(mine)
    of(mine).listen(channel)
    rows = place.run(f"SELECT channel, process FROM {table} ORDER BY channel, process")
    caller.close()
    assert [row for row in rows if row[1] < 3] == [(channel, 2), ("pc_other", 1)]
    assert len(rows) == 3
    until_then = f"SELECT max(until) - now() > interval '50 seconds', max(until)::text FROM {table}"
    ((is_long, first),) = place.run(until_then)
    assert is_long
    of(mine).listen(channel)
    assert place.run(until_then)[0][1] == first
    monkeypatch.setattr(wakes, "_RENEWED", 0.0)
    of(mine).listen(channel)
    assert place.run(until_then)[0][1] > first


# The connection that listens.


def pid_of_listener(queue: Any) -> int:
    connection: Any = of(queue)._connection
    return int(connection._connection.info.backend_pid)


def end_listener(place: Place, queue: Any) -> None:
    place.run("SELECT pg_terminate_backend(%(pid)s::int)", pid=pid_of_listener(queue))


def test_a_lost_connection_makes_a_waiter_look_and_it_listens_again(
    place, polls_never, open_one, monkeypatch
):
    mine, other = open_one("Queue"), open_one("Queue", 9.0)
    finish = asleep(mine, lambda: mine.get(timeout=SECONDS))
    with monkeypatch.context() as patch:
        patch.setattr(Wakes, "notification", lambda self, channel, always=False: ())
        other.put("x")
        end_listener(place, mine)
        assert finish() == "x"
    finish = asleep(mine, lambda: mine.get(timeout=SECONDS))
    monkeypatch.setattr(wakes, "_LONGEST_POLL_ALONE", 0.01)
    end_listener(place, mine)
    until(lambda: of(mine)._losses == 2 and of(mine)._is_heard)
    other.put("y")
    assert finish() == "y"


def test_a_wait_polls_and_ends_while_the_server_takes_no_new_connections():
    server = OwnServer(POSTGRESQL)
    mine, other = (PostgresQueue("q", server.address.shown, timeout=seconds) for seconds in (10.0, 9.0))
    for queue in (mine, other):
        queue.put("w")
        assert queue.get() == "w"
    with server.taking_no_connections():
        start = time.monotonic()
        with pytest.raises(Empty):
            mine.get(timeout=0.5)
        finish = waiting(lambda: mine.get(timeout=SECONDS))
        until(lambda: is_asleep(mine))
        other.put("x")
        assert finish() == "x"
        assert time.monotonic() - start < 4, "it waited for a connection"
    finish = waiting(lambda: mine.get(timeout=SECONDS))
    until(lambda: of(mine)._is_heard)
    other.put("y")
    assert finish() == "y"
    for queue in (mine, other):
        queue.close()
    server.close()


def test_a_connection_that_comes_after_the_end_is_closed(place, open_one, monkeypatch):
    mine = open_one("Queue")
    driver, let = mine._store._server.driver, threading.Event()
    connect, made = driver.connect, []

    def connect_late(*arguments):
        let.wait(SECONDS)
        made.append(connect(*arguments))
        return made[-1]

    monkeypatch.setattr(driver, "connect", connect_late)
    monkeypatch.setattr(wakes, "_PATIENCE", 0.01)
    of(mine).listen("pc_x")
    thread: Any = of(mine)._thread
    mine.close()
    let.set()
    thread.join(SECONDS)
    assert [connection._connection.closed for connection in made] == [True]
    assert of(mine)._connection is None


@pytest.mark.parametrize("listen", ["LISTEN no ", "SELECT 1 -- "], ids=["refused", "not passed on"])
def test_who_is_not_notified_polls_more_often(open_one, monkeypatch, trips, listen):
    mine, other = open_one("Queue"), open_one("Queue", 9.0)
    of(mine)._sql = of(mine)._sql._replace(listen=listen)
    finish = waiting(lambda: mine.get(timeout=SECONDS))
    until(lambda: any(text.startswith(listen) for text in texts_of(trips)))
    until(lambda: is_asleep(mine))
    channel = of(mine).channel(mine._store.store_id, Awaited.READY)
    assert of(mine).longest_poll(channel) == wakes._LONGEST_POLL_ALONE
    other.put("x")
    assert finish() == "x"
    assert len([text for text in texts_of(trips) if text.startswith(listen)]) <= 2, "it tries again later"


def test_nothing_listens_after_the_end(place, polls_never, open_one):
    mine = open_one("Queue")
    finish = asleep(mine, lambda: mine.get(timeout=SECONDS))
    pid = pid_of_listener(mine)
    server = mine._store._server
    mine.close()
    with pytest.raises(ClosedError):
        finish()
    text = "SELECT count(*) FROM pg_stat_activity WHERE pid = %(pid)s"
    until(lambda: not place.run(text, pid=pid)[0][0])
    server.wakes.listen("pc_x")
    assert server.wakes._connection is None


def test_who_waits_no_more_listens_no_more(place, open_one, polls_never, monkeypatch):
    mine = open_one("Queue")
    finish = asleep(mine, lambda: mine.get(timeout=SECONDS))
    mine.put("x")
    finish()
    mine.put("y")
    assert of(mine)._connection is not None
    monkeypatch.setattr(wakes, "_UNUSED", 0.0)
    mine.put("z")
    assert of(mine)._connection is None


# Plans.


def test_no_statement_reads_all_waiters(place, open_one):
    queue = open_one("Queue")
    sql, table = of(queue)._sql, f"{place.name}.pc_waiters"
    names = ("register", "delete_old", "notify_waiting")
    parameters = {"channel": "pc_5_ready", "process": 5, "seconds": 60.0}
    wrong = {}

    def look(when):
        for name in names:
            if found := full_scans(place, getattr(sql, name), parameters):
                wrong[name, when] = found

    look("never analyzed, empty")
    place.run(f"ANALYZE {table}")
    place.run(
        f"INSERT INTO {table} SELECT 'pc_' || number %% 300 || '_ready', number, now() FROM"
        " generate_series(1, 3000) AS number",
        unused=None,
    )
    look("analyzed while empty")
    place.run(f"ANALYZE {table}")
    look("analyzed while full")
    assert wrong == {}
