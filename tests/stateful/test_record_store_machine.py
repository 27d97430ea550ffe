"""The state machines of record stores and of queue stores, on the record stores of persistcoll."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import hypothesis
import pytest
from hypothesis.stateful import run_state_machine_as_test

from persistcoll.engine.memory.server_record_store import MemoryServerState
from persistcoll.engine.records import ClaimPolicy
from persistcoll.testing import Capabilities, FifoStores, RecordStoreMachine, StoreMachine
from tests.conformance.record_stores import (
    MemoryRecordStores,
    MemoryServerRecordStores,
    SQLiteMemoryRecordStores,
    SQLiteRecordStores,
)
from tests.conformance.server_record_stores import ServerRecordStores
from tests.conformance.wrong import WRONG
from tests.servers.places import KINDS, need_server
from tests.stateful.test_machines import PLACE, run


def record_store_machine(make):
    """Make a machine for the record stores that ``make`` opens in a directory."""

    class Machine(RecordStoreMachine):
        def tables(self):
            self.directory = Path(tempfile.mkdtemp(dir=PLACE))
            self.made = make(self.directory)
            return self.made

        def teardown(self):
            super().teardown()
            self.made.close()
            shutil.rmtree(self.directory)

    return Machine


def store_machine(make):
    class Machine(StoreMachine):
        def stores(self):
            self.directory = Path(tempfile.mkdtemp(dir=PLACE))
            self.made = make(self.directory)
            return FifoStores(self.made, retry=ClaimPolicy(lease=3600.0))

        def teardown(self):
            super().teardown()
            self.made.close()
            shutil.rmtree(self.directory)

    return Machine


def test_the_model(request):
    run(record_store_machine(lambda directory: MemoryRecordStores()), request, 40)


class _SettableServers(MemoryServerRecordStores):
    """A server whose clock the machine sets, and whose ids come in the order of the calls, as the model's."""

    capabilities = Capabilities(processes=False)

    def __init__(self) -> None:
        super().__init__()
        self.now = 1e9

    def open(self, name, discipline, retry):
        if name not in self.states:
            self.states[name] = MemoryServerState(lambda: self.now, patience=0.0, id_block=1, loss=0.2)
        return super().open(name, discipline, retry)

    def advance(self, seconds):
        self.now += seconds


@pytest.mark.long
def test_a_server_whose_answers_are_lost(request):
    run(record_store_machine(lambda directory: _SettableServers()), request, 100)


def test_the_model_as_a_store(request):
    run(store_machine(lambda directory: MemoryRecordStores()), request, 30)


# A few wrong stores, to show that the machine notices them. It is slower than the laws, but tries what no law
# names.
@pytest.mark.parametrize("name", ["S4 ClaimsTheFirstForAnyId", "T1 NeverDead", "T3 NeverDelays"])
def test_a_wrong_record_store_is_seen(name, request):
    _, make = WRONG[name]
    machine = hypothesis.seed(request.getfixturevalue("seed"))(
        record_store_machine(lambda _: MemoryRecordStores(make))
    )
    settings = hypothesis.settings(
        max_examples=300,
        stateful_step_count=50,
        deadline=None,
        database=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    with pytest.raises(AssertionError):
        run_state_machine_as_test(machine, settings=settings)


def test_sqlite(request):
    run(record_store_machine(SQLiteRecordStores), request, 30)


@pytest.mark.long
@pytest.mark.parametrize("options", [{}, {"durability": "power"}, {"sealed": True}], ids=str)
def test_sqlite_at_length(options, request):
    run(record_store_machine(lambda directory: SQLiteRecordStores(directory, **options)), request, 150)


@pytest.mark.long
def test_sqlite_in_two_processes(store_process, request):
    run(
        record_store_machine(lambda directory: SQLiteRecordStores(directory, store_process=store_process)),
        request,
        80,
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_server(kind, request):
    need_server(kind)
    run(record_store_machine(lambda directory: ServerRecordStores(kind, True)), request, 5)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("starts_at_floor", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_server_at_length(kind, starts_at_floor, request):
    need_server(kind)

    def make(directory):
        stores = ServerRecordStores(kind, True, starts_at_floor)
        if starts_at_floor:
            # A look from the floor finds late what another object has put or returned in front of it.
            stores.capabilities = replace(stores.capabilities, handles=False)
        return stores

    run(record_store_machine(make), request, 20)


@pytest.mark.long
@pytest.mark.slow
def test_sqlite_in_memory(request):
    run(record_store_machine(lambda directory: SQLiteMemoryRecordStores()), request, 100)


@pytest.mark.long
@pytest.mark.slow
def test_sqlite_as_a_store(request):
    run(store_machine(SQLiteRecordStores), request, 150)
