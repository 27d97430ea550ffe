"""How keys are encoded: equal keys alike, str in their order, and each decodes to its original."""

from __future__ import annotations

import enum
import math
from collections import namedtuple
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persistcoll import EncodeError
from persistcoll.serializers.dict_keys import (
    AFTER_ALL_STR,
    BEFORE_ALL_STR,
    key_bytes,
    key_from,
    original_key,
    str_range,
)

plain = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-3, 3)
    | st.floats(allow_nan=False)
    | st.sampled_from([0.0, -0.0, 1.0, 2.0**70, 2**70, math.inf, -math.inf, "", b"", (), "\ud800"])
    | st.text(st.characters())
    | st.binary()
)
keys = st.recursive(plain, lambda parts: st.lists(parts, max_size=3).map(tuple), max_leaves=6)


@given(keys, keys)
def test_equal_keys_and_only_they_are_spelled_alike(one, other):
    assert (key_bytes(one) == key_bytes(other)) == (one == other)


@given(keys)
def test_a_key_comes_back_as_what_it_was(key):
    again = key_from(key_bytes(key), original_key(key))
    assert repr(again) == repr(key)  # types too, and the sign of -0.0


@given(st.lists(st.text(st.characters())))
def test_str_sort_by_code_point(texts):
    assert sorted(texts, key=key_bytes) == sorted(texts)
    assert all(BEFORE_ALL_STR <= key_bytes(text) < AFTER_ALL_STR for text in texts)


@given(keys.filter(lambda key: not isinstance(key, str)))
def test_others_lie_outside_of_the_str(key):
    assert not BEFORE_ALL_STR <= key_bytes(key) < AFTER_ALL_STR


text = st.text(st.sampled_from("ab\0\x7f\xff\ud800\udfff\ue000\U0001f600\U0010ffff"), max_size=4)


@given(st.lists(text), text, st.none() | text, st.none() | text)
def test_a_range_holds_what_it_says(texts, prefix, start, stop):
    low, high = str_range(prefix, start, stop)
    for each in texts:
        inside = (
            each.startswith(prefix) and (start is None or each >= start) and (stop is None or each < stop)
        )
        assert (low <= key_bytes(each) < high) == inside


@pytest.mark.parametrize(
    ("key", "spelled", "name"),
    [
        ("a", b"sa", b""),
        ("\xe9", b"s\xc3\xa9", b""),
        (b"a", b"b1:a", b""),
        (None, b"n", b""),
        (255, b"iff;", b""),
        (-255, b"i-ff;", b""),
        (True, b"i1;", b"T"),
        (False, b"i0;", b"F"),
        (1.0, b"i1;", b"f\x3f\xf0\0\0\0\0\0\0"),
        (0.5, b"f\x3f\xe0\0\0\0\0\0\0", b""),
        ((), b"t0:", b""),
        (("a", 1), b"t2:s1:ai1;", b""),
        ((True, "a", (b"x",)), b"t3:i1;s1:at1:b1:x", b"t3:Ts1:at1:b1:x"),
    ],
    ids=repr,
)
def test_the_format_stays(key, spelled, name):
    assert (key_bytes(key), original_key(key)) == (spelled, name)
    assert repr(key_from(spelled, name)) == repr(key)


class Color(str, enum.Enum):
    RED = "red"


Point = namedtuple("Point", "x y")  # noqa: PYI024


@pytest.mark.parametrize(
    "bad",
    [
        [1],
        {},
        {1},
        frozenset(),
        Ellipsis,
        1j,
        bytearray(),
        Fraction(1, 2),
        Color.RED,
        Point(1, 2),
        ([],),
        (1, (Color.RED,)),
    ],
    ids=repr,
)
def test_other_keys_are_refused(bad):
    with pytest.raises(TypeError, match="str, bytes, int, float, bool, None or a tuple of them") as caught:
        key_bytes(bad)
    if type(bad) in (Color, Point):
        assert "convert it" in str(caught.value)


@pytest.mark.parametrize("bad", [math.nan, (1, math.nan), ((math.nan,),)], ids=repr)
def test_nan_is_refused(bad):
    with pytest.raises(EncodeError, match="NaN"):
        key_bytes(bad)
    with pytest.raises(ValueError, match="NaN"):
        key_bytes(bad)


def nested(depth):
    key: tuple = ()
    for _ in range(depth - 1):
        key = (key,)
    return key


def test_tuples_are_nested_so_far_and_no_further():
    assert key_from(key_bytes(nested(64)), original_key(nested(64))) == nested(64)
    with pytest.raises(EncodeError, match="64"):
        key_bytes(nested(65))
    with pytest.raises(EncodeError, match="64"):
        key_bytes(nested(100_000))


@pytest.mark.parametrize(
    ("key", "name"),
    [
        (b"", b""),
        (b"x", b""),
        (b"i1", b""),
        (b"i;", b""),
        (b"i1;i1;", b""),
        (b"f123", b""),
        (b"b5:abc", b""),
        (b"b:", b""),
        (b"t2:n", b""),
        (b"t1:" * 100_000 + b"n", b""),
        (b"t1:" * 65 + b"n", b""),
        (b"s\xff", b""),
        (b"i1;", b"F"),
        (b"i1;", b"i2;"),
        (b"i1;", b"x"),
        (b"sa", b"T"),
        (b"n", b"f\x7f\xf8\0\0\0\0\0\0"),
    ],
)
def test_what_is_no_key_is_refused(key, name):
    with pytest.raises(ValueError):  # noqa: PT011
        key_from(key, name)
