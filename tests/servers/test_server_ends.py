"""Queues whose server is killed, full or a standby: what they raise, and that they work on afterwards.

Each test has a server of its own.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

import persistcoll
from persistcoll.errors import BackendUnavailableError, ServerWarning, StaleClaimError, StorageError
from persistcoll.servers.address import MYSQL, POSTGRESQL
from tests.queues.waits import waiting
from tests.servers.calls import AFTER, CALLS, UNCHANGED, prepare
from tests.servers.losing import losing_connections
from tests.servers.own_server import OwnServer
from tests.servers.places import CLASSES, KINDS

MIB = 1 << 20
PATIENCE = 60.0


@pytest.fixture(params=KINDS)
def server(request) -> Iterator[OwnServer]:
    server = OwnServer(request.param)
    yield server
    server.close()


def opened(server: OwnServer, which: str = "AckQueue", **options: Any) -> Any:
    options = {"serializer": "json", "patience": PATIENCE, "timeout": 20.0, **options}
    options = {"name": "jobs", "url": server.address.shown, **options}
    return getattr(persistcoll, CLASSES[server.kind] + which)(**options)


# The server is killed in a call, and is there again.


# A crash may undo what these have done: on PostgreSQL their commits are asynchronous.
UNDONE = ("get", "get at once", "get_many", "close")


class KillAt:
    """Kills the server at one step of what runs between :meth:`arm` and :meth:`disarm`, each time the next.

    :ivar at: the step.
    :ivar taken: how many steps the last run has taken.
    """

    def __init__(self, server: OwnServer) -> None:
        self.server = server
        self.at = self.taken = 0
        self.is_armed = False

    def arm(self) -> None:
        self.at, self.taken, self.is_armed = self.at + 1, 0, True

    def disarm(self) -> None:
        self.is_armed = False

    def __call__(self, where: str) -> bool:
        if self.is_armed:
            self.taken += 1
            if self.taken == self.at:
                self.server.kill()
                self.server.start()
        return False


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.sampled(12)
def test_a_kill_in_a_call_undoes_nothing_and_repeats_nothing(server, call):
    """The server is killed at each step of the call in turn: before it gets a statement, and after it."""
    kill = KillAt(server)
    with losing_connections(kill):
        while kill.at <= kill.taken:
            with opened(server, name=f"jobs {kill.at}") as queue:
                got = prepare(queue)
                kill.arm()
                CALLS[call](queue, got)
                kill.disarm()
                with opened(server, name=queue.name) as other:
                    told = other.stats()
                    found = told.ready, told.claimed, told.done, told.failed
                    if call not in UNDONE or found != UNCHANGED:
                        assert found == AFTER.get(call, UNCHANGED), (
                            f"killed at {kill.at} of {kill.taken}: {found}"
                        )
                    if call != "close":  # It works on.
                        assert queue.put("last") is not None
                        while queue.get(timeout=20) != "last":
                            pass


# The tables that all collections share; MySQL has no waiters.
SHARED = {"pc_collections", "pc_credits", "pc_done", "pc_dropped", "pc_holders", "pc_waiters"}


@pytest.mark.long
def test_a_kill_while_a_queue_is_made_leaves_no_half_made_queue(server):
    kill = KillAt(server)
    with losing_connections(kill):
        while kill.at <= kill.taken:
            kill.arm()
            with opened(server, name=f"jobs {kill.at}") as queue:
                kill.disarm()
                queue.put(kill.at)
                assert queue.get() == kill.at
    rows = server.run("SELECT number, name FROM pc_collections ORDER BY number")
    assert [name.decode() if isinstance(name, bytes) else name for _, name in rows] == [
        f"jobs {number}" for number in range(1, kill.at + 1)
    ]
    found = server.run(
        "SELECT concat(table_name, '') FROM information_schema.tables WHERE table_name LIKE 'pc\\_%'"
    )
    tables, registered = {name for (name,) in found}, {f"pc_{number}" for number, _ in rows}
    assert registered < tables
    # MySQL commits after each statement. The next maker drops no table that may be that of a script.
    left = tables - registered - SHARED
    assert server.kind == MYSQL or not left
    assert all(server.run(f"SELECT count(*) FROM {name}") == [(0,)] for name in left)


# The server is killed between calls.


@pytest.mark.parametrize("call", ["ack", "ack_many", "nack", "ack_failed"])
@pytest.mark.sampled(4)
def test_a_claim_that_a_crash_has_undone_is_stale(call):
    """Its commit is asynchronous. The item is ready again, and its ack must not tell success."""
    server = OwnServer(POSTGRESQL, "wal_writer_delay=10s")
    try:
        with opened(server) as queue:
            queue.put("first")
            queue.ack(queue.get())  # It is a holder, which is on the device.
            for acked in itertools.count(1, 2):
                ids = queue.put_many(["a", "b"])
                got = queue.get_many(2)
                server.kill()
                server.start()
                if server.run("SELECT count(*) FROM pc_1 WHERE state = 1") == [(0,)]:
                    break
                # A claim that fills a page of the log is on the device at once.
                queue.ack_many(got)
                assert acked < 40
            with pytest.raises(StaleClaimError):
                CALLS[call](queue, got)
            assert queue.get_many(9) == ["a", "b"]
            assert queue.ack_many(ids=ids) == ids
            assert queue.acked_count() == acked + 2
    finally:
        server.close()


def test_a_holder_survives_a_crash(server):
    with opened(server) as queue, opened(server) as other:
        queue.put_many(["a", "b"])
        first = queue.get()
        queue.put("c")  # The claim is on the device, too.
        server.kill()
        server.start()
        assert other.resume_unack_tasks() == 0
        second = other.get()
        holders = {row for (row,) in server.run("SELECT holder FROM pc_holders")}
        assert len(holders) == 2
        assert queue.ack(first) == 1
        assert other.ack(second) == 2


def test_a_get_that_waits_survives_a_crash(server):
    with opened(server) as queue, opened(server) as other:
        got = waiting(lambda: queue.get(timeout=60))
        for _ in range(2):
            server.kill()
            server.start()
        other.put("late")
        assert got() == "late"


AWAY: dict[str, Callable[[Any, list[str]], object]] = {
    **CALLS,
    "empty": lambda queue, got: queue.empty(),
    "open": lambda queue, got: type(queue)("other", queue.url, timeout=0.1),
}


def test_while_the_server_is_away_each_call_says_so(server):
    queue = opened(server, timeout=0.1)
    got = prepare(queue)
    queue.put("e")
    server.kill()
    for name, call in AWAY.items():
        if name == "close":
            continue
        with pytest.raises(BackendUnavailableError, match=r"127\.0\.0\.1"):
            call(queue, got)
    server.start()
    # No call has done anything, and what this object has got is still its own.
    told = queue.stats()
    assert (told.ready, told.claimed, told.failed) == (3, 2, 1)
    assert queue.ack_many(got) == [2, 3]
    assert queue.get_many(9) == ["c", "d", "e"]
    queue.put("f")  # What was got is on the device, too.
    server.kill()
    begin = time.monotonic()
    queue.close()
    assert time.monotonic() - begin < 10
    server.start()
    with opened(server) as other:
        assert other.unack_count() == 3  # until patience is over


def test_a_received_item_comes_back_after_a_crash(server):
    with opened(server, "Queue") as queue:
        queue.put_many(["a", "b"])
        block = queue.receive()
        assert block.__enter__() == "a"
        server.kill()
        server.start()
        with pytest.raises(BackendUnavailableError, match="nothing of the transaction"):
            block.__exit__(None, None, None)
        with queue.receive() as item:
            assert item == "a"
        assert queue.get() == "b"
        assert queue.empty()


# A server that ends connections by itself.


def test_connections_that_were_idle_for_too_long_are_replaced():
    for server in (OwnServer(POSTGRESQL, "idle_session_timeout=200"), OwnServer(MYSQL, "wait-timeout=1")):
        try:
            with pytest.warns(ServerWarning, match="timeout"):
                queue = opened(server)
            with queue:
                queue.put_many("abc")
                for call in (lambda queue: queue.get(block=False), lambda queue: queue.put("d", False)):
                    assert queue._store._server._idle
                    threading.Event().wait(1.3 if server.kind == MYSQL else 0.4)
                    call(queue)
                assert queue.active_size() == 4
        finally:
            server.close()


def test_an_item_of_16_mib_is_an_item_where_packets_may_be_so_large():
    server = OwnServer(MYSQL, "max-allowed-packet=64M")
    try:
        with opened(server, serializer="raw") as queue:
            item = os.urandom(16 * MIB)
            queue.put(item)
            got = queue.get()
            assert got == item
            queue.nack(got)
            server.kill()
            server.start()
            assert queue.get() == item
    finally:
        server.close()


# A standby, which only reads.


def standby(server: OwnServer) -> tuple[dict[str, str], Callable[[], object]]:
    """Let the server only read, and return what names it, and a function that promotes it."""
    if server.kind == MYSQL:
        server.run("CREATE USER ann@'%' IDENTIFIED BY 'a'")
        server.run("CREATE USER ann@localhost IDENTIFIED BY 'a'")
        server.run("GRANT ALL ON test.* TO ann@'%'")
        server.run("GRANT ALL ON test.* TO ann@localhost")
        server.run("SET GLOBAL read_only = 1")
        ((_, port),) = server.address.hosts
        where = {"url": f"mysql://ann@127.0.0.1:{port}/test", "password": "a"}
        return where, lambda: server.run("SET GLOBAL read_only = 0")
    server.stop()
    (server.data / "standby.signal").touch()
    server.start()
    return {}, lambda: server.run("SELECT pg_promote()")


def test_a_standby_is_read_and_refuses_the_rest(server):
    with opened(server) as queue:
        queue.put_many("abc")
    where, promote = standby(server)
    with opened(server, auto_resume=False, timeout=1.0, **where) as queue:
        assert queue.qsize() == 3
        assert queue.peek() == "a"
        assert [row["data"] for row in queue.queue()] == ["a", "b", "c"]
        for call in (lambda: queue.put("d"), queue.get, queue.clear, queue.resume_unack_tasks):
            with pytest.raises(BackendUnavailableError, match="name one that may be written to"):
                call()
        with pytest.raises(BackendUnavailableError, match="name one that may be written to"):
            opened(server, name="another", timeout=1.0, **where)
        promote()
        queue.put("d")
        assert queue.get_many(9) == ["a", "b", "c", "d"]


# A full disk.


@pytest.mark.needs("root")
@pytest.mark.parametrize(("kind", "size"), [(POSTGRESQL, 110), (MYSQL, 140)])
def test_a_full_disk_is_told_and_loses_nothing(kind, size):
    directory = tempfile.mkdtemp(prefix="full_")
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}m,mode=755", "tmpfs", directory], check=True)
    server = None
    try:
        small = ("max_wal_size=32MB", "wal_recycle=off") if kind == POSTGRESQL else ()
        server = OwnServer(kind, *small, directory=directory)
        fill(server, directory)
    finally:
        if server is not None:
            server.close()
        subprocess.run(["umount", directory], check=True)
        os.rmdir(directory)


def fill(server: OwnServer, directory: str) -> None:
    """Put until the disk is full, make room, and get everything."""
    put = 0
    with opened(server, "Queue", serializer="raw", timeout=1.0) as queue:
        with suppress(StorageError):
            while True:
                queue.put(b"%d " % put + os.urandom(MIB))
                put += 1
        subprocess.run(["mount", "-o", "remount,size=600m", directory], check=True)
        server.kill()  # It may have ended by itself, because it had no room for its log.
        server.start()
        queue.put(b"last ")
        numbers = [queue.get(block=False).split(b" ", 1)[0] for _ in range(len(queue))]
        assert numbers[:put] == [b"%d" % number for number in range(put)]
        assert numbers[-1] == b"last"
        assert len(numbers) in (put + 1, put + 2)
