"""What PostgreSQL's error codes mean."""

from __future__ import annotations

from persistcoll.errors import (
    BackendUnavailableError,
    CorruptionError,
    DuplicateError,
    EncodeError,
    LockedError,
    StorageError,
    StorageFullError,
)
from persistcoll.servers.driver import ConnectionLostError, MissingTableError, TryAgainError

__all__ = ["translate"]

_LOST = {"57P01", "57P02", "57P03", "57P05", "25P03", "25P04"}  # the server ends, or ends the session
_BUSY = {"53300", "53400"}  # too many connections
_FULL = {"53100", "53200"}
_DAMAGED = {"XX001", "XX002"}


def translate(code: str | None, message: str, is_lost: bool, doing: str) -> Exception:
    """Return the error to raise in place of the driver's.

    :param code: the SQLSTATE; ``None``: the error is the driver's own.
    :param is_lost: whether the connection cannot be used any more.
    """
    what = f"{doing} failed: {message.strip()}"
    if code in ("40001", "40P01"):
        return TryAgainError(what)
    if code in _BUSY:
        return BackendUnavailableError(what)
    if code in _LOST or (code or "").startswith("08") or (code is None and is_lost):
        return ConnectionLostError(what)
    if code == "42P01":
        return MissingTableError(what)
    if code == "42P07":
        return TryAgainError(what)  # another session has made the table meanwhile
    if code == "57014":
        # The text is in the language of the server, so it cannot say which of the two it was.
        return LockedError(
            f"{doing} was cancelled, by a statement_timeout that is set on the server, for the database, the"
            f" role or the session, or by a request such as pg_cancel_backend(): {message.strip()}"
        )
    if code == "55P03":
        return LockedError(f"{doing} waited too long for a lock of another transaction: {message.strip()}")
    if code == "23505":
        return DuplicateError("an item that equals the new one is queued already")
    if code in _FULL:
        return StorageFullError(what)
    if code == "54000":
        return EncodeError(what)
    if code == "25006":
        return BackendUnavailableError(
            f"{what} (the transaction is read-only, or the server a standby: name one that may be written to)"
        )
    if code in _DAMAGED:
        return CorruptionError(what)
    return StorageError(what)
