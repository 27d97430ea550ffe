"""The states that a power cut may leave on a disk, for :meth:`CrashDisk.states`.

The walk takes a trace of operations step by step. At every step some operations are certain, and each
pending operation has several possible fates. A state is one choice of fates.

Three models, each allowing more than the one before:

``"ext4"``
    Journaling as ext4 does it with ``data=ordered,noauto_da_alloc``. Names, truncations and
    reservations survive as a prefix of their order. A sync of a file (or directory) whose metadata
    changed commits all metadata before it. Appended data that was not synced survives as a prefix:
    lost, torn, or its length there and zeros in its place. Overwrites survive or not, each alone,
    torn only between sectors.
``"strict"``
    What POSIX promises and no more. A name needs the sync of its directory; each name operation
    survives or not, independently; a rename is atomic. Each write survives or not, independently: it
    may be torn at a sector or at any byte, or be zeros where the file was longer than what is certain.
``"weak"``
    As ``"strict"``, and in place of zeros there may be any bytes: those that another file of the trace
    held (an old chunk's records), or noise. An overwrite may be torn from either end.

The freedoms of the models come from Pillai et al., "All File Systems Are Not Created Equal: On the
Complexity of Crafting Crash-Consistent Applications" (OSDI 2014).
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import posixpath
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, get_args

from persistcoll.testing.crash.model import (
    KEPT,
    LOST,
    ZEROS,
    CrashState,
    Entry,
    Fate,
    File,
    Image,
    Model,
    Operation,
    apply_name,
    content_of,
)

__all__ = ["SECTOR", "crash_states"]

SECTOR = 512
"""Bytes that a device writes wholly or not at all, in the models that grant this."""


class _Choices(NamedTuple):
    """The alternatives at one cut."""

    dimensions: list[list[Any]]
    """Alternatives, each list independent of the others: kept first, lost second, then between."""
    data: int
    """The number of dimensions, at the start, that are of data; the others are of names and lengths."""
    resolve: Callable[[Sequence[Any]], dict[int, Fate]]
    """Turns one alternative of each list into fates by the operations' indexes."""


