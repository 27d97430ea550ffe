"""One spelling for equal values: what unique queues compare items by, and the keys of ``PDict``.

The invariant: ``canonical(a) == canonical(b)`` exactly if ``a == b``, for the types that are
accepted. So ``{"a": 1, "b": 2}`` and ``{"b": 2.0, "a": True}`` are one key, as in a dict, and
``[1]`` and ``(1,)`` are two. Pickle could not do this: it depends on insertion order, on object
identity and on the version of Python.

A value is spelled as one letter, its length or count, and its content, so no value's spelling is
the beginning of another's. The spelling is stored; it is a format and must not change.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

__all__ = ["canonical"]


def canonical(obj: Any, /) -> bytes:
    """The bytes of ``obj``, the same for every value equal to it, different for every other.

    Accepts ``None``, bool, int, float, str, bytes, and list, tuple, dict, set and frozenset of
    them; exactly these types, because a subclass may define an equality of its own. Thread-safe as
    long as nobody changes ``obj`` meanwhile.

    :raises TypeError: for any other type.
    :raises ValueError: for NaN, which does not equal itself, and for what contains itself.
    :raises RecursionError: for what is nested too deeply for the stack that is left.

    >>> canonical({"b": 2, "a": [1, None]}) == canonical({"a": [True, None], "b": 2.0})
    True
    >>> canonical([1]) == canonical((1,))
    False
    >>> canonical(float("nan"))
    Traceback (most recent call last):
    ValueError: NaN does not equal itself, so an item that is NaN or holds one cannot be compared with others
    """
    try:
        return _canonical(obj)
    except RecursionError:
        if not _contains_itself(obj):
            raise  # the stack is short, which says nothing about the value
    # After the except clause, to let go of a thousand frames.
    raise ValueError("an item that contains itself cannot be compared with others")


def _contains_itself(obj: Any) -> bool:
    """Without recursion: goes down from each container to its parts, and knows those that it is within."""
    within: set[int] = set()
    finished: set[int] = set()
    path = [(obj, iter(_parts(obj)))]
    while path:
        container, parts = path[-1]
        within.add(id(container))
        for part in parts:
            if id(part) in within:
                return True
            if id(part) not in finished and _parts(part):
                path.append((part, iter(_parts(part))))
                break
        else:
            path.pop()
            within.discard(id(container))
            finished.add(id(container))
    return False


def _parts(obj: Any) -> list[Any]:
    if type(obj) is dict:
        return [*obj.keys(), *obj.values()]
    return list(obj) if type(obj) in (list, tuple, set, frozenset) else []


def _canonical(obj: Any) -> bytes:
    encode = _ENCODERS.get(type(obj))
    if encode is None:
        raise TypeError(
            f"an item that is or holds a {type(obj).__qualname__} cannot be compared with others: only None,"
            " bool, int, float, str, bytes, and lists, tuples, dicts, sets and frozensets of them can"
        )
    return encode(obj)


def _encode_none(obj: None) -> bytes:
    return b"n"


def _encode_int(obj: int) -> bytes:
    # Hexadecimal, because Python limits how long a decimal one may be. bool comes here as well.
    return b"i%x;" % obj


def _encode_float(obj: float) -> bytes:
    # Equal to an int: spelled as that int, also -0.0.
    if obj.is_integer():
        return b"i%x;" % int(obj)
    if obj != obj:
        raise ValueError(
            "NaN does not equal itself, so an item that is NaN or holds one cannot be compared with others"
        )
    return b"f" + struct.pack(">d", obj)


def _encode_str(obj: str) -> bytes:
    # Lone surrogates are legal in a str, and pass unchanged.
    text = obj.encode("utf-8", "surrogatepass")
    return b"s%d:%s" % (len(text), text)


def _encode_bytes(obj: bytes) -> bytes:
    return b"b%d:%s" % (len(obj), obj)


def _encode_list(obj: list[Any]) -> bytes:
    return b"l%d:%s" % (len(obj), b"".join(map(_canonical, obj)))


def _encode_tuple(obj: tuple[Any, ...]) -> bytes:
    return b"t%d:%s" % (len(obj), b"".join(map(_canonical, obj)))


def _encode_set(obj: set[Any] | frozenset[Any]) -> bytes:
    return b"e%d:%s" % (len(obj), b"".join(sorted(map(_canonical, obj))))


def _encode_dict(obj: dict[Any, Any]) -> bytes:
    # Sorted by the key's spelling alone: none is the beginning of another.
    pairs = sorted([_canonical(key) + _canonical(value) for key, value in obj.items()])
    return b"d%d:%s" % (len(pairs), b"".join(pairs))


_ENCODERS: dict[type, Callable[[Any], bytes]] = {
    type(None): _encode_none,
    bool: _encode_int,
    bytes: _encode_bytes,
    dict: _encode_dict,
    float: _encode_float,
    frozenset: _encode_set,
    int: _encode_int,
    list: _encode_list,
    set: _encode_set,
    str: _encode_str,
    tuple: _encode_tuple,
}
