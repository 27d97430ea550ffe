"""The queues on servers as a program meets them: how they are named, shown, pickled, refused and shared."""

from __future__ import annotations

import copy
import logging
import os
import pickle
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

import persistcoll
from persistcoll import (
    BackendUnavailableError,
    DecodeError,
    Empty,
    Full,
    SerializerMismatchError,
    StorageError,
    StoreKindError,
    StoreMissingError,
    ddl,
)
from persistcoll.metrics import prometheus_text
from persistcoll.servers.address import MYSQL
from tests.concurrency.workers import Remote, get_until_told, produce, wait_in
from tests.servers.places import KINDS, CallerConnection, Place
from tests.sql_queues.test_common import Picky

SECRET = "hidden/p@ss:w%rd"
# What is falsy is an item like any other.
ITEMS = [0, "", {}, [], None, False, 0.0, b"", (), "x"]


@pytest.fixture(scope="module", params=KINDS)
def place(request):
    place = Place(request.param)
    yield place
    place.close()


# Where the server is.


def test_keywords_a_url_and_the_environment_name_the_same_server(place, monkeypatch):
    given = place.keywords
    with place.class_of()("named", **place.where) as queue:
        queue.put("x")
        with place.class_of()("named", **given) as same:
            assert (same.name, same.url, same.schema) == ("named", queue.url, place.schema)
            assert len(same) == 1
        renamed = {{"password": "passwd", "dbname": "db_name"}.get(name, name): given[name] for name in given}
        with place.class_of()(name="named", **renamed) as same:
            assert len(same) == 1
        for variable, value in place.environment.items():
            monkeypatch.setenv(variable, value)
        with place.class_of()("named") as same:
            assert len(same) == 1
        assert repr(queue) == f"<{place.class_of().__name__} 'named' in {place.address.shown}>"
    assert place.run(f"SELECT 1 FROM {place.name}.pc_collections WHERE name = %(name)s", name="named")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"password": "a", "passwd": "b"}, "'password' and 'passwd' are the same"),
        ({"dbname": "a", "db_name": "b"}, "'dbname' and 'db_name' are the same"),
        ({"url": "redis://h/d"}, "looks like"),
        ({"url": "postgresql://h/d"}, "needs a URL like mysql"),
        ({"url": "mysql://h/d", "port": 1}, "'port' cannot be given beside it"),
        ({}, "no server is named"),
        ({"host": "h", "maxsize": -1}, "maxsize"),
        ({"host": "h", "timeout": -1}, "timeout"),
        ({"host": "h", "patience": 0}, "patience"),
        ({"host": "h", "schema": ""}, "schema"),
        ({"host": "h", "schema": "s"}, "no schemas"),
        ({"host": "h", "durability": "none"}, "durability"),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused_without_a_server(arguments, match, monkeypatch):
    for variable in ("URL", "HOST", "PORT", "DB", "USER", "PASSWORD"):
        monkeypatch.delenv(f"PERSISTCOLL_{variable}", raising=False)
    with pytest.raises(ValueError, match=match):
        persistcoll.MySQLQueue("jobs", **arguments)


# What is shown, and what is pickled.


@pytest.fixture
def user(place):
    """Make a user who has a password, and everything in the place."""
    name = f"user_{place.name[8:16]}"
    if place.kind == MYSQL:
        with place.mysql_user(name, SECRET, "ALL"):
            yield name
    else:
        place.run(f"CREATE ROLE {name} LOGIN SUPERUSER")
        yield name
        place.run(f"DROP OWNED BY {name} CASCADE")
        place.run(f"DROP ROLE {name}")


