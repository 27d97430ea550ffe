"""``persistcoll.put`` and ``persistcoll.get``: one item by one call, on the server that the call names."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

import persistcoll
from persistcoll import DecodeError, Empty, SerializerMismatchError, StoreKindError, StoreMissingError
from persistcoll.engine.contracts import Awaited
from persistcoll.servers.address import _PORTS, MYSQL, POSTGRESQL
from persistcoll.servers.record_store import ServerRecordStore
from persistcoll.servers.sessions import SERVERS, Server
from tests.sql_queues.test_common import Picky

VARIABLES = [f"PERSISTCOLL_{name}" for name in ("URL", "HOST", "PORT", "DB", "USER", "PASSWORD")]


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)


def test_what_is_put_is_got_once_and_in_order(place):
    assert [persistcoll.put("jobs", item, **place.where) for item in ("a", None, {"b": 1})] == [1, 2, 3]
    assert [persistcoll.get("jobs", **place.where) for _ in range(3)] == ["a", None, {"b": 1}]
    with pytest.raises(Empty):
        persistcoll.get("jobs", **place.where)


def test_the_queue_is_the_one_that_the_class_opens(place, open_queue):
    persistcoll.put("jobs", "by the call", **place.where)
    queue = open_queue(name="jobs")
    assert queue.get() == "by the call"
    queue.put("by the class")
    assert persistcoll.get("jobs", **place.where) == "by the class"
    assert queue.stats().claimed == 0  # nobody has to ack it


def test_keywords_and_the_environment_name_the_same_server(place, monkeypatch):
    monkeypatch.setitem(_PORTS, place.kind, place.keywords["port"])  # the server of a test may have any port
    persistcoll.put("jobs", 1, **place.where)
    persistcoll.put("jobs", 2, **place.keywords)
    for variable, value in place.environment.items():
        monkeypatch.setenv(variable, value)
    persistcoll.put("jobs", 3)
    monkeypatch.delenv("PERSISTCOLL_URL")
    given = place.keywords
    for variable, name in (("HOST", "host"), ("PORT", "port"), ("DB", "dbname"), ("USER", "user")):
        monkeypatch.setenv(f"PERSISTCOLL_{variable}", str(given[name]))
    assert [persistcoll.get("jobs") for _ in range(3)] == [1, 2, 3]


def test_nothing_stays_open(place, monkeypatch):
    connected: list[Any] = []
    connect = Server._connect

    def watched(self: Server, until: float) -> Any:
        connected.append(connect(self, until))
        return connected[-1]

    monkeypatch.setattr(Server, "_connect", watched)
    before = set(threading.enumerate()), dict(SERVERS._servers)
    persistcoll.put("jobs", "x", **place.where)
    persistcoll.get("jobs", **place.where)
    with pytest.raises(Empty):
        persistcoll.get("jobs", **place.where)
    assert (set(threading.enumerate()), SERVERS._servers) == before
    assert len(connected) >= 3
    for session in connected:
        connection = session.connection._connection
        assert not connection.open if place.kind == MYSQL else connection.closed


def test_the_connections_of_an_open_queue_are_used(place, open_queue, monkeypatch):
    queue = open_queue(name="jobs", durability="power")
    queue.put("x")

    def refused(self: Server, until: float) -> Any:
        raise AssertionError("a second connection")

    monkeypatch.setattr(Server, "_connect", refused)
    assert persistcoll.get("jobs", **place.where) == "x"
    queue.put("still open")


def test_get_waits_where_it_is_told_to(place, open_queue, monkeypatch):
    with pytest.raises(Empty):
        persistcoll.get("jobs", True, 0.01, **place.where)
    with pytest.raises(ValueError, match="timeout"):
        persistcoll.get("jobs", True, -1, **place.where)
    waits = threading.Event()
    watch = ServerRecordStore.watch

    def watched(self: ServerRecordStore, awaited: Awaited) -> Callable[[], object]:
        waits.set()
        return watch(self, awaited)

    monkeypatch.setattr(ServerRecordStore, "watch", watched)
    got: list[Any] = []
    waiter = threading.Thread(target=lambda: got.append(persistcoll.get("jobs", block=True, **place.where)))
    waiter.start()
    assert waits.wait(20)
    open_queue(name="jobs").put("late")
    waiter.join()
    assert got == ["late"]


def test_the_serializer_is_that_of_the_call(place, open_queue):
    persistcoll.put("jobs", {"a": 1}, serializer="json", **place.where)
    with pytest.raises(SerializerMismatchError, match="json"):
        persistcoll.get("jobs", **place.where)
    assert persistcoll.get("jobs", serializer="json", **place.where) == {"a": 1}


def test_an_item_that_cannot_be_read_stays(place, open_queue):
    where = {**place.where, "serializer": Picky()}
    persistcoll.put("jobs", "poison", **where)
    with pytest.raises(DecodeError):
        persistcoll.get("jobs", **where)
    assert len(open_queue(name="jobs", serializer=Picky())) == 1


def test_a_queue_of_another_kind_is_refused(place, open_queue):
    open_queue("AckQueue", name="mails")
    for call in (
        lambda: persistcoll.put("mails", 1, **place.where),
        lambda: persistcoll.get("mails", **place.where),
    ):
        with pytest.raises(StoreKindError, match="fifo ack"):
            call()


def test_without_create_a_missing_queue_is_an_error(place):
    for call in (
        lambda: persistcoll.put("jobs", 1, create=False, **place.where),
        lambda: persistcoll.get("jobs", create=False, **place.where),
    ):
        with pytest.raises(StoreMissingError, match="create=False"):
            call()
    with pytest.raises(StoreMissingError):
        place.run(f"SELECT 1 FROM {place.name}.pc_collections")


@pytest.mark.parametrize("wrong", ["maxsize", "auto_commit", "patience", "connection", "queue"])
def test_a_parameter_without_meaning_is_refused(wrong):
    where: dict[str, Any] = {wrong: 1}
    with pytest.raises(TypeError, match=rf"^put\(\) got an unexpected keyword argument '{wrong}'$"):
        persistcoll.put("jobs", 1, **where)
    with pytest.raises(TypeError, match=rf"^get\(\) got an unexpected keyword argument '{wrong}'$"):
        persistcoll.get("jobs", **where)


def test_no_server_is_named():
    with pytest.raises(ValueError, match=r"no server is named: .*postgresql://.*mysql://.*PERSISTCOLL_URL"):
        persistcoll.put("jobs", 1)
    with pytest.raises(ValueError, match="no server is named"):
        persistcoll.get("jobs")


@pytest.mark.parametrize(
    ("where", "kind"),
    [
        ({"url": "mysql://127.0.0.1:1/d"}, MYSQL),
        ({"url": "postgresql://127.0.0.1:3306/d"}, POSTGRESQL),
        ({"host": "127.0.0.1", "port": 3306}, MYSQL),
        ({"host": "127.0.0.1"}, POSTGRESQL),
        ({"host": "127.0.0.1", "port": 1}, POSTGRESQL),
    ],
    ids=str,
)
def test_the_url_or_the_port_chooses_the_class(where, kind, monkeypatch):
    from persistcoll.queues import server

    class ChosenError(Exception):
        pass

    def refuse(options: Any, *_: Any) -> Any:
        raise ChosenError(options.address.kind)

    monkeypatch.setattr(server, "open_store", refuse)
    with pytest.raises(ChosenError, match=f"^{kind}$"):
        persistcoll.put("jobs", 1, **where)


def test_a_star_hides_no_function_of_the_program():
    names: dict[str, Any] = {"get": "mine", "put": "mine"}
    exec("from persistcoll import *", names)
    assert names["get"] == names["put"] == "mine"
    assert {"get", "put"} <= set(dir(persistcoll))


def test_they_import_one_driver_and_only_for_a_call(place):
    program = """
import sys, persistcoll
persistcoll.put, persistcoll.get
drivers = {"psycopg", "pymysql"}
assert not drivers & set(sys.modules)
persistcoll.put("jobs", 1)
print(*drivers & set(sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **place.environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["pymysql" if place.kind == MYSQL else "psycopg"]
