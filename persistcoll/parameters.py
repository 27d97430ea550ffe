"""The type parameters of the containers: ``Queue[T]``, ``PDict[K, V]``.

For a type checker they default to ``Any``. So ``Queue("jobs")`` is a queue of anything, and not an error
that asks for an annotation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    T = TypeVar("T", default=Any)
    K = TypeVar("K", default=Any)
    V = TypeVar("V", default=Any)
else:
    from typing import TypeVar

    T, K, V = map(TypeVar, "TKV")
