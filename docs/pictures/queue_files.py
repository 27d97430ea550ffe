"""The files of a queue in use, and what a power cut leaves of them: those of a queue that is made for it."""

from __future__ import annotations

import logging
import shutil
import struct
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from docs.pictures.drawing import BLUE, GREEN, GREY, ORANGE, RED, Drawing
from persistcoll import Queue
from persistcoll.journal.frames import HEADER_SIZE, ITEM

__all__ = ["Directories", "Frame", "draw", "frames", "make"]

CHUNKSIZE = 4
_PUT, _ACKNOWLEDGED, _TORN = 10, 5, 20
_NEXT = _PUT + 1
_HEADER = struct.Struct("<IHHIQdI")
_CHUNK_HEADER, _MAGIC = 84, 0x5EC7
_CURSOR_HEADER, _ENTRY, _POSITION = 32, struct.Struct("<IIIQQ"), 1
_LEFT, _RIGHT, _CELL, _WIDTH = 10, 146, 76, 540
_COLOURS = {"acked": GREEN, "claimed": ORANGE, "ready": BLUE, "": GREY}


class Directories(NamedTuple):
    """The files of the queue by name, with their bytes."""

    in_use: dict[str, bytes]
    cut: dict[str, bytes]
    """What a power cut in the middle of a put leaves."""
    opened: dict[str, bytes]
    """What is there when the queue was opened again."""
    ready: list[int]
    """The items that are then delivered."""


def make() -> Directories:
    """Put, get and acknowledge in a queue, tear its last record, and open it again."""
    with tempfile.TemporaryDirectory() as base:
        queue, cut = Path(base, "queue"), Path(base, "cut")
        with Queue(queue, serializer="json", chunksize=CHUNKSIZE) as q:
            for number in range(1, _NEXT):
                q.put(number)
            for _ in range(_ACKNOWLEDGED):
                q.get()
                q.task_done()
            q.get()
            in_use = _read(queue)
            shutil.copytree(queue, cut)
            q.put(_NEXT)
            tail = max(name for name in in_use if name.startswith("q"))
            torn = (queue / tail).read_bytes()[: len(in_use[tail]) + _TORN]
        (cut / tail).write_bytes(torn)
        left = _read(cut)
        log = logging.getLogger("persistcoll")
        level, log.disabled = log.disabled, True  # it warns of what the picture shows
        try:
            with Queue(cut, serializer="json", chunksize=CHUNKSIZE) as q:
                opened = _read(cut)
                ready = q.get_many(100)
        finally:
            log.disabled = level
    return Directories(in_use, left, opened, ready)


