"""What several modules need: the server that forks their workers, and a place for damaged stores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.workers import Server


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """Give a server of the workers in the module that the test's module calls ``WORKER``."""
    server = Server(request.module.WORKER)
    yield server
    server.close()


@pytest.fixture
def place(memory_path: Path) -> Path:
    """Give a directory in memory, into which a test lays the files of a store again and again."""
    return memory_path
