"""The state machines, on the stores and queues of persistcoll."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import ClassVar

import hypothesis
import pytest
from hypothesis.stateful import run_state_machine_as_test

from persistcoll.testing import StoreMachine
from tests.conformance.queue_stores import FileQueueStores, MemoryQueueStores
from tests.stateful.queue_machine import QueueMachine

# Synced files on a disk would take hours; the crash tests check when files are synced.
PLACE = "/dev/shm" if Path("/dev/shm").is_dir() else tempfile.gettempdir()
SIZES = [None, 1, *(pytest.param(size, marks=pytest.mark.long) for size in (2, 3, 4))]


def run(machine, request, examples, **options):
    """Run ``examples`` sequences, of 30 steps each, others in each run; 2,000 with --stress."""
    chosen = 2000 if request.config.getoption("--stress") else examples
    settings = hypothesis.settings(
        max_examples=chosen,
        stateful_step_count=30,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        **options,
    )
    run_state_machine_as_test(hypothesis.seed(request.getfixturevalue("seed"))(machine), settings=settings)


def file_machine(size, **options):
    class FileMachine(StoreMachine):
        def stores(self):
            self.directory = Path(tempfile.mkdtemp(dir=PLACE))
            return FileQueueStores(self.directory, chunksize=size, **options)

        def teardown(self):
            super().teardown()
            shutil.rmtree(self.directory)

    return FileMachine


class MemoryMachine(StoreMachine):
    def stores(self):
        return MemoryQueueStores()


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"chunksize-{size}")
def test_store(size, request):
    run(file_machine(size), request, 80)


@pytest.mark.long
def test_store_at_length(request):
    run(file_machine(None), request, 800)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("options", [{"sealed": True}, {"tempdir": True}, {"durability": "power"}], ids=str)
def test_store_opened_otherwise(options, request):
    run(file_machine(5, **options), request, 100)


def test_the_model_is_a_store(request):
    run(MemoryMachine, request, 50)


def queue_machine(size, autosave):
    class Machine(QueueMachine):
        place = PLACE
        options: ClassVar = {"durability": "process", "chunksize": size, "autosave": autosave}

    return Machine


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("autosave", [False, True], ids=["task_done", "autosave"])
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"chunksize-{size}")
def test_queue(size, autosave, request):
    run(queue_machine(size, autosave), request, 40)


@pytest.mark.long
def test_queue_at_length(request):
    run(queue_machine(None, False), request, 800)
