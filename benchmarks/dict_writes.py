"""Assignments and deletions, one key at a time and many at once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from benchmarks import dict_contenders as dicts
from benchmarks import dict_floors as floors
from benchmarks.contenders import Marks
from benchmarks.dict_contenders import DISKCACHE, KINDS, OURS, PEERS, SQLITEDICT, Kind, names, some
from benchmarks.dict_floors import Work
from benchmarks.model import Contender, Figure, Scenario, Sizes, ratio
from benchmarks.sql_floors import lengthen_log

__all__ = ["dict_updates", "dict_writes"]

_BARE = "bare"
_PHASES = _PRESENT, _NEW, _DELETE = ("d[k] = v", "new d[k] = v", "del d[k]")
# Few beside the thousand or so changes between two checkpoints, so that all phases meet checkpoints alike.
_BLOCK = 100
_MANY = 1_000


def dict_writes(sizes: Sizes, root: str) -> Scenario:
    """Measure ``d[k] = v`` and ``del`` of both sizes."""
    small, large = both = (sizes.small_backlog, sizes.large_table)
    count = sizes.operations // 4
    present = {size: some(names(size), count) for size in both}
    new = {size: some(names(max(size, count), new=True), count) for size in both}
    kinds, missing = dicts.installed()

    def path(name: str, size: int) -> str:
        return os.path.join(root, f"{name}-{size}")

    def contender(name: str, size: int) -> Contender:
        times = count if name in (OURS, _BARE) else sizes.slow // 2
        writing = floors.bare_writer if name == _BARE else partial(_writing, kinds[name], size)

        def measure(at: str) -> Mapping[str, float]:
            with writing(path(name, size)) as (assign, delete):
                return _change(assign, delete, present[size][:times], new[size][:times])

        survives = "process" if name == _BARE else kinds[name].survives
        return Contender(f"{name}, {size:,}", survives, measure)

    def prepare() -> Mapping[str, Any]:
        for size in both:
            kinds[OURS].fill(path(OURS, size), names(size))
            floors.fill_bare(path(_BARE, size), names(size))
        for name, kind in kinds.items():
            if name != OURS:
                kind.fill(path(name, small), names(small))
        return {}

    def beside(phase: str, over: str, under: str, size: int, at_most: float | None = None) -> Figure:
        first, second = ([f"{name}, {size:,}: {phase}"] for name in (over, under))
        return ratio(f"{phase}, {size:,}: {over} / {under}", first, second, at_most=at_most)

    def growth(phase: str, name: str) -> Figure:
        first, second = ([f"{name}, {size:,}: {phase}"] for size in (large, small))
        return ratio(f"{phase}, {name}: large / small", first, second)

    return Scenario(
        name="dict_writes",
        compared=(
            f"Dicts of {small:,} and of {large:,} str keys with dicts of 100 bytes, pickle; one thread:"
            " assigning another value to keys that are there and to new ones, in random order, and deleting"
            f" these, in blocks of {_BLOCK}. Each is a transaction that survives the death of the process"
            " when it returns; persist-queue's and diskcache's databases have synchronous=NORMAL for it as"
            " ours and the bare loop, which is BEGIN IMMEDIATE, an upsert or a delete, and COMMIT by hand, in"
            " a table of key and value. Ours also keeps its length, which each deletion writes. sqlitedict's"
            f" never sync: a power cut may damage them. shelve, here {dicts.dbm_of_shelve()}, is sure of what"
            " it closed only."
        ),
        contenders=[
            *(contender(name, size) for size in both for name in (OURS, _BARE)),
            *(contender(name, small) for name in kinds if name != OURS),
        ],
        figures=[
            *(beside(phase, OURS, _BARE, size, at_most=1.5) for phase in (_PRESENT, _NEW) for size in both),
            *(beside(_DELETE, OURS, _BARE, size) for size in both),
            *(beside(phase, name, OURS, small) for name in PEERS for phase in _PHASES),
            *(growth(phase, name) for phase in _PHASES for name in (OURS, _BARE)),
        ],
        prepare=prepare,
        missing=missing,
    )


@contextmanager
def _writing(kind: Kind, size: int, path: str) -> Iterator[tuple[Work, Work]]:
    with kind.open(path) as stored:
        yield partial(_assign, stored), partial(_delete, stored)
        if len(stored) != size:
            raise AssertionError(f"{len(stored)} keys are there instead of {size}")


def _assign(stored: Any, pairs: Iterable[tuple[str, Any]]) -> None:
    for key, value in pairs:
        stored[key] = value


def _delete(stored: Any, keys: Iterable[str]) -> None:
    for key in keys:
        del stored[key]


def _change(assign: Work, delete: Work, present: Sequence[str], new: Sequence[str]) -> Mapping[str, float]:
    numbers = dict.fromkeys(_PHASES, 0.0)
    count = len(new)
    for first in range(0, count, _BLOCK):
        block = slice(first, first + _BLOCK)
        changed, added = dicts.different(present[block]), dicts.different(new[block])
        marks = Marks()
        assign(changed)
        numbers[_PRESENT] += marks.lap(count)
        assign(added)
        numbers[_NEW] += marks.lap(count)
        delete(new[block])
        numbers[_DELETE] += marks.lap(count)
    return numbers


def dict_updates(sizes: Sizes, root: str) -> Scenario:
    """Measure ``update`` beside as many single assignments."""
    many = min(_MANY, sizes.slow)
    pairs = dict(dicts.different(names(many)))
    others = dicts.different(names(many, new=True))
    found, _ = dicts.installed()
    kinds = {name: found[name] for name in (OURS, DISKCACHE, SQLITEDICT) if name in found}

    def contender(name: str, durability: str) -> Contender:
        def measure(at: str) -> Mapping[str, float]:
            path = os.path.join(at, "dict")
            with kinds[name].open(path, durability) as stored:
                if name == OURS:
                    lengthen_log(path)
                marks = Marks()
                stored.update(pairs)
                numbers = {"update": marks.lap(many)}
                _assign(stored, others)
                numbers[_PRESENT] = marks.lap(many)
                return numbers

        return Contender(f"{name}, {durability}", durability, measure)

    def faster(name: str, durability: str, at_least: float | None = None) -> Figure:
        first, second = ([f"{name}, {durability}: {phase}"] for phase in (_PRESENT, "update"))
        return ratio(f"single assignments / update, {name}, {durability}", first, second, at_least=at_least)

    def beside(name: str) -> Figure:
        first, second = ([f"{each}, process: update"] for each in (name, OURS))
        return ratio(f"update: {name} / {OURS}, process", first, second)

    return Scenario(
        name="dict_updates",
        compared=(
            f"update with {many:,} new keys, and as many new ones assigned one by one, to a dict that was"
            " just made; dicts of 100 bytes, pickle, one thread; per key. At power durability each call is"
            " on the device when it returns. An update of ours is one transaction; diskcache's and"
            " sqlitedict's are as many as they have keys. The write-ahead log of ours is as long as it"
            " becomes before the clock starts: no sync has to make the file longer."
        ),
        contenders=[contender(OURS, "power"), *(contender(name, "process") for name in kinds)],
        figures=[
            faster(OURS, "power", at_least=10),
            *(faster(name, "process") for name in kinds),
            *(beside(name) for name in (DISKCACHE, SQLITEDICT)),
        ],
        missing=[KINDS[name].package for name in (DISKCACHE, SQLITEDICT) if name not in found],
    )
