"""Bytes as they are, for programs that serialize items themselves.

What does not round-trip: bytearray and memoryview become bytes. Anything else is refused (``TypeError``),
also str, whose encoding would be a guess. Thread-safe.

>>> from persistcoll.serializers import raw
>>> raw.dumps(bytearray(b"as it is"))
b'as it is'
>>> raw.dumps("text")
Traceback (most recent call last):
TypeError: raw stores bytes, not str
"""

from __future__ import annotations

from typing import Any

__all__ = ["dumps", "executes_code", "loads", "name"]

name = "raw"
executes_code = False


def dumps(obj: Any, /) -> bytes:
    """Return ``obj``, which is bytes, bytearray or memoryview, as bytes.

    :raises TypeError: for anything else.
    """
    if type(obj) is bytes:
        return obj
    # Only what already is bytes may pass, because bytes(3) would be three zeros and bytes([3]) one byte.
    if isinstance(obj, (bytes, bytearray, memoryview)):
        return bytes(obj)
    raise TypeError(f"raw stores bytes, not {type(obj).__qualname__}")


def loads(data: bytes, /) -> bytes:
    """Return ``data`` unchanged."""
    return data
