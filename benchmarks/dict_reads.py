"""Look-ups in dicts of few keys and of many."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from itertools import repeat
from typing import Any

from benchmarks import dict_contenders as dicts
from benchmarks import dict_floors as floors
from benchmarks.contenders import Marks
from benchmarks.dict_contenders import DISKCACHE, OURS, PERSIST_QUEUE, SHELVE, SQLITEDICT, Kind, names, some
from benchmarks.model import Contender, Figure, Numbers, Scenario, Sizes, ratio

__all__ = ["dict_reads"]

_BARE, _SAME_FILE = "bare", "bare in the file of ours"
_LOOK_UP = "d[k]"
# How often len() is called of dicts that count their rows for it.
_COUNTS = 20


def dict_reads(sizes: Sizes, root: str) -> Scenario:
    """Measure ``d[k]``, ``in`` and ``len`` of both sizes, ``items()`` of the small one."""
    small, large = both = (sizes.small_backlog, sizes.large_table)
    keys = {size: names(size) for size in both}
    kinds, missing = dicts.installed()
    count = sizes.operations

    def path(name: str, size: int) -> str:
        return os.path.join(root, f"{name}-{size}")

    def of_kind(name: str, kind: Kind, size: int) -> Contender:
        wanted = some(keys[size], count if name == OURS else count // 4)
        lengths = count if name in (OURS, DISKCACHE) else _COUNTS
        passes = max(1, len(wanted) // size) if size == small and name != PERSIST_QUEUE else 0

        def measure(at: str) -> Mapping[str, float]:
            with kind.open(path(name, size)) as stored:
                return _look(stored, wanted, lengths, passes)

        return Contender(f"{name}, {size:,}", kind.survives, measure)

    def of_floor(name: str, size: int) -> Contender:
        wanted: Sequence[Any] = some(keys[size], count)
        reader: Callable[[str], Any] = floors.bare_reader
        at = path(name, size)
        if name == _SAME_FILE:
            wanted = [b"s" + key.encode() for key in wanted]  # As PDict encodes them.
            reader = floors.reader_of_ours
            at = path(OURS, size)

        def measure(_: str) -> Mapping[str, float]:
            with reader(at) as look_up:
                marks = Marks()
                look_up(wanted)
                return {_LOOK_UP: marks.lap(len(wanted))}

        return Contender(f"{name}, {size:,}", "process", measure)

    def there(size: int) -> list[str]:
        # dbm.dumb has every key in memory, and reads and writes all of them when it is opened and closed.
        return [name for name in kinds if name != SHELVE or size == small]

    def prepare() -> Mapping[str, Any]:
        facts = {}
        for size in both:
            fills = {name: kinds[name].fill for name in there(size)} | {_BARE: floors.fill_bare}
            seconds = {}
            for name, fill in fills.items():
                marks = Marks()
                fill(path(name, size), keys[size])
                seconds[name] = round(marks.lap(1) / 1e6, 2)
            facts[f"seconds to build, {size:,}"] = seconds
        return facts

    def beside(
        phase: str,
        over: str,
        under: str,
        size: int,
        at_least: float | None = None,
        at_most: float | None = None,
    ) -> Figure:
        first, second = ([f"{name}, {size:,}: {phase}"] for name in (over, under))
        return ratio(f"{phase}, {size:,}: {over} / {under}", first, second, at_least, at_most)

    def growth(phase: str, name: str, at_most: float | None = None) -> Figure:
        first, second = ([f"{name}, {size:,}: {phase}"] for size in (large, small))
        return ratio(f"{phase}, {name}: large / small", first, second, at_most=at_most)

    ours, bare = growth(_LOOK_UP, OURS), growth(_LOOK_UP, _SAME_FILE)

    def growth_beside_bare(numbers: Numbers) -> float:
        return ours.of(numbers) / bare.of(numbers)

    peers = [name for name in dicts.PEERS if name != DISKCACHE]
    return Scenario(
        name="dict_reads",
        compared=(
            f"Dicts of {small:,} and of {large:,} str keys with dicts of 100 bytes, pickle: d[k] and in, of"
            " keys in random order, len, and items() of the small ones, per item; one thread. Beside a bare"
            " select + loads over sqlite3, in the very file of ours, whose keys were spelled as bytes before,"
            " and in a table of key and value. Everything is opened anew in each round and read from the"
            " system's page cache. Of the large ones hardly anything fits into SQLite's own, 2 MB for ours"
            " and the bare loops (diskcache's has 32 MB, and maps 64), and the B-trees are deeper: so how"
            " d[k] grows is promised beside the bare loop. What was assigned survives the death of the"
            f" process, except with shelve, here {dicts.dbm_of_shelve()}, which is measured small only."
        ),
        contenders=[
            contender
            for size in both
            for contender in (
                *(of_kind(name, kinds[name], size) for name in there(size)),
                *(of_floor(name, size) for name in (_SAME_FILE, _BARE)),
            )
        ],
        figures=[
            *(beside(_LOOK_UP, OURS, _SAME_FILE, size, at_most=1.5) for size in both),
            *(beside(_LOOK_UP, OURS, _BARE, size) for size in both),
            *(beside(_LOOK_UP, DISKCACHE, OURS, size, at_least=1) for size in both),
            *(beside(_LOOK_UP, name, OURS, small) for name in peers),
            *(beside(_LOOK_UP, name, OURS, large) for name in peers if name != SHELVE),
            growth("len", OURS, at_most=1.3),
            ours,
            bare,
            Figure("d[k], ours: large / small, beside bare's", growth_beside_bare, at_most=1.3),
            growth("in", OURS),
            *(beside("items()", name, OURS, small) for name in (DISKCACHE, SQLITEDICT, SHELVE)),
        ],
        prepare=prepare,
        missing=missing,
    )


def _look(stored: Any, keys: Sequence[str], lengths: int, passes: int) -> Mapping[str, float]:
    marks = Marks()
    for key in keys:
        stored[key]
    numbers = {_LOOK_UP: marks.lap(len(keys))}
    for key in keys:
        key in stored  # noqa: B015
    numbers["in"] = marks.lap(len(keys))
    for _ in repeat(None, lengths):
        len(stored)
    numbers["len"] = marks.lap(lengths)
    if passes:
        found = sum(1 for _ in repeat(None, passes) for _ in stored.items())
        numbers["items()"] = marks.lap(found)
    return numbers
