"""What ``serializer=`` accepts, what it becomes, and how it travels to another process."""

from __future__ import annotations

import functools
import json
import marshal
import pickle
import sys
import types
from typing import Any

import pytest

from persistcoll import serializers
from persistcoll.errors import DecodeError, EncodeError, SerializerError
from persistcoll.serializers import (
    Codec,
    ModuleReference,
    codec,
    compressed,
    decode,
    encode,
    encrypted,
    key_from_env,
    locate,
    resolve,
    signed,
)
from persistcoll.serializers import json as our_json
from persistcoll.serializers import pickle as our_pickle

KEY = b"0123456789abcdef"


class Text:
    """A serializer like json: str in both directions, bytes refused."""

    def dumps(self, obj):
        return json.dumps(obj)

    def loads(self, text):
        if type(text) is not str:
            raise TypeError("str wanted")
        return json.loads(text)


class Static:
    name = "static"

    @staticmethod
    def dumps(obj):
        return bytearray(repr(obj).encode())

    @staticmethod
    def loads(data):
        return data.decode()


class Files:
    @staticmethod
    def dump(obj, fp):
        fp.write(len(obj).to_bytes(2, "big"))
        fp.write(obj)

    @staticmethod
    def load(fp):
        return fp.read(int.from_bytes(fp.read(2), "big"))


class Native:
    name = "native"
    executes_code = False

    def dumps(self, obj):
        return repr(obj).encode()

    def loads(self, data):
        return data.decode()


class Untouchable:
    """A serializer that fails the test when it is called."""

    def dumps(self, obj):
        pytest.fail("dumps was called")

    def loads(self, data):
        pytest.fail("loads was called")


def module(called, /, **members):
    made = types.ModuleType(called)
    vars(made).update(members)
    return made


@pytest.mark.parametrize("name", ["cbor", "json", "msgpack", "pickle", "raw"])
def test_a_built_in_one_by_name(name):
    found = resolve(name)
    assert found is sys.modules[f"persistcoll.serializers.{name}"]
    assert resolve(found) is found
    assert locate(found) == name


def test_the_standard_librarys_modules_stand_for_ours():
    assert resolve(pickle) is our_pickle
    assert resolve(json) is our_json
    assert (locate(pickle), locate(json)) == ("pickle", "json")


@pytest.mark.parametrize("name", ["yaml", "", "os", "signed(pickle)", "persistcoll.errors", "base", "JSON"])
def test_an_unknown_name_is_an_error_that_lists_the_known(name):
    before = set(sys.modules)
    with pytest.raises(SerializerError, match=r"'cbor', 'json', 'msgpack', 'pickle', 'raw'"):
        resolve(name)
    assert set(sys.modules) == before


@pytest.mark.parametrize("wrong", [None, 3, b"json", object(), int, [], functools, codec("raw", b"id")])
def test_anything_else_is_a_type_error(wrong):
    with pytest.raises(TypeError):
        resolve(wrong)


def test_half_a_serializer_is_a_type_error_that_says_what_is_accepted():
    with pytest.raises(
        TypeError, match=r"dumps\(obj\) and loads\(data\), or with dump\(obj, fp\) and load\(fp\)"
    ):
        resolve(module("half", dumps=repr))


def test_nothing_is_called_before_the_first_item():
    untouched = Untouchable()
    wrapped = compressed(signed(untouched, KEY))
    assert codec(wrapped, b"id").name == f"signed(compressed({__name__}.Untouchable))"
    assert locate(untouched) is untouched


def test_a_complete_serializer_is_taken_as_it_is():
    native = Native()
    assert resolve(native) is native
    assert locate(native) is native


def test_an_object_that_gives_str_is_stored_as_utf_8():
    adapted = resolve(Text())
    assert adapted.dumps("é") == b'"\\u00e9"'
    assert adapted.loads('"é"'.encode()) == "é"


def test_an_object_that_gives_bytes_is_stored_as_it_is():
    adapted = resolve(marshal)
    for item in ([1], {"a": None}):
        assert adapted.dumps(item) == marshal.dumps(item)
        assert adapted.loads(adapted.dumps(item)) == item


