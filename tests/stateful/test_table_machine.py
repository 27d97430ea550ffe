"""The state machine of a table, and that of a store, on the tables that there are."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import hypothesis
import pytest
from hypothesis.stateful import run_state_machine_as_test

from persistcoll.engine.records import ClaimPolicy
from persistcoll.testing import FifoStores, StoreMachine, TableMachine
from tests.conformance.tables import MemoryTables, SQLiteMemoryTables, SQLiteTables
from tests.conformance.wrong import WRONG
from tests.stateful.test_machines import PLACE, run


def table_machine(make):
    """Of the tables that ``make`` opens in a directory."""

    class Machine(TableMachine):
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
    run(table_machine(lambda directory: MemoryTables()), request, 100)


def test_the_model_as_a_store(request):
    run(store_machine(lambda directory: MemoryTables()), request, 50)


# A few, to see that it sees at all: it is slower at it than the laws, but looks where nobody thought of.
@pytest.mark.parametrize("name", ["S4 TakesTheFirstForAnyId", "T1 NeverDead", "T3 NeverDelays"])
def test_a_wrong_table_is_seen(name, request):
    _, make = WRONG[name]
    machine = hypothesis.seed(request.getfixturevalue("seed"))(table_machine(lambda _: MemoryTables(make)))
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
    run(table_machine(SQLiteTables), request, 60)


@pytest.mark.long
@pytest.mark.parametrize("options", [{}, {"durability": "power"}, {"sealed": True}], ids=str)
def test_sqlite_at_length(options, request):
    run(table_machine(lambda directory: SQLiteTables(directory, **options)), request, 400)


@pytest.mark.long
def test_sqlite_in_two_processes(elsewhere, request):
    run(table_machine(lambda directory: SQLiteTables(directory, elsewhere=elsewhere)), request, 200)


@pytest.mark.slow
def test_sqlite_in_memory(request):
    run(table_machine(lambda directory: SQLiteMemoryTables()), request, 100)


@pytest.mark.slow
def test_sqlite_as_a_store(request):
    run(store_machine(SQLiteTables), request, 150)
