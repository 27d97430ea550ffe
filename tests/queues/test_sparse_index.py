"""The sparse index of a chunk leads to a frame from which every record can be read."""

from __future__ import annotations

import os
import random
from pathlib import Path

from persistcoll.disk.calls import Disk
from persistcoll.engine.records import Record
from persistcoll.journal.chunks import Chunk
from persistcoll.journal.frames import END, ITEM, Frames, encode, encode_batch
from persistcoll.journal.sparse_index import SparseIndex

SALT = 7
CHUNK = Chunk(3, bytes(16), 101, 100, 0.0, SALT, "raw", 1 << 20, 100, 0.5)


def write_chunk(path: Path) -> list[int]:
    """Write a chunk of items and batches of very different lengths, and return where frames end."""
    choice = random.Random(1)
    data = CHUNK.encode()
    ends = [len(data)]
    id = CHUNK.first_id
    while len(data) < 1 << 20:
        time = float(id // 10)
        payloads = [
            bytes(choice.choice((0, 3, 100, 5_000))) for _ in range(choice.choice((1, 1, 1, 2, 20, 60)))
        ]
        if len(payloads) == 1:
            data += encode(SALT, ITEM, id, time, 0, payloads[0])
        else:
            data += encode_batch(SALT, id, time, 0, payloads)
        id += len(payloads)
        ends.append(len(data))
    path.write_bytes(data + encode(SALT, END, id, 0.0, 0, b""))
    return ends


def read_from(fd: int, offset: int) -> Record:
    found = Frames(Disk(), fd, SALT, offset).read()
    assert isinstance(found, Record)
    return found


def test_every_entry_is_the_place_of_its_record(tmp_path: Path) -> None:
    path = tmp_path / "q00003"
    ends = write_chunk(path)
    fd = os.open(path, os.O_RDONLY)
    try:
        index = SparseIndex.begin(CHUNK).extended(Disk(), fd, os.stat(path).st_size)
        assert len(index.entries) > 5
        latest = CHUNK.latest
        for entry in index.entries:
            assert entry.offset in ends  # not within a batch
            record = read_from(fd, entry.offset)
            assert record.id == entry.id
            assert latest <= entry.latest <= max(record.time, CHUNK.latest)
            assert index.offset_of(entry.id) == entry.offset
            assert index.offset_of(entry.id - 1) < entry.offset or entry.id == CHUNK.first_id
            latest = entry.latest
        assert index.end == ends[-1]
    finally:
        os.close(fd)


def test_an_index_that_grows_with_its_chunk_leads_to_the_same_records(tmp_path: Path) -> None:
    path = tmp_path / "q00003"
    ends = write_chunk(path)
    fd = os.open(path, os.O_RDONLY)
    try:
        grown = SparseIndex.begin(CHUNK)
        for end in ends:
            grown = grown.extended(Disk(), fd, end)
        whole = SparseIndex.begin(CHUNK).extended(Disk(), fd, ends[-1])
        assert grown.entries == whole.entries
        assert grown.end == whole.end
    finally:
        os.close(fd)
