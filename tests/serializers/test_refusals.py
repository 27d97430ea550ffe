"""A put refuses what a format cannot hold, and a get refuses hostile or damaged bytes."""

from __future__ import annotations

import collections
import contextlib
import datetime
import email.message
import pickle
import re
import struct
import tracemalloc
import types
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persistcoll.errors import DecodeError, EncodeError
from persistcoll.serializers import compressed, decode, encode, resolve

BUILT_IN = ["cbor", "json", "msgpack", "pickle", "raw"]


def nested(depth, wrap=lambda inner: [inner], innermost=()):
    item = innermost
    for _ in range(depth):
        item = wrap(item)
    return item


itself: list[object] = []
itself += [itself, itself]


@pytest.mark.parametrize(
    ("name", "item"),
    [
        ("json", float("nan")),
        ("json", [float("inf")]),
        ("json", "\ud800"),
        ("json", {"\udfff": 1}),
        ("json", b"bytes"),
        ("json", {1, 2}),
        ("json", {(1, 2): 3}),
        ("json", datetime.date(2026, 1, 2)),
        ("json", 10**5000),
        ("json", itself),
        ("msgpack", 2**64),
        ("msgpack", "\ud800"),
        ("msgpack", {1, 2}),
        ("msgpack", datetime.date(2026, 1, 2)),
        ("msgpack", itself),
        ("msgpack", nested(100_000)),
        ("cbor", "\ud800"),
        ("cbor", object()),
        ("cbor", datetime.datetime(2026, 1, 2)),  # noqa: DTZ001 - that it is naive is the point
        ("cbor", re.compile("a+")),
        ("cbor", ["x" * 300, {"deep": re.compile(b"a+")}]),
        ("cbor", email.message.Message()),
        ("cbor", itself),
        ("cbor", nested(100_000)),
        ("cbor", nested(401, lambda inner: {1: inner}, {})),
        ("cbor", nested(401, lambda inner: (inner,))),
        ("cbor", nested(401, lambda inner: collections.deque([inner]))),
        ("cbor", nested(401, lambda inner: collections.UserDict(a=inner))),
        ("pickle", lambda: None),
        ("raw", "text"),
        ("raw", 3),
        ("raw", [1, 2]),
        ("raw", None),
    ],
    ids=lambda value: value if isinstance(value, str) and value in BUILT_IN else type(value).__name__,
)
def test_an_item_that_the_format_cannot_hold_is_an_encode_error(name, item):
    with pytest.raises(EncodeError) as caught:
        encode(resolve(name), item)
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize(
    "wrap",
    [
        lambda inner: [inner],
        lambda inner: {1: inner},
        lambda inner: (inner,),
        lambda inner: frozenset({inner}),
        lambda inner: {(inner,): 0} if inner == () else [inner],
    ],
    ids=["list", "value", "tuple", "frozenset", "key"],
)
def test_whatever_depth_cbor_accepts_it_returns(wrap):
    cbor = resolve("cbor")
    for depth in (0, 199, 200, 201, 398, 399, 400):
        item = nested(depth, wrap)
        try:
            data = cbor.dumps(item)
        except ValueError:
            assert depth == 400
        else:
            cbor.loads(data)


def test_cbor_refuses_tags_that_it_would_not_read():
    cbor2 = pytest.importorskip("cbor2")
    cbor = resolve("cbor")
    for tag in (28, 29, 35, 36):
        with pytest.raises(cbor2.CBORDecodeError):
            cbor.dumps([cbor2.CBORTag(tag, "x")])
    # The bytes of a refused tag, at a place where they are no tag.
    for item in (b"\xd8\x23", "\u0623 \xd8#", [float.fromhex("-0x1.9231d8231cd8p+385")], 0xD8231CD81DD824):
        assert cbor.loads(cbor.dumps(item)) == item


