"""A database server of the tests' own, which they may kill: this machine's programs on a temporary directory.

The programs refuse to run as root. There they run as the user that their package has made, or as ``nobody``.
"""

from __future__ import annotations

import glob
import os
import pwd
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import pytest

from persistcoll.errors import StorageError
from persistcoll.servers.address import MYSQL, POSTGRESQL, Address
from persistcoll.servers.driver import ConnectionLostError
from persistcoll.servers.sessions import driver_of

__all__ = [
    "OwnServer",
    "free_port",
    "lacking_programs",
    "lend",
    "lend_by",
    "lend_until_its_end",
    "program_of",
    "user_for",
]

_SECONDS = 60.0  # far more than a start lasts
_PATH = os.pathsep.join(
    [
        *sorted(glob.glob("/usr/lib/postgresql/*/bin"), reverse=True),
        os.environ.get("PATH", os.defpath),
        "/usr/sbin",
        "/usr/local/sbin",
    ]
)
_PROGRAMS = {POSTGRESQL: ("initdb", "postgres"), MYSQL: ("mariadb-install-db", "mariadbd")}
_USERS = {POSTGRESQL: ("postgres", "nobody"), MYSQL: ("mysql", "nobody")}


def lacking_programs(kind: str) -> list[str]:
    """Return which programs of this kind of server are missing on this machine."""
    return [name for name in _PROGRAMS[kind] if program_of(name) is None]


def program_of(name: str) -> str | None:
    """Return the path of a server's program, which may lie where a user's PATH does not lead."""
    return shutil.which(name, path=_PATH)


def lend(kind: str) -> Address:
    """Start a server that stops by itself when this process has ended, and return its address."""
    return lend_by("tests.servers.own_server", kind)


def lend_by(module: str, *arguments: str, password: str | None = None) -> Address:
    """Start a server by a module that calls :func:`lend_until_its_end`, and return its address.

    It is no child of this process, which may fork, and whose tests look for children that were forgotten.

    :param password: for the module, in the variable ``PGPASSWORD``.
    """
    command = [sys.executable, "-m", module, *arguments, str(os.getpid())]
    known = {} if password is None else {"PGPASSWORD": password}
    done = subprocess.run(command, env={**os.environ, **known}, capture_output=True, text=True, check=False)
    assert "://" in done.stdout, done.stdout + done.stderr
    return replace(Address.parse(done.stdout.strip()), password=password)


class Lent(Protocol):
    """What is lent."""

    address: Address

    def close(self) -> None: ...


def lend_until_its_end(make: Callable[[], Lent], pid: int) -> None:
    """Make a server, write its address to the standard output, and close it when that process has ended."""
    process = os.pidfd_open(pid)
    if os.fork():
        return  # The server is a child of nobody, therefore.
    server = make()
    try:
        print(server.address.shown, flush=True)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        select.select([process], [], [])
    finally:
        server.close()


