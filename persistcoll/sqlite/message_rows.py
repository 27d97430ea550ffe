"""Turn messages into rows and rows into messages: sealed, and checked against a checksum."""

from __future__ import annotations

import json
import os
import struct
from types import EllipsisType
from typing import Any, NamedTuple
from zlib import crc32

from persistcoll.engine.message_records import MessageClaim, MessageEntry, MessagePolicy, MessageRecord
from persistcoll.engine.records import Backoff, State
from persistcoll.errors import CorruptionError
from persistcoll.sqlite.driver import Execute, corruption_error
from persistcoll.sqlite.message_statements import STATES
from persistcoll.sqlite.rows import Seal, refuse_too_large

__all__ = ["MessageRow", "MessageRows", "due_of", "is_ahead", "is_past", "random_token", "read_rows"]

_MASK = 0xFFFFFFFF
_NONE = type(None)
_TEXT, _TIME = (str, _NONE), (float, _NONE)
_FIXED, _FLOAT = struct.Struct("<ddI").pack, struct.Struct("<d").pack
_BY_NUMBER = {number: state for state, number in STATES.items()}


class MessageRow(NamedTuple):
    """The row of a message, as it is stored. Where it is damaged, its fields are of any type."""

    id: int
    number: int
    """Of the state."""
    topic: str
    place: float
    created: float
    attempts: int
    deliveries: int
    until: float | None
    finished: float | None
    key: bytes | None
    group: str | None
    headers: bytes
    error: str | None
    options: str | None
    ttl: float | None
    expires: float | None
    token: int | None
    delivered: int | None
    meta_crc: int | None
    crc: int
    payload: bytes

    @property
    def state(self) -> State:
        """The state.

        :raise DatabaseError: it is none, so the row is damaged.
        """
        state = _BY_NUMBER.get(self.number)
        if state is None:
            raise corruption_error("the state of a message")
        return state

    @property
    def claim(self) -> MessageClaim:
        """The present claim."""
        return MessageClaim(self.id, self.token or 0)

    def is_over(self, now: float) -> bool:
        """Tell whether its ttl is over."""
        return is_past(self.expires, now)


def is_past(time: float | None, now: float) -> bool:
    """Tell whether there is such a time, and it has come. A damaged one never comes."""
    return isinstance(time, float) and time <= now


def is_ahead(time: float | None, now: float) -> bool:
    """Tell whether there is such a time, and it has not come yet. A damaged one is no time."""
    return isinstance(time, float) and time > now


def read_rows(execute: Execute, text: str, parameters: tuple[object, ...]) -> list[MessageRow]:
    """Return the rows that a statement finds."""
    return [MessageRow._make(found) for found in execute(text, parameters).fetchall()]


def due_of(state: State, until: float | None, expires: float | None) -> float | None:
    """Return when something happens to a message in this state by itself."""
    if state is State.CLAIMED:
        return until
    if state not in (State.READY, State.DELAYED, State.BLOCKED):
        return None
    if state is not State.DELAYED or until is None:
        return expires
    return until if expires is None else min(until, expires)


