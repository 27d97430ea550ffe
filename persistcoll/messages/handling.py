"""What a worker does with one message: it calls the handler, and settles the message as that has ended."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Generic, TypeVar

from persistcoll.arguments import error_text
from persistcoll.container import T
from persistcoll.engine.records import Backoff
from persistcoll.errors import (
    BackendUnavailableError,
    LockedError,
    NotClaimedError,
    StaleClaimError,
    StorageFullError,
)
from persistcoll.messages.claiming import Claiming
from persistcoll.messages.message import Message

__all__ = ["PAUSES", "TEMPORARY", "Handling"]

R = TypeVar("R")
_log = logging.getLogger("persistcoll")

TEMPORARY = (LockedError, StorageFullError, BackendUnavailableError)
"""Errors after which the same call may succeed later."""
PAUSES = Backoff(base=0.1, factor=2, limit=5, jitter=0.1)
"""How long to wait before that call."""


class Handling(Generic[T]):
    """Calls a handler with messages. Several threads may do so at once.

    It logs ids and topics, and the types of errors. Their texts may quote a body.

    :param end: is called with what ends the worker: an error of the storage, or what a handler has raised for
        that purpose.
    """

    def __init__(
        self,
        claiming: Claiming[T],
        handler: Callable[[Message[T]], object],
        on_error: Callable[[Message[T], BaseException], object] | None,
        end: Callable[[BaseException], object],
    ) -> None:
        self._claiming = claiming
        self._handler = handler
        self._on_error = on_error
        self._end = end

    def handle(self, message: Message[T], was_prefetched: bool) -> None:
        """Call the handler, unless the claim of a prefetched message has ended; settle the message.

        A child that the handler forks settles nothing. What the handler raises there is raised here.
        """
        try:
            if was_prefetched and not self._insist(message, partial(self._claiming.begin, message)):
                return
            verb = self._call(message)
            if not message._settled_for_good and not message._is_parents:
                self._settle(message, verb)
        except BaseException as error:
            if message._is_parents:
                raise
            self._end(error)

    def _call(self, message: Message[T]) -> Callable[[], None]:
        """Call the handler, and return how to settle the message."""
        try:
            try:
                self._handler(message)
                return message.ack
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:
                if message._is_parents:
                    raise
                self._report(message, error)
                return partial(message.nack, error=error_text(error))
        except (KeyboardInterrupt, SystemExit) as error:
            if message._is_parents:
                raise
            self._end(error)
            return message.release

    def _report(self, message: Message[T], error: BaseException) -> None:
        _log.warning(
            "the handler raised %s for message %d of topic %r, attempt %d",
            type(error).__name__, message.id, message.topic, message.attempts,
        )  # fmt: skip
        if self._on_error is not None:
            try:
                self._on_error(message, error)
            except Exception as other:
                _log.warning(
                    "on_error raised %s for message %d of topic %r",
                    type(other).__name__, message.id, message.topic,
                )  # fmt: skip

    def _settle(self, message: Message[T], verb: Callable[[], None]) -> None:
        try:
            self._insist(message, verb)
        except NotClaimedError:  # The handler has settled it in a transaction.
            pass
        except StaleClaimError:
            _log.warning(
                "the claim of message %d of topic %r ended before its handler did, so it is delivered again",
                message.id, message.topic,
            )  # fmt: skip

    def _insist(self, message: Message[T], call: Callable[[], R]) -> R:
        """Call until no temporary error is raised. Meanwhile the worker extends the lease."""
        failures = 0
        while True:
            try:
                return call()
            except TEMPORARY as error:
                failures += 1
                pause = PAUSES.delay(failures)
                _log.warning(
                    "message %d of topic %r is tried again in %.1f s: %s",
                    message.id, message.topic, pause, error,
                )  # fmt: skip
                time.sleep(pause)
