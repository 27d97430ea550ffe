"""What a consumer of a log has got and not committed: the core that answers at once.

The store knows a consumer's durable position and its reading place. The core knows the records between the
two: which of them threads have claimed, and which are to be delivered again.
"""

from __future__ import annotations

import bisect
import threading
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from persistcoll.engine.contracts import Claim, LogCursor, LogStore
from persistcoll.engine.event_count import EventCount
from persistcoll.engine.forks import REENTRANT, owned
from persistcoll.engine.records import Record
from persistcoll.errors import StorageError, trimmed

__all__ = ["ConsumerCore"]

T = TypeVar("T")
Decode = Callable[[Record], tuple[int, T]]


class _Ended(NamedTuple):
    claim: Claim
    is_released: bool


class ConsumerCore:
    """The consumer of a log that several threads may share, without waiting.

    A claimed record is committed by its claim (:meth:`ack`). While it is claimed, or released and not
    delivered again, the ack of a later record does not move the position past it. So the position never
    passes a record that a thread still processes. An explicit :meth:`commit` passes everything that was
    delivered, because its caller says that all of that is done.

    The token of a claim is the number of seeks before it. A later seek ends it, and so does a fork in the
    child.

    ``_mutex`` protects every field. A thread holds it while it calls the cursor, but not while it waits for
    the sync of a commit. ``_ended`` is appended to without it, because a destructor must not wait for a lock.

    :param available: notified when a record was released.
    """

    def __init__(self, store: LogStore, cursor: LogCursor, available: EventCount) -> None:
        self.cursor = cursor
        self._store = store
        self._available = available
        self._make_lock()
        self._ended: deque[_Ended] = deque()
        self._begin()

    def _begin(self) -> None:
        """Forget what was delivered, after a seek."""
        seeks = self.cursor.seeks
        self._claimed: dict[int, Claim] = {}  # by id; the claims that :meth:`ack` ends
        self._released: list[int] = []  # sorted; to be delivered before any later record
        # Ids that the cursor has read and this object has not noted yet: there are some only within a
        # call, and after an interrupt of one.
        self._reading: list[int] = []
        self._last_got = self._last_done = 0  # a commit of what is committed changes nothing
        self._epoch = seeks

    def _make_lock(self) -> None:
        self._mutex = threading.RLock()
        self._is_within = owned(self._mutex)

    def after_fork(self, available: EventCount) -> None:
        """Begin again in a forked child, with another event count, after the store has."""
        self._available = available
        self._make_lock()
        self._begin()

    def _refuse_reentry(self) -> None:
        """Raise ``StorageError`` in a signal handler within another call of this thread."""
        if self._is_within():
            raise StorageError(REENTRANT)

    def try_get(self, decode: Decode[T], claims: list[Claim], acks: bool = False) -> T:
        """Return the next item.

        :param claims: a list to which a claim is appended in the same step, for :meth:`release`.
        :param acks: whether the caller acks the claim. Otherwise the next commit is enough.
        :raise Empty: there is none.
        :raise TrimmedError: it was trimmed.
        """
        return self.try_get_many(1, decode, claims, acks)[0]

    def try_get_many(self, limit: int, decode: Decode[T], claims: list[Claim], acks: bool = False) -> list[T]:
        """Return the next 1 to ``limit`` items."""
        self._refuse_reentry()
        with self._mutex:
            self._note_ended()
            pairs = self._read_released(decode) or self.cursor.read(limit, decode, ids=self._reading)
            epoch = self._epoch
            new: list[Claim] = [(id, epoch) for id in self._reading]
            if acks:
                self._claimed.update(zip(self._reading, new, strict=True))
            self._last_got = max(self._last_got, self._reading[-1])
            claims.extend(new)
            self._reading.clear()
        return [item for _, item in pairs]

    def _read_released(self, decode: Decode[T]) -> list[tuple[int, T]]:
        """Return the first released item, if there is one.

        :raise TrimmedError: it was trimmed.
        """
        while self._released:
            id = self._released[0]
            record = next(self._store.records(id - 1), None)
            if record is not None and record.id == id:
                pair = decode(record)
                # First noted as being read, so that an interrupt loses nothing.
                self._reading.append(id)
                del self._released[0]
                return [pair]
            if id < (first := self._store.bounds().first):
                raise trimmed(id, first)
            del self._released[0]  # it is damaged by now, and the policy is to skip it
        return []

    def _note_ended(self) -> None:
        """Note which claims have ended since. The caller holds the mutex."""
        if self._epoch != self.cursor.seeks:  # an interrupt has ended a seek before this object noted it
            self._begin()
        for id in self._reading:  # an interrupt came before the caller got it
            self._claimed.pop(id, None)
            self._release(id)
        self._reading.clear()
        while self._ended:
            claim, is_released = self._ended[0]
            id, epoch = claim
            # Compare by identity: the record may have been delivered again since, with an equal claim.
            if epoch == self._epoch and self._claimed.get(id, claim) is claim:
                if is_released:
                    self._release(id)
                self._claimed.pop(id, None)
            self._ended.popleft()
        # An interrupt of a commit may have come after the position was stored. What is committed does not
        # come again, and no later commit stops before it.
        if self._released and self._released[0] <= (position := self.cursor.position):
            self._released = [id for id in self._released if id > position]

    def _release(self, id: int) -> None:
        if id not in self._released:
            bisect.insort(self._released, id)

    def release(self, claims: list[Claim]) -> None:
        """Deliver these records again, before later ones. A destructor may call it: it waits for nothing."""
        self._ended.extend([_Ended(claim, True) for claim in claims])
        self._available.notify(len(claims))

    def forget(self, claims: list[Claim]) -> None:
        """End these claims without an ack: the records were delivered and are not committed.

        A destructor may call it: it waits for nothing.
        """
        self._ended.extend([_Ended(claim, False) for claim in claims])

    def ack(self, claims: list[Claim]) -> None:
        """Commit claimed records, and everything before them that is not claimed or released."""
        self._refuse_reentry()
        with self._mutex:
            self._note_ended()
            mine = [claim[0] for claim in claims if self._claimed.get(claim[0]) is claim]
            if not mine:
                return  # the consumer was moved in between, so that there is nothing to commit
            self._last_done = max(self._last_done, *mine)
            for id in mine:
                del self._claimed[id]
            target = min([self._last_done, *(id - 1 for id in (*self._claimed, *self._released[:1]))])
            epoch = self._epoch
        self.cursor.commit(target, epoch)

    def commit(self, position: int | None) -> None:
        """Commit everything up to a position; ``None``: everything that was delivered.

        :raise ValueError: the log has no record of this position yet.
        """
        self._refuse_reentry()
        with self._mutex:
            self._note_ended()
            if position is None:
                position = min([self._last_got, *(id - 1 for id in self._released[:1])])
            epoch = self._epoch
        self.cursor.commit(position, epoch)
        with self._mutex:
            if epoch == self._epoch == self.cursor.seeks:
                self._last_done = max(self._last_done, position)
                self._released = [id for id in self._released if id > position]

    def seek(self, id: int | None) -> None:
        """Go to a record, and forget what was delivered."""
        self._refuse_reentry()
        with self._mutex:
            self.cursor.seek(id)
            self._begin()
        self._available.notify(None)

    @property
    def position(self) -> int:
        """The position up to which everything is committed."""
        return self.cursor.position

    def lag(self) -> int:
        """Return how many records are not committed."""
        return self.cursor.lag()

    def close(self) -> None:
        """Close the cursor, and wake every thread that waits for a record of it."""
        self.cursor.close()
        self._available.notify(None)
