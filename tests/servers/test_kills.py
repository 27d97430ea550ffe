"""Many processes on one queue, while processes and the server are killed and answers are lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.servers import ack_workers
from tests.servers.crews import PROCESSES, Crew
from tests.servers.own_server import OwnServer
from tests.servers.places import CLASSES, KINDS
from tests.servers.proxy import Proxy

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
        return crew.finish(queue, until)


@pytest.fixture
def crew(server, proxy, tmp_path, rng) -> Iterator[Callable[..., Crew]]:
    """Start the processes."""
    crews: list[Crew] = []

    def start(which: str, target: Callable[..., None], items: int) -> Crew:
        kind = which if which == "MessageQueue" else CLASSES[server.kind] + which
        notes = tmp_path / "notes"
        notes.mkdir()
        crews.append(Crew(kind, [proxy.address.shown], notes, target, items, rng))
        return crews[-1]

    yield start
    for each in crews:
        each.close()


SHORT = pytest.param(60, ["worker", "server", "putter"], id="some")
LONG = pytest.param(300, ["worker"] * 4 + ["putter"] * 2 + ["server"] * 3, id="many", marks=pytest.mark.long)


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
