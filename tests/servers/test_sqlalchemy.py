"""Calls in the transactions of SQLAlchemy: its connections, sessions and raw connections."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest

from persistcoll import Empty, LockedError, MessageQueue, PDict, StorageError
from persistcoll.servers.address import MYSQL
from tests.servers.places import CallerConnection, Place

pytestmark = pytest.mark.needs("import:sqlalchemy")

DRIVERS = {"postgresql": "postgresql+psycopg", "mysql": "mysql+pymysql"}
ISOLATION = ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]


@pytest.fixture
def engine(place: Place) -> Iterator[Any]:
    import sqlalchemy

    host, port = place.address.hosts[0]
    url = sqlalchemy.URL.create(
        DRIVERS[place.kind],
        place.address.user,
        place.address.password,
        host,
        port,
        place.address.database,
    )
    place.run(f"CREATE TABLE {place.name}.orders (number int PRIMARY KEY)")
    engine = sqlalchemy.create_engine(url)
    yield engine
    engine.dispose()


def connection(engine: Any) -> Any:
    return engine.connect()


def session(engine: Any) -> Any:
    from sqlalchemy.orm import Session

    return Session(engine)


def sessions_of_a_thread(engine: Any) -> Any:
    from sqlalchemy.orm import scoped_session, sessionmaker

    return scoped_session(sessionmaker(engine))


def raw_connection(engine: Any) -> Any:
    return engine.raw_connection()


WAYS = [connection, session, sessions_of_a_thread, raw_connection]


@pytest.fixture(params=WAYS, ids=lambda way: way.__name__)
def caller(engine: Any, request: Any) -> Iterator[Any]:
    caller = request.param(engine)
    yield caller
    caller.rollback()
    caller.close()


def order(place: Place, caller: Any, number: int) -> None:
    """Store a row of the program's own."""
    text = f"INSERT INTO {place.name}.orders VALUES ({number})"
    if hasattr(caller, "cursor"):
        with caller.cursor() as cursor:
            cursor.execute(text)
    else:
        from sqlalchemy import text as statement

        caller.execute(statement(text))


def orders(place: Place) -> list[int]:
    return [number for (number,) in place.run(f"SELECT number FROM {place.name}.orders ORDER BY number")]


def test_what_is_put_commits_with_the_programs_rows(open_queue, place, caller):
    queue = open_queue()
    for end, there in ((caller.rollback, []), (caller.commit, [1])):
        order(place, caller, 1)
        queue.put(1, connection=caller)
        assert queue.empty()
        end()
        assert list(queue.items()) == orders(place) == there


def test_what_is_put_first_commits_too(open_queue, caller):
    """A connection of SQLAlchemy that has run no statement of its own has nothing to commit."""
    queue = open_queue()
    for end, there in ((caller.commit, ["a"]), (caller.rollback, ["a"]), (caller.commit, ["a", "a"])):
        queue.put("a", connection=caller)
        end()
        assert list(queue.items()) == there


def test_what_is_received_goes_with_the_programs_rows(open_queue, place, caller):
    queue = open_queue()
    queue.put_many([1, 2])

    def fail() -> None:
        with queue.receive(connection=caller) as number:
            order(place, caller, number)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with queue.receive(connection=caller) as number:
        order(place, caller, number)
    assert queue.get(connection=caller) == 2
    with pytest.raises(Empty):
        queue.get(connection=caller)
    assert (list(queue.items()), orders(place)) == ([1, 2], [])
    caller.commit()
    assert (list(queue.items()), orders(place)) == ([], [1])


def test_an_ack_goes_with_the_programs_rows(open_queue, place, caller):
    queue = open_queue("AckQueue")
    queue.put(1)
    item = queue.get()
    for end, done in ((caller.rollback, 0), (caller.commit, 1)):
        order(place, caller, item)
        queue.ack(item, connection=caller)
        end()
        assert queue.acked_count() == len(orders(place)) == done