def test_a_first_loads_finds_out_that_str_is_wanted():
    assert resolve(Text()).loads('"é"'.encode()) == "é"


def test_a_first_loads_finds_out_even_if_few_items_are_taken():
    def dumps(obj):
        return json.dumps(obj + "")

    fussy = module("fussy", dumps=dumps, loads=Text().loads)
    assert resolve(fussy).loads(b'"a"') == "a"


def test_a_first_loads_gives_bytes_where_nothing_could_be_found_out():
    def dumps(obj):
        raise ValueError("not that")

    adapted = resolve(module("fussy", dumps=dumps, loads=lambda data: data))
    assert adapted.loads(b"abc") == b"abc"


@pytest.mark.parametrize("order", [("a", b"a"), (b"a", "a")])
def test_str_for_some_items_and_bytes_for_others_is_refused(order):
    adapted = resolve(module("fickle", dumps=lambda obj: obj, loads=lambda data: data))
    first, second = order
    encode(adapted, first)
    with pytest.raises(EncodeError) as caught:
        encode(adapted, second)
    assert "bytes for some items and str for others" in str(caught.value.__cause__)


@pytest.mark.parametrize("result", [None, 3, ["a"]])
def test_dumps_that_gives_neither_str_nor_bytes_is_refused(result):
    adapted = resolve(module("odd", dumps=lambda obj: result, loads=repr))
    with pytest.raises(EncodeError):
        encode(adapted, 1)


@pytest.mark.parametrize("kind", [bytearray, memoryview, type("B", (bytes,), {})])
def test_what_is_like_bytes_becomes_bytes(kind):
    adapted = resolve(module("views", dumps=lambda obj: kind(b"abc"), loads=repr))
    assert type(adapted.dumps(1)) is bytes
    assert adapted.dumps(1) == b"abc"


def test_a_class_with_static_functions():
    adapted = resolve(Static)
    assert adapted.name == "static"
    assert adapted.loads(adapted.dumps([1])) == "[1]"
    assert repr(adapted) == "static"


def test_an_object_with_dump_and_load_sees_one_item():
    adapted = resolve(Files())
    assert adapted.name == f"{__name__}.Files"
    data = adapted.dumps(b"abc")
    assert data == b"\0\3abc"
    assert adapted.loads(data) == b"abc"
    with pytest.raises(DecodeError) as caught:
        decode(adapted, data + b"de")
    assert "left 2 bytes unread" in str(caught.value.__cause__)


def test_a_dump_that_writes_str_is_an_encode_error():
    with pytest.raises(EncodeError):
        encode(resolve(module("text", dump=json.dump, load=json.load)), [1])


def test_dumps_and_loads_go_before_dump_and_load():
    both = types.SimpleNamespace(dumps=lambda obj: b"s", loads=len, dump=None, load=None)
    assert resolve(both).dumps(1) == b"s"


@pytest.mark.parametrize(
    ("given", "executes"),
    [
        (marshal, True),
        (module("pickle5", dumps=repr, loads=repr), True),
        (module("dill", dumps=repr, loads=repr), True),
        (module("dill.session", dumps=repr, loads=repr), True),
        (module("cloudpickle.fast", dumps=repr, loads=repr), True),
        (module("mine", dumps=pickle.dumps, loads=pickle.loads), True),
        (module("mine", dumps=functools.partial(pickle.dumps, protocol=2), loads=len), True),
        (module("mine", dump=pickle.dump, load=pickle.load), True),
        (type("Sub", (pickle.Pickler,), {"dumps": len, "loads": len}), True),
        (module("mine", dumps=json.dumps, loads=json.loads), False),
        (module("dillinger", dumps=len, loads=len), False),
        (module("mine", dumps=pickle.dumps, loads=pickle.loads, executes_code=False), False),
        (module("mine", dumps=json.dumps, loads=json.loads, executes_code=True), True),
        (Text(), False),
    ],
)
def test_a_foreign_one_executes_code_if_it_comes_from_a_module_that_does(given, executes):
    assert resolve(given).executes_code is executes


