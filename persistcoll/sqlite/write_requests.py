"""Group commit of writers: one thread runs what all threads that wait want to write, in one transaction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from persistcoll.disk.calls import storage_error
from persistcoll.engine.combining import Request
from persistcoll.errors import StorageError
from persistcoll.sqlite import driver
from persistcoll.sqlite.driver import Execute
from persistcoll.sqlite.transaction import REENTRANT
from persistcoll.sqlite.writer_lock import TransactionOpen

if TYPE_CHECKING:
    from persistcoll.sqlite.database import Database

__all__ = ["Outcome", "WriteRequest", "run_batch"]

T = TypeVar("T")


class Outcome:
    """What became of the transaction of several requests.

    :ivar committed: one attribute for all of them, so that an interrupt finds all of them told or none.
    """

    committed = False


class WriteRequest(Request, Generic[T]):
    """What one caller wants done, perhaps by another one who waits as well.

    :param run: raises before it changes anything, or not at all; the database's own errors excepted.
    :param sync: it is to be on the device when it is done.
    :param after: called with what ``run`` gave right behind the commit, also where the thread is interrupted
        there, perhaps twice.
    :ivar value: what ``run`` gave.
    :ivar outcome: of its transaction.
    :ivar obstacle: nothing was done, because this transaction is in the way.
    """

    value: T
    obstacle: BaseException | None = None
    outcome = Outcome()

    def __init__(self, run: Callable[[Execute], T], sync: bool, after: Callable[[T], Any] | None) -> None:
        self.run = run
        self.sync = sync
        self.after = after


Batch = Sequence[WriteRequest[Any]]


def run_batch(database: Database, batch: Batch, on_block: Callable[[], None]) -> None:
    """Commit all of them and sync once, and tell each one what became of it.

    :param waiting: called before the thread waits for the device.
    """
    if database._lock.is_owned():  # before anything is stored
        _fail(batch, StorageError(REENTRANT.format(database.path)))
        return
    with database._lock.mutex:
        database._is_writing = True
        try:
            ticket = _run(database, batch, on_block)
        except OSError as error:  # the lock cannot be let go
            _fail(batch, storage_error(error, "unlocking", database.path))
            return
        finally:
            database._is_writing = False
    if ticket is not None:
        on_block()
        try:
            database._wal_sync.commit(ticket)
            database.check_files()
        except StorageError as error:
            _fail([request for request in batch if request.sync], error)


def _fail(batch: Batch, failure: Exception) -> None:
    for request in batch:
        request.failure = request.failure or failure


def _run(database: Database, batch: Batch, on_block: Callable[[], None]) -> int | None:
    """With the mutex held; the ticket for the sync, if there is to be one."""
    if database._transaction.owner is not None:
        for request in batch:
            request.obstacle = database._transaction.obstacle()
        return None
    try:
        database._check()
    except Exception as error:
        _fail(batch, error)
        return None
    sync = any(request.sync for request in batch)
    if sync:
        try:
            database.check_files()
        except StorageError as error:
            _fail(batch, error)
            return None
    try:
        committed = _commit(database, batch, None if sync else on_block)
    finally:
        try:
            if database._connection.in_transaction:
                database._execute(driver.ROLLBACK)
        finally:
            database._writer_lock.release()
    return database._draw_ticket() if committed and sync else None


def _commit(database: Database, batch: Batch, on_block: Callable[[], None] | None) -> bool:
    """Whether it is committed; otherwise all of them know why not."""
    database._committing = False
    outcome = Outcome()
    for request in batch:
        request.outcome = outcome
    try:
        try:
            database._begin()
        except TransactionOpen as found:
            for request in batch:
                request.obstacle = found
            return False
        except StorageError as error:
            _fail(batch, error)
            return False
        for request in batch:
            before = database._connection.total_changes
            try:
                request.value = request.run(database._execute)
            except Exception as error:
                # As in Database._write_alone().
                if isinstance(error, driver.ERRORS) or database._connection.total_changes != before:
                    raise
                request.failure = error
        if on_block is not None:
            on_block()
        database._commit()
        outcome.committed = True
        _tell(batch)
        return True
    except BaseException as error:
        database.epoch += 1
        committed = database._roll_back(error)
        if isinstance(error, driver.ERRORS):
            for request in batch:
                request.failure = database._failure(error, "writing")
            return False
        outcome.committed = committed
        if committed:
            _tell(batch)
        else:  # the others do it again
            for request in batch:
                request.failure = None
        raise


def _tell(batch: Batch) -> None:
    for request in batch:
        if request.after is not None and request.failure is None:
            request.after(request.value)
