"""Items that carry their own number, so that a lost, doubled or altered one is noticed."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator

__all__ = ["item", "number_of", "traces"]

_HEAD = re.compile(r"item-(\d{6})-(\d{6})-")


def item(number: int, length: int = 100) -> str:
    """Return the item with this number. Its characters follow from the number, and hardly compress."""
    text = f"item-{number:06d}-{length:06d}-"
    while len(text) < length:
        text += base64.b32encode(hashlib.sha256(text.encode()).digest()).decode().strip("=")
    return text[:length]


def number_of(text: object) -> int | None:
    """Return the number of an item, or ``None`` if it is not exactly what :func:`item` made."""
    head = _HEAD.match(text) if isinstance(text, str) else None
    if head is None:
        return None
    number = int(head[1])
    return number if item(number, int(head[2])) == text else None


def traces(number: int) -> Iterator[bytes]:
    """Give byte strings by which the middle of a stored item can be found: as base64, or plain.

    Celery's messages have both: the arguments in base64, and a plain text of them for logs alone.
    """
    raw = item(number).encode()
    for skipped in range(3):
        yield base64.b64encode(raw[39 + skipped : 60 + skipped])
    yield raw[40:60]
    for start in range(30, 90, 4):  # A compressed block holds runs of what it could not compress.
        yield raw[start : start + 6]
