"""The bound of a queue on a server, by credits: never passed, never full while there is room, and cheap."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from persistcoll import drop
from persistcoll.engine.records import FIFO, UNIQUE, ClaimPolicy, Entry, State
from persistcoll.errors import Empty, Full, LockedError
from persistcoll.servers.address import MYSQL, POSTGRESQL
from persistcoll.servers.bounds import Bound
from persistcoll.servers.driver import TryAgainError
from persistcoll.servers.open import open_record_store
from persistcoll.testing.children import in_forked_child, run_threads
from tests.concurrency.workers import CONTEXT
from tests.queues.waits import until, waiting
from tests.servers.losing import losing_connections
from tests.servers.places import CallerConnection

SECONDS = 60.0  # far more than anything here lasts


def payload_of(record):
    return record.payload


def granted(place):
    """Return the credits of all sessions and reservations, in the order of their sizes."""
    rows = place.run(f"SELECT credits FROM {place.name}.pc_credits ORDER BY credits")
    return [int(number) for (number,) in rows]


def known(store):
    """Return the credits that the session of the store's next call believes to have."""
    session = store._server.acquire()
    store._server.release(session)
    return session.credits.get(store._number, 0)


def fill(store, capacity, room=0):
    """Put until there is only so much room."""
    while store.unfinished() < capacity - room:
        store.append(b"x", capacity)


@pytest.fixture
def caller(caller):
    """Return the driver's own connection."""
    return caller.connection


@contextmanager
def locked_collection(place):
    """Lock the row of the one collection in a transaction of another session."""
    with place_connection(place) as other, other.cursor() as cursor:
        cursor.execute(f"SELECT number FROM {place.name}.pc_collections FOR UPDATE")
        yield
        other.rollback()


@contextmanager
def place_connection(place):
    connection = CallerConnection(place).connection
    try:
        yield connection
    finally:
        connection.rollback()
        connection.close()


# What a credit saves.


def test_a_put_with_a_credit_waits_for_no_other(place, opened):
    store = opened(timeout=1)
    store.append(b"a", 100)
    with locked_collection(place):
        store.append(b"b", 100)
        store.append_many([b"c", b"d"], 100)
        with pytest.raises(LockedError):
            store.append_many([b"e"] * 50, 100)
    assert store.count() == 4
    assert sum(granted(place)) == 12 - 3


def test_a_put_with_a_credit_waits_for_no_other_where_items_are_unique(place, opened):
    store = opened(discipline=UNIQUE, timeout=1)
    store.put([Entry(b"a", key=b"a")], 100)
    with locked_collection(place):
        assert store.put([Entry(b"b", key=b"b")], 100) != [None]
        new = store.put([Entry(b"a", key=b"a"), Entry(b"c", key=b"c"), Entry(b"c", key=b"c")], 100)
        assert [id is None for id in new] == [True, False, True]
    # What was not needed was returned.
    assert granted(place) == [12 - 2]
    assert known(store) == 12 - 2


def test_unfinished_items_and_credits_are_never_more_than_the_bound(place, opened):
    store, other = opened(), opened()
    capacity = 64
    puts = had_credits = 0
    for step in range(200):
        with suppress(Full):
            each = 1 + step % 3
            (store, other)[step % 2].append_many([b"x"] * each, capacity)
            puts += each
        if step % 5 == 4:
            store.claim(payload_of)
        if step % 7 == 6:
            other.put([Entry(b"later", delay=1000.0)], capacity)
            puts += 1
        left = sum(granted(place))
        assert not left or store.unfinished() + left <= capacity, step
        had_credits += left > 0
        assert store.count() <= capacity
    assert had_credits > 10
    assert store.unfinished() == puts
    assert (store.count(), sum(granted(place))) == (capacity - 1, 0)  # one was claimed since


# The bound, and the room.


@pytest.mark.parametrize("capacity", [1, 2, 7, 16, 100])
def test_a_queue_takes_as_many_items_as_it_may_and_no_more(place, opened, capacity):
    stores = [opened(), opened()]
    for number in range(capacity):
        stores[number % 2].append(b"x", capacity)
    for store in stores:
        with pytest.raises(Full):
            store.append(b"x", capacity)
        with pytest.raises(Full):
            store.append_many([b"x"] * 2, capacity)
    assert stores[0].count() == capacity
    stores[1].pop(payload_of)
    stores[0].append(b"x", capacity)
    with pytest.raises(Full):
        stores[1].append(b"x", capacity)


