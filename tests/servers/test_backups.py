"""A dump by the server's own program, restored where the collections were removed: docs/how-to/backup.rst."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from persistcoll import PDict
from persistcoll.servers.address import MYSQL, POSTGRESQL
from tests.needs import need
from tests.servers.places import KINDS, Place


def run(place: Place, *words: str, stdin: Path | None = None) -> None:
    """Run a program of the server, which must succeed."""
    password = place.address.password or ""
    environment = os.environ | {"PGPASSWORD": password, "MYSQL_PWD": password}
    with open(stdin or os.devnull, "rb") as given:
        done = subprocess.run(words, stdin=given, env=environment, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()


def on_postgresql(place: Place, file: Path) -> Callable[[], None]:
    """Dump the place; return a function that removes everything there and restores it."""
    need("pg_dump", "psql")
    url = place.address.shown
    run(place, "pg_dump", "--table", f"{place.name}.pc_*", "--file", str(file), url)

    def restore() -> None:
        place.run(f"DROP SCHEMA {place.name} CASCADE")
        place.run(f"CREATE SCHEMA {place.name}")
        once = ("--single-transaction", "--set", "ON_ERROR_STOP=1")
        run(place, "psql", *once, "--file", str(file), url)

    return restore


def on_mysql(place: Place, file: Path) -> Callable[[], None]:
    """Do what :func:`on_postgresql` does."""
    need("mariadb-dump", "mariadb")
    ((host, port),) = place.address.hosts
    where = ("--host", host, "--port", str(port), "--user", str(place.address.user))
    run(place, "mariadb-dump", *where, "--single-transaction", "--result-file", str(file), place.name)

    def restore() -> None:
        place.run(f"DROP DATABASE {place.name}")
        place.run(f"CREATE DATABASE {place.name}")
        run(place, "mariadb", *where, place.name, stdin=file)

    return restore


DUMPS = {POSTGRESQL: on_postgresql, MYSQL: on_mysql}


@pytest.mark.parametrize("kind", KINDS)
def test_a_dump_is_restored(kind, tmp_path):
    place = Place(kind)
    try:
        where = {"serializer": "json", **place.where}
        jobs = place.class_of("AckQueue")("jobs", patience=1, **where)
        with jobs, PDict(where.pop("url"), "ages", **where) as ages:
            jobs.put_many(["claimed", "ready", "acked"])
            assert jobs.get() == "claimed"
            assert jobs.ack(jobs.get(id=3)) == 3
            ages["ann"] = 41
            # While they are in use:
            restore = DUMPS[kind](place, tmp_path / "dump.sql")
        restore()
        where = {"serializer": "json", **place.where}
        with place.class_of("AckQueue")("jobs", patience=1, create=False, **where) as jobs:
            assert {jobs.get(timeout=30), jobs.get(timeout=30)} == {"claimed", "ready"}
            assert jobs.acked_count() == 1
            assert jobs.put("new") == 4
        with PDict(where.pop("url"), "ages", create=False, **where) as ages:
            assert ages == {"ann": 41}
    finally:
        place.close()
