"""How messages are claimed for the threads that share a queue: waiting, decoding, prefetching."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from functools import partial
from types import EllipsisType
from typing import Any, Generic, NamedTuple

from persistcoll.container import T
from persistcoll.engine.blocking import wait
from persistcoll.engine.contracts import Awaited
from persistcoll.engine.event_count import EventCount
from persistcoll.engine.message_core import MessageCore, Topics
from persistcoll.engine.message_records import MessageClaim, MessageRecord
from persistcoll.engine.transaction_hooks import OPEN
from persistcoll.errors import DecodeError, Empty, ShutDown, StaleClaimError
from persistcoll.messages.fields import text_of
from persistcoll.messages.message import Message

__all__ = ["Claiming", "Wanted"]

_EXTEND_AFTER = 0.1
"""The part of a lease after which the leases of prefetched messages are extended, so that nearly a whole one
is left for the consumer's work on the message before them."""
_PAUSE = 1.0
"""Seconds until a message that cannot be decoded, and that has no back-off, is delivered again."""


class Wanted(NamedTuple):
    """What a consumer asks for. The fields are the parameters of ``MessageStore.claim``."""

    limit: int
    topics: Topics
    lease: float | EllipsisType
    prefetch: bool = False


class Claiming(Generic[T]):
    """Claims messages of one queue. Any thread may call any method, and there is no lock.

    From the step in which the store claims messages until a consumer has them, a list of the caller names
    their claims. So whatever ends a call, ``take_back`` of the core releases what nobody got.

    :param decode: makes of a record its id and its body.
    """

    def __init__(self, core: MessageCore, decode: Callable[[Any], tuple[int, T]]) -> None:
        self._core = core
        self._decode = decode

    def claim(
        self,
        core: MessageCore,
        wanted: Wanted,
        claims: list[MessageClaim],
        block: bool,
        deadline: float | None,
    ) -> list[Message[T]]:
        """Claim messages, and wait for the first one, but not within a caller's transaction.

        :param core: that of the queue, or one that is joined to a transaction.
        :param claims: the claims are appended to this list.
        :raise Empty: no message came.
        :raise ShutDown: no message is ready, and the queue is shut down.
        """
        attempt = partial(self.attempt, core, wanted, claims, deadline)
        try:
            return attempt()
        except Empty:
            if not block or self._is_within(core):
                raise
        return self.wait(core.available(wanted.topics), attempt, deadline)

    def _is_within(self, core: MessageCore) -> bool:
        """Tell whether a caller's transaction is open, in which nothing is waited for."""
        return core is not self._core or (bool(OPEN) and core.store.open_transaction() is not None)

    def claim_batch(
        self,
        core: MessageCore,
        wanted: Wanted,
        claims: list[MessageClaim],
        block: bool,
        deadline: float | None,
        linger: float,
    ) -> list[Message[T]]:
        """Claim messages as :meth:`claim` does, and wait so many seconds for the rest of the batch.

        The messages are in their order, and of the leases of the first ones nearly the whole is left.
        """
        while True:
            messages = self.claim(core, wanted, claims, block, deadline)
            if not linger or len(messages) == wanted.limit or self._is_within(core):
                return messages
            claimed_at = time.monotonic()
            self._fill(core, wanted, claims, messages, claimed_at + linger)
            # A message whose lease ended in the wait may be claimed again, and its second claim is the one.
            messages = list({message.id: message for message in messages}.values())
            if time.monotonic() > _old_from(messages, claimed_at):
                lost = self.extend(messages)
                messages = [message for message in messages if message.id not in lost]
            if messages:
                return sorted(messages, key=lambda message: (-message.priority, message.id))

    def _fill(
        self,
        core: MessageCore,
        wanted: Wanted,
        claims: list[MessageClaim],
        messages: list[Message[T]],
        until: float,
    ) -> None:
        """Append messages to a batch, when so many are ready as it lacks, or else at the end of the wait."""

        def claim_the_rest() -> None:
            rest = wanted._replace(limit=wanted.limit - len(messages))
            messages.extend(self.attempt(core, rest, claims))

        def attempt() -> None:
            if core.is_shutdown:
                return
            if _count(core, wanted.topics) < wanted.limit - len(messages):
                raise Empty
            # What is ready may be of a topic that delivers nothing now, so these may be fewer, or none.
            claim_the_rest()
            if len(messages) < wanted.limit:
                raise Empty

        event = core.available(wanted.topics, alone=True)
        with suppress(Empty, ShutDown):
            wait(core.store.watch(Awaited.READY), event, attempt, Empty, until)
        if len(messages) < wanted.limit:
            with suppress(Empty, ShutDown):
                claim_the_rest()

    def wait(
        self, event: EventCount, attempt: Callable[[], list[Message[T]]], deadline: float | None
    ) -> list[Message[T]]:
        """Call ``attempt`` until it does not raise ``Empty``, or the deadline has passed.

        :param event: that of the core for the topics of the attempt.
        """
        try:
            return wait(self._core.store.watch(Awaited.READY), event, attempt, Empty, deadline)
        except (Empty, ShutDown):
            raise
        except BaseException:
            # The wake-up that led here may be that for a message which this thread has not got.
            event.notify(1)
            raise

    def attempt(
        self,
        core: MessageCore,
        wanted: Wanted,
        claims: list[MessageClaim],
        deadline: float | None = None,
    ) -> list[Message[T]]:
        """Claim messages until at least one of them can be decoded. Parameters and errors: :meth:`claim`."""
        refused: set[int] = set()
        while True:
            records = core.try_claim(*wanted, claims, deadline)
            messages = []
            for record in records:
                refusal: str | None = None
                try:
                    messages.append(Message(self._core, record, self._decode(record)[1]))
                except DecodeError as error:
                    refusal = str(error)
                # Outside of the handler. Otherwise the error of an observer would have the serializer's error
                # as its context, which may quote the body, and the log would show both.
                if refusal is not None:
                    self._refuse(core, record, refusal, refused)
            if messages:
                return messages

    def _refuse(self, core: MessageCore, record: MessageRecord, error: str, refused: set[int]) -> None:
        """Nack a message that cannot be decoded.

        :param refused: those that this call has nacked. Without a delay, the call might go on with one of
            them for ever.
        """
        assert record.claim is not None
        delay = _PAUSE if record.id in refused else None
        with suppress(StaleClaimError):  # Its lease is over.
            core.nack((record.claim,), {record.topic: None}, delay, text_of(error))
        refused.add(record.id)

    def consume(self, wanted: Wanted, owner: object) -> Generator[Message[T], None, None]:
        """Claim messages for ever, and give one after the other; end at a shutdown.

        :param owner: the queue, which must not be closed by its destructor before the iteration ends.
        """
        core, process = self._core, os.getpid()
        # `unused` has the claims of `messages`: those that were claimed and not yielded. Between the removal
        # from both and the yield is no call, because a signal handler could raise there.
        unused: list[MessageClaim] = []
        messages: list[Message[T]] = []
        old_from = math.inf
        try:
            try:
                while not core.is_shutdown:
                    if process != os.getpid():  # Forked within the consumer's work.
                        process, messages = os.getpid(), []
                        unused.clear()
                    if not messages:
                        messages = self.claim(core, wanted, unused, True, None)
                        unused[:] = [message._claim for message in messages]
                        old_from = _old_from(messages, time.monotonic())
                        continue
                    if time.monotonic() > old_from:
                        lost = self.extend(messages)
                        kept = [message for message in messages if message.id not in lost]
                        messages, unused[:] = kept, [message._claim for message in kept]
                        old_from = _old_from(messages, time.monotonic())
                        continue
                    message, holds = messages[0], not wanted.prefetch or self.begin(messages[0])
                    del messages[0], unused[0]
                    if holds:
                        yield message
            except ShutDown:
                return
            finally:
                core.take_back(unused, process)
        except BaseException:
            # Again, if a signal handler raised where that began.
            core.take_back(unused, process)
            raise

    def begin(self, message: Message[T]) -> bool:
        """Note that a consumer begins to work on a prefetched message; tell whether its claim holds."""
        try:
            self._core.store.deliver((message._claim,))
        except StaleClaimError:
            return False
        return True

    def extend(self, messages: Sequence[Message[T]]) -> set[int]:
        """Let the leases of messages begin again, and return the ids of those whose claims have ended.

        Cost: 1 transaction for each length that the leases have.
        """
        lost: set[int] = set()
        for lease in {message._record.lease for message in messages if message._record.lease is not None}:
            group = [message for message in messages if message._record.lease == lease]
            while group:
                try:
                    until = self._core.store.extend([message._claim for message in group], lease)
                except StaleClaimError as error:
                    lost.update(error.ids)
                    group = [message for message in group if message.id not in lost]
                else:
                    for message in group:
                        message._leased_until = until
                    break
        return lost


def _count(core: MessageCore, topics: Topics) -> int:
    """Return how many messages of these topics are ready."""
    return core.store.count() if topics is None else sum(map(core.store.count, topics))


def _old_from(messages: Sequence[Message[Any]], claimed_at: float) -> float:
    """Return the time at which a part of the shortest of the leases has passed."""
    leases = [message._record.lease for message in messages if message._record.lease is not None]
    return claimed_at + min(leases, default=math.inf) * _EXTEND_AFTER
