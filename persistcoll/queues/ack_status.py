"""What a queue with acks says of the state of an item."""

from __future__ import annotations

from persistcoll.engine.records import Record, State

__all__ = ["AckStatus", "status_of"]


class AckStatus:
    """The values that ``"status"`` may have in what :meth:`SQLiteAckQueue.queue` returns."""

    inited = "0"
    """The item is ready and was never got."""
    ready = "1"
    """The item is ready or delayed, and was got before."""
    unack = "2"
    """A consumer has got the item and not settled it."""
    acked = "5"
    """The item was acked, and is kept."""
    ack_failed = "9"
    """The item is set aside: by ``ack_failed``, or because it was got ``max_attempts`` times."""


_STATUS = {
    State.READY: AckStatus.ready,
    State.DELAYED: AckStatus.ready,
    State.CLAIMED: AckStatus.unack,
    State.DONE: AckStatus.acked,
    State.FAILED: AckStatus.ack_failed,
    State.DEAD: AckStatus.ack_failed,
}


def status_of(state: State, record: Record) -> str:
    """Return the value of :class:`AckStatus` for a record in that state."""
    if state is State.READY and not record.attempts:
        return AckStatus.inited
    return _STATUS[state]
