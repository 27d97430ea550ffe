"""The queues on database servers: persistcoll's, their peers, and the bare statements of the drivers.

Each contender's items are dicts of 100 bytes, or the nearest that a peer takes. A peer that is not installed
is left out; ``pgmq`` runs where its schema is in the database (the SQL file of its project makes it).
"""

from __future__ import annotations

import json
import os
import pickle
import secrets
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from functools import cache
from typing import Any, NamedTuple

from benchmarks.contenders import ITEM, have
from persistcoll import MySQLAckQueue, MySQLQueue, PostgresAckQueue, PostgresQueue
from persistcoll.errors import StorageError
from persistcoll.servers.address import MYSQL, POSTGRESQL, Address

__all__ = [
    "BARE",
    "OURS",
    "OURS_WITH_ACK",
    "PEERS",
    "PICKLED",
    "Opened",
    "Verbs",
    "addresses",
    "fresh",
    "is_there",
]

_URLS = {
    POSTGRESQL: ("PERSISTCOLL_TEST_POSTGRES_URL", "postgresql://postgres@127.0.0.1:5432/test"),
    MYSQL: ("PERSISTCOLL_TEST_MYSQL_URL", "mysql://root@127.0.0.1:3306/test"),
}
_BODY = json.dumps(ITEM)
PICKLED = pickle.dumps(ITEM, 5)


class Verbs(NamedTuple):
    """What a queue calls putting an item, and taking one so that it does not come again."""

    put: Callable[[], object]
    take: Callable[[], object]


Opened = Callable[[str], Any]
"""Opens the queue of a name for one thread; a context manager that gives its verbs."""


def addresses(kind: str) -> str:
    """Return the URL of the server of this kind."""
    variable, local = _URLS[kind]
    return os.environ.get(variable, local)


@cache
def is_there(kind: str) -> bool:
    """Tell whether a server of this kind answers."""
    try:
        OURS[kind][1](secrets.token_hex(8), url=addresses(kind), create=False)
    except StorageError as error:
        return "create=False" in str(error)
    except ImportError:
        return False
    return True


def fresh() -> str:
    """Return a name that no table has."""
    return f"bench_{secrets.token_hex(6)}"


OURS: Mapping[str, tuple[str, Any]] = {
    POSTGRESQL: ("PostgresQueue", PostgresQueue),
    MYSQL: ("MySQLQueue", MySQLQueue),
}
OURS_WITH_ACK: Mapping[str, tuple[str, Any]] = {
    POSTGRESQL: ("PostgresAckQueue", PostgresAckQueue),
    MYSQL: ("MySQLAckQueue", MySQLAckQueue),
}


@contextmanager
def _tpq(name: str) -> Iterator[Verbs]:
    import tpq

    address = Address.parse(addresses(POSTGRESQL))
    ((host, _),) = address.hosts
    with closing(
        tpq.Queue(name, host=host, dbname=address.database, user=address.user, password=address.password)
    ) as queue:
        with suppress(Exception):  # another thread has made it
            queue.create()

        def take() -> None:
            with queue.get():
                pass

        yield Verbs(lambda: queue.put(ITEM), take)


