"""The state machine of message stores, on those of persistcoll, and on broken ones."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from persistcoll.engine.memory.server_message_store import MemoryMessageServerStore
from persistcoll.engine.records import Durability
from persistcoll.sqlite import message_choice, message_life, message_removal, message_store
from persistcoll.testing import Capabilities
from persistcoll.testing.machines import MessageStoreMachine
from tests.conformance.message_stores import (
    MemoryMessageServerStores,
    MemoryMessageStores,
    SQLiteMessageStores,
)
from tests.conformance.server_message_stores import ServerMessageStores
from tests.conformance.wrong_messages import WRONG
from tests.servers.places import KINDS, need_server
from tests.stateful.test_machines import PLACE, run


def machine(make: Callable[[], MemoryMessageStores | MemoryMessageServerStores]):
    class Machine(MessageStoreMachine):
        def stores(self):
            return make()

    return Machine


class SettableServers(MemoryMessageServerStores):
    """A server whose clock the machine sets, and whose ids come in the order of the calls, as the model's."""

    capabilities = Capabilities(processes=False)

    def __init__(self, make: type[MemoryMessageServerStore] = MemoryMessageServerStore) -> None:
        self._now = 1e9
        super().__init__(make, clock=self.now, id_block=1, loss=0.2)

    def advance(self, seconds: float) -> None:
        self._now += seconds

    def now(self) -> float:
        return self._now


def test_the_model(request):
    run(machine(MemoryMessageStores), request, 30)


@pytest.mark.long
def test_the_model_at_length(request):
    run(machine(MemoryMessageStores), request, 250)


@pytest.mark.long
def test_a_server_whose_answers_are_lost(request):
    run(machine(SettableServers), request, 50)


def sqlite_machine(durability: Durability):
    class Machine(MessageStoreMachine):
        def stores(self):
            self.directory = Path(tempfile.mkdtemp(dir=PLACE))
            return SQLiteMessageStores(self.directory, durability)

        def teardown(self):
            super().teardown()
            shutil.rmtree(self.directory)

    return Machine


def test_sqlite(request):
    run(sqlite_machine("process"), request, 20)


@pytest.mark.long
@pytest.mark.parametrize("durability", ["process", "power"])
def test_sqlite_at_length(durability, request):
    run(sqlite_machine(durability), request, 150)


def server_machine(kind: str, **options: Any):
    class Machine(MessageStoreMachine):
        def stores(self):
            self.made = ServerMessageStores(kind, True, **options)
            if options.get("starts_at_floor"):
                # A look from the floor finds late what another object has put or returned in front of it.
                self.made.capabilities = replace(self.made.capabilities, handles=False)
            return self.made

        def teardown(self):
            super().teardown()
            self.made.close()

    return Machine


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_server(kind, request):
    need_server(kind)
    run(server_machine(kind), request, 5)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("starts_at_floor", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_server_at_length(kind, starts_at_floor, request):
    need_server(kind)
    run(server_machine(kind, starts_at_floor=starts_at_floor), request, 30)


@pytest.mark.long
def test_sqlite_with_small_bounds(request, monkeypatch):
    """A transaction promotes one message and ends two, a page has one, and a claim passes one with a gate."""
    monkeypatch.setattr(message_life, "_PROMOTED", 1)
    monkeypatch.setattr(message_life, "_ENDED", 2)
    monkeypatch.setattr(message_life, "_STEPS", 1)
    monkeypatch.setattr(message_removal, "_PAGE", 1)
    monkeypatch.setattr(message_store, "_PAGE", 1)
    monkeypatch.setattr(message_choice, "_PASSED", 1)
    run(sqlite_machine("process"), request, 100)


# One of each part of the life of messages. The machine is slower than the laws, but tries what no law names.
BROKEN = [
    "Q1 WholePriorities",
    "Q2 AllAreNext",
    "Q2 StuckAfterTtl",
    "Q3 RemembersTheDelayOfANack",
    "Q4 KeyIsUsedForEver",
    "Q5 TtlFromTheHead",
    "Q6 ExtendsFromTheOldEnd",
    "Q7 TokensAreAttempts",
    "Q8 LeasesNeverKill",
    "Q9 ReleaseBacksOff",
    "Q10 RedrivenWithItsOldTtl",
    "Q12 IgnoresRates",
    "Q14 LocksAllTopics",
    "T6 ARollbackKeepsMessages",
]


@pytest.mark.long
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_message_store_is_noticed(name, request):
    _, make = WRONG[name]
    with pytest.raises((AssertionError, KeyError)):
        run(machine(lambda: MemoryMessageStores(make)), request, 1000, phases=[hypothesis.Phase.generate])
