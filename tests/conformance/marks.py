"""How often the laws are tried on which stores."""

from __future__ import annotations

import pytest

__all__ = ["marks_of"]

# Other forms of a store on a server. A law that it keeps itself seldom fails on one of them alone, and each
# server has up to three.
_FORMS = ("-lossy", "-pooled", "-from-floor")


def marks_of(store: str, is_long: bool = False) -> list[pytest.MarkDecorator]:
    """Return the marks of a law on the store of this name."""
    marks = [pytest.mark.long] if is_long else []
    if store.endswith(_FORMS):
        marks.append(pytest.mark.drawn(2))
    if store.endswith("-own-clock"):
        # On a busy machine a law is tried again with twice the time, which is up to half a minute at first.
        marks.append(pytest.mark.timeout(900))
    return marks
