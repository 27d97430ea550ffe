"""Convert numbers that callers give, or refuse them: the one module that knows which types are numbers.

An integer is what :func:`operator.index` accepts, so numpy's integers are integers. A number is an integer,
or what has ``__float__``: numpy's floats, :class:`~decimal.Decimal` and :class:`~fractions.Fraction`. They
become plain ``int`` and ``float``, which every store and every pickle knows. A bool is neither, because
``True`` in place of a number is an argument that was given in the wrong place.
"""

from __future__ import annotations

import operator
from typing import Any

__all__ = ["checked_count", "checked_integer", "checked_number", "checked_seconds", "checked_timeout"]


def checked_integer(name: str, value: Any, what: str = "a whole number") -> int:
    """Return ``value`` as an int.

    :raise TypeError: not a whole number.
    """
    if not isinstance(value, bool):
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise TypeError(f"{name!r} must be {what}, not {type(value).__name__}")


def checked_number(name: str, value: Any, what: str = "a number") -> int | float:
    """Return ``value`` as an int or a float.

    :raise TypeError: not a number.
    """
    kind = type(value)
    try:
        if hasattr(kind, "__index__"):
            return checked_integer(name, value)
        if hasattr(kind, "__float__"):
            return float(value)
    except TypeError:
        pass
    raise TypeError(f"{name!r} must be {what}, not {kind.__name__}")


def checked_count(name: str, value: Any, least: int = 0) -> int:
    """Return ``value`` as an int of at least ``least``; ``None`` counts as 0.

    :raise TypeError: not a whole number.
    :raise ValueError: too small.
    """
    if value is None:
        return 0
    count = checked_integer(name, value)
    if count < least:
        raise ValueError(f"{name!r} must be at least {least}, not {count}")
    return count


def checked_seconds(name: str, value: Any) -> float:
    """Return ``value``, a number of seconds, as a float.

    :raise TypeError: not a number.
    :raise ValueError: negative, NaN, or more than a float holds.
    """
    value = checked_number(name, value, "a number of seconds")
    if not value >= 0:
        raise ValueError(f"{name!r} must not be negative, not {value}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name!r} is too large a number of seconds") from None


def checked_timeout(timeout: Any) -> float | None:
    """Return how many seconds to wait at most; ``None`` stays ``None``, and waits for ever.

    :raise TypeError: not a number.
    :raise ValueError: negative, NaN, or more than a float holds.
    """
    return None if timeout is None else checked_seconds("timeout", timeout)
