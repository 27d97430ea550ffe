"""Processes that work on a queue until they are killed: ``python -m tests.crash.workers``.

Another module may be a server too: it calls :func:`serve` with a function of its own.

The server reads one JSON line per run from standard input, forks a worker for it (which is cheap, because
everything is imported) and answers with the worker's process id. What a worker asks and what was answered
goes as lines into the pipe whose descriptor the server was started with. Each line is one write, so a kill
loses no line.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import re
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

__all__ = ["Life", "Server", "say_early", "serve"]

_DEADLINE = 60.0


def say_early(say: Callable[[str], object], what: str) -> None:
    """Answer before the work, as a defect, and let so much time pass that many a cut comes in between."""
    say(what)
    time.sleep(0.01)


def work(say: Callable[[str], object], order: dict[str, Any]) -> None:
    """Do one run: open, then put and get at random until the process is killed.

    ``role``: ``"put"``, ``"get"`` or ``"both"``. ``first``: the first number to put.
    """
    rng = random.Random(order["seed"])
    options = {name: order[name] for name in ("durability", "autosave", "chunksize") if name in order}
    disk = None
    if order.get("quick"):  # The worker is killed and its power is not cut, so the page cache survives.
        disk = Disk()
        disk.sync = lambda fd: None
        disk.sync_directory = lambda path: None
    queue = Queue(order["path"], serializer="raw", _disk=disk, **options)
    scribe = Scribe(queue, say, order["first"])
    say("open")
    role = order["role"]
    patience = 1.0 if role == "get" else 0.0  # a lone worker gets no puts of others
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
                # Only the answer says which item it is: the one after the last.
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
    """Answer orders. ``work`` does one run; it gets a function to say something with, and its order."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # so that no process has to wait for the workers
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            sys.stdin.close()
            try:
                work(functools.partial(tell, pipe, order["name"]), order)
            except BaseException as error:  # the test in the parent fails with it
                tell(pipe, order["name"], f"error {type(error).__name__}: {error}")
            finally:
                os._exit(1)
        sys.stdout.write(json.dumps({"pid": pid}) + "\n")
        sys.stdout.flush()


class Life:
    """One run of a worker."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


class Server:
    """The server, as the test sees it.

    :param module: the module to run.
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
        """Wait for lines up to so many seconds; return all that are there, with their names."""
        if not select.select([self._pipe], [], [], seconds)[0]:
            return []
        *whole, self._rest = (self._rest + os.read(self._pipe, 1 << 16)).split(b"\n")
        pairs = (line.decode().partition(" ") for line in whole)
        return [(name, said) for name, _, said in pairs]

    def hear_and_kill(
        self, lives: list[Life], rng: random.Random, most: int, add: Callable[[str], object], begins: str
    ) -> None:
        """Hear what the workers say until a random time, kill them, and hear the rest.

        Mostly they are killed while all of them work, and sometimes while they begin.

        :param most: how many lines they say at most after the beginning.
        :param add: called with each line.
        :param begins: matches the line with which a worker has begun.
        """
        beginning = len(lives) if rng.random() < 0.8 else 0
        heard, enough = 0, rng.randrange(1, most)
        while beginning > 0 or heard < enough:
            said_now = self.lines(20)
            assert said_now, "nothing happens"
            heard = 0 if beginning > 0 else heard + len(said_now)
            for _, said in said_now:
                add(said)
                beginning -= re.match(begins, said) is not None
        for _, said in self.lines(rng.random() * 0.002):
            add(said)
        for _, said in self.bury(lives):
            add(said)

    def bury(self, lives: list[Life]) -> list[tuple[str, str]]:
        """Kill the workers, wait for their end, and return what they said last."""
        for life in lives:
            life.kill()
        deadline = time.monotonic() + _DEADLINE
        said = []
        for life in lives:
            # The workers are children of the server, which ignores them: a worker has ended when /proc lacks
            # it.
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
