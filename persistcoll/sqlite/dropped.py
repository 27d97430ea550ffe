"""Tell a collection that was dropped while it was open from one whose tables are lost."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Protocol

from persistcoll.errors import StorageError, StoreMissingError
from persistcoll.sqlite import driver, schema
from persistcoll.sqlite.driver import Execute

__all__ = ["dropped_error"]


class _Reader(Protocol):
    def fetch_one(self, text: str, parameters: Sequence[Any]) -> Any: ...


def dropped_error(
    error: Exception, path: str, reader: _Reader, execute: Execute | None = None
) -> StoreMissingError | None:
    """Return the error for an operation on a dropped collection; ``None`` if this one has another cause.

    :param execute: used in place of ``reader``, which may wait for a lock that this thread holds.
    """
    number = driver.missing_collection(error)
    if number is None:
        return None
    with suppress(StorageError, *driver.ERRORS):
        statement = schema.IS_REGISTERED, (number,)
        row = reader.fetch_one(*statement) if execute is None else execute(*statement).fetchone()
        if row is None:
            return schema.dropped(path)
    return None
