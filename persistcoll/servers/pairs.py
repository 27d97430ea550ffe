"""Turn pairs into columns and rows into pairs, checked against a checksum; and iterate over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import takewhile
from typing import Any
from zlib import crc32

from persistcoll.engine.contracts import Pair
from persistcoll.errors import CorruptionError, EncodeError
from persistcoll.servers.pair_statements import PageStatements
from persistcoll.servers.statements import PAGE

__all__ = ["LONGEST_KEY", "PairPages", "PairRows"]

LONGEST_KEY = 2000
"""Bytes. An entry of an index ends at 2,704 in PostgreSQL, and at 3,072 in InnoDB."""
_PAGE_BYTES = 1 << 22  # a page ends earlier when its values have this many bytes


class PairRows:
    """Writes and reads the rows of one dict.

    :param store_id: the dict's. It is a part of each checksum, as the key is.
    :param place: names the dict's server in messages.
    :param max_value: the greatest number of bytes of a value.
    :param format_key: formats a key for messages.
    """

    def __init__(
        self, store_id: bytes, place: str, max_value: int, format_key: Callable[[bytes], str]
    ) -> None:
        self._seed = crc32(store_id)
        self._place = place
        self._max_value = max_value
        self._format_key = format_key

    def columns(self, key: bytes, value: bytes) -> dict[str, Any]:
        """Return a new value's columns.

        :raise EncodeError: it is too large.
        """
        if len(value) > self._max_value:
            raise EncodeError(
                f"a value of {len(value)} bytes is too large: {self._place} takes {self._max_value}"
            )
        return {"crc": self._checksum(key, value), "size": len(value), "value": value}

    def checked_key(self, key: bytes) -> bytes:
        """Return the key.

        :raise EncodeError: it is too long.
        """
        if len(key) > LONGEST_KEY:
            raise EncodeError(f"a key of {len(key)} bytes is too large: {self._place} takes {LONGEST_KEY}")
        return key

    def _checksum(self, key: bytes, value: bytes) -> int:
        return crc32(value, crc32(key, self._seed))

    def verify(self, key: bytes, crc: int, value: Any) -> bytes:
        """Return the value of a row.

        :raise CorruptionError: the row is damaged.
        """
        found = bytes(value)
        if self._checksum(key, found) != crc:
            raise CorruptionError(
                f"the pair of the key {self._format_key(key)} in {self._place} is damaged: its checksum is"
                " not right; assign another value, or delete it",
                self._place,
            )
        return found

    def pair(self, key: Any, name: Any, crc: int, value: Any) -> Pair:
        """Return the pair of a row.

        :raise CorruptionError: the row is damaged.
        """
        key = bytes(key)
        return Pair(key, bytes(name), self.verify(key, crc, value))


class PairPages(Iterator[Pair]):
    """The pairs of a range of ids or keys, read page by page. It goes on after a damaged pair.

    A statement is open only while a page is read, because a server cannot clean up its tables while a
    transaction is open. Only one thread may use it.

    :param query: given a statement and its parameters, returns the rows.
    :param within: the range, from the first one on and below the second one.
    :param by_key: it is a range of keys; otherwise of ids.
    :param clock: returns the time in seconds, by which pairs expire that have been read.
    """

    def __init__(
        self,
        query: Callable[..., list[Any]],
        rows: PairRows,
        sql: PageStatements,
        within: tuple[Any, Any],
        *,
        by_key: bool,
        reverse: bool,
        values: bool,
        clock: Callable[[], float],
    ) -> None:
        self._query = query
        self._rows = rows
        self._sql = sql
        self._low, self._high = within
        self._by_key = by_key
        self._reverse = reverse
        self._values = values
        self._clock = clock
        self._read_at = 0.0
        self._page: Iterator[Any] = iter(())
        self._is_last = False

    def __next__(self) -> Pair:
        while True:
            for _, key, name, left, *rest in self._page:
                if left is not None and self._clock() - self._read_at >= left:
                    continue
                if self._values:
                    return self._rows.pair(key, name, *rest)
                return Pair(bytes(key), bytes(name), b"")
            if self._is_last:
                raise StopIteration
            # It ends here if the read fails, because the next read of the same range would fail as well.
            self._is_last = True
            self._page = iter(self._next_page())

    def _next_page(self) -> list[Any]:
        limit = PAGE
        if self._values:
            limit = _first([size for _, _, size in self._read(self._sql.sizes, PAGE)])
            if not limit:
                return []
        # Before the statement, because the server computes from its begin what is left of each pair's time.
        self._read_at = self._clock()
        page = self._read(self._sql.pairs if self._values else self._sql.keys, limit)
        if len(page) == limit:
            last = self._position(page[-1])
            if self._reverse:
                self._high = last
            else:
                self._low = last + b"\0" if self._by_key else last + 1
            self._is_last = False
        return page

    def _read(self, text: str, limit: int) -> list[Any]:
        """Return the next rows of the range."""
        rows = self._query(text, bound=self._high if self._reverse else self._low, limit=limit)
        return list(takewhile(lambda row: self._low <= self._position(row) < self._high, rows))

    def _position(self, row: Any) -> Any:
        id, key, *_ = row
        return bytes(key) if self._by_key else id


def _first(sizes: list[int]) -> int:
    """Return how many of the first values are a page: one at least, if there are any."""
    total = 0
    for count, size in enumerate(sizes):
        total += size
        if count and total > _PAGE_BYTES:
            return count
    return len(sizes)
