"""The state machines of pair stores and dicts, on those of persistcoll."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import rule

from persistcoll.dicts.pdict import PDict
from persistcoll.testing.laws.pair_store_harness import contents
from persistcoll.testing.machines.pair_store import PairStoreMachine
from tests.conformance.pair_stores import BufferedPairStores, MemoryPairStores, SQLitePairStores
from tests.conformance.server_pair_stores import ServerPairStores
from tests.pdict.conftest import InMemory
from tests.pdict.subprocess_dict import RemoteDict
from tests.servers.places import KINDS, need_server
from tests.stateful.dict_machine import DictMachine
from tests.stateful.test_machines import PLACE, run


class MemoryMachine(PairStoreMachine):
    def mappings(self):
        return MemoryPairStores()


class GatheringMachine(PairStoreMachine):
    def mappings(self):
        return BufferedPairStores()

    @rule(seconds=st.sampled_from([1.0, 6.0, 30.0]))
    def advance(self, seconds):
        """Let time pass, and let the model follow the buffer.

        A replaced pair that expires in the store before the commit comes as a new one.
        """
        super().advance(seconds)
        found = contents(self.mapping)
        if [pair[:2] for pair in found] != [pair[:2] for pair in self.model.pairs()]:
            state, last = self.state, self.state.last_serial
            state.rows = {
                pair.key: state.rows[pair.key]._replace(serial=serial, name=pair.original_key)
                for serial, pair in enumerate(found, start=last + 1)
            }
            state.last_serial += len(found)


class SQLiteMachine(PairStoreMachine):
    def mappings(self):
        self.directory = Path(tempfile.mkdtemp(dir=PLACE))
        return SQLitePairStores(self.directory)

    def teardown(self):
        super().teardown()
        shutil.rmtree(self.directory)


class ServerMachine(PairStoreMachine):
    kind: ClassVar[str]

    def mappings(self):
        self.stores = ServerPairStores(self.kind, True)
        return self.stores

    def teardown(self):
        super().teardown()
        self.stores.close()


def test_the_model_is_a_pair_store(request):
    run(MemoryMachine, request, 30)


def test_gathering(request):
    run(GatheringMachine, request, 30)


@pytest.mark.long
def test_gathering_for_long(request):
    run(GatheringMachine, request, 200)


def test_pair_store(request):
    run(SQLiteMachine, request, 25)


@pytest.mark.long
def test_pair_store_for_long(request):
    run(SQLiteMachine, request, 200)


def on_server(kind):
    return type("Machine", (ServerMachine,), {"kind": kind})


@pytest.mark.parametrize("kind", KINDS)
def test_pair_store_on_a_server(kind, request):
    need_server(kind)
    run(on_server(kind), request, 3)


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_pair_store_on_a_server_for_long(kind, request):
    need_server(kind)
    run(on_server(kind), request, 30)


class Model(DictMachine):
    """A dict over the reference pair store, which a crash cannot change."""

    def open_all(self):
        made = InMemory()
        made.update(self.committed)
        return [made]

    def crash(self):
        pass


def test_dict_over_the_model(request):
    run(Model, request, 15)


class Two(DictMachine):
    """Two handles of one process."""

    place = PLACE

    def open_all(self):
        return [PDict(self.path, **self.options), PDict(self.path, **self.options)]


class Gathering(DictMachine):
    place = PLACE
    options: ClassVar = {"durability": "process", "auto_commit": False}


class Processes(DictMachine):
    """One handle here, and one in another process."""

    place = PLACE

    def open_all(self):
        return [PDict(self.path, **self.options), RemoteDict(self.path, **self.options)]


@pytest.mark.parametrize("machine", [Two, Gathering], ids=lambda machine: machine.__name__)
def test_dict(machine, request):
    run(machine, request, 12)


@pytest.mark.long
@pytest.mark.parametrize(
    ("machine", "examples"),
    [(Two, 80), (Gathering, 80), (Processes, 8)],
    ids=["two", "gathering", "processes"],
)
def test_dict_for_long(machine, examples, request):
    run(machine, request, examples)
