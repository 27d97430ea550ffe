"""Every law of pair stores, tried on every pair store."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest

import persistcoll.engine.contracts
from persistcoll.engine.contracts import Pair
from persistcoll.errors import ClosedError
from persistcoll.testing.laws.pair_store import PAIR_STORE_LAWS
from tests.conformance.marks import marks_of
from tests.conformance.pair_stores import PAIR_STORES, MemoryPairStores
from tests.conformance.wrong.moments import without_lock

# A crash loses what is buffered, and a forked child does not have it. A close loses what is in memory.
# By a server's own clock those are tried that go by it, and the rest by a clock that tests set.
NOT_APPLICABLE = {"gathering": {"S2", "S10"}, "sqlite-memory": {"S2", "S8", "S9"}}
NOT_APPLICABLE |= {f"{server}-own-clock": {*PAIR_STORE_LAWS} - {"M3"} for server in ("postgresql", "mysql")}
CASES = [
    pytest.param(law, name, id=f"{number}-{name}", marks=marks_of(name))
    for number, law in PAIR_STORE_LAWS.items()
    for name in PAIR_STORES
    if number not in NOT_APPLICABLE.get(name, ())
]


@pytest.mark.parametrize(("law", "name"), CASES)
def test_law(law, name, tmp_path):
    mappings = PAIR_STORES[name](tmp_path)
    try:
        assert law.applies_to(mappings)
        law(mappings)
    finally:
        mappings.close()


def test_there_is_a_function_for_every_law():
    stated = re.findall(r"^(M\d+) ", persistcoll.engine.contracts.__doc__ or "", re.MULTILINE)
    assert len(stated) == 3
    assert [number for number in PAIR_STORE_LAWS if number.startswith("M")] == stated
    assert [law.number for law in PAIR_STORE_LAWS.values()] == list(PAIR_STORE_LAWS)
    assert all(law.text for law in PAIR_STORE_LAWS.values())


# Pair stores that no law may overlook: each is wrong in one point.


def _wrong(**replaced):
    """Return pair stores of the reference model in which some methods are replaced."""

    class Wrong(MemoryPairStores):
        def open(self, name):
            return _changed(super().open(name))

        def crashed(self, name):
            return _changed(super().crashed(name))

    def _changed(mapping):
        for name, function in replaced.items():
            original = getattr(mapping, name)
            setattr(
                mapping,
                name,
                lambda *args, function=function, original=original, **kw: function(
                    mapping, original, *args, **kw
                ),
            )
        return mapping

    return Wrong()


def _remove_before_use(mapping, original, decode, last=True):
    return decode(original(lambda pair: pair, last))


def _remove_before_change(mapping, original, key, name, change):
    present = mapping.get(key)
    mapping.remove(key)
    value, result = change(present)
    if value is not None:
        mapping.set_many([(key, name, value)])
    return result


def _change_in_two_steps(mapping, original, key, name, change):
    present = mapping.get(key)
    value, result = change(present)
    return original(key, name, lambda _: (value, result))


def _change_twice(mapping, original, key, name, change):
    change(mapping.get(key))
    return original(key, name, change)


def _forget_the_last(mapping, original, items, expires=None):
    original(items, expires)
    before = mapping._state.before
    if before is None and items:
        mapping._state.rows.pop(items[-1][0])


def _half_a_batch_at_a_time(mapping, original, items, expires=None):
    original(items[: len(items) // 2], expires)
    for item in items[len(items) // 2 :]:
        if item[0] == b"f":
            raise ValueError
        original([item], expires)


def _to_the_end(mapping, original, items, expires=None):
    for key, _, _ in items:
        mapping.remove(key)
    original(items, expires)


def _new_names(mapping, original, items, expires=None):
    original(items, expires)
    rows = mapping._state.rows
    for key, name, _ in items:
        rows[key] = rows[key]._replace(name=name)


def _by_offset(mapping, original, reverse=False, values=True):
    """Read pages by counting pairs, so that a removal before the page shifts the remaining ones."""
    at = 0
    while True:
        rows = list(mapping._state.rows.items())
        if reverse:
            rows.reverse()
        page = rows[at : at + 256]
        if not page:
            mapping.count()
            return
        for key, row in page:
            yield Pair(key, row.name, row.value if values else b"")
        at += len(page)


def _by_offset_sorted(mapping, original, start, stop, reverse=False, values=True):
    at = 0
    while page := sorted(mapping._state.rows.items(), reverse=reverse)[at : at + 256]:
        for key, row in page:
            if start <= key < stop:
                yield Pair(key, row.name, row.value if values else b"")
        at += len(page)


def _with_those_added(mapping, original, reverse=False, values=True):
    """Continue for as long as keys are added at the end."""
    seen = 0
    while rows := [(key, row) for key, row in mapping._state.rows.items() if row.serial > seen]:
        for key, row in rows:
            seen = row.serial
            yield Pair(key, row.name, row.value if values else b"")


def _backwards(mapping, original, *arguments, **options):
    return iter(list(original(*arguments, **options))[::-1])


def _inclusive(mapping, original, start, stop, reverse=False, values=True):
    return original(start, stop + b"\0", reverse, values)


@contextmanager
def _without_rollback(mapping: Any, original: Any) -> Iterator[None]:
    yield


@contextmanager
def _rolled_back_in_part(mapping: Any, original: Any) -> Iterator[None]:
    removed = mapping.contains(b"b")
    try:
        with original():
            yield
    except BaseException:
        if removed:
            mapping.remove(b"b")
        raise


@contextmanager
def _never_committed(mapping: Any, original: Any) -> Iterator[None]:
    if mapping._state.before is not None:
        yield
        return
    rows = mapping._state.rows
    kept = dict(rows)
    yield
    rows.clear()
    rows.update(kept)


def _lets_other_threads_write(mapping: Any, original: Any) -> Any:
    mapping._state.lock = nullcontext()
    return original()


def _lets_other_threads_look(mapping, original, key):
    with without_lock(mapping._state):
        return original(key)


def _for_ever(mapping, original, items, expires=None):
    original(items)


def _forgets_expiry(mapping, original, key, name, change):
    def changed(present):
        value, result = change(present)
        return value, result

    result = original(key, name, changed)
    row = mapping._state.rows.get(key)
    if row is not None:
        mapping._state.rows[key] = row._replace(end=None)
    return result


def _keeps_expiry(mapping, original, items, expires=None):
    rows = mapping._state.rows
    ends = {key: rows[key].end for key, _, _ in items if key in rows}
    original(items, expires)
    for key, end in ends.items():
        if expires is None:
            rows[key] = rows[key]._replace(end=end)


def _counts_all(mapping, original):
    return len(mapping._state.rows)


def _sees_all(mapping, original, key):
    if mapping._closed:
        raise ClosedError("closed")
    row = mapping._state.rows.get(key)
    return None if row is None else row.value


def _forgets(mapping, original):
    original()
    mapping._state.rows.clear()


def _one_less(mapping, original, keys):
    found = original(keys)
    found.pop(next(iter(found), None), None)
    return found


def _stays_open(mapping, original):
    return 0


def _abandons_the_data(mapping, original):
    original()
    mapping._state.rows.clear()


WRONG: dict[str, tuple[str, dict[str, Any]]] = {
    "S1 removed before use": ("S1", {"pop": _remove_before_use}),
    "S1 removed before change": ("S1", {"change": _remove_before_change}),
    "S2 the last is lost": ("S2", {"set_many": _forget_the_last}),
    "S3 change is called twice": ("S3", {"change": _change_twice}),
    "S3 get_many leaves one out": ("S3", {"get_many": _one_less}),
    "S8 closing forgets": ("S8", {"close": _forgets}),
    "S9 counts when closed": ("S9", {"count": _stays_open}),
    "S10 the child forgets": ("S10", {"after_fork_in_child": _abandons_the_data}),
    "M1 a new value moves to the end": ("M1", {"set_many": _to_the_end}),
    "M1 a new value has a new name": ("M1", {"set_many": _new_names}),
    "M1 paged by counting": ("M1", {"pairs": _by_offset}),
    "M1 scanned by counting": ("M1", {"scan": _by_offset_sorted}),
    "M1 what is added comes as well": ("M1", {"pairs": _with_those_added}),
    "M1 backwards": ("M1", {"pairs": _backwards}),
    "M1 scanned backwards": ("M1", {"scan": _backwards}),
    "M1 the end of a range is in it": ("M1", {"scan": _inclusive}),
    "M2 no rollback": ("M2", {"transaction": _without_rollback}),
    "M2 half a rollback": ("M2", {"transaction": _rolled_back_in_part}),
    "M2 no commit": ("M2", {"transaction": _never_committed}),
    "M2 other threads write meanwhile": ("M2", {"transaction": _lets_other_threads_write}),
    "M2 other threads look meanwhile": ("M2", {"get": _lets_other_threads_look}),
    "M2 updates are lost": ("M2", {"change": _change_in_two_steps}),
    "M2 a batch is stored in part": ("M2", {"set_many": _half_a_batch_at_a_time}),
    "M3 nothing expires": ("M3", {"set_many": _for_ever}),
    "M3 a change forgets the expiry": ("M3", {"change": _forgets_expiry}),
    "M3 a new value keeps the expiry": ("M3", {"set_many": _keeps_expiry}),
    "M3 what has expired is counted": ("M3", {"count": _counts_all}),
    "M3 what has expired is got": ("M3", {"get": _sees_all}),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_broken_pair_store_is_seen(name):
    number, replaced = WRONG[name]
    with pytest.raises(AssertionError, match=rf"^{number} \("):
        PAIR_STORE_LAWS[number](_wrong(**replaced))


def test_pair_stores_that_are_one_break_s7():
    mappings = MemoryPairStores()
    one = mappings.open

    def open_the_same(name):
        return one("a")

    mappings.open = open_the_same  # type: ignore[method-assign]
    with pytest.raises(AssertionError, match=r"^S7 "):
        PAIR_STORE_LAWS["S7"](mappings)
