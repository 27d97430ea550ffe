"""What the error numbers of MySQL and MariaDB mean."""

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

# 0: PyMySQL's own, for a closed connection.
_LOST = {
    0,
    # Too many connections.
    1040,
    1203,
    1226,
    # A node of a Galera cluster is cut off, or was cut off while it committed: then the others may have what
    # it could not commit.
    1047,
    1180,
    # The server ends, or ends the session.
    1053,
    1077,
    1079,
    1080,
    1152,
    1158,
    1159,
    1160,
    1161,
    1184,
    1927,
    2002,
    2003,
    2006,
    2013,
    2055,
    4031,
}
_FULL = {3, 1021, 1114}
_STANDBY = {1290, 1792, 1836}  # it only reads
_DAMAGED = {126, 127, 1034, 1035, 1712}


def translate(number: int | None, message: str, doing: str) -> Exception:
    """Return the error to raise in place of the driver's.

    :param number: the server's or the client's error number; ``None``: there is none.
    """
    what = f"{doing} failed: {message.strip()}"
    # 1020: MariaDB's snapshot isolation. 1050: another session has made the table meanwhile.
    if number in (1213, 1020, 1050):
        return TryAgainError(what)
    if number in _LOST:
        return ConnectionLostError(what)
    if number == 1146:
        return MissingTableError(what)
    if number in (1205, 3572):
        return LockedError(f"{doing} waited too long for a lock of another transaction: {message.strip()}")
    if number == 1062:
        return DuplicateError("an item that equals the new one is queued already")
    if number in _FULL:
        return StorageFullError(what)
    if number == 1153:
        return EncodeError(f"{what}: raise the server's 'max_allowed_packet'")
    if number in _STANDBY:
        return BackendUnavailableError(
            f"{what} (the transaction is read-only, or the server is: name one that may be written to)"
        )
    if number in _DAMAGED:
        return CorruptionError(what)
    return StorageError(what)