def _read(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


class Frame(NamedTuple):
    """One frame of a chunk: its kind, the id of its record, and its end."""

    kind: int
    id: int
    end: int


def frames(chunk: bytes) -> Iterator[Frame]:
    """Give the whole frames of a chunk."""
    at = _CHUNK_HEADER + int.from_bytes(chunk[10:12], "little") + 4  # the serializer's name, and the CRC
    while at + HEADER_SIZE <= len(chunk):
        _, magic, kind, length, id, _, _ = _HEADER.unpack_from(chunk, at)
        at += HEADER_SIZE + length
        if magic != _MAGIC or at > len(chunk):
            return
        yield Frame(kind, id, at)


def acknowledged(cursor: bytes) -> int:
    """Return the id up to which every record is acknowledged, of a cursor that has no other entries."""
    last, at = 0, _CURSOR_HEADER
    while any(cursor[at : at + _ENTRY.size]):
        _, kind, _, first, second = _ENTRY.unpack_from(cursor, at)
        last = max(last, first if kind == _POSITION else second)
        at += _ENTRY.size
    return last


def draw() -> Drawing:
    """Return the picture."""
    made = make()
    drawing = Drawing(
        "queue_files", "The files of a queue, and what a power cut leaves of them", _describe(made), _WIDTH
    )
    last = acknowledged(made.in_use["cursor"])
    tail = _chunks(made.cut)[-1]
    states = {id: "acked" if id <= last else "ready" for id in range(1, _NEXT)}
    held = {**states, last + 1: "claimed"}
    rows = _Rows(drawing)
    rows.title("A queue in use")
    rows.text("info", "kind, serializer and chunk size")
    rows.gone("q00000", f"removed: {_some(range(1, CHUNKSIZE + 1))} are acknowledged")
    for name in _chunks(made.in_use):
        rows.chunk(name, made.in_use[name], held)
    rows.text("cursor", f"acknowledged: every item up to {last}")
    rows.text("consumer.lock", f"locked by the consumer, which has claimed {last + 1}")
    rows.text("producer.lock", "locked for each put; holds the tail mark")
    rows.title(f"A power cut in the middle of put({_NEXT}) leaves")
    rows.chunk(tail, made.cut[tail], states)
    rows.text("consumer.lock", f"locked by nobody: {last + 1} is not claimed any more")
    rows.title("The next opening makes of it")
    for name in _chunks(made.opened):
        rows.chunk(name, made.opened[name], states)
    for name in made.opened.keys() - made.cut.keys():
        rows.text(name, f"the {len(made.opened[name])} bytes that were cut off")
    rows.text("then", f"get() returns {_some(made.ready)}")
    return drawing


def _chunks(directory: dict[str, bytes]) -> list[str]:
    return [name for name in directory if name.startswith("q") and "." not in name]


def _some(ids: Iterable[int]) -> str:
    *before, last = map(str, ids)
    return f"{', '.join(before)} and {last}"


def _describe(made: Directories) -> str:
    last = acknowledged(made.in_use["cursor"])
    tail = _chunks(made.cut)[-1]
    held = {
        name: _some(f.id for f in frames(data) if f.kind == ITEM)
        for name, data in made.in_use.items()
        if name in _chunks(made.in_use)
    }
    [torn] = made.opened.keys() - made.cut.keys()
    return (
        f"The directory holds {', '.join(made.in_use)}. "
        + " ".join(f"The chunk {name} holds the items {ids}." for name, ids in held.items())
        + f" The cursor says that the items up to {last} are acknowledged. A power cut in the middle of a "
        f"put leaves {_TORN} bytes of item {_NEXT} at the end of {tail}. The next opening moves them to "
        f"{torn}, and get returns {_some(made.ready)}."
    )


class _Rows:
    """Writes a row for each file, below each other."""

    def __init__(self, drawing: Drawing) -> None:
        self._drawing = drawing
        self._y = 0.0

    def title(self, text: str) -> None:
        self._y += 22 + (14 if self._y else 0)
        self._drawing.text(_LEFT, self._y, text, bold=True)
        self._y += 14

    def _name(self, name: str, height: float) -> float:
        """Write a file's name, and return the row's middle."""
        middle = self._y + height / 2 + 5
        self._drawing.text(_LEFT, middle, name, mono=True, size=13)
        return middle

    def text(self, name: str, text: str) -> None:
        self._drawing.text(_RIGHT, self._name(name, 26), text)
        self._y += 26

    def gone(self, name: str, text: str) -> None:
        self._name(name, 26)
        self._drawing.box(_RIGHT, self._y, _WIDTH - _RIGHT - 10, 26, text, GREY, fill=0, dashed=True)
        self._y += 34

    def chunk(self, name: str, data: bytes, states: dict[int, str]) -> None:
        self._name(name, 40)
        x, end = float(_RIGHT), 0
        for frame in frames(data):
            state = states[frame.id] if frame.kind == ITEM else ""
            lines = [str(frame.id), state] if state else ["END"]
            self._drawing.box(x, self._y, _CELL, 40, lines, _COLOURS[state], 13, bold=True, padding=3)
            x, end = x + _CELL, frame.end
        if end < len(data):
            lines = [f"{len(data) - end} bytes", f"of {_NEXT}"]
            self._drawing.box(x, self._y, _CELL, 40, lines, RED, 13, fill=0, dashed=True, padding=2)
        self._y += 48
