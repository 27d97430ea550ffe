"""What ``collections()`` tells of databases on servers, and that it changes nothing there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest

from persistcoll import (
    BackendUnavailableError,
    CollectionInfo,
    PDict,
    StorageError,
    StoreMissingError,
    collections,
)
from persistcoll.servers.address import MYSQL
from persistcoll.servers.sessions import SERVERS
from tests.catalog.kinds import COUNTS, told_of
from tests.permissions.kinds import PLAIN
from tests.servers.places import KINDS, Place

CLASSES = {
    "fifo": "Queue",
    "lifo": "LIFOQueue",
    "unique": "UniqueQueue",
    "priority": "PriorityQueue",
    "fifo ack": "AckQueue",
}


@pytest.fixture(params=KINDS)
def place(request, monkeypatch) -> Iterator[Place]:
    place = Place(request.param)
    monkeypatch.delenv("PERSISTCOLL_PASSWORD", raising=False)
    if place.address.password is not None:
        monkeypatch.setenv("PERSISTCOLL_PASSWORD", place.address.password)
    yield place
    place.close()


@pytest.fixture
def opened(place) -> Iterator[Callable[..., Any]]:
    with ExitStack() as stack:
        yield lambda kind, name, **options: stack.enter_context(
            place.class_of(CLASSES[kind])(name, **{**place.where, **PLAIN, **options})
        )


def look(place: Place) -> dict[str | None, CollectionInfo]:
    return collections(place.address.shown, schema=place.schema)


def tables(place: Place) -> dict[str, Any]:
    """Everything in the place: the rows of each table, with PostgreSQL's version of each row."""
    names = place.run(
        "SELECT concat(table_name, '') FROM information_schema.tables WHERE table_schema = %(schema)s",
        schema=place.name,
    )
    texts = sorted(name.decode() if isinstance(name, bytes) else name for (name,) in names)
    columns = "t.*" if place.kind == MYSQL else "xmin::text, ctid::text, t::text"
    return {
        text: sorted(map(repr, place.run(f"SELECT {columns} FROM {place.name}.{text} AS t")))
        for text in texts
    }


@pytest.mark.parametrize("kind", CLASSES)
def test_each_kind_is_told(kind, place, opened):
    before = time.time()
    queue = opened(kind, "jobs")
    after = time.time()
    for item in "abc":
        queue.put(item)
    (info,) = look(place).values()
    assert info == CollectionInfo(
        kind,
        "jobs",
        place.address.shown,
        "json",
        1,
        info.created,
        **dict.fromkeys(COUNTS, 0) | {"ready": 3, "unfinished": 3},
    )
    assert before - 2 <= info.created <= after + 2  # by the server's clock


def test_the_counts_are_those_of_the_container(place, opened):
    queue = opened("fifo ack", "jobs", max_attempts=1, serializer="pickle")
    queue.put_many(range(15))
    queue.ack_many(ids=[queue.get(raw=True)["pqid"] for _ in range(2)])
    for _ in range(3):
        queue.ack_failed(id=queue.get(raw=True)["pqid"])
    for _ in range(4):
        queue.nack(id=queue.get(raw=True)["pqid"])
    queue.get()
    opened("fifo", "delayed").put("x")
    place.run(f"UPDATE {place.name}.pc_2 SET state = 2, due = {later(place)}")
    found = look(place)
    counts = {name: getattr(found["jobs"], name) for name in COUNTS}
    assert counts == told_of(queue)
    assert counts == dict(zip(COUNTS, (6, 5, 1, 0, 2, 3, 4, 0), strict=True))
    assert (found["delayed"].ready, found["delayed"].delayed, found["delayed"].unfinished) == (0, 1, 1)


def test_a_dict_is_told_without_what_has_expired(place):
    with PDict(
        place.address.shown, "ages", password=place.address.password, schema=place.schema, **PLAIN
    ) as ages:
        ages.update(ann=41, bob=17)
        ages.set("gone", 1, ttl=0.001)
        time.sleep(0.01)
        before = tables(place)
        found = look(place)["ages"]
        assert tables(place) == before
        assert (found.kind, found.serializer) == ("dict", "json")
        assert {name: getattr(found, name) for name in COUNTS} == told_of(ages)
        assert (found.ready, found.unfinished, found.claimed) == (2, 2, 0)


def later(place: Place) -> str:
    return str(round((time.time() + 3600) * 1e6)) if place.kind == MYSQL else "now() + interval '1 hour'"


