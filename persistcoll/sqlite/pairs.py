"""A row of a mapping and the pair that it stands for; and going through many of them, page by page."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any
from zlib import crc32

from persistcoll.engine.contracts import Pair
from persistcoll.errors import CorruptionError
from persistcoll.sqlite.clock import Clock

__all__ = [
    "PagedScan",
    "PairRows",
    "after_key",
    "after_serial",
    "before_key",
    "before_serial",
    "checksum",
]

_pack_time = struct.Struct("<d").pack


def checksum(key: bytes, value: bytes, expires_at: float | None) -> int:
    """SQLite's pages have none, so each row has one: a flipped bit, or another key's value, is never given
    to anybody.
    """
    seed = crc32(key) if expires_at is None else crc32(_pack_time(expires_at), crc32(key))
    return crc32(value, seed)


class PairRows:
    """Checks the rows of one mapping. A damaged byte may also change what type a column has.

    :param path: the database's, for messages.
    :param format_key: a key, for messages.
    :param now: the time, to expire by.
    """

    def __init__(self, path: str, format_key: Callable[[bytes], str], now: Clock) -> None:
        self._path = path
        self._format_key = format_key
        self._now = now

    def verify(self, key: bytes, value: Any, crc: Any, expires_at: Any) -> bytes:
        """The value, if nothing of the row was damaged.

        :raise CorruptionError: something was.
        """
        if type(value) is not bytes or not _is_time(expires_at) or checksum(key, value, expires_at) != crc:
            raise self._damaged(key)
        return value

    def verify_unexpired(self, key: bytes, value: Any, crc: Any, expires_at: Any) -> bytes | None:
        """The value; ``None`` if it has expired: of a sound row, as damage may have made it so. Raises as
        :meth:`verify`.
        """
        value = self.verify(key, value, crc, expires_at)
        return None if self.has_expired(expires_at) else value

    def pair(self, row: Any, values: bool) -> Pair:
        """What the row stands for, with its value if wanted. Raises as :meth:`verify`."""
        _, key, name, expires_at, crc, value = row
        if type(key) is not bytes or type(name) is not bytes:
            raise self._damaged(key)
        return Pair(key, name, self.verify(key, value, crc, expires_at) if values else b"")

    def has_expired(self, expires_at: Any) -> bool:
        """Whether what expires then has expired, if it is to be believed."""
        return type(expires_at) is float and expires_at <= self._now()

    def disordered(self) -> CorruptionError:
        """The error for rows that are not in the order of their positions."""
        return CorruptionError(f"{self._path!r} is damaged: its pairs are not in order", self._path)

    def _damaged(self, key: object) -> CorruptionError:
        shown = self._format_key(key) if type(key) is bytes else repr(key)
        return CorruptionError(
            f"the value of the key {shown} in {self._path!r} is damaged: its checksum is not right; assign"
            " another, or delete the key",
            self._path,
        )


def _is_time(expires_at: object) -> bool:
    return expires_at is None or type(expires_at) is float


class PagedScan(Iterator[Pair]):
    """The pairs between two positions. It goes on behind a damaged one, and ends behind what the database
    itself cannot read or has in no order.

    :param read: given the statement and the positions, the next rows; none at the end.
    :param within: the positions.
    :param next_range: given the positions and a row, those between which what is left lies.
    """

    def __init__(
        self,
        read: Callable[[str, Any, Any], list[Any]],
        rows: PairRows,
        text: str,
        within: tuple[Any, Any],
        next_range: Callable[[Any, Any, Any], tuple[Any, Any]],
        values: bool,
    ) -> None:
        self._read = read
        self._rows = rows
        self._text = text
        self._within: tuple[Any, Any] | None = within
        self._next_range = next_range
        self._values = values
        self._page: Iterator[Any] = iter(())

    def __next__(self) -> Pair:
        rows = self._rows
        while True:
            for row in self._page:
                pair = rows.pair(row, self._values)  # before its end is believed
                _, _, _, expires_at, *_ = row
                if not rows.has_expired(expires_at):
                    return pair
            if self._within is None:
                raise StopIteration
            # Whatever cannot be read now could not be read the next time either.
            low, high = self._within
            self._within = None
            page = self._read(self._text, low, high)
            if not page:
                raise StopIteration
            self._page = iter(page)
            self._within = self._remaining(low, high, page[-1])

    def _remaining(self, low: Any, high: Any, row: Any) -> tuple[Any, Any]:
        try:
            remaining = self._next_range(low, high, row)
            # Else pages would come again and again.
            first, last = remaining
            ordered = low <= first and last <= high and remaining != (low, high)
        except TypeError:
            ordered = False
        if not ordered:
            raise self._rows.disordered()
        return remaining


# What is left behind a row: by serial, whose ends are outside, and by key, whose start is in it.


def after_serial(low: int, high: int, row: Any) -> tuple[int, int]:
    """Going up."""
    serial, *_ = row
    return serial, high


def before_serial(low: int, high: int, row: Any) -> tuple[int, int]:
    """Going down."""
    serial, *_ = row
    return low, serial


def after_key(low: bytes, high: bytes, row: Any) -> tuple[bytes, bytes]:
    """Going up."""
    _, key, *_ = row
    return key + b"\0", high


def before_key(low: bytes, high: bytes, row: Any) -> tuple[bytes, bytes]:
    """Going down."""
    _, key, *_ = row
    return low, key
