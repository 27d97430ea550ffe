"""Check the rows of a dict, and iterate over them page by page."""

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
    """Return the checksum of a pair, so that a flipped bit or another key's value is never delivered.

    SQLite's pages have no checksum.
    """
    seed = crc32(key) if expires_at is None else crc32(_pack_time(expires_at), crc32(key))
    return crc32(value, seed)


class PairRows:
    """Checks the rows of one dict. Damage may also change the type of a column.

    :param path: the database's, for messages.
    :param format_key: formats a key for messages.
    :param now: the clock by which pairs expire.
    """

    def __init__(self, path: str, format_key: Callable[[bytes], str], now: Clock) -> None:
        self._path = path
        self._format_key = format_key
        self._now = now

    def verify(self, key: bytes, value: Any, crc: Any, expires_at: Any) -> bytes:
        """Return the value of a row.

        :raise CorruptionError: the row is damaged.
        """
        if type(value) is not bytes or not _is_time(expires_at) or checksum(key, value, expires_at) != crc:
            raise self._damaged(key)
        return value

    def verify_unexpired(self, key: bytes, value: Any, crc: Any, expires_at: Any) -> bytes | None:
        """Return the value of a row, or ``None`` if the pair has expired.

        The checksum comes first, because damage may have changed the time of expiry.

        :raise CorruptionError: the row is damaged.
        """
        value = self.verify(key, value, crc, expires_at)
        return None if self.has_expired(expires_at) else value

    def pair(self, row: Any, values: bool) -> Pair:
        """Return the pair of a row, with its value if ``values``.

        :raise CorruptionError: the row is damaged.
        """
        _, key, name, expires_at, crc, value = row
        if type(key) is not bytes or type(name) is not bytes:
            raise self._damaged(key)
        return Pair(key, name, self.verify(key, value, crc, expires_at) if values else b"")

    def has_expired(self, expires_at: Any) -> bool:
        """Tell whether a pair with that time of expiry has expired; ``False`` if the time is no time."""
        return type(expires_at) is float and expires_at <= self._now()

    def disordered(self) -> CorruptionError:
        """Return the error for rows that are not in the order of their serials or keys."""
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
    """The pairs of a range of serials or keys, read page by page.

    It goes on after a damaged pair. It ends after an error of the database, and after rows that are out of
    order. Only one thread may use it.

    :param read: given a statement and a range, returns the next rows; none at the end.
    :param within: the range.
    :param next_range: given a range and a row, returns the range that remains after that row.
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
                pair = rows.pair(row, self._values)  # checks the row, and with it the time of expiry
                _, _, _, expires_at, *_ = row
                if not rows.has_expired(expires_at):
                    return pair
            if self._within is None:
                raise StopIteration
            # End here if the read fails, because a second read of the same range would fail as well.
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
            # Each range must be within the one before and smaller, otherwise the iteration would never end.
            first, last = remaining
            ordered = low <= first and last <= high and remaining != (low, high)
        except TypeError:
            ordered = False
        if not ordered:
            raise self._rows.disordered()
        return remaining


# The range that remains after `row`. A range of serials excludes both ends; a range of keys includes its
# start.


def after_serial(low: int, high: int, row: Any) -> tuple[int, int]:
    """Return the range of higher serials."""
    serial, *_ = row
    return serial, high


def before_serial(low: int, high: int, row: Any) -> tuple[int, int]:
    """Return the range of lower serials."""
    serial, *_ = row
    return low, serial


def after_key(low: bytes, high: bytes, row: Any) -> tuple[bytes, bytes]:
    """Return the range of later keys."""
    _, key, *_ = row
    return key + b"\0", high


def before_key(low: bytes, high: bytes, row: Any) -> tuple[bytes, bytes]:
    """Return the range of earlier keys."""
    _, key, *_ = row
    return low, key
