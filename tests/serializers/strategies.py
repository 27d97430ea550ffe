"""Hypothesis strategies for items: one strategy, limited to what a format can hold."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import strategies as st

__all__ = ["hashables", "items"]


def scalars(
    *,
    bits: int | None = None,
    bytes_: bool = True,
    surrogates: bool = False,
    infinity: bool = True,
    none: bool = True,
) -> st.SearchStrategy[Any]:
    """Return a strategy for single values.

    :param bits: integers fit into so many bits, with a sign; ``None``: any integer.
    :param bytes_: with bytes.
    :param surrogates: text with lone surrogates.
    :param infinity: with infinite floats. Never NaN, which no test could compare.
    """
    if bits is None:
        integers = st.integers()
    else:
        integers = st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    letters = st.characters(exclude_categories=["Cs"])
    if surrogates:
        letters |= st.characters(categories=["Cs"])
    choices = [
        st.booleans(),
        integers,
        st.floats(allow_nan=False, allow_infinity=infinity),
        st.text(letters, max_size=20),
    ]
    if none:
        choices.append(st.none())
    if bytes_:
        choices.append(st.binary(max_size=40))
    return st.one_of(choices)


def hashables(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Return a strategy for ``leaves``, and tuples and frozensets of them, nested."""
    return st.recursive(
        leaves,
        lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3),
        max_leaves=5,
    )


def items(
    *,
    leaves: st.SearchStrategy[Any] | None = None,
    keys: st.SearchStrategy[Any] | None = None,
    tuples: bool = False,
    sets: st.SearchStrategy[Any] | None = None,
    **limits: Any,
) -> st.SearchStrategy[Any]:
    """Return a strategy for nested values.

    :param leaves: the innermost values; default: ``scalars(**limits)``.
    :param keys: the keys of dicts; default: like the leaves.
    :param tuples: with tuples, for a format that keeps tuples.
    :param sets: with sets of these.
    """
    inside = scalars(**limits) if leaves is None else leaves
    labels = inside if keys is None else keys

    def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        choices = [st.lists(inner, max_size=4), st.dictionaries(labels, inner, max_size=4)]
        if tuples:
            choices.append(st.lists(inner, max_size=4).map(tuple))
        if sets is not None:
            choices.append(st.sets(sets, max_size=4))
        return st.one_of(choices)

    return st.recursive(inside, containers, max_leaves=15)


def alike(a: Any, b: Any) -> bool:
    """Tell whether values are equal and of the same types at every depth, with the signs of zeros."""
    if type(a) is not type(b) or a != b:
        return False
    if isinstance(a, float):
        return math.copysign(1, a) == math.copysign(1, b)
    if isinstance(a, (list, tuple)):
        return all(map(alike, a, b))
    if isinstance(a, dict):
        # Equal keys of different types are in one dict only once, so the order pairs them.
        return all(map(alike, a, b)) and all(map(alike, a.values(), b.values()))
    return True
