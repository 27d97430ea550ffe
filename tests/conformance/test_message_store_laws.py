"""Every law of message stores, tried on every message store."""

from __future__ import annotations

import re

import pytest

import persistcoll.engine.contracts
from persistcoll.engine.memory.server_message_store import MemoryMessageServerStore
from persistcoll.servers import handle, message_claiming
from persistcoll.servers import message_choice as servers_message_choice
from persistcoll.servers import message_life as servers_message_life
from persistcoll.sqlite import message_choice, message_life, message_removal, message_store
from persistcoll.testing.laws.message_store import MESSAGE_STORE_LAWS
from tests.conformance.marks import marks_of
from tests.conformance.message_stores import (
    MESSAGE_STORES,
    MemoryMessageServerStores,
    MemoryMessageStores,
)
from tests.conformance.wrong_messages import WRONG

# These wait by a clock that nobody sets; those differ by lost connections or by their syncs alone.
SLOW = {"memory-server", "postgresql-own-clock", "mysql-own-clock"}
SLOW |= {"postgresql-lossy", "mysql-lossy", "sqlite-power"}
# From its floor a store does not see at once what another object puts or returns before it.
IN_ORDER = {"Q1", "Q2", "Q3", "Q10"}
# By a server's own clock only laws that go by it, because the others hold by a clock that tests set.
OWN_CLOCK = {"S10", "Q3", "Q6", "Q12"}

CASES = [
    pytest.param(law, name, id=f"{number}-{name}", marks=marks_of(name, name in SLOW))
    for number, law in MESSAGE_STORE_LAWS.items()
    for name in MESSAGE_STORES
    if number in OWN_CLOCK or not name.endswith("own-clock")
    if number not in IN_ORDER or not name.endswith("from-floor")
]


@pytest.mark.parametrize(("law", "name"), CASES)
def test_law(law, name, tmp_path):
    stores = MESSAGE_STORES[name](tmp_path)
    assert law.applies_to(stores) or law.needs in {("joins",), ("transactions",)}
    try:
        law(stores)
    finally:
        stores.close()


@pytest.mark.long
@pytest.mark.parametrize(
    "number", [number for number in MESSAGE_STORE_LAWS if number.startswith(("Q", "T6"))]
)
def test_law_with_small_bounds(number, tmp_path, monkeypatch):
    """A transaction promotes one message and ends two, a page has one, and a claim passes one with a gate."""
    monkeypatch.setattr(message_life, "_PROMOTED", 1)
    monkeypatch.setattr(message_life, "_ENDED", 2)
    monkeypatch.setattr(message_life, "_STEPS", 1)
    monkeypatch.setattr(message_removal, "_PAGE", 1)
    monkeypatch.setattr(message_store, "_PAGE", 1)
    monkeypatch.setattr(message_choice, "_PASSED", 1)
    MESSAGE_STORE_LAWS[number](MESSAGE_STORES["sqlite-process"](tmp_path))


@pytest.mark.long
@pytest.mark.parametrize("server", ["postgresql", "mysql"])
@pytest.mark.parametrize("number", [number for number in MESSAGE_STORE_LAWS if number.startswith("Q")])
def test_law_on_a_server_with_small_bounds(number, server, tmp_path, monkeypatch):
    """A page has one message, and each transaction tidies."""
    for module in (handle, message_claiming, servers_message_life, servers_message_choice):
        monkeypatch.setattr(module, "PAGE", 1)
    monkeypatch.setattr(message_claiming, "_BATCH", 1)
    stores = MESSAGE_STORES[server](tmp_path)
    try:
        MESSAGE_STORE_LAWS[number](stores)
    finally:
        stores.close()


def test_there_is_a_function_for_every_law():
    stated = re.findall(r"^(S\d+|T5|T6|Q\d+) ", persistcoll.engine.contracts.__doc__ or "", re.MULTILINE)
    # No capacity, and a claim decodes nothing.
    wanted = [number for number in stated if number not in ("S3", "S6")]
    assert sorted(MESSAGE_STORE_LAWS) == sorted(wanted)
    assert [law.number for law in MESSAGE_STORE_LAWS.values()] == list(MESSAGE_STORE_LAWS)
    assert all(law.text for law in MESSAGE_STORE_LAWS.values())


def test_every_law_has_a_wrong_store():
    assert {number for number, _ in WRONG.values()} == set(MESSAGE_STORE_LAWS) - {"S7"}


@pytest.mark.long
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_message_store_is_seen(name):
    number, make = WRONG[name]
    is_server = issubclass(make, MemoryMessageServerStore)
    stores = (MemoryMessageServerStores if is_server else MemoryMessageStores)(make)
    with pytest.raises(AssertionError, match=rf"^{number} \("):
        MESSAGE_STORE_LAWS[number](stores)


def test_message_stores_that_are_one_break_s7():
    stores = MemoryMessageStores()
    one = stores.open
    stores.open = lambda name, policy: one("a", policy)  # type: ignore[method-assign]
    with pytest.raises(AssertionError, match=r"^S7 \("):
        MESSAGE_STORE_LAWS["S7"](stores)
