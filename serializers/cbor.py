"""CBOR (RFC 8949): binary, with dates, decimals, sets and big integers. Needs
``pip install 'persistcoll[cbor]'``.

Importing this module without the library raises
:class:`~persistcoll.errors.SerializerMissingError`, an ``ImportError``. The library is cbor2 6.1
or later: the first that lets single tags be refused, and whose decoder does not recurse.

What does not round-trip:

============================  ===================================================================
tuple, range                  comes back as a list; as the key of a dict, a tuple as a tuple
frozenset                     comes back as a set; as a key or in a set, as a frozenset
bytearray                     comes back as bytes
naive datetime                refused: its time zone would be a guess
compiled regex, e-mail        refused, in both directions
an object held in two places  comes back as two objects
lone surrogates               refused: ``UnicodeEncodeError``, a ``ValueError``
nesting beyond 400            refused; an object that contains itself, too
============================  ===================================================================

Refused tags: 28 and 29 (shared references, which build objects that contain themselves), 35
(compiles a regular expression that the writer chose) and 36 (parses e-mail). Thread-safe.

>>> from decimal import Decimal
>>> from persistcoll.serializers import cbor
>>> cbor.loads(cbor.dumps({"price": Decimal("9.90"), "sizes": {1}, "big": 2**70, "pair": (1, 2)}))
{'price': Decimal('9.90'), 'sizes': {1}, 'big': 1180591620717411303424, 'pair': [1, 2]}
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from typing import Any

from persistcoll.serializers.base import import_optional

__all__ = ["dumps", "executes_code", "loads", "name"]

name = "cbor"
executes_code = False

_cbor2 = import_optional("cbor2", extra="cbor", minimum=(6, 1))

# The encoder has no limit of its own: it overflows the C stack at a few thousand.
_DEPTH = 400
# The decoder, which does not recurse, counts a set or a decimal, which has a tag, twice.
_DECODED_DEPTH = 2 * _DEPTH + 10
_SCALARS = frozenset({str, int, float, bool, bytes, bytearray, memoryview, type(None)})
_MANY = 1000


def _refuse(value: object, immutable: bool) -> None:
    raise ValueError("this tag is refused")


loads: Callable[[bytes], Any] = partial(
    _cbor2.loads, semantic_decoders=dict.fromkeys((28, 29, 35, 36), _refuse), max_depth=_DECODED_DEPTH
)

# The refused tags as the encoder writes them; also found inside strings and numbers.
_maybe_refused = re.compile(rb"\xd8[\x1c\x1d\x23\x24]").search


def dumps(obj: Any, /) -> bytes:
    """``obj`` as CBOR. ``ValueError`` or the library's errors for what ``loads`` would not give back."""
    if type(obj) not in _SCALARS:
        _check_depth(obj)
    data: bytes = _cbor2.dumps(obj)
    if 0xD8 in data and _maybe_refused(data):
        loads(data)  # raises if it is one
    return data


def _check_depth(obj: Any) -> None:
    level = [obj]
    for _ in range(_DEPTH + 1):
        deeper: list[Any] = []
        for container in level:
            if isinstance(container, (dict, Mapping)):
                deeper += _no_scalars(container)
                deeper += _no_scalars(container.values())
            elif isinstance(container, (list, tuple, Sequence, AbstractSet)):
                deeper += _no_scalars(container)
            elif isinstance(container, _cbor2.CBORTag):
                deeper.append(container.value)
        if not deeper:
            return
        if len(deeper) > _MANY:
            # Each object once: one that contains itself twice would double the level each time.
            deeper = list({id(part): part for part in deeper}.values())
        level = deeper
    raise ValueError(f"nested more than {_DEPTH} deep, or it contains itself")


def _no_scalars(parts: Collection[Any]) -> Collection[Any]:
    # The loop over all parts is C, and nearly always the only one.
    if _SCALARS.issuperset(map(type, parts)):
        return ()
    return [part for part in parts if type(part) not in _SCALARS]
