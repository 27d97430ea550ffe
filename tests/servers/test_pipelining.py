"""Several statements in one trip: their results, and what is left after one that fails."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from persistcoll.engine.records import Entry
from persistcoll.errors import StorageError
from persistcoll.servers.address import MYSQL
from persistcoll.servers.driver import OwnConnection
from persistcoll.servers.mysql import connection as mysql
from persistcoll.servers.postgres import connection as postgres
from persistcoll.servers.sessions import driver_of

NEXT = "SELECT %(number)s + 1"


@pytest.fixture
def connection(place) -> Iterator[OwnConnection]:
    connection = driver_of(place.kind).connect(place.address, 10.0, True)
    yield connection
    connection.close()


def following(place) -> str:
    return NEXT if place.kind == MYSQL else NEXT.replace("%(number)s", "%(number)s::int")


@pytest.mark.parametrize("uses", [0, 1, 2, 3])
def test_a_statement_runs_several_times_in_one_trip(place, connection, uses):
    text = following(place)
    for number in range(uses):
        assert connection.run(text, {"number": number}).rows == [(number + 1,)]
    deferred = [connection.defer(text, {"number": number}) for number in range(5)]
    assert [each.result for each in deferred] == [None] * 5
    connection.flush()
    assert [each.result and each.result.rows for each in deferred] == [[(number + 1,)] for number in range(5)]
    assert connection.run(text, {"number": 7}).rows == [(8,)]


@pytest.mark.parametrize("uses", [0, 1, 2])
@pytest.mark.parametrize("before", [0, 1, 2])
def test_after_a_statement_that_fails_the_others_run_again(place, connection, uses, before):
    text = following(place)
    for number in range(uses):
        connection.run(text, {"number": number})
    connection.begin(True, None)
    for number in range(4):
        if number == before:
            connection.defer("SELECT * FROM pc_nowhere_at_all", {})
        connection.defer(text, {"number": number})
    with pytest.raises(StorageError):
        connection.commit()
    connection.rollback()
    for number in range(3):
        assert connection.run(text, {"number": number}).rows == [(number + 1,)]


def test_a_session_prepares_so_many_statements(place, connection, monkeypatch):
    monkeypatch.setattr(postgres, "_MOST_PREPARED", 2)
    texts = [f"{following(place)} + {number}" for number in range(5)]
    for _ in range(3):
        for number, text in enumerate(texts):
            assert connection.run(text, {"number": 1}).rows == [(2 + number,)]
    if place.kind != MYSQL:
        assert connection.run("SELECT count(*) FROM pg_prepared_statements").rows == [(2,)]


def test_a_transaction_of_which_nothing_was_sent_needs_no_trip(place, connection, monkeypatch):
    def send(self, steps):
        raise AssertionError("a trip")

    for kind in (mysql._OwnConnection, postgres._OwnConnection):
        monkeypatch.setattr(kind, "_send", send)
    for end in (connection.commit, connection.rollback):
        connection.begin(True, None)
        end()
    connection.flush()


def test_what_is_deferred_has_run_when_a_call_returns(place, opened):
    store = opened()
    store.put([Entry(b"x")])

    def work(session):
        session.defer(f"UPDATE {place.name}.pc_1 SET attempts = %(attempts)s", attempts=7)

    store._server.repeat(work)
    assert place.run(f"SELECT attempts FROM {place.name}.pc_1") == [(7,)]
    store._server.transact(work, once=False)
    assert place.run(f"SELECT attempts FROM {place.name}.pc_1") == [(7,)]


def test_what_is_deferred_in_a_call_that_raises_never_runs(place, opened):
    store = opened()
    store.put([Entry(b"x")])

    def work(session):
        session.defer(f"UPDATE {place.name}.pc_1 SET attempts = %(attempts)s", attempts=7)
        raise ZeroDivisionError

    for call in (store._server.repeat, store._server.transact):
        with pytest.raises(ZeroDivisionError):
            call(work)
        assert store.count() == 1
    assert place.run(f"SELECT attempts FROM {place.name}.pc_1") == [(0,)]


def test_a_packet_is_not_larger_than_the_server_takes(place, connection):
    if place.kind != MYSQL:
        pytest.skip("the statements of one trip are separate messages")
    size = connection.max_payload // 2
    deferred = [connection.defer("SELECT LENGTH(%(payload)s)", {"payload": bytes(size)}) for _ in range(5)]
    connection.flush()
    assert [each.result and each.result.rows for each in deferred] == [[(size,)]] * 5