def test_a_password_is_nowhere(place, user, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    monkeypatch.delenv("PERSISTCOLL_PASSWORD", raising=False)
    given = {**place.keywords, "user": user, "password": SECRET}
    with place.class_of()("secret", **given) as queue:
        queue.put("x")
        pickled = pickle.dumps(queue)
        shown = [repr(queue), str(queue), queue.url, repr(queue._options), repr(queue._store.__dict__)]
        # The copies of this process have it: they connect.
        for one in (copy.copy(queue), copy.deepcopy(queue)):
            with one:
                assert one.get() == "x"
                one.put("x")
        # So does a queue that has only a connection.
        address = replace(place.address, user=user, password=SECRET)
        caller = CallerConnection(SimpleNamespace(kind=place.kind, address=address))
        with place.class_of()("secret", connection=caller.connection, schema=place.schema) as bound:
            shown += [repr(bound), repr(bound._options)]
        caller.close()
        monkeypatch.setenv("PERSISTCOLL_PASSWORD", SECRET)
        with pickle.loads(pickled) as again:
            assert again.get() == "x"
    for text in (*shown, caplog.text):
        assert SECRET not in text
    assert SECRET.encode() not in pickled
    errors = []
    for wrong in ({"dbname": "pc_test_nothing"}, {"port": 1, "timeout": 0.1}, {"user": "pc_test_nobody"}):
        with pytest.raises(StorageError) as raised:
            place.class_of()("secret", **{**given, **wrong})
        errors.append("".join(traceback.format_exception(raised.value)))
    assert SECRET not in "".join(errors)


def test_a_copy_has_the_same_options(place, open_queue):
    queue = open_queue(
        "AckQueue", lease=7, max_attempts=3, backoff=2, maxsize=9, serializer="json", timeout=5
    )
    queue.maxsize = 4
    again = pickle.loads(pickle.dumps(queue))
    with again:
        assert type(again) is type(queue)
        names = (
            "name",
            "url",
            "schema",
            "timeout",
            "patience",
            "lease",
            "max_attempts",
            "backoff",
            "maxsize",
        )
        for name in (*names, "serializer", "durability", "create", "strict", "keep_acked"):
            assert getattr(again, name) == getattr(queue, name), name
        queue.put({"a": 1})
        assert again.get() == {"a": 1}


# Drivers that are missing, or not needed.


def run_python(program: str) -> str:
    here = os.path.dirname(os.path.dirname(persistcoll.__file__))
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": here},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_no_driver_is_imported_before_it_is_needed():
    program = (
        "import sys, persistcoll; persistcoll.PostgresQueue; persistcoll.MySQLAckQueue;"
        "print(sorted({'psycopg', 'pymysql', 'sqlite3'} & set(sys.modules)))"
    )
    assert run_python(program) == "[]"


@pytest.mark.parametrize(
    ("driver", "which", "url", "extra"),
    [
        ("psycopg", "PostgresQueue", "postgresql://h/d", "persistcoll[postgres]"),
        ("pymysql", "MySQLAckQueue", "mysql://h/d", "persistcoll[mysql]"),
    ],
)
def test_a_missing_driver_names_the_extra(monkeypatch, driver, which, url, extra):
    monkeypatch.setitem(sys.modules, driver, None)
    with pytest.raises(ImportError) as raised:
        getattr(persistcoll, which)("jobs", url)
    assert extra in str(raised.value)
    assert raised.value.name == driver


# Refusals.


def test_what_cannot_be_reached_is_named(place):
    given = place.keywords
    for wrong in ({"port": 1}, {"host": "host.invalid"}):
        begin = time.monotonic()
        with pytest.raises(BackendUnavailableError) as raised:
            place.class_of()("jobs", **{**given, **wrong}, timeout=0.2)
        assert time.monotonic() - begin < 5
        assert str(next(iter(wrong.values()))) in str(raised.value)
    for wrong in ({"dbname": "pc_test_nothing"}, {"user": "pc_test_nobody"}):
        with pytest.raises(StorageError) as refused:
            place.class_of()("jobs", **{**given, **wrong})
        assert next(iter(wrong.values())) in str(refused.value)
        assert not isinstance(refused.value, BackendUnavailableError)


def test_a_wrong_password_is_named(place, user):
    if place.kind != MYSQL:
        pytest.skip("this server trusts every local user")
    with pytest.raises(StorageError, match="denied") as raised:
        place.class_of()("jobs", **{**place.keywords, "user": user, "password": "wrong word"})
    assert "wrong word" not in str(raised.value)


def test_a_queue_opens_only_as_what_it_was_made(place, open_queue):
    open_queue()
    with pytest.raises(StoreKindError, match="'fifo'"):
        open_queue("PriorityQueue")
    with pytest.raises(SerializerMismatchError, match="pickle"):
        open_queue(serializer="json")


def test_a_missing_queue_is_not_made_without_create(place, open_queue):
    with pytest.raises(StoreMissingError, match="CREATE TABLE"):
        open_queue(create=False)
    open_queue().put("x")
    assert open_queue(create=False).get() == "x"


@pytest.mark.parametrize("which", ["Queue", "LIFOQueue", "UniqueQueue", "PriorityQueue", "AckQueue"])
def test_the_statements_of_ddl_make_a_queue(place, open_queue, request, which):
    kind, name = place.class_of(which), request.node.name
    script = ddl(kind, name, serializer="json", **place.where)
    if place.kind == MYSQL:
        place.run(f"USE {place.name}")
    for text in script.split(";\n"):
        if text.strip():
            place.run(text)
    queue = open_queue(which, create=False, serializer="json")
    queue.put_many("ab")
    assert sorted([queue.get(), queue.get()]) == ["a", "b"]
    wrong: Any
    for wrong in (persistcoll.SQLiteQueue, "fifo"):
        with pytest.raises(TypeError, match="class of collections on a server"):
            ddl(wrong, **place.where)


@pytest.fixture
def writer(place, open_queue):
    """Make a queue, and a user who may read and write its rows and make no tables."""
    open_queue()
    name = f"writer_{place.name[8:16]}"
    rights, arguments = "SELECT, INSERT, UPDATE, DELETE", {**place.keywords, "user": name, "password": "w"}
    if place.kind == MYSQL:
        with place.mysql_user(name, "w", rights):
            yield arguments
    else:
        place.run(f"CREATE ROLE {name} LOGIN")
        place.run(f"GRANT USAGE ON SCHEMA {place.name} TO {name}")
        place.run(f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA {place.name} TO {name}")
        place.run(f"GRANT {rights} ON ALL TABLES IN SCHEMA {place.name} TO {name}")
        yield arguments
        place.run(f"DROP OWNED BY {name}")
        place.run(f"DROP USER {name}")


def test_a_user_without_the_right_to_make_tables_can_work(place, writer, request):
    with place.class_of()(request.node.name, create=False, **writer) as queue:
        queue.put_many("abc")
        assert queue.get() == "a"
        with queue.receive() as item:
            assert item == "b"
        assert queue.clear() == 1
    with pytest.raises(StorageError, match="CREATE TABLE"):
        place.class_of()("another", **writer)


# Items, and names.


@pytest.mark.parametrize("which", ["Queue", "AckQueue"])
def test_falsy_items_arrive(open_queue, which):
    queue = open_queue(which)
    queue.put_many(ITEMS)
    got = [queue.get(block=False) for _ in ITEMS]
    assert got == ITEMS
    assert [type(item) for item in got] == [type(item) for item in ITEMS]
    with pytest.raises(Empty):
        queue.get(block=False)


@pytest.mark.parametrize(
    ("which", "puts", "gets"),
    [
        ("Queue", "abca", "abca"),
        ("LIFOQueue", "abca", "acba"),
        ("UniqueQueue", "abca", "abc"),
        ("PriorityQueue", "caba", "aabc"),
        ("AckQueue", "abca", "abca"),
    ],
)
def test_each_class_has_its_order(open_queue, which, puts, gets):
    queue = open_queue(which)
    for item in puts:
        queue.put(item, ord(item)) if which == "PriorityQueue" else queue.put(item)
    assert [queue.get(block=False) for _ in gets] == list(gets)
    assert queue.empty()


def test_what_cannot_be_decoded_stays_when_it_is_received(open_queue):
    queue = open_queue(serializer=Picky())
    id = queue.put("poison")
    queue.put("good")
    with pytest.raises(DecodeError) as raised, queue.receive():
        pass
    assert (raised.value.id, len(queue)) == (id, 2)
    assert queue.skip(id) == id
    with queue.receive() as item:
        assert item == "good"


def test_names_are_told_apart(open_queue):
    names = ["ä", "Ä", "a\u0308", "a", "A", "a ", "日本", "🎉", "it's %s; --", 'q"`\\']
    for name in names:
        open_queue(name=name).put(name)
    for name in names:
        again = open_queue(name=name)
        assert (again.name, again.get(block=False), len(again)) == (name, name, 0)


def test_an_equal_item_is_refused_where_a_connection_counts_what_it_found(place, open_queue):
    queue = open_queue("UniqueQueue")
    if place.kind == MYSQL:
        pymysql = pytest.importorskip("pymysql")
        host, port = place.address.hosts[0]
        connection: Any = pymysql.connect(
            host=host,
            port=port,
            user=place.address.user,
            password=place.address.password or "",
            database=place.address.database,
            client_flag=pymysql.constants.CLIENT.FOUND_ROWS,
        )
    else:
        connection = CallerConnection(place).connection
    with closing(connection):
        assert [queue.put("a", connection=connection), queue.put("b", connection=connection)] == [1, 2]
        assert queue.put("a", connection=connection) is None
        connection.commit()
    assert queue.qsize() == 2


def test_priorities_that_no_server_orders_are_refused(open_queue):
    queue = open_queue("PriorityQueue")
    with pytest.raises(ValueError, match="float"):
        queue.put("x", (1 << 63) - 1)
    assert queue.empty()


def test_metrics_tell_each_queue(place, open_queue):
    queues = [open_queue(name="one"), open_queue("AckQueue", name="two")]
    for queue in queues:
        queue.put("x" * 100)
    text = prometheus_text(*queues)
    for name in ("one", "two"):
        where = f'path="{place.address.shown}",name="{name}"'
        assert f'persistcoll_items{{{where},state="ready"}} 1' in text
        (size,) = re.findall(rf"persistcoll_store_bytes{{{re.escape(where)}}} (\d+)", text)
        assert int(size) > 0


# Several processes.


@pytest.fixture
def remote(place, request):
    """Start a process that has the queue of this test open."""
    started = []

    def start(which="Queue", **options):
        options = {"name": request.node.name, "durability": "process", **place.where, **options}
        started.append(Remote(place.class_of(which), **options))
        return started[-1]

    yield start
    for each in started:
        each.close()


def test_a_get_that_waits_is_woken_by_another_process(open_queue, remote):
    queue, other = open_queue(), remote()
    for item in (None, 0, "late"):
        other.start(wait_in, "get", True, 20)
        assert other.told() == "waits"
        queue.put(item)
        assert other.result()[0] == item


def test_every_item_arrives_once_and_in_its_producers_order(open_queue, remote):
    queue = open_queue(maxsize=20)
    others = [remote(maxsize=20) for _ in range(2)]
    for name, other in enumerate(others):
        other.start(produce, name, 100)
    for other in others:
        assert other.told() == "ready"
    for other in others:
        other.say()
    got: dict[int, list[int]] = {0: [], 1: []}
    for _ in range(200):
        name, number = queue.get(timeout=30)
        got[name].append(number)
        queue.task_done()
    assert got == {0: [*range(100)], 1: [*range(100)]}
    assert max(other.result() for other in others) <= 20
    queue.join()


def test_maxsize_keeps_other_processes_waiting(open_queue, remote):
    queue, other = open_queue(maxsize=1), remote(maxsize=1)
    queue.put("first")
    with pytest.raises(Full):
        queue.put("second", block=False)
    other.start(wait_in, "put", "second", True, 20)
    assert other.told() == "waits"
    assert queue.get() == "first"
    other.result()
    assert queue.get() == "second"


@pytest.mark.parametrize("which", ["Queue", "AckQueue"])
def test_what_a_killed_process_had_got_is_delivered_again(open_queue, remote, which):
    options: dict[str, Any] = {"patience": 1.0}
    if which == "Queue":
        options["auto_commit"] = False
    queue, other = open_queue(which, **options), remote(which, **options)
    queue.put_many("abcd")
    other.start(get_until_told, 1, 2)
    assert other.told() == (["a"], ["b", "c"])
    assert queue.get(block=False) == "d"
    other.kill()
    assert [queue.get(timeout=20), queue.get(timeout=20)] == ["b", "c"]
    assert queue.unfinished_tasks == 3


def test_a_forked_child_uses_connections_of_its_own(open_queue, place):
    queue = open_queue(auto_commit=False)
    queue.put_many("abc")
    assert queue.get() == "a"
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            queue.put(queue.get())  # closing releases "b" in its place
            queue.close()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    queue.task_done()
    assert queue.get_many(9) == ["b", "c", "b"]


# The end.


def test_a_closed_queue_says_so_and_has_released_its_items(open_queue):
    queue = open_queue("AckQueue")
    queue.put("x")
    queue.get()
    queue.close()
    queue.close()
    assert repr(queue).endswith(" closed>")
    calls: list[Callable[[], object]] = [
        lambda: queue.put("y"), queue.get, queue.qsize, queue.peek, queue.stats, lambda: queue.ack(id=1),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(persistcoll.ClosedError):
            call()
    assert open_queue("AckQueue").get(block=False) == "x"


def test_a_queue_that_is_never_closed_warns(place):
    queue = place.class_of()("unclosed", **place.where)
    with pytest.warns(ResourceWarning, match="unclosed <"):
        del queue


_ENDS_OPEN = """
import persistcoll, sys
class_name, name, schema = sys.argv[1:]
if class_name == "MessageQueue":
    jobs = persistcoll.MessageQueue(sys.stdin.read(), name, schema=schema or None)
else:
    jobs = getattr(persistcoll, class_name)(name, sys.stdin.read(), schema=schema or None)
jobs.put("job")
def work():
    return jobs.get()
item = work()
"""


@pytest.mark.parametrize("which", ["AckQueue", "MessageQueue"])
def test_a_program_that_ends_with_an_open_queue_returns_what_it_has_got(place, which, monkeypatch):
    """The interpreter destroys the queue at its end, when nothing can be imported any more."""
    name = f"ends with {which}"
    class_name = which if which == "MessageQueue" else place.class_of(which).__name__
    if place.address.password is not None:
        monkeypatch.setenv("PERSISTCOLL_PASSWORD", place.address.password)
    command = [sys.executable, "-c", _ENDS_OPEN, class_name, name, place.schema or ""]
    url = place.address.shown
    done = subprocess.run(command, input=url, capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr == ""
    if which == "MessageQueue":
        with persistcoll.MessageQueue(url, name, schema=place.schema) as jobs:
            assert jobs.get(block=False).body == "job"
    else:
        with place.class_of(which)(name, url, schema=place.schema) as jobs:
            assert jobs.get(block=False) == "job"
