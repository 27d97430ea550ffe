"""Maintain one database file: execute what no transaction may contain, while other writers wait."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from persistcoll.engine.process import SAME, follow_fork
from persistcoll.errors import StorageError
from persistcoll.sqlite import driver
from persistcoll.sqlite.transaction import REENTRANT
from persistcoll.sqlite.writer_lock import TransactionOpen

if TYPE_CHECKING:
    from persistcoll.sqlite.database import Database

__all__ = ["maintain"]


def maintain(database: Database, texts: Sequence[str], doing: str, done: str, timeout: float) -> None:
    """Execute statements that no transaction may contain.

    :param doing: a word for errors, such as ``"shrinking"``.
    :param done: the same, such as ``"shrunk"``.
    :param timeout: seconds to wait for another caller's transaction.
    :raise LockedError: it did not end in time.
    """
    if not SAME[0]:
        follow_fork()
    if database._transaction.owner == threading.get_ident():
        database._transaction.refuse_other_task(database.path)
        raise StorageError(f"{database.path!r} cannot be {done} within a transaction; nothing was done")
    if database._lock.is_owned():
        raise StorageError(REENTRANT.format(database.path))
    deadline = time.monotonic() + timeout
    while True:
        with database._lock.mutex:
            try:
                _execute(database, texts, doing)
                return
            except TransactionOpen:
                pass
            except StorageError:
                raise
            except OSError as error:  # the writer lock cannot be released
                raise database._poison.unlock_failed(database.path, error) from error
        database._wait_out(deadline)


def _execute(database: Database, texts: Sequence[str], doing: str) -> None:
    """Execute statements under the writer lock. Call it with the lock of the database held."""
    if database._transaction.owner is not None:
        raise database._transaction.obstacle()
    database._check()
    try:
        database._writer_lock.acquire()
        database.epoch += 1
        for text in texts:
            database._execute(text)
    except driver.ERRORS as error:
        raise database._failure(error, doing) from error
    finally:
        database._writer_lock.release()
