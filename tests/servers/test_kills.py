"""Many processes on one queue, while processes and the server are killed and answers are lost."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
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
    """The processes of the test: one that puts, and others that work.

    :param which: the class of the queue.
    :param target: what those do that work.
    """

    def __init__(
        self,
        server: OwnServer,
        proxy: Proxy,
        notes: Path,
        which: str,
        target: Callable[..., None],
        items: int,
        rng: random.Random,
    ) -> None:
        self.kind = which if which == "MessageQueue" else CLASSES[server.kind] + which
        self.where = {"url": proxy.address.shown}
        self.notes, self.target, self.items, self.rng = notes, target, items, rng
        self.end = CONTEXT.Event()
        self.next = 1
        self.processes: dict[int, Any] = {}
        for number in range(PROCESSES + 1):
            self.begin(number)

    def begin(self, number: int) -> None:
        """Start the process of that number; 0 puts."""
        seed = self.rng.getrandbits(32)
        target: Callable[..., None] = self.target
        arguments: tuple[Any, ...] = (seed, self.end)
        if number == 0:
            target, arguments = ack_workers.put, (self.next, self.items, seed)
        process = CONTEXT.Process(
            target=target, args=(self.kind, self.where, str(self.notes), *arguments), daemon=True
        )
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


def run(server: OwnServer, crew: Crew, steps: list[str]) -> Any:
    """Take these steps while the processes are at work, and wait until all is finished.

    :return: what the queue holds then.
    """
    pause, until = threading.Event(), time.monotonic() + SECONDS
    with ack_workers.opened(crew.kind, {"url": server.address.shown}) as queue:
        for at, step in enumerate(steps, 1):
            # Evenly spread over the work, whatever its speed.
            while queue.stats().gets < crew.items * at / (len(steps) + 2):
                crew.check(until)
                pause.wait(0.02)
            if step == "server":
                server.kill()
                server.start()
            else:
                crew.kill(0 if step == "putter" else crew.rng.randint(1, PROCESSES))
        assert crew.join(0) == 0
        while queue.unfinished_tasks:
            crew.check(until)
            pause.wait(0.02)
        crew.end.set()
        assert [crew.join(number) for number in range(1, PROCESSES + 1)] == [0] * PROCESSES
        return queue.queue()


@pytest.fixture
def crew(server, proxy, tmp_path, rng) -> Iterator[Callable[..., Crew]]:
    """Start the processes."""
    crews: list[Crew] = []

    def start(which: str, target: Callable[..., None], items: int) -> Crew:
        crews.append(Crew(server, proxy, tmp_path, which, target, items, rng))
        return crews[-1]

    yield start
    for each in crews:
        each.close()


SHORT = pytest.param(60, ["worker", "server", "putter"], id="some")
LONG = pytest.param(700, ["worker"] * 10 + ["putter"] * 4 + ["server"] * 6, id="many", marks=pytest.mark.long)


@pytest.mark.parametrize("which", ["AckQueue", "MessageQueue"])
@pytest.mark.parametrize(("items", "steps"), [SHORT, LONG])
def test_every_item_is_settled_once(server, proxy, crew, rng, items, steps, which):
    started = crew(which, ack_workers.work, items)
    rows = run(server, started, rng.sample(steps, len(steps)))
    ack_workers.Account(started.notes).check(rows)
    assert proxy.lost


@pytest.mark.parametrize(("items", "steps"), [SHORT, LONG])
def test_what_is_booked_in_the_transaction_that_gets_it_is_booked_once(
    server, proxy, crew, rng, items, steps
):
    server.run("CREATE TABLE booked (number int)")
    started = crew("Queue", ack_workers.book, items)
    rows = run(server, started, rng.sample(steps, len(steps)))
    assert rows == []
    ack_workers.Account(started.notes).check_booked([n for (n,) in server.run("SELECT number FROM booked")])
    assert proxy.lost
