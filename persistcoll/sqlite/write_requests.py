"""Group commit of writers: one thread executes what all waiting threads want to write, in one transaction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from persistcoll.engine.combining import Request
from persistcoll.errors import StorageError
from persistcoll.sqlite import driver
from persistcoll.sqlite.driver import Execute
from persistcoll.sqlite.dropped import dropped_error
from persistcoll.sqlite.transaction import REENTRANT
from persistcoll.sqlite.writer_lock import TransactionOpen

if TYPE_CHECKING:
    from persistcoll.sqlite.database import Database

__all__ = ["Outcome", "WriteRequest", "run_batch"]

T = TypeVar("T")


class Outcome:
    """What became of the transaction of several requests.

    :ivar committed: whether it was committed. All requests share this one attribute, so that an interrupt
        finds either all of them informed or none.
    """

    committed = False


class WriteRequest(Request, Generic[T]):
    """What one caller wants written, perhaps by another thread that writes as well.

    :param run: raises, if at all, before its first change. An error of the database is exempt, because it
        rolls the transaction back.
    :param sync: whether the change is to be on the device when the request is done.
    :param after: called with what ``run`` returned, directly after the commit. An interrupt may make it be
        called twice, so it has to be idempotent.
    :ivar value: what ``run`` returned.
    :ivar outcome: what became of its transaction.
    :ivar obstacle: the open transaction because of which nothing was done; ``None`` if there was none.
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
    """Commit all requests in one transaction, sync once, and tell each request what became of it.

    :param on_block: called before the thread waits for the device.
    """
    if database._lock.is_owned():  # before anything is stored
        _fail(batch, StorageError(REENTRANT.format(database.path)))
        return
    with database._lock.mutex:
        database._is_writing = True
        try:
            ticket = _run(database, batch, on_block)
        except OSError as error:  # the writer lock cannot be released
            _fail(batch, database._poison.unlock_failed(database.path, error))
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
    """Execute a batch and return the ticket of its sync, or ``None`` if there is nothing to sync.

    Call it with the database's lock held.
    """
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
    """Commit the batch and return whether that succeeded; if not, set each request's failure or obstacle."""
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
            database.keep_changes()
            try:
                request.value = request.run(database._execute)
            except Exception as error:
                request.failure = _refusal(database, error)
                if request.failure is None:
                    raise
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
        else:  # each other thread submits its request again
            for request in batch:
                request.failure = None
        raise


def _refusal(database: Database, error: Exception) -> Exception | None:
    """Return the error of a request that leaves the others of its batch to go on, or ``None``.

    A request to a dropped collection is one, because it changes nothing and SQLite rolls nothing back.
    """
    if database.is_refusal(error):
        return error
    if database._connection.total_changes != database._whole_changes:
        return None
    dropped = dropped_error(error, database.path, database._readers, database._execute)
    if dropped is not None:
        dropped.__cause__ = error
    return dropped


def _tell(batch: Batch) -> None:
    for request in batch:
        if request.after is not None and request.failure is None:
            request.after(request.value)
