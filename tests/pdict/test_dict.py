"""All that a ``dict`` does: the same calls on a dict and on a ``PDict``, over every kind of pair store."""

from __future__ import annotations

import collections
import math
import types
from collections.abc import ItemsView, KeysView, Mapping, MutableMapping, ValuesView
from typing import Any

import pytest

from persistcoll import EncodeError
from persistcoll.dicts.pdict import PDict

DATA: dict[Any, Any] = {
    "b": 1,
    "a": [2],
    3: None,
    (1, "x"): {"deep": (1,)},
    None: b"",
    b"bytes": 1.5,
    2**80: True,
}


@pytest.fixture
def full(d):
    d.update(DATA)
    return d


def test_it_is_a_mapping(full):
    assert isinstance(full, Mapping)
    assert isinstance(full, MutableMapping)
    assert PDict[str, int] is not None
    with pytest.raises(TypeError, match="unhashable"):
        hash(full)


def test_the_order_is_that_of_the_keys_coming(full):
    assert list(full) == list(DATA)
    full["a"] = "new"
    assert list(full) == list(DATA)
    del full["a"]
    full["a"] = "newer"
    assert list(full) == [key for key in DATA if key != "a"] + ["a"]
    assert list(reversed(full)) == list(full)[::-1]


def test_equal_keys_are_one_key(d):
    d[1] = "int"
    d[True] = "bool"
    d[1.0] = "float"
    d["1"] = "str"
    d[b"1"] = "bytes"
    d[(1, 0)] = "tuple"
    d[(True, -0.0)] = "the same tuple"
    assert d == {1: "float", "1": "str", b"1": "bytes", (1, 0): "the same tuple"}
    assert [type(key) for key in d] == [int, str, bytes, tuple]
    assert repr(list(d)) == "[1, '1', b'1', (1, 0)]"
    assert d.pop(1.0) == "float"
    d[True] = "bool"
    assert repr(list(d)) == "['1', b'1', (1, 0), True]"


def test_looking(full):
    for key, value in DATA.items():
        assert full[key] == full.get(key) == value
        assert key in full
        assert full.get(key, 1) == value
    for key in ("c", b"a", 4, (1,), False, 0.5):
        assert key not in full
        assert full.get(key) is None
        assert full.get(key, key) == key
        with pytest.raises(KeyError) as caught:
            full[key]
        assert caught.value.args == (key,)
        with pytest.raises(KeyError) as caught:
            del full[key]
        assert caught.value.args == (key,)


def test_get_many(full):
    assert full.get_many(["a", "c", 3.0, 4, "a"]) == {"a": [2], 3: None}
    assert list(full.get_many(reversed(list(DATA)))) == list(DATA)[::-1]
    assert full.get_many([]) == {}
    many = {number: str(number) for number in range(2000)}
    full.update(many)
    assert full.get_many(range(3000)) == {**many, 3: "3"}


def test_pop(full):
    assert full.pop("b") == 1
    assert full.pop("b", 7) == 7
    assert full.pop("b", default=None) is None
    with pytest.raises(KeyError, match="b"):
        full.pop("b")
    assert full.pop(3) is None
    assert len(full) == len(DATA) - 2


def test_popitem(full):
    expected = dict(DATA)
    assert full.popitem() == expected.popitem()
    assert full.popitem(last=False) == ("b", 1)
    del expected["b"]
    while expected:
        assert full.popitem() == expected.popitem()
    for last in (True, False):
        with pytest.raises(KeyError, match="empty"):
            full.popitem(last=last)


def test_setdefault(full):
    assert full.setdefault("a", "default") == [2]
    assert full.setdefault("c", "default") == "default"
    assert full.setdefault("e") is None
    assert list(full)[-2:] == ["c", "e"]
    assert full["c"] == "default"
    assert full.setdefault(3, "not for None") is None


@pytest.mark.parametrize(
    "other",
    [
        {"a": 0, "c": 1},
        [("a", 0), ("c", 1)],
        lambda: iter([("a", 0), ["c", 1]]),
        ["a0", ("c", 1)],
        types.MappingProxyType({"a": 0, "c": 1}),
        collections.ChainMap({"a": 0}, {"c": 1}),
        [("a", 5), ("c", 1), ("a", 0)],
    ],
    ids=lambda other: type(other).__name__,
)
def test_update(full, other):
    full.update(other() if callable(other) else other, keyword="k")
    assert full == {**DATA, "a": full["a"], "c": 1, "keyword": "k"}
    assert full["a"] in (0, "0")
    assert list(full) == [*DATA, "c", "keyword"]


def test_update_with_another_of_its_kind(full, kind):
    other = kind.open("another")
    other.update(full)
    assert other == full
    assert list(other) == list(full)
    other.update(other)
    assert other == DATA
    full.update(other=1, self=2)
    assert full["other"] + full["self"] == 3