@contextmanager
def _procrastinate(name: str) -> Iterator[Verbs]:
    import procrastinate
    import psycopg
    from procrastinate.sql import queries

    with psycopg.connect(addresses(POSTGRESQL), autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA IF NOT EXISTS {name}")
    connector = procrastinate.SyncPsycopgConnector(
        conninfo=addresses(POSTGRESQL), kwargs={"options": f"-csearch_path={name}"}
    )
    app: Any = procrastinate.App(connector=connector)
    job = app.task(name="job", queue="bench")(lambda item: None)

    with app.open():
        with suppress(procrastinate.exceptions.ConnectorException):
            app.schema_manager.apply_schema()
        worker = connector.execute_query_one(query=queries["register_worker"])["worker_id"]

        def take() -> None:
            found = connector.execute_query_one(
                query=queries["fetch_job"], queues=["bench"], worker_id=worker
            )
            if found["id"] is None:
                raise AssertionError("procrastinate has no job")
            connector.execute_query(
                query=queries["finish_job"], job_id=found["id"], status="succeeded", delete_job=True
            )

        yield Verbs(lambda: job.defer(item=ITEM), take)
    with psycopg.connect(addresses(POSTGRESQL), autocommit=True) as connection:
        connection.execute("SET client_min_messages = error")
        connection.execute(f"DROP SCHEMA IF EXISTS {name} CASCADE")


def _has_pgmq() -> bool:
    import psycopg

    with psycopg.connect(addresses(POSTGRESQL), autocommit=True) as connection:
        row = connection.execute("SELECT to_regnamespace('pgmq') IS NOT NULL").fetchone()
    return bool(row and row[0])


@contextmanager
def _pgmq(name: str) -> Iterator[Verbs]:
    import psycopg

    with psycopg.connect(addresses(POSTGRESQL), autocommit=True) as connection:
        connection.execute("SET client_min_messages = error")
        connection.execute("SELECT pgmq.create(%s)", [name])

        def put() -> None:
            connection.execute("SELECT pgmq.send(%s, %s::jsonb)", [name, _BODY])

        def take() -> None:
            row = connection.execute("SELECT msg_id, message FROM pgmq.read(%s, 60, 1)", [name]).fetchone()
            assert row is not None
            connection.execute("SELECT pgmq.delete(%s, %s::bigint)", [name, row[0]])

        yield Verbs(put, take)
        connection.execute("SELECT pgmq.drop_queue(%s)", [name])


@contextmanager
def _mysql_connection() -> Iterator[Any]:
    import pymysql

    address = Address.parse(addresses(MYSQL))
    ((host, port),) = address.hosts
    connection = pymysql.connect(
        host=host,
        port=port or 3306,
        user=address.user,
        password=address.password or "",
        database=address.database,
    )
    try:
        yield connection
    finally:
        connection.close()


@contextmanager
def _squeal(name: str) -> Iterator[Verbs]:
    from squeal.backend.mysql import MySQLBackend
    from squeal.queue import Queue

    with _mysql_connection() as connection:
        connection.autocommit(True)
        queue = Queue(MySQLBackend(connection, name))

        def take() -> None:
            message = queue.get(1)
            assert message is not None
            message.ack()

        yield Verbs(lambda: queue.put(PICKLED, 1), take)
        queue.destroy()


@contextmanager
def _persist_queue(name: str) -> Iterator[Verbs]:
    import persistqueue

    address = Address.parse(addresses(MYSQL))
    ((host, port),) = address.hosts
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # It names the password as PyMySQL did once.
        queue = persistqueue.MySQLQueue(
            host=host,
            user=address.user or "root",
            passwd=address.password or "",
            db_name=address.database or "test",
            name=name,
            port=port or 3306,
        )
        yield Verbs(lambda: queue.put(ITEM), queue.get)
    with _mysql_connection() as connection:
        connection.cursor().execute(f"DROP TABLE IF EXISTS {queue._table_name}")


PEERS: Mapping[str, Mapping[str, tuple[Callable[[], bool], Opened]]] = {
    POSTGRESQL: {
        "tpq": (lambda: have("tpq"), _tpq),
        "procrastinate": (lambda: have("procrastinate"), _procrastinate),
        "pgmq": (_has_pgmq, _pgmq),
    },
    MYSQL: {
        "squeal": (lambda: have("squeal"), _squeal),
        "persist-queue MySQLQueue": (lambda: have("persistqueue") and have("dbutils"), _persist_queue),
    },
}


@contextmanager
def _bare_postgres(name: str) -> Iterator[Verbs]:
    """Give an INSERT, and a transaction of DELETE with SKIP LOCKED, on a table with its primary key alone."""
    import psycopg

    with psycopg.connect(addresses(POSTGRESQL), autocommit=True) as connection:
        connection.execute(
            f"CREATE TABLE {name} (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, data bytea)"
        )
        execute = connection.cursor(binary=True).execute

        def put() -> None:
            execute(f"INSERT INTO {name} (data) VALUES (%s) RETURNING id", [PICKLED]).fetchone()

        def take() -> None:
            execute("BEGIN")
            found = execute(
                f"DELETE FROM {name} WHERE id ="
                f" (SELECT id FROM {name} ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED) RETURNING id, data"
            ).fetchone()
            assert found is not None
            execute("COMMIT")

        yield Verbs(put, take)
        connection.execute(f"DROP TABLE {name}")


@contextmanager
def _bare_mysql(name: str) -> Iterator[Verbs]:
    """Give an INSERT, and a transaction of SELECT with SKIP LOCKED, and DELETE."""
    with _mysql_connection() as connection:
        cursor = connection.cursor()
        execute = cursor.execute
        execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
        execute(f"CREATE TABLE {name} (id bigint AUTO_INCREMENT PRIMARY KEY, data LONGBLOB) ENGINE=InnoDB")

        def put() -> None:
            execute(f"INSERT INTO {name} (data) VALUES (_binary %s)", (PICKLED,))
            connection.commit()

        def take() -> None:
            execute(f"SELECT id, data FROM {name} ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED")
            found = cursor.fetchone()
            assert found is not None
            execute(f"DELETE FROM {name} WHERE id = %s", (found[0],))
            connection.commit()

        yield Verbs(put, take)
        execute(f"DROP TABLE {name}")


BARE: Mapping[str, Opened] = {POSTGRESQL: _bare_postgres, MYSQL: _bare_mysql}
