"""Check and convert the arguments of containers: every face imports its checks from here.

:mod:`persistcoll.engine.arguments` decides what counts as a number, because the engine needs that itself.
"""

from __future__ import annotations

from typing import Any

from persistcoll.engine.arguments import checked_count, checked_integer, checked_number, checked_seconds
from persistcoll.engine.records import Backoff

__all__ = [
    "checked_backoff",
    "checked_choice",
    "checked_count",
    "checked_integer",
    "checked_mode",
    "checked_number",
    "checked_priority",
    "checked_seconds",
    "checked_ttl",
]


def checked_choice(name: str, value: object, *choices: str) -> None:
    """Raise an error unless ``value`` is one of the choices.

    :raise ValueError: it is none of them.
    """
    if value not in choices:
        *most, last = map(repr, choices)
        raise ValueError(f"{name!r} must be {', '.join(most)} or {last}, not {value!r}")


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