@pytest.mark.parametrize(
    ("other", "error"),
    [
        ([("a", 0), ("b",)], ValueError),
        ([("a", 0), 1], TypeError),
        (5, TypeError),
        ([("a", 0), ([], 1)], TypeError),
        ([("a", 0), (math.nan, 1)], EncodeError),
        ([("a", 0), ("c", lambda: None)], EncodeError),
        ({"a": 0, "c": lambda: None}, EncodeError),
    ],
    ids=["short", "no pair", "nothing", "bad key", "nan", "bad value", "bad value in a dict"],
)
def test_update_does_all_or_nothing(full, other, error):
    for call in (full.update, full.set_many, full.__ior__):
        with pytest.raises(error):
            call(other)
        assert full == DATA


def test_or(full):
    more = {"a": 0, "c": 1}
    for one, other in ((full, more), (more, full), (full, full)):
        merged = one | other
        assert type(merged) is dict
        assert merged == {**dict(one), **dict(other)}
        assert list(merged) == list({**dict(one), **dict(other)})
    same = full
    full |= more
    full |= [("d", 2)]
    assert full is same
    assert full == {**DATA, **more, "d": 2}
    for bad in (1, [("a", 1)], None):
        with pytest.raises(TypeError):
            full | bad
        with pytest.raises(TypeError):
            bad | full


def test_equality(full, kind):
    assert full == DATA
    assert DATA == full  # noqa: SIM300
    assert full == collections.OrderedDict(reversed(list(DATA.items())))
    assert full == collections.UserDict(DATA)
    assert full == full
    for other in (
        {},
        {**DATA, "a": 1},
        {**DATA, "z": 1},
        {**{key: DATA[key] for key in DATA if key != "a"}, "z": 1},
    ):
        assert full != other
        assert other != full
    assert full != list(DATA)
    assert full != 1
    other = kind.open("another")
    assert full != other
    other.update(DATA)
    assert full == other
    del other["a"]
    other[object.__name__] = [2]
    assert full != other
    assert full != {frozenset(): 1, **{key: DATA[key] for key in list(DATA)[1:]}}
    surprising = collections.defaultdict(lambda: 1, {"b": 1})
    small = kind.open("small")
    small["a"] = 1
    assert small != surprising
    assert "a" not in surprising


def test_copying(full):
    for made in (full.copy(), dict(full), {**full}):
        assert type(made) is dict
        assert made == DATA
        assert list(made) == list(DATA)
    made = full.copy()
    made["a"].append(3)
    assert full["a"] == [2]


def test_clear(full):
    assert full.clear() is None
    assert not full
    assert len(full) == 0
    assert list(full) == []
    full["a"] = 1
    assert full == {"a": 1}


def test_values_are_copies(full):
    full["a"].append(3)
    assert full["a"] == [2]
    full["a"] += [3]
    assert full["a"] == [2, 3]


def test_a_subclass_may_have_missing(kind):
    d = kind.open()

    class Counting(type(d)):  # type: ignore[misc]
        def __missing__(self, key):
            return f"no {key}"

    d.__class__ = Counting
    d["a"] = 1
    assert d["a"] == 1
    assert d["b"] == "no b"
    assert d.get("b") is None
    assert "b" not in d


# Views.


def test_views(full):
    keys: Any = full.keys()
    values: Any = full.values()
    items: Any = full.items()
    assert isinstance(keys, KeysView)
    assert isinstance(values, ValuesView)
    assert isinstance(items, ItemsView)
    view: Any
    for view, theirs in ((keys, DATA.keys()), (values, DATA.values()), (items, DATA.items())):
        assert list(view) == list(theirs)
        assert list(reversed(view)) == list(theirs)[::-1]
        assert len(view) == len(DATA)
        assert view.mapping["a"] == [2]
        with pytest.raises(TypeError):
            view.mapping["a"] = 1
        assert type(view).__name__ in repr(view)
    full["new"] = "value"
    del full["b"]
    assert "new" in keys
    assert "b" not in keys
    assert "value" in values
    assert ("new", "value") in items
    assert ("new", 1) not in items
    no_pair: Any
    for no_pair in ("new", ("new",), ("new", "value", 1), ["new", "value"], 1):
        assert no_pair not in items
    assert len(keys) == len(values) == len(items) == len(DATA)
    assert 5 not in values


