"""Processes that work on a queue until they are killed: ``python -m tests.crash.workers``.

Another module may be such a server as well: it calls :func:`serve` with its own function.

The server reads one JSON line per life from standard input, forks a worker for it (cheap, as everything is
imported) and answers with the worker's process id, then with ``ended``. What a worker asks and what was
answered goes as lines into the pipe whose descriptor the server was started with; each line is one write,
so that a kill loses none that was said.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from persistcoll import Empty, Queue
from persistcoll.disk.calls import Disk
from tests.crash.accounts import Scribe, number_of

__all__ = ["Life", "Server", "serve"]

_DEADLINE = 60.0


def work(say: Callable[[str], object], order: dict[str, Any]) -> None:
    """One life: open, then put and get at random until somebody ends it.

    ``role``: ``"put"``, ``"get"`` or ``"both"``. ``first``: the first number to put.
    """
    rng = random.Random(order["seed"])
    options = {name: order[name] for name in ("durability", "autosave", "chunksize") if name in order}
    disk = None
    if order.get("quick"):  # killed, not cut off from power: the page cache survives
        disk = Disk()
        disk.sync = lambda fd: None
        disk.sync_directory = lambda path: None
    queue = Queue(order["path"], serializer="raw", _disk=disk, **options)
    scribe = Scribe(queue, say, order["first"])
    say("open")
    role = order["role"]
    patience = 1.0 if role == "get" else 0.0  # alone, nobody else puts
    while True:
        verb = rng.randrange(10)
        if role == "put" or (role == "both" and verb < 5):
            if verb % 3:
                scribe.put()
            else:
                scribe.put_many(rng.randrange(1, 5))
            continue
        try:
            if options.get("autosave"):
                # Which one it will be is known only from the answer: the one after the last.
                say("ask get 0 0")
                number = number_of(queue.get(timeout=patience))
                say(f"ok get {number} {number}")
            elif scribe.hand and verb % 2:
                scribe.done()
            else:
                scribe._received([queue.get(timeout=patience)])
        except Empty:
            pass


def tell(pipe: int, name: str, said: str) -> None:
    os.write(pipe, f"{name} {said}\n".encode())


def serve(pipe: int, work: Callable[[Callable[[str], object], dict[str, Any]], None]) -> None:
    """Answer orders; ``work`` is one life, given what to say with, and its order."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # so that nobody has to wait for them
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            sys.stdin.close()
            try:
                work(functools.partial(tell, pipe, order["name"]), order)
            except BaseException as error:  # tell the parent, whose test it fails
                tell(pipe, order["name"], f"error {type(error).__name__}: {error}")
            finally:
                os._exit(1)
        sys.stdout.write(json.dumps({"pid": pid}) + "\n")
        sys.stdout.flush()


class Life:
    """A worker."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


class Server:
    """The server, from the side of the test.

    :param module: the one to run.
    """

    def __init__(self, module: str = "tests.crash.workers") -> None:
        self._pipe, pipe = os.pipe()
        os.set_blocking(self._pipe, False)
        self._rest = b""
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, str(pipe)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[pipe],
            cwd=os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))),
        )
        os.close(pipe)

    def start(self, name: str, path: str, first: int, seed: int, role: str = "both", **options: Any) -> Life:
        order = {"name": name, "path": path, "first": first, "seed": seed, "role": role, **options}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()
        return Life(json.loads(self._process.stdout.readline())["pid"])

    def lines(self, seconds: float) -> list[tuple[str, str]]:
        """Names and lines that came within so long: as soon as there are any, all that are there."""
        if not select.select([self._pipe], [], [], seconds)[0]:
            return []
        *whole, self._rest = (self._rest + os.read(self._pipe, 1 << 16)).split(b"\n")
        pairs = (line.decode().partition(" ") for line in whole)
        return [(name, said) for name, _, said in pairs]

    def bury(self, lives: list[Life]) -> list[tuple[str, str]]:
        """Kill them, wait until they are gone, and return what they said last."""
        for life in lives:
            life.kill()
        deadline = time.monotonic() + _DEADLINE
        said = []
        for life in lives:
            # They are the server's children, which ignores them: gone when there is no such process.
            while os.path.exists(f"/proc/{life.pid}"):
                said += self.lines(0.0005)
                assert time.monotonic() < deadline, f"process {life.pid} does not end"
        while more := self.lines(0):
            said += more
        return said

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(_DEADLINE)
        self._process.stdout.close()
        os.close(self._pipe)


if __name__ == "__main__":
    serve(int(sys.argv[1]), work)
