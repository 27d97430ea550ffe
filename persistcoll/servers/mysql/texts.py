"""Statements as texts with their values, in which form MySQL gets them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

__all__ = ["around_values", "packets", "rendered"]

_PLACE = re.compile(r"%\((\w+)\)s")
_VALUES = " VALUES "


@lru_cache(maxsize=4096)
def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_PLACE.findall(text)))


def rendered(cursor: Any, text: str, parameters: Mapping[str, Any]) -> str:
    """Return a text that names its parameters as ``%(name)s`` with their values."""
    # The cursor renders each value that it gets, whether the text names it or not.
    rendered: str = cursor.mogrify(text, {name: parameters[name] for name in _names(text)})
    return rendered


@lru_cache(maxsize=1024)
def around_values(text: str) -> tuple[str, str, str]:
    """Split an insert of one row: what is before its values, these in parentheses, and what is after."""
    begin = text.index(_VALUES) + len(_VALUES)
    depth, end = 0, begin
    while end == begin or depth:
        depth += {"(": 1, ")": -1}.get(text[end], 0)
        end += 1
    return text[:begin].replace("%%", "%"), text[begin:end], text[end:].replace("%%", "%")


def packets(texts: Sequence[str], between: str, most: int) -> Iterator[tuple[str, int]]:
    """Join texts, as many as ``most`` bytes hold, but one at least; return how many these are, too."""
    packet: list[str] = []
    size = 0
    for text in texts:
        # A character of a text has at most 4 bytes, and one of binary data 1.
        length = (len(text) if text.isascii() else 4 * len(text)) + len(between)
        if packet and size + length > most:
            yield between.join(packet), len(packet)
            packet, size = [], 0
        packet.append(text)
        size += length
    yield between.join(packet), len(packet)
