"""A listener that takes the records of :class:`logging.handlers.QueueHandler` out of a persistent queue."""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from contextlib import ExitStack, suppress
from functools import partial
from logging import LogRecord
from logging.handlers import QueueListener as StandardListener
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

from persistcoll.engine.blocking import wait
from persistcoll.engine.contracts import Awaited
from persistcoll.engine.forks import read_only_error
from persistcoll.engine.records import Backoff
from persistcoll.errors import ClosedError, Empty, PersistcollError, ShutDown, StoreMissingError
from persistcoll.queues.base import BaseQueue

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["QueueListener"]

_PAUSES = Backoff(base=0.1, factor=2, limit=5, jitter=0.1)
"""How long to wait after a failure, by the number of failures in a row."""


class _Stopped(Exception):
    """Raised where the thread would wait for a record after :meth:`QueueListener.stop`."""


class QueueListener(StandardListener):
    """The standard library's listener, for a queue of persistcoll: a record stays stored until it is handled.

    The listener acks a record when all handlers have returned. If the process dies before that, the next
    listener on the queue gets the record again. So a handler may see a record twice, and none is lost.

    If a handler raises an exception, the listener nacks the record, waits, and tries again: a tenth of a
    second after the first failure, and longer after each further one, up to 5 seconds. The handlers are
    called in their order, and those after the one that raised are not called. So name the handler that may
    fail first, because the others then get the record once. In an ack queue the attempts count, so
    ``max_attempts`` sets a record aside that always fails. In other queues it is tried again for ever, and
    the records after it wait. The same pauses follow an error of the queue, such as a full disk or another
    process that consumes; if the queue was dropped, the thread ends. The first of several failures in a row
    is shown on ``sys.stderr``, as the standard library shows an error of a handler: if
    :data:`logging.raiseExceptions` is true.

    The handlers of the standard library do not raise: they show an error of theirs and drop the record. Give
    one that must not do that a ``handleError(self, record)`` whose only statement is ``raise``. That is not
    enough for ``SocketHandler``, which drops records in silence while it has no connection, nor for
    ``HTTPHandler``, which does not look at the answer. For these write an ``emit`` that raises.

    :meth:`stop` stores no stop mark. A ``None`` that a listener of the standard library has left in the queue
    is acked and ignored, so it ends nobody.

    ``QueueHandler`` stores a record as an object, which needs the serializer ``"pickle"``. With another one
    make a dict of it, which :meth:`prepare` makes a record again:

    >>> import logging, logging.handlers, sys
    >>> from persistcoll import Queue
    >>> from persistcoll.logging import QueueListener
    >>> class DictHandler(logging.handlers.QueueHandler):
    ...     def prepare(self, record):
    ...         return vars(super().prepare(record))
    >>> with Queue("records", serializer="json", durability="process") as records:
    ...     logger = logging.getLogger("shop")
    ...     logger.addHandler(DictHandler(records))
    ...     logger.warning("%d lamps left", 2)
    ...     with QueueListener(records, logging.StreamHandler(sys.stdout)):
    ...         pass
    2 lamps left
    >>> logger.handlers.clear()

    Cost: for each record what ``receive()`` of the queue costs. While no record is ready, the thread waits as
    ``get()`` does.

    :param queue: any queue of persistcoll but a :class:`~persistcoll.MessageQueue`. The listener gets by
        ``receive()``, so with ``auto_commit`` and ``autosave``, too, a record stays stored until it is
        handled. On a server ``receive()`` of the queues without acks keeps a transaction open while the
        handlers work.
    :param handlers: each of them gets each record.
    :param respect_handler_level: call a handler only with records of its level and above.
    :raise TypeError: ``queue`` is no queue of persistcoll.
    :raise StorageError: the queue was opened with ``read_only=True``.
    """

    # Only the thread that calls start() and stop() uses `_thread`. stop() sets `_left` before the event, and
    # after that only the listener's thread uses it.

    def __init__(
        self, queue: BaseQueue[Any], *handlers: logging.Handler, respect_handler_level: bool = False
    ) -> None:
        if not isinstance(queue, BaseQueue):
            raise TypeError(f"'queue' must be a queue of persistcoll, not {type(queue).__name__}")
        if queue.read_only:
            raise read_only_error(queue._description)
        super().__init__(cast(Any, queue), *handlers, respect_handler_level=respect_handler_level)
        self._records = queue
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._left = 0  # How many records to handle at most, after stop().
        self._failures = 0  # In a row.

    def __enter__(self) -> Self:
        """Start the thread."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Handle what is stored, and stop the thread."""
        self.stop()

    def start(self) -> None:
        """Start the thread that handles records. As in the standard library it keeps no process alive.

        A listener that was stopped may be started again, and so may one in a forked child, which has no
        thread of its parent's.

        :raise RuntimeError: its thread runs already.
        """
        if self._thread is not None and self._thread.is_alive():
            raise RuntimeError("the listener has been started already; stop() it first")
        # A new one, because a fork may have left the lock of the other one locked.
        self._stopping = threading.Event()
        self._failures = 0
        self._thread = threading.Thread(target=self._run, name="persistcoll-listener", daemon=True)
        self._thread.start()

    def stop(self, drain: bool = True) -> None:
        """End the thread, and wait for its end. It does nothing if the listener does not run.

        A handler may call it, too. Then it returns at once, and the thread ends later.

        :param drain: handle the records that are ready now before that, as the standard library does, but end
            at the first failure. Otherwise it handles no more than the record that it is at, or that comes at
            this moment. What is left stays stored for the next listener.
        """
        thread = self._thread
        if thread is None:
            return
        try:
            self._left = self._records.qsize() if drain else 0
        except PersistcollError:  # The thread will fail as well.
            self._left = 0
        self._stopping.set()
        self._records._core.not_empty.notify(None)
        if thread is not threading.current_thread():
            thread.join()
            self._thread = None

    def prepare(self, record: Any) -> LogRecord:
        """Return the record for the handlers: of a dict a new record, anything else as it is."""
        return logging.makeLogRecord(record) if isinstance(record, dict) else record

    # The listener's thread.

    def _run(self) -> None:
        while self._goes_on() and self._handle_next():
            pass

    def _goes_on(self) -> bool:
        if not self._stopping.is_set():
            return True
        self._left -= 1
        return self._left >= 0

    def _handle_next(self) -> bool:
        """Wait for a record and handle it; tell whether to go on."""
        is_received = False
        try:
            with ExitStack() as claim:
                record = self._receive(claim)
                is_received = True
                if record is not None:
                    self.handle(record)
        except Exception as error:
            if not is_received and isinstance(error, (_Stopped, ClosedError, ShutDown)):
                return False
            return self._failed(error, not is_received and isinstance(error, StoreMissingError))
        self._failures = 0
        return True

    def _receive(self, claim: ExitStack) -> Any:
        """Wait for the next record and return it. Its claim ends with ``claim``."""
        core, attempt = self._records._core, partial(self._try_to_receive, claim)
        try:
            return attempt()
        except Empty:
            return wait(core.store.watch(Awaited.READY), core.not_empty, attempt, Empty, None)

    def _try_to_receive(self, claim: ExitStack) -> Any:
        stops = self._stopping.is_set()  # Before it looks, because what was put before stop() is handled.
        try:
            return claim.enter_context(self._records.receive(block=False))
        except Empty:
            if stops:
                raise _Stopped from None
            raise

    def _failed(self, error: Exception, is_gone: bool) -> bool:
        """Show the first of several failures, and pause; tell whether to go on.

        :param is_gone: whether the queue was dropped or removed, so that no later try can succeed.
        """
        self._failures += 1
        if self._failures == 1 and logging.raiseExceptions and sys.stderr is not None:
            # To log it would put a record into the queue that fails.
            with suppress(OSError):
                what = "ends" if is_gone else "tries again"
                sys.stderr.write(f"--- a listener of {self._records._description} {what} ---\n")
                traceback.print_exception(error)
        return not is_gone and not self._stopping.wait(_PAUSES.delay(self._failures))
