"""Laws of the canonical form: equal exactly where the values are equal."""

from __future__ import annotations

import collections
import decimal
import enum
import itertools
import random
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persistcoll.serializers import canonical
from tests.serializers.strategies import hashables, items, scalars

# Few and small values, so that equal values of different types meet often.
few = st.sampled_from(
    [None, False, True, 0, 1, 2, -1, 0.0, -0.0, 1.0, 2.0, -1.0, 0.5, "", "1", "a", b"", b"1", b"a", (), (1,)]
)
small = items(leaves=few, tuples=True, sets=hashables(few))
anything = items(
    leaves=scalars(surrogates=True), keys=hashables(scalars()), tuples=True, sets=hashables(scalars())
)


def respelled(value, rng):
    """Return an equal value with another order in dicts and sets, other number types, frozenset for set."""
    if isinstance(value, bool) or value is None or isinstance(value, (str, bytes)):
        return rng.choice([value, int(value), float(value)]) if isinstance(value, bool) else value
    if isinstance(value, int):
        try:
            same = float(value)
        except OverflowError:
            return value
        return rng.choice([value, same]) if same == value else value
    if isinstance(value, float):
        return int(value) if value.is_integer() and rng.random() < 0.5 else value
    if isinstance(value, (list, tuple)):
        return type(value)(respelled(part, rng) for part in value)
    if isinstance(value, dict):
        pairs = [(respelled(key, rng), respelled(inner, rng)) for key, inner in value.items()]
        rng.shuffle(pairs)
        return dict(pairs)
    parts = [respelled(part, rng) for part in value]
    rng.shuffle(parts)
    # A frozenset may be a key or an element of a set, where no set can be.
    return rng.choice([set, frozenset])(parts) if type(value) is set else frozenset(parts)


@given(small, small)
def test_equal_exactly_where_the_values_are(a, b):
    assert (canonical(a) == canonical(b)) == (a == b)


@given(anything, anything)
def test_equal_exactly_where_the_values_are_of_any_kind(a, b):
    assert (canonical(a) == canonical(b)) == (a == b)


@given(anything, st.randoms(use_true_random=False))
def test_a_value_spelled_otherwise_is_the_same(value, rng: random.Random):
    other = respelled(value, rng)
    assert other == value
    assert canonical(other) == canonical(value)


@given(st.lists(small, max_size=5), st.lists(small, max_size=5))
def test_parts_cannot_run_into_each_other(a, b):
    joined = b"".join(map(canonical, a)) == b"".join(map(canonical, b))
    assert joined == (a == b)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (1, True),
        (0, False),
        (1, 1.0),
        (0.0, -0.0),
        (2**53, float(2**53)),
        (10**308, 10**308 + 0),
        (int(1e308), 1e308),
        (-(2**2000), -(2**2000)),
        ({"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"d": 3.0, "c": 2}, "a": True}),
        ({1: "x"}, {1.0: "x"}),
        ({1, 2, 3}, frozenset({3, 2.0, True})),
        (float("inf"), float("inf")),
    ],
)
def test_equal(a, b):
    assert a == b
    assert canonical(a) == canonical(b)


DIFFERENT: list[Any] = [
    *(None, 0, 1, -1, 255, 2**53, 2**53 + 1, float(2**53 + 2)),
    *(0.1, -0.1, 1e-300, float("inf"), float("-inf")),
    *("", "0", "1", "i1;", "ab", "\x00", "é", "e\u0301", "\ud800", "\udfff"),
    *(b"", b"0", b"1", b"i1;", b"ab", b"\x00"),
    *([], (), {}, set(), [[]], [()], [None]),
    *(("ab",), ("a", "b"), ["ab"], [b"ab"], [1, 2], [2, 1], [[1], 2]),
    *({1: 2}, {2: 1}, {1: {2: 3}}, {(1, 2): 3}, [(1, 2), 3], {"a": None}),
    *({1, 2}, {frozenset({1, 2})}, {"a"}),
    10**5000,
]


def test_different():
    for a, b in itertools.combinations(DIFFERENT, 2):
        assert a != b
        assert canonical(a) != canonical(b)


def test_the_spelling_is_a_format():
    assert canonical([None, True, -255, 0.5, "é", b"\xff", (), {"b": 1, "a": {2, 1}}]) == (
        b"l8:ni1;i-ff;f?\xe0\0\0\0\0\0\0s2:\xc3\xa9b1:\xfft0:d2:s1:ae2:i1;i2;s1:bi1;"
    )


@pytest.mark.parametrize("value", [float("nan"), [float("nan")], {float("nan"): 1}, {1: {float("nan")}}])
def test_nan_is_refused(value):
    with pytest.raises(ValueError, match="NaN"):
        canonical(value)


class Subclass(dict):
    pass


class Point(NamedTuple):
    x: int


class Colour(enum.IntEnum):
    RED = 1


@pytest.mark.parametrize(
    "value",
    [
        object(),
        bytearray(b"a"),
        1j,
        decimal.Decimal(1),
        range(3),
        Subclass(),
        collections.Counter("a"),
        Point(1),
        Colour.RED,
        [{"a": (object(),)}],
        {object(): 1},
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_types_are_refused_with_the_list_of_those_accepted(value):
    with pytest.raises(TypeError, match="None, bool, int, float, str, bytes, and lists, tuples, dicts, sets"):
        canonical(value)


def test_what_contains_itself_is_refused_and_what_is_too_deep_runs_out_of_stack():
    circle: list[object] = [1]
    circle.append(circle)
    ring: dict[str, object] = {}
    ring["ring"] = [ring]
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    values: list[object] = [circle, ring, [deep, circle]]
    for value in values:
        with pytest.raises(ValueError, match="contains itself"):
            canonical(value)
    values = [deep, [deep, deep], {"a": (deep,)}]
    for value in values:
        with pytest.raises(RecursionError):
            canonical(value)
