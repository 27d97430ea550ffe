"""PgBouncer in front of a server of PostgreSQL, which tests may kill."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from persistcoll.servers.address import POSTGRESQL, Address
from tests.servers.own_server import free_port, lend_by, lend_until_its_end, program_of, user_for
from tests.servers.places import Place, need_server

__all__ = ["PooledPlace", "Pooler"]

_PROGRAM = "pgbouncer"
_SECONDS = 30.0  # far more than a start lasts
_SETTINGS = """\
[databases]
* = host={host} port={port} user={user}{password}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {own_port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {size}
server_login_retry = 1
{more}
"""


class Pooler:
    """A pooler on a free port, which gives a session of the server to another client after each transaction.

    Each start uses the same port. With another user than the server's superuser its sessions are that one's
    nevertheless.

    :param size: the sessions of the server for each database.
    :param more: settings of the pooler's own.
    :ivar address: the server's, by way of the pooler.
    """

    def __init__(self, server: Address, size: int = 2, *more: str) -> None:
        program = program_of(_PROGRAM)
        if program is None:
            pytest.skip(f"needs {_PROGRAM}")
        self._user = user_for(POSTGRESQL)
        self._process: subprocess.Popen[bytes] | None = None
        self._directory = Path(tempfile.mkdtemp(prefix="pooler_"))
        own_port = free_port()
        self.address = replace(server, hosts=(("127.0.0.1", own_port),))
        ((host, port),) = server.hosts
        password = "" if server.password is None else f" password='{server.password}'"
        settings = _SETTINGS.format(
            host=host,
            port=port,
            user=server.user,
            password=password,
            own_port=own_port,
            size=size,
            more="\n".join(more),
        )
        self._command = [program, "-q", str(self._directory / "settings")]
        try:
            (self._directory / "settings").write_text(settings)
            if self._user is not None:
                group = pwd.getpwnam(self._user).pw_gid
                for path in (self._directory, self._directory / "settings"):
                    shutil.chown(path, self._user, group)
            self.start()
        except BaseException:
            self.close()
            raise

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        with open(self._directory / "log", "ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, user=self._user)
        until, pause = time.monotonic() + _SECONDS, threading.Event()
        while True:
            try:
                socket.create_connection(self.address.hosts[0]).close()
                return
            except OSError as error:
                if self._process.poll() is not None or time.monotonic() > until:
                    raise AssertionError(f"the pooler does not start: {self.log[-2000:]}") from error
            pause.wait(0.01)

    @property
    def log(self) -> str:
        """What it has written."""
        return (self._directory / "log").read_text(errors="replace")

    def kill(self) -> None:
        """Kill it with SIGKILL."""
        process, self._process = self._process, None
        assert process is not None
        process.kill()
        process.wait()

    def restart(self) -> None:
        """Kill it, and start it again."""
        self.kill()
        self.start()

    def close(self) -> None:
        """Kill it, and remove its directory."""
        if self._process is not None:
            self.kill()
        shutil.rmtree(self._directory)


class PooledPlace(Place):
    """A schema of PostgreSQL for one test, which stores reach through a pooler.

    :param pooler: its address; otherwise one that ends with this process.
    """

    # The driver of callers would prepare statements.
    driver_options = {"prepare_threshold": None}  # noqa: RUF012 - nobody changes it

    def __init__(self, pooler: Address | None = None) -> None:
        self._pooler = _lent() if pooler is None else pooler
        super().__init__(POSTGRESQL)

    def _of(self, name: str) -> tuple[Address, str | None]:
        return self._pooler, name


@cache
def _lent() -> Address:
    """Return the address of a pooler with enough sessions for one test at a time."""
    server = need_server(POSTGRESQL)
    if program_of(_PROGRAM) is None:
        pytest.skip(f"needs {_PROGRAM}")
    return lend_by("tests.clusters.pooler", server.shown, password=server.password)


if __name__ == "__main__":
    _server = replace(Address.parse(sys.argv[1]), password=os.environ.get("PGPASSWORD"))
    lend_until_its_end(lambda: Pooler(_server, 10), int(sys.argv[2]))