class OwnServer:
    """A server on a temporary directory and a free port. Each start uses the same ones.

    :param options: of the server: ``("max-allowed-packet=1M",)``.
    :param directory: an empty one that is used in place of a new one.
    :param port: one that is used in place of any free one.
    :ivar address: a superuser's.
    """

    def __init__(
        self, kind: str, *options: str, directory: str | None = None, port: int | None = None
    ) -> None:
        if lacking := lacking_programs(kind):
            pytest.skip("needs " + ", ".join(lacking))
        self.kind = kind
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self._user = user_for(kind)
        self._made = None if directory is not None else tempfile.mkdtemp(prefix="server_")
        self._directory = Path(directory or self._made or "")
        port = free_port() if port is None else port
        user = "root" if kind == MYSQL else "postgres"
        self.address = Address(kind, (("127.0.0.1", port),), user, None, "test")
        try:
            if self._user is not None:
                shutil.chown(self._directory, self._user, pwd.getpwnam(self._user).pw_gid)
            self._make()
        except BaseException:
            self.close()
            raise

    def _make(self) -> None:
        """Make its data and its database, and start it."""
        self._initialize()
        self.start()
        self.run("CREATE DATABASE test", "mysql" if self.kind == MYSQL else "postgres")

    @property
    def data(self) -> Path:
        """The directory of the data."""
        return self._directory / "data"

    def start(self, *options: str) -> None:
        """Start it, and wait until it takes connections.

        :param options: for this start alone.
        """
        program = program_of(_PROGRAMS[self.kind][1])
        assert program is not None
        ((_, port),) = self.address.hosts
        here = self._directory
        settings: tuple[str, ...]
        if self.kind == MYSQL:
            settings = (
                f"datadir={self.data}", f"port={port}", f"socket={here}/socket", f"pid-file={here}/pid",
                f"tmpdir={here}", "bind-address=127.0.0.1", "innodb-buffer-pool-size=32M",
                "innodb-log-file-size=16M", "skip-log-bin", *self._options, *options,
            )  # fmt: skip
            command = [program, "--no-defaults", *(f"--{setting}" for setting in settings)]
        else:
            settings = (
                f"port={port}", "listen_addresses=127.0.0.1", "unix_socket_directories=",
                "dynamic_shared_memory_type=mmap", "shared_buffers=16MB", *self._options, *options,
            )  # fmt: skip
            command = [program, "-D", str(self.data), *(f"-c{setting}" for setting in settings)]
        with open(here / "log", "ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=here, user=self._user)
        self._wait()

    def _wait(self) -> None:
        until, pause = time.monotonic() + _SECONDS, threading.Event()
        while True:
            try:
                # Not of the package: it retries, and it may be broken on purpose.
                driver_of(self.kind).connect(self._default, 1.0, True).close()
                return
            except (ConnectionLostError, StorageError) as error:
                assert self._process is not None
                if self._process.poll() is not None or time.monotonic() > until:
                    raise AssertionError(f"the server does not start: {self.log[-2000:]}") from error
            pause.wait(0.02)

    @property
    def _default(self) -> Address:
        database = "mysql" if self.kind == MYSQL else "postgres"
        return Address(self.kind, self.address.hosts, self.address.user, None, database)

    @property
    def log(self) -> str:
        """What it has written."""
        return (self._directory / "log").read_text(errors="replace")

    def run(self, text: str, database: str | None = None) -> list[Any]:
        """Run a statement on a connection of its own, and return its rows."""
        address = self.address if database is None else self._default
        connection = driver_of(self.kind).connect(address, 5.0, True)
        try:
            return connection.run(text).rows
        finally:
            connection.close()

    def kill(self) -> None:
        """Kill all of its processes with SIGKILL, as the kernel does without memory."""
        process, self._process = self._process, None
        assert process is not None
        # Stopped, so that it begins no other process meanwhile.
        os.kill(process.pid, signal.SIGSTOP)
        pids = [process.pid, *_children(process.pid)]
        for pid in pids:
            _kill(pid)
        process.wait()
        # It does not start again while one of them has its memory.
        pause = threading.Event()
        while any(_is_alive(pid) for pid in pids):
            pause.wait(0.002)

    @contextmanager
    def taking_no_connections(self) -> Iterator[None]:
        """Let PostgreSQL take no new connections meanwhile, and answer on those that are open."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self._process.pid, signal.SIGCONT)

    def stop(self) -> None:
        """Stop it in order, without waiting for its clients."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGINT if self.kind == POSTGRESQL else signal.SIGTERM)
            try:
                process.wait(_SECONDS)
            finally:
                process.kill()
                process.wait()

    def close(self) -> None:
        """Stop it, and remove its directory."""
        if self._process is None and self.kind == POSTGRESQL:
            self._remove_shared_memory()
        self.stop()
        if self._made is not None:
            shutil.rmtree(self._made)

    def _remove_shared_memory(self) -> None:
        """Remove what a killed server leaves until it starts again."""
        lock = self.data / "postmaster.pid"
        if lock.exists():
            key_and_id = lock.read_text().splitlines()[6]
            subprocess.run(["ipcrm", "-m", key_and_id.split()[1]], check=True)

    def _initialize(self) -> None:
        program = program_of(_PROGRAMS[self.kind][0])
        assert program is not None
        if self.kind == MYSQL:
            command = [
                program, "--no-defaults", f"--datadir={self.data}", f"--tmpdir={self._directory}",
                "--auth-root-authentication-method=normal", "--skip-test-db",
            ]  # fmt: skip
        else:
            command = [
                program, f"--pgdata={self.data}", "--username=postgres", "--auth=trust", "--encoding=UTF8",
                "--no-locale", "--no-sync",
            ]  # fmt: skip
        self._run_program(command)

    def _run_program(self, command: list[str]) -> None:
        done = subprocess.run(
            command, cwd=self._directory, user=self._user, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def user_for(kind: str) -> str | None:
    """Return the user as whom to run the server; ``None``: as the present one."""
    if os.geteuid() != 0:
        return None
    for name in _USERS[kind]:
        try:
            return pwd.getpwnam(name).pw_name
        except KeyError:
            pass
    pytest.skip(f"needs the user {' or '.join(_USERS[kind])}")


def free_port() -> int:
    """Return a port of this machine that no program listens at now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(each) for each in text.split()]


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _is_alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


if __name__ == "__main__":
    lend_until_its_end(lambda: OwnServer(sys.argv[1]), int(sys.argv[2]))
