"""A MariaDB Galera cluster of the tests' own: three servers of this machine, killed and cut off by tests."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pymysql
import pytest

from persistcoll.servers.address import MYSQL, Address
from tests.servers.own_server import OwnServer, free_port, program_of

__all__ = ["NODES", "Galera", "Health"]

NODES = 3
_PROVIDER = Path("/usr/lib/galera/libgalera_smm.so")
_SECONDS = 60.0  # far more than a node needs to join
# A node that is silent is left out after a second instead of five.
_TIMEOUTS = {
    "evs.keepalive_period": "PT0.2S",
    "evs.inactive_check_period": "PT0.2S",
    "evs.suspect_timeout": "PT1S",
    "evs.inactive_timeout": "PT3S",
    "evs.install_timeout": "PT3S",
    "gmcast.peer_timeout": "PT1S",
    "repl.causal_read_timeout": "PT5S",
}


class Health(NamedTuple):
    """What a node says of itself: whether it takes statements, and how many nodes it sees."""

    is_ready: bool
    size: int


class _Node(OwnServer):
    """One server of the cluster.

    :param ports: of the group's traffic, by the number of the node.
    """

    def __init__(self, number: int, ports: Sequence[int], *options: str) -> None:
        self.number = number
        self._ports = ports
        self._ist, self._sst = free_port(), free_port()
        super().__init__(MYSQL, *options)

    def _make(self) -> None:
        if self.number == 0:
            self._initialize()
            self.start("wsrep-new-cluster")
            self.run("CREATE DATABASE test", "mysql")
        else:  # It gets the data from another node.
            self.data.mkdir()
            if self._user is not None:
                os.chown(self.data, *self._owner())
            self.start()

    def _owner(self) -> tuple[int, int]:
        of = self._directory.stat()
        return of.st_uid, of.st_gid

    def start(self, *options: str) -> None:
        port = self._ports[self.number]
        provider = {
            "base_host": "127.0.0.1",
            "base_port": port,
            "gmcast.listen_addr": f"tcp://127.0.0.1:{port}",
            "ist.recv_addr": f"127.0.0.1:{self._ist}",
            "gcache.size": "16M",
            **_TIMEOUTS,
        }
        group = ",".join(f"127.0.0.1:{each}" for each in self._ports)
        super().start(
            "wsrep-on=ON",
            f"wsrep-provider={_PROVIDER}",
            f"wsrep-cluster-address=gcomm://{group}",
            "wsrep-cluster-name=tests",
            f"wsrep-node-name=node{self.number}",
            "wsrep-node-address=127.0.0.1",
            f"wsrep-sst-receive-address=127.0.0.1:{self._sst}",
            "wsrep-sst-method=rsync",
            "wsrep-provider-options=" + ";".join(f"{name}={value}" for name, value in provider.items()),
            "binlog-format=ROW",
            "innodb-autoinc-lock-mode=2",
            *options,
        )

    def run(self, text: str, database: str | None = None) -> list[Any]:
        # Not by the package's driver, which refuses a node that is cut off.
        ((host, port),) = self.address.hosts
        connection = pymysql.connect(
            host=host, port=port, user="root", database=database or "test", autocommit=True, connect_timeout=5
        )
        with connection, connection.cursor() as cursor:
            cursor.execute(text)
            return list(cursor.fetchall())

    def health(self) -> Health:
        """Return what it says of itself; a node that says nothing is not ready."""
        try:
            rows = dict(self.run("SHOW STATUS WHERE variable_name IN ('wsrep_ready', 'wsrep_cluster_size')"))
        except pymysql.MySQLError:
            return Health(False, 0)
        return Health(rows["wsrep_ready"] == "ON", int(rows["wsrep_cluster_size"]))


class Galera:
    """A cluster of three nodes, each on a temporary directory of its own.

    :param options: of each server.
    """

    def __init__(self, *options: str) -> None:
        if not _PROVIDER.exists():
            pytest.skip("needs galera-4")
        if program_of("rsync") is None:
            pytest.skip("needs rsync")
        self.nodes: list[_Node] = []
        try:
            self._begin(options)
        except AssertionError:  # Another program has taken one of the ports meanwhile.
            self._begin(options)

    def _begin(self, options: Sequence[str]) -> None:
        ports = [free_port() for _ in range(NODES)]
        self.nodes = []
        try:
            for number in range(NODES):
                self.nodes.append(_Node(number, ports, *options))
            self.wait_until_whole()
        except BaseException:
            self.close()
            raise

    def address(self, *numbers: int) -> Address:
        """Return the address of these nodes in this order; without any, of all."""
        nodes = [self.nodes[number] for number in numbers] or self.nodes
        return replace(nodes[0].address, hosts=tuple(node.address.hosts[0] for node in nodes))

    def health(self) -> list[Health]:
        """Return what each node says of itself."""
        return [node.health() for node in self.nodes]

    def wait_until_whole(self) -> None:
        """Wait until each node takes statements, and sees all."""
        self.wait(lambda: self.health() == [Health(True, NODES)] * NODES)

    def wait(self, is_so: Callable[[], bool]) -> None:
        """Wait until that is so."""
        until, pause = time.monotonic() + _SECONDS, threading.Event()
        while not is_so():
            assert time.monotonic() < until, self.health()
            pause.wait(0.05)

    def kill(self, number: int) -> None:
        """Kill all processes of a node with SIGKILL."""
        self.nodes[number].kill()

    def start(self, number: int) -> None:
        """Start a node that was killed, and wait until the cluster is whole."""
        self.nodes[number].start()
        self.wait_until_whole()

    def cut(self, number: int) -> None:
        """Cut a node off from the others, and wait until it has noticed."""
        self._isolate(number, 1)
        self.wait(lambda: not self.nodes[number].health().is_ready)

    def join(self, number: int) -> None:
        """Let a node that was cut off come back, and wait until the cluster is whole."""
        self._isolate(number, 0)
        self.wait_until_whole()

    def _isolate(self, number: int, value: int) -> None:
        self.nodes[number].run(f"SET GLOBAL wsrep_provider_options = 'gmcast.isolate={value}'")

    def close(self) -> None:
        """Stop all nodes, and remove their directories."""
        with ThreadPoolExecutor(NODES) as pool:
            list(pool.map(_Node.close, self.nodes))