HOSTILE = {
    "json: depth": ("json", b"[" * 200_000),
    "json: depth of objects": ("json", b'{"":' * 200_000),
    "json: NaN": ("json", b"[NaN]"),
    "json: infinity": ("json", b"-Infinity"),
    "json: a long number": ("json", b"9" * 5000),
    "json: no UTF-8": ("json", b'"\xff"'),
    "json: UTF-16": ("json", '"a"'.encode("utf-16")),
    "json: byte order mark": ("json", b"\xef\xbb\xbf1"),
    "json: two values": ("json", b"1 2"),
    "json: empty": ("json", b""),
    "msgpack: depth": ("msgpack", b"\x91" * 200_000),
    "msgpack: huge array": ("msgpack", b"\xdd\xff\xff\xff\xff"),
    "msgpack: huge map": ("msgpack", b"\xdf\xff\xff\xff\xff"),
    "msgpack: huge bytes": ("msgpack", b"\xc6\xff\xff\xff\xff"),
    "msgpack: map as a key": ("msgpack", b"\x81\x80\x01"),
    "msgpack: two values": ("msgpack", b"\x01\x02"),
    "msgpack: reserved": ("msgpack", b"\xc1"),
    "msgpack: empty": ("msgpack", b""),
    "cbor: depth": ("cbor", b"\x81" * 200_000),
    "cbor: depth of tags": ("cbor", b"\xc6" * 200_000),
    "cbor: huge array": ("cbor", b"\x9b\x7f" + b"\xff" * 7),
    "cbor: huge map": ("cbor", b"\xbb\x7f" + b"\xff" * 7),
    "cbor: huge bytes": ("cbor", b"\x5b\x7f" + b"\xff" * 7),
    "cbor: huge integer": ("cbor", b"\xc2\x5b\x7f" + b"\xff" * 7),
    "cbor: an object that contains itself": ("cbor", b"\xd8\x1c\x81\xd8\x1d\x00"),
    "cbor: shared": ("cbor", b"\xd8\x1c\x01"),
    "cbor: regex": ("cbor", b"\xd8\x23\x61a"),
    "cbor: regex, written long": ("cbor", b"\xdb\0\0\0\0\0\0\0\x23\x61a"),
    "cbor: e-mail": ("cbor", b"\xd8\x24\x61a"),
    "cbor: empty": ("cbor", b""),
    "pickle: huge text": ("pickle", b"\x80\x05\x8d" + struct.pack("<Q", 2**62) + b"."),
    "pickle: huge frame": ("pickle", b"\x80\x05\x95" + struct.pack("<Q", 2**62) + b"."),
    "pickle: no stack": ("pickle", b"\x80\x05."),
    "pickle: persistent id": ("pickle", b"\x80\x05Pabc\n."),
    "pickle: later protocol": ("pickle", b"\x80\xff."),
    "pickle: unknown class": ("pickle", b"\x80\x05cno_such_module\nname\n."),
    "pickle: empty": ("pickle", b""),
}


