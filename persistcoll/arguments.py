"""Check and convert the arguments of containers: every face imports its checks from here.

:mod:`persistcoll.engine.arguments` decides what counts as a number, because the engine needs that itself.
"""

from __future__ import annotations

import re
import time
from datetime import datetime
from typing import Any

from persistcoll.engine.arguments import checked_count, checked_integer, checked_number, checked_seconds
from persistcoll.engine.records import Backoff

__all__ = [
    "HIGHEST_INTEGER",
    "LONGEST",
    "checked_backoff",
    "checked_choice",
    "checked_count",
    "checked_delay",
    "checked_finite_backoff",
    "checked_integer",
    "checked_length",
    "checked_limit",
    "checked_mode",
    "checked_number",
    "checked_number_of",
    "checked_priority",
    "checked_seconds",
    "checked_short_name",
    "checked_span",
    "checked_text",
    "checked_ttl",
    "error_text",
    "names_server",
    "seconds_since_epoch",
]

HIGHEST_INTEGER = (1 << 63) - 1
"""The highest whole number that every database stores."""
LONGEST = 1e10
"""Seconds, about 317 years: a clock to which more is added loses fractions of a second."""
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_LONGEST_NAME = 255  # bytes of UTF-8
_LONGEST_TEXT = 10_000  # characters
_MOST = 1 << 31


def names_server(place: object) -> bool:
    """Tell whether a place is the URL of a server, and not a path.

    >>> [names_server(place) for place in ("mysql://ann@db/shop", "a/b", "C:/a", b"a")]
    [True, False, False, False]
    """
    return isinstance(place, str) and _URL.match(place) is not None


def checked_choice(name: str, value: object, *choices: str) -> None:
    """Raise an error unless ``value`` is one of the choices.

    :raise ValueError: it is none of them.
    """
    if value not in choices:
        *most, last = map(repr, choices)
        raise ValueError(f"{name!r} must be {', '.join(most)} or {last}, not {value!r}")


def checked_number_of(name: str, value: Any) -> int:
    """Return how many items to take at most. More than a list holds is no error.

    :raise TypeError: not a whole number.
    :raise ValueError: below 1.
    """
    number: int = checked_integer(name, value)
    if number < 1:
        raise ValueError(f"{name!r} must be at least 1, not {number}")
    return min(number, _MOST)


def checked_mode(value: Any) -> int | None:
    """Return ``value`` as permission bits of files, or ``None``.

    :raise TypeError: not a whole number.
    :raise ValueError: bits other than those for reading and writing, or without both of them for the owner.
    """
    if value is None:
        return None
    value = checked_integer("mode", value)
    if value & ~0o666 or ~value & 0o600:
        raise ValueError(f"'mode' must be permission bits of files, such as 0o600 or 0o660, not {value:#o}")
    return value  # type: ignore[no-any-return]


def checked_backoff(value: Any) -> Backoff | None:
    """Return ``value`` as a back-off; a number of seconds becomes one that never grows.

    :raise TypeError: neither a number nor a back-off.
    :raise ValueError: negative, NaN, or more than a float holds.
    """
    if value is None or isinstance(value, Backoff):
        return value
    seconds = checked_seconds("backoff", value)
    return Backoff(base=seconds, factor=1, limit=seconds, jitter=0)


def checked_priority(value: Any) -> float:
    """Return ``value`` as an int or a float that the databases can order.

    :raise TypeError: not a number.
    :raise ValueError: NaN, or a whole number of more than 64 bits.
    """
    value = checked_number("priority", value)
    if value != value:
        raise ValueError("'priority' must not be NaN, because NaN has no place in an order")
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        raise ValueError("'priority' must be a whole number of 64 bits, or a float")
    return value  # type: ignore[no-any-return]


def checked_ttl(ttl: Any) -> float | None:
    """Return ``ttl`` as an int or a float of seconds; ``None`` stays ``None``.

    :raise TypeError: not a number.
    :raise ValueError: not above 0, or infinite.
    """
    if ttl is None:
        return None
    ttl = checked_number("ttl", ttl, "a number of seconds or None")
    if not 0 < ttl < float("inf"):  # Refuses NaN, too.
        raise ValueError(f"'ttl' must be a number of seconds above 0, or None, not {ttl}")
    return ttl  # type: ignore[no-any-return]


