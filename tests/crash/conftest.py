"""The server that forks the workers of a module's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.crash.workers import Server


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """Give a server of the workers in the module that the test's module calls ``WORKER``."""
    server = Server(request.module.WORKER)
    yield server
    server.close()
