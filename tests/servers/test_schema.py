"""Collections on servers: made by many at once, refused, and described for users without the right."""

from __future__ import annotations

import re
import time
from dataclasses import replace

import pytest

from persistcoll.engine.records import FIFO, LIFO, PRIORITY, UNIQUE, ClaimPolicy, Entry
from persistcoll.errors import (
    FormatVersionError,
    SerializerMismatchError,
    StorageError,
    StoreKindError,
    StoreMissingError,
)
from persistcoll.servers import schema, sessions
from persistcoll.servers.address import MYSQL
from persistcoll.servers.open import open_record_store
from persistcoll.servers.record_store import ServerRecordStore
from persistcoll.servers.sessions import driver_of
from persistcoll.servers.statements import shared_statements
from persistcoll.testing.children import run_threads

_STRANGE = "it's %s, \\' ä \\"


def opened(place, name="jobs", discipline=FIFO, **options):
    options = {"serializer": "raw", "durability": "process", "schema": place.schema, **options}
    return open_record_store(
        options.pop("address", place.address),
        name=name,
        kind=options.pop("kind", discipline.name),
        discipline=discipline,
        retry=ClaimPolicy(),
        **options,
    )


def script_of(place, name):
    """Return the statements that make a collection which is missing."""
    with pytest.raises(StoreMissingError) as raised:
        opened(place, name, create=False)
    texts = re.split(r";\n", str(raised.value).partition("\n")[2])
    return [text for text in texts if text.strip()]


def test_an_interrupt_between_two_statements_frees_the_lock_of_creation(place, monkeypatch):
    """The session that held it is not used again, because no rollback frees that lock on MySQL."""

    def interrupted(session, texts):
        raise KeyboardInterrupt

    first = opened(place, "first")  # keeps the sessions of its server open
    monkeypatch.setattr(schema, "_make_tables", interrupted)
    with pytest.raises(KeyboardInterrupt):
        opened(place, "interrupted")
    monkeypatch.undo()
    monkeypatch.setattr(schema, "_CREATION_TIMEOUT", 1.0)
    opened(place, "second", timeout=5.0).close()  # by sessions of another server object
    first.close()


def test_many_may_make_the_same_collections_at_once(place):
    stores: list[ServerRecordStore] = []

    def open_all(number):
        # Another timeout is another set of connections, as another process has.
        stores.extend(opened(place, name, timeout=20.0 + number) for name in ("one", "two", "three"))

    run_threads(*[lambda number=number: open_all(number) for number in range(4)])
    assert len({store.store_id for store in stores}) == 3
    stores[0].append(b"x")
    same = [store for store in stores if store.store_id == stores[0].store_id]
    assert [store.count() for store in same] == [1] * 4
    for store in stores:
        store.close()


@pytest.mark.parametrize("discipline", [FIFO, LIFO, PRIORITY, UNIQUE], ids=lambda each: each.name)
def test_without_create_the_error_has_statements_that_make_it(place, discipline):
    with pytest.raises(StoreMissingError, match="create=False") as raised:
        opened(place, _STRANGE, discipline, create=False)
    script = str(raised.value).partition("\n")[2]
    for text in re.split(r";\n", script):
        if text.strip():
            if place.kind == MYSQL:
                place.run(f"USE {place.name}")
            place.run(text)
    store = opened(place, _STRANGE, discipline, create=False)
    assert store.put([Entry(b"x", key=b"k")]) == [1]
    store.close()


def test_a_collection_opens_only_as_what_it_was_made(place):
    opened(place).close()
    with pytest.raises(StoreKindError, match="'fifo', not 'lifo'"):
        opened(place, kind="lifo")
    with pytest.raises(SerializerMismatchError, match="'raw', not 'json'"):
        opened(place, serializer="json")
    place.run(f"UPDATE {place.name}.pc_collections SET version = 99")
    with pytest.raises(FormatVersionError, match="99"):
        opened(place)


@pytest.mark.parametrize("ending", ["FOR UPDATE", ""], ids=["waits", "locks nothing"])
def test_a_server_that_does_not_skip_what_is_locked_is_refused(place, ending, monkeypatch):
    shared = shared_statements

    def without_skipping(*arguments):
        statements = shared(*arguments)
        text = statements.lock_free_collection.replace("FOR UPDATE SKIP LOCKED", ending)
        return statements._replace(lock_free_collection=text)

    monkeypatch.setattr(sessions, "shared_statements", without_skipping)
    with pytest.raises(StorageError, match="SKIP LOCKED"):
        opened(place, timeout=1.0)
    monkeypatch.undo()
    with pytest.raises(StoreMissingError):
        opened(place, create=False)
    store = opened(place)
    store.append(b"x")
    assert store.count() == 1
    store.close()


@pytest.mark.parametrize("name", ["", "a" * 255, "ä" * 127, "A", "a", "a ", "%s", "'\"`\\;--"])
def test_every_name_is_its_own(place, name):
    store, other = opened(place, name), opened(place, "other")
    store.append(name.encode())
    assert other.count() == 0
    store.close()
    again = opened(place, name)
    assert [record.payload for record in again.records()] == [name.encode()]
    for each in (again, other):
        each.close()


def test_the_encoding_of_the_environment_changes_no_name(place, monkeypatch):
    """PostgreSQL's client takes it from PGCLIENTENCODING, or otherwise from the database."""
    store = opened(place, "ä")
    store.append(b"x")
    store.close()
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    again = opened(place, "ä", create=False)
    assert again.count() == 1
    again.close()