@pytest.mark.parametrize(("name", "data"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_bytes_are_a_decode_error(name, data):
    with pytest.raises(DecodeError, match=r"^item 12 cannot be deserialized with .*skip\(12\)") as caught:
        decode(resolve(name), data, 12)
    assert caught.value.id == 12
    assert caught.value.__cause__ is not None


def test_a_pickle_that_asks_for_too_much_memory_is_a_memory_error():
    # It cannot be told from a good item that needs more memory than there is.
    with pytest.raises(MemoryError):
        decode(resolve("pickle"), b"\x80\x05\x8e" + struct.pack("<Q", 2**62) + b".", 12)


def test_a_deep_pickle_is_harmless():
    # The unpickler does not recurse, and neither does the freeing of what it built.
    assert type(resolve("pickle").loads(b"\x80\x05" + b"]" * 200_000 + b"a" * 199_999 + b".")) is list


@pytest.mark.parametrize("name", ["cbor", "json", "msgpack"])
@given(data=st.binary(max_size=200))
def test_any_bytes_are_an_item_or_a_decode_error(name, data):
    with contextlib.suppress(DecodeError):
        decode(resolve(name), data, 1)


@pytest.mark.parametrize("name", ["cbor", "json", "msgpack", "pickle"])
def test_any_beginning_of_an_item_is_a_decode_error(name):
    serializer = resolve(name)
    data = serializer.dumps({"name": ["x" * 40, 1.5, -7, None], "more": {"a": True}})
    for end in range(len(data)):
        with pytest.raises(DecodeError):
            decode(serializer, data[:end])


def test_errors_name_types_and_never_quote():
    with pytest.raises(EncodeError) as encoding:
        encode(resolve("json"), {"secret": {"in": b"hunter2"}})
    assert str(encoding.value) == "an item of type dict cannot be serialized with 'json' (TypeError)"
    with pytest.raises(DecodeError) as decoding:
        decode(resolve("json"), b'{"password": hunter2}')
    assert "hunter2" in decoding.value.__cause__.doc  # type: ignore[union-attr]
    assert "hunter2" not in str(decoding.value)
    assert decoding.value.id is None


class Hostile:
    """An object that raises while it is read, with a text of its own."""

    def __reduce__(self):
        return _fail, ("hunter2",)


def _fail(text):
    raise AttributeError(f"Can't get attribute '{text} {text}' on <module '{text}'")


@pytest.mark.parametrize(
    ("data", "missing"),
    [
        (
            b"\x80\x05cno_such_module\nname\n.",
            "ModuleNotFoundError: this process has no module no_such_module",
        ),
        (b"\x80\x05cos.nope\nname\n.", "ModuleNotFoundError: this process has no module os.nope"),
        (b"\x80\x05cos\nnope\n.", "AttributeError: this process has no class or function os.nope"),
        (
            b"\x80\x05\x8c\x02os\x8c\x09path.nope\x93.",
            "AttributeError: this process has no class or function os.path.nope",
        ),
        # Bytes that are no name may be a payload.
        (b"\x80\x05cos\nhunter2 hunter2\n.", "AttributeError"),
        (b"\x80\x05chunter2 hunter2\nname\n.", "ModuleNotFoundError"),
        (b"\x80\x05c" + b"h" * 300 + b"\nname\n.", "ModuleNotFoundError"),
        (pickle.dumps(Hostile()), "AttributeError"),
    ],
)
def test_a_missing_module_or_class_is_named(data, missing):
    with pytest.raises(DecodeError) as caught:
        decode(resolve("pickle"), data, 7)
    assert str(caught.value) == (
        f"item 7 cannot be deserialized with 'pickle' ({missing}); it stays stored, skip(7) removes it"
    )


def test_a_missing_attribute_is_named_where_python_says_whose_it_was():
    def loads(data):
        return getattr(re, data.decode())

    serializer = types.SimpleNamespace(name="named", executes_code=True, dumps=str.encode, loads=loads)
    with pytest.raises(DecodeError, match=r"this process has no class or function re\.nope"):
        decode(serializer, b"nope")
    with pytest.raises(DecodeError, match=r"\(AttributeError\)$"):
        decode(serializer, b"no pe")


def test_an_interrupt_is_no_decode_error():
    class Interrupted:
        name = "interrupted"
        executes_code = False

        def dumps(self, obj):
            raise KeyboardInterrupt

        def loads(self, data):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode(resolve(Interrupted()), 1)
    with pytest.raises(KeyboardInterrupt):
        decode(resolve(Interrupted()), b"")


def bomb(size):
    """Return a zlib stream of about a thousandth of ``size`` zero bytes, without compressing all of them."""
    deflate = zlib.compressobj(9, wbits=-15)
    megabyte = deflate.compress(bytes(1 << 20)) + deflate.flush(zlib.Z_FULL_FLUSH)
    return b"\x78\xda" + megabyte * (size >> 20) + b"\x03\x00"


def test_a_bomb_is_refused_without_being_inflated():
    data = bomb(1 << 30)
    assert 1_000_000 < len(data) < 1_200_000
    limit = 1 << 20
    serializer = compressed("raw", limit=limit)
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError, match="more than the limit"):
            serializer.loads(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # The output, once in blocks and once joined, and no more.
    assert peak < 2 * limit + (1 << 17) + len(data)


def test_pickles_are_read_by_the_standard_library():
    item = {"a": (1, 2)}
    assert pickle.loads(resolve("pickle").dumps(item)) == item
    assert resolve("pickle").loads(pickle.dumps(item, protocol=0)) == item