def test_messages_go_with_the_programs_rows(place, caller):
    where = {"password": place.address.password, "schema": place.schema}
    with MessageQueue(place.address.shown, "mails", **where) as mails:
        for end, count in ((caller.rollback, 0), (caller.commit, 1)):
            order(place, caller, 1)
            mails.put("a mail", connection=caller)
            end()
            assert len(mails) == len(orders(place)) == count
        message = mails.get()
        for end, there in ((caller.rollback, [1]), (caller.commit, [1, 2])):
            order(place, caller, 2)
            message.ack(connection=caller)
            end()
            assert orders(place) == there
        mails.put("another")
        mails.get(connection=caller).ack(connection=caller)
        caller.commit()
        assert mails.topics() == {}


def test_the_constructor_takes_what_sqlalchemy_gives(open_queue, place, caller):
    queue, bound = open_queue(), open_queue(connection=caller)
    where = {"password": place.address.password, "schema": place.schema}
    with (
        PDict(place.address.shown, "visits", **where) as d,
        PDict(place.address.shown, "visits", connection=caller, **where) as joined,
    ):
        for end, there in ((caller.rollback, 0), (caller.commit, 1)):
            bound.put("a")
            joined["ann"] = 1
            assert (len(queue), len(d)) == (0, 0)
            end()
            assert (len(queue), len(d)) == (there, there)
        assert (bound.get(), joined.pop("ann")) == ("a", 1)
        assert (len(queue), len(d)) == (1, 1)
        caller.commit()
        assert (len(queue), len(d)) == (0, 0)


# What SQLAlchemy does with transactions.


@pytest.mark.parametrize("way", [connection, session])
def test_a_savepoint_of_the_program_undoes_what_is_in_it(open_queue, engine, way):
    queue = open_queue()
    with way(engine) as caller, caller.begin():
        queue.put("before", connection=caller)
        savepoint = caller.begin_nested()
        queue.put("within", connection=caller)
        savepoint.rollback()
        with caller.begin_nested():
            queue.put("after", connection=caller)
    assert list(queue.items()) == ["before", "after"]


@pytest.mark.parametrize("way", [connection, session])
def test_a_block_of_sqlalchemy_that_raises_puts_nothing(open_queue, engine, way):
    queue = open_queue()

    def fail(begin: Callable[[Any], AbstractContextManager[Any]]) -> None:
        with way(engine) as caller, begin(caller):
            queue.put("never", connection=caller)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail(lambda caller: caller.begin())
    with pytest.raises(ZeroDivisionError):
        fail(lambda caller: caller)
    with way(engine) as caller:
        queue.put("never", connection=caller)  # and no commit
    assert queue.empty()


def test_without_a_transaction_it_is_refused(open_queue, engine):
    queue = open_queue()
    queue.put("a")
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as caller:
        for call in (
            lambda: queue.put("never", connection=caller),
            lambda: queue.get(connection=caller),
            lambda: open_queue(connection=caller).clear(),
        ):
            with pytest.raises(ValueError, match="no transaction is open"):
                call()
    raw = engine.raw_connection()
    raw.close()
    with pytest.raises(ValueError, match="it is closed"):
        queue.put("never", connection=raw)
    with engine.connect() as caller:
        pass
    with pytest.raises(Exception, match="This Connection is closed"):  # SQLAlchemy's own
        queue.put("never", connection=caller)
    with pytest.raises(TypeError, match=r"not on sqlalchemy\.engine"):
        queue.put("never", connection=engine)
    assert list(queue.items()) == ["a"]


def test_after_an_error_it_is_refused_or_goes_on(open_queue, place, caller):
    """An error fails a transaction of PostgreSQL, and only the statement of MySQL."""
    queue = open_queue()
    queue.put("before", connection=caller)
    order(place, caller, 1)
    with pytest.raises(Exception, match=r"(?i)duplicate"):
        order(place, caller, 1)
    if place.kind == MYSQL:
        queue.put("after", connection=caller)
        caller.commit()
        assert list(queue.items()) == ["before", "after"]
        return
    for _ in range(2):
        with pytest.raises(ValueError, match="has failed: roll it back first"):
            queue.put("after", connection=caller)
    caller.rollback()
    assert queue.empty()
    queue.put("after", connection=caller)
    caller.commit()
    assert list(queue.items()) == ["after"]