class MessageRows:
    """Writes and reads the rows of one queue.

    Each row has two checksums, which are bound to its id and to the collection. ``meta_crc`` is that of what
    a put says of the message: the topic, the place, the key, the group, the options, the ttl, and when it was
    put. By it a step knows, without the body, whether it may rely on these. ``crc`` goes on over the headers
    and the payload, so no altered message is delivered. What changes during the life of a message has no
    checksum, and only its type is checked.

    A message that version 1 has put has no ``meta_crc``, and a ``crc`` without the columns that this covers.

    ``seal`` and ``unseal`` are set once, before the first write; no lock protects them.

    :param policy: what applies to messages that do not say it themselves.
    """

    seal: Seal | None = None
    unseal: Seal | None = None

    def __init__(self, path: str, store_id: bytes, policy: MessagePolicy) -> None:
        self._path = path
        self._seed = crc32(store_id)
        self._policy = policy

    def _meta_checksum(
        self,
        id: int,
        topic: str,
        place: float,
        created: float,
        key: bytes | None,
        group: str | None,
        options: str | None,
        ttl: float | None,
    ) -> int:
        name = topic.encode()
        crc = crc32(name, crc32(_FIXED(place, created, len(name)), (id ^ self._seed) & _MASK))
        if key is not None:
            crc = _labelled(b"key", key, crc)
        if group is not None:
            crc = _labelled(b"grp", group.encode(), crc)
        if options is not None:
            crc = _labelled(b"options", options.encode(), crc)
        if ttl is not None:
            crc = _labelled(b"ttl", _FLOAT(ttl), crc)
        return crc

    def _meta_checksum_of(self, row: MessageRow) -> int | None:
        """Return the checksum that the columns of a row give; ``None``: one of them is of a wrong type."""
        try:
            return self._meta_checksum(
                row.id, row.topic, row.place, row.created, row.key, row.group, row.options, row.ttl
            )
        except (AttributeError, TypeError, struct.error):
            return None

    def is_meta_intact(self, row: MessageRow) -> bool:
        """Tell whether a step may rely on topic, group and key of a row, which may be a bare one."""
        meta = self._meta_checksum_of(row)
        return meta is not None and row.number in _BY_NUMBER and row.meta_crc in (meta, None)

    def _first_checksum(self, row: MessageRow) -> int:
        """Return what version 1 has stored as ``crc``."""
        crc = crc32(row.headers, crc32(row.payload, (row.id ^ self._seed) & _MASK))
        return crc if row.options is None else crc32(row.options.encode(), crc)

    def sealed(self, id: int, entry: MessageEntry) -> bytes:
        """Return the payload as it is stored.

        :raise EncodeError: no row can hold it.
        """
        payload = entry.payload if self.seal is None else self.seal(entry.payload, id)
        refuse_too_large(payload)
        return payload

    def new(
        self, id: int, entry: MessageEntry, payload: bytes, is_blocked: bool, now: float
    ) -> tuple[Any, ...]:
        """Return the parameters of the row of a message that is being put; the last one is its due time."""
        until = now + entry.delay if entry.delay > 0 else None
        expires = None if entry.ttl is None else now + entry.ttl
        state = State.BLOCKED if is_blocked else State.READY if until is None else State.DELAYED
        place, options = 0.0 - entry.priority, _options(entry)
        meta = self._meta_checksum(id, entry.topic, place, now, entry.key, entry.group, options, entry.ttl)
        return (
            id, STATES[state], entry.topic, place, now, 0, 0, until, None, entry.key, entry.group,
            entry.headers, None, options, entry.ttl, expires, meta, _checksum(meta, entry.headers, payload),
            payload, due_of(state, until, expires),
        )  # fmt: skip

    def is_intact(self, row: MessageRow) -> bool:
        """Tell whether the row has its checksum, and whether its other columns can be those of a message."""
        meta = self._meta_checksum_of(row)
        return (
            meta is not None
            and type(row.payload) is type(row.headers) is bytes
            and row.crc
            == (
                self._first_checksum(row)
                if row.meta_crc is None
                else _checksum(meta, row.headers, row.payload)
            )
            and type(row.attempts) is type(row.deliveries) is int
            and 0 <= row.attempts <= row.deliveries < _MASK
            and type(row.error) in _TEXT
            and type(row.until) in _TIME
            and type(row.finished) in _TIME
            and type(row.expires) in _TIME
        )

    def record(self, row: MessageRow) -> MessageRecord:
        """Return the message of a row.

        :raise CorruptionError: the row is damaged.
        """
        if not self.is_intact(row) or row.number not in _BY_NUMBER:
            raise self.damaged(row.id)
        return MessageRecord(
            row.id, row.payload, row.topic, 0.0 - row.place, row.state, row.created, row.attempts,
            row.deliveries, row.until, row.finished, row.key, row.group, row.headers, row.error,
        )  # fmt: skip

    def damaged(self, id: int) -> CorruptionError:
        """Return the error that names a damaged message."""
        return CorruptionError(
            f"message {id} in {self._path!r} is damaged: its checksum is not right; cancel({id}) removes it,"
            " when nobody has claimed it",
            self._path,
            id=id,
        )

    def delivery(
        self, row: MessageRow, token: int, until: float | None, lease: float | None
    ) -> MessageRecord:
        """Return the message of a ready row that :meth:`is_intact` and that is being claimed."""
        return MessageRecord(
            row.id, row.payload, row.topic, 0.0 - row.place, State.CLAIMED, row.created, row.attempts + 1,
            row.deliveries + 1, until, row.finished, row.key, row.group, row.headers, row.error,
            MessageClaim(row.id, token), lease,
        )  # fmt: skip

    # What the message says itself, or else the policy.

    def lease(self, row: MessageRow, lease: float | EllipsisType | None) -> float | None:
        """Return the lease of a claim: that of the call, or of the message, or of the policy."""
        if not isinstance(lease, EllipsisType):
            return lease
        own = _own(row, "lease")
        return self._policy.lease if isinstance(own, EllipsisType) else own

    def is_spent(self, row: MessageRow) -> bool:
        """Tell whether a message has no attempts left."""
        own = _own(row, "max_attempts")
        most = self._policy.max_attempts if isinstance(own, EllipsisType) else own
        return most is not None and (type(row.attempts) is not int or row.attempts >= most)

    def backoff(self, row: MessageRow) -> float:
        """Return the seconds of the back-off."""
        own = _own(row, "backoff")
        backoff = self._policy.backoff if isinstance(own, EllipsisType) else own and Backoff(*own)
        return 0.0 if backoff is None else backoff.delay(row.attempts)


def _labelled(name: bytes, value: bytes, crc: int) -> int:
    """Continue a checksum over a column that may be ``NULL``."""
    return crc32(value, crc32(b"%b %d " % (name, len(value)), crc))


def _checksum(meta: int, headers: bytes, payload: bytes) -> int:
    """Return the checksum of a row, of which ``meta`` is that of the columns without the body."""
    return crc32(payload, _labelled(b"headers", headers, meta) if headers else meta)


def _options(entry: MessageEntry) -> str | None:
    """Return what a message says itself, as JSON; ``None``: nothing."""
    if entry.lease is entry.max_attempts is entry.backoff is ...:
        return None
    own: dict[str, Any] = {}
    for name in ("lease", "max_attempts", "backoff"):
        value = getattr(entry, name)
        if isinstance(value, Backoff):
            own[name] = [value.base, value.factor, value.limit, value.jitter]
        elif not isinstance(value, EllipsisType):
            own[name] = value
    return json.dumps(own)


def _own(row: MessageRow, name: str) -> Any:
    """Return what a message says itself; ``...``: nothing, or its options are damaged while it is claimed."""
    if row.options is None:
        return ...
    try:
        return json.loads(row.options).get(name, ...)
    except (TypeError, ValueError, AttributeError):
        return ...


def random_token() -> int:
    """Return 62 random bits. A forked child draws others than its parent."""
    return int.from_bytes(os.urandom(8), "big") >> 2
