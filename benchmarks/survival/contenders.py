"""The contenders as the faults see them: processes that put and get, and the server, where there is one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.machine import installed

__all__ = ["CONTENDERS", "Child", "Contender", "Setting", "redis_version", "wait_until"]

_ROOT = Path(__file__).parents[2]
_PATIENCE = 60.0


class Child:
    """A process of :mod:`benchmarks.survival.child` that has the contender open.

    :ivar error: why it could not open the contender; ``None`` if it could.
    """

    def __init__(self, setting: Setting) -> None:
        words = [setting.contender.name, str(setting.directory), str(setting.socket)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.survival.child", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=_ROOT,
            env={**os.environ, **setting.environment},
        )
        opened = self.answer() or {"error": "the process died"}
        self.error: str | None = opened["error"]

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.kill()

    def send(self, do: str, **order: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **order}).encode() + b"\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any] | None:
        """Return what the process says next; ``None`` if it died instead."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return json.loads(line) if line else None

    def ask(self, do: str, **order: Any) -> dict[str, Any] | None:
        if self.error is not None:
            return {"error": self.error, "errors": [self.error], "got": [], "done": 0}
        self.send(do, **order)
        return self.answer()

    def kill(self) -> None:
        self._process.kill()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._process.stdout, self._process.stdin:
            pass
        self._process.wait()


