"""Transactions of a store's own that stay open for a block of the caller.

A transaction belongs to a thread, and to the asyncio task or greenlet that began it, as that of an SQLite
store. Another thread runs its statements elsewhere. Another task of the same thread is refused, because the
thread that it would wait in is the one that has to end the transaction.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from persistcoll.engine.forks import REENTRANT
from persistcoll.engine.tasks import current_task
from persistcoll.errors import BackendUnavailableError, LockedError, StorageError
from persistcoll.servers.driver import ConnectionLostError, TryAgainError
from persistcoll.servers.joined import undone_alone
from persistcoll.servers.sessions import Server, Session
from persistcoll.servers.transactions import OpenTransaction

__all__ = ["Blocks"]

T = TypeVar("T")


class _Block:
    """The :class:`~persistcoll.servers.sessions.Sessions` of an open transaction. One task uses it.

    Each piece of work is whole or undone, by a savepoint.

    :ivar is_busy: an operation is under way, or the end of the transaction. A signal handler or a destructor
        that comes in then must send nothing on the session, because it would read the answers of that.
    :ivar is_over: the transaction has ended. Any thread may end it, because the destructor of a block that
        nobody left may run anywhere.
    :ivar failure: why the transaction has ended before the block.
    """

    def __init__(self, transaction: OpenTransaction, session: Session) -> None:
        self._transaction = transaction
        self._session = session
        self.is_busy = False
        self.is_over = False
        self.failure: StorageError | None = None
        # Weak, because the frames of a forgotten task hold its transaction.
        task = current_task()
        self._task = None if task is None else weakref.ref(task)

    def is_of_this_task(self) -> bool:
        task = current_task()
        return task is None if self._task is None else task is not None and self._task() is task

    def repeat(self, work: Callable[[Session], T], deadline: float | None = None) -> T:
        """See :class:`~persistcoll.servers.sessions.Sessions`."""
        if self.failure is not None:
            raise self.failure
        if self.is_busy:
            raise StorageError(REENTRANT)
        self.is_busy = True
        try:
            return self._repeat(work)
        finally:
            self.is_busy = False

    def _repeat(self, work: Callable[[Session], T]) -> T:
        self._transaction.is_idle = False
        try:
            value = undone_alone(self._session, work)
        except ConnectionLostError as error:
            lost = BackendUnavailableError(f"the connection of the transaction is lost: {error}")
            raise self._fail(lost, error) from error
        except TryAgainError as error:
            again = LockedError(f"the server has rolled the transaction back: {error}")
            raise self._fail(again, error) from error
        except Exception:
            self._transaction.is_idle = True
            raise
        except BaseException as error:
            self._fail(StorageError("an operation of the transaction was interrupted: begin again"), error)
            raise
        self._transaction.is_idle = True
        return value

    def _fail(self, failure: StorageError, error: BaseException) -> StorageError:
        self.failure = failure
        self._transaction.roll_back(error)
        return failure

    def transact(self, work: Callable[[Session], T], **options: Any) -> T:
        """See :class:`~persistcoll.servers.sessions.Sessions`. The transaction is noted as a whole."""
        return self.repeat(work)


class Blocks:
    """The transactions that the tasks of this process have open in one collection.

    :param number: the collection's.
    """

    def __init__(self, server: Server, number: int) -> None:
        self._server = server
        self._number = number
        self.forget()

    def forget(self) -> None:
        """Have no transaction open in a forked child, because they are the parent's."""
        self._local = threading.local()

    def current(self) -> _Block | None:
        """Return where this task's open transaction runs its statements; ``None`` if there is none.

        :raise LockedError: another task of this thread has a transaction open.
        """
        block: _Block | None = getattr(self._local, "block", None)
        if block is None or block.is_over:
            return None
        if not block.is_of_this_task():
            raise LockedError("another task of this thread has a transaction open; nothing was done")
        return block

    def readable(self) -> _Block | None:
        """Return what :meth:`current` returns, but ``None`` within an operation of that transaction.

        A signal handler or a destructor reads elsewhere then, and sees what is committed.
        """
        block = self.current()
        return None if block is None or block.is_busy else block

    @contextmanager
    def begin(self, lock: str) -> Iterator[None]:
        """Return a context manager for a transaction of this task.

        :param lock: its first statement.
        """
        begun: list[OpenTransaction] = []
        blocks: list[_Block] = []

        def work(session: Session) -> Session:
            session.run(lock)
            return session

        try:
            session = self._server.begin(work, self._number, begun, None)
            blocks.append(_Block(begun[0], session))
            self._local.block = blocks[0]
            yield
            failure = blocks[0].failure
            if failure is not None:
                raise failure
            blocks[0].is_busy = True
            begun[0].end()
        except BaseException as error:
            for block in blocks:
                block.is_busy = True
            for transaction in begun:
                transaction.roll_back(error)
            raise
        finally:
            for block in blocks:
                block.is_over = True
