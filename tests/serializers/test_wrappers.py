"""signed, encrypted, compressed: what they let pass, and that they let nothing else pass."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persistcoll.errors import DecodeError, EncodeError
from persistcoll.serializers import codec, compressed, decode, encode, encrypted, resolve, signed

KEY = b"0123456789abcdef"
OTHER = b"fedcba9876543210"
STORE = b"store one"

sealing = pytest.mark.parametrize("wrap", [signed, encrypted])


def bound(serializer, store) -> Any:
    """Return the codec with its seals, which are not ``None`` here."""
    return codec(serializer, store)


class Tripwire:
    """A serializer that must not decode, because the bytes are not verified."""

    name = "tripwire"
    executes_code = True

    def dumps(self, obj):
        return b"payload"

    def loads(self, data):
        pytest.fail("unverified bytes were decoded")


@sealing
@given(
    item=st.binary(max_size=300),
    store=st.binary(max_size=40),
    record=st.integers(-(2**63), 2**63 - 1),
)
def test_what_was_sealed_unseals(wrap, item, store, record):
    ready = bound(wrap("raw", KEY), store)
    stored = ready.seal(ready.dumps(item), record)
    assert ready.loads(ready.unseal(stored, record)) == item


@sealing
def test_every_flipped_bit_is_refused(wrap):
    ready = bound(wrap("raw", KEY), STORE)
    stored = ready.seal(b"twenty bytes or more", 5)
    for place in range(len(stored)):
        for bit in range(8):
            damaged = bytearray(stored)
            damaged[place] ^= 1 << bit
            with pytest.raises(DecodeError) as caught:
                ready.unseal(bytes(damaged), 5)
            assert caught.value.id == 5


@sealing
def test_every_cut_and_every_addition_is_refused(wrap):
    ready = bound(wrap("raw", KEY), STORE)
    stored = ready.seal(b"payload", 5)
    for end in range(len(stored)):
        with pytest.raises(DecodeError):
            ready.unseal(stored[:end], 5)
    for longer in (stored + b"\0", b"\0" + stored, stored + stored):
        with pytest.raises(DecodeError):
            ready.unseal(longer, 5)


@sealing
def test_an_item_in_another_place_is_refused(wrap):
    ready = bound(wrap("raw", KEY), STORE)
    stored = ready.seal(b"payload", 5)
    for record in (0, 4, 6, -5, 5 << 8):
        with pytest.raises(DecodeError, match="another"):
            ready.unseal(stored, record)


@sealing
@pytest.mark.parametrize("store", [b"", b"store two", b"store one ", b"store on"])
def test_an_item_of_another_store_is_refused(wrap, store):
    stored = bound(wrap("raw", KEY), STORE).seal(b"payload", 5)
    with pytest.raises(DecodeError):
        bound(wrap("raw", KEY), store).unseal(stored, 5)


@sealing
def test_an_item_of_another_serializer_is_refused(wrap):
    stored = bound(wrap("json", KEY), STORE).seal(b"1", 5)
    for inner in ("raw", "pickle", compressed("json")):
        with pytest.raises(DecodeError):
            bound(wrap(inner, KEY), STORE).unseal(stored, 5)


@sealing
def test_store_and_name_cannot_run_into_each_other(wrap):
    class Named:
        executes_code = False
        dumps = loads = staticmethod(lambda data: data)

        def __init__(self, name):
            self.name = name

    verb = wrap.__name__
    # The same bytes, cut at another place.
    a = bound(wrap(Named("x)"), KEY), f"a{verb}(".encode())
    b = bound(wrap(Named(f"{verb}(x)"), KEY), b"a")
    with pytest.raises(DecodeError):
        b.unseal(a.seal(b"payload", 5), 5)


@sealing
def test_nothing_is_decoded_before_it_is_verified(wrap):
    outside = wrap(Tripwire(), KEY)
    forged = wrap(Tripwire(), OTHER).dumps(None)
    for data in (forged, b"", b"payload", bytes(100)):
        with pytest.raises(DecodeError) as caught:
            outside.loads(data)
        assert caught.value.id is None
    bomb = signed(compressed(Tripwire()), OTHER).dumps(None)
    with pytest.raises(DecodeError, match="signature"):
        signed(compressed(Tripwire()), KEY).loads(bomb)


@sealing
def test_keys_are_rotated_by_putting_the_new_one_in_front(wrap):
    old, new, both = wrap("json", OTHER), wrap("json", KEY), wrap("json", [KEY, OTHER])
    assert both.loads(old.dumps(1)) == 1
    assert both.loads(new.dumps(2)) == 2
    assert new.loads(both.dumps(3)) == 3
    with pytest.raises(DecodeError):
        old.loads(both.dumps(3))
    with pytest.raises(DecodeError):
        new.loads(old.dumps(1))


@sealing
def test_wrappers_name_themselves_and_never_their_keys(wrap):
    wrapped = compressed(wrap("json", [KEY, OTHER]))
    assert wrapped.name == repr(wrapped) == f"{wrap.__name__}(compressed(json))"
    assert wrapped.executes_code is False
    with pytest.raises(DecodeError) as caught:
        wrapped.loads(bytes(100))
    for text in (repr(wrapped), str(wrapped), str(caught.value), repr(bound(wrapped, STORE))):
        assert KEY.decode() not in text
        assert OTHER.decode() not in text


def test_only_a_verified_pickle_does_not_count_as_executing_code():
    assert compressed("pickle").executes_code is True
    assert signed("pickle", KEY).executes_code is False
    assert encrypted("pickle", KEY).executes_code is False
    assert compressed(signed("pickle", KEY)).executes_code is False
    assert compressed("json").executes_code is False


@pytest.mark.parametrize(
    ("wrap", "key", "error"),
    [
        (signed, b"", ValueError),
        (signed, b"fifteen bytes..", ValueError),
        (signed, [], ValueError),
        (signed, [KEY, b"short"], ValueError),
        (signed, "a key that is no bytes", TypeError),
        (signed, ["a key that is no bytes"], TypeError),
        (signed, [KEY, None], TypeError),
        (signed, bytearray(KEY), TypeError),
        (signed, None, TypeError),
        (encrypted, b"", ValueError),
        (encrypted, KEY + b"0", ValueError),
        (encrypted, [KEY, bytes(31)], ValueError),
    ],
)
def test_a_wrong_key_is_refused_and_not_quoted(wrap, key, error):
    with pytest.raises(error) as caught:
        wrap("json", key)
    assert "no bytes" not in str(caught.value)


@pytest.mark.parametrize("length", [16, 24, 32])
def test_aes_keys_have_three_lengths(length):
    wrapped = encrypted("json", bytes(length))
    assert wrapped.loads(wrapped.dumps([1])) == [1]


def test_equal_items_are_encrypted_differently():
    wrapped = encrypted("raw", KEY)
    assert len({wrapped.dumps(b"same") for _ in range(100)}) == 100
    assert len(wrapped.dumps(b"same")) == 4 + 28


@given(st.binary(max_size=2000), st.integers(-1, 9))
def test_what_was_compressed_decompresses(item, level):
    wrapped = compressed("raw", level=level)
    assert wrapped.loads(wrapped.dumps(item)) == item


def test_compression_comes_before_the_seals_however_it_is_written():
    for wrap in (signed, encrypted):
        one, other = compressed(wrap("json", KEY), level=9), wrap(compressed("json", level=9), KEY)
        assert one.name == other.name
        assert one.loads(other.dumps("word " * 100)) == other.loads(one.dumps("word " * 100))
        ready = bound(one, STORE)
        assert len(ready.dumps("word " * 100)) < 100
    assert repr(compressed(signed(encrypted("json", KEY), KEY))) == "signed(encrypted(compressed(json)))"


@pytest.mark.parametrize("beyond", [-1, 0, 1])
@pytest.mark.parametrize("level", [0, 6])
def test_the_limit_is_the_most_that_passes(beyond, level):
    generous, strict = compressed("raw", level=level), compressed("raw", level=level, limit=70_000)
    item = bytes(70_000 + beyond)
    if beyond > 0:
        with pytest.raises(EncodeError, match="70001 bytes are more than the limit of 70000"):
            encode(strict, item)
        with pytest.raises(DecodeError, match="more than the limit of 70000"):
            decode(strict, generous.dumps(item))
    else:
        assert strict.loads(strict.dumps(item)) == item


def test_a_compressed_item_that_is_not_whole_is_refused():
    wrapped = compressed("raw")
    data = wrapped.dumps(b"some bytes" * 20)
    for end in range(len(data)):
        with pytest.raises(DecodeError):
            decode(wrapped, data[:end])
    for longer in (data + b"\0", data + data):
        with pytest.raises(DecodeError, match="bytes after"):
            decode(wrapped, longer)
    with pytest.raises(DecodeError):
        decode(wrapped, data[:-1] + bytes([data[-1] ^ 1]))


@pytest.mark.parametrize("options", [{"level": 10}, {"level": -2}, {"limit": 0}, {"limit": -1}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=r"level is|limit is"):
        compressed("json", **options)


def test_wrappers_take_what_resolve_takes():
    import json

    for inner in (json, "json", resolve("json")):
        assert signed(inner, KEY).name == "signed(json)"
    with pytest.raises(TypeError):
        signed(3, KEY)


def test_many_threads_share_a_wrapper():
    ready = bound(signed(encrypted(compressed("msgpack"), KEY), KEY), STORE)
    wrong = []

    def work(number):
        for record in range(200):
            item = [number, record]
            stored = ready.seal(ready.dumps(item), record)
            if ready.loads(ready.unseal(stored, record)) != item:
                wrong.append(item)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