def test_all_are_told_in_the_order_of_creation(place, opened):
    names = ["z", "a", "it's %s", "ä", ""]
    for name, kind in zip(names, CLASSES, strict=True):
        opened(kind, name)
    assert list(look(place)) == names
    assert [info.kind for info in look(place).values()] == list(CLASSES)


def test_nothing_is_changed_and_nothing_stays_open(place, opened):
    queue = opened("fifo ack", "jobs", lease=0.001)
    queue.put("x")
    queue.get()
    before, servers = tables(place), dict(SERVERS._servers)
    assert look(place)["jobs"].claimed == 1  # what is due is not made ready
    assert tables(place) == before
    assert SERVERS._servers == servers


def test_a_database_without_collections_stays_without_tables(place):
    with pytest.raises(StoreMissingError, match="there are no collections in"):
        look(place)
    assert tables(place) == {}


def test_another_schema_or_database_is_another_place(place, opened):
    opened("fifo", "jobs")
    if place.kind == MYSQL:
        with pytest.raises(StorageError, match="pc_test_nothing"):
            collections(replace(place.address, database="pc_test_nothing").shown)
        with pytest.raises(ValueError, match="no schemas"):
            collections(place.address.shown, schema="s")
    else:
        with pytest.raises(StoreMissingError, match="'pc_test_nothing'"):
            collections(place.address.shown, schema="pc_test_nothing")


def test_a_path_has_no_schema(tmp_path):
    with pytest.raises(ValueError, match="no schemas"):
        collections(tmp_path, schema="s")


@pytest.mark.parametrize("change", ["version = 99", "version = 0", "kind = 'a later kind'"])
def test_what_this_version_does_not_know_is_told_without_counts(change, place, opened):
    opened("fifo", "jobs").put("x")
    place.run(f"UPDATE {place.name}.pc_collections SET {change}")
    (info,) = look(place).values()
    assert [getattr(info, name) for name in COUNTS] == [None] * len(COUNTS)
    assert str(getattr(info, change.split()[0])) in change


def test_a_lost_table_costs_only_its_counts(place, opened):
    for name in ("lost", "kept"):
        opened("fifo", name).put("x")
    place.run(f"DROP TABLE {place.name}.pc_1")
    assert [(name, info.ready) for name, info in look(place).items()] == [("lost", None), ("kept", 1)]


def test_a_user_who_may_only_read_is_told(place, opened):
    opened("fifo", "jobs").put("x")
    name = f"looker_{place.name[8:16]}"
    reader = replace(place.address, user=name, password=None).shown.replace("@", ":hid%2Fden@", 1)
    if place.kind == MYSQL:
        users = [f"{name}@'%'", f"{name}@localhost"]
        for user in users:
            place.run(f"CREATE USER {user} IDENTIFIED BY 'hid/den'")
            place.run(f"GRANT SELECT ON {place.name}.* TO {user}")
    else:
        users = [name]
        place.run(f"CREATE ROLE {name} LOGIN PASSWORD 'hid/den'")
        place.run(f"GRANT USAGE ON SCHEMA {place.name} TO {name}")
        place.run(f"GRANT SELECT ON ALL TABLES IN SCHEMA {place.name} TO {name}")
    try:
        (info,) = collections(reader, schema=place.schema).values()
        assert info.ready == 1
        assert "hid" not in repr(info)
    finally:
        for user in users:
            if place.kind != MYSQL:
                place.run(f"DROP OWNED BY {user}")
            place.run(f"DROP USER {user}")


def test_what_is_open_in_a_receive_is_ready_and_keeps_no_look_waiting(place, opened):
    queue = opened("fifo", "jobs")
    queue.put("x")
    with queue.receive():
        assert look(place)["jobs"].ready == 1
    assert look(place)["jobs"].ready == 0


@pytest.mark.parametrize("scheme", ["postgresql", "mysql"])
def test_a_server_that_does_not_answer(scheme, monkeypatch):
    from persistcoll.servers import open as opening

    pytest.importorskip({"postgresql": "psycopg", "mysql": "pymysql"}[scheme])
    monkeypatch.setattr(opening, "TIMEOUT", 0.1)
    with pytest.raises(BackendUnavailableError) as caught:
        collections(f"{scheme}://ann:secret@127.0.0.1:1/d")
    assert "secret" not in str(caught.value)
