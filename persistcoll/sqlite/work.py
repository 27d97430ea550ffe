"""What one caller wants done in a transaction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from persistcoll.engine.combining import Request
from persistcoll.sqlite.driver import Execute

__all__ = ["Outcome", "WriteRequest"]

T = TypeVar("T")


class Outcome:
    """What became of the transaction of several works.

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
