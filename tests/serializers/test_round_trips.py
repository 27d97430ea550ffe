"""What each format holds comes back as it was put: same value, same types, same order."""

from __future__ import annotations

import datetime
import decimal
import fractions
import ipaddress
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persistcoll.serializers import resolve
from tests.serializers.strategies import alike, hashables, items, scalars

TEXT = scalars(bits=1, bytes_=False).filter(lambda value: isinstance(value, str))

# The capabilities of each format, as values. 512 bits stay below Python's limit on decimal digits.
FORMATS = {
    "pickle": items(
        leaves=scalars(surrogates=True),
        keys=hashables(scalars()),
        tuples=True,
        sets=hashables(scalars()),
    ),
    "json": items(keys=TEXT, bits=512, bytes_=False, infinity=False),
    "msgpack": items(bits=64),
    "cbor": items(sets=scalars()),
    "raw": st.binary(),
}


@pytest.mark.parametrize("name", FORMATS)
def test_items_come_back_as_they_were_put(name):
    serializer = resolve(name)

    @given(FORMATS[name])
    def holds(item):
        data = serializer.dumps(item)
        assert type(data) is bytes
        assert alike(serializer.loads(data), item)

    holds()


@pytest.mark.parametrize("name", FORMATS)
def test_the_module_says_what_it_is(name):
    serializer = resolve(name)
    assert serializer.name == name
    assert serializer.executes_code is (name == "pickle")


@pytest.mark.parametrize(
    "item",
    [
        datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.timezone.utc),
        datetime.date(2026, 1, 2),
        decimal.Decimal("-1.50"),
        fractions.Fraction(1, 3),
        uuid.UUID(int=5),
        ipaddress.ip_address("::1"),
        10**5000,
        float("inf"),
        {(1, (2,)): frozenset({1})},
    ],
    ids=lambda item: type(item).__name__,
)
def test_cbor_holds_more_than_json(item):
    cbor = resolve("cbor")
    assert cbor.loads(cbor.dumps(item)) == item


@given(st.dictionaries(st.recursive(st.integers(0, 9), lambda x: st.tuples(x, x), max_leaves=4), st.none()))
def test_msgpack_gives_tuples_back_as_keys(item):
    msgpack = resolve("msgpack")
    assert msgpack.loads(msgpack.dumps(item)) == item


def test_msgpack_gives_tuples_back_as_keys_deep_inside():
    msgpack = resolve("msgpack")
    item = [{"a": {(1, 2): [{(): 1}]}}]
    assert msgpack.loads(msgpack.dumps(item)) == item


@pytest.mark.parametrize(
    ("name", "put", "got"),
    [
        ("json", (1, (2,)), [1, [2]]),
        ("json", {1: "a", None: "b", False: "c"}, {"1": "a", "null": "b", "false": "c"}),
        ("msgpack", (1, (2,)), [1, [2]]),
        ("msgpack", bytearray(b"ab"), b"ab"),
        ("cbor", (1, (2,)), [1, [2]]),
        ("cbor", bytearray(b"ab"), b"ab"),
        ("cbor", range(3), [0, 1, 2]),
        ("raw", bytearray(b"ab"), b"ab"),
        ("raw", memoryview(b"abcd")[::2], b"ac"),
    ],
)
def test_what_changes_on_the_way_is_what_is_documented(name, put, got):
    serializer = resolve(name)
    assert alike(serializer.loads(serializer.dumps(put)), got)


def test_a_frozenset_in_cbor_comes_back_as_a_set():
    cbor = resolve("cbor")
    back = cbor.loads(cbor.dumps(frozenset({1})))
    assert type(back) is set
    assert back == {1}


def test_json_is_utf_8_without_escapes_or_spaces():
    assert resolve("json").dumps({"ключ": ["é", 1]}) == '{"ключ":["é",1]}'.encode()


def test_pickle_is_protocol_5_whatever_python_writes_it():
    assert resolve("pickle").dumps(None)[:2] == b"\x80\x05"
