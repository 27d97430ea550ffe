"""Transactions that happen once: answers that are lost, transactions that the server rolls back, forks."""

from __future__ import annotations

import os
import threading
from collections import Counter
from contextlib import suppress

import pytest

from persistcoll.engine.records import FIFO, UNIQUE, ClaimPolicy, Entry
from persistcoll.errors import BackendUnavailableError, DuplicateError, Empty, LockedError
from persistcoll.servers import sessions
from persistcoll.servers.address import MYSQL, POSTGRESQL, Address
from persistcoll.servers.driver import TryAgainError
from persistcoll.servers.open import open_record_store
from persistcoll.servers.transactions import Transaction
from persistcoll.testing.children import in_forked_child, run_threads
from tests.servers.losing import losing_connections
from tests.servers.places import CallerConnection

ENDS = ("before commit", "after commit")
SIDES = ("before", "after")


def payload_of(record):
    return record.payload


def test_nothing_is_lost_and_nothing_happens_twice(opened, seed):
    each, threads = 40, 3
    got: list[bytes] = []

    def put(number):
        for index in range(each):
            store.put([Entry(b"%d %d" % (number, index)), Entry(b"%d %d second" % (number, index))])

    def pop():
        while len(got) < 2 * each * threads:
            with suppress(Empty):
                got.append(store.pop(payload_of))

    with losing_connections(0.03, seed):
        store = opened()
        run_threads(pop, *[lambda number=number: put(number) for number in range(threads)])
    wanted = {
        b"%d %d%s" % (number, index, end)
        for number in range(threads)
        for index in range(each)
        for end in (b"", b" second")
    }
    assert len(got) == len(wanted)
    assert set(got) == wanted
    told = store.stats()
    assert (told.puts, told.gets) == (len(wanted), len(wanted))


@pytest.mark.parametrize(
    "losses",
    [
        {"before commit": [1]},
        {"after commit": [1]},
        # In the question whether it was committed: a new session asks the time, makes a note, reads the note.
        *({end: [1], f"{side} run": [run]} for end in ENDS for side in SIDES for run in (1, 2, 3)),
        *({end: [1], "before run": [2], "after run": [1, 2, 3, 4]} for end in ENDS),
        {"before commit": [1, 2], "after commit": [1]},
    ],
    ids=str,
)
def test_a_lost_answer_to_a_commit_is_asked_for(opened, losses):
    counts: Counter[str] = Counter()
    left: dict[str, list[int]] = {}

    def lose(at):
        # What is lost in the question counts from the first lost commit.
        if at.endswith("run") and not counts["lost commits"]:
            return False
        counts[at] += 1
        if counts[at] not in left.get(at, ()):
            return False
        left[at].remove(counts[at])
        counts["lost commits"] += at.endswith("commit")
        return True

    def prepare():
        counts.clear()
        left.update({at: list(numbers) for at, numbers in losses.items()})

    with losing_connections(lose):
        store = opened()
        prepare()
        store.append(b"one")
        assert not any(left.values())
        assert store.count() == 1
        prepare()
        assert store.pop(payload_of) == b"one"
        assert not any(left.values())
    assert store.count() == 0
    assert (store.stats().puts, store.stats().gets) == (1, 1)


def test_a_commit_that_arrives_after_it_was_given_up_does_nothing(opened):
    """A proxy may keep it for as long as it takes to find that it has not happened."""
    store = opened()
    transaction = Transaction(store._server, True)
    transaction.begin(None, True, None)
    row = store._row(Entry(b"x"))
    transaction.run(lambda session: session.run(store._sql.insert, **row), store._number, lambda _: 1)
    session = transaction._session
    assert session is not None
    assert store._server._find_note(session.client, session.op) is None
    with pytest.raises(DuplicateError):
        transaction.commit()
    transaction.roll_back(DuplicateError())
    assert store.count() == 0


def test_a_claim_whose_answer_was_lost_comes_back(opened):
    lost: list[str] = []
    armed: list[bool] = []

    def lose_once(at):
        if at in ("after run", "after commit") and armed and not lost:
            lost.append(at)
            return True
        return False

    with losing_connections(lose_once):
        store = opened()
        store.put([Entry(b"a"), Entry(b"b")])
        store.claim(payload_of)  # it becomes a holder
        store.append(b"c")
        armed.append(True)
        got = {store.claim(payload_of), store.claim(payload_of)}
    assert lost
    # The one whose answer was lost was released, so nothing is left claimed without an owner.
    assert got == {b"b", b"c"}
    assert store.claimed() == 3


def test_a_server_that_cannot_be_reached_is_named_without_the_password():
    address = Address.parse("postgresql://ann:hidden@127.0.0.1:1/d")
    with pytest.raises(BackendUnavailableError, match=r"ann@127\.0\.0\.1:1/d") as raised:
        open_record_store(
            address,
            name="jobs",
            kind="fifo",
            discipline=FIFO,
            retry=ClaimPolicy(),
            serializer="raw",
            timeout=0.1,
        )
    assert "hidden" not in str(raised.value)


def test_a_wait_survives_that_the_server_is_away(opened):
    away: list[bool] = []
    with losing_connections(lambda at: bool(away)):
        store = opened()
        away.append(True)
        with pytest.raises(BackendUnavailableError):
            store.change_token()
        away.clear()
    store.change_token()


def test_a_transaction_that_the_server_rolls_back_begins_again(opened):
    store = opened()
    tries = []

    def work(session):
        tries.append(session)
        if len(tries) < 3:
            raise TryAgainError("deadlock")
        return "done"

    assert store._server.transact(work) == "done"
    assert len(tries) == 3