def use_another_session(store):
    """Let the store's next call use a session that has no credits."""
    taken = store._server.acquire()
    fresh = store._server._connect(time.monotonic() + SECONDS)
    store._server.release(taken)
    store._server.release(fresh)
    return taken


def test_what_others_hold_is_revoked_before_a_queue_is_full(place, opened):
    store = opened()
    store.append(b"x", 80)
    assert granted(place) == [9]
    old = use_another_session(store)
    store.append_many([b"x"] * 79, 80)
    assert (store.count(), granted(place)) == (80, [])
    with pytest.raises(Full):
        store.append(b"x", 80)
    # The session does not know that its credits are revoked.
    assert old.credits[store._number] == 9
    for _ in range(2):
        store.pop(payload_of)
    store._bound.was_full = False
    with store._server._mutex:
        store._server._idle.remove(old)
        store._server._idle.append(old)
    store.append(b"x", 80)
    assert old.credits.get(store._number) is None
    store.append(b"x", 80)
    assert store.count() == 80


@pytest.mark.parametrize("discipline", [FIFO, UNIQUE], ids=lambda each: each.name)
def test_a_revoked_credit_is_no_room_for_several(place, opened, discipline):
    store = opened(discipline=discipline)
    store.append(b"0", 80)
    place.run(f"DELETE FROM {place.name}.pc_credits")
    store.append_many([b"x"] * 77)
    assert known(store) == 9
    entries = [Entry(b"x", key=b"%d" % number) for number in range(3)]
    with pytest.raises(Full):
        store.put(entries, 80)
    assert known(store) == 0
    assert len(store.put(entries[:2], 80)) == 2
    assert store.count() == 80


@pytest.mark.parametrize("discipline", [FIFO, UNIQUE], ids=lambda each: each.name)
def test_credits_under_a_high_bound_are_no_room_for_several_under_a_low_one(opened, discipline):
    store = opened(discipline=discipline)
    store.append_many([b"x"] * 8, 100)
    assert known(store) == 11
    entries = [Entry(b"x", key=b"%d" % number) for number in range(3)]
    with pytest.raises(Full):
        store.put(entries, 10)
    assert store.count() == 8


def test_a_dead_process_keeps_no_credits(place, opened):
    store = opened()
    in_forked_child(lambda: store.append(b"x", 40))
    assert sum(granted(place)) == 4
    store.append_many([b"x"] * 39, 40)
    with pytest.raises(Full):
        store.append(b"x", 40)


def test_a_child_has_credits_of_its_own(place, opened):
    store = opened()
    store.append(b"x", 40)
    (mine,) = granted(place)

    def child():
        store.append(b"x", 40)
        assert len(granted_elsewhere(place)) == 2

    in_forked_child(child)
    assert len(granted(place)) == 2
    store.append(b"x", 40)
    assert mine - 1 in granted(place)
    assert store.count() == 3


def granted_elsewhere(place):
    with place_connection(place) as connection, connection.cursor() as cursor:
        cursor.execute(f"SELECT credits FROM {place.name}.pc_credits")
        return cursor.fetchall()


@pytest.mark.parametrize("lower", [10, 30, 60])
def test_each_store_has_a_bound_of_its_own(place, opened, lower):
    """Credits that were granted under a higher bound are no room under a lower one, and the other way."""
    store = opened()
    store.append_many([b"x"] * 8, 100)
    assert granted(place) == [11]
    fill(store, lower)
    assert store.count() == lower
    with pytest.raises(Full):
        store.append(b"x", lower)
    use_another_session(store)
    store.append(b"x", 100)
    use_another_session(store)
    with pytest.raises(Full):
        store.append(b"x", lower)
    with pytest.raises(Full):
        store.append(b"x", lower + 1)
    store.append(b"x", lower + 2)
    fill(store, 100)
    with pytest.raises(Full):
        store.append(b"x", 100)
    assert store.count() == 100


