"""The reference queue store: a :class:`MemoryRecordStore`, first in, first out, that shows no attempts."""

from __future__ import annotations

from persistcoll.engine.memory.record_store import MemoryRecordStore
from persistcoll.engine.memory.rows import MemoryRecordState, Row
from persistcoll.engine.records import Record

__all__ = ["MemoryQueueState", "MemoryQueueStore"]

MemoryQueueState = MemoryRecordState


class MemoryQueueStore(MemoryRecordStore):
    """A :class:`~persistcoll.engine.contracts.QueueStore` in memory.

    It is useful in tests of programs that use a container, where no record has to outlive the process.
    Closing a store releases its claims, and a new store of the same state continues with it. Any thread may
    call any method. The time of a call grows with the number of records.

    >>> state = MemoryQueueState()
    >>> store = MemoryQueueStore(state)
    >>> store.append(b"first"), store.append(b"second")
    (1, 2)
    >>> store.claim(lambda record: record.payload)
    b'first'
    >>> store.close()
    >>> [record.payload for record in MemoryQueueStore(state).records()]
    [b'first', b'second']

    :param state: the state with the records; a new and empty one by default.
    """

    def __init__(self, state: MemoryQueueState | None = None) -> None:
        super().__init__(state=state)

    def _record(self, row: Row, attempt: int = 0) -> Record:
        return Record(row.id, row.payload, row.time)