def test_foreign_names():
    assert resolve(marshal).name == "marshal"
    assert resolve(Text()).name == f"{__name__}.Text"
    assert resolve(Text).name == f"{__name__}.Text"
    assert resolve(module("a.b", dumps=repr, loads=repr)).name == "a.b"
    assert resolve(module("a.b", dumps=repr, loads=repr, name="c")).name == "c"


@pytest.mark.parametrize(
    "given",
    ["json", json, our_json, marshal, Text(), Static, Native(), compressed(marshal, level=1, limit=99)],
    ids=lambda serializer: getattr(serializer, "__name__", None) or getattr(serializer, "name", None),
)
def test_what_is_located_pickles_and_resolves_to_the_same(given):
    travelled = resolve(pickle.loads(pickle.dumps(locate(given))))
    assert travelled.name == resolve(given).name
    item = {"a": [1]}
    assert travelled.dumps(item) == resolve(given).dumps(item)


def test_a_module_is_located_by_its_name():
    assert locate(marshal) == ModuleReference("marshal")
    assert resolve(ModuleReference("json")) is our_json
    with pytest.raises(TypeError, match="cannot be imported by that name"):
        locate(module("nowhere", dumps=repr, loads=repr))
    with pytest.raises(TypeError, match="cannot be imported by that name"):
        locate(module("marshal", dumps=repr, loads=repr))


def test_an_adapted_one_pickles_by_what_it_adapts():
    assert pickle.loads(pickle.dumps(resolve(marshal))).name == "marshal"


def test_the_codec_of_an_ordinary_serializer_has_no_seals():
    store = codec("json", b"id")
    assert store == Codec("json", False, our_json.dumps, our_json.loads, None, None)
    assert codec(compressed("json"), b"id").seal is None


def test_nested_seals_go_on_from_the_inside_and_off_from_the_outside():
    wrapped = signed(encrypted("json", KEY), KEY)
    store: Any = codec(wrapped, b"id")
    inner: Any = codec(encrypted("json", KEY), b"id")
    # The inner seal is bound to its own name, the outer one to the whole.
    assert store.name == "signed(encrypted(json))"
    data = store.dumps([1])
    assert data == b"[1]"
    stored = store.seal(data, 9)
    assert inner.unseal(stored[32:], 9) == data
    assert store.unseal(stored, 9) == data
    with pytest.raises(DecodeError):
        store.unseal(stored, 8)
    assert wrapped.loads(wrapped.dumps([1])) == [1]


def test_public_names_are_sorted_and_there():
    assert serializers.__all__ == sorted(serializers.__all__)
    for name in serializers.__all__:
        assert hasattr(serializers, name)


def test_a_wrapper_travels_without_its_keys(monkeypatch):
    monkeypatch.setenv("QUEUE_KEY", "correct horse battery")
    wrapped = signed(compressed("json"), key_from_env("QUEUE_KEY"))
    travelling = pickle.dumps(locate(wrapped))
    assert b"correct" not in travelling
    arrived = resolve(pickle.loads(travelling))
    assert arrived.name == "signed(compressed(json))"
    assert arrived.loads(wrapped.dumps([1])) == [1]
    monkeypatch.delenv("QUEUE_KEY")
    with pytest.raises(ValueError, match="'QUEUE_KEY', which is to hold a key, is not set"):
        pickle.loads(travelling)


@pytest.mark.parametrize("keys", [KEY, [key_from_env("QUEUE_KEY"), KEY]], ids=["bytes", "mixed"])
@pytest.mark.parametrize("wrap", [signed, encrypted])
def test_a_key_given_as_bytes_does_not_travel(wrap, keys, monkeypatch):
    monkeypatch.setenv("QUEUE_KEY", "0123456789abcdef")
    for wrapped in (wrap("json", keys), compressed(wrap("json", keys))):
        with pytest.raises(TypeError, match="must not go into a pickle"):
            pickle.dumps(locate(wrapped))
