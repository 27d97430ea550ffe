"""Every law of record stores, and every law of queue stores, tried on every record store."""

from __future__ import annotations

import re

import pytest

import persistcoll.engine.contracts
from persistcoll.engine.records import FIFO, PRIORITY, UNIQUE, ClaimPolicy
from persistcoll.testing import LAWS, RECORD_STORE_LAWS, FifoStores
from tests.conformance.marks import marks_of
from tests.conformance.record_stores import RECORD_STORES, MemoryRecordStores
from tests.conformance.wrong import WRONG

SERVER_LAWS = {**LAWS, **RECORD_STORE_LAWS}
# Laws that need more than the memory of one process; and by a server's own clock those that do not go by it,
# because they hold by a clock that tests set.
NOT_APPLICABLE = {"sqlite-memory": {"S2", "S10", "J1", "J3"}}
NOT_APPLICABLE |= {
    f"{server}-own-clock": {*SERVER_LAWS} - {"S10", "T2", "T3"} for server in ("postgresql", "mysql")
}
# From the last claim a store does not see at once what another object commits before it.
NOT_APPLICABLE |= {f"{server}-from-floor": {"J2"} for server in ("postgresql", "mysql")}
# Laws that wait for leases by a clock that nobody sets, or that make thousands of calls of a server.
SLOW = {(number, "memory-server") for number in ("S8", "T1", "T3", "T4")}
SLOW |= {(number, f"{server}-own-clock") for number in SERVER_LAWS for server in ("postgresql", "mysql")}
SLOW |= {
    (number, server)
    for number in ("J3", "S2", "S3", "S5", "S6", "S8", "T1", "T2", "T3")
    for server in ("postgresql", "mysql", "postgresql-pooled", "postgresql-from-floor", "mysql-from-floor")
}


def cases(laws):
    return [
        pytest.param(law, table, id=f"{number}-{table}", marks=marks_of(table, (number, table) in SLOW))
        for number, law in laws.items()
        for table in RECORD_STORES
        if number not in NOT_APPLICABLE.get(table, ())
    ]


@pytest.fixture
def tables(table, tmp_path, store_process):
    factory = RECORD_STORES[table](tmp_path, store_process)
    yield factory
    factory.close()


@pytest.mark.parametrize(("law", "table"), cases(RECORD_STORE_LAWS))
def test_law(law, tables):
    assert law.applies_to(tables) or law.needs in {
        ("joins",),
        ("transactions",),
    }  # otherwise it is skipped with the reason
    law(tables)


@pytest.mark.parametrize(("law", "table"), cases(LAWS))
def test_law_of_stores(law, tables):
    stores = FifoStores(tables, FIFO, ClaimPolicy(lease=3600.0, keep_done=3))
    assert law.applies_to(stores)
    law(stores)


# Without priorities and keys these disciplines obey the laws of queue stores too.
@pytest.mark.parametrize("discipline", [PRIORITY, UNIQUE], ids=lambda discipline: discipline.name)
@pytest.mark.parametrize("table", ["memory", "sqlite-process"])
@pytest.mark.parametrize("law", LAWS.values(), ids=str)
def test_law_of_stores_by_another_discipline(law, discipline, tables):
    law(FifoStores(tables, discipline))


def test_there_is_a_function_for_every_law():
    stated = re.findall(r"^([ST]\d+) ", persistcoll.engine.contracts.__doc__ or "", re.MULTILINE)
    assert len(stated) == 16
    assert list(RECORD_STORE_LAWS) == stated
    assert [law.number for law in RECORD_STORE_LAWS.values()] == stated
    assert all(law.text for law in RECORD_STORE_LAWS.values())


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_record_store_is_seen(name):
    number, make = WRONG[name]
    with pytest.raises(AssertionError, match=rf"^{number} \("):
        RECORD_STORE_LAWS[number](MemoryRecordStores(make))


def test_record_stores_that_are_one_break_s7():
    tables = MemoryRecordStores()
    one = tables.open

    def open_the_same(name, discipline, retry):
        return one("a", discipline, retry)

    tables.open = open_the_same  # type: ignore[method-assign]
    with pytest.raises(AssertionError, match=r"^S7 "):
        RECORD_STORE_LAWS["S7"](tables)
