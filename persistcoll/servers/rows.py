"""Turn records into columns and rows into records: sealed, and checked against a checksum."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any
from zlib import crc32

from persistcoll.engine.records import Record
from persistcoll.errors import CorruptionError, EncodeError

__all__ = ["Rows", "Seal", "SealedRows"]

Seal = Callable[[bytes, int], bytes]
_MASK = 0xFFFFFFFF
_UNUSED_BITS = 2  # of 64: the mark is a positive number in a signed column


class SealedRows:
    """Seals what one collection stores, and computes its checksums.

    The client does not know a row's id before it sends the payload. So seal and checksum are bound to a
    random number of the row, its mark.

    ``seal`` and ``unseal`` are set once, before the first write; no lock protects them.

    :param store_id: the collection's.
    :param place: names the collection in messages.
    :param max_payload: the greatest number of bytes of a payload, sealed.
    :ivar seal: applied to each payload and its mark before it is written; ``None``: nothing is.
    :ivar unseal: undoes ``seal``.
    """

    seal: Seal | None = None
    unseal: Seal | None = None

    def __init__(self, store_id: bytes, place: str, max_payload: int) -> None:
        self._seed = crc32(store_id)
        self._place = place
        self._max_payload = max_payload

    def _sealed(self, payload: bytes) -> tuple[int, bytes]:
        """Return a new mark, and the payload that is sealed with it.

        :raise EncodeError: the payload is too large.
        """
        mark = int.from_bytes(os.urandom(8), "big") >> _UNUSED_BITS  # secrets.randbits() takes twice as long
        if self.seal is not None:
            payload = self.seal(payload, mark)
        if len(payload) > self._max_payload:
            raise EncodeError(
                f"an item of {len(payload)} bytes is too large: {self._place} takes {self._max_payload}"
            )
        return mark, payload

    def _checksum(self, mark: int, payload: bytes) -> int:
        return crc32(payload, (mark ^ self._seed) & _MASK)


class Rows(SealedRows):
    """Writes and reads the rows of a collection of records."""

    def columns(self, payload: bytes) -> dict[str, Any]:
        """Return a new mark, and the checksum and the payload that are bound to it, by column.

        :raise EncodeError: the payload is too large.
        """
        mark, payload = self._sealed(payload)
        return {"mark": mark, "crc": self._checksum(mark, payload), "payload": payload}

    def record(self, row: Any, attempt: int = 0) -> Record:
        """Return the record of a row.

        :param attempt: 1 if the record is being claimed, which counts as one attempt more.
        :raise CorruptionError: the row is damaged.
        """
        id, place, attempts, time, mark, crc, payload, reason, *_ = row
        payload = bytes(payload)
        if self._checksum(mark, payload) != crc:
            raise CorruptionError(
                f"item {id} in {self._place} is damaged: its checksum is not right; skip({id}) removes it, or"
                f" ack_failed(id={id}) while it is claimed",
                self._place,
                id=id,
            )
        why = None if reason is None else bytes(reason).decode(errors="replace")
        return Record(id, payload, time, place, attempts + attempt, mark, why)
