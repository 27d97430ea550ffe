"""The keys of ``PDict`` as bytes: what decides equality and order, and what gives the key back.

The invariants: ``key_bytes(a) == key_bytes(b)`` exactly if ``a == b``, for the types that are accepted, so
that ``1``, ``1.0`` and ``True`` are one key as in a dict; and str keys sort as Python sorts them, by code
point, so that those with a common beginning lie together. A str is spelled as ``s`` and its UTF-8, which
keeps that order, and any other key by its ``canonical`` spelling, which begins with another letter.

A dict keeps the key that was given first, and so does ``PDict``: beside the key lies its *name*, the same
spelling in which ``True``, ``False`` and ``1.0`` are not ``1``. It is empty where the key itself says all,
which is nearly always. Both are stored; they are a format and must not change.

=====  ===========================================================  ==========  ==================
first  then                                                         key         name
=====  ===========================================================  ==========  ==================
``s``  UTF-8, lone surrogates included                              a str       (empty)
``n``                                                               ``None``    (empty)
``i``  hexadecimal digits, ``;``                                    an integer  (empty) for an int
``f``  8 bytes, an IEEE 754 double, big-endian                      a float     a float like ``1.0``
``b``  length in decimal, ``:``, content                            bytes       (empty)
``t``  count in decimal, ``:``, so many spellings                   a tuple     a tuple with any of
                                                                                these in it
``T``                                                               never       ``True``
``F``                                                               never       ``False``
=====  ===========================================================  ==========  ==================

A str within a tuple is spelled ``s``, length in decimal, ``:``, UTF-8, so that what comes behind it is found.
"""

from __future__ import annotations

import reprlib
import struct
from collections.abc import Callable
from typing import Any

from persistcoll.errors import EncodeError
from persistcoll.serializers.canonical import canonical

__all__ = [
    "AFTER_ALL_STR",
    "BEFORE_ALL_STR",
    "format_key",
    "key_bytes",
    "key_from",
    "original_key",
    "str_range",
]

BEFORE_ALL_STR, AFTER_ALL_STR = b"s", b"t"
"""The keys of str are those from the one up to the other, which is not one of them."""

_SUPPORTED = "a key of a PDict is a str, bytes, int, float, bool, None or a tuple of them"
_NAN = "NaN does not equal itself, so it cannot be a key of a PDict or a part of one"
_DEEPEST = 64
_DOUBLE = struct.Struct(">d")


def key_bytes(key: object) -> bytes:
    """What is the same for equal keys, and different for others.

    :raises TypeError: for any other type; the message lists those that will do. Exactly those: a subclass
        may define an equality of its own, and would not come back as what it was.
    :raises EncodeError: (a ``ValueError``) for NaN, and for a tuple that is nested too deeply.

    >>> key_bytes("user:1"), key_bytes(1) == key_bytes(1.0) == key_bytes(True)
    (b'suser:1', True)
    >>> key_bytes((1, "a")) == key_bytes((1.0, "a"))
    True
    >>> key_bytes(["a"])
    Traceback (most recent call last):
    TypeError: a key of a PDict is a str, bytes, int, float, bool, None or a tuple of them, not a list
    """
    encode = _KEYS.get(type(key))
    if encode is None:
        raise _unsupported(key)
    return encode(key)


def original_key(key: object) -> bytes:
    """What :func:`key_from` needs besides the key's bytes to give back this very key; often nothing.

    >>> original_key("user:1"), original_key(1), original_key(1.0) != original_key(True)
    (b'', b'', True)
    """
    original = _ORIGINALS.get(type(key))
    return b"" if original is None else original(key)


def key_from(key: bytes, original: bytes = b"") -> Any:
    """The key of these bytes and this name.

    :raises ValueError: they are not what :func:`key_bytes` and :func:`original_key` gave for one key.

    >>> [key_from(key_bytes(key), original_key(key)) for key in ("a", True, 2.0, (None, -3, b"x"))]
    ['a', True, 2.0, (None, -3, b'x')]
    """
    if not original and key[:1] == b"s":
        return key[1:].decode("utf-8", "surrogatepass")
    found = _parsed(original or key)
    # What nobody checked yet: that the name is this key's.
    if original and key_bytes(found) != key:
        raise ValueError("a key's name is another key's")
    return found


def format_key(key: bytes) -> str:
    """The key of these bytes for a message: the bytes, where they are no key's.

    >>> print(format_key(key_bytes("a")), format_key(key_bytes((1, b"x"))), format_key(b"?"))
    'a' (1, b'x') b'?'
    """
    try:
        return reprlib.repr(key_from(key))
    except ValueError:
        return reprlib.repr(key)