def test_views_are_sets(kind):
    ours, theirs = kind.open(), {"a": 1, "b": 2, "c": 3}
    ours.update(theirs)
    other: Any
    for mine, builtin, other in (
        (ours.keys(), theirs.keys(), {"a", "z"}),
        (ours.keys(), theirs.keys(), ["a", "z"]),
        (ours.keys(), theirs.keys(), {"a": 1, "z": 1}.keys()),
        (ours.keys(), theirs.keys(), ours.keys()),
        (ours.items(), theirs.items(), {("a", 1), ("b", 3)}),
        (ours.items(), theirs.items(), {"a": 1, "b": 3}.items()),
        (ours.items(), theirs.items(), [("a", 1), ("z", 3)]),
        (ours.items(), theirs.items(), ours.items()),
    ):
        assert mine & other == builtin & set(other)
        assert mine | other == builtin | set(other)
        assert mine - other == builtin - set(other)
        assert mine ^ other == builtin ^ set(other)
        assert {*other} - mine == set(other) - builtin
        assert mine.isdisjoint(other) == builtin.isdisjoint(other)
        assert type(mine & other) is set
    assert ours.keys() == {"a", "b", "c"} == ours.keys()
    assert ours.keys() == theirs.keys()
    assert ours.items() == theirs.items()
    assert ours.keys() <= {"a", "b", "c", "d"}
    assert ours.keys() < {"a", "b", "c", "d"}
    assert ours.items() > {("a", 1)}
    assert not ours.keys() >= {"a", "z"}
    assert ours.keys() != ["a", "b", "c"]


# Iteration while the dict is changed.

MANY = 600


@pytest.fixture
def many(d):
    d.update((f"{number:04}", number) for number in range(MANY))
    return d


@pytest.mark.parametrize("backwards", [False, True])
def test_iterating_while_it_changes(many, backwards):
    known = sorted(many, reverse=backwards)
    seen = []
    for key in reversed(many) if backwards else many:
        seen.append(key)
        if len(seen) % 3 == 0:
            many[key + "new"] = 1
            del many[key]
            many[key] = "again"
    assert seen == known
    assert len(many) == MANY + MANY // 3


def test_iterating_while_it_is_emptied(many):
    for key in many:
        del many[key]
    assert not many
    many.update(a=1, b=2)
    reading = iter(many.items())
    assert next(reading) == ("a", 1)
    many.clear()
    assert list(reading) in ([], [("b", 2)])


def test_values_may_be_assigned_while_iterating(many):
    for key, value in many.items():
        many[key] = -value
    assert list(many.values()) == [-number for number in range(MANY)]


def test_committing_while_iterating(kind):
    """Changes buffered before the commit are iterated all the same."""
    gathering = kind.open(auto_commit=False)
    gathering.update((number, number) for number in range(100))
    gathering.task_done()
    gathering.update((number, number) for number in range(50, 300))
    seen = []
    for key in gathering:
        seen.append(key)
        if key % 40 == 0:
            gathering[f"new {key}"] = 1
            gathering.task_done()
    assert seen == list(range(300))
    seen = []
    for key in reversed(gathering):
        seen.append(key)
        if len(seen) == 20:
            gathering.task_done()
    assert sorted(seen, key=str) == sorted(gathering, key=str)


# Refusals.


@pytest.mark.parametrize("bad", [[], {}, frozenset(), Ellipsis, ([],)], ids=repr)
def test_keys_of_other_types_are_refused(full, bad):
    calls = [
        lambda: full[bad],
        lambda: full.get(bad),
        lambda: bad in full,
        lambda: full.__setitem__(bad, 1),
        lambda: full.__delitem__(bad),
        lambda: full.pop(bad),
        lambda: full.pop(bad, None),
        lambda: full.setdefault(bad),
        lambda: full.update([(bad, 1)]),
        lambda: full.get_many([bad]),
        lambda: full.set(bad, 1),
        lambda: full.incr(bad),
        lambda: full.edit(bad).__enter__(),
    ]
    for call in calls:
        with pytest.raises(TypeError, match="str, bytes, int, float, bool, None or a tuple of them"):
            call()
    assert full == DATA


def test_nan_is_refused(full):
    for call in (lambda: full[math.nan], lambda: full.pop(math.nan), lambda: full.__setitem__(math.nan, 1)):
        with pytest.raises(EncodeError, match="NaN"):
            call()


def test_keys_of_any_size_up_to_a_limit(d):
    limit = d._store.max_key or 2**16
    largest = ["x" * (limit - 1), 2 ** (4 * (limit - 3)), b"x" * (limit - 2 - len(str(limit)))]
    for key in largest:
        d[key] = 1
        assert d[key] == 1
        assert d.popitem() == (key, 1)
    for key in ("x" * 2**16, "\xe9" * 2**15, 2 ** (4 * 2**16), ("x" * 2**16,)):
        for call in (lambda: d.__setitem__(key, 1), lambda: d.setdefault(key, 1), lambda: d.incr(key)):  # noqa: B023
            with pytest.raises(EncodeError, match="too large"):
                call()
        assert key not in d
        assert d.get(key) is None
    assert not d


def test_values_that_cannot_be_serialized_leave_no_trace(full):
    for call in (
        lambda: full.__setitem__("a", lambda: None),
        lambda: full.__setitem__("z", lambda: None),
        lambda: full.setdefault("z", lambda: None),
        lambda: full.set("a", lambda: None, 5),
        lambda: full.set_many({"z": lambda: None}),
    ):
        with pytest.raises(EncodeError, match="function"):
            call()
    assert full == DATA
