"""Many processes on one queue, while processes and the server are killed and answers are lost."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.concurrency.workers import CONTEXT
from tests.servers import ack_workers
from tests.servers.own_server import OwnServer
from tests.servers.places import CLASSES, KINDS
from tests.servers.proxy import Proxy

PROCESSES = 4
LOSSES = 0.05
SECONDS = 240.0  # far more than anything here lasts


@pytest.fixture(params=KINDS)
def server(request) -> Iterator[OwnServer]:
    server = OwnServer(request.param)
    yield server
    server.close()


@pytest.fixture
def proxy(server, seed) -> Iterator[Proxy]:
    proxy = Proxy(server.address, LOSSES, seed)
    yield proxy
    proxy.close()


class Crew:
    """The processes of the test: one that puts, and others that work."""

    def __init__(self, server: OwnServer, proxy: Proxy, notes: Path, items: int, rng: random.Random) -> None:
        self.kind, self.where = CLASSES[server.kind], {"url": proxy.address.shown}
        self.notes, self.items, self.rng = notes, items, rng
        self.end = CONTEXT.Event()
        self.next = 1
        self.processes: dict[int, Any] = {}
        for number in range(PROCESSES + 1):
            self.begin(number)

    def begin(self, number: int) -> None:
        """Start the process of that number; 0 puts."""
        arguments = (self.kind, self.where, str(self.notes))
        seed = self.rng.getrandbits(32)
        if number == 0:
            process = CONTEXT.Process(
                target=ack_workers.put, args=(*arguments, self.next, self.items, seed), daemon=True
            )
        else:
            process = CONTEXT.Process(target=ack_workers.work, args=(*arguments, seed, self.end), daemon=True)
        process.start()
        self.processes[number] = process

    def kill(self, number: int) -> None:
        """Kill a process with SIGKILL, unless it has ended by itself, and start it again."""
        self.processes[number].kill()
        self.join(number)
        if number == 0:
            self.next = max(ack_workers.Account(self.notes).asked, default=0) + 1
        self.begin(number)

    def check(self, until: float) -> None:
        """Raise unless all are alive, and the time has not come."""
        assert time.monotonic() < until, "it lasts too long"
        ended = {number: each.exitcode for number, each in self.processes.items() if each.exitcode}
        assert not ended, ended

    def join(self, number: int) -> int:
        """Wait for the end of a process, and return its code."""
        process = self.processes.pop(number)
        process.join(60)
        code = process.exitcode
        if code is None:
            process.kill()
            process.join()
        process.close()
        return -1 if code is None else int(code)

    def close(self) -> None:
        """Kill what is left."""
        for number, process in list(self.processes.items()):
            process.kill()
            self.join(number)


def run(server: OwnServer, proxy: Proxy, crew: Crew, steps: list[str]) -> None:
    """Take these steps while the processes are at work, and wait until all is finished."""
    pause, until = threading.Event(), time.monotonic() + SECONDS
    with ack_workers.opened(crew.kind, {"url": server.address.shown}) as queue:
        for at, step in enumerate(steps, 1):
            # Evenly spread over the work, whatever its speed.
            while queue.stats().done < crew.items * at / (len(steps) + 2):
                crew.check(until)
                pause.wait(0.02)
            if step == "server":
                server.kill()
                server.start()
            else:
                crew.kill(0 if step == "putter" else crew.rng.randint(1, PROCESSES))
        assert crew.join(0) == 0
        while queue.active_size():
            crew.check(until)
            pause.wait(0.02)
        crew.end.set()
        assert [crew.join(number) for number in range(1, PROCESSES + 1)] == [0] * PROCESSES
        rows = queue.queue()
    ack_workers.Account(crew.notes).check(rows)
    assert proxy.lost


def account_of(server: OwnServer, proxy: Proxy, notes: Path, items: int, steps: list[str], rng) -> None:
    crew = Crew(server, proxy, notes, items, rng)
    try:
        run(server, proxy, crew, steps)
    finally:
        crew.close()


def test_every_item_is_settled_once(server, proxy, tmp_path, rng):
    steps = ["worker", "server", "putter"]
    rng.shuffle(steps)
    account_of(server, proxy, tmp_path, 80, steps, rng)


@pytest.mark.long
def test_every_one_of_many_items_is_settled_once(server, proxy, tmp_path, rng):
    steps = ["worker"] * 10 + ["putter"] * 4 + ["server"] * 6
    rng.shuffle(steps)
    account_of(server, proxy, tmp_path, 1400, steps, rng)
