"""Check the options of messages, and convert them to what a store keeps and back."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from datetime import datetime
from types import EllipsisType
from typing import Any

from persistcoll.arguments import (
    HIGHEST_INTEGER,
    LONGEST,
    checked_delay,
    checked_finite_backoff,
    checked_integer,
    checked_length,
    checked_limit,
    checked_number,
    checked_number_of,
    checked_short_name,
    checked_span,
    checked_text,
    seconds_since_epoch,
)
from persistcoll.engine.contracts import MessageStore
from persistcoll.engine.message_core import Topics
from persistcoll.engine.message_records import MessageEntry, MessageRecord

__all__ = [
    "checked_concurrency",
    "checked_id",
    "checked_lease",
    "checked_rate",
    "checked_time",
    "checked_topic",
    "checked_topics",
    "encoded_key",
    "entry_of",
    "headers_of",
    "key_of",
    "text_of",
    "time_of_store",
]


def entry_of(payload: bytes, options: Mapping[str, Any]) -> MessageEntry:
    """Return what a store keeps of a message.

    :param options: the parameters of :meth:`MessageQueue.put`, all of them.
    :raise TypeError: an option is of a wrong type.
    :raise ValueError: an option has a wrong value.
    """
    delay = checked_delay(options["delay"])
    ttl = None if options["ttl"] is None else checked_span("ttl", options["ttl"])
    if ttl is not None and delay >= ttl:
        raise ValueError(f"a message with a ttl of {ttl} s and a delay of {delay} s would never be delivered")
    group, window, lease = options["group"], options["key_window"], options["lease"]
    most, backoff = options["max_attempts"], options["backoff"]
    if most is not None and not isinstance(most, EllipsisType):
        most = checked_limit("max_attempts", most, 1)
    return MessageEntry(
        payload,
        topic=checked_short_name("topic", options["topic"]),
        priority=_checked_priority(options["priority"]),
        delay=delay,
        key=None if options["key"] is None else encoded_key(options["key"]),
        key_window=0.0 if window is None else checked_length("key_window", window),
        group=None if group is None else checked_short_name("group", group),
        ttl=ttl,
        headers=_encoded_headers(options["headers"]),
        lease=lease if lease is None or isinstance(lease, EllipsisType) else checked_lease(lease),
        max_attempts=most,
        backoff=backoff if isinstance(backoff, EllipsisType) else checked_finite_backoff(backoff),
    )


def checked_topic(value: Any) -> str | None:
    """Return the name of a topic; ``None`` stays ``None``.

    :raise TypeError: neither a str nor ``None``.
    :raise ValueError: no name that a topic may have.
    """
    return None if value is None else checked_short_name("topic", value)


def checked_topics(value: Any) -> Topics:
    """Return the topics that a consumer asks for: a name, several, or ``None`` for any.

    :raise TypeError: something other than that.
    :raise ValueError: no topic at all, or no name that a topic may have.
    """
    if value is None:
        return None
    if isinstance(value, str):
        return (checked_short_name("topic", value),)
    if isinstance(value, (bytes, bytearray)) or not isinstance(value, Iterable):
        raise TypeError(f"'topic' must be a name, several names or None, not {type(value).__name__}")
    topics = tuple(sorted({checked_short_name("topic", each) for each in value}))
    if not topics:
        raise ValueError("'topic' must have at least one name; None means any topic")
    return topics


def checked_lease(value: Any) -> float:
    """Return the length of a lease in seconds.

    :raise TypeError: not a number.
    :raise ValueError: not above 0, or longer than any clock runs.
    """
    return checked_span("lease", value)


def checked_concurrency(topics: Any, concurrency: Any) -> tuple[Topics, dict[str, int] | None, int]:
    """Return the topics of a worker, how many of each it may handle at once, and how many of all.

    :param concurrency: a number for all topics together, or a dict with one for each of them.
    :raise TypeError: one of them is of a wrong type.
    :raise ValueError: a number is below 1, a name is none that a topic may have, or both name topics that
        differ.
    """
    names = checked_topics(topics)
    if not isinstance(concurrency, Mapping):
        return names, None, checked_number_of("concurrency", concurrency)
    if not concurrency:
        raise ValueError("'concurrency' must name at least one topic")
    own = checked_topics(concurrency) or ()
    limits = {topic: checked_number_of("concurrency", concurrency[topic]) for topic in own}
    if names not in (None, own):
        raise ValueError("'topics' and 'concurrency' name different topics; the latter alone is sufficient")
    return own, limits, sum(limits.values())


def checked_id(value: Any) -> int:
    """Return the id of a message.

    :raise TypeError: not a whole number.
    :raise ValueError: a number that cannot be an id.
    """
    id: int = checked_integer("id", value, "a whole number, as put() returns it")
    if not 1 <= id <= HIGHEST_INTEGER:
        raise ValueError(f"{id} cannot be the id of a message: they are above 0 and have 64 bits")
    return id


def checked_time(name: str, value: Any) -> float:
    """Return a time in seconds since the epoch.

    :param value: seconds since the epoch, or an aware ``datetime``.
    :raise TypeError: neither of them.
    :raise ValueError: a ``datetime`` without a time zone, NaN, or more than a float holds.
    """
    if isinstance(value, datetime):
        return seconds_since_epoch(name, value)
    return _finite(name, checked_number(name, value, "a datetime, or seconds since the epoch"))


def time_of_store(store: MessageStore, seconds: float) -> float:
    """Return the time by a store's clock that is ``seconds`` since the epoch by the system's clock.

    It asks the store first. The time that passes until it reads the system's clock, an answer of a server
    included, makes the result earlier, so that a purge takes nothing that was put at that time.
    """
    return store.now() + (seconds - time.time())


def _finite(name: str, number: float) -> float:
    try:
        exact = float(number)
    except OverflowError:
        exact = float("inf")
    if not abs(exact) < float("inf"):  # Refuses NaN, too.
        raise ValueError(f"{name!r} must be a finite number, and not {exact}")
    return exact


def checked_rate(rate: Any, per: Any, burst: Any) -> tuple[float | None, int]:
    """Return the seconds between two deliveries (``None`` without a rate), and how many may come at once.

    :raise TypeError: one of them is not a number, or ``burst`` not a whole one.
    :raise ValueError: one of them is too small or too large.
    """
    span, most = checked_span("per", per), checked_limit("burst", burst, 1)
    if rate is None:
        return None, most
    number = _finite("rate", checked_number("rate", rate))
    if not number > 0:
        raise ValueError(f"'rate' must be above 0, not {rate}; pause() stops a topic, None lifts the limit")
    interval = span / number
    if not 0 < interval * most <= LONGEST:
        raise ValueError("'per' divided by 'rate' and multiplied by 'burst' is no time that a clock can add")
    return interval, most


def _checked_priority(value: Any) -> float:
    """Return a priority that every store orders in the same way."""
    number = checked_number("priority", value)
    exact = _finite("priority", number)
    if exact != number:
        raise ValueError("'priority' must be a number that a float represents exactly")
    return exact


def encoded_key(key: Any) -> bytes:
    """Return a key as bytes, so that no str and no bytes have the same.

    :raise TypeError: neither a str nor bytes.
    """
    if isinstance(key, str):
        return b"s" + str.__str__(key).encode("utf-8", "surrogatepass")
    if isinstance(key, (bytes, bytearray, memoryview)):
        return b"b" + bytes(key)
    raise TypeError(f"'key' must be a str or bytes, not {type(key).__name__}")


def key_of(record: MessageRecord) -> str | bytes | None:
    """Return the key of a message as it was given."""
    if record.key is None:
        return None
    kind, key = record.key[:1], record.key[1:]
    return key.decode("utf-8", "surrogatepass") if kind == b"s" else key


def _encoded_headers(headers: Any) -> bytes:
    if headers is None:
        return b""
    if not isinstance(headers, Mapping):
        raise TypeError(f"'headers' must be a dict of str to str, not {type(headers).__name__}")
    pairs = dict(headers)
    if not all(isinstance(each, str) for pair in pairs.items() for each in pair):
        raise TypeError("'headers' must be a dict of str to str, and something in it is no str")
    return json.dumps(pairs).encode() if pairs else b""


def headers_of(record: MessageRecord) -> dict[str, str]:
    """Return the headers of a message."""
    return json.loads(record.headers) if record.headers else {}


def text_of(error: Any) -> str | None:
    """Return the text of an error as a store keeps it; see :func:`checked_text`."""
    return checked_text("error", error)