@pytest.mark.parametrize("name", ["a" * 256, "ä" * 128, "\0", "\udc80"])
def test_a_name_that_no_server_stores_is_refused(place, name):
    with pytest.raises(ValueError, match="'name'"):
        opened(place, name)
    with pytest.raises(TypeError, match="'name'"):
        opened(place, 7)


def test_the_statements_of_a_script_may_run_meanwhile(place, caller):
    """They run without a lock, and the catalog of PostgreSQL refuses the second of two equal tables."""
    opened(place, "other").close()
    texts = script_of(place, "jobs")
    made: list[ServerRecordStore] = []

    def commit_later():
        time.sleep(0.5)
        caller.commit()

    with caller.connection.cursor() as cursor:
        for text in texts:
            cursor.execute(text)
    run_threads(lambda: made.append(opened(place, "third")), commit_later)
    jobs = opened(place, "jobs", create=False)
    assert len({jobs.store_id, made[0].store_id}) == 2
    for store in (jobs, *made):
        assert store.append(b"x") == 1
        store.close()


def test_a_table_that_a_script_registers_later_is_not_dropped(place, caller):
    """MySQL commits after each statement, and so does the client of PostgreSQL."""
    *tables, insert = script_of(place, "jobs")
    with caller.connection.cursor() as cursor:
        for text in tables:
            cursor.execute(text)
        caller.commit()
        third = opened(place, "third")
        later = script_of(place, "fourth")
        cursor.execute(insert)
        for text in later:
            cursor.execute(text)
    caller.commit()
    stores = [third, *(opened(place, name, create=False) for name in ("jobs", "fourth"))]
    for store in stores:
        assert store.append(b"x") == 1
        assert store.count() == 1
        store.close()


def test_a_table_that_another_session_makes_meanwhile_is_left_alone(place, monkeypatch):
    opened(place, "first").close()
    kind = type(driver_of(place.kind).dialect)
    exists, asked = kind.exists, []

    def exists_after(self, table):
        asked.append(table)
        return "SELECT 1 = 0" if len(asked) == 1 else exists(self, table)

    monkeypatch.setattr(kind, "exists", exists_after)
    place.run(f"CREATE TABLE {place.name}.pc_2 (x int)")
    store = opened(place, "second")
    assert store.append(b"x") == 1
    store.close()
    assert place.run(f"SELECT x FROM {place.name}.pc_2") == []


def test_a_script_may_register_the_same_name_meanwhile(place, monkeypatch):
    opened(place, "first").close()
    free_number = schema._free_number

    def register(session, server):
        number = free_number(session, server)
        one, seven = f"{place.name}.pc_1", f"{place.name}.pc_7"
        place.run(f"CREATE TABLE {seven} " + (f"LIKE {one}" if place.kind == MYSQL else f"(LIKE {one})"))
        same = "kind, serializer, version, store, created"
        place.run(
            f"INSERT INTO {place.name}.pc_collections (number, name, {same})"
            f" SELECT 7, 'second', {same} FROM {place.name}.pc_collections"
        )
        return number

    monkeypatch.setattr(schema, "_free_number", register)
    opened(place, "second").close()
    with pytest.raises(StoreMissingError):
        place.run(f"SELECT 1 FROM {place.name}.pc_2")


def test_what_is_left_of_a_creation_that_was_cut_short_does_no_harm(place):
    opened(place, "first").close()
    place.run(f"CREATE TABLE {place.name}.pc_2 (x int)")
    store = opened(place, "second")
    assert store.append(b"x") == 1
    store.close()


def test_a_schema_is_for_postgresql(place):
    if place.kind == MYSQL:
        with pytest.raises(ValueError, match="no schemas"):
            opened(place, schema="s")
        return
    strange = 'a "strange" % schema'
    store = opened(place, schema=strange)
    store.append(b"x")
    assert store.stats().bytes > 0
    assert store.nack(store.claim(lambda record: record.id), to_back=True) == 2
    store.close()
    place.run('DROP SCHEMA "a ""strange"" % schema" CASCADE')


def test_a_database_that_is_missing_is_named(place):
    address = replace(place.address, database="pc_test_nothing")
    with pytest.raises(StorageError, match="pc_test_nothing"):
        opened(place, address=address)


def test_an_old_server_is_refused_by_name(place, monkeypatch):
    from persistcoll.servers.mysql import connection as mysql
    from persistcoll.servers.postgres import connection as postgres

    monkeypatch.setattr(postgres, "_OLDEST", 990000)
    monkeypatch.setattr(mysql, "_OLDEST", {"MySQL": (99, 0, 0), "MariaDB": (99, 0, 0)})
    with pytest.raises(StorageError, match=r"needs .*99.* or later"):
        opened(place, timeout=9.0)


@pytest.fixture
def reader(place):
    """Make a user who may only read."""
    name = f"reader_{place.name[8:16]}"
    if place.kind == MYSQL:
        with place.mysql_user(name, "hidden", "SELECT"):
            yield replace(place.address, user=name, password="hidden")
    else:
        place.run(f"CREATE ROLE {name} LOGIN PASSWORD 'hidden'")
        place.run(f"GRANT USAGE ON SCHEMA {place.name} TO {name}")
        yield replace(place.address, user=name, password="hidden")
        place.run(f"DROP OWNED BY {name}")
        place.run(f"DROP ROLE {name}")


def test_a_user_who_may_not_make_tables_is_told_the_statements(place, reader):
    with pytest.raises(StorageError, match="CREATE TABLE") as raised:
        opened(place, address=reader)
    assert "hidden" not in str(raised.value)


def test_tables_that_were_dropped_are_missed_by_name(place):
    store = opened(place)
    place.run(f"DROP TABLE {place.name}.pc_1")
    with pytest.raises(StoreMissingError, match="pc_1"):
        store.append(b"x")
    store.close()