def test_a_store_without_a_bound_takes_no_notice_of_credits(place, opened):
    store = opened()
    store.append(b"x", 80)
    store.append_many([b"x"] * 100)
    assert granted(place) == [9]
    for _ in range(9):
        store.append(b"x", 80)
    with pytest.raises(Full):
        store.append(b"x", 80)
    assert store.count() == 110


def test_credits_under_a_low_bound_are_revoked_before_others_pass_it(place, opened):
    store = opened()
    store.append_many([b"x"] * 20, 40)
    low = store._server.acquire()
    assert low.credits[store._number] == 2
    store.append_many([b"x"] * 30, 1000)
    store._server.release(low)
    with pytest.raises(Full):
        store.append(b"x", 40)
    assert store.count() == 50


def test_claimed_and_delayed_items_keep_their_places_from_credits(place, opened):
    store = opened(retry=ClaimPolicy(lease=3600.0))
    capacity = 40
    fill(store, capacity)
    ids = store.claim_many(30, lambda record: record.id)
    for _ in range(30):
        store.append(b"y", capacity)
    assert sum(granted(place)) == 0
    with pytest.raises(Full):
        store.append(b"y", capacity)
    store.put([Entry(b"later", delay=1000.0)], capacity)
    for id in ids:
        store.nack(id)
    assert store.count() == 70
    with pytest.raises(Full):
        store.append(b"y", 70)
    store.append(b"y", 71)


def test_what_is_due_counts_for_ready_whether_it_was_noticed_or_not(place, opened):
    store = opened(retry=ClaimPolicy(lease=3600.0, max_attempts=1))
    store.put([Entry(b"x"), Entry(b"y", delay=1000.0), Entry(b"z")])
    store.claim(payload_of)
    table = f"{place.name}.pc_{store._number}"
    past = "1" if place.kind == MYSQL else "now() - interval '1 second'"
    place.run(f"UPDATE {table} SET due = {past} WHERE due IS NOT NULL")
    # The claimed one is dead, because it has no attempts left, and the delayed one is ready.
    with pytest.raises(Full):
        store.append(b"w", 2)
    store.append(b"w", 3)
    assert store.count() == 3
    assert store.stats().dead == 1


def test_requeued_items_take_the_room_that_was_granted(place, opened):
    store = opened()
    capacity = 80
    store.append_many([b"x"] * 60, capacity)
    store.fail(store.claim_many(60, lambda record: record.id))
    store.append(b"x", capacity)
    assert sum(granted(place)) > 0
    assert store.requeue() == 60
    assert granted(place) == []
    for _ in range(19):
        store.append(b"x", capacity)
    with pytest.raises(Full):
        store.append(b"x", capacity)
    store.fail([store.claim(lambda record: record.id)])
    ((_, failed),) = store.scan(State.FAILED)
    use_another_session(store)
    store.append(b"x", capacity)
    assert store.requeue(failed.id) == 1
    assert store.count() == capacity + 1
    assert granted(place) == []


def test_an_equal_item_needs_no_room(opened):
    store = opened(discipline=UNIQUE)
    for capacity in (2, 40):
        fill_unique = [Entry(b"x", key=b"%d" % number) for number in range(capacity)]
        store.put(fill_unique, capacity)
        with pytest.raises(Full):
            store.put([Entry(b"new", key=b"new")], capacity)
        assert store.put(fill_unique[:2], capacity) == [None, None]


def test_a_put_into_a_full_queue_does_not_wait_for_the_puts_of_others(place, opened):
    """It would if it revoked their credits, which are no room."""
    store = opened(timeout=1)
    store.append_many([b"x"] * 20, 100)
    use_another_session(store)
    with place_connection(place) as other, other.cursor() as cursor:
        cursor.execute(f"UPDATE {place.name}.pc_credits SET credits = credits - 1")
        for _ in range(3):
            with pytest.raises(Full):
                store.append(b"x", 20)
            store._bound.was_full = False
        with pytest.raises(LockedError):
            store.append_many([b"x"] * 75, 100)
    assert granted(place) == [10]