def str_range(prefix: str, start: str | None, stop: str | None) -> tuple[bytes, bytes]:
    """The range of key bytes in which the str keys with ``prefix`` and ``start <= key < stop`` lie.

    The first is in it, if there is such a key, the other is not.

    >>> str_range("ab", None, None), str_range("", "b", "d")
    ((b'sab', b'sac'), (b'sb', b'sd'))
    """
    low = _encode_str(prefix)
    # No byte of UTF-8 is 0xFF, so the last one can always be counted up.
    high = low[:-1] + bytes([low[-1] + 1])
    return (
        low if start is None else max(low, _encode_str(start)),
        high if stop is None else min(high, _encode_str(stop)),
    )


def _unsupported(key: object) -> TypeError:
    kind = type(key)
    base = next((each for each in kind.__mro__ if each in _KEYS), None)
    hint = "" if base is None else f", which is a subclass of {base.__name__}: convert it"
    return TypeError(f"{_SUPPORTED}, not a {kind.__qualname__}{hint}")


# Keys.


def _encode_str(key: str) -> bytes:
    try:
        return b"s" + key.encode()
    except UnicodeEncodeError:
        # Lone surrogates are legal in a str. In this spelling, too, they sort by code point.
        return b"s" + key.encode("utf-8", "surrogatepass")


def _encode_int(key: int) -> bytes:
    return b"i%x;" % key


def _encode_float(key: float) -> bytes:
    if key != key:
        raise EncodeError(_NAN)
    return canonical(key)


def _encode_tuple(key: tuple[Any, ...]) -> bytes:
    _check_parts(key, 1)
    return canonical(key)


def _check_parts(key: tuple[Any, ...], depth: int) -> None:
    if depth > _DEEPEST:
        raise EncodeError(f"a tuple that is a key must not be nested more than {_DEEPEST} deep")
    for part in key:
        kind = type(part)
        if kind is tuple:
            _check_parts(part, depth + 1)
        elif kind not in _KEYS:
            raise _unsupported(part)
        elif part != part:
            raise EncodeError(_NAN)


_KEYS: dict[type, Callable[[Any], bytes]] = {
    type(None): canonical,
    bool: _encode_int,
    bytes: canonical,
    float: _encode_float,
    int: _encode_int,
    str: _encode_str,
    tuple: _encode_tuple,
}


# Names.


def _original_bool(key: bool) -> bytes:
    return b"T" if key else b"F"


def _original_float(key: float) -> bytes:
    # One that equals no int is spelled as a float in the key already.
    return b"f" + _DOUBLE.pack(key) if key.is_integer() else b""


def _original_tuple(key: tuple[Any, ...]) -> bytes:
    originals = list(map(original_key, key))
    if not any(originals):
        return b""
    parts = [original or canonical(part) for original, part in zip(originals, key, strict=True)]
    return b"t%d:%s" % (len(key), b"".join(parts))


_ORIGINALS: dict[type, Callable[[Any], bytes]] = {
    bool: _original_bool,
    float: _original_float,
    tuple: _original_tuple,
}


# And back.


def _parsed(data: bytes) -> Any:
    try:
        found, end = _parse(data, 0, 0)
    except (IndexError, struct.error) as error:
        raise ValueError("a key's bytes are cut short") from error
    if end != len(data):
        raise ValueError("there are bytes behind a key's")
    return found


def _parse(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    """The object whose spelling starts there, within so many tuples, and where it ends."""
    letter = data[at : at + 1]
    at += 1
    if letter in _SINGLE:
        return _SINGLE[letter], at
    if letter == b"f":
        return _DOUBLE.unpack_from(data, at)[0], at + _DOUBLE.size
    if letter == b"i":
        end = data.index(b";", at)
        return int(data[at:end], 16), end + 1
    if letter not in (b"b", b"s", b"t"):
        raise ValueError("a key's bytes begin with an unknown letter")
    colon = data.index(b":", at)
    count, at = int(data[at:colon]), colon + 1
    if letter == b"t":
        if depth == _DEEPEST:
            raise ValueError("a key's bytes are nested too deeply")
        parts = []
        for _ in range(count):
            part, at = _parse(data, at, depth + 1)
            parts.append(part)
        return tuple(parts), at
    end = at + count
    content = data[at:end]
    if len(content) != count:
        raise ValueError("a key's bytes are cut short")
    return (content if letter == b"b" else content.decode("utf-8", "surrogatepass")), end


_SINGLE: dict[bytes, Any] = {b"n": None, b"T": True, b"F": False}
