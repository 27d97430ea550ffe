"""Turn messages into columns and rows into messages: sealed, and checked against a checksum."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import EllipsisType
from typing import Any, NamedTuple
from zlib import crc32

from persistcoll.engine.message_records import MessageClaim, MessageEntry, MessagePolicy, MessageRecord
from persistcoll.engine.records import Backoff
from persistcoll.errors import CorruptionError
from persistcoll.servers.message_statements import BLOCKED, DELAYED, READY
from persistcoll.servers.rows import SealedRows
from persistcoll.servers.statements import LONGEST_SPAN, NUMBERS

__all__ = ["NO_LEASE", "UNLIMITED", "MessageRow", "MessageRows", "due_in", "group_name", "later"]

UNLIMITED = 2**31 - 1
"""More attempts than there are."""
NO_LEASE = "a lease is needed, because a queue on a server notices no death of a consumer"
_STATES = {number: state for state, number in NUMBERS.items()}
_LONGEST_KEY = 1024  # bytes


class MessageRow(NamedTuple):
    """The row of a message. A bare one ends with ``place``."""

    id: int
    number: int
    """Of the state."""
    topic: str
    attempts: int
    until: float | None
    is_over: bool
    """Whether its ttl is over."""
    key: bytes | None
    group: str | None
    mark: int
    max_attempts: int | None
    backoff: bytes | None
    token: int | None
    now: float
    """The server's time when it was read."""
    place: float = 0.0
    created: float = 0.0
    deliveries: int = 0
    finished: float | None = None
    headers: bytes = b""
    error: bytes | None = None
    lease: float | None = None
    crc: int = 0
    payload: bytes = b""

    @classmethod
    def of(cls, values: Any) -> MessageRow:
        """Return the row that a statement found."""
        found: Any = cls(*values[: len(cls._fields)])  # topic, key and group are bytes
        row: MessageRow = found._replace(
            topic=bytes(found.topic).decode(),
            is_over=bool(found.is_over),
            key=None if found.key is None else bytes(found.key),
            group=None if found.group is None else bytes(found.group).decode(),
        )
        return row

    @property
    def is_blocked(self) -> bool:
        """Whether an earlier message of its group is unfinished."""
        return self.number == BLOCKED

    @property
    def group_name(self) -> bytes:
        """The name of its group among all of the queue."""
        assert self.group is not None
        return group_name(self.topic, self.group)


def group_name(topic: str, group: str) -> bytes:
    """Return the name of a group among all groups of a queue."""
    name = topic.encode()
    return len(name).to_bytes(2, "big") + name + group.encode()


def due_in(row: Mapping[str, Any]) -> float | None:
    """Return in how many seconds something happens by itself to a row that is being put."""
    delay = row["delay"] if row["state"] == DELAYED else None
    return min((each for each in (delay, row["ttl"]) if each is not None), default=None)


def later(time: float, seconds: float) -> float:
    """Return the time so many seconds later, as the server has it: in whole microseconds."""
    return (round(time * 1e6) + round(seconds * 1e6)) / 1e6


