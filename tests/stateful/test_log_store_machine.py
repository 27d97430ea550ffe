"""The state machine of log stores, on those of persistcoll, and on broken ones."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from persistcoll.testing import LogStoreMachine
from tests.conformance.log_stores import CLOCKS, FileLogStores, MemoryLogStores
from tests.conformance.test_log_store_laws import WRONG, _Wrong
from tests.stateful.test_machines import PLACE, run

SIZES = [1, 3, 16384]


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """Restore the clock, which the factories of logs in files set."""
    for module in CLOCKS:
        monkeypatch.setattr(module, "_now", module._now)


class MemoryMachine(LogStoreMachine):
    def stores(self):
        return MemoryLogStores()


def file_machine(size: int, durability: Any) -> type[LogStoreMachine]:
    class FileMachine(LogStoreMachine):
        def stores(self):
            self.directory = Path(tempfile.mkdtemp(dir=PLACE))
            return FileLogStores(self.directory, durability, chunksize=size)

        def teardown(self):
            super().teardown()
            shutil.rmtree(self.directory)

    return FileMachine


def test_the_model_is_a_log_store(request):
    run(MemoryMachine, request, 80)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("durability", ["process", "power"])
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"chunksize-{size}")
def test_log_store(size, durability, request):
    run(file_machine(size, durability), request, 30)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("durability", ["process", "power"])
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"chunksize-{size}")
def test_log_store_at_length(size, durability, request):
    run(file_machine(size, durability), request, 100)


BROKEN = [
    "S3 nobody learns what was read",
    "S4 ids are used again",
    "J1 an append is lost",
    "J3 a commit moves back",
    "J3 a commit moves the reading place",
    "J4 what is needed is trimmed",
]


@pytest.mark.long
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_log_store_is_noticed(name, request):
    class Broken(LogStoreMachine):
        def stores(self):
            return _Wrong(WRONG[name][1])

    with pytest.raises((AssertionError, KeyError)):
        run(Broken, request, 500, phases=[hypothesis.Phase.generate])
