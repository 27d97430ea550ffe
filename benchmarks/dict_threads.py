"""Several threads that look up keys at the same time."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from benchmarks import dict_floors as floors
from benchmarks.contenders import seconds_together
from benchmarks.dict_contenders import KINDS, OURS, names, some
from benchmarks.model import Contender, Figure, Scenario, Sizes, ratio

__all__ = ["dict_threads"]

_THREADS = (1, 8)
_BARE = "bare, a connection each"


def dict_threads(sizes: Sizes, root: str) -> Scenario:
    """Measure how many keys all threads together look up in a second."""
    both = (sizes.small_backlog, sizes.large_table)
    count = 2 * sizes.operations
    keys = {size: some(names(size), count) for size in both}

    def path(size: int) -> str:
        return os.path.join(root, f"dict-{size}")

    def ours(size: int) -> Contender:
        def measure(at: str) -> Mapping[str, float]:
            with KINDS[OURS].open(path(size)) as stored:
                look_up = partial(_look_up, stored)
                return {_phase(threads): _together([look_up] * threads, keys[size]) for threads in _THREADS}

        return Contender(f"{OURS}, {size:,}", "process", measure)

    def bare(size: int) -> Contender:
        spelled = [b"s" + key.encode() for key in keys[size]]

        def measure(at: str) -> Mapping[str, float]:
            numbers = {}
            for threads in _THREADS:
                with ExitStack() as stack:
                    readers = [stack.enter_context(floors.reader_of_ours(path(size))) for _ in range(threads)]
                    numbers[_phase(threads)] = _together(readers, spelled)
            return numbers

        return Contender(f"{_BARE}, {size:,}", "process", measure)

    def prepare() -> Mapping[str, Any]:
        for size in both:
            KINDS[OURS].fill(path(size), names(size))
        return {}

    def gain(name: str, size: int, at_least: float | None = None) -> Figure:
        one, many = ([f"{name}, {size:,}: {_phase(threads)}"] for threads in _THREADS)
        return ratio(f"rate with 8 threads / 1 thread, {name}, {size:,}", one, many, at_least=at_least)

    def gain_beside_bare(size: int) -> Figure:
        ours, bare = gain(OURS, size), gain(_BARE, size)
        text = f"rate with 8 threads / 1 thread, {size:,}: {OURS} / bare"
        return Figure(text, lambda numbers: ours.of(numbers) / bare.of(numbers))

    return Scenario(
        name="dict_threads",
        compared=(
            "d[k] of random keys by 1 and by 8 threads, which share one dict of ours, from the common start"
            " to the last one's end, for each look-up of all of them; the ratio is of rates. And a bare"
            " select + loads in the same file, where each thread has a connection of its own. One thread at"
            " a time runs Python: what others gain is while SQLite reads, and sqlite3 hands over several"
            " times for each look-up, which costs the more the idler the machine is."
        ),
        contenders=[make(size) for size in both for make in (ours, bare)],
        figures=[
            *(gain(OURS, size, at_least=0.9) for size in both),
            *(gain(_BARE, size) for size in both),
            *map(gain_beside_bare, both),
        ],
        prepare=prepare,
    )


def _phase(threads: int) -> str:
    return f"d[k], {threads} thread{'s' if threads > 1 else ''}"


def _look_up(stored: Mapping[str, Any], keys: Sequence[str]) -> None:
    for key in keys:
        stored[key]


def _together(readers: Sequence[Callable[[Sequence[Any]], None]], keys: Sequence[Any]) -> float:
    """Return microseconds per key, from the common start to the last end.

    The readers share the keys.
    """
    shares = [partial(reader, keys[number :: len(readers)]) for number, reader in enumerate(readers)]
    return seconds_together(shares) * 1e6 / len(keys)
