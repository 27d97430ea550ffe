"""The database servers that tests use: where they are, and places in them that are removed afterwards.

``PERSISTCOLL_TEST_POSTGRES_URL`` and ``PERSISTCOLL_TEST_MYSQL_URL`` name them; otherwise they are on this
machine, where the tests start one if none answers. Where its programs are missing, too, a test is skipped
with the reason; it fails where the environment variable ``CI`` says that everything must be there.
"""

from __future__ import annotations

import itertools
import os
import secrets
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

import persistcoll
from persistcoll.errors import StorageError
from persistcoll.servers.address import MYSQL, POSTGRESQL, Address
from persistcoll.servers.driver import ConnectionLostError, OwnConnection
from persistcoll.servers.sessions import driver_of
from tests.servers import own_server

__all__ = ["CLASSES", "KINDS", "CallerConnection", "Place", "need_server"]

KINDS = (POSTGRESQL, MYSQL)
CLASSES = {POSTGRESQL: "Postgres", MYSQL: "MySQL"}
"""What the names of the classes of each kind begin with."""
_URLS = {
    POSTGRESQL: ("PERSISTCOLL_TEST_POSTGRES_URL", "postgresql://postgres@127.0.0.1:5432/test"),
    MYSQL: ("PERSISTCOLL_TEST_MYSQL_URL", "mysql://root@127.0.0.1:3306/test"),
}
_SHARED = ("pc_collections", "pc_done", "pc_holders", "pc_credits")
_OTHERS = ("pc_keys", "pc_groups", "pc_topics", "pc_expired", "pc_waiters")
_WITHOUT_IDS = (*_SHARED, "pc_keys", "pc_groups", "pc_topics", "pc_waiters")
_numbers = itertools.count()


@cache
def _find(kind: str) -> tuple[Address, str]:
    """Return the server's address, and why it cannot be used, if so."""
    variable, local = _URLS[kind]
    address = Address.parse(os.environ.get(variable, local))
    try:
        driver_of(kind).connect(address, 5.0, True).close()
    except (ImportError, StorageError, ConnectionLostError) as error:
        if isinstance(error, ConnectionLostError) and variable not in os.environ:
            lacking = own_server.lacking_programs(kind)
            if not lacking:
                return own_server.lend(kind), ""
            return address, f"{error}; and {', '.join(lacking)} to start one"
        return address, str(error)
    return address, ""


def need_server(kind: str) -> Address:
    """Return the server's address; skip the test (in CI: fail it) if none answers and none can be started."""
    address, trouble = _find(kind)
    if trouble:
        pytest.skip(f"needs a server of {kind} ({_URLS[kind][0]} names one): {trouble}")
    return address


class CallerConnection:
    """A connection of a program's own, wrapped as frameworks do it.

    :param place: where: its ``kind``, its ``address``, and perhaps its ``driver_options``.
    :ivar connection: the driver's.
    """

    def __init__(self, place: Any) -> None:
        host, port = place.address.hosts[0]
        self.connection: Any
        if place.kind == MYSQL:
            pymysql = pytest.importorskip("pymysql")
            self.connection = pymysql.connect(
                host=host,
                port=port,
                user=place.address.user,
                password=place.address.password or "",
                database=place.address.database,
            )
        else:
            psycopg = pytest.importorskip("psycopg")
            self.connection = psycopg.connect(
                host=host,
                port=port,
                user=place.address.user,
                password=place.address.password,
                dbname=place.address.database,
                **getattr(place, "driver_options", {}),
            )

    def __enter__(self) -> CallerConnection:
        return self

    def __exit__(self, *error: object) -> None:
        """Roll the transaction back, and close the connection."""
        self.rollback()
        self.close()

    def begin(self) -> None:
        """Begin a transaction, as the drivers do it by themselves at the first statement."""

    def commit(self) -> None:
        """Commit the transaction."""
        self.connection.commit()

    def rollback(self) -> None:
        """Roll the transaction back."""
        self.connection.rollback()

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()