def test_little_room_is_not_granted(place, opened):
    """Otherwise two sessions would revoke each other's last credits without an end."""
    store = opened()
    fill(store, 16, room=8)
    place.run(f"DELETE FROM {place.name}.pc_credits")
    for _ in range(7):
        use_another_session(store)
        store.append(b"x", 16)
        assert granted(place) == []


def test_a_drop_removes_credits(place, open_queue, monkeypatch):
    if place.address.password is not None:
        monkeypatch.setenv("PERSISTCOLL_PASSWORD", place.address.password)
    queue, other = open_queue(name="a", maxsize=50), open_queue(name="b", maxsize=50)
    queue.put("x")
    other.put("x")
    queue.close()
    drop(place.address.shown, "a", schema=place.schema)
    assert len(granted(place)) == 1
    assert other.put("x") is not None


# Answers that are lost, and transactions that are rolled back.


@pytest.mark.parametrize("at", ["before commit", "after commit"])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("discipline", [FIFO, UNIQUE], ids=lambda each: each.name)
def test_a_put_whose_answer_was_lost_takes_its_credits_once(place, opened, at, count, discipline):
    armed: list[bool] = []

    def lose(where):
        if where != at or not armed:
            return False
        # A flush within a transaction is no commit.
        if at == "after commit" and place.run(f"SELECT count(*) FROM {place.name}.pc_1")[0][0] == 1:
            return False
        armed.clear()
        return True

    capacity = 200
    with losing_connections(lose):
        store = opened(discipline=discipline)
        store.put([Entry(b"a", key=b"a")], capacity)
        (before,) = granted(place)
        armed.append(True)
        ids = store.put([Entry(b"x", key=b"%d" % number) for number in range(count)], capacity)
        assert not armed
    assert None not in ids
    assert (store.count(), store.stats().puts) == (1 + count, 1 + count)
    after = granted(place)
    if at == "after commit":
        assert after == [before - count]
    else:  # it was put again, by another session, which has got its own
        assert before in after
        assert len(after) == 2
    assert store.count() + sum(after) <= capacity


def test_a_transaction_that_is_rolled_back_keeps_its_credits(place, opened):
    store = opened()
    store.append(b"a", 100)
    before = granted(place)
    original, tries = store._insert, []

    def insert(session, rows, *rest):
        ids = original(session, rows, *rest)
        tries.append(len(rows))
        if len(tries) == 1:
            raise TryAgainError("another one was first")
        return ids

    store._insert = insert
    store.append_many([b"b", b"c"], 100)
    assert tries == [2, 2]
    assert store.count() == 3
    assert granted(place) == [before[0] - 2]


def test_nothing_is_lost_while_answers_are(place, opened, seed):
    """By threads that share a store, with a bound that they all meet."""
    each, threads, capacity = 30, 3, 20
    got: list[bytes] = []
    counts: list[int] = []

    def put(number):
        done = 0
        while done < each:
            with suppress(Full):
                if done % 5:
                    store.append(b"%d %d" % (number, done), capacity)
                else:
                    store.append_many([b"%d %d" % (number, done)], capacity)
                done += 1

    def pop():
        while len(got) < each * threads:
            counts.append(store.count())
            with suppress(Empty):
                got.append(store.pop(payload_of))

    with losing_connections(0.02, seed):
        store = opened()
        run_threads(pop, *[lambda number=number: put(number) for number in range(threads)])
    assert sorted(got) == sorted(b"%d %d" % (n, i) for n in range(threads) for i in range(each))
    assert max(counts) <= capacity
    assert store.stats().puts == each * threads


# Callers' transactions.


def test_a_callers_transaction_holds_up_nobody(place, opened, caller):
    store = opened(timeout=1)
    capacity = 20
    store.joined(caller).append_many([b"j"] * 5, capacity)
    assert granted(place) == [5]
    fill(store, capacity, room=5)
    assert store.count() == 15
    # What is not committed has its places, and nobody waits to find out.
    began = time.monotonic()
    with pytest.raises(Full):
        store.append(b"x", capacity)
    assert time.monotonic() - began < SECONDS / 2
    caller.commit()
    assert (store.count(), sum(granted(place))) == (20, 0)
    with pytest.raises(Full):
        store.append(b"x", capacity)