@pytest.mark.parametrize("level", ISOLATION)
def test_every_isolation_level_is_joined_and_kept(open_queue, engine, level):
    queue = open_queue()
    queue.put_many("ab")
    with engine.connect().execution_options(isolation_level=level) as caller:
        queue.put("c", connection=caller)
        assert queue.get(connection=caller) == "a"
        with queue.receive(connection=caller) as item:
            assert item == "b"
        assert caller.get_isolation_level() == level
        caller.commit()
    assert list(queue.items()) == ["c"]


@pytest.mark.parametrize("level", ISOLATION[1:])
def test_a_conflict_of_a_strict_level_is_an_error_of_this_library(open_queue, engine, place, level):
    """The snapshot is of before another consumer got the item that comes first."""
    from sqlalchemy import text

    queue = open_queue()
    queue.put_many("ab")
    with engine.connect().execution_options(isolation_level=level) as caller:
        caller.execute(text(f"SELECT count(*) FROM {place.name}.orders"))
        assert queue.get(block=False) == "a"
        if place.kind != MYSQL:  # which locks what is there now
            with pytest.raises(LockedError, match="roll the transaction back and begin it again"):
                queue.get(connection=caller)
            caller.rollback()
        assert queue.get(connection=caller) == "b"
        caller.commit()
    assert queue.empty()


def test_a_connection_that_is_lost_is_an_error_of_this_library(open_queue, engine, place):
    queue = open_queue("AckQueue")
    queue.put("a")
    item = queue.get()
    caller = engine.raw_connection()
    try:
        queue.ack(item, connection=caller)
        caller.driver_connection.close()
        with pytest.raises(StorageError, match=r"connection is (lost|closed)"):
            queue.ack(item, connection=caller)
    finally:
        caller.invalidate()
        caller.close()
    assert queue.nack(item) == 1


# Whatever makes the connection.


def test_a_connection_of_another_database_is_refused(open_queue, place, tmp_path):
    import sqlite3

    import sqlalchemy

    queue = open_queue()
    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path / 'own.db'}")
    with engine.begin() as caller, pytest.raises(TypeError, match=r"not on sqlite3\.Connection"):
        queue.put("never", connection=caller)
    engine.dispose()
    plain = sqlite3.connect(":memory:")
    with pytest.raises(TypeError, match=r"not on sqlite3\.Connection"):
        queue.put("never", connection=plain)
    plain.close()
    other = Place("mysql" if place.kind != MYSQL else "postgresql")
    foreign = CallerConnection(other).connection
    try:
        with pytest.raises(TypeError, match=r"not on (psycopg|pymysql)"):
            queue.put("never", connection=foreign)
    finally:
        foreign.close()
        other.close()
    assert queue.empty()


@pytest.mark.parametrize("which", ["Queue", "AckQueue"])
def test_a_closed_connection_of_the_driver_is_refused(open_queue, place, which):
    queue = open_queue(which)
    queue.put("a")
    caller = CallerConnection(place).connection
    bound = open_queue(which, connection=caller)
    where = {"password": place.address.password, "schema": place.schema}
    with (
        MessageQueue(place.address.shown, "mails", **where) as mails,
        PDict(place.address.shown, "visits", connection=caller, **where) as d,
    ):
        caller.close()

        def receive() -> None:
            with bound.receive():
                raise AssertionError("there is no item")

        for call in (
            lambda: queue.put("b", connection=caller),
            lambda: queue.get(connection=caller),
            lambda: bound.put("b"),
            receive,
            lambda: mails.put("b", connection=caller),
            lambda: mails.get(connection=caller),
            lambda: d.update(ann=1),
        ):
            with pytest.raises(StorageError, match=r"connection is (lost|closed)"):
                call()
    assert list(queue.items()) == ["a"]
