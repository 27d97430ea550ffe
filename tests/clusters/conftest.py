"""What the tests of clusters share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from persistcoll.servers.address import Address
from tests.clusters.chaos import PACE
from tests.conftest import MEASURED
from tests.servers import ack_workers
from tests.servers.crews import Crew
from tests.servers.proxy import Proxy

LOSSES = 0.05
MANY = 10**9  # items, more than are ever put


@pytest.fixture
def tell(record_property) -> Callable[[str], object]:
    """Return a function that shows a text at the end of the run."""
    return lambda text: record_property(MEASURED, text)


@pytest.fixture
def crew(tmp_path, rng, seed) -> Iterator[Callable[..., Crew]]:
    """Start processes that work on the servers of a cluster by way of proxies, which lose answers.

    Each process begins with another server than the one before.
    """
    made: list[Any] = []

    def start(
        addresses: Sequence[Address],
        kind: str,
        target: Callable[..., None] = ack_workers.work,
        **options: Any,
    ) -> Crew:
        proxies = [Proxy(address, LOSSES, seed + number) for number, address in enumerate(addresses)]
        made.extend(proxies)
        hosts = [proxy.address.hosts[0] for proxy in proxies]
        orders = [(*hosts[first:], *hosts[:first]) for first in range(len(hosts))]
        urls = [replace(addresses[0], hosts=order).shown for order in orders]
        notes = tmp_path / "notes"
        notes.mkdir()
        made.append(Crew(kind, urls, notes, target, MANY, rng, PACE, **options))
        return made[-1]  # type: ignore[no-any-return]

    yield start
    for each in reversed(made):
        each.close()