def test_a_callers_reservation_is_no_obstacle_for_a_revocation(place, opened, caller):
    """Be it one of several of the queue, or that of another queue, whose row is the next one."""
    store, other = opened(timeout=1), opened("other")
    capacity = 8
    for _ in range(5):
        store.joined(caller).append(b"j", capacity)
        caller.rollback()
    store.joined(caller).append(b"j", capacity)
    other.joined(caller).append(b"j", capacity)
    fill(store, capacity, room=1)
    with pytest.raises(Full):
        store.append(b"x", capacity)
    caller.commit()
    assert (store.count(), other.count(), granted(place)) == (8, 1, [])


def test_a_callers_transaction_that_is_rolled_back_leaves_its_room(place, opened, caller):
    store = opened()
    store.joined(caller).append_many([b"j"] * 5, 20)
    caller.rollback()
    assert granted(place) == [5]
    fill(store, 20)
    assert (store.count(), granted(place)) == (20, [])


def test_a_callers_put_finds_a_full_queue(place, opened, caller):
    store = opened()
    fill(store, 3)
    joined = store.joined(caller)
    for _ in range(2):
        with pytest.raises(Full):
            joined.append(b"j", 3)
    joined.append(b"j", 4)
    with pytest.raises(Full):
        joined.append(b"j", 4)
    caller.commit()
    assert store.count() == 4


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("verb", ["pop", "release"])
def test_what_others_take_or_return_meanwhile_makes_no_room(opened, caller, monkeypatch, verb, count):
    """The rows that the caller sees and those of the server are counted one after another."""
    store = opened()
    store.append_many([b"x"] * 9)
    claims: list[Any] = []
    store.claim(payload_of, claims=claims)
    left = [count]

    def counted(bound, session, limit, ready=Bound._ready):
        found = ready(bound, session, limit)
        left[0] -= 1
        if not left[0]:
            store.pop(payload_of) if verb == "pop" else store.release(claims)
        return found

    monkeypatch.setattr(Bound, "_ready", counted)
    with pytest.raises(Full):
        store.joined(caller).append(b"j", 8)
    assert left[0] <= 0


@pytest.mark.parametrize("begins", [False, True])
def test_a_callers_snapshot_is_not_taken_for_the_queue(place, opened, caller, begins):
    store = opened()
    if begins:
        level = "REPEATABLE READ"
        caller.cursor().execute(
            f"SET SESSION TRANSACTION ISOLATION LEVEL {level}"
            if place.kind == MYSQL
            else f"SET TRANSACTION ISOLATION LEVEL {level}"
        )
    caller.cursor().execute(f"SELECT count(*) FROM {place.name}.pc_collections")
    fill(store, 2)
    with pytest.raises(Full):
        store.joined(caller).append(b"j", 2)
    store.pop(payload_of)
    store.joined(caller).append(b"j", 2)
    caller.commit()
    assert store.count() == 2


def test_a_caller_may_put_as_many_as_it_has_got(place, opened, caller):
    store = opened()
    fill(store, 2)
    if place.kind == MYSQL:
        caller.cursor().execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
    joined = store.joined(caller)
    assert joined.pop(payload_of) == b"x"
    joined.append(b"j", 2)
    with pytest.raises(Full):
        joined.append(b"j", 2)
    with pytest.raises(Full):
        store.append(b"y", 2)
    caller.commit()
    assert store.count() == 2


@pytest.mark.parametrize("capacity", [6, 40], ids=["in turn", "by a credit"])
def test_a_put_that_waits_for_a_key_holds_up_nobody(place, opened, caller, capacity):
    """Otherwise it would wait for the caller's transaction, which needs what the put has locked."""
    store = opened(discipline=UNIQUE, timeout=5)
    store.put([Entry(b"a", key=b"a")], capacity)
    joined = store.joined(caller)
    assert joined.put([Entry(b"k", key=b"k")], capacity) != [None]
    put = waiting(lambda: store.put([Entry(b"k", key=b"k")], capacity))
    until(place.someone_waits_for_a_lock)
    rest = [Entry(b"x", key=b"%d" % number) for number in range(capacity - 2)]
    assert None not in joined.put(rest, capacity)
    assert not put.done()
    caller.commit()
    assert put() == [None]
    assert store.count() == capacity
    assert sum(granted(place)) == 0


