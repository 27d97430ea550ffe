"""A server that only reads, as a standby does: it is read from, and each write says what to name instead."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

import persistcoll
from persistcoll import BackendUnavailableError, PDict
from persistcoll.servers.address import MYSQL
from tests.servers.own_server import OwnServer
from tests.servers.places import KINDS

ONLY_READS = r"the transaction is read-only, or the server (is|a standby): name one that may be written to"


@pytest.fixture(params=KINDS)
def server(request) -> Iterator[OwnServer]:
    server = OwnServer(request.param)
    yield server
    server.close()


def become_standby(server: OwnServer) -> None:
    server.stop()
    if server.kind == MYSQL:
        server.start("read-only=1")
        return
    # What a primary would send never comes.
    signal = server.data / "standby.signal"
    signal.touch()
    shutil.copystat(server.data / "PG_VERSION", signal)
    owner = (server.data / "PG_VERSION").stat()
    shutil.chown(signal, owner.st_uid, owner.st_gid)
    server.start()


def test_a_standby_is_read_and_says_that_it_cannot_be_written(server):
    url = server.address.shown
    if server.kind == MYSQL:  # which lets its administrators write
        server.run("CREATE USER ann@'%'")
        server.run("GRANT ALL ON test.* TO ann@'%'")
        server.run("CREATE USER ann@localhost")
        server.run("GRANT ALL ON test.* TO ann@localhost")
        url = url.replace("root@", "ann@")
    queues: Any = persistcoll.MySQLQueue if server.kind == MYSQL else persistcoll.PostgresQueue
    with queues("jobs", url) as queue, PDict[str, int](url, "ages") as ages:
        queue.put("x")
        ages["ann"] = 41
    become_standby(server)
    # To open a queue is to see to what dead processes have claimed.
    for name in ("jobs", "another"):
        with pytest.raises(BackendUnavailableError, match=ONLY_READS):
            queues(name, url, timeout=2.0)
    with PDict[str, int](url, "ages", timeout=2.0) as ages:
        assert (ages["ann"], len(ages), dict(ages.items())) == (41, 1, {"ann": 41})
        for write in (
            lambda: ages.incr("ann"), lambda: ages.update(bob=17), ages.popitem, ages.clear,
            lambda: ages.pop("ann"), lambda: persistcoll.drop(url, "ages"),
        ):  # fmt: skip
            with pytest.raises(BackendUnavailableError, match=ONLY_READS):
                write()
        assert dict(ages.items()) == {"ann": 41}
    told = {name: found.ready for name, found in persistcoll.collections(url).items()}
    assert told == {"jobs": 1, "ages": 1}