def test_transactions_that_always_lose_say_so(opened):
    store = opened(timeout=0.2)

    def work(session):
        raise TryAgainError("deadlock")

    with pytest.raises(LockedError, match="deadlock"):
        store._server.transact(work)


def test_deadlocks_are_survived(opened):
    store = opened(discipline=UNIQUE)

    def put(keys):
        for turn in range(20):
            store.put([Entry(b"x", key=b"%d %d" % (turn, key)) for key in keys])

    run_threads(lambda: put([1, 2, 3]), lambda: put([3, 2, 1]))
    assert store.count() == 60


def test_what_another_transaction_has_locked_is_waited_for_and_refused(place, opened):
    if place.kind == MYSQL:
        pytest.skip("one timeout for all sessions: 1 s is its shortest")
    store = opened(discipline=UNIQUE, timeout=0.3)
    caller = CallerConnection(place)
    store.joined(caller).put([Entry(b"x", key=b"k")])
    with pytest.raises(LockedError):
        store.put([Entry(b"y", key=b"k")])
    caller.rollback()
    assert store.put([Entry(b"y", key=b"k")]) != [None]
    caller.close()


@pytest.mark.parametrize("place", [POSTGRESQL], indirect=True)
def test_a_timeout_of_statements_is_not_told_as_a_lock(place, opened, monkeypatch):
    monkeypatch.setenv("PGOPTIONS", "-c statement_timeout=300")
    store = opened(timeout=21.0)  # on connections of its own
    with CallerConnection(place) as caller:
        with caller.connection.cursor() as cursor:
            cursor.execute(f"LOCK TABLE {place.name}.pc_1")
        with pytest.raises(LockedError, match="cancelled, by a statement_timeout") as raised:
            store.put([Entry(b"x")])
    assert "for a lock" not in str(raised.value)


def test_an_idle_connection_that_the_server_has_ended_is_replaced(place, opened):
    store = opened()
    store.append(b"one")
    for session in store._server._idle:
        session.connection._connection.close()
    assert store.pop(payload_of) == b"one"


def test_notes_of_calls_are_removed_and_their_puts_stay_counted(place, opened, monkeypatch):
    monkeypatch.setattr(sessions, "_OPS_BETWEEN_SWEEPS", 8)
    store = opened()
    place.run(
        f"INSERT INTO {place.name}.pc_done (client, op, number, puts) VALUES (5, 1, %(number)s, 7)",
        number=store._number,
    )
    for _ in range(20):
        store.append(b"x")
    ((left,),) = place.run(f"SELECT count(*) FROM {place.name}.pc_done")
    assert left < 12
    assert store.stats().puts == 27


def test_a_child_that_was_forked_in_the_middle_of_a_call_can_work(opened):
    store = opened()
    store.append(b"one")
    entered, leave = threading.Event(), threading.Event()

    def slowly(record):
        entered.set()
        leave.wait(30)
        return record.payload

    got = []
    thread = threading.Thread(target=lambda: got.append(store.pop(slowly)))
    thread.start()
    entered.wait(30)

    def child():
        store.after_fork_in_child()
        store.append(b"two")
        assert store.count() == 2
        store.close()

    in_forked_child(child)
    leave.set()
    thread.join()
    assert got == [b"one"]
    assert store.pop(payload_of) == b"two"


WAITS = {
    MYSQL: (
        "SELECT GET_LOCK('forks', 30)",
        "SELECT COUNT(*) FROM information_schema.processlist WHERE state = 'User lock'",
        "SELECT RELEASE_LOCK('forks')",
    ),
    POSTGRESQL: (
        "SELECT pg_advisory_lock(1)",
        "SELECT COUNT(*) FROM pg_stat_activity WHERE wait_event = 'advisory'",
        "SELECT pg_advisory_unlock(1)",
    ),
}


def test_a_child_that_was_forked_while_a_thread_waits_for_an_answer_can_work(opened, place):
    """The thread holds the lock of its connection's reader, and the child has the lock and not the thread."""
    lock, waiting, unlock = WAITS[place.kind]
    store = opened()
    server = store._server
    mine, other = server.acquire(), server.acquire()
    mine.connection.run(lock)
    thread = threading.Thread(target=lambda: [other.connection.run(text) for text in (lock, unlock)])
    thread.start()
    while mine.connection.run(waiting).rows[0][0] == 0:
        pass

    def child():
        store.after_fork_in_child()
        store.append(b"two")
        store.close()

    in_forked_child(child)
    mine.connection.run(unlock)
    thread.join()
    for session in (mine, other):
        server.release(session)
    assert store.pop(payload_of) == b"two"


def test_the_last_store_closes_the_connections(opened):
    store, other = opened(), opened("other")
    server = store._server
    assert other._server is server
    store.claim_many(1, payload_of) if store.count() else store.append(b"x")
    store.close()
    other.append(b"x")
    assert server._all
    other.close()
    assert not server._all
    with pytest.raises(ValueError, match="closed"):
        other.count()


def test_a_driver_that_is_missing_names_the_extra(place, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pymysql" if place.kind == MYSQL else "psycopg", None)
    with pytest.raises(ImportError, match=r"persistcoll\[(mysql|postgres)\]"):
        sessions.driver_of(place.kind).connect(place.address, 1.0, True)


def test_pids_are_told(place, opened):
    store = opened()
    store.append(b"x")
    store.claim(payload_of)
    ((info,),) = place.run(f"SELECT info FROM {place.name}.pc_holders")
    assert f"pid {os.getpid()} on" in (info.decode() if isinstance(info, bytes) else info)