def test_a_reservation_that_was_revoked_is_made_again(place, opened, caller, monkeypatch):
    store = opened(timeout=1)
    original = Bound._reserve
    times: list[bool] = []

    def reserve(self, *arguments, **options):
        times.append(len(times) == 0 or original(self, *arguments, **options))  # the first is gone
        return times[-1]

    monkeypatch.setattr(Bound, "_reserve", reserve)
    store.joined(caller).append(b"j", 10)
    assert times == [True, True]
    caller.commit()
    assert (store.count(), granted(place)) == (1, [])


def test_mariadb_with_snapshot_isolation_lets_a_caller_put(place, opened, caller):
    if place.kind == POSTGRESQL:
        pytest.skip("MariaDB alone has the setting")
    store = opened()
    with caller.cursor() as cursor:
        try:
            cursor.execute("SET SESSION innodb_snapshot_isolation = ON")
        except Exception as error:
            pytest.skip(f"this server has no snapshot isolation: {error}")
        cursor.execute(f"SELECT count(*) FROM {place.name}.pc_collections")
    sql = store._server.sql
    # The servers that have it on by default are newer than some that have it.
    text = sql.take_reservation.replace("110602", "100000")
    store._server.sql = store._bound._shared = sql._replace(take_reservation=text)
    store.joined(caller).append(b"j", 10)
    caller.commit()
    assert (store.count(), granted(place)) == (1, [])


# Many processes.


def put_until_told(where, number, capacity, end, counts):
    """Put in two threads, alone and three at a time, and count."""
    store = open_record_store(**where)

    def put(kind):
        index = 0
        while not end.is_set():
            with suppress(Full):
                if (index + kind) % 4:
                    store.append(b"%d %d %d" % (number, kind, index), capacity)
                else:
                    store.append_many([b"%d %d %d %d" % (number, kind, index, n) for n in range(3)], capacity)
                index += 1
            if index % 10 == 0:
                counts.put(store.count())

    run_threads(lambda: put(0), lambda: put(1))
    store.close()


@pytest.mark.parametrize("capacity", [5, 60])
def test_putters_in_processes_that_are_killed_never_pass_the_bound(place, opened, capacity):
    store = opened()
    where: dict[str, Any] = {
        "address": place.address, "name": "jobs", "kind": FIFO.name, "discipline": FIFO,
        "retry": ClaimPolicy(), "serializer": "raw", "durability": "process", "schema": place.schema,
    }  # fmt: skip
    end = CONTEXT.Event()
    putters: list[Any] = []

    def begin():
        # A process that is killed would keep the lock of a queue of its own.
        mine = CONTEXT.Queue()
        arguments = (where, len(putters), capacity, end, mine)
        putters.append((CONTEXT.Process(target=put_until_told, args=arguments, daemon=True), mine))
        putters[-1][0].start()

    for _ in range(4):
        begin()
    got: list[bytes] = []
    greatest = 0

    def take(least):
        nonlocal greatest
        until = time.monotonic() + SECONDS
        while len(got) < least:
            assert time.monotonic() < until, f"only {len(got)} items have come"
            greatest = max(greatest, store.count())
            with suppress(Empty):
                got.extend(store.claim_many(7, payload_of))
                store.ack(list(store._held))

    for killed in range(3):
        take(200 * (killed + 1))
        process, _ = putters[killed]
        process.kill()
        process.join(SECONDS)
        begin()
    take(1000)
    # Without a taker they fill the queue, whatever the killed ones have held.
    until = time.monotonic() + SECONDS
    while store.count() < capacity:
        assert time.monotonic() < until, f"room is left: {store.count()} of {capacity}"
        threading.Event().wait(0.01)
    end.set()
    for process, mine in putters:
        while process.is_alive() or not mine.empty():
            with suppress(Exception):
                greatest = max(greatest, mine.get(timeout=0.05))
        process.join(SECONDS)
        mine.close()
    assert store.count() == capacity
    assert greatest <= capacity
    assert len(set(got)) == len(got)
    with pytest.raises(Full):
        store.append(b"x", capacity)
