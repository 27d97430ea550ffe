"""MessagePack: like JSON but smaller, and it has bytes.

It needs ``pip install 'persistcoll[msgpack]'``. Importing this module without the library raises
:class:`~persistcoll.errors.SerializerMissingError`, an ``ImportError``.

What does not round-trip:

============================  ===================================================================
tuple                         becomes a list; as the key of a dict, it stays a tuple
bytearray, memoryview         become bytes
int beyond 64 bits            refused: ``OverflowError``
set, datetime, Decimal        refused, as every other type: ``TypeError``
lone surrogates               refused: ``UnicodeEncodeError``, a ``ValueError``
nesting beyond 511            refused: ``ValueError``
============================  ===================================================================

Keys may be of any type that the format has (``strict_map_key=False``), integers above all. NaN and infinity
round-trip. A declared length is bounded by the length of the data. Thread-safe.

>>> from persistcoll.serializers import msgpack
>>> msgpack.loads(msgpack.dumps({1: (b"raw", None), (2, 3): 1.5}))
{1: [b'raw', None], (2, 3): 1.5}
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from persistcoll.serializers.base import import_optional

__all__ = ["dumps", "executes_code", "loads", "name"]

name = "msgpack"
executes_code = False

_msgpack = import_optional("msgpack", extra="msgpack", minimum=(1, 0))
_unpack: Callable[..., Any] = partial(_msgpack.unpackb, strict_map_key=False)

# Not a Packer's pack, because a Packer is not thread-safe, and packb costs only the construction of one more.
# The library distinguishes str and bytes in both directions since 1.0.
dumps: Callable[[Any], bytes] = _msgpack.packb


def loads(data: bytes, /) -> Any:
    """Return the object of one MessagePack value.

    The library's errors pass unchanged.
    """
    try:
        return _unpack(data)
    except TypeError:
        # The key of a dict was an array: a tuple was put. That is rare, so it costs a second pass here, and
        # not a hook that C calls for each dict.
        return _unpack(data, object_pairs_hook=_with_hashable_keys)


def _with_hashable_keys(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    return {_hashable(key): value for key, value in pairs}


def _hashable(key: Any) -> Any:
    return tuple(map(_hashable, key)) if type(key) is list else key