def checked_length(name: str, value: Any) -> float:
    """Return a length of time in seconds, which may be 0.

    :raise TypeError: not a number.
    :raise ValueError: negative, NaN, or above :data:`LONGEST`.
    """
    seconds = checked_seconds(name, value)
    if seconds > LONGEST:
        raise ValueError(f"{name!r} must be at most {LONGEST:.0f} seconds, not {seconds}")
    return seconds


def checked_span(name: str, value: Any) -> float:
    """Return a length of time above 0 in seconds.

    :raise TypeError: not a number.
    :raise ValueError: 0, or what :func:`checked_length` refuses.
    """
    seconds = checked_length(name, value)
    if seconds == 0:
        raise ValueError(f"{name!r} must be above 0")
    return seconds


def seconds_since_epoch(name: str, value: datetime) -> float:
    """Return a time in seconds since the epoch.

    :raise ValueError: without a time zone.
    """
    if value.utcoffset() is None:
        raise ValueError(f"{name!r} must be a datetime with a time zone, because a naive one is ambiguous")
    return value.timestamp()


def checked_delay(value: Any) -> float:
    """Return a delay in seconds from now; that until a time that is over is 0.

    :param value: seconds, or an aware ``datetime``.
    :raise TypeError: neither of them.
    :raise ValueError: a ``datetime`` without a time zone, or a number that :func:`checked_length` refuses.
    """
    if isinstance(value, datetime):
        value = max(0.0, seconds_since_epoch("delay", value) - time.time())
    return checked_length("delay", value)


def checked_finite_backoff(value: Any) -> Backoff | None:
    """Return what :func:`checked_backoff` returns, if its longest delay is one that a clock can add.

    :raise TypeError: neither a number nor a back-off.
    :raise ValueError: negative, NaN, or a longest delay above :data:`LONGEST`.
    """
    backoff = checked_backoff(value)
    # A delay is NaN if an infinite factor meets a base of 0.
    if backoff is not None and not (backoff.limit <= LONGEST and backoff.factor < float("inf")):
        raise ValueError(f"'backoff' must have a limit of at most {LONGEST:.0f} seconds, and a finite factor")
    return backoff


def checked_limit(name: str, value: Any, least: int = 0) -> int:
    """Return ``value`` as an int from ``least`` to :data:`HIGHEST_INTEGER`.

    :raise TypeError: not a whole number.
    :raise ValueError: too small or too large.
    """
    limit: int = checked_integer(name, value)
    if not least <= limit <= HIGHEST_INTEGER:
        raise ValueError(f"{name!r} must be at least {least} and of at most 64 bits, not {limit}")
    return limit


def checked_short_name(what: str, value: Any) -> str:
    """Return a name of at most 255 bytes of UTF-8, which every database can compare and index.

    :raise TypeError: not a str.
    :raise ValueError: longer, or with a surrogate without its pair.
    """
    if not isinstance(value, str):
        raise TypeError(f"{what!r} must be a str, not {type(value).__name__}")
    name = str.__str__(value)  # An enumeration of strings has a __str__ of its own.
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise ValueError(f"{what!r} cannot be stored: it has a surrogate without its pair") from None
    if size > _LONGEST_NAME:
        raise ValueError(f"{what!r} must have at most {_LONGEST_NAME} bytes of UTF-8, not {size}")
    return name


def checked_text(name: str, value: Any) -> str | None:
    """Return a text as a store keeps it: in UTF-8, and not endless. ``None`` stays ``None``.

    :raise TypeError: neither a str nor ``None``.
    """
    if value is None:
        return None
    if not isinstance(value, str):
        raise TypeError(f"{name!r} must be a str, not {type(value).__name__}")
    text = value[:_LONGEST_TEXT].replace("\0", "\\x00")
    return text.encode("utf-8", "backslashreplace").decode()


def error_text(error: BaseException) -> str:
    """Return the type and the text of an exception."""
    try:
        text = str(error)
    except Exception as broken:  # Its class is the program's own.
        text = f"a text that cannot be made, because of {type(broken).__name__}"
    return checked_text("error", f"{type(error).__name__}: {text}") or ""