class Place:
    """A schema of PostgreSQL, or a database of MySQL, for one test.

    :ivar address: of the server; of MySQL with this database.
    :ivar schema: for the opener; ``None`` with MySQL.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._server = need_server(kind)
        self._connection: OwnConnection
        self.connect()
        self._names: list[str] = []
        self.name = self._make()
        self.address, self.schema = self._of(self.name)

    def class_of(self, which: str = "Queue") -> type[Any]:
        """Return the class of that name for this server: ``"LIFOQueue"`` and so on."""
        found: type[Any] = getattr(persistcoll, CLASSES[self.kind] + which)
        return found

    @property
    def where(self) -> dict[str, Any]:
        """The arguments that name this place."""
        return {"url": self.address.shown, "password": self.address.password, "schema": self.schema}

    @property
    def epoch(self) -> str:
        """The server's time in seconds since the epoch, as SQL."""
        return "unix_timestamp(now(6))" if self.kind == MYSQL else "extract(epoch FROM now())::float8"

    @property
    def keywords(self) -> dict[str, Any]:
        """The same as keywords."""
        ((host, port),) = self.address.hosts
        return {
            "host": host,
            "port": port,
            "user": self.address.user,
            "password": self.address.password,
            "dbname": self.address.database,
            "schema": self.schema,
        }

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which a program's collections are made in this place."""
        variables = {"PERSISTCOLL_URL": self.address.shown}
        if self.address.password is not None:
            # The second one is for connections that a program makes itself.
            variables |= dict.fromkeys(("PERSISTCOLL_PASSWORD", "PGPASSWORD"), self.address.password)
        if self.schema is not None:
            variables["PGOPTIONS"] = f"-csearch_path={self.schema}"
        return variables

    def connect(self) -> None:
        """Connect again, after :meth:`disconnect`."""
        # Nothing here needs to survive a power cut, so PostgreSQL need not wait for its device.
        self._connection = driver_of(self.kind).connect(self._server, 5.0, False)

    def disconnect(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _of(self, name: str) -> tuple[Address, str | None]:
        if self.kind == MYSQL:
            return replace(self._server, database=name), None
        return self._server, name

    def _make(self) -> str:
        name = f"pc_test_{secrets.token_hex(4)}_{next(_numbers)}"
        self._names.append(name)
        if self.kind == MYSQL:
            self.run(f"CREATE DATABASE {name}")
        else:
            self.run(f"CREATE SCHEMA {name}")
        return name

    def run(self, text: str, **parameters: Any) -> Sequence[Any]:
        """Run a statement, and return its rows."""
        return self._connection.run(text, parameters or None).rows

    @contextmanager
    def mysql_user(self, name: str, password: str, rights: str) -> Iterator[None]:
        """Make a user of MySQL with these rights on this place.

        A server may have an anonymous local user. It takes that one for each connection from this machine,
        unless the name is that of a local user. So there is a local user of that name, too.
        """
        users = [f"{name}@'%%'", f"{name}@localhost"]
        for user in users:
            self.run(f"CREATE USER {user} IDENTIFIED BY %(password)s", password=password)
            self.run(f"GRANT {rights} ON {self.name}.* TO {user.replace('%%', '%')}")
        yield
        for user in users:
            self.run(f"DROP USER {user.replace('%%', '%')}")

    def copy(self, name: str) -> tuple[Address, str | None]:
        """Copy a collection as it is committed, and return where the copy is. Its holders are dead."""
        ((number,),) = self.run(
            f"SELECT number FROM {self.name}.pc_collections WHERE name = %(name)s", name=name
        )
        copy = self._make()
        for table in (*_SHARED, *self._other_tables(), f"pc_{number}"):
            self._copy_table(table, copy)
        self.run(f"UPDATE {copy}.pc_holders SET beat = NULL")
        return self._of(copy)

    def someone_waits_for_a_lock(self) -> bool:
        """Tell whether a transaction of this place waits for a lock of another one."""
        if self.kind == MYSQL:
            text = (
                "SELECT count(*) FROM information_schema.innodb_trx JOIN information_schema.processlist"
                " ON id = trx_mysql_thread_id WHERE trx_state = 'LOCK WAIT' AND db = %(name)s"
            )
            # The server shows what is new only to one that has not asked for a tenth of a second.
            threading.Event().wait(0.15)
        else:
            waits = "wait_event_type = 'Lock' AND strpos(query, %(name)s) > 0"
            text = f"SELECT count(*) FROM pg_stat_activity WHERE {waits}"
        ((count,),) = self.run(text, name=self.name)
        return int(count) > 0

    def empty(self, names: Iterable[str]) -> None:
        """Empty these collections, as if they had just been made."""
        for name in names:
            ((number,),) = self.run(
                f"SELECT number FROM {self.name}.pc_collections WHERE name = %(name)s", name=name
            )
            if self.kind == MYSQL:
                self.run(f"DELETE FROM {self.name}.pc_{number}")
                self.run(f"ALTER TABLE {self.name}.pc_{number} AUTO_INCREMENT = 1")
            else:
                self.run(f"TRUNCATE {self.name}.pc_{number} RESTART IDENTITY")
        self.run(f"UPDATE {self.name}.pc_collections SET puts = 0")
        for table in ("pc_done", "pc_holders", "pc_credits"):
            self.run(f"DELETE FROM {self.name}.{table}")

    def _other_tables(self) -> list[str]:
        """Return the other shared tables: those of message queues, and that of waiters, if there are any."""
        rows = self.run(
            "SELECT concat(table_name, '') FROM information_schema.tables WHERE table_schema = %(schema)s",
            schema=self.name,
        )
        return [name for (name,) in rows if name in _OTHERS]

    def _copy_table(self, table: str, copy: str) -> None:
        old, new = f"{self.name}.{table}", f"{copy}.{table}"
        if self.kind == MYSQL:
            self.run(f"CREATE TABLE {new} LIKE {old}")
        else:
            self.run(f"CREATE TABLE {new} (LIKE {old} INCLUDING ALL)")
        self.run(f"INSERT INTO {new} SELECT * FROM {old}")
        if table in _WITHOUT_IDS:
            return
        if self.kind == MYSQL:
            ((following,),) = self.run(
                "SELECT auto_increment FROM information_schema.tables"
                " WHERE table_schema = %(schema)s AND table_name = %(table)s",
                schema=self.name,
                table=table,
            )
            self.run(f"ALTER TABLE {new} AUTO_INCREMENT = {following}")
        else:
            ((sequence,),) = self.run(f"SELECT pg_get_serial_sequence('{old}', 'id')")
            following = f"pg_get_serial_sequence('{new}', 'id')"
            self.run(f"SELECT setval({following}, last_value, is_called) FROM {sequence}")

    def close(self) -> None:
        """Remove everything."""
        for name in self._names:
            self.run(f"DROP DATABASE {name}" if self.kind == MYSQL else f"DROP SCHEMA {name} CASCADE")
        self.disconnect()
