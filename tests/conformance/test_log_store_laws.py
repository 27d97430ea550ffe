"""Every law of log stores, tried on every log store."""

from __future__ import annotations

import re
from bisect import bisect_left
from functools import partial

import pytest

import persistcoll.engine.contracts
from persistcoll.testing.laws.log_store import LOG_STORE_LAWS
from tests.conformance.log_stores import CLOCKS, LOG_STORES, MemoryLogStores

CASES = [
    pytest.param(law, name, id=f"{law.number}-{law.check.__name__}-{name}")
    for law in LOG_STORE_LAWS
    for name in LOG_STORES
]


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """Restore the clock, which the factories of logs in files set."""
    for module in CLOCKS:
        monkeypatch.setattr(module, "_now", module._now)


@pytest.mark.parametrize(("law", "name"), CASES)
def test_law(law, name, tmp_path):
    stores = LOG_STORES[name](tmp_path)
    assert law.applies_to(stores)
    law(stores)


def test_there_is_a_function_for_every_law_of_journals():
    stated = re.findall(r"^(J\d+) ", persistcoll.engine.contracts.__doc__ or "", re.MULTILINE)
    assert len(stated) == 4
    numbers = [law.number for law in LOG_STORE_LAWS]
    assert list(dict.fromkeys(number for number in numbers if number.startswith("J"))) == stated
    assert numbers == sorted(numbers, key=lambda number: (number[0] == "J", int(number[1:])))
    assert all(law.text for law in LOG_STORE_LAWS)


# Log stores that no law may overlook: each is wrong in one point.


class _Wrong(MemoryLogStores):
    """Stores of the reference model in which some functions are replaced.

    :param replaced: by name; those of a cursor have names that begin with ``cursor_``.
    """

    def __init__(self, replaced):
        super().__init__()
        self._replaced = replaced

    def open(self, name, retain=None):
        return self._changed(super().open(name, retain))

    def crashed(self, name):
        return self._changed(super().crashed(name))

    def _changed(self, store):
        for name, function in self._replaced.items():
            if not name.startswith("cursor_"):
                setattr(store, name, partial(function, store, getattr(store, name)))
        opened = store.cursor

        def cursor(*arguments):
            made = opened(*arguments)
            for name, function in self._replaced.items():
                if name.startswith("cursor_"):
                    method = name.removeprefix("cursor_")
                    setattr(made, method, partial(function, made, getattr(made, method)))
            return made

        store.cursor = cursor
        return store


def _lose(store, original, *arguments):
    id = original(*arguments)
    store._state.records.pop(id)
    return id


def _lose_the_last(store, original, payloads):
    ids = original(payloads)
    if len(ids) > 1:
        store._state.records.pop(ids[-1])
    return ids


def _moves_before_decode(cursor, original, limit, decode, ids=None):
    return [decode(record) for record in original(limit, lambda record: record, ids=ids)]


def _says_nothing(cursor, original, limit, decode, ids=None):
    return original(limit, decode)


def _reuses_ids(store, original, before, force=False):
    removed = original(before, force)
    if not store._state.records:
        store._state.last_id -= 1
    return removed


def _opens_twice(store, original, name, start=None):
    store._state.holders.pop(name, None)
    return original(name, start)


def _one_name(store, original, name, start=None):
    return original(name.lower(), start)


def _commits_at_the_end(cursor, original):
    state = cursor._store._state
    if state.holders.get(cursor._name) is cursor:
        state.positions[cursor._name] = cursor._last_read
    original()


def _stays_open(store, original):
    return {}


def _forgets(store, original):
    store._state.records.clear()


def _backwards(store, original, after=0):
    return iter(list(original(after))[::-1])


def _reads_a_record_less(cursor, original, limit, decode, ids=None):
    if cursor._last_read == 6:
        cursor._last_read += 1
    return original(limit, decode, ids=ids)


def _moves_back(cursor, original, id):
    original(id)
    cursor._store._state.positions[cursor._name] = id


def _moves_all(cursor, original, id):
    original(id)
    positions = cursor._store._state.positions
    positions.update(dict.fromkeys(positions, id))


def _reads_from_the_position(cursor, original, id):
    original(id)
    cursor._last_read = cursor._store._state.positions[cursor._name]


def _seeks_only_forward(cursor, original, id):
    if id is None or id > cursor.position:
        original(id)


def _found_by_bisection(store, original, time):
    records = list(store.records())
    return bisect_left(records, time, key=lambda record: record.time) + 1


def _trims_what_is_needed(store, original, before, force=False):
    return original(before, True)


def _trims_in_hundreds(store, original, before, force=False):
    return original(before - before % 100, force)


def _keeps_all(store, original, retain):
    return 0


def _keeps_one_less(store, original, retain):
    return original(retain) + 1


WRONG = {
    "S2 an append is lost": ("S2", {"append_many": _lose_the_last}),
    "S2 a commit is lost": ("S2", {"cursor_seek": lambda cursor, original, id: None}),
    "S3 the place moves before decode": ("S3", {"cursor_read": _moves_before_decode}),
    "S3 nobody learns what was read": ("S3", {"cursor_read": _says_nothing}),
    "S4 ids are used again": ("S4", {"trim": _reuses_ids}),
    "S5 a cursor is open twice": ("S5", {"cursor": _opens_twice}),
    "S5 two names are one": ("S5", {"cursor": _one_name}),
    "S8 closing commits": ("S8", {"cursor_close": _commits_at_the_end}),
    "S9 a closed log has cursors": ("S9", {"cursors": _stays_open}),
    "S10 the child forgets": ("S10", {"after_fork_in_child": _forgets}),
    "J1 an append is lost": ("J1", {"append": _lose}),
    "J2 read backwards": ("J2", {"records": _backwards}),
    "J2 a record is passed over": ("J2", {"cursor_read": _reads_a_record_less}),
    "J3 a commit moves back": ("J3", {"cursor_commit": _moves_back}),
    "J3 a commit moves all cursors": ("J3", {"cursor_commit": _moves_all}),
    "J3 a commit moves the reading place": ("J3", {"cursor_commit": _reads_from_the_position}),
    "J3 no seek goes back": ("J3", {"cursor_seek": _seeks_only_forward}),
    "J3 times are found by bisection": ("J3", {"find": _found_by_bisection}),
    "J4 what is needed is trimmed": ("J4", {"trim": _trims_what_is_needed}),
    "J4 trimmed in hundreds": ("J4", {"trim": _trims_in_hundreds}),
    "J4 retention keeps all": ("J4", {"_first_to_keep": _keeps_all}),
    "J4 retention keeps one less": ("J4", {"_first_to_keep": _keeps_one_less}),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_broken_log_store_is_seen(name):
    number, replaced = WRONG[name]
    seen = []
    for law in LOG_STORE_LAWS:
        if law.number == number:
            try:
                law(_Wrong(replaced))
            except AssertionError as error:
                seen.append(str(error))
    assert seen
    assert all(each.startswith(f"{number} (") for each in seen)
