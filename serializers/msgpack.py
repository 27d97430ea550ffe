"""MessagePack: like JSON but smaller, and it has bytes. Needs ``pip install 'persistcoll[msgpack]'``.

Importing this module without the library raises
:class:`~persistcoll.errors.SerializerMissingError`, an ``ImportError``.

What does not round-trip:

============================  ===================================================================
tuple                         comes back as a list; as the key of a dict, as a tuple
bytearray, memoryview         come back as bytes
int beyond 64 bits            refused: ``OverflowError``
set, datetime, Decimal, ...   refused: ``TypeError``
lone surrogates               refused: ``UnicodeEncodeError``, a ``ValueError``
nesting beyond 511            refused: ``ValueError``
============================  ===================================================================

Keys may be of any type that the format has (``strict_map_key=False``), integers above all. NaN and
infinity round-trip. Declared lengths are bounded by the length of the data. Thread-safe.

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

# Not a Packer's pack: a Packer is not thread-safe, and packb costs only its construction more. str
# and bytes are told apart in both directions, which is what the library does by itself since 1.0.
dumps: Callable[[Any], bytes] = _msgpack.packb


def loads(data: bytes, /) -> Any:
    """The object of one MessagePack value. Raises whatever the library raises for anything else."""
    try:
        return _unpack(data)
    except TypeError:
        # The key of a dict was an array, that is, a tuple was put. Rare, so it costs a second pass
        # there instead of a hook called from C for each dict.
        return _unpack(data, object_pairs_hook=_with_hashable_keys)


def _with_hashable_keys(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    return {_hashable(key): value for key, value in pairs}


def _hashable(key: Any) -> Any:
    return tuple(map(_hashable, key)) if type(key) is list else key
