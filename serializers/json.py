r"""JSON as UTF-8: readable by everything, and safe to read from anywhere.

What does not round-trip:

===========================  ====================================================================
tuple, named tuple           becomes a list
key that is no str           int, float, bool and None become str (``{1: 2}`` to ``{"1": 2}``),
                             so two keys may become one; other keys are refused (``TypeError``)
Enum of int or str           becomes the plain int or str
bytes, set, datetime         refused, as every other type: ``TypeError``
NaN, infinity                refused in both directions: ``ValueError``
lone surrogates              refused: ``UnicodeEncodeError``, a ``ValueError``
int of over 4300 digits      refused by Python's own limit: ``ValueError``
deep nesting                 ``RecursionError``; bytes that are nested deeper than Python's
                             recursion limit are refused when they are read: ``ValueError``
===========================  ====================================================================

Thread-safe.

>>> from persistcoll.serializers import json
>>> json.dumps({"name": "Zoë", "tags": (1, 2)})
b'{"name":"Zo\xc3\xab","tags":[1,2]}'
>>> json.loads(_)
{'name': 'Zoë', 'tags': [1, 2]}
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any

__all__ = ["dumps", "executes_code", "loads", "name"]

name = "json"
executes_code = False


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
_decode = json.JSONDecoder(parse_constant=_refuse).decode
_strings_and_brackets = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]').finditer


def dumps(obj: Any, /) -> bytes:
    """Return ``obj`` as compact JSON in UTF-8.

    :raises TypeError: JSON has no such type.
    :raises ValueError: JSON has no such value.
    """
    return _encode(obj).encode()


def loads(data: bytes, /) -> Any:
    """Return the object of one JSON text in UTF-8.

    :raises ValueError: for anything else.
    """
    try:
        return _decode(data.decode())
    except RecursionError:
        # Text that is nested deeper than any stack is no shortage of stack, so skipping the item is right.
        if _depth(data.decode()) > sys.getrecursionlimit():
            raise ValueError("the JSON text is nested deeper than Python's recursion limit") from None
        raise


def _depth(text: str) -> int:
    deepest = depth = 0
    for found in _strings_and_brackets(text):
        if found[0] in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif found[0] in "]}":
            depth -= 1
    return deepest
