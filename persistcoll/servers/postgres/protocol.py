"""Statements in the form in which libpq sends them, and its answers as rows of Python's objects.

A cursor of psycopg takes as long for a statement as the server does. Less is enough for the few types that
the statements of the stores have.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any, NamedTuple

__all__ = ["Statement", "compiled", "encoded", "rows_of"]

_PLACE = re.compile(r"%\((\w+)\)s|%%")
_TEXT, _BINARY = 0, 1
_BYTEA = 17  # the number of the type
_ARRAY = struct.Struct(">iiIii")
_LENGTH = struct.Struct(">i")
_NULL = _LENGTH.pack(-1)
_FLOAT = struct.Struct(">d").unpack
_NUMERIC = struct.Struct(">hhHH")
_DIGITS = 10_000  # a digit of a numeric is below this


class Statement(NamedTuple):
    """One statement as the server gets it.

    :ivar name: that of the prepared statement. It follows from the text, so whatever a pooler does with the
        sessions of several clients, a name means the same statement for all of them.
    :ivar parameters: the names of ``$1`` and so on.
    """

    name: bytes
    text: bytes
    parameters: tuple[str, ...]


@lru_cache(maxsize=4096)
def compiled(text: str) -> Statement:
    """Return a text that names its parameters as ``%(name)s`` in the form for the server."""
    numbers: dict[str, int] = {}

    def place(found: re.Match[str]) -> str:
        if found[1] is None:
            return "%"
        return f"${numbers.setdefault(found[1], len(numbers) + 1)}"

    data = _PLACE.sub(place, text).encode()
    return Statement(b"pc_" + blake2b(data, digest_size=16).hexdigest().encode(), data, tuple(numbers))


def encoded(value: Any) -> tuple[bytes | None, int]:
    """Return a parameter for the server, and whether it is binary. The statement says of which type it is."""
    if value is None:
        return None, _TEXT
    if isinstance(value, bytes):
        return value, _BINARY
    if isinstance(value, str):
        return value.encode(), _BINARY
    if isinstance(value, bool):
        return (b"t" if value else b"f"), _TEXT
    if isinstance(value, (int, float)):
        return repr(value).encode(), _TEXT
    if isinstance(next((each for each in value if each is not None), None), bytes):
        return _bytes_array(value), _BINARY
    # The text of the whole list: that of each number would take as long as the server takes for a row.
    return f"{{{str(list(value))[1:-1].replace('None', 'NULL')}}}".encode(), _TEXT


def _bytes_array(values: Sequence[bytes | None]) -> bytes:
    parts = [_ARRAY.pack(1, None in values, _BYTEA, len(values), 1)]
    for each in values:
        parts += (_NULL,) if each is None else (_LENGTH.pack(len(each)), each)
    return b"".join(parts)


def _integer(data: bytes) -> int:
    return int.from_bytes(data, "big", signed=True)


def _numeric(data: bytes) -> int:
    """Return a numeric without a fraction, such as a sum of integers."""
    count, weight, sign, _ = _NUMERIC.unpack_from(data)
    digits = struct.unpack_from(f">{count}h", data, _NUMERIC.size)
    value = sum(digit * _DIGITS ** (weight - place) for place, digit in enumerate(digits))
    return -value if sign else int(value)


def _float(data: bytes) -> float:
    return float(_FLOAT(data)[0])


_DECODERS: Mapping[int, Callable[[bytes], Any]] = {
    16: lambda data: data != b"\0",
    _BYTEA: bytes,
    20: _integer,
    21: _integer,
    23: _integer,
    25: bytes.decode,
    701: _float,
    1700: _numeric,
    2278: lambda data: None,
}


def rows_of(result: Any) -> list[tuple[Any, ...]]:
    """Return the rows of an answer whose columns are binary."""
    columns = range(result.nfields)
    decoders = [_DECODERS[result.ftype(column)] for column in columns]
    get = result.get_value
    if len(decoders) == 1:  # in half the time: the ids of a large batch
        (decode,) = decoders
        values = [get(row, 0) for row in range(result.ntuples)]
        return [(None if data is None else decode(data),) for data in values]
    return [
        tuple(
            [
                None if (data := get(row, column)) is None else decode(data)
                for column, decode in zip(columns, decoders, strict=True)
            ]
        )
        for row in range(result.ntuples)
    ]