@dataclass
class Setting:
    """One contender in one fresh directory, with its server if it has one."""

    contender: Contender
    directory: Path
    socket: Path
    server: subprocess.Popen[bytes] | None = None
    environment: dict[str, str] = field(default_factory=dict)

    def child(self) -> Child:
        return Child(self)

    def start(self) -> bool:
        """Start the server, and tell whether it answers."""
        if not self.contender.server:
            return True
        self.socket.unlink(missing_ok=True)
        self.server = subprocess.Popen(
            ["redis-server", "--port", "0", "--unixsocket", str(self.socket), *self.contender.server],
            cwd=self.directory,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        return wait_until(self._answers, 20) and self.alive

    def _answers(self) -> bool:
        return not self.alive or self.call("PING") == "PONG"

    @property
    def alive(self) -> bool:
        """Whether the server runs, if there has to be one."""
        return not self.contender.server or (self.server is not None and self.server.poll() is None)

    def call(self, *words: str) -> str:
        """Ask the server by its own command-line program."""
        done = subprocess.run(
            ["redis-cli", "-s", str(self.socket), *words], check=False, capture_output=True, text=True
        )
        return done.stdout.strip()

    def stop(self, signal_number: int = signal.SIGTERM) -> None:
        """End the server: by default as an operator does, which lets it save."""
        if self.server is not None:
            self.server.send_signal(signal_number)
            try:
                self.server.wait(20)
            except subprocess.TimeoutExpired:  # It refuses to end while it cannot save.
                self.server.kill()
                self.server.wait()
            self.server = None

    def get(self, count: int | None = None, **how: Any) -> dict[str, Any]:
        """Get and acknowledge what is there in a fresh process: all of it, or so many."""
        with self.child() as child:
            found = child.ask("get", count=count, **how) or {"got": [], "errors": ["the process died"]}
            child.ask("close")
            return found


class CelerySetting(Setting):
    """Gets by a worker: a program has no ``get``."""

    @property
    def log(self) -> Path:
        return self.socket.with_name("log")

    @contextmanager
    def worker(self, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
        command = [sys.executable, "-m", "celery", "-A", "benchmarks.survival.celery_app", "worker"]
        options = ["--concurrency=1", "--without-gossip", "--without-mingle", "--loglevel=WARNING"]
        name = f"--hostname=w{time.monotonic_ns()}@here"
        with open(self.socket.with_name("worker.log"), "ab") as output:
            process = subprocess.Popen(
                [*command, *options, name],
                stdout=output,
                stderr=output,
                cwd=_ROOT,
                env={**os.environ, **self.environment, **environment},
                start_new_session=True,
            )
        try:
            yield process
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def failures(self) -> list[str]:
        """Return what the workers logged as an error."""
        logged = self.socket.with_name("worker.log").read_text().splitlines()
        return [line.partition("] ")[2][:60] for line in logged if "ERROR/" in line or "CRITICAL/" in line]

    def lines(self, kind: str) -> list[str]:
        text = self.log.read_text() if self.log.exists() else ""
        return [line for line in text.splitlines() if line.startswith(kind)]

    def waiting(self) -> int:
        """Return how many tasks wait, or are with a worker, as the server says."""
        counts = [self.call("LLEN", "celery"), self.call("HLEN", "unacked")]
        return sum(int(count) for count in counts if count.isdigit())

    def is_done(self) -> bool:
        return self.waiting() == 0

    def drained(self, patience: float = 20.0) -> list[str]:
        """Let the running workers go on until all is done, or until they do nothing for so many seconds.

        :return: all items that were worked on since the log began.
        """
        done, last = -1, time.monotonic()
        while not self.is_done() or done < len(self.lines("got ")):
            if done < len(self.lines("got ")):
                done, last = len(self.lines("got ")), time.monotonic()
            elif time.monotonic() > last + patience:
                break
            time.sleep(0.5)
        return [line.split()[1] for line in self.lines("got ")]

    def get(self, count: int | None = None, **how: Any) -> dict[str, Any]:
        self.log.unlink(missing_ok=True)
        with self.worker() as process:
            if not wait_until(lambda: process.poll() is not None or self.lines("got ") or self.is_done(), 20):
                return {"got": [], "errors": ["the worker does nothing for 20 seconds"]}
            return {"got": self.drained(), "errors": self.failures()}


def wait_until(is_so: Callable[[], object], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not (so := is_so()) and time.monotonic() < end:
        time.sleep(0.02)
    return bool(so)


@dataclass(frozen=True)
class Contender:
    """One library or server, in one configuration.

    :ivar packages: what has to be installed.
    :ivar server: the options of its server, if it has one.
    :ivar kind: how a program gets from it.
    :ivar environment: set for its processes.
    """

    name: str
    packages: Sequence[str]
    server: Sequence[str] = ()
    kind: type[Setting] = Setting
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def missing(self) -> list[str]:
        """What this machine lacks for it."""
        lacks = [name for name in self.packages if installed(name) is None]
        return lacks + (["redis-server"] if self.server and shutil.which("redis-server") is None else [])

    @contextmanager
    def setting(self, directory: Path) -> Iterator[Setting]:
        """Give a setting in a directory, with its server running."""
        with tempfile.TemporaryDirectory() as apart:  # The server's socket does not lie on the faulty disk.
            setting = self.kind(self, directory, Path(apart) / "s")
            setting.environment = {
                "SURVIVAL_SOCKET": str(setting.socket),
                "SURVIVAL_LOG": str(Path(apart) / "log"),
                **self.environment,
            }
            directory.mkdir(exist_ok=True)
            setting.start()
            try:
                yield setting
            finally:
                setting.stop(signal.SIGKILL)


_SNAPSHOTS, _ALWAYS = ("--appendonly", "no"), ("--appendonly", "yes", "--appendfsync", "always")
CONTENDERS = [
    Contender("persistcoll Queue", ["persistcoll"]),
    Contender("persistcoll SQLiteQueue", ["persistcoll"]),
    Contender("persistcoll SQLiteAckQueue", ["persistcoll"]),
    Contender("persist-queue Queue", ["persist-queue"]),
    Contender("persist-queue SQLiteQueue", ["persist-queue"]),
    Contender("persist-queue SQLiteAckQueue", ["persist-queue"]),
    Contender("diskcache Deque", ["diskcache"]),
    Contender("diskcache Deque, sqlite_synchronous=2", ["diskcache"]),
    Contender("litequeue", ["litequeue"]),
    Contender("litequeue, synchronous=FULL", ["litequeue"]),
    Contender("huey SqliteHuey", ["huey"]),
    Contender("Redis list", ["redis"], _SNAPSHOTS),
    Contender("Redis list, appendfsync always, LMOVE", ["redis"], _ALWAYS),
    Contender("Celery + Redis", ["celery", "redis"], _SNAPSHOTS, CelerySetting),
    Contender(
        "Celery + Redis, appendfsync always, task_acks_late",
        ["celery", "redis"],
        _ALWAYS,
        CelerySetting,
        {"SURVIVAL_LATE": "1"},
    ),
]


def redis_version() -> str | None:
    """Return the version of the server, or ``None`` if there is none."""
    if shutil.which("redis-server") is None:
        return None
    done = subprocess.run(["redis-server", "--version"], check=True, capture_output=True, text=True)
    return next((word[2:] for word in done.stdout.split() if word.startswith("v=")), None)