class _Walk:
    """The fates of every operation of one trace in one model."""

    def __init__(self, trace: Sequence[Operation], model: Model, seed: int) -> None:
        self.trace, self.model, self.seed = trace, model, seed
        self.junk: dict[tuple[int, str], bytes] = {}
        self._fates: dict[tuple[int, bool], list[Fate]] = {}

    def fates(self, entry: Entry, in_place: bool) -> list[Fate]:
        """List the fates of an operation: kept first, lost second, then what lies between."""
        if entry.operation.kind != "write":
            return [KEPT, LOST]
        known = self._fates.get((entry.index, in_place))
        if known is None:
            known = self._fates[entry.index, in_place] = self._write_fates(entry, in_place)
        return known

    def _write_fates(self, entry: Entry, in_place: bool) -> list[Fate]:
        index, start, length = entry.index, entry.operation.offset, len(entry.operation.data)
        sectors = [-start % SECTOR or SECTOR, length - (start + length - 1) % SECTOR - 1]
        # One place per write, the same at every cut, so that equal states are found equal.
        anywhere = 1 + int(random.Random(f"{self.seed} {index}").random() * (length - 1))
        places = sectors if in_place and self.model == "ext4" else [*sectors, anywhere, length - 1]
        cuts = sorted(place for place in set(places) if 0 < place < length)
        result = [KEPT, LOST, *(Fate("torn", cut) for cut in cuts)]
        if not in_place:
            kinds = ["zeros"] + (self._make_junk(index, entry.operation) if self.model == "weak" else [])
            for kind in kinds:
                result += [Fate(kind), *([Fate(kind, anywhere)] if length > 1 else [])]
        elif self.model == "weak":
            result += [Fate("tail", cut) for cut in cuts]
        return result

    def _make_junk(self, index: int, operation: Operation) -> list[str]:
        length = len(operation.data)
        self.junk[index, "noise"] = random.Random(f"{self.seed} {index} noise").randbytes(length)
        before = [
            other.data
            for other in self.trace[:index]
            if other.kind == "write" and other.inode != operation.inode and other.data != operation.data
        ]
        if not before:
            return ["noise"]
        # The worst content of a block is a whole record of another file.
        stale = next((data for data in reversed(before) if len(data) == length), before[-1])
        self.junk[index, "stale bytes"] = (stale * (length // len(stale) + 1))[:length]
        return ["stale bytes", "noise"]

    def choices(self, image: Image) -> _Choices:
        """Return the alternatives at this cut."""
        writes: list[tuple[Entry, bool]] = []
        metadata = [entry for entry in image.entries if not entry.certain]
        alive = set(image.names.values()).union(entry.operation.inode for entry in image.entries)
        files = [image.files[inode] for inode in sorted(alive - {0}) if image.files[inode].entries]
        for file in files:
            floor = len(file.base)
            for entry in file.entries:
                operation = entry.operation
                if operation.kind == "truncate":
                    floor = min(floor, operation.offset)
                if entry.certain:
                    continue
                if operation.kind == "write":
                    writes.append((entry, operation.offset + len(operation.data) <= floor))
                else:
                    metadata.append(entry)
        metadata.sort(key=lambda entry: entry.index)
        if self.model == "ext4":
            return self._ordered_choices(metadata, writes, files)
        writes.sort(key=lambda pair: pair[0].index)
        pending = [*writes, *((entry, False) for entry in metadata)]
        indexes = [entry.index for entry, _ in pending]

        def resolve(chosen: Sequence[Any]) -> dict[int, Fate]:
            return dict(zip(indexes, chosen, strict=True))

        return _Choices([self.fates(*pair) for pair in pending], len(writes), resolve)

    def _ordered_choices(
        self, metadata: list[Entry], writes: list[tuple[Entry, bool]], files: list[File]
    ) -> _Choices:
        tails: list[list[Entry]] = []
        for _, group in itertools.groupby(writes, key=lambda pair: pair[0].operation.inode):
            tail = [entry for entry, in_place in group if not in_place]
            tails += [tail] if tail else []
        inside = [pair for pair in writes if pair[1]]
        count = len(metadata)
        # (n, fate): n writes arrived, the next one has that fate, the others are lost.
        endings = [
            [
                (len(tail), LOST),
                (0, LOST),
                *(
                    (index, fate)
                    for index in reversed(range(len(tail)))
                    for fate in self.fates(tail[index], False)[1 if index else 2 :]
                ),
            ]
            for tail in tails
        ]
        prefixes = [[count, *range(count)]] if count else []

        def resolve(chosen: Sequence[Any]) -> dict[int, Fate]:
            rest = iter(chosen)
            committed = chosen[-1] if count else 0
            fates = {entry.index: KEPT if place < committed else LOST for place, entry in enumerate(metadata)}
            for tail in tails:
                arrived, fate = next(rest)
                for place, entry in enumerate(tail):
                    here = fate if place == arrived else LOST
                    # Zeros may reach to the end: the size arrived, and no data did.
                    here = ZEROS if place > arrived and fate == ZEROS else here
                    fates[entry.index] = KEPT if place < arrived else here
            for entry, _ in inside:
                fates[entry.index] = next(rest)
            for file in files:
                barred = False
                for entry in file.pending():
                    # Data after a truncation is on the device only when the truncation is.
                    barred |= entry.operation.kind != "write" and fates[entry.index] == LOST
                    if barred:
                        fates[entry.index] = LOST
            return fates

        data: list[list[Any]] = [*endings, *(self.fates(*pair) for pair in inside)]
        return _Choices([*data, *prefixes], len(data), resolve)


def _combinations(choices: _Choices, limit: int, rng: random.Random) -> Iterator[Sequence[Any]]:
    """Give all combinations where they are at most ``limit``, otherwise that many, the telling ones first."""
    dimensions, data = choices.dimensions, choices.data
    if math.prod(map(len, dimensions)) <= limit:
        yield from itertools.product(*dimensions)
        return
    kept = [alternatives[0] for alternatives in dimensions]
    lost = [alternatives[1] for alternatives in dimensions]
    # Data whose name is lost shows nothing; journals lose data and keep names.
    named = [alternatives[place < data] for place, alternatives in enumerate(dimensions)]
    latest_first = range(len(dimensions) - 1, -1, -1)

    def but(common: list[Any], place: int, alternative: Any) -> list[Any]:
        return [*common[:place], alternative, *common[place + 1 :]]

    single = (
        but(common, place, dimensions[place][alternative])
        for place in latest_first
        for common, alternative in ((kept, 1), (named if place < data else lost, 0))
    )
    damaged = (but(kept, place, partly) for place in latest_first for partly in dimensions[place][2:])
    chosen = [kept, lost, named, *itertools.islice(single, limit // 2)]
    chosen += itertools.islice(damaged, max(0, limit * 3 // 4 - len(chosen)))
    tried = set()
    for _ in range(2 * limit):
        combination = tuple(chosen.pop(0) if chosen else [_pick(each, rng) for each in dimensions])
        if combination not in tried:
            tried.add(combination)
            yield combination
        if len(tried) == limit:
            return


def _pick(alternatives: list[Any], rng: random.Random) -> Any:
    # Half of the draws keep the data: in a store with everything damaged, few errors can show.
    draw = rng.random()
    if draw < 0.5:
        return alternatives[0]
    if draw < 0.75 or len(alternatives) == 2:
        return alternatives[1]
    return alternatives[2 + int((draw - 0.75) * 4 * (len(alternatives) - 2))]


def crash_states(
    trace: Sequence[Operation],
    names: dict[str, int],
    directories: set[str],
    contents: dict[int, bytes],
    marks: Sequence[tuple[int, str]],
    model: Model,
    limit: int,
    seed: int,
) -> Iterator[CrashState]:
    """Give the states after each prefix of ``trace``; see :meth:`CrashDisk.states`.

    :param names: inodes by name at the start, all durable; ``directories`` and ``contents`` are by inode.
    :param marks: pairs of a number of operations done and a label.
    """
    if model not in get_args(Model):
        raise ValueError(f"model must be one of {get_args(Model)}, not {model!r}")
    if limit < 2:
        raise ValueError(f"limit must be at least 2, not {limit}")
    walk = _Walk(trace, model, seed)
    image = Image(names, directories, contents)
    seen: set[tuple[bytes, int]] = set()
    for step in range(len(trace) + 1):
        if step:
            image.advance(step - 1, trace[step - 1], model)
        passed = tuple(label for position, label in marks if position <= step)
        after = f"after step {step} ({trace[step - 1]})" if step else "before the first step"
        choices = walk.choices(image)
        build = _Builder(image, walk.junk)
        for chosen in _combinations(choices, limit, random.Random(f"{seed} cut {step}")):
            fates = choices.resolve(chosen)
            files, folders, digest = build(fates)
            if (digest, len(passed)) not in seen:
                seen.add((digest, len(passed)))
                description = f"{model}: power cut {after}: {_describe(trace, fates)}"
                yield CrashState(step, description, files, passed, folders, digest)


class _Builder:
    """Makes the files of one cut, each version of each file once."""

    def __init__(self, image: Image, junk: dict[tuple[int, str], bytes]) -> None:
        self._image, self._junk = image, junk
        self._versions: dict[tuple[int | Fate, ...], tuple[bytes, bytes]] = {}

    def __call__(self, fates: dict[int, Fate]) -> tuple[dict[str, bytes], tuple[str, ...], bytes]:
        names, directories = dict(self._image.names), set(self._image.directories)
        for entry in self._image.entries:
            if entry.certain or fates[entry.index] == KEPT:
                apply_name(names, directories, entry.operation)
        reachable = {""}
        for folder in sorted(directories):
            if posixpath.dirname(folder) in reachable:
                reachable.add(folder)
        folders = tuple(sorted(reachable - {""}))
        files: dict[str, bytes] = {}
        whole = hashlib.blake2b(repr(folders).encode(), digest_size=16)
        for name in sorted(names):
            if posixpath.dirname(name) in reachable:
                files[name], digest = self._version(names[name], fates)
                whole.update(b"%d %s" % (len(name), os.fsencode(name)) + digest)
        return files, folders, whole.digest()

    def _version(self, inode: int, fates: dict[int, Fate]) -> tuple[bytes, bytes]:
        file = self._image.files[inode]
        key: tuple[int | Fate, ...] = (inode, *(fates[entry.index] for entry in file.pending()))
        if key not in self._versions:
            content = content_of(file.base, file.entries, fates, self._junk)
            self._versions[key] = content, hashlib.blake2b(content, digest_size=16).digest()
        return self._versions[key]


def _describe(trace: Sequence[Operation], fates: dict[int, Fate]) -> str:
    parts = []
    for index, fate in sorted(fates.items()):
        length = len(trace[index].data)
        if fate.kind == "lost":
            parts.append(f"lost {trace[index]}")
        elif fate.kind == "torn":
            parts.append(f"only {fate.at} of {length} bytes of {trace[index]}")
        elif fate.kind == "tail":
            parts.append(f"only the last {length - fate.at} of {length} bytes of {trace[index]}")
        elif fate.kind != "kept":
            behind = f" behind {fate.at} of {length} bytes" if fate.at else ""
            parts.append(f"{fate.kind}{behind} of {trace[index]}")
    if len(parts) > 6:
        parts[6:] = [f"and {len(parts) - 6} more of {len(fates)} pending operations"]
    return "; ".join(parts) or "everything kept"