class MessageRows(SealedRows):
    """Writes and reads the rows of one queue.

    The checksum is that of what a put says of the message: its topic, key, group, headers and payload.

    :param policy: what applies to messages that do not say it themselves.
    """

    def __init__(self, store_id: bytes, place: str, max_payload: int, policy: MessagePolicy) -> None:
        super().__init__(store_id, place, max_payload)
        self._policy = policy

    def _checksum_of(
        self, mark: int, topic: str, key: bytes | None, group: str | None, headers: bytes, payload: bytes
    ) -> int:
        parts = (topic.encode(), key, None if group is None else group.encode(), headers)
        label = b" ".join(b"-" if part is None else b"%d" % len(part) for part in parts)
        return crc32(payload, self._checksum(mark, b"".join((label, *(part or b"" for part in parts)))))

    def new(self, entry: MessageEntry) -> dict[str, Any]:
        """Return the columns of a row that is being put, which is not blocked.

        :raise EncodeError: the payload is too large.
        :raise ValueError: the server cannot store the key or the priority, or there is no lease.
        """
        place = 0.0 - float(entry.priority)
        if place != -entry.priority:
            raise ValueError(f"a server stores priorities as floats, and {entry.priority} is none")
        if entry.key is not None and len(entry.key) > _LONGEST_KEY:
            raise ValueError(f"a key has at most {_LONGEST_KEY} bytes on a server, not {len(entry.key)}")
        if entry.lease is None:
            raise ValueError(NO_LEASE)
        mark, payload = self._sealed(entry.payload)
        delay, ttl = (None if each is None else min(each, LONGEST_SPAN) for each in (entry.delay, entry.ttl))
        row: dict[str, Any] = {
            "state": DELAYED if delay else READY,
            "topic": entry.topic.encode(),
            "place": place,
            "item_key": entry.key,
            "grp": None if entry.group is None else entry.group.encode(),
            "headers": entry.headers,
            "lease": None if isinstance(entry.lease, EllipsisType) else min(entry.lease, LONGEST_SPAN),
            "max_attempts": _most(entry.max_attempts),
            "backoff": _backoff(entry.backoff),
            "ttl": ttl,
            "delay": delay or None,
            "mark": mark,
            "crc": self._checksum_of(mark, entry.topic, entry.key, entry.group, entry.headers, payload),
            "payload": payload,
        }
        row["due"] = due_in(row)
        return row

    def is_intact(self, row: MessageRow) -> bool:
        """Tell whether a row has its checksum."""
        return row.crc == self._checksum_of(
            row.mark, row.topic, row.key, row.group, bytes(row.headers), bytes(row.payload)
        )

    def record(self, row: MessageRow) -> MessageRecord:
        """Return the message of a row.

        :raise CorruptionError: the row is damaged.
        """
        if not self.is_intact(row):
            raise CorruptionError(
                f"message {row.id} in {self._place} is damaged: its checksum is not right; cancel({row.id})"
                " removes it, when nobody has claimed it",
                self._place,
                id=row.id,
            )
        return self._record(row)

    def _record(self, row: MessageRow) -> MessageRecord:
        return MessageRecord(
            id=row.id,
            payload=bytes(row.payload),
            topic=row.topic,
            priority=0.0 - row.place,
            state=_STATES[row.number],
            time=row.created,
            attempts=row.attempts,
            deliveries=row.deliveries,
            until=row.until,
            finished=row.finished,
            key=row.key,
            group=row.group,
            headers=bytes(row.headers),
            error=None if row.error is None else bytes(row.error).decode(errors="replace"),
            own_mark=row.mark,
        )

    def delivery(self, row: MessageRow, lease: float) -> MessageRecord:
        """Return the message of a row that :meth:`is_intact` and was claimed."""
        assert row.token is not None
        return self._record(row)._replace(claim=MessageClaim(row.id, row.token), lease=lease)

    # What the message says itself, or else the policy.

    def lease(self, row: MessageRow, lease: float | None) -> float:
        """Return the lease of a claim: that of the call, or of the message, or of the policy."""
        found = lease if lease is not None else row.lease if row.lease is not None else self._policy.lease
        assert found is not None
        return found

    def is_spent(self, row: MessageRow) -> bool:
        """Tell whether a message has no attempts left."""
        most = self._policy.max_attempts if row.max_attempts is None else row.max_attempts
        return most is not None and row.attempts >= most

    def delay(self, row: MessageRow) -> float:
        """Return the seconds of the back-off."""
        backoff = self._policy.backoff
        if row.backoff is not None:
            own = json.loads(bytes(row.backoff))
            backoff = None if own is None else Backoff(*own)
        return 0.0 if backoff is None else backoff.delay(row.attempts)


def _most(own: int | EllipsisType | None) -> int | None:
    """Return the column of the most attempts."""
    if isinstance(own, EllipsisType):
        return None
    return UNLIMITED if own is None else min(own, UNLIMITED)


def _backoff(own: Backoff | EllipsisType | None) -> bytes | None:
    """Return the column of the back-off, as JSON."""
    if isinstance(own, EllipsisType):
        return None
    numbers = None if own is None else [own.base, own.factor, own.limit, own.jitter]
    return json.dumps(numbers).encode()
